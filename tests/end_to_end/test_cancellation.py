"""INVARIANTS, Pool: cancellation and bookkeeping, with D5, T0 and T16: whoever gives up gets away."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_sessions import (
    ConnectCancelled,
    ConnectError,
    ConnectionPool,
    ConnectTimeout,
    Endpoint,
    Forbidden,
    NotAuthorized,
    PoolClosed,
    Session,
    SessionState,
    Target,
)
from llm_sessions.testing.server import LocalServer
from tests.peers import Peer, read_request
from tests.support import (
    LONG,
    SHORT,
    Background,
    Gate,
    Recorder,
    eventually,
    library_threads,
    run_together,
)

MakePool = Callable[..., ConnectionPool]

A_WHILE = 1.0
"""Seconds that a disconnect may take when nothing is ready: a contract (T0), not a guess."""


def threads(*kinds: str) -> list[str]:
    """Return the names of the library's own threads of these kinds, of all kinds by default."""
    wanted = tuple(f"llm-{kind}" for kind in kinds or ("connector", "reader", "dispatcher"))
    return sorted(thread.name for thread in library_threads() if thread.name.startswith(wanted))


def no_connectors() -> None:
    eventually(lambda: not threads("connector"), "a connector still runs")


class GatedSource:
    """A token or URL source: the first `blocked` calls wait at a gate each, later ones return at once."""

    def __init__(self, value: str, blocked: int = 1) -> None:
        self._value = value
        self._lock = threading.Lock()
        self.gates = [Gate() for _ in range(blocked)]
        self.calls = 0

    def __call__(self) -> str:
        with self._lock:
            number, self.calls = self.calls, self.calls + 1
        if number < len(self.gates):
            self.gates[number].pass_through()
        return self._value


@pytest.fixture
def gated() -> Iterator[Callable[..., GatedSource]]:
    """Make sources whose gates are opened in the end, whatever happened."""
    made: list[GatedSource] = []

    def make(value: str, blocked: int = 1) -> GatedSource:
        made.append(GatedSource(value, blocked))
        return made[-1]

    yield make
    for source in made:
        for gate in source.gates:
            gate.open()


# -- I12, I13, I14: before there is a socket -----------------------------------------------------------------


@pytest.mark.parametrize("what", ["token", "url"])
def test_i12_disconnect_all_cancels_connects_that_have_no_socket_yet(
    server: LocalServer, pool: ConnectionPool, gated: Callable[..., GatedSource], what: str
) -> None:
    sources, calls = [], []
    for name in ("a", "b", "c"):
        source = gated("token" if what == "token" else server.url(name))
        arguments: dict[str, Any] = (
            {"url": server.url(name), "token": source} if what == "token" else {"url": source}
        )
        calls.append(
            Background(lambda name=name, arguments=arguments: pool.connect(session_id=name, **arguments))
        )
        sources.append(source)
    for source in sources:
        source.gates[0].wait_arrived()
    pool.disconnect_all()
    for call in calls:
        assert isinstance(call.error(), ConnectCancelled)
    for source in sources:
        source.gates[0].open()
    no_connectors()
    assert server.connections() == []
    assert {session.state for session in pool.sessions().values()} == {SessionState.IDLE}


