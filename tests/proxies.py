"""HTTP and SOCKS5 proxies on the loopback that relay, refuse, or stop where the test says."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest

from tests.peers import Peer
from tests.support import LONG

USER, PASSWORD = "us er", "p@ss:w/rd-of-the-proxy"
CREDENTIALS: Final = "us%20er:p%40ss%3Aw%2Frd-of-the-proxy"
ENCODED: Final = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
"""What a header has of these."""

HOST: Final = "mercury.test"
"""A name that only proxies know."""

VARIABLES: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method")


def clean_environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Set these variables and no others that are about proxies."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


class Proxy:
    """A proxy that does what it should, or `instead` of it what a test says.

    Args:
        kind: `http` or `socks5`.
        context: For TLS to the proxy.
        auth: Whether it asks for `USER` and `PASSWORD`.
        routes: Port of the loopback by the host that clients ask for; others are taken as they are.
        instead: Called with the peer and the socket once a request has come; nothing is relayed then.

    Attributes:
        asked: `host:port` of each request.
        heads: The head of each CONNECT.
    """

    def __init__(
        self,
        kind: str = "http",
        *,
        context: ssl.SSLContext | None = None,
        auth: bool = False,
        routes: Mapping[str, int] | None = None,
        instead: Callable[[Peer, Any], object] | None = None,
    ) -> None:
        self.kind, self.tls, self.auth = kind, context is not None, auth
        self.routes, self.instead = dict(routes or {}), instead
        self.asked: list[str] = []
        self.heads: list[bytes] = []
        self.peer = Peer(self._serve, context)

    def __enter__(self) -> Proxy:
        self.peer.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.peer.__exit__(*exc)

    @property
    def port(self) -> int:
        return self.peer.port

    def url(self, scheme: str | None = None, *, credentials: str | None = None) -> str:
        scheme = scheme or ("https" if self.tls else self.kind)
        named = CREDENTIALS if credentials is None and self.auth else credentials
        host = "127.0.0.1" if self.kind == "socks5" else "localhost"
        return f"{scheme}://{f'{named}@' if named else ''}{host}:{self.port}"

    def _serve(self, peer: Peer, sock: Any) -> None:
        where = self._http(peer, sock) if self.kind == "http" else self._socks(peer, sock)
        if where is None:
            return
        target = self.routes.get(where[0], where[1])
        with socket.create_connection(("127.0.0.1", target), timeout=LONG) as server:
            if self.kind == "http":
                sock.sendall(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            else:
                sock.sendall(b"\x05\x00\x00\x03\x04name\x00\x50")
            _relay(sock, server, peer)

    def _http(self, peer: Peer, sock: Any) -> tuple[str, int] | None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = sock.recv(4096)
            if not piece:
                return None
            head += piece
        self.heads.append(head)
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        assert method == "CONNECT", head
        self.asked.append(target)
        if self.instead is not None:
            self.instead(peer, sock)
            return None
        if self.auth and f"Proxy-Authorization: Basic {ENCODED}".encode() not in head:
            sock.sendall(
                b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                b'Proxy-Authenticate: Basic realm="x"\r\nContent-Length: 999\r\n\r\n<html>'
            )
            return None
        host, _, port = target.rpartition(":")
        return host.strip("[]"), int(port)

    def _socks(self, peer: Peer, sock: Any) -> tuple[str, int] | None:
        version, count = _take(sock, 2)
        assert version == 5
        methods = _take(sock, count)
        wanted = 2 if self.auth else 0
        if wanted not in methods:
            sock.sendall(b"\x05\xff")
            return None
        sock.sendall(bytes((5, wanted)))
        if self.auth:
            user = _take(sock, _take(sock, 2)[1])
            password = _take(sock, _take(sock, 1)[0])
            good = (user, password) == (USER.encode(), PASSWORD.encode())
            sock.sendall(b"\x01\x00" if good else b"\x01\x01")
            if not good:
                return None
        kind = _take(sock, 4)[3]
        if kind == 3:
            host = _take(sock, _take(sock, 1)[0]).decode()
        else:
            family, size = (socket.AF_INET, 4) if kind == 1 else (socket.AF_INET6, 16)
            host = socket.inet_ntop(family, _take(sock, size))
        port = int.from_bytes(_take(sock, 2), "big")
        self.asked.append(f"{host}:{port}")
        if self.instead is not None:
            self.instead(peer, sock)
            return None
        return host, port


def _take(sock: Any, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionAbortedError("the client left")
        data += piece
    return data


def _relay(client: Any, server: socket.socket, peer: Peer) -> None:
    """Pass bytes both ways on this thread: one TLS object is nothing for two."""
    client.settimeout(LONG)
    while not peer.over.is_set():
        pending = getattr(client, "pending", lambda: 0)()
        readable = [client] if pending else select.select([client, server], [], [], 0.05)[0]
        for source, sink in ((client, server), (server, client)):
            if source in readable:
                data = source.recv(1 << 16)
                if not data:
                    return
                sink.sendall(data)


def say(data: bytes) -> Callable[[Peer, Any], object]:
    """Answer this, and stay."""
    return lambda peer, sock: (sock.sendall(data), peer.hold())


def drip(peer: Peer, sock: Any) -> None:
    """An answer that never ends, a byte now and then."""
    with contextlib.suppress(OSError):
        sock.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while not peer.over.wait(0.01):
            sock.sendall(b"x")
