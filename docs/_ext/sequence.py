"""A Mermaid sequence diagram as SVG: a column for each participant, a row for each message or note."""

from __future__ import annotations

import re
from html import escape

LINE = re.compile(
    r"participant (?P<name>\w+) as (?P<shown>.+)"
    r"|Note over (?P<first>\w+),(?P<last>\w+): (?P<note>.+)"
    r"|(?P<source>\w+)->>(?P<target>\w+): (?P<text>.+)"
)
ROW, HEAD, COLUMN, MARGIN = 26, 46, 190, 90  # pixels
CHARACTER = 6.6  # pixels of an average one, in the size of site.css


def draw(text: str) -> str:
    """Return the picture.

    Raises:
        ValueError: If a line is none that this can draw, or names a participant that was not introduced.
    """
    title, *lines = [line.strip() for line in text.splitlines() if line.strip()]
    if title != "sequenceDiagram":
        raise ValueError(f"{title} is no sequence diagram")
    columns: dict[str, int] = {}
    heads: list[str] = []
    rows: list[str] = []
    top = HEAD
    for line in lines:
        found = LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"cannot read {line!r}")
        if found["name"]:
            columns[found["name"]] = MARGIN + COLUMN * len(columns)
            heads.append(_head(columns[found["name"]], found["shown"]))
            continue
        unknown = {name for name in found.group("first", "last", "source", "target") if name} - set(columns)
        if unknown:
            raise ValueError(f"nobody introduced {', '.join(sorted(unknown))}")
        if found["note"]:
            top += ROW // 2
            rows.append(_note(columns[found["first"]], columns[found["last"]], top, found["note"]))
        else:
            rows.append(_message(columns[found["source"]], columns[found["target"]], top, found["text"]))
        top += ROW
    width, height = 2 * MARGIN + COLUMN * (len(columns) - 1), top + ROW // 2
    lives = [f'<path class="life" d="M{x} {HEAD - 12}V{height - 8}"/>' for x in columns.values()]
    return (
        f'<svg class="sequence" role="img" aria-label="sequence diagram" viewBox="0 0 {width} {height}" '
        f'width="{width}">{"".join([*lives, *heads, *rows])}</svg>'
    )


def _head(x: int, shown: str) -> str:
    half = MARGIN - 12
    return (
        f'<rect class="box" x="{x - half}" y="4" width="{2 * half}" height="28" rx="4"/>'
        f'<text class="head" x="{x}" y="23">{escape(shown)}</text>'
    )


def _note(first: int, last: int, top: int, text: str) -> str:
    left, width = first - MARGIN + 12, last - first + 2 * MARGIN - 24
    return (
        f'<rect class="note" x="{left}" y="{top - 14}" width="{width}" height="22" rx="4"/>'
        f'<text class="head" x="{(first + last) / 2:g}" y="{top + 1}">{escape(text)}</text>'
    )


def _message(source: int, target: int, top: int, text: str) -> str:
    tip = -1 if target > source else 1
    arrow = (
        f'<path class="edge" d="M{source} {top + 6}H{target + 7 * tip}"/>'
        f'<path class="tip" d="M{target} {top + 6}l{8 * tip} -4v8z"/>'
    )
    # In the middle of its arrow, but wholly within the picture.
    half = len(text) * CHARACTER / 2
    middle = max((source + target) / 2, half + 8)
    blank = f'<rect class="blank" x="{middle - half:g}" y="{top - 11}" width="{2 * half:g}" height="14"/>'
    return f'{arrow}{blank}<text class="label" x="{middle:g}" y="{top}">{escape(text)}</text>'
