"""INVARIANTS, Threads and processes: nothing hangs, leaks or is torn, also at exit and over a fork."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import trustme

from llm_sessions import (
    ConnectionLost,
    ConnectionPool,
    ConnectTimeout,
    LocalProtocolError,
    PoolClosed,
    SessionState,
    WaitTimeout,
)
from llm_sessions.testing.server import LocalServer
from tests.support import (
    LONG,
    SHORT,
    Background,
    Gate,
    Recorder,
    eventually,
    library_threads,
    no_leaks,
    run_together,
)

MakePool = Callable[..., ConnectionPool]
ROOT = Path(__file__).resolve().parents[2]


def threads(*kinds: str) -> list[str]:
    """Return the names of the library's own threads of these kinds, of all kinds by default."""
    wanted = tuple(f"llm-{kind}" for kind in kinds or ("connector", "reader", "dispatcher"))
    return sorted(thread.name for thread in library_threads() if thread.name.startswith(wanted))


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open in the end, whatever happened."""
    gate = Gate()
    yield gate
    gate.open()


# -- T1: no call can hang ------------------------------------------------------------------------------------


def test_t1_connect(server: LocalServer, pool: ConnectionPool) -> None:
    server.hold_upgrades()
    with pytest.raises(ConnectTimeout):
        pool.connect(server.url(), timeout=SHORT)
    with pytest.raises(ConnectTimeout):
        pool.connect(server.url(), timeout=0)


def test_t1_connect_by_the_pools_wait_timeout(server: LocalServer, make_pool: MakePool) -> None:
    server.withhold_ready()
    with pytest.raises(ConnectTimeout):
        make_pool(wait_timeout=SHORT).connect(server.url())


def test_t1_wait_online(server: LocalServer, pool: ConnectionPool) -> None:
    for wait in (pool.wait_online, pool.session().wait_online):  # nobody connects
        with pytest.raises(WaitTimeout):
            wait(timeout=SHORT)
    server.hold_upgrades()
    call = Background(lambda: pool.connect(server.url()))
    server.wait_for(lambda: bool(server.connections()))
    with pytest.raises(WaitTimeout):
        pool.wait_online(timeout=SHORT)
    assert not call.done
    pool.disconnect()
    call.error()


def test_t1_wait_online_names_the_last_error(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(backoff_initial=3600, backoff_max=3600)
    server.reject(503)
    call = Background(lambda: pool.connect(server.url()))
    eventually(lambda: pool.session().last_error)
    with pytest.raises(WaitTimeout, match="503") as caught:
        pool.wait_online(timeout=SHORT)
    assert "503" in str(caught.value.__cause__)
    pool.disconnect()
    call.error()


def test_t1_wait_closed(server: LocalServer, pool: ConnectionPool) -> None:
    session = pool.connect(server.url())
    with pytest.raises(WaitTimeout):
        session.wait_closed(timeout=SHORT)
    call = Background(session.wait_closed)
    session.disconnect()
    call.result()
    session.wait_closed(timeout=0)


def test_t1_disconnect(server: LocalServer, make_pool: MakePool) -> None:
    server.mute()
    server.ignore_close()
    pool = make_pool(force_close_delay=SHORT)
    for call in (pool.disconnect, pool.disconnect_all, lambda: pool.session().disconnect()):
        pool.connect(server.url())
        Background(call).result()
        assert pool.session().state is SessionState.IDLE


def test_t1_send(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(send_timeout=0.1)
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, "offline.transient")
    server.wait_live()
    server.stall_reads()

    def flood() -> None:
        while True:
            session.send({"text": "x" * 100_000})

    error = Background(flood).error()
    assert isinstance(error, ConnectionLost), error
    recorder.wait("offline.transient")
    server.resume_reads()


def test_t1_send_wakes_when_the_peer_reads_again(server: LocalServer, pool: ConnectionPool) -> None:
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    server.stall_reads()
    sent: list[int] = []

    def flood() -> None:
        for number in range(200):
            session.send({"number": number, "text": "x" * 100_000})
            sent.append(number)

    call = Background(flood)
    seen = -1
    pause = threading.Event()
    while len(sent) != seen:  # until it stands still
        seen = len(sent)
        pause.wait(0.05)
    assert not call.done
    server.resume_reads()
    call.result()
    server.wait_for(lambda: sum("number" in message for message in list(connection.received)) == 200)
    numbers = [message["number"] for message in connection.received if "number" in message]
    assert numbers == list(range(200))


def test_t14_a_sender_that_waits_for_the_peer_uses_no_cpu(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(send_timeout=0.5)
    session = pool.connect(server.url())
    server.wait_live()
    server.stall_reads()

    def flood() -> tuple[float, float]:
        while True:
            began, used = time.monotonic(), time.thread_time()
            try:
                session.send({"text": "x" * 100_000})
            except ConnectionLost:
                return time.monotonic() - began, time.thread_time() - used

    waited, used = Background(flood).result()
    assert waited >= 0.45
    assert used < 0.15
    server.resume_reads()


def test_t1_close_names_the_threads_that_it_leaves(
    server: LocalServer, make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    def source() -> str:
        gate.pass_through()
        return "token"

    pool = make_pool()
    call = Background(lambda: pool.connect(server.url(), "stuck", token=source))
    gate.wait_arrived()
    pool.close(timeout=SHORT)
    assert isinstance(call.error(), PoolClosed)
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "llm-connector[stuck]" in warning.getMessage()
    gate.open()
    eventually(lambda: not threads())
    assert server.connections() == []


@pytest.mark.parametrize("call", ["connect", "wait_online", "disconnect", "disconnect_all"])
def test_t1_a_wait_for_itself_is_refused(server: LocalServer, pool: ConnectionPool, call: str) -> None:
    """From the session's own token provider, each of these would wait for the provider."""
    caught: list[BaseException] = []

    def source() -> str:
        calls: dict[str, Callable[[], object]] = {
            "connect": lambda: pool.connect(server.url()),
            "wait_online": lambda: pool.wait_online(),
            "disconnect": lambda: pool.disconnect(),
            "disconnect_all": lambda: pool.disconnect_all(),
        }
        try:
            calls[call]()
        except BaseException as exc:
            caught.append(exc)
        return "token"

    assert pool.connect(server.url(), token=source).online
    assert [type(error) for error in caught] == [LocalProtocolError]


