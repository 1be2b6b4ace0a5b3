"""A reader delivers what it has read: whatever a callback does, its socket is read on, nothing gets lost."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import ConnectionPool, Envelope, LocalProtocolError, PoolClosed, SessionState
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, SHORT, Background, Gate, Recorder, eventually, library_threads, no_leaks

MakePool = Callable[..., ConnectionPool]
RELAY = "event:relay.event"


def client_threads() -> list[str]:
    """Return the kinds of the library's own threads, the server's left out."""
    return sorted(t.name.partition("[")[0] for t in library_threads() if not t.name.startswith("llm-server"))


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open in the end, whatever happened."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all threads that are started from now on."""
    names: list[str] = []
    start = threading.Thread.start

    def named(thread: threading.Thread) -> None:
        names.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", named)
    return names


def numbers(envelopes: list[Any]) -> list[int]:
    return [envelope.data["n"] for envelope in envelopes]


# -- quick callbacks ---------------------------------------------------------------------------------------


def test_quick_callbacks_need_no_dispatcher(
    server: LocalServer, pool: ConnectionPool, spawned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine that is busy with something else is no slow callback.
    monkeypatch.setattr(pool._env.watch, "_look", lambda now, late: None)
    session = pool.session()
    recorder, names = Recorder().listen(session, "online", RELAY), set[str]()
    session.on(RELAY, lambda envelope: names.add(threading.current_thread().name))
    pool.connect(server.url())
    [connection] = server.wait_live()
    for number in range(1000):
        server.publish({"n": number})
    assert numbers(recorder.wait(RELAY, 1000)) == list(range(1000))
    server.wait_for(lambda: len(connection.acks) >= 1000)
    assert names == {"llm-reader[mercury-default-session#1.1]"}
    assert client_threads() == ["llm-reader", "llm-watch"]
    assert not any("dispatcher" in name for name in spawned)


def test_i11_each_socket_lends_its_reader_again(
    server: LocalServer, pool: ConnectionPool, gate: Gate
) -> None:
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, "online", RELAY)
    names: list[str] = []

    def callback(envelope: Envelope) -> None:
        names.append(threading.current_thread().name)
        if envelope.data["n"] == 0:
            gate.pass_through()

    session.on(RELAY, callback)
    server.wait_live()
    server.publish({"n": 0})
    gate.wait_arrived()
    eventually(lambda: client_threads() == ["llm-dispatcher", "llm-reader", "llm-watch"], "not relieved")
    gate.open()
    server.publish({"n": 1})
    recorder.wait(RELAY, 2)
    server.close_session(code=1001)
    recorder.wait("online")
    server.wait_live()
    eventually(lambda: "llm-dispatcher" not in client_threads(), "the thread that was kept does not end")
    server.publish({"n": 2})
    recorder.wait(RELAY, 3)
    first, second = "llm-reader[mercury-default-session#1.1]", "llm-reader[mercury-default-session#2.1]"
    assert names == [first, "llm-dispatcher[mercury-default-session]", second]


def test_a_switchover_lends_the_new_sockets_reader_although_the_old_one_is_away(
    server: LocalServer, pool: ConnectionPool, gate: Gate
) -> None:
    session = pool.connect(server.url())
    complete = "event:mercury_shutdown_switchover_complete"
    recorder = Recorder().listen(session, RELAY, complete)
    session.on(RELAY, lambda envelope: gate.pass_through() if envelope.data["n"] == 0 else None)
    [old] = server.wait_live()
    server.publish({"n": 0})
    gate.wait_arrived()
    old.send_json({"type": "shutdown"})
    server.wait_live(count=2)
    eventually(lambda: session.state is SessionState.ONLINE and session._machine._count.switchovers == 1)
    old.close(4001)
    server.wait_for(lambda: old.closed_at is not None)
    for number in (1, 2, 3):
        server.publish({"n": number})
    gate.open()
    assert numbers(recorder.wait(RELAY, 4)) == [0, 1, 2, 3]
    assert recorder.names.index(complete) == 1
    eventually(lambda: client_threads() == ["llm-reader", "llm-watch"])


