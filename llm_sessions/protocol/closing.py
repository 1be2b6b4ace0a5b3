"""What a close or a failure means, as tables.

Three questions have a table each: what a forced close is reported as, what the close of an online socket
asks of the session, and what a failed attempt asks of the connector. Pure: the pool acts on the answers.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ..errors import ConfigurationError

__all__ = [
    "DEFAULT_CODE",
    "DEFAULT_REASON",
    "FAILURES",
    "CloseMeaning",
    "Failure",
    "FailureRule",
    "First",
    "Retried",
    "check_close",
    "classify_close",
    "classify_failed_open",
    "classify_status",
    "fixed_up",
    "forced_close",
]

DEFAULT_CODE: Final = 1000
DEFAULT_REASON: Final = "Done"
_MAX_REASON_BYTES: Final = 123  # RFC 6455 5.5: a control frame carries 125 bytes, 2 of them the code


def check_close(code: object, reason: object) -> None:
    """Refuse what a caller may not close with, before any state changes.

    Raises:
        ConfigurationError: If the code is neither None, 1000 nor in 3000...4999 (RFC 6455 7.4.2 leaves
            these to applications), or the reason is not None or a string of at most 123 bytes of UTF-8.
    """
    if code is not None and (
        not isinstance(code, int) or isinstance(code, bool) or not (code == 1000 or 3000 <= code <= 4999)
    ):
        raise ConfigurationError("code", f"must be 1000 or between 3000 and 4999, not {code!r}")
    if reason is not None:
        if not isinstance(reason, str):
            raise ConfigurationError("reason", f"must be a string, not {type(reason).__name__}")
        try:
            size = len(reason.encode())
        except UnicodeEncodeError:
            raise ConfigurationError("reason", "must be encodable as UTF-8") from None
        if size > _MAX_REASON_BYTES:
            raise ConfigurationError("reason", f"must be at most {_MAX_REASON_BYTES} bytes, not {size}")


def forced_close(code: int | None, reason: str | None) -> tuple[int, str]:
    """Return what is reported when the peer does not answer our close in time.

    Args:
        code: What the caller asked to close with; None for nothing.
        reason: Likewise.
    """
    if code is None:
        return DEFAULT_CODE, "Done (forced)"
    return code, "Done (unknown)" if reason is None else reason


_FIX_UPS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "replaced": 4000,
        "authentication failed": 1008,
        "authentication did not happen within the timeout window of 30000 seconds.": 1008,
    }
)


def fixed_up(code: int, reason: str) -> tuple[int, str]:
    """Return the close that a peer meant: some send a reason that only says its code in words."""
    if code == 1005:
        code = _FIX_UPS.get(reason.lower(), code)
    return code, reason


class CloseMeaning(enum.Enum):
    """What the close of an online session's active socket asks for."""

    TRANSIENT = "transient"  # reconnect
    PERMANENT = "permanent"  # ended for good
    REPLACED = "replaced"  # another client took over: ended for good
    UNAUTHORIZED = "unauthorized"  # refresh the token once, then reconnect


_LOST: Final = frozenset({1001, 1005, 1006, 1011})
_IDLE_REASONS: Final = frozenset({"idle", "done (forced)", "pong not received", "pong mismatch"})


def classify_close(code: int, reason: str) -> CloseMeaning:
    """Say what a close of the active socket means for its session.

    Args:
        code: Close code (RFC 6455 7.4), 1006 if there was none.
        reason: Close reason; compared in lower case.
    """
    reason = reason.lower()
    if code in _LOST or (code in (1000, 3050) and reason in _IDLE_REASONS):
        return CloseMeaning.TRANSIENT
    if code == 4000:
        return CloseMeaning.REPLACED if reason == "replaced" else CloseMeaning.TRANSIENT
    if code == 4401:
        return CloseMeaning.UNAUTHORIZED
    return CloseMeaning.PERMANENT


