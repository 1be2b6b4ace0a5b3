"""T13, D18: a server that sends without end, or far more than was asked for, costs no memory to speak of."""

from __future__ import annotations

import contextlib
import gzip
import ssl
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import ConnectError, ConnectionPool, RegistrationError, StaticToken
from llm_sessions.datachannel.rest import RestClient
from tests.datachannel.service import TokenService, http_answer
from tests.peers import Peer, frame, read_request
from tests.support import LONG, Recorder, eventually

MakePool = Callable[..., ConnectionPool]

LIMIT = 1 << 20
"""Bytes that a message may have in these tests."""
OFFERED = 48 << 20
"""Bytes that the peer sends, or would send."""
FLAT = 8 << 20
"""Bytes that all this may cost at its worst: a few times the limit, and a sixth of what is offered."""


@contextlib.contextmanager
def flat() -> Iterator[None]:
    """The block allocates next to nothing, whatever is thrown at it."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < FLAT, f"{peak >> 20} MiB at the worst"


PIECE = bytes(1 << 16)


def fragments() -> Iterator[bytes]:
    """A text message of 48 MiB in pieces, that ends."""
    yield struct.pack("!BBH", 0x01, 126, 60_000) + PIECE[:60_000].replace(b"\0", b" ")
    for _ in range(OFFERED // 60_000):
        yield struct.pack("!BBH", 0x00, 126, 60_000) + PIECE[:60_000].replace(b"\0", b" ")
    yield b"\x80\x00"


def one_frame() -> Iterator[bytes]:
    yield struct.pack("!BBQ", 0x81, 127, OFFERED)
    for _ in range(OFFERED // len(PIECE)):
        yield PIECE


def binary() -> Iterator[bytes]:
    yield struct.pack("!BBQ", 0x82, 127, OFFERED)
    for _ in range(OFFERED // len(PIECE)):
        yield PIECE


def empty_fragments() -> Iterator[bytes]:
    """300 000 of them."""
    yield b"\x01\x00"
    for _ in range(30):
        yield b"\x00\x00" * 10_000
    yield b"\x80\x00"


def pings() -> Iterator[bytes]:
    """As many as fit into the buffers of two sockets, for this peer does not read the pongs."""
    for _ in range(8):
        yield (b"\x89\x7d" + bytes(125)) * 1000


def deep() -> Iterator[bytes]:
    """JSON that is a thousand times as deep as it may be."""
    one = frame(b'{"id":"x","data":' + b"[" * (LIMIT - 100))  # made once: this process is measured, too
    yield from [one] * 40


def no_json() -> Iterator[bytes]:
    one = frame(b"{" * (LIMIT - 100))
    yield from [one] * 40


FLOODS = [fragments, one_frame, binary, empty_fragments, pings, deep, no_json]


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.__name__)
def test_t13_d18_a_flood_of_frames_costs_no_memory(
    make_pool: MakePool, server_context: ssl.SSLContext, tls: bool, flood: Callable[[], Iterator[bytes]]
) -> None:
    """Sent to the end or until the client has ended the socket; either way the next message arrives."""

    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        if len(peer.requests) == 1:
            for piece in flood():
                sock.sendall(piece)
        sock.sendall(frame({"id": "after", "data": {"eventType": "relay.event"}}))
        peer.hold()

    pool = make_pool(max_message_bytes=LIMIT)
    heard = Recorder().listen(pool, "event:relay.event")
    with flat(), Peer(script, server_context if tls else None) as peer:
        pool.connect(f"{'wss' if tls else 'ws'}://127.0.0.1:{peer.port}/x")
        assert [one.id for one in heard.wait("event:relay.event")] == ["after"]
        pool.close()


@pytest.mark.parametrize(
    ("path", "wrong"),
    [("headers", {str(n): "x" for n in range(50_000)}), ("data", {f"k{n}": n for n in range(50_000)})],
    ids=["headers", "data"],
)
def test_t13_an_object_of_many_members_is_taken_as_it_is(
    make_pool: MakePool, path: str, wrong: dict[str, Any]
) -> None:
    """50 000 overrides in `data.headers` within the size limit: each is looked at once."""
    data = {"eventType": "relay.event", **({"headers": wrong} if path == "headers" else wrong)}

    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock, frame({"id": "many", "data": data}), frame({"id": "after", "data": data}))
        peer.hold()

    with Peer(script) as peer:
        pool = make_pool(max_message_bytes=LIMIT)
        heard = Recorder().listen(pool, "event:relay.event")
        pool.connect(f"ws://127.0.0.1:{peer.port}/x")
        assert [one.id for one in heard.wait("event:relay.event", 2)] == ["many", "after"]
        pool.close()


def endless(head: bytes, piece: bytes) -> Callable[[Peer, Any], object]:
    """Send a head and then a piece again and again, until the client has had enough."""

    def script(peer: Peer, sock: Any) -> None:
        sock.sendall(head)
        for _ in range(OFFERED // len(piece)):
            sock.sendall(piece)

    return script


HEAD = b"HTTP/1.1 200 OK\r\n"
LINES = b"X-Header: " + b"x" * 1000 + b"\r\n"
ENDLESS = {
    "headers": (HEAD, LINES * 64),
    "one header": (HEAD + b"X: ", PIECE.replace(b"\0", b"x")),
    "a status line": (b"HTTP/1.1 200 ", PIECE.replace(b"\0", b"x")),
    "no line": (b"", PIECE.replace(b"\0", b"x")),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "a body": (HEAD + b"Content-Length: 1099511627776\r\n\r\n", PIECE.replace(b"\0", b" ")),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"8000\r\n" + b" " * 0x8000 + b"\r\n"),
    "a chunk of 1 TiB": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n10000000000\r\n",
        PIECE.replace(b"\0", b" "),
    ),
}
OF_REST_ALONE = {"interim answers", "a body", "chunks", "a chunk of 1 TiB"}


@pytest.mark.parametrize("kind", sorted(set(ENDLESS) - OF_REST_ALONE))
def test_t13_a_handshake_without_end_costs_no_memory(
    make_pool: MakePool, server_context: ssl.SSLContext, tls: bool, kind: str
) -> None:
    head, piece = ENDLESS[kind]

    def script(peer: Peer, sock: Any) -> None:
        read_request(sock)
        endless(head.replace(b"200 OK", b"101 Switching Protocols"), piece)(peer, sock)

    pool = make_pool(initial_max_retries=0)
    with flat(), Peer(script, server_context if tls else None) as peer:
        with pytest.raises(ConnectError):
            pool.connect(f"{'wss' if tls else 'ws'}://127.0.0.1:{peer.port}/x")
        pool.close()


Ask = Callable[..., object]


@pytest.fixture
def ask(client_context: ssl.SSLContext, server_context: ssl.SSLContext, tls: bool) -> Iterator[Ask]:
    """Ask a service, which gives this answer."""
    with TokenService(server_context if tls else None) as service:

        def asked(answer: Any, timeout: float = LONG, **options: Any) -> object:
            service.answers.append(answer)
            rest = RestClient(StaticToken("token"), ssl_context=client_context, timeout=timeout)
            return rest.call("POST", service.url, **options)

        yield asked


@pytest.mark.parametrize("kind", ENDLESS)
def test_t13_an_answer_over_rest_without_end_costs_no_memory(ask: Ask, kind: str) -> None:
    timeout = 0.5 if kind == "interim answers" else LONG  # those are read until the time is up
    with flat(), pytest.raises((RegistrationError, ConnectError)):
        ask(endless(*ENDLESS[kind]), timeout)


def bomb(layers: int = 1) -> bytes:
    """48 MiB of spaces as some ten KiB; in two layers, as a few hundred bytes."""
    packed = gzip.compress(b" " * OFFERED)
    return packed if layers == 1 else gzip.compress(packed)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", bomb()),
        ("deflate", zlib.compress(b" " * OFFERED)),
        ("gzip, gzip", bomb(2)),
    ],
    ids=["gzip", "deflate", "twice"],
)
def test_t13_a_compressed_bomb_over_rest_costs_no_memory(ask: Ask, encoding: str, body: bytes) -> None:
    with flat(), pytest.raises(RegistrationError, match="which was not asked for"):
        ask(http_answer(200, body, Content_Encoding=encoding), max_bytes=20_000)


def test_t13_nesting_and_many_members_over_rest(ask: Ask) -> None:
    for body in (b'{"a":' * 100_000, b"[" * 500_000):
        with pytest.raises(RegistrationError, match="no JSON object"):
            ask(http_answer(200, body))
    many = {str(number): number for number in range(50_000)}
    assert ask(http_answer(200, many)).body == many


def test_t13_with_drop_oldest_a_flood_of_messages_keeps_queue_size_of_them(make_pool: MakePool) -> None:
    """Listeners that are stuck: what waits for them is bounded by the number of messages."""
    stuck, told, count = threading.Event(), threading.Event(), 20_000

    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        for start in range(0, count, 100):
            sock.sendall(
                b"".join(
                    frame({"data": {"eventType": "relay.event", "n": n, "text": "x" * 1000}})
                    for n in range(start, start + 100)
                )
            )
        peer.hold()

    with Peer(script) as peer:
        pool = make_pool(queue_size=100, when_full="drop_oldest")
        pool.on("event:relay.event", lambda envelope: told.set() or stuck.wait(LONG))
        with flat():
            session = pool.connect(f"ws://127.0.0.1:{peer.port}/x")
            assert told.wait(LONG)
            eventually(lambda: session.stats().messages_in >= count)
        assert session.stats().queue_depth <= 100
        stuck.set()
        pool.close()
