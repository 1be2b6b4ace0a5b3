"""The sessions of a pool that one owner's endpoints keep busy. Internal: for the layers above.

A pool may be shared: by several clients, and by a program that connects sessions to plain URLs beside them.
An owner knows its sessions by their endpoints, and touches no others. Nothing is kept here: what a session is
busy with is decided under the session's own lock, and asked of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .._sync import Deadline
from ..errors import ConnectTimeout, NotOnline
from ..protocol.closing import check_close
from ..protocol.state import ONLINE, SessionState
from .config import PoolConfig
from .core import Standing
from .listeners import Callback, ListenerTable
from .listening import SessionId
from .machine import SessionMachine
from .pool import ConnectionPool
from .served import served_by_this_thread
from .session import Session, encode, transmit
from .sources import Endpoint, Target, TokenProvider

__all__ = ["OwnedSessions"]


class OwnedSessions:
    """What an owner sees of a pool. Safe from any thread.

    Args:
        pool: Where the sessions are.
        is_ours: Says whether an endpoint is the owner's. Called without a lock.
    """

    def __init__(self, pool: ConnectionPool, is_ours: Callable[[Endpoint], bool]) -> None:
        self._pool, self._is_ours = pool, is_ours

    @property
    def config(self) -> PoolConfig:
        """The pool's."""
        return self._pool._env.config

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that the pool belongs to."""
        return self._pool._env.forked

    def check_open(self) -> None:
        """Refuse to go on with a closed pool, or another process's.

        Raises:
            PoolClosed
        """
        self._pool._env.check_open()

    def standing(self, session_id: str) -> Standing | None:
        """Return where a session stands; None if it is at rest after a disconnect, or not the owner's."""
        found = self._pool._find(session_id)
        return self._ours(found[1]) if found is not None else None

    def standings(self) -> dict[str, Standing]:
        """Return where each of the owner's sessions stands, by id."""
        self.check_open()
        found = {machine.session_id: self._ours(machine) for machine in self._pool._machines()}
        return {name: standing for name, standing in found.items() if standing is not None}

    def is_online(self, session_id: str) -> bool:
        """Say whether a session is the owner's and online at this moment."""
        standing = self.standing(session_id)
        return standing is not None and standing.state in ONLINE

    def is_taken(self, session_id: str) -> bool:
        """Say whether a session is busy with an endpoint that is not the owner's, or ended with one."""
        found = self._pool._find(session_id)
        standing = found[1].standing() if found is not None else None
        if standing is None or standing.state is SessionState.IDLE or standing.endpoint is None:
            return False
        return not self._is_ours(standing.endpoint)

    def refuse_own_thread(self, session_id: str, call: str) -> None:
        """Refuse a call that would wait for the thread it is made on.

        Raises:
            LocalProtocolError
        """
        found = self._pool._find(session_id)
        if found is not None:
            found[1].refuse_own_thread(call)

    def connect(
        self, session_id: str, endpoint: Endpoint, provider: TokenProvider, deadline: Deadline
    ) -> Session:
        """Bring a session online and return it; see `ConnectionPool.connect`, which raises the same."""
        session, machine = self._pool._get(session_id)
        machine.connect(endpoint, provider, deadline)
        return session

    def make_way(
        self, session_id: str, endpoint: Endpoint, deadline: Deadline, close: tuple[int, str]
    ) -> None:
        """Disconnect a session that is busy with another one of the owner's endpoints.

        Args:
            session_id: Which.
            endpoint: What it may be busy with.
            deadline: Of the caller who wants to connect it.
            close: Code and reason.

        Raises:
            ConnectTimeout: If it still disconnects when the time is up.
            LocalProtocolError, PoolClosed: See `disconnect`.
        """
        code, reason = close
        if not self.disconnect(session_id, code=code, reason=reason, spare=endpoint, deadline=deadline):
            what = f"not online within {deadline.timeout} s: what was there still disconnects"
            raise ConnectTimeout(session_id, what)

    def disconnect(
        self,
        session_id: str | None = None,
        *,
        code: int | None = None,
        reason: str | None = None,
        spare: Endpoint | None = None,
        deadline: Deadline | None = None,
    ) -> bool:
        """Disconnect one of the owner's sessions, or all; return when their sockets are gone.

        Args:
            session_id: Which; None for all. One that is not the owner's is left alone.
            code: See `ConnectionPool.disconnect`.
            reason: See `ConnectionPool.disconnect`.
            spare: Leave sessions alone that are busy with an equal endpoint.
            deadline: When to stop waiting; None for no limit.

        Returns:
            Whether they are gone.

        Raises:
            ConfigurationError: If code or reason cannot be sent.
            LocalProtocolError: If it would wait for itself; nothing was changed.
            PoolClosed
        """
        check_close(code, reason)
        self.check_open()
        machines = [machine for machine in self._pool._machines() if session_id in (None, machine.session_id)]
        for machine in machines:
            if self._ours(machine) is not None:
                machine.refuse_own_thread("disconnect()")
        tickets = [(machine, self._begin(machine, code, reason, spare)) for machine in machines]
        left = deadline.left if deadline is not None else lambda: None
        waited = [machine.wait_disconnected(ticket, left()) for machine, ticket in tickets]  # each of them
        return all(waited)

    def serves_this_thread(self, session_id: str) -> bool:
        """Say whether a session waits for the calling thread to go on: it is its connector or its reader."""
        if served_by_this_thread() is None or self._pool._env.closed:
            return False
        found = self._pool._find(session_id)
        return found is not None and served_by_this_thread() is found[1]

    def begin_disconnect(self, session_id: str, code: int, reason: str) -> None:
        """Start what `disconnect` starts for one session, without waiting.

        A session that has ended for good becomes idle; one that is not the owner's is left alone.

        Raises:
            PoolClosed
        """
        found = self._pool._find(session_id)
        if found is not None:
            self._begin(found[1], code, reason, None)

    def observe(self, session_id: str, notify: Callable[[], None]) -> Callable[[], None]:
        """Have `notify` called after every change of a session's state; see `SessionCore.observe`."""
        return self._pool._get(session_id)[1].observe(notify)

    def listeners(self, session_id: str) -> ListenerTable:
        """Return a session's listeners, which can be taken back also when the pool is closed."""
        return self._pool._get(session_id)[1].listeners

    def onlines(self, session_id: str) -> int:
        """Return how many times a session has come online; it only grows."""
        found = self._pool._find(session_id)
        return found[1]._onlines if found is not None else 0

    def leave(self) -> None:
        """Disconnect all of the owner's sessions, which makes no new ones.

        On the connector's own thread of one of them it does not wait for that.
        """
        if self.forked or self._pool._env.closed:
            return
        machines = self._pool._machines()
        tickets = [(machine, self._begin(machine, None, None, None)) for machine in machines]
        for machine, ticket in tickets:
            if served_by_this_thread() is not machine:
                machine.wait_disconnected(ticket)

    def listen(self, event: str, callback: Callback, session_id: SessionId, *, once: bool) -> None:
        """Register a callback of the owner's; see `ConnectionPool.on`, which raises the same."""
        name, table = self._pool._listeners(event, session_id, make=True)
        assert table is not None
        table.add(name, callback, once=once, owner=self)

    def unlisten(self, event: str, callback: Callback | None, session_id: SessionId) -> None:
        """Take a callback of the owner's back, or with None all of an event; others' stay."""
        name, table = self._pool._listeners(event, session_id, make=False)
        if table is not None:
            table.remove(name, callback, self)

    def unlisten_all(self) -> None:
        """Take all callbacks of the owner's back, also from a pool that is closed."""
        tables: list[ListenerTable] = [self._pool._env.all_listeners]
        tables += [machine.listeners for machine in self._pool._machines()]
        for table in tables:
            table.remove_owned(self)

    def send(self, session_id: str, build: Callable[[Target], Mapping[str, Any] | None]) -> bool:
        """Send a message that is made for the socket it goes out on.

        Args:
            session_id: Whose.
            build: Returns the message for the target of the socket, None for none. What it raises comes out.

        Returns:
            Whether there was a message.

        Raises:
            NotOnline: If the session is not online, not the owner's, or lost the socket meanwhile.
            ConfigurationError, ConnectionLost, PoolClosed: See `Session.send`.
        """
        found = self._pool._find(session_id)
        standing = self._ours(found[1]) if found is not None else None
        if found is None or standing is None or standing.state not in ONLINE or standing.target is None:
            state = standing.state if standing is not None else SessionState.IDLE
            raise NotOnline(session_id, f"it is {state.value}")
        message = build(standing.target)
        if message is None:
            return False
        transmit(found[1], standing, encode(message))
        return True

    def refuse_pulling(self, session_id: str, call: str) -> None:
        """Refuse to wait for a message on a thread that has to deliver it.

        Raises:
            LocalProtocolError
        """
        found = self._pool._find(session_id)
        if found is not None:
            found[1].refuse_pulling(call)

    def _ours(self, machine: SessionMachine) -> Standing | None:
        standing = machine.standing()
        if standing.state is SessionState.IDLE or standing.endpoint is None:
            return None
        return standing if self._is_ours(standing.endpoint) else None

    def _begin(
        self, machine: SessionMachine, code: int | None, reason: str | None, spare: Endpoint | None
    ) -> int | None:
        """Start to disconnect a session if it is ours; return what `wait_disconnected` takes."""
        while True:
            standing = self._ours(machine)
            if standing is None or standing.endpoint is None or standing.endpoint == spare:
                return None
            same, ticket = machine.begin_disconnect_from(standing.endpoint, code, reason)
            if same:
                return ticket
