"""Which proxy leads to a host. One answer for WebSockets and REST alike, worked out anew for every attempt.

The environment is read by the rules of requests, which most programs here use already:

- `http_proxy` is for ws and http, `https_proxy` for wss and https, `all_proxy` for what has none of its own.
  Lower case wins over upper case, and in a CGI process `HTTP_PROXY` does not count.
- `no_proxy` lists who is reached without one: names with all that end in them, addresses, networks
  (`10.0.0.0/8`), each but these with a port if need be, or `*`.
- A value without a scheme is an HTTP proxy.

On top of that, what goes to loopback goes there: a proxy elsewhere has another loopback, and may not see what
is sent to ours in the clear. Only a URL that is itself on loopback is used for it.
"""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import os
from typing import Final
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from .._logging import know_secret
from ..errors import ConfigurationError
from ..protocol.url import Address, is_loopback

__all__ = ["ENVIRONMENT", "ProxyAddress", "check_setting", "choose", "parse_proxy"]

ENVIRONMENT: Final = "environment"
"""The setting that has the variables of the environment looked at."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_VARIABLES: Final = {"ws": "http", "http": "http", "wss": "https", "https": "https"}
_MAX_CREDENTIAL: Final = 255  # bytes of a user or a password: RFC 1929 counts them in one


@dataclasses.dataclass(frozen=True)
class ProxyAddress:
    """Where a proxy is and what it speaks. Neither `repr` nor `str` shows who we are to it.

    Attributes:
        scheme: `http`, `https` (TLS to the proxy itself), `socks5` (names are looked up here) or `socks5h`
            (the proxy looks them up).
        host: Name or IP address, without brackets.
        port: TCP port.
        user: Decoded; None for a proxy that asks for none.
        password: Decoded; empty if only a user was given.
    """

    scheme: str
    host: str
    port: int
    user: str | None = dataclasses.field(default=None, repr=False)
    password: str = dataclasses.field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{Address(self.host, self.port, self.tls)}"

    @property
    def socks(self) -> bool:
        """Whether it speaks SOCKS5, not HTTP."""
        return self.scheme.startswith("socks")

    @property
    def tls(self) -> bool:
        """Whether it is spoken to in TLS."""
        return self.scheme == "https"

    @property
    def authorization(self) -> str | None:
        """The value of `Proxy-Authorization` (RFC 7617), None without a user."""
        if self.user is None:
            return None
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    @property
    def full_url(self) -> str:
        """The URL with user and password, for those who take nothing else. A secret."""
        if self.user is None:
            return str(self)
        scheme, _, rest = str(self).partition("://")
        return f"{scheme}://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{rest}"

    def remember_secrets(self) -> None:
        """Have user and password redacted from now on."""
        if self.user is not None:
            know_secret(self.password)
            know_secret((self.authorization or "").removeprefix("Basic "))


def parse_proxy(url: object, argument: str = "proxy") -> ProxyAddress:
    """Read the URL of a proxy; one without a scheme is an HTTP proxy's.

    Args:
        url: `http://user:password@host:port`, or with another scheme; user and password are percent-encoded.
        argument: The name to use in the error.

    Raises:
        ConfigurationError: If it is none. The text does not quote it: it may hold a password.
    """
    if not isinstance(url, str):
        raise ConfigurationError(argument, f"must be a URL, 'environment' or None, not {type(url).__name__}")
    url = url if "://" in url else f"http://{url}"
    if not url.isascii() or any(ch <= " " or ch in '\x7f"<>\\^`{|}' for ch in url):
        raise ConfigurationError(argument, "must be printable ASCII; percent-encode the rest")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationError(argument, "is not a URL") from None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        known = ", ".join(f"{one}://" for one in _DEFAULT_PORTS)
        raise ConfigurationError(argument, f"must start with one of {known}")
    if not host or port == 0:
        raise ConfigurationError(argument, "must name a host, and a port other than 0")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigurationError(argument, "must end after host and port; percent-encode /, ? and # in it")
    if parts.username is None:
        user, password = None, ""
    else:
        user, password = _decoded(parts.username, argument), _decoded(parts.password or "", argument)
        if ":" in user:
            raise ConfigurationError(argument, "must not have a colon in its user (RFC 7617)")
        if scheme.startswith("socks") and not (user and password and (user + password).isascii()):
            raise ConfigurationError(argument, "needs both a user and a password, in ASCII, or neither")
    address = ProxyAddress(scheme, host, port or _DEFAULT_PORTS[scheme], user or None, password)
    address.remember_secrets()
    return address


def _decoded(text: str, argument: str) -> str:
    decoded = unquote(text)
    if len(decoded.encode()) > _MAX_CREDENTIAL or not all(ch.isprintable() for ch in decoded):
        raise ConfigurationError(
            argument, f"user and password must be printable and at most {_MAX_CREDENTIAL} bytes"
        )
    return decoded


def check_setting(setting: object, argument: str = "proxy") -> ProxyAddress | None:
    """Return the proxy that a setting names; None for `environment` and None, which name none.

    Raises:
        ConfigurationError: If it is no such setting, or what it needs is not installed.
    """
    return None if setting is None or setting == ENVIRONMENT else parse_proxy(setting, argument)


def choose(setting: str | None, scheme: str, host: str, port: int) -> ProxyAddress | None:
    """Return the proxy for a connection, None for a direct one.

    Args:
        setting: `environment`, None for no proxy, or a proxy's URL.
        scheme: `ws`, `wss`, `http` or `https`.
        host: Where the connection is to end.
        port: Its port.

    Raises:
        ConfigurationError: If the proxy that is set cannot be used; names the variable if that is in the
            environment.
    """
    if setting is None:
        return None
    if setting != ENVIRONMENT:
        address = parse_proxy(setting)
        return None if is_loopback(host) and not is_loopback(address.host) else address
    if is_loopback(host):
        return None
    found = getproxies_environment()
    name = next((name for name in (_VARIABLES[scheme], "all") if found.get(name)), None)
    if name is None or _bypassed(host.lower(), port, found):
        return None
    return parse_proxy(found[name], f"the environment's {name}_proxy")


def _bypassed(host: str, port: int, found: dict[str, str]) -> bool:
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    entries = [entry for entry in listed.replace(" ", "").split(",") if entry]
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        named = f"{host}:{port}"
        for entry in entries:
            bare = entry.lstrip(".")
            if named == bare or named.endswith(f".{bare}"):
                return True
    else:
        if any(_is_in(address, entry) for entry in entries):
            return True
    return proxy_bypass_environment(host, {**found, "no": listed}) if listed else False


def _is_in(address: ipaddress.IPv4Address, entry: str) -> bool:
    try:
        return "/" in entry and address in ipaddress.IPv4Network(entry, strict=False)
    except ValueError:
        return False
