"""How long to wait between attempts: the growing waits, their jitter, and Retry-After."""

from __future__ import annotations

import itertools
import time
from email.utils import formatdate

import pytest

from llm_sessions import PoolConfig
from llm_sessions.pool.retry import Retries, delays, parse_retry_after

NO_JITTER = PoolConfig(jitter=False)


def test_i40_waits_double_up_to_the_longest() -> None:
    assert list(itertools.islice(delays(1, 32), 8)) == [1, 2, 4, 8, 16, 32, 32, 32]
    assert list(itertools.islice(delays(0.5, 3), 5)) == [0.5, 1, 2, 3, 3]
    assert list(itertools.islice(delays(2, 2), 3)) == [2, 2, 2]


def test_waits_never_overflow() -> None:
    steps = delays(1.5, 10.0)
    assert [next(steps) for _ in range(3000)][-1] == 10.0


def test_i40_failures_are_counted_and_reset() -> None:
    retries = Retries(NO_JITTER)
    assert [retries.after_failure() for _ in range(7)] == [1, 2, 4, 8, 16, 32, 32]
    assert retries.failures == 7
    retries.reset()
    assert (retries.failures, retries.after_failure()) == (0, 1)


def test_t15_only_the_first_loss_is_for_free() -> None:
    retries = Retries(NO_JITTER)
    assert [retries.after_loss() for _ in range(4)] == [0, 1, 2, 4]
    retries.reset()
    assert retries.after_loss() == 0


def test_losses_and_failures_share_the_growing_waits() -> None:
    retries = Retries(NO_JITTER)
    assert [retries.after_loss(), retries.after_failure(), retries.after_loss()] == [0, 1, 2]


def test_t15_jitter_draws_from_the_whole_wait_but_never_almost_nothing() -> None:
    asked: list[float] = []

    def draw(step: float) -> float:
        asked.append(step)
        return 0.0

    retries = Retries(PoolConfig(), draw)
    assert retries.after_loss() == 0.0  # spreads clients over the first wait; the very first may be nothing
    assert [retries.after_failure() for _ in range(3)] == [0.1, 0.1, 0.1]
    assert asked == [1, 1, 2, 4]
    assert Retries(PoolConfig(backoff_initial=0.01), lambda step: 0.0).after_failure() == 0.01


def test_t15_clients_come_back_spread_out() -> None:
    drawn = {Retries(PoolConfig()).after_loss() for _ in range(200)}
    assert len(drawn) > 190 and all(0 <= wait <= 1 for wait in drawn)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("1000", 320.0),
        ("9" * 5000, 320.0),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("²", None),
        ("Wed, 99 Foo 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 320.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now=time.time(), longest=320.0) == seconds


def test_retry_after_as_a_date_counts_from_now() -> None:
    assert parse_retry_after(formatdate(1030, usegmt=True), now=1000.0, longest=320.0) == 30.0
