"""Readers that deliver what they read, and the thread that sees when a callback holds one up.

A message that is queued for another thread costs more than all else that is done for it: two changes of
threads, and its objects move from one core's cache to another's. So a reader delivers what it has read by
itself, while nobody reads its socket: it is *lent*. Nearly always that takes microseconds. If it takes long,
the socket gets another reader, and the thread that was lent goes on as the session's dispatcher.

- **Thread:** `llm-watch`, one a pool, from the first delivery on until no socket is left. It looks once a
  tick; when nothing has been lent for a second it sleeps until something is.
- **Lock:** guards its start, its sleep and its end. Lending takes it only to start or to wake the thread: an
  entry in a dict is one operation, and the thread looks at the dict after it has said that it will sleep.
- **What ends its wait:** the tick, a lending while it sleeps, the end of the last socket.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .._sync import LEAF, ThreadGroup, make_lock

if TYPE_CHECKING:
    from ..connection.transport import Link

__all__ = ["Watch"]

TICK: Final = 0.025
"""Seconds between two looks."""

_LOOKS: Final = 2
"""What was lent already at so many looks before this one takes long: two to three ticks."""

_LATE: Final = 0.01
"""A look so many seconds late does not count: then it is the process that is held up, not the reader."""

_LONGEST: Final = 1.0
"""Seconds after which a reader is relieved however late the looks are."""

_TICKS_TO_SLEEP: Final = 40  # without anything lent

Relieve = Callable[[], bool]


class Watch:
    """The readers of one pool that deliver at this moment. Safe from any thread.

    Args:
        threads: Where its thread is counted.
        clock: Monotonic seconds.
    """

    def __init__(self, threads: ThreadGroup, clock: Callable[[], float] = time.monotonic) -> None:
        self._threads = threads
        self._clock = clock
        self._numbers = itertools.count(1)
        self._lent: dict[int, Relieve] = {}  # the thread's to look at; each entry its lender's to take out
        self._seen: dict[int, tuple[float, int]] = {}  # the thread's own: since when, and at how many looks
        # Guards what follows. Rank 40.
        self._lock = make_lock("watch", LEAF)
        self._bell = threading.Lock()  # the thread waits by taking it again
        self._bell.acquire()
        self._awake = False  # the thread is there and looks once a tick
        self._running = False
        self._starting = False  # a reader starts the thread at this moment, and may fail
        self._readers: set[Link] = set()

    # -- readers ------------------------------------------------------------------------------------------

    def enter(self, link: Link) -> bool:
        """Hear that a socket is read; say whether it was not known, so that its reader relieves nobody."""
        with self._lock:
            new = link not in self._readers
            self._readers.add(link)
            return new

    def leave(self, link: Link) -> None:
        """Hear that one is read no more; without any the thread ends."""
        with self._lock:
            self._readers.discard(link)
            if not self._readers:
                self._ring()

    def knows(self, link: Link) -> bool:
        """Say whether a socket is read."""
        return link in self._readers

    def lend(self, relieve: Relieve) -> int:
        """Hear that a reader begins to deliver.

        Args:
            relieve: Called on the watch's thread if that takes long, at every tick until it returns True
                (there is nothing left to do) or the reader is given back. It must neither block nor raise.

        Returns:
            What `give_back` takes; 0 if nobody could watch it, so that it must not deliver.
        """
        number = next(self._numbers)
        self._lent[number] = relieve
        if not self._awake and not self._wake():
            self._lent.pop(number, None)
            return 0
        return number

    def give_back(self, number: int) -> None:
        """Hear that it is through, or relieved."""
        self._lent.pop(number, None)

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()

    def _wake(self) -> bool:
        with self._lock:
            if self._starting:
                return False
            if self._running:
                self._awake = True
                self._ring()
                return True
            self._running = self._starting = True
        started = False
        try:
            self._threads.spawn(self._run, "llm-watch")
            started = True
        except RuntimeError:
            pass  # no thread to be had: nobody watches
        finally:
            with self._lock:
                self._starting = False
                self._running = self._running and started
        return started

    # -- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        idle = 0
        while self._goes_on():
            due = self._clock() + TICK
            self._bell.acquire(timeout=TICK)
            now = self._clock()
            self._look(now, late=now - due > _LATE)
            idle = 0 if self._lent else idle + 1
            if idle >= _TICKS_TO_SLEEP:
                self._sleep()
                idle = 0

    def _goes_on(self) -> bool:
        with self._lock:
            self._running = self._awake = bool(self._readers)
            return self._running

    def _sleep(self) -> None:
        with self._lock:
            self._awake = False
            ended = not self._readers
        # In this order: whoever lends now either sees that it sleeps, or is seen here.
        if not self._lent and not ended:
            self._bell.acquire()

    def _look(self, now: float, late: bool) -> None:
        seen = {}
        for number, relieve in dict(self._lent).items():
            since, looks = self._seen.get(number, (now, -1))
            looks += not late or looks < 0
            if (looks >= _LOOKS or now - since >= _LONGEST) and relieve():
                self.give_back(number)
            else:
                seen[number] = since, looks
        self._seen = seen
