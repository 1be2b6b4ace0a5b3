"""The README's code runs as it stands, and says what is true."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import responses
from responses import matchers

from llm_sessions import Captions, Session, __version__
from llm_sessions.pool.messages import Messages
from llm_sessions.protocol.state import SessionState
from llm_sessions.testing.captions import CaptionService, Webinar
from llm_sessions.testing.server import LocalServer
from tests.documents import ROOT, blocks, read, table_rows
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
    main_server.wait_for(lambda: len(connection.acks) >= 3)  # ready, pong, caption
    main_server.close_session("main", code=1000, reason="the meeting is over")
    [line] = running.result().splitlines()
    assert ast.literal_eval(line)["text"] == "hello"


def test_the_ten_lines_are_ten_at_most() -> None:
    assert "## Ten lines" in README and len(BLOCKS[0].splitlines()) <= 10


def test_several_sessions(main_server: LocalServer) -> None:
    printed = run(BLOCKS[1])
    assert printed.count("practice went offline: 3050 done (permanent)") == 1
    assert printed.count("main went offline: 1000 Done") == 1
    practice, main = main_server.connections("practice"), main_server.connections("main")
    assert [(one.close_code, one.close_reason) for one in practice] == [(3050, "done (permanent)")]
    assert [(one.close_code, one.close_reason) for one in main] == [(1000, "Done")]


def test_fetching(main_server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Session.messages

    def messages(session: Session, timeout: float | None) -> Messages:
        found = opened(session, timeout=timeout)
        for kind in ("hello", "goodbye"):  # from here on
            main_server.publish({"relayType": kind})
        return found

    monkeypatch.setattr(Session, "messages", messages)
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


# The table of other clients

PEERS = read("docs/explanation/peers.md")
TABLE = README.partition("## Beside others")[2].partition("\n## ")[0]


def heads() -> list[str]:
    """Return the names and versions at the top of the table, without their links."""
    [head] = [line for line in TABLE.splitlines() if line.startswith("| | ")]
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", head).strip("| ").split(" | ")


def test_the_page_on_other_clients_is_about_those_of_the_table() -> None:
    ours, *others = heads()
    assert __version__.startswith(ours.removeprefix("llm-sessions ") + ".")
    assert len(others) == 5
    looked_up = PEERS.partition("\n\n")[2].partition("\n\n")[0].replace("\n", " ")
    for name in others:
        assert re.sub(r",.*", "", name) in looked_up, name


def test_each_row_of_the_table_has_its_sources() -> None:
    rows = table_rows(TABLE)
    assert len(rows) > 8 and all(len(row) == 1 + len(heads()) and all(row) for row in rows)
    sections = re.findall(r"^## (.*)$", PEERS, re.MULTILINE)
    told = {part for section in sections for part in section.lower().split(", and ")}
    assert [name for name in (row[0].strip("*").lower() for row in rows) if name not in told] == []


def test_what_the_table_says_of_us() -> None:
    ours = {row[0].strip("*"): row[1] for row in table_rows(TABLE)}
    setup = read("setup.py")
    minors = re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', setup)
    assert ours["Runs on"] == f"Python 3.{minors[0]} to 3.{minors[-1]}; Linux, macOS"
    assert f'- {ours["Calls itself"].capitalize()}"' in setup


def test_the_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https:)([^)\s]+)\)", README)
    assert len(links) > 30
    headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
    places = {f"#{heading.lower().replace(' ', '-')}" for heading in headings}
    assert [link for link in links if link not in places and not (ROOT / link).exists()] == []
