"""The client: one unit of registering and connecting for each session, and what it says of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from llm_sessions import (
    LLM_DEFAULT_SESSION,
    LLM_PRACTICE_SESSION,
    AlreadyConnected,
    ConfigurationError,
    ConnectCancelled,
    ConnectTimeout,
    DataChannelClient,
    DeviceRegistration,
    LocalProtocolError,
    NotOnline,
    PoolClosed,
    PoolConfig,
    RegistrationError,
    SessionState,
    TokenRefreshError,
)
from llm_sessions.connection.transport import AttemptFailed
from llm_sessions.pool.owned import OwnedSessions
from llm_sessions.protocol.closing import Failure
from llm_sessions.testing.server import make_token
from tests.datachannel.world import CHANNEL, DEVICE, LOCUS, OTHER, PRACTICE, World, client, good, world
from tests.support import SHORT, Background, FakeLink, Gate, Recorder, eventually, run_together

__all__ = ["client", "world"]  # fixtures

S = SessionState
GOOD, OLD = make_token(), make_token(expires_in=-10)


@pytest.fixture(autouse=True)
def no_wait_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_sessions.datachannel.auth.REFUSAL_WAIT", 0.0)


def gated(gate: Gate, answer: tuple[int, Any]) -> Callable[[], tuple[int, Any]]:
    def wait() -> tuple[int, Any]:
        gate.pass_through()
        return answer

    return wait


def hold(link: FakeLink) -> None:
    """An `on_open` after which nothing is reported."""


# -- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("access_token", {"access_token": ""}),
        ("device", {"device": None}),
        ("device", {"device": "not a url"}),
        ("data_channel_tokens", {"data_channel_tokens": "yes"}),
        ("pool", {"pool": "pool"}),
        ("config", {"pool": None, "config": "config"}),
        ("http", {"http": "http"}),
    ],
)
def test_bad_arguments_are_refused(world: World, argument: str, options: dict[str, Any]) -> None:
    known = {"access_token": "token", "device": DEVICE, "pool": world.pool} | options
    with pytest.raises(ConfigurationError) as caught:
        DataChannelClient(**known)  # type: ignore[arg-type]
    assert caught.value.argument == argument


def test_a_given_pool_has_its_own_config(world: World) -> None:
    with pytest.raises(ConfigurationError, match="config"):
        world.client(config=PoolConfig())


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("locus_url", {"locus_url": ""}),
        ("locus_url", {"locus_url": None}),
        ("locus_url", {"locus_url": "locus"}),
        ("datachannel_url", {"datachannel_url": ""}),
        ("datachannel_url", {"datachannel_url": None}),
        ("datachannel_url", {"datachannel_url": "http://llm.example/1"}),
        ("datachannel_token", {"datachannel_token": ""}),
        ("datachannel_token", {"datachannel_token": "s3cret s3cret"}),
        ("session_id", {"session_id": "a:b"}),
        ("timeout", {"timeout": -1}),
    ],
)
def test_i50_a_missing_or_bad_argument_is_refused_without_a_post(
    world: World, client: DataChannelClient, argument: str, changes: dict[str, Any]
) -> None:
    known: dict[str, Any] = {"locus_url": LOCUS, "datachannel_url": CHANNEL, "datachannel_token": GOOD}
    with pytest.raises(ConfigurationError) as caught:
        client.register_and_connect(**known | changes)
    assert caught.value.argument == argument and "s3cret" not in str(caught.value)
    assert world.posts == [] and client.connections() == {} and client.get_token() is None


def test_t12_a_host_that_may_not_get_the_token_is_refused_without_a_post(world: World) -> None:
    with (
        DataChannelClient(
            "token", device=DEVICE, config=PoolConfig(allowed_hosts=["webex.example"])
        ) as strict,
        pytest.raises(ConfigurationError, match="datachannel_url: the host llm"),
    ):
        strict.register_and_connect(LOCUS, CHANNEL)
    assert world.posts == []


# -- register and connect are one ----------------------------------------------------------------------------


def test_what_a_client_says_of_a_session(world: World, client: DataChannelClient) -> None:
    assert not client.is_connected() and client.connections() == {}
    says = (client.binding, client.web_socket_url, client.locus_url, client.datachannel_url)
    assert [say() for say in says] == [None] * 4
    session = client.register_and_connect(LOCUS, CHANNEL)
    assert session is client.session() is world.pool.session(LLM_DEFAULT_SESSION) and session.online
    assert [say() for say in says] == ["b1", "wss://socket.example/1", LOCUS, CHANNEL]
    assert session.url == "wss://socket.example/1?subscriptionAwareSubchannels=transcription"
    assert client.is_connected() and not client.is_connected(LLM_PRACTICE_SESSION)
    channel = client.connections()[LLM_DEFAULT_SESSION]
    assert (channel.state, channel.online, channel.binding) == (S.ONLINE, True, "b1")
    assert channel.register_seconds is not None and channel.register_seconds >= 0
    assert channel.online_seconds is not None and channel.online_seconds >= 0
    assert repr(client) == f"<DataChannelClient [{LLM_DEFAULT_SESSION}: online at {CHANNEL}]>"
    client.disconnect()
    assert [say() for say in says] == [None] * 4 and client.connections() == {}


def test_i47_online_with_the_same_urls_nothing_is_asked(world: World, client: DataChannelClient) -> None:
    first = client.register_and_connect(LOCUS, CHANNEL)
    assert client.register_and_connect(LOCUS, CHANNEL, GOOD) is first
    assert len(world.posts) == len(world.transport.links) == 1
    assert client.get_token() == GOOD, "it is for the next registration"


@pytest.mark.parametrize(("locus", "channel"), [(LOCUS + "0", CHANNEL), (LOCUS, OTHER)])
def test_i47_other_urls_take_the_place_of_what_is_there(
    world: World, client: DataChannelClient, locus: str, channel: str
) -> None:
    heard = Recorder().listen(client, "online", "offline.permanent", "disconnected")
    client.register_and_connect(LOCUS, CHANNEL)
    client.register_and_connect(locus, channel)
    assert [url for url, _ in world.posts] == [CHANNEL, channel]
    assert world.transport.links[0].closes == [(3050, "replaced")]
    assert (client.locus_url(), client.datachannel_url(), client.binding()) == (locus, channel, "b2")
    heard.wait("online", 2)
    assert heard.names == ["online", "offline.permanent", "disconnected", "online"]


def test_i47_callers_that_ask_for_the_same_share_one_registration(
    world: World, client: DataChannelClient
) -> None:
    outcomes = run_together(16, lambda: client.register_and_connect(LOCUS, CHANNEL))
    assert outcomes == [client.session()] * 16
    assert len(world.posts) == len(world.transport.links) == 1


def test_i49_callers_that_supersede_with_the_same_urls_do_not_end_each_other(
    world: World, client: DataChannelClient
) -> None:
    for turn in range(20):
        client.register_and_connect(LOCUS, CHANNEL)
        outcomes = run_together(4, lambda: client.register_and_connect(LOCUS, OTHER))
        assert outcomes == [client.session()] * 4
        assert len(world.posts) == 2 * (turn + 1)
        assert client.datachannel_url() == OTHER
        assert len(world.transport.links) == 2 * (turn + 1)


def test_i49_what_was_in_the_way_may_be_gone_by_the_time_it_is_looked_at(
    world: World, client: DataChannelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another caller has disconnected it, and has not connected yet."""
    client.register_and_connect(LOCUS, CHANNEL)
    is_taken = client._sessions.is_taken

    def looked_at_late(session_id: str) -> bool:
        client.disconnect()
        return is_taken(session_id)

    monkeypatch.setattr(client._sessions, "is_taken", looked_at_late)
    assert client.register_and_connect(LOCUS, OTHER).online
    assert client.datachannel_url() == OTHER


