"""Through a proxy: CONNECT (RFC 9110 9.3.6) or SOCKS5 on an open stream, until the other end is the server.

The stream's one deadline covers it, and `abort` ends it at any byte. The proxy learns the server's host and
port and our name for it, and nothing else: no URL, no header and no token. Nothing may come behind its last
answer, for a WebSocket server does not speak first, with TLS or without.

=================================  ===========================================================
the proxy does not answer          retried, as from any host
408, 429, 5xx                      retried: the proxy is busy, or cannot reach the server
any other status but 2xx, 407 too  final before the first online: a setting is wrong
SOCKS: it cannot reach the server  retried
SOCKS: it refuses                  final before the first online
=================================  ===========================================================
"""

from __future__ import annotations

import re
from typing import Final

from .._logging import redact
from .._sync import Deadline
from .._version import __version__
from ..protocol.closing import Failure
from ..protocol.url import Address
from .head import NotHTTP, read_head
from .proxies import ProxyAddress
from .socks import socks_connect
from .stream import Stream
from .transport import AttemptFailed

__all__ = ["open_tunnel", "refusal"]

_STATUS: Final = re.compile(rb"HTTP/\d\.\d +(\d{3})(?: +([^\r\n]*))?\r\n")
_RETRY_AFTER: Final = re.compile(rb"\r\nretry-after:[ \t]*([^\r\n]*)", re.IGNORECASE)
_MAX_PHRASE: Final = 100  # characters of the proxy's own words that become part of ours


def open_tunnel(stream: Stream, proxy: ProxyAddress, host: str, address: Address, deadline: Deadline) -> None:
    """Have a proxy connect us.

    Args:
        stream: Connected to the proxy, TLS to it done.
        proxy: What it is.
        host: The server's name, or its number if names are not the proxy's business.
        address: The server, for its port and for messages.
        deadline: Of the whole attempt.

    Raises:
        AttemptFailed: If it does not; says what the proxy answered.
        StreamTimeout, StreamAborted, StreamClosed, StreamBroken: From the stream, as they are.
    """
    if any(ch <= " " or ch == "\x7f" for ch in host):
        raise AttemptFailed(Failure.MISPLACED, f"no proxy can be asked for the host {host!r}")
    if proxy.socks:
        glued = socks_connect(stream, proxy, host, address.port, deadline)
    else:
        glued = _connect(stream, proxy, address, deadline)
    if glued:
        raise AttemptFailed(
            Failure.MISPLACED,
            f"the proxy {proxy} sent more than its answer; nobody speaks first on the way to {address}",
        )


def _connect(stream: Stream, proxy: ProxyAddress, address: Address, deadline: Deadline) -> bytes:
    lines = [
        f"CONNECT {address} HTTP/1.1",
        f"Host: {address}",
        f"User-Agent: llm-sessions/{__version__}",
    ]
    if proxy.authorization is not None:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    stream.send("".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii"), deadline)
    try:
        head, glued = read_head(stream, deadline)
    except NotHTTP as exc:
        raise AttemptFailed(
            Failure.MISPLACED, f"the proxy {proxy} does not speak HTTP, so it is no HTTP proxy: {exc}"
        ) from exc
    found = _STATUS.match(head)
    if found is None:
        raise AttemptFailed(Failure.MISPLACED, f"the proxy {proxy} answered without a status")
    status = int(found[1])
    if 200 <= status <= 299:
        return glued
    asked_to_wait = _RETRY_AFTER.search(head)
    retry_after = asked_to_wait[1].decode("latin-1").strip() if asked_to_wait else None
    raise refusal(proxy, str(address), status, (found[2] or b"").decode("latin-1"), retry_after)


def refusal(
    proxy: ProxyAddress, where: str, status: int, phrase: str, retry_after: str | None = None
) -> AttemptFailed:
    """Say what a proxy's answer to CONNECT means.

    Args:
        proxy: Whose answer it is.
        where: Host and port that it was asked for.
        status: Its status, not 2xx.
        phrase: What it said with it, in its own words.
        retry_after: Its `Retry-After`.
    """
    said = "".join(ch for ch in redact(phrase) if ch.isprintable())[:_MAX_PHRASE].strip()
    what = f"{status} {said}".rstrip()
    message = f"the proxy {proxy} refused: {what}"
    if status in (502, 503, 504):
        message = f"the proxy {proxy} cannot reach {where}: {what}"
    busy = status in (408, 429) or status >= 500
    failure = Failure.BUSY if busy else Failure.MISPLACED
    return AttemptFailed(failure, message, status=status, retry_after=retry_after if busy else None)
