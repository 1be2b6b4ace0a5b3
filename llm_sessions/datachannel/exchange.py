"""One HTTP request and its answer: under one deadline, of limited size, with no secret in what it raises.

A timeout of requests is one of each wait for the peer: headers that drip in byte by byte hold a request for
days. The session that is made for an exchange, see `timed`, lets every receive have what is left of the whole
time, and sends nothing once that is over. Name lookup, and each address that is tried, cannot be cut short:
who must not wait for them runs the exchange on a thread of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import requests

from .._logging import one_line, redact
from .._sync import Deadline
from ..connection.proxies import ENVIRONMENT
from ..connection.tunnel import refusal
from ..errors import ConfigurationError, LLMSessionsError, fresh_copy
from ..pool.sources import check_host
from ..protocol.closing import Failure
from ..protocol.url import is_loopback
from .hops import chain_of, explain, way_to
from .timed import TimedAdapter, timed_session

__all__ = [
    "MAX_ANSWER_BYTES",
    "Answer",
    "ExchangeFailed",
    "ask",
    "check_http",
    "check_url",
    "clean",
    "post_form",
]

MAX_ANSWER_BYTES: Final = 64 * 1024
"""Answers with tokens have one or two KiB."""

_MAX_TEXT: Final = 300  # characters of somebody else's text that become part of ours
_PIECE: Final = 16 * 1024  # bytes that are read at once


Context: TypeAlias = "ssl.SSLContext | Callable[[], ssl.SSLContext] | None"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the server said.

    Attributes:
        status: HTTP status.
        headers: Its headers; names in any case.
        body: Its body; None if it was not read, or not all of it.
        timing: Seconds from the request until the answer was read.
        unread: Why there is no body, as the end of a sentence: "too large a body".
    """

    status: int
    headers: Mapping[str, str] = dataclasses.field(repr=False)
    body: bytes | None = dataclasses.field(repr=False)
    timing: float
    unread: str = ""


class ExchangeFailed(Exception):
    """There was no whole answer. The cause says why; it holds no request, no answer and no traceback.

    Attributes:
        timed_out: Whether it was for want of time.
        failure: The row of the failure table, if a proxy or TLS said what it is; else None.
    """

    def __init__(self, message: str, timed_out: bool, failure: Failure | None = None) -> None:
        super().__init__(message, timed_out, failure)
        self.message = message
        self.timed_out = timed_out
        self.failure = failure


