"""The pool: sessions by key, and what concerns all of them."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, TypeVar

from .._fork import OneProcess
from .._logging import get_logger
from .._sync import POOL, Deadline, make_lock
from ..errors import ConfigurationError
from ..protocol.closing import check_close
from ..protocol.events import parse_event_name
from ..protocol.state import BUSY
from ..session_ids import DEFAULT_SESSION_ID, check_session_id
from . import goodbye
from .config import PoolConfig
from .environment import Environment
from .listeners import Callback, ListenerTable
from .listening import ALL_SESSIONS, PoolEvents, SessionId
from .listening import DEFAULT_SESSION as _DEFAULT
from .machine import SessionMachine
from .session import DEFAULT_TIMEOUT, Session, Timeout, check_timeout
from .sources import Endpoint, TokenProvider, TokenSource, as_endpoint, as_provider
from .stats import Counts, PoolStats, added, pool_stats

__all__ = ["ALL_SESSIONS", "ConnectionPool"]

logger: Final = get_logger("pool")

F = TypeVar("F", bound=Callback)

_numbers = itertools.count(1)


class ConnectionPool(PoolEvents[SessionId], OneProcess):
    """Many data channel sessions at once, keyed by session id.

    Nothing starts before the first `connect`. Every method is safe to call from any thread and from any
    callback; not from signal handlers or finalizers (`__del__`, weakref callbacks), which may run while this
    thread holds a lock (set an Event there).
    Use it as a context manager, or call `close`.

    Args:
        token: Access token of all sessions that are not given their own: a string, a callable that returns
            one, or a `TokenProvider`. None if every endpoint or `connect` brings one.
        config: Times and limits; None for the defaults.
        name: For `repr` and logs; None for `pool-<n>`.
        default_session_id: The session meant where none is named.

    Raises:
        ConfigurationError: If an argument cannot be used.
    """

    def __init__(
        self,
        token: TokenSource | None = None,
        *,
        config: PoolConfig | None = None,
        name: str | None = None,
        default_session_id: str = DEFAULT_SESSION_ID,
    ) -> None:
        if config is not None and not isinstance(config, PoolConfig):
            raise ConfigurationError("config", f"must be a PoolConfig, not {type(config).__name__}")
        if name is not None and not isinstance(name, str):
            raise ConfigurationError("name", f"must be a string or None, not {type(name).__name__}")
        provider = None if token is None else as_provider(token)
        self._default_id = check_session_id(default_session_id, "default_session_id")
        self.name: str = name if name is not None else f"pool-{next(_numbers)}"
        # Guards the dict and the closed flag. Rank 10: dict work only; no more is called under it than
        # `SessionMachine.forget` and `.stats`.
        self._lock = make_lock("pool", POOL)
        self._sessions: dict[str, tuple[Session, SessionMachine]] = {}
        self._made_up: set[str] = set()
        self._past = Counts()  # of sessions that were forgotten
        self._env = Environment(config or PoolConfig(), provider)
        goodbye.at_exit(self)

    # -- connecting ---------------------------------------------------------------------------------------

    def connect(
        self,
        url: str | Callable[[], str] | Endpoint | None = None,
        session_id: SessionId | None = _DEFAULT,
        *,
        token: TokenSource | None = None,
        timeout: Timeout = DEFAULT_TIMEOUT,
    ) -> Session:
        """Bring a session online and return it.

        Callers that ask for the same session share one attempt run and its outcome; one that is online
        already is returned at once. The run's first attempt starts at once, later ones after growing waits.
        It ends with the last caller that waits for it; a session that has been online reconnects by itself.

        Args:
            url: `wss://…`, a callable returning one for every attempt, or an `Endpoint`. None for the
                session's last.
            session_id: The session's key; None makes one up, and the pool forgets it once it is
                disconnected. By default the pool's default session.
            token: Access token of this session instead of the pool's; kept for later calls without a url.
                Counts only if this call starts the run.
            timeout: Seconds to wait; None for no limit; by default the pool's `wait_timeout`.

        Raises:
            ConfigurationError: If an argument cannot be used; nothing was started.
            ConnectTimeout: If the time ran out; its cause is the last attempt's error.
            ConnectError: If the session cannot come online (`NotAuthorized`, `Forbidden`, …).
            ConnectCancelled: If `disconnect` came first.
            AlreadyConnected: If the session is busy with another endpoint.
            LocalProtocolError: If called from the session's own endpoint or token provider.
            PoolClosed
        """
        endpoint, provider, seconds = self._check_connect(url, token, timeout)
        session, machine = self._get(
            str(uuid.uuid4()) if session_id is None else session_id, session_id is None
        )
        try:
            machine.connect(endpoint, provider, Deadline(seconds, self._env.clock))
        except BaseException:
            if session_id is None and machine.state not in BUSY:  # the caller never learns the id
                machine.begin_disconnect(None, None)
                self._forget(session.id)
            raise
        return session

    def _check_connect(
        self, url: Any, token: TokenSource | None, timeout: Timeout
    ) -> tuple[Endpoint | None, TokenProvider | None, float | None]:
        config = self._env.config
        endpoint = None
        if url is not None:
            endpoint = as_endpoint(
                url, allow_insecure=config.allow_insecure, allowed_hosts=config.allowed_hosts
            )
        provider = None if token is None else as_provider(token)
        if isinstance(url, str) and provider is None and self._env.provider is None:
            raise ConfigurationError("token", "neither the pool nor connect() was given one")
        return endpoint, provider, check_timeout(timeout, config.wait_timeout)

    def begin_connect(
        self,
        url: str | Callable[[], str] | Endpoint | None = None,
        session_id: SessionId = _DEFAULT,
        *,
        token: TokenSource | None = None,
    ) -> bool:
        """Start what `connect` starts without waiting. Internal.

        Returns:
            False if a disconnect is under way; `observe` says when to try again.
        """
        endpoint, provider, _ = self._check_connect(url, token, None)
        return self._get(session_id)[1].begin_connect(endpoint, provider)

    def begin_disconnect(
        self, session_id: SessionId = _DEFAULT, *, code: int | None = None, reason: str | None = None
    ) -> None:
        """Start what `disconnect` starts without waiting. Internal."""
        check_close(code, reason)
        found = self._find(session_id)
        if found is not None:
            found[1].begin_disconnect(code, reason)

    def observe(self, session: Session, notify: Callable[[], None]) -> Callable[[], None]:
        """Have `notify` called after every change of a session's state; it must not block. Internal.

        Returns:
            A function that ends it.
        """
        return self._get(session.id)[1].observe(notify)

    def wait_online(self, session_id: SessionId = _DEFAULT, timeout: Timeout = DEFAULT_TIMEOUT) -> Session:
        """Wait until a session is online; return it. See `Session.wait_online`."""
        return self._get(session_id)[0].wait_online(timeout)

    # -- disconnecting ------------------------------------------------------------------------------------

    def disconnect(
        self, session_id: SessionId = _DEFAULT, *, code: int | None = None, reason: str | None = None
    ) -> None:
        """Disconnect a session; return when its sockets are gone.

        Ends a connect in flight, a reconnect and a switchover as well; whoever waits for one gets
        `ConnectCancelled`. Takes at most `force_close_delay`. Joins a disconnect that is under way, whose
        code then counts. Does nothing to a session that is idle or unknown.

        Args:
            session_id: By default the pool's default session.
            code: 1000 or 3000...4999; None for 1000.
            reason: At most 123 bytes in UTF-8; None for `Done`.

        Raises:
            ConfigurationError: If code or reason cannot be sent; nothing was changed.
            LocalProtocolError: If called from the session's own endpoint or token provider.
            PoolClosed
        """
        check_close(code, reason)
        found = self._find(session_id)
        if found is not None:
            found[0].disconnect(code=code, reason=reason)

    def disconnect_all(self, *, code: int | None = None, reason: str | None = None) -> None:
        """Disconnect every session, all at the same time; return when all their sockets are gone.

        Args:
            code: See `disconnect`.
            reason: See `disconnect`.
        """
        check_close(code, reason)
        self._env.check_open()
        machines = self._machines()
        for machine in machines:
            machine.refuse_own_thread("disconnect_all()")
        tickets = [(machine, machine.begin_disconnect(code, reason)) for machine in machines]
        for machine, ticket in tickets:
            machine.wait_disconnected(ticket)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool for good: disconnect every session and wait for all threads.

        Later calls of other methods raise `PoolClosed`; further closes do nothing. Inside a callback it
        returns without waiting for callbacks. Threads that are still in user code, the resolver or a REST
        call at the end are named in the log and end by themselves.

        Args:
            timeout: Seconds to wait, for everything together.

        Raises:
            ConfigurationError: If the timeout is not a number of seconds.
        """
        deadline = Deadline(check_timeout(timeout, None))
        if self._env.forked:
            return
        with self._lock:
            self._env.closed = True
        machines = self._machines()
        tickets = [(machine, machine.begin_disconnect(None, None, closing=True)) for machine in machines]
        for machine, ticket in tickets:
            machine.wait_disconnected(ticket, deadline.left())
            machine.dispatcher.stop()
        self._join(deadline)

    def part(self) -> list[tuple[SessionMachine, int | None]]:
        """Start to close, at exit. Internal.

        Returns:
            The sessions that were busy, and the tickets of their disconnects.
        """
        if self._env.forked or self._env.closed:
            return []
        self._env.closed = True
        busy = [machine for machine in self._machines() if machine.state in BUSY]
        for machine in busy:
            machine.dispatcher.stop()
        return [(machine, machine.begin_disconnect(None, None, closing=True)) for machine in busy]

    def _join(self, deadline: Deadline) -> None:
        left = self._env.threads.join(deadline)
        if left:
            names = ", ".join(sorted(thread.name for thread in left))
            logger.warning("%s closed, but these threads still run: %s", self.name, names)

    def __enter__(self) -> ConnectionPool:
        self._env.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- sessions -----------------------------------------------------------------------------------------

    def _name(self, session_id: SessionId) -> str:
        if session_id is _DEFAULT:
            return self._default_id
        return check_session_id(session_id)

    def _get(self, session_id: SessionId, made_up: bool = False) -> tuple[Session, SessionMachine]:
        """Return a session, made if need be."""
        name = self._name(session_id)
        self._env.check_open()
        with self._lock:
            self._env.check_open()  # close() sets the flag under this lock
            found = self._sessions.get(name)
            if found is None:
                machine = SessionMachine(name, self._env, self._forget)
                found = self._sessions[name] = (Session(machine), machine)
                if made_up:
                    self._made_up.add(name)
        return found

    def _find(self, session_id: SessionId) -> tuple[Session, SessionMachine] | None:
        name = self._name(session_id)
        self._env.check_open()
        with self._lock:
            return self._sessions.get(name)

    def _machines(self) -> list[SessionMachine]:
        with self._lock:
            return [machine for _, machine in self._sessions.values()]

    def _forget(self, session_id: str) -> None:
        """Drop a session whose id was made up, unless somebody connects it again at this moment."""
        with self._lock:
            if session_id in self._made_up and self._sessions[session_id][1].forget():
                self._made_up.discard(session_id)
                _, machine = self._sessions.pop(session_id)
                self._past = added([self._past, machine.stats()])

    def session(self, session_id: SessionId = _DEFAULT) -> Session:
        """Return a session, idle if it was never connected, so that listeners can precede the connect."""
        return self._get(session_id)[0]

    def sessions(self) -> dict[str, Session]:
        """Return the sessions by id, as they are now."""
        self._env.check_open()
        with self._lock:
            return {name: session for name, (session, _) in self._sessions.items()}

    def is_online(self, session_id: SessionId = _DEFAULT) -> bool:
        """Say whether a session is online at this moment; False if it is unknown."""
        found = self._find(session_id)
        return found is not None and found[0].online

    @property
    def any_online(self) -> bool:
        """Whether any session is online at this moment. (`is_online()` speaks of the default one.)"""
        return any(session.online for session in self.sessions().values())

    def stats(self) -> PoolStats:
        """Return what the pool and each of its sessions have done so far, and how they stand.

        Also of a pool that is closed.
        """
        self._env.check_process()
        with self._lock:
            # All of it: a session that is forgotten at this moment may still be counting, and what it says
            # here must not be more than what it leaves behind.
            sessions = [machine.stats() for _, machine in self._sessions.values()]
            forgotten, made_up = self._past, frozenset(self._made_up)
        threads, abandoned = len(self._env.threads.alive()), self._env.abandoned()
        return pool_stats(self.name, sessions, forgotten, threads, abandoned, made_up)

    # -- events -------------------------------------------------------------------------------------------

    def _register(
        self, event: str, callback: F | None, session_id: SessionId, once: bool
    ) -> F | Callable[[F], F]:
        name, table = self._listeners(event, session_id, make=True)
        assert table is not None

        def register(function: F) -> F:
            table.add(name, function, once=once)
            return function

        return register if callback is None else register(callback)

    def off(self, event: str, callback: Callback | None = None, *, session_id: SessionId = _DEFAULT) -> None:
        """Take a callback back, or with None all of this event. Unknown ones are ignored."""
        name, table = self._listeners(event, session_id, make=False)
        if table is not None:
            table.remove(name, callback)

    def _listeners(
        self, event: str, session_id: SessionId, *, make: bool
    ) -> tuple[str, ListenerTable | None]:
        """Return an event's plain name and where its listeners are.

        That is None if the session is unknown and not to be made.
        """
        name, suffix = parse_event_name(event)
        if suffix is not None and session_id is not _DEFAULT and session_id != suffix:
            raise ConfigurationError("session_id", f"{event!r} names session {suffix!r}, not {session_id!r}")
        whose = session_id if suffix is None else suffix
        if whose is ALL_SESSIONS:
            self._env.check_open()
            return name, self._env.all_listeners
        found = self._get(whose) if make else self._find(whose)
        return name, found[1].listeners if found is not None else None

    def __repr__(self) -> str:
        if self._env.forked:
            return f"<ConnectionPool {self.name!r} of another process>"
        what = ", ".join(f"{one.session_id}: {one.state.value}" for one in self._machines())
        return f"<ConnectionPool {self.name!r}{' closed' if self._env.closed else ''} [{what}]>"
