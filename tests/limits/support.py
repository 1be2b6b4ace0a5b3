"""A clock that only the test moves, and the sockets that go by it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from llm_sessions import ConnectionPool
from llm_sessions.connection.connection import Connection
from llm_sessions.testing.clock import ManualClock
from tests.support import LONG


def just_before(moment: float) -> float:
    """Return the last moment before this one that there is."""
    return math.nextafter(moment, -math.inf)


class WatchedClock(ManualClock):
    """A manual clock that tells when it is looked at.

    A thread whose timeout is some milliseconds looks again and again while the clock stands still; a reader
    that waits for longer looks when it is woken.
    """

    def __init__(self) -> None:
        super().__init__()
        self._looks = threading.Semaphore(0)

    def __call__(self) -> float:
        now = super().__call__()
        self._looks.release()
        return now

    def wait_look(self) -> None:
        """Wait until somebody has looked once: has made a deadline of the time that it is."""
        assert self._looks.acquire(timeout=LONG), "nobody looks at the clock"

    def wait_looks(self, wake: Callable[[], object] = lambda: None) -> None:
        """Wait until somebody looked again and again from now on, and so has acted on what was seen first.

        Args:
            wake: Makes whoever should look do so.
        """
        for _ in range(5):
            while self._looks.acquire(blocking=False):
                pass
            wake()
            assert self._looks.acquire(timeout=LONG), "nobody looks at the clock"

    def show(self, link: Connection, moment: float) -> None:
        """Set the time; return once the link's reader has seen it, acted on it, and gone on."""
        self.set(moment)
        self.wait_looks(link._stream.wake)

    def strike(self, link: Connection, moment: float) -> None:
        """Set the time to one that may be the last that the link's reader sees."""
        self.set(moment)
        link._stream.wake()


def link_of(pool: ConnectionPool) -> Connection:
    """Return the active socket of the default session."""
    link = pool._get(pool._default_id)[1].active
    assert isinstance(link, Connection)
    return link
