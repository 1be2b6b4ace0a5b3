"""REST calls with the access token: where it may go, what an answer must be, what each failure is raised as.

=========================================  ======================================================
no whole answer: DNS, TCP, TLS, timeout    `ConnectError`, which the pool retries
any answer that cannot be used             `RegistrationError` with status, URL and timing
the URL may not get the token              `ConfigurationError`, before anything is asked
=========================================  ======================================================
"""

from __future__ import annotations

import dataclasses
import re
import ssl
import time
import uuid
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from .. import _json
from .._logging import get_logger, know_secret, without_secrets
from .._sync import Deadline
from ..errors import ConfigurationError, ConnectError, LLMSessionsError, RegistrationError, fresh_copy
from ..pool.config import PoolConfig, check_count, check_seconds
from ..pool.retry import parse_retry_after
from ..pool.sources import TokenProvider, Unreachable, answered, check_host
from ..protocol.url import parse_url
from .exchange import Answer, ExchangeFailed, ask, check_http, check_url, clean

__all__ = ["Reply", "RestClient"]

logger: Final = get_logger("datachannel")

_LONGEST_RETRY_AFTER: Final = 86400.0
_METHOD: Final = re.compile("[A-Z]{1,16}")


@dataclasses.dataclass(frozen=True)
class Reply:
    """A good answer.

    Attributes:
        status: HTTP status, 200...299.
        body: The JSON object in it.
        timing: Seconds from the request until the answer was read.
        asked: What was asked, for people: method and URL without query.
        url: That URL.
    """

    status: int
    body: dict[str, Any] = dataclasses.field(repr=False)
    timing: float
    asked: str = ""
    url: str = ""

    def unusable(self, session_id: str, problem: str) -> RegistrationError:
        """Return the error to raise if the answer turns out not to be good after all.

        Args:
            session_id: The session it is about, or the empty string.
            problem: What is wrong with it, as the end of a sentence: "without a webSocketUrl".
        """
        what = f"{self.asked} answered {self.status} {problem}"
        return RegistrationError(session_id, what, self.status, self.url, self.timing)


