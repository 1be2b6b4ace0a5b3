"""Which session waits for the calling thread to go on, and which socket it reads.

A blocking call about that very session, made on its connector's thread (in an endpoint or a token provider)
or on its reader's (in a log handler), would wait for itself.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..connection.transport import Link

__all__ = ["read_by_this_thread", "reads", "serve", "served_by_this_thread"]

_served = threading.local()


def served_by_this_thread() -> object | None:
    """Return the session that waits for the calling thread to go on, or None."""
    return getattr(_served, "session", None)


def serve(session: object | None) -> object | None:
    """Say that the calling thread is a session's connector, or reports to it; return whose it was before."""
    before, _served.session = served_by_this_thread(), session
    return before


def read_by_this_thread() -> Link | None:
    """Return the socket that the calling thread reads and may be lent from, or None."""
    return getattr(_served, "link", None)


def reads(link: Link | None) -> None:
    """Say that the calling thread reads a socket, and can be lent; or that it does so no more."""
    _served.link = link