def test_i46_the_binding_is_that_of_the_live_socket(world: World, client: DataChannelClient) -> None:
    """The first answer comes last, and changes nothing."""
    gate = Gate()
    world.answers = [gated(gate, good(1)), good(2)]
    first = Background(lambda: client.register_and_connect(LOCUS, CHANNEL))
    gate.wait_arrived()
    client.register_and_connect(LOCUS, OTHER)
    assert isinstance(first.error(), ConnectCancelled)
    gate.open()
    eventually(lambda: not world.pool.stats().abandoned_attempts)
    assert (client.binding(), client.web_socket_url()) == ("b2", "wss://socket.example/2")
    assert [link.request.url.split("?")[0] for link in world.transport.links] == ["wss://socket.example/2"]
    assert client.is_connected()


@pytest.mark.stress
def test_i46_whoever_wins_binding_url_and_socket_are_of_one_registration(
    world: World, client: DataChannelClient
) -> None:
    for _ in range(15):
        turns = itertools.count()

        def register(turns: Iterator[int] = turns) -> object:
            return client.register_and_connect(LOCUS, CHANNEL if next(turns) % 2 else OTHER)

        settled = run_together(6, register)
        assert all(one is client.session() or isinstance(one, ConnectCancelled) for one in settled)
        client.register_and_connect(LOCUS, CHANNEL)
        [live] = [one for one in world.transport.links if one.ready and not one.aborted.is_set()]
        assert live.request.url.startswith(str(client.web_socket_url()) + "?")
        assert str(client.binding()) == "b" + str(client.web_socket_url()).rpartition("/")[2]
        assert client.datachannel_url() == CHANNEL


