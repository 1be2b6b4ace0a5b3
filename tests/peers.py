"""Raw peers for the tests of one socket: they do exactly what a script says, on a thread of their own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llm_sessions._sync import Deadline, ThreadGroup
from llm_sessions.connection.connection import Connection
from llm_sessions.connection.stream import AddressInfo, Stream
from llm_sessions.connection.transport import Link, OpenRequest
from llm_sessions.protocol.mercury import Ended, Timing
from llm_sessions.protocol.url import Address
from tests.support import LONG, Background

READY = {"data": {"eventType": "mercury.buffer_state"}}


def frame(payload: object, opcode: int = 1) -> bytes:
    """Return a server's frame; anything but bytes goes as JSON."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    if len(data) < 126:
        return bytes((0x80 | opcode, len(data))) + data
    if len(data) < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, len(data)) + data
    return struct.pack("!BBQ", 0x80 | opcode, 127, len(data)) + data


def close_frame(code: int, reason: str = "") -> bytes:
    return frame(code.to_bytes(2, "big") + reason.encode(), 8)


def where(sock: socket.socket) -> AddressInfo:
    """Return the address of a listening socket as the resolver would."""
    return (sock.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", sock.getsockname())


def nobody() -> AddressInfo:
    """Return a loopback address that refuses."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return where(sock)


@contextlib.contextmanager
def full_backlog() -> Iterator[AddressInfo]:
    """An address that swallows packets: it takes no more connections and refuses none."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield where(listener)


def reset(sock: socket.socket) -> None:
    """End TCP with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(1 << 16, size - len(data)))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


def read_to_end(sock: socket.socket) -> bytes:
    data = bytearray()
    with contextlib.suppress(OSError):  # a reset, or TLS without its goodbye
        while piece := sock.recv(1 << 16):
            data += piece
    return bytes(data)


def read_request(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = sock.recv(4096)
        assert piece, f"the stream ended in the request: {data!r}"
        data += piece
    return data


def upgraded(request: bytes, *extra: str) -> bytes:
    """Return the 101 that answers a request."""
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)
    assert key is not None
    signed = hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {base64.b64encode(signed).decode()}",
        *extra,
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def read_frame(sock: socket.socket) -> tuple[int, bytes]:
    """Read one of the client's frames; return its opcode and unmasked payload."""
    first, second = read_exactly(sock, 2)
    size = second & 0x7F
    if size > 125:
        size = int.from_bytes(read_exactly(sock, 2 if size == 126 else 8), "big")
    key = read_exactly(sock, 4)
    masked = read_exactly(sock, size)
    pad = (key * (size // 4 + 1))[:size]
    plain = int.from_bytes(masked, "big") ^ int.from_bytes(pad, "big")
    return first & 0x0F, plain.to_bytes(size, "big")


class Peer:
    """Listens on the loopback and runs a script for each connection, on a thread each.

    Args:
        script: Gets the peer and the connected socket, blocking and with a timeout; TLS is done.
        context: For TLS; the script gets an `SSLSocket`.
        receive_buffer: SO_RCVBUF of the accepted sockets.

    Attributes:
        over: Set when the test is done; what a script that only holds still waits for.
        errors: What scripts raised, but for OSError: a socket that the client ended.
    """

    def __init__(
        self,
        script: Callable[[Peer, Any], object],
        context: ssl.SSLContext | None = None,
        *,
        receive_buffer: int | None = None,
    ) -> None:
        self._script, self._context = script, context
        self.over = threading.Event()
        self.arrived = threading.Semaphore(0)
        self.errors: list[BaseException] = []
        self.requests: list[bytes] = []
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.address = where(self._listener)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="peer-accept")

    def __enter__(self) -> Peer:
        self._acceptor.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(LONG)
        self._listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in [self._acceptor, *self._threads]:
            thread.join(LONG)
            assert not thread.is_alive(), f"{thread.name} did not end"
        for sock in self._socks:
            sock.close()
        if self.errors:
            raise self.errors[0]

    def hold(self) -> None:
        """Stay until the test is over."""
        assert self.over.wait(LONG), "the test did not end"

    def upgrade(self, sock: Any, *glued: bytes) -> None:
        """Answer the opening handshake, with the first frames in the same write."""
        request = read_request(sock)
        self.requests.append(request)
        sock.sendall(upgraded(request) + b"".join(glued))

    def open_session(self, sock: Any, *glued: bytes) -> None:
        """Upgrade, take the authorization and the first ping, and say ready."""
        self.upgrade(sock)
        assert json.loads(read_frame(sock)[1])["type"] == "authorization"
        sock.sendall(frame(READY) + b"".join(glued))
        assert json.loads(read_frame(sock)[1])["type"] == "ping"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(LONG)
            self._socks.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock,), name="peer")
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: Any) -> None:
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True)
                self._socks.append(sock)
            self.arrived.release()
            self._script(self, sock)
        except OSError:
            pass
        except BaseException as exc:
            self.errors.append(exc)
        finally:
            sock.close()


# Scripts that stop a handshake. The semaphore `arrived` is released a second time once they are there.


