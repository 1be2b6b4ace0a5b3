"""What watches a round can see something."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from llm_sessions import Envelope, LLMSessionsError, NotOnline
from llm_sessions.protocol.state import SessionState as S
from llm_sessions.protocol.state import Trigger as T
from tests.chaos.watch import (
    Baseline,
    Call,
    Calls,
    ErrorLog,
    Metronome,
    Step,
    Steps,
    grown,
    illegal_steps,
    slow_calls,
)
from tests.support import LONG, eventually, fake_pool

# Steps

CONNECT, OPENED = (
    Step(1, "a", S.IDLE, T.CONNECT, S.CONNECTING),
    Step(1, "a", S.CONNECTING, T.OPENED, S.ONLINE),
)
OTHER = Step(2, "b", S.IDLE, T.CONNECT, S.CONNECTING)


def test_steps_of_the_table_are_legal() -> None:
    lost = Step(1, "a", S.ONLINE, T.LOST, S.RECONNECTING)
    assert list(illegal_steps([CONNECT, OTHER, OPENED, lost])) == []


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([OPENED], "a: opened from connecting, and it was idle"),
        ([CONNECT, CONNECT], "a: connect from idle, and it was connecting"),
        (
            [CONNECT, OPENED._replace(after=S.OFFLINE)],
            "a: connecting -> offline by opened is not in the table",
        ),
        ([CONNECT._replace(trigger=T.LOST)], "a: idle -> connecting by lost is not in the table"),
        ([CONNECT._replace(after=S.IDLE, trigger=T.OPENED)], "a: idle -> idle by opened is not in the table"),
    ],
)
def test_other_steps_are_found(steps: list[Step], complaint: str) -> None:
    assert list(illegal_steps(steps)) == [complaint]


def test_every_step_of_every_session_is_written_down() -> None:
    watched = Steps()
    pool, _ = fake_pool()
    with pool, watched.watched():
        session = pool.connect("ws://localhost/x", "a")
        pool.connect("ws://localhost/x", "b")
        pool.disconnect("a")
        steps = [(step.name, step.trigger, step.after) for step in watched.taken if step.name == "a"]
    assert steps == [
        ("a", T.CONNECT, S.CONNECTING),
        ("a", T.OPENED, S.ONLINE),
        ("a", T.DISCONNECT, S.DISCONNECTING),
        ("a", T.CLOSED, S.IDLE),
    ]
    assert watched.onlines(session._machine) == 1
    assert list(illegal_steps(watched.taken)) == []


# Calls


def test_a_slow_call_is_found_and_one_that_the_machine_held_up_is_not() -> None:
    assert list(slow_calls([Call("connect", 1.4, 0.5), Call("send", 2.4, 0.5, still=1.0)])) == []
    assert list(slow_calls([Call("connect", 1.6, 0.5)])) == ["connect took 1.60 s with a timeout of 0.50 s"]
    [complaint] = slow_calls([Call("send", 2.6, 0.5, still=1.0)])
    assert complaint.endswith("of which the process stood still for 1.00 s")


def test_a_call_that_fails_in_a_way_of_its_own_is_found() -> None:
    def fail() -> None:
        raise KeyError("x")

    def refuse() -> None:
        raise NotOnline("a", "it is idle")

    with Metronome() as metronome:
        calls = Calls(metronome, (LLMSessionsError,))
        assert calls.time("good", 1.0, lambda: 5) == 5
        assert calls.time("refused", 1.0, refuse) is None
        assert calls.time("bad", 1.0, fail) is None
        calls.time("late", 0.0, lambda: threading.Event().wait(0.05))
    assert [call.name for call in calls.odd if call.error] == ["bad"]
    assert list(slow_calls(calls.odd)) == ["bad raised KeyError: 'x'"]
    assert calls.slowest.name == "late" and calls.slowest.seconds >= 0.05
    assert calls.counts.total() == 4


def test_the_metronome_notices_that_the_process_stood_still() -> None:
    with Metronome() as metronome:
        metronome._late += [(5.0, 0.3), (7.0, 0.2)]
        assert metronome.stood_still(0.0) >= 0.5
        assert 0.2 <= metronome.stood_still(6.0) < 0.5


# Errors


def test_what_is_logged_as_an_error_is_found(caplog: pytest.LogCaptureFixture) -> None:
    errors = ErrorLog()
    with errors.watched():
        logging.getLogger("llm_sessions.pool").warning("not so bad")
        logging.getLogger("llm_sessions.pool").error("a bug in %s", "x")
        try:
            raise ValueError("why")
        except ValueError:
            logging.getLogger("llm_sessions.x").exception("failed")
    logging.getLogger("llm_sessions").error("too late")
    assert errors.found == ["logged: a bug in x", "logged: failed (ValueError('why'))"]


def test_a_thread_that_dies_is_found() -> None:
    def die() -> None:
        raise ValueError("why")

    errors = ErrorLog()
    with errors.watched():
        thread = threading.Thread(target=die, name="victim")
        thread.start()
        thread.join(LONG)
    assert errors.found == ["victim died of ValueError('why')"]


# What is left behind


def test_nothing_is_left_behind_by_what_ends() -> None:
    baseline = Baseline()
    pool, _ = fake_pool()
    with pool:
        pool.connect("ws://localhost/x")
    del pool
    del _
    assert baseline.left_behind() == []


def test_a_thread_that_is_left_is_found() -> None:
    baseline, go = Baseline(), threading.Event()
    thread = threading.Thread(target=go.wait, args=(LONG,), name="straggler")
    thread.start()
    assert baseline.left_behind(0.0) == ["thread straggler still runs"]
    threading.Timer(0.05, go.set).start()
    assert baseline.left_behind() == []
    thread.join(LONG)


def test_a_descriptor_that_is_left_is_found() -> None:
    baseline = Baseline()
    ends = os.pipe()
    assert baseline.left_behind(0.0) == ["2 descriptors are still open"]
    for end in ends:
        os.close(end)
    assert baseline.left_behind() == []


def test_objects_that_are_left_are_found() -> None:
    baseline = Baseline()
    kept = [Envelope("a", {}) for _ in range(3)]
    assert baseline.left_behind(0.0) == ["3 llm_sessions.protocol.envelope.Envelope are left"]
    kept.clear()
    eventually(lambda: baseline.left_behind(0.0) == [])
    assert grown({"a": 1}, {"a": 1, "b": 2}) == ["2 b are left"]
