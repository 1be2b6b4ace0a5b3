"""What pools count, for Prometheus: `REGISTRY.register(PoolCollector(pool))`. Needs the extra `prometheus`.

Nothing runs between scrapes and nothing is done for a message: each scrape asks `ConnectionPool.stats`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

if importlib.util.find_spec("prometheus_client") is None:
    raise ModuleNotFoundError(
        "llm_sessions.prometheus needs more: pip install 'llm-sessions[prometheus]'", name="prometheus_client"
    )
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .errors import ConfigurationError, PoolClosed
from .pool.pool import ConnectionPool
from .pool.stats import COUNTED, PoolStats, SessionStats
from .protocol.state import SessionState
from .session_ids import check_session_id

__all__ = ["PoolCollector"]

_REST: Final = ""  # no session's id, and to Prometheus the same as no label
_LABELS: Final = ["pool", "session"]
# Per field of `Counts`: the metric's name and its help.
_COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "attempts": ("llm_sessions_connect_attempts", "Attempts to connect, failed ones included."),
    "reconnects": ("llm_sessions_reconnects", "Times that a session came back online after a loss."),
    "switchovers": ("llm_sessions_switchovers", "Times that a new socket took over from a leaving server's."),
    "messages_in": ("llm_sessions_messages_received", "Messages received."),
    "messages_out": ("llm_sessions_messages_sent", "Messages sent."),
    "bytes_in": ("llm_sessions_received_bytes", "Bytes of WebSocket frames read, before TLS."),
    "bytes_out": ("llm_sessions_sent_bytes", "Bytes of WebSocket frames written, before TLS."),
    "acks": ("llm_sessions_acks_sent", "Messages acknowledged, pongs included."),
    "dropped": ("llm_sessions_messages_dropped", "Messages that full queues dropped."),
    "unusable": ("llm_sessions_messages_unusable", "Messages that were no JSON objects, or too large."),
    "repeated": ("llm_sessions_messages_repeated", "Messages that came on both sockets of a switchover."),
    "sequence_gaps": ("llm_sessions_sequence_gaps", "Times that a message was not the one that was due."),
}


class PoolCollector:
    """The numbers of one or several pools as metrics, for the registry of a Prometheus client.

    Every counter has one series per session, and one with `session=""` for all other sessions of the pool
    together. Their sum is what the pool has counted, and none of them ever shrinks. Sessions whose ids the
    pool made up never have series of their own, so the number of series is bounded by the ids that the
    program chooses; `sessions` bounds it where these are many.

    A pool that was closed goes on being reported, as it was at its end, until it is removed. In a forked
    process its parent's pools are left out. Every method may be called from any thread.

    Args:
        *pools: The pools to begin with. Their names are the label `pool`.
        sessions: The ids of the sessions that have series of their own; empty for none. None for all whose
            ids the program chose.

    Raises:
        ConfigurationError: As `add` does, or if `sessions` is not a collection of session ids.
    """

    def __init__(self, *pools: ConnectionPool, sessions: Collection[str] | None = None) -> None:
        if isinstance(sessions, (str, bytes)):
            raise ConfigurationError(
                "sessions", f"must be a collection of ids, not {type(sessions).__name__}"
            )
        self._chosen = None if sessions is None else {check_session_id(one, "sessions") for one in sessions}
        # No lock guards it, for a fork could copy one that is held. Single operations on a dict whose keys
        # are compared by identity are atomic, and so is a list of them.
        self._pools: dict[ConnectionPool, None] = {}
        for pool in pools:
            self.add(pool)

    def add(self, pool: ConnectionPool) -> None:
        """Report a pool from the next scrape on; one that is reported already stays.

        It takes the place of one of its name that is closed, or another process's; its counters begin at 0
        again then, as they do when a program starts anew.

        Raises:
            ConfigurationError: If it is no pool, or another open one of its name is reported.
        """
        if not isinstance(pool, ConnectionPool):
            raise ConfigurationError("pool", f"must be a ConnectionPool, not {type(pool).__name__}")
        if pool in self._pools:
            return
        self._pools[pool] = None  # before the look at the others: of two threads, one at least sees the other
        for other in [one for one in list(self._pools) if one.name == pool.name and one is not pool]:
            if not (other._env.closed or other._env.forked):
                self.remove(pool)
                raise ConfigurationError("pool", f"another open pool is named {pool.name!r}")
            self.remove(other)

    def remove(self, pool: ConnectionPool) -> None:
        """Report a pool no more. One that is not reported is ignored."""
        self._pools.pop(pool, None)

    def describe(self) -> Iterator[Metric]:
        """Yield every metric without a sample: a registry wants to know the names."""
        yield from _Scrape().metrics()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, as the pools stand at this moment."""
        scrape = _Scrape()
        # By name: a second series of the same labels would spoil the whole scrape.
        for pool in {one.name: one for one in list(self._pools)}.values():
            try:
                stats = pool.stats()
            except PoolClosed:  # it is our parent's, and we are a fork
                continue
            chosen = stats.sessions.keys() if self._chosen is None else self._chosen
            scrape.add(stats, chosen - set(stats.made_up))
        yield from scrape.metrics()


