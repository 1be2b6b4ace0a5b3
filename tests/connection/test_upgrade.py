"""The opening handshake against raw peers: what is asked, and what every kind of answer leads to."""

from __future__ import annotations

import http.cookies
import resource
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import websocket

from llm_sessions._sync import Deadline
from llm_sessions._version import __version__
from llm_sessions.connection.stream import Stream
from llm_sessions.connection.stream_errors import StreamAborted, StreamBroken, StreamClosed, StreamTimeout
from llm_sessions.connection.transport import AttemptFailed
from llm_sessions.connection.upgrade import upgrade
from llm_sessions.protocol.closing import Failure
from llm_sessions.protocol.url import Address
from tests.peers import Peer, read_request, reset, upgraded
from tests.support import LONG, SHORT, Background

Script = Callable[[Peer, Any], object]


class Attempts:
    """Upgrades against a scripted peer."""

    def __init__(self, client: ssl.SSLContext | None, server: ssl.SSLContext | None) -> None:
        self._client, self._server = client, server

    @contextmanager
    def peer(self, script: Script) -> Iterator[Peer]:
        with Peer(script, self._server) as peer:
            yield peer

    def open(self, peer: Peer) -> Stream:
        stream = Stream()
        stream.open([peer.address], Deadline(LONG), tls=self._client, host="localhost")
        return stream

    def run(
        self,
        script: Script,
        headers: dict[str, str] | None = None,
        timeout: float = LONG,
        path: str = "s?a=b",
    ) -> tuple[bytes, Peer]:
        with self.peer(script) as peer:
            stream = self.open(peer)
            scheme = "wss" if self._client else "ws"
            try:
                glued = upgrade(
                    stream,
                    f"{scheme}://localhost:{peer.port}/{path}",
                    Address("localhost", peer.port, self._client is not None),
                    headers or {},
                    Deadline(timeout),
                )
            finally:
                stream.release()
        return glued, peer

    def refused(self, answer: bytes, timeout: float = LONG) -> AttemptFailed:
        def script(peer: Peer, sock: Any) -> None:
            read_request(sock)
            sock.sendall(answer)
            peer.hold()

        with pytest.raises(AttemptFailed) as caught:
            self.run(script, timeout=timeout)
        assert "localhost:" in caught.value.message
        return caught.value


