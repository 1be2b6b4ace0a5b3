"""D3, D4, D11: what a disconnect leaves behind, from anywhere and however often. (D5 is with T0.)"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_sessions import ConnectionPool, SessionState
from llm_sessions.testing.server import LocalServer
from tests.support import (
    LONG,
    Background,
    Recorder,
    descriptors,
    eventually,
    library_threads,
    resident_bytes,
    run_together,
)

MakePool = Callable[..., ConnectionPool]
ROOT = Path(__file__).resolve().parents[2]


def threads(kind: str) -> list[threading.Thread]:
    """Return the library's own threads of a kind; the server's have other names."""
    return [thread for thread in library_threads() if thread.name.startswith(f"llm-{kind}[")]


# -- D3: a reader that is idle -------------------------------------------------------------------------------


def open_sockets() -> set[str]:
    """Return the sockets that this process has open, by inode (Linux)."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the listing's own, or closed since
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def is_in_poll(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    line = traceback.extract_stack(frame, limit=1)[0].line if frame is not None else None
    return re.search(r"\bpoll\(", line or "") is not None


def test_d3_disconnect_while_the_reader_is_idle(server: LocalServer, pool: ConnectionPool) -> None:
    handles, before = descriptors(), open_sockets()
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    server.wait_for(lambda: bool(connection.pings and connection.acks))
    [reader] = threads("reader")
    eventually(lambda: session.latency is not None and is_in_poll(reader), "the reader is not idle")
    [ours] = open_sockets() - before - {os.readlink(f"/proc/self/fd/{connection.raw.fileno()}")}

    started = time.monotonic()
    pool.disconnect()
    assert time.monotonic() - started < 1  # a contract
    assert ours not in open_sockets()
    assert (connection.close_code, connection.close_reason) == (1000, "Done")
    reader.join(LONG)
    assert not reader.is_alive()
    assert session.state is SessionState.IDLE
    server.wait_for(lambda: connection.closed_at is not None)
    eventually(lambda: descriptors() <= handles, "a descriptor is left")
    assert len(server.connections()) == 1


# -- D4: from inside a callback (more of it is with I97 and T2) ----------------------------------------------


def happens(event: str, server: LocalServer, pool: ConnectionPool) -> None:
    """Make the default session go online, receive a message, or go offline."""
    pool.connect(server.url("default"))
    server.wait_live("default")
    if event == "event:relay.event":
        server.publish(session="default")
    elif event == "offline":
        server.close_session("default", 1001)


@pytest.mark.parametrize("event", ["online", "event:relay.event", "offline"])
def test_d4_disconnect_of_another_session(server: LocalServer, pool: ConnectionPool, event: str) -> None:
    other = pool.connect(server.url("other"), "other")
    recorder = Recorder().listen(other, "disconnected")
    states: list[SessionState] = []

    def leave(payload: object) -> None:
        other.disconnect()
        states.append(other.state)
        recorder.named("left")(payload)

    session = pool.session()
    session.once(event, leave)
    happens(event, server, pool)
    recorder.wait("left")
    recorder.wait("disconnected")
    assert states == [SessionState.IDLE]
    [connection] = server.connections("other")
    assert (connection.close_code, connection.close_reason) == (1000, "Done")
    # The callback's own session lives, or comes back.
    recorder.listen(session, "event:relay.event")
    server.wait_live("default")
    server.publish(session="default")
    recorder.wait("event:relay.event")
    assert session.online
    assert len(server.connections("default")) == (2 if event == "offline" else 1)


def test_d4_disconnect_itself_in_online(server: LocalServer, pool: ConnectionPool) -> None:
    session = pool.session()
    recorder = Recorder().listen(session, "offline.permanent", "disconnected")
    states: list[SessionState] = []

    def leave(payload: object) -> None:
        session.disconnect()
        states.append(session.state)
        recorder.named("left")(payload)

    session.once("online", leave)
    call = Background(lambda: pool.connect(server.url()))
    recorder.wait("left")
    assert states == [SessionState.IDLE]
    recorder.wait("disconnected")
    assert call.result() is session  # it was online, if only for an instant
    eventually(lambda: not threads("connector") and not threads("reader"))
    assert len(server.connections()) == 1
    assert pool.connect(server.url()).online


# -- D11: often ----------------------------------------------------------------------------------------------

CYCLES, WARM_UP, SESSIONS = 100, 10, 10

SERVER = """
import json, sys
from llm_sessions.testing.server import LocalServer

with LocalServer(tls=sys.argv[1] == "tls") as server:
    print(json.dumps([server.url(""), server.ca_file if sys.argv[1] == "tls" else None]), flush=True)
    sys.stdin.readline()
    server.wait_for(lambda: all(connection.closed_at is not None for connection in server.connections()))
    closes = sorted({(connection.close_code, connection.close_reason) for connection in server.connections()})
    print(json.dumps([len(server.connections()), closes, server.violations]))
"""


@pytest.fixture
def server_elsewhere(tls: bool) -> Iterator[subprocess.Popen[str]]:
    """A LocalServer in another process: threads, descriptors and memory of this one are the client's."""
    command = [sys.executable, "-c", textwrap.dedent(SERVER), "tls" if tls else "plain"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        yield process
        process.kill()


def instances() -> int:
    """Return how many objects there are of the library's classes, of threads and of sockets."""
    kinds = ("llm_sessions", "threading", "concurrent", "socket", "_socket", "ssl", "_ssl", "websocket")
    modules = (str(type(one).__module__) for one in gc.get_objects())  # of odd classes it is no string
    return sum(module.partition(".")[0] in kinds for module in modules)


@pytest.mark.stress
def test_i28_d11_100_cycles_of_10_sessions_leave_nothing(
    server_elsewhere: subprocess.Popen[str], make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "llm_sessions")  # records that pytest keeps are no leak
    assert server_elsewhere.stdout is not None
    base, ca_file = json.loads(server_elsewhere.stdout.readline())
    pool = make_pool(ssl_context=ssl.create_default_context(cafile=ca_file) if ca_file else None)
    history = {f"s{number}": bytearray() for number in range(SESSIONS)}
    for name, happened in history.items():
        session = pool.session(name)
        session.on("online", lambda payload, happened=happened: happened.append(ord("+")))
        session.on("disconnected", lambda payload, happened=happened: happened.append(ord("-")))
    running, handles = set(threading.enumerate()), descriptors()

    def cycle(times: int) -> None:
        names = iter(history)

        def work() -> None:
            name = next(names)
            for _ in range(times):
                assert pool.connect(base + name, name).online
                pool.disconnect(name, code=3050, reason="done (permanent)")

        assert run_together(SESSIONS, work, timeout=3 * LONG) == [None] * SESSIONS
        eventually(lambda: set(threading.enumerate()) <= running, "threads are left")
        assert descriptors() <= handles
        gc.collect()

    cycle(WARM_UP)
    objects, blocks, resident = instances(), sys.getallocatedblocks(), resident_bytes()
    cycle(CYCLES - WARM_UP)
    connects = SESSIONS * (CYCLES - WARM_UP)
    # One small object kept of each connect would be as many blocks as connects; one TLS object, 20 MiB.
    assert instances() - objects < connects // 3  # ended threads are swept out of the register by and by
    if threading.gettrace() is None:  # coverage keeps some for each thread that there was
        assert sys.getallocatedblocks() - blocks < connects * 2 // 3
    assert resident_bytes() - resident < 8 << 20
    assert {bytes(happened) for happened in history.values()} == {b"+-" * CYCLES}
    assert set(pool.sessions()) == set(history)
    said = server_elsewhere.communicate("\n", timeout=LONG)[0]
    assert json.loads(said) == [SESSIONS * CYCLES, [[3050, "done (permanent)"]], []]