def test_i46_until_the_new_socket_is_ready_the_old_binding_is_not_shown_for_other_urls(
    world: World, client: DataChannelClient
) -> None:
    client.register_and_connect(LOCUS, CHANNEL)
    world.transport.links[0].end(1003)
    assert client.connections()[LLM_DEFAULT_SESSION].state is S.OFFLINE
    assert client.binding() is None
    world.transport.on_open = hold
    connecting = Background(lambda: client.register_and_connect(LOCUS, OTHER))
    world.transport.wait_links(2)
    assert (client.datachannel_url(), client.binding(), client.web_socket_url()) == (OTHER, None, None)
    world.transport.links[1].become_ready()
    connecting.result()
    assert client.binding() == "b2"


def test_i46_a_reconnect_registers_anew_and_shows_the_new_binding_when_it_is_online(
    world: World, client: DataChannelClient
) -> None:
    client.register_and_connect(LOCUS, CHANNEL)
    world.transport.on_open = hold
    world.transport.links[0].end(1006)
    [_, link] = world.transport.wait_links(2)
    assert (client.connections()[LLM_DEFAULT_SESSION].state, client.binding()) == (S.RECONNECTING, "b1")
    eventually(lambda: client.session()._machine._attempt.link is link)  # type: ignore[union-attr]
    link.become_ready()
    assert client.binding() == "b2" and len(world.posts) == 2


def test_i62_the_urls_are_known_before_the_post(world: World, client: DataChannelClient) -> None:
    seen: list[object] = []

    def refresh() -> str:
        seen.append((client.locus_url(), client.datachannel_url(), list(world.posts)))
        return GOOD

    client.set_refresh_handler(refresh)
    client.register_and_connect(LOCUS, CHANNEL, OLD)
    assert seen == [(LOCUS, CHANNEL, [])] and world.tokens == [GOOD]


# -- what was ended stores nothing ---------------------------------------------------------------------------

Ending = Callable[[DataChannelClient], object]
ENDINGS: dict[str, Ending] = {
    "disconnect": lambda client: client.disconnect(),
    "disconnect_all": lambda client: client.disconnect_all(),
    "pool's disconnect_all": lambda client: client.pool.disconnect_all(),
    "close": lambda client: client.close(),
}


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
@pytest.mark.parametrize("where", ["toggle", "device", "refresh", "post", "refused", "open"])
def test_i48_what_lands_after_a_disconnect_stores_and_opens_nothing(
    world: World, end: Ending, where: str
) -> None:
    gate = Gate()

    def stop(result: Any) -> Callable[..., Any]:
        def wait(*ignored: object) -> Any:
            gate.pass_through()
            return result

        return wait

    client = world.client(data_channel_tokens=stop(True) if where == "toggle" else True)
    if where == "device":
        client._registrar.device_url = stop(DEVICE)
    elif where == "post":
        world.answers = [gated(gate, good(1))]
    elif where == "refused":
        world.answers = [(401, {})]
    elif where == "open":
        world.transport.on_open = stop(None)
    if where in ("refresh", "refused"):
        client.set_refresh_handler(stop("new"))
    token = OLD if where == "refresh" else GOOD
    connecting = Background(lambda: client.register_and_connect(LOCUS, CHANNEL, token))
    gate.wait_arrived()
    posts, links = len(world.posts), len(world.transport.links)
    end(client)
    assert isinstance(connecting.error(), PoolClosed if end is ENDINGS["close"] else ConnectCancelled)
    gate.open()
    eventually(lambda: not world.pool.stats().abandoned_attempts)
    assert (len(world.posts), len(world.transport.links)) == (posts, links)
    assert all(link.aborted.is_set() for link in world.transport.links)
    assert client._sessions.standings() == {}
    world.transport.on_open = FakeLink.become_ready
    again = world.client() if client._registrar.closed else client
    client._registrar.device_url = lambda attempt: DEVICE
    again.register_and_connect(LOCUS, OTHER)
    assert again.datachannel_url() == OTHER and again.is_connected()