@pytest.fixture
def attempts(tls: bool, client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> Attempts:
    return Attempts(client_context, server_context) if tls else Attempts(None, None)


@pytest.fixture(autouse=True)
def clean_jar() -> Iterator[None]:
    """Show each test websocket-client's process-wide jar as it was imported."""
    jar = websocket._handshake.CookieJar.jar
    saved = dict(jar)
    jar.clear()
    yield
    jar.clear()
    jar.update(saved)


def accept(*extra: str) -> Script:
    return lambda peer, sock: (
        peer.requests.append(read_request(sock)),
        sock.sendall(upgraded(peer.requests[-1], *extra)),
    )


def headers_of(request: bytes) -> list[tuple[str, str]]:
    lines = request.decode().split("\r\n")[1:-2]
    return [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]


# What is asked


def test_the_request_is_ours(attempts: Attempts) -> None:
    glued, peer = attempts.run(accept(), {"X-Own": "1"})
    assert glued == b""
    [request] = peer.requests
    assert request.startswith(b"GET /s?a=b HTTP/1.1\r\n")
    headers = dict(headers_of(request))
    assert len(headers) == len(headers_of(request)), "a header came twice"
    assert headers["host"] == f"localhost:{peer.port}"
    assert headers["user-agent"] == f"llm-sessions/{__version__}"
    assert headers["x-own"] == "1"
    assert headers["sec-websocket-version"] == "13"
    assert not {"origin", "cookie", "sec-websocket-extensions"} & set(headers)


@pytest.mark.parametrize("name", ["User-Agent", "user-agent", "USER-AGENT"])
def test_the_callers_user_agent_replaces_ours(name: str, attempts: Attempts) -> None:
    _, peer = attempts.run(accept(), {name: "mine"})
    agents = [value for key, value in headers_of(peer.requests[0]) if key == "user-agent"]
    assert agents == ["mine"]


# Cookies


@pytest.mark.parametrize("own", [{}, {"Cookie": "own=1"}, {"COOKIE": "own=1"}, {"cookie": "own=1"}])
def test_no_cookie_of_the_process_wide_jar_is_sent(own: dict[str, str], attempts: Attempts) -> None:
    websocket._handshake.CookieJar.add("stolen=1; Domain=localhost")
    assert websocket._handshake.CookieJar.get("localhost") == "stolen=1"
    _, peer = attempts.run(accept(), own)
    cookies = [value for name, value in headers_of(peer.requests[0]) if name == "cookie"]
    assert cookies == list(own.values())


@pytest.mark.parametrize(
    "line",
    [
        "Set-Cookie: session=a; Domain=localhost",
        "SET-COOKIE:session=a; Domain=localhost",
        "Set-Cookie2: session=a; Domain=localhost",
        " Set-Cookie: session=a; Domain=localhost",
        "X-Harmless: 1\nSet-Cookie: session=a; Domain=localhost",
        "X-Folded: 1\r\n\tset-cookie: session=a; Domain=localhost",
        "\u00a0Set-Coo\u212aie: session=a; Domain=localhost",
    ],
)
@pytest.mark.parametrize("status", [101, 302, 403])
def test_no_cookie_of_one_handshake_is_on_the_next_request(
    line: str, status: int, attempts: Attempts
) -> None:
    def script(peer: Peer, sock: Any) -> None:
        request = read_request(sock)
        if status == 101:
            sock.sendall(upgraded(request, line))
        else:
            sock.sendall(f"HTTP/1.1 {status} No\r\nLocation: /\r\n{line}\r\n\r\n".encode())
        peer.hold()

    if status == 101:
        attempts.run(script)
    else:
        with pytest.raises(AttemptFailed):
            attempts.run(script)
    assert websocket._handshake.CookieJar.get("localhost") == ""
    assert websocket._handshake.CookieJar.jar == {}
    _, peer = attempts.run(accept())
    assert "cookie" not in dict(headers_of(peer.requests[0]))


def test_the_jar_would_have_taken_it() -> None:
    """The tests above prove something only while websocket-client keeps such cookies."""
    websocket._handshake.CookieJar.add("session=a; Domain=localhost")
    jar = websocket._handshake.CookieJar.jar
    assert all(isinstance(cookie, http.cookies.SimpleCookie) for cookie in jar.values())
    assert jar


# Glued bytes


@pytest.mark.parametrize("glued", [b"", b"\x81\x02{}", b"\x81\x02{}" * 5000, b"\r\n\r\nHTTP/1.1 500\r\n\r\n"])
def test_bytes_glued_to_the_answer_are_the_first_frames(glued: bytes, attempts: Attempts) -> None:
    def script(peer: Peer, sock: Any) -> None:
        sock.sendall(upgraded(read_request(sock)) + glued)
        peer.hold()

    with attempts.peer(script) as peer:
        stream = attempts.open(peer)
        address = Address("localhost", peer.port, True)
        rest = upgrade(stream, f"ws://localhost:{peer.port}/", address, {}, Deadline(LONG))
        while len(rest) < len(glued):
            rest += stream.read_within(Deadline(LONG))
        stream.release()
    assert rest == glued


def test_an_answer_in_single_bytes_is_understood(attempts: Attempts) -> None:
    def script(peer: Peer, sock: Any) -> None:
        for byte in upgraded(read_request(sock)) + b"\x81\x00":
            sock.sendall(bytes([byte]))
        peer.hold()

    glued, _ = attempts.run(script)
    assert glued in (b"", b"\x81", b"\x81\x00")


# Refusals


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (200, Failure.MISPLACED),
        (100, Failure.MISPLACED),
        (400, Failure.REFUSED),
        (401, Failure.UNAUTHORIZED),
        (403, Failure.REFUSED),
        (404, Failure.STALE),
        (408, Failure.BUSY),
        (429, Failure.BUSY),
        (500, Failure.BUSY),
        (503, Failure.BUSY),
    ],
)
def test_a_status_has_its_row(status: int, failure: Failure, attempts: Attempts) -> None:
    head = f"HTTP/1.1 {status} Reason\r\nContent-Type: text/html; charset=utf-8\r\nRetry-After: 7\r\n"
    error = attempts.refused(f"{head}Content-Length: 5\r\n\r\n<html".encode())
    assert (error.failure, error.status, error.retry_after) == (failure, status, "7")
    assert f"HTTP {status} with text/html" in error.message
    assert isinstance(error.__cause__, websocket.WebSocketBadStatusException)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["Location: ws://127.0.0.1:{port}/stolen\r\n", ""])
def test_a_redirect_is_not_followed(status: int, location: str, attempts: Attempts) -> None:
    def script(peer: Peer, sock: Any) -> None:
        peer.requests.append(read_request(sock))
        where = location.format(port=peer.port)
        sock.sendall(f"HTTP/1.1 {status} Elsewhere\r\n{where}\r\n".encode())
        peer.hold()

    with attempts.peer(script) as peer:
        stream = attempts.open(peer)
        with pytest.raises(AttemptFailed, match=f"HTTP {status}") as caught:
            upgrade(
                stream,
                f"ws://localhost:{peer.port}/",
                Address("localhost", peer.port, False),
                {"Authorization": "Bearer secret"},
                Deadline(LONG),
            )
        stream.release()
    assert (caught.value.failure, caught.value.status) == (Failure.MISPLACED, status)
    assert len(peer.requests) == 1
    assert not peer.arrived.acquire(blocking=False) or not peer.arrived.acquire(blocking=False)


