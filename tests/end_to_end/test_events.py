"""INVARIANTS, Pool: events: names, order, and listeners that misbehave; plain and TLS."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import (
    ALL_SESSIONS,
    ConfigurationError,
    ConnectionPool,
    Envelope,
    Session,
    SessionState,
    _sync,
)
from llm_sessions.protocol.events import STATE_EVENTS
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, Background, Gate, Recorder, eventually, library_threads, run_together

MakePool = Callable[..., ConnectionPool]

ENVELOPE_EVENTS = ("event", "event:relay", "event:relay.event")


def threads(*kinds: str) -> list[str]:
    """Return the names of the library's own threads of these kinds, of all kinds by default."""
    wanted = tuple(f"llm-{kind}" for kind in kinds or ("connector", "reader", "dispatcher"))
    return sorted(thread.name for thread in library_threads() if thread.name.startswith(wanted))


# -- I34, I35: names -----------------------------------------------------------------------------------------


def live_a_life(server: LocalServer, pool: ConnectionPool, recorder: Recorder, key: str, suffix: str) -> None:
    """Take a session through everything that has an event."""
    server.reject(4410, session=key, times=2)
    pool.connect(server.url(key), key)
    recorder.wait(f"connection_failed{suffix}")
    recorder.wait(f"ping-pong-latency{suffix}")
    [first] = server.wait_live(key)
    server.publish(session=key, sequence=7)
    server.publish(session=key, sequence=9)
    recorder.wait(f"sequence-mismatch{suffix}")
    recorder.wait(f"event:relay.event{suffix}", 2)
    first.send_json({"type": "shutdown"})
    recorder.wait(f"event:mercury_shutdown_switchover_complete{suffix}")
    first.close(4001)
    recorder.wait(f"offline.replaced{suffix}")
    [second] = server.live(key)
    second.send_json({"type": "shutdown"})
    recorder.wait(f"event:mercury_shutdown_switchover_complete{suffix}", 2)
    second.drop()
    recorder.wait(f"switchover-loss{suffix}")
    server.live(key)[0].close(1001)
    recorder.wait(f"online{suffix}", 2)
    server.wait_live(key)
    pool.disconnect(key)
    recorder.wait(f"disconnected{suffix}")


def test_i34_another_session_has_its_suffix_once(server: LocalServer, pool: ConnectionPool) -> None:
    names = sorted(STATE_EVENTS) + list(ENVELOPE_EVENTS)
    suffixed, bare, everyone = Recorder(), Recorder(), Recorder()
    for name in names:
        bare.listen(pool, name)
        everyone.listen(pool, name, session_id=ALL_SESSIONS)
        if name == "event":
            pool.on("event", suffixed.named("event:practice"), session_id="practice")
        else:
            full = f"{name}:practice"
            pool.on(full, suffixed.named(full))
    live_a_life(server, pool, suffixed, "practice", ":practice")
    everyone.wait("disconnected")
    assert bare.names == []
    assert [f"{name}:practice" for name in everyone.names] == suffixed.names
    seen = set(suffixed.names)
    never = {"event:mercury_shutdown_switchover_failed"}
    assert seen == {f"{name}:practice" for name in {*names} - never}
    assert {payload.session_id for _, payload in suffixed.calls} == {"practice"}


def test_i34_the_default_session_has_none(server: LocalServer, pool: ConnectionPool) -> None:
    names = [*sorted(STATE_EVENTS), *ENVELOPE_EVENTS]
    default = Recorder().listen(pool, *names)
    other = Recorder().listen(pool, *names, session_id="practice")
    key = pool.session().id
    live_a_life(server, pool, default, key, "")
    assert set(default.names) == {*names} - {"event:mercury_shutdown_switchover_failed"}
    assert {payload.session_id for _, payload in default.calls} == {key}
    assert other.names == []


@pytest.mark.parametrize(
    "name",
    [
        "online:practice:practice",
        "onlin",
        "",
        "offline.",
        "event:a.b:c:d",
        "event:",
        "event:a b",
        ":practice",
    ],
)
def test_i34_a_name_that_cannot_exist_is_refused(pool: ConnectionPool, name: str) -> None:
    for register in (pool.on, pool.once, pool.session().on, pool.session().once):
        with pytest.raises(ConfigurationError):
            register(name, print)


def test_i34_bare_and_suffixed_names_on_a_session(server: LocalServer, pool: ConnectionPool) -> None:
    session = pool.session("practice")
    recorder = Recorder()
    session.on("online", recorder.named("bare"))
    session.on("online:practice", recorder.named("suffixed"))
    with pytest.raises(ConfigurationError):
        session.on("online:other", print)
    pool.connect(server.url(), "practice")
    recorder.wait("suffixed")
    assert recorder.names == ["bare", "suffixed"]


