"""`llm-sessions demo`: a webinar from join to leave in a few seconds, and an account of every caption."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .output import ClosedPipe, Unwritable, say, write_out
from .statuses import Status
from .story import CHANNELS, Line, Story

__all__ = ["run_demo"]

_PACE = 0.25  # seconds between two captions, so that one can follow
_STYLES = {"main": "cyan", "practice": "magenta", "program": "bold", "REST": "yellow"}


class _StateLines(logging.Handler):
    """Shows the changes of state, which the library logs as they happen."""

    def __init__(self, narrator: _Narrator) -> None:
        super().__init__(logging.INFO)
        self._narrator = narrator

    def emit(self, record: logging.LogRecord) -> None:
        session_id = str(getattr(record, "session_id", ""))
        said = record.getMessage().removeprefix(f"[{session_id}] ")
        # Who tells the story finds out with the next line.
        with contextlib.suppress(ClosedPipe, Unwritable):
            self._narrator.say(CHANNELS.get(session_id, session_id), said, "dim")


class _Output:
    """Standard output for rich, which has ways of its own with one that breaks, and with its encoding."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        write_out(self._stream, text)

    def flush(self) -> None:
        """Do nothing: it has been flushed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Narrator:
    """Prints what happens as it happens. Safe from any thread.

    Once the output cannot be written it prints no more. Only the thread that made it is told: in the others
    the story's client is at work, which has nothing to do with it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._teller = threading.get_ident()
        self._lock = threading.Lock()
        self._problem: ClosedPipe | Unwritable | None = None

    def show(self, line: Line) -> None:
        if line.source is None:
            self.say("", "")
            self.say("", line.text, "bold")
        else:
            style = _STYLES.get(line.source, _STYLES.get(line.target or "", ""))
            self.say(f"{line.at:6.3f} s  {line.source} → {line.target}", line.text, style)

    def say(self, who: str, what: str, style: str = "") -> None:
        text = Text(f"{who:<30}" if who else "", style="default")
        text.append(what, style=style or "default")
        self.print(text, soft_wrap=True)

    def print(self, what: Any, **options: Any) -> None:
        """Print anything that rich can.

        Raises:
            ClosedPipe: If nobody reads any more.
            Unwritable: If it cannot be written.
        """
        with self._lock:
            if self._problem is None:
                try:
                    self._console.print(what, **options)
                except (ClosedPipe, Unwritable) as exc:
                    self._problem = exc
            problem = self._problem
        if problem is not None and threading.get_ident() == self._teller:
            raise problem


def run_demo(*, plain: bool = False) -> int:
    """Run the demo and print an account.

    Args:
        plain: No colours, also on a terminal.

    Returns:
        0 if every caption that was published arrived, once and in order; 1 if not; else see `statuses`.
    """
    output: Any = _Output(sys.stdout)
    narrator = _Narrator(Console(file=output, no_color=plain, highlight=False))
    try:
        return _tell(narrator)
    except ClosedPipe:
        return Status.CLOSED_PIPE
    except Unwritable as exc:
        say(sys.stderr, f"llm-sessions demo: {exc}")
        return Status.UNWRITTEN


def _tell(narrator: _Narrator) -> Status:
    story = Story(narrator.show, pace=_PACE)
    logger = logging.getLogger("llm_sessions.pool")
    states, level, propagate = _StateLines(narrator), logger.level, logger.propagate
    logger.addHandler(states)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # each line once
    problem = ""
    try:
        story.tell()
    except TimeoutError as exc:
        problem = str(exc)
    finally:
        logger.removeHandler(states)
        logger.setLevel(level)
        logger.propagate = propagate
    narrator.print(_account(story))
    if story.complete and not problem:
        narrator.print(Text("Every caption arrived, once and in order.", "bold green"))
        return Status.DONE
    problem = problem or "; ".join(story.violations) or "captions are missing"
    narrator.print(Text(f"Something is wrong: {problem}", "bold red"))
    return Status.FAILED


def _account(story: Story) -> Table:
    table = Table(title="\nChannels", title_justify="left", title_style="bold")
    table.add_column("channel", no_wrap=True)
    for heading in ("published", "received", "online", "announced", "languages"):
        table.add_column(heading, justify="right", no_wrap=True)
    for session_id, name in CHANNELS.items():
        table.add_row(
            name,
            str(len(story.published[session_id])),
            str(len(story.received[session_id])),
            str(story.onlines[session_id]),
            str(story.announcements[session_id]),
            str(story.languages[session_id]),
        )
    return table
