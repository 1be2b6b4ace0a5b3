"""The README's code runs as it stands, and says what is true."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import responses
from responses import matchers

from llm_sessions import Captions
from llm_sessions.protocol.state import SessionState
from llm_sessions.testing.captions import CaptionService, Webinar
from llm_sessions.testing.server import LocalServer
from llm_sessions.testing.server_connection import ServerConnection
from tests.documents import blocks, read
from tests.support import LONG, Background, called

README = read("README.md")
BLOCKS = blocks(README)


@pytest.fixture
def main_server(monkeypatch: pytest.MonkeyPatch) -> LocalServer:
    with LocalServer() as server:
        monkeypatch.setenv("WEBEX_TOKEN", "token")
        monkeypatch.setenv("WEBEX_URL", server.url("main"))
        monkeypatch.setenv("PRACTICE_URL", server.url("practice"))
        monkeypatch.setenv("DEVICE_URL", "https://wdm.example/devices/1")
        monkeypatch.setenv("LOCUS_URL", server.locus_url())
        monkeypatch.setenv("DATACHANNEL_URL", server.datachannel_url("main"))
        monkeypatch.setenv("PRACTICE_DATACHANNEL_URL", server.datachannel_url("practice"))
        yield server
        assert server.violations == []


def run(block: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    return printed.getvalue()


def test_one_session(main_server: LocalServer) -> None:
    running = Background(lambda: run(BLOCKS[0]))
    main_server.wait_live("main")
    main_server.publish({"text": "hello"}, session="main")
    connection = main_server.live("main")[0]
    main_server.wait_for(lambda: any(one.get("type") == "publishRequest" for one in connection.received))
    main_server.wait_for(lambda: len(connection.acks) >= 3)  # ready, pong, caption
    main_server.close_session("main", code=1000, reason="the meeting is over")
    assert running.result() == "hello\n"


def test_several_sessions(main_server: LocalServer) -> None:
    printed = run(BLOCKS[1])
    assert printed.count("practice went offline: 3050 done (permanent)") == 1
    assert printed.count("main went offline: 1000 Done") == 1
    practice, main = main_server.connections("practice"), main_server.connections("main")
    assert [(one.close_code, one.close_reason) for one in practice] == [(3050, "done (permanent)")]
    assert [(one.close_code, one.close_reason) for one in main] == [(1000, "Done")]


def test_fetching(main_server: LocalServer) -> None:
    def answer(connection: ServerConnection, message: dict[str, Any]) -> None:
        for text in ("hello", "goodbye") if message.get("type") == "publishRequest" else ():
            connection.send_json({"id": text, "data": {"eventType": "relay.event", "text": text}})

    main_server.on_message(answer)
    printed = run(BLOCKS[2]).splitlines()
    assert printed[-3:] == ["relay.event hello", "relay.event goodbye", "3 messages came"]


@responses.activate
def test_tokens_that_refresh_themselves(
    main_server: LocalServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "refresh-token"
    file.write_text("first\n")
    form = {"client_id": "id", "client_secret": "secret", "refresh_token": "first"}
    for name, value in {
        "REFRESH_TOKEN_FILE": str(file),
        "CLIENT_ID": "id",
        "CLIENT_SECRET": "secret",
    }.items():
        monkeypatch.setenv(name, value)
    responses.post(
        "https://webexapis.com/v1/access_token",
        json={"access_token": "token", "expires_in": 1209599, "refresh_token": "second"},
        match=[matchers.urlencoded_params_matcher(form | {"grant_type": "refresh_token"})],
    )
    main_server.tokens = {"token"}
    assert run(BLOCKS[3]) == ""
    assert [one.token for one in main_server.connections()] == ["token"]
    assert file.read_text() == "second"


def test_by_the_urls_of_a_meeting(main_server: LocalServer) -> None:
    run(BLOCKS[4])
    assert [one.path for one in main_server.requests] == ["/datachannel/main", "/datachannel/practice"]
    published = [
        connection.session
        for connection in main_server.connections()
        if any(one.get("type") == "publishRequest" for one in connection.received)
    ]
    assert published == ["practice"]


def test_a_webinar_and_its_captions(
    main_server: LocalServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service, webinar = CaptionService(main_server), Webinar(main_server)
    joined = tmp_path / "join.json"
    joined.write_text(json.dumps(webinar.join_response()))
    monkeypatch.setenv("JOIN_RESPONSE", str(joined))
    made = called(monkeypatch, Captions, "transcripts")
    running = Background(lambda: run(BLOCKS[5].replace("timeout=60", "timeout=0.5")))
    assert made.wait(LONG)
    for key in ("default", "practice"):
        main_server.wait_for(lambda key=key: len(service.subscribed(key)) == 1)  # type: ignore[misc]
        service.transcript(f"in {key}", session=key)
    printed = running.result().splitlines()
    assert sorted(printed) == ["llm-default-session in default", "llm-practice-session in practice"]


def test_testing_your_own_code() -> None:
    assert run(BLOCKS[6]) == ""


def test_there_is_no_code_that_no_test_runs() -> None:
    assert len(BLOCKS) == 7


def test_the_states_are_the_real_ones() -> None:
    row = next(line for line in README.splitlines() if line.startswith("| **States**"))
    assert re.findall(r"`([a-z]+)`", row) == [state.value for state in SessionState]
