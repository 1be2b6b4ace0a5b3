"""What a pool that was not closed does at exit: it says goodbye to its servers."""

from __future__ import annotations

import atexit
import weakref
from typing import TYPE_CHECKING, Protocol

from .._sync import Deadline

if TYPE_CHECKING:
    from .machine import SessionMachine

__all__ = ["at_exit"]


class Pool(Protocol):
    """As much of a pool as this module needs."""

    def part(self) -> list[tuple[SessionMachine, int | None]]:
        """Start to close; return the sessions to wait for, each with the ticket of its disconnect."""


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def at_exit(pool: Pool) -> None:
    """Have a pool closed at exit, unless it is closed or collected by then."""
    _pools.add(pool)


def say_goodbye(limit: float = 1.0) -> None:
    """Queue the close frames of all pools first, then wait for all of them together.

    Starts no thread (Python 3.12 refuses to at this point); the readers, being daemons, still run.

    Args:
        limit: Seconds for all together.
    """
    leaving = [parting for pool in list(_pools) for parting in pool.part()]
    deadline = Deadline(limit)
    for machine, ticket in leaving:
        machine.wait_disconnected(ticket, deadline.left())


atexit.register(say_goodbye)