@pytest.mark.parametrize(
    "message",
    [
        {"id": "1"},
        {"id": "1", "data": {}},
        {"id": "1", "data": None},
        {"id": "1", "data": []},
        {"id": "1", "data": "text"},
        {"id": "1", "data": {"eventType": None}},
        {"id": "1", "data": {"eventType": 7}},
        {"id": "1", "data": {"eventType": ""}},
        {"id": "1", "data": {"eventType": ["relay.event"]}},
        {"id": "1", "type": "unheard of"},
        {"id": "1", "data": {"headers": {"eventType": "relay.event"}, "eventType": {"a": 1}}, "type": "x"},
    ],
    ids=str,
)
def test_i35_without_an_event_type_only_event(
    server: LocalServer, pool: ConnectionPool, message: dict[str, Any]
) -> None:
    recorder = Recorder().listen(pool, *ENVELOPE_EVENTS)
    pool.connect(server.url())
    recorder.wait("event")  # ready
    server.wait_live()
    server.send_json(message)
    server.publish()
    recorder.wait("event:relay.event")
    overridden = "headers" in message.get("data", {}) if isinstance(message.get("data"), dict) else False
    extra = ["event:relay", "event:relay.event"] if overridden else []
    eventually(lambda: recorder.names.count("event") == 3)
    eventually(lambda: len(recorder.names) == 5 + len(extra))
    assert recorder.names == ["event", "event", *extra, "event", "event:relay", "event:relay.event"]
    assert recorder.payloads("event")[1].id == "1"


def test_the_order_for_one_envelope(server: LocalServer, pool: ConnectionPool) -> None:
    ready = Recorder().listen(pool, "event")
    session = pool.connect(server.url())
    ready.wait("event")
    recorder = Recorder().listen(session, *reversed(ENVELOPE_EVENTS))
    server.wait_live()
    sent = [server.publish({"n": n})["id"] for n in range(3)]
    server.publish(event_type="relay")
    recorder.wait("event:relay", 4)
    assert recorder.names == [*ENVELOPE_EVENTS] * 3 + ["event", "event:relay"]
    assert [envelope.id for envelope in recorder.payloads("event:relay.event")] == sent


def test_what_came_before_a_close_is_delivered_before_offline(
    server: LocalServer, pool: ConnectionPool
) -> None:
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, "event:relay.event", "offline", "offline.permanent")
    [connection] = server.wait_live()
    gate = Gate()
    session.once("event:relay.event", lambda envelope: gate.pass_through())
    for n in range(100):
        server.publish({"n": n})
    connection.close(1003)
    gate.open()
    recorder.wait("offline.permanent")
    assert recorder.names == ["event:relay.event"] * 100 + ["offline", "offline.permanent"]
    assert [envelope.data["n"] for envelope in recorder.payloads("event:relay.event")] == list(range(100))


# -- I36: listeners that raise -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mine"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), BaseException("mine")],
    ids=repr,
)
def test_i36_d10_a_raising_listener_stops_nobody(
    server: LocalServer, pool: ConnectionPool, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    caplog.set_level(logging.DEBUG, "llm_sessions.dispatch")
    session = pool.connect(server.url())
    recorder = Recorder()

    def fail(payload: object) -> None:
        raise error

    for name in ("event", "event:relay.event", "offline", "online"):
        session.on(name, fail)
        session.on(name, recorder.named(name))
    server.wait_live()
    server.publish()
    server.publish()
    recorder.wait("event:relay.event", 2)
    assert session.online and len(server.connections()) == 1
    server.close_session(code=1001)
    recorder.wait("online")
    server.wait_live()
    server.publish()
    recorder.wait("event:relay.event", 3)
    said = [record for record in caplog.records if record.exc_info and record.exc_info[1] is error]
    assert len(said) >= 5
    assert [record.levelno for record in said].count(logging.ERROR) == 4, "one line for each event, a minute"


# -- I37: header overrides -----------------------------------------------------------------------------------


def test_i37_header_paths_are_applied_before_listeners(server: LocalServer, pool: ConnectionPool) -> None:
    ready = Recorder().listen(pool, "event")
    session = pool.connect(server.url())
    ready.wait("event")
    seen: list[Any] = []
    done = threading.Event()

    def look(envelope: Envelope) -> None:
        seen.append((dict(envelope.data), envelope.event_type))
        if len(seen) == 2:
            done.set()

    session.on("event", look)
    session.on("event:other.name", look)
    server.wait_live()
    headers = {"a.b": 1, "x": 2, "eventType": "other.name", "list.1": "two", "kept": None, "deep.er.est": [3]}
    server.publish({"x": 1, "a": {"c": 0}, "list": ["one", "2"], "deep": "in the way"}, headers=headers)
    assert done.wait(LONG)
    expected = {
        "x": 2,
        "a": {"b": 1, "c": 0},
        "list": ["one", "two"],
        "kept": None,
        "deep": {"er": {"est": [3]}},
        "eventType": "other.name",
        "headers": headers,
    }
    assert seen == [(expected, "other.name")] * 2


# -- I97: what callbacks may do ------------------------------------------------------------------------------


def test_i97_callbacks_run_without_a_lock_and_may_call_anything(
    server: LocalServer, pool: ConnectionPool
) -> None:
    session = pool.connect(server.url())
    done = threading.Event()
    problems: list[object] = []

    def call_everything(envelope: object) -> None:
        problems.extend(_sync.held_locks())
        session.send({"type": "from a callback"})
        session.on("offline", print)
        session.off("offline", print)
        if session.wait_online() is not session or pool.connect(server.url()) is not session:
            problems.append("not the session")
        if not (pool.is_online() and pool.any_online and session.online):
            problems.append("not online")
        pool.connect(server.url("other"), "other").disconnect()
        repr(pool), repr(session), pool.sessions(), session.state, session.latency, session.time_offset
        done.set()

    session.on("event:relay.event", call_everything)
    [connection] = server.wait_live()
    server.publish()
    assert done.wait(LONG)
    assert problems == []
    server.wait_for(lambda: {"type": "from a callback"} in connection.received)


@pytest.mark.parametrize("how", ["session", "pool", "all"])
def test_i97_d4_disconnect_itself_in_event(server: LocalServer, pool: ConnectionPool, how: str) -> None:
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, "offline.permanent", "disconnected")
    calls = {"session": session.disconnect, "pool": pool.disconnect, "all": pool.disconnect_all}
    states: list[SessionState] = []

    def leave(envelope: object) -> None:
        calls[how]()
        states.append(session.state)

    session.on("event:relay.event", leave)
    server.wait_live()
    server.publish()
    recorder.wait("disconnected")
    assert states == [SessionState.IDLE]
    assert len(server.connections()) == 1


