"""The facts of one session, and the steps by which they change.

Every decision is a method that runs under the session's lock, changes the state by a step of the table in
`protocol.state`, and collects what is to be done outside the lock as a list of effects. A session is one
object in three layers: these facts and steps; on them what connectors and readers report (`reports`); on
those what callers ask (`machine`).

`_links` holds the sockets that somebody must still hear the end of: the active one, the one being made, and
replaced ones. CLOSED is applied by whoever removes the last of them.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .._logging import Repeats, SessionLogger, get_logger, one_line
from .._sync import SESSION, LateCondition, make_lock
from ..connection.transport import Link, Traffic
from ..errors import ConnectCancelled, PoolClosed, SessionError
from ..protocol.closing import DEFAULT_CODE, DEFAULT_REASON
from ..protocol.events import Disconnected, Offline
from ..protocol.mercury import Ended
from ..protocol.state import SessionState, Trigger, next_state
from .attempt import Attempt
from .delivery import Delivery
from .dispatch import Dispatcher
from .listeners import ListenerTable
from .retry import Retries
from .served import read_by_this_thread, serve, served_by_this_thread
from .sources import Endpoint, Target, TokenProvider
from .stats import SessionStats, Tally

if TYPE_CHECKING:
    from .environment import Environment

__all__ = ["Effects", "SessionCore", "Standing", "as_text", "said"]

Effects = list[Callable[[], object]]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a session stands, all of one moment.

    Attributes:
        state: Its state.
        endpoint: What it was connected with last, also after a disconnect; None before the first connect.
        target: Where the active socket is connected to; of the last one while there is none, None before the
            first and after a disconnect.
        link: The active socket, or None.
        online_at: When that one, or the last one, became ready; by the pool's clock.
    """

    state: SessionState
    endpoint: Endpoint | None
    target: Target | None
    link: Link | None
    online_at: float


