"""CaptionService and Webinar, driven by websocket-client, held against what the library says and reads."""

from __future__ import annotations

import contextlib
import http.client
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import websocket
from hypothesis import given
from hypothesis import strategies as st

from llm_sessions import Envelope
from llm_sessions.meetings import caption_protocol
from llm_sessions.meetings.caption_events import (
    CaptionLanguageAnswer,
    CaptionLanguages,
    EvaEvent,
    Highlight,
    Reaction,
    Transcript,
)
from llm_sessions.meetings.caption_reader import read_relay
from llm_sessions.meetings.locus import read_join, read_locus, tokens_in
from llm_sessions.meetings.rules import Role
from llm_sessions.testing.captions import CaptionService, Webinar
from llm_sessions.testing.captions_checks import check_message, member
from llm_sessions.testing.server import LocalServer
from tests.support import LONG

QUERY = {
    "outboundWireFormat": "text",
    "bufferStates": "true",
    "aliasHttpStatus": "true",
    "clientTimestamp": "1",
}
AWARE = {"subscriptionAwareSubchannels": "transcription"}


class Client:
    """A registered data channel over websocket-client; it acks what it reads."""

    def __init__(self, server: LocalServer, session: str, *, registered: bool = True, **query: str) -> None:
        self.binding = "none"
        if registered:
            connection = http.client.HTTPConnection(server.host, server.port, timeout=LONG)
            headers = {"Authorization": "Bearer t", "Content-Type": "application/json"}
            connection.request("POST", f"/datachannel/{session}", json.dumps({"deviceUrl": "d"}), headers)
            self.binding = json.loads(connection.getresponse().read())["binding"]
            connection.close()
        self._uri = server.datachannel_url(session)
        self._numbers = 0
        # Any: the library's annotations miss half of it.
        self.ws: Any = websocket.create_connection(server.url(session, **QUERY, **query), timeout=LONG)
        first = {"id": str(uuid.uuid4()), "type": "authorization", "data": {"token": "Bearer t"}}
        self.ws.send(json.dumps({**first, "trackingId": "t"}))
        assert self.receive()["data"]["eventType"] == "mercury.buffer_state"

    def send(self, kind: str, **message: Any) -> None:
        self._numbers += 1
        self.ws.send(json.dumps({"id": str(self._numbers), "type": kind, "trackingId": "t", **message}))

    def publish(self, publication: caption_protocol.Publication, **message: Any) -> None:
        data = {"eventType": "relay.event", **publication.data}
        route = {"route": self.binding}
        headers = dict(publication.headers)
        self.send("publishRequest", **{"recipients": route, "headers": headers, "data": data, **message})

    def subscribe(self, on: bool = True) -> None:
        names = [caption_protocol.TRANSCRIPTION]
        lists = {"subscribe": names if on else [], "unsubscribe": [] if on else names}
        self.send("subchannelSubscriptionRequest", data={"datachannelUri": self._uri, **lists})

    def receive(self) -> dict[str, Any]:
        obj = json.loads(self.ws.recv())
        assert isinstance(obj, dict)
        self.ws.send(json.dumps({"type": "ack", "messageId": obj["id"]}))
        return obj

    def read(self) -> Any:
        """The library's event for the next message."""
        reading = read_relay(Envelope("s", self.receive()))
        assert not reading.problems
        [event] = reading.events
        return event


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server
    assert server.violations == []


@pytest.fixture
def service(server: LocalServer) -> CaptionService:
    return CaptionService(server)


@pytest.fixture
def connect(server: LocalServer, service: CaptionService) -> Iterator[Callable[..., Client]]:
    with contextlib.ExitStack() as stack:

        def make(session: str = "default", **options: Any) -> Client:
            client = Client(server, session, **options)
            stack.callback(client.ws.shutdown)
            return client

        yield make


def languages_of(service: CaptionService) -> CaptionLanguages:
    return CaptionLanguages("s", {}, ("de", "en", "es", "fr"), 5, ("en", "es"), service.service_id)


# Answers


