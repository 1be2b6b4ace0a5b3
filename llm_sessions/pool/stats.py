"""What a session and a pool have done so far, in numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from ..protocol.state import ONLINE, SessionState

__all__ = ["Counts", "PoolStats", "SessionStats"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What has been counted since the session, or the pool, was made. None of these ever shrinks.

    Attributes:
        attempts: Attempts to connect, failed ones included.
        reconnects: Times that a session came back online after its connection was lost.
        switchovers: Times that a new socket took over before the server closed the old one.
        messages_in: Messages received, but for pongs, the server's shutdown announcement, and what is
            counted as unusable or repeated.
        messages_out: Messages sent by `Session.send`.
        bytes_in: Bytes of WebSocket frames read, before TLS.
        bytes_out: Bytes of WebSocket frames written, before TLS.
        acks: Messages acknowledged, pongs included; the last ones may not have been written yet.
        dropped: Messages that a full queue dropped, or that were kept for `receive` and not fetched before
            the session was connected anew; one that several queues dropped counts for each.
        unusable: Messages dropped because they were not JSON objects, or too large.
        repeated: Messages that came on both sockets of a switchover, and were delivered once.
        sequence_gaps: Times that a numbered message was not the one that had to follow.
    """

    attempts: int = 0
    reconnects: int = 0
    switchovers: int = 0
    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    acks: int = 0
    dropped: int = 0
    unusable: int = 0
    repeated: int = 0
    sequence_gaps: int = 0


COUNTED = tuple(field.name for field in dataclasses.fields(Counts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionStats(Counts):
    """One session at one moment, from `Session.stats`.

    Attributes:
        session_id: The session.
        state: Where it stands.
        since: When it came there, in seconds since the epoch by the wall clock.
        latency: Seconds from the newest answered ping to its pong; None if there was none since the last
            explicit disconnect.
        queue_depth: Messages that wait for its listeners, `receive` and `messages`, together.
        paused: Whether its socket is not read because a queue is full.
        abandoned_attempts: Cancelled attempts that still wait for user code, the resolver or a REST call.
    """

    session_id: str
    state: SessionState
    since: float
    latency: float | None
    queue_depth: int
    paused: bool
    abandoned_attempts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolStats(Counts):
    """A pool at one moment, from `ConnectionPool.stats`. Its counts include sessions that it has forgotten.

    Attributes:
        name: The pool's.
        sessions: Every session's, by id. A dict of its own, so that the whole can be copied and pickled.
        made_up: Those of their ids that the pool made up. It forgets these sessions once they are
            disconnected, and no others.
        online: How many of them are online.
        threads: The pool's threads that run.
        queue_depth: Messages that wait in all queues together.
        abandoned_attempts: As of a session, for all of them.
    """

    name: str
    sessions: Mapping[str, SessionStats]
    made_up: tuple[str, ...] = ()
    online: int
    threads: int
    queue_depth: int
    abandoned_attempts: int


def added(counts: Iterable[Counts]) -> Counts:
    """Return the sums."""
    found = list(counts)
    return Counts(**{name: sum(getattr(one, name) for one in found) for name in COUNTED})


def pool_stats(
    name: str,
    sessions: Iterable[SessionStats],
    forgotten: Counts,
    threads: int,
    abandoned: int,
    made_up: Collection[str] = (),
) -> PoolStats:
    """Put together what a pool says.

    Args:
        name: The pool's.
        sessions: Its sessions'.
        forgotten: What the sessions counted that it does not have any more.
        threads: How many run.
        abandoned: Abandoned attempts, also of sessions that it does not have any more.
        made_up: The ids that it made up.
    """
    by_id = {one.session_id: one for one in sessions}
    total = added([forgotten, *by_id.values()])
    return PoolStats(
        **{counted: getattr(total, counted) for counted in COUNTED},
        name=name,
        sessions=by_id,
        made_up=tuple(one for one in by_id if one in made_up),
        online=sum(one.state in ONLINE for one in by_id.values()),
        threads=threads,
        queue_depth=sum(one.queue_depth for one in by_id.values()),
        abandoned_attempts=abandoned,
    )


@dataclasses.dataclass(slots=True)
class Tally:
    """What one session counts itself, as `Counts` says; its lock guards it."""

    attempts: int = 0
    reconnects: int = 0
    switchovers: int = 0
    messages_in: int = 0
    messages_out: int = 0
    unusable: int = 0
    repeated: int = 0
    sequence_gaps: int = 0
