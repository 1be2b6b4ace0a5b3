"""The pool: sessions by key, listeners by name, and the end of it all."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import llm_sessions.pool.pool as pool_module
from llm_sessions import (
    ALL_SESSIONS,
    DEFAULT_SESSION_ID,
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    ConnectionPool,
    ConnectTimeout,
    Endpoint,
    PoolClosed,
    PoolConfig,
    SessionState,
    _fork,
)
from llm_sessions._sync import ThreadGroup
from llm_sessions.pool import goodbye
from llm_sessions.protocol.events import STATE_EVENTS
from llm_sessions.protocol.mercury import EndCause, LatencyMeasured, SequenceGap, ShutdownAnnounced
from tests.support import (
    LONG,
    SHORT,
    Background,
    FakeLink,
    FakeTransport,
    Gate,
    Recorder,
    eventually,
    library_threads,
    run_together,
)

URL = "ws://localhost/socket"
Make = Callable[..., tuple[ConnectionPool, FakeTransport]]


def nothing(link: FakeLink) -> None:
    """An `on_open` or `on_close` after which nothing is reported."""


# -- sessions ----------------------------------------------------------------------------------------------


def test_looking_never_creates_a_session_and_session_does(make: Make) -> None:
    pool, _ = make()
    assert not pool.is_online() and not pool.is_online("x") and not pool.any_online
    pool.disconnect("x")
    pool.disconnect_all()
    pool.begin_disconnect("x")
    pool.off("online", session_id="x")
    assert pool.sessions() == {}
    assert pool.session("x") is pool.session("x")
    assert list(pool.sessions()) == ["x"]


def test_sessions_is_a_snapshot(make: Make) -> None:
    pool, _ = make()
    before = pool.sessions()
    pool.session()
    assert before == {} and set(pool.sessions()) == {DEFAULT_SESSION_ID}


def test_i32_is_online_speaks_of_the_default_session_any_online_of_all(make: Make) -> None:
    pool, transport = make()
    pool.connect(URL, "other")
    assert not pool.is_online() and pool.is_online("other") and pool.any_online
    transport.links[0].end(1003)
    assert not pool.any_online


def test_the_default_session_has_a_name() -> None:
    with ConnectionPool("t", default_session_id="mine", name="p") as pool:
        assert pool.session().id == "mine" and pool.name == "p"
        assert repr(pool) == "<ConnectionPool 'p' [mine: idle]>"
    assert repr(pool) == "<ConnectionPool 'p' closed [mine: idle]>"
    assert ConnectionPool().name != ConnectionPool().name


def test_many_threads_get_one_session(make: Make) -> None:
    pool, _ = make()
    assert len({id(session) for session in run_together(16, lambda: pool.session("x"))}) == 1


# -- made-up ids -------------------------------------------------------------------------------------------


def test_a_made_up_id_is_forgotten_once_disconnected(make: Make) -> None:
    pool, _ = make()
    session, other = pool.connect(URL, None), pool.connect(URL, None)
    assert session.id != other.id and pool.session(session.id) is session
    assert pool.connect(URL, session.id) is session
    session.disconnect()
    assert set(pool.sessions()) == {other.id} and pool._made_up == {other.id}
    pool.disconnect(other.id)
    assert pool.sessions() == {}
    for call in (session.wait_online, lambda: pool.connect(URL, session.id).wait_online(0)):
        if call == session.wait_online:
            with pytest.raises(ConnectCancelled):
                call()
        else:
            assert call() is not session  # the id may be used again, for a session that stays
    pool.disconnect(session.id)
    assert set(pool.sessions()) == {session.id}


def test_a_made_up_id_that_ended_is_forgotten_once_disconnected(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL, None)
    transport.links[0].end(1003)
    assert set(pool.sessions()) == {session.id}
    pool.disconnect_all()
    assert pool.sessions() == {}


def test_a_made_up_id_whose_connect_fails_is_forgotten_too(make: Make) -> None:
    """The caller never learned the id, and the pool kept one session for each failure."""
    pool, transport = make()
    for on_open, error in (
        (lambda link: link.end(4403), ConnectError),
        (nothing, ConnectTimeout),
    ):
        transport.on_open = on_open
        with pytest.raises(error):
            pool.connect(URL, None, timeout=SHORT if on_open is nothing else LONG)
        assert pool.sessions() == {} and pool._made_up == set()
    with pytest.raises(ConfigurationError):
        pool.connect(None, None)
    assert pool.sessions() == {}


def test_a_made_up_id_whose_run_somebody_else_waits_for_is_kept(make: Make) -> None:
    pool, transport = make()
    transport.on_open = nothing
    impatient = Background(lambda: pool.connect(URL, None, timeout=0.2))
    (link,) = transport.wait_links(1)
    (session,) = pool.sessions().values()
    other = Background(lambda: session.wait_online(LONG))
    eventually(lambda: session._machine._waiters == 2 and session._machine._links)
    assert isinstance(impatient.error(), ConnectTimeout)
    link.become_ready()
    assert other.result() is session and pool.sessions() == {session.id: session}


def test_a_made_up_id_that_is_connected_again_while_it_is_forgotten(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was dropped from the dict while online: close() did not find it, and its socket stayed."""
    pool, transport = make()
    session = pool.connect(URL, None)
    gate, forget = Gate(), session._machine._gone

    def slow(session_id: str) -> None:
        gate.pass_through()
        forget(session_id)

    monkeypatch.setattr(session._machine, "_gone", slow)
    leaving = Background(session.disconnect)
    gate.wait_arrived()
    assert pool.connect(URL, session.id) is session
    gate.open()
    leaving.result()
    assert pool.sessions() == {session.id: session} and session.online
    pool.close()
    assert all(link.ended for link in transport.links) and session.state is SessionState.IDLE


