"""The events of a client's sessions: those of its pool, with the client's own default session."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..errors import PoolClosed
from ..pool.listening import DEFAULT_SESSION, PoolEvents, SessionId
from ..pool.owned import OwnedSessions
from ..protocol.events import parse_event_name
from ..session_ids import LLM_DEFAULT_SESSION

if TYPE_CHECKING:
    from ..pool.listeners import Callback

__all__ = ["ClientEvents"]

F = TypeVar("F", bound="Callback")


class ClientEvents(PoolEvents[SessionId | None]):
    """`on`, `once` and `off` of a `DataChannelClient`.

    `close` takes all callbacks back: what happens after it is not told, on a pool that was given either.

    Args:
        sessions: Whose events they are, and whose the callbacks: the pool may have others.
        check_open: Raises if the client is closed.
    """

    def __init__(self, sessions: OwnedSessions, check_open: Callable[[], None]) -> None:
        self._sessions, self._check = sessions, check_open

    def off(
        self, event: str, callback: Callback | None = None, *, session_id: SessionId | None = None
    ) -> None:
        """Take a callback back, or with None all of this event that were given to this client.

        Callbacks that the pool was given stay, also equal ones.
        """
        self._sessions.unlisten(event, callback, self._whose(event, session_id))

    def _register(
        self, event: str, callback: F | None, session_id: SessionId | None, once: bool
    ) -> F | Callable[[F], F]:
        whose = self._whose(event, session_id)

        def register(function: F) -> F:
            self._sessions.listen(event, function, whose, once=once)
            try:
                self._check()
            except PoolClosed:  # meanwhile, and it may have missed this one
                self._sessions.unlisten_all()
                raise
            return function

        return register if callback is None else register(callback)

    def _whose(self, event: str, session_id: SessionId | None) -> SessionId:
        self._check()
        if session_id is not None and session_id is not DEFAULT_SESSION:
            return session_id
        return parse_event_name(event)[1] or LLM_DEFAULT_SESSION
