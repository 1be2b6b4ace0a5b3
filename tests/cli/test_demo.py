"""The demo does the main job, and notices when it was not done."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from llm_sessions.cli import demo, story
from llm_sessions.testing.captions import CaptionService
from tests.support import SHORT


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PACE", 0)


def test_a_webinar_is_told_from_join_to_leave_and_accounted_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run_demo(plain=True) == 0
    printed = capsys.readouterr().out
    # seconds, from whom, to whom, what
    told = re.findall(r"^ *[\d.]+ s  (\w+) → (\w+) +(.*?) *$", printed, re.MULTILINE)
    assert ("practice", "program", "caption “Only panelists hear this.”") in told
    assert ("meeting", "practice", "close 3050 “done (permanent)”") in told
    assert ("main", "meeting", "offline: 1006") in told
    assert [who for who, _, what in told if what == "caption languages de, en, es, fr"] == [
        "main",
        "practice",
        "practice",
        "main",
    ]
    assert re.search(r"^main +online -> reconnecting: 1006$", printed, re.MULTILINE)
    assert re.search(r"│ main +│ +6 │ +6 │ +3 │ +2 │ +2 │", printed)
    assert re.search(r"│ practice +│ +2 │ +2 │ +2 │ +2 │ +2 │", printed)
    assert printed.rstrip().endswith("Every caption arrived, once and in order.")
    assert "\x1b[" not in printed


def test_the_log_is_left_as_it_was() -> None:
    logger = logging.getLogger("llm_sessions.pool")
    before = (logger.level, logger.propagate, list(logger.handlers))
    demo.run_demo(plain=True)
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_garbled_caption_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transcript = CaptionService.transcript

    def garbled(service: CaptionService, text: str, **where: Any) -> int:
        return transcript(service, text.replace("panelists", "attendees"), **where)

    monkeypatch.setattr(CaptionService, "transcript", garbled)
    assert demo.run_demo(plain=True) == 1
    assert "Something is wrong: captions are missing" in capsys.readouterr().out


def test_a_halt_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(story, "_LONG", SHORT)
    monkeypatch.setattr(CaptionService, "transcript", lambda *args, **options: 0)
    assert demo.run_demo(plain=True) == 1
    printed = capsys.readouterr().out
    assert "Something is wrong: the story has come to a halt" in printed and "Traceback" not in printed
