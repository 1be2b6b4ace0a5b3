"""Rules that hold for every test: locks keep their order, nothing leaks, nothing leaves this machine."""

from __future__ import annotations

import ipaddress
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import trustme

from llm_sessions import ConnectionPool, PoolConfig, _sync
from llm_sessions.pool.attempt import Attempt
from llm_sessions.testing.server import LocalServer
from tests.support import QUICK, no_leaks

# A slow machine is no bug.
hypothesis.settings.register_profile("ours", deadline=None)
hypothesis.settings.load_profile("ours")

# Before any lock is made: every lock of every test checks its rank.
_sync.check_lock_order(True)


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> Iterator[None]:
    """A shell that starts the suite in the background has it ignore SIGINT, and `nohup` has it ignore SIGHUP.

    Some tests send one, most of them to a child process, which is born with what its parent ignores.
    """
    heard = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in heard.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def plain_locks() -> Iterator[None]:
    """For Ctrl-C by a real signal: a lock that checks its rank is Python, and can be interrupted half-way.

    Name it first among a test's fixtures: it counts for locks that are made later.
    """
    _sync.check_lock_order(False)
    yield
    _sync.check_lock_order(True)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """A test that leaves a thread or a descriptor fails."""
    with no_leaks():
        yield
    assert not _sync.held_locks()


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that would reach another machine fails."""

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def connect(sock: socket.socket, address: Any) -> Any:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                assert ipaddress.ip_address(address[0]).is_loopback, f"a test wants to reach {address}"
            return method(sock, address)

        return connect

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority that nobody else trusts."""
    return trustme.CA()


@pytest.fixture(scope="session")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1", "::1").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    """Run the test on ws:// and on wss://."""
    return bool(request.param == "tls")


@pytest.fixture
def server(tls: bool, server_context: ssl.SSLContext) -> Iterator[LocalServer]:
    """A LocalServer, plain and TLS in turn, that had nothing to complain of in the end."""
    with LocalServer(ssl_context=server_context if tls else None) as server:
        yield server
    assert server.violations == []


@pytest.fixture
def make_pool(client_context: ssl.SSLContext) -> Iterator[Callable[..., ConnectionPool]]:
    """Make pools with short waits that trust `server`; all are closed in the end."""
    pools: list[ConnectionPool] = []

    def make(token: Any = "token", **config: Any) -> ConnectionPool:
        settings = {"ssl_context": client_context, **QUICK, **config}
        pools.append(ConnectionPool(token, config=PoolConfig(**settings)))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(make_pool: Callable[..., ConnectionPool]) -> ConnectionPool:
    return make_pool()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, written down instead of waited."""
    seen: list[float] = []

    def wait_cancelled(self: Attempt, seconds: float) -> bool:
        seen.append(seconds)
        return self.cancelled

    monkeypatch.setattr(Attempt, "wait_cancelled", wait_cancelled)
    return seen
