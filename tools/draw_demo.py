"""Draw docs/demo.svg, the picture of `llm-sessions demo` in README.md. `make picture` does it.

    python tools/draw_demo.py docs/demo.svg

The command is run as on a terminal, and what it prints is drawn as it came, with the times of that run. The
whole of it would be a long picture, so only some scenes are there; `…` stands for the others. The picture has
its own background, which is right on light and on dark pages, and loads nothing: its fonts are those of the
system.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import escape
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMAND = "llm-sessions demo"
SHOWN = (
    "promoted, and the practice session's channel follows",
    "the network drops the main channel",
    "Channels",  # the account, with what follows it
)

FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
SIZE = 14  # of the font, in pixels, like all below
COLUMN = 8.4
ROW = 16.3  # as high as the characters that frames are made of, so that these meet
MARGIN = 16

BACKGROUND, BORDER, FOREGROUND = "#161b22", "#6e7681", "#dce2e9"
COLOURS = {2: "#56d364", 3: "#e3b341", 5: "#d2a8ff", 6: "#56d4dd"}  # by their ANSI numbers
DIM = 0.65  # opacity


def run() -> str:
    """Run the demo as on a terminal with 16 colours, and return what it prints.

    Raises:
        CalledProcessError: If it fails. What it said of that has been seen.
    """
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLORTERM")}
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-m", "llm_sessions.cli.main", "demo"],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        timeout=60,
        env={**plain, **terminal},
        check=True,
    )
    return done.stdout


def scenes(printed: str) -> dict[str, list[Text]]:
    """Return the lines of each scene by its heading. An empty line is before each."""
    found: dict[str, list[Text]] = {}
    lines: list[Text] = []
    for line in Text.from_ansi(printed).split("\n"):
        line.rstrip()
        if not line:
            lines = []
        else:
            if not lines:
                found[line.plain] = lines
            lines.append(line)
    return found


def excerpt(printed: str) -> list[Text]:
    """Return the lines of the picture.

    Raises:
        ValueError: If a scene that should be shown is not there.
    """
    told = scenes(printed)
    if missing := set(SHOWN) - set(told):
        raise ValueError(f"the demo has no scene {', '.join(sorted(missing))}")
    lines = [Text.assemble(("$ ", "dim"), COMMAND)]
    left_out = False
    for heading, scene in told.items():
        if heading in SHOWN:
            lines += [Text(), *scene]
        elif not left_out:
            lines += [Text(), Text.assemble(("…", "dim"))]
        left_out = heading not in SHOWN
    return lines


def draw(lines: list[Text]) -> str:
    """Return the lines as the picture of a terminal.

    Raises:
        KeyError: If one has a colour that is not in `COLOURS`.
    """
    width = round(max(line.cell_len for line in lines) * COLUMN) + 2 * MARGIN
    height = round(len(lines) * ROW) + 2 * MARGIN
    drawn = [piece for row, line in enumerate(lines) for piece in _pieces(row, line)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}">',
            f"<title>{COMMAND}</title>",
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8" '
            f'fill="{BACKGROUND}" stroke="{BORDER}"/>',
            f'<g font-family="{FONTS}" font-size="{SIZE}" fill="{FOREGROUND}">',
            *drawn,
            "</g>",
            "</svg>\n",
        ]
    )


def _pieces(row: int, line: Text) -> list[str]:
    """Draw what is between the gaps of a line, each in its place: a picture shows several spaces as one."""
    drawn, column = [], 0
    y = MARGIN + row * ROW + SIZE
    for segment in line.render(Console()):
        how = ""
        if segment.style is not None:
            colour = segment.style.color
            how += f' fill="{COLOURS[colour.number or 0]}"' if colour and not colour.is_default else ""
            how += ' font-weight="bold"' if segment.style.bold else ""
            how += f' fill-opacity="{DIM}"' if segment.style.dim else ""
        for words in re.finditer(r"\S+(?: \S+)*", segment.text):
            x = MARGIN + (column + words.start()) * COLUMN
            # The length is said for fonts that are narrower or wider: columns stay where they are.
            length = len(words[0]) * COLUMN
            drawn.append(
                f'<text x="{x:.1f}" y="{y:.1f}" textLength="{length:.1f}" '
                f'lengthAdjust="spacingAndGlyphs"{how}>{escape(words[0], quote=False)}</text>'
            )
        column += len(segment.text)
    return drawn


def main(path: Path) -> int:
    path.write_text(draw(excerpt(run())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(*sys.argv[1:])))
