"""CONNECT: what the proxy is told, and what each of its answers leads to."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions._sync import Deadline
from llm_sessions._version import __version__
from llm_sessions.connection.proxies import ProxyAddress, parse_proxy
from llm_sessions.connection.stream import Stream
from llm_sessions.connection.stream_errors import StreamAborted, StreamBroken, StreamClosed, StreamTimeout
from llm_sessions.connection.transport import AttemptFailed
from llm_sessions.connection.tunnel import open_tunnel, refusal
from llm_sessions.protocol.closing import Failure
from llm_sessions.protocol.url import Address
from tests.peers import Peer, reset
from tests.proxies import ENCODED, HOST, PASSWORD, Proxy, drip, say
from tests.support import LONG, SHORT, Background

ADDRESS = Address(HOST, 443, True)
OK = b"HTTP/1.1 200 OK\r\n\r\n"


@contextlib.contextmanager
def opened(proxy: Proxy, context: ssl.SSLContext | None = None) -> Iterator[Stream]:
    stream = Stream()
    try:
        tls = context if proxy.tls else None
        stream.open([proxy.peer.address], Deadline(LONG), tls=tls, host="localhost")
        yield stream
    finally:
        stream.release()


def run(
    instead: Callable[[Peer, Any], object] | None,
    context: ssl.SSLContext | None = None,
    server: ssl.SSLContext | None = None,
    *,
    address: Address = ADDRESS,
    timeout: float = LONG,
    auth: bool = False,
) -> Proxy:
    with Proxy(instead=instead, context=server, auth=auth) as proxy, opened(proxy, context) as stream:
        open_tunnel(stream, parse_proxy(proxy.url()), address.host, address, Deadline(timeout))
    return proxy


def refused(instead: Callable[[Peer, Any], object], **options: Any) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as caught:
        run(instead, **options)
    assert caught.value.message.startswith("the proxy http://localhost:")
    return caught.value


@pytest.mark.parametrize("auth", [False, True])
def test_t12_the_proxy_is_told_where_to_and_nothing_else(auth: bool) -> None:
    [head] = run(say(OK), auth=auth).heads
    assert head.decode().split("\r\n") == [
        f"CONNECT {HOST}:443 HTTP/1.1",
        f"Host: {HOST}:443",
        f"User-Agent: llm-sessions/{__version__}",
        *([f"Proxy-Authorization: Basic {ENCODED}"] if auth else []),
        "",
        "",
    ]


def test_a_number_is_written_as_urls_have_it() -> None:
    assert run(say(OK), address=Address("::1", 80, False)).asked == ["[::1]:80"]


@pytest.mark.parametrize(
    "answer", [OK, b"HTTP/1.0 200\r\n\r\n", b"HTTP/1.1 204 Fine\r\nContent-Length: 5\r\n\r\n"]
)
def test_any_2xx_is_a_yes(answer: bytes, tls: bool, client_context: Any, server_context: Any) -> None:
    run(say(answer), client_context, server_context if tls else None)


@pytest.mark.parametrize(
    ("answer", "failure", "text"),
    [
        (
            b"407 Proxy Authentication Required",
            Failure.MISPLACED,
            "refused: 407 Proxy Authentication Required",
        ),
        (b"403 Filtered", Failure.MISPLACED, "refused: 403 Filtered"),
        (b"401 No", Failure.MISPLACED, "refused: 401 No"),
        (b"404 No", Failure.MISPLACED, "refused: 404 No"),
        (b"302 Found", Failure.MISPLACED, "refused: 302 Found"),
        (b"101 Switching", Failure.MISPLACED, "refused: 101 Switching"),
        (b"408 Slow", Failure.BUSY, "refused: 408 Slow"),
        (b"429 Slow down", Failure.BUSY, "refused: 429 Slow down"),
        (b"500 Oops", Failure.BUSY, "refused: 500 Oops"),
        (b"502 Bad Gateway", Failure.BUSY, f"cannot reach {HOST}:443: 502 Bad Gateway"),
        (b"503", Failure.BUSY, f"cannot reach {HOST}:443: 503"),
        (b"504 Timeout", Failure.BUSY, f"cannot reach {HOST}:443: 504 Timeout"),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_any_other_status_is_an_error(answer: bytes, failure: Failure, text: str) -> None:
    page = b"\r\nRetry-After: 7 \r\nContent-Length: 99999\r\n\r\n<html>"
    error = refused(say(b"HTTP/1.1 " + answer + page))
    waits = "7" if failure is Failure.BUSY else None
    assert (error.failure, error.status, error.retry_after) == (failure, int(answer[:3]), waits)
    assert error.message.endswith(f" {text}")


def test_limit_a_phrase_is_cut_and_made_printable() -> None:
    proxy = ProxyAddress("http", "p", 1)
    message = refusal(proxy, "h:1", 403, "x\x1b[31m" + "y" * 200).message
    assert message == f"the proxy http://p:1 refused: 403 x[31m{'y' * 95}"
    assert refusal(proxy, "h:1", 403, "bearer eyJhbGciOi").message.endswith("403 bearer ***")


@pytest.mark.parametrize("glued", [b"\x00", b"HTTP/1.1 400 Bad\r\n\r\n", b"\x16\x03\x01"])
def test_nothing_may_come_behind_the_answer(glued: bytes) -> None:
    error = refused(say(OK + glued))
    assert error.failure is Failure.MISPLACED and "more than its answer" in error.message


@pytest.mark.parametrize("answer", [b"SSH-2.0-x\r\n", b"\x15\x03\x01\x00\x02", b"HTTP/1.1 " + b"x" * 70_000])
def test_what_does_not_speak_http_is_no_proxy(answer: bytes) -> None:
    error = refused(say(answer))
    assert (
        error.failure is Failure.MISPLACED and "does not speak HTTP, so it is no HTTP proxy" in error.message
    )


def test_an_answer_without_a_status_is_an_error() -> None:
    error = refused(say(b"HTTP/1.1 OK\r\n\r\n"))
    assert error.failure is Failure.MISPLACED and error.message.endswith("answered without a status")


@pytest.mark.parametrize("host", ["a\r\nX: y", "a b", "a\x7f"])
def test_t12_a_host_cannot_add_lines(host: str) -> None:
    stream: Any = None  # it is not touched
    with pytest.raises(AttemptFailed, match="no proxy can be asked"):
        open_tunnel(stream, parse_proxy("http://p"), host, Address(host, 1, True), Deadline(LONG))


@pytest.mark.parametrize(
    ("instead", "error"),
    [
        (lambda peer, sock: sock.close(), StreamClosed),
        (lambda peer, sock: (sock.sendall(OK[:9]), sock.close()), StreamClosed),
        (lambda peer, sock: reset(sock), StreamBroken),
    ],
    ids=["hangs up", "in the answer", "resets"],
)
def test_a_proxy_that_leaves(instead: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(instead)


@pytest.mark.parametrize("instead", [lambda peer, sock: peer.hold(), drip], ids=["mute", "dripping"])
def test_t1_one_deadline_ends_the_wait(
    instead: Any, client_context: Any, server_context: Any, tls: bool
) -> None:
    with pytest.raises(StreamTimeout):
        run(instead, client_context, server_context if tls else None, timeout=SHORT)


@pytest.mark.parametrize("instead", [lambda peer, sock: peer.hold(), drip], ids=["mute", "dripping"])
def test_t0_abort_ends_the_wait(instead: Any) -> None:
    with Proxy(instead=instead) as proxy, opened(proxy) as stream:
        asking = Background(
            lambda: open_tunnel(stream, parse_proxy(proxy.url()), HOST, ADDRESS, Deadline(LONG))
        )
        assert proxy.peer.arrived.acquire(timeout=LONG)
        stream.abort()
        assert isinstance(asking.error(1.0), StreamAborted)


def test_t12_the_password_is_in_nothing_that_is_raised_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    error = refused(say(f"HTTP/1.1 407 {ENCODED} {PASSWORD}\r\n\r\n".encode()), auth=True)
    assert "407 *** ***" in error.message
    for text in (repr(error), caplog.text):
        assert PASSWORD not in text and ENCODED not in text
