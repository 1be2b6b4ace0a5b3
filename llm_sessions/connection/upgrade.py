"""The opening handshake (RFC 6455 4), by websocket-client, over our stream. Nothing else is asked of it.

websocket-client gets a stand-in for a socket. It reads the answer's head as `head.py` does, and withholds
three things: cookies, which websocket-client shares between all sockets of the process; the length of a
refusal's body, which it would read to the end, however long or slow that is; and the bytes that came glued
to the answer, which are the first frames.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

import websocket

from .._logging import redact
from .._sync import Deadline
from .._version import __version__
from ..protocol.closing import Failure, classify_status
from ..protocol.url import Address
from .head import NotHTTP, read_head
from .stream import Stream
from .stream_errors import StreamBroken, StreamClosed
from .transport import AttemptFailed

__all__ = ["upgrade"]

_HIDDEN: Final = ("set-cookie:", "set-cookie2:", "content-length:")


class _HandshakeSocket:
    """What websocket-client takes for a connected socket.

    Its timeout is 0, else websocket-client would wait with a selector of its own.
    """

    def __init__(self, stream: Stream, deadline: Deadline, own_cookies: int) -> None:
        self._stream, self._deadline, self._own_cookies = stream, deadline, own_cookies
        self.rest = b""

    def gettimeout(self) -> float:
        return 0

    def settimeout(self, timeout: object) -> None:
        pass  # one deadline holds for all

    def fileno(self) -> int:
        return -1

    def send(self, data: bytes) -> int:
        # The caller's own headers come first; a cookie after them is from websocket-client's jar.
        lines = data.split(b"\r\n")
        cookies = [number for number, line in enumerate(lines) if line.lower().startswith(b"cookie:")]
        for shared in reversed(cookies[self._own_cookies :]):
            del lines[shared]
        self._stream.send(b"\r\n".join(lines), self._deadline)
        return len(data)

    def recv(self, size: int) -> bytes:
        # It is asked for one byte at a time: from now on straight from a buffer.
        self.recv = io.BytesIO(self._read_head()).read  # type: ignore[method-assign, assignment]
        return self.recv(size)

    def _read_head(self) -> bytes:
        data, self.rest = read_head(self._stream, self._deadline)
        return b"\n".join(line for line in data.split(b"\n") if not _is_hidden(line))

    def close(self) -> None:
        self._stream.abort()

    def shutdown(self, how: int = 2) -> None:
        self._stream.abort()


def _is_hidden(line: bytes) -> bool:
    # Lines and names as websocket-client takes them, which is less strictly than HTTP says.
    return line.decode("utf-8", "replace").strip().lower().startswith(_HIDDEN)


def upgrade(
    stream: Stream, url: str, address: Address, headers: Mapping[str, str], deadline: Deadline
) -> bytes:
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
    names = [name.lower() for name in headers]
    request = {} if "user-agent" in names else {"User-Agent": f"llm-sessions/{__version__}"}
    request.update(headers)
    sock = _HandshakeSocket(stream, deadline, own_cookies=names.count("cookie"))
    client: Any = websocket.WebSocket(enable_multithread=False)
    refused: tuple[int, Mapping[str, str] | None] | None = None
    try:
        client.connect(
            url,
            socket=sock,
            header=[f"{name}: {value}" for name, value in request.items()],
            suppress_origin=True,  # we are no web page
            redirect_limit=0,  # a redirect would carry credentials to another place
        )
    except websocket.WebSocketBadStatusException as exc:
        refused = exc.status_code, exc.resp_headers
    except NotHTTP as exc:
        raise AttemptFailed(
            Failure.MISPLACED, f"{address} does not speak HTTP, so it is no WebSocket server: {exc}"
        ) from exc
    except StreamClosed as exc:
        raise StreamBroken("the connection was closed during the opening handshake") from exc
    except (websocket.WebSocketException, ValueError, LookupError, OSError) as exc:
        status = client.getstatus()
        if status in (None, 101):
            # An answer that is not signed with our key, or a malformed head (LookupError up to 1.9.0).
            what = f"{address} did not upgrade to a WebSocket: {redact(str(exc))}"
            raise AttemptFailed(Failure.MISPLACED, what) from exc
        refused = status, client.getheaders()  # a redirect, which raises from 1.9.1 on
    else:
        if client.getstatus() != 101:  # a redirect, which older ones take for success
            refused = client.getstatus(), client.getheaders()
    if refused is not None:
        # Not from websocket-client's exception: that quotes the answer's head, which may quote our URL, and
        # so the token in it.
        raise _refusal(address, *refused) from websocket.WebSocketBadStatusException(
            f"handshake status {refused[0]}", refused[0]
        )
    return sock.rest


def _refusal(address: Address, status: int, headers: Mapping[str, str] | None) -> AttemptFailed:
    headers = headers or {}
    kind = redact(headers.get("content-type", "").partition(";")[0])
    what = f"HTTP {status}" + (f" with {kind}" if kind else "")
    return AttemptFailed(
        classify_status(status),
        f"{address} answered {what} instead of a WebSocket upgrade",
        status=status,
        retry_after=headers.get("retry-after"),
    )
