"""Where to connect: what a WebSocket URL may be, and the query that a Mercury server wants on it."""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote_plus, urlsplit, urlunsplit

from ..errors import ConfigurationError

__all__ = ["Address", "check_headers", "connection_url", "is_loopback", "parse_url"]

_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}


@dataclasses.dataclass(frozen=True)
class Address:
    """The part of a WebSocket URL that the transport needs.

    Attributes:
        host: Name or IP address, without brackets.
        port: TCP port.
        tls: Whether the scheme is `wss`.
    """

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_url(url: object, *, allow_insecure: bool, argument: str = "url") -> Address:
    """Check a WebSocket URL and return its address.

    Args:
        url: `ws://` or `wss://`.
        allow_insecure: Whether `ws://` may go anywhere; otherwise only to loopback, for the token crosses
            it in the clear.
        argument: The name to use in the error.

    Raises:
        ConfigurationError: If it is not such a URL.
    """
    if not isinstance(url, str):
        raise ConfigurationError(argument, f"must be a string, not {type(url).__name__}")
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise ConfigurationError(argument, "must be printable ASCII without spaces; percent-encode the rest")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port  # each is looked for anew when it is asked for
    except ValueError as exc:
        raise ConfigurationError(argument, f"is not a URL: {exc}") from exc
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise ConfigurationError(
            argument, f"must start with ws:// or wss://, not {parts.scheme or 'nothing'}"
        )
    if not host:
        raise ConfigurationError(argument, "must name a host")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(argument, "must not hold a user or a password")
    if parts.fragment:
        raise ConfigurationError(argument, "must not have a fragment (RFC 6455 3)")
    if port == 0:
        raise ConfigurationError(argument, "must not have port 0")
    tls = scheme == "wss"
    if not tls and not allow_insecure and not is_loopback(host):
        raise ConfigurationError(
            argument,
            f"ws:// sends the token to {host} unencrypted; use wss://, a loopback host, or "
            "PoolConfig(allow_insecure=True)",
        )
    return Address(host, port if port is not None else _DEFAULT_PORTS[scheme], tls)


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine by its name or number alone (RFC 6761 6.3, RFC 1122, RFC 4291)."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback  # with a dot at its end it would be looked up as a name
    except ValueError:
        return False


def connection_url(url: str, *, now_ms: int) -> str:
    """Return `url` with the query that every connect carries (protocol.md 1.1).

    Other keys stay as they are, to the letter. A URL that has `mercuryRegistrationStatus` gets no
    `bufferStates`: its server announces readiness the other way.

    Args:
        url: The session's own URL.
        now_ms: The wall clock in milliseconds since the epoch, fresh for every attempt.
    """
    wanted = {
        "outboundWireFormat": "text",
        "bufferStates": "true",
        "aliasHttpStatus": "true",
        "clientTimestamp": str(now_ms),
    }
    parts = urlsplit(url)
    pairs = [pair for pair in parts.query.split("&") if pair]
    keys = [unquote_plus(pair.partition("=")[0]) for pair in pairs]
    kept = [pair for pair, key in zip(pairs, keys, strict=True) if key not in wanted]
    if "mercuryRegistrationStatus" in keys:
        del wanted["bufferStates"]
    query = "&".join(kept + [f"{key}={value}" for key, value in wanted.items()])
    return urlunsplit((parts.scheme, parts.netloc, parts.path or "/", query, ""))


_HANDSHAKE_HEADERS: Final = frozenset(
    {"host", "upgrade", "connection", "content-length", "transfer-encoding"}
)


def check_headers(headers: Mapping[str, str], argument: str = "headers") -> None:
    """Refuse headers that would break out of their line or take the opening handshake over.

    Raises:
        ConfigurationError: If a name is no token, is part of the handshake (RFC 6455 4.1), or a value has
            a control character.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ConfigurationError(argument, "names and values must be strings")
        token = name.replace("-", "").replace("_", "").replace(".", "")
        if not (token.isascii() and token.isalnum()):
            raise ConfigurationError(argument, f"{name!r} is not a header name")
        if name.lower() in _HANDSHAKE_HEADERS or name.lower().startswith("sec-websocket-"):
            raise ConfigurationError(argument, f"{name} belongs to the opening handshake")
        if any(ch < " " or ch == "\x7f" for ch in value) or not value.isascii():
            raise ConfigurationError(argument, f"the value of {name} must be printable ASCII")
