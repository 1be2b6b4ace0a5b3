"""Messages that wait for callers who fetch them, instead of callbacks that are called with them."""

from __future__ import annotations

import collections
from typing import Any

__all__ = ["Inbox"]


class Inbox:
    """What one `Session.messages` has not handed out yet, or what is kept for `Session.receive`.

    No lock of its own: the session's guards it. An inbox is open until its session comes to rest; it is over
    then, for good, and what it still holds can be taken.

    Args:
        limit: Messages that may wait.

    Attributes:
        full: More than `limit` messages wait and fewer than half of them have been taken since, so that
            the session does not read.
        over: Nothing is put any more.
        ours: Whether that is because we disconnected.
        error: What to tell callers once it is over and empty.
        dropped: Messages dropped to make room.
    """

    __slots__ = ("__weakref__", "_messages", "dropped", "error", "full", "limit", "ours", "over")

    def __init__(self, limit: int) -> None:
        self._messages: collections.deque[dict[str, Any]] = collections.deque()
        self.limit = limit
        self.full = self.over = self.ours = False
        self.error: Exception | None = None
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, batch: list[dict[str, Any]]) -> None:
        """Append messages; the batch stays the caller's."""
        if not self.over:
            self._messages.extend(batch)
            self.full = self.full or len(self._messages) > self.limit

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

    def end(self, error: Exception, ours: bool) -> None:
        """The session came to rest; the first time counts."""
        if not self.over:
            self.over, self.error, self.ours, self.full = True, error, ours, False

    def discard(self) -> None:
        """Nobody is going to take anything any more."""
        self.over, self.full = True, False
        self._messages.clear()
