"""The header `Data-Channel-Auth-Token`, and what a refusal of its token asks for.

::

    about to send ── the token is good ───────────────────► sent ── any other answer ──► over
        │                                                   ▲  │
        └─ it expires: refresh (or the old one, logged) ────┘  └─ 401, 403: wait, refresh, resend ──► over

What one request may do is decided by where it is on this way, so there is nothing to count and nothing that
two requests share: each has one more send, whatever happens to others. A token that was just refreshed is not
looked at again: the server decides.

No lock is held, and no thread started. The 2 s end early when nobody wants the answer any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import requests
from requests.auth import AuthBase
from requests.cookies import extract_cookies_to_jar

from .._logging import get_logger, without_secrets
from ..errors import ConnectCancelled, RegistrationError, TokenRefreshError, fresh_copy
from .tokens import TokenStore, expired

__all__ = ["HEADER", "REFUSAL_WAIT", "DataChannelAuth"]

logger: Final = get_logger("datachannel")

HEADER: Final = "Data-Channel-Auth-Token"

REFUSAL_WAIT: Final = 2.0
"""Seconds between a refusal and the refresh that answers it."""

_REFUSALS: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class DataChannelAuth(AuthBase):
    """Authorizes one request with a session's data channel token. Make one for each request.

    Args:
        store: Where the token comes from and where a new one goes to.
        session_id: Whose token: a refresh goes to this session's source and no other.
        token: The one to begin with.
        epoch: The one that it was read in; see `TokenStore.read`.
        wait: Waits for some seconds and returns whether nobody wants the answer any more. Then nothing more
            is sent.
        timeout: Seconds to wait for a refresh that another thread began; None for no limit.
        fresh: Whether the token was just fetched: then it is not looked at before it is sent.
        now: Seconds since the epoch, of this machine's clock.

    Attributes:
        resent: Whether the request was sent a second time.
    """

    def __init__(
        self,
        store: TokenStore,
        session_id: str,
        token: str,
        epoch: int,
        *,
        wait: Callable[[float], bool],
        timeout: float | None = None,
        fresh: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._session_id, self._token, self._epoch = store, session_id, token, epoch
        self._wait, self._timeout, self._now = wait, timeout, now
        self._fresh = fresh
        self.resent: bool = False

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        token = self._token
        if not self._fresh and expired(token, self._now()):
            try:
                token = self._refresh(token)
            except TokenRefreshError as exc:
                self._store.check_epoch(self._session_id, self._epoch)
                # The server may be more patient than its token, or its clock another one than ours.
                logger.warning("the data channel token expired and is sent all the same: %s", exc)
            if self._wait(0):
                raise ConnectCancelled(self._session_id, "nobody wants the answer any more")
        self._store.check_epoch(self._session_id, self._epoch)
        request.headers[HEADER] = token
        request.register_hook("response", partial(self._answered, token))  # type: ignore[no-untyped-call]
        return request

    def _answered(self, token: str, response: requests.Response, **options: Any) -> requests.Response:
        """Send the request once more if its token was refused. A second answer is not shown to hooks.

        Raises:
            RegistrationError: If there is no other token; it has the refusal's status.
        """
        if response.status_code not in _REFUSALS:
            return response
        began = time.monotonic()
        response.close()  # its body is of no interest, and its connection must not be left open
        if self._wait(REFUSAL_WAIT):
            return response
        failed: TokenRefreshError | None = None
        try:
            token = self._refresh(token)
        except TokenRefreshError as exc:
            failed = fresh_copy(exc)  # the frames of the other one know the token
        if failed is not None:
            raise self._refused(response, failed) from failed
        if self._wait(0):
            return response
        # As requests' own HTTPDigestAuth does it, but for the time, which is that of the whole request.
        again = response.request.copy()
        extract_cookies_to_jar(again._cookies, response.request, response.raw)  # type: ignore[no-untyped-call, attr-defined]
        again.prepare_cookies(again._cookies)  # type: ignore[attr-defined]
        again.headers[HEADER] = token
        spent = response.elapsed.total_seconds() + time.monotonic() - began
        options["timeout"] = _less(options.get("timeout"), spent)
        self.resent = True
        second: requests.Response = response.connection.send(again, **options)
        second.history.append(response)
        second.request = again
        return second

    def _refresh(self, token: str) -> str:
        return self._store.refresh(self._session_id, token, epoch=self._epoch, timeout=self._timeout)

    def _refused(self, response: requests.Response, exc: TokenRefreshError) -> RegistrationError:
        """Return the error of a refresh that failed, saying what asked for it.

        A 401 may be about the access token of the same request. Where there is no other data channel token
        to be had, or asking for one was itself answered with 401, it probably is: then it is no
        TokenRefreshError, for the pool shall refresh the access token.
        """
        status: int = response.status_code
        message = f"the data channel token was refused with {status}: {exc.message}"
        where = without_secrets(response.url)
        timing = response.elapsed.total_seconds()
        if status == HTTPStatus.UNAUTHORIZED and (exc.final or exc.status == status):
            return RegistrationError(self._session_id, message, status, where, timing)
        return TokenRefreshError(self._session_id, message, status, where, timing, exc.retry_after, exc.final)


def _less(timeout: Any, spent: float) -> Any:
    """Return a timeout of requests, one or a pair, from which some time has been spent."""
    if isinstance(timeout, tuple):
        return tuple(_less(one, spent) for one in timeout)
    return None if timeout is None else max(timeout - spent, 0.001)
