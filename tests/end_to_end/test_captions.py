"""Captions on real sockets: a caption service that answers at once, and a webinar around it."""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import (
    LLM_PRACTICE_SESSION,
    ConnectCancelled,
    DataChannelClient,
    LocalProtocolError,
    Meeting,
    NotOnline,
    PoolConfig,
    RegistrationError,
    WaitTimeout,
)
from llm_sessions.meetings.caption_protocol import AnnounceState, CaptionState
from llm_sessions.testing.captions import CaptionService, Webinar
from llm_sessions.testing.server import LocalServer, ServerConnection
from tests.support import LONG, QUICK, SHORT, Background, Recorder, eventually, run_together

Make = Callable[..., Meeting]
DEVICE = "https://wdm.example/devices/1"
BOTH = {"roles": ("PANELIST",), "practice_enabled": True}


@pytest.fixture
def make(client_context: ssl.SSLContext) -> Iterator[Make]:
    """Make meetings with clients of their own, which trust `server`."""
    clients: list[DataChannelClient] = []

    def make_one(**options: Any) -> Meeting:
        settings = PoolConfig(**{"ssl_context": client_context, **QUICK})
        clients.append(DataChannelClient("token", **{"device": DEVICE, "config": settings, **options}))
        return Meeting(clients[-1])

    yield make_one
    for client in clients:
        client.close()


@pytest.fixture
def service(plain: LocalServer) -> CaptionService:
    return CaptionService(plain)


@pytest.fixture
def plain() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server
    assert server.violations == []


def joined(meeting: Meeting, webinar: Webinar, practice: bool = False) -> Meeting:
    meeting.join(webinar.join_response())
    meeting.wait_online()
    if practice:
        meeting.wait_online(LLM_PRACTICE_SESSION)
    return meeting


def words(connection: ServerConnection) -> list[str]:
    """What a connection was told about the subchannel."""
    return [
        "on" if message["data"]["subscribe"] else "off"
        for message in list(connection.received)
        if message.get("type") == "subchannelSubscriptionRequest"
    ]


def replaced(server: LocalServer, session: str = "default", count: int = 2) -> ServerConnection:
    """Wait for the next connection of a session key; return it."""
    server.wait_for(lambda: len(server.connections(session)) >= count and bool(server.live(session)))
    return server.connections(session)[count - 1]


def test_captions_from_join_to_leave_and_again(server: LocalServer, make: Make) -> None:
    service, webinar, meeting = CaptionService(server), Webinar(server), make()
    heard = Recorder().listen(meeting, "transcript", "languages")
    for count in (1, 2):
        joined(meeting, webinar)
        meeting.captions.turn_on("en")
        languages = meeting.captions.wait_languages()
        assert languages.allowed_languages == ("de", "en", "es", "fr")
        assert languages.service_id == service.service_id
        assert meeting.captions.request_language("de").ok and meeting.captions.language == "de"
        assert not meeting.captions.request_language("xx").ok and meeting.captions.language == "de"
        with meeting.captions.transcripts(LONG) as lines:
            server.wait_for(lambda: len(service.subscribed()) == 1)
            service.transcript("hel", final=False)
            service.transcript("hello")
            service.manual_caption("typed")
            found = [next(lines), next(lines)]
        assert [(one.text, one.manual) for one in found] == [("hello", False), ("typed", True)]
        heard.wait("transcript", 3 * count)
        heard.wait("languages", count)
        meeting.leave()
        captions = meeting.captions
        assert captions.languages is None and captions.language is None
        assert (captions.state, captions.announce_state) == (CaptionState.IDLE, AnnounceState.IDLE)
    assert server.controls()["transcribe"] == {"caption": True}
    assert len(heard.payloads("languages")) == 2 and len(heard.payloads("transcript")) == 6
    assert [one.headers for one in service.announcements] == [{}, {}]


def test_i84_each_socket_of_a_session_is_told_once(server: LocalServer, make: Make) -> None:
    service, meeting = CaptionService(server), make()
    joined(meeting, Webinar(server))
    meeting.captions.turn_on()
    for count in (2, 3):
        server.wait_for(lambda n=count: words(server.connections()[n - 2]) == ["on"])  # type: ignore[misc]
        server.drop()
        replaced(server, count=count)
    server.wait_for(lambda: words(server.connections()[2]) == ["on"])
    meeting.captions.turn_off()
    server.wait_for(lambda: words(server.connections()[2]) == ["on", "off"])
    server.drop()
    last = replaced(server, count=4)
    meeting.captions.announce()
    meeting.wait_online()
    meeting._client.publish({"relayType": "x"})
    server.wait_for(lambda: any(one.relay_type == "x" for one in service.published))
    assert [words(one) for one in server.connections()] == [["on"], ["on"], ["on", "off"], []]
    assert words(last) == []