def test_i51_a_bad_answer_leaves_nothing_half_stored(world: World, client: DataChannelClient) -> None:
    world.answers = [(200, {"webSocketUrl": "wss://socket.example/1"})]
    with pytest.raises(RegistrationError, match="without a binding") as caught:
        client.register_and_connect(LOCUS, CHANNEL)
    assert caught.value.timing is not None and caught.value.url == CHANNEL
    channel = client.connections()[LLM_DEFAULT_SESSION]
    assert (channel.state, channel.binding, channel.web_socket_url) == (S.OFFLINE, None, None)
    client.register_and_connect(LOCUS, CHANNEL)
    assert client.binding() == "b2"


def test_the_caller_who_leaves_in_time_ends_the_registration(world: World, client: DataChannelClient) -> None:
    gate = Gate()
    world.answers = [gated(gate, good(1))]
    with pytest.raises(ConnectTimeout):
        client.register_and_connect(LOCUS, CHANNEL, timeout=SHORT)
    gate.open()
    eventually(lambda: not world.pool.stats().abandoned_attempts)
    assert world.transport.links == [] and client.binding() is None


def test_calls_that_would_wait_for_themselves_are_refused(world: World, client: DataChannelClient) -> None:
    errors: list[Exception] = []

    def device_url(attempt: object) -> str:
        for call in (
            lambda: client.register_and_connect(LOCUS, OTHER, GOOD),
            client.disconnect,
            client.disconnect_all,
        ):
            try:
                call()
            except LocalProtocolError as exc:
                errors.append(exc)
        return DEVICE

    client._registrar.device_url = device_url
    client.register_and_connect(LOCUS, CHANNEL)
    assert len(errors) == 3 and client.get_token() is None


# -- tokens --------------------------------------------------------------------------------------------------


def test_i55_a_refusal_refreshes_its_own_clients_token_only(world: World, client: DataChannelClient) -> None:
    other = world.client()
    for one, token in ((client, "of-one"), (other, "of-the-other")):
        one.set_refresh_handler(lambda token=token: token)
    other.register_and_connect(LOCUS, PRACTICE, GOOD, LLM_PRACTICE_SESSION)
    world.answers = [(401, {}), good(9)]
    client.register_and_connect(LOCUS, CHANNEL, GOOD)
    assert world.tokens[1:] == [GOOD, "of-one"]
    assert (client.get_token(), other.get_token(LLM_PRACTICE_SESSION)) == ("of-one", GOOD)


def test_i56_the_default_sessions_refusal_goes_to_its_source_while_practice_is_online(
    world: World, client: DataChannelClient
) -> None:
    client.set_refresh_handler(lambda: "default-source", LLM_DEFAULT_SESSION)
    client.set_refresh_handler(lambda: pytest.fail("the wrong source"), LLM_PRACTICE_SESSION)
    client.register_and_connect(LOCUS, PRACTICE, GOOD, LLM_PRACTICE_SESSION)
    world.answers = [(403, {}), good(9)]
    client.register_and_connect(LOCUS, CHANNEL, GOOD)
    assert world.tokens[1:] == [GOOD, "default-source"]


def test_i58_a_client_without_a_source_says_so(world: World, client: DataChannelClient) -> None:
    with pytest.raises(TokenRefreshError, match="no refresh handler"):
        client.refresh_token()
    world.answers = [(403, {})]
    with pytest.raises(TokenRefreshError, match=r"refused with 403: .*no refresh handler"):
        client.register_and_connect(LOCUS, CHANNEL, GOOD)
    assert "" not in world.tokens


def test_i60_always_refused_two_sends_and_an_error_with_the_status(
    world: World, client: DataChannelClient
) -> None:
    world.answers = [(401, {})] * 9
    client.set_refresh_handler(lambda: "new")
    with pytest.raises(RegistrationError, match="refused again") as caught:
        client.register_and_connect(LOCUS, CHANNEL, GOOD)
    assert caught.value.status == 401 and isinstance(caught.value.__cause__, RegistrationError)
    assert world.tokens == [GOOD, "new"]


