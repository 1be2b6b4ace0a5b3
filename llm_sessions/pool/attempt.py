"""One attempt run: from the decision to connect until the session is online or nothing more is tried.

Many callers wait for its one outcome; one connector thread makes it: an attempt is their future. It is not
one of `concurrent.futures`, because Ctrl-C in a wait for one of those can leave its lock held, which would
strand all others, and because an idle session would be larger by a kilobyte. All but the latches is guarded
by the session's lock.
"""

from __future__ import annotations

import enum

from .._sync import Latch
from ..connection.transport import Link
from ..protocol.mercury import Ended
from .sources import Endpoint, Target, TokenProvider

__all__ = ["Attempt", "RunKind"]


class RunKind(enum.Enum):
    """Why there is a run."""

    FIRST = "first"  # connect() from IDLE or OFFLINE; ends with its last waiter
    RECONNECT = "reconnect"  # the active socket was lost; belongs to the session
    SWITCH = "switch"  # the server is shutting down; belongs to the session


class Attempt:
    """A run, shared by those who wait for it. What an endpoint sees of it is `sources.AttemptInfo`.

    Attributes:
        kind: Why there is one. A SWITCH becomes a RECONNECT when the old socket is lost meanwhile.
        number: Counts the attempts of this run, from 1.
        failures: How many of them have failed.
        error: Once the run is settled: what ended it, None if the session is online.
        started: Whether it has a connector.
        over: Whether that has ended.
        held: Whether the library itself keeps it going, so that no caller's leaving ends it.
        link: The socket that is being made, from before its first packet until it is ready or ended.
        target: Where that one goes; before the first attempt, where the lost socket went.
        token: What it authorizes with.
        rejected: A token that the server refused before this run; refreshed before the first attempt.
        stale: Why the endpoint is to be told that its last target was no good; None if it was fine.
        link_ended: How the link ended before it was ready.
        news: Set when the link became ready, ended, or the run was cancelled.
        last_error: The newest failed attempt's error.
    """

    __slots__ = (
        *("_cancelled", "_settled", "endpoint", "error", "failures", "first_wait", "generation", "held"),
        *("kind", "last_error", "link", "link_ended", "news", "number", "over", "provider", "rejected"),
        *("__weakref__", "session_id", "stale", "started", "target", "token"),
    )

    def __init__(
        self,
        session_id: str,
        generation: int,
        kind: RunKind,
        endpoint: Endpoint,
        provider: TokenProvider | None,
        first_wait: float = 0.0,
        rejected: str | None = None,
    ) -> None:
        self.session_id = session_id
        self.generation = generation
        self.kind = kind
        self.endpoint = endpoint
        self.provider = provider
        self.first_wait = first_wait
        self.rejected = rejected
        self.stale: Exception | None = None
        self.number = self.failures = 0
        self.held = self.started = self.over = False
        self.link: Link | None = None
        self.target: Target | None = None
        self.token = ""
        self.link_ended: Ended | None = None
        self.last_error: Exception | None = None
        self.news: Latch = Latch()
        self.error: Exception | None = None
        self._settled = Latch()
        self._cancelled = Latch()

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants this run any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Wake the connector, wherever it waits."""
        self._cancelled.set()
        self.news.set()

    def opens(self, link: Link) -> None:
        """Note the socket that is about to be opened. The session's lock is held."""
        self.link, self.link_ended = link, None
        self.news = Latch()

    def succeed(self) -> None:
        """Settle the run: the session is online. The session's lock is held."""
        self.settle(None)
        self.link = None
        self.news.set()

    @property
    def settled(self) -> bool:
        """Whether the run has its outcome."""
        return self._settled.is_set()

    def settle(self, error: Exception | None) -> None:
        """Tell all who wait for the outcome, once. The session's lock is held."""
        assert not self.settled
        self.error = error
        self._settled.set()

    def wait_settled(self, seconds: float | None) -> bool:
        """Wait for the outcome, None for no limit; say whether it is there."""
        return self._settled.wait(seconds)

    def wait_cancelled(self, seconds: float) -> bool:
        """Wait between attempts; return True at once when the run is cancelled."""
        return self._cancelled.wait(seconds)