def check_url(
    url: object,
    *,
    allow_insecure: bool,
    allowed_hosts: Collection[str] | None = None,
    argument: str = "url",
) -> str:
    """Return an HTTP URL that credentials may be sent to.

    Raises:
        ConfigurationError: If it is none: `http://` to another host than loopback needs `allow_insecure`, and
            if there are `allowed_hosts`, its host must be one of them.
    """
    if not isinstance(url, str):
        raise ConfigurationError(argument, f"must be a string, not {type(url).__name__}")
    if not url.isascii() or any(ch <= " " or ch in '\x7f\\"' for ch in url):
        raise ConfigurationError(argument, "must be printable ASCII without spaces, quotes and backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigurationError(argument, "is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigurationError(argument, "must start with https:// (or http://) and name a host")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ConfigurationError(argument, "must not hold a user, a password or a fragment")
    if parts.scheme == "http" and not allow_insecure and not is_loopback(parts.hostname):
        raise ConfigurationError(
            argument,
            f"http:// sends secrets to {parts.hostname} unencrypted; use https://, a loopback host, or "
            "allow_insecure=True",
        )
    check_host(parts.hostname, allowed_hosts, argument)
    return url


def check_http(http: object) -> requests.Session | None:
    """Return what was given as `http`.

    Raises:
        ConfigurationError: If it is neither a session of requests nor None.
    """
    if http is not None and not isinstance(http, requests.Session):
        raise ConfigurationError("http", "must be a requests.Session or None")
    return http


def post_form(
    url: str,
    form: Mapping[str, str],
    *,
    http: requests.Session | None,
    connect: float,
    deadline: Deadline,
    secrets: Collection[str] = (),
    ssl_context: Context = None,
    proxy: str | None = ENVIRONMENT,
) -> Answer:
    """POST a form and read the answer. The arguments and what is raised are those of `ask`."""
    request = requests.Request("POST", url, data=dict(form))
    return ask(
        request,
        http=http,
        connect=connect,
        deadline=deadline,
        secrets=secrets,
        ssl_context=ssl_context,
        proxy=proxy,
    )


def ask(
    request: requests.Request,
    *,
    http: requests.Session | None,
    connect: float,
    deadline: Deadline,
    secrets: Collection[str] = (),
    max_bytes: int = MAX_ANSWER_BYTES,
    ssl_context: Context = None,
    proxy: str | None = ENVIRONMENT,
) -> Answer:
    """Make a request and read the answer. Redirects are not followed: they would take secrets elsewhere.

    Args:
        request: Its URL is one that `check_url` accepted. What its `auth` raises of ours comes out as it is,
            other exceptions as ExchangeFailed.
        http: A session to use; None for one of this exchange's own, which leaves nothing open and keeps no
            cookies. A session of somebody else's cannot be kept from waiting for headers that drip.
        connect: Seconds to try each address of the host.
        deadline: Until when the whole answer must be there.
        secrets: What no text may hold.
        max_bytes: Of the body; more of it is not read.
        ssl_context: For a session of this exchange's own, or what returns it; None for what requests trusts.
        proxy: For a session of this exchange's own: what `proxies.choose` takes.

    Raises:
        ConfigurationError: If the proxy cannot be used.
        ExchangeFailed: If there was no whole answer.
    """
    failed: ExchangeFailed | LLMSessionsError
    via, where = None, ""
    try:
        with contextlib.ExitStack() as stack:
            session = http
            if session is None:
                via, where = way_to(request.url, proxy)
                tls = where and (request.url.startswith("https") or (via is not None and via.tls))
                context = (ssl_context() if callable(ssl_context) else ssl_context) if tls else None
                session = stack.enter_context(timed_session(deadline, context, via))
            # Of somebody else's sessions, each wait begins anew: a larger piece is waited for until it is
            # whole, however slowly it comes.
            piece = _PIECE if http is None else 1
            answer = _ask(session, request, connect, deadline, max_bytes, piece)
            if via is None or answer.status != 407:
                return answer
            refused = refusal(via, where, 407, "Proxy Authentication Required")
            failed = ExchangeFailed(refused.message, False, refused.failure)
    except LLMSessionsError as exc:
        failed = fresh_copy(exc)  # without its traceback, which leads to the request
    except Exception as exc:  # noqa: BLE001  # also what hooks and adapters of the given session raise
        cause, timed_out = scrubbed(exc, secrets)
        through = "" if via is None else f" (through the proxy {via})"
        own = f"{type(cause).__name__}: {cause}{through}"
        failure, text = explain(chain_of(exc), via, where) or (None, own)
        failed = ExchangeFailed(clean(text, secrets), timed_out or deadline.expired, failure)
        failed.__cause__ = cause
    try:
        raise failed  # out here it gets no __context__: that would be the exception with the request in it
    finally:
        del failed  # or it and this frame, which knows the form, would hold each other


def _ask(
    session: requests.Session,
    request: requests.Request,
    connect: float,
    deadline: Deadline,
    max_bytes: int,
    piece: int,
) -> Answer:
    left = deadline.left()
    assert left is not None
    if not left:
        raise TimeoutError("no time is left to ask")
    # None keeps the session's own from being sent: it is for others. So does an auth that adds nothing:
    # without one, requests takes the session's or one from ~/.netrc.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Authorization": None}
    request.headers = {**headers, **request.headers}
    request.auth = request.auth or _no_auth
    prepared = session.prepare_request(request)
    assert prepared.url is not None
    options = session.merge_environment_settings(prepared.url, {}, True, None, None)
    meant, where = urlsplit(request.url), urlsplit(prepared.url)
    if (meant.scheme, meant.hostname, meant.port) != (where.scheme, where.hostname, where.port):
        raise ValueError("requests reads this URL in another way than it was checked")
    adapter = session.get_adapter(prepared.url)
    if isinstance(adapter, TimedAdapter):
        options["proxies"] = adapter.proxies
    elif where.scheme == "http" and is_loopback(where.hostname or ""):
        # A proxy is another host, which may not see what goes to loopback in the clear.
        options["proxies"] = {}
    opened: list[requests.Response] = []

    def first(response: requests.Response, **options: Any) -> None:
        opened.append(response)

    def last(response: requests.Response, **options: Any) -> None:
        opened.append(response)
        # Or requests prepares for following it, and reads the whole body, however long that is.
        response.headers.pop("Location", None)

    prepared.hooks["response"] = [first, *prepared.hooks["response"], last]
    timeout = (min(connect, left), left)
    began = time.monotonic()
    try:
        with session.send(prepared, timeout=timeout, allow_redirects=False, **options) as response:
            body, unread = None, _coding(response)
            if not unread and (body := _read(response, deadline, max_bytes, piece)) is None:
                unread = "too large a body"
            return Answer(response.status_code, response.headers, body, time.monotonic() - began, unread)
    finally:
        while opened:  # also what a hook that raised was given; none is left, for they know these hooks
            opened.pop().close()


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _coding(response: requests.Response) -> str:
    """Say what is wrong with how the body is encoded; nothing if nothing is.

    A few bytes of a compressed body can become a thousand times as many, and cost the CPU for it.
    """
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding in ("", "identity") or not _has_body(response):
        return ""
    return f"a body in {clean(coding)[:20]}, which was not asked for"


def _has_body(response: requests.Response) -> bool:
    return response.status_code != 204 and response.headers.get("Content-Length") != "0"


def _read(response: requests.Response, deadline: Deadline, max_bytes: int, size: int) -> bytes | None:
    body = bytearray()
    for piece in response.iter_content(size):
        body += piece
        if len(body) > max_bytes:
            return None  # closing the response ends its connection
        if deadline.expired:
            raise TimeoutError("the answer came too slowly")
    return bytes(body)


# -- nothing that is raised holds a secret -------------------------------------------------------------------


def clean(text: str, secrets: Collection[str] = ()) -> str:
    """Return somebody else's text as it may become part of ours: short, printable, without secrets."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = one_line(redact(text)).strip()
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def scrubbed(exc: BaseException, secrets: Collection[str]) -> tuple[BaseException, bool]:
    """Return an exception of the same class and text that holds nothing else, and whether time ran out.

    requests' exceptions carry the request with its body, the tracebacks below them the frames that made it.
    What the operating system said is kept as the cause.
    """
    chain = chain_of(exc)
    system = [one for one in chain if isinstance(one, OSError) and not _is_requests(one)]
    twin = _twin(exc, secrets)
    if system and system[-1] is not exc:
        twin.__cause__ = _twin(system[-1], secrets)
    timed_out = any(isinstance(one, (TimeoutError, requests.Timeout)) for one in chain)
    return twin, timed_out


def _is_requests(exc: BaseException) -> bool:
    return isinstance(exc, requests.RequestException)


def _twin(exc: BaseException, secrets: Collection[str]) -> BaseException:
    kind, text = type(exc), clean(str(exc), secrets)
    errno = exc.errno if isinstance(exc, OSError) and not _is_requests(exc) else None
    try:
        return kind(errno, clean(str(getattr(exc, "strerror", "")), secrets)) if errno else kind(text)
    except Exception:  # noqa: BLE001  # a class with another signature: its name must do
        return RuntimeError(f"{kind.__name__}: {text}")