# -- T2: close from every state ------------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(SessionState), ids=lambda state: state.value)
def test_t2_close_leaves_nothing(server: LocalServer, make_pool: MakePool, state: SessionState) -> None:
    callers: list[Background] = []
    with no_leaks():
        pool = make_pool()
        session = pool.session()
        Recorder().listen(session)
        if state is SessionState.CONNECTING:
            server.hold_upgrades()
            callers.append(Background(lambda: pool.connect(server.url(), timeout=None)))
            callers.append(Background(lambda: pool.wait_online(timeout=None)))
            server.wait_for(lambda: bool(server.connections()))
        elif state is SessionState.OFFLINE:
            pool.connect(server.url())
            server.wait_live()
            server.close_session(code=1003)
            session.wait_closed(LONG)
        elif state is not SessionState.IDLE:
            pool.connect(server.url())
            [connection] = server.wait_live()
            if state is SessionState.RECONNECTING:
                server.hold_upgrades()
                connection.close(1001)
                server.wait_for(lambda: len(server.connections()) == 2)
                callers.append(Background(lambda: pool.connect(server.url(), timeout=None)))
            elif state is SessionState.SWITCHING:
                server.withhold_ready()
                connection.send_json({"type": "shutdown"})
                server.wait_live(count=2)
            elif state is SessionState.DISCONNECTING:
                server.ignore_close()
                callers.append(Background(pool.disconnect))
                server.wait_for(lambda: connection.close_code is not None)
        eventually(lambda: session.state is state)
        if callers and state in (SessionState.CONNECTING, SessionState.RECONNECTING):
            machine = pool._get(session.id)[1]
            eventually(lambda: machine._waiters == len(callers))
        pool.close()
        assert session.state is SessionState.IDLE
        assert threads() == []
        for caller in callers:
            if state is SessionState.DISCONNECTING:
                caller.result()
            else:
                assert isinstance(caller.error(), PoolClosed)
        server.wait_for(lambda: all(connection.closed_at is not None for connection in server.connections()))


