"""The package as a command."""

from __future__ import annotations

import subprocess
import sys

from llm_sessions import __version__
from tests.cli.command import ROOT, environment
from tests.support import LONG


def test_python_m_is_the_command() -> None:
    command = [sys.executable, "-W", "error", "-m", "llm_sessions"]
    for argument, status, shown in (("--version", 0, f"llm-sessions {__version__}\n"), ("nonsense", 2, "")):
        done = subprocess.run(
            [*command, argument], capture_output=True, text=True, timeout=LONG, cwd=ROOT, env=environment()
        )
        assert (done.returncode, done.stdout) == (status, shown)
        assert ("usage: llm-sessions" in done.stderr) is (status == 2)
