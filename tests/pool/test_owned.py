"""An owner's sessions in a pool that others use as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from llm_sessions import (
    ConfigurationError,
    ConnectCancelled,
    ConnectionPool,
    Endpoint,
    LocalProtocolError,
    NotOnline,
    PoolClosed,
    SessionState,
    Target,
)
from llm_sessions.pool.owned import OwnedSessions
from tests.pool.support import URL, Make, hold, machine_of
from tests.support import Background, FakeTransport, Gate, eventually


class Owned(Endpoint):
    """Equal ones have the same name."""

    def __init__(self, name: str, before: Callable[[], object] = lambda: None) -> None:
        self.name, self.before = name, before

    def resolve(self, attempt: Any) -> Target:
        self.before()
        return Target(f"{URL}?{self.name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Owned) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)


@pytest.fixture
def world(make: Make) -> tuple[ConnectionPool, FakeTransport, OwnedSessions]:
    pool, transport = make()
    return pool, transport, OwnedSessions(pool, lambda endpoint: isinstance(endpoint, Owned))


World = tuple[ConnectionPool, FakeTransport, OwnedSessions]


def test_it_sees_its_own_sessions_and_no_others(world: World) -> None:
    pool, _, owned = world
    pool.connect(Owned("a"), "mine")
    pool.connect(URL, "theirs")
    pool.session("idle")
    assert list(owned.standings()) == ["mine"]
    standing = owned.standing("mine")
    assert standing is not None and standing.target is not None
    assert (standing.state, standing.target.url) == (SessionState.ONLINE, f"{URL}?a")
    assert standing.link is not None and standing.endpoint == Owned("a")
    assert [owned.standing(name) for name in ("theirs", "idle", "unknown")] == [None] * 3
    assert owned.is_online("mine") and not owned.is_online("theirs") and not owned.is_online("unknown")
    taken = {name: owned.is_taken(name) for name in ("mine", "theirs", "idle", "unknown")}
    assert taken == {"mine": False, "theirs": True, "idle": False, "unknown": False}
    pool.disconnect_all()
    assert owned.standings() == {} and not owned.is_online("mine") and not owned.is_taken("theirs")


def test_it_disconnects_its_own_sessions_and_no_others(world: World) -> None:
    pool, transport, owned = world
    for name in ("one", "two"):
        pool.connect(Owned("a"), name)
    pool.connect(URL, "theirs")
    owned.disconnect("theirs")
    owned.disconnect("unknown")
    assert pool.is_online("theirs")
    owned.disconnect("one", code=3050, reason="replaced")
    assert transport.links[0].closes == [(3050, "replaced")]
    assert not pool.is_online("one") and pool.is_online("two")
    owned.disconnect()
    assert not pool.is_online("two") and pool.is_online("theirs")
    with pytest.raises(ConfigurationError):
        owned.disconnect("two", code=1001)


def test_it_spares_what_is_busy_with_an_equal_endpoint(world: World) -> None:
    pool, _, owned = world
    pool.connect(Owned("a"), "one")
    owned.disconnect("one", spare=Owned("a"))
    assert pool.is_online("one")
    owned.disconnect("one", spare=Owned("b"))
    assert not pool.is_online("one")


def test_i49_it_does_not_end_what_has_taken_the_place_of_what_it_saw(world: World) -> None:
    """Between the look and the disconnect somebody else connects the very endpoint that is to be spared."""
    pool, _, owned = world
    pool.connect(Owned("old"), "one")
    machine, gate = machine_of(pool.session("one")), Gate()
    begin = machine.begin_disconnect_from

    def stopped(*arguments: Any) -> Any:
        gate.pass_through()
        return begin(*arguments)

    machine.begin_disconnect_from = stopped  # type: ignore[method-assign]
    ending = Background(lambda: owned.disconnect("one", spare=Owned("new")))
    gate.wait_arrived()
    pool.disconnect("one")
    pool.connect(Owned("new"), "one")
    gate.open()
    ending.result()
    assert pool.is_online("one")


def test_i12_a_disconnect_ends_a_connect_that_has_no_socket_yet(world: World) -> None:
    pool, transport, owned = world
    gate = Gate()
    connecting = Background(lambda: pool.connect(Owned("a", gate.pass_through), "one"))
    gate.wait_arrived()
    owned.disconnect()
    assert isinstance(connecting.error(), ConnectCancelled)
    gate.open()
    assert transport.links == []


def test_waits_for_oneself_are_refused(world: World) -> None:
    pool, _, owned = world
    errors: list[BaseException] = []

    def inside() -> None:
        for call in (
            lambda: owned.disconnect("one"),
            lambda: owned.disconnect(),
            lambda: owned.refuse_own_thread("one", "that"),
        ):
            try:
                call()
            except LocalProtocolError as exc:
                errors.append(exc)
        owned.refuse_own_thread("unknown", "that")

    pool.connect(Owned("a", inside), "one")
    assert len(errors) == 3
    pool.connect(URL, "theirs")
    owned.disconnect()
    assert pool.is_online("theirs")


def test_leaving_inside_ones_own_connector_does_not_wait(world: World) -> None:
    pool, _, owned = world
    with pytest.raises(ConnectCancelled):
        pool.connect(Owned("a", owned.leave), "one")
    pool.connect(URL, "theirs")
    owned.leave()
    assert pool.is_online("theirs") and not pool.is_online("one")


def test_a_closed_pool_has_nothing_to_leave(world: World) -> None:
    pool, _, owned = world
    pool.connect(Owned("a"), "one")
    assert owned.config is pool._env.config and not owned.forked
    pool.close()
    owned.leave()
    for call in (owned.check_open, owned.standings, owned.disconnect, lambda: owned.standing("one")):
        with pytest.raises(PoolClosed):
            call()


def test_i88_a_message_is_made_for_the_socket_that_it_goes_out_on(world: World) -> None:
    pool, transport, owned = world
    pool.connect(Owned("a"), "one")
    owned.send("one", lambda target: {"to": target.url})
    assert transport.links[0].sent == [b'{"to":"%s?a"}' % URL.encode()]

    def lost(target: Target) -> Mapping[str, Any]:
        transport.links[0].end(1006)
        transport.wait_links(2)
        pool.wait_online("one")
        return {"to": target.url}

    with pytest.raises(NotOnline):
        owned.send("one", lost)
    assert transport.links[1].sent == []


def test_nothing_is_made_for_a_session_that_is_not_online(world: World) -> None:
    pool, transport, owned = world
    pool.connect(URL, "theirs")
    transport.on_open = hold
    connecting = Background(lambda: pool.connect(Owned("a"), "one"))
    eventually(lambda: pool.session("one").state is SessionState.CONNECTING)
    for name, state in (("theirs", "idle"), ("unknown", "idle"), ("one", "connecting")):
        with pytest.raises(NotOnline, match=f"it is {state}"):
            owned.send(name, lambda target: pytest.fail("it was made"))
    owned.disconnect()
    connecting.error()
