"""Where a session's URL and token come from: endpoints and token providers.

Both are asked on the session's connector thread, never under a lock, and may block (a REST call, a
resolver): disconnecting does not wait for them. A source never sleeps; it raises, with a `retry_after`
attribute in seconds if it knows one, and the pool waits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol, runtime_checkable

from .._logging import without_secrets
from ..errors import ConfigurationError, ConnectError
from ..protocol.closing import Failure
from ..protocol.url import Address, check_headers, parse_url
from .config import PoolConfig

__all__ = [
    "AttemptInfo",
    "BadAnswer",
    "Endpoint",
    "StaticToken",
    "Target",
    "TokenProvider",
    "TokenSource",
    "UrlEndpoint",
    "answered",
    "as_endpoint",
    "as_provider",
    "bearer",
]


@dataclasses.dataclass(frozen=True)
class Target:
    """Where one attempt connects to.

    Attributes:
        url: `wss://…` (or `ws://`, to loopback). Its query keys are kept.
        token: Access token for this attempt; None for the session's own.
        headers: Extra headers of the opening handshake.
    """

    url: str
    token: str | None = dataclasses.field(default=None, repr=False)
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


class AttemptInfo(Protocol):
    """What an endpoint is told about the attempt that it is asked for."""

    @property
    def session_id(self) -> str:
        """The session that connects."""

    @property
    def number(self) -> int:
        """1 for the first attempt of a run."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the answer any more. Check it after every wait, store nothing then."""

    def wait_cancelled(self, seconds: float) -> bool:
        """Wait, but no longer than somebody wants the answer; return whether nobody does any more.

        For a short wait that is part of an exchange. Waits between attempts are the pool's.
        """


class Endpoint:
    """What the pool asks for a URL; derive from it. Endpoints that are equal are the same place.

    Called on connector threads; one endpoint may serve several sessions at once.
    """

    def resolve(self, attempt: AttemptInfo) -> Target:
        """Return where to connect to; asked afresh for every attempt.

        Raises:
            ConfigurationError: To end the run at once.
            Exception: Anything else fails this attempt, which is retried, after `retry_after` seconds if
                the exception has such an attribute.
        """
        raise TypeError(f"{type(self).__name__} must define resolve()")

    def rejected(self, target: Target, error: Exception) -> None:
        """Learn that a target is stale or its token was refused, so that the next one is fresh."""

    def __str__(self) -> str:
        return type(self).__name__


@dataclasses.dataclass(frozen=True)
class UrlEndpoint(Endpoint):
    """A fixed URL, or a callable that returns one for every attempt."""

    url: str | Callable[[], str]

    def resolve(self, attempt: AttemptInfo) -> Target:
        return Target(self.url() if callable(self.url) else self.url)

    def __str__(self) -> str:
        return without_secrets(self.url) if isinstance(self.url, str) else "the URL that a callable returns"


@runtime_checkable
class TokenProvider(Protocol):
    """Where access tokens come from. Called on connector threads, several at once."""

    def get(self) -> str:
        """Return the token to use now, with or without its scheme (`Bearer`)."""

    def refresh(self, rejected: str) -> str:
        """Return a token in place of `rejected`; the same one says that there is no other.

        The next attempt sends what this returns; later ones ask `get` again, which should know it by then.
        """


@dataclasses.dataclass(frozen=True)
class StaticToken:
    """A token that cannot be refreshed."""

    token: str = dataclasses.field(repr=False)

    def get(self) -> str:
        return self.token

    def refresh(self, rejected: str) -> str:
        return self.token


@dataclasses.dataclass(frozen=True)
class _CalledToken:
    call: Callable[[], str]

    def get(self) -> str:
        return self.call()

    def refresh(self, rejected: str) -> str:
        return self.call()


TokenSource = str | Callable[[], str] | TokenProvider
"""What may be given as a token, in the order in which it is recognised: a provider, a callable, a string."""


