"""Rates and summaries."""

from __future__ import annotations

from llm_sessions import ConnectionLost, SessionState, SessionStats
from llm_sessions.cli.meter import Meter, reason, summary_line
from llm_sessions.testing.clock import ManualClock
from tests.support import Recorder, fake_pool


def stats(session: str = "main", messages: int = 0, **more: object) -> SessionStats:
    settings: dict[str, object] = {
        "session_id": session,
        "state": SessionState.ONLINE,
        "since": 0.0,
        "latency": None,
        "queue_depth": 0,
        "paused": False,
        "abandoned_attempts": 0,
        "messages_in": messages,
    }
    return SessionStats(**{**settings, **more})  # type: ignore[arg-type]


def test_a_rate_is_of_the_last_seconds() -> None:
    clock, messages = ManualClock(), [0]
    meter = Meter(lambda: [stats(messages=messages[0])], clock)
    assert meter.rows()[0].rate == 0
    for _ in range(10):
        clock.advance(1)
        messages[0] += 4
        [row] = meter.rows()
        assert (row.rate, row.messages) == (4, messages[0])
    for _ in range(5):
        clock.advance(1)
        [row] = meter.rows()
    assert row.rate == 0


def test_between_two_looks_at_one_moment_there_is_no_rate() -> None:
    meter = Meter(lambda: [stats(messages=5)], ManualClock())
    assert [meter.rows()[0].rate for _ in range(2)] == [0, 0]


def test_a_row_says_how_a_session_stands() -> None:
    both = [stats("main", latency=0.25, reconnects=2), stats("practice", state=SessionState.OFFLINE)]
    first, second = Meter(lambda: both, ManualClock()).rows()
    assert (first.session, first.state, first.latency, first.reconnects) == ("main", "online", 0.25, 2)
    assert (second.session, second.state, second.latency) == ("practice", "offline", None)


def test_the_summary_of_a_session_that_lost_its_connection() -> None:
    pool, transport = fake_pool()
    with pool:
        session = pool.connect("wss://h/", "main")
        assert summary_line(session, 6) == "main    0 messages, 0 reconnects, 0 gaps, no error"
        recorder = Recorder().listen(pool, "online", session_id="main")
        transport.links[0].end(1006, "gone")
        recorder.wait("online")
    assert summary_line(session, 4) == (
        "main  0 messages, 1 reconnect, 0 gaps, last error: connection lost (1006 gone)"
    )


def test_a_reason_names_its_session_once_and_no_secret() -> None:
    assert reason("a", ConnectionLost("a", 1006, "Bearer abcdefgh1234\x1b")) == (
        "connection lost (1006 Bearer ***)"
    )
    assert reason("a", None) == "nothing failed so far"
