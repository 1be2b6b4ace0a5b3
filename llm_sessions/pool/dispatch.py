"""From the reader to the callbacks: one queue a session, and one thread at a time.

The reader puts what a read brought as one batch, and messages become envelopes only for listeners that exist.
Who puts into an idle queue is told to see to its delivery: a reader then delivers by itself, everybody else
starts a thread. A reader whose socket got another one because a callback took long goes on as that thread.

State events are never dropped and never block: they are put while the session's lock is held, so that
listeners see them in the order in which they happened. Only messages are bounded.

The thread is made when there is something to deliver and somebody to deliver it to: a session whose
listeners wait for what never comes has none. It ends when its queue is empty and the session idle, or the
dispatcher stopped.
"""

from __future__ import annotations

import collections
import inspect
import threading
from collections.abc import Callable
from logging import ERROR
from typing import Any

from .. import _fork
from .._logging import Repeats, SessionLogger, get_logger, guarded
from .._sync import LEAF, LateCondition, ThreadGroup, make_lock
from ..protocol.envelope import Envelope
from .listeners import Listener, ListenerTable, Route

__all__ = ["Dispatcher"]

Batch = list[dict[str, Any]]
StateEvent = tuple[str, object]


class _InChild(Exception):
    """A callback has forked, and this is the child."""


