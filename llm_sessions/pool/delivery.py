"""Where a session's messages go: to its listeners, and to callers who fetch them.

Each of these has a bounded queue: the dispatcher's, one inbox for `Session.receive` from its first call on,
and one for each `Session.messages`. With `when_full="block"` the session reads only while none of them is
full; each says so itself (`full`), and whoever makes room in the last full one resumes the readers.

The inbox for `receive` is the exception, for nobody says when `receive` is not going to be called again: it
holds up reading only as long as nobody else takes messages. Otherwise its oldest ones are dropped.

An iterator that nobody uses any more is known by its inbox having been collected. That happens on any thread
at any moment, under any lock, so nothing is done about it there: a reader that is held asks again once a
second. For the same reason closing one takes no lock: a generator around it is closed by its collection.
"""

from __future__ import annotations

import _thread
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .._sync import Lock
from ..connection.transport import Link
from .dispatch import Dispatcher
from .inbox import Inbox
from .listeners import ListenerTable

if TYPE_CHECKING:
    from .environment import Environment

__all__ = ["Delivery"]


class Delivery:
    """One session's dispatcher and inboxes. The session's lock guards them. `has_room` and `take` take it,
    `close` needs none; all else is called with the lock held.

    Args:
        session_id: For names and logs.
        lock: The session's.
        listeners: The session's.
        env: What all sessions of the pool share.
    """

    def __init__(self, session_id: str, lock: Lock, listeners: ListenerTable, env: Environment) -> None:
        self._lock = lock
        self._clock = env.clock
        self._limit = env.config.queue_size
        self._drop_oldest = env.config.when_full == "drop_oldest"
        self.dispatcher: Dispatcher = Dispatcher(
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
        self._held: frozenset[Link] = frozenset()  # what is not read until there is room
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
            now = self._clock()
            for inbox in self._inboxes():
                inbox.put(batch, now)
        start = self.dispatcher.put_batch(batch)
        if self._room():
            self.forget(link)
            return True, start
        self._held |= {link}
        return False, start

    def forget(self, link: Link) -> None:
        """Hear that a link ended, or is read again."""
        if self._held:
            self._held -= {link}

    def rest(self, error: Exception, ours: bool) -> None:
        """Hear that the session came to rest: callers get what is left, then this error.

        Args:
            error: Why; what `receive` raises.
            ours: Whether we disconnected: iterators end without an error then.
        """
        self._ending = error, ours
        for inbox in self._inboxes():
            inbox.end(error, ours)

    def revive(self) -> None:
        """Hear that the session is being connected: what `receive` did not fetch before is dropped."""
        self._ending = None
        if self._kept is not None and self._kept.over:
            self._dropped += len(self._kept)
            self._kept = Inbox(self._lock, self._limit)

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

    def _open_streams(self) -> tuple[weakref.ref[Inbox], ...]:
        found = [(stream, stream()) for stream in self._streams]
        return tuple(stream for stream, inbox in found if inbox is not None and not inbox.over)

    def _room(self) -> bool:
        """Make room where that is the rule; say whether there is room everywhere."""
        full = self.dispatcher.full
        if self._kept is None and not self._streams:
            return not full
        shared = self.dispatcher.wanted
        self._streams = self._open_streams()
        for stream in self._streams:
            inbox = stream()
            if inbox is not None:
                shared = True
                full = self._is_full(inbox, self._drop_oldest) or full
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
        links, self._held = tuple(self._held), frozenset()
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
            kept = self._kept = Inbox(self._lock, self._limit)
            if ending is not None:
                kept.end(*ending)
        return kept

    def subscribe(self, limit: int) -> Inbox:
        """Return a new inbox that gets every message from now on. The lock is held.

        It is over from the start if the session has ended for good. If we disconnected it, the next connect
        is waited for.
        """
        inbox = Inbox(self._lock, limit)
        if self._ending is not None and not self._ending[1]:
            inbox.end(*self._ending)
        self._streams = (*self._open_streams(), weakref.ref(inbox))
        return inbox

    def take(
        self, inbox: Inbox, timeout: float | None, *, ends: bool
    ) -> tuple[dict[str, Any] | None, Exception | None]:
        """Wait for a message.

        Args:
            inbox: Where.
            timeout: Seconds; None for no limit.
            ends: Whether the inbox is over, for all who share it, once nothing has been put for so long.
                Otherwise the time is this caller's own.

        Returns:
            The message. Without one, what the inbox ended with, or None if the time ran out or it was ours.
        """
        message, links = None, tuple[Link, ...]()
        try:
            with self._lock:
                inbox.takers += 1
                try:
                    self._await(inbox, timeout, ends)
                finally:
                    inbox.takers -= 1
                was_full = inbox.full
                message = inbox.take()
                if was_full and not inbox.full:
                    links = self._resumable()
                return message, inbox.error if message is None else None
        except BaseException:
            with self._lock:  # Ctrl-C: somebody else may be woken for what was meant for this caller
                if message is not None:
                    inbox.put_back(message)
                inbox.arrived.notify()
            raise
        finally:
            for link in links:
                link.resume()

    def _await(self, inbox: Inbox, timeout: float | None, ends: bool) -> None:
        began = self._clock()
        while not inbox.settled:
            left = None
            if timeout is not None:
                left = (max(began, inbox.newest) if ends else began) + timeout - self._clock()
                if left <= 0:
                    if ends:
                        inbox.end(None, ours=True)
                    return
            inbox.arrived.wait(left)

    def close(self, inbox: Inbox) -> None:
        """Take back a subscription: its messages are forgotten, and it holds up nobody.

        Takes no lock and waits for nothing, for it may run in a finalizer.
        """
        try:
            self._close(inbox)
        except BaseException:
            self._close(inbox)  # Ctrl-C in between: those who share it must hear of its end all the same
            raise

    def _close(self, inbox: Inbox) -> None:
        inbox.discard()
        if inbox.takers or self._held:
            try:
                # Not the threading module's: starting one of those takes locks that may be held right here.
                _thread.start_new_thread(self._settle, (inbox,))
            except RuntimeError:
                pass  # no thread to be had: the held reader asks again, and takers look at the next message

    def _settle(self, inbox: Inbox) -> None:
        with self._lock:
            inbox.arrived.notify_all()
        self.has_room()
