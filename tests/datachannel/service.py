"""A token service on a raw loopback socket: it answers what the test says, or does worse."""

from __future__ import annotations

import json
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl

from llm_sessions import OAuthTokens
from tests.peers import Peer
from tests.support import LONG, Gate

ID, SECRET, REFRESH, ACCESS = "client-id", "s3cret-of-the-client", "s3cret-refresh-0", "s3cret-access-0"


def read_post(sock: Any) -> tuple[bytes, dict[str, str]]:
    """Read one request; return its head and the form in it, if there is one."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(4096)
        if not piece:
            raise ConnectionAbortedError("the client left")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    sizes = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < sum(sizes):
        body += sock.recv(4096)
    return head, dict(parse_qsl(body.decode()))


def http_answer(status: int, body: object, **headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(content)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


class TokenService:
    """Answers each POST with new tokens, or with the next of `answers`.

    Attributes:
        answers: Bytes to send, or calls that get the peer and the socket and do the rest.
        forms: What was asked, in order.
        heads: The head of each request.
        gate: If set, each request stops there before it is answered.
        expires_in: Of the tokens handed out; None leaves it out.
        rotate: Whether a new refresh token comes with each.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: list[bytes | Callable[[Peer, Any], object]] = []
        self.forms: list[dict[str, str]] = []
        self.heads: list[bytes] = []
        self.gate: Gate | None = None
        self.expires_in: float | None = 3600
        self.rotate = True
        self._lock = threading.Lock()
        self.peer = Peer(self._serve, context)
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.peer.port}/v1/access_token"

    def __enter__(self) -> TokenService:
        self.peer.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.gate is not None:
            self.gate.open()
        self.peer.__exit__(*exc)

    def tokens(self, **options: Any) -> OAuthTokens:
        """Return a source that asks here."""
        settings = {"url": self.url, "timeout": LONG, **options}
        return OAuthTokens(ID, SECRET, settings.pop("refresh_token", REFRESH), **settings)

    def _serve(self, peer: Peer, sock: Any) -> None:
        head, form = read_post(sock)
        with self._lock:
            self.heads.append(head)
            self.forms.append(form)
            number, gate = len(self.forms), self.gate
            answer = self.answers.pop(0) if self.answers else http_answer(200, self._grant(number))
        if gate is not None:
            gate.pass_through()
        if isinstance(answer, bytes):
            sock.sendall(answer)
        else:
            answer(peer, sock)

    def _grant(self, number: int) -> dict[str, object]:
        grant: dict[str, object] = {"access_token": f"s3cret-access-{number}", "token_type": "Bearer"}
        if self.expires_in is not None:
            grant["expires_in"] = self.expires_in
        if self.rotate:
            grant |= {"refresh_token": f"s3cret-refresh-{number}", "refresh_token_expires_in": 7200}
        return grant


def drip(start: bytes) -> Callable[[Peer, Any], object]:
    """An answer that never ends: `start`, then a byte now and then."""

    def script(peer: Peer, sock: Any) -> None:
        sock.sendall(start)
        while not peer.over.wait(0.01):
            sock.sendall(b"x")

    return script


def everything_in(error: BaseException) -> Iterator[str]:
    """Yield every text in an exception: its chain, their attributes, and our frames in their tracebacks."""
    seen: list[BaseException] = []
    todo = [error]
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.append(one)
        yield from (str(one), repr(one), repr(one.args), repr(vars(one)))
        yield from traceback.format_exception(type(one), one, one.__traceback__)
        todo += [link for link in (one.__cause__, one.__context__) if link is not None]
        trace = one.__traceback__
        while trace is not None:
            if "llm_sessions" in trace.tb_frame.f_code.co_filename:
                yield from (repr(value) for value in trace.tb_frame.f_locals.values())
            trace = trace.tb_next
