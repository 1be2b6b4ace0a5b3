"""One socket, from its first packet to its last report: raw peers for the odd cases, else LocalServer."""

from __future__ import annotations

import json
import logging
import resource
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions._sync import Deadline
from llm_sessions.connection import connection as connection_module
from llm_sessions.connection.connection import Connection, resolve
from llm_sessions.connection.stream_errors import StreamBroken
from llm_sessions.connection.transport import AttemptFailed, LinkBroken, Traffic
from llm_sessions.protocol.closing import Failure
from llm_sessions.protocol.mercury import EndCause, Ended, LatencyMeasured, Timing
from llm_sessions.protocol.url import connection_url
from llm_sessions.testing.server import LocalServer
from tests.peers import (
    READY,
    Links,
    Owner,
    Peer,
    close_frame,
    dripping_head,
    frame,
    full_backlog,
    mute_http,
    mute_tls,
    nobody,
    read_frame,
    read_request,
    read_to_end,
    reset,
    upgraded,
)
from tests.support import (
    LONG,
    SHORT,
    Background,
    Gate,
    descriptors,
    eventually,
    library_threads,
    run_together,
)

MakeLink = Callable[..., Connection]

HUGE = b"x" * (32 << 20)  # more than any pair of kernel buffers takes
NO_PINGS = Timing(ping_interval=3600, pong_timeout=3600)


class Clock:
    """Real time, and what the test adds to it: this process was stopped for so long."""

    def __init__(self) -> None:
        self.added = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.added


@pytest.fixture
def peer_context(tls: bool, server_context: ssl.SSLContext) -> ssl.SSLContext | None:
    return server_context if tls else None


@pytest.fixture
def make(links: Links, owner: Owner, tls: bool) -> MakeLink:
    """Make a link to a port, plain or TLS."""
    return lambda port, **options: links.make(port, owner, tls=tls, **options)


@pytest.fixture
def online(make: MakeLink, owner: Owner) -> MakeLink:
    """Open a link to a LocalServer and wait until it is ready."""

    def open_it(server: LocalServer, **options: Any) -> Connection:
        path = connection_url(f"ws://x/{options.pop('key', 'key')}", now_ms=1).partition("x/")[2]
        link = make(server.port, path=path, **options)
        link.open()
        owner.wait_ready()
        return link

    return open_it


def wait_pong(owner: Owner) -> None:
    """Wait for the first pong, so that whatever comes next is the test's."""
    owner.wait_for(lambda: any(isinstance(r, LatencyMeasured) for r in owner.reports), "the pong")


def stays_silent(peer: Peer, sock: Any) -> None:
    peer.hold()


# T0, T1: ending an attempt, wherever it is


PHASES = [
    pytest.param(mute_tls, True, id="mute TLS"),
    pytest.param(mute_http, False, id="mute HTTP"),
    pytest.param(mute_http, True, id="mute HTTPS"),
    pytest.param(dripping_head, False, id="dripping HTTP"),
    pytest.param(dripping_head, True, id="dripping HTTPS"),
]


@pytest.mark.parametrize("verb", ["abort", "close"])
@pytest.mark.parametrize(("script", "secure"), PHASES)
def test_t0_abort_ends_the_attempt_in_every_phase(
    script: Any, secure: bool, verb: str, links: Links, owner: Owner, server_context: ssl.SSLContext
) -> None:
    context = server_context if secure and script is not mute_tls else None
    with Peer(script, context) as peer:
        link = links.make(peer.port, owner, tls=secure, open_timeout=None)
        call = Background(link.open)
        for _ in range(2):  # connected, and in its phase
            assert peer.arrived.acquire(timeout=LONG)
        started = time.monotonic()
        link.abort() if verb == "abort" else link.close(None, None)
        error = call.error()
        assert time.monotonic() - started < 1
        assert isinstance(error, AttemptFailed)
        assert error.failure is Failure.NETWORK
        assert f"localhost:{peer.port} was ended" in error.message
        assert owner.reports == []
        assert not link.ready


def test_t0_abort_ends_a_tcp_connect(make: MakeLink, owner: Owner) -> None:
    with full_backlog() as address:
        link = make(1, found=[address], open_timeout=None)
        polling, real = threading.Event(), link._stream._poll_once

        def announced(events: int, timeout: float | None) -> int:
            polling.set()
            return real(events, timeout)

        link._stream._poll_once = announced  # type: ignore[method-assign]
        call = Background(link.open)
        assert polling.wait(LONG)
        started = time.monotonic()
        link.abort()
        assert isinstance(call.error(), AttemptFailed)
        assert time.monotonic() - started < 1
        assert owner.reports == []


def test_t0_an_attempt_ended_during_dns_opens_nothing(make: MakeLink, owner: Owner) -> None:
    gate = Gate()
    with Peer(stays_silent) as peer:

        def slow(host: str, port: int) -> Any:
            gate.pass_through()
            return [peer.address]

        link = make(peer.port, found=slow)
        call = Background(link.open)
        gate.wait_arrived()
        link.abort()
        gate.open()
        assert isinstance(call.error(), AttemptFailed)
        assert not peer.arrived.acquire(blocking=False)
        assert owner.reports == []


@pytest.mark.parametrize("verb", ["abort", "close"])
def test_t0_i2_an_end_while_waiting_for_ready_is_reported_at_once(
    verb: str, server: LocalServer, make: MakeLink, owner: Owner
) -> None:
    server.withhold_ready()
    link = make(server.port, path=connection_url("ws://x/key", now_ms=1)[7:], open_timeout=None)
    link.open()
    server.wait_live()
    started = time.monotonic()
    link.abort() if verb == "abort" else link.close(3050, "done (permanent)")
    ended = owner.wait_ended()
    assert time.monotonic() - started < 1
    assert ended.cause is EndCause.ABORTED
    assert (ended.code, ended.reason) == ((1006, "") if verb == "abort" else (3050, "done (permanent)"))
    assert not link.ready
    assert owner.reports == [ended]


@pytest.mark.parametrize(("script", "secure"), PHASES)
def test_t1_one_deadline_holds_for_all_phases(
    script: Any, secure: bool, links: Links, owner: Owner, server_context: ssl.SSLContext
) -> None:
    context = server_context if secure and script is not mute_tls else None
    with Peer(script, context) as peer:
        link = links.make(peer.port, owner, tls=secure, open_timeout=0.3)
        started = time.monotonic()
        with pytest.raises(
            AttemptFailed, match=f"localhost:{peer.port} did not answer within 0.3 s"
        ) as caught:
            link.open()
        assert caught.value.failure is Failure.NETWORK
        assert time.monotonic() - started < 3


def test_t1_i1_the_wait_for_ready_is_part_of_the_deadline(
    server: LocalServer, make: MakeLink, owner: Owner
) -> None:
    server.withhold_ready()
    link = make(server.port, path=connection_url("ws://x/key", now_ms=1)[7:], open_timeout=0.5)
    link.open()
    ended = owner.wait_ended()
    assert (ended.code, ended.cause) == (1006, EndCause.OPEN_TIMEOUT)


