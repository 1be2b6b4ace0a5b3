"""The code of docs/datachannel.md runs as it stands, and its tables name what there is."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
from collections.abc import Iterator

import pytest

import llm_sessions
from llm_sessions import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION, DataChannelClient
from llm_sessions.datachannel.auth import HEADER, REFUSAL_WAIT
from llm_sessions.testing.server import LocalServer
from tests.documents import blocks, languages, read, table_rows
from tests.support import Background

PAGE = read("docs/datachannel.md")
BLOCKS = blocks(PAGE)


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    with LocalServer(tokens={"token"}) as server:
        for name, value in {
            "WEBEX_TOKEN": "token",
            "WEBEX_URL": server.url("mercury"),
            "DEVICE_URL": "https://wdm.example/devices/1",
            "LOCUS_URL": server.locus_url(),
            "DATACHANNEL_URL": server.datachannel_url("main"),
            "PRACTICE_DATACHANNEL_URL": server.datachannel_url("practice"),
            "PARTICIPANT_ID": "me",
        }.items():
            monkeypatch.setenv(name, value)
        yield server
        assert server.violations == []


def run(block: str) -> list[str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "datachannel.md", "exec"), {"__name__": "page"})
    return printed.getvalue().splitlines()


def test_one_session(meeting: LocalServer) -> None:
    running = Background(lambda: run(BLOCKS[0]))
    [connection] = meeting.wait_live("main")
    meeting.publish({"text": "hello"}, session="main")
    meeting.wait_for(lambda: len(connection.acks) >= 3)  # ready, pong, caption
    meeting.close_session("main", code=1000, reason="the meeting is over")
    assert sorted(running.result()) == ["True True", "main: {'eventType': 'relay.event', 'text': 'hello'}"]


def test_several_sessions(meeting: LocalServer) -> None:
    printed = run(BLOCKS[1])
    for name in (LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION):
        assert f"{name} online True" in printed
    assert f"{LLM_PRACTICE_SESSION} went offline: 3050" in printed and "True False" in printed
    assert [one.close_code for one in meeting.connections("practice")] == [3050]


def test_tokens_that_are_fetched(meeting: LocalServer) -> None:
    meeting.datachannel_tokens = set()
    assert run(BLOCKS[2]) == ["True"]
    fetched, registered = meeting.requests
    assert fetched.path == "/locus/meeting/participant/me/datachannel/token"
    assert registered.headers[HEADER.lower()] == fetched.answer["datachannelToken"]


def test_publishing_and_subscribing(meeting: LocalServer) -> None:
    running = Background(lambda: run(BLOCKS[3]))
    [connection] = meeting.wait_live("main")
    wanted = {"publishRequest", "subchannelSubscriptionRequest"}
    meeting.wait_for(lambda: wanted <= {one.get("type") for one in connection.received})
    meeting.close_session("main", code=1000, reason="the meeting is over")
    assert running.result() == []


def test_beside_other_sessions(meeting: LocalServer) -> None:
    assert run(BLOCKS[4]) == ["['llm-default-session', 'mercury']", "True False"]


def test_there_is_no_code_that_no_test_runs() -> None:
    assert languages(PAGE) == ["python"] * len(BLOCKS) and len(BLOCKS) == 5


def test_the_calls_of_the_tables_are_there() -> None:
    [calls, *_] = [part for part in PAGE.split("## ") if part.startswith("One session")]
    codes = [
        code for row in table_rows(calls) for cell in row for code in re.findall(r"`(\w+\(.*?\))`", cell)
    ]
    assert len(codes) > 15
    for code in codes:
        call = ast.parse(code, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        signature = inspect.signature(getattr(DataChannelClient, call.func.id))
        named = {str(keyword.arg): None for keyword in call.keywords}
        signature.bind(None, *call.args, **named)


def test_the_errors_of_the_page_are_there() -> None:
    errors = re.findall(r"`(\w+(?:Error|Timeout|Cancelled|Closed|Connected))`", PAGE)
    assert len(errors) > 8 and all(hasattr(llm_sessions, name) for name in errors)


def test_what_is_said_of_times_and_headers() -> None:
    assert f"`{HEADER}`" in PAGE and (REFUSAL_WAIT, "waits two\nseconds" in PAGE) == (2.0, True)