class SessionCore:
    """One session's state, shared by all threads. `Session` is its public face.

    Args:
        session_id: Its key in the pool.
        env: What all sessions of the pool share.
        gone: Called without a lock after an explicit disconnect, with the session's id.
    """

    # Of so many attributes a plain instance would have a dict of its own, 1.5 KiB instead of 0.3.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "_active",
        "_asked",
        "_attempt",
        "_brought_by",
        "_changed",
        "_count",
        "_delivery",
        "_disconnects",
        "_ending",
        "_endings",
        "_endpoint",
        "_farewell",
        "_forgotten",
        "_generation",
        "_gone",
        "_kept_close",
        "_links",
        "_lock",
        "_log",
        "_observers",
        "_online_at",
        "_onlines",
        "_opened",
        "_past",
        "_provider",
        "_repeats",
        "_rests",
        "_retries",
        "_short_lives",
        "_since",
        "_state",
        "_target",
        "_token",
        "_waiters",
        "dispatcher",
        "env",
        "last_error",
        "latency",
        "listeners",
        "session_id",
        "was_online",
    )

    def __init__(
        self, session_id: str, env: Environment, gone: Callable[[str], None] = lambda session_id: None
    ) -> None:
        self.session_id: str = session_id
        self.env: Environment = env
        self._gone = gone
        self._log = SessionLogger(get_logger("pool"), {"session_id": session_id})
        self.listeners: ListenerTable = ListenerTable()
        # Guards everything below. Rank 20: no I/O, callback, log call or thread start happens under it.
        self._lock = make_lock("session", SESSION)
        self._delivery = Delivery(session_id, self._lock, self.listeners, env)
        self.dispatcher: Dispatcher = self._delivery.dispatcher
        self._changed = LateCondition(self._lock)
        self._state = SessionState.IDLE
        self._attempt: Attempt | None = None  # the live run
        self._active: Link | None = None
        self._links: dict[Link, int] = {}  # and their numbers: each is larger than those before
        self._opened = 0  # the largest number
        self._generation = 0
        self._endpoint: Endpoint | None = None
        self._provider: TokenProvider | None = None
        self._token = ""  # what the active link was authorized with
        self._target: Target | None = None  # where it is connected to
        self._retries = Retries(env.config)
        self._online_at = 0.0
        self._short_lives = 0
        self._kept_close: Ended | None = None  # the old socket's 4001, read before the switchover settled
        # Since a switchover began: the number of the socket that brought an envelope's id first, and of the
        # newest socket that there was then, for later ones cannot bring it again. Else None.
        self._brought_by: dict[str | int, tuple[int, int]] | None = None
        self._asked: tuple[int | None, str | None] = (None, None)
        self._farewell: tuple[int, str] | None = None  # how the active link ended while disconnecting
        # What waiters compare: they only ever grow.
        self._onlines = self._endings = self._disconnects = 0
        self._ending: Exception | None = None  # why the last of them came
        self._rests = 0  # times that nothing of the session was left open
        self._waiters = 0
        self._repeats = Repeats(env.clock)
        self._count = Tally()
        self._past = Traffic()  # of links that are none of the session's any more
        self._since = time.time()  # the state, by the wall clock
        self._forgotten = False  # the pool made the id up, and nobody can use it any more
        self._observers: tuple[Callable[[], None], ...] = ()
        self.was_online: bool = False
        self.last_error: Exception | None = None
        self.latency: float | None = None

    def _decide(self, decision: Callable[..., T], *arguments: Any) -> T:
        """Run a decision under the lock, then what it asks for, also when Ctrl-C arrives in between."""
        effects: Effects = []
        try:
            with self._lock:
                return decision(effects, *arguments)
        finally:
            if effects:
                _act(effects)

    def _report(self, decision: Callable[..., T], *arguments: Any) -> T:
        """The same on a reader's thread, where a log handler or an observer must not wait for the session."""
        before = serve(self)
        try:
            return self._decide(decision, *arguments)
        finally:
            serve(before)

    # -- steps: the lock is held --------------------------------------------------------------------------

    def _warn(self, effects: Effects, kind: str, text: str, *args: object) -> None:
        """Log what may come again and again."""
        effects.append(self._log.thinned(self._repeats, kind, logging.WARNING, text, *args))

    def _step(self, effects: Effects, trigger: Trigger, why: object = None) -> None:
        before, self._state = self._state, next_state(self._state, trigger)
        self._since = time.time()
        if self._state in (SessionState.IDLE, SessionState.OFFLINE):
            self.dispatcher.set_lingering(False)
            self._rests += 1
            ours = self._state is SessionState.IDLE
            self._delivery.rest(self._ended_by_us() if ours else self._why_ended(), ours)
        elif before in (SessionState.IDLE, SessionState.OFFLINE):
            self.dispatcher.set_lingering(True)
            self._delivery.revive()
        self._changed.notify_all()
        text, values = "%s -> %s", list[object]([before.value, self._state.value])
        if why is not None:  # becomes text when it is logged: an error may be of an endpoint's own class
            text, values = "%s -> %s: %s", [*values, why]
        effects.append(partial(self._log.info, text, *values, extra={"state": self._state.value}))
        effects.extend(self._observers)

    def _ended_by_us(self) -> Exception:
        if self.env.closed:
            return PoolClosed()
        return ConnectCancelled(self.session_id, "the session was disconnected")

    def _emit(self, effects: Effects, name: str, payload: object) -> None:
        if self.dispatcher.put_state(name, payload):
            effects.append(self._start_delivery)

    def _start_delivery(self) -> None:
        """See to it that what is queued gets delivered; without a lock."""
        link, attempt = read_by_this_thread(), self._attempt
        # Until its socket is ready, a reader is its run's connector too: a callback would hold that up.
        opening = attempt is not None and attempt.link is link
        if link is None or opening or self.dispatcher.stays or served_by_this_thread() is not self:
            self.dispatcher.start()
        else:
            link.lend()

    def _emit_offline(self, effects: Effects, detail: str, code: int, reason: str) -> None:
        payload = Offline(self.session_id, code, reason)
        self._emit(effects, "offline", payload)
        self._emit(effects, f"offline.{detail}", payload)

    def _end_with(self, error: Exception) -> None:
        """Tell every waiter why the session is not going to be online."""
        self._endings += 1
        self._ending = error

    def _why_ended(self) -> Exception:
        return self._ending or ConnectCancelled(self.session_id, "it has ended")

    def _run_over(self) -> Attempt | None:
        """There is no live run any more: it is through, or cancelled. Return what it was."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            self._count.attempts += attempt.number
        return attempt

    def _cancel_attempt(self, effects: Effects, error: Exception) -> None:
        attempt = self._run_over()
        if attempt is None:
            return
        attempt.cancel()
        attempt.settle(error)
        if attempt.started and not attempt.over:
            self.env.abandon(attempt)
        if attempt.link is not None:
            self._let_go(attempt.link)
            effects.append(attempt.link.abort)
            attempt.link = None

    def _drop_links(self, effects: Effects) -> None:
        """Let go of replaced sockets that the server has not closed yet: OFFLINE has none."""
        for link in list(self._links):
            self._let_go(link)
            effects.append(link.abort)

    def _let_go(self, link: Link) -> None:
        """Take a link out; what it reports from now on changes nothing."""
        if link in self._links:
            del self._links[link]
            self._past += link.traffic

    def _closed(self, effects: Effects) -> None:
        """The last socket is gone. Applied by whoever removed it."""
        code, reason = self._asked
        reported = self._farewell or (code or DEFAULT_CODE, DEFAULT_REASON if reason is None else reason)
        self._disconnects += 1
        self._active, self._farewell = None, None
        self._step(effects, Trigger.CLOSED, as_text(*reported))
        self._cleared(effects)
        self._emit_offline(effects, "permanent", *reported)
        self._emit(effects, "disconnected", Disconnected(self.session_id))

    def _cleared(self, effects: Effects) -> None:
        self.was_online = False
        self._token, self._target, self.latency = "", None, None
        effects.append(partial(self._gone, self.session_id))

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

    def standing(self) -> Standing:
        """Return where the session stands."""
        with self._lock:
            return Standing(self._state, self._endpoint, self._target, self._active, self._online_at)

    def stats(self) -> SessionStats:
        """Return the session's numbers, all of one moment but for what other threads count meanwhile."""
        with self._lock:
            delivery = self._delivery
            traffic = sum((link.traffic for link in self._links), self._past)
            counted = dataclasses.asdict(self._count) | dataclasses.asdict(traffic)
            if self._attempt is not None:
                counted["attempts"] += self._attempt.number
            return SessionStats(
                session_id=self.session_id,
                state=self._state,
                since=self._since,
                latency=self.latency,
                queue_depth=delivery.waiting,
                paused=delivery.held,
                abandoned_attempts=self.env.abandoned(self.session_id),
                dropped=delivery.dropped,
                **counted,
            )

    def observe(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Have `notify` called after every change of state, on whatever thread made it, without a lock.

        It must not block. Returns a function that ends it.
        """

        def forget() -> None:
            with self._lock:
                self._observers = tuple(one for one in self._observers if one is not notify)

        try:
            with self._lock:
                self._observers = (*self._observers, notify)
        except BaseException:  # Ctrl-C: nobody could end it any more
            forget()
            raise
        return forget


def said(error: Exception) -> object:
    """Return what logs show of an error: they say themselves which session it is about."""
    return getattr(error, "message", error) if isinstance(error, SessionError) else error


def as_text(code: int, reason: str) -> str:
    """Return a close code and reason as logs show them: in one line, whatever the server put into it."""
    return f"{code} {one_line(reason)}".rstrip()


def _act(effects: Iterable[Callable[[], object]]) -> None:
    """Do what was decided: all of it, also when Ctrl-C or a log handler's exception comes in between."""
    rest = iter(effects)
    try:
        for effect in rest:
            effect()
    except BaseException:
        _act(rest)
        raise
