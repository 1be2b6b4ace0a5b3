"""The opening handshake (RFC 6455 4), by websocket-client, over our stream. Nothing else is asked of it.

websocket-client gets a stand-in for a socket. It reads the answer's head in few pieces and within one
deadline and a size limit, and keeps two things apart that websocket-client does not: cookies, which it
shares between all sockets of the process, and the bytes that came glued to the answer, which are the first
frames.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import websocket

from .._sync import Deadline
from .._version import __version__
from ..protocol.closing import Failure, classify_status
from ..protocol.url import Address
from .stream import Stream, StreamBroken, StreamClosed
from .transport import AttemptFailed

__all__ = ["upgrade"]

_MAX_HEAD: Final = 64 * 1024  # bytes; Apache and nginx refuse heads far smaller than this
_MAX_BODY: Final = 16 * 1024  # bytes of a refusal's body, of which only the kind is reported

_COOKIE_OUT: Final = re.compile(rb"\r\n[Cc]ookie:[^\r\n]*")
_COOKIES_IN: Final = re.compile(rb"(?i)(?<=\r\n)set-cookie2?:[^\r\n]*\r\n")


class _NotHTTP(Exception):
    """The answer is no HTTP response head."""


class _HandshakeSocket:
    """What websocket-client takes for a connected socket.

    Its timeout is 0, else websocket-client would wait with a selector of its own.
    """

    def __init__(self, stream: Stream, deadline: Deadline, own_cookies: int) -> None:
        self._stream, self._deadline, self._own_cookies = stream, deadline, own_cookies
        self._head: bytes | None = None
        self._body_seen = 0
        self.rest = b""

    def gettimeout(self) -> float:
        return 0

    def settimeout(self, timeout: object) -> None:
        pass  # one deadline holds for all

    def fileno(self) -> int:
        return -1

    def send(self, data: bytes) -> int:
        cookies = list(_COOKIE_OUT.finditer(data))
        for shared in reversed(cookies[self._own_cookies :]):
            data = data[: shared.start()] + data[shared.end() :]
        self._stream.send(data, self._deadline)
        return len(data)

    def recv(self, size: int) -> bytes:
        if self._head is None:
            self._head = self._read_head()
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        # The body of a refusal. Ours never asks for one of a 101.
        if not self.rest and self._body_seen < _MAX_BODY:
            self.rest = self._stream.read_within(self._deadline)
        if self._body_seen >= _MAX_BODY:
            return b" " * size  # enough was seen to tell what it is
        data, self.rest = self.rest[:size], self.rest[size:]
        self._body_seen += len(data)
        return data

    def _read_head(self) -> bytes:
        data = b""
        scanned = 0
        while (end := data.find(b"\r\n\r\n", max(0, scanned - 3))) < 0:
            scanned = len(data)
            if scanned >= 5 and not data.startswith(b"HTTP/"):
                raise _NotHTTP(f"it sent {data[:16]!r}")
            if scanned > _MAX_HEAD:
                raise _NotHTTP(f"its header is longer than {_MAX_HEAD} bytes")
            data += self._stream.read_within(self._deadline)
        if not data.startswith(b"HTTP/"):
            raise _NotHTTP(f"it sent {data[:16]!r}")
        self.rest = data[end + 4 :]
        return _COOKIES_IN.sub(b"", data[: end + 4])

    def close(self) -> None:
        self._stream.abort()

    def shutdown(self, how: int = 2) -> None:
        self._stream.abort()


def upgrade(stream: Stream, url: str, address: Address, headers: Mapping[str, str], deadline: Deadline) -> bytes:
    """Make a WebSocket of an open stream.

    Args:
        stream: Connected, TLS done.
        url: For the request line and the `Host` header.
        address: For messages.
        headers: Extra request headers, checked.
        deadline: Of the whole attempt.

    Returns:
        The bytes that followed the answer: the first frames.

    Raises:
        AttemptFailed: If the server answers with anything but a WebSocket upgrade.
        StreamTimeout, StreamAborted, StreamBroken: From the stream, as they are.
    """
    names = {name.lower() for name in headers}
    request = {} if "user-agent" in names else {"User-Agent": f"llm-sessions/{__version__}"}
    request.update(headers)
    sock = _HandshakeSocket(stream, deadline, own_cookies=1 if "cookie" in names else 0)
    client = websocket.WebSocket(enable_multithread=False)
    try:
        client.connect(
            url,
            socket=sock,
            header=[f"{name}: {value}" for name, value in request.items()],
            suppress_origin=True,  # we are no web page
            redirect_limit=0,  # a redirect would carry credentials to another place
        )
    except websocket.WebSocketBadStatusException as exc:
        raise _refusal(exc, address) from exc
    except _NotHTTP as exc:
        raise AttemptFailed(
            Failure.MISPLACED, f"{address} does not speak HTTP, so it is no WebSocket server: {exc}"
        ) from exc
    except StreamClosed as exc:
        raise StreamBroken("the connection was closed during the opening handshake") from exc
    except (websocket.WebSocketException, ValueError, OSError) as exc:
        # Also a redirect, an answer that is not signed with our key, and a malformed head.
        raise AttemptFailed(
            Failure.MISPLACED, f"{address} did not upgrade to a WebSocket: {exc}"
        ) from exc
    if client.getstatus() != 101:  # 1.9.0 takes a redirect for success
        raise AttemptFailed(
            Failure.MISPLACED, f"{address} answered HTTP {client.getstatus()} instead of a WebSocket upgrade"
        )
    return sock.rest


def _refusal(exc: websocket.WebSocketBadStatusException, address: Address) -> AttemptFailed:
    headers = exc.resp_headers or {}
    status = exc.status_code
    kind = headers.get("content-type", "").partition(";")[0]
    what = f"HTTP {status}" + (f" with {kind}" if kind else "")
    return AttemptFailed(
        classify_status(status),
        f"{address} answered {what} instead of a WebSocket upgrade",
        status=status,
        retry_after=headers.get("retry-after"),
    )