def test_i12_disconnect_all_cancels_backoff_waits(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(backoff_initial=3600, backoff_max=3600)
    server.reject(500, times=2)
    calls = [Background(lambda name=name: pool.connect(server.url(name), name)) for name in ("a", "b")]
    eventually(lambda: all(pool.session(name).last_error for name in ("a", "b")))
    pool.disconnect_all()
    for call in calls:
        assert isinstance(call.error(), ConnectCancelled)
    no_connectors()
    assert len(server.connections()) == 2


def test_i12_disconnect_all_cancels_a_reconnects_backoff(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(backoff_initial=3600, backoff_max=3600)
    session = pool.connect(server.url())
    server.reject(500)
    server.close_session(code=1001)
    eventually(lambda: isinstance(session.last_error, ConnectError))
    assert session.state is SessionState.RECONNECTING
    pool.disconnect_all()
    assert session.state is SessionState.IDLE
    no_connectors()
    assert len(server.connections()) == 2


def test_i13_disconnect_one_while_another_connects(
    server: LocalServer, pool: ConnectionPool, gated: Callable[..., GatedSource]
) -> None:
    source = gated("token")
    server.hold_upgrades("other")
    one = Background(lambda: pool.connect(server.url("one"), "one", token=source))
    other = Background(lambda: pool.connect(server.url("other"), "other"))
    source.gates[0].wait_arrived()
    server.wait_for(lambda: bool(server.connections("other")))
    pool.disconnect("one")
    assert isinstance(one.error(), ConnectCancelled)
    assert not other.done
    server.release_upgrades("other")
    assert other.result().online
    source.gates[0].open()
    no_connectors()
    assert server.connections("one") == []
    assert len(server.connections("other")) == 1


def test_i14_a_cancelled_attempt_never_opens_a_socket(
    server: LocalServer, pool: ConnectionPool, gated: Callable[..., GatedSource]
) -> None:
    recorder = Recorder().listen(pool)
    source = gated("token")
    call = Background(lambda: pool.connect(server.url(), token=source))
    source.gates[0].wait_arrived()
    pool.disconnect()
    assert isinstance(call.error(), ConnectCancelled)
    source.gates[0].open()
    no_connectors()
    assert server.connections() == []
    assert "online" not in recorder.wait("disconnected") and "online" not in recorder.names


# -- I15, I16, I17, I18: one run, many callers ---------------------------------------------------------------


class CountingEndpoint(Endpoint):
    def __init__(self, url: str) -> None:
        self._url = url
        self.asked: list[Any] = []

    def resolve(self, attempt: Any) -> Target:
        self.asked.append(attempt)
        return Target(self._url)


def test_i15_only_the_owner_of_an_entry_removes_it(
    server: LocalServer, pool: ConnectionPool, gated: Callable[..., GatedSource]
) -> None:
    source = gated(server.url(), blocked=2)
    first = Background(lambda: pool.connect(source))
    source.gates[0].wait_arrived()
    pool.disconnect()
    assert isinstance(first.error(), ConnectCancelled)
    second = Background(lambda: pool.connect(source))
    source.gates[1].wait_arrived()
    source.gates[0].open()  # the abandoned one ends, and must leave the second's entry alone
    eventually(lambda: len(threads("connector")) == 1)
    third = Background(lambda: pool.connect(source))
    eventually(lambda: pool.session().state is SessionState.CONNECTING)
    source.gates[1].open()
    assert second.result() is third.result()
    assert len(server.connections()) == 1
    assert source.calls == 2


def test_i16_d12_50_callers_make_one_socket_and_no_other_session_waits(
    server: LocalServer, pool: ConnectionPool
) -> None:
    server.hold_upgrades()
    stalled = Background(lambda: pool.connect(server.url("stalled"), "stalled"))
    server.wait_for(lambda: bool(server.connections("stalled")))
    endpoint = CountingEndpoint(server.url("x"))
    session = pool.session("x")
    calls = Background(lambda: run_together(50, lambda: pool.connect(endpoint, "x")))
    machine = pool._get("x")[1]
    eventually(lambda: machine._waiters == 50)
    server.release_upgrades("x")
    outcomes = calls.result()
    assert len(outcomes) == 50
    assert all(outcome is session for outcome in outcomes), outcomes
    assert session.online
    assert len(server.connections("x")) == len(endpoint.asked) == 1
    assert not stalled.done
    server.release_upgrades()
    assert stalled.result().online


def test_i17_every_waiter_gets_the_same_outcome(
    server: LocalServer, pool: ConnectionPool, gated: Callable[..., GatedSource]
) -> None:
    source = gated(server.url())
    calls = [Background(lambda: pool.connect(source)) for _ in range(5)]
    source.gates[0].wait_arrived()
    waits = [Background(lambda: pool.wait_online()) for _ in range(2)]
    # All five are in the run once it counts them; nothing public does.
    machine = pool._find(pool.session().id)[1]  # type: ignore[index]
    eventually(lambda: machine._waiters == 7)
    assert pool.session().state is SessionState.CONNECTING
    pool.disconnect()
    errors = [call.error() for call in calls + waits]
    assert all(type(error) is ConnectCancelled for error in errors), errors
    assert len(set(map(id, errors))) == 7
    assert pool.session().state is SessionState.IDLE


def test_i17_d12_every_waiter_gets_the_same_failure(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(initial_max_retries=0)
    server.hold_upgrades()
    server.reject(4403, reason="no")
    endpoint = CountingEndpoint(server.url())
    calls = Background(lambda: run_together(32, lambda: pool.connect(endpoint)))
    machine = pool._get(pool.session().id)[1]
    eventually(lambda: machine._waiters == 32)
    server.release_upgrades()
    errors = calls.result()
    assert {type(error) for error in errors} == {Forbidden}
    assert len({str(error) for error in errors}) == 1
    assert len(set(map(id, errors))) == 32  # each its own, to raise and to add to
    assert pool.session().state is SessionState.OFFLINE
    assert len(server.connections()) == len(endpoint.asked) == 1


def test_i18_a_failed_connect_leaves_no_attempt_and_no_thread(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool(initial_max_retries=2)
    server.reject(500, times=3)
    with pytest.raises(ConnectError, match=f"127.0.0.1:{server.port}.*500") as caught:
        pool.connect(server.url())
    assert (caught.value.attempts, caught.value.status) == (3, 500)
    session = pool.session()
    assert session.state is SessionState.OFFLINE
    assert isinstance(session.last_error, ConnectError) and session.last_error.status == 500
    eventually(lambda: not threads())
    assert len(server.connections()) == 3
    with pytest.raises(ConnectError, match="500"):
        session.wait_online()  # at once: it has ended
    assert pool.connect().online  # and can start again, from its last endpoint


# -- I26, I27, I28: an explicit disconnect -------------------------------------------------------------------


def stays_down(pool: ConnectionPool, server: LocalServer, recorder: Recorder, sockets: int) -> None:
    """Nothing is left that could reconnect, and the events say what an explicit disconnect says."""
    recorder.wait("disconnected")
    ends = [name for name in recorder.names if name.startswith(("offline", "disconnected"))]
    assert ends == ["offline", "offline.permanent", "disconnected"]
    assert pool.session().state is SessionState.IDLE
    eventually(lambda: not threads())
    assert len(server.connections()) == sockets


def test_i26_an_explicit_disconnect_never_reconnects(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(force_close_delay=0.1)
    recorder = Recorder().listen(pool)
    pool.connect(server.url())
    server.mute()
    server.ignore_close()
    pool.disconnect()  # reported as 1000 "Done (forced)", which from a server would mean reconnect
    stays_down(pool, server, recorder, 1)


@pytest.mark.parametrize("answer", [1001, 1005, 1006, 1011, 4000, 4401, "drop"])
def test_i27_nor_whatever_the_server_answers(
    server: LocalServer, make_pool: MakePool, answer: int | str
) -> None:
    pool = make_pool(force_close_delay=LONG)
    recorder = Recorder().listen(pool)
    pool.connect(server.url())
    [connection] = server.wait_live()
    server.ignore_close()
    call = Background(pool.disconnect)
    server.wait_for(lambda: connection.close_code == 1000)
    if answer == "drop":
        connection.drop()
    else:
        assert isinstance(answer, int)
        connection.close(answer)
    call.result()
    stays_down(pool, server, recorder, 1)
    server.ignore_close(on=False)


def test_i28_disconnect_returns_after_the_close_and_the_state_is_cleared_before_the_event(
    server: LocalServer, pool: ConnectionPool
) -> None:
    seen: list[object] = []
    told = threading.Event()
    session = pool.connect(server.url())

    @session.on("disconnected")
    def look(payload: object) -> None:
        seen.extend([session.state, session.online, session.url, pool.any_online])
        told.set()

    [connection] = server.wait_live()
    pool.disconnect()
    assert session.state is SessionState.IDLE
    assert threads("reader", "connector") == [] or eventually(lambda: not threads("reader")) is None
    assert (connection.close_code, connection.close_reason) == (1000, "Done")
    assert told.wait(LONG)
    assert seen == [SessionState.IDLE, False, None, False]


# -- I39: for good -------------------------------------------------------------------------------------------


def test_i39_close_is_for_good(server: LocalServer, pool: ConnectionPool) -> None:
    default = pool.connect(server.url("default"))
    practice = pool.connect(server.url("practice"), "practice")
    recorder = Recorder().listen(default).listen(practice)
    waiting = Background(lambda: pool.wait_online("nobody connects this", timeout=None))
    eventually(lambda: "nobody connects this" in pool.sessions())
    pool.close()
    assert isinstance(waiting.error(), PoolClosed)
    assert len(recorder.wait("disconnected", 2)) == 2
    assert not recorder.payloads("offline.transient")
    for call in (
        lambda: pool.connect(server.url()),
        lambda: pool.connect(),
        lambda: pool.wait_online(),
        lambda: pool.session(),
        lambda: pool.session("new"),
        lambda: pool.on("online", print),
        lambda: default.send({}),
        lambda: default.wait_online(),
        lambda: default.on("online", print),
        pool.__enter__,
    ):
        with pytest.raises(PoolClosed):
            call()
    pool.close()
    assert threads() == []
    assert len(server.connections()) == 2
    assert {connection.close_code for connection in server.connections()} == {1000}


@pytest.mark.parametrize("call", ["disconnect", "disconnect_all"])
def test_i39_every_later_call_raises(pool: ConnectionPool, call: str) -> None:
    """`ConnectionPool.close`: "Later calls of other methods raise `PoolClosed`"."""
    pool.session()
    pool.close()
    with pytest.raises(PoolClosed):
        getattr(pool, call)()


def test_i39_close_during_a_reconnect(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(backoff_initial=3600, backoff_max=3600)
    session = pool.connect(server.url())
    server.reject(500)
    server.close_session(code=1001)
    eventually(lambda: isinstance(session.last_error, ConnectError))
    waiting = Background(lambda: session.wait_online(timeout=None))
    pool.close()
    assert isinstance(waiting.error(), PoolClosed)
    assert session.state is SessionState.IDLE
    assert len(server.connections()) == 2


# -- T0: in every phase --------------------------------------------------------------------------------------


def walk_away(pool: ConnectionPool, call: Background) -> Recorder:
    """Disconnect: it returns within a second, and so does the caller that connected.

    Returns:
        What is heard from then on, for `left_alone`.
    """
    assert pool.session().state is SessionState.CONNECTING
    heard = Recorder().listen(pool, "online", "event:relay.event")
    started = time.monotonic()
    pool.disconnect()
    assert time.monotonic() - started < A_WHILE
    assert isinstance(call.error(), ConnectCancelled)
    assert pool.session().state is SessionState.IDLE
    return heard


def start_afresh(pool: ConnectionPool, server: LocalServer) -> Session:
    """A new connect needs nothing of the old one."""
    session = pool.connect(server.url("fresh"))
    assert session.online
    return session


def left_alone(session: Session, server: LocalServer, sockets: int, heard: Recorder) -> None:
    """What became of the old attempt changed nothing: the one `online` is the new one's."""
    no_connectors()
    assert session.online and session.url == server.url("fresh")
    assert len(server.connections()) == sockets
    assert len(server.live()) == 1
    session.send({"type": "mine"})
    server.wait_for(lambda: {"type": "mine"} in server.live()[0].received)
    server.publish(session="fresh")
    heard.wait("event:relay.event")
    assert heard.names == ["online", "event:relay.event"]


def test_t0_d5_during_dns(server: LocalServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    real = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "localhost":
            gate.pass_through()
            host = "127.0.0.1"
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    try:
        call = Background(lambda: pool.connect(server.url().replace("127.0.0.1", "localhost")))
        gate.wait_arrived()
        heard = walk_away(pool, call)
        session = start_afresh(pool, server)
        eventually(lambda: len(threads("connector")) == 1)  # the abandoned one
    finally:
        gate.open()
    left_alone(session, server, 1, heard)


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """Yield a port of the loopback that answers no SYN any more (Linux)."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = listener.getsockname()[1]
        while True:
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            if not select.select([], [filler], [], 0.1)[1]:
                break
        yield port


def knocking(port: int) -> int:
    """Return how many sockets of this machine wait for that port to answer their SYN."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for line in lines if line[2].endswith(f":{port:04X}") and line[3] == "02")


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="looks into /proc")
def test_t0_d5_during_tcp_connect(server: LocalServer, pool: ConnectionPool) -> None:
    with full_backlog() as port:
        before = knocking(port)
        url = server.url().replace(f":{server.port}/", f":{port}/")
        call = Background(lambda: pool.connect(url))
        eventually(lambda: knocking(port) > before)
        heard = walk_away(pool, call)
        session = start_afresh(pool, server)
        left_alone(session, server, 1, heard)
        assert knocking(port) <= before


def test_t0_d5_during_tls_handshake(server: LocalServer, pool: ConnectionPool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(LONG)
        call = Background(lambda: pool.connect(f"wss://127.0.0.1:{mute.getsockname()[1]}/"))
        peer, _ = mute.accept()
        with peer:
            peer.settimeout(LONG)
            assert peer.recv(1) == b"\x16"  # ClientHello
            heard = walk_away(pool, call)
            session = start_afresh(pool, server)
            left_alone(session, server, 1, heard)
            while peer.recv(4096):  # the old socket is closed
                pass


def test_t0_during_the_upgrade(server: LocalServer, pool: ConnectionPool) -> None:
    server.hold_upgrades("default")
    call = Background(lambda: pool.connect(server.url()))
    server.wait_for(lambda: bool(server.connections("default")))
    heard = walk_away(pool, call)
    session = start_afresh(pool, server)
    server.release_upgrades()
    left_alone(session, server, 2, heard)
    server.wait_for(lambda: server.connections("default")[0].closed_at is not None)


def test_t0_d5_during_an_answer_that_drips(
    server: LocalServer, pool: ConnectionPool, tls: bool, server_context: ssl.SSLContext
) -> None:
    """Every byte comes soon after the last one, and the answer never ends."""
    dripping, left = threading.Event(), threading.Event()

    def drip(peer: Peer, sock: Any) -> None:
        peer.requests.append(read_request(sock))
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nX-Long: ")
        try:
            while not peer.over.wait(0.01):
                sock.sendall(b"x")
                dripping.set()
        except OSError:
            left.set()
            raise

    with Peer(drip, server_context if tls else None) as peer:
        scheme = "wss" if tls else "ws"
        call = Background(lambda: pool.connect(f"{scheme}://127.0.0.1:{peer.port}/"))
        assert dripping.wait(LONG)
        heard = walk_away(pool, call)
        session = start_afresh(pool, server)
        left_alone(session, server, 1, heard)
        assert left.wait(LONG)
        assert len(peer.requests) == 1


def test_t0_d5_during_authorization(server: LocalServer, pool: ConnectionPool) -> None:
    server.withhold_ready("default")
    call = Background(lambda: pool.connect(server.url()))
    server.wait_live("default")
    heard = walk_away(pool, call)
    session = start_afresh(pool, server)
    server.release_ready()
    server.wait_for(lambda: not server.live("default"))
    left_alone(session, server, 2, heard)


def test_t0_d5_during_a_backoff_wait(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(backoff_initial=3600, backoff_max=3600)
    server.reject(500)
    call = Background(lambda: pool.connect(server.url()))
    eventually(lambda: pool.session().last_error)
    heard = walk_away(pool, call)
    left_alone(start_afresh(pool, server), server, 2, heard)


@pytest.mark.parametrize("status", [429, 503])
def test_t0_d5_during_retry_after(server: LocalServer, make_pool: MakePool, status: int) -> None:
    pool = make_pool(backoff_initial=0.01, backoff_max=30)
    server.reject(status, headers={"Retry-After": "60"})
    call = Background(lambda: pool.connect(server.url()))
    eventually(lambda: pool.session().last_error)
    error = pool.session().last_error
    assert isinstance(error, ConnectError) and error.retry_after == 60
    heard = walk_away(pool, call)
    left_alone(start_afresh(pool, server), server, 2, heard)


def test_t0_during_a_blocked_token_provider(
    server: LocalServer, pool: ConnectionPool, gated: Callable[..., GatedSource]
) -> None:
    source = gated("token")
    call = Background(lambda: pool.connect(server.url(), token=source))
    source.gates[0].wait_arrived()
    heard = walk_away(pool, call)
    session = start_afresh(pool, server)
    source.gates[0].open()
    left_alone(session, server, 1, heard)


def test_t0_during_a_blocked_token_refresh(server: LocalServer, pool: ConnectionPool) -> None:
    gate = Gate()

    class Provider:
        def get(self) -> str:
            return "old"

        def refresh(self, rejected: str) -> str:
            gate.pass_through()
            return "fresh"

    server.tokens = {"token"}
    try:
        call = Background(lambda: pool.connect(server.url(), token=Provider()))
        gate.wait_arrived()
        heard = walk_away(pool, call)
        session = start_afresh(pool, server)
    finally:
        gate.open()
    left_alone(session, server, 2, heard)


class GatedEndpoint(Endpoint):
    def __init__(self, url: str, where: str) -> None:
        self.url, self.where, self.gate = url, where, Gate()
        self.told = 0

    def resolve(self, attempt: Any) -> Target:
        if self.where == "resolve":
            self.gate.pass_through()
        return Target(self.url)

    def rejected(self, target: Target, error: Exception) -> None:
        self.told += 1
        if self.where == "rejected":
            self.gate.pass_through()


@pytest.mark.parametrize("where", ["resolve", "rejected"])
def test_t0_during_a_blocked_endpoint(server: LocalServer, pool: ConnectionPool, where: str) -> None:
    endpoint = GatedEndpoint(server.url(), where)
    if where == "rejected":
        server.reject(404)
    try:
        call = Background(lambda: pool.connect(endpoint))
        endpoint.gate.wait_arrived()
        heard = walk_away(pool, call)
        session = start_afresh(pool, server)
    finally:
        endpoint.gate.open()
    left_alone(session, server, 1 if where == "resolve" else 2, heard)


def test_t0_an_abandoned_attempt_that_fails_afterwards_is_nobodys_error(
    server: LocalServer, pool: ConnectionPool
) -> None:
    gate = Gate()

    def source() -> str:
        gate.pass_through()
        raise RuntimeError("too late to matter")

    try:
        call = Background(lambda: pool.connect(source))
        gate.wait_arrived()
        heard = walk_away(pool, call)
        session = start_afresh(pool, server)
        error = session.last_error
    finally:
        gate.open()
    left_alone(session, server, 1, heard)
    assert session.last_error is error


# -- T16: the last caller leaves -----------------------------------------------------------------------------


def test_t16_the_last_caller_ends_a_first_run(server: LocalServer, pool: ConnectionPool) -> None:
    server.withhold_ready()
    patient = Background(lambda: pool.connect(server.url()))
    server.wait_live()
    with pytest.raises(ConnectTimeout):
        pool.connect(server.url(), timeout=SHORT)
    assert pool.session().state is SessionState.CONNECTING  # somebody still waits
    server.release_ready()
    assert patient.result().online
    pool.disconnect()

    server.withhold_ready()
    with pytest.raises(ConnectTimeout):
        pool.connect(server.url(), timeout=SHORT)
    assert pool.session().state is SessionState.OFFLINE
    eventually(lambda: not threads())
    server.wait_for(lambda: not server.live())
    server.release_ready()
    assert pool.connect(server.url()).online


def test_t16_a_wait_online_counts_as_a_caller(server: LocalServer, pool: ConnectionPool) -> None:
    server.withhold_ready()
    patient = Background(lambda: pool.wait_online())
    machine = pool._get(pool.session().id)[1]
    eventually(lambda: machine._waiters == 1)
    with pytest.raises(ConnectTimeout):
        pool.connect(server.url(), timeout=SHORT)
    assert pool.session().state is SessionState.CONNECTING
    server.release_ready()
    assert patient.result().online


def test_t16_a_newcomer_never_gets_a_dead_run(server: LocalServer, pool: ConnectionPool) -> None:
    for number in range(25):
        server.withhold_ready()
        timeout = 0.02
        start = threading.Barrier(2)

        def leave(start: threading.Barrier = start, timeout: float = timeout) -> object:
            start.wait(LONG)
            return pool.connect(server.url(), timeout=timeout)

        def come(start: threading.Barrier = start, timeout: float = timeout, number: int = number) -> object:
            start.wait(LONG)
            # Around the instant in which the first one leaves; either side of it must do.
            threading.Event().wait(timeout + (number - 12) * 0.0001)
            return pool.connect(server.url(), timeout=LONG)

        first, newcomer = Background(leave), Background(come)
        error = first.error()
        assert isinstance(error, ConnectTimeout), error
        server.release_ready()
        assert newcomer.result().online
        pool.disconnect()
    eventually(lambda: not threads())


# -- who waits for whom --------------------------------------------------------------------------------------


def test_connect_during_a_disconnect_waits_and_starts_afresh(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool(force_close_delay=LONG)
    session = pool.connect(server.url())
    server.ignore_close()
    [connection] = server.wait_live()
    leaving = Background(pool.disconnect)
    server.wait_for(lambda: connection.close_code is not None)
    assert session.state is SessionState.DISCONNECTING
    with pytest.raises(ConnectTimeout):
        pool.connect(server.url("other"), timeout=SHORT)
    coming = Background(lambda: pool.connect(server.url("other")))
    joining = Background(lambda: pool.disconnect(code=3050))  # joins: the first code wins
    server.ignore_close(on=False)
    leaving.result()
    assert coming.result().online or joining.done
    joining.result()
    assert connection.close_code == 1000


def test_a_static_token_that_is_refused_ends_the_run(server: LocalServer, pool: ConnectionPool) -> None:
    server.tokens = {"other"}
    with pytest.raises(NotAuthorized) as caught:
        pool.connect(server.url())
    assert caught.value.code == 4401 and caught.value.attempts == 1
    no_connectors()
    assert len(server.connections()) == 1
