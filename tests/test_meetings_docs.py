"""The code of docs/meetings.md runs, its tables name what there is, its picture is what happens."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import llm_sessions
from llm_sessions import Captions, Meeting
from llm_sessions.cli.story import Story, sequence_diagram
from llm_sessions.meetings.delivery import MEETING_EVENTS
from llm_sessions.testing.captions import CaptionService, Webinar
from llm_sessions.testing.server import LocalServer
from tests.documents import blocks, languages, read, table_rows
from tests.support import LONG, Background, called

PAGE = read("docs/meetings.md")
BLOCKS = blocks(PAGE)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CaptionService]:
    with LocalServer(tokens={"token"}) as server:
        joined = tmp_path / "join.json"
        joined.write_text(json.dumps(Webinar(server).join_response()))
        monkeypatch.setenv("WEBEX_TOKEN", "token")
        monkeypatch.setenv("DEVICE_URL", "https://wdm.example/devices/1")
        monkeypatch.setenv("JOIN_RESPONSE", str(joined))
        service = CaptionService(server)
        yield service
        assert server.violations == []


def run(block: str) -> list[str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "meetings.md", "exec"), {"__name__": "page"})
    return printed.getvalue().splitlines()


def test_from_join_to_leave(service: CaptionService, monkeypatch: pytest.MonkeyPatch) -> None:
    made = called(monkeypatch, Captions, "transcripts")
    running = Background(lambda: run(BLOCKS[0].replace("timeout=60", "timeout=0.5")))
    assert made.wait(LONG)
    service._server.wait_for(lambda: bool(service.subscribed()))
    service.reaction("celebrate")
    assert service.transcript("hello") == 1
    printed = running.result()
    assert "llm-default-session is online" in printed
    assert "<Session 'llm-default-session' online>" in printed
    assert "llm-default-session (1,) hello" in printed
    assert "Participant reacted: celebrate" in printed


def test_captions(service: CaptionService) -> None:
    assert run(BLOCKS[1]) == ["('en', 'es') to ('de', 'en', 'es', 'fr')", "German: granted"]
    assert [one.relay_type for one in service.published] == ["client.annc", "voicea.transl.req"]


def test_there_is_no_code_that_no_test_runs() -> None:
    assert languages(PAGE) == ["python", "python", "mermaid"]


def test_the_picture_is_what_happens() -> None:
    story = Story()
    story.tell(drop=False)
    assert story.complete
    assert blocks(PAGE, "mermaid") == [sequence_diagram(story.lines)]


def test_the_calls_of_the_tables_are_there() -> None:
    for title, owner in (("News", Meeting), ("Captions", Captions)):
        [section] = [part for part in PAGE.split("\n## ") if part.startswith(f"{title}\n")]
        codes = [
            code for row in table_rows(section) for code in re.findall(r"`([a-z_]+(?:\(.*?\))?)`", row[0])
        ]
        assert len(codes) > 7
        for code in codes:
            call = ast.parse(code.replace("…", "1"), mode="eval").body
            if isinstance(call, ast.Name):
                assert hasattr(owner, call.id)
                continue
            assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
            signature = inspect.signature(getattr(owner, call.func.id))
            signature.bind(None, *call.args, **{str(one.arg): None for one in call.keywords})
            for one in call.keywords:
                default = signature.parameters[str(one.arg)].default
                if f"{one.arg}=…" not in code:
                    assert default == ast.literal_eval(one.value)


def test_every_event_of_a_meeting_is_on_the_page() -> None:
    [section] = [part for part in PAGE.split("\n## ") if part.startswith("Events\n")]
    told = {name for row in table_rows(section) for name in re.findall(r"`(.*?)`", row[0])}
    assert told == MEETING_EVENTS


def test_the_names_of_the_page_are_there() -> None:
    names = set(re.findall(r"`([A-Z]\w+?)(?:\(.*?\))?`", PAGE)) - {
        "WEBEX_TOKEN",
        "DEVICE_URL",
        "JOIN_RESPONSE",
    }
    names -= {"Webinar", "CaptionService"}  # of the testing page
    assert len(names) > 15 and all(hasattr(llm_sessions, name) for name in names)
