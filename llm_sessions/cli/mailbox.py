"""What the main thread waits for: lines from the sessions, and news that must never wait."""

from __future__ import annotations

import queue
import threading
from typing import Final

__all__ = ["Mailbox"]

_SIZE: Final = (
    1000  # lines; beyond them the pool's own bounded queues fill, and then the sockets are not read
)


class Mailbox:
    """A bounded queue for many writers and one reader, which a signal handler may write to as well.

    `threading.Event` and `queue.Queue` are no choice for that: their locks are not reentrant, so a handler
    that runs while its own thread is inside of them would wait for ever. `SimpleQueue.put` is made for it.
    The bound is a semaphore beside it, which `tell` does not touch.

    Args:
        size: Things that may wait before `put` does.
    """

    def __init__(self, size: int = _SIZE) -> None:
        self._things: queue.SimpleQueue[tuple[object, bool]] = queue.SimpleQueue()
        self._room = threading.Semaphore(size)

    def put(self, thing: object) -> None:
        """Add a thing; wait while there is no room. For threads that may wait."""
        self._room.acquire()
        self._things.put((thing, True))

    def tell(self, news: object) -> None:
        """Add a thing at once, room or not. Also for signal handlers."""
        self._things.put((news, False))

    def get(self, timeout: float | None) -> object | None:
        """Return the oldest thing; None if there was none for `timeout` seconds. For one thread only."""
        try:
            thing, bounded = self._things.get(timeout=timeout)
        except queue.Empty:
            return None
        if bounded:
            self._room.release()
        return thing
