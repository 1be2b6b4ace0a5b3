"""`llm-sessions demo`: a webinar from join to leave in a few seconds, and an account of every caption."""

from __future__ import annotations

import logging
import threading

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
        self._narrator.say(CHANNELS.get(session_id, session_id), said, "dim")


class _Narrator:
    """Prints what happens as it happens. Safe from any thread."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()

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
        with self._lock:
            self._console.print(text, soft_wrap=True)


def run_demo(*, plain: bool = False) -> int:
    """Run the demo and print an account.

    Args:
        plain: No colours, also on a terminal.

    Returns:
        0 if every caption that was published arrived, once and in order; 1 otherwise.
    """
    console = Console(no_color=plain, highlight=False)
    narrator = _Narrator(console)
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
    console.print(_account(story))
    if story.complete and not problem:
        console.print(Text("Every caption arrived, once and in order.", "bold green"))
        return 0
    problem = problem or "; ".join(story.violations) or "captions are missing"
    console.print(Text(f"Something is wrong: {problem}", "bold red"))
    return 1


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
