"""What is sent about captions, and the steps of the announcement and of the request for captions."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from llm_sessions import ConfigurationError
from llm_sessions.meetings import caption_protocol as captions
from llm_sessions.meetings.caption_protocol import (
    ANNOUNCE_STEPS,
    CAPTION_STEPS,
    AnnounceState,
    AnnounceTrigger,
    CaptionState,
    CaptionTrigger,
    Publication,
    next_announce,
    next_captions,
)
from llm_sessions.protocol.state import InvalidTransition

# The machines, step by step, written out apart from the tables.
ANNOUNCE = """
    idle     announce  joining
    idle     answered  idle
    joining  again     joining
    joining  answered  joined
    joined   again     joining
    joined   answered  joined
"""
CAPTIONS = """
    idle     turn_on   sending
    idle     turn_off  idle
    sending  turn_on   sending
    sending  done      enabled
    sending  failed    idle
    sending  turn_off  idle
    enabled  turn_on   sending
    enabled  turn_off  idle
"""
MACHINES: dict[
    str, tuple[str, type[enum.Enum], type[enum.Enum], Mapping[Any, Any], Callable[..., enum.Enum]]
] = {
    "announcement": (ANNOUNCE, AnnounceState, AnnounceTrigger, ANNOUNCE_STEPS, next_announce),
    "captions": (CAPTIONS, CaptionState, CaptionTrigger, CAPTION_STEPS, next_captions),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_step_leads_where_it_should_and_no_other_exists(machine: str) -> None:
    text, states, triggers, table, following = MACHINES[machine]
    steps = [line.split() for line in text.strip().splitlines()]
    legal = {(states(before), triggers(trigger)): states(after) for before, trigger, after in steps}
    for state, trigger in itertools.product(states, triggers):
        if (state, trigger) in legal:
            assert following(state, trigger) is legal[state, trigger]
        else:
            with pytest.raises(InvalidTransition, match=f"^{trigger.name} in {state.name}$") as caught:
                following(state, trigger)
            assert caught.value.__suppress_context__
    assert sum(map(len, table.values())) == len(legal) and set(table) == set(states)
    assert {trigger for _, trigger in legal} == set(triggers) and set(legal.values()) == set(states)
    with pytest.raises(TypeError):
        table[next(iter(states))] = {}  # type: ignore[index]


def test_captions_can_be_turned_off_from_everywhere() -> None:
    for state in CaptionState:
        assert next_captions(state, CaptionTrigger.TURN_OFF) is CaptionState.IDLE


def test_an_answer_that_nobody_asked_for_changes_nothing() -> None:
    assert next_announce(AnnounceState.IDLE, AnnounceTrigger.ANSWERED) is AnnounceState.IDLE


def test_the_announcement() -> None:
    data = {"relayType": "client.annc", "clientPayload": {"version": "v2"}}
    assert captions.announcement() == Publication(data, {})
    assert captions.announcement("service") == Publication(data, {"to": "service"})


def test_the_request_for_a_language() -> None:
    payload = {"translationLanguage": "de", "id": "uuid"}
    data = {"relayType": "voicea.transl.req", "clientPayload": payload}
    assert captions.language_request("de", "uuid") == Publication(data, {})
    assert captions.language_request("de", "uuid", "service") == Publication(data, {"to": "service"})


def test_the_controls() -> None:
    assert captions.captions_body() == {"transcribe": {"caption": True}}
    assert captions.captions_body("en") == {"transcribe": {"caption": True}, "languageCode": "en"}
    assert captions.spoken_language_body("en") == {"transcribe": {"spokenLanguage": "en"}}
    for on in (True, False):
        assert captions.transcribing_body(on) == {"transcribe": {"transcribing": on}}
        assert captions.manual_captions_body(on) == {"manualCaption": {"enable": on}}


@pytest.mark.parametrize("language", ["", None, 3, ["de"]])
def test_a_language_is_a_code(language: Any) -> None:
    builders: list[Callable[[Any], object]] = [
        lambda value: captions.language_request(value, "uuid"),
        captions.spoken_language_body,
    ]
    if language is not None:  # there it leaves the language as it is
        builders.append(captions.captions_body)
    for build in builders:
        with pytest.raises(ConfigurationError, match=r"^language: "):
            build(language)
