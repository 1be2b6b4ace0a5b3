"""A session's messages as an iterator: pull instead of callbacks."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from .._fork import OneProcess

if TYPE_CHECKING:
    from ..protocol.envelope import Envelope
    from .inbox import Inbox
    from .machine import SessionMachine

__all__ = ["Messages"]


class Messages(OneProcess):
    """The messages of a session from one moment on, from `Session.messages`.

    An iterator of `Envelope`, and a context manager that ends it. Every iterator gets every message; several
    threads that share one share its messages among them. What is not fetched waits, up to `maxsize`; one that
    is neither used nor closed any more is done away with within a second.
    """

    def __init__(self, machine: SessionMachine, inbox: Inbox, timeout: float | None) -> None:
        self._machine = machine
        self._inbox = inbox
        self._timeout = timeout

    @property
    def dropped(self) -> int:
        """How many messages were dropped because too many waited; 0 unless `when_full` is `drop_oldest`."""
        return self._inbox.dropped

    def __iter__(self) -> Messages:
        return self

    def __next__(self) -> Envelope:
        """Wait for the next message.

        Raises:
            StopIteration: If no message came to the session for the iterator's timeout, it was disconnected
                by us, or `close` was called.
            SessionError: The session's error, if it has ended for good.
            LocalProtocolError: If called on the session's own dispatcher, connector or reader thread.
        """
        envelope = self._machine.fetch(self._inbox, self._timeout)
        if envelope is None:
            raise StopIteration
        return envelope

    def close(self) -> None:
        """End it: waiting messages are forgotten, and whoever waits for one is told that there is none.

        Waits for nothing; may be called anywhere, in finalizers, too.
        """
        if not self._machine.env.forked:
            self._machine.close_inbox(self._inbox)

    def __enter__(self) -> Messages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "ended" if self._inbox.over else "open"
        return f"<Messages of {self._machine.session_id!r} {state}, {len(self._inbox)} waiting>"