def test_a_made_up_id_that_is_forgotten_while_somebody_is_about_to_connect_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, transport = make()
    session = pool.connect(URL, None)
    gate, get = Gate(), pool._get

    def slow(*arguments: Any) -> Any:
        found = get(*arguments)
        gate.pass_through()
        return found

    monkeypatch.setattr(pool, "_get", slow)
    calls = [
        Background(lambda: pool.connect(URL, session.id)),
        Background(lambda: pool.begin_connect(URL, session.id)),
    ]
    for _ in calls:
        gate.wait_arrived()
    pool.disconnect(session.id)
    gate.open()
    assert all(isinstance(call.error(), ConnectCancelled) for call in calls)
    assert pool.sessions() == {} and len(transport.links) == 1


# -- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"token": 5}, "token"),
        ({"token": "a b"}, "token"),
        ({"config": {}}, "config"),
        ({"default_session_id": ""}, "default_session_id"),
        ({"default_session_id": "a:b"}, "default_session_id"),
        ({"default_session_id": None}, "default_session_id"),
    ],
)
def test_a_pools_bad_arguments(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ConnectionPool(**arguments)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"url": 5}, "url"),
        ({"url": "http://localhost"}, "url"),
        ({"url": "ws://example.org"}, "url"),
        ({"url": "wss://evil.org"}, "url"),
        ({"session_id": ""}, "session_id"),
        ({"session_id": "a:b"}, "session_id"),
        ({"session_id": 5}, "session_id"),
        ({"session_id": ALL_SESSIONS}, "session_id"),
        ({"token": 5}, "token"),
        ({"token": ""}, "token"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "1"}, "timeout"),
    ],
)
def test_connects_bad_arguments_are_found_before_anything_starts(
    make: Make, arguments: dict[str, Any], argument: str
) -> None:
    pool, transport = make(allowed_hosts=["localhost"])
    calls = [pool.connect] if argument == "timeout" else [pool.connect, pool.begin_connect]
    for call in calls:
        with pytest.raises(ConfigurationError) as caught:
            call(**{"url": URL, **arguments})
        assert caught.value.argument == argument
    assert transport.links == [] and pool.sessions() == {} and not library_threads()


def test_a_url_without_any_token_is_refused_before_anything_starts() -> None:
    with ConnectionPool() as pool:
        with pytest.raises(ConfigurationError) as caught:
            pool.connect(URL)
        assert caught.value.argument == "token" and pool.sessions() == {}