def as_provider(token: object, argument: str = "token") -> TokenProvider:
    """Return a provider for whatever was given as a token.

    Raises:
        ConfigurationError: If it is none of the three, or a string that cannot be a header's value.
    """
    if isinstance(token, TokenProvider) and not isinstance(token, type):
        return token
    if callable(token):
        return _CalledToken(token)
    bearer(token, argument)
    assert isinstance(token, str)
    return StaticToken(token)


def bearer(token: object, argument: str = "token") -> str:
    """Return a token as it is sent: with `Bearer` in front unless it has it.

    Raises:
        ConfigurationError: If it is no usable string. The text never quotes it.
    """
    if not isinstance(token, str):
        kind = type(token).__name__
        raise ConfigurationError(argument, f"must be a string, a callable or a TokenProvider, not {kind}")
    bare = token[7:] if token.startswith("Bearer ") else token
    if not bare or not bare.isascii() or any(ch <= " " or ch == "\x7f" for ch in bare):
        raise ConfigurationError(argument, "must be non-empty printable ASCII without spaces")
    return f"Bearer {bare}"


class BadAnswer(ConfigurationError):
    """A token source answered with what cannot be sent: a passing fault for a session that was online."""


class Unreachable(ConnectError):
    """A REST service cannot be reached for a reason that also has a row of its own for sockets.

    Attributes:
        failure: That row.
    """

    ROWS: Final = frozenset({Failure.UNTRUSTED, Failure.MISPLACED})
    failure: Failure = Failure.MISPLACED


def answered(token: object) -> str:
    """Return what a token source answered as it is sent.

    Raises:
        BadAnswer: If it is no usable string. The text never quotes it.
    """
    if not isinstance(token, str):
        raise BadAnswer("token", f"its source returned {type(token).__name__} instead of a string")
    try:
        return bearer(token)
    except ConfigurationError as exc:
        raise BadAnswer(exc.argument, exc.problem) from None


def as_endpoint(url: Any, *, allow_insecure: bool, allowed_hosts: Collection[str] | None = None) -> Endpoint:
    """Return an endpoint for whatever was given as a URL.

    Raises:
        ConfigurationError: If it is no WebSocket URL, callable, or Endpoint, or of a host that may not get
            the token.
    """
    if isinstance(url, Endpoint):
        return url
    if isinstance(url, str):
        check_host(parse_url(url, allow_insecure=allow_insecure).host, allowed_hosts)
    elif not callable(url):
        raise ConfigurationError(
            "url", f"must be a string, a callable or an Endpoint, not {type(url).__name__}"
        )
    return UrlEndpoint(url)


def check_host(host: str, allowed_hosts: Collection[str] | None, argument: str = "url") -> None:
    """Refuse a host that may not get the token.

    Raises:
        ConfigurationError: If there are `allowed_hosts` and the host is not among them.
    """
    if allowed_hosts is not None and not any(_is_meant(host.lower(), one.lower()) for one in allowed_hosts):
        raise ConfigurationError(argument, f"the host {host} is not in allowed_hosts")


def _is_meant(host: str, allowed: str) -> bool:
    if allowed.startswith("*."):
        return host.endswith(allowed[1:]) and host != allowed[1:]
    return host == allowed


def check_target(target: object, config: PoolConfig) -> Address:
    """Refuse what an endpoint must not return; say where the target is.

    Raises:
        ConfigurationError: If it is no Target, its URL may not be connected to, or its headers are not
            usable.
    """
    if not isinstance(target, Target):
        raise ConfigurationError("url", f"the endpoint must return a Target, not {type(target).__name__}")
    if not isinstance(target.headers, Mapping):
        raise ConfigurationError("headers", f"must be a mapping, not {type(target.headers).__name__}")
    check_headers(target.headers)
    address = parse_url(target.url, allow_insecure=config.allow_insecure)
    check_host(address.host, config.allowed_hosts)
    return address
