"""D1, D2, D7, D8, D17, lookups of D25, and what of I98, T5, T15 needs real sockets: losses, restarts, Ctrl-C.

D16, the table of close codes, is with I29, I30 and I42 in `test_reconnect.py`.
"""

from __future__ import annotations

import collections
import itertools
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import (
    ConnectError,
    ConnectionLost,
    ConnectionPool,
    Endpoint,
    Offline,
    SessionState,
    Target,
)
from llm_sessions.pool.attempt import Attempt
from llm_sessions.testing.server import LocalServer, ServerConnection
from tests.peers import Peer, frame, read_frame
from tests.support import LONG, Background, Recorder, ctrl_c, eventually, library_threads, waiting_for

MakePool = Callable[..., ConnectionPool]
SHUTDOWN = "event:mercury_shutdown"
STATES = ("online", "offline", "offline.transient", "offline.permanent", "offline.replaced", "disconnected")


def threads(kind: str) -> int:
    return sum(thread.name.startswith(f"llm-{kind}[") for thread in library_threads())


def own_threads() -> int:
    """Return how many threads the library has, without those of servers."""
    return sum(not thread.name.startswith("llm-server") for thread in library_threads())


# -- D1: the server or the network ends a connection ---------------------------------------------------------

ENDS: dict[str, tuple[Callable[[ServerConnection], object], int, str]] = {
    "1000 idle": (lambda connection: connection.close(1000, "Idle"), 1000, "Idle"),
    "1001": (lambda connection: connection.close(1001), 1001, ""),
    "FIN": (lambda connection: connection.close(1006), 1006, ""),
    "RST": (lambda connection: connection.drop(), 1006, ""),
}


@pytest.mark.parametrize("how", ENDS)
def test_d1_a_connection_that_ends_is_reconnected_once(
    server: LocalServer, pool: ConnectionPool, how: str
) -> None:
    end, code, reason = ENDS[how]
    recorder = Recorder().listen(pool, *STATES, "connection_failed", "event:relay.event")
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    server.publish(id="before")
    server.wait_for(lambda: "before" in connection.acks)
    end(connection)
    recorder.wait("online", 2)
    server.wait_live()
    server.publish(id="after")
    recorder.wait("event:relay.event", 2)
    assert recorder.names == [
        "online",
        "event:relay.event",
        "offline",
        "offline.transient",
        "online",
        "event:relay.event",
    ]
    assert [envelope.id for envelope in recorder.payloads("event:relay.event")] == ["before", "after"]
    assert recorder.payloads("offline.transient") == [Offline(session.id, code, reason)]
    eventually(lambda: (threads("reader"), threads("connector")) == (1, 0))
    assert (session.stats().reconnects, session.stats().attempts) == (1, 2)
    assert len(server.connections()) == 2


# -- D2: a dead peer whose TCP and WebSocket are alive -------------------------------------------------------


def answer_pings(sock: Any) -> Iterator[int]:
    """Answer JSON pings until the client closes; yield after each."""
    opcode, count = 1, 0
    while opcode != 8:
        opcode, payload = read_frame(sock)
        message = json.loads(payload) if opcode == 1 else {}
        if message.get("type") == "ping":
            sock.sendall(frame({"type": "pong", "id": message["id"]}))
            count += 1
            yield count


