"""What is said of a session, and the requests that go out on it, as plain functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from llm_sessions import ConfigurationError, SessionState, StaticToken, Target
from llm_sessions.datachannel.channels import (
    DataChannel,
    describe,
    names,
    publish_request,
    subscription_request,
)
from llm_sessions.datachannel.registration import RegisteredTarget, Registrar, Registration
from llm_sessions.datachannel.rest import RestClient
from llm_sessions.datachannel.tokens import TokenStore
from llm_sessions.pool.core import Standing
from tests.datachannel.world import CHANNEL, DEVICE, LOCUS, OTHER

REGISTRAR = Registrar(RestClient(StaticToken("t")), TokenStore(), lambda attempt: DEVICE, lambda: True)
HERE = Registration(REGISTRAR, "default", LOCUS, CHANNEL)
TARGET = RegisteredTarget(
    "wss://socket.example/1?subscriptionAwareSubchannels=transcription",
    registration=HERE,
    binding="b1",
    web_socket_url="wss://socket.example/1",
    subscribing=True,
    register_seconds=0.5,
    registered_at=100.0,
)


LIVE = (SessionState.ONLINE, SessionState.SWITCHING, SessionState.RECONNECTING)


def standing(state: SessionState, target: Target | None) -> Standing:
    return Standing(state, HERE, target, None, 100.25)


@pytest.mark.parametrize("state", SessionState)
def test_a_registered_session(state: SessionState) -> None:
    assert describe("default", standing(state, TARGET)) == DataChannel(
        "default",
        state,
        state in (SessionState.ONLINE, SessionState.SWITCHING),
        LOCUS,
        CHANNEL,
        *(("wss://socket.example/1", "b1", 0.5, 0.25) if state in LIVE else ()),
    )


@pytest.mark.parametrize(
    "target",
    [
        None,
        Target("wss://socket.example/1"),
        dataclasses.replace(TARGET, registration=Registration(REGISTRAR, "default", LOCUS, OTHER)),
    ],
)
def test_i46_what_another_registration_left_behind_is_not_told(target: Target | None) -> None:
    channel = describe("default", standing(SessionState.CONNECTING, target))
    assert channel == DataChannel("default", SessionState.CONNECTING, False, LOCUS, CHANNEL)


def test_a_reconnects_target_is_told_though_its_registration_is_an_equal_one() -> None:
    again = dataclasses.replace(TARGET, registration=Registration(REGISTRAR, "default", LOCUS, CHANNEL))
    assert describe("default", standing(SessionState.ONLINE, again)).binding == "b1"


def test_requests_do_not_change_what_they_are_made_of() -> None:
    data: Mapping[str, Any] = {"relayType": "react"}
    headers: Mapping[str, Any] = {"to": "x"}
    one = publish_request(TARGET, "1", data, headers, "relay.event")
    other = publish_request(TARGET, "2", data, headers, "relay.event")
    assert one["trackingId"] != other["trackingId"]
    one["data"]["a"] = one["headers"]["b"] = 1
    assert (data, headers) == ({"relayType": "react"}, {"to": "x"})


def test_a_socket_that_was_registered_without_the_toggle_has_no_subscriptions() -> None:
    with pytest.raises(ConfigurationError, match="data_channel_tokens"):
        subscription_request(dataclasses.replace(TARGET, subscribing=False), "1", ["t"], [])


def test_names_are_lists_of_names() -> None:
    assert names(iter(["a", "b"]), "subscribe") == ["a", "b"] and names((), "subscribe") == []
    bad: list[Any] = ["a", b"a", None, 7, {"a": 1}, [""], [None]]
    for value in bad:
        with pytest.raises(ConfigurationError, match=r"^subscribe: must be a list of names"):
            names(value, "subscribe")
