"""The client's side of the account: what listeners are told, and where tokens come from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from llm_sessions import Session
from llm_sessions.protocol.events import STATE_EVENTS
from tests.chaos.ledger import Entry
from tests.chaos.service import EVENT_TYPE

__all__ = ["Ear", "Tokens"]


class Ear:
    """Listens to everything of one session, and writes it down in order. It may be slow.

    Args:
        session: Whose.
        key: Its key at the server.
        began: When the round did, in monotonic seconds.
    """

    def __init__(self, session: Session, key: str, began: float) -> None:
        self.session, self.key = session, key
        self.journal: list[Entry] = []
        self.heard = 0
        self._began = began
        self._slow_until = 0.0
        self._awake = threading.Event()  # the round is over: no listener is slow any more
        session.on("event", self._hear)
        for name in STATE_EVENTS - {"ping-pong-latency", "connection_failed"}:
            session.on(name, self._writer(name))

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _hear(self, envelope: Any) -> None:
        while (left := self._slow_until - time.monotonic()) > 0 and not self._awake.wait(left):
            pass
        self.heard += 1
        if envelope.event_type == EVENT_TYPE:
            data = envelope.data
            key = data["session"], envelope.session_id
            self.journal.append(Entry("event", data["number"], envelope["sequenceNumber"], key, self._now()))

    def _writer(self, name: str) -> Callable[[Any], None]:
        def write(payload: Any) -> None:
            number, sequence = 0, 0
            if name == "sequence-mismatch":
                number, sequence = payload.actual, payload.expected
            elif name == "online":
                number = payload.number
            elif name.startswith("offline"):
                number = payload.code
            self.journal.append(Entry(name, number, sequence, at=self._now()))

        return write

    def be_slow(self, seconds: float) -> None:
        """Block the next message's listener, and those behind it, for a time."""
        self._slow_until = time.monotonic() + seconds

    def wake(self) -> None:
        """Be slow no more."""
        self._awake.set()

    @property
    def caught_up(self) -> bool:
        """Whether nothing is on its way from the session to its listeners."""
        stats = self.session.stats()
        return self.heard in (stats.messages_in, stats.messages_in - stats.dropped)

    def has(self, number: int) -> bool:
        """Whether an event, or a later one, was delivered."""
        newest = next((one.number for one in reversed(self.journal) if one.kind == "event"), 0)
        return newest >= number


class Tokens:
    """A token provider that may block, fail, and be behind.

    Args:
        changed: Called with the tokens that are good from now on.
    """

    def __init__(self, changed: Callable[[set[str]], None]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._number = 1
        self._open = threading.Event()
        self._open.set()
        self.failing = False

    @property
    def current(self) -> str:
        with self._lock:
            return f"token-{self._number}"

    def get(self) -> str:
        assert self._open.wait(20), "the token source was never opened"
        if self.failing:
            raise OSError("the token service is down")
        return self.current

    def refresh(self, rejected: str) -> str:
        if rejected == self.current:
            self.renew()
        return self.get()

    def renew(self) -> None:
        """Make the token that everybody has worthless."""
        with self._lock:
            self._number += 1
            self._changed({f"token-{self._number}"})

    def block(self) -> None:
        self._open.clear()

    def unblock(self) -> None:
        self._open.set()
