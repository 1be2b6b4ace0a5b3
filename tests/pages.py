"""Run the code of a page as its reader would: block after block, in one Python, in an empty folder.

    python pages.py PAGE

What a block prints is compared with the ```text block that follows it; `…` there stands for anything within a
line. A block whose first line is a comment with a file's name is that file. A console block with
`$ python FILE` is run, and what it prints compared with its other lines.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# ([\w.]+\.py)\n")
PATIENCE = 30  # seconds for a program of the page


def matches(expected: str, printed: str) -> bool:
    """Say whether a text is as expected, where `…` is anything within a line."""
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("…"))
    return re.fullmatch(pattern, printed.strip()) is not None


def commands(block: str) -> list[tuple[str, str]]:
    """Return the commands of a console block, without their comments, each with what it prints."""
    found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    return [(re.sub(r"\s+# .*", "", command), printed) for command, printed in found]


def complaints(page: Path) -> list[str]:
    """Run a page; return what is not as it says.

    Raises:
        Exception: Whatever its code raises.
    """
    text = page.read_text(encoding="utf-8")
    space: dict[str, object] = {"__name__": "__main__"}
    found, printed = [], ""
    sys.path.insert(0, "")
    for fence in FENCE.finditer(text):
        language, block = fence.groups()
        line = text.count("\n", 0, fence.start()) + 2
        where = f"{page.name}:{line}"
        if language == "text":
            if not matches(block, printed):
                found.append(f"{where}: it prints\n{printed}and not\n{block}")
        elif printed:
            found.append(f"{where}: the block before prints\n{printed}and does not say so")
        printed = ""
        file = FILE.match(block)
        if language == "python" and file is not None:
            Path(file[1]).write_text(block, encoding="utf-8")
        elif language == "python":
            printed = _run(block, page.name, line, space)
        elif language == "console":
            found += [f"{where}: {what}" for what in _run_programs(block)]
    return found if not printed else [*found, f"{page.name}: its last block prints\n{printed}unsaid"]


def _run(block: str, name: str, line: int, space: dict[str, object]) -> str:
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        exec(compile("\n" * (line - 1) + block, name, "exec"), space)
    return captured.getvalue()


def _run_programs(block: str) -> list[str]:
    found = []
    for command, expected in commands(block):
        words = command.split()
        if words[0] == "python":
            done = subprocess.run(
                [sys.executable, *words[1:]], capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            if done.returncode != 0 or done.stderr or not matches(expected, done.stdout):
                found.append(f"{command} ends with {done.returncode}\n{done.stdout}{done.stderr}")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(complaints(Path(sys.argv[1]))) or 0)
