"""`Captions` as programs use it: what calls do and refuse, what a leave resets, and what ends each wait."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import (
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    LLMSessionsError,
    LocalProtocolError,
    NotOnline,
    PoolClosed,
    RegistrationError,
    SessionState,
    WaitTimeout,
)
from llm_sessions.meetings.caption_protocol import AnnounceState, CaptionState
from llm_sessions.meetings.captions import Captions
from llm_sessions.testing.server import make_token
from tests.datachannel.world import CHANNEL
from tests.meetings.world import (
    DEFAULT,
    MeetingWorld,
    Voicea,
    answer,
    captioning,
    give,
    languages,
    locus,
    panelist,
    relay,
    said,
    transcript,
    world,
)
from tests.support import LONG, SHORT, Background, Gate, eventually

__all__ = ["world"]  # a fixture

NEED_A_MEETING: dict[str, Callable[[Captions], object]] = {
    "announce": lambda captions: captions.announce(),
    "wait_languages": lambda captions: captions.wait_languages(SHORT),
    "turn_on": lambda captions: captions.turn_on(),
    "turn_off": lambda captions: captions.turn_off(),
    "subscribe": lambda captions: captions.subscribe(),
    "transcripts": lambda captions: captions.transcripts(),
    "request_language": lambda captions: captions.request_language("de", SHORT),
    "set_spoken_language": lambda captions: captions.set_spoken_language("de"),
    "set_transcribing": lambda captions: captions.set_transcribing(True),
    "set_manual": lambda captions: captions.set_manual(False),
}


def is_idle(captions: Captions) -> None:
    assert captions.languages is None and captions.language is None
    assert (captions.state, captions.announce_state) == (CaptionState.IDLE, AnnounceState.IDLE)


def everything_on(world: MeetingWorld) -> Voicea:
    service = Voicea(world)
    world.join()
    world.captions.turn_on("en")
    world.captions.wait_languages()
    world.captions.request_language("de")
    captions = world.captions
    assert (captions.state, captions.announce_state) == (CaptionState.ENABLED, AnnounceState.JOINED)
    assert captions.language == "de" and captions.languages is not None
    return service


# -- without a meeting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEED_A_MEETING)
def test_every_call_needs_a_joined_meeting(world: MeetingWorld, name: str) -> None:
    with pytest.raises(LocalProtocolError, match="no meeting is joined"):
        NEED_A_MEETING[name](world.captions)
    is_idle(world.captions)
    assert world.controls == []


@pytest.mark.parametrize("name", NEED_A_MEETING)
def test_every_call_says_that_the_client_is_closed(world: MeetingWorld, name: str) -> None:
    world.join()
    world.one.close()
    with pytest.raises(PoolClosed):
        NEED_A_MEETING[name](world.captions)


@pytest.mark.parametrize(
    "call",
    [
        lambda captions: captions.turn_on(""),
        lambda captions: captions.turn_on(7),
        lambda captions: captions.request_language(""),
        lambda captions: captions.request_language(None),
        lambda captions: captions.request_language("de", timeout=-1),
        lambda captions: captions.wait_languages("1"),
        lambda captions: captions.set_spoken_language(None),
        lambda captions: captions.set_transcribing("on"),
        lambda captions: captions.set_manual(1),
        lambda captions: captions.transcripts(-1),
        lambda captions: captions.transcripts(maxsize=0),
    ],
)
def test_what_cannot_be_used_is_refused_and_changes_nothing(
    world: MeetingWorld, call: Callable[[Captions], object]
) -> None:
    world.join()
    with pytest.raises(ConfigurationError):
        call(world.captions)
    is_idle(world.captions)
    assert world.controls == [] and said(world.link()) == []


# -- controls ------------------------------------------------------------------------------------------------


def test_what_each_call_asks_of_the_service(world: MeetingWorld) -> None:
    world.join()
    world.captions.turn_on()
    world.captions.turn_on("es")
    world.captions.set_spoken_language("en")
    world.captions.set_transcribing(True)
    world.captions.set_manual(False)
    world.captions.turn_off()
    world.captions.subscribe()
    assert world.controls == [
        ("PUT", {"transcribe": {"caption": True}}),
        ("PUT", {"transcribe": {"caption": True}, "languageCode": "es"}),
        ("PUT", {"transcribe": {"spokenLanguage": "en"}}),
        ("PUT", {"transcribe": {"transcribing": True}}),
        ("PUT", {"manualCaption": {"enable": False}}),
    ]


def refused() -> tuple[int, Any]:
    return 403, {"message": "not you"}


def broken() -> tuple[int, Any]:
    raise ConnectionError("nobody there")


@pytest.mark.parametrize(("how", "error"), [(refused, RegistrationError), (broken, ConnectError)])
def test_captions_that_are_refused_are_not_on(
    world: MeetingWorld, how: Callable[[], tuple[int, Any]], error: type[LLMSessionsError]
) -> None:
    world.join()
    world.grants = [how]
    with pytest.raises(error):
        world.captions.turn_on()
    assert world.captions.state is CaptionState.IDLE and said(world.link()) == []
    world.captions.turn_on()
    assert world.captions.state is CaptionState.ENABLED and said(world.link()) == ["subscribe", "announce"]


def test_a_refusal_keeps_what_was_on_before(world: MeetingWorld) -> None:
    world.join()
    world.captions.turn_on("en")
    world.grants = [refused]
    with pytest.raises(RegistrationError, match="not you"):
        world.captions.turn_on("es")
    assert world.captions.state is CaptionState.ENABLED
    world.link().end()
    eventually(lambda: said(world.link(number=2))[:1] == ["subscribe"])


@pytest.mark.parametrize("how", ["leave", "unadmit"])
def test_a_leave_during_the_request_leaves_nothing_on(world: MeetingWorld, how: str) -> None:
    gate = Gate()
    world.join()
    world.grants = [lambda: (gate.pass_through(), (200, {}))[1]]
    asking = Background(world.captions.turn_on)
    gate.wait_arrived()
    getattr(world.meeting, how)()
    gate.open()
    assert isinstance(asking.error(), ConnectCancelled)
    is_idle(world.captions)
    if how == "leave":
        world.meeting.join({"locus": locus()})
    else:
        world.settle(DEFAULT, SessionState.IDLE)
        world.meeting.admit()
    world.link(number=2)
    world.calm()
    assert [said(link) for link in world.links(DEFAULT)] == [[], []]


# -- a leave resets everything -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["leave", "with", "unadmit", "client", "pool"])
def test_i85_every_way_out_resets_everything(world: MeetingWorld, how: str) -> None:
    everything_on(world)
    lines = world.captions.transcripts(LONG)
    match how:
        case "with":
            with world.meeting:
                pass
        case "client":
            world.one.close()
        case "pool":
            world.pool.close()
        case _:
            getattr(world.meeting, how)()
    is_idle(world.captions)
    assert list(lines) == []


@pytest.mark.parametrize("how", ["leave", "unadmit"])
def test_i85_afterwards_a_new_announcement_goes_out(world: MeetingWorld, how: str) -> None:
    service = everything_on(world)
    if how == "leave":
        world.meeting.leave()
        world.meeting.join({"locus": locus()})
    else:
        world.meeting.unadmit()
        world.settle(DEFAULT, SessionState.IDLE)
        world.meeting.admit()
    second = world.link(number=2)
    world.calm()
    assert said(second) == []
    is_idle(world.captions)
    service.service_id = "voicea-2"
    world.captions.announce()
    assert world.captions.wait_languages().service_id == "voicea-2"
    assert said(second) == ["announce"] and len(service.asked) == 1


def no_thread(*args: object) -> None:
    raise RuntimeError("can't start new thread")


def test_i85_after_a_join_that_failed_everything_is_idle(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything_on(world)
    world.meeting.leave()
    with monkeypatch.context() as patch:
        patch.setattr(world.pool._env.threads, "spawn", no_thread)
        with pytest.raises(RuntimeError):
            world.meeting.join({"locus": locus()})
    is_idle(world.captions)
    world.join()
    world.captions.announce()
    assert world.captions.wait_languages() is not None


# -- waits ---------------------------------------------------------------------------------------------------

WAITS: dict[str, Callable[[Captions], Any]] = {
    "wait_languages": lambda captions: captions.wait_languages(LONG),
    "request_language": lambda captions: captions.request_language("de", LONG),
    "transcripts": lambda captions: list(captions.transcripts(LONG)),
}


@pytest.mark.parametrize("end", ["leave", "unadmit", "client", "pool"])
@pytest.mark.parametrize("wait", WAITS)
def test_t1_every_wait_ends_with_the_join(world: MeetingWorld, wait: str, end: str) -> None:
    world.join()
    join = world.meeting._join
    assert join is not None
    captioning = join.captioning
    calls = [Background(lambda: WAITS[wait](world.captions)) for _ in range(2)]
    eventually(
        {
            "wait_languages": lambda: len(captioning._news._waiters) == 2,
            "request_language": lambda: (ask := captioning._ask) and len(ask.over._waiters) == 2,
            "transcripts": lambda: len(captioning._readers) == 2,
        }[wait]
    )
    {
        "leave": world.meeting.leave,
        "unadmit": world.meeting.unadmit,
        "client": world.one.close,
        "pool": world.pool.close,
    }[end]()
    for call in calls:
        if wait == "transcripts":
            assert call.result() == []
        else:
            assert isinstance(call.error(), PoolClosed if end == "pool" else ConnectCancelled)


def test_t1_every_wait_ends_with_its_timeout(world: MeetingWorld) -> None:
    world.join()
    with pytest.raises(WaitTimeout, match="no languages"):
        world.captions.wait_languages(SHORT)
    with pytest.raises(WaitTimeout, match="no answer"):
        world.captions.request_language("de", SHORT)
    assert list(world.captions.transcripts(SHORT)) == []


def test_an_iterator_of_a_closed_pool_ends_quietly_each_time(world: MeetingWorld) -> None:
    world.join()
    lines = world.captions.transcripts()
    world.pool.close()
    assert list(lines) == [] and list(lines) == []


@pytest.mark.parametrize("wait", ["wait_languages", "request_language", "transcripts"])
def test_in_a_callback_of_a_session_a_wait_is_refused(world: MeetingWorld, wait: str) -> None:
    refusals: list[Exception] = []

    def callback(payload: Any) -> None:
        try:
            WAITS[wait](world.captions)
        except LocalProtocolError as exc:
            refusals.append(exc)

    world.join()
    world.one.on("event:relay.event", callback)
    give(world.link(), relay("x"))
    eventually(lambda: refusals)
    assert "callback" in str(refusals[0]) and said(world.link()) == []


@pytest.mark.parametrize("wait", ["wait_languages", "request_language"])
def test_in_a_handler_of_the_meeting_a_wait_works(world: MeetingWorld, wait: str) -> None:
    found: list[Any] = []
    Voicea(world)

    def handler(payload: Any) -> None:
        world.captions.announce()
        found.append(WAITS[wait](world.captions))

    world.meeting.once("online", handler)
    world.join()
    eventually(lambda: found)


@pytest.mark.parametrize("ok", [True, False])
def test_the_answer_to_a_request_is_returned_and_heard(world: MeetingWorld, ok: bool) -> None:
    service, heard = Voicea(world), []
    service.refuses = set() if ok else {"de"}
    world.join()
    world.meeting.on("language_answer", heard.append)
    found = world.captions.request_language("de")
    eventually(lambda: heard == [found])
    assert found.ok is ok and world.captions.language == ("de" if ok else None)


def test_languages_are_heard_and_announcing_needs_a_channel(world: MeetingWorld) -> None:
    heard: list[Any] = []
    world.transport.on_open = lambda link: None
    world.meeting.on("languages", heard.append)
    world.meeting.join(panelist())
    world.transport.wait_links(1)
    with pytest.raises(NotOnline):
        world.captions.announce()
    world.links(DEFAULT)[0].become_ready()
    world.meeting.wait_online()
    world.captions.announce()
    give(world.link(), languages("voicea-7", "fr"))
    eventually(lambda: heard)
    assert heard == [world.captions.languages] and heard[0].allowed_languages == ("fr",)


# -- odds and ends -------------------------------------------------------------------------------------------


def test_t11_tokens_are_nowhere(world: MeetingWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llm_sessions")
    secret, secrets = make_token(), ["Bearer"]
    secrets.append(secret)
    world.meeting.join({"locus": locus(tokens={"datachannelToken": secret})})
    world.meeting.wait_online()
    world.grants = [refused]
    with pytest.raises(RegistrationError) as caught:
        world.captions.turn_on("en")
    world.captions.turn_on("en")
    give(world.link(), languages(), answer(), {"data": {"eventType": "relay.event", "relayType": 1}})
    world.calm()
    join = world.meeting._join
    assert join is not None
    texts = [record.getMessage() for record in caplog.records]
    texts += [str(caught.value), repr(caught.value), repr(world.captions), repr(join), repr(join.captioning)]
    assert texts and not [text for text in texts for one in secrets if one in text]
    assert world.posts == [(CHANNEL, secret)]


def test_its_text_says_how_far_things_are(world: MeetingWorld) -> None:
    assert repr(world.captions) == "<Captions idle, announcement idle>"
    everything_on(world)
    assert repr(world.captions) == "<Captions enabled, announcement joined>"


ASIDE: dict[str, tuple[Callable[[Captions], object], Callable[[], dict[str, Any]]]] = {
    "wait_languages": (lambda captions: captions.wait_languages(3 * LONG), languages),
    "request_language": (lambda captions: captions.request_language("de", 3 * LONG), answer),
    "transcripts": (lambda captions: next(captions.transcripts(3 * LONG)), lambda: transcript("hello")),
}


@pytest.mark.parametrize("name", ASIDE)
def test_t1_a_handler_of_the_meeting_gets_what_it_waits_for_though_its_queue_is_full(
    world: MeetingWorld, name: str
) -> None:
    wait, comes = ASIDE[name]
    begun, found, delivery = Gate(), [], world.meeting._delivery

    def handler(payload: object) -> None:
        begun.pass_through()
        found.append(wait(world.captions))

    delivery._limit = 1
    world.join()
    world.captions.announce()
    world.meeting.once("locus.state_message", handler)
    link = world.link()
    give(link, {"id": "first", "data": {"eventType": "locus.state_message"}})
    begun.wait_arrived()
    give(link, *[relay(f"r{number}") for number in range(4)])
    eventually(lambda: delivery._room._waiters)  # type: ignore[attr-defined]
    begun.open()
    if name == "transcripts":  # it hears what comes from its call on
        eventually(lambda: captioning(world)._living())
    elif name == "request_language":
        eventually(lambda: "ask de" in said(link))
    give(link, comes())
    eventually(lambda: found)
    world.calm()
