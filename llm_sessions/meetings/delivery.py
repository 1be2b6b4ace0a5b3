"""From a meeting to its listeners: one queue and one thread for the events of both channels.

The channels have dispatchers of their own, and the meeting's worker has events too; here they become one
row, so that the handlers of a meeting run one after another. The worker never waits here. A channel's
dispatcher waits while the queue is full, and its session's `when_full` says what becomes of the rest.

- **Owner:** the `Meeting`. **Lock:** one of rank 40, which guards the queue; handlers are called without it.
- **Epoch:** every event belongs to a join. Once `end` has been called for it none of its handlers begins.
- **Thread:** `llm-dispatcher[<name>]`, from the first event that somebody listens to until `end`.
- **What ends each wait:** the thread's, an event or `end`; that for room, room or `end`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from logging import ERROR
from typing import Final

from .._logging import Repeats, SessionLogger, get_logger
from .._sync import LEAF, ThreadGroup, make_lock
from ..errors import ConfigurationError
from ..pool.listeners import Callback, Listener, ListenerTable

__all__ = ["MEETING_EVENTS", "MeetingDelivery", "MeetingFailed"]


@dataclasses.dataclass(frozen=True)
class MeetingFailed:
    """A channel that is wanted has ended for good; the next news tries again. Payload of `failed`.

    Attributes:
        session_id: Which.
        error: Why.
    """

    session_id: str
    error: Exception


MEETING_EVENTS: Final = frozenset(
    {
        "online",
        "offline",
        "failed",
        "relay",
        "locus.state_message",
        "languages",
        "language_answer",
        "transcript",
        "highlight",
        "eva",
        "language_detected",
        "reaction",
    }
)
"""What a meeting's listeners may listen to."""


class MeetingDelivery:
    """Delivers a meeting's events. Safe from any thread.

    Args:
        name: Of the meeting, for its thread and its log.
        threads: Where the thread is counted.
        limit: Events that may wait before `put` does.
    """

    def __init__(self, name: str, threads: ThreadGroup, limit: int) -> None:
        self._name, self._threads, self._limit = name, threads, limit
        self._log = SessionLogger(get_logger("meetings"), {"session_id": name})
        self._repeats = Repeats()  # of listeners that raise; the thread's own
        self._table = ListenerTable()
        # Guards all below. Rank 40: nothing is called under it.
        self._lock = make_lock("meeting-delivery", LEAF)
        self._changed = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._queue: collections.deque[tuple[object, str, object]] = collections.deque()
        self._join: object | None = None
        self._running = self._is_aside = False
        self._thread: threading.Thread | None = None

    def on(self, event: str, callback: Callback, *, once: bool = False) -> None:
        """Register a callback.

        Raises:
            ConfigurationError: If there is no such event, or the callback is not callable.
        """
        self._table.add(_checked(event), callback, once=once)

    def off(self, event: str, callback: Callback | None = None) -> None:
        """Take a callback back, or with None all of this event."""
        self._table.remove(_checked(event), callback)

    # -- producers ----------------------------------------------------------------------------------------

    def begin(self, join: object) -> None:
        """Deliver this join's events from now on."""
        with self._lock:
            self._join = join

    def end(self, join: object) -> None:
        """Deliver no more of a join's events. A handler that has begun goes on; it is not waited for."""
        with self._lock:
            if self._join is join:
                self._queue.clear()
                self._changed.notify_all()
                self._room.notify_all()
                self._join = None  # last: what Ctrl-C interrupts is done again

    def put(self, join: object, name: str, payload: object, *, wait: bool = False) -> None:
        """Queue an event, if it has listeners and its join is not over.

        Args:
            join: Whose event it is.
            name: One of `MEETING_EVENTS`.
            payload: What the listeners get.
            wait: Wait while the queue is full, but neither on the thread of the handlers nor while that is
                `aside`.
        """
        if not self._table.named(name):
            return
        with self._lock:
            while (
                wait
                and self._join is join
                and len(self._queue) >= self._limit
                and self._thread is not threading.current_thread()
                and not self._is_aside
            ):
                self._room.wait()
            if self._join is not join:
                return
            self._queue.append((join, name, payload))
            self._changed.notify()
            start, self._running = not self._running, True
        if start:
            self._start()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """While a handler waits here for what comes on a session, hold up no session; a context.

        What it waits for comes behind what is put here. On any other thread it does nothing.
        """
        if threading.current_thread() is not self._thread:
            yield
            return
        try:
            with self._lock:
                self._is_aside = True
                self._room.notify_all()
            yield
        finally:
            with self._lock:
                self._is_aside = False

    def _start(self) -> None:
        try:
            self._threads.spawn(self._run, f"llm-dispatcher[{self._name}]", calls_back=True)
        except BaseException as exc:
            with self._lock:
                self._running = False
                self._queue.clear()  # or those who wait for room would do so for good
                self._room.notify_all()
            if not isinstance(exc, RuntimeError):
                raise
            self._log.exception("cannot start a dispatcher thread; what was to be delivered is lost")

    # -- the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        with self._lock:
            if self._thread is not None:
                return  # its start was interrupted and made up for by another
            self._running, self._thread = True, threading.current_thread()
        while True:
            with self._lock:
                while not self._queue:
                    if self._join is None:
                        self._running, self._thread = False, None
                        return
                    self._changed.wait()
                join, name, payload = self._queue.popleft()
                self._room.notify()
            for listener in self._table.named(name):
                if not self._table.has(name, listener):
                    continue
                with self._lock:
                    over = self._join is not join
                if over:
                    break
                self._call(name, listener, payload)

    def _call(self, name: str, listener: Listener, payload: object) -> None:
        if listener.once and not self._table.claim(name, listener):
            return
        try:
            listener.callback(payload)
        # SystemExit too: a callback's mistake ends neither the others nor the thread.
        except BaseException as exc:  # noqa: BLE001  # it is logged
            kind, text = f"{name} {type(exc).__name__}", "a listener of %r raised"
            self._log.thinned(self._repeats, kind, ERROR, text, name, exc_info=True)()


def _checked(event: object) -> str:
    if not isinstance(event, str) or event not in MEETING_EVENTS:
        allowed = ", ".join(sorted(MEETING_EVENTS))
        raise ConfigurationError("event", f"{event!r} does not exist; a meeting has {allowed}")
    return event
