"""D18: frames as no friendly server sends them. (Bad messages in good frames are with I6, I7 and I8.)"""

from __future__ import annotations

import json
import ssl
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import ConnectionPool
from llm_sessions.testing.proxy import FaultProxy
from llm_sessions.testing.server import LocalServer
from tests.peers import Peer, frame
from tests.support import Recorder, eventually

MakePool = Callable[..., ConnectionPool]

TEXT, CONTINUATION, PING, FINAL = 0x01, 0x00, 0x09, 0x80


def message(identity: str, text: str) -> bytes:
    data = {"eventType": "relay.event", "text": text}
    return json.dumps({"id": identity, "data": data}, ensure_ascii=False).encode()


def fragment(payload: bytes, opcode: int, *, final: bool = False) -> bytes:
    assert len(payload) < 126
    return bytes((opcode | (FINAL if final else 0), len(payload))) + payload


# -- split anywhere ------------------------------------------------------------------------------------------


def test_d18_frames_split_at_every_byte(server: LocalServer, pool: ConnectionPool) -> None:
    """Each byte comes alone and a moment after the last one; under TLS each byte of ciphertext does."""
    whole = message("fragments", "grün € 🐟")
    middle = whole.index("€".encode()) + 1  # in the middle of a character
    stream = b"".join(
        [
            frame(message("short", "a")),
            frame(b"hello", PING),
            fragment(whole[:9], TEXT),
            frame(b"", PING),
            fragment(b"", CONTINUATION),
            fragment(whole[9:middle], CONTINUATION),
            fragment(whole[middle:], CONTINUATION, final=True),
            frame(message("medium", "m" * 100)),  # a length of 16 bits
        ]
    )
    long = frame(message("long", "l" * 70_000))  # a length of 64 bits
    ids = ["short", "fragments", "medium", "long"]
    with FaultProxy(server) as proxy:
        recorder = Recorder().listen(pool, "event:relay.event", "offline", "ping-pong-latency")
        pool.connect(proxy.url(server.url()))
        [connection], [through] = server.wait_live(), proxy.live()
        recorder.wait("ping-pong-latency")  # nothing else is on its way
        proxy.drip(1, 0.001, direction="to_client")
        connection.send_raw(stream, ids=ids)
        recorder.wait("event:relay.event", 3)
        before = through.bytes_to_client
        connection.send_raw(long[:10], ids=ids)
        eventually(lambda: through.bytes_to_client >= before + 10)
        proxy.heal()
        connection.send_raw(long[10:])
        envelopes = recorder.wait("event:relay.event", 4)
        good = server.publish({"n": 1})
        assert recorder.wait("event:relay.event", 5)[-1].id == good["id"]
        assert [envelope.id for envelope in envelopes] == ids
        assert [envelope.data["text"] for envelope in envelopes] == [
            "a",
            "grün € 🐟",
            "m" * 100,
            "l" * 70_000,
        ]
        server.wait_for(lambda: {*ids, good["id"]} <= set(connection.acks))
        assert recorder.payloads("offline") == []
        assert len(server.connections()) == 1
        pool.close()


# -- far too much --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "announced", [1 << 40, (1 << 63) - 1, (1 << 64) - 1], ids=["1 TiB", "63 bits", "64 bits"]
)
def test_d18_t13_a_length_bomb_costs_its_socket_and_no_memory(
    make_pool: MakePool, tls: bool, server_context: ssl.SSLContext, announced: int
) -> None:
    flood = memoryview(bytes(64 << 20))

    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        if len(peer.requests) == 1:
            sock.sendall(b"\x81\x7f" + announced.to_bytes(8, "big"))
            for at in range(0, len(flood), 1 << 16):
                sock.sendall(flood[at : at + (1 << 16)])
        sock.sendall(frame(message("good", "after it")))
        peer.hold()

    pool = make_pool()
    recorder = Recorder().listen(pool, "online", "offline", "event:relay.event")
    tracemalloc.start()
    try:
        with Peer(script, server_context if tls else None) as peer:
            pool.connect(f"{'wss' if tls else 'ws'}://127.0.0.1:{peer.port}/x")
            recorder.wait("online", 2)
            [envelope] = recorder.wait("event:relay.event")
            pool.close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert envelope.id == "good"
    assert recorder.names[:4] == ["online", "offline", "online", "event:relay.event"]
    offline = recorder.payloads("offline")[0]
    assert offline.code == 1006 and offline.reason.startswith("protocol error")
    assert len(peer.requests) == 2
    assert peak < 8 << 20  # of the 64 MiB that were offered


def test_d18_100_000_continuation_frames_are_one_message(server: LocalServer, pool: ConnectionPool) -> None:
    """12 MB: a moment if each fragment costs its own bytes, minutes if it costs all that came before."""
    count, size = 100_000, 120
    whole = message("fragments", "x" * (count * size))
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    stream = fragment(pieces[0], TEXT) + b"".join(fragment(piece, CONTINUATION) for piece in pieces[1:])
    recorder = Recorder().listen(pool, "event:relay.event", "offline")
    pool.connect(server.url())
    [connection] = server.wait_live()
    connection.send_raw(stream + fragment(b"", CONTINUATION, final=True), ids=["fragments"])
    good = server.publish({"n": 1})
    envelopes = recorder.wait("event:relay.event", 2)
    assert [envelope.id for envelope in envelopes] == ["fragments", good["id"]]
    assert len(envelopes[0].data["text"]) == count * size
    server.wait_for(lambda: {"fragments", good["id"]} <= set(connection.acks))
    assert recorder.payloads("offline") == []
    assert len(server.connections()) == 1
