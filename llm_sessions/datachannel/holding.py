"""Who holds a client: at most one joined meeting. Internal.

A meeting that was left may still be disconnecting its sessions when the next one is joined. So whoever takes
the client is told who had it before, and takes no step until that one is through.
"""

from __future__ import annotations

from typing import Protocol

from .._sync import LEAF, Deadline, make_lock
from ..errors import OwnershipError, PoolClosed

__all__ = ["Holder", "Holding"]


class Holder(Protocol):
    """A joined meeting, as its client sees it."""

    def give_up(self, deadline: Deadline) -> None:
        """Leave the meeting because the client closes; wait until the deadline at most."""


class Holding:
    """The one place that a client has for a meeting. Safe from any thread."""

    def __init__(self) -> None:
        # Guards all below. Rank 40: nothing is called under it.
        self._lock = make_lock("client-holding", LEAF)
        self._holder: Holder | None = None
        self._last: Holder | None = None
        self._closed = False

    def take(self, holder: Holder) -> Holder | None:
        """Take the place; return who had it before.

        Raises:
            OwnershipError: If it is taken.
            PoolClosed
        """
        with self._lock:
            if self._closed:
                raise PoolClosed("the client is closed")
            if self._holder is not None:
                raise OwnershipError("the client is in a meeting already; leave it, or use another client")
            self._holder = holder
            return self._last

    def give_back(self, holder: Holder, last: Holder | None) -> None:
        """Make room for the next, if this one has the place.

        Args:
            holder: Who had it.
            last: Whom the next one is to wait for: the holder, or its predecessor if it never began.
        """
        with self._lock:
            if self._holder is holder:
                self._holder, self._last = None, last

    def forget(self, holder: Holder) -> None:
        """Nobody has to wait for this one any more."""
        with self._lock:
            if self._last is holder:
                self._last = None

    def close(self, deadline: Deadline) -> None:
        """Let nobody in any more, and have the one who is there leave, or end to."""
        with self._lock:
            self._closed, holder = True, self._holder or self._last
        if holder is not None:
            holder.give_up(deadline)
