"""Messages that wait for callers who fetch them, instead of callbacks that are called with them."""

from __future__ import annotations

import collections
import threading
from typing import Any

from .._sync import Lock

__all__ = ["Inbox"]


class Inbox:
    """What one `Session.messages` has not handed out yet, or what is kept for `Session.receive`.

    The session's lock guards it. An inbox is open until its session comes to rest; it is over then, for good,
    and what it still holds can be taken.

    Args:
        lock: The session's.
        limit: Messages that may wait.

    Attributes:
        arrived: Whoever waits for a message waits here.
        takers: How many do.
        newest: When the newest message came, by the clock of whoever puts.
        full: More than `limit` messages wait and fewer than half of them have been taken since, so that
            the session does not read.
        over: Nothing is put any more.
        ours: Whether that is because we disconnected, or nobody wants more.
        error: What to tell callers once it is over and empty; None if there is nothing to tell.
        dropped: Messages dropped to make room.
    """

    __slots__ = (
        *("__weakref__", "_messages", "arrived", "dropped", "error", "full"),
        *("limit", "newest", "ours", "over", "takers"),
    )

    def __init__(self, lock: Lock, limit: int) -> None:
        self._messages: collections.deque[dict[str, Any]] = collections.deque()
        self.arrived: threading.Condition = threading.Condition(lock)
        self.limit = limit
        self.full: bool = False
        self.over: bool = False
        self.ours: bool = False
        self.error: Exception | None = None
        self.dropped: int = 0
        self.takers: int = 0
        self.newest: float = float("-inf")

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for: a message is there, or none is going to come."""
        return bool(self._messages) or self.over

    def put(self, batch: list[dict[str, Any]], now: float) -> None:
        """Append messages; the batch stays the caller's."""
        if not self.over:
            self._messages.extend(batch)
            self.newest = now
            self.full = self.full or len(self._messages) > self.limit
            self.arrived.notify(len(batch))

    def make_room(self) -> int:
        """Drop the oldest messages beyond the limit; return how many."""
        surplus = max(0, len(self._messages) - self.limit)
        for _ in range(surplus):
            self._messages.popleft()
        self.full = False
        self.dropped += surplus
        return surplus

    def take(self) -> dict[str, Any] | None:
        """Return the oldest message and forget it; None if there is none."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        if self.full and len(self._messages) <= self.limit // 2:
            self.full = False
        return message

    def put_back(self, message: dict[str, Any]) -> None:
        """Undo a `take` whose caller was interrupted."""
        self._messages.appendleft(message)

    def end(self, error: Exception | None, ours: bool) -> None:
        """Nothing more is going to come; the first time counts."""
        if not self.over:
            self.over, self.error, self.ours, self.full = True, error, ours, False
            self.arrived.notify_all()

    def discard(self) -> None:
        """Nobody is going to take anything any more. The only call that needs no lock."""
        self.over, self.ours, self.full = True, self.error is None, False
        self._messages.clear()
