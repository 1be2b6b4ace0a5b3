"""What all sessions of one pool share, and no more: sessions know this, not the pool."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .. import _fork
from .._sync import LEAF, ThreadGroup, make_lock
from ..connection.connection import Connection
from ..connection.transport import Transport
from ..errors import PoolClosed
from .config import PoolConfig
from .listeners import ListenerTable
from .sources import TokenProvider
from .watch import Watch

if TYPE_CHECKING:
    from .attempt import Attempt

__all__ = ["Environment"]


class Environment:
    """Configuration, threads, clock, transport, and the listeners of all sessions.

    Args:
        config: The pool's.
        provider: Where tokens come from for sessions that are not given their own; None for nowhere.
        transport: Makes the sockets; None for real ones.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        config: PoolConfig,
        provider: TokenProvider | None = None,
        *,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.provider = provider
        self.clock = clock
        self.threads: ThreadGroup = ThreadGroup()
        self.transport: Transport = transport or partial(Connection, threads=self.threads, clock=clock)
        self.all_listeners: ListenerTable = ListenerTable()
        self.watch: Watch = Watch(self.threads)
        self.closed = False  # set once, by the pool's close, before it ends any session
        self._born_in = _fork.generation()
        self._lock = make_lock("environment", LEAF)  # guards what follows
        # Cancelled runs whose connector still runs, with the session's id.
        self._abandoned: dict[int, str] = {}

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that the pool belongs to."""
        return _fork.generation() != self._born_in

    def check_process(self) -> None:
        """Refuse to touch another process's pool, before any of its locks: their holders may be over there.

        Raises:
            PoolClosed
        """
        if self.forked:
            raise PoolClosed("the pool belongs to the process that this one was forked from; make a new one")

    def check_open(self) -> None:
        """Refuse to do anything for a pool that is closed or another process's.

        Raises:
            PoolClosed
        """
        self.check_process()
        if self.closed:
            raise PoolClosed

    def abandon(self, attempt: Attempt) -> None:
        """Count a cancelled run until its connector has ended."""
        with self._lock:
            self._abandoned[id(attempt)] = attempt.session_id

    def connector_ended(self, attempt: Attempt) -> None:
        """Count it no more."""
        with self._lock:
            self._abandoned.pop(id(attempt), None)

    def abandoned(self, session_id: str | None = None) -> int:
        """Return how many cancelled runs still wait for something, of one session or of all."""
        with self._lock:
            if session_id is None:
                return len(self._abandoned)
            return sum(one == session_id for one in self._abandoned.values())