# -- slow and blocked callbacks ----------------------------------------------------------------------------


def test_t3_a_callback_that_blocks_is_seen_and_the_socket_read_on(
    server: LocalServer, make_pool: MakePool, gate: Gate
) -> None:
    pool = make_pool(ping_interval=SHORT)
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, RELAY, "offline")
    session.on(RELAY, lambda envelope: gate.pass_through() if envelope.data["n"] == 0 else None)
    [connection] = server.wait_live()
    server.publish({"n": 0})
    gate.wait_arrived()
    for number in range(1, 50):  # fast ones behind the slow one
        server.publish({"n": number})
    server.wait_for(lambda: len(connection.acks) >= 50)
    pings = len(connection.pings)
    server.wait_for(lambda: len(connection.pings) >= pings + 4)
    gate.open()
    assert numbers(recorder.wait(RELAY, 50)) == list(range(50))
    assert recorder.names == [RELAY] * 50 and len(server.connections()) == 1


def test_t3_a_callback_that_blocks_delays_no_other_session(
    server: LocalServer, pool: ConnectionPool, gate: Gate
) -> None:
    pool.connect(server.url("slow"), "slow").on(RELAY, lambda envelope: gate.pass_through())
    recorder = Recorder().listen(pool.connect(server.url("quick"), "quick"), RELAY)
    server.wait_live("slow")
    server.wait_live("quick")
    server.publish(session="slow")
    gate.wait_arrived()
    for number in range(100):
        server.publish({"n": number}, session="quick")
    assert numbers(recorder.wait(RELAY, 100)) == list(range(100))


@pytest.mark.parametrize("event", ["online", RELAY, "offline.transient"])
@pytest.mark.parametrize("verb", ["disconnect", "close", "by the server"])
def test_t0_t1_a_session_ends_in_time_while_its_callback_has_only_begun_to_block(
    server: LocalServer, make_pool: MakePool, gate: Gate, event: str, verb: str
) -> None:
    """Nobody has seen by then that it takes long."""
    pool = make_pool()
    session = pool.session()
    session.on(event, lambda payload: gate.pass_through())
    pool.connect(server.url())
    [connection, *_] = server.wait_live()
    if event == RELAY:
        server.publish()
    elif event == "offline.transient":
        connection.close(1001)
    gate.wait_arrived()
    started = time.monotonic()
    if verb == "disconnect":
        session.disconnect()
        assert session.state is SessionState.IDLE
    elif verb == "close":
        pool.close(timeout=SHORT)
        assert session.state is SessionState.IDLE
    else:
        session.wait_online()
        server.close_session(code=1003)
        session.wait_closed(LONG)
        assert session.state is SessionState.OFFLINE
    if verb != "by the server":
        assert time.monotonic() - started < 1
    server.wait_for(lambda: all(one.closed_at is not None for one in server.connections()))


@pytest.mark.parametrize("call", ["disconnect", "reconnect", "close", "send", "wait", "fetch", "other"])
def test_i97_a_callback_may_call_whatever_blocks(server: LocalServer, make_pool: MakePool, call: str) -> None:
    pool = make_pool()
    session = pool.connect(server.url())
    other = pool.connect(server.url("other"), "other")
    recorder = Recorder()

    def callback(envelope: Envelope) -> None:
        if call == "disconnect":
            session.disconnect()
            assert session.state is SessionState.IDLE
        elif call == "reconnect":
            session.disconnect()
            pool.connect(server.url())
            pool.wait_online()
            session.send({"type": "again"})
        elif call == "close":
            pool.close()
            with pytest.raises(PoolClosed):
                session.send({})
        elif call == "send":
            for _ in range(100):
                session.send({"text": "x" * 100_000})
        elif call == "wait":
            pool.wait_online()
            pool.connect(server.url())
            Background(session.disconnect).result()  # a thread that waits for what this one holds up
            session.wait_closed()
        elif call == "fetch":
            for fetch in (session.receive, session.messages):
                with pytest.raises(LocalProtocolError, match="dispatcher"):
                    fetch(timeout=0)
        else:
            with other.messages() as messages:
                server.publish(session="other")
                assert next(messages).event_type == "relay.event"
            pool.disconnect("other")
        recorder.named("done")(None)

    session.on(RELAY, callback)
    server.wait_live("default")
    server.wait_live("other")
    server.publish(session="default")
    recorder.wait("done")
    if call == "reconnect":
        server.wait_for(lambda: {"type": "again"} in server.connections("default")[-1].received)
        session.off(RELAY)
        recorder.listen(session, RELAY)
        server.publish(session="default")
        recorder.wait(RELAY)


