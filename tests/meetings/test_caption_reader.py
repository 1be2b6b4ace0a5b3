"""What is read from relay events, each kind of them, and from anything else a server might send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_sessions import Envelope
from llm_sessions.meetings.caption_events import (
    CaptionLanguageAnswer,
    CaptionLanguages,
    EvaEvent,
    Highlight,
    LanguageDetected,
    Reaction,
    RelayEvent,
    Transcript,
)
from llm_sessions.meetings.caption_reader import (
    READERS,
    TRANSCRIPTION_TYPES,
    Reading,
    read_relay,
    route_of,
)


def envelope(relay_type: object, headers: object = None, **data: Any) -> Envelope:
    content = {"eventType": "relay.event", "relayType": relay_type, **data}
    return Envelope("s", {"id": "1", "headers": headers, "data": content})


def voicea(kind: str, **payload: Any) -> Envelope:
    return envelope("voicea.transcription", voiceaPayload={"type": kind, **payload})


def manual(kind: str, relay_type: str = "aibridge.manual_transcription", **payload: Any) -> Envelope:
    return envelope(relay_type, transcriptPayload={"type": kind, **payload})


def only(one: Envelope) -> Any:
    reading = read_relay(one)
    assert reading.problems == ()
    [event] = reading.events
    assert event.session_id == "s"
    return event


LANGUAGES = {
    "translation": {"allowed_languages": ["de", "fr"], "max_languages": 5},
    "ASR": {"spoken_languages": ["en", "es"]},
}
ENTRY = {
    "text": "Hello?",
    "csis": [3556942592],
    "start_millis": 12204,
    "end_millis": 13044.0,
    "transcript_language_code": "en",
    "translations": {"fr": "Bonjour ?"},
}


def test_the_answer_to_an_announcement_tells_the_languages() -> None:
    event = only(envelope("voicea.annc", {"from": "service"}, voiceaPayload=LANGUAGES))
    assert event == CaptionLanguages("s", {}, ("de", "fr"), 5, ("en", "es"), "service")
    assert event.raw == LANGUAGES


@pytest.mark.parametrize("payload", [{}, {"translation": None, "ASR": {}}, {"translation": {}, "ASR": None}])
def test_a_service_may_have_no_languages(payload: dict[str, Any]) -> None:
    assert only(envelope("voicea.annc", voiceaPayload=payload)) == CaptionLanguages("s", {}, (), 0, (), None)


@pytest.mark.parametrize(
    ("payload", "answer"),
    [
        ({"statusCode": 200}, (True, 200, None, None)),
        ({"statusCode": 200, "message": ""}, (True, 200, None, None)),
        ({"errorCode": 300, "message": "no"}, (False, None, 300, "no")),
        ({"statusCode": 403, "errorCode": "E1"}, (False, 403, "E1", None)),
        ({"statusCode": 500.0}, (False, 500, None, None)),
    ],
)
def test_the_answer_to_a_language_request(payload: dict[str, Any], answer: tuple[Any, ...]) -> None:
    event = only(envelope("voicea.transl.rsp", voiceaPayload=payload))
    assert event == CaptionLanguageAnswer("s", {}, *answer)


@pytest.mark.parametrize(("kind", "final"), [("interim_results", False), ("final_result", True)])
def test_each_transcript_is_an_event(kind: str, final: bool) -> None:
    second = {"text": ""}
    one = voicea(f"transcript_{kind}", transcript_id="t", transcripts=[ENTRY, second])
    reading = read_relay(one)
    assert reading == Reading(
        (
            Transcript("s", {}, "Hello?", (3556942592,), final, 12204, 13044, "t", "en"),
            Transcript("s", {}, "", final=final, transcript_id="t"),
        )
    )
    assert [event.raw for event in reading.events] == [ENTRY, second]
    assert read_relay(voicea(f"transcript_{kind}", transcripts=[])) == Reading()


@pytest.mark.parametrize("relay_type", ["aibridge.manual_transcription", "client.manual_transcription"])
@pytest.mark.parametrize(
    ("kind", "final"),
    [
        ("manual_caption_interim_result", False),
        ("manual_caption_interim_results", False),
        ("manual_caption_final_result", True),
    ],
)
def test_captions_typed_by_a_person(relay_type: str, kind: str, final: bool) -> None:
    event = only(manual(kind, relay_type, id="c", transcripts=[ENTRY]))
    assert event == Transcript("s", {}, "Hello?", (3556942592,), final, 12204, 13044, "c", "en", manual=True)


def test_a_broken_transcript_does_not_hide_the_others() -> None:
    entries = [{"text": "one"}, {"text": 2}, "three", {"text": "four", "csis": ["x"]}, {"text": "five"}]
    reading = read_relay(voicea("transcript_final_result", transcripts=entries))
    assert [event.text for event in reading.events if isinstance(event, Transcript)] == ["one", "five"]
    assert reading.problems == (
        "voiceaPayload.transcripts[1].text is no text",
        "voiceaPayload.transcripts[2] is no object",
        "voiceaPayload.transcripts[3].csis[0] has the wrong type",
    )


def test_a_highlight() -> None:
    found = {
        "highlight_id": "h",
        "transcript": "We ship it.",
        "highlight_label": "Decision",
        "highlight_source": "voice-command",
        "csis": [1],
        "end_millis": 5,
    }
    event = only(voicea("highlight_created", highlight=found))
    assert event == Highlight("s", {}, "We ship it.", "h", "Decision", "voice-command", (1,), 5)
    assert only(voicea("highlight_created", highlight={"transcript": ""})) == Highlight("s", {}, "")


def test_the_assistant() -> None:
    assert only(voicea("eva_wake", command_response="")) == EvaEvent("s", {}, "wake", True)
    assert only(voicea("eva_cancel")) == EvaEvent("s", {}, "cancel", False)
    assert only(voicea("eva_thanks", command_response="OK")) == EvaEvent("s", {}, "thanks", False, "OK")


def test_a_language_is_detected() -> None:
    assert only(voicea("language_detected", language="pl")) == LanguageDetected("s", {}, "pl")


def test_i83_a_reaction_tells_its_sender_and_its_route() -> None:
    sender = {"participantId": "p", "displayName": "Ann"}
    one = envelope("react", reaction={"type": "celebrate"}, sender=sender)
    assert only(one) == Reaction("s", {}, "celebrate", "p", "Ann")
    routed = Envelope("s", {**one.raw, "recipients": {"route": "binding"}})
    assert only(routed) == Reaction("s", {}, "celebrate", "p", "Ann", "binding")
    assert only(envelope("react", reaction={"type": "wave"})) == Reaction("s", {}, "wave")


@pytest.mark.parametrize(
    "one",
    [
        envelope("whiteboard"),
        voicea("something_new"),
        manual("something_new"),
        envelope("client.annc", clientPayload={"version": "v2"}),
    ],
)
def test_what_is_not_known_is_a_relay_event(one: Envelope) -> None:
    event = only(one)
    assert event == RelayEvent("s", {}, one.data["relayType"])
    assert event.raw is one.data


@pytest.mark.parametrize(
    ("recipients", "route"),
    [
        ({"route": "b"}, "b"),
        ([{"route": "b"}], "b"),
        ([{"route": "b"}, {"route": "c"}], None),
        ([], None),
        ({"route": ""}, None),
        ({"route": 3}, None),
        (["b"], None),
        ("b", None),
        (None, None),
    ],
)
def test_the_route_of_an_envelope(recipients: object, route: str | None) -> None:
    assert route_of(Envelope("s", {"recipients": recipients})) == route


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        (Envelope("s", {}), "data.relayType is no text"),
        (Envelope("s", {"data": []}), "data.relayType is no text"),
        (envelope(None), "data.relayType is no text"),
        (envelope(["voicea.annc"]), "data.relayType is no text"),
        (envelope(""), "data.relayType is no text"),
        (envelope("voicea.annc"), "data.voiceaPayload is no object"),
        (envelope("voicea.annc", {"from": 3}, voiceaPayload={}), "headers.from is no text"),
        (envelope("voicea.annc", voiceaPayload={"ASR": []}), "voiceaPayload.ASR is no object"),
        (
            envelope("voicea.annc", voiceaPayload={"translation": {"allowed_languages": "de"}}),
            "voiceaPayload.translation.allowed_languages is no list",
        ),
        (
            envelope("voicea.annc", voiceaPayload={"translation": {"allowed_languages": ["de", 3]}}),
            "voiceaPayload.translation.allowed_languages[1] has the wrong type",
        ),
        (
            envelope("voicea.annc", voiceaPayload={"translation": {"max_languages": "5"}}),
            "voiceaPayload.translation.max_languages is no number",
        ),
        (
            envelope("voicea.annc", voiceaPayload={"translation": {"max_languages": True}}),
            "voiceaPayload.translation.max_languages is no number",
        ),
        (
            envelope("voicea.transl.rsp", voiceaPayload={}),
            "voiceaPayload has neither a statusCode nor an errorCode",
        ),
        (
            envelope("voicea.transl.rsp", voiceaPayload={"errorCode": []}),
            "voiceaPayload.errorCode is neither a number nor a text",
        ),
        (
            envelope("voicea.transl.rsp", voiceaPayload={"errorCode": True}),
            "voiceaPayload.errorCode is neither a number nor a text",
        ),
        (voicea("transcript_final_result"), "voiceaPayload.transcripts is no list"),
        (voicea("transcript_final_result", transcripts={}), "voiceaPayload.transcripts is no list"),
        (
            voicea("transcript_final_result", transcripts=[{"text": "x", "end_millis": float("nan")}]),
            "voiceaPayload.transcripts[0].end_millis is no number",
        ),
        (
            voicea("transcript_final_result", transcript_id=3, transcripts=[]),
            "voiceaPayload.transcript_id is no text",
        ),
        (envelope("voicea.transcription", voiceaPayload={}), "voiceaPayload.type is no text"),
        (voicea("highlight_created"), "voiceaPayload.highlight is no object"),
        (voicea("highlight_created", highlight={}), "voiceaPayload.highlight.transcript is no text"),
        (voicea("language_detected"), "voiceaPayload.language is no text"),
        (voicea("eva_thanks", command_response={}), "voiceaPayload.command_response is no text"),
        (envelope("react", reaction="celebrate"), "data.reaction is no object"),
        (envelope("react", reaction={}), "data.reaction.type is no text"),
        (envelope("react", reaction={"type": "x"}, sender="Ann"), "data.sender is no object"),
        (envelope("client.manual_transcription"), "data.transcriptPayload is no object"),
        (manual("manual_caption_final_result"), "transcriptPayload.transcripts is no list"),
    ],
)
def test_what_is_malformed_is_a_problem_that_names_the_place(one: Envelope, problem: str) -> None:
    assert read_relay(one) == Reading((), (problem,))


KINDS = [
    *("voicea.annc", "voicea.transl.rsp", "voicea.transcription", "aibridge.manual_transcription"),
    *("client.manual_transcription", "react", "other"),
]
TYPES = [
    *("transcript_interim_results", "transcript_final_result", "highlight_created", "eva_wake", "eva_thanks"),
    *("language_detected", "manual_caption_final_result", "other"),
]
NAMES = [
    *("type", "transcripts", "text", "csis", "end_millis", "highlight", "transcript", "language", "id"),
    *("translation", "allowed_languages", "max_languages", "ASR", "spoken_languages", "statusCode"),
    *("errorCode", "message", "participantId", "route", "command_response", "transcript_id"),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(TYPES),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=15,
)
PAYLOADS = st.builds(
    lambda kind, more: {**more, "type": kind},
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5),
)
RAW = st.fixed_dictionaries(
    {},
    optional={
        "headers": st.dictionaries(st.just("from"), VALUES) | VALUES,
        "recipients": VALUES,
        "data": st.fixed_dictionaries(
            {"relayType": st.sampled_from(KINDS) | VALUES},
            optional={
                "voiceaPayload": PAYLOADS | VALUES,
                "transcriptPayload": PAYLOADS | VALUES,
                "reaction": PAYLOADS | VALUES,
                "sender": VALUES,
            },
        )
        | VALUES,
    },
)


@given(RAW)
@example({"data": {"relayType": "voicea.transl.rsp", "voiceaPayload": {"statusCode": float("inf")}}})
@example({"data": {"relayType": {}}})
def test_anything_is_read_without_an_exception(raw: dict[str, Any]) -> None:
    before = json.dumps(raw)
    reading = read_relay(Envelope("s", raw))
    assert json.dumps(raw) == before, "reading changes nothing"
    for event in reading.events:
        assert event.session_id == "s"
        hash(event)  # no part of it can be changed
        if isinstance(event, Transcript):
            assert isinstance(event.text, str) and all(type(one) is int for one in event.csis)
    assert all(isinstance(problem, str) and problem for problem in reading.problems)
    transcripts = (raw.get("data") or {}) if isinstance(raw.get("data"), dict) else {}
    if not reading.events and not reading.problems:  # nothing to read and nothing wrong: an empty list
        assert transcripts["relayType"] in KINDS and "[]" in before


@pytest.mark.parametrize("kind", KINDS)
def test_t11_problems_quote_nothing(kind: str) -> None:
    def poison(value: Any) -> Any:
        return dict.fromkeys(NAMES, "secret words") | {"type": value}

    for value in (*TYPES, "secret words", ["secret words"]):
        one = envelope(
            kind, voiceaPayload=poison(value), transcriptPayload=poison(value), reaction=poison(value)
        )
        assert not any("secret" in problem for problem in read_relay(one).problems)


def test_the_kinds_of_this_file_are_those_of_the_module() -> None:
    assert set(READERS) == set(KINDS) - {"other"}


@pytest.mark.parametrize("kind", TRANSCRIPTION_TYPES)
def test_no_type_of_a_transcription_is_left_to_relay_events(kind: str) -> None:
    highlight = {"transcript": "x"}
    event = only(voicea(kind, transcripts=[ENTRY], highlight=highlight, language="en", command_response="x"))
    assert not isinstance(event, RelayEvent)
