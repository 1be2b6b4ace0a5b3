"""SOCKS5 by python-socks over our stream: what is said, and what each answer leads to."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions._sync import Deadline
from llm_sessions.connection.proxies import parse_proxy
from llm_sessions.connection.socks import check_installed, socks_connect
from llm_sessions.connection.stream import Stream
from llm_sessions.connection.stream_errors import StreamAborted, StreamClosed, StreamTimeout
from llm_sessions.connection.transport import AttemptFailed
from llm_sessions.errors import ConfigurationError
from llm_sessions.protocol.closing import Failure
from tests.peers import Peer, read_exactly
from tests.proxies import HOST, PASSWORD, Proxy, say
from tests.support import LONG, SHORT, Background

Script = Callable[[Peer, Any], object]


def ask(
    port: int,
    url: str,
    *,
    host: str = HOST,
    timeout: float = LONG,
    made: Callable[[Stream], object] = lambda stream: None,
) -> bytes:
    stream = Stream()
    try:
        address = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))
        stream.open([address], Deadline(LONG), tls=None, host="localhost")
        made(stream)
        return socks_connect(stream, parse_proxy(url), host, 443, Deadline(timeout))
    finally:
        stream.release()


def refused(instead: Script | None, url: str | None = None, **options: Any) -> AttemptFailed:
    with Proxy("socks5", instead=instead, **options) as proxy, pytest.raises(AttemptFailed) as caught:
        ask(proxy.port, url or proxy.url())
    assert caught.value.message.startswith("the proxy socks5://")
    return caught.value


GRANTED = {
    "IPv4": b"\x05\x00\x00\x01" + bytes(6),
    "IPv6": b"\x05\x00\x00\x04" + bytes(18),
    "name": b"\x05\x00\x00\x03\x02ab\x00\x50",
}


@pytest.mark.parametrize("answer", GRANTED.values(), ids=GRANTED)
@pytest.mark.parametrize("host", [HOST, "10.1.2.3", "::1"])
@pytest.mark.parametrize("auth", [False, True])
def test_it_asks_for_a_host_and_takes_the_whole_answer(answer: bytes, host: str, auth: bool) -> None:
    with Proxy("socks5", auth=auth, instead=say(answer + b"rest")) as proxy:
        assert b"rest".startswith(ask(proxy.port, proxy.url(), host=host))
        assert proxy.asked == [f"{host}:443"]


def test_an_answer_in_single_bytes_is_understood() -> None:
    def slowly(peer: Peer, sock: Any) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GRANTED["name"]:
            sock.sendall(bytes((byte,)))
        peer.hold()

    with Proxy("socks5", instead=slowly) as proxy:
        assert ask(proxy.port, proxy.url()) == b""


@pytest.mark.parametrize(
    ("code", "failure", "text"),
    [
        (1, Failure.NETWORK, f"cannot reach {HOST}:443: General SOCKS server failure"),
        (2, Failure.MISPLACED, "refused: Connection not allowed by ruleset"),
        (3, Failure.NETWORK, f"cannot reach {HOST}:443: Network unreachable"),
        (4, Failure.NETWORK, f"cannot reach {HOST}:443: Host unreachable"),
        (5, Failure.NETWORK, f"cannot reach {HOST}:443: Connection refused by destination host"),
        (6, Failure.NETWORK, f"cannot reach {HOST}:443: TTL expired"),
        (7, Failure.MISPLACED, "refused: Command not supported or protocol error"),
        (8, Failure.MISPLACED, "refused: Address type not supported"),
        (99, Failure.MISPLACED, "refused: Invalid reply code"),
    ],
)
def test_each_refusal_has_its_row(code: int, failure: Failure, text: str) -> None:
    error = refused(say(bytes((5, code, 0, 1)) + bytes(6)))
    assert error.failure is failure and text in error.message


def test_a_wrong_password_is_named_and_not_quoted() -> None:
    error = refused(None, "socks5://user:not-the-pass@localhost:1", auth=True)
    assert error.failure is Failure.MISPLACED and "refused the user or the password" in error.message
    assert "not-the-pass" not in repr(error) and PASSWORD not in repr(error)


def test_a_proxy_that_wants_a_password_and_gets_none() -> None:
    error = refused(None, "socks5://localhost:1", auth=True)
    assert error.failure is Failure.MISPLACED and "No acceptable authentication" in error.message


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad", b"\x04\x00", b"\x05\x07"])
def test_what_does_not_speak_socks5_is_said_to_be_so(answer: bytes) -> None:
    with Peer(lambda peer, sock: (sock.sendall(answer), peer.hold())) as peer:
        with pytest.raises(AttemptFailed, match="does not speak SOCKS5") as caught:
            ask(peer.port, "socks5://localhost:1")
    assert caught.value.failure is Failure.MISPLACED


def test_an_address_of_no_kind_is_refused() -> None:
    assert refused(say(b"\x05\x00\x00\x09" + bytes(9))).failure is Failure.MISPLACED


def test_a_name_that_cannot_be_sent_is_a_failed_attempt() -> None:
    with Proxy("socks5") as proxy, pytest.raises(AttemptFailed, match="cannot be asked for") as caught:
        ask(proxy.port, proxy.url(), host="x" * 300)
    assert caught.value.failure is Failure.MISPLACED


def test_a_proxy_that_leaves_and_one_that_says_nothing() -> None:
    with Proxy("socks5", instead=lambda peer, sock: sock.close()) as proxy, pytest.raises(StreamClosed):
        ask(proxy.port, proxy.url())
    with Peer(lambda peer, sock: peer.hold()) as peer, pytest.raises(StreamTimeout):
        ask(peer.port, "socks5://localhost:1", timeout=SHORT)


@pytest.mark.parametrize("said", [b"", b"\x05", b"\x05\x00", b"\x05\x00\x05\x00\x00\x03\x09"], ids=repr)
def test_t0_abort_ends_each_wait(said: bytes) -> None:
    def script(peer: Peer, sock: Any) -> None:
        read_exactly(sock, 3)
        sock.sendall(said)
        peer.arrived.release()
        peer.hold()

    streams: list[Stream] = []
    with Peer(script) as peer:
        asking = Background(lambda: ask(peer.port, "socks5h://localhost:1", made=streams.append))
        for _ in range(2):
            assert peer.arrived.acquire(timeout=LONG)
        streams[0].abort()
        assert isinstance(asking.error(1.0), StreamAborted)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed("python_socks")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install llm-sessions\[socks\]"):
        check_installed("python_socks")