def test_i86_an_announcement_is_answered_at_once(
    server: LocalServer, service: CaptionService, connect: Callable[..., Client]
) -> None:
    default, practice = connect("default"), connect("practice")
    default.publish(caption_protocol.announcement())
    assert default.read() == languages_of(service)
    practice.publish(caption_protocol.announcement(service.service_id))
    assert practice.read() == languages_of(service)
    assert [one.session for one in service.announcements] == ["default", "practice"]
    assert [one.headers for one in service.announcements] == [{}, {"to": service.service_id}]
    assert service.announcements[0].payload == {"version": "v2"}
    assert service.published[1].connection is server.live("practice")[0]
    assert not service.language_requests


def test_answers_are_held_until_released(
    server: LocalServer, service: CaptionService, connect: Callable[..., Client]
) -> None:
    client = connect()
    service.hold_answers()
    client.publish(caption_protocol.announcement())
    client.publish(caption_protocol.language_request("de", str(uuid.uuid4())))
    server.wait_for(lambda: service.language_requests)
    service.reaction()
    assert isinstance(client.read(), Reaction), "nothing was answered before it"
    assert service.release_answers() == 2
    assert client.read() == languages_of(service)
    assert client.read() == CaptionLanguageAnswer("s", {}, True, 200, service_id=service.service_id)
    client.publish(caption_protocol.announcement())
    assert client.read() == languages_of(service), "and no longer"
    assert service.release_answers() == 0


def test_there_may_be_no_service(
    server: LocalServer, service: CaptionService, connect: Callable[..., Client]
) -> None:
    client = connect()
    service.ignore_announcements()
    client.publish(caption_protocol.announcement())
    server.wait_for(lambda: service.announcements)
    client.publish(caption_protocol.language_request("fr", str(uuid.uuid4())))
    assert isinstance(client.read(), CaptionLanguageAnswer)
    service.ignore_announcements(on=False)
    client.publish(caption_protocol.announcement())
    assert client.read() == languages_of(service)


def test_languages_are_granted_or_refused(service: CaptionService, connect: Callable[..., Client]) -> None:
    client = connect()
    service.refuse_languages(303, "busy", times=2)
    answers = []
    for language in ("de", "de", "de", "xx"):
        client.publish(caption_protocol.language_request(language, str(uuid.uuid4()), service.service_id))
        answers.append(client.read())
    own = service.service_id
    refused = CaptionLanguageAnswer("s", {}, False, None, 303, "busy", own)
    unknown = CaptionLanguageAnswer("s", {}, False, None, 400, "'xx' is not an allowed language", own)
    assert answers == [refused, refused, CaptionLanguageAnswer("s", {}, True, 200, service_id=own), unknown]
    assert [one.payload["translationLanguage"] for one in service.language_requests] == ["de"] * 3 + ["xx"]
    with pytest.raises(ValueError):
        service.refuse_languages(times=0)


def test_a_restarted_service_has_another_id_and_says_so(
    service: CaptionService, connect: Callable[..., Client]
) -> None:
    clients = connect("default"), connect("practice")
    old = service.service_id
    assert service.restart() == 2
    assert service.service_id != old
    for client in clients:
        assert client.read() == languages_of(service)
    clients[0].publish(caption_protocol.announcement(old))  # it may not have heard yet
    assert clients[0].read() == languages_of(service)


# Captions and what goes with them


def test_what_is_sent_is_what_the_library_reads(
    service: CaptionService, connect: Callable[..., Client]
) -> None:
    client = connect()
    assert service.transcript("Hel", final=False, transcript_id="t", csis=[7]) == 1
    assert service.transcript(
        "Hello.", transcript_id="t", csis=[7], language="de", translations={"fr": "Salut"}
    )
    assert service.manual_caption("typed", caption_id="c", end_millis=100)
    assert service.manual_caption("ty", caption_id="c", final=False)
    assert service.highlight("this", label="Decision")
    assert service.voicea({"type": "eva_wake"})
    assert service.reaction("clap", sender="ann")
    interim, final = client.read(), client.read()
    assert interim == Transcript("s", {}, "Hel", (7,), False, 500, 1000, "t", "en")
    assert final == Transcript("s", {}, "Hello.", (7,), True, 500, 1000, "t", "de")
    assert final.raw["translations"] == {"fr": "Salut"}
    assert client.read() == Transcript("s", {}, "typed", (1,), True, 0, 100, "c", manual=True)
    assert not client.read().final
    highlight = client.read()
    assert isinstance(highlight, Highlight)
    assert (highlight.text, highlight.label) == ("this", "Decision")
    assert client.read() == EvaEvent("s", {}, "wake", True)
    assert client.read() == Reaction("s", {}, "clap", "ann", "Ann", client.binding)


