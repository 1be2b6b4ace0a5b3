"""Locks with ranks, deadlines, and threads that are named, counted and joined.

Every lock of the library comes from `make_lock`. Its rank says in which order locks nest: a thread that
holds one takes only higher ranks.

==== ============ ===============================================================
rank name         guards
==== ============ ===============================================================
5    meeting      what is known of a joined meeting, and its tokens while they change
10   pool         the dict of sessions, closed
20   session      state, attempt, waiters, connections, generation, last error
30   connection   one socket's protocol and the order of its outbox
35   stream       the TLS object, its BIOs, the outbox flush and the descriptor
40   leaves       queues, listeners, tokens, thread registers
==== ============ ===============================================================

No wait for I/O, callback, join, HTTP call or log call happens under any of them: code decides under a
lock and acts outside it.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

__all__ = [
    "LEAF",
    "MEETING",
    "POOL",
    "SESSION",
    "CONNECTION",
    "STREAM",
    "Deadline",
    "Latch",
    "Lock",
    "RankedLock",
    "ThreadGroup",
    "check_lock_order",
    "make_lock",
]

MEETING: Final = 5
POOL: Final = 10
SESSION: Final = 20
CONNECTION: Final = 30
STREAM: Final = 35
LEAF: Final = 40

_FEW_THREADS: Final = 16

_LOOK_AGAIN: Final = 0.05
"""Seconds after which a callback that joins looks again whether the other thread has begun to call back."""

_held = threading.local()
_checking = False


class RankedLock:
    """A lock that refuses to be taken out of rank order; in use only while `check_lock_order` is on."""

    def __init__(self, name: str, rank: int) -> None:
        self.name, self.rank = name, rank
        self._lock = threading.Lock()
        self._owner: int | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        held: list[RankedLock] = _held.__dict__.setdefault("locks", [])
        if held and held[-1].rank >= self.rank:
            raise AssertionError(f"lock {self.name!r} taken while holding {held[-1].name!r}")
        if not self._lock.acquire(blocking, timeout):
            return False
        self._owner = threading.get_ident()
        held.append(self)
        return True

    def release(self) -> None:
        self._owner = None
        _held.locks.remove(self)
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def _is_owned(self) -> bool:  # threading.Condition asks this of the lock that it wraps
        return self._owner == threading.get_ident()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


Lock = Any  # threading.Lock or RankedLock; the former has no name that can be used as a type on 3.10-3.12


def make_lock(name: str, rank: int) -> Lock:
    """Return a plain lock, or one that checks its rank while `check_lock_order` is on.

    Plain locks are taken as `with lock:`, not through a Condition's own `__enter__`: entering a lock that
    is written in C cannot be interrupted half-way by a signal, a Python method can.
    """
    return RankedLock(name, rank) if _checking else threading.Lock()


def check_lock_order(on: bool) -> None:
    """Make the locks created from now on check their order. For tests; costs speed."""
    global _checking
    _checking = on


def held_locks() -> list[str]:
    """Return the names of the checked locks that this thread holds. For tests."""
    return [lock.name for lock in _held.__dict__.get("locks", [])]


class Latch:
    """An Event that is set once, and whose waiters share no lock.

    A thread that is interrupted by Ctrl-C at the wrong instant leaves the lock of a `threading.Event` held,
    and whoever else waits on it, or wants to set it, then hangs.
    """

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: list[Lock] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        """Wake all who wait and will wait. By any thread; again it does nothing."""
        self._set = True
        while True:
            try:
                waiter = self._waiters.pop()  # one operation: nobody is woken twice
            except IndexError:
                return
            waiter.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds, None for no limit; return whether it is set."""
        mine = threading.Lock()
        mine.acquire()
        self._waiters.append(mine)  # before the look: `set` looks at them after it has set
        try:
            return self._set or mine.acquire(timeout=-1 if timeout is None else max(0, timeout)) or self._set
        finally:
            try:
                self._waiters.remove(mine)  # one operation, like `pop`
            except ValueError:
                pass  # `set` has taken it