def test_i1_frames_before_ready_are_delivered_before_it(
    server: LocalServer, make: MakeLink, owner: Owner
) -> None:
    server.withhold_ready()
    link = make(server.port, path=connection_url("ws://x/key", now_ms=1)[7:])
    link.open()
    [connection] = server.wait_live()
    server.publish(id="early")
    owner.wait_message("early")
    assert not link.ready
    server.release_ready()
    owner.wait_ready()
    assert link.ready
    server.publish(id="late")
    owner.wait_message("late")
    server.wait_for(lambda: {"early", "late"} <= set(connection.acks))
    assert owner.reports.index("ready") > 0


# What the failures of an attempt say


def failure(link: Connection) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as caught:
        link.open()
    return caught.value


def test_dns_failure_names_the_host_and_has_its_cause(make: MakeLink) -> None:
    def unknown(host: str, port: int) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    error = failure(make(443, host="nowhere.example", found=unknown))
    assert error.failure is Failure.NETWORK
    assert "cannot resolve nowhere.example:443" in error.message
    assert isinstance(error.__cause__, socket.gaierror)


def test_a_name_that_cannot_be_encoded_does_not_resolve(make: MakeLink) -> None:
    error = failure(make(443, host="x" * 70 + ".example", found=resolve))
    assert error.failure is Failure.NETWORK
    assert isinstance(error.__cause__, UnicodeError)


def test_the_resolver_is_the_systems() -> None:
    found = resolve("127.0.0.1", 80)
    assert [(kind, proto, where) for _, kind, proto, _, where in found] == [
        (socket.SOCK_STREAM, socket.IPPROTO_TCP, ("127.0.0.1", 80))
    ]


def test_nobody_listens(make: MakeLink) -> None:
    address = nobody()
    error = failure(make(address[4][1], found=[address]))
    assert error.failure is Failure.NETWORK
    assert f"nothing listens at localhost:{address[4][1]}" in error.message
    assert isinstance(error.__cause__, ConnectionRefusedError)


def test_a_second_address_is_used(server: LocalServer, online: MakeLink) -> None:
    good = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", server.port))
    with full_backlog() as silent:
        link = online(server, found=[nobody(), silent, good], open_timeout=2)
        assert link.ready


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_peer_that_hangs_up_in_the_handshake(
    how: str, make: MakeLink, peer_context: ssl.SSLContext | None
) -> None:
    def hang_up(peer: Peer, sock: Any) -> None:
        read_request(sock)
        if how == "reset":
            reset(sock)

    with Peer(hang_up, peer_context) as peer:
        error = failure(make(peer.port))
        assert error.failure is Failure.NETWORK
        assert f"cannot connect to localhost:{peer.port}" in error.message
        assert error.__cause__ is not None


def test_a_plain_server_is_no_tls_server(links: Links, owner: Owner) -> None:
    with LocalServer(strict=False) as server:
        error = failure(links.make(server.port, owner, tls=True))
    assert error.failure is Failure.MISPLACED
    assert f"localhost:{server.port} does not speak TLS" in error.message
    assert isinstance(error.__cause__, ssl.SSLError)


@pytest.mark.parametrize("alert", [True, False])
def test_a_tls_server_is_no_plain_server(
    alert: bool, links: Links, owner: Owner, server_context: ssl.SSLContext
) -> None:
    """Some servers send an alert. OpenSSL's just hang up when they see HTTP, which looks like any loss."""

    def complain(peer: Peer, sock: Any) -> None:
        read_request(sock)
        sock.sendall(b"\x15\x03\x01\x00\x02\x02\x46")
        peer.hold()

    if alert:
        with Peer(complain) as peer:
            error = failure(links.make(peer.port, owner, tls=False))
        assert error.failure is Failure.MISPLACED
        assert f"localhost:{peer.port} does not speak HTTP" in error.message
    else:
        with LocalServer(ssl_context=server_context, strict=False) as server:
            error = failure(links.make(server.port, owner, tls=False))
        assert error.failure is Failure.NETWORK
        assert f"localhost:{server.port}" in error.message
    assert error.__cause__ is not None


@pytest.mark.parametrize("wrong", ["authority", "host"])
def test_a_certificate_that_is_not_valid(
    wrong: str, links: Links, owner: Owner, server_context: ssl.SSLContext
) -> None:
    with LocalServer(ssl_context=server_context, strict=False) as server:
        link = links.make(
            server.port,
            owner,
            tls=True,
            host="localhost" if wrong == "authority" else "other.example",
            ssl_context=ssl.create_default_context() if wrong == "authority" else None,
        )
        error = failure(link)
        server.wait_for(lambda: all(c.closed_at is not None for c in server.connections()))
        told = [connection.error for connection in server.connections()]
    assert error.failure is Failure.UNTRUSTED
    assert "is not valid" in error.message
    assert f":{server.port}" in error.message
    assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
    if wrong == "authority":
        assert "alert unknown ca" in str(told[0]).lower(), "the server was not told why"


@pytest.mark.parametrize(
    ("status", "expected"), [(401, Failure.UNAUTHORIZED), (404, Failure.STALE), (429, Failure.BUSY)]
)
def test_an_http_refusal_has_its_row(
    status: int, expected: Failure, server: LocalServer, make: MakeLink
) -> None:
    server.reject(status, headers={"Retry-After": "5"}, body=b"<html>")
    error = failure(make(server.port, path=connection_url("ws://x/key", now_ms=1)[7:]))
    assert (error.failure, error.status, error.retry_after) == (expected, status, "5")
    assert f"localhost:{server.port}" in error.message
    assert error.__cause__ is not None


def test_what_fails_behind_the_upgrade_leaves_no_socket(
    server: LocalServer, make: MakeLink, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: object, **options: object) -> None:
        raise MemoryError

    link = make(server.port, path=connection_url("ws://x/key", now_ms=1)[7:])
    monkeypatch.setattr(connection_module, "MercuryProtocol", no_memory)
    with pytest.raises(MemoryError):
        link.open()
    server.wait_for(lambda: all(c.closed_at is not None for c in server.connections()))
    assert owner.reports == [] and link._stream._released


# Open, and not read yet: the thread that opened it is on its way


@pytest.mark.parametrize("verb", ["abort", "close"])
def test_t0_what_ends_a_link_before_it_is_read_is_reported_by_its_reader(
    verb: str, server: LocalServer, make: MakeLink, owner: Owner
) -> None:
    link = make(server.port, path=connection_url("ws://x/key", now_ms=1)[7:])
    before = descriptors()
    Connection.open(link)  # without the reader that comes with it in these tests
    assert link.relieve() is False
    link.abort() if verb == "abort" else link.close(4000, "late")
    assert owner.reports == [], "there is no reader that could report"
    reader = Background(link.read)
    reader.result()
    assert [type(report) for report in owner.reports] == [Ended]
    assert owner.readers == ["llm-reader[test#0]"] == [reader.thread.name]
    assert owner.wait_ended().cause is EndCause.ABORTED
    server.wait_for(lambda: all(c.closed_at is not None for c in server.connections()))
    eventually(lambda: descriptors() <= before)


def test_what_came_with_the_upgrade_is_read_first(server: LocalServer, make: MakeLink, owner: Owner) -> None:
    link = make(server.port, path=connection_url("ws://x/key", now_ms=1)[7:])
    Connection.open(link)
    link._glued += b'\x81\x07{"a":1}'
    reader = Background(link.read)
    owner.wait_ready()
    assert owner.reports[0] == {"a": 1} and link._glued == b""
    link.abort()
    reader.result()


