"""The demo does the main job, and notices when it was not done."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from llm_sessions.cli import demo
from llm_sessions.testing.server import LocalServer


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PACE", 0)


def test_both_sessions_come_up_one_goes_and_the_other_survives_a_drop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert demo.run_demo(plain=True) == 0
    printed = capsys.readouterr().out
    # seconds, session, event, detail
    told = re.findall(r"^ *[\d.]+ s  (\S+) +(\S+) +(.*?) *$", printed, re.MULTILINE)
    for session_id in ("llm-default-session", "llm-practice-session"):
        events = [event for who, event, _ in told if who == session_id]
        assert {"online", "state", "event:relay.event", "ping-pong-latency"} <= set(events)
        assert events.index("online") < events.index("event:relay.event")
    assert ("llm-practice-session", "offline", "3050 done (permanent)") in told
    assert ("llm-default-session", "offline.transient", "1006") in told
    assert ("llm-default-session", "state", "online -> reconnecting: 1006") in told
    assert re.search(r"llm-default-session +│ +15 │ +15 │ +2 │", printed)
    assert re.search(r"llm-practice-session +│ +5 │ +5 │ +1 │", printed)
    assert printed.rstrip().endswith("Every caption arrived, once and in order.")
    assert "\x1b[" not in printed


def test_the_log_is_left_as_it_was() -> None:
    logger = logging.getLogger("llm_sessions.pool")
    before = (logger.level, logger.propagate, list(logger.handlers))
    demo.run_demo(plain=True)
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_lost_caption_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish = LocalServer.publish

    def forgetful(server: LocalServer, data: Any = None, **where: Any) -> Any:
        if data == {"text": demo._CAPTIONS[2]}:
            data = {"text": "something else"}
        return publish(server, data, **where)

    monkeypatch.setattr(LocalServer, "publish", forgetful)
    assert demo.run_demo(plain=True) == 1
    assert "Something is wrong" in capsys.readouterr().out