@pytest.mark.parametrize("bad", ["", "a:b", "\n", 5, None, ALL_SESSIONS])
def test_a_bad_session_id_is_refused_everywhere(make: Make, bad: Any) -> None:
    pool, _ = make()
    for call in (
        lambda: pool.disconnect(bad),
        lambda: pool.begin_disconnect(bad),
        lambda: pool.wait_online(bad),
        lambda: pool.is_online(bad),
        lambda: pool.session(bad),
    ):
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert caught.value.argument == "session_id"
    if bad is not ALL_SESSIONS:
        for call in (pool.on, pool.once, pool.off):
            with pytest.raises(ConfigurationError):
                call("online", print, session_id=bad)
    assert pool.sessions() == {}


def test_defaults_show_what_they_mean() -> None:
    assert repr(ALL_SESSIONS) == "<all sessions>"
    assert repr(pool_module._DEFAULT) == "<the pool's default session>"


# -- events ------------------------------------------------------------------------------------------------


def live_through_everything(transport: FakeTransport, session: Any) -> None:
    """Have a session tell every event that there is."""
    (link,) = (one for one in transport.links if one.name.startswith(session.id))
    link.owner.link_received(
        link,
        [
            {"id": "1", "data": {"eventType": "relay.event"}},
            SequenceGap(2, 1),
            LatencyMeasured(1),
            ShutdownAnnounced({"type": "shutdown"}),
        ],
    )
    eventually(lambda: session.state is SessionState.ONLINE)
    link.end(4001)
    [*_, second] = (one for one in transport.links if one.name.startswith(session.id))
    second.owner.link_received(second, [ShutdownAnnounced({"type": "shutdown"})])
    eventually(lambda: second.retired is not None)
    second.end(1006, missed=True)
    [*_, newest] = (one for one in transport.links if one.name.startswith(session.id))
    transport.on_open = lambda link: link.end(4410)
    newest.owner.link_received(newest, [ShutdownAnnounced({"type": "shutdown"})])
    eventually(lambda: session.state is SessionState.ONLINE)
    newest.end(1006)
    eventually(lambda: session.state is SessionState.OFFLINE)


def test_i34_another_sessions_events_carry_its_suffix_once(make: Make, waits: list[float]) -> None:
    pool, transport = make(max_retries=1)
    recorder, plain, everyone = Recorder(), Recorder(), Recorder()
    names = [*STATE_EVENTS, "event", "event:relay", "event:relay.event"]
    for name in names:
        if name == "event":  # `event:x` is a namespace
            pool.on(name, recorder.named(name), session_id="x")
        else:
            pool.on(f"{name}:x", recorder.named(name))
        pool.on(name, plain.named(name))
        pool.on(name, everyone.named(name), session_id=ALL_SESSIONS)
    twice = Recorder().listen(pool, *names, session_id="x")
    session = pool.connect(URL, "x")
    live_through_everything(transport, session)
    pool.disconnect("x")
    transport.on_open = nothing
    pool.begin_connect(URL, "x")
    pool.disconnect("x")
    recorder.wait("disconnected")
    for one in (twice, everyone):
        one.wait("disconnected")
        assert one.names == recorder.names
    assert set(recorder.names) == set(names) and plain.names == []
    assert {payload.session_id for _, payload in recorder.calls} == {"x"}


def test_i34_in_a_string_event_x_is_a_namespace(make: Make) -> None:
    pool, transport = make()
    recorder = Recorder()
    pool.on("event:captions", recorder.named("namespace"))
    pool.on("event", recorder.named("session"), session_id="captions")
    pool.connect(URL)
    pool.connect(URL, "captions")
    for link in transport.links:
        link.owner.link_received(link, [{"id": "1", "data": {"eventType": "captions.x"}}])
    recorder.wait("session")
    recorder.wait("namespace")
    assert sorted(recorder.names) == ["namespace", "session"]


@pytest.mark.parametrize("where", ["y", ALL_SESSIONS])
def test_a_suffix_and_another_session_contradict_each_other(make: Make, where: Any) -> None:
    pool, _ = make()
    for call in (pool.on, pool.once, pool.off):
        with pytest.raises(ConfigurationError) as caught:
            call("online:x", print, session_id=where)
        assert caught.value.argument == "session_id"
    pool.on("online:x", print, session_id="x")


