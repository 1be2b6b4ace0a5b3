"""Python scripts in processes of their own: what a user's program does, seen from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from llm_sessions.testing.captions import Webinar
from llm_sessions.testing.server import LocalServer
from tests.documents import ROOT
from tests.support import LONG

PRELUDE = """
import json, os, signal, sys, threading, time
from llm_sessions import *

given = json.loads(sys.argv[1])
QUICK = dict(backoff_initial=0.01, backoff_max=0.05, jitter=False, wait_timeout=60.0, open_timeout=60.0)

def url(key):
    return given["ws"] + key

def config(**settings):
    if given["ca_file"]:
        import ssl
        settings = {"ssl_context": ssl.create_default_context(cafile=given["ca_file"]), **settings}
    return PoolConfig(**{**QUICK, **settings})

def make_pool(**settings):
    return ConnectionPool("token", config=config(**settings))

def make_client(**settings):
    return DataChannelClient("token", device="https://wdm.example/devices/1", config=config(**settings))

def say(thing):
    print(json.dumps(thing), flush=True)

def hear():
    return sys.stdin.readline()
"""


class Script:
    """A script that runs, and what it says. It is killed with the end of the block.

    The script has `url(key)`, `config(**settings)`, `make_pool(**settings)`, `make_client(**settings)`,
    `given` (with the `join` response of a webinar), `say(thing)` and `hear()`, which waits for `tell`.

    Args:
        server: What it connects to.
        code: The script.
        ca_file: What it trusts; None for `ws://`.
        file: A file to run instead, which gets what the script has as `sys.argv[2]`.
        prefix: A command that it is started by.
        env: Further variables of its environment.
    """

    def __init__(
        self,
        server: LocalServer,
        code: str,
        *,
        ca_file: Path | None = None,
        file: Path | None = None,
        prefix: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        given = {
            "ws": server.url(""),
            "rest": server.base_url,
            "ca_file": str(ca_file) if ca_file else None,
            "join": Webinar(server).join_response(),
        }
        command = [*prefix, sys.executable, "-W", "error"]
        command += ["-c", PRELUDE + textwrap.dedent(code)] if file is None else [str(file)]
        self._process = subprocess.Popen(
            [*command, json.dumps(given), PRELUDE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Script:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        said, complaints = self._process.communicate(timeout=LONG)
        if error is not None and (said or complaints):
            error.args = (f"{error}\nstdout: {said}\nstderr: {complaints}",)

    def says(self) -> Any:
        """Wait for the next thing that the script says."""
        line = self._stdout.readline()
        assert line, f"it ended with {self._process.wait(LONG)}: {self._process.communicate()[1]}"
        return json.loads(line)

    def tell(self) -> None:
        """Let it go on."""
        self._stdin.write("\n")
        self._stdin.flush()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def ends(self, code: int = 0, *, within: float = 2.0, stderr: str = "") -> None:
        """Let it go on; it ends by itself, in time, and with nothing else to complain of.

        Args:
            code: Its exit status.
            within: Seconds: twice what the library takes at most, for the interpreter ends, too.
            stderr: The last line there; empty for nothing.
        """
        started = time.monotonic()
        _, complaints = self._process.communicate("\n", timeout=LONG)
        elapsed = time.monotonic() - started
        if stderr:
            lines = complaints.splitlines()
            assert lines[0] == "Traceback (most recent call last):"
            assert lines[-1] == stderr
            assert sum(line.startswith("Traceback") for line in lines) == 1, complaints
            assert "llm-" not in complaints, "a thread of the library complains"
        else:
            assert complaints == ""
        assert self._process.returncode == code
        assert elapsed < within