def test_i59_two_sessions_that_are_refused_at_once_both_succeed(
    world: World, client: DataChannelClient
) -> None:
    """Each has its own second try."""
    client.set_refresh_handler(lambda: "new")
    gates = Gate(), Gate()
    world.answers = [gated(gates[0], (401, {})), gated(gates[1], (401, {}))]
    both = [
        Background(lambda: client.register_and_connect(LOCUS, CHANNEL, GOOD)),
        Background(lambda: client.register_and_connect(LOCUS, PRACTICE, GOOD, LLM_PRACTICE_SESSION)),
    ]
    for gate in gates:
        gate.wait_arrived()
    for gate in gates:
        gate.open()
    assert all(one.result().online for one in both)
    assert sorted(map(str, world.tokens)) == sorted([GOOD, GOOD, "new", "new"])


def test_i61_a_token_that_is_fetched_when_the_client_is_closed_is_not_stored(
    world: World, client: DataChannelClient
) -> None:
    gate = Gate()

    def refresh() -> str:
        gate.pass_through()
        return "late"

    client.set_refresh_handler(refresh)
    asking = Background(client.refresh_token)
    gate.wait_arrived()
    client.close()
    gate.open()
    assert isinstance(asking.error(), TokenRefreshError)
    assert client._tokens.get(LLM_DEFAULT_SESSION) is None


def test_i41_a_401_that_no_data_channel_token_can_mend_refreshes_the_access_token(world: World) -> None:
    class Provider:
        current = "old-access"

        def get(self) -> str:
            return self.current

        def refresh(self, rejected: str) -> str:
            self.current = f"instead-of-{rejected}"
            return self.current

    with DataChannelClient(Provider(), device=DEVICE, pool=world.pool) as client:
        world.answers = [(401, {})]
        client.register_and_connect(LOCUS, CHANNEL, GOOD)
        sent = [call.request.headers["Authorization"] for call in world.service.calls]
        assert sent == ["Bearer old-access", "Bearer instead-of-old-access"]
        assert world.transport.links[0].request.token == "Bearer instead-of-old-access"


# -- publishing ----------------------------------------------------------------------------------------------


def sent_on(world: World, number: int) -> list[dict[str, Any]]:
    return [json.loads(payload) for payload in world.transport.links[number].sent]


def test_what_is_published(world: World, client: DataChannelClient) -> None:
    client.register_and_connect(LOCUS, CHANNEL)
    assert client.publish({"relayType": "client.annc"}, headers={"to": "service"}) == "1"
    assert client.publish({"eventType": "else.where"}) == "2"
    first, second = sent_on(world, 0)
    assert first.pop("trackingId").startswith("llm-sessions_")
    assert first == {
        "id": "1",
        "type": "publishRequest",
        "recipients": {"route": "b1"},
        "headers": {"to": "service"},
        "data": {"eventType": "relay.event", "relayType": "client.annc"},
    }
    assert second["data"] == {"eventType": "else.where"} and second["headers"] == {}


def test_what_a_subscription_asks(world: World, client: DataChannelClient) -> None:
    client.register_and_connect(LOCUS, CHANNEL)
    assert client.update_subchannel_subscriptions(["transcription"], ("a", "b")) == "1"
    [request] = sent_on(world, 0)
    assert request.pop("trackingId").startswith("llm-sessions_")
    assert request == {
        "id": "1",
        "type": "subchannelSubscriptionRequest",
        "data": {"datachannelUri": CHANNEL, "subscribe": ["transcription"], "unsubscribe": ["a", "b"]},
    }


def test_i88_socket_binding_and_url_come_from_one_session(world: World, client: DataChannelClient) -> None:
    client.register_and_connect(LOCUS, CHANNEL)
    client.register_and_connect(LOCUS, PRACTICE, session_id=LLM_PRACTICE_SESSION)
    for call in (lambda: client.publish({}), lambda: client.update_subchannel_subscriptions(["t"])):
        call()
    client.publish({}, session_id=LLM_DEFAULT_SESSION)
    client.disconnect(LLM_PRACTICE_SESSION)
    client.publish({})
    practice, default = sent_on(world, 1), sent_on(world, 0)
    assert practice[0]["recipients"] == {"route": "b2"}
    assert practice[1]["data"]["datachannelUri"] == PRACTICE
    assert [one["recipients"] for one in default] == [{"route": "b1"}] * 2
    with pytest.raises(NotOnline):
        client.publish({}, session_id=LLM_PRACTICE_SESSION)