def test_d2_a_peer_that_answers_no_json_ping_is_found_out(
    tls: bool, server_context: ssl.SSLContext, make_pool: MakePool
) -> None:
    interval, timeout = 0.1, 0.3
    seen: dict[str, Any] = {"pongs": 0}
    pause = threading.Event()

    def dead(sock: Any) -> None:
        """Answer one JSON ping; then send WebSocket pings, and take what comes."""
        next(answer_pings(sock))
        seen["alive"] = time.monotonic()
        while True:
            sock.sendall(frame(b"are you there", 9))
            opcode, payload = read_frame(sock)
            if opcode == 8:
                seen["gone"] = time.monotonic()
                seen["close"] = payload
                return
            seen["pongs"] += opcode == 10
            pause.wait(0.005)

    def script(peer: Peer, sock: Any) -> None:
        peer.upgrade(sock)
        assert json.loads(read_frame(sock)[1])["type"] == "authorization"
        sock.sendall(frame({"data": {"eventType": "mercury.buffer_state"}}))
        if "alive" not in seen:
            dead(sock)
        else:
            for _ in answer_pings(sock):
                pass

    with Peer(script, server_context if tls else None) as peer:
        pool = make_pool(ping_interval=interval, pong_timeout=timeout)
        recorder = Recorder().listen(pool, *STATES)
        session = pool.connect(f"{'wss' if tls else 'ws'}://localhost:{peer.port}/")
        recorder.wait("online", 2)
        assert recorder.payloads("offline.transient") == [Offline(session.id, 1000, "Pong not received")]
        assert recorder.names == ["online", "offline", "offline.transient", "online"]
        pool.close()
    assert seen["close"] == (1000).to_bytes(2, "big") + b"Pong not received"
    assert seen["pongs"] > 3, "the WebSocket was not alive"
    assert seen["gone"] - seen["alive"] < 10 * (interval + timeout)


# -- D7: a URL that is no good any more ----------------------------------------------------------------------


class Registration(Endpoint):
    """Registers again whenever it is told that its URL is no good."""

    def __init__(self, *urls: str) -> None:
        self.urls = list(urls)
        self.told: list[Exception] = []
        self.registrations = 1

    def resolve(self, attempt: Any) -> Target:
        return Target(self.urls[0])

    def rejected(self, target: Target, error: Exception) -> None:
        self.told.append(error)
        self.registrations += 1
        if len(self.urls) > 1:
            del self.urls[0]


@pytest.mark.parametrize("once", ["never online", "was online"])
def test_d7_a_stale_url_is_registered_again(server: LocalServer, pool: ConnectionPool, once: str) -> None:
    urls = [server.url("stale"), server.url("fresh")]
    endpoint = Registration(*urls)
    recorder = Recorder().listen(pool, "online")
    if once == "was online":
        pool.connect(endpoint)
        server.wait_live("stale")
    server.reject(404, session="stale", times=99)
    server.drop()
    session = pool.connect(endpoint) if once == "never online" else pool.session()
    recorder.wait("online", 1 + (once == "was online"))
    assert server.wait_live("fresh") and session.url == urls[1]
    [error] = endpoint.told
    assert isinstance(error, ConnectError) and error.status == 404
    assert endpoint.registrations == 2