class RestClient:
    """REST calls with the access token. Safe from any thread; calls do not wait for one another.

    Args:
        provider: Where the access token comes from. What it raises comes out of `call` as it is. None if each
            call is given its token.
        http: A session to use, for proxies or certificates of your own; it is not closed. Several threads
            use it at once, and only to prepare requests and to send them: its headers, adapters, proxies,
            hooks and auth are read and never set, and the connection pools below it are made for threads.
            Answers may set cookies in it, as always; give it a cookie policy that refuses them, or they are
            sent along with the requests of all who use it. It cannot be kept from waiting for headers that
            drip in. None for one made for each call, which keeps no cookies.
        timeout: Seconds for a whole call; a half of it for each address of the host.
        allow_insecure: Let `http://` go to other hosts than loopback.
        allowed_hosts: Hosts that may get the token, each a name or `*.domain`; None for any.
        ssl_context: For `https://` without `http`; None for what requests trusts.
        config: A pool's, in place of the last three; its TLS and its proxy are for REST, too, without
            `http`.

    Raises:
        ConfigurationError: If an argument cannot be used.
    """

    def __init__(
        self,
        provider: TokenProvider | None,
        *,
        http: requests.Session | None = None,
        timeout: float = 10.0,
        allow_insecure: bool = False,
        allowed_hosts: Collection[str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        config: PoolConfig | None = None,
    ) -> None:
        check_seconds("timeout", timeout)
        self._config = config or PoolConfig(
            allow_insecure=allow_insecure, allowed_hosts=allowed_hosts, ssl_context=ssl_context
        )
        self._tls = config.tls_context if config is not None else ssl_context
        self._provider, self._http, self._timeout = provider, check_http(http), timeout

    def check_url(self, url: object, argument: str = "url") -> str:
        """Return an HTTP URL that may get the token.

        Raises:
            ConfigurationError: If it is none.
        """
        return check_url(
            url,
            allow_insecure=self._config.allow_insecure,
            allowed_hosts=self._config.allowed_hosts,
            argument=argument,
        )

    def link(self, reply: Reply, name: str, session_id: str = "", *, within: object = None) -> str:
        """Return an address that an answer names and that the token will be sent to.

        Args:
            reply: The answer.
            name: Of the member that holds it. One that ends in `webSocketUrl` must be `wss://` (or `ws://`
                to loopback), any other `https://` (or `http://` to loopback).
            session_id: For the error.
            within: The object that has the member; None for the answer itself.

        Raises:
            RegistrationError: If there is none, or the token may not go there.
        """
        holder = reply.body if within is None else within
        url = holder.get(name) if isinstance(holder, Mapping) else None
        if not isinstance(url, str) or not url:
            raise reply.unusable(session_id, f"without a {name}")
        try:
            if name.endswith("webSocketUrl"):
                address = parse_url(url, allow_insecure=self._config.allow_insecure, argument=name)
                check_host(address.host, self._config.allowed_hosts)
            else:
                self.check_url(url, name)
        except ConfigurationError as exc:
            problem = clean(exc.problem)
            raise reply.unusable(session_id, f"with a {name} that cannot be used: {problem}") from None
        return url

    def call(
        self,
        method: str,
        url: str,
        *,
        session_id: str = "",
        json: Mapping[str, Any] | None = None,
        auth: AuthBase | None = None,
        params: Mapping[str, str] | None = None,
        max_bytes: int = 1 << 20,
        empty_ok: bool = False,
        token: str | None = None,
        timeout: float | None = None,
    ) -> Reply:
        """Ask, and return a good answer: a status of 2xx and a JSON object. Redirects are not followed.

        Args:
            method: In capitals.
            url: Where; may have a query.
            session_id: The session that errors name.
            json: The body; None for none.
            auth: Adds headers, and may answer a refusal. What it raises of ours comes out as it is.
            params: Added to the query.
            max_bytes: Of the answer's body.
            empty_ok: Whether a good answer may have no body; it counts as an empty object then.
            token: The access token to use; None to ask the provider.
            timeout: Seconds for this call; None for the client's.

        Raises:
            ConfigurationError: If an argument cannot be used, or the token may not go there.
            RegistrationError: If there was an answer that cannot be used; a redirect is one.
            ConnectError: If there was no whole answer.
        """
        self.check_url(url)
        if not isinstance(method, str) or not _METHOD.fullmatch(method):
            raise ConfigurationError("method", "must be a method of HTTP, in capitals")
        check_count("max_bytes", max_bytes, least=1)
        if timeout is not None:
            check_seconds("timeout", timeout)
        headers = {"trackingId": f"llm-sessions_{uuid.uuid4()}"}
        data = None
        if json is not None:
            data, headers["Content-Type"] = _body(json), "application/json"
        if token is None:
            if self._provider is None:
                raise ConfigurationError("token", "is not known yet")
            token = self._provider.get()
        headers["Authorization"] = answered(token)
        request = requests.Request(
            method, url, headers=headers, data=data, params=dict(params or {}), auth=auth
        )
        outcome = self._ask(request, session_id, max_bytes, empty_ok, timeout or self._timeout)
        if isinstance(outcome, Reply):
            return outcome
        try:
            raise outcome
        finally:  # its traceback holds this frame
            del outcome, headers, token

    def _ask(
        self, request: requests.Request, session_id: str, max_bytes: int, empty_ok: bool, timeout: float
    ) -> Reply | LLMSessionsError:
        """Make a request. An error is returned: the frames that raising it would keep know the token."""
        bare = request.headers["Authorization"].removeprefix("Bearer ")
        know_secret(bare)
        where = without_secrets(request.url)
        asked, tracking_id = f"{request.method} {where}", request.headers["trackingId"]
        secrets = [bare, urlsplit(request.url).query, *request.params.values()]
        try:
            answer = ask(
                request,
                http=self._http,
                connect=timeout / 2,
                deadline=Deadline(timeout),
                secrets=secrets,
                max_bytes=max_bytes,
                ssl_context=self._tls,
                proxy=self._config.proxy,
            )
        except LLMSessionsError as exc:  # of the auth
            return fresh_copy(exc)
        except ExchangeFailed as exc:
            what = f"was not answered within {timeout} s" if exc.timed_out else "failed"
            # What a wrong setting does to a session that was never online, a REST call says too.
            kind = Unreachable if exc.failure in Unreachable.ROWS else ConnectError
            error = kind(session_id, f"{asked} {what}: {exc.message} ({tracking_id})")
            if isinstance(error, Unreachable) and exc.failure is not None:
                error.failure = exc.failure
            error.__cause__ = exc.__cause__  # not itself: the frames of its traceback hold the request
            return error
        logger.debug("%s answered %d in %.3f s (%s)", asked, answer.status, answer.timing, tracking_id)
        body = _read(answer, empty_ok, secrets)
        if isinstance(body, dict):
            return Reply(answer.status, body, answer.timing, asked, where)
        retry_after = parse_retry_after(
            answer.headers.get("Retry-After"), now=time.time(), longest=_LONGEST_RETRY_AFTER
        )
        what = f"{asked} answered {answer.status}{body} ({tracking_id})"
        return RegistrationError(session_id, what, answer.status, where, answer.timing, retry_after)


def _body(value: object) -> bytes:
    if not isinstance(value, Mapping):
        raise ConfigurationError("json", f"must be a mapping, not {type(value).__name__}")
    try:
        return _json.dumps(dict(value))
    except (TypeError, ValueError, RecursionError) as exc:
        raise ConfigurationError("json", f"cannot be sent as JSON: {type(exc).__name__}") from None


def _read(answer: Answer, empty_ok: bool, secrets: Collection[str]) -> dict[str, Any] | str:
    """Return the object in a good answer, or what to say of one that is not good."""
    good = 200 <= answer.status <= 299
    if answer.body is None:
        return f" with {answer.unread}"
    if good and empty_ok and not answer.body.strip():
        return {}
    try:
        body = _json.loads(answer.body)
    except _json.BadJSON:  # not quoted: it may hold half a token
        body = None
    if good:
        kind = clean(answer.headers.get("Content-Type", ""), secrets) or "of no type"
        return body if isinstance(body, dict) else f" with a body that is no JSON object ({kind})"
    if 300 <= answer.status <= 399:
        return ", a redirect; these are not followed, for they would take the token elsewhere"
    said = body.get("message") if isinstance(body, dict) else None
    if isinstance(said, str) and said:
        return f": {clean(said, secrets)}"
    try:
        return f" {HTTPStatus(answer.status).phrase}"
    except ValueError:
        return ""
