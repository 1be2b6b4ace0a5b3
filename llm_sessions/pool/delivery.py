"""Where a session's messages go: to its listeners, and to callers who fetch them.

Each of these has a bounded queue: the dispatcher's, one inbox for `Session.receive` from its first call on,
and one for each `Session.messages`. With `when_full="block"` the session reads only while none of them is
full; each says so itself (`full`), and whoever makes room in the last full one resumes the readers.

The inbox for `receive` is the exception, for nobody says when `receive` is not going to be called again: it
holds up reading only as long as nobody else takes messages. Otherwise its oldest ones are dropped.

An iterator that nobody uses any more is known by its inbox having been collected. That happens on any thread
at any moment, so nothing is done about it there: a reader that is held asks again once a second.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .._sync import Deadline, Lock
from ..connection.transport import Link
from .dispatch import Dispatcher
from .inbox import Inbox
from .listeners import ListenerTable

if TYPE_CHECKING:
    from .environment import Environment

__all__ = ["Delivery"]


class Delivery:
    """One session's dispatcher and inboxes. The session's lock guards them: what does not take it itself
    (`has_room`, `take`, `close`) is called under it.

    Args:
        session_id: For names and logs.
        lock: The session's.
        listeners: The session's.
        env: What all sessions of the pool share.
    """

    def __init__(self, session_id: str, lock: Lock, listeners: ListenerTable, env: Environment) -> None:
        self._lock = lock
        self._arrived = threading.Condition(lock)
        self._limit = env.config.queue_size
        self._drop_oldest = env.config.when_full == "drop_oldest"
        self.dispatcher = Dispatcher(
            session_id,
            listeners,
            env.all_listeners,
            threads=env.threads,
            queue_size=self._limit,
            drop_oldest=self._drop_oldest,
            has_room=self.has_room,
        )
        self._kept: Inbox | None = None  # for `receive`, from its first call on
        self._streams: tuple[weakref.ref[Inbox], ...] = ()
        self._held: set[Link] = set()  # what is not read until there is room
        self._dropped = 0
        self._ending: tuple[Exception, bool] | None = None  # since the session came to rest

    # -- the session's reports; the lock is held ----------------------------------------------------------

    def put(self, link: Link, batch: list[dict[str, Any]]) -> tuple[bool, bool]:
        """Hand out messages; with an empty batch only look whether there is room by now. Never blocks.

        Args:
            link: What they were read from.
            batch: In the order of arrival; becomes the dispatcher's.

        Returns:
            Whether to go on reading, and whether the dispatcher must be started.
        """
        if batch and (self._kept is not None or self._streams):
            for inbox in self._inboxes():
                inbox.put(batch)
            self._arrived.notify_all()
        start = self.dispatcher.put_batch(batch)
        if self._room():
            self._held.discard(link)
            return True, start
        self._held.add(link)
        return False, start

    def forget(self, link: Link) -> None:
        """Hear that a link ended."""
        self._held.discard(link)

    def rest(self, error: Exception, ours: bool) -> None:
        """Hear that the session came to rest: callers get what is left, then this error.

        Args:
            error: Why; what `receive` raises.
            ours: Whether we disconnected: iterators end without an error then.
        """
        self._ending = error, ours
        for inbox in self._inboxes():
            inbox.end(error, ours)
        self._arrived.notify_all()

    def revive(self) -> None:
        """Hear that the session is being connected: what `receive` did not fetch before is forgotten."""
        self._ending = None
        if self._kept is not None and self._kept.over:
            self._kept = Inbox(self._limit)

    @property
    def held(self) -> bool:
        """Whether anything is not read because a queue is full."""
        return bool(self._held)

    @property
    def dropped(self) -> int:
        """Messages dropped from full queues."""
        return self._dropped + self.dispatcher.dropped

    @property
    def waiting(self) -> int:
        """Messages in all queues together."""
        return self.dispatcher.waiting + sum(len(inbox) for inbox in self._inboxes())

    def _inboxes(self) -> Iterator[Inbox]:
        if self._kept is not None:
            yield self._kept
        for stream in self._streams:
            inbox = stream()
            if inbox is not None:
                yield inbox

    def _room(self) -> bool:
        """Make room where that is the rule; say whether there is room everywhere."""
        full = self.dispatcher.full
        if self._kept is None and not self._streams:
            return not full
        shared = self.dispatcher.wanted
        live: list[weakref.ref[Inbox]] = []
        for stream in self._streams:
            inbox = stream()
            if inbox is None or inbox.over:
                continue
            live.append(stream)
            shared = True
            full = self._is_full(inbox, self._drop_oldest) or full
        if len(live) != len(self._streams):
            self._streams = tuple(live)
        if self._kept is not None:
            full = self._is_full(self._kept, self._drop_oldest or shared) or full
        return not full

    def _is_full(self, inbox: Inbox, drop: bool) -> bool:
        if inbox.full and drop:
            self._dropped += inbox.make_room()
        return inbox.full

    def _resumable(self) -> tuple[Link, ...]:
        if not self._held or not self._room():
            return ()
        links = tuple(self._held)
        self._held.clear()
        return links

    # -- callers ------------------------------------------------------------------------------------------

    def has_room(self) -> None:
        """Hear from the dispatcher that its queue is not full any more."""
        with self._lock:
            links = self._resumable()
        for link in links:
            link.resume()

    def kept(self) -> Inbox:
        """Return the inbox for `receive`, made at the first call. The lock is held."""
        kept, ending = self._kept, self._ending
        # Whoever waits on one that ended hears of the end that woke him; later callers, of the newest.
        stale = kept is not None and kept.over and not len(kept) and ending != (kept.error, kept.ours)
        if kept is None or stale:
            kept = self._kept = Inbox(self._limit)
            if ending is not None:
                kept.end(*ending)
        return kept

    def subscribe(self, limit: int) -> Inbox:
        """Return a new inbox that gets every message from now on. The lock is held.

        It is over from the start if the session has ended for good. If we disconnected it, the next connect
        is waited for.
        """
        inbox = Inbox(limit)
        if self._ending is not None and not self._ending[1]:
            inbox.end(*self._ending)
        self._streams = (*self._streams, weakref.ref(inbox))
        return inbox

    def take(self, inbox: Inbox, deadline: Deadline) -> dict[str, Any] | None:
        """Wait for a message; return None if none came in time or none is going to come."""
        links: tuple[Link, ...] = ()
        try:
            with self._lock:
                self._arrived.wait_for(lambda: len(inbox) or inbox.over, deadline.left())
                message = inbox.take()
                links = self._resumable()
            return message
        finally:
            for link in links:
                link.resume()

    def close(self, inbox: Inbox) -> None:
        """Take back a subscription: its messages are forgotten and hold up nobody."""
        links: tuple[Link, ...] = ()
        try:
            with self._lock:
                inbox.discard()
                self._arrived.notify_all()
                links = self._resumable()
        finally:
            for link in links:
                link.resume()