@pytest.mark.parametrize(
    "event", ["online", "event:relay.event", "offline", "offline.transient", "disconnected"]
)
def test_t2_d4_close_inside_a_callback_leaves_nothing(
    server: LocalServer, make_pool: MakePool, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    with no_leaks():
        pool = make_pool()
        pool.connect(server.url("other"), "other")
        recorder = Recorder()

        def close(payload: object) -> None:
            pool.close()
            recorder.named("closed")(payload)

        pool.on(event, close)
        call = Background(lambda: pool.connect(server.url()))
        if event != "online":
            call.result()
            server.wait_live("default")
            if event == "event:relay.event":
                server.publish(session="default")
            elif event == "disconnected":
                pool.disconnect()
            else:
                server.close_session("default", 1001)
        recorder.wait("closed")
        # It would name a thread that it waited for in vain: its own.
        assert [record.getMessage() for record in caplog.records if "still run" in record.getMessage()] == []
        call.thread.join(LONG)
        assert call.done
        eventually(lambda: not threads())
        with pytest.raises(PoolClosed):
            pool.connect(server.url())
        server.wait_for(lambda: all(connection.closed_at is not None for connection in server.connections()))


def test_t2_close_in_two_callbacks_and_two_threads_at_once(server: LocalServer, make_pool: MakePool) -> None:
    with no_leaks():
        pool = make_pool()
        start_line = threading.Barrier(4)
        recorder = Recorder()

        def close_at_once() -> None:
            start_line.wait(LONG)
            pool.close()

        def close(payload: Any) -> None:
            close_at_once()
            recorder.named("closed")(payload)

        for name in ("a", "b"):
            pool.connect(server.url(name), name).on("event:relay.event", close)
        server.wait_live(count=2)
        server.publish()
        assert run_together(2, close_at_once) == [None, None]
        recorder.wait("closed", 2)
        eventually(lambda: not threads())
        server.wait_for(lambda: all(connection.closed_at is not None for connection in server.connections()))


def test_t2_close_waits_for_threads_that_only_have_to_end(server: LocalServer, make_pool: MakePool) -> None:
    """A thread that has done its work is still a thread until it has ended, and is still joined."""
    ending, pause = threading.Event(), threading.Event()

    def linger(frame: FrameType, event: str, argument: object) -> None:
        done = event == "return" and frame.f_code is threading.Thread.run.__code__
        if done and threading.current_thread().name.startswith("llm-reader"):
            ending.set()
            pause.wait(0.3)

    pool = make_pool()
    threading.setprofile(linger)  # of threads that start from now on
    try:
        pool.connect(server.url())
        pool.disconnect()
        assert ending.wait(LONG)
        pool.close()
        assert threads() == []
    finally:
        threading.setprofile(None)
        pause.set()


# -- T3, T4: slow listeners ----------------------------------------------------------------------------------


def test_t3_a_blocked_listener_does_not_cost_the_connection(
    server: LocalServer, make_pool: MakePool, gate: Gate
) -> None:
    pool = make_pool(ping_interval=0.05)
    session = pool.connect(server.url())
    other = Recorder().listen(pool.connect(server.url("other"), "other"), "event:relay.event")
    recorder = Recorder()
    session.on("event:relay.event", lambda envelope: gate.pass_through())
    recorder.listen(session, "event:relay.event", "offline")
    [connection] = server.wait_live("default")
    server.wait_live("other")
    server.publish()
    gate.wait_arrived()
    other.wait("event:relay.event")  # only its own session waits
    pings = len(connection.pings)
    server.wait_for(lambda: len(connection.pings) >= pings + 4)
    session.send({"type": "alive"})
    server.wait_for(lambda: {"type": "alive"} in connection.received)
    gate.open()
    recorder.wait("event:relay.event")
    assert recorder.names == ["event:relay.event"]
    assert session.online and len(server.connections("default")) == 1


def test_t4_a_full_queue_pauses_reading_and_keepalive_goes_on(
    server: LocalServer, make_pool: MakePool, gate: Gate
) -> None:
    pool = make_pool(queue_size=5, ping_interval=0.1, pong_timeout=1.0)
    session = pool.connect(server.url())
    session.on("event:relay.event", lambda envelope: gate.pass_through())
    recorder = Recorder().listen(session, "event:relay.event", "offline")
    [connection] = server.wait_live()
    for n in range(100):
        server.publish({"n": n, "text": "x" * 5000})  # more than one read takes
    gate.wait_arrived()
    pings = len(connection.pings)
    server.wait_for(lambda: len(connection.pings) >= pings + 15)  # longer than pong_timeout
    assert session.online and recorder.names == []
    assert len(connection.acks) < 100  # the rest has not been read
    gate.open()
    envelopes = recorder.wait("event:relay.event", 100)
    assert [envelope.data["n"] for envelope in envelopes] == list(range(100))
    assert recorder.payloads("offline") == []
    pings = len(connection.pings)
    server.wait_for(lambda: len(connection.pings) > pings + 1)
    assert session.online and len(server.connections()) == 1


@pytest.mark.parametrize("how", ["disconnect", "close"])
def test_t4_disconnect_and_close_wake_a_paused_reader(
    server: LocalServer, make_pool: MakePool, gate: Gate, how: str
) -> None:
    pool = make_pool(queue_size=1, force_close_delay=LONG)
    session = pool.connect(server.url())
    session.on("event:relay.event", lambda envelope: gate.pass_through())
    [connection] = server.wait_live()
    for n in range(50):
        server.publish({"n": n})
    gate.wait_arrived()
    eventually(lambda: session.stats().paused)
    call = Background(pool.disconnect if how == "disconnect" else lambda: pool.close(timeout=SHORT))
    server.wait_for(lambda: connection.close_code == 1000)
    call.result()
    server.wait_for(lambda: connection.closed_at is not None)
    assert session.state is SessionState.IDLE
    gate.open()
    eventually(lambda: not threads())


def test_t4_drop_oldest(server: LocalServer, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(queue_size=5, when_full="drop_oldest")
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, "event:relay.event", "offline", "online")
    [connection] = server.wait_live()
    first = server.publish({"n": 0})
    recorder.wait("event:relay.event")
    session.on("event:relay.event", lambda envelope: gate.pass_through())
    server.publish({"n": 1})
    gate.wait_arrived()
    ids = [server.publish({"n": n})["id"] for n in range(2, 100)]
    server.wait_for(lambda: {*ids, first["id"]} <= set(connection.acks))
    server.close_session(code=1001)  # a state event is never dropped
    eventually(lambda: session.state is SessionState.ONLINE and len(server.connections()) == 2)
    gate.open()
    recorder.wait("online")
    numbers = [envelope.data["n"] for envelope in recorder.payloads("event:relay.event")]
    assert numbers[:2] == [0, 1] and numbers[2:] == list(range(100 - len(numbers[2:]), 100))
    assert 1 <= len(numbers[2:]) <= 5
    assert recorder.names[-2:] == ["offline", "online"]


# -- T8: whole messages --------------------------------------------------------------------------------------


def test_t8_d19_messages_of_many_threads_stay_whole(server: LocalServer, pool: ConnectionPool) -> None:
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    workers, each = 16, 150
    lock = threading.Lock()
    names = iter(range(workers))

    def work() -> int:
        with lock:
            name = next(names)
        for number in range(each):
            text = chr(ord("a") + name) * (number * 97 % 3000 if number % 50 else 70_000)
            session.send({"worker": name, "number": number, "text": text})
        return name

    assert sorted(run_together(workers, work)) == list(range(workers))
    sent = workers * each
    server.wait_for(lambda: sum("worker" in message for message in list(connection.received)) >= sent, LONG)
    seen: dict[int, list[int]] = {name: [] for name in range(workers)}
    for message in connection.received:
        if "worker" in message:
            name, number = message["worker"], message["number"]
            seen[name].append(number)
            assert message["text"] == chr(ord("a") + name) * (number * 97 % 3000 if number % 50 else 70_000)
    assert all(numbers == list(range(each)) for numbers in seen.values())


def test_t8_send_takes_text_as_it_is(server: LocalServer, pool: ConnectionPool) -> None:
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    session.send('{"as":  "it is", "ü": "\\u20ac"}')
    server.wait_for(lambda: {"as": "it is", "ü": "€"} in connection.received)


def test_t8_full_duplex(server: LocalServer, pool: ConnectionPool) -> None:
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, "event:relay.event")
    [connection] = server.wait_live()

    def send() -> None:
        for number in range(300):
            session.send({"number": number, "text": "x" * 5000})

    call = Background(send)
    for number in range(300):
        server.publish({"number": number, "text": "y" * 5000}, sequence=True)
    call.result()
    envelopes = recorder.wait("event:relay.event", 300)
    assert [envelope.data["number"] for envelope in envelopes] == list(range(300))
    server.wait_for(lambda: sum("number" in message for message in list(connection.received)) == 300)
    assert session.online and len(server.connections()) == 1