@pytest.mark.parametrize("event", ["offline", "offline.transient"])
def test_i97_d4_disconnect_itself_in_offline(server: LocalServer, pool: ConnectionPool, event: str) -> None:
    server_down = server.reject
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, "disconnected", "offline.permanent")
    session.once(event, lambda payload: session.disconnect())
    server.wait_live()
    server.hold_upgrades()
    server_down(500, times=100)
    server.close_session(code=1001)
    recorder.wait("disconnected")
    assert session.state is SessionState.IDLE
    eventually(lambda: not threads())
    assert recorder.names == ["offline.permanent", "disconnected"]


def test_i97_disconnect_from_two_threads_and_a_callback_at_once(
    server: LocalServer, pool: ConnectionPool
) -> None:
    recorder = Recorder().listen(pool, "disconnected")
    for round_ in range(1, 21):
        session = pool.connect(server.url())
        session.once("event:relay.event", lambda envelope, session=session: session.disconnect())
        server.wait_live()
        server.publish()
        assert run_together(2, session.disconnect) == [None, None]
        assert session.state is SessionState.IDLE
        assert len(recorder.wait("disconnected", round_)) == round_
        session.off("event:relay.event")
    eventually(lambda: not threads())


def test_i97_connect_in_offline_permanent(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder()
    outcomes: list[Session] = []

    def again(payload: object) -> None:
        outcomes.append(pool.connect())
        recorder.named("again")(payload)

    session = pool.connect(server.url())
    session.once("offline.permanent", again)
    server.wait_live()
    server.close_session(code=1003)
    recorder.wait("again")
    assert outcomes == [session] and session.online
    assert len(server.connections()) == 2


def test_i97_connect_in_disconnected(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder().listen(pool, "online")
    session = pool.connect(server.url())
    session.once("disconnected", lambda payload: pool.connect())
    pool.disconnect()
    recorder.wait("online", 2)
    assert session.online


def test_i97_d4_two_callbacks_that_disconnect_each_others_session(
    server: LocalServer, pool: ConnectionPool
) -> None:
    barrier = threading.Barrier(2)
    recorders = {}
    for mine, others in (("a", "b"), ("b", "a")):
        session = pool.connect(server.url(mine), mine)
        recorders[mine] = Recorder().listen(session, "disconnected")

        def cross(envelope: object, others: str = others) -> None:
            barrier.wait(LONG)
            pool.disconnect(others)

        session.on("event:relay.event", cross)
    server.wait_live(count=2)
    server.publish()
    for recorder in recorders.values():
        recorder.wait("disconnected")
    eventually(lambda: not threads())


def test_once_and_off(server: LocalServer, pool: ConnectionPool) -> None:
    session = pool.connect(server.url())
    recorder = Recorder()
    kept = recorder.named("kept")
    gone = session.on("event:relay.event", recorder.named("gone"))
    session.once("event:relay.event", recorder.named("once"))
    session.on("event:relay.event", kept)
    server.wait_live()
    server.publish()
    recorder.wait("kept")
    session.off("event:relay.event", gone)
    server.publish()
    recorder.wait("kept", 2)
    assert recorder.names == ["gone", "once", "kept", "kept"]
    call = Background(lambda: session.off("event:relay.event"))
    call.result()
    marker = Recorder().listen(session, "event")
    server.publish()
    marker.wait("event")
    assert recorder.names == ["gone", "once", "kept", "kept"]
