"""The times that hold up a caller, on real sockets and in real time: not before, and not much later."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from llm_sessions import ConnectError, ConnectionLost, ConnectionPool, ConnectTimeout, WaitTimeout
from llm_sessions.testing.server import LocalServer
from tests.peers import full_backlog
from tests.pool.support import COMPLETE
from tests.support import Background, Recorder

MakePool = Callable[..., ConnectionPool]

LIMIT = 0.3
"""Seconds of the limit that a test is about. All others are long."""

SLACK = 5.0
"""Seconds that a busy machine may take beyond it; far less than any other limit."""


@contextlib.contextmanager
def lasts() -> Iterator[None]:
    """Fail if the block takes less than the limit, or far longer."""
    started = time.monotonic()
    yield
    assert LIMIT <= time.monotonic() - started < LIMIT + SLACK


def not_open(pool: ConnectionPool, url: str, *words: str) -> None:
    with lasts(), pytest.raises(ConnectError) as caught:
        pool.connect(url)
    assert all(word in str(caught.value) for word in (*words, f"{LIMIT} s"))
    assert caught.value.attempts == 1


@pytest.fixture
def hasty(make_pool: MakePool) -> ConnectionPool:
    """A pool whose only attempt must be quick."""
    return make_pool(open_timeout=LIMIT, initial_max_retries=0)


def test_limit_open_timeout_in_real_time_of_a_tcp_connect(hasty: ConnectionPool) -> None:
    with full_backlog() as address:
        not_open(hasty, f"ws://127.0.0.1:{address[4][1]}/", "did not answer")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_limit_open_timeout_in_real_time_of_a_mute_peer(hasty: ConnectionPool, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        not_open(hasty, f"{scheme}://127.0.0.1:{mute.getsockname()[1]}/", "did not answer")


def test_limit_open_timeout_in_real_time_of_an_upgrade(server: LocalServer, hasty: ConnectionPool) -> None:
    server.hold_upgrades()
    not_open(hasty, server.url(), "did not answer")


def test_limit_open_timeout_in_real_time_of_the_authorization(
    server: LocalServer, hasty: ConnectionPool
) -> None:
    server.withhold_ready()
    not_open(hasty, server.url(), "127.0.0.1")


def test_limit_send_timeout_in_real_time(server: LocalServer, make_pool: MakePool) -> None:
    session = make_pool(send_timeout=LIMIT).connect(server.url())
    recorder = Recorder().listen(session, "offline.transient")
    server.wait_live()
    server.stall_reads()
    with lasts():
        with pytest.raises(ConnectionLost, match=f"not written within {LIMIT} s"):
            session.send({"type": "huge", "pad": "x" * (32 << 20)})
    recorder.wait("offline.transient")
    server.resume_reads()


def test_limit_force_close_delay_in_real_time(server: LocalServer, make_pool: MakePool) -> None:
    server.ignore_close()
    pool = make_pool(force_close_delay=LIMIT)
    pool.connect(server.url())
    with lasts():
        Background(pool.disconnect).result()


def test_limit_retire_timeout_in_real_time(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(retire_timeout=LIMIT)
    recorder = Recorder().listen(pool, COMPLETE)
    session = pool.connect(server.url())
    [old] = server.wait_live()
    with lasts():
        old.send_json({"type": "shutdown"})
        recorder.wait(COMPLETE)
        server.wait_for(lambda: old.close_code == 1000)
    assert session.online


def test_limit_wait_timeout_in_real_time_of_connect(server: LocalServer, make_pool: MakePool) -> None:
    server.hold_upgrades()
    pool = make_pool(wait_timeout=LIMIT)
    with lasts(), pytest.raises(ConnectTimeout, match=f"within {LIMIT} s"):
        pool.connect(server.url())
    with lasts(), pytest.raises(ConnectTimeout):
        pool.connect(server.url())


def test_limit_wait_timeout_in_real_time_of_wait_online(server: LocalServer, make_pool: MakePool) -> None:
    server.hold_upgrades()
    pool = make_pool(wait_timeout=LIMIT)
    with lasts(), pytest.raises(WaitTimeout, match=f"within {LIMIT} s"):
        pool.wait_online()  # nobody connects
    call = Background(lambda: pool.connect(server.url(), timeout=None))
    server.wait_for(lambda: bool(server.connections()))
    with lasts(), pytest.raises(WaitTimeout):
        pool.session().wait_online()
    assert not call.done, "None waits without end"
    server.release_upgrades()
    assert call.result().online


def test_limit_wait_timeout_none_waits_without_end(server: LocalServer, make_pool: MakePool) -> None:
    server.hold_upgrades()
    pool = make_pool(wait_timeout=None)
    connecting = Background(lambda: pool.connect(server.url()))
    waiting = Background(pool.wait_online)
    with pytest.raises(WaitTimeout):
        pool.wait_online(timeout=LIMIT)
    assert not connecting.done and not waiting.done
    server.release_upgrades()
    assert connecting.result().online and waiting.result().online
