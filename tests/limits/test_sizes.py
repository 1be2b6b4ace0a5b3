"""Sizes and counts at their edge: what just fits does, and one more does not."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from llm_sessions import ConfigurationError, ConnectionPool, PoolConfig, Target
from llm_sessions._sync import Deadline
from llm_sessions.connection import connection as connection_module
from llm_sessions.connection import head as head_module
from llm_sessions.connection.connection import Connection
from llm_sessions.connection.stream_errors import StreamClosed
from llm_sessions.connection.transport import AttemptFailed
from llm_sessions.connection.upgrade import upgrade
from llm_sessions.pool import reports
from llm_sessions.pool.listeners import _MAX_ROUTES, Listener, ListenerTable
from llm_sessions.pool.sources import check_target
from llm_sessions.protocol.mercury import MercuryProtocol, Timing
from llm_sessions.protocol.url import Address
from llm_sessions.testing.server import LocalServer
from tests.limits.support import WatchedClock
from tests.peers import READY, Links, Owner, frame, upgraded
from tests.pool.support import URL, machine_of, switching
from tests.support import LONG, FakeTransport, Gate, Recorder, eventually

Make = Callable[..., tuple[ConnectionPool, FakeTransport]]
MakePool = Callable[..., ConnectionPool]


# -- PoolConfig itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("ping_interval", "pong_timeout", "backoff_max", "wait_timeout", "open_timeout"),
        *("send_timeout", "force_close_delay", "retire_timeout"),
    ],
)
def test_limit_seconds_are_ten_million_at_most(name: str) -> None:
    assert getattr(PoolConfig(**{name: 10**7}), name) == 10**7
    with pytest.raises(ConfigurationError) as caught:
        PoolConfig(**{name: 10**7 + 1})
    assert caught.value.argument == name


def test_limit_counts_begin_at_one_and_retries_at_none_at_all() -> None:
    config = PoolConfig(queue_size=1, max_message_bytes=1, max_retries=0, initial_max_retries=0)
    assert (config.queue_size, config.max_message_bytes) == (1, 1)
    for name, value in (("queue_size", 0), ("max_message_bytes", 0), ("max_retries", -1)):
        with pytest.raises(ConfigurationError):
            PoolConfig(**{name: value})  # type: ignore[arg-type]


# -- messages ------------------------------------------------------------------------------------------------


def message(identity: str, size: int) -> bytes:
    """Return an event of exactly so many bytes."""
    text = json.dumps({"id": identity, "data": {"eventType": "relay.event", "pad": ""}})
    return text.replace('"pad": ""', '"pad": "' + "x" * (size - len(text)) + '"').encode()


def in_two_fragments(payload: bytes) -> bytes:
    """Return frames of a message; their headers take six bytes."""
    head, tail = payload[:100], payload[100:]
    assert 125 < len(tail) < 65536
    return bytes([0x01, len(head)]) + head + bytes([0x80, 126]) + len(tail).to_bytes(2, "big") + tail


def test_limit_max_message_bytes_is_what_arrives_and_one_more_is_dropped(
    server: LocalServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "llm_sessions.pool")
    pool = make_pool(max_message_bytes=1000)
    recorder = Recorder().listen(pool, "event:relay.event")
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    connection.send_text(message("at the limit", 1000))
    connection.send_text(message("over it", 1001))
    connection.send_raw(
        in_two_fragments(message("fragments at the limit", 994)), ids=["fragments at the limit"]
    )
    connection.send_raw(in_two_fragments(message("fragments over it", 995)))
    connection.send_text(message("four times the limit", 4000))
    connection.send_text(message("after", 1000))
    recorder.wait("event:relay.event", 3)
    arrived = [envelope.id for envelope in recorder.payloads("event:relay.event")]
    assert arrived == ["at the limit", "fragments at the limit", "after"]
    assert session.stats().unusable == 3
    dropped = [text for text in caplog.messages if "dropped a message" in text]
    assert [text.partition("a message of ")[2] for text in dropped] == [
        f"{size} bytes is over the limit" for size in (1001, 1001, 4000)
    ]
    assert session.online and len(server.connections()) == 1


@pytest.mark.parametrize("opcode", [0x81, 0x82], ids=["text", "binary"])
def test_limit_max_message_bytes_four_times_over_ends_the_socket_at_the_header(
    server: LocalServer, make_pool: MakePool, opcode: int
) -> None:
    pool = make_pool(max_message_bytes=1000)
    recorder = Recorder().listen(pool, "offline.transient")
    pool.connect(server.url())
    [connection] = server.wait_live()
    connection.send_raw(bytes([opcode, 126]) + (4001).to_bytes(2, "big"))  # and nothing of the payload
    [offline] = recorder.wait("offline.transient")
    assert offline.code == 1006 and "4000 bytes" in offline.reason
    server.wait_for(lambda: connection.close_code == 1009)


@pytest.mark.parametrize("when_full", ["block", "drop_oldest"])
@pytest.mark.parametrize("beyond", [0, 1])
def test_limit_queue_size_messages_wait_and_one_more_does_not(
    make: Make, when_full: str, beyond: int
) -> None:
    pool, transport = make(queue_size=1000, when_full=when_full)
    session, gate, got = pool.connect(URL), Gate(), []

    def stop_at_the_first(envelope: Any) -> None:
        got.append(envelope.id)
        if envelope.id == 0:
            gate.pass_through()

    session.on("event", stop_at_the_first)
    (link,) = transport.links
    assert link.owner.link_received(link, [{"id": 0}])
    gate.wait_arrived()
    # What the callback has in its hands counts where it holds up the reader; it cannot be dropped any more.
    fits = 999 if when_full == "block" else 1000
    assert link.owner.link_received(link, [{"id": number} for number in range(1, fits + 1)]) is True
    if beyond:
        room = link.owner.link_received(link, [{"id": fits + 1}])
        assert room is (when_full == "drop_oldest")
    dropped = machine_of(session).dispatcher.dropped
    gate.open()
    eventually(lambda: got[-1] == fits + beyond)
    lost = beyond if when_full == "drop_oldest" else 0
    assert dropped == lost and link.resumed == beyond - lost
    assert got == [0, *range(1 + lost, fits + beyond + 1)]


# -- the upgrade's answer ------------------------------------------------------------------------------------


class Answer:
    """A stream whose peer answers the opening handshake in pieces that end where the test says."""

    def __init__(self, head_bytes: int, cuts: list[int]) -> None:
        self._head_bytes, self._cuts = head_bytes, cuts
        self._pieces: list[bytes] = []

    def send(self, data: bytes, deadline: Deadline) -> None:
        head = upgraded(data)[:-4]
        head += b"\r\nX: " + b"x" * (self._head_bytes - len(head) - 5)
        assert len(head) == self._head_bytes
        answer = head + b"\r\n\r\nglued"
        edges = [0, *self._cuts, len(answer)]
        self._pieces = [answer[start:end] for start, end in pairwise(edges)]

    def read_within(self, deadline: Deadline) -> bytes:
        return self._pieces.pop(0)

    def abort(self) -> None: ...


KIB_64 = 64 * 1024


@pytest.mark.parametrize(
    "cuts",
    [
        *([], [1000], [KIB_64 - 1], [KIB_64]),
        *([KIB_64 + 1], [KIB_64 + 2], [KIB_64 + 3], [KIB_64 + 4]),
        [KIB_64, KIB_64 + 1, KIB_64 + 2, KIB_64 + 3],
    ],
    ids=str,
)
def test_limit_upgrade_head_is_64_kib_wherever_it_is_cut(cuts: list[int]) -> None:
    """What counts are the lines of the head, without the empty one at its end."""
    assert head_module._MAX_HEAD == KIB_64

    def answer(head_bytes: int) -> bytes:
        stream: Any = Answer(head_bytes, cuts)
        return upgrade(stream, "ws://localhost/", Address("localhost", 80, False), {}, Deadline(LONG))

    glued = answer(KIB_64)
    assert b"glued".startswith(glued)  # the rest of it is still to be read
    assert answer(KIB_64 - 1) is not None
    with pytest.raises(AttemptFailed, match="header is longer than 65536 bytes"):
        answer(KIB_64 + 1)


# -- hosts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "host", "may"),
    [
        ("example.org", "example.org", True),
        ("example.org", "a.example.org", False),
        ("example.org", "notexample.org", False),
        ("example.org", "example.org.evil.test", False),
        ("example.org", "example.org.", False),
        ("example.org", "exampleXorg", False),
        ("*.example.org", "a.example.org", True),
        ("*.example.org", "a.b.example.org", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "notexample.org", False),
        ("*.example.org", "a.example.org.evil.test", False),
        ("*.example.org", "a.exampleXorg", False),
        ("*.example.org", "a.example.orgs", False),
        ("*.example.org", ".example.org", False),
        ("::1", "[::1]", True),
        ("::1", "[::2]", False),
        # A star has its meaning at the beginning only, and nothing else has one.
        ("api?.example.org", "apix.example.org", False),
        ("[ab].example.org", "a.example.org", False),
        ("[::1]", "1", False),
    ],
)
def test_limit_allowed_hosts_are_names_and_subdomains(allowed: str, host: str, may: bool) -> None:
    config = PoolConfig(allowed_hosts=["other.test", allowed])
    target = Target(f"wss://{host}/example.org?x=.example.org")
    if may:
        assert check_target(target, config).host == host.strip("[]")
    else:
        with pytest.raises(ConfigurationError, match="allowed_hosts"):
            check_target(target, config)


def test_limit_allowed_hosts_none_is_any_and_empty_is_no_host() -> None:
    target = Target("wss://example.org/")
    assert check_target(target, PoolConfig(allowed_hosts=None)).host == "example.org"
    with pytest.raises(ConfigurationError, match="allowed_hosts"):
        check_target(target, PoolConfig(allowed_hosts=[]))


# -- what is remembered --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "again"), [(10_000, False), (10_001, True)])
def test_limit_remembered_ids_of_a_switchover_are_ten_thousand(make: Make, count: int, again: bool) -> None:
    assert reports._MAX_REMEMBERED == 10_000
    _, transport, _, recorder = switching(make, queue_size=10**6)
    old, new = transport.links
    old.owner.link_received(old, [{"id": str(number)} for number in range(count)])
    new.owner.link_received(new, [{"id": "1"}, {"id": "0"}, {"id": "last"}])
    eventually(lambda: recorder.payloads("event") and recorder.payloads("event")[-1].id == "last")
    brought = [envelope.id for envelope in recorder.payloads("event")][count:]
    assert brought == (["0", "last"] if again else ["last"])


@pytest.mark.parametrize(("types", "looked_up"), [(1024, 1), (1025, 2)])
def test_limit_remembered_routes_are_1024(types: int, looked_up: int) -> None:
    assert _MAX_ROUTES == 1024
    table, asked = ListenerTable(), []
    table.add("event:x.0", print)
    named = table.named

    def counted(name: str) -> tuple[Listener, ...]:
        asked.append(name)
        return named(name)

    table.named = counted  # type: ignore[method-assign]
    first = [table.route(f"x.{number}") for number in range(types)]
    assert table.route("x.0") == first[0] and [entry[0] for entry in first[0]] == ["event:x.0"]
    assert not any(first[1:])
    assert asked.count("event:x.0") == looked_up


# -- what one socket may hold up -----------------------------------------------------------------------------


def test_limit_own_unsent_bytes_are_256_kib(links: Links, owner: Owner) -> None:
    link = links.make(1, owner, tls=False)
    outbox = link._stream._outbox
    outbox.own_unsent = 256 * 1024
    assert link._stuck(5.0) is False and link._stuck_since is None
    outbox.own_unsent += 1
    assert link._stuck(5.0) is True and link._stuck_since == 5.0
    assert link._stuck(6.0) is True and link._stuck_since == 5.0
    outbox.own_unsent -= 1
    assert link._stuck(7.0) is False and link._stuck_since is None


class Script:
    """A stream of which one read after the other brings what the test says; then the peer closes."""

    own_unsent = 0

    def __init__(self, *reads: bytes) -> None:
        self._reads = list(reads)

    def wait(self, timeout: float | None, *, reading: bool) -> bool:
        return True

    def read(self) -> bytes:
        if not self._reads:
            raise StreamClosed
        return self._reads.pop(0)

    def post(self, data: bytes, *, own: bool = False, last: bool = False) -> bool:
        return True


@pytest.mark.parametrize(("beyond", "given_up"), [(0, False), (1, True)])
def test_limit_overdue_bytes_are_8_mib(
    links: Links, owner: Owner, clock: WatchedClock, beyond: int, given_up: bool
) -> None:
    """Past a deadline so much is read, for the pong may be behind it; and then no more."""
    assert connection_module._MAX_OVERDUE_BYTES == 8 << 20
    link = links.make(1, owner, tls=False, clock=clock)
    protocol = make_ready(link)
    clock.set(14)
    header = 10
    junk = frame(b" " * ((8 << 20) - header + beyond))
    assert len(junk) == (8 << 20) + beyond
    script: Any = Script(junk, frame({"type": "pong", "id": "the ping"}))
    link._stream, stream = script, link._stream
    try:
        with pytest.raises(StreamClosed):
            link._read_until_over(protocol)
    finally:
        link._stream = stream
    assert protocol.closing is given_up


def make_ready(link: Connection) -> MercuryProtocol:
    """Return a conversation that sent its ping at 0 and has until 14 for the pong."""
    protocol = MercuryProtocol(
        "Bearer token", encoder=link._encoder, new_id=lambda: "the ping", timing=Timing(pong_timeout=14)
    )
    protocol.start()
    protocol.receive([json.dumps(READY).encode()], 0.0, 0.0)
    assert protocol.ready and protocol.next_deadline() == 14
    return protocol