def test_t2_callbacks_of_several_sessions_close_the_pool_at_the_same_time(
    server: LocalServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    keys = [f"s{number}" for number in range(4)]
    with no_leaks():
        pool, barrier, closed = make_pool(), threading.Barrier(len(keys)), threading.Semaphore(0)

        def close(envelope: Envelope) -> None:
            barrier.wait(LONG)
            pool.close(timeout=LONG)
            closed.release()

        for key in keys:
            pool.connect(server.url(key), key).on(RELAY, close)
            server.wait_live(key)
        server.publish()
        for _ in keys:
            assert closed.acquire(timeout=LONG / 2), "they wait for each other"
    assert not [record for record in caplog.records if "still run" in record.getMessage()]


def test_i97_a_close_inside_a_callback_does_not_wait_for_another_that_begins_meanwhile(
    server: LocalServer, make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other session's reader delivers `disconnected` after the close has looked at the threads."""
    pool, recorder, held, joining = make_pool(), Recorder(), Gate(), threading.Event()
    session = pool.connect(server.url("a"), "a")
    pool.connect(server.url("b"), "b").on("disconnected", lambda payload: gate.pass_through())
    [link] = pool.session("b")._machine._links
    link_lent, join = pool.session("b")._machine.link_lent, threading.Thread.join

    def late(link: Any) -> bool:
        held.pass_through()
        return link_lent(link)

    def joins(thread: threading.Thread, timeout: float | None = None) -> None:
        if threading.current_thread() is not threading.main_thread() and "[b" in thread.name:
            joining.set()
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", joins)
    monkeypatch.setattr(link, "_owner", Late(link._owner, late))
    session.on(RELAY, lambda envelope: (pool.close(timeout=LONG), recorder.named("closed")(None)))
    server.wait_live("a")
    server.publish(session="a")
    held.wait_arrived()
    assert joining.wait(LONG)
    held.open()
    gate.wait_arrived()
    recorder.wait("closed", timeout=LONG / 2)


class Late:
    """A link's owner whose `link_lent` is another."""

    def __init__(self, owner: Any, link_lent: Callable[[Any], bool]) -> None:
        self._owner, self.link_lent = owner, link_lent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner, name)


# -- full queues -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when_full", ["block", "drop_oldest"])
def test_t4_a_queue_of_one_is_lent_and_relieved_as_any_other(
    server: LocalServer, make_pool: MakePool, gate: Gate, when_full: str
) -> None:
    pool = make_pool(queue_size=1, when_full=when_full, ping_interval=SHORT)
    session = pool.connect(server.url())
    recorder = Recorder()
    session.on(RELAY, lambda envelope: gate.pass_through() if envelope.data["n"] == 0 else None)
    recorder.listen(session, RELAY, "offline")
    [connection] = server.wait_live()
    server.publish({"n": 0})
    gate.wait_arrived()
    for number in range(1, 30):
        server.publish({"n": number})
    pings = len(connection.pings)
    server.wait_for(lambda: len(connection.pings) >= pings + 3)
    gate.open()
    eventually(lambda: 29 in numbers(recorder.payloads(RELAY)))
    got = numbers(recorder.payloads(RELAY))
    assert got == sorted(set(got)) and (when_full == "drop_oldest" or got == list(range(30)))
    assert "offline" not in recorder.names


def test_t4_who_fetches_gets_what_listeners_get(server: LocalServer, make_pool: MakePool, gate: Gate) -> None:
    session = make_pool(queue_size=4).connect(server.url())
    recorder = Recorder().listen(session, RELAY)
    messages = session.messages()

    def fetch() -> list[int]:
        got: list[int] = []
        while len(got) < 40:
            got += numbers([one for one in [next(messages)] if one.event_type == "relay.event"])
        return got

    server.wait_live()
    fetching = Background(fetch)
    for number in range(40):
        server.publish({"n": number})
    assert fetching.result() == list(range(40))
    assert numbers(recorder.wait(RELAY, 40)) == list(range(40))
    messages.close()


# -- when things fail --------------------------------------------------------------------------------------


def test_t3_without_threads_a_blocked_session_goes_on_once_there_are_some(
    server: LocalServer, make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """Also after the pool has given up waiting for it."""
    pool = make_pool()
    session = pool.connect(server.url())
    session.on(RELAY, lambda envelope: gate.pass_through())
    [connection] = server.wait_live()
    threads, spawn = pool._env.threads, pool._env.threads.spawn
    refused: list[str] = []

    def no_more(target: Callable[[], None], name: str, **options: bool) -> threading.Thread:
        if name.startswith("llm-reader"):
            refused.append(name)
            raise RuntimeError("can't start new thread")
        return spawn(target, name, **options)

    server.publish()
    threads.spawn = no_more  # type: ignore[method-assign]
    gate.wait_arrived()
    eventually(lambda: "a listener takes long, and no thread can be started" in caplog.text)
    pool.close(timeout=SHORT)
    tried = len(refused)
    eventually(lambda: len(refused) >= tried + 3, "nobody tries any more")
    threads.spawn = spawn  # type: ignore[method-assign]
    server.wait_for(lambda: connection.closed_at is not None)
    eventually(lambda: session.state is SessionState.IDLE)


def test_i36_a_log_handler_that_raises_ends_no_socket(
    server: LocalServer, pool: ConnectionPool, capsys: pytest.CaptureFixture[str]
) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("the log handler's")

    session = pool.connect(server.url())
    recorder = Recorder()

    def fail(envelope: Envelope) -> None:
        raise KeyError("the listener's")

    session.on(RELAY, fail)
    recorder.listen(session, RELAY, "offline")
    server.wait_live()
    handler, logger = Handler(), logging.getLogger("llm_sessions.dispatch")
    logger.addHandler(handler)
    try:
        for number in range(3):
            server.publish({"n": number})
        assert numbers(recorder.wait(RELAY, 3)) == [0, 1, 2]
    finally:
        logger.removeHandler(handler)
    assert session.online and recorder.names == [RELAY] * 3
    assert "the log handler's" in capsys.readouterr().err


def test_nothing_is_lost_doubled_or_reordered_however_readers_come_and_go(
    server: LocalServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that finds every callback slow, under a thread switch after every microsecond."""
    monkeypatch.setattr("llm_sessions.pool.watch.TICK", 0.0005)
    monkeypatch.setattr("llm_sessions.pool.watch._LOOKS", 0)
    pool = make_pool(queue_size=8)
    pause = threading.Event()
    recorders = {}
    for key in ("a", "b"):
        session = pool.connect(server.url(key), key)
        session.on(RELAY, lambda envelope: pause.wait(0.002) if envelope.data["n"] % 7 == 0 else None)
        recorders[key] = Recorder().listen(session, RELAY, "offline")
        server.wait_live(key)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(300):
            server.publish({"n": number})
            if number % 60 == 59:
                for key in recorders:
                    [connection] = server.wait_live(key)
                    connection.send_json({"type": "shutdown"})
                    switched = number // 60 + 1
                    machine = pool.session(key)._machine
                    eventually(lambda machine=machine, n=switched: machine._count.switchovers == n)
                    server.wait_live(key, count=2)
                    connection.close(4001)
                    server.wait_for(lambda connection=connection: connection.closed_at is not None)
        for recorder in recorders.values():
            assert numbers(recorder.wait(RELAY, 300)) == list(range(300))
            assert recorder.names == [RELAY] * 300
    finally:
        sys.setswitchinterval(interval)