def test_once_for_all_sessions_is_once(make: Make) -> None:
    pool, _ = make()
    recorder = Recorder()
    once = pool.once("online", session_id=ALL_SESSIONS)(recorder.named("once"))
    pool.on("online", recorder.named("on"), session_id=ALL_SESSIONS)
    names = iter("abcdefgh")
    lock = threading.Lock()

    def connect() -> Any:
        with lock:
            name = next(names)
        return pool.connect(URL, name)

    run_together(8, connect)
    recorder.wait("on", 8)
    assert recorder.names.count("once") == 1
    pool.once("online", once, session_id=ALL_SESSIONS)
    pool.off("online", once, session_id=ALL_SESSIONS)
    pool.connect(URL, "z")
    recorder.wait("on", 9)
    assert recorder.names.count("once") == 1


def test_off_by_suffix_and_by_session(make: Make) -> None:
    pool, _ = make()
    recorder = Recorder()
    pool.on("online", recorder.named("a"), session_id="x")
    pool.on("online", recorder.named("b"), session_id="x")
    pool.off("online:x")
    pool.on("online:x", recorder.named("c"))
    pool.connect(URL, "x")
    recorder.wait("c")
    assert recorder.names == ["c"]


def test_listeners_may_precede_the_connect_and_see_it(make: Make) -> None:
    pool, _ = make()
    recorder = Recorder().listen(pool, "online", session_id="x")
    assert pool.session("x").state is SessionState.IDLE
    pool.connect(URL, "x")
    recorder.wait("online")


def test_i97_disconnect_inside_callbacks(make: Make) -> None:
    pool, transport = make()
    recorder = Recorder().listen(pool, "offline", "offline.permanent", "disconnected")
    seen: list[SessionState] = []

    def leave(payload: object) -> None:
        pool.disconnect()
        seen.append(pool.session().state)

    pool.on("event", leave)
    pool.on("offline", leave)
    session = pool.connect(URL)
    (link,) = transport.links
    link.owner.link_received(link, [{"id": "1"}])
    recorder.wait("disconnected")
    eventually(lambda: len(seen) == 2)
    assert seen == [SessionState.IDLE] * 2 and session.state is SessionState.IDLE
    assert recorder.names == ["offline", "offline.permanent", "disconnected"]


def test_i97_connect_inside_a_callback(make: Make) -> None:
    pool, transport = make()
    recorder = Recorder()
    pool.once("disconnected", lambda payload: pool.connect(URL))
    pool.on("online", recorder.named("online"))
    pool.connect(URL)
    pool.disconnect()
    recorder.wait("online", 2)
    assert len(transport.links) == 2 and pool.is_online()