def test_i83_each_channel_gets_its_own_binding(
    service: CaptionService, connect: Callable[..., Client]
) -> None:
    clients = {key: connect(key) for key in ("default", "practice")}
    assert service.relay("anything", {"x": 1}) == 2
    for key, client in clients.items():
        obj = client.receive()
        assert obj["recipients"] == {"route": client.binding} and obj["data"]["x"] == 1
        assert service.bindings(key) == [client.binding]
    again = connect("default")
    assert service.bindings("default") == [clients["default"].binding, again.binding]
    assert service.relay("anything", session="default") == 2
    assert again.receive()["recipients"] == {"route": again.binding}
    assert service.reaction(session="practice") == 1
    assert service.reaction(session="nobody") == 0
    assert isinstance(clients["practice"].read(), Reaction)


def test_without_a_registration_there_is_no_binding(
    service: CaptionService, connect: Callable[..., Client]
) -> None:
    client = connect(registered=False)
    client.publish(caption_protocol.announcement())
    assert "recipients" not in client.receive()
    assert service.bindings() == []


def test_i84_an_aware_socket_gets_transcripts_only_while_it_is_subscribed(
    server: LocalServer, service: CaptionService, connect: Callable[..., Client]
) -> None:
    plain, aware = connect("plain"), connect("aware", **AWARE)
    assert service.transcript("one") == 1 == service.highlight("one")
    assert service.reaction() == 2
    aware.subscribe()
    server.wait_for(lambda: service.subscribed("aware"))
    assert service.transcript("two") == 2
    assert [type(aware.read()), aware.read().text] == [Reaction, "two"]
    aware.subscribe(on=False)
    server.wait_for(lambda: not service.subscribed("aware"))
    assert service.transcript("three") == 1
    assert [one.session for one in service.subscriptions] == ["aware", "aware"]
    assert [plain.read().text for _ in range(2)] == ["one", "one"]
    again = connect("aware", **AWARE)
    assert service.transcript("four", session="aware") == 0, "it belongs to the socket"
    again.subscribe()
    server.wait_for(lambda: service.subscribed("aware"))
    assert service.transcript("five", session="aware") == 1


class Counting(list[dict[str, Any]]):
    """What a connection received; counts the messages that somebody looks at."""

    looked_at = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for message in super().__iter__():
            self.looked_at += 1
            yield message

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.looked_at += len(found) if isinstance(index, slice) else 1
        return found


def test_what_was_received_is_looked_at_once(
    server: LocalServer, service: CaptionService, connect: Callable[..., Client]
) -> None:
    client = connect(**AWARE)
    [connection] = server.live()
    server.wait_for(lambda: connection.acks != [])
    before = len(connection.received)
    received = connection.received = Counting(connection.received)
    client.subscribe()
    for _ in range(50):
        client.publish(caption_protocol.language_request("de", str(uuid.uuid4())))
    server.wait_for(lambda: len(received) == before + 51)
    assert service.transcript("first") == 1
    assert received.looked_at == before + 51
    assert [service.transcript(str(number)) for number in range(20)] == [1] * 20
    assert received.looked_at == before + 51, "nothing is new"
    client.subscribe(on=False)
    server.wait_for(lambda: not service.subscribed())
    assert received.looked_at == len(received) == before + 52


def test_subscriptions_from_before_the_service_count(
    server: LocalServer, connect: Callable[..., Client]
) -> None:
    client = connect(**AWARE)
    client.subscribe()
    server.wait_for(lambda: "subscribe" in json.dumps(server.live()[0].received))
    late = CaptionService(server)
    assert late.transcript("hello") == 1
    assert client.read().text == "hello"


# What clients do wrong