def test_i84_a_switchover_moves_the_subscription(server: LocalServer, make: Make) -> None:
    service, meeting = CaptionService(server), make()
    online = Recorder().listen(meeting, "online")
    joined(meeting, Webinar(server))
    meeting.captions.turn_on()
    with meeting.captions.transcripts(LONG) as lines:
        server.wait_for(lambda: len(service.subscribed()) == 1)
        server.shutdown_frame()
        new = replaced(server)
        server.wait_for(lambda: words(new) == ["on"])
        service.transcript("after")
        assert next(lines).text == "after"
    assert [words(one) for one in server.connections()] == [["on"], ["on"]]
    assert len(online.payloads("online")) == 1


def test_i84_without_data_channel_tokens_captions_come_all_the_same(
    plain: LocalServer, service: CaptionService, make: Make
) -> None:
    meeting = joined(make(data_channel_tokens=False), Webinar(plain))
    meeting.captions.turn_on()
    meeting.captions.wait_languages()
    with meeting.captions.transcripts(LONG) as lines:
        service.transcript("hello")
        assert next(lines).text == "hello"
    meeting.captions.turn_off()
    assert service.subscriptions == []


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(4))
def test_i84_many_threads_the_last_word_is_what_is_wanted(
    plain: LocalServer, service: CaptionService, make: Make, seed: int
) -> None:
    meeting = joined(make(), Webinar(plain, **BOTH), practice=True)
    chances = iter([random.Random(seed * 10 + number) for number in range(4)])

    def change() -> None:
        chance = next(chances)
        for _ in range(25):
            match chance.randrange(8):
                case 0:
                    plain.drop(session=chance.choice(["default", "practice"]))
                case 1 | 2 | 3:
                    meeting.captions.subscribe()
                case _:
                    meeting.captions.turn_off()

    assert run_together(4, change) == [None] * 4
    final = bool(seed % 2)
    (meeting.captions.subscribe if final else meeting.captions.turn_off)()
    for key, session_id in (("default", "llm-default-session"), ("practice", LLM_PRACTICE_SESSION)):
        meeting.wait_online(session_id)

        def settled(key: str = key) -> bool:
            last = words(plain.connections(key)[-1])
            return bool(plain.live(key)) and (last[-1:] == ["on"]) == final

        plain.wait_for(settled, timeout=LONG)
    for connection in plain.connections():
        assert words(connection) == (["on", "off"] * 50)[: len(words(connection))]


@pytest.mark.parametrize("how", ["leave", "unadmit"])
def test_i85_a_new_join_and_a_new_admission_announce_again(
    plain: LocalServer, service: CaptionService, make: Make, how: str
) -> None:
    webinar = Webinar(plain)
    meeting = joined(make(), webinar)
    for count in (1, 2):
        meeting.captions.announce()
        meeting.captions.wait_languages()
        assert len(service.announcements) == count
        if how == "leave":
            meeting.leave()
            joined(meeting, webinar)
        else:
            meeting.unadmit()
            plain.wait_for(lambda: plain.live() == [])
            eventually(lambda: not meeting._client.is_connected())
            with pytest.raises(NotOnline):
                meeting.captions.announce()
            meeting.admit()
            meeting.update_locus(webinar.locus(tokens=True))
            meeting.wait_online()
        assert meeting.captions.languages is None


def test_i86_the_answer_comes_before_the_send_has_returned(server: LocalServer, make: Make) -> None:
    CaptionService(server)
    for _ in range(5):
        with make() as meeting:
            joined(meeting, Webinar(server))
            meeting.captions.announce()
            assert meeting.captions.wait_languages(LONG).max_languages == 5


def test_i88_announced_on_the_practice_session_again_with_the_services_id(
    plain: LocalServer, service: CaptionService, make: Make
) -> None:
    webinar = Webinar(plain)
    meeting = joined(make(), webinar)
    meeting.captions.turn_on()
    meeting.captions.wait_languages()
    webinar.start_practice()
    meeting.update_locus(webinar.promote())
    meeting.wait_online(LLM_PRACTICE_SESSION)
    plain.wait_for(lambda: [one.session for one in service.announcements] == ["default", "practice"])
    assert service.announcements[1].headers == {"to": service.service_id}
    plain.wait_for(lambda: len(service.subscribed("practice")) == 1)
    heard = meeting.captions.transcripts(LONG)
    service.transcript("once")  # on both channels
    service.transcript("practice", session="practice")
    assert [next(heard).text, next(heard).text] == ["once", "practice"]
    assert meeting.captions.request_language("es").ok
    assert service.language_requests[0].session == "practice"