class _Scrape:
    """The metrics of one scrape."""

    def __init__(self) -> None:
        self._counters = {
            field: CounterMetricFamily(name, text, labels=_LABELS)
            for field, (name, text) in _COUNTERS.items()
        }

        def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"llm_sessions_{name}", text, labels=labels or _LABELS)

        self._states = gauge("session_state", "How many sessions are in this state.", *_LABELS, "state")
        self._since = gauge("state_timestamp_seconds", "When the session came into its state, in Unix time.")
        self._latencies = gauge("latency_seconds", "Seconds from the newest answered ping to its pong.")
        self._waiting = gauge("queued_messages", "Messages that wait for listeners and callers.")
        self._paused = gauge("paused", "How many sessions are not read because a queue is full.")
        self._abandoned = gauge("abandoned_attempts", "Cancelled attempts that still run.", "pool")
        self._threads = gauge("threads", "The pool's threads that run.", "pool")

    def metrics(self) -> Iterator[Metric]:
        yield from self._counters.values()
        yield from (self._states, self._since, self._latencies, self._waiting, self._paused)
        yield from (self._abandoned, self._threads)

    def add(self, stats: PoolStats, chosen: AbstractSet[str]) -> None:
        """Add a pool's samples.

        Args:
            stats: The pool's.
            chosen: The sessions that have series of their own, if there are such.
        """
        own = [one for name, one in stats.sessions.items() if name in chosen]
        others = [one for name, one in stats.sessions.items() if name not in chosen]
        for field in COUNTED:
            family = self._counters[field]
            for one in own:
                family.add_metric([stats.name, one.session_id], getattr(one, field))
            # With what the forgotten sessions have counted, which only the pool's own sums have.
            rest = getattr(stats, field) - sum(getattr(one, field) for one in own)
            family.add_metric([stats.name, _REST], rest)
        for one in own:
            self._add_standing(stats.name, one.session_id, [one])
            self._since.add_metric([stats.name, one.session_id], one.since)
        self._add_standing(stats.name, _REST, others)
        self._abandoned.add_metric([stats.name], stats.abandoned_attempts)
        self._threads.add_metric([stats.name], stats.threads)

    def _add_standing(self, pool: str, label: str, sessions: list[SessionStats]) -> None:
        for state in SessionState:
            count = sum(one.state is state for one in sessions)
            self._states.add_metric([pool, label, state.value], count)
        latencies = [one.latency for one in sessions if one.latency is not None]
        if latencies:
            self._latencies.add_metric([pool, label], max(latencies))
        self._waiting.add_metric([pool, label], sum(one.queue_depth for one in sessions))
        self._paused.add_metric([pool, label], sum(one.paused for one in sessions))