def test_violations_are_the_servers(
    server: LocalServer, service: CaptionService, connect: Callable[..., Client]
) -> None:
    default, practice = connect("default"), connect("practice")
    default.publish(caption_protocol.announcement(), recipients={"route": practice.binding})
    default.subscribe()
    server.wait_for(lambda: len(server.violations) == 2)
    assert server.violations == [
        f"publishRequest on 'default': route {practice.binding!r} is not a binding of 'default'",
        "subchannelSubscriptionRequest on 'default': the socket's query has no subscriptionAwareSubchannels",
    ]
    assert default.read() == languages_of(service), "it is answered all the same"
    server.violations.clear()


def test_any_nonsense_leaves_the_service_at_work(
    server: LocalServer, service: CaptionService, connect: Callable[..., Client]
) -> None:
    client = connect()
    for data in (None, [], {"relayType": []}, {"relayType": "voicea.transl.req"}, {"relayType": {}}):
        client.send("publishRequest", data=data, recipients=[1], headers=[])
    client.send("subchannelSubscriptionRequest", data={"subscribe": [{}], "unsubscribe": {}})
    assert client.read() == CaptionLanguageAnswer(
        "s", {}, False, None, 400, "None is not an allowed language", service.service_id
    )
    client.publish(caption_protocol.announcement())
    assert client.read() == languages_of(service)
    assert all(connection.error is None for connection in server.connections())
    assert server.violations
    server.violations.clear()


GOOD: dict[str, Any] = {
    "id": "1",
    "type": "publishRequest",
    "recipients": {"route": "b"},
    "headers": {"to": "service"},
    "data": {"eventType": "relay.event", "relayType": "client.annc", "clientPayload": {"version": "v2"}},
    "trackingId": "t",
}
REQUEST: dict[str, Any] = {
    "eventType": "relay.event",
    "relayType": "voicea.transl.req",
    "clientPayload": {"translationLanguage": "de", "id": "9f4f1f2e-3c53-4d0e-8b5c-2a4f0d3f6a11"},
}
SUBSCRIPTION: dict[str, Any] = {
    "id": "2",
    "type": "subchannelSubscriptionRequest",
    "data": {"datachannelUri": "http://proxy:1/datachannel/a", "subscribe": ["x"], "unsubscribe": []},
    "trackingId": "t",
}


def check(message: dict[str, Any], **options: Any) -> list[str]:
    known: dict[str, Any] = {
        "session": "a",
        "bindings": ["b"],
        "service_ids": ["service"],
        "datachannel_url": "http://127.0.0.1:9/datachannel/a",
        "subscribing": True,
    }
    return check_message(message, **{**known, **options})


@pytest.mark.parametrize(
    "message",
    [
        GOOD,
        {**GOOD, "recipients": [{"route": "b"}]},
        {**GOOD, "headers": {}},
        {**GOOD, "data": REQUEST},
        {**GOOD, "data": {"eventType": "other"}},
        SUBSCRIPTION,
        {"type": "ping"},
        {},
    ],
)
def test_good_messages_pass(message: dict[str, Any]) -> None:
    assert check(message) == []


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({**GOOD, "id": 1}, "id is not a string: 1"),
        ({**GOOD, "trackingId": None}, "trackingId is not a string: None"),
        ({**GOOD, "recipients": None}, "no route: None"),
        ({**GOOD, "recipients": {"route": "c"}}, "route 'c' is not a binding of 'a'"),
        ({**GOOD, "headers": []}, "headers are not an object: []"),
        ({**GOOD, "headers": {"to": "other"}}, "addressed to 'other', which is no caption service"),
        ({**GOOD, "data": {"eventType": "relay.event"}}, "relay event without a relayType: None"),
        (
            {**GOOD, "data": {**GOOD["data"], "clientPayload": {}}},
            "announcement whose version is not v2: {}",
        ),
        (
            {**GOOD, "data": {**REQUEST, "clientPayload": {"id": REQUEST["clientPayload"]["id"]}}},
            "language request without a translationLanguage",
        ),
        (
            {**GOOD, "data": {**REQUEST, "clientPayload": {"translationLanguage": "de", "id": "1"}}},
            "language request whose id is not a uuid4",
        ),
        ({**SUBSCRIPTION, "data": None}, "datachannelUri is None"),
        (
            {**SUBSCRIPTION, "data": {**SUBSCRIPTION["data"], "datachannelUri": "http://h/datachannel/b"}},
            "datachannelUri is 'http://h/datachannel/b', not http://127.0.0.1:9/datachannel/a",
        ),
        (
            {**SUBSCRIPTION, "data": {**SUBSCRIPTION["data"], "datachannelUri": "http://[/datachannel/a"}},
            "datachannelUri is 'http://[/datachannel/a'",
        ),
        (
            {**SUBSCRIPTION, "data": {**SUBSCRIPTION["data"], "unsubscribe": "x"}},
            "subchannels are not a list of names: 'x'",
        ),
        (
            {**SUBSCRIPTION, "data": {**SUBSCRIPTION["data"], "subscribe": []}},
            "neither subscribes nor unsubscribes",
        ),
    ],
)
def test_departures_are_named(message: dict[str, Any], problem: str) -> None:
    assert any(f"{message['type']} on 'a': {problem}" in found for found in check(message)), check(message)


