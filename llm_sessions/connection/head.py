"""The head of an HTTP answer, read from a stream: in few pieces, within one deadline and a size limit."""

from __future__ import annotations

from typing import Final

from .._logging import redact
from .._sync import Deadline
from .stream import Stream

__all__ = ["NotHTTP", "read_head"]

_MAX_HEAD: Final = 64 * 1024  # bytes before the empty line; Apache and nginx refuse heads far smaller


class NotHTTP(Exception):
    """The answer is no HTTP response head."""


def read_head(stream: Stream, deadline: Deadline) -> tuple[bytes, bytes]:
    """Return a response head with the empty line at its end, and the bytes that came with it.

    Raises:
        NotHTTP: As soon as it cannot become one.
        StreamTimeout, StreamAborted, StreamClosed, StreamBroken: From the stream, as they are.
    """
    data = b""
    scanned = 0
    while (end := data.find(b"\r\n\r\n", max(0, scanned - 3))) < 0 and len(data) < _MAX_HEAD + 4:
        scanned = len(data)
        if scanned >= 5 and not data.startswith(b"HTTP/"):
            break
        data += stream.read_within(deadline)
    if not data.startswith(b"HTTP/"):
        said = redact(data.decode("latin-1")).encode("latin-1")  # first: the cut would leave half a secret
        raise NotHTTP(f"it sent {said[:16]!r}")
    if not 0 <= end <= _MAX_HEAD:
        raise NotHTTP(f"its header is longer than {_MAX_HEAD} bytes")
    return data[: end + 4], data[end + 4 :]
