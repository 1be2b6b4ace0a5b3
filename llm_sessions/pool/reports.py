"""What connectors and readers report to a session, and what it decides on that.

Reports of what is no longer this session's business change nothing: a link that is not in `_links` and a run
that is cancelled have been given up by an earlier decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from .._logging import guarded, without_secrets
from ..connection.transport import Link
from ..errors import ConnectError, ConnectionLost, Replaced
from ..protocol.closing import CloseMeaning, classify_close
from ..protocol.envelope import Envelope
from ..protocol.events import (
    ConnectionFailed,
    Latency,
    Offline,
    Online,
    SequenceMismatch,
    SwitchoverComplete,
    SwitchoverFailed,
    SwitchoverLoss,
    SwitchoverStarted,
)
from ..protocol.mercury import Dropped, Ended, Event, LatencyMeasured, SequenceGap, ShutdownAnnounced
from ..protocol.state import SessionState, Trigger
from .attempt import Attempt, RunKind
from .connector import Connector
from .core import Effects, SessionCore, as_text, said
from .served import read_by_this_thread, reads, serve

__all__ = ["SessionReports"]

_SHORT_LIFE = 1.0  # seconds; a socket that closes sooner after ready was not worth having
_SHORT_LIVES = 3  # so many in a row, and the endpoint is told
_MAX_REMEMBERED = 10_000  # ids of envelopes during a switchover


class SessionReports(SessionCore):
    """A session as its connector and its readers see it. It is their `LinkOwner`."""

    __slots__ = ()

    # -- attempt runs -------------------------------------------------------------------------------------

    def _new_attempt(
        self, effects: Effects, kind: RunKind, first_wait: float = 0.0, rejected: str | None = None
    ) -> Attempt:
        assert self._endpoint is not None
        if not self._links:
            self._brought_by = None  # no other socket is left that could bring an envelope again
        self._generation += 1
        attempt = Attempt(
            self.session_id, self._generation, kind, self._endpoint, self._provider, first_wait, rejected
        )
        attempt.target = self._target
        self._attempt = attempt
        effects.append(partial(self._start_connector, attempt))
        return attempt

    def _start_connector(self, attempt: Attempt) -> None:
        attempt.started = True
        try:
            self.env.threads.spawn(Connector(self, attempt).run, f"llm-connector[{self.session_id}]")
        except BaseException as exc:
            # Interrupted, it may run all the same; it then finds its run cancelled.
            error = ConnectError(
                self.session_id, f"cannot start a connector thread: {exc or type(exc).__name__}"
            )
            error.__cause__ = exc
            self.give_up(attempt, error)
            if not isinstance(exc, RuntimeError):
                raise
            self.connector_ended(attempt)

    def connector_ended(self, attempt: Attempt) -> None:
        if self.env.forked:  # a callback has: some thread of the parent may hold the lock
            return
        with self._lock:
            attempt.over = True
            self.env.connector_ended(attempt)

    # -- the connector's reports --------------------------------------------------------------------------

    def adopt(self, attempt: Attempt, link: Link) -> bool:
        """Take the link that a run is about to open; False if nobody wants it any more."""

        def decision(effects: Effects) -> bool:
            if attempt.cancelled:
                return False
            attempt.opens(link)
            self._opened += 1
            self._links[link] = self._opened
            return True

        return self._decide(decision)

    def disown(self, attempt: Attempt, link: Link) -> None:
        """Forget a link that could not be opened."""

        def decision(effects: Effects) -> None:
            self._let_go(link)
            if attempt.link is link:
                attempt.link = None

        self._decide(decision)

    def attempt_failed(self, attempt: Attempt, error: Exception) -> tuple[float, bool]:
        """Count a failed attempt; return the seconds to wait, and whether another one is allowed."""

        def decision(effects: Effects) -> tuple[float, bool]:
            if attempt.cancelled:
                return 0.0, False
            retries, attempt.failures = attempt.failures, attempt.failures + 1
            wait = self._retries.after_failure()
            attempt.last_error = self.last_error = error
            config = self.env.config
            limit = config.max_retries if self.was_online else config.initial_max_retries
            left = limit is None or self._retries.failures <= limit
            if retries > 0 and getattr(error, "code", None) != 1006:
                self._emit(effects, "connection_failed", ConnectionFailed(self.session_id, error, retries))
            of_its_kind = [str(getattr(error, name, None)) for name in ("status", "code")]
            kind = " ".join(["attempt", type(error).__name__, *of_its_kind])
            self._warn(effects, kind, "attempt %d failed: %s", attempt.number, said(error))
            return wait, left

        return self._decide(decision)

    def tries_again(self, attempt: Attempt) -> None:
        """Hear that a run goes on after a failed attempt.

        A switchover whose old socket is gone (4001) is none any more: there is nothing to send on, so nobody
        may take the session for online until the run is through. It goes on as what it has become.
        """

        def decision(effects: Effects) -> None:
            kept = self._kept_close
            if attempt.cancelled or attempt.kind is not RunKind.SWITCH or kept is None:
                return
            self._kept_close = self._active = None
            attempt.kind = RunKind.RECONNECT
            self._step(effects, Trigger.LOST, as_text(kept.code, kept.reason))
            self._emit_offline(effects, "transient", kept.code, kept.reason)

        self._decide(decision)

    def give_up(self, attempt: Attempt, error: Exception) -> None:
        """End a run that is not going to succeed, and tell every waiter."""

        def decision(effects: Effects) -> None:
            if attempt.cancelled or attempt is not self._attempt:
                return
            self._run_over()
            attempt.cancel()
            attempt.settle(error)
            self.last_error = error
            if attempt.kind is RunKind.SWITCH:
                if len(self._links) < 2 and not self._may_repeat():
                    self._brought_by = None
                self._step(effects, Trigger.SWITCH_FAILED, said(error))
                self._emit(
                    effects,
                    "event:mercury_shutdown_switchover_failed",
                    SwitchoverFailed(self.session_id, error),
                )
                kept, self._kept_close = self._kept_close, None
                if kept is not None:
                    self._active_ended(effects, kept)
                return
            self._end_with(error)
            self._drop_links(effects)
            self._step(effects, Trigger.GAVE_UP, said(error))
            if attempt.kind is RunKind.RECONNECT:
                code, reason = getattr(error, "code", None) or 1006, getattr(error, "reason", "")
                self._emit(effects, "offline.permanent", Offline(self.session_id, code, reason))

        self._decide(decision)

    def complain(self, what: str, level: int) -> None:
        """Log the exception that is being handled: it came out of user code, and may come again and again."""
        with self._lock:
            say = self._log.thinned(self._repeats, what, level, what, exc_info=True)
        say()

    # -- the readers' reports -----------------------------------------------------------------------------

    def link_reading(self, link: Link, *, lends: bool = False) -> None:
        serve(self)
        if lends:
            reads(link)
            if not self.env.watch.enter(link):
                self.dispatcher.keep_thread()  # of the reader that this one relieves

    def link_ready(self, link: Link) -> None:
        self._report(self._link_ready, link)

    def _link_ready(self, effects: Effects, link: Link) -> None:
        attempt = self._attempt
        if attempt is None or attempt.link is not link:
            effects.append(link.abort)  # it became ready after the cancel: never published
            return
        old, self._active = self._active, link
        self._run_over()
        assert attempt.target is not None
        self._token, self._target = attempt.token, attempt.target
        self._online_at = self.env.clock()
        if not self.was_online:
            self._retries.failures = 0  # those were the initial limit's business
        self.was_online = True
        if read_by_this_thread() is link:
            self.dispatcher.lend_readers()
        attempt.succeed()
        if attempt.kind is RunKind.SWITCH:
            self._count.switchovers += 1
            self._step(effects, Trigger.SWITCHED)
            url = without_secrets(self._target.url)
            self._emit(
                effects,
                "event:mercury_shutdown_switchover_complete",
                SwitchoverComplete(self.session_id, url),
            )
            if old is not None:
                effects.append(partial(old.retire, self.env.config.retire_timeout))
            # One retired socket is kept; a server that announces its shutdown again and again gets no more.
            effects.extend(partial(one.close, None, None) for one in self._links.keys() - {link, old})
            kept, self._kept_close = self._kept_close, None
            if kept is not None:
                self._retired_ended(effects, kept)
        else:
            self._onlines += 1
            self._count.reconnects += attempt.kind is RunKind.RECONNECT
            self._step(effects, Trigger.OPENED)
            self._emit(effects, "online", Online(self.session_id, self._onlines))

    def link_received(self, link: Link, events: Sequence[Event]) -> bool:
        messages = [event for event in events if type(event) is dict]
        if len(messages) == len(events):
            return self._report(self._received, link, messages)
        for event in events:
            self._report(self._received, link, event)
        return self._report(self._received, link, [])  # room may have come and gone in between

    def _received(self, effects: Effects, link: Link, event: Event | list[dict[str, Any]]) -> bool:
        if link not in self._links:
            effects.append(link.abort)  # as whoever let go of it will: nobody gets this, so no ack may leave
            return True
        if isinstance(event, (dict, list)):
            batch = event if isinstance(event, list) else [event]
            if self._brought_by is not None:
                batch = self._without_repeats(self._brought_by, link, batch)
            self._count.messages_in += len(batch)
            dropped = self._delivery.dropped
            room, start = self._delivery.put(link, batch)
            if start:
                effects.append(self._start_delivery)
            if not room:
                self._warn(effects, "held", "a queue is full: the session is not read until it is taken from")
            if self._delivery.dropped != dropped:
                text = "a queue is full: its oldest messages are dropped, %d so far"
                self._warn(effects, "dropped", text, self._delivery.dropped)
            return room
        if isinstance(event, LatencyMeasured):
            self.latency: float | None = event.seconds
            self._emit(effects, "ping-pong-latency", Latency(self.session_id, event.seconds))
            effects.append(partial(self._log.debug, "latency %.1f ms", event.seconds * 1000))
        elif isinstance(event, SequenceGap):
            self._count.sequence_gaps += 1
            gap = SequenceMismatch(self.session_id, event.actual, event.expected)
            self._emit(effects, "sequence-mismatch", gap)
            self._warn(effects, "gap", "message %d came, %d was due", event.actual, event.expected)
        elif isinstance(event, Dropped):
            self._count.unusable += 1
            self._warn(effects, "unusable", "dropped a message: %s", event.problem)
        elif isinstance(event, ShutdownAnnounced):
            self._shutdown(effects, link, event)
        return True

    def _without_repeats(
        self, brought_by: dict[str | int, tuple[int, int]], link: Link, batch: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Leave out what the other socket of a switchover has brought already.

        Also after the other one ended: two readers have no order, so its close may be read before our copy.
        """
        both = len(self._links) > 1 or self._state is SessionState.SWITCHING
        number = self._links[link]
        mark, kept = (number, self._opened), []
        for message in batch:
            identity = message.get("id")
            if isinstance(identity, (str, int)):
                first, newest = brought_by.get(identity, (number, 0))
                if first != number <= newest:
                    self._count.repeated += 1
                    continue
                if both and not first == number <= newest:
                    brought_by[identity] = mark
            kept.append(message)
        while len(brought_by) > _MAX_REMEMBERED:
            del brought_by[next(iter(brought_by))]
        return kept

    def _may_repeat(self) -> bool:
        """Say whether a socket that is gone has brought what one that is left may bring, too."""
        there = self._links.values()
        return any(first not in there for first, _ in (self._brought_by or {}).values())

    def _shutdown(self, effects: Effects, link: Link, event: ShutdownAnnounced) -> None:
        if link is not self._active or self._state is not SessionState.ONLINE:
            return  # a second announcement, or one on a socket that is not in use
        self._step(effects, Trigger.SHUTDOWN, "the server shuts down")
        envelope = Envelope(self.session_id, event.raw)
        self._emit(effects, "event:mercury_shutdown_imminent", SwitchoverStarted(self.session_id, envelope))
        self._lived()
        if self._brought_by is None:
            self._brought_by = {}
        self._new_attempt(effects, RunKind.SWITCH, self._retries.before_switch())

    def link_lent(self, link: Link) -> bool:
        watch, number = self.env.watch, 0
        if watch.knows(link):  # otherwise it has ended, and nobody waits for this thread
            number = watch.lend(partial(self._relieve, link))
            if not number:
                self.dispatcher.start()
                return True
        before = serve(None)
        reads(None)
        try:
            self.dispatcher.run(lent=bool(number))
        finally:
            watch.give_back(number)
            reads(link)
            serve(before)
        return not self.env.forked

    def _relieve(self, link: Link) -> bool:
        """Have the socket read by another thread; say whether that is settled."""
        try:
            link.relieve()
        except RuntimeError as exc:
            guarded(partial(self._decide, self._not_relieved, exc))
            return False
        return True

    def _not_relieved(self, effects: Effects, error: Exception) -> None:
        text = "a listener takes long, and no thread can be started to read meanwhile: %s"
        self._warn(effects, "relief", text, error)

    def link_ended(self, link: Link, ended: Ended) -> None:
        self.env.watch.leave(link)
        self._report(self._link_ended, link, ended)

    def _link_ended(self, effects: Effects, link: Link, ended: Ended) -> None:
        self._delivery.forget(link)
        if link not in self._links:
            return
        self._let_go(link)
        effects.append(
            partial(
                self._log.debug, "a socket ended: %d %s (%s)", ended.code, ended.reason, ended.cause.value
            )
        )
        attempt = self._attempt
        if self._state is SessionState.DISCONNECTING:
            if link is self._active:
                self._farewell = ended.code, ended.reason
            if not self._links:
                self._closed(effects)
        elif attempt is not None and attempt.link is link:
            attempt.link = None
            attempt.link_ended = ended
            attempt.news.set()
        elif link is self._active:
            self._active_ended(effects, ended)
        else:
            self._retired_ended(effects, ended)

    def _retired_ended(self, effects: Effects, ended: Ended) -> None:
        if ended.code == 4001:
            self._emit(effects, "offline.replaced", Offline(self.session_id, ended.code, ended.reason))
        elif ended.missed:
            loss = SwitchoverLoss(self.session_id, ended.code, ended.reason)
            self._emit(effects, "switchover-loss", loss)
            text = "a replaced socket ended with %s, and may have had more to bring"
            self._warn(effects, "loss", text, as_text(ended.code, ended.reason))

    def _active_ended(self, effects: Effects, ended: Ended) -> None:
        code, reason = ended.code, ended.reason
        meaning = classify_close(code, reason)
        switching = self._state is SessionState.SWITCHING
        if switching and code == 4001:
            self._kept_close = ended
            return
        self._active = None
        error = (Replaced if meaning is CloseMeaning.REPLACED else ConnectionLost)(
            self.session_id, code, reason
        )
        error.__cause__ = ended.error
        self.last_error: Exception | None = error
        if meaning in (CloseMeaning.TRANSIENT, CloseMeaning.UNAUTHORIZED):
            self._step(effects, Trigger.LOST, as_text(code, reason))
            self._emit_offline(effects, "transient", code, reason)
            rejected = self._token if meaning is CloseMeaning.UNAUTHORIZED else None
            if switching and self._attempt is not None:
                self._attempt.kind = RunKind.RECONNECT
            else:
                self._reconnect(effects, rejected, error)
            return
        self._cancel_attempt(effects, error)
        self._end_with(error)
        self._drop_links(effects)
        self._step(effects, Trigger.ENDED, as_text(code, reason))
        self._emit_offline(
            effects, "permanent" if meaning is CloseMeaning.PERMANENT else "replaced", code, reason
        )

    def _reconnect(self, effects: Effects, rejected: str | None, error: Exception) -> None:
        lived = self._lived()
        attempt = self._new_attempt(effects, RunKind.RECONNECT, self._retries.after_loss(), rejected)
        attempt.last_error = error
        self._short_lives = self._short_lives + 1 if lived < _SHORT_LIFE else 0
        if self._short_lives >= _SHORT_LIVES:
            self._short_lives = 0
            attempt.stale = error

    def _lived(self) -> float:
        """Return how long the active link has been ready; if long enough, waits and counts start anew."""
        lived = self.env.clock() - self._online_at
        if lived >= self.env.config.backoff_max:
            self._retries.reset()
            self._repeats.forget()
        return lived
