"""An attempt run: one outcome, and a wait that a cancel ends."""

from __future__ import annotations

from llm_sessions.pool.attempt import Attempt, RunKind
from llm_sessions.pool.sources import StaticToken, UrlEndpoint
from tests.support import LONG, SHORT, Background


def make_attempt() -> Attempt:
    return Attempt("s", 1, RunKind.FIRST, UrlEndpoint("wss://h"), StaticToken("t"))


def test_a_run_begins_with_nothing_tried_and_nobody_gone() -> None:
    attempt = make_attempt()
    assert (attempt.number, attempt.failures, attempt.held, attempt.cancelled) == (0, 0, False, False)
    assert attempt.link is attempt.target is attempt.last_error is attempt.rejected is None
    assert not attempt.outcome.done() and not attempt.news.is_set()


def test_cancel_wakes_every_wait_of_the_connector() -> None:
    attempt = make_attempt()
    between = Background(lambda: attempt.wait_cancelled(LONG * 100))
    inside = Background(lambda: attempt.news.wait(LONG * 100))
    attempt.cancel()
    assert between.result() is True and inside.result() is True
    assert attempt.cancelled and attempt.wait_cancelled(LONG) is True


def test_a_wait_that_runs_out_says_that_nobody_cancelled() -> None:
    assert make_attempt().wait_cancelled(SHORT) is False