# Conversation


def test_messages_go_both_ways(server: LocalServer, online: MakeLink, owner: Owner) -> None:
    link = online(server)
    link.send(b'{"type":"hello"}', LONG)
    [connection] = server.live()
    server.wait_for(lambda: {"type": "hello"} in connection.received)
    server.publish(id="m1", sequence=True)
    owner.wait_message("m1")
    server.wait_for(lambda: "m1" in connection.acks)
    assert link.time_offset is not None
    assert connection.token == "token"
    link.close(None, None)
    ended = owner.wait_ended()
    assert (ended.code, ended.reason, ended.cause) == (1000, "Done", EndCause.LOCAL)
    with pytest.raises(LinkBroken) as caught:
        link.send(b"{}", LONG)
    assert not caught.value.started


def test_frames_glued_to_the_101_are_not_lost(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None
) -> None:
    def script(peer: Peer, sock: Any) -> None:
        peer.upgrade(sock, frame({"id": "glued"}), frame(READY), frame({"id": "last"}))
        peer.hold()

    with Peer(script, peer_context) as peer:
        link = make(peer.port)
        link.open()
        owner.wait_message("last")
        assert owner.reports[0] == {"id": "glued"}
        assert owner.reports[1:3] == ["ready", READY]
        link.abort()
        owner.wait_ended()


def test_a_close_frame_glued_to_the_101_is_reported(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None
) -> None:
    with Peer(lambda peer, sock: peer.upgrade(sock, close_frame(4401, "no")), peer_context) as peer:
        make(peer.port).open()
        assert owner.wait_ended() == Ended(4401, "no", EndCause.PEER)


@pytest.mark.stress
def test_t8_d19_sixteen_senders_interleave_whole_messages_only(server: LocalServer, online: MakeLink) -> None:
    """The server's codec (wsproto) finds every frame whole, and each sender's messages in order."""
    link = online(server, timing=NO_PINGS)
    pad = "x" * 300

    def send_all(sender: int) -> None:
        for number in range(1000):
            text = f'{{"type":"t8","from":{sender},"n":{number},"pad":"{pad if number % 7 else pad * 30}"}}'
            link.send(text.encode(), LONG)

    senders = [Background(lambda n=n: send_all(n)) for n in range(16)]  # type: ignore[misc]
    for sender in senders:
        sender.result(60)
    [connection] = server.live()
    server.wait_for(lambda: len(connection.received) >= 16_000 + 4, 60)
    got = [obj for obj in connection.received if obj.get("type") == "t8"]
    for sender in range(16):
        assert [obj["n"] for obj in got if obj["from"] == sender] == list(range(1000))


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize(
    ("code", "reason", "forced"),
    [
        (None, None, (1000, "Done (forced)")),
        (None, "bye", (1000, "Done (forced)")),
        (3050, None, (3050, "Done (unknown)")),
        (3050, "done (permanent)", (3050, "done (permanent)")),
    ],
)
def test_i3_a_close_is_answered_or_forced(
    code: int | None,
    reason: str | None,
    forced: tuple[int, str],
    answers: bool,
    server: LocalServer,
    online: MakeLink,
    owner: Owner,
) -> None:
    server.ignore_close(on=not answers)
    link = online(server, timing=Timing(force_close_delay=LONG if answers else 0.05))
    [connection] = server.live()
    link.close(code, reason)
    link.close(4999, "the first one counts")
    ended = owner.wait_ended()
    sent = (code or 1000, reason or "Done")
    assert (ended.code, ended.reason) == (sent if answers else forced)
    assert ended.cause is EndCause.LOCAL
    server.wait_for(lambda: connection.close_code is not None)
    assert (connection.close_code, connection.close_reason) == sent


def test_t5_a_close_that_is_interrupted_has_an_end(
    server: LocalServer, online: MakeLink, owner: Owner
) -> None:
    link = online(server, timing=NO_PINGS)

    def interrupted(*args: object) -> bytes:
        raise KeyboardInterrupt

    link._encoder.close = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        link.close(None, None)
    assert not link._lock.locked()
    owner.wait_ended()


def test_i9_nothing_happens_after_the_end(server: LocalServer, online: MakeLink, owner: Owner) -> None:
    server.mute()
    link = online(server)
    [connection] = server.live()
    link.close(None, None)
    ended = owner.wait_ended()
    connection.send_json({"type": "pong", "id": connection.pings[0]})
    eventually(lambda: not [thread for thread in library_threads() if "reader" in thread.name])
    assert owner.reports[-1] is ended
    assert sum(isinstance(report, Ended) for report in owner.reports) == 1
    link.close(3050, None)
    link.abort()
    link.retire(0)
    link.resume()
    assert not link.ready


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("reason", ["Pong mismatch", "Pong not received"])
def test_i10_a_wrong_or_missing_pong_ends_as_a_loss(
    reason: str, ignores: bool, server: LocalServer, online: MakeLink, owner: Owner
) -> None:
    server.ignore_close(on=ignores)
    if reason == "Pong mismatch":
        server.wrong_pong()
    else:
        server.mute()
    online(server, timing=Timing(ping_interval=LONG, pong_timeout=0.2, force_close_delay=0.1))
    ended = owner.wait_ended()
    assert (ended.code, ended.reason, ended.cause) == (1000, reason, EndCause.KEEPALIVE)


def test_pings_go_on_and_their_answers_are_measured(
    server: LocalServer, online: MakeLink, owner: Owner
) -> None:
    online(server, timing=Timing(ping_interval=0.01, pong_timeout=LONG))
    owner.wait_for(
        lambda: sum(isinstance(report, LatencyMeasured) for report in owner.reports) >= 3, "three pongs"
    )


def test_i11_t2_fifty_links_leave_nothing_behind(server: LocalServer, links: Links, tls: bool) -> None:
    before = descriptors()
    path = connection_url("ws://x/key", now_ms=1)[7:]
    for n in range(50):
        owner = Owner()
        link = links.make(server.port, owner, tls=tls, path=path)
        link.open()
        owner.wait_ready()
        if n % 2:
            link.close(None, None)
        else:
            link.abort()
        owner.wait_ended()
        server.wait_for(lambda: all(c.closed_at is not None for c in server.connections()))
    eventually(lambda: descriptors() <= before)
    eventually(lambda: links.threads.alive() == [])


def test_a_link_that_was_replaced_closes_by_itself(
    server: LocalServer, online: MakeLink, owner: Owner
) -> None:
    link = online(server)
    link.retire(0.05)
    ended = owner.wait_ended()
    assert (ended.code, ended.reason, ended.cause) == (1000, "Done", EndCause.LOCAL)


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_lost_connection_is_1006(how: str, server: LocalServer, online: MakeLink, owner: Owner) -> None:
    link = online(server)
    server.drop() if how == "rst" else server.close_session(code=1006)
    ended = owner.wait_ended()
    assert (ended.code, ended.reason, ended.cause) == (1006, "", EndCause.LOST)
    assert how == "fin" or isinstance(ended.error, StreamBroken)
    with pytest.raises(LinkBroken):
        link.send(b"{}", LONG)


