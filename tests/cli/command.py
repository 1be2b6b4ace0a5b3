"""The command in a process of its own, as a shell starts it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support import LONG

ROOT = Path(__file__).parents[2]
TOKEN = "s3cret-token-of-a-user"


def environment(**more: str) -> dict[str, str]:
    """Variables without anybody's proxies and tokens, and with one of ours."""
    dropped = ("WEBEX_TOKEN", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in dropped and not name.lower().endswith("_proxy")
    }
    return {**kept, "WEBEX_TOKEN": TOKEN, "PYTHONPATH": str(ROOT), **more}


class Command:
    """`llm-sessions` that runs. It is killed with the end of the block.

    Args:
        *arguments: The command's.
        stdout: Where its output goes; by default `line` reads it.
        stdin: What it has as its input.
        closed: Descriptors that it is started without.
        code: Python to run in the process before the command.
        env: Further variables.
    """

    def __init__(
        self,
        *arguments: str,
        stdout: int = subprocess.PIPE,
        stdin: int = subprocess.DEVNULL,
        closed: Sequence[int] = (),
        code: str = "",
        env: dict[str, str] | None = None,
    ) -> None:
        run = f"{code}\nimport sys\nfrom llm_sessions.cli.main import main\nsys.exit(main())"
        # A shell closes them, for what Popen could do it with is not safe beside other threads.
        without = ["sh", "-c", f'exec "$@" {" ".join(f"{one}>&-" for one in closed)}', "sh"] if closed else []
        self.process = subprocess.Popen(
            [*without, sys.executable, "-W", "error", "-c", run, *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=ROOT,
            env=environment(**(env or {})),
        )

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        with contextlib.suppress(ValueError):  # a pipe that the test has closed
            said = self.process.communicate(timeout=LONG)
            if error is not None:
                error.args = (f"{error}\nstdout: {said[0]}\nstderr: {said[1]}",)

    def line(self) -> str:
        """Wait for the next line of its output."""
        assert self.process.stdout is not None
        line: str = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait(LONG)}: {self.process.communicate()[1]}"
        return line.rstrip("\n")

    def object(self) -> Any:
        """Wait for the next line, which is JSON."""
        return json.loads(self.line())

    def until(self, event: str) -> list[Any]:
        """Read objects until one is of an event; return all."""
        found = [self.object()]
        while found[-1]["event"] != event:
            found.append(self.object())
        return found

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ends(self, status: int) -> tuple[str, str]:
        """Wait for its end; return what else it wrote, and what to standard error."""
        out, err = self.process.communicate(timeout=LONG)
        assert self.process.returncode == status, (self.process.returncode, out, err)
        assert "Traceback" not in err and "Exception ignored" not in err, err
        return out, err
