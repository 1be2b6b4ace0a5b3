"""Access tokens that refresh themselves, by one request at a time that all who need a token share.

::

    at rest ── a token is needed ──► asking ── tokens came ──► telling ── on_refresh is over ──► at rest
                                        └───── none came ──────────────────────────────────────► at rest

- **Who owns what:** one lock (rank 40) guards the tokens, the request under way and the final refusal;
  nothing is called under it. The request belongs to a thread of its own, `llm-oauth`, which alone ends it: a
  caller that is interrupted leaves, and changes nothing for the others.
- **One request** at a time: the next does not begin before the last one's thread has ended. That one waits
  longer than the callers, who leave at the deadline, and its late answer counts: the server may have replaced
  the refresh token, and then only that answer holds the new one.
- **What ends each wait:** while asking, the end of the request or its deadline; while telling, the end of
  `on_refresh` or as much time again. When a request is overdue, callers fail at once.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final

import requests

from .. import _fork
from .._logging import get_logger, know_secret, without_secrets
from .._sync import LEAF, Deadline, Latch, ThreadGroup, make_lock
from ..connection.proxies import ENVIRONMENT
from ..errors import ConfigurationError, LocalProtocolError, TokenRefreshError, fresh_copy
from ..pool.config import PoolConfig, check_flag, check_seconds
from .exchange import ExchangeFailed, check_url, clean, post_form
from .oauth_grant import Expiry, Held, RefreshedTokens, check_secret, check_timeout, first_held, read_answer

__all__ = ["OAuthTokens", "RefreshedTokens"]

logger: Final = get_logger("datachannel")

_PAUSE: Final = 5.0
"""Seconds in which an early refresh that failed is not tried again: the old token still serves."""

_PATIENCE: Final = 2
"""How many times as long as its callers a request waits for its answer."""


class _Request:
    """One request, shared by those who wait for it. Guarded by the lock of its source until it is over."""

    def __init__(self, epoch: int, timeout: float) -> None:
        self.epoch = epoch  # of the refresh token that it uses
        self.deadline = Deadline(timeout)
        self.thread: int | None = None  # who runs it; None: nobody yet
        self.telling: Deadline | None = None  # until when on_refresh is waited for; None: no answer yet
        self.access: str | None = None
        self.error: TokenRefreshError | None = None
        self.superseded = False  # another refresh token was set meanwhile: no outcome
        self.warned = False  # that on_refresh takes too long
        self.over = Latch()


class OAuthTokens(_fork.OneProcess):
    """A `TokenProvider` that gets access tokens by a refresh token. Safe from any thread.

    `ConnectionPool(OAuthTokens(…))` refreshes before the access token expires and when a server refuses it:
    once, however many sessions ask. It is at rest between requests: nothing is open and no thread runs.

    Args:
        client_id: Of the integration.
        client_secret: Of the integration.
        refresh_token: The one to begin with.
        access_token: One that is still good; None to ask for one when it is needed.
        expires_at: When that one expires, in seconds since the epoch; None if that is not known.
        on_refresh: Called with `RefreshedTokens` once for each successful refresh, on a thread of its own and
            before anyone gets the new token, so that none is lost which was kept there. What it raises is
            logged. It is waited for as long as `timeout`; then the new token is used all the same.
        url: Of the token service.
        http: A session to use, for proxies or certificates of your own. Leave it to this object, which uses
            it on one thread at a time and does not close it. Its default `Authorization` is not sent, and it
            cannot be kept from waiting for headers that drip in: callers do not wait as long. None for one
            made for each request: refreshes are hours apart.
        timeout: Seconds that callers wait for the whole request; a half of it for each address of the host.
            Or a pair, of which the first is for each address and the sum for the whole. An answer that comes
            later, within as much time again, is for those who ask then.
        leeway: Seconds before the expiry from which on `get` refreshes, but not in the first half of the time
            that a new token has.
        allow_insecure: Let `http://` go to other hosts than loopback.
        config: For `allow_insecure` and `allowed_hosts`, and, without `http`, the proxy and what TLS trusts;
            give it the pool's. None for any host, the proxies of the environment and what requests trusts.

    Raises:
        ConfigurationError: If an argument cannot be used; no text quotes a secret.
    """

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        refresh_token: str,
        *,
        access_token: str | None = None,
        expires_at: float | None = None,
        on_refresh: Callable[[RefreshedTokens], object] | None = None,
        url: str = "https://webexapis.com/v1/access_token",
        http: requests.Session | None = None,
        timeout: float | tuple[float, float] = 10.0,
        leeway: float = 60.0,
        allow_insecure: bool = False,
        config: PoolConfig | None = None,
    ) -> None:
        self._client_id = check_secret(client_id, "client_id")
        self._client_secret = check_secret(client_secret, "client_secret")
        if on_refresh is not None and not callable(on_refresh):
            raise ConfigurationError("on_refresh", "must be callable or None")
        if http is not None and not isinstance(http, requests.Session):
            raise ConfigurationError("http", "must be a requests.Session or None")
        check_flag("allow_insecure", allow_insecure)
        if config is not None and not isinstance(config, PoolConfig):
            raise ConfigurationError("config", "must be a PoolConfig or None")
        check_seconds("leeway", leeway, zero=True)
        self._connect, self._timeout = check_timeout(timeout)
        self._url = check_url(
            url,
            allow_insecure=allow_insecure or (config is not None and config.allow_insecure),
            allowed_hosts=None if config is None else config.allowed_hosts,
        )
        self._on_refresh, self._http, self._leeway = on_refresh, http, leeway
        self._tls = None if config is None else config.tls_context
        self._proxy = ENVIRONMENT if config is None else config.proxy
        self._where = without_secrets(url)
        self._born_in = _fork.generation()
        self._threads = ThreadGroup()
        # Guards all below. Rank 40.
        self._lock = make_lock("oauth", LEAF)
        self._held = first_held(refresh_token, access_token, expires_at, leeway)
        for secret in (client_secret, refresh_token, access_token or ""):
            know_secret(secret)
        self._epoch = 0  # counts the refresh tokens that were set
        self._request: _Request | None = None
        self._refusal: TokenRefreshError | None = None
        self._paused_until = -math.inf  # monotonic; for early refreshes, which can wait
        self._busy: tuple[float, TokenRefreshError] | None = None  # until when the service asked for quiet
        self._closed = False

    def get(self) -> str:
        """Return the access token, refreshed if it expires within `leeway` or was refused.

        A refresh that fails is no matter as long as the old token is good: that is returned then.

        Raises:
            TokenRefreshError: If there is no good token. It is `final` if the refresh token was refused;
                then no more requests are made until `set_refresh_token`.
            LocalProtocolError: If the request under way asks, e.g. by a hook of `http`.
            ConfigurationError: If this was closed, or the process is a fork.
        """
        return self._token(None)

    def refresh(self, rejected: str) -> str:
        """Return a token in place of one that a server refused.

        If `rejected` is not the current one, another caller has refreshed it already: no request is made.

        Args:
            rejected: The refused token, with or without `Bearer`.

        Raises:
            LocalProtocolError: If `on_refresh` calls this: the refresh under way would wait for itself.
            TokenRefreshError, ConfigurationError: As `get`.
        """
        if not isinstance(rejected, str):
            raise ConfigurationError("rejected", f"must be a string, not {type(rejected).__name__}")
        return self._token(rejected.removeprefix("Bearer "))

    def set_refresh_token(
        self, refresh_token: str, *, access_token: str | None = None, expires_at: float | None = None
    ) -> None:
        """Go on with another refresh token, after somebody has logged in again.

        Callers that wait for a request with the old one get its answer no more; they ask again.

        Args:
            refresh_token: The new one.
            access_token: The one that came with it; None to keep the current one for as long as it is good.
            expires_at: When that one expires, in seconds since the epoch.

        Raises:
            ConfigurationError: If an argument cannot be used, or the process is a fork.
        """
        self._check_process()
        held = first_held(refresh_token, access_token, expires_at, self._leeway)
        for secret in (refresh_token, access_token or ""):
            know_secret(secret)
        with self._lock:
            epoch = self._epoch + (held.refresh != self._held.refresh)
            if access_token is None:
                held = dataclasses.replace(self._held, refresh=held.refresh)
            self._epoch, self._held, self._refusal = epoch, held, None
            self._paused_until, self._busy = -math.inf, None

    def close(self, timeout: float = 5.0) -> None:
        """Make no more requests. The token at hand can be had for as long as it is good.

        Waits for a request under way, whose answer may hold a new refresh token.

        Args:
            timeout: Seconds to wait for it. After that it is left to its own deadline.
        """
        check_seconds("timeout", timeout, zero=True)
        if _fork.generation() != self._born_in:
            return
        with self._lock:
            self._closed = True
        if self._threads.join(Deadline(timeout)):
            logger.warning("a request to %s still runs; it ends by its own deadline", self._where)

    def __enter__(self) -> OAuthTokens:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<OAuthTokens of client {self._client_id!r} at {self._where}>"

    # -- callers ----------------------------------------------------------------------------------------

    def _token(self, rejected: str | None) -> str:
        self._check_process()
        while True:
            mine: _Request | None = None
            try:
                with self._lock:
                    token = self._at_hand(rejected)
                    if token is not None:
                        return token
                    request = self._request
                    if request is None or (request.thread is None and request.deadline.expired):
                        self._check_may_ask()
                        request = mine = self._request = _Request(self._epoch, self._timeout)
                    told = request.telling is not None
                if mine is not None:
                    self._start(mine)
            except BaseException as exc:  # KeyboardInterrupt may come before there is a thread
                if mine is not None:
                    what = f"the caller that was to refresh the token ended by {type(exc).__name__}"
                    self._abandon(mine, self._failure(what))
                raise
            error = self._wait(request)
            over = request.over.is_set()
            if over and (told or request.superseded):
                continue  # what came before this call, or came to nothing: look again
            if error is None and not told:
                assert request.access is not None
                return request.access
            with self._lock:
                good = self._held.good
            if good is not None and good != rejected:
                return good
            raise fresh_copy(error or self._failure("on_refresh has not returned yet"))

    def _at_hand(self, rejected: str | None) -> str | None:
        """Return a token that needs no request, or None. With the lock held."""
        request = self._request
        if request is not None and request.thread == threading.get_ident():
            if request.telling is None or rejected is not None:
                raise LocalProtocolError("the refresh under way would wait for itself")
            return self._held.access
        if rejected is not None and rejected == self._held.access:
            self._held = dataclasses.replace(self._held, rejected=True)
        if request is not None:
            return None  # whoever needs a token now waits for the new one
        waits = self._refusal is not None or self._closed or time.monotonic() < self._paused_until
        return None if rejected is None and self._held.due and not waits else self._held.good

    def _check_may_ask(self) -> None:
        if self._refusal is not None:
            raise fresh_copy(self._refusal)
        if self._busy is not None:
            left = self._busy[0] - time.monotonic()
            if left > 0:
                error = fresh_copy(self._busy[1])
                error.retry_after = left
                raise error
        if self._closed:
            raise ConfigurationError("token", "this OAuthTokens is closed, and has no good access token")

    def _wait(self, request: _Request) -> TokenRefreshError | None:
        """Wait for the outcome for as long as that may take; return None if there is a new token."""
        if request.over.wait(request.deadline.left()):
            return request.error
        with self._lock:
            telling = request.telling
        if telling is None:
            return self._failure(f"{self._where} did not answer within {self._timeout} s")
        if not request.over.wait(telling.left()) and not request.warned:
            request.warned = True
            logger.warning("on_refresh did not return within %s s; the new token is used", self._timeout)
        return None

    def _check_process(self) -> None:
        # Before the lock: its holder may be a thread of the other process.
        if _fork.generation() != self._born_in:
            raise ConfigurationError(
                "token",
                "this OAuthTokens belongs to the process that this one was forked from; make one here, with "
                "a refresh token that no other process uses",
            )

    def _failure(self, message: str) -> TokenRefreshError:
        return TokenRefreshError("", message, url=self._where)

    # -- the request ------------------------------------------------------------------------------------

    def _start(self, request: _Request) -> None:
        try:
            self._threads.spawn(partial(self._run, request), "llm-oauth")
        except RuntimeError as exc:
            error = self._failure("no thread could be started to refresh the token")
            error.__cause__ = exc
            self._abandon(request, error)

    def _abandon(self, request: _Request, error: TokenRefreshError) -> None:
        """End a request that nobody runs, because whoever was to start its thread could not."""
        with self._lock:
            if request.thread is not None or self._request is not request:
                return
            self._request, request.error = None, error
        request.over.set()

    def _run(self, request: _Request) -> None:
        """The thread's main function. However it ends, the request is over then."""
        with self._lock:
            if self._request is not request:  # abandoned before it began
                return
            request.thread = threading.get_ident()
            held = self._held
        try:
            self._settle(request, self._ask(held))
        except BaseException:
            logger.exception("refreshing the access token failed; this is a bug in llm_sessions")
        finally:
            with self._lock:
                self._request = None
                if request.access is None and request.error is None:
                    request.error = self._failure("refreshing the access token failed; see the log")
            request.over.set()

    def _ask(self, held: Held) -> tuple[Held, RefreshedTokens] | TokenRefreshError:
        know_secret(self._client_secret)  # again: newer ones may have taken its place
        form = {
            "grant_type": "refresh_token",
            "client_id": self._client_id,
            "client_secret": self._client_secret,
            "refresh_token": held.refresh,
        }
        deadline = Deadline(_PATIENCE * self._timeout)
        secrets = [self._client_secret, held.refresh, held.access or "", self._url.partition("?")[2]]
        asked = Expiry.now()
        try:
            answer = post_form(
                self._url,
                form,
                http=self._http,
                connect=self._connect,
                deadline=deadline,
                secrets=secrets,
                ssl_context=self._tls,
                proxy=self._proxy,
            )
        except ExchangeFailed as exc:
            what = f"did not answer within {deadline.timeout} s" if exc.timed_out else "could not be asked"
            error = self._failure(f"{self._where} {what}: {exc.message}")
            error.__cause__ = exc.__cause__  # not itself: the frames of its traceback hold the form
            return error
        except ConfigurationError as exc:  # of the proxy, which may be mended in the environment
            return self._failure(f"{self._where} could not be asked: {exc}")
        return read_answer(
            answer, held=held, asked=asked, leeway=self._leeway, where=self._where, secrets=secrets
        )

    def _settle(self, request: _Request, outcome: tuple[Held, RefreshedTokens] | TokenRefreshError) -> None:
        if not isinstance(outcome, TokenRefreshError):
            for secret in (outcome[1].access_token, outcome[1].refresh_token):
                know_secret(secret)
        with self._lock:
            superseded = request.superseded = request.epoch != self._epoch
            if isinstance(outcome, TokenRefreshError):
                request.error = outcome
                if not superseded:
                    self._refusal = outcome if outcome.final else None
                    self._paused_until = time.monotonic() + max(_PAUSE, outcome.retry_after or 0.0)
                    asked = outcome.retry_after
                    self._busy = (time.monotonic() + asked, outcome) if asked else None
            else:
                request.access = outcome[1].access_token
                if not superseded:
                    self._held, self._paused_until, self._busy = outcome[0], -math.inf, None
                    request.telling = Deadline(self._timeout)
        if superseded:
            logger.info("the answer of %s was dropped: another refresh token was set meanwhile", self._where)
        elif isinstance(outcome, TokenRefreshError):
            logger.warning("refreshing the access token failed: %s", outcome)
        else:
            self._tell(outcome[1])
            logger.info("%s refreshed the access token", self._where)

    def _tell(self, tokens: RefreshedTokens) -> None:
        if self._on_refresh is None:
            return
        try:
            self._on_refresh(tokens)
        except BaseException as exc:  # noqa: BLE001  # the refresh counts all the same
            # Without exc_info: the record would carry an exception that may quote the tokens.
            text = clean(str(exc), (tokens.access_token, tokens.refresh_token, self._client_secret))
            where = "".join(traceback.format_tb(exc.__traceback__))
            logger.error("on_refresh raised %s: %s\n%s", type(exc).__name__, text, where)