class Failure(enum.Enum):
    """Ways in which an attempt to bring a session online fails."""

    NETWORK = "DNS, TCP, reset, open timeout, proxy not answering"
    BUSY = "HTTP 408, 429 or 5xx"
    STALE = "HTTP 404 at the upgrade"
    UNKNOWN_RESPONSE = "close 1005 without a reason before ready"
    SHORT_LIVED = "a close within a second of ready, three times running"
    UNAUTHORIZED = "close 4401, HTTP 401"
    SOURCE = "the token provider or the endpoint raised"
    BAD_REQUEST = "close 4400"
    FORBIDDEN = "close 4403"
    REFUSED = "another HTTP 4xx, or an answer that cannot be used"
    UNTRUSTED = "a certificate, its host name, or the one that we show is wrong or missing"
    MISPLACED = "what answers there is no WebSocket server, does not speak TLS, or is a proxy that refuses"
    MISCONFIGURED = "the token provider or the endpoint raised ConfigurationError"
    CLOSED = "any other close before ready"


class First(enum.Enum):
    """What the client does before it tries again."""

    NOTHING = "nothing"
    HONOUR_RETRY_AFTER = "wait as long as Retry-After says"
    TELL_ENDPOINT = "tell the endpoint, which registers again"
    REFRESH_TOKEN = "one forced token refresh"


class Retried(enum.Enum):
    """Whether it tries again."""

    YES = "yes"
    NO = "no"
    IF_REFRESHED = "unless the provider cannot refresh or returned the rejected token"
    ONCE_ONLINE = "only after this session was online before"


@dataclasses.dataclass(frozen=True)
class FailureRule:
    """One row: the error's class name, what is done first, and whether the attempt is retried."""

    error: str
    first: First
    retried: Retried


FAILURES: Final[Mapping[Failure, FailureRule]] = MappingProxyType(
    {
        Failure.NETWORK: FailureRule("ConnectError", First.NOTHING, Retried.YES),
        Failure.BUSY: FailureRule("ConnectError", First.HONOUR_RETRY_AFTER, Retried.YES),
        Failure.STALE: FailureRule("ConnectError", First.TELL_ENDPOINT, Retried.YES),
        Failure.UNKNOWN_RESPONSE: FailureRule("UnknownResponse", First.TELL_ENDPOINT, Retried.YES),
        Failure.SHORT_LIVED: FailureRule("ConnectionLost", First.TELL_ENDPOINT, Retried.YES),
        Failure.UNAUTHORIZED: FailureRule("NotAuthorized", First.REFRESH_TOKEN, Retried.IF_REFRESHED),
        Failure.SOURCE: FailureRule("ConnectError", First.HONOUR_RETRY_AFTER, Retried.YES),
        Failure.BAD_REQUEST: FailureRule("BadRequest", First.NOTHING, Retried.NO),
        Failure.FORBIDDEN: FailureRule("Forbidden", First.NOTHING, Retried.NO),
        Failure.REFUSED: FailureRule("RegistrationError", First.NOTHING, Retried.NO),
        Failure.UNTRUSTED: FailureRule("ConnectError", First.NOTHING, Retried.ONCE_ONLINE),
        # A captive portal answers with a web page: fatal at first, not to a session that once was online.
        Failure.MISPLACED: FailureRule("ConnectError", First.NOTHING, Retried.ONCE_ONLINE),
        Failure.MISCONFIGURED: FailureRule("ConfigurationError", First.NOTHING, Retried.NO),
        Failure.CLOSED: FailureRule("ConnectError", First.NOTHING, Retried.YES),
    }
)


def classify_failed_open(code: int, reason: str) -> Failure:
    """Say what a close before ready is."""
    if code == 4400:
        return Failure.BAD_REQUEST
    if code == 4401:
        return Failure.UNAUTHORIZED
    if code == 4403:
        return Failure.FORBIDDEN
    if code == 1005 and not reason:
        return Failure.UNKNOWN_RESPONSE
    return Failure.CLOSED


def classify_status(status: int) -> Failure:
    """Say what an HTTP answer other than 101 at the upgrade is.

    A status below 400 means that no Mercury service answers there (a web page, a redirect, which is never
    followed because it would carry credentials to another place).
    """
    if status in (408, 429) or status >= 500:
        return Failure.BUSY
    if status == 404:
        return Failure.STALE
    if status == 401:
        return Failure.UNAUTHORIZED
    return Failure.REFUSED if status >= 400 else Failure.MISPLACED
