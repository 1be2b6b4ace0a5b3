"""Data channel tokens: one a session, and the refresh of one that expired or was refused.

::

    none ── set ──► held ── refresh ──► refreshing ── the handler returned one ──► held
     ▲               │                     └─────── it failed ─────────────────────► held (the old one)
     └──── clear ────┴──── clear, whose tokens a refresh under way then may not store ────┘

- **Who owns what:** one lock (rank 40) guards the tokens, the handlers, the refreshes under way and the
  epochs; nothing is called under it. A refresh belongs to the caller that began it, on whose thread the
  handler runs. However that ends, by Ctrl-C too, those who wait for it are told.
- **One refresh a session** at a time; those of different sessions do not wait for one another.
- **Compare and invalidate:** who names the token that was refused gets what others have put in its place
  meanwhile, and no second refresh is made.
- **Epochs:** clearing a session's token ends an epoch. What a handler returns after that belongs to nobody
  any more: it is not stored, and whoever waited for it gets an error.
- **What ends each wait:** for the refresh that another thread began, its end, a `clear`, or the timeout. Who
  began it is in the handler, which nothing can interrupt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import jwt
import requests

from .._logging import get_logger, know_secret
from .._sync import LEAF, Deadline, Latch, make_lock
from ..errors import (
    ConfigurationError,
    ConnectError,
    LocalProtocolError,
    PoolClosed,
    TokenRefreshError,
    fresh_copy,
)

__all__ = ["EXPIRY_SKEW", "RefreshHandler", "TokenStore", "check_token", "expired"]

logger: Final = get_logger("datachannel")

EXPIRY_SKEW: Final = 30.0
"""Seconds before its expiry from which on a token counts as expired."""

RefreshHandler = Callable[[], str]
"""Returns a new data channel token."""

_in_handler = threading.local()


def expired(token: str, now: float, skew: float = EXPIRY_SKEW) -> bool:
    """Say whether a token expires sooner than `skew` seconds from now.

    One without an `exp` does not expire. One that cannot be read, or whose `exp` is no number, counts as
    expired. The signature is not looked at: it is the server's business.

    Args:
        token: A JWT.
        now: Seconds since the epoch.
        skew: Seconds.
    """
    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):  # the last: of JSON in JSON in …, by older versions
        return True
    expiry = claims.get("exp")
    if expiry is None:
        return "exp" in claims
    if isinstance(expiry, bool) or not isinstance(expiry, (int, float)):
        return True
    return not expiry >= now + skew  # the other way round than NaN would have it


def check_token(token: object, argument: str = "token") -> str:
    """Return a data channel token that can be the value of a header.

    Raises:
        ConfigurationError: If it is none. The text never quotes it.
    """
    if not isinstance(token, str):
        raise ConfigurationError(argument, f"must be a string, not {type(token).__name__}")
    if not token or any(not "!" <= ch <= "~" for ch in token):
        raise ConfigurationError(argument, "must be non-empty printable ASCII without spaces")
    return token


class _Refresh:
    """One call of a handler, shared by those who wait for it. Guarded by the lock until it is over."""

    def __init__(self, rejected: str | None, handler: RefreshHandler) -> None:
        self.rejected, self.handler = rejected, handler
        self.token: str | None = None
        self.error: TokenRefreshError | None = None
        self.over = Latch()


class TokenStore:
    """The data channel tokens of one client. Safe from any thread.

    Nobody else's tokens are in it: what two clients hold for sessions of the same name is never mixed.
    """

    def __init__(self) -> None:
        # Guards all below. Rank 40.
        self._lock = make_lock("datachannel-tokens", LEAF)
        self._tokens: dict[str, str] = {}
        self._handlers: dict[str | None, RefreshHandler] = {}  # None: of sessions that have none of their own
        self._refreshes: dict[str, _Refresh] = {}
        self._cleared: dict[str, int] = {}  # how often, by session
        self._meetings: dict[str, str] = {}  # which the tokens are of, by session, as far as that is known
        self._closed = False

    def get(self, session_id: str) -> str | None:
        """Return a session's token, or None."""
        with self._lock:
            return self._tokens.get(session_id)

    def read(self, session_id: str, meeting: str | None = None) -> tuple[str | None, int] | None:
        """Return a session's token, or None, and the epoch that it belongs to.

        Args:
            session_id: Whose.
            meeting: Which meeting's it has to be; None for any. If it is another one's, None is returned.
        """
        with self._lock:
            if meeting is not None and self._meetings.get(session_id, meeting) != meeting:
                return None
            return self._tokens.get(session_id), self._epoch(session_id)

    def set(self, session_id: str, token: str) -> None:
        """Have a token used from now on.

        A refresh under way does not replace it.

        Raises:
            ConfigurationError: If it cannot be the value of a header.
            PoolClosed
        """
        know_secret(check_token(token, "datachannel_token"))
        with self._lock:
            self._check_open()
            self._tokens[session_id] = token

    def enter(self, session_id: str, meeting: str, token: str | None) -> tuple[str | None, str | None]:
        """Have a session's token be one of a meeting: the given one, or the one it has if it may be of that.

        Returns:
            What was there, for `put_back`.

        Raises:
            ConfigurationError: If the token cannot be the value of a header.
            PoolClosed
        """
        if token is not None:
            know_secret(check_token(token, "datachannel_token"))
        with self._lock:
            self._check_open()
            before = self._tokens.get(session_id), self._meetings.get(session_id)
            if before[1] not in (None, _NOBODYS, meeting):
                self._clear(session_id)
            self._meetings[session_id] = meeting
            if token is not None:
                self._tokens[session_id] = token
        return before

    def put_back(
        self, session_id: str, meeting: str, token: str | None, before: tuple[str | None, str | None]
    ) -> None:
        """Undo an `enter` of a meeting and a token, unless there is another one by now."""
        kept = before[0] if before[1] in (None, meeting) else None
        with self._lock:
            if self._closed or self._meetings.get(session_id) != meeting:
                return
            if self._tokens.get(session_id) != (token if token is not None else kept):
                return
            for table, value in ((self._tokens, before[0]), (self._meetings, before[1])):
                if value is None:
                    table.pop(session_id, None)
                else:
                    table[session_id] = value

    def check_epoch(self, session_id: str, epoch: int) -> None:
        """Refuse to go on with a token that was cleared since it was read.

        Raises:
            TokenRefreshError, PoolClosed
        """
        with self._lock:
            self._check_open()
            if epoch != self._epoch(session_id):
                raise _was_cleared(session_id)

    def clear(self, session_id: str) -> None:
        """Forget a session's token, and what a refresh under way will return."""
        with self._lock:
            self._clear(session_id)

    def leave(self, session_id: str) -> None:
        """The same, and no registration of the session gets a token before the next `enter`."""
        with self._lock:
            self._clear(session_id)
            self._meetings[session_id] = _NOBODYS

    def close(self) -> None:
        """Forget all tokens for good, and what refreshes under way will return."""
        with self._lock:
            self._closed = True
            for session_id in {*self._tokens, *self._refreshes}:
                self._clear(session_id)

    def set_refresh_handler(self, handler: RefreshHandler | None, session_id: str | None = None) -> None:
        """Say where new tokens come from.

        Args:
            handler: Called without arguments on the thread that needs a token, at most once at a time for
                a session; returns the token. None takes the handler back.
            session_id: Whose tokens it returns; None for all sessions that have no handler of their own.

        Raises:
            ConfigurationError: If it is not callable.
        """
        if handler is not None and not callable(handler):
            raise ConfigurationError("handler", f"must be callable or None, not {type(handler).__name__}")
        with self._lock:
            if handler is None:
                self._handlers.pop(session_id, None)
            else:
                self._handlers[session_id] = handler

    def drop_handler(self, session_id: str, handler: RefreshHandler) -> None:
        """Take a handler back, unless another one has taken its place."""
        with self._lock:
            if self._handlers.get(session_id) is handler:
                del self._handlers[session_id]

    def has_handler(self, session_id: str) -> bool:
        """Say whether the session's token can be refreshed."""
        with self._lock:
            return self._handler(session_id) is not None

    def refresh(
        self,
        session_id: str,
        rejected: str | None = None,
        *,
        epoch: int | None = None,
        timeout: float | None = None,
    ) -> str:
        """Return a session's token in place of one that expired or was refused; store it.

        Callers of one session share one call of the handler. If the session's token is not `rejected` any
        more, somebody has replaced it already: that one is returned, and the handler is not called.

        Args:
            session_id: Whose token; whatever the handler returns is stored for this session.
            rejected: The token that was refused; None for the one at hand.
            epoch: The one that `rejected` was read in; None for the current one.
            timeout: Seconds to wait for a refresh that somebody else began; None for no limit.

        Raises:
            TokenRefreshError: If there is no handler (it is `final` then), the handler raised or returned no
                usable token, the session's token was cleared meanwhile, or the time ran out.
            LocalProtocolError: If a refresh handler calls this: two of them could wait for each other.
            PoolClosed
        """
        if getattr(_in_handler, "active", False):
            raise LocalProtocolError("a refresh handler must not ask for a refresh: it could wait for itself")
        deadline = Deadline(timeout)
        while True:
            mine: _Refresh | None = None
            try:
                with self._lock:
                    self._check_open()
                    if epoch is not None and epoch != self._epoch(session_id):
                        raise _was_cleared(session_id)
                    held = self._tokens.get(session_id)
                    if rejected is not None and held is not None and held != rejected:
                        return held
                    refresh = self._refreshes.get(session_id)
                    if refresh is None:
                        handler = self._handler(session_id)
                        if handler is None:
                            raise TokenRefreshError(session_id, _NO_HANDLER, final=True)
                        refresh = mine = _Refresh(rejected or held, handler)
                        self._refreshes[session_id] = mine
                if mine is not None:
                    return self._lead(mine, session_id)
            except BaseException as exc:
                if mine is not None:  # Ctrl-C, in the handler or beside it: nobody waits for it in vain
                    self._settle(mine, session_id, None, _failure(session_id, fresh_copy(exc)))
                raise
            if not refresh.over.wait(deadline.left()):
                what = f"the refresh handler of another thread did not return within {timeout} s"
                raise TokenRefreshError(session_id, what)
            same = rejected is None or rejected == refresh.rejected
            if refresh.token is not None and (same or refresh.token != rejected):
                return refresh.token
            if refresh.error is not None and same:
                raise fresh_copy(refresh.error)
            # It was the refresh of another token, and came to nothing that this caller can use.

    # -- inside -------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise PoolClosed("the client is closed")

    def _clear(self, session_id: str) -> None:
        self._cleared[session_id] = self._epoch(session_id) + 1
        self._tokens.pop(session_id, None)
        self._meetings.pop(session_id, None)
        refresh = self._refreshes.pop(session_id, None)
        if refresh is not None:
            refresh.error = _was_cleared(session_id)
            refresh.over.set()

    def _epoch(self, session_id: str) -> int:
        return self._cleared.get(session_id, 0)

    def _handler(self, session_id: str) -> RefreshHandler | None:
        return self._handlers.get(session_id) or self._handlers.get(None)

    def _lead(self, refresh: _Refresh, session_id: str) -> str:
        """Call the handler and tell the outcome to all."""
        token: str | None = None
        error: TokenRefreshError | None = None
        _in_handler.active = True
        try:
            token = check_token(refresh.handler(), "the token that it returned")
            know_secret(token)
        except Exception as exc:  # noqa: BLE001  # whatever it raises becomes the outcome
            error = _failure(session_id, exc.with_traceback(None))  # its frames know tokens
        finally:
            _in_handler.active = False
        self._settle(refresh, session_id, token, error)
        if refresh.token is not None:
            return refresh.token
        assert refresh.error is not None
        raise fresh_copy(refresh.error)

    def _settle(
        self, refresh: _Refresh, session_id: str, token: str | None, error: TokenRefreshError | None
    ) -> None:
        """End a refresh, unless it has ended."""
        with self._lock:
            if self._refreshes.get(session_id) is not refresh:
                return
            del self._refreshes[session_id]
            held = self._tokens.get(session_id)
            if token is not None and held is not None and held != refresh.rejected:
                token = held  # set meanwhile: it counts
            elif token is not None:
                self._tokens[session_id] = token
            refresh.token, refresh.error = token, error
            refresh.over.set()


_NOBODYS: Final = ""  # in place of a meeting: the last one was left
_NO_HANDLER: Final = "the data channel token expired or was refused, and there is no refresh handler"


def _was_cleared(session_id: str) -> TokenRefreshError:
    return TokenRefreshError(session_id, "the session's data channel token was cleared meanwhile")


def _failure(session_id: str, exc: BaseException) -> TokenRefreshError:
    """Return what to raise for what came out of a handler."""
    if isinstance(exc, TokenRefreshError):
        return fresh_copy(exc)
    said = str(exc) if isinstance(exc, ConfigurationError) else f"it raised {type(exc).__name__}"
    what = f"the data channel token's refresh handler failed: {said}"
    status = exc.status if isinstance(exc, ConnectError) else None
    if isinstance(exc, requests.RequestException) and exc.response is not None:
        status = exc.response.status_code
    error = TokenRefreshError(session_id, what, status)
    error.__cause__ = exc
    return error