# -- T17: online for an instant ------------------------------------------------------------------------------


def test_t17_online_for_an_instant_is_not_lost(server: LocalServer, pool: ConnectionPool) -> None:
    for _ in range(100):
        barrier = threading.Barrier(2)

        def wait(barrier: threading.Barrier = barrier) -> object:
            barrier.wait(LONG)
            return pool.wait_online(timeout=LONG)

        call = Background(wait)
        barrier.wait(LONG)
        pool.connect(server.url())
        pool.disconnect()
        # If its call began after the disconnect, it waits for the next one.
        call.thread.join(0.1)
        if not call.done:
            pool.connect(server.url())
            pool.disconnect()
        assert call.result() is pool.session()


def test_t17_nor_if_it_is_lost_at_once(server: LocalServer, pool: ConnectionPool) -> None:
    @server.on_message
    def close(connection: Any, message: dict[str, Any]) -> None:
        if message.get("type") == "authorization":
            connection.close(1003)

    for _ in range(50):
        waiting = Background(lambda: pool.wait_online(timeout=LONG))
        machine = pool._get(pool.session().id)[1]
        eventually(lambda machine=machine: machine._waiters == 1)
        pool.connect(server.url())
        assert waiting.result() is pool.session()
        pool.session().wait_closed(LONG)
        pool.disconnect()


