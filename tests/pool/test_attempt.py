"""An attempt run: one outcome, and a wait that a cancel ends."""

from __future__ import annotations

import pytest

from llm_sessions import ConnectError
from llm_sessions.pool.attempt import Attempt, RunKind
from llm_sessions.pool.sources import StaticToken, UrlEndpoint
from llm_sessions.protocol.mercury import EndCause, Ended
from tests.support import LONG, SHORT, Background, FakeLink


def make_attempt() -> Attempt:
    return Attempt("s", 1, RunKind.FIRST, UrlEndpoint("wss://h"), StaticToken("t"))


def test_a_run_begins_with_nothing_tried_and_nobody_gone() -> None:
    attempt = make_attempt()
    assert (attempt.number, attempt.failures, attempt.held, attempt.cancelled) == (0, 0, False, False)
    assert attempt.link is attempt.target is attempt.last_error is attempt.rejected is None
    assert not attempt.settled and attempt.error is None and not attempt.news.is_set()


def test_cancel_wakes_every_wait_of_the_connector() -> None:
    attempt = make_attempt()
    between = Background(lambda: attempt.wait_cancelled(LONG * 100))
    inside = Background(lambda: attempt.news.wait(LONG * 100))
    attempt.cancel()
    assert between.result() is True and inside.result() is True
    assert attempt.cancelled and attempt.wait_cancelled(LONG) is True


def test_the_outcome_wakes_all_who_wait_and_comes_once() -> None:
    attempt, error = make_attempt(), ConnectError("s", "no")
    assert attempt.wait_settled(0) is False and not attempt.settled
    calls = [Background(lambda limit=limit: attempt.wait_settled(limit)) for limit in (None, LONG)]
    attempt.settle(error)
    assert all(call.result() is True for call in calls)
    assert attempt.settled and attempt.error is error
    with pytest.raises(AssertionError):
        attempt.succeed()
    assert attempt.error is error


def test_a_success_lets_go_of_the_socket_and_is_news() -> None:
    attempt, link = make_attempt(), FakeLink(None, None, None, "s#1.1")  # type: ignore[arg-type]
    attempt.cancel()  # as if the attempt before had ended
    attempt.link_ended = Ended(1006, "", EndCause.LOST)
    attempt.opens(link)
    assert attempt.link is link and attempt.link_ended is None and not attempt.news.is_set()
    attempt.succeed()
    assert attempt.link is None and attempt.news.is_set() and attempt.settled and attempt.error is None


def test_t5_runs_that_are_over_share_nothing_that_an_interrupted_caller_could_leave_locked() -> None:
    one, other = make_attempt(), make_attempt()
    one.succeed()
    other.succeed()
    plain = (type(None), bool, int, float, str, RunKind)
    both = {name: (getattr(one, name), getattr(other, name)) for name in Attempt.__slots__}
    assert not [name for name, (a, b) in both.items() if a is b and not isinstance(a, plain)]


def test_a_wait_that_runs_out_says_that_nobody_cancelled() -> None:
    assert make_attempt().wait_cancelled(SHORT) is False
