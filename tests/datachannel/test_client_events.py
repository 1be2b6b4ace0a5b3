"""Listeners of a client: its default session where none is named, and every session's own."""

from __future__ import annotations

from typing import Any

import pytest

from llm_sessions import ALL_SESSIONS, LLM_PRACTICE_SESSION, ConfigurationError, DataChannelClient
from tests.datachannel.world import CHANNEL, LOCUS, PRACTICE, World, client, world
from tests.support import Recorder

__all__ = ["client", "world"]  # fixtures


def relay(world: World, number: int, text: str) -> None:
    link = world.transport.links[number]
    link.owner.link_received(link, [{"id": text, "data": {"eventType": "relay.event", "text": text}}])


def both(client: DataChannelClient) -> None:
    client.register_and_connect(LOCUS, CHANNEL)
    client.register_and_connect(LOCUS, PRACTICE, session_id=LLM_PRACTICE_SESSION)


def test_each_session_has_its_listeners(world: World, client: DataChannelClient) -> None:
    heard = Recorder()
    note = heard.named
    assert client.on("event:relay.event", main := note("main")) is main
    client.on("event:relay.event", note("practice"), session_id=LLM_PRACTICE_SESSION)
    client.on(f"event:relay:{LLM_PRACTICE_SESSION}", note("by name"))
    client.on("event:relay.event", note("all"), session_id=ALL_SESSIONS)
    both(client)
    relay(world, 0, "to main")
    relay(world, 1, "to practice")
    heard.wait("all", 2)
    heard.wait("main")
    heard.wait("practice")
    heard.wait("by name")
    said = {name: [payload.data["text"] for payload in heard.payloads(name)] for name in set(heard.names)}
    assert said.pop("all") in (["to main", "to practice"], ["to practice", "to main"])
    assert said == {"main": ["to main"], "practice": ["to practice"], "by name": ["to practice"]}


def test_decorators_once_and_off(world: World, client: DataChannelClient) -> None:
    heard, last = Recorder(), Recorder()

    @client.on("event:relay.event")
    def every(envelope: Any) -> None:
        heard.named("every")(envelope)

    @client.once("event:relay.event")
    def first(envelope: Any) -> None:
        heard.named("first")(envelope)

    client.once("event:relay.event", heard.named("practice"), session_id=LLM_PRACTICE_SESSION)
    both(client)
    for text in ("1", "2"):
        relay(world, 0, text)
        relay(world, 1, text)
    heard.wait("every", 2)
    heard.wait("practice")
    client.off("event:relay.event", every)
    client.on("event:relay.event", last.named("last"))
    relay(world, 0, "3")
    last.wait("last")
    client.off("event:relay.event")
    assert sorted(heard.names) == ["every", "every", "first", "practice"]


def test_the_clients_default_is_not_the_pools(world: World, client: DataChannelClient) -> None:
    heard = Recorder().listen(client, "online")
    world.pool.connect("ws://localhost/s")
    client.register_and_connect(LOCUS, CHANNEL)
    assert [one.session_id for one in heard.wait("online")] == ["llm-default-session"]


def test_names_that_cannot_be_are_refused(client: DataChannelClient) -> None:
    for call in (
        lambda: client.on("no such event", print),
        lambda: client.on("online:one", print, session_id="two"),
        lambda: client.once("online", "not callable"),  # type: ignore[type-var]
    ):
        with pytest.raises(ConfigurationError):
            call()


def test_a_client_takes_back_only_its_own_callbacks(world: World, client: DataChannelClient) -> None:
    heard = Recorder()
    note = heard.named("heard")
    world.pool.on("online", note, session_id="llm-default-session")
    client.on("online", note)
    client.off("online")
    other = world.client()
    other.on("online", note)
    other.close()
    table = world.pool.session("llm-default-session")._machine.listeners
    assert [one.callback for one in table.named("online")] == [note]