def test_i88_a_practice_session_of_somebody_else_is_not_spoken_on(
    world: World, client: DataChannelClient
) -> None:
    other = world.client()
    other.register_and_connect(LOCUS, PRACTICE, session_id=LLM_PRACTICE_SESSION)
    client.register_and_connect(LOCUS, CHANNEL)
    client.publish({})
    assert sent_on(world, 0) == [] and len(sent_on(world, 1)) == 1


def test_bad_messages_are_refused(world: World, client: DataChannelClient) -> None:
    with pytest.raises(NotOnline):
        client.publish({})
    client.register_and_connect(LOCUS, CHANNEL)
    bad: list[Callable[[], object]] = [
        lambda: client.publish("text"),  # type: ignore[arg-type]
        lambda: client.publish({}, headers="text"),  # type: ignore[arg-type]
        lambda: client.publish({"a": object()}),
        lambda: client.update_subchannel_subscriptions(),
        lambda: client.update_subchannel_subscriptions("transcription"),
        lambda: client.update_subchannel_subscriptions([""]),
        lambda: client.update_subchannel_subscriptions([], [3]),  # type: ignore[list-item]
        lambda: client.update_subchannel_subscriptions(None),  # type: ignore[arg-type]
    ]
    for call in bad:
        with pytest.raises(ConfigurationError):
            call()
    assert sent_on(world, 0) == []


def test_subscriptions_need_the_toggle_of_their_registration(world: World) -> None:
    toggle = [False]
    client = world.client(data_channel_tokens=lambda: toggle[0])
    client.register_and_connect(LOCUS, CHANNEL)
    toggle[0] = True
    with pytest.raises(ConfigurationError, match="data_channel_tokens"):
        client.update_subchannel_subscriptions(["transcription"])
    assert sent_on(world, 0) == []


# -- whose sessions ------------------------------------------------------------------------------------------


def test_i64_two_clients_on_a_pool_never_touch_each_others_sessions(
    world: World, client: DataChannelClient
) -> None:
    other = world.client()
    client.register_and_connect(LOCUS, CHANNEL)
    with pytest.raises(AlreadyConnected):
        other.register_and_connect(LOCUS, CHANNEL)
    with pytest.raises(AlreadyConnected):
        other.register_and_connect(LOCUS, OTHER)
    other.disconnect()
    other.disconnect_all()
    other.close()
    assert client.is_connected() and len(world.posts) == 1
    assert other._sessions.standings() == {}


def test_sessions_of_the_pool_that_are_no_registrations_are_left_alone(
    world: World, client: DataChannelClient
) -> None:
    world.pool.connect("ws://localhost/s", LLM_DEFAULT_SESSION)
    with pytest.raises(AlreadyConnected):
        client.register_and_connect(LOCUS, CHANNEL)
    assert not client.is_connected() and client.connections() == {}
    with pytest.raises(NotOnline):
        client.publish({})
    client.close()
    assert world.pool.is_online(LLM_DEFAULT_SESSION)


def test_i39_a_closed_client_is_closed_for_good(world: World, client: DataChannelClient) -> None:
    with client:
        client.register_and_connect(LOCUS, CHANNEL, GOOD)
        client.register_and_connect(LOCUS, PRACTICE, None, LLM_PRACTICE_SESSION)
    assert [link.closes for link in world.transport.links] == [[(None, None)]] * 2
    client.close()
    assert repr(client) == "<DataChannelClient closed>"
    calls: list[Callable[[], object]] = [
        lambda: client.register_and_connect(LOCUS, CHANNEL),
        client.connections,
        client.binding,
        client.web_socket_url,
        client.locus_url,
        client.datachannel_url,
        client.session,
        client.__enter__,
        client.get_token,
        lambda: client.set_token(GOOD),
        client.clear_token,
        client.refresh_token,
        lambda: client.set_refresh_handler(None),
        lambda: client.publish({}),
        lambda: client.update_subchannel_subscriptions(["t"]),
        lambda: client.on("online", print),
        lambda: client.once("online", print),
        lambda: client.off("online"),
    ]
    for call in calls:
        with pytest.raises(PoolClosed, match="the client is closed"):
            call()
    assert not client.is_connected()
    client.disconnect()
    client.disconnect_all()
    assert not world.pool._env.closed and world.pool.connect("ws://localhost/s").online