class Dispatcher:
    """Delivers one session's events.

    Args:
        session_id: For envelopes, names and logs.
        own: The session's listeners.
        shared: The listeners of all sessions.
        threads: Where the thread is counted.
        queue_size: Messages that may wait.
        drop_oldest: What happens beyond that: drop, or be `full`.
        has_room: Called on the thread, without a lock, when the queue is not full any more.
    """

    def __init__(
        self,
        session_id: str,
        own: ListenerTable,
        shared: ListenerTable,
        *,
        threads: ThreadGroup,
        queue_size: int,
        drop_oldest: bool,
        has_room: Callable[[], None],
    ) -> None:
        self._session_id = session_id
        self._repeats = Repeats()  # of listeners that raise; the thread's own
        self._tables = (own, shared)
        self._threads = threads
        self._process = _fork.generation()
        self._queue_size = queue_size
        self._has_room = has_room
        # Guards all below. Rank 40: nothing is called under it.
        self._lock = make_lock("dispatcher", LEAF)
        self._changed = LateCondition(self._lock)
        self._queue: collections.deque[Batch | StateEvent] | None = None  # made when something comes
        # Those of the queue that hold messages; kept with drop_oldest only.
        self._batches: collections.deque[Batch] | None = collections.deque() if drop_oldest else None
        self._emptied = 0  # those of the queue that hold none any more
        # Messages in the queue and, if a full one holds up readers, those in the thread's hands. What is in
        # its hands cannot be dropped any more, so with drop_oldest it is not counted.
        self._waiting = 0
        self._full = False  # there were too many, and half of them are not delivered yet
        self._running = False
        self._lingers = False  # the session is busy
        self._stays = True  # then an empty queue does not end the thread
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._taken = False  # a thread is in `_run`
        self.dropped: int = 0

    @property
    def _name(self) -> str:
        return f"llm-dispatcher[{self._session_id}]"

    @property
    def _log(self) -> SessionLogger:
        return SessionLogger(get_logger("dispatch"), {"session_id": self._session_id})

    @property
    def wanted(self) -> bool:
        """Whether anybody listens to messages."""
        return self._tables[0].want_messages or self._tables[1].want_messages

    @property
    def full(self) -> bool:
        """Whether no more should be put until `has_room` is called."""
        return self._full

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return self._waiting

    @property
    def stays(self) -> bool:
        """Whether the session has a thread of its own for this; otherwise its readers are lent."""
        return self._stays

    @property
    def thread(self) -> threading.Thread | None:
        return self._thread

    # -- producers ----------------------------------------------------------------------------------------

    def put_state(self, name: str, payload: object) -> bool:
        """Queue a state event; never blocks. Return whether `start` must be called, outside of locks."""
        if not any(table.named(name) for table in self._tables):
            return False
        with self._lock:
            if self._stopped:
                return False
            self._append((name, payload))
            return self._announce()

    def put_batch(self, batch: Batch) -> bool:
        """Queue messages; never blocks. Return whether `start` must be called, outside of locks.

        Args:
            batch: In the order of arrival; becomes the dispatcher's.
        """
        if not batch or not self.wanted:
            return False
        if not self._running and not any(map(self._is_for_anybody, batch)):
            return False
        with self._lock:
            if self._stopped:
                return False
            self._append(batch)
            if self._batches is not None:
                self._batches.append(batch)
            self._waiting += len(batch)
            if self._waiting > self._queue_size:
                if self._batches is not None:
                    self._make_room(self._batches)
                else:
                    self._full = True
            return self._announce()

    def _is_for_anybody(self, message: dict[str, Any]) -> bool:
        event_type = _event_type(message)
        own, shared = self._tables
        return bool(own.route(event_type) or shared.route(event_type))

    def _append(self, entry: Batch | StateEvent) -> None:
        if self._queue is None:
            self._queue = collections.deque()
        self._queue.append(entry)

    def _announce(self) -> bool:
        self._changed.notify_all()
        if self._running:
            return False
        self._running = True
        return True

    def _make_room(self, batches: collections.deque[Batch]) -> None:
        surplus = self._waiting - self._queue_size
        self.dropped += surplus
        self._waiting = self._queue_size
        while surplus > 0:
            oldest = batches[0]
            gone = min(surplus, len(oldest))
            del oldest[:gone]
            surplus -= gone
            if not oldest:
                batches.popleft()
                self._emptied += 1
        # Emptied batches would pile up between state events, which stay. Swept out by the half, so that a
        # message costs the same however long the queue is.
        queue = self._queue
        if queue and self._emptied > max(16, len(queue) // 2):
            self._queue = collections.deque(entry for entry in queue if entry)
            self._emptied = 0

    def start(self) -> None:
        """Start the thread after `put_…` said so."""
        try:
            self._threads.spawn(self.run, self._name, calls_back=True)
        except BaseException as exc:
            with self._lock:
                # Interrupted, it may run all the same; a second one then finds the place taken.
                self._running = self._full = False
            self._has_room()  # the next event may be one that a held reader has not read yet
            if not isinstance(exc, RuntimeError):
                raise
            self._log.exception("cannot start a dispatcher thread; events wait for the next")

    def lend_readers(self) -> None:
        """Let readers deliver: a thread of our own ends when the queue is empty. Never blocks."""
        with self._lock:
            self._stays = False
            self._changed.notify_all()

    def keep_thread(self) -> None:
        """Have the thread that delivers now stay for more: a callback took long. Never blocks."""
        with self._lock:
            self._stays = True
            if self._thread is not None:
                self._thread.name = self._name

    def set_lingering(self, on: bool) -> None:
        """Say whether the session is busy, so that more events may come. Never blocks."""
        with self._lock:
            self._lingers = on
            if not on:
                self._changed.notify_all()

    def stop(self) -> None:
        """Take nothing more; the thread ends after what is queued. Never blocks."""
        with self._lock:
            self._stopped = True
            self._lingers = False
            self._changed.notify_all()

    # -- the thread ---------------------------------------------------------------------------------------

    def run(self, *, lent: bool = False) -> None:
        """Deliver on the calling thread, after `put_…` said so, until the queue is empty (see `stays`).

        Args:
            lent: Whether the thread is a socket's reader, and keeps its name.
        """
        me = threading.current_thread()
        with self._lock:
            if self._taken:
                return
            self._taken = True
            # Here, not where it is started: a callback may close the pool before `spawn` has returned.
            self._thread = me
            if not lent:
                me.name = self._name
        self._threads.lend(me)
        try:
            while (entry := self._next()) is not None:
                if isinstance(entry, list):
                    size = len(entry)
                    self._deliver(entry)
                    if self._batches is None:
                        self._count_off(size)
                else:
                    self._announce_state(*entry)
        except _InChild:
            pass  # the rest is the parent's to deliver, and some thread of it may hold the lock
        except BaseException:
            with self._lock:
                self._done()  # so that the next event has somebody to deliver it
            raise
        finally:
            self._threads.give_back(me)

    def _next(self) -> Batch | StateEvent | None:
        with self._lock:
            while not self._queue:
                if not (self._lingers and self._stays):
                    self._done()
                    return None
                self._changed.wait()
            return self._take(self._queue)

    def _done(self) -> None:
        self._running = self._taken = False
        self._thread = None

    def _take(self, queue: collections.deque[Batch | StateEvent]) -> Batch | StateEvent:
        # One entry at a time: what is still in the queue can be dropped to make room.
        entry = queue.popleft()
        if isinstance(entry, list) and self._batches is not None:
            if entry:
                self._batches.popleft()
            else:
                self._emptied -= 1
            self._waiting -= len(entry)
        return entry

    def _announce_state(self, name: str, payload: object) -> None:
        for table in self._tables:
            for listener in table.named(name):
                if table.has(name, listener):
                    self._call(name, table, listener, payload)

    def _count_off(self, delivered: int) -> None:
        with self._lock:
            self._waiting -= delivered
            if not self._full or self._waiting > self._queue_size // 2:
                return
            self._full = False
        self._has_room()

    def _deliver(self, batch: Batch) -> None:
        own, shared = self._tables
        versions = (-1, -1)
        routes: dict[object, Route] = {}
        for message in batch:
            if versions != (own.version, shared.version):
                versions = (own.version, shared.version)
                routes = {}
            event_type = _event_type(message)
            route = routes.get(event_type)
            if route is None:
                route = routes[event_type] = self._route(event_type)
            if route:
                envelope = Envelope(self._session_id, message)
                for name, table, listener in route:
                    if versions != (own.version, shared.version) and not table.has(name, listener):
                        continue
                    self._call(name, table, listener, envelope)

    def _route(self, event_type: object) -> Route:
        own, shared = self._tables
        route, others = own.route(event_type), shared.route(event_type)
        if not others:
            return route
        return tuple(sorted((*route, *others), key=_how_special))

    def _call(self, name: str, table: ListenerTable, listener: Listener, argument: object) -> None:
        if listener.once and not table.claim(name, listener):
            return
        try:
            listener.callback(argument)
        # SystemExit too: a callback's mistake ends neither the others nor the thread.
        except BaseException as exc:  # noqa: BLE001  # it is logged
            who = listener.callback if inspect.isroutine(listener.callback) else type(listener.callback)
            kind, text = f"{name} {who.__qualname__} {type(exc).__name__}", "a listener of %r raised"
            guarded(self._log.thinned(self._repeats, kind, ERROR, text, name, exc_info=True))
        if _fork.generation() != self._process:
            raise _InChild


def _how_special(entry: tuple[str, ListenerTable, Listener]) -> int:
    return len(entry[0])  # `event`, then `event:<namespace>`, then `event:<namespace>.<name>`


def _event_type(message: dict[str, Any]) -> str | None:
    data = message.get("data")
    event_type = data.get("eventType") if type(data) is dict else None
    return event_type if type(event_type) is str else None
