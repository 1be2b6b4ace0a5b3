"""Lines: JSON that can be read back, text that can be read, and no secret in either."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_sessions import ConnectError, ConnectionFailed, Envelope, Offline, Online, SwitchoverStarted
from llm_sessions._logging import know_secret
from llm_sessions.cli.lines import Line, as_json, as_text, excerpt, line_of, scrubbed

NOON = 1_700_000_000.25
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def nothing_is_known_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_sessions._logging._known", ({}, {}))


def envelope(data: Any, **more: Any) -> Envelope:
    return Envelope("main", {"id": "1", "data": data, **more})


def test_a_message_is_its_data_or_all_of_it() -> None:
    message = envelope({"eventType": "relay.event", "text": "hello"}, sequenceNumber=7)
    line = line_of("event", message, NOON)
    assert line == Line("main", "event:relay.event", NOON, {"eventType": "relay.event", "text": "hello"})
    assert line_of("event", message, NOON, raw=True).data == message.raw
    assert line_of("event", envelope(None), NOON).event == "event"


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (Online("main", 2), {"number": 2}),
        (Offline("main", 1006, "gone"), {"code": 1006, "reason": "gone"}),
        (
            ConnectionFailed("main", ConnectError("main", "nothing listens"), 1),
            {"error": "ConnectError: session 'main': nothing listens", "retries": 1},
        ),
        (
            SwitchoverStarted("main", Envelope("main", {"type": "shutdown"})),
            {"envelope": {"type": "shutdown"}},
        ),
    ],
)
def test_a_state_event_is_what_it_tells(payload: Any, data: dict[str, Any]) -> None:
    line = line_of("name", payload, NOON)
    assert line == Line("main", "name", NOON, data)
    assert json.loads(as_json(line))["data"] == data


def test_json_has_four_members_and_is_one_line() -> None:
    found = json.loads(as_json(Line("main", "online", NOON, {"number": 1})))
    assert found == {
        "session": "main",
        "event": "online",
        "time": "2023-11-14T22:13:20.250Z",
        "data": {"number": 1},
    }


@pytest.mark.parametrize(
    "text", ["grün 日本 😀", "\x1b[31m\x07\x9b2J", "a\nb\r\u2028c\u2029", "\ud800", 'q"\\']
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_whatever_is_in_a_text_comes_back_and_reaches_no_terminal(text: str, ascii_only: bool) -> None:
    written = as_json(Line("main", "event", NOON, {"text": text}), ascii_only=ascii_only)
    assert json.loads(written)["data"] == {"text": text}
    assert len(written.splitlines()) == 1 and written.encode("ascii" if ascii_only else "utf-8")
    assert not any(ch in written for ch in "\x1b\x07\x9b")


def test_text_is_for_people() -> None:
    data = {
        "eventType": "relay.event",
        "relayType": "voicea.transcription",
        "voiceaPayload": {"type": "transcript_final_result", "transcripts": [{"text": "Hello,\x1b[2J all."}]},
    }
    shown = as_text(line_of("event", envelope(data), NOON), width=8)
    assert shown[2] == shown[5] == ":" and shown[8] == "."
    assert shown[12:] == "  main      event:relay.event  voicea.transcription  Hello, [2J all."
    shown = as_text(line_of("event", envelope(data), NOON), width=8, brief=True)
    assert shown[12:] == "  main      voicea.transcription  Hello, [2J all."


@pytest.mark.parametrize(
    ("data", "rest"),
    [
        ({"eventType": "relay.event", "text": "hello"}, "event:relay.event  hello"),
        ({"eventType": "locus.event", "relayType": "x", "text": "hello"}, "event:locus.event  x  hello"),
        ({"eventType": "relay.event", "relayType": "client.annc"}, '{"relayType": "client.annc"}'),
    ],
)
def test_only_what_says_what_is_relayed_goes_without_its_event(data: dict[str, Any], rest: str) -> None:
    shown = as_text(line_of("event", envelope(data), NOON), brief=True)
    assert shown[12:] == f"  main  {rest}"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"eventType": "a.b", "text": "hello"}, "hello"),
        ({"eventType": "a.b", "n": 1}, '{"n": 1}'),
        ({"eventType": "a.b"}, ""),
        ({}, ""),
        ({"relayType": "react", "reaction": {"type": "heart"}}, "react  heart"),
        ({"activity": {"object": {"displayName": "hi"}}}, "hi"),
        (
            {"transcriptPayload": {"type": "manual_caption_interim_result", "transcripts": [{"text": "x"}]}},
            "x …",
        ),
        ({"voiceaPayload": {"type": "transcript_interim_results", "transcripts": [{"text": "x"}]}}, "x …"),
        ({"voiceaPayload": {"transcripts": []}}, '{"voiceaPayload": {"transcripts": []}}'),
        ({"voiceaPayload": {"transcripts": "no list"}, "text": 5}, None),
        ({"id": "1", "data": {"eventType": "a.b", "text": "whole"}}, "whole"),
        ({"code": 1006, "reason": ""}, '{"code": 1006, "reason": ""}'),
    ],
)
def test_the_words_of_a_message(data: dict[str, Any], words: str | None) -> None:
    assert excerpt(data) == (json.dumps(data) if words is None else words)


def test_t11_secrets_are_hidden_by_what_they_are_and_by_what_they_are_called() -> None:
    know_secret("known-to-be-secret")
    data = {
        "datachannelToken": "abc",
        "Authorization": "xyz",
        "password": 12345,
        "token": None,
        "secret": True,
        "tokens": ["Bearer abcdefgh1234", {"clientSecret": "s"}],
        "token_of": {"value": "harmless"},
        "text": f"it is {JWT} or known-to-be-secret",
        "known-to-be-secret": 1,
    }
    found = json.loads(as_json(Line("main", "event", NOON, data)))["data"]
    assert found == {
        "datachannelToken": "***",
        "Authorization": "***",
        "password": "***",
        "token": None,
        "secret": True,
        "tokens": ["Bearer ***", {"clientSecret": "***"}],
        "token_of": {"value": "harmless"},
        "text": "it is *** or ***",
        "***": "***",
    }
    assert "abc" not in excerpt(data) and JWT not in excerpt(data)
    assert scrubbed((1, "x")) == [1, "x"]


def test_a_message_as_deep_as_they_may_be() -> None:
    data: Any = "bottom"
    for _ in range(255):
        data = {"a": data}
    assert json.loads(as_json(Line("main", "event", NOON, data)))["data"] == data