def test_an_abort_of_a_live_link_is_reported_as_ours(
    server: LocalServer, online: MakeLink, owner: Owner
) -> None:
    online(server).abort()
    assert owner.wait_ended() == Ended(1006, "", EndCause.ABORTED)


def test_an_owner_that_raises_ends_the_link_and_is_logged(
    server: LocalServer, online: MakeLink, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    online(server)

    def bug(events: object) -> None:
        raise ZeroDivisionError

    owner.on_received = bug
    with caplog.at_level(logging.ERROR, "llm_sessions.connection"):
        server.publish()
        ended = owner.wait_ended()
    assert (ended.code, ended.cause) == (1006, EndCause.LOST)
    assert isinstance(ended.error, ZeroDivisionError)
    assert "bug in llm_sessions" in caplog.text


# T13 and the peer's end


def test_t13_d18_a_tib_is_refused_before_a_byte_of_it_is_kept(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None
) -> None:
    said: list[tuple[int, bytes]] = []

    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        sock.sendall(b"\x81\x7f" + (1 << 40).to_bytes(8, "big"))
        said.append(read_frame(sock))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Peer(script, peer_context) as peer:
        make(peer.port).open()
        ended = owner.wait_ended()
        eventually(lambda: said)
    assert (ended.code, ended.cause) == (1006, EndCause.VIOLATION)
    assert said[0][0] == 8
    assert said[0][1][:2] == (1009).to_bytes(2, "big")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


@pytest.mark.parametrize("backlog", [0, 200])
def test_a_close_frame_with_a_reset_behind_it_is_not_lost(
    backlog: int, links: Links, tls: bool, peer_context: ssl.SSLContext | None
) -> None:
    """4001, 40 times: the reset is there before we look; our acks and our answer meet it first."""
    for _ in range(40):
        gone, owner = Gate(), Owner()

        def script(peer: Peer, sock: Any, gone: Gate = gone) -> None:
            peer.open_session(sock)
            sock.sendall(frame({"id": "hold"}))
            gone.wait_arrived()
            # In one write, and at once: a reset drops what its side still holds back.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(b"".join(frame({"id": str(n)}) for n in range(backlog)) + close_frame(4001, "moved"))
            reset(sock)
            gone.open()

        owner.on_received = lambda events, gone=gone: (
            gone.pass_through()
            if any(isinstance(e, dict) and e.get("id") == "hold" for e in events)
            else None
        )
        with Peer(script, peer_context) as peer:
            links.make(peer.port, owner, tls=tls, timing=NO_PINGS).open()
            ended = owner.wait_ended()
        assert (ended.code, ended.reason, ended.cause) == (4001, "moved", EndCause.PEER)
        assert len(owner.ids) == backlog + 1


# T9, T14: writing


def test_t9_d19_a_send_that_times_out_ends_the_link(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None
) -> None:
    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        peer.hold()

    with Peer(script, peer_context) as peer:
        link = make(peer.port, timing=NO_PINGS)
        link.open()
        owner.wait_ready()
        with pytest.raises(LinkBroken, match=r"not written within 0\.2 s") as caught:
            link.send(HUGE, 0.2)
        assert caught.value.started
        assert owner.wait_ended().code == 1006
        with pytest.raises(LinkBroken):
            link.send(b"{}", LONG)


def test_t1_an_abort_ends_a_stuck_sender(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None
) -> None:
    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        peer.hold()

    with Peer(script, peer_context) as peer:
        link = make(peer.port, timing=NO_PINGS)
        link.open()
        owner.wait_ready()
        sending = Background(lambda: link.send(HUGE, None))
        eventually(lambda: link._stream._pollers)
        started = time.monotonic()
        link.abort()
        error = sending.error()
        assert isinstance(error, LinkBroken)
        assert error.started
        owner.wait_ended()
        assert time.monotonic() - started < 1


def test_t14_d19_a_stalled_sender_holds_up_neither_reads_nor_other_links(
    server: LocalServer, online: MakeLink, owner: Owner, links: Links, tls: bool
) -> None:
    link = online(server, timing=NO_PINGS)
    server.stall_reads("key")
    [connection] = server.live()
    # The server takes no binary and no such large text for an object, but it reads it.
    huge = b'{"type":"huge","pad":"' + HUGE + b'"}'
    sending = Background(lambda: link.send(huge, LONG))
    eventually(lambda: link._stream._pollers, "the sender did not get stuck")
    for n in range(200):
        server.publish(id=f"m{n}")
    owner.wait_message("m199")
    other_owner = Owner()
    other = links.make(server.port, other_owner, tls=tls, path=connection_url("ws://x/other", now_ms=1)[7:])
    other.open()
    other_owner.wait_ready()
    other.send(b'{"type":"hello"}', LONG)
    assert not sending.done
    server.resume_reads("key")
    sending.result()
    server.wait_for(lambda: "m199" in connection.acks)
    assert [ack for ack in connection.acks if str(ack).startswith("m")] == [f"m{n}" for n in range(200)]


def test_a_peer_that_never_reads_its_acks_is_paused_and_then_left(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounded memory: reading stops at 256 KiB of our own unsent bytes, and all ends after `send_timeout`."""
    high: list[int] = []

    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        flood = b"".join(frame({"id": f"{n:0100}"}) for n in range(500))
        while not peer.over.is_set():
            sock.sendall(flood)

    with Peer(script, peer_context, receive_buffer=4096) as peer:
        link = make(peer.port, timing=NO_PINGS, send_timeout=0.4)
        post = link._stream.post

        def noted(data: bytes, **how: bool) -> bool:
            written = post(data, **how)
            high.append(link._stream.own_unsent)
            return written

        monkeypatch.setattr(link._stream, "post", noted)
        link.open()
        ended = owner.wait_ended()
    assert isinstance(ended.error, StreamBroken)
    assert "reads nothing" in str(ended.error)
    assert 256 << 10 < max(high) < (256 << 10) + (256 << 10)


def stuck_link(make: MakeLink, peer: Peer, owner: Owner, clock: Clock, **options: Any) -> Connection:
    """A link that has stopped reading because the peer takes no acks."""
    link = make(peer.port, clock=clock, open_timeout=None, **options)
    link.open()
    owner.wait_ready()
    eventually(lambda: link._stuck_since is not None, "it never got stuck")
    return link


def flood_without_reading(peer: Peer, sock: Any) -> None:
    peer.open_session(sock)
    flood = b"".join(frame({"id": f"{n:0100}"}) for n in range(500))
    sock.settimeout(0.05)
    try:
        while True:
            sock.sendall(flood)
    except TimeoutError:
        sock.settimeout(LONG)
    peer.arrived.release()
    assert peer.over.wait(LONG)


def test_i3_a_close_of_a_stuck_link_is_reported_by_its_own_table(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None
) -> None:
    """The time for which a peer may read nothing passes while we are closing: the close's own time counts."""
    clock = Clock()
    with Peer(flood_without_reading, peer_context, receive_buffer=4096) as peer:
        link = stuck_link(
            make,
            peer,
            owner,
            clock,
            send_timeout=3600,
            timing=Timing(ping_interval=9e9, pong_timeout=9e9, force_close_delay=7200),
        )
        link.close(3050, "bye")
        waits = count_waits(link)
        clock.added += 3601
        link.resume()
        assert waits.acquire(timeout=LONG)
        for _ in range(3):
            link._stream.wake()
        assert not any(isinstance(report, Ended) for report in owner.reports)
        clock.added += 3600
        link._stream.wake()
        assert owner.wait_ended() == Ended(3050, "bye", EndCause.LOCAL)


def count_waits(link: Connection) -> threading.Semaphore:
    """Return a semaphore that counts the waits of the reader as they begin."""
    waits, real = threading.Semaphore(0), link._stream.wait

    def counted(timeout: float | None, *, reading: bool) -> bool:
        waits.release()
        return real(timeout, reading=reading)

    link._stream.wait = counted  # type: ignore[method-assign]
    return waits


def test_a_stuck_peer_that_reads_again_costs_nothing(links: Links, owner: Owner) -> None:
    count, small = 6000, threading.Event()

    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        assert small.wait(LONG)
        flood = b"".join(frame({"id": f"{n:0100}"}) for n in range(count))
        sending = Background(lambda: sock.sendall(flood))
        eventually(lambda: link._stuck_since is not None, "it never got stuck")
        while json.loads(read_frame(sock)[1]).get("messageId") != f"{count - 1:0100}":
            pass
        sending.result()
        peer.arrived.release()
        peer.hold()

    with Peer(script, receive_buffer=4096) as peer:
        link = links.make(peer.port, owner, tls=False, timing=NO_PINGS, send_timeout=LONG)
        link.open()
        assert link._stream._sock is not None
        link._stream._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        small.set()
        eventually(lambda: owner.reports[-1:] == [{"id": f"{count - 1:0100}"}])
        for _ in range(2):  # connected, and every ack read
            assert peer.arrived.acquire(timeout=LONG)
        assert link._stream.own_unsent == 0
        assert link.ready


# Pause and resume


def test_a_full_owner_pauses_reading_and_pings_go_on(
    server: LocalServer, online: MakeLink, owner: Owner
) -> None:
    link = online(server, timing=Timing(ping_interval=0.02, pong_timeout=0.3))
    [connection] = server.live()
    wait_pong(owner)
    owner.takes = False
    server.publish(id="m0")
    owner.wait_message("m0")
    for n in range(1, 50):
        server.publish(id=f"m{n}")
    seen = len(connection.pings)
    # More pings than the pong's time has room for: its deadline is suspended while nothing is read.
    server.wait_for(lambda: len(connection.pings) >= seen + 30)
    assert "m49" not in owner.ids
    assert "m49" not in connection.acks
    owner.takes = True
    link.resume()
    owner.wait_message("m49")
    server.wait_for(lambda: "m49" in connection.acks)
    assert [identity for identity in owner.ids if str(identity).startswith("m")] == [
        f"m{n}" for n in range(50)
    ]
    assert link.ready


def test_an_owner_that_resumes_at_once_is_not_missed(
    server: LocalServer, online: MakeLink, owner: Owner
) -> None:
    """`resume` comes before `link_received` has even returned False."""
    link = online(server, timing=NO_PINGS)
    owner.takes = False
    owner.on_received = lambda events: link.resume()
    for n in range(20):
        server.publish(id=f"m{n}")
        owner.wait_message(f"m{n}")


def test_a_full_owner_is_asked_again_while_nothing_else_happens(
    server: LocalServer, online: MakeLink, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody calls `resume` when a queue is full of what nobody will ever fetch."""
    monkeypatch.setattr(connection_module, "_ASK_AGAIN", 0.02)
    asked = threading.Semaphore(0)
    owner.on_received = lambda events: asked.release() if not events else None
    online(server, timing=NO_PINGS)
    wait_pong(owner)
    owner.takes = False
    server.publish(id="m0")
    owner.wait_message("m0")
    for _ in range(3):
        assert asked.acquire(timeout=LONG)
    server.publish(id="m1")
    for _ in range(2):
        assert asked.acquire(timeout=LONG)
    assert "m1" not in owner.ids
    owner.takes = True
    owner.wait_message("m1")
    while asked.acquire(timeout=SHORT):
        pass
    assert not asked.acquire(timeout=5 * SHORT), "it is asked although it is not full"


def test_every_message_is_logged_at_debug_cut_and_without_secrets(
    server: LocalServer, online: MakeLink, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "llm_sessions.connection")
    link = online(server, timing=NO_PINGS)
    wait_pong(owner)
    caplog.clear()
    head = '{"id":"m0","x":"'
    server.send_text(head + "a" * (498 - len(head)) + '"}')  # 500 characters
    server.send_text('{"id":"m1","x":"' + "a" * (499 - len(head)) + '"}')
    server.send_text('{"id":"m2","x":"' + "a" * 450 + '","token":"s3cret-' + "b" * 1000 + '"}')
    owner.wait_message("m2")
    link.send(b'{"id":"mine"}', LONG)
    texts = [text.partition("] ")[2] for text in caplog.messages]
    assert [len(text) for text in texts[:3]] == [
        2 + 500,
        2 + 500 + 1,
        2 + len(head) + 450 + len('","token":"***"}'),
    ]
    assert texts[1].endswith('a"…') and texts[2].endswith('"token":"***"}') and "s3cret" not in caplog.text
    assert texts[3:] == ['> {"id":"mine"}'] and texts[0].startswith('< {"id":"m0"')


def test_t11_a_token_that_the_cut_would_leave_the_beginning_of_is_not_shown(
    server: LocalServer, online: MakeLink, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens before it shrink to three stars each, so that what was far behind the cut comes into sight."""
    caplog.set_level(logging.DEBUG, "llm_sessions.connection")
    online(server, timing=NO_PINGS)
    tokens = ",".join('"eyJ' + f"{n}s3cret".ljust(1500, "x") + '.eyJ.sig"' for n in range(20))
    server.send_text('{"id":"m0","all":[' + tokens + "]}")
    owner.wait_message("m0")
    assert '"id":"m0"' in caplog.text and "s3cret" not in caplog.text


def test_the_reader_says_first_that_it_is_one(server: LocalServer, online: MakeLink, owner: Owner) -> None:
    online(server)
    assert len(owner.readers) == 1 and owner.readers[0].startswith("llm-reader[")


def test_traffic_is_frames_without_the_handshake(
    server: LocalServer, online: MakeLink, make: MakeLink, owner: Owner
) -> None:
    assert make(server.port).traffic == Traffic()
    link = online(server, timing=NO_PINGS)
    [connection] = server.wait_live()
    server.wait_for(lambda: len(connection.acks) == 2)  # the buffer state, and the pong of the first ping
    outbox = link._stream._outbox
    eventually(lambda: outbox.written == outbox.posted)  # a peer may read it before it is counted
    before = link.traffic
    assert before.acks == 2 and before.bytes_out < 1000
    for n in range(10):
        server.send_text(f'{{"id":"m{n}"}}')
        owner.wait_message(f"m{n}")
    message = {"type": "hello", "text": "x" * 50}
    payload = json.dumps(message).encode()
    link.send(payload, LONG)
    server.wait_for(lambda: "m9" in connection.acks and message in connection.received)
    eventually(lambda: outbox.written == outbox.posted)
    after = link.traffic
    assert after.acks == before.acks + 10
    assert after.bytes_in - before.bytes_in == 10 * (2 + len(b'{"id":"m0"}'))
    acks = 10 * (2 + 4 + len(b'{"messageId":"m0","type":"ack"}'))
    assert after.bytes_out - before.bytes_out == acks + 2 + 4 + len(payload)


def test_an_owner_full_before_ready_pauses_too(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None
) -> None:
    """What one read brought comes in two parts, before and after ready: a no to the first is a no."""

    def script(peer: Peer, sock: Any) -> None:
        request = read_request(sock)
        sock.sendall(upgraded(request) + frame({"id": "early"}) + frame(READY))
        assert go_on.wait(LONG)
        sock.sendall(frame({"id": "late"}))
        peer.hold()

    go_on, first = threading.Event(), []
    with Peer(script, peer_context) as peer:
        link = make(peer.port, timing=NO_PINGS)

        def received(events: Any) -> None:
            owner.takes = True
            first.append(events)

        owner.takes, owner.on_received = False, received
        waits: list[bool] = []
        real = link._stream.wait

        def wait(timeout: float | None, *, reading: bool) -> bool:
            waits.append(reading)
            return real(timeout, reading=reading)

        link._stream.wait = wait  # type: ignore[method-assign]
        link.open()
        owner.wait_ready()
        eventually(lambda: waits)
        assert first[0] == [{"id": "early"}]
        assert waits[0] is False, "it went on reading"
        go_on.set()
        link.resume()
        owner.wait_message("late")


@pytest.mark.parametrize("verb", ["close", "abort", "send"])
def test_whatever_ends_it_wakes_a_paused_reader(
    verb: str, server: LocalServer, online: MakeLink, owner: Owner
) -> None:
    link = online(server, timing=NO_PINGS)
    wait_pong(owner)
    owner.takes = False
    server.publish(id="m0")
    owner.wait_message("m0")
    server.publish(id="m1")
    started = time.monotonic()
    if verb == "send":
        server.stall_reads()
        with pytest.raises(LinkBroken):
            link.send(HUGE, 0.05)
    else:
        link.close(None, None) if verb == "close" else link.abort()
    ended = owner.wait_ended()
    assert (ended.code, ended.reason) == ((1000, "Done") if verb == "close" else (1006, ""))
    assert time.monotonic() - started < 2


def test_a_paused_reader_does_not_spin_on_a_hangup(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None
) -> None:
    hung_up = threading.Event()

    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock, frame({"id": "m0"}))
        assert paused.wait(LONG)
        reset(sock)
        hung_up.set()

    paused = threading.Event()
    with Peer(script, peer_context) as peer:
        link = make(peer.port, timing=Timing(ping_interval=0.05, pong_timeout=LONG))
        owner.takes = False
        link.open()
        owner.wait_message("m0")
        waits = count_waits(link)
        paused.set()
        assert hung_up.wait(LONG)
        for _ in range(4):  # pings that find nobody
            assert waits.acquire(timeout=LONG)
        while waits.acquire(blocking=False):
            pass
        started = time.monotonic()
        for _ in range(5):
            assert waits.acquire(timeout=LONG)
        assert time.monotonic() - started > 0.1, "it spins"
        link.resume()
        ended = owner.wait_ended()
        assert ended.cause is EndCause.LOST


# Time


def in_kernel(link: Connection, size: int = 1) -> None:
    """Wait until bytes for the link have arrived and lie unread."""
    sock = link._stream._sock
    assert sock is not None
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(LONG * 1000), "nothing arrived"


def test_a_pong_that_came_while_this_process_was_stopped_is_in_time(
    server: LocalServer, online: MakeLink, owner: Owner
) -> None:
    """Stopped between a wait that brought nothing and the look at the clock, longer than a pong may take."""
    clock, gate = Clock(), Gate()
    server.mute()
    link = online(
        server, clock=clock, timing=Timing(ping_interval=3600, pong_timeout=3600), open_timeout=None
    )
    [connection] = server.live()
    server.wait_for(lambda: connection.pings)
    real = link._stream.wait

    def stopped_after(timeout: float | None, *, reading: bool) -> bool:
        readable = real(timeout, reading=reading)
        if not readable:
            link._stream.wait = real  # type: ignore[method-assign]
            gate.pass_through()
        return readable

    link._stream.wait = stopped_after  # type: ignore[method-assign]
    link._stream.wake()
    gate_or_again(link, gate)
    connection.send_json({"type": "pong", "id": connection.pings[0]})
    in_kernel(link)
    clock.added += 7200
    gate.open()
    wait_pong(owner)
    assert link.ready
    assert not any(isinstance(report, Ended) for report in owner.reports)


def gate_or_again(link: Connection, gate: Gate) -> None:
    """The first wake may have been for a wait that had begun before: ring until the reader is there."""
    while not gate._arrived.acquire(timeout=0.05):
        link._stream.wake()


def test_a_flood_does_not_put_a_deadline_off_for_ever(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pong, but always something to read: past the deadline so much and no more is waited for."""
    monkeypatch.setattr(connection_module, "_MAX_OVERDUE_BYTES", 1 << 20)
    stop = threading.Event()

    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        flood = frame(b" " * 1000) * 500
        while not stop.is_set():
            sock.sendall(flood)

    with Peer(script, peer_context) as peer:
        make(peer.port, timing=Timing(ping_interval=LONG, pong_timeout=0.2, force_close_delay=0.1)).open()
        ended = owner.wait_ended()
        stop.set()
    assert (ended.reason, ended.cause) == ("Pong not received", EndCause.KEEPALIVE)


def test_a_socket_without_any_deadline_just_waits(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None
) -> None:
    def script(peer: Peer, sock: Any) -> None:
        peer.upgrade(sock)
        read_frame(sock)
        peer.arrived.release()
        peer.hold()

    with Peer(script, peer_context) as peer:
        link = make(peer.port, open_timeout=None)
        link.open()
        for _ in range(2):
            assert peer.arrived.acquire(timeout=LONG)
        waits = count_waits(link)
        link._stream.wake()
        assert waits.acquire(timeout=LONG)
        link.retire(0)
        assert owner.wait_ended().cause is EndCause.ABORTED


def test_reads_larger_than_a_buffer_are_not_cut(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None
) -> None:
    big = {"id": "big", "pad": "x" * 3_000_000}

    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock, *[frame({"id": f"s{n}"}) for n in range(5000)], frame(big))
        peer.hold()

    with Peer(script, peer_context) as peer:
        link = make(peer.port, timing=NO_PINGS)
        link.open()
        owner.wait_message("big")
        assert owner.ids[:-1] == [f"s{n}" for n in range(5000)]
        assert owner.reports[-1] == big


def test_the_close_answer_reaches_a_peer_that_waits_for_it(
    make: MakeLink, owner: Owner, peer_context: ssl.SSLContext | None
) -> None:
    heard: list[bytes] = []

    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        sock.sendall(close_frame(4000, "replaced"))
        heard.append(read_frame(sock)[1])
        assert read_to_end(sock) == b""

    with Peer(script, peer_context) as peer:
        make(peer.port).open()
        assert owner.wait_ended() == Ended(4000, "replaced", EndCause.PEER)
        eventually(lambda: heard)
    assert heard == [(4000).to_bytes(2, "big")]


def test_the_reader_is_named_and_counted(server: LocalServer, online: MakeLink, links: Links) -> None:
    link = online(server)
    assert [thread.name for thread in links.threads.alive()] == ["llm-reader[test#0]"]
    link.abort()
    assert links.threads.join(Deadline(LONG)) == []


# -- a reader that is lent -----------------------------------------------------------------------------------


class Lent:
    """An owner that has the reader lent after each message, and stops it there at a gate, the first time."""

    def __init__(self, owner: Owner, links: Links) -> None:
        self.gate, self.times = Gate(), 0
        self._links = links
        owner.on_received = self._received
        owner.on_lent = self._lent

    def _received(self, events: Any) -> None:
        if any(isinstance(event, dict) and str(event.get("id")).startswith("m") for event in events):
            self._links.made[0].lend()

    def _lent(self) -> bool:
        self.times += 1
        if self.times == 1:
            self.gate.pass_through()
        return True


@pytest.fixture
def lent(owner: Owner, links: Links) -> Iterator[Lent]:
    lent = Lent(owner, links)
    yield lent
    lent.gate.open()


def test_a_lent_reader_comes_back_and_reads_on(
    online: MakeLink, server: LocalServer, owner: Owner, lent: Lent
) -> None:
    link = online(server)
    for number in range(1, 5):
        server.publish(id=f"m{number}")
        if number == 1:
            lent.gate.wait_arrived()
            lent.gate.open()
        owner.wait_message(f"m{number}")
        eventually(lambda number=number: lent.times == number)
    eventually(lambda: not link._lent)
    assert owner.readers == ["llm-reader[test#0]"]
    assert link.relieve() is False


def blocked(server: LocalServer, lent: Lent) -> None:
    """Have the reader stopped where it is lent."""
    server.wait_live()
    server.publish(id="m0")
    lent.gate.wait_arrived()


def alive(link: Connection) -> list[threading.Thread]:
    return link._threads.alive()


def ends(owner: Owner) -> list[Ended]:
    return [report for report in owner.reports if isinstance(report, Ended)]


def test_t3_a_reader_that_stays_away_is_relieved(
    online: MakeLink, server: LocalServer, owner: Owner, lent: Lent
) -> None:
    link = online(server)
    blocked(server, lent)
    assert link.relieve() is True
    server.publish(id="m1")
    owner.wait_message("m1")  # which has the new one lent
    eventually(lambda: lent.times == 2 and not link._lent)
    assert owner.readers == ["llm-reader[test#0]"] * 2 and len(alive(link)) == 2
    lent.gate.open()
    eventually(lambda: len(alive(link)) == 1, "the thread that was lent does not end")
    server.publish(id="m2")
    owner.wait_message("m2")
    assert owner.ids[-3:] == ["m0", "m1", "m2"] and ends(owner) == []


def test_i9_the_descriptor_is_released_once_by_whoever_reads(
    online: MakeLink, server: LocalServer, owner: Owner, lent: Lent, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = online(server)
    released: list[threading.Thread] = []
    release = link._stream.release

    def counted() -> None:
        released.append(threading.current_thread())
        release()

    monkeypatch.setattr(link._stream, "release", counted)
    blocked(server, lent)
    [away] = alive(link)
    assert link.relieve() is True
    server.close_session(code=1001)
    assert owner.wait_ended().code == 1001
    lent.gate.open()
    away.join(LONG)
    assert not away.is_alive()
    assert len(released) == 1 and released != [away]
    assert len(ends(owner)) == 1


def test_there_is_nobody_to_relieve_but_a_lent_reader(
    make: MakeLink, online: MakeLink, server: LocalServer, owner: Owner
) -> None:
    assert make(server.port).relieve() is False
    link = online(server)
    assert link.relieve() is False
    link.close(1000, "Done")
    owner.wait_ended()
    assert link.relieve() is False
    assert len(owner.readers) == 1


def test_a_reader_is_relieved_by_one_however_many_try_at_once(
    online: MakeLink, server: LocalServer, owner: Owner, lent: Lent
) -> None:
    link = online(server)
    blocked(server, lent)
    assert set(run_together(4, link.relieve)) <= {True, False}
    eventually(lambda: len(alive(link)) == 2, "more than one reads, or none")
    assert len(owner.readers) == 2
    server.publish(id="m1")
    owner.wait_message("m1")


def test_a_relief_that_comes_late_finds_the_reader_back_and_ends(
    online: MakeLink, server: LocalServer, owner: Owner, links: Links, lent: Lent, monkeypatch: Any
) -> None:
    link = online(server)
    late: list[Callable[[], None]] = []
    blocked(server, lent)
    with monkeypatch.context() as patched:
        patched.setattr(links.threads, "spawn", lambda target, name: late.append(target))
        assert link.relieve() is True
    lent.gate.open()
    eventually(lambda: not link._lent)
    Background(late[0]).result()
    assert len(owner.readers) == 1
    server.publish(id="m1")
    owner.wait_message("m1")
    server.close_session(code=1001)
    assert owner.wait_ended().code == 1001


@pytest.mark.parametrize("verb", ["close", "abort"])
def test_t0_a_link_ends_in_time_while_its_reader_is_lent(
    online: MakeLink, server: LocalServer, owner: Owner, lent: Lent, verb: str
) -> None:
    link = online(server)
    blocked(server, lent)
    started = time.monotonic()
    link.close(1000, "Done") if verb == "close" else link.abort()
    ended = owner.wait_ended()
    assert time.monotonic() - started < 1
    assert (ended.code, ended.cause) == (
        (1000, EndCause.LOCAL) if verb == "close" else (1006, EndCause.ABORTED)
    )
    assert not link.ready


@pytest.mark.parametrize("verb", ["close", "abort"])
def test_t0_a_link_that_was_ended_before_its_reader_is_lent_ends_in_time(
    online: MakeLink, server: LocalServer, owner: Owner, lent: Lent, verb: str
) -> None:
    """Whoever ended it found nobody to relieve."""
    link = online(server)
    received = owner.on_received

    def end(events: Any) -> None:
        received(events)
        if link._asked_for:
            link.close(1000, "Done") if verb == "close" else link.abort()

    owner.on_received = end
    blocked(server, lent)
    assert owner.wait_ended().cause is (EndCause.LOCAL if verb == "close" else EndCause.ABORTED)


def test_t1_without_threads_a_lent_reader_reads_the_end_when_it_comes_back(
    online: MakeLink, server: LocalServer, owner: Owner, links: Links, lent: Lent, monkeypatch: Any
) -> None:
    link = online(server)
    blocked(server, lent)

    def no_more(target: object, name: str) -> threading.Thread:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as broken:
        broken.setattr(links.threads, "spawn", no_more)
        with pytest.raises(RuntimeError):
            link.relieve()
        link.close(1000, "Done")  # nothing that its caller could do about it
        link.abort()
    assert ends(owner) == []
    lent.gate.open()
    owner.wait_ended()
    assert len(owner.readers) == 1


@pytest.fixture
def says_a_message_and_ends(peer_context: ssl.SSLContext | None) -> Iterator[Peer]:
    with Peer(
        lambda peer, sock: peer.open_session(sock, frame({"id": "m0"}), close_frame(1001)), peer_context
    ) as peer:
        yield peer


def test_what_came_with_the_end_is_delivered_after_it(
    make: MakeLink, owner: Owner, lent: Lent, says_a_message_and_ends: Peer
) -> None:
    link = make(says_a_message_and_ends.port)
    link.open()
    lent.gate.wait_arrived()
    assert [ended.code for ended in ends(owner)] == [1001], "nobody waits for a callback to hear of it"
    assert link.relieve() is False
    lent.gate.open()
    eventually(lambda: not alive(link))
    assert lent.times == 1 and len(ends(owner)) == 1


def test_what_came_with_the_end_is_delivered_although_the_owner_raises(
    make: MakeLink, owner: Owner, lent: Lent, says_a_message_and_ends: Peer, monkeypatch: Any
) -> None:
    """A log handler of the user's, at the record that says so."""
    raised: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(str(args.exc_value)))

    def fail(link: Any, ended: Ended) -> None:
        owner._report(ended)
        raise ValueError("a log handler's")

    owner.link_ended = fail  # type: ignore[method-assign]
    link = make(says_a_message_and_ends.port)
    link.open()
    lent.gate.wait_arrived()
    lent.gate.open()
    eventually(lambda: not alive(link))
    assert (lent.times, len(ends(owner)), raised) == (1, 1, ["a log handler's"])


def test_t7_a_reader_that_comes_back_in_another_process_touches_nothing(
    online: MakeLink, server: LocalServer, owner: Owner, lent: Lent
) -> None:
    link = online(server)
    on_lent = owner.on_lent
    owner.on_lent = lambda: not on_lent()
    blocked(server, lent)
    with link._lock:  # as if a thread held it that the child does not have
        lent.gate.open()
        eventually(lambda: not alive(link), "it waits for a lock")
    assert ends(owner) == [] and not link._stream.ended
    link._stream.release()  # which nobody does in a child


@pytest.mark.parametrize("relieved", [False, True])
def test_an_owner_that_raises_ends_the_socket_only_of_its_reader(
    online: MakeLink, server: LocalServer, owner: Owner, lent: Lent, relieved: bool, caplog: Any
) -> None:
    link = online(server)
    on_lent = owner.on_lent

    def fail() -> bool:
        on_lent()
        raise ValueError("a bug")

    owner.on_lent = fail
    blocked(server, lent)
    [away] = alive(link)
    if relieved:
        owner.on_lent = lambda: True
        assert link.relieve() is True
        eventually(lambda: len(owner.readers) == 2)
    lent.gate.open()
    away.join(LONG)
    assert "the reader failed" in caplog.text
    if relieved:
        server.publish(id="m1")
        owner.wait_message("m1")
        assert ends(owner) == []
    else:
        assert isinstance(owner.wait_ended().error, ValueError)


# -- a read in portions --------------------------------------------------------------------------------------


def in_one_read(server: LocalServer, count: int, *more: bytes) -> None:
    """Send messages m0, m1, … in one write."""
    frames = [frame({"id": f"m{number}"}) for number in range(count)]
    [connection] = server.live()
    connection.send_raw(b"".join((*frames, *more)), ids={f"m{number}" for number in range(count)})


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_PORTION", 3 * len(frame({"id": "m0"})))


@pytest.mark.usefixtures("small_portions")
def test_what_one_read_brought_is_taken_in_portions_and_acked_at_once(
    online: MakeLink, server: LocalServer, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = online(server, timing=NO_PINGS)
    wait_pong(owner)
    server.wait_for(lambda: len(server.live()[0].acks) >= 1)
    portions, written = [], []
    owner.on_received = portions.append
    post = link._stream.post

    def counted(data: bytes, **how: bool) -> bool:
        written.append(len(portions))
        return post(data, **how)

    monkeypatch.setattr(link._stream, "post", counted)
    in_one_read(server, 8)
    owner.wait_message("m7")
    server.wait_for(lambda: "m7" in server.live()[0].acks)
    assert [[event["id"] for event in events] for events in portions] == [
        ["m0", "m1", "m2"],
        ["m3", "m4", "m5"],
        ["m6", "m7"],
    ]
    assert written == [3]  # when the owner has the last one


def test_nothing_is_acknowledged_before_the_owner_has_it(
    online: MakeLink, server: LocalServer, owner: Owner
) -> None:
    """Whoever lets go of a link aborts it: what the owner did not get is not acknowledged then."""
    link = online(server, timing=NO_PINGS)
    wait_pong(owner)
    [connection] = server.live()
    server.wait_for(lambda: len(connection.acks) == len(connection.sent))
    before = list(connection.acks)
    owner.on_received = lambda events: link.abort()
    connection.send_json({"id": "unheard", "data": {}})
    assert owner.wait_ended().cause is EndCause.ABORTED
    server.wait_for(lambda: connection.closed_at is not None)
    assert connection.acks == before


@pytest.mark.usefixtures("small_portions")
def test_i40_a_full_owner_gets_no_other_portion(online: MakeLink, server: LocalServer, owner: Owner) -> None:
    link = online(server, timing=NO_PINGS)
    wait_pong(owner)
    owner.takes = False
    in_one_read(server, 8)
    owner.wait_message("m2")
    link.close(None, None)  # goes on, for the peer's close is to be found
    assert owner.wait_ended().code == 1000
    assert [one for one in owner.ids if str(one).startswith("m")] == ["m0", "m1", "m2"]


@pytest.mark.usefixtures("small_portions")
def test_a_resumed_owner_gets_the_other_portions(online: MakeLink, server: LocalServer, owner: Owner) -> None:
    link = online(server, timing=NO_PINGS)
    wait_pong(owner)
    owner.takes = False
    in_one_read(server, 8)
    for last in ("m2", "m5", "m7"):
        owner.wait_message(last)
        eventually(lambda: link._full_since is not None)
        link.resume()
    server.wait_for(lambda: "m7" in server.live()[0].acks)
    assert [one for one in owner.ids if str(one).startswith("m")] == [f"m{number}" for number in range(8)]


@pytest.mark.usefixtures("small_portions")
def test_t3_the_reader_that_relieves_takes_the_other_portions(
    online: MakeLink, server: LocalServer, owner: Owner, lent: Lent
) -> None:
    link = online(server, timing=NO_PINGS)
    wait_pong(owner)
    in_one_read(server, 8)
    lent.gate.wait_arrived()
    assert owner.ids[-1] == "m2"
    assert link.relieve() is True
    owner.wait_message("m7")
    server.wait_for(lambda: "m7" in server.live()[0].acks)
    lent.gate.open()
    eventually(lambda: len(alive(link)) == 1)
    assert [one for one in owner.ids if str(one).startswith("m")] == [f"m{number}" for number in range(8)]


@pytest.mark.usefixtures("small_portions")
def test_i36_a_close_behind_the_last_portion_comes_after_it(
    online: MakeLink, server: LocalServer, owner: Owner
) -> None:
    online(server, timing=NO_PINGS)
    wait_pong(owner)
    in_one_read(server, 8, close_frame(1001))
    assert owner.wait_ended().code == 1001
    assert [report["id"] for report in owner.reports[-9:-1]] == [f"m{number}" for number in range(8)]
