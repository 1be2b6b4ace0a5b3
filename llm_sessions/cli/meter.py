"""How sessions stand, in the numbers of the live lines and of the summary."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable
from typing import Final

from .._logging import one_line, redact
from ..pool.session import Session
from ..pool.stats import SessionStats

__all__ = ["Meter", "Row", "plural", "reason", "summary_line"]

_WINDOW: Final = 5.0  # seconds that a rate is taken over


@dataclasses.dataclass(frozen=True)
class Row:
    """One session at one moment.

    Attributes:
        session: Its id.
        state: Its state.
        messages: Messages received.
        rate: Messages a second, lately.
        latency: Seconds from ping to pong, or None.
        reconnects: Times that it came back.
    """

    session: str
    state: str
    messages: int
    rate: float
    latency: float | None
    reconnects: int


class Meter:
    """Makes rows of statistics, and rates of what it saw before. For one thread only.

    Args:
        stats: Returns each session's, in the order of the rows.
        clock: Monotonic seconds.
    """

    def __init__(self, stats: Callable[[], Iterable[SessionStats]], clock: Callable[[], float]) -> None:
        self._stats, self._clock = stats, clock
        self._seen: dict[str, collections.deque[tuple[float, int]]] = {}

    def rows(self) -> list[Row]:
        """Look at the sessions."""
        now = self._clock()
        return [self._row(now, one) for one in self._stats()]

    def _row(self, now: float, stats: SessionStats) -> Row:
        seen = self._seen.setdefault(stats.session_id, collections.deque())
        # One that is older than the window stays, to measure from.
        while len(seen) > 1 and seen[1][0] <= now - _WINDOW:
            seen.popleft()
        seen.append((now, stats.messages_in))
        since, before = seen[0]
        passed = now - since
        rate = (stats.messages_in - before) / passed if passed > 0 else 0.0
        return Row(
            stats.session_id,
            stats.state.value,
            stats.messages_in,
            rate,
            stats.latency,
            stats.reconnects,
        )


def summary_line(session: Session, width: int) -> str:
    """Return what a session did in the end.

    Args:
        session: It; its pool may be closed.
        width: Columns for its id.
    """
    stats = session.stats()
    counted = ", ".join(
        plural(number, what)
        for number, what in (
            (stats.messages_in, "message"),
            (stats.reconnects, "reconnect"),
            (stats.sequence_gaps, "gap"),
        )
    )
    dropped = f", {stats.dropped + stats.unusable} dropped" if stats.dropped + stats.unusable else ""
    error = session.last_error
    last = "no error" if error is None else f"last error: {reason(session.id, error)}"
    return f"{session.id:<{width}}  {counted}{dropped}, {last}"


def reason(session_id: str, error: Exception | None) -> str:
    """Return what an error of a session says, where it is said already whose it is."""
    if error is None:
        return "nothing failed so far"
    return one_line(redact(str(error).removeprefix(f"session {session_id!r}: ")))


def plural(number: int, what: str) -> str:
    """Return a number of things."""
    return f"{number} {what}{'' if number == 1 else 's'}"