def test_i39_what_is_asked_for_at_the_moment_of_the_close_does_not_outlive_it(
    world: World, client: DataChannelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call has found the client open; the close finds no session yet."""
    gate, connect = Gate(), OwnedSessions.connect

    def late(*arguments: Any, **options: Any) -> Any:
        gate.pass_through()
        return connect(*arguments, **options)

    monkeypatch.setattr(OwnedSessions, "connect", late)
    connecting = Background(lambda: client.register_and_connect(LOCUS, CHANNEL))
    gate.wait_arrived()
    client.close()
    gate.open()
    assert isinstance(connecting.error(), PoolClosed)
    assert world.posts == world.transport.links == []


def test_i39_it_is_closed_before_its_tokens_and_sessions_go(
    world: World, client: DataChannelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a run that misses its token would take that for a passing fault, or begin anew."""
    order: list[tuple[str, bool]] = []
    for owner, name in ((client._tokens, "close"), (client._sessions, "leave")):
        monkeypatch.setattr(owner, name, lambda name=name: order.append((name, client._registrar.closed)))
    client.close()
    assert order == [("close", True), ("leave", True)]


def test_a_client_of_its_own_pool_closes_that(world: World) -> None:
    with DataChannelClient("token", device=DEVICE) as client:
        assert client.pool is not world.pool
        client.pool._env.transport = world.transport
        client.register_and_connect(LOCUS, CHANNEL)
        assert client.pool.is_online(), "its default session is the data channel's"
    assert client.pool._env.closed
    with pytest.raises(PoolClosed):
        client.register_and_connect(LOCUS, CHANNEL)


def test_a_pool_that_was_closed_ends_its_clients(world: World, client: DataChannelClient) -> None:
    client.register_and_connect(LOCUS, CHANNEL)
    world.pool.close()
    with pytest.raises(PoolClosed):
        client.register_and_connect(LOCUS, OTHER)
    with pytest.raises(PoolClosed):
        client.get_token()
    client.close()


def test_t7_in_another_process_it_ends_nothing_and_says_so(
    world: World, client: DataChannelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.register_and_connect(LOCUS, CHANNEL, GOOD)
    with monkeypatch.context() as child:
        child.setattr("llm_sessions._fork._generation", 10**6)
        client.close()
        with pytest.raises(PoolClosed):
            client.get_token()
    assert client.is_connected() and client.get_token() == GOOD


def test_a_given_session_of_requests_is_used_and_left_open(world: World) -> None:
    used: list[str] = []

    class Http(requests.Session):
        def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            used.append(str(request.url))
            return super().send(request, **options)

        def close(self) -> None:
            used.append("closed")
            super().close()

    with Http() as http:
        world.client(http=http).register_and_connect(LOCUS, CHANNEL)
        assert used == [CHANNEL]


def test_i53_a_token_does_not_go_to_another_meeting(world: World, client: DataChannelClient) -> None:
    client.register_and_connect(LOCUS, CHANNEL, GOOD)
    client.register_and_connect(LOCUS + "2", OTHER)
    assert world.tokens == [GOOD, None] and client.get_token() is None


def test_i53_nothing_is_stored_for_a_session_that_is_somebody_elses(
    world: World, client: DataChannelClient
) -> None:
    world.pool.connect("ws://localhost/s", LLM_DEFAULT_SESSION)
    with pytest.raises(AlreadyConnected):
        client.register_and_connect(LOCUS, CHANNEL, GOOD)
    assert client.get_token() is None


def test_i53_a_token_that_its_refresh_handler_clears_is_not_sent(
    world: World, client: DataChannelClient
) -> None:
    def refresh() -> str:
        client.clear_token()
        return GOOD

    client.set_refresh_handler(refresh)
    client.register_and_connect(LOCUS, CHANNEL, OLD)
    assert OLD not in world.tokens


def test_a_token_that_was_just_fetched_is_not_looked_at(world: World, client: DataChannelClient) -> None:
    calls: list[None] = []
    client.set_refresh_handler(lambda: calls.append(None) or "opaque")  # type: ignore[func-returns-value]
    client.register_and_connect(LOCUS, CHANNEL)
    assert len(calls) == 1 and world.tokens == ["opaque"]


def test_a_timeout_holds_while_other_urls_are_disconnected(world: World, client: DataChannelClient) -> None:
    client.register_and_connect(LOCUS, CHANNEL)
    world.transport.on_close = hold
    with pytest.raises(ConnectTimeout, match=f"within {SHORT} s"):
        client.register_and_connect(LOCUS, OTHER, timeout=SHORT)
    assert len(world.posts) == 1
    world.transport.links[0].end(1000, "Done")


def test_repr_of_a_client_whose_pool_was_closed(world: World, client: DataChannelClient) -> None:
    world.pool.close()
    assert repr(client) == "<DataChannelClient closed>"


# -- sources that fail ---------------------------------------------------------------------------------------


def test_i41_one_bad_answer_of_the_token_source_ends_no_session_that_was_online(world: World) -> None:
    given: list[Any] = ["token"]
    client = DataChannelClient(lambda: given[-1], device=DEVICE, pool=world.pool)
    world.clients.append(client)
    session = client.register_and_connect(LOCUS, CHANNEL)
    recorder = Recorder().listen(session, "connection_failed", "online", "offline.permanent")
    given.append(None)
    world.transport.links[-1].end(1006)
    (failed, *_) = recorder.wait("connection_failed")
    assert "its source returned NoneType" in str(failed.error) and session.state is S.RECONNECTING
    given.append("token")
    recorder.wait("online")
    assert recorder.payloads("offline.permanent") == [] and client.binding() is not None


def test_a_token_source_that_never_had_a_good_answer_is_a_mistake_of_the_programs(world: World) -> None:
    client = DataChannelClient(lambda: None, device=DEVICE, pool=world.pool)  # type: ignore[arg-type,return-value]
    world.clients.append(client)
    with pytest.raises(ConfigurationError, match="token: its source returned NoneType"):
        client.register_and_connect(LOCUS, CHANNEL)
    assert world.posts == []


class Device(DeviceRegistration):
    """A device that is there, and remembers who distrusts it."""

    def __init__(self) -> None:
        super().__init__("token", device_name="bot")
        self.distrusted: list[tuple[str, str]] = []

    def url(self, attempt: Any = None) -> str:
        return DEVICE

    def distrust(self, url: str, error: Exception) -> None:
        self.distrusted.append((url, type(error).__name__))


def test_d7_a_device_is_told_when_its_url_is_not_known_any_more(world: World) -> None:
    device = Device()
    client = world.client(device=device)
    world.answers = [(404, {"message": "device not found"})]
    with pytest.raises(RegistrationError, match="404"):
        client.register_and_connect(LOCUS, CHANNEL)
    assert device.distrusted == [(DEVICE, "RegistrationError")]
    world.transport.on_open = stale_once(world)
    assert client.register_and_connect(LOCUS, CHANNEL).online
    assert device.distrusted[1:] == [(DEVICE, "ConnectError")], "a 404 at the channel's upgrade, too"


def stale_once(world: World) -> Callable[[FakeLink], None]:
    def on_open(link: FakeLink) -> None:
        world.transport.on_open = FakeLink.become_ready
        raise AttemptFailed(Failure.STALE, "socket.example answered HTTP 404", status=404)

    return on_open


def test_t11_errors_that_are_kept_hold_no_token_in_the_frames_of_their_causes(
    world: World, client: DataChannelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_sessions.datachannel.auth.REFUSAL_WAIT", 0.001)

    def fail() -> str:
        raise RuntimeError("no more tokens")

    client.set_refresh_handler(fail)
    world.answers = [(403, {})] * 1000
    with pytest.raises(ConnectTimeout) as caught:
        client.register_and_connect(LOCUS, CHANNEL, GOOD, timeout=SHORT)
    step: BaseException | None = caught.value.__cause__
    held = []
    while step is not None:
        trace = step.__traceback__
        while trace is not None:
            if "llm_sessions" in trace.tb_frame.f_code.co_filename.replace("tests", ""):
                held += [name for name, value in trace.tb_frame.f_locals.items() if value == GOOD]
            trace = trace.tb_next
        step = step.__cause__ or step.__context__
    assert held == []