# -- T6, T7: processes ---------------------------------------------------------------------------------------


@pytest.fixture
def run_script(authority: trustme.CA, tls: bool, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a Python script that has `url(key)` and `make_pool(**config)`."""
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    prelude = f"""
    import logging, os, ssl, sys, threading
    import llm_sessions
    from llm_sessions import ConnectionPool, PoolClosed, PoolConfig

    base = sys.argv[1]

    def url(key):
        return base + key

    def make_pool(**config):
        context = ssl.create_default_context(cafile={str(bundle)!r}) if {tls!r} else None
        return ConnectionPool("token", config=PoolConfig(ssl_context=context, **config))
    """

    def start(server: LocalServer, script: str, *options: str) -> subprocess.Popen[str]:
        code = textwrap.dedent(prelude) + textwrap.dedent(script)
        return subprocess.Popen(
            [sys.executable, *options, "-c", code, server.url("")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    return start


def exits(process: subprocess.Popen[str], within: float) -> None:
    """Let the script go on; it ends by itself in time, with nothing to complain of."""
    assert process.stdin is not None
    started = time.monotonic()
    try:
        _, complaints = process.communicate("\n", timeout=LONG)
        elapsed = time.monotonic() - started
    finally:
        process.kill()
        process.wait()
    assert complaints == ""
    assert process.returncode == 0
    assert elapsed < within


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_t6_the_interpreter_exits_with_sessions_open(
    server: LocalServer, run_script: Callable[..., subprocess.Popen[str]]
) -> None:
    process = run_script(
        server,
        """
        pool = make_pool()
        pool.on("event", print)
        for key in ("a", "b", "c"):
            pool.connect(url(key), key)
        print("online", flush=True)
        sys.stdin.readline()
        """,
    )
    assert says(process) == "online"
    exits(process, within=2)
    server.wait_for(lambda: all(connection.closed_at is not None for connection in server.connections()))
    closes = [(connection.close_code, connection.close_reason) for connection in server.connections()]
    assert closes == [(1000, "Done")] * 3


def test_t6_also_in_the_middle_of_everything(
    server: LocalServer, run_script: Callable[..., subprocess.Popen[str]]
) -> None:
    """A server that answers no close, a connect under way, one backing off, a callback that is stuck."""
    server.hold_upgrades("held")
    server.ignore_close("deaf")
    server.reject(500, session="refused", times=100)
    process = run_script(
        server,
        """
        logging.getLogger("llm_sessions").addHandler(logging.NullHandler())
        pool = make_pool(backoff_initial=3600.0, backoff_max=3600.0)

        def connect(key):
            try:
                pool.connect(url(key), key, timeout=None)
            except PoolClosed:
                pass

        stuck = threading.Event()
        told = threading.Event()

        def block(payload):
            told.set()
            stuck.wait()

        pool.on("online:deaf", block)
        pool.connect(url("deaf"), "deaf")
        pool.connect(url("well"), "well")
        for key in ("held", "refused"):
            threading.Thread(target=connect, args=(key,), daemon=True).start()
        told.wait()
        print("busy", flush=True)
        sys.stdin.readline()
        """,
    )
    assert says(process) == "busy"
    server.wait_for(lambda: bool(server.connections("held")) and bool(server.connections("refused")))
    exits(process, within=2)
    server.wait_for(lambda: all(connection.closed_at is not None for connection in server.connections()))
    for key in ("deaf", "well"):
        assert [connection.close_code for connection in server.connections(key)] == [1000]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_t7_a_forked_child_is_told_and_the_parents_session_still_works(
    server: LocalServer, run_script: Callable[..., subprocess.Popen[str]]
) -> None:
    process = run_script(
        server,
        """
        import json

        pool = make_pool()
        session = pool.connect(url("a"), "a")
        session.on("event", lambda envelope: None)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            calls = dict(
                connect=lambda: pool.connect(url("b"), "b"),
                again=lambda: pool.connect(url("a"), "a"),
                wait_online=lambda: pool.wait_online("a"),
                session_wait_online=lambda: session.wait_online(),
                send=lambda: session.send({"type": "from the child"}),
                disconnect=lambda: pool.disconnect("a"),
                session_disconnect=lambda: session.disconnect(),
                disconnect_all=lambda: pool.disconnect_all(),
                on=lambda: pool.on("online", print),
                enter=lambda: pool.__enter__(),
            )
            outcomes = {}
            for name, call in calls.items():
                try:
                    call()
                except Exception as exc:
                    outcomes[name] = type(exc).__name__
                else:
                    outcomes[name] = "returned"
            pool.close()
            own = make_pool()
            own.connect(url("child"), "child")
            own.close()
            os.write(writer, json.dumps(outcomes).encode())
            sys.exit(0)
        os.close(writer)
        said = b""
        while piece := os.read(reader, 65536):
            said += piece
        _, status = os.waitpid(child, 0)
        session.send({"type": "after the fork"})
        print(json.dumps([os.waitstatus_to_exitcode(status), json.loads(said)]), flush=True)
        sys.stdin.readline()
        """,
        "-W",
        "ignore::DeprecationWarning",
    )
    status, outcomes = json.loads(says(process))
    assert status == 0
    assert outcomes == dict.fromkeys(outcomes, "PoolClosed") and len(outcomes) == 10
    [connection] = server.connections("a")
    server.wait_for(lambda: {"type": "after the fork"} in connection.received)
    assert connection.open and {"type": "from the child"} not in connection.received
    exits(process, within=2)
    server.wait_for(lambda: connection.closed_at is not None)
    assert connection.close_code == 1000
    assert [one.close_code for one in server.connections("child")] == [1000]
    assert server.connections("b") == []