def test_i89_a_socket_lost_before_the_answer_is_made_up_for(
    plain: LocalServer, service: CaptionService, make: Make
) -> None:
    meeting = joined(make(), Webinar(plain))
    service.hold_answers()
    meeting.captions.announce()
    asking = Background(lambda: meeting.captions.request_language("fr", LONG))
    plain.wait_for(lambda: len(service.announcements) == len(service.language_requests) == 1)
    with pytest.raises(WaitTimeout):
        meeting.captions.wait_languages(SHORT)
    plain.drop()
    service.release_answers()
    meeting.captions.wait_languages()
    assert asking.result().ok and len(service.announcements) == 2


def test_i90_the_channel_moves_and_captions_go_on(server: LocalServer, make: Make) -> None:
    service, webinar, meeting = CaptionService(server), Webinar(server), make()
    joined(meeting, webinar)
    meeting.captions.turn_on()
    before = meeting.captions.wait_languages()
    meeting.captions.request_language("de")
    with meeting.captions.transcripts(LONG) as lines:
        meeting.update_locus(webinar.move(session="moved"))
        server.wait_for(lambda: len(service.subscribed("moved")) == 1)
        service.transcript("moved", session="moved")
        assert next(lines).text == "moved"
    assert meeting.captions.languages is before and meeting.captions.language == "de"


def test_i93_asked_for_while_the_registration_is_held(
    plain: LocalServer, service: CaptionService, make: Make
) -> None:
    plain.hold_rest("/datachannel/default")
    meeting = make()
    meeting.join(Webinar(plain).join_response())
    meeting.captions.turn_on()
    assert plain.connections("default") == []
    plain.release_rest("/datachannel/default")
    assert meeting.captions.wait_languages(LONG).service_id == service.service_id
    assert len(service.subscribed()) == 1


def test_captions_that_are_refused(plain: LocalServer, service: CaptionService, make: Make) -> None:
    meeting = joined(make(), Webinar(plain))
    plain.reject_rest(403, path="/locus/meeting/controls/")
    with pytest.raises(RegistrationError):
        meeting.captions.turn_on()
    assert meeting.captions.state is CaptionState.IDLE and service.subscriptions == []
    meeting.captions.turn_on()
    plain.wait_for(lambda: len(service.subscribed()) == 1)


def test_a_leave_while_the_request_is_held(plain: LocalServer, service: CaptionService, make: Make) -> None:
    meeting = joined(make(), Webinar(plain))
    plain.hold_rest("/locus/meeting/controls/")
    asking = Background(meeting.captions.turn_on)
    plain.wait_for(lambda: any(one.method == "PUT" for one in plain.requests))
    meeting.leave()
    plain.release_rest("/locus/meeting/controls/")
    assert isinstance(asking.error(), ConnectCancelled) and service.subscriptions == []


def test_another_service_takes_over(plain: LocalServer, service: CaptionService, make: Make) -> None:
    meeting = joined(make(), Webinar(plain))
    answers = Recorder().listen(meeting, "language_answer")
    meeting.captions.announce()
    meeting.captions.wait_languages()
    meeting.captions.request_language("de")
    service.restart()
    assert answers.wait("language_answer", 2)[1].ok
    assert [one.headers for one in service.language_requests][1] == {"to": service.service_id}
    assert meeting.captions.languages is not None
    assert meeting.captions.languages.service_id == service.service_id
    service.refuse_languages()
    service.restart()
    eventually(lambda: meeting.captions.language is None)
    assert len(service.language_requests) == 3


def test_in_a_callback_of_a_session_a_wait_is_refused_and_in_the_meetings_it_works(
    plain: LocalServer, service: CaptionService, make: Make
) -> None:
    meeting, refusals, answers = joined(make(), Webinar(plain)), [], []

    def of_the_session(envelope: Any) -> None:
        try:
            meeting.captions.request_language("de", LONG)
        except LocalProtocolError as exc:
            refusals.append(exc)

    meeting._client.on("event:relay.event", of_the_session)
    meeting.once("reaction", lambda event: answers.append(meeting.captions.request_language("de", LONG)))
    service.reaction()
    eventually(lambda: refusals and answers)
    assert answers[0].ok
