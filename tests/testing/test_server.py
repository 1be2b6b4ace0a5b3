"""LocalServer, driven by websocket-client and by raw sockets, over plain TCP and TLS."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import websocket

from llm_sessions.testing import server_checks as checks
from llm_sessions.testing.server import LocalServer, ServerConnection, ServerTimeout

LONG = 10.0  # seconds; must not expire
SHORT = 0.05  # seconds; expiry is the point
QUERY = {"outboundWireFormat": "text", "bufferStates": "true", "aliasHttpStatus": "true"}


def leftovers() -> tuple[set[str], int]:
    threads = {t.name for t in threading.enumerate() if t.name.startswith("llm-server")}
    return threads, len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    before = leftovers()
    yield
    assert leftovers() == before


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(params=["plain", "tls"])
def make_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., LocalServer]]:
    context = request.getfixturevalue("server_context") if request.param == "tls" else None
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(LocalServer(ssl_context=context, **options))


@pytest.fixture
def server(make_server: Callable[..., LocalServer]) -> LocalServer:
    return make_server()


class Client:
    """websocket-client with the words of the protocol."""

    def __init__(self, server: LocalServer, session: str, context: ssl.SSLContext, **query: str) -> None:
        query = {**QUERY, "clientTimestamp": "1", **query}
        sslopt = {"context": context}
        # Any: the library's annotations miss half of it, and its sock is an Optional.
        self.ws: Any = websocket.create_connection(server.url(session, **query), timeout=LONG, sslopt=sslopt)

    def send(self, **obj: Any) -> None:
        self.ws.send(json.dumps(obj))

    def authorize(self, token: str = "Bearer good") -> None:
        self.send(id=str(uuid.uuid4()), type="authorization", data={"token": token}, trackingId="t_1")

    def receive(self) -> dict[str, Any]:
        obj = json.loads(self.ws.recv())
        assert isinstance(obj, dict)
        return obj

    def ack(self, obj: dict[str, Any]) -> dict[str, Any]:
        self.send(type="ack", messageId=obj["id"])
        return obj

    def receive_close(self) -> tuple[int, str]:
        """Read up to the close frame without answering it."""
        while True:
            frame = self.ws.recv_frame()  # not recv(), which would answer a close
            if frame.opcode == websocket.ABNF.OPCODE_CLOSE:
                data = frame.data
                return (struct.unpack("!H", data[:2])[0], data[2:].decode()) if data else (1005, "")

    def end(self) -> None:
        self.ws.shutdown()


@pytest.fixture
def connect(server: LocalServer, client_context: ssl.SSLContext) -> Iterator[Callable[..., Client]]:
    """Make clients; unless told otherwise authorized and with the ready event acked."""
    with contextlib.ExitStack() as stack:

        def make(
            session: str = "a", *, ready: bool = True, to: LocalServer | None = None, **query: str
        ) -> Client:
            client = Client(to or server, session, client_context, **query)
            stack.callback(client.end)
            if ready:
                client.authorize()
                client.ack(client.receive())
            return client

        yield make


def only(server: LocalServer, session: str | None = None) -> ServerConnection:
    (connection,) = server.connections(session)
    return connection


def wait_ended(server: LocalServer, connection: ServerConnection) -> None:
    server.wait_for(lambda: connection.closed_at is not None, LONG)


def raw_client(server: LocalServer, path: str = "/a", extra: str = "", query: str = "") -> socket.socket:
    """A plain socket that has sent an upgrade request."""
    sock = socket.create_connection((server.host, server.port), timeout=LONG)
    query = query or "outboundWireFormat=text&bufferStates=true&aliasHttpStatus=true&clientTimestamp=1"
    sock.sendall(
        f"GET {path}?{query} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {'A' * 22}==\r\n{extra}\r\n".encode()
    )
    return sock


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame of less than 126 bytes, under a zero mask."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + b"\0\0\0\0" + payload


def read_until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        chunk = sock.recv(1)
        assert chunk, data
        data += chunk
    return data


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


# --- the conversation


def test_a_good_client_is_recorded_and_has_no_violations(
    server: LocalServer, connect: Callable[..., Client]
) -> None:
    client = connect("a", ready=False, extra="x")
    client.authorize("Bearer secret")
    ready = client.ack(client.receive())
    assert ready["data"] == {"eventType": "mercury.buffer_state"}
    assert isinstance(ready["wsWriteTimestamp"], int)
    client.send(id="p1", type="ping")
    pong = client.ack(client.receive())
    assert (pong["type"], pong["id"]) == ("pong", "p1")
    (connection,) = server.wait_live("a")
    server.wait_for(lambda: connection.acks == [ready["id"], "p1"])
    assert (connection.session, connection.path, connection.number) == ("a", "/a", 1)
    assert connection.query["extra"] == ["x"] and connection.token == "secret"
    assert ("upgrade", "websocket") in connection.request_headers
    assert connection.authorization == connection.received[0]
    assert connection.authorized and connection.ready and connection.open
    assert connection.pings == ["p1"] and connection.sent == [ready, pong]
    assert [obj["type"] for obj in connection.received] == ["authorization", "ack", "ping", "ack"]
    client.ws.close(status=3050, reason=b"done (permanent)", timeout=LONG)
    wait_ended(server, connection)
    assert connection.close_code == 3050 and connection.close_reason == "done (permanent)"
    assert connection.closed_at is not None and connection.closed_at >= connection.accepted_at
    assert connection.error is None and not connection.open and not server.live()
    assert server.violations == []


def test_ready_event_is_configurable(
    make_server: Callable[..., LocalServer], connect: Callable[..., Client]
) -> None:
    server = make_server(ready_event="mercury.registration_status")
    client = connect(to=server, ready=False)
    client.authorize()
    assert client.receive()["data"]["eventType"] == "mercury.registration_status"


def test_session_keys(server: LocalServer, connect: Callable[..., Client]) -> None:
    connect("b c/d")
    assert only(server, "b c/d").path == "/b%20c%2Fd"
    assert [c.session for c in server.connections()] == ["b c/d"] and server.live("other") == []
    assert server.url("x", q="1").endswith(f":{server.port}/x?q=1")


def test_tokens(make_server: Callable[..., LocalServer], connect: Callable[..., Client]) -> None:
    server = make_server(tokens=["good"])
    client = connect(to=server, ready=False)
    client.authorize("Bearer bad")
    assert client.receive_close() == (4401, "Authentication Failed")
    assert not only(server).authorized and only(server).token == "bad"
    connect(to=server)
    server.tokens = {"other"}
    assert server.tokens == frozenset({"other"})
    again = connect(to=server, ready=False)
    again.authorize()
    assert again.receive_close()[0] == 4401
    server.tokens = None
    connect(to=server)


def test_websocket_ping_is_answered(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect()
    client.ws.ping("abc")
    opcode, frame = client.ws.recv_data_frame(True)
    assert (opcode, frame.data) == (websocket.ABNF.OPCODE_PONG, b"abc")


def test_an_empty_close_is_1005_and_a_dead_tcp_1006(
    server: LocalServer, connect: Callable[..., Client]
) -> None:
    client = connect("a")
    client.ws.send(b"", opcode=websocket.ABNF.OPCODE_CLOSE)
    assert client.receive_close() == (1005, "")
    other = connect("b")
    other.end()
    server.wait_for(lambda: only(server, "b").close_code == 1006 and only(server, "a").close_code == 1005)


def test_fragmented_text_is_one_message(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect()
    frame = websocket.ABNF.create_frame
    client.ws.send_frame(frame('{"type": "x', websocket.ABNF.OPCODE_TEXT, 0))
    client.ws.send_frame(frame('é"}'.encode()[:1], websocket.ABNF.OPCODE_CONT, 0))
    client.ws.send_frame(frame('é"}'.encode()[1:], websocket.ABNF.OPCODE_CONT, 1))
    server.wait_for(lambda: only(server).received[-1] == {"type": "xé"})


def test_a_large_message_arrives_whole_in_both_directions(
    server: LocalServer, connect: Callable[..., Client]
) -> None:
    client = connect()
    client.send(type="x", text="y" * 3_000_000)
    server.wait_for(lambda: only(server).received[-1].get("type") == "x")
    server.publish({"text": "z" * 3_000_000})
    assert len(client.receive()["data"]["text"]) == 3_000_000


def test_frames_before_the_101_are_not_lost() -> None:
    with LocalServer() as server:
        server.hold_upgrades()
        with raw_client(server) as sock:
            server.wait_for(lambda: len(server.connections("a")) == 1)
            sock.sendall(masked(9, b"hi"))
            server.release_upgrades()
            assert b" 101 " in read_until(sock, b"\r\n\r\n")
            assert sock.recv(4) == b"\x8a\x02hi"


# --- publishing


def test_publish(server: LocalServer, connect: Callable[..., Client]) -> None:
    a, b = connect("a"), connect("b")
    first = server.publish({"n": 1}, session="a", headers={"data.x": 1}, trackingId="t")
    assert first == a.ack(a.receive())
    assert first["data"] == {"eventType": "relay.event", "n": 1, "headers": {"data.x": 1}}
    assert first["trackingId"] == "t" and "sequenceNumber" not in first
    server.publish(session="b", event_type="x.y", id="i", sequence=7)
    got = b.ack(b.receive())
    assert (got["id"], got["sequenceNumber"], got["data"]) == ("i", 7, {"eventType": "x.y"})
    server.publish(id="", sequence=True)
    server.publish(id="", sequence=True, session="a")
    assert [a.receive()["sequenceNumber"], a.receive()["sequenceNumber"]] == [1, 2]
    assert b.receive().keys() == {"data", "sequenceNumber", "wsWriteTimestamp"}
    server.wait_for(lambda: first["id"] in only(server, "a").acks and "i" in only(server, "b").acks)
    assert server.violations == [] and only(server, "b").sent[1] == got


def test_send_verbs_count_whom_they_reach(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect("a")
    connect("b", ready=False)
    assert server.send_json([1]) == 1
    assert server.send_text("{", session="a") == 1
    assert server.send_text(b"\xff", session="a") == 1
    assert server.send_binary(b"\0", session="a") == 1
    assert server.send_raw(b"\x81\x02[]", session="a") == 1
    assert server.send_json({}, session="none") == 0
    got = [client.ws.recv_frame() for _ in range(5)]
    assert [frame.data for frame in got] == [b"[1]", b"{", b"\xff", b"\0", b"[]"]
    assert [frame.opcode for frame in got] == [1, 1, 1, 2, 1]


def test_ids_in_text_and_raw_may_be_acked(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect()
    server.send_text('{"id": 5}')
    server.send_raw(b"\x81\x09" + b'{"id": 6}', ids=[6])
    client.ack(client.receive())
    client.ack(client.receive())
    server.wait_for(lambda: only(server).acks[-2:] == [5, 6])
    assert server.violations == []


def test_publishing_from_many_threads_interleaves_whole_frames(
    server: LocalServer, connect: Callable[..., Client]
) -> None:
    client = connect()

    def publish(name: int) -> None:
        for n in range(200):
            server.publish({"from": name, "n": n, "pad": "x" * 2000}, sequence=True)

    threads = [threading.Thread(target=publish, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    client.send(id="p", type="ping")  # a pong among them
    got = [client.ack(client.receive()) for _ in range(801)]
    got = [message for message in got if message.get("type") != "pong"]
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert [m["sequenceNumber"] for m in got] == list(range(1, 801))
    for name in range(4):
        assert [m["data"]["n"] for m in got if m["data"]["from"] == name] == list(range(200))
    server.wait_for(lambda: len(only(server).acks) == 1 + 800 + 1)
    assert server.violations == []


def test_a_client_that_does_not_read_bounds_the_sender(
    make_server: Callable[..., LocalServer], connect: Callable[..., Client]
) -> None:
    server = make_server(outbox_limit=100_000, write_timeout=SHORT)
    connect(to=server)
    connection = only(server)
    big = b"x" * 1_000_000
    sent = 0
    while server.send_binary(big):
        sent += 1
        assert sent < 100
    assert connection.open
    server.close()  # at once, although bytes wait


def test_a_slow_client_gets_everything(
    make_server: Callable[..., LocalServer], connect: Callable[..., Client]
) -> None:
    server = make_server(outbox_limit=100_000)
    client = connect(to=server)
    sender = threading.Thread(target=lambda: [server.send_binary(bytes([n]) * 500_000) for n in range(30)])
    sender.start()
    for n in range(30):
        assert client.ws.recv() == bytes([n]) * 500_000
    sender.join(LONG)
    assert not sender.is_alive()


# --- scripts


def test_on_message(server: LocalServer, connect: Callable[..., Client]) -> None:
    @server.on_message
    def answer(connection: ServerConnection, obj: dict[str, Any]) -> None:
        if obj["type"] == "publishRequest":
            connection.send_json({"id": "re", "data": obj["data"]})

    client = connect()
    client.send(type="publishRequest", data={"x": 1})
    assert client.receive() == {"id": "re", "data": {"x": 1}}


def test_a_failing_callback_is_recorded(server: LocalServer, connect: Callable[..., Client]) -> None:
    server.on_message(lambda connection, obj: obj["nothing"])
    client = connect()
    client.send(id="p", type="ping")
    assert client.receive()["type"] == "pong"
    assert isinstance(only(server).error, KeyError)


@pytest.mark.parametrize("verb", ["close", "drop"])
def test_ending_from_a_callback(server: LocalServer, connect: Callable[..., Client], verb: str) -> None:
    def end(connection: ServerConnection, obj: dict[str, Any]) -> None:
        if obj["type"] == "end":
            server.close() if verb == "close" else server.drop()

    server.on_message(end)
    client = connect()
    client.send(type="end")
    with pytest.raises((OSError, websocket.WebSocketException)):
        client.receive()
    wait_ended(server, only(server))


# --- closing and dropping


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, ""), (4000, "replaced"), (1001, "x" * 123), (3050, "done (permanent)")]
)
def test_close_session(server: LocalServer, connect: Callable[..., Client], code: int, reason: str) -> None:
    client = connect("a")
    connect("b")
    assert server.close_session("a", code, reason) == 1
    assert not only(server, "a").open and server.close_session("a") == 0
    assert client.receive_close() == (code, reason)
    client.ws.send(struct.pack("!H", 1000), opcode=websocket.ABNF.OPCODE_CLOSE)
    with pytest.raises((OSError, websocket.WebSocketException)):
        client.receive()  # the server ends TCP
    client.end()
    wait_ended(server, only(server, "a"))
    assert only(server, "a").close_code == 1000 and only(server, "b").open
    assert server.publish(session="a") and server.violations == []


def test_close_without_a_code_and_without_a_frame(
    server: LocalServer, connect: Callable[..., Client]
) -> None:
    a, b = connect("a"), connect("b", ready=False)
    assert server.close_session("a", 1005) == 1 and server.close_session("b", 1006) == 1
    assert a.receive_close() == (1005, "")
    with pytest.raises(websocket.WebSocketConnectionClosedException):
        b.receive_close()
    for arguments in [(1005, "x"), (1000, "x" * 124), (70000, "")]:
        with pytest.raises(ValueError, match="close frame"):
            server.close_session("a", *arguments)


def test_close_codes_that_no_server_may_send_go_out_too() -> None:
    with LocalServer() as server, raw_client(server) as sock:
        read_until(sock, b"\r\n\r\n")
        assert server.close_session(code=1015) == 1
        assert sock.recv(4) == b"\x88\x02\x03\xf7"


def test_nothing_follows_a_close_frame(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect()
    connection = only(server)
    assert connection.close(4000) and not connection.send_json({}) and not connection.close(4001)
    client.send(id="p", type="ping")
    server.wait_for(lambda: connection.pings == ["p"])
    assert connection.send_raw(b"\x81\x02{}")
    assert client.receive_close()[0] == 4000
    assert client.receive() == {}


def test_drop(server: LocalServer, connect: Callable[..., Client]) -> None:
    client, other = connect("a"), connect("b")
    assert server.drop("a") == 1 and server.drop("a") == 0
    assert only(server, "a").close_code == 1006 and only(server, "a").closed_at is not None
    with pytest.raises(ConnectionResetError):
        socket.socket.recv(client.ws.sock, 1)  # the raw socket's: SSLSocket makes b"" of a reset
    other.send(id="p", type="ping")
    assert other.receive()["type"] == "pong"


def test_a_reset_by_the_client_is_the_error(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect()
    client.ws.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.ws.sock.close()
    wait_ended(server, only(server))
    assert isinstance(only(server).error, ConnectionResetError) and only(server).close_code == 1006


# --- faults that last


def test_mute(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect("a")
    assert server.mute("a") == 1
    client.send(id="p1", type="ping")
    server.wait_for(lambda: only(server).pings == ["p1"])
    assert server.unmute() == 1
    client.send(id="p2", type="ping")
    assert client.receive()["id"] == "p2"


def test_wrong_pong(server: LocalServer, connect: Callable[..., Client]) -> None:
    server.wrong_pong()
    client = connect()
    client.send(id="p1", type="ping")
    pong = client.ack(client.receive())
    assert pong["type"] == "pong" and pong["id"] != "p1"
    server.wrong_pong(on=False)
    client.send(id="p2", type="ping")
    assert client.ack(client.receive())["id"] == "p2"


def test_faults_apply_to_their_session_and_the_last_call_decides(
    server: LocalServer, connect: Callable[..., Client]
) -> None:
    server.withhold_ready()
    server.release_ready("a")
    connect("a")
    b = connect("b", ready=False)
    b.authorize()
    server.wait_live("b")
    assert not only(server, "b").ready
    server.publish({"early": 1}, session="b")
    assert b.receive()["data"]["early"] == 1
    assert server.release_ready() == 2
    assert b.receive()["data"]["eventType"] == "mercury.buffer_state"
    assert only(server, "b").ready


def test_ignore_close(server: LocalServer, connect: Callable[..., Client]) -> None:
    server.ignore_close("a")
    client = connect("a")
    client.ws.send(struct.pack("!H", 3000) + b"bye", opcode=websocket.ABNF.OPCODE_CLOSE)
    connection = only(server)
    server.wait_for(lambda: connection.close_code == 3000)
    assert not connection.open and connection.closed_at is None
    assert connection.send_json({"late": 1}) and client.receive() == {"late": 1}
    server.ignore_close("a", on=False)
    assert client.receive_close() == (3000, "bye")


def test_ignore_close_after_the_servers_own(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect()
    server.ignore_close()
    server.close_session(code=4001)
    assert client.receive_close()[0] == 4001
    client.ws.send(b"", opcode=websocket.ABNF.OPCODE_CLOSE)
    server.wait_for(lambda: only(server).close_code == 1005)
    client.ws.settimeout(SHORT)
    with pytest.raises(websocket.WebSocketTimeoutException):
        client.ws.recv_frame()
    client.end()
    wait_ended(server, only(server))


def test_stall_reads(make_server: Callable[..., LocalServer], connect: Callable[..., Client]) -> None:
    server = make_server(receive_buffer=4096)
    client = connect("a", to=server)
    server.wait_for(lambda: len(only(server).acks) == 1)
    assert server.stall_reads("a") == 1
    client.ws.settimeout(SHORT)
    with pytest.raises((websocket.WebSocketTimeoutException, OSError)):
        client.ws.send_binary(b"x" * 30_000_000)
    assert only(server).open and len(only(server).received) == 2
    server.resume_reads("a")
    client.end()
    wait_ended(server, only(server))


def test_stalled_reads_still_send_and_resume(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect("a")
    server.wait_for(lambda: len(only(server).acks) == 1)
    server.stall_reads()
    client.send(type="x")
    server.publish({"n": 1})
    assert client.ack(client.receive())["data"]["n"] == 1
    assert server.resume_reads() == 1
    server.wait_for(lambda: [m["type"] for m in only(server).received[-2:]] == ["x", "ack"])


def test_hold_upgrades(server: LocalServer, connect: Callable[..., Client]) -> None:
    server.hold_upgrades("a")
    done: list[Client] = []
    thread = threading.Thread(target=lambda: done.append(connect("a")))
    thread.start()
    server.wait_for(lambda: len(server.connections("a")) == 1)
    connect("b")
    assert not only(server, "a").upgraded and not done and server.close_session("a") == 0
    assert server.release_upgrades("a") == 1
    thread.join(LONG)
    assert len(done) == 1


def test_a_client_that_leaves_while_held_is_seen(server_context: ssl.SSLContext) -> None:
    with LocalServer() as server:
        server.hold_upgrades()
        with raw_client(server):
            server.wait_for(lambda: len(server.connections("a")) == 1)
        wait_ended(server, only(server))
        assert only(server).close_code == 1006


# --- refusals


def test_reject_an_upgrade(server: LocalServer, connect: Callable[..., Client]) -> None:
    server.reject(503, session="a", times=2, headers={"Retry-After": "7"}, body=b"busy")
    for _ in range(2):
        with pytest.raises(websocket.WebSocketBadStatusException) as caught:
            connect("a")
        assert caught.value.status_code == 503
        assert (caught.value.resp_headers or {})["retry-after"] == "7" and caught.value.resp_body == b"busy"
    connect("a")
    assert [c.upgraded for c in server.connections("a")] == [False, False, True]


def test_reject_an_authorization(server: LocalServer, connect: Callable[..., Client]) -> None:
    server.reject(4403, reason="Forbidden")
    client = connect("a", ready=False)
    client.authorize()
    assert client.receive_close() == (4403, "Forbidden")
    assert not only(server).authorized and only(server).token == "good"
    connect("a")


def test_reject_is_checked_when_it_is_asked_for() -> None:
    with LocalServer() as server:
        for code, times in [(99, 1), (404, 0), (70000, 1)]:
            with pytest.raises(ValueError):
                server.reject(code, times=times)


def test_requests_that_are_no_upgrade_get_404() -> None:
    with LocalServer() as server:
        for request, status in [
            (b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n", b"404"),
            (b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}", b"404"),
            (b"nonsense\r\n\r\n", b"400"),
            (b"GET /x HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n", b"400"),
        ]:
            with socket.create_connection((server.host, server.port), timeout=LONG) as sock:
                sock.sendall(request)
                assert read_all(sock).startswith(b"HTTP/1.1 " + status)
        assert [c.upgraded for c in server.connections()] == [False] * 4


def test_a_client_that_never_asks_is_let_go() -> None:
    with (
        LocalServer(open_timeout=SHORT) as server,
        socket.create_connection((server.host, server.port), timeout=LONG) as sock,
    ):
        assert sock.recv(1) == b""
        wait_ended(server, only(server))
        assert isinstance(only(server).error, TimeoutError)


def test_a_failed_tls_handshake_is_recorded(server_context: ssl.SSLContext) -> None:
    with LocalServer(ssl_context=server_context) as server:
        with (
            socket.create_connection((server.host, server.port), timeout=LONG) as sock,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")
        server.wait_for(lambda: only(server).closed_at is not None)
        assert isinstance(only(server).error, ssl.SSLError)


# --- violations


def violations_of(server: LocalServer, count: int = 1) -> list[str]:
    server.wait_for(lambda: len(server.violations) >= count)
    return server.violations


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        ({"type": "ack", "messageId": "never"}, "never sent"),
        ({"type": "ack"}, "without messageId"),
        ({"type": "ping"}, "ping without id"),
    ],
)
def test_bad_messages(
    server: LocalServer, connect: Callable[..., Client], obj: dict[str, Any], expected: str
) -> None:
    client = connect()
    client.send(**obj)
    assert expected in violations_of(server)[0]
    assert only(server).open


def test_an_ack_too_many(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect()
    server.publish(id="m")
    server.publish(id="m")
    for _ in range(3):
        client.send(type="ack", messageId="m")
    assert "acked 3 times, sent 2" in violations_of(server)[0] and len(server.violations) == 1


def test_text_that_is_no_json_object_and_binary(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect()
    client.ws.send("{")
    client.ws.send("[1]")
    client.ws.send_binary(b"x")
    texts = violations_of(server, 3)
    assert ["not JSON" in texts[0], "not an object" in texts[1], "binary" in texts[2]] == [True] * 3


@pytest.mark.parametrize("first", ['{"type": "ping", "id": "1"}', "null", "x"])
def test_a_first_frame_that_is_no_authorization(
    server: LocalServer, connect: Callable[..., Client], first: str
) -> None:
    client = connect(ready=False)
    client.ws.send(first)
    assert client.receive_close() == (4400, "Bad Request")
    assert "not an authorization" in violations_of(server)[-1]


def test_authorization_shapes() -> None:
    good: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "type": "authorization",
        "data": {"token": "Bearer x"},
        "trackingId": "t",
    }
    assert checks.check_authorization(good) == []
    changes: list[tuple[dict[str, Any], str]] = [
        ({"id": "1"}, "uuid4"),
        ({"id": str(uuid.uuid1())}, "uuid4"),
        ({"id": 5}, "uuid4"),
        ({"id": "z" * 36}, "uuid4"),
        ({"data": None}, "without data.token"),
        ({"data": {"token": "Bearer "}}, "without data.token"),
        ({"data": {"token": "x"}}, "no Bearer"),
        ({"trackingId": None}, "trackingId"),
        ({"logLevelToken": None}, "logLevelToken"),
        ({"type": "x"}, "first frame"),
    ]
    for change, expected in changes:
        (problem,) = checks.check_authorization({**good, **change})
        assert expected in problem


def test_query_checks() -> None:
    good = {key: [value] for key, value in {**QUERY, "clientTimestamp": "12"}.items()}
    assert checks.check_query(good) == []
    shared = {**good, "mercuryRegistrationStatus": ["true"], "isRegistrationRefreshEnabled": ["true"]}
    assert checks.check_query(shared) == ["query has bufferStates beside mercuryRegistrationStatus"]
    del shared["bufferStates"]
    assert checks.check_query(shared) == []
    assert len(checks.check_query({})) == 4
    assert checks.check_query({**good, "x": ["1", "1"]}) == ["query key x given 2 times"]
    assert checks.check_query({**good, "clientTimestamp": ["-1"]}) == ["clientTimestamp is not digits: '-1'"]
    assert checks.check_query({**good, "outboundWireFormat": ["b"]}) == [
        "query has outboundWireFormat=b, not text"
    ]


def test_a_callback_may_report_what_it_finds_and_wakes_who_waits(
    server: LocalServer, connect: Callable[..., Client]
) -> None:
    server.on_message(lambda connection, obj: server.report(f"{obj['type']} on {connection.session}"))
    connect("a", ready=False).authorize()
    assert violations_of(server) == ["authorization on a"]
    with LocalServer(strict=False) as lenient:
        lenient.report("whatever")
        assert lenient.violations == []


def test_query_and_extension_violations_are_recorded_unless_not_strict() -> None:
    extra = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
    for strict in (True, False):
        with LocalServer(strict=strict) as server, raw_client(server, extra=extra, query="x=1&x=2") as sock:
            read_until(sock, b"\r\n\r\n")
            assert len(server.violations) == (6 if strict else 0)


@pytest.mark.parametrize(
    ("frames", "expected", "code"),
    [
        (b"\x81\x02{}", "unmasked", 1002),
        (b"\xc1\x80\0\0\0\0", "Reserved bit", 1002),
        (masked(1, b"\xff"), "decode", 1007),
        (masked(0, b"x"), "CONTINUATION", 1002),
    ],
)
def test_broken_frames(frames: bytes, expected: str, code: int) -> None:
    with LocalServer() as server, raw_client(server) as sock:
        read_until(sock, b"\r\n\r\n")
        sock.sendall(frames)
        assert read_all(sock) == b"\x88\x02" + struct.pack("!H", code)
        assert expected in violations_of(server)[0]


def test_frames_after_the_close_frame() -> None:
    with LocalServer() as server:
        for together in (True, False):
            with raw_client(server) as sock:
                read_until(sock, b"\r\n\r\n")
                frames = [masked(8, b""), masked(1, b"{}")]
                if together:
                    sock.sendall(b"".join(frames))
                    assert read_all(sock) == b"\x88\0"
                else:
                    sock.sendall(frames[0])
                    assert read_all(sock) == b"\x88\0"
                    sock.sendall(frames[1])
            count = 1 if together else 2
            assert "TEXT frame after the close frame" in violations_of(server, count)[-1]


@pytest.mark.parametrize(
    ("payload", "expected"), [(b"x", "1 byte"), (b"\x03\xed", "1005"), (b"\x03\xe8\xff", "UTF-8")]
)
def test_bad_close_payloads(payload: bytes, expected: str) -> None:
    with LocalServer() as server, raw_client(server) as sock:
        read_until(sock, b"\r\n\r\n")
        sock.sendall(masked(8, payload))
        assert expected in violations_of(server)[0]


# --- waiting and stopping


def test_wait_for_tells_the_servers_state(server: LocalServer, connect: Callable[..., Client]) -> None:
    connect("a")
    with pytest.raises(ServerTimeout, match="#1 'a' upgraded authorized ready open") as caught:
        server.wait_live("a", count=2, timeout=SHORT)
    assert {AssertionError, TimeoutError} < set(type(caught.value).__mro__)


def test_wait_for_ends_in_time_under_traffic(server: LocalServer, connect: Callable[..., Client]) -> None:
    client = connect()
    stop = threading.Event()

    def talk() -> None:
        while not stop.is_set():
            client.send(type="x")

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        with pytest.raises(ServerTimeout):
            server.wait_for(lambda: False, SHORT)
    finally:
        stop.set()
        talker.join(LONG)


@pytest.mark.parametrize("fault", ["mute", "withhold_ready", "stall_reads", "hold_upgrades", "ignore_close"])
def test_close_from_any_state(server: LocalServer, client_context: ssl.SSLContext, fault: str) -> None:
    getattr(server, fault)()
    sock: socket.socket = socket.create_connection((server.host, server.port), timeout=LONG)
    if server.url().startswith("wss"):
        sock = client_context.wrap_socket(sock, server_hostname="127.0.0.1")
    with sock:
        sock.sendall(
            b"GET /a HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        sock.sendall(masked(8, b""))
        server.wait_for(lambda: len(server.connections("a")) == 1)
        began = time.monotonic()
        server.close()
        server.close()
        assert time.monotonic() - began < 2
        assert only(server).closed_at is not None and not server.live()
    with pytest.raises(OSError):
        socket.create_connection((server.host, server.port), timeout=LONG)


def test_a_tls_end_without_the_end_of_tcp_is_an_end(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    with LocalServer(ssl_context=server_context) as server:
        tcp = socket.create_connection((server.host, server.port), timeout=LONG)
        with client_context.wrap_socket(tcp, server_hostname="127.0.0.1") as sock:
            sock.sendall(b"GET /a HTTP/1.1\r\n")
            with contextlib.suppress(OSError), sock.unwrap():
                pass
            wait_ended(server, only(server))


def test_close_during_a_tls_handshake(server_context: ssl.SSLContext) -> None:
    with LocalServer(ssl_context=server_context) as server:
        sock = socket.create_connection((server.host, server.port), timeout=LONG)
        server.wait_for(lambda: len(server.connections()) == 1)
    with sock:
        assert only(server).error is None


def test_close_logs_a_thread_stuck_in_a_callback(caplog: pytest.LogCaptureFixture) -> None:
    entered, leave = threading.Event(), threading.Event()

    def block(connection: ServerConnection, obj: dict[str, Any]) -> None:
        entered.set()
        leave.wait(LONG)

    server = LocalServer()
    server.on_message(block)
    with raw_client(server) as sock:
        read_until(sock, b"\r\n\r\n")
        sock.sendall(masked(1, b"{}"))
        assert entered.wait(LONG)
        server.close(timeout=SHORT)
        assert "still running" in caplog.text
        leave.set()
        server.close()


def test_a_server_can_restart_under_its_address() -> None:
    with LocalServer() as first, raw_client(first) as sock:
        read_until(sock, b"\r\n\r\n")
        first.close()
        with LocalServer(port=first.port) as second, raw_client(second) as again:
            assert b" 101 " in read_until(again, b"\r\n\r\n")


def test_many_servers_start_and_stop_quickly() -> None:
    began = time.monotonic()
    for _ in range(50):
        with LocalServer():
            pass
    assert time.monotonic() - began < 5  # 20 ms each would be 1 s


def test_two_hundred_clients() -> None:
    with LocalServer() as server, contextlib.ExitStack() as stack:
        server.withhold_ready()
        socks = [stack.enter_context(raw_client(server, f"/s{n}")) for n in range(200)]
        token = json.dumps(
            {
                "id": str(uuid.uuid4()),
                "type": "authorization",
                "data": {"token": "Bearer t"},
                "trackingId": "t" * 50,
            }
        ).encode()
        for sock in socks:
            read_until(sock, b"\r\n\r\n")
            frame = bytes([0x81, 0xFE]) + struct.pack("!H", len(token)) + b"\0\0\0\0" + token
            sock.sendall(frame)
        server.wait_live(count=200)
        assert server.send_json({}) == 200
        assert {sock.recv(4) for sock in socks} == {b"\x81\x02{}"}
        assert server.drop() == 200 and server.violations == []


def test_the_waker_without_eventfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "other")
    with LocalServer() as server, raw_client(server) as sock:
        read_until(sock, b"\r\n\r\n")
        assert server.drop() == 1