class LateCondition:
    """A Condition that is made for its first waiter: most sessions never have one, and idle ones are many.

    The lock is held in every call.
    """

    __slots__ = ("_condition", "_lock")

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._condition: threading.Condition | None = None

    def wait(self) -> None:
        """Wait until it is notified."""
        self._made().wait()

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds, None for no limit, until it is true; return whether it is."""
        return self._made().wait_for(predicate, timeout)

    def _made(self) -> threading.Condition:
        if self._condition is None:
            self._condition = threading.Condition(self._lock)
        return self._condition

    def notify_all(self) -> None:
        """Have all waiters look again."""
        if self._condition is not None:
            self._condition.notify_all()


class Deadline:
    """The time left of one timeout, over a call of many steps.

    Args:
        timeout: Seconds from now; None means no limit.
        now: A monotonic clock in seconds.
    """

    __slots__ = ("_now", "at", "timeout")

    def __init__(self, timeout: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.timeout: float | None = timeout
        self.at: float | None = None if timeout is None else now() + timeout

    def left(self) -> float | None:
        """Return the seconds left, at least 0; None means no limit."""
        return None if self.at is None else max(0.0, self.at - self._now())

    @property
    def expired(self) -> bool:
        return self.at is not None and self._now() >= self.at


class ThreadGroup:
    """The threads of one pool: named, daemonic, counted while they run.

    Daemonic, because a stuck socket must not keep the interpreter from exiting; `join` waits for them all
    the same. Safe from any thread.
    """

    def __init__(self) -> None:
        # Guards the list. Rank 40.
        self._lock = make_lock("threads", LEAF)
        # A thread does not take itself out: until it has really ended, `join` must know of it.
        self._threads: list[threading.Thread] = []
        self._calling_back: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._lent: set[threading.Thread] = set()  # they call back for a while
        self._swept_at = _FEW_THREADS

    def spawn(self, target: Callable[[], None], name: str, *, calls_back: bool = False) -> threading.Thread:
        """Start a thread.

        Args:
            target: What it runs.
            name: Its name.
            calls_back: Whether it runs callbacks of the user's; see `join`.

        Raises:
            RuntimeError: If the system cannot start another one.
        """
        thread = threading.Thread(target=target, name=name, daemon=True)
        with self._lock:
            if len(self._threads) >= self._swept_at:  # each sweep is paid for by a quarter as many spawns
                self._threads = [one for one in self._threads if one.ident is None or one.is_alive()]
                self._swept_at = max(_FEW_THREADS, len(self._threads) * 5 // 4)
            self._threads.append(thread)
            if calls_back:
                self._calling_back.add(thread)
        try:
            thread.start()
        except RuntimeError:  # not when interrupted: it may run all the same
            with self._lock:
                self._threads.remove(thread)
            raise
        return thread

    def lend(self, thread: threading.Thread) -> None:
        """Hear that a thread is going to run callbacks. Takes no lock: it is done for each read."""
        self._lent.add(thread)

    def give_back(self, thread: threading.Thread) -> None:
        """Hear that it runs no more of them."""
        self._lent.discard(thread)

    def alive(self) -> list[threading.Thread]:
        """Return the threads that run now."""
        with self._lock:
            return [thread for thread in self._threads if thread.is_alive()]

    def join(self, deadline: Deadline) -> list[threading.Thread]:
        """Wait for all threads but the calling one; return those still alive at the deadline.

        One of the group's own does not wait for those that run callbacks, also if they begin only now: two
        callbacks that join would wait for each other. What a thread spawns while it is waited for is waited
        for too.
        """
        me = threading.current_thread()
        inside = me in self.alive()
        while True:
            # One that another thread is about to start is not alive yet: it cannot be joined.
            found = [thread for thread in self.alive() if thread is not me]
            if inside:
                found = [thread for thread in found if not self._calls_back(thread)]
            if not found or deadline.expired:
                return found
            left = deadline.left()
            if inside:
                left = _LOOK_AGAIN if left is None else min(left, _LOOK_AGAIN)
            found[0].join(left)

    def _calls_back(self, thread: threading.Thread) -> bool:
        with self._lock:
            return thread in self._lent or thread in self._calling_back