def test_i97_a_callback_and_a_thread_disconnect_at_once(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    gate, recorder = Gate(), Recorder().listen(pool, "disconnected")

    def leave(payload: object) -> None:
        gate.pass_through()
        pool.disconnect(code=4000)

    pool.on("event", leave)
    transport.on_close = nothing
    (link,) = transport.links
    link.owner.link_received(link, [{"id": "1"}])
    gate.wait_arrived()
    other = Background(lambda: pool.disconnect(code=3000))
    eventually(lambda: session.state is SessionState.DISCONNECTING)
    gate.open()
    link.end(3000)
    other.result()
    recorder.wait("disconnected")
    assert recorder.names == ["disconnected"] and link.closes == [(3000, None)]


def test_i36_a_callback_that_raises_does_not_cost_the_session(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pool, transport = make()
    recorder = Recorder()
    caplog.set_level(logging.DEBUG, "llm_sessions.dispatch")

    def fail(payload: object) -> None:
        raise SystemExit

    for name in ("online", "event"):
        pool.on(name, fail)
        pool.on(name, recorder.named(name))
    session = pool.connect(URL)
    (link,) = transport.links
    link.owner.link_received(link, [{"id": "1"}])
    link.owner.link_received(link, [{"id": "2"}])
    recorder.wait("event", 2)
    assert session.online and recorder.names == ["online", "event", "event"]
    assert caplog.text.count("a listener of") == 3


def test_observe_tells_every_change_until_it_is_taken_back(make: Make) -> None:
    pool, transport = make()
    session = pool.session()
    states: list[SessionState] = []
    forget = pool.observe(session, lambda: states.append(session.state))
    pool.connect(URL)
    transport.on_open = nothing
    transport.links[0].end(1006)
    assert states[-2:] == [SessionState.ONLINE, SessionState.RECONNECTING]
    forget()
    forget()
    count = len(states)
    pool.disconnect()
    assert len(states) == count


# -- close -------------------------------------------------------------------------------------------------

LATER: dict[str, Callable[[Any], object]] = {
    "connect": lambda pool: pool.connect(URL),
    "connect again": lambda pool: pool.connect(),
    "connect anew": lambda pool: pool.connect(URL, None),
    "begin_connect": lambda pool: pool.begin_connect(URL),
    "begin_disconnect": lambda pool: pool.begin_disconnect(),
    "disconnect": lambda pool: pool.disconnect(),
    "disconnect unknown": lambda pool: pool.disconnect("unknown"),
    "disconnect_all": lambda pool: pool.disconnect_all(),
    "wait_online": lambda pool: pool.wait_online(timeout=None),
    "is_online": lambda pool: pool.is_online(),
    "any_online": lambda pool: pool.any_online,
    "session": lambda pool: pool.session(),
    "sessions": lambda pool: pool.sessions(),
    "on": lambda pool: pool.on("online", print),
    "on all": lambda pool: pool.on("online", print, session_id=ALL_SESSIONS),
    "once": lambda pool: pool.once("online"),
    "off": lambda pool: pool.off("online", print),
    "off all": lambda pool: pool.off("online", session_id=ALL_SESSIONS),
    "with": lambda pool: pool.__enter__(),
}


@pytest.mark.parametrize("call", LATER.values(), ids=LATER)
def test_i39_every_later_call_raises(make: Make, call: Callable[[Any], object]) -> None:
    pool, transport = make()
    pool.connect(URL)
    pool.connect(URL, "practice")
    pool.close()
    pool.close()
    with pytest.raises(PoolClosed):
        Background(lambda: call(pool)).result()
    assert len(transport.links) == 2 and not library_threads()
    assert "closed" in repr(pool)


@pytest.mark.parametrize("call", LATER.values(), ids=LATER)
def test_t7_a_forked_child_is_refused_before_any_lock(
    make: Make, monkeypatch: pytest.MonkeyPatch, call: Callable[[Any], object]
) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    with monkeypatch.context() as fork, pool._lock, session._machine._lock, pool._env.all_listeners._lock:
        fork.setattr(_fork, "_generation", _fork.generation() + 1)
        with pytest.raises(PoolClosed, match="fork"):
            Background(lambda: call(pool)).result()
        assert "another process" in Background(lambda: repr(pool)).result()
        Background(pool.close).result()
        Background(goodbye.say_goodbye).result()
    assert session.online and transport.links[0].closes == []


def test_the_with_block_closes(make: Make) -> None:
    pool, transport = make()
    with pool as same:
        assert same.connect(URL).online
    pool.__exit__(None, None, None)
    assert transport.links[0].closes == [(None, None)] and not library_threads()


def test_t2_close_from_a_callback(make: Make) -> None:
    pool, _ = make()
    took: list[float] = []

    def close(payload: object) -> None:
        started = time.monotonic()
        pool.close()
        took.append(time.monotonic() - started)

    recorder = Recorder().listen(pool, "disconnected")
    pool.on("online", close)
    pool.begin_connect(URL)
    eventually(lambda: took and not library_threads())
    assert took[0] < 2 and recorder.names == ["disconnected"]


def test_t2_close_from_two_callbacks_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither waits for the other, even if the threads that started the dispatchers have not gone on yet.

    Until they had, close() did not know whose threads to leave out: two callbacks waited for each other.
    """
    pool, _ = make()
    gate, spawn = Gate(), ThreadGroup.spawn
    together = threading.Barrier(2)
    took: list[float] = []

    def slow(self: ThreadGroup, target: Callable[[], None], name: str, **options: bool) -> threading.Thread:
        thread = spawn(self, target, name, **options)
        if "dispatcher" in name:
            gate.pass_through()
        return thread

    def close(payload: object) -> None:
        together.wait(LONG)
        started = time.monotonic()
        pool.close()
        took.append(time.monotonic() - started)

    monkeypatch.setattr(ThreadGroup, "spawn", slow)
    for name in "ab":
        pool.on("disconnected", close, session_id=name)
    transport = pool._env.transport
    transport.on_open = nothing  # type: ignore[attr-defined]
    for name in "ab":
        pool.begin_connect(URL, name)
    calls = [Background(lambda name=name: pool.begin_disconnect(name)) for name in "ab"]  # type: ignore[misc]
    eventually(lambda: len(took) == 2)
    assert max(took) < 2, "two callbacks waited for each other"
    gate.open()
    for call in calls:
        call.result()
    eventually(lambda: not library_threads())


def test_t2_close_waits_for_callbacks_unless_it_is_in_one(make: Make) -> None:
    pool, transport = make()
    gate = Gate()
    pool.on("event", lambda envelope: gate.pass_through())
    pool.connect(URL)
    (link,) = transport.links
    link.owner.link_received(link, [{"id": "1"}])
    gate.wait_arrived()
    closing = Background(pool.close)
    eventually(lambda: pool._env.closed and pool._machines()[0].state is SessionState.IDLE)
    assert not closing.done
    gate.open()
    closing.result()
    assert not library_threads()


def test_t2_close_names_the_threads_that_it_must_leave(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    pool, transport = make()
    gate = Gate()

    def token() -> str:
        gate.pass_through()
        return "t"

    call = Background(lambda: pool.connect(URL, token=token, timeout=None))
    gate.wait_arrived()
    pool.close(timeout=SHORT)
    assert isinstance(call.error(), PoolClosed)
    assert [record.levelno for record in caplog.records if "still run" in record.message] == [logging.WARNING]
    assert f"llm-connector[{DEFAULT_SESSION_ID}]" in caplog.text
    gate.open()
    eventually(lambda: not library_threads())
    assert transport.links == []


def test_t1_close_does_not_wait_for_a_mute_socket_beyond_its_time(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    transport.on_close = nothing
    pool.close(timeout=SHORT)
    assert session.state is SessionState.DISCONNECTING
    transport.links[0].end(1000, "", EndCause.LOCAL)
    assert session.state is SessionState.IDLE


def test_a_connect_that_waits_for_a_disconnect_gets_pool_closed(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    transport.on_close = nothing
    leaving = Background(pool.disconnect)
    eventually(lambda: session.state is SessionState.DISCONNECTING)
    coming = Background(lambda: pool.connect(URL))
    waiting = Background(lambda: session.wait_online(timeout=None))
    eventually(lambda: session._machine._waiters == 1)
    closing = Background(pool.close)
    assert isinstance(waiting.error(), PoolClosed)
    eventually(lambda: pool._env.closed)
    transport.links[0].end(1000)
    assert isinstance(coming.error(), PoolClosed)
    leaving.result()
    closing.result()
    assert len(transport.links) == 1


def test_no_session_is_made_while_the_pool_closes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = make()
    gate, name = Gate(), pool._name

    def slow(session_id: Any) -> str:
        found = name(session_id)
        gate.pass_through()
        return found

    monkeypatch.setattr(pool, "_name", slow)
    call = Background(lambda: pool.connect(URL, "late"))
    gate.wait_arrived()
    pool.close()
    gate.open()
    assert isinstance(call.error(), PoolClosed) and pool._machines() == []


def test_an_endpoint_of_ones_own(make: Make) -> None:
    class Nowhere(Endpoint):
        pass

    pool, transport = make(initial_max_retries=0)
    with pytest.raises(ConnectError, match="TypeError"):
        pool.connect(Nowhere())
    assert transport.links == []


def test_the_configuration_is_the_defaults_unless_given() -> None:
    assert ConnectionPool()._env.config == PoolConfig()
