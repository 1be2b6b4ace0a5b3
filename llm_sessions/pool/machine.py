"""What one session decides, and on whose report.

Every decision is a method that runs under the session's lock, changes the state by a step of the table in
`protocol.state`, and returns what is to be done outside the lock as a list of effects. Four kinds of thread
come here: callers (connect, wait, disconnect), the connector (`adopt`, `attempt_failed`, `give_up`), readers
(`link_ready`, `link_received`, `link_ended`), and the pool's closer.

Reports of what is no longer this session's business change nothing: a link that is not in `_links` and a run
that is cancelled have been given up by an earlier decision.

`_links` holds the sockets that somebody must still hear the end of: the active one, the one being made, and
replaced ones. CLOSED is applied by whoever removes the last of them. A disconnect takes out those that are
not ready at once, for there is no close handshake to wait for: aborted, they are gone in a moment.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .._logging import SessionLogger, without_secrets
from .._sync import SESSION, Deadline, make_lock
from ..connection.transport import Link
from ..errors import (
    AlreadyConnected,
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    LocalProtocolError,
    PoolClosed,
    Replaced,
    WaitTimeout,
    fresh_copy,
)
from ..protocol.closing import DEFAULT_CODE, DEFAULT_REASON, CloseMeaning, classify_close
from ..protocol.envelope import Envelope
from ..protocol.events import (
    ConnectionFailed,
    Disconnected,
    Latency,
    Offline,
    Online,
    SequenceMismatch,
    SwitchoverComplete,
    SwitchoverFailed,
    SwitchoverStarted,
)
from ..protocol.mercury import Dropped, Ended, Event, LatencyMeasured, SequenceGap, ShutdownAnnounced
from ..protocol.state import BUSY, ONLINE, SessionState, Trigger, next_state
from .attempt import Attempt, RunKind
from .connector import Connector, connector_of_this_thread
from .dispatch import Dispatcher
from .listeners import ListenerTable
from .retry import Retries
from .sources import Endpoint, Target, TokenProvider

if TYPE_CHECKING:
    from .environment import Environment

__all__ = ["SessionMachine"]

Effects = list[Callable[[], object]]
T = TypeVar("T")

_SHORT_LIFE = 1.0  # seconds; a socket that closes sooner after ready was not worth having
_SHORT_LIVES = 3  # so many in a row, and the endpoint is told


class SessionMachine:
    """One session's state, shared by all threads. `Session` is its public face.

    Args:
        session_id: Its key in the pool.
        env: What all sessions of the pool share.
        gone: Called without a lock after an explicit disconnect, with the session's id.
    """

    def __init__(
        self, session_id: str, env: Environment, gone: Callable[[str], None] = lambda session_id: None
    ) -> None:
        self.session_id = session_id
        self.env = env
        self._gone = gone
        self._log = SessionLogger(logging.getLogger("llm_sessions.pool"), {"session_id": session_id})
        self.listeners = ListenerTable()
        self.dispatcher = Dispatcher(
            session_id,
            self.listeners,
            env.all_listeners,
            threads=env.threads,
            queue_size=env.config.queue_size,
            drop_oldest=env.config.when_full == "drop_oldest",
        )
        # Guards everything below. Rank 20: no I/O, callback, log call or thread start happens under it.
        self._lock = make_lock("session", SESSION)
        self._changed = threading.Condition(self._lock)
        self._state = SessionState.IDLE
        self._attempt: Attempt | None = None  # the live run
        self._active: Link | None = None
        self._links: set[Link] = set()
        self._generation = 0
        self._endpoint: Endpoint | None = None
        self._provider: TokenProvider | None = None
        self._token = ""  # what the active link was authorized with
        self._target: Target | None = None  # where it is connected to
        self._retries = Retries(env.config)
        self._online_at = 0.0
        self._short_lives = 0
        self._kept_close: Ended | None = None  # the old socket's 4001, read before the switchover settled
        self._asked: tuple[int | None, str | None] = (None, None)
        self._farewell: tuple[int, str] | None = None  # how the active link ended while disconnecting
        # What waiters compare: they only ever grow.
        self._onlines = self._endings = self._disconnects = 0
        self._ending: Exception | None = None  # why the last of `_endings` came
        self._waiters = 0
        self._observers: tuple[Callable[[], None], ...] = ()
        self.was_online = False
        self.last_error: Exception | None = None
        self.latency: float | None = None

    def _decide(self, decision: Callable[..., T], *arguments: Any) -> T:
        """Run a decision under the lock, then what it asks for, also when Ctrl-C arrives in between."""
        effects: Effects = []
        try:
            with self._lock:
                return decision(effects, *arguments)
        finally:
            for effect in effects:
                effect()

    # -- steps: the lock is held --------------------------------------------------------------------------

    def _step(self, effects: Effects, trigger: Trigger) -> None:
        before, self._state = self._state, next_state(self._state, trigger)
        if self._state in (SessionState.IDLE, SessionState.OFFLINE):
            self.dispatcher.set_lingering(False)
        elif before in (SessionState.IDLE, SessionState.OFFLINE):
            self.dispatcher.set_lingering(True)
        self._changed.notify_all()
        effects.append(partial(self._log.info, "%s -> %s", before.value, self._state.value))
        effects.extend(self._observers)

    def _emit(self, effects: Effects, name: str, payload: object) -> None:
        if self.dispatcher.put_state(name, payload):
            effects.append(self.dispatcher.start)

    def _emit_offline(self, effects: Effects, detail: str, code: int, reason: str) -> None:
        payload = Offline(self.session_id, code, reason)
        self._emit(effects, "offline", payload)
        self._emit(effects, f"offline.{detail}", payload)

    def _new_attempt(
        self, effects: Effects, kind: RunKind, first_wait: float = 0.0, rejected: str | None = None
    ) -> Attempt:
        assert self._endpoint is not None
        self._generation += 1
        attempt = Attempt(
            self.session_id, self._generation, kind, self._endpoint, self._provider, first_wait, rejected
        )
        attempt.target = self._target
        self._attempt = attempt
        effects.append(partial(self._start_connector, attempt))
        return attempt

    def _start_connector(self, attempt: Attempt) -> None:
        try:
            self.env.threads.spawn(Connector(self, attempt).run, f"llm-connector[{self.session_id}]")
        except RuntimeError as exc:
            error = ConnectError(self.session_id, f"cannot start a connector thread: {exc}")
            error.__cause__ = exc
            self.give_up(attempt, error)

    def _end_with(self, error: Exception) -> None:
        """Tell every waiter why the session is not going to be online."""
        self._endings += 1
        self._ending = error

    def _cancel_attempt(self, effects: Effects, error: Exception) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return
        attempt.cancel()
        attempt.outcome.set_exception(error)
        if attempt.link is not None:
            self._links.discard(attempt.link)
            effects.append(attempt.link.abort)
            attempt.link = None

    # -- callers ------------------------------------------------------------------------------------------

    def connect(self, endpoint: Endpoint | None, provider: TokenProvider | None, timeout: float | None) -> None:
        """Return once the session is online; see `ConnectionPool.connect`."""
        self.refuse_own_connector("connect()")
        deadline = Deadline(timeout, self.env.clock)
        joined: list[bool] = []
        try:
            while True:
                attempt = self._decide(self._join, endpoint, provider, joined)
                if isinstance(attempt, Attempt):
                    self._await_outcome(attempt, deadline, joined)
                elif not attempt:
                    self._await_idle(deadline)
                    continue
                return
        finally:
            if joined:
                self._decide(self._leave, ConnectCancelled(self.session_id, "its last caller was interrupted"))

    def _join(
        self,
        effects: Effects,
        endpoint: Endpoint | None,
        provider: TokenProvider | None,
        joined: list[bool] | None,
    ) -> Attempt | bool:
        """Return the run to wait for, True if the session is online, False if it must become idle first."""
        self.env.check_open()
        if endpoint is None:
            endpoint = self._endpoint
        if endpoint is None:
            raise ConfigurationError("url", f"session {self.session_id!r} never had one; give it one")
        if self._state is SessionState.DISCONNECTING:
            return False
        if self._state in (SessionState.IDLE, SessionState.OFFLINE):
            self._endpoint, self._provider = endpoint, provider
            self._retries = Retries(self.env.config)
            self._short_lives = 0
            self._new_attempt(effects, RunKind.FIRST)
            self._step(effects, Trigger.CONNECT)
        elif endpoint != self._endpoint:
            raise AlreadyConnected(self.session_id, str(self._endpoint))
        if self._state in ONLINE:
            return True
        assert self._attempt is not None
        if joined is None:
            self._attempt.held = True
        else:
            self._waiters += 1
            joined.append(True)
        return self._attempt

    def _await_outcome(self, attempt: Attempt, deadline: Deadline, joined: list[bool]) -> None:
        try:
            error = attempt.outcome.exception(deadline.left())
        except (TimeoutError, concurrent.futures.TimeoutError):  # the same class from 3.11 on
            pass
        else:
            if error is not None:
                raise fresh_copy(error) from error.__cause__
            return
        last = attempt.last_error
        said = f": {last.message if isinstance(last, ConnectError) else last}" if last is not None else ""
        timeout_error = ConnectTimeout(
            self.session_id, f"not online within {deadline.timeout} s{said}", attempt.number
        )
        timeout_error.__cause__ = last
        self._decide(self._leave, timeout_error)
        joined.clear()
        # In the instant between, the run may have settled after all.
        if attempt.outcome.done() and attempt.outcome.exception() is None:
            return
        raise fresh_copy(timeout_error) from last

    def _leave(self, effects: Effects, error: Exception) -> None:
        """A waiter goes; the last one ends a first run that nobody else keeps."""
        self._waiters -= 1
        attempt = self._attempt
        if (
            self._waiters == 0
            and self._state is SessionState.CONNECTING
            and attempt is not None
            and not attempt.held
        ):
            self._cancel_attempt(effects, error)
            self.last_error = error
            self._end_with(error)
            self._step(effects, Trigger.GAVE_UP)

    def _await_idle(self, deadline: Deadline) -> None:
        with self._lock:
            seen = self._disconnects
            if not self._changed.wait_for(
                lambda: self._state is not SessionState.DISCONNECTING or self._disconnects != seen,
                deadline.left(),
            ):
                raise ConnectTimeout(
                    self.session_id, f"still disconnecting after {deadline.timeout} s"
                ) from None

    def begin_connect(self, endpoint: Endpoint | None, provider: TokenProvider | None) -> bool:
        """Start what `connect` starts, without waiting and without a caller who could give up.

        Returns:
            False if a disconnect is still under way: try again when `observe` says that something changed.
        """
        return bool(self._decide(self._join, endpoint, provider, None))

    def wait_online(self, timeout: float | None) -> None:
        """Return once the session is, or was for an instant since the call, online."""
        self.refuse_own_connector("wait_online()")
        joined: list[bool] = []
        gave_up: Exception = ConnectCancelled(self.session_id, "its last caller was interrupted")
        try:
            with self._lock:
                self.env.check_open()
                onlines, endings = self._onlines, self._endings
                self._waiters += 1
                joined.append(True)
                arrived = self._changed.wait_for(
                    lambda: (
                        self._state in ONLINE
                        or self._state is SessionState.OFFLINE
                        or (self._onlines, self._endings) != (onlines, endings)
                    ),
                    timeout,
                )
                if self._state in ONLINE or self._onlines != onlines:
                    return
                if arrived:
                    error = self._ending or ConnectError(self.session_id, "it ended")
                    raise fresh_copy(error) from error.__cause__
                last = self._attempt.last_error if self._attempt is not None else self.last_error
            said = f": {last}" if last is not None else ""
            gave_up = WaitTimeout(self.session_id, f"not online within {timeout} s{said}")
            gave_up.__cause__ = last
            raise fresh_copy(gave_up) from last
        finally:
            if joined:
                self._decide(self._leave, gave_up)

    def refuse_own_connector(self, call: str) -> None:
        """Refuse a call that would wait for the thread it is made on.

        Raises:
            LocalProtocolError
        """
        if connector_of_this_thread() is self:
            raise LocalProtocolError(
                f"{call} on session {self.session_id!r} from its own endpoint or token provider would wait "
                "for itself"
            )

    # -- the connector's reports --------------------------------------------------------------------------

    def adopt(self, attempt: Attempt, link: Link) -> bool:
        """Take the link that a run is about to open; False if nobody wants it any more."""

        def decision(effects: Effects) -> bool:
            if attempt.cancelled:
                return False
            attempt.link = link
            attempt.link_ended = None
            attempt.news.clear()
            self._links.add(link)
            return True

        return self._decide(decision)

    def disown(self, attempt: Attempt, link: Link) -> None:
        """Forget a link that could not be opened."""

        def decision(effects: Effects) -> None:
            self._links.discard(link)
            if attempt.link is link:
                attempt.link = None

        self._decide(decision)

    def attempt_failed(self, attempt: Attempt, error: Exception) -> tuple[float, bool]:
        """Count a failed attempt; return the seconds to wait, and whether another one is allowed."""

        def decision(effects: Effects) -> tuple[float, bool]:
            if attempt.cancelled:
                return 0.0, False
            retries = self._retries.failures
            wait = self._retries.after_failure()
            attempt.last_error = self.last_error = error
            config = self.env.config
            limit = config.max_retries if self.was_online else config.initial_max_retries
            left = limit is None or self._retries.failures <= limit
            if retries > 0 and getattr(error, "code", None) != 1006:
                self._emit(
                    effects, "connection_failed", ConnectionFailed(self.session_id, error, retries)
                )
            effects.append(partial(self._log.warning, "attempt %d failed: %s", attempt.number, error))
            return wait, left

        return self._decide(decision)

    def give_up(self, attempt: Attempt, error: Exception) -> None:
        """End a run that is not going to succeed, and tell every waiter."""

        def decision(effects: Effects) -> None:
            if attempt.cancelled or attempt is not self._attempt:
                return
            self._attempt = None
            attempt.cancel()
            attempt.outcome.set_exception(error)
            self.last_error = error
            if attempt.kind is RunKind.SWITCH:
                self._step(effects, Trigger.SWITCH_FAILED)
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
            self._step(effects, Trigger.GAVE_UP)
            if attempt.kind is RunKind.RECONNECT:
                code, reason = getattr(error, "code", None) or 1006, getattr(error, "reason", "")
                self._emit(effects, "offline.permanent", Offline(self.session_id, code, reason))

        self._decide(decision)

    # -- the readers' reports -----------------------------------------------------------------------------

    def link_ready(self, link: Link) -> None:
        self._decide(self._link_ready, link)

    def _link_ready(self, effects: Effects, link: Link) -> None:
        attempt = self._attempt
        if attempt is None or attempt.link is not link:
            effects.append(link.abort)  # it became ready after the cancel: never published
            return
        old, self._active = self._active, link
        self._attempt = attempt.link = None
        assert attempt.target is not None
        self._token, self._target = attempt.token, attempt.target
        self._online_at = self.env.clock()
        self.was_online = True
        attempt.outcome.set_result(None)
        attempt.news.set()
        if attempt.kind is RunKind.SWITCH:
            self._step(effects, Trigger.SWITCHED)
            url = without_secrets(self._target.url)
            self._emit(
                effects,
                "event:mercury_shutdown_switchover_complete",
                SwitchoverComplete(self.session_id, url),
            )
            if old is not None:
                effects.append(partial(old.retire, self.env.config.retire_timeout))
            kept, self._kept_close = self._kept_close, None
            if kept is not None:
                self._retired_ended(effects, kept)
        else:
            self._onlines += 1
            self._step(effects, Trigger.OPENED)
            self._emit(effects, "online", Online(self.session_id))

    def link_received(self, link: Link, events: Sequence[Event]) -> bool:
        messages = [event for event in events if type(event) is dict]
        if len(messages) != len(events):
            return all([self._decide(self._received, link, event) for event in events])
        return self._decide(self._received, link, messages)

    def _received(self, effects: Effects, link: Link, event: Event | list[dict[str, Any]]) -> bool:
        if link not in self._links:
            return True
        if isinstance(event, (dict, list)):
            batch = event if isinstance(event, list) else [event]
            room, start = self.dispatcher.put_batch(batch, link.resume)
            if start:
                effects.append(self.dispatcher.start)
            return room
        if isinstance(event, LatencyMeasured):
            self.latency = event.seconds
            self._emit(effects, "ping-pong-latency", Latency(self.session_id, event.seconds))
            effects.append(partial(self._log.debug, "latency %.1f ms", event.seconds * 1000))
        elif isinstance(event, SequenceGap):
            gap = SequenceMismatch(self.session_id, event.actual, event.expected)
            self._emit(effects, "sequence-mismatch", gap)
            effects.append(
                partial(self._log.warning, "message %d came, %d was due", event.actual, event.expected)
            )
        elif isinstance(event, Dropped):
            effects.append(partial(self._log.warning, "dropped a message: %s", event.problem))
        elif isinstance(event, ShutdownAnnounced):
            self._shutdown(effects, link, event)
        return True

    def _shutdown(self, effects: Effects, link: Link, event: ShutdownAnnounced) -> None:
        if link is not self._active or self._state is not SessionState.ONLINE:
            return  # a second announcement, or one on a socket that is not in use
        self._step(effects, Trigger.SHUTDOWN)
        envelope = Envelope(self.session_id, event.raw)
        self._emit(
            effects, "event:mercury_shutdown_imminent", SwitchoverStarted(self.session_id, envelope)
        )
        self._new_attempt(effects, RunKind.SWITCH)

    def link_ended(self, link: Link, ended: Ended) -> None:
        self._decide(self._link_ended, link, ended)

    def _link_ended(self, effects: Effects, link: Link, ended: Ended) -> None:
        if link not in self._links:
            return
        self._links.discard(link)
        effects.append(
            partial(self._log.debug, "a socket ended: %d %s (%s)", ended.code, ended.reason, ended.cause.value)
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
        self.last_error = error
        if meaning in (CloseMeaning.TRANSIENT, CloseMeaning.UNAUTHORIZED):
            self._step(effects, Trigger.LOST)
            self._emit_offline(effects, "transient", code, reason)
            rejected = self._token if meaning is CloseMeaning.UNAUTHORIZED else None
            if switching and self._attempt is not None:
                self._attempt.kind = RunKind.RECONNECT
            else:
                self._reconnect(effects, rejected, error)
            return
        self._cancel_attempt(effects, error)
        self._end_with(error)
        self._step(effects, Trigger.ENDED)
        self._emit_offline(effects, "permanent" if meaning is CloseMeaning.PERMANENT else "replaced", code, reason)

    def _reconnect(self, effects: Effects, rejected: str | None, error: Exception) -> None:
        lived = self.env.clock() - self._online_at
        if lived >= self.env.config.backoff_max:
            self._retries.reset()
        attempt = self._new_attempt(effects, RunKind.RECONNECT, self._retries.after_loss(), rejected)
        attempt.last_error = error
        self._short_lives = self._short_lives + 1 if lived < _SHORT_LIFE else 0
        if self._short_lives >= _SHORT_LIVES:
            self._short_lives = 0
            attempt.stale = error

    # -- disconnecting ------------------------------------------------------------------------------------

    def begin_disconnect(self, code: int | None, reason: str | None, closing: bool = False) -> int | None:
        """Start to disconnect without waiting; return a ticket for `wait_closed`, None if there is nothing to.

        Args:
            code: Close code, checked.
            reason: Close reason, checked.
            closing: Whether the whole pool closes, which is what waiters are told then.
        """
        return self._decide(self._begin_disconnect, code, reason, closing)

    def _begin_disconnect(
        self, effects: Effects, code: int | None, reason: str | None, closing: bool
    ) -> int | None:
        if closing:  # also those who wait for somebody to connect
            self._end_with(PoolClosed())
            self._changed.notify_all()
        if self._state is SessionState.DISCONNECTING:
            return self._disconnects  # joins the one under way; the first code wins
        if self._state is SessionState.OFFLINE:
            self._step(effects, Trigger.DISCONNECT)
            self._cleared(effects)
            return None
        if self._state not in BUSY:
            return None
        error = PoolClosed() if closing else ConnectCancelled(self.session_id, "disconnect() came first")
        ticket = self._disconnects
        self._asked, self._farewell, self._kept_close = (code, reason), None, None
        self._cancel_attempt(effects, error)
        if not closing:
            self._end_with(error)
        self._step(effects, Trigger.DISCONNECT)
        for link in list(self._links):
            if link.ready:
                effects.append(partial(link.close, code, reason))
            else:
                self._links.discard(link)
                effects.append(link.abort)
        if not self._links:
            self._closed(effects)
        return ticket

    def _closed(self, effects: Effects) -> None:
        """The last socket is gone. Applied by whoever removed it."""
        code, reason = self._asked
        reported = self._farewell or (code or DEFAULT_CODE, DEFAULT_REASON if reason is None else reason)
        self._disconnects += 1
        self._active, self._farewell = None, None
        self._step(effects, Trigger.CLOSED)
        self._cleared(effects)
        self._emit_offline(effects, "permanent", *reported)
        self._emit(effects, "disconnected", Disconnected(self.session_id))

    def _cleared(self, effects: Effects) -> None:
        self.was_online = False
        self._token, self._target = "", None
        effects.append(partial(self._gone, self.session_id))

    def wait_disconnected(self, ticket: int | None, timeout: float | None = None) -> bool:
        """Wait until the disconnect of that ticket is complete; say whether it is."""
        if ticket is None:
            return True
        with self._lock:
            return self._changed.wait_for(lambda: self._disconnects > ticket, timeout)

    def wait_state(self, wanted: Callable[[SessionState], bool], timeout: float | None) -> bool:
        """Wait until the state is a wanted one; say whether it is."""
        with self._lock:
            return self._changed.wait_for(lambda: wanted(self._state), timeout)

    # -- looking ------------------------------------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        return self._state

    @property
    def active(self) -> Link | None:
        """The socket in use, or None."""
        return self._active

    @property
    def url(self) -> str | None:
        target = self._target
        return target.url if target is not None else None

    def observe(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Have `notify` called after every change of state, on whatever thread made it, without a lock.

        It must not block. Returns a function that ends it.
        """
        with self._lock:
            self._observers = (*self._observers, notify)

        def forget() -> None:
            with self._lock:
                self._observers = tuple(one for one in self._observers if one is not notify)

        return forget
