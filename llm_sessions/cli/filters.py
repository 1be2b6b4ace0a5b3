"""Which events `listen` shows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from ..protocol.events import STATE_EVENTS, names_of, parse_event_name
from .statuses import UsageError

__all__ = ["SILENT", "Filter"]

SILENT: Final = frozenset({"offline", "ping-pong-latency"})
"""State events that are shown only if they are asked for: what follows an `offline` says more, and latency is
in the live line and the summary."""


class Filter:
    """Says of each event whether it is wanted. Immutable, so any thread may ask.

    Without names everything is, but for `SILENT` and the server's own `mercury.…` messages.

    Args:
        names: Names of events as `ConnectionPool.on` takes them, also with `:<session id>`.
        sessions: The ids of the sessions there are.

    Raises:
        ConfigurationError: If there is no such event.
        UsageError: If a name is of a session that there is not.
    """

    def __init__(self, names: Sequence[str], sessions: Collection[str]) -> None:
        parsed = [parse_event_name(name) for name in names]
        for _, session in parsed:
            if session is not None and session not in sessions:
                raise UsageError(
                    f"--event names the session {session!r}; there are {', '.join(map(repr, sessions))}"
                )
        self._wanted = frozenset(parsed)

    @property
    def state_events(self) -> list[str]:
        """The state events that any session's are wanted of."""
        if not self._wanted:
            return sorted(STATE_EVENTS - SILENT)
        return sorted({name for name, _ in self._wanted if name in STATE_EVENTS})

    def wants_state(self, session: str, event: str) -> bool:
        """Say whether a session's state event is wanted."""
        if not self._wanted:
            return event not in SILENT
        return self._names(session, event)

    def wants_message(self, session: str, event_type: str | None) -> bool:
        """Say whether a session's message is wanted."""
        if not self._wanted:
            return event_type is None or event_type.partition(".")[0] != "mercury"
        return any(self._names(session, name) for name in names_of(event_type))

    def _names(self, session: str, event: str) -> bool:
        return (event, None) in self._wanted or (event, session) in self._wanted
