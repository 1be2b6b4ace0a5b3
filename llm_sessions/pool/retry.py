"""How long to wait between attempts. The only importer of backoff, and only of its generators.

Its decorators sleep where nobody can wake them; here the connector waits on an Event.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable, Iterator
from typing import Final

import backoff

from .config import PoolConfig

__all__ = ["Retries", "delays", "parse_retry_after"]

_FLOOR: Final = 0.1
"""Seconds. Full jitter may draw almost nothing; a retry after nothing is a hot loop."""


def delays(first: float, longest: float) -> Iterator[float]:
    """Return the full waits without end: `first`, doubled each time up to `longest`. In seconds."""
    steps: Iterator[float | None] = backoff.expo(base=2, factor=first, max_value=longest)
    next(steps)  # it yields None once before the first delay
    for step in steps:
        assert step is not None
        yield min(step, longest)


class Retries:
    """The waits and counts of one session, over its attempt runs. Guarded by the session's lock.

    Args:
        config: For the waits and whether they are jittered.
        jitter: Draws a wait from a full one; backoff's by default.
    """

    def __init__(self, config: PoolConfig, jitter: Callable[[float], float] = backoff.full_jitter) -> None:
        self._config = config
        self._jitter = jitter
        self.reset()

    def reset(self) -> None:
        """Start from the beginning: the session has been online for long enough."""
        self._steps: Iterator[float] | None = None  # made by the first failure
        self._lost_before = False
        self.failures: int = 0

    def after_failure(self) -> float:
        """Count a failed attempt and return the seconds to wait before the next."""
        self.failures += 1
        return self._next()

    def after_loss(self) -> float:
        """Return the seconds to wait before a reconnect's first attempt.

        Next to nothing when the session was well; the next of the growing waits when the last reconnect
        did not last, so that a server which accepts and closes makes no storm.
        """
        if self._lost_before:
            return self._next()
        self._lost_before = True
        return self._jitter(self._config.backoff_initial) if self._config.jitter else 0.0

    def before_switch(self) -> float:
        """Return the seconds to wait before a switchover's first attempt.

        Nothing, unless the last socket did not last either: servers that are being drained one after another
        may each announce their shutdown at once.
        """
        if self._lost_before:
            return self._next()
        self._lost_before = True
        return 0.0

    def _next(self) -> float:
        if self._steps is None:
            self._steps = delays(self._config.backoff_initial, self._config.backoff_max)
        step = next(self._steps)
        return max(self._jitter(step), min(_FLOOR, step)) if self._config.jitter else step


def parse_retry_after(value: str | None, *, now: float, longest: float) -> float | None:
    """Return the seconds that a `Retry-After` asks for (RFC 9110 10.2.3), None for nonsense.

    Args:
        value: Seconds or an HTTP date.
        now: The wall clock, seconds since the epoch.
        longest: The most that is honoured.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), longest)  # beyond a float it is infinite
    try:
        at = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, at - now), longest)
