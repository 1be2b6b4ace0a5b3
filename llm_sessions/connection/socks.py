"""SOCKS5 (RFC 1928, RFC 1929) over a stream, by python-socks. The only importer of it, when it is needed.

python-socks' own connect blocks in a socket that nobody can end, so it is asked for the messages only. The
objects that make and read them do no I/O.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Final

from .._sync import Deadline
from ..errors import ConfigurationError
from ..protocol.closing import Failure
from .proxies import ProxyAddress
from .stream import Stream
from .transport import AttemptFailed

__all__ = ["check_installed", "socks_connect"]

# The proxy's network failed it: another attempt may fare better. Other replies are a refusal.
_PASSING: Final = frozenset({1, 3, 4, 5, 6})
_TAIL: Final = {1: 4, 4: 16}  # bytes of an address by its type; a name says its own length


def check_installed(*needed: str) -> None:
    """Refuse SOCKS without what it needs.

    Args:
        needed: Modules.

    Raises:
        ConfigurationError
    """
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise ConfigurationError(
            "proxy", "SOCKS needs more packages; install them with: pip install llm-sessions[socks]"
        )


def socks_connect(stream: Stream, proxy: ProxyAddress, host: str, port: int, deadline: Deadline) -> bytes:
    """Ask a SOCKS5 proxy for a connection.

    Args:
        stream: Connected to the proxy.
        proxy: For its user and password, and for messages.
        host: Where to; a name is looked up by the proxy.
        port: Where to.
        deadline: Of the whole attempt.

    Returns:
        What came behind the last answer.

    Raises:
        AttemptFailed: If the proxy refuses, cannot reach the host, or does not speak SOCKS5.
        StreamTimeout, StreamAborted, StreamClosed, StreamBroken: From the stream, as they are.
    """
    check_installed("python_socks")
    from python_socks._protocols import socks5
    from python_socks._protocols.errors import ReplyError

    pieces, talk = _Pieces(stream, deadline), socks5.Connection()

    def ask(message: Any, size: int) -> Any:
        stream.send(talk.send(message), deadline)
        data = pieces.take(size)
        return talk.receive(data if size < 3 else _whole(pieces, data))

    step = "does not speak SOCKS5"
    try:
        method = ask(socks5.AuthMethodsRequest(username=proxy.user, password=proxy.password), 2)
        if method.method == socks5.AuthMethod.USERNAME_PASSWORD:
            step = "refused the user or the password"
            ask(socks5.AuthRequest(username=proxy.user or "", password=proxy.password), 2)
        step = "refused"
        ask(socks5.ConnectRequest(host=host, port=port), 3)
    except ReplyError as exc:
        code = getattr(exc, "error_code", None)
        if code in _PASSING:
            raise AttemptFailed(
                Failure.NETWORK, f"the proxy {proxy} cannot reach {host}:{port}: {exc}"
            ) from exc
        raise AttemptFailed(Failure.MISPLACED, f"the proxy {proxy} {step}: {exc}") from exc
    except ValueError as exc:  # a name that cannot be sent, an address that is none
        raise AttemptFailed(
            Failure.MISPLACED, f"the proxy {proxy} cannot be asked for {host}:{port}: {exc}"
        ) from exc
    return pieces.left


def _whole(pieces: _Pieces, data: bytes) -> bytes:
    """Return the whole answer to the last request; its length depends on what is in it."""
    if data != b"\x05\x00\x00":
        return data  # a refusal: nothing more of it matters
    data += pieces.take(1)
    size = _TAIL.get(data[3])
    if data[3] == 3:
        data += pieces.take(1)
        size = data[4]
    return data if size is None else data + pieces.take(size + 2)


class _Pieces:
    """Takes exact numbers of bytes from a stream."""

    def __init__(self, stream: Stream, deadline: Deadline) -> None:
        self._stream, self._deadline = stream, deadline
        self.left = b""

    def take(self, size: int) -> bytes:
        while len(self.left) < size:
            self.left += self._stream.read_within(self._deadline)
        data, self.left = self.left[:size], self.left[size:]
        return data
