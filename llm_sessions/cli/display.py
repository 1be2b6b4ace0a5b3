"""What `listen` shows on a terminal: events, and below them a live line for each session. Needs rich."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .._logging import one_line, redact
from .lines import Line, as_text
from .meter import Row, plural
from .output import Unwritable, forget, is_utf8

__all__ = ["Display", "is_fit"]

_STATES: Final = {
    "online": "green",
    "switching": "green",
    "connecting": "yellow",
    "reconnecting": "yellow",
    "offline": "red",
}
_SESSIONS: Final = ("cyan", "magenta", "blue", "yellow")


def is_fit(stream: TextIO) -> bool:
    """Say whether a stream is a terminal that lines can be drawn anew on, and that takes every letter."""
    console = Console(file=stream)
    return console.is_terminal and not console.is_dumb_terminal and is_utf8(stream)


class Display:
    """A `Printer` for terminals. For one thread only: it draws when it is called, by no other thread.

    It measures the terminal whenever it draws, so another size of the window needs no SIGWINCH.

    Args:
        rows: Returns how the sessions stand.
        stream: The terminal.
    """

    def __init__(self, rows: Callable[[], Sequence[Row]], stream: TextIO | None = None) -> None:
        self._rows = rows
        self._styles: dict[str, str] = {}
        self._console = Console(file=stream or sys.stdout, highlight=False)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.update(self._standing())
        self._live.start(refresh=True)
        # Live hides it, and gives it back only if it comes to its end, which a kill would not let it.
        self._console.show_cursor(True)

    def write(self, line: Line) -> None:
        width = max(map(len, self._styles), default=0)
        shown = as_text(line, width=width, brief=True)
        text = Text(shown, style="" if line.event.startswith("event") else "bold")
        start = text.plain.index(line.session, text.plain.index(" "))  # behind the time
        text.stylize(self._styles.get(line.session, ""), start, start + len(line.session))
        self._print(text)

    def note(self, text: str) -> None:
        try:
            self._print(Text(one_line(redact(text)), style="dim"))
        except Unwritable:
            return  # who writes the next event is told

    def refresh(self) -> None:
        """Look at the sessions and draw their lines."""
        self._draw(lambda: self._live.update(self._standing(), refresh=True))

    def close(self) -> None:
        self._draw(self._live.stop)

    def _standing(self) -> Text:
        table = [self._cells(number, row) for number, row in enumerate(self._rows())]
        for column in zip(*table, strict=True):
            width = max(cell.cell_len for cell in column)
            for cell in column:
                cell.align("left", width)
        # One line each: a narrow terminal shows how it begins. A rich table would shorten every column.
        lines = Text("\n").join(Text("  ").join(cells) for cells in table)
        lines.no_wrap, lines.overflow = True, "ellipsis"
        return lines

    def _cells(self, number: int, row: Row) -> list[Text]:
        style = self._styles.setdefault(row.session, _SESSIONS[number % len(_SESSIONS)])
        latency = "-" if row.latency is None else f"{row.latency * 1000:.1f} ms"
        return [
            Text(row.session, style),
            Text(row.state, _STATES.get(row.state, "dim")),
            Text(plural(row.messages, "message")),
            Text(f"{row.rate:.1f}/s"),
            Text(f"latency {latency}"),
            Text(plural(row.reconnects, "reconnect")),
        ]

    def _print(self, text: Text) -> None:
        # One line of the terminal each: what does not fit is in --json, --save, and the plain form.
        try:
            self._console.print(text, no_wrap=True, overflow="ellipsis", crop=True)
        except OSError as exc:
            forget(self._console.file)  # type: ignore[arg-type]
            raise Unwritable(f"cannot write the output: {exc.strerror}") from exc

    def _draw(self, call: Callable[[], None]) -> None:
        try:
            call()
        except OSError:
            return  # the terminal is gone; who writes the next event is told
