"""Reading the documents that tests hold against the code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def read(path: str) -> str:
    """Return the text of a document of the project."""
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(text: str, language: str = "python") -> list[str]:
    """Return the code of each fenced block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def languages(text: str) -> list[str]:
    """Return the language of each fenced block, empty for one without.

    Raises:
        ValueError: If a block has no end.
    """
    fences = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
    if len(fences) % 2 or any(fences[1::2]):
        raise ValueError("a block has no end")
    return fences[::2]


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of every row of every table but the heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rules = {number for number, line in enumerate(lines) if set(line) <= set("|- ")}
    rows = [line for number, line in enumerate(lines) if not {number, number + 1} & rules]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
