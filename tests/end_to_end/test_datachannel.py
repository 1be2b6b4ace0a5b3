"""Registering and connecting on real sockets, plain and TLS: the client against `LocalServer`."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import (
    ALL_SESSIONS,
    LLM_DEFAULT_SESSION,
    LLM_PRACTICE_SESSION,
    ConnectCancelled,
    DataChannelClient,
    DeviceRegistration,
    PoolConfig,
    RegistrationError,
    SessionState,
    TokenRefreshError,
)
from llm_sessions.testing.server import LocalServer, RestRequest, make_token
from tests.support import LONG, QUICK, Background, Recorder, eventually

Make = Callable[..., DataChannelClient]
DEVICE = "https://wdm.example/devices/1"
HEADER = "data-channel-auth-token"
AWARE = "subscriptionAwareSubchannels=transcription"


@pytest.fixture(autouse=True)
def no_wait_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_sessions.datachannel.auth.REFUSAL_WAIT", 0.01)


@pytest.fixture
def make(client_context: ssl.SSLContext) -> Iterator[Make]:
    clients: list[DataChannelClient] = []

    def make_one(token: Any = "token", *, config: dict[str, Any] | None = None, **options: Any) -> Any:
        settings = PoolConfig(**{"ssl_context": client_context, **QUICK, **(config or {})})
        clients.append(DataChannelClient(token, **{"device": DEVICE, "config": settings, **options}))
        return clients[-1]

    yield make_one
    for client in clients:
        client.close()


@pytest.fixture
def client(make: Make) -> DataChannelClient:
    return make()


def join(server: LocalServer, **options: Any) -> dict[str, Any]:
    answer: dict[str, Any] = server.join_response(practice="practice", **options)["locus"]
    return answer


def register(client: DataChannelClient, locus: dict[str, Any], practice: bool = False, **options: Any) -> Any:
    name, token = (
        ("practiceSessionDatachannel", "practiceSessionDatachannelToken")
        if practice
        else ("datachannel", "datachannelToken")
    )
    session_id = LLM_PRACTICE_SESSION if practice else LLM_DEFAULT_SESSION
    return client.register_and_connect(
        locus["url"], locus["info"][f"{name}Url"], locus["self"].get(token), session_id, **options
    )


def posts(server: LocalServer, session: str = "*") -> list[RestRequest]:
    return [
        one
        for one in server.requests
        if one.method == "POST"
        and one.path.startswith("/datachannel/")
        and session in ("*", one.path.rpartition("/")[2])
    ]


def test_two_channels_of_a_webinar(server: LocalServer, client: DataChannelClient) -> None:
    server.tokens, server.datachannel_tokens = {"token"}, set()
    locus = join(server)
    heard = Recorder()
    client.on("event:relay.event", heard.named("main"))
    client.on("event:relay.event", heard.named("practice"), session_id=LLM_PRACTICE_SESSION)
    main, practice = register(client, locus), register(client, locus, practice=True)
    assert main.online and practice.online and AWARE in main.url
    server.publish({"text": "to main"}, session="default")
    server.publish({"text": "to practice"}, session="practice")
    assert [one.data["text"] for one in heard.wait("main")] == ["to main"]
    assert [one.data["text"] for one in heard.wait("practice")] == ["to practice"]
    answers = [one.answer for one in posts(server)]
    assert [client.binding(), client.binding(LLM_PRACTICE_SESSION)] == [one["binding"] for one in answers]
    assert [one.body for one in posts(server)] == [{"deviceUrl": DEVICE}] * 2
    own = locus["self"]
    assert [one.headers[HEADER] for one in posts(server)] == [
        own["datachannelToken"],
        own["practiceSessionDatachannelToken"],
    ]
    client.publish({"relayType": "client.annc"})
    client.update_subchannel_subscriptions(["transcription"])
    [connection] = server.live("practice")
    server.wait_for(
        lambda: [one["id"] for one in connection.received if one.get("id") in ("1", "2")] == ["1", "2"]
    )
    client.disconnect(LLM_PRACTICE_SESSION, code=3050, reason="done (permanent)")
    assert (connection.close_code, connection.close_reason) == (3050, "done (permanent)")
    assert main.online and not practice.online


@pytest.mark.parametrize("toggle", [True, False])
@pytest.mark.parametrize("token", [True, False])
def test_i45_header_and_query_on_the_wire(server: LocalServer, make: Make, toggle: bool, token: bool) -> None:
    client = make(data_channel_tokens=toggle)
    register(client, join(server, tokens=token))
    [post] = posts(server)
    assert (HEADER in post.headers) is (toggle and token)
    [connection] = server.connections("default")
    assert (connection.query.get("subscriptionAwareSubchannels") == ["transcription"]) is toggle


def test_i47_once_for_the_same_urls_and_again_for_others(
    server: LocalServer, client: DataChannelClient
) -> None:
    locus = join(server)
    register(client, locus)
    register(client, locus)
    assert len(posts(server)) == 1
    locus["info"]["datachannelUrl"] = server.datachannel_url("other")
    register(client, locus)
    assert [one.path for one in posts(server)] == ["/datachannel/default", "/datachannel/other"]
    [old] = server.connections("default")
    assert (old.close_code, old.close_reason) == (3050, "replaced")
    assert client.web_socket_url() == server.url("other") and len(server.live()) == 1


def test_i46_every_reconnect_is_a_registration_of_its_own(
    server: LocalServer, client: DataChannelClient
) -> None:
    register(client, join(server))
    heard = Recorder().listen(client, "online")
    for count in (1, 2):
        server.drop("default")
        heard.wait("online", count)
        assert client.binding() == posts(server)[-1].answer["binding"]
    assert len(posts(server)) == 3 and len({one.answer["binding"] for one in posts(server)}) == 3


def test_i24_a_switchover_registers_anew_and_subscribes(
    server: LocalServer, client: DataChannelClient
) -> None:
    heard = Recorder().listen(client, "event:mercury_shutdown_switchover_complete", "offline")
    register(client, join(server))
    before = client.binding()
    server.shutdown_frame("default")
    heard.wait("event:mercury_shutdown_switchover_complete")
    assert client.is_connected() and client.binding() == posts(server)[-1].answer["binding"] != before
    queries = [one.query["subscriptionAwareSubchannels"] for one in server.connections("default")]
    assert queries == [["transcription"]] * 2
    assert heard.names == ["event:mercury_shutdown_switchover_complete"]


@pytest.mark.parametrize("end", ["disconnect", "disconnect_all", "close"])
def test_i48_a_registration_that_lands_after_the_end_opens_nothing(
    server: LocalServer, client: DataChannelClient, end: str
) -> None:
    server.hold_rest("/datachannel/*")
    locus = join(server)
    connecting = Background(lambda: register(client, locus))
    server.wait_for(lambda: len(posts(server)) == 1)
    ending = Background(getattr(client, end))
    assert isinstance(connecting.error(), ConnectCancelled if end != "close" else Exception)
    server.release_rest("/datachannel/*")
    ending.result()
    eventually(lambda: not client.pool.stats().abandoned_attempts)
    server.wait_for(lambda: posts(server)[0].status == 200)
    assert server.connections() == []


def test_i54_i63_expired_tokens_are_fetched_for_their_session_before_the_post(
    server: LocalServer, client: DataChannelClient
) -> None:
    server.datachannel_tokens = set()
    locus = join(server)
    fresh = {name: server.join_response(practice="p")["locus"]["self"] for name in ("default", "practice")}
    client.set_refresh_handler(lambda: fresh["default"]["datachannelToken"])
    client.set_refresh_handler(
        lambda: fresh["practice"]["practiceSessionDatachannelToken"], LLM_PRACTICE_SESSION
    )
    locus["self"] = {"datachannelToken": make_token(expires_in=-1)}
    register(client, locus)
    register(client, locus, practice=True)
    assert (
        [one.headers[HEADER] for one in posts(server)]
        == [client.get_token(), client.get_token(LLM_PRACTICE_SESSION)]
        == [fresh["default"]["datachannelToken"], fresh["practice"]["practiceSessionDatachannelToken"]]
    )


def test_i60_a_refused_token_is_refreshed_and_sent_once_more(
    server: LocalServer, client: DataChannelClient
) -> None:
    server.datachannel_tokens = set()
    good = join(server)["self"]["datachannelToken"]
    client.set_refresh_handler(lambda: good)
    locus = join(server, tokens=False)
    locus["self"]["datachannelToken"] = make_token()
    register(client, locus)
    assert [one.status for one in posts(server)] == [401, 200] and client.get_token() == good


def test_i60_always_refused_it_ends_with_the_status(server: LocalServer, client: DataChannelClient) -> None:
    server.datachannel_tokens = set()
    client.set_refresh_handler(make_token)
    locus = join(server, tokens=False)
    locus["self"]["datachannelToken"] = make_token()
    with pytest.raises(RegistrationError) as caught:
        register(client, locus)
    assert caught.value.status == 401 and not isinstance(caught.value, TokenRefreshError)
    assert [one.status for one in posts(server)] == [401, 401] and server.connections() == []


def test_i51_an_answer_without_an_address_is_a_clear_error(
    server: LocalServer, client: DataChannelClient
) -> None:
    server.reject_rest(200, body={})
    with pytest.raises(RegistrationError, match="without a webSocketUrl") as caught:
        register(client, join(server))
    assert caught.value.timing is not None and caught.value.timing > 0 and server.connections() == []


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 503, "headers": {"Retry-After": "0"}},
        {"status": 429, "headers": {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}},
        {"status": 200, "headers": {"Content-Length": "1000"}, "body": b"{"},
    ],
    ids=["500", "503", "429", "cut short"],
)
def test_d24_passing_faults_are_tried_again(
    server: LocalServer, client: DataChannelClient, fault: dict[str, Any]
) -> None:
    server.reject_rest(times=2, **fault)
    register(client, join(server))
    assert len(posts(server)) == 3


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 200, "body": b"<html>sign in</html>", "headers": {"Content-Type": "text/html"}},
        {"status": 302, "headers": {"Location": "https://else.example/"}},
        {"status": 404},
    ],
    ids=["html", "redirect", "404"],
)
def test_d24_answers_that_will_not_change_end_the_run(
    server: LocalServer, client: DataChannelClient, fault: dict[str, Any]
) -> None:
    server.reject_rest(**fault)
    with pytest.raises(RegistrationError) as caught:
        register(client, join(server))
    assert caught.value.status == fault["status"] and len(posts(server)) == 1


def test_t11_no_token_gets_into_a_log_or_an_error(
    server: LocalServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server.datachannel_tokens = set()
    tokens = [make_token() for _ in range(3)]
    client = make("s3cret-access-token")
    client.set_refresh_handler(lambda: tokens[1])
    locus = join(server, tokens=False)
    locus["self"]["datachannelToken"] = tokens[0]
    with caplog.at_level(logging.DEBUG), pytest.raises(RegistrationError) as caught:
        register(client, locus)
    server.datachannel_tokens = None
    with caplog.at_level(logging.DEBUG):
        locus["self"]["datachannelToken"] = tokens[2]
        session = register(client, locus)
    shown = f"{caplog.text} {caught.value!r} {caught.value.__cause__!r} {client!r} {session!r}"
    shown += repr(client.connections())
    assert len(caplog.records) > 5
    for secret in ("s3cret-access-token", *(token.split(".")[1] for token in tokens)):
        assert secret not in shown


def test_a_device_registration_gives_the_device_url_and_stays_the_callers(
    server: LocalServer, make: Make, client_context: ssl.SSLContext
) -> None:
    config = PoolConfig(ssl_context=client_context)
    with DeviceRegistration(catalog_url=f"{server.base_url}/u2c/api/v1/catalog", config=config) as device:
        client = make(device=device)
        register(client, join(server))
        assert [one.body for one in posts(server)] == [{"deviceUrl": device.device_url}]
        client.close()
        assert device.url() == device.device_url
        assert not [one for one in server.requests if one.method == "DELETE"]
    assert [one.status for one in server.requests if one.method == "DELETE"] == [204]


@pytest.mark.stress
def test_i46_two_channels_under_drops_and_changes_of_meeting(
    server: LocalServer, client: DataChannelClient
) -> None:
    """However it goes, what is online in the end is what was asked for last, once each."""
    heard = Recorder().listen(client, "offline", session_id=ALL_SESSIONS)
    for turn in range(12):
        locus = join(server, session=f"s{turn % 3}", locus_id=f"m{turn % 2}")
        register(client, locus)
        register(client, locus, practice=True)
        if turn % 3 == 2:
            server.drop()
    for session_id in (LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION):
        client.session(session_id).wait_online(LONG)
    channels = client.connections()
    assert {one.state for one in channels.values()} <= {SessionState.ONLINE, SessionState.RECONNECTING}
    assert client.datachannel_url() == server.datachannel_url("s2") and "m1" in str(client.locus_url())
    eventually(lambda: len(server.live()) == 2)
    assert heard.names