def mute_tls(peer: Peer, sock: Any) -> None:
    """Read the beginning of a ClientHello, and say nothing."""
    assert read_exactly(sock, 5)[0] == 22
    peer.arrived.release()
    peer.hold()


def mute_http(peer: Peer, sock: Any) -> None:
    """Read the request, and say nothing."""
    read_request(sock)
    peer.arrived.release()
    peer.hold()


def dripping_head(peer: Peer, sock: Any) -> None:
    """Answer with a header that does not end."""
    read_request(sock)
    sock.sendall(b"HTTP/1.1 101 Switching\r\nX: ")
    peer.arrived.release()
    while not peer.over.wait(0.005):
        sock.sendall(b"x")


@contextlib.contextmanager
def connected(
    client_context: ssl.SSLContext | None,
    server_context: ssl.SSLContext | None,
    *,
    receive_buffer: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[tuple[Stream, Any]]:
    """An open stream and the blocking socket at its other end."""
    stream = Stream(clock=clock)
    with contextlib.ExitStack() as stack:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            if receive_buffer is not None:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)

            def accept() -> Any:
                sock: Any = stack.enter_context(listener.accept()[0])
                sock.settimeout(LONG)
                if server_context is not None:
                    sock = stack.enter_context(server_context.wrap_socket(sock, server_side=True))
                return sock

            accepting = Background(accept)
            stack.callback(stream.release)
            stream.open([where(listener)], Deadline(LONG, clock), tls=client_context, host="localhost")
            peer = accepting.result()
        yield stream, peer


class Owner:
    """A `LinkOwner` that keeps what it is told, and can be waited for.

    Attributes:
        takes: What `link_received` returns.
        on_received: Called in it, before it returns.
        on_lent: Called in `link_lent`, which returns what it returns.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.reports: list[Any] = []
        self.readers: list[str] = []
        self.takes = True
        self.on_received: Callable[[Sequence[Any]], object] = lambda events: None
        self.on_lent: Callable[[], bool] = lambda: True

    def link_reading(self, link: Link, *, lends: bool = False) -> None:
        self.readers.append(threading.current_thread().name)

    def link_ready(self, link: Link) -> None:
        self._report("ready")

    def link_received(self, link: Link, events: Sequence[Any]) -> bool:
        takes = self.takes
        for event in events:
            self._report(event)
        self.on_received(events)
        return takes

    def link_lent(self, link: Link) -> bool:
        return self.on_lent()

    def link_ended(self, link: Link, ended: Ended) -> None:
        self._report(ended)

    def _report(self, what: Any) -> None:
        with self.changed:
            self.reports.append(what)
            self.changed.notify_all()

    def wait_for(self, predicate: Callable[[], Any], what: str) -> Any:
        with self.changed:
            assert self.changed.wait_for(predicate, LONG), f"{what} did not come; there was {self.reports}"
            return predicate()

    def wait_ready(self) -> None:
        self.wait_for(lambda: "ready" in self.reports, "ready")

    def wait_ended(self) -> Ended:
        ended: Ended = self.wait_for(
            lambda: next((report for report in self.reports if isinstance(report, Ended)), None), "the end"
        )
        return ended

    def wait_message(self, identity: object) -> None:
        self.wait_for(lambda: identity in self.ids, f"message {identity}")

    @property
    def ids(self) -> list[object]:
        """The ids of the messages received, but for the server's ready and pongs."""
        return [report["id"] for report in list(self.reports) if isinstance(report, dict) and "id" in report]


class Read(Connection):
    """Is read by a thread of its own once it is open, for tests that have no connector."""

    def open(self) -> None:
        super().open()
        self._threads.spawn(self.read, "llm-reader")


class Links:
    """Makes connections, and ends them all with the test."""

    def __init__(self, client_context: ssl.SSLContext) -> None:
        self._context = client_context
        self.threads = ThreadGroup()
        self.made: list[Connection] = []

    def make(
        self,
        port: int,
        owner: Owner,
        *,
        tls: bool,
        host: str = "localhost",
        found: Sequence[AddressInfo] | Callable[[str, int], list[AddressInfo]] | None = None,
        timing: Timing = Timing(),  # noqa: B008  # frozen
        clock: Callable[[], float] = time.monotonic,
        ssl_context: ssl.SSLContext | None = None,
        path: str = "",
        **request: Any,
    ) -> Connection:
        url = f"{'wss' if tls else 'ws'}://{host}:{port}/{path}"
        loopback: list[AddressInfo] = [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))
        ]
        addresses = loopback if found is None else found
        link = Read(
            OpenRequest(
                url,
                Address(host, port, tls),
                "Bearer token",
                ssl_context=(ssl_context or self._context) if tls else None,
                timing=timing,
                **{"open_timeout": LONG, **request},
            ),
            owner,
            f"test#{len(self.made)}",
            threads=self.threads,
            resolver=addresses if callable(addresses) else lambda host, port: list(addresses),
            clock=clock,
        )
        self.made.append(link)
        return link

    def close(self) -> None:
        for link in self.made:
            link.abort()
        assert self.threads.join(Deadline(LONG)) == []
