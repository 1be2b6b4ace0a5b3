"""Times at their edge, on a clock that stands still: a moment before nothing has happened, then it has.

Sockets are real wherever a socket is asked, so what is tested is that a setting is honoured, and not only
that some function computes it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import ConnectionLost, ConnectionPool, SessionState
from llm_sessions._sync import Deadline
from llm_sessions.connection.stream import Stream
from llm_sessions.connection.stream_errors import StreamBroken, StreamTimeout
from llm_sessions.connection.transport import AttemptFailed
from llm_sessions.protocol.mercury import EndCause, Ended, Timing
from llm_sessions.testing.server import LocalServer
from tests.limits.support import WatchedClock, just_before, link_of
from tests.peers import Links, Owner, Peer, dripping_head, frame, full_backlog, mute_http, mute_tls, nobody
from tests.pool.support import COMPLETE, TRANSIENT, machine_of
from tests.support import LONG, Background, FakeTransport, Recorder, eventually

Clocked = Callable[..., ConnectionPool]
Make = Callable[..., tuple[ConnectionPool, FakeTransport]]

LIMIT = 0.01
"""Seconds of a limit on whose clock a thread is to look often. They pass only when the test says so."""


# -- keepalive ----------------------------------------------------------------------------------------------


def test_limit_ping_interval_is_from_the_pong_to_the_next_ping(
    server: LocalServer, clocked: Clocked, clock: WatchedClock
) -> None:
    server.mute()
    pool = clocked(ping_interval=15, pong_timeout=14)
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    server.wait_for(lambda: len(connection.pings) == 1)
    link = link_of(pool)
    clock.show(link, 2)
    connection.send_json({"type": "pong", "id": connection.pings[0]})
    eventually(lambda: session.latency == 2)
    clock.show(link, just_before(17))
    assert len(connection.pings) == 1
    clock.show(link, 17)
    server.wait_for(lambda: len(connection.pings) == 2)
    assert session.online


def test_limit_pong_timeout_is_from_the_ping(
    server: LocalServer, clocked: Clocked, clock: WatchedClock
) -> None:
    server.mute()
    pool = clocked(pong_timeout=14)
    recorder = Recorder().listen(pool, TRANSIENT)
    pool.connect(server.url())
    [connection] = server.wait_live()
    server.wait_for(lambda: len(connection.pings) == 1)
    clock.show(link_of(pool), just_before(14))
    assert connection.close_code is None and recorder.names == []
    clock.strike(link_of(pool), 14)
    server.wait_for(lambda: connection.close_reason == "Pong not received")
    recorder.wait(TRANSIENT)


def test_limit_pong_timeout_a_pong_just_before_it_is_in_time(
    server: LocalServer, clocked: Clocked, clock: WatchedClock
) -> None:
    server.mute()
    pool = clocked(pong_timeout=14)
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    server.wait_for(lambda: len(connection.pings) == 1)
    clock.show(link_of(pool), just_before(14))
    connection.send_json({"type": "pong", "id": connection.pings[0]})
    eventually(lambda: session.latency is not None)
    clock.show(link_of(pool), 14)
    assert session.online and connection.close_code is None


# -- opening ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "secure"),
    [
        pytest.param(mute_tls, True, id="TLS"),
        pytest.param(mute_http, False, id="upgrade"),
        pytest.param(mute_http, True, id="upgrade over TLS"),
        pytest.param(dripping_head, False, id="dripping head"),
        pytest.param(dripping_head, True, id="dripping head over TLS"),
    ],
)
def test_limit_open_timeout_in_the_handshakes(
    script: Any,
    secure: bool,
    links: Links,
    owner: Owner,
    clock: WatchedClock,
    server_context: ssl.SSLContext,
) -> None:
    context = server_context if secure and script is not mute_tls else None
    with Peer(script, context) as peer:
        link = links.make(peer.port, owner, tls=secure, clock=clock, open_timeout=LIMIT)
        call = Background(link.open)
        for _ in range(2):  # connected, and in its phase
            assert peer.arrived.acquire(timeout=LONG)
        clock.set(just_before(LIMIT))
        clock.wait_looks()
        assert not call.done
        clock.set(LIMIT)
        error = call.error()
        assert isinstance(error, AttemptFailed) and f"did not answer within {LIMIT} s" in error.message
    assert owner.reports == []


def test_limit_open_timeout_in_the_tcp_connect(links: Links, owner: Owner, clock: WatchedClock) -> None:
    with full_backlog() as address:
        link = links.make(1, owner, tls=False, found=[address], clock=clock, open_timeout=LIMIT)
        call = Background(link.open)
        clock.wait_look()
        clock.set(just_before(LIMIT))
        clock.wait_looks()
        assert not call.done
        clock.set(LIMIT)
        error = call.error()
        assert isinstance(error, AttemptFailed) and f"did not answer within {LIMIT} s" in error.message


@pytest.mark.parametrize("in_time", [True, False])
def test_limit_open_timeout_in_the_authorization(
    in_time: bool, server: LocalServer, clocked: Clocked, clock: WatchedClock
) -> None:
    server.withhold_ready()
    pool = clocked(open_timeout=10, initial_max_retries=0)
    call = Background(lambda: pool.connect(server.url()))
    machine = machine_of(pool.session())
    server.wait_for(lambda: bool(server.connections()) and server.connections()[0].authorized)
    [link] = machine._links
    clock.show(link, just_before(10))  # type: ignore[arg-type]
    assert not call.done
    if in_time:
        server.release_ready()
        assert call.result().online
    else:
        clock.strike(link, 10)  # type: ignore[arg-type]
        assert "ready within 10 s" in str(call.error())


def test_limit_open_timeout_is_of_the_sum_of_all_phases(
    links: Links, owner: Owner, clock: WatchedClock, tls: bool, server_context: ssl.SSLContext
) -> None:
    """A first address takes half of it, TLS, the upgrade and the authorization less."""

    def step(peer: Peer, moment: float) -> None:
        peer.arrived.release()
        clock.wait_until(moment)

    def script(peer: Peer, sock: Any) -> None:
        step(peer, 0.6)
        if tls:
            with server_context.wrap_socket(sock, server_side=True) as secured:
                upgrade_and_hold(peer, secured)
        else:
            upgrade_and_hold(peer, sock)

    def upgrade_and_hold(peer: Peer, sock: Any) -> None:
        step(peer, 0.9)
        peer.upgrade(sock)
        peer.arrived.release()
        peer.hold()

    with full_backlog() as silent, Peer(script) as peer:
        link = links.make(
            peer.port, owner, tls=tls, found=[silent, peer.address], clock=clock, open_timeout=1.0
        )
        call = Background(link.open)
        eventually(lambda: link._stream._poll is not None, "it does not connect")
        clock.strike(link, 0.5)  # the share of the first of two addresses
        for moment in (0.6, 0.9):
            assert peer.arrived.acquire(timeout=LONG)
            clock.set(moment)
        assert peer.arrived.acquire(timeout=LONG)
        call.result()
        clock.show(link, just_before(1.0))
        assert owner.reports == []
        clock.strike(link, 1.0)
        assert owner.wait_ended() == Ended(1006, "", EndCause.OPEN_TIMEOUT)


@pytest.mark.parametrize(
    ("limit", "shares"),
    [
        (2.0, [0.5, 0.5, 0.5, 0.5]),
        (1.0, [0.25, 0.25, 0.25, 0.25]),
        (0.875, [0.25, 0.25, 0.25, 0.125]),
        (0.125, [0.125, 0.0, 0.0, 0.0]),
    ],
)
def test_limit_open_timeout_is_shared_by_addresses_a_quarter_of_a_second_at_least(
    clock: WatchedClock, limit: float, shares: list[float]
) -> None:
    given: list[float | None] = []

    def swallowed(address: object, deadline: Deadline) -> None:
        given.append(deadline.timeout)
        clock.advance(deadline.timeout or 0.0)
        raise StreamTimeout

    stream: Any = Stream(clock=clock)
    stream._connect = swallowed
    with pytest.raises(StreamTimeout):
        stream.open([nobody()] * 4, Deadline(limit, clock), tls=None, host="localhost")
    stream.release()
    assert given == shares and clock() == limit


# -- writing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_time", [True, False])
def test_limit_send_timeout_of_a_message(
    in_time: bool, server: LocalServer, clocked: Clocked, clock: WatchedClock
) -> None:
    pool = clocked(send_timeout=LIMIT)
    session = pool.connect(server.url())
    server.wait_live()
    server.stall_reads()
    call = Background(lambda: session.send({"type": "huge", "pad": "x" * (32 << 20)}))
    link = link_of(pool)
    eventually(lambda: link._stream._pollers, "the sender did not get stuck")
    clock.set(just_before(LIMIT))
    clock.wait_looks()
    assert not call.done and link.ready
    if in_time:
        server.resume_reads()
        call.result()
        assert session.online
    else:
        clock.set(LIMIT)
        error = call.error()
        assert isinstance(error, ConnectionLost) and f"not written within {LIMIT} s" in str(error)
        eventually(lambda: not link.ready)
        server.resume_reads()


def test_limit_send_timeout_of_what_the_reader_has_to_say(
    links: Links, owner: Owner, clock: WatchedClock
) -> None:
    """Acks that the peer does not read: at first reading pauses, then the socket ends."""

    def flood(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        acked = b"".join(frame({"id": f"{n:0100}"}) for n in range(500))
        while not peer.over.is_set():
            sock.sendall(acked)

    with Peer(flood, receive_buffer=4096) as peer:
        link = links.make(
            peer.port,
            owner,
            tls=False,
            clock=clock,
            send_timeout=10,
            timing=Timing(ping_interval=3600, pong_timeout=3600),
        )
        link.open()
        eventually(lambda: link._stuck_since is not None, "it never got stuck")
        clock.show(link, just_before(10))
        assert not any(isinstance(report, Ended) for report in owner.reports)
        clock.strike(link, 10)
        ended = owner.wait_ended()
        assert ended.cause is EndCause.LOST and isinstance(ended.error, StreamBroken)


# -- closing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["disconnect", "disconnect_all"])
def test_limit_force_close_delay_is_from_the_close(
    how: str, server: LocalServer, clocked: Clocked, clock: WatchedClock
) -> None:
    server.ignore_close()
    pool = clocked(force_close_delay=2)
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    link = link_of(pool)
    clock.show(link, 5)
    call = Background(getattr(pool, how))
    server.wait_for(lambda: connection.close_code == 1000)
    clock.show(link, just_before(7))
    assert not call.done and session.state is SessionState.DISCONNECTING
    clock.strike(link, 7)
    call.result()
    assert session.state is SessionState.IDLE


def test_limit_retire_timeout_is_from_the_switch(
    server: LocalServer, clocked: Clocked, clock: WatchedClock
) -> None:
    pool = clocked(retire_timeout=60)
    recorder = Recorder().listen(pool, COMPLETE, "offline")
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    old = link_of(pool)
    clock.show(old, 5)
    connection.send_json({"type": "shutdown"})
    recorder.wait(COMPLETE)
    eventually(lambda: old._protocol is not None and old._protocol._retire_at is not None)
    clock.show(old, just_before(65))
    assert connection.close_code is None and old.ready
    clock.strike(old, 65)
    server.wait_for(lambda: connection.close_code == 1000 and connection.closed_at is not None)
    assert session.online and recorder.names == [COMPLETE]