def test_d7_a_url_that_stays_stale_is_registered_once_an_attempt_and_not_without_end(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool(initial_max_retries=3, backoff_initial=0.02, backoff_max=0.04)
    endpoint = Registration(server.url("stale"))
    server.reject(404, session="stale", times=99)
    with pytest.raises(ConnectError) as caught:
        pool.connect(endpoint)
    assert (caught.value.status, caught.value.attempts) == (404, 4)
    assert len(endpoint.told) == len(server.connections()) == 4
    accepted = [connection.accepted_at for connection in server.connections()]
    for (earlier, later), wait in zip(itertools.pairwise(accepted), (0.02, 0.04, 0.04), strict=True):
        assert later - earlier >= wait * 0.9


def test_d7_t15_of_sockets_that_close_right_after_ready_every_third_tells_the_endpoint(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool(backoff_initial=0.001, backoff_max=0.002)
    pool._env.clock = lambda: 0.0  # no socket lives for a second, however slow this machine is
    endpoint = Registration(server.url())
    recorder = Recorder().listen(pool, "online", "offline.transient")

    @server.on_message
    def close(connection: ServerConnection, message: dict[str, Any]) -> None:
        if message.get("type") == "authorization" and connection.number <= 8:
            connection.close(1001)

    pool.connect(endpoint)
    recorder.wait("online", 9)
    assert len(recorder.payloads("offline.transient")) == 8
    assert [type(error) for error in endpoint.told] == [ConnectionLost] * 2
    assert len(server.connections()) == 9


# -- D8: everybody comes back --------------------------------------------------------------------------------


def test_d8_t15_200_sessions_come_back_spread_out_after_a_restart(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: dict[str, list[float]] = collections.defaultdict(list)
    wait_cancelled = Attempt.wait_cancelled

    def noted(self: Attempt, seconds: float) -> bool:
        waits[self.session_id].append(seconds)
        return wait_cancelled(self, seconds)

    names = [f"s{number}" for number in range(200)]
    pool = make_pool(jitter=True, backoff_initial=1.0, backoff_max=2.0)
    with LocalServer() as first:
        calls = [Background(lambda name=name: pool.connect(first.url(name), name)) for name in names]  # type: ignore[misc]
        assert all(call.result().online for call in calls)
        eventually(lambda: threads("connector") == 0)
        assert own_threads() == threads("reader") == 200
        monkeypatch.setattr(Attempt, "wait_cancelled", noted)
        port = first.port
    with LocalServer(port=port) as second:
        second.wait_live(count=200, timeout=LONG)
        for name in names:
            pool.wait_online(name, timeout=LONG)
        eventually(lambda: threads("connector") == 0)
        assert own_threads() == threads("reader") == 200
        assert {connection.session for connection in second.live()} == set(names)
        assert len(second.connections()) <= 200 + 10, "it was stormed"
        assert second.violations == []
        firsts = [of_one[0] for of_one in waits.values()]
        assert len(firsts) == 200
        # 200 draws from a second. None of these fails by chance before this test was run a billion times.
        assert min(firsts) < 0.15 and max(firsts) > 0.85
        tenths = collections.Counter(int(wait * 10) for wait in firsts)
        assert max(tenths.values()) <= 65, tenths
        pool.close()


# -- D17, I98: make before break -----------------------------------------------------------------------------


def numbered(number: int) -> dict[str, Any]:
    return {"id": f"n-{number}", "data": {"eventType": "relay.event", "number": number}}


def test_d17_i99_a_switchover_loses_and_repeats_no_number(server: LocalServer, pool: ConnectionPool) -> None:
    """As a real server does it: on the old socket, on both, on the new one; each socket counts for itself."""
    recorder = Recorder().listen(pool, *STATES, "sequence-mismatch", f"{SHUTDOWN}_switchover_complete")
    heard = Recorder().listen(pool, "event:relay.event")
    session = pool.connect(server.url())
    [old] = server.wait_live()
    server.withhold_ready()
    numbers = itertools.count()

    def publish(count: int, *sockets: ServerConnection) -> None:
        for number in itertools.islice(numbers, count):
            for one in sockets:
                one.send_numbered(numbered(number))

    publish(100, old)
    old.send_json({"type": "shutdown"})
    publish(100, old)
    server.wait_for(lambda: len(server.connections()) == 2 and server.connections()[1].authorized)
    new = server.connections()[1]
    publish(100, old)
    assert session.state is SessionState.SWITCHING and recorder.names == ["online"]
    server.release_ready()
    server.wait_for(lambda: new.ready)
    publish(100, old, new)
    recorder.wait(f"{SHUTDOWN}_switchover_complete")
    assert old.live, "the old one was let go of too early"
    publish(100, old, new)
    publish(1, old)
    old.close(4001)
    publish(100, new)
    recorder.wait("offline.replaced")
    total = next(numbers)
    heard.wait("event:relay.event", total)
    found = [envelope.data.get("number") for envelope in heard.payloads("event:relay.event")]
    assert sorted(found) == list(range(total)), "lost or repeated"
    assert recorder.names == ["online", f"{SHUTDOWN}_switchover_complete", "offline.replaced"]
    stats = session.stats()
    assert (stats.repeated, stats.sequence_gaps, stats.switchovers) == (200, 0, 1)
    session.send({"type": "still here"})
    server.wait_for(lambda: {"type": "still here"} in new.received)


def test_d17_i22_a_switchover_that_fails_costs_no_message(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(max_retries=2)
    recorder = Recorder().listen(pool, *STATES, "event:relay.event", f"{SHUTDOWN}_switchover_failed")
    session = pool.connect(server.url())
    [old] = server.wait_live()
    server.reject(4410, times=3)
    for number in range(300):
        if number == 100:
            old.send_json({"type": "shutdown"})
        if number == 200:
            recorder.wait(f"{SHUTDOWN}_switchover_failed")
        old.send_numbered(numbered(number))
    recorder.wait("event:relay.event", 300)
    numbers = [envelope.data.get("number") for envelope in recorder.payloads("event:relay.event")]
    assert numbers == list(range(300)) and session.online
    assert [name for name in recorder.names if name in STATES] == ["online"]
    assert len(server.connections()) == 4


KEPT, LOST, ENDED, REPLACED = "kept", "lost", "ended", "replaced"
OLD_CLOSES = [
    (4001, "", KEPT),
    (1006, "", LOST),
    (1001, "", LOST),
    (1000, "Idle", LOST),
    (4000, "other", LOST),
    (4401, "", LOST),
    (1000, "", ENDED),
    (1003, "", ENDED),
    (3050, "done (permanent)", ENDED),
    (4403, "", ENDED),
    (4000, "Replaced", REPLACED),
]


@pytest.mark.parametrize("stage", ["before the upgrade", "before ready"])
@pytest.mark.parametrize(("code", "reason", "meaning"), OLD_CLOSES)
def test_i98_d17_the_old_socket_closes_before_the_candidate_is_ready(
    server: LocalServer, pool: ConnectionPool, stage: str, code: int, reason: str, meaning: str
) -> None:
    recorder = Recorder().listen(pool, *STATES, f"{SHUTDOWN}_switchover_complete")
    session = pool.connect(server.url())
    [old] = server.wait_live()
    if stage == "before the upgrade":
        server.hold_upgrades()
    else:
        server.withhold_ready()
    old.send_json({"type": "shutdown"})
    server.wait_for(lambda: len(server.connections()) == 2)
    candidate = server.connections()[1]
    server.wait_for(lambda: bool(candidate.path) if stage == "before the upgrade" else candidate.authorized)
    old.close(code, reason)
    server.wait_for(lambda: old.closed_at is not None)
    after = {
        KEPT: [f"{SHUTDOWN}_switchover_complete", "offline.replaced"],
        LOST: ["offline", "offline.transient", "online"],
        ENDED: ["offline", "offline.permanent"],
        REPLACED: ["offline", "offline.replaced"],
    }[meaning]
    if meaning == KEPT:
        eventually(lambda: pool._get(session.id)[1]._kept_close is not None)
        assert session.state is SessionState.SWITCHING and recorder.names == ["online"]
    else:
        recorder.wait(after[1])
    server.release_upgrades()
    server.release_ready()
    for event in after[2:] or after:
        recorder.wait(event, 2 if event == "online" else 1)
    if meaning in (KEPT, LOST):
        assert session.wait_online() is session
        assert server.wait_live() == [candidate]
    else:
        server.wait_for(lambda: candidate.closed_at is not None)
        eventually(lambda: threads("reader") + threads("connector") == 0)
        assert session.state is SessionState.OFFLINE
    assert recorder.names == ["online", *after]
    assert len(server.connections()) == 2


# -- T5: Ctrl-C in the main thread ---------------------------------------------------------------------------


class Blocking:
    """A blocking call, what ends it, and how many callers wait in it (which nothing public tells).

    Args:
        server: Where it goes.
        pool: Whose it is.
        name: Of the call.
    """

    def __init__(self, server: LocalServer, pool: ConnectionPool, name: str) -> None:
        self.server, self.pool, self.url = server, pool, server.url()
        self.session = pool.session()
        self._machine: Any = pool._get(self.session.id)[1]
        self.waiting: Callable[[], int] = lambda: waiting_for(self._machine._changed)
        self.call, self.finish = getattr(self, name)()

    def online(self) -> None:
        recorder = Recorder().listen(self.session, "event:mercury.buffer_state")
        self.pool.connect(self.url)
        recorder.wait("event:mercury.buffer_state")
        self.server.wait_live()

    def connect(self) -> Any:
        self.waiting = lambda: self._machine._waiters
        self.server.withhold_ready()
        return lambda: self.pool.connect(self.url, timeout=LONG), self.server.release_ready

    def wait_online(self) -> Any:
        return lambda: self.session.wait_online(LONG), self.online

    def wait_closed(self) -> Any:
        self.online()
        return lambda: self.session.wait_closed(LONG), self.pool.disconnect

    def receive(self) -> Any:
        self.waiting = lambda: sum(inbox.takers for inbox in self._machine._delivery._inboxes())
        self.online()
        return lambda: self.session.receive(LONG), self.server.publish

    def messages(self) -> Any:
        _, finish = self.receive()

        def call() -> Any:
            with self.session.messages(LONG) as messages:
                return next(messages)

        return call, finish

    def disconnect(self) -> Any:
        self.online()
        self.server.ignore_close()
        return self.pool.disconnect, lambda: self.server.ignore_close(on=False)

    def disconnect_all(self) -> Any:
        _, finish = self.disconnect()
        return self.pool.disconnect_all, finish

    def close(self) -> Any:
        _, finish = self.disconnect()
        return lambda: self.pool.close(LONG), finish

    def send(self) -> Any:
        self.online()
        stream = self._machine.active._stream
        self.waiting = lambda: len(stream._pollers)
        self.server.stall_reads()
        return lambda: self.session.send({"text": "x" * (16 << 20)}), self.server.resume_reads


CALLS = [
    *("connect", "wait_online", "wait_closed", "receive", "messages"),
    *("disconnect", "disconnect_all", "close", "send"),
]


@pytest.mark.parametrize("name", CALLS)
def test_t5_ctrl_c_interrupts_every_blocking_call_and_strands_no_other_caller(
    plain_locks: None, server: LocalServer, make_pool: MakePool, name: str
) -> None:
    blocking = Blocking(server, make_pool(force_close_delay=LONG, send_timeout=LONG), name)
    other = Background(blocking.call)
    eventually(lambda: blocking.waiting() == 1, "the other caller does not wait")

    with ctrl_c(lambda: blocking.waiting() == 2, "the main thread does not wait"):
        blocking.call()
    assert not other.done
    blocking.finish()
    if name == "send":  # theirs may be behind half of ours
        other.thread.join(LONG)
        assert other.done
    else:
        other.result()
    server.ignore_close(on=False)


# -- D25: the network ----------------------------------------------------------------------------------------


def test_d25_names_that_cannot_be_looked_up_for_a_while(
    server: LocalServer,
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "llm_sessions")
    pool = make_pool("s3cret-of-the-account")
    session = pool.connect(server.url(access_token="s3cret-of-the-address"))
    heard = Recorder().listen(session, "online")
    real, tried = socket.getaddrinfo, itertools.count(1)

    def resolve(*arguments: Any, **options: Any) -> Any:
        if next(tried) <= 30:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    server.drop()
    heard.wait("online")  # by itself
    assert session.stats().attempts == 32
    told = [one for one in caplog.records if one.levelno >= logging.WARNING and "resolve" in one.getMessage()]
    assert len(told) == 1, "the others are alike"
    assert "s3cret" not in caplog.text
