"""ManualClock."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from llm_sessions._sync import Deadline
from llm_sessions.pool.config import PoolConfig
from llm_sessions.pool.environment import Environment
from llm_sessions.testing.clock import ManualClock
from tests.support import LONG, SHORT, Background, run_together


def test_it_stands_still_until_told() -> None:
    clock = ManualClock(5)
    assert clock() == clock() == 5.0
    assert clock.advance(1.5) == clock() == 6.5
    assert clock.advance(0) == 6.5
    assert clock.set(10) == clock() == 10.0
    assert repr(clock) == "<ManualClock 10.0>"
    assert ManualClock()() == 0.0


def test_it_never_goes_back() -> None:
    clock = ManualClock(5)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="does not go back"):
        clock.set(4.9)
    takers: list[Callable[[float], object]] = [clock.advance, clock.set, clock.set_wall, ManualClock]
    for value in (math.nan, math.inf):
        for taker in takers:
            with pytest.raises(ValueError, match="not a time"):
                taker(value)
    assert clock() == 5.0


def test_the_time_of_day_passes_with_it_and_may_be_set() -> None:
    clock = ManualClock(100, epoch=1000)
    clock.advance(5)
    assert clock.wall() == 1005.0
    clock.set_wall(400)
    assert (clock.wall(), clock()) == (400.0, 105.0)
    clock.set(107)
    assert clock.wall() == 402.0


def test_the_library_takes_it() -> None:
    clock = ManualClock()
    deadline = Deadline(30, clock)
    clock.advance(29)
    assert (deadline.left(), deadline.expired) == (1.0, False)
    clock.advance(1)
    assert (deadline.left(), deadline.expired) == (0.0, True)
    assert Environment(PoolConfig(), clock=clock).clock() == 30.0


def test_threads_advance_it_together() -> None:
    clock = ManualClock()

    def advance() -> None:
        for _ in range(500):
            clock.advance(1)

    assert run_together(8, advance) == [None] * 8
    assert clock() == 4000.0


def test_waiting_ends_at_the_time_and_not_before() -> None:
    clock = ManualClock()
    clock.wait_until(0)
    waiter = Background(lambda: clock.wait_until(10, LONG))
    clock.advance(9)
    with pytest.raises(TimeoutError, match=r"stood at 9\.0, not 10"):
        clock.wait_until(10, SHORT)
    assert not waiter.done
    clock.advance(1)
    waiter.result()