def test_what_is_not_known_is_not_checked() -> None:
    assert check({**GOOD, "recipients": {"route": "c"}}, bindings=[]) == []
    assert check(SUBSCRIPTION, subscribing=False) == [
        "subchannelSubscriptionRequest on 'a': the socket's query has no subscriptionAwareSubchannels"
    ]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["route", "to", "relayType", "clientPayload", "id", "subscribe", "datachannelUri"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(
    st.sampled_from(["publishRequest", "subchannelSubscriptionRequest"]),
    st.dictionaries(st.sampled_from([*GOOD]), ANYTHING),
)
def test_anything_can_be_checked(kind: str, message: dict[str, Any]) -> None:
    for problem in check({**message, "type": kind}):
        assert problem.startswith(f"{kind} on 'a': ")


def test_members_of_nested_objects() -> None:
    assert member({"a": {"b": 1}}, "a", "b") == 1
    assert member({"a": 1}, "a", "b") is None is member([], "a")


# The webinar


def test_a_webinar_is_told_step_by_step(server: LocalServer) -> None:
    webinar = Webinar(server)
    response = webinar.join_response()
    joined = read_join(response)
    assert joined.locus_url == server.locus_url()
    assert joined.datachannel_url == server.datachannel_url("default")
    assert joined.practice_url == server.datachannel_url("practice")
    assert joined.participant_id == "participant"
    assert joined.roles == {Role.ATTENDEE} and joined.practice_enabled is False
    assert len(tokens_in(response["locus"])) == 2
    steps: list[tuple[dict[str, Any], set[Role], bool]] = [
        (webinar.promote(), {Role.PANELIST}, False),
        (webinar.start_practice(), {Role.PANELIST}, True),
        (webinar.demote(), {Role.ATTENDEE}, True),
        (webinar.promote(), {Role.PANELIST}, True),
        (webinar.stop_practice(), {Role.PANELIST}, False),
    ]
    for locus, roles, enabled in steps:
        assert tokens_in(locus) == {}
        later = read_locus(joined, locus)
        assert (later.roles, later.practice_enabled) == (roles, enabled)
        joined = later


def test_a_webinar_can_move_and_leave_things_out(server: LocalServer) -> None:
    webinar = Webinar(server, session="a", practice="b", roles=["PANELIST", "COHOST"], practice_enabled=True)
    response = webinar.join_response(tokens=False)
    joined = read_join(response)
    assert tokens_in(response["locus"]) == {}
    assert joined.roles == {Role.PANELIST, Role.COHOST}
    moved = read_locus(joined, webinar.move(practice="c"))
    assert moved.datachannel_url == server.datachannel_url("a")
    assert moved.practice_url == server.datachannel_url("c")
    assert read_locus(moved, webinar.move(session="d")).datachannel_url == server.datachannel_url("d")
    assert "info" not in webinar.locus(urls=False)
    assert read_locus(moved, webinar.locus(urls=False)) == moved
    fresh = tokens_in(webinar.locus(tokens=True))
    assert len(fresh) == 2 and fresh != tokens_in(webinar.locus(tokens=True))
