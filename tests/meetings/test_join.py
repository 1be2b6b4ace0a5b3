"""What a join asks the service for, and what it does not take from anybody."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import responses

from llm_sessions import ConfigurationError, ConnectError, RegistrationError, TokenRefreshError
from llm_sessions.meetings.join import Join, checked_tokens, fetch_token, without_state
from llm_sessions.meetings.locus import Joined
from llm_sessions.meetings.rules import Role
from llm_sessions.testing.server import make_token
from tests.datachannel.world import LOCUS
from tests.meetings.world import (
    DEFAULT,
    FETCH,
    FETCH_PRACTICE,
    PRACTICE_SESSION,
    MeetingWorld,
    locus,
    panelist,
    world,
)

__all__ = ["world"]  # a fixture

JOINED = Joined(LOCUS, participant_id="me", practice_enabled=True, roles=frozenset({Role.PANELIST}))


def test_each_session_has_an_address_of_its_own(world: MeetingWorld) -> None:
    token = make_token()
    world.fetches = [lambda: (200, {"datachannelToken": token})] * 2
    assert fetch_token(world.one, JOINED, DEFAULT) == token
    assert fetch_token(world.one, JOINED, PRACTICE_SESSION) == token
    assert world.fetched == [FETCH, FETCH_PRACTICE]


@pytest.mark.parametrize(
    ("participant", "quoted"),
    [("a/b?c#d", "a%2Fb%3Fc%23d"), ("a b%2F", "a%20b%252F"), ("ä", "%C3%A4")],
)
def test_the_participants_id_is_one_segment_of_the_address(
    world: MeetingWorld, participant: str, quoted: str
) -> None:
    asked: list[str] = []

    def answer(request: Any) -> tuple[int, dict[str, str], str]:
        asked.append(request.url)
        return 200, {}, json.dumps({"datachannelToken": make_token()})

    world.service.add_callback(responses.GET, f"{LOCUS}/participant/{quoted}/datachannel/token", answer)
    joined = dataclasses.replace(JOINED, locus_url=f"{LOCUS}/", participant_id=participant)
    fetch_token(world.one, joined, DEFAULT)
    assert asked == [f"{LOCUS}/participant/{quoted}/datachannel/token"]


def test_without_the_own_id_nothing_is_asked(world: MeetingWorld) -> None:
    joined = dataclasses.replace(JOINED, participant_id=None)
    with pytest.raises(TokenRefreshError, match="own id") as caught:
        fetch_token(world.one, joined, PRACTICE_SESSION)
    assert caught.value.session_id == PRACTICE_SESSION and world.fetched == []


@pytest.mark.parametrize("participant", [".", ".."])
def test_an_id_that_would_make_another_address_is_refused(world: MeetingWorld, participant: str) -> None:
    joined = dataclasses.replace(JOINED, participant_id=participant)
    with pytest.raises(TokenRefreshError, match="cannot be part"):
        fetch_token(world.one, joined, DEFAULT)
    assert world.fetched == []


@pytest.mark.parametrize("body", [{}, {"datachannelToken": ""}, {"datachannelToken": 7}])
def test_an_answer_without_a_token_is_refused(world: MeetingWorld, body: Any) -> None:
    world.fetches = [lambda: (200, body)]
    with pytest.raises(RegistrationError, match="without a datachannelToken"):
        fetch_token(world.one, JOINED, DEFAULT)


def test_a_refusal_and_silence_come_out_as_they_are(world: MeetingWorld) -> None:
    def nobody() -> tuple[int, Any]:
        raise ConnectionError("nobody there")

    world.fetches = [lambda: (404, {"message": "gone"}), nobody]
    with pytest.raises(RegistrationError, match="gone") as caught:
        fetch_token(world.one, JOINED, DEFAULT)
    assert caught.value.status == 404
    with pytest.raises(ConnectError):
        fetch_token(world.one, JOINED, DEFAULT)


def test_the_tokens_of_a_locus_are_checked() -> None:
    first, second = make_token(), make_token()
    tokens = {"datachannelToken": first, "practiceSessionDatachannelToken": second}
    assert checked_tokens(locus(tokens=tokens)) == {DEFAULT: first, PRACTICE_SESSION: second}
    assert checked_tokens(locus()) == {}


def test_t11_a_token_that_cannot_be_used_is_refused_and_not_told() -> None:
    with pytest.raises(ConfigurationError, match=DEFAULT) as caught:
        checked_tokens(locus(tokens={"datachannelToken": "s3cret\nx"}))
    assert "s3cret" not in str(caught.value)


def test_what_the_facts_have_is_left_out() -> None:
    assert without_state(JOINED) == dataclasses.replace(JOINED, roles=None, practice_enabled=None)


def test_a_join_that_is_not_the_meetings_any_more_takes_nothing_away(world: MeetingWorld) -> None:
    world.join()
    first = world.meeting._join
    world.meeting.leave()
    world.join()
    second = world.meeting._join
    assert isinstance(first, Join) and second is not first
    world.meeting._leave(first, first)
    assert world.meeting._join is second and world.one.is_connected()


def test_each_join_has_captions_of_its_own_and_so_has_each_visit_to_the_lobby(world: MeetingWorld) -> None:
    world.meeting.join(panelist())
    join = world.meeting._join
    assert join is not None
    seen = [join.captioning]
    world.meeting.unadmit()
    seen.append(join.captioning)
    world.meeting.admit()
    assert join.captioning is seen[1]
    world.meeting.leave()
    world.meeting.join(panelist())
    assert world.meeting._join is not None
    seen.append(world.meeting._join.captioning)
    assert len({id(one) for one in seen}) == 3
