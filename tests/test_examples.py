"""Every example runs by itself, ends, and shows what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import LONG

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

EXPECTED = {
    "test_my_bot.py": ["6 passed"],
    "two_sessions.py": [
        "<Session 'main' online>",
        "<Session 'practice' online>",
        "a caption of the main meeting",
        "a caption of the practice session",
        "[main: online, practice: idle]",
        "and the main meeting goes on",
    ],
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WEBEX_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        capture_output=True,
        text=True,
        timeout=LONG,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line in EXPECTED[path.name]:
        assert line in done.stdout
