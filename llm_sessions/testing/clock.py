"""`ManualClock`: time that passes when the test says so."""

from __future__ import annotations

import math
import threading
import time

__all__ = ["ManualClock"]


class ManualClock:
    """A clock to pass wherever `clock=` or `now=` takes a function without arguments: `clock()` is the time.

    It stands still between `advance` and `set`. It wakes nobody but those in `wait_until`: a thread that
    waits on a real lock or socket with a timeout looks at this clock when something else wakes it.

    Thread safety: every method may be called from any thread.

    Args:
        start: Monotonic seconds at the beginning.
        epoch: What `wall` returns at the beginning, in seconds since 1970.

    Raises:
        ValueError: If either is no finite number.
    """

    def __init__(self, start: float = 0.0, *, epoch: float = 1_700_000_000.0) -> None:
        self._changed = threading.Condition(threading.Lock())  # guards both; notified when the time changes
        self._now = _finite(start)
        self._wall_offset = _finite(epoch) - self._now

    def __call__(self) -> float:
        """Return the monotonic time in seconds."""
        with self._changed:
            return self._now

    def __repr__(self) -> str:
        return f"<ManualClock {self()}>"

    def wall(self) -> float:
        """Return the time of day in seconds since 1970, in place of `time.time`. It passes with the clock."""
        with self._changed:
            return self._now + self._wall_offset

    def set_wall(self, seconds: float) -> None:
        """Set the time of day, also backwards, as NTP or a user does. The monotonic time stays.

        Raises:
            ValueError: If it is no finite number.
        """
        with self._changed:
            self._wall_offset = _finite(seconds) - self._now

    def advance(self, seconds: float) -> float:
        """Let seconds pass; return the time now.

        Raises:
            ValueError: If they are negative or not finite.
        """
        with self._changed:
            return self._move(self._now + _finite(seconds))

    def set(self, seconds: float) -> float:
        """Set the monotonic time; return it.

        Raises:
            ValueError: If that is before the time now, or not finite.
        """
        with self._changed:
            return self._move(_finite(seconds))

    def wait_until(self, seconds: float, timeout: float = 10) -> None:
        """Wait until the monotonic time is at least `seconds`; for fakes that take their time.

        Raises:
            TimeoutError: If it was not within `timeout` real seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while self._now < seconds:
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    raise TimeoutError(f"the clock stood at {self._now}, not {seconds}, after {timeout} s")

    def _move(self, now: float) -> float:
        if now < self._now:
            raise ValueError(f"a monotonic clock does not go back from {self._now} to {now}")
        self._now = now
        self._changed.notify_all()
        return now


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise ValueError(f"not a time: {seconds!r}")
    return float(seconds)