@pytest.mark.parametrize("length", ["5000", str(1 << 40), "-1", "many", "0"])
@pytest.mark.parametrize("end", ["open", "closed"])
def test_a_refusals_body_is_neither_waited_for_nor_read(length: str, end: str, attempts: Attempts) -> None:
    """Shorter than announced, endless, or absurd: the status is known, nothing more is needed."""
    stop = threading.Event()

    def script(peer: Peer, sock: Any) -> None:
        read_request(sock)
        sock.sendall(f"HTTP/1.1 429 No\r\nContent-Length: {length}\r\nRetry-After: 3\r\n\r\n".encode())
        if end == "closed":
            return
        while not stop.is_set() and not peer.over.is_set():
            sock.sendall(bytes(65536))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with pytest.raises(AttemptFailed) as caught:
        attempts.run(script)
    stop.set()
    assert (caught.value.failure, caught.value.status, caught.value.retry_after) == (Failure.BUSY, 429, "3")
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


def test_a_page_without_a_kind_is_still_a_page(attempts: Attempts) -> None:
    error = attempts.refused(b"HTTP/1.0 200 OK\r\n\r\n<html>")
    assert (error.failure, error.status, error.retry_after) == (Failure.MISPLACED, 200, None)
    assert error.message.endswith("answered HTTP 200 instead of a WebSocket upgrade")


@pytest.mark.parametrize(
    "answer",
    [
        b"220 mail.example ESMTP\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"\x00" * 20,
        b"no\r\n\r\n",
        b"HTTX/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
def test_an_answer_that_is_not_http_is_said_to_be_so(answer: bytes, attempts: Attempts) -> None:
    error = attempts.refused(answer)
    assert error.failure is Failure.MISPLACED
    assert "does not speak HTTP" in error.message
    assert error.__cause__ is not None


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nX: \xff\xfe\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: bm90IHlvdXJzIQ==\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 \n\nno\r\n\r\n",
    ],
)
def test_a_malformed_or_unsigned_upgrade_is_refused(answer: bytes, attempts: Attempts) -> None:
    error = attempts.refused(answer)
    assert error.failure is Failure.MISPLACED
    assert error.__cause__ is not None


@pytest.mark.parametrize("shape", ["endless", "one line", "just over"])
def test_a_head_has_64_kib_at_most(shape: str, attempts: Attempts) -> None:
    def script(peer: Peer, sock: Any) -> None:
        sock.sendall(upgraded(read_request(sock))[:-2])
        if shape == "just over":
            sock.sendall(b"X: " + b"x" * (64 << 10) + b"\r\n\r\n")
            peer.hold()
        while not peer.over.is_set():
            sock.sendall(b"x" * 1000 if shape == "one line" else b"X-Y: z\r\n" * 100)

    with pytest.raises(AttemptFailed, match="header is longer") as caught:
        attempts.run(script)
    assert caught.value.failure is Failure.MISPLACED


def test_a_head_just_within_64_kib_is_read(attempts: Attempts) -> None:
    attempts.run(accept("X: " + "x" * (63 << 10)))


# Ends


@pytest.mark.parametrize("how", ["closed", "reset"])
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 101 Swit"])
def test_a_stream_that_ends_in_the_answer_is_broken(how: str, sent: bytes, attempts: Attempts) -> None:
    def script(peer: Peer, sock: Any) -> None:
        read_request(sock)
        sock.sendall(sent)
        if how == "reset":
            reset(sock)

    with pytest.raises(StreamBroken) as caught:
        attempts.run(script)
    assert isinstance(caught.value.__cause__, StreamClosed if how == "closed" else OSError)


def test_t1_a_mute_server_is_left_at_the_deadline(attempts: Attempts) -> None:
    with pytest.raises(StreamTimeout):
        attempts.run(lambda peer, sock: peer.hold(), timeout=SHORT)


def test_t1_a_dripping_head_does_not_stretch_the_deadline(attempts: Attempts) -> None:
    def script(peer: Peer, sock: Any) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 101 Switching\r\nX: ")
        while not peer.over.wait(0.01):
            sock.sendall(b"x")

    started = time.monotonic()
    with pytest.raises(StreamTimeout):
        attempts.run(script, timeout=0.3)
    assert time.monotonic() - started < 3


def test_t0_abort_ends_an_upgrade(attempts: Attempts) -> None:
    asked = threading.Event()

    def script(peer: Peer, sock: Any) -> None:
        read_request(sock)
        asked.set()
        peer.hold()

    with attempts.peer(script) as peer:
        stream = attempts.open(peer)
        address = Address("localhost", peer.port, False)
        call = Background(lambda: upgrade(stream, "ws://localhost/", address, {}, Deadline(None)))
        assert asked.wait(LONG)
        started = time.monotonic()
        stream.abort()
        assert isinstance(call.error(), StreamAborted)
        assert time.monotonic() - started < 1
        stream.release()


def test_a_url_that_websocket_client_refuses_is_a_failed_attempt(attempts: Attempts) -> None:
    with attempts.peer(lambda peer, sock: peer.hold()) as peer:
        stream = attempts.open(peer)
        with pytest.raises(AttemptFailed):
            upgrade(stream, "http://localhost/", Address("localhost", 1, False), {}, Deadline(LONG))
        stream.release()
