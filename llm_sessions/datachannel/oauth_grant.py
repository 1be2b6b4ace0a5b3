"""The refresh-token grant of OAuth 2.0 (RFC 6749 5, 6) without I/O: the tokens in use, and answers read."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from http import HTTPStatus
from typing import Any, Final

from .. import _json
from ..errors import ConfigurationError, TokenRefreshError
from ..pool.config import check_seconds
from ..pool.retry import parse_retry_after
from ..pool.sources import bearer
from .exchange import Answer, clean

__all__ = [
    "Expiry",
    "Held",
    "RefreshedTokens",
    "check_secret",
    "check_timeout",
    "first_held",
    "read_answer",
]

_LONGEST_RETRY_AFTER: Final = 86400.0

# RFC 6749 5.2: whose request was refused so will be refused again.
_CLIENT_REFUSED: Final = frozenset({"invalid_client", "unauthorized_client"})
_PASSING: Final = frozenset({"temporarily_unavailable", "server_error", "slow_down"})
_REFUSED: Final = _CLIENT_REFUSED | {
    *("invalid_grant", "invalid_request"),
    *("unsupported_grant_type", "invalid_scope"),
}


@dataclasses.dataclass(frozen=True)
class RefreshedTokens:
    """What a refresh brought, for `on_refresh` to keep.

    Attributes:
        access_token: Without its scheme.
        refresh_token: The one to use from now on: a new one, or the one that was used.
        expires_at: When the access token expires, in seconds since the epoch; None if the server did not say.
        refresh_token_expires_at: The same for the refresh token.
    """

    access_token: str = dataclasses.field(repr=False)
    refresh_token: str = dataclasses.field(repr=False)
    expires_at: float | None
    refresh_token_expires_at: float | None


@dataclasses.dataclass(frozen=True)
class Expiry:
    """When a token expires, on both clocks; the earlier counts.

    The monotonic one stands still while the machine is suspended; the wall clock may be set back.
    """

    wall: float
    monotonic: float

    def __add__(self, seconds: float) -> Expiry:
        return Expiry(self.wall + seconds, self.monotonic + seconds)

    @classmethod
    def now(cls) -> Expiry:
        return cls(time.time(), time.monotonic())

    @property
    def left(self) -> float:
        """Seconds until then; negative afterwards."""
        return min(self.wall - time.time(), self.monotonic - time.monotonic())


@dataclasses.dataclass(frozen=True, repr=False)
class Held:
    """The tokens in use. Replaced as a whole, never changed.

    Attributes:
        refresh: The refresh token.
        access: The access token without its scheme, or None.
        expiry: When that one expires; None if nobody knows.
        margin: Seconds before then from which on it is refreshed.
        rejected: Whether a server refused it, which is as good as expired.
    """

    refresh: str
    access: str | None = None
    expiry: Expiry | None = None
    margin: float = 0.0
    rejected: bool = False

    @property
    def good(self) -> str | None:
        """The access token, if it is one to send."""
        return None if self.rejected or (self.expiry is not None and self.expiry.left <= 0) else self.access

    @property
    def due(self) -> bool:
        """Whether it is time to refresh."""
        return self.good is None or (self.expiry is not None and self.expiry.left <= self.margin)


def first_held(refresh: object, access: object, expires_at: object, leeway: float) -> Held:
    """Return the tokens that a user gave.

    Raises:
        ConfigurationError: If one cannot be used. The text never quotes it.
    """
    token = check_secret(refresh, "refresh_token")
    if expires_at is not None:
        if isinstance(expires_at, bool) or not isinstance(expires_at, (int, float)):
            kind = type(expires_at).__name__
            raise ConfigurationError("expires_at", f"must be a number or None, not {kind}")
        if not abs(expires_at) < 1e11:  # milliseconds, or NaN
            raise ConfigurationError("expires_at", f"must be in seconds since the epoch, not {expires_at!r}")
    if access is None:
        return Held(token)
    bare = bearer(access, "access_token").removeprefix("Bearer ")
    if expires_at is None:
        return Held(token, bare)
    now = Expiry.now()
    return Held(token, bare, now + (expires_at - now.wall), leeway)


def check_secret(value: object, argument: str) -> str:
    """Return a client id, a client secret or a refresh token.

    Raises:
        ConfigurationError: If it is none. The text never quotes it.
    """
    if not isinstance(value, str):
        raise ConfigurationError(argument, f"must be a string, not {type(value).__name__}")
    # RFC 6749 A: printable ASCII. White space at the end was copied along.
    if not value or value != value.strip() or any(not " " <= ch <= "~" for ch in value):
        raise ConfigurationError(argument, "must be non-empty printable ASCII without spaces around it")
    return value


def check_timeout(timeout: object) -> tuple[float, float]:
    """Return the seconds for one address, and for the whole request.

    Raises:
        ConfigurationError: If it is neither a number of seconds nor a pair of them.
    """
    if isinstance(timeout, tuple) and len(timeout) == 2:
        for part in timeout:
            check_seconds("timeout", part)
        return timeout[0], timeout[0] + timeout[1]
    check_seconds("timeout", timeout)
    assert isinstance(timeout, (int, float))
    return timeout / 2, timeout


def read_answer(
    answer: Answer, *, held: Held, asked: Expiry, leeway: float, where: str, secrets: Collection[str]
) -> tuple[Held, RefreshedTokens] | TokenRefreshError:
    """Say what an answer of the token service means.

    Args:
        answer: It.
        held: The tokens until now.
        asked: When the request was made: what the server grants may run from then on.
        leeway: Seconds before the expiry from which on the new token is to be refreshed. At most half of its
            time counts, or a token that does not live as long would be refreshed by every `get`.
        where: The URL, for the error.
        secrets: What the error must not quote.
    """
    values = _object(answer)
    access = _token(values.get("access_token"))
    if not 200 <= answer.status <= 299 or access is None:
        return _refused(answer, values, where, secrets)
    lifetime = _lifetime(values.get("expires_in"))
    refresh_lifetime = _lifetime(values.get("refresh_token_expires_in"))
    expiry = None if lifetime is None else asked + lifetime
    tokens = RefreshedTokens(
        access,
        _token(values.get("refresh_token")) or held.refresh,
        None if expiry is None else expiry.wall,
        None if refresh_lifetime is None else asked.wall + refresh_lifetime,
    )
    return Held(tokens.refresh_token, access, expiry, min(leeway, (lifetime or 0.0) / 2)), tokens


def _refused(
    answer: Answer, values: dict[str, Any], where: str, secrets: Collection[str]
) -> TokenRefreshError:
    status, code = answer.status, values.get("error")
    said = (code, values.get("error_description"), values.get("message"))
    text = clean(": ".join(one for one in said if isinstance(one, str) and one), secrets)
    what = f"{where} answered {status}{f' ({text})' if text else ''}"
    retry_after = parse_retry_after(
        answer.headers.get("Retry-After"), now=time.time(), longest=_LONGEST_RETRY_AFTER
    )
    final = retry_after is None and _is_final(status, values)
    if final and code in _CLIENT_REFUSED:
        what = f"the client id or the client secret is not accepted: {what}"
    elif final:
        what = f"the refresh token is not valid any more: {what}"
    elif answer.body is None:
        what = f"{what} with {answer.unread}"
    elif 200 <= status <= 299:
        what = f"{what} without an access token"
    elif 300 <= status <= 399:
        what = f"{what}, a redirect; these are not followed, for they would take the secrets elsewhere"
    return TokenRefreshError("", what, status, where, answer.timing, retry_after, final)


def _is_final(status: int, values: dict[str, Any]) -> bool:
    """Say whether the service itself has refused, and not something on the way to it."""
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or not 400 <= status <= 499:
        return False
    code = values.get("error")
    if isinstance(code, str) and code in _PASSING:
        return False
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.BAD_REQUEST) and values:
        return True
    return isinstance(code, str) and code in _REFUSED


def _object(answer: Answer) -> dict[str, Any]:
    """Return the JSON object in an answer; empty if there is none."""
    try:
        values = _json.loads(answer.body or b"")
    except _json.BadJSON:  # said nowhere: it may quote half a token
        return {}
    return values if isinstance(values, dict) else {}


def _token(value: object) -> str | None:
    """Return a token that can be sent, without its scheme."""
    try:
        return bearer(value).removeprefix("Bearer ")
    except ConfigurationError:
        return None


def _lifetime(value: object) -> float | None:
    """Return seconds; None if the server did not say them in a way that can be understood."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:12])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e11:
        return None
    return float(value)
