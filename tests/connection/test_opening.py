"""Hop by hop: a real server behind each kind of proxy, and which hop is blamed for each failure."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions.connection.proxies import parse_proxy
from llm_sessions.connection.stream import AddressInfo
from llm_sessions.connection.transport import AttemptFailed
from llm_sessions.protocol.closing import Failure
from llm_sessions.protocol.url import connection_url
from llm_sessions.testing.certificates import ThrowAwayCA
from llm_sessions.testing.server import LocalServer
from tests.peers import Links, Owner, Peer, full_backlog, nobody, reset
from tests.proxies import HOST, PASSWORD, Proxy, drip, say
from tests.support import LONG, SHORT, Background

KINDS = ["http", "https", "socks5", "socks5h"]


@pytest.fixture
def ca() -> Iterator[ThrowAwayCA]:
    with ThrowAwayCA() as ca:
        yield ca


@pytest.fixture
def links(ca: ThrowAwayCA) -> Iterator[Links]:
    links = Links(ca.client_context())
    with contextlib.closing(links):
        yield links


def local(port: int) -> Callable[[str, int], list[AddressInfo]]:
    """Whatever the name, it is this machine; whatever the port, it is the one that was asked for."""

    def resolve(host: str, asked: int) -> list[AddressInfo]:
        return [(2, 1, 6, "", ("127.0.0.1", asked or port))]

    return resolve


class Way:
    """A server behind a proxy of a kind."""

    def __init__(
        self, stack: contextlib.ExitStack, ca: ThrowAwayCA, links: Links, kind: str, tls: bool
    ) -> None:
        context = ca.server_context(HOST) if tls else None
        self.server = stack.enter_context(LocalServer(ssl_context=context))
        self.proxy = stack.enter_context(
            Proxy(
                "socks5" if kind.startswith("socks") else "http",
                context=ca.server_context() if kind == "https" else None,
                auth=True,
                routes={HOST: self.server.port, "127.0.0.1": self.server.port},
            )
        )
        self.owner, self._links, self._ca, self._tls = Owner(), links, ca, tls
        self.url = self.proxy.url(kind)

    def link(self, **request: Any) -> Any:
        return self._links.make(
            443,
            self.owner,
            tls=self._tls,
            host=HOST,
            path=connection_url("ws://x/s", now_ms=1)[7:],
            found=local(0),
            proxy=parse_proxy(request.pop("proxy", self.url)),
            **request,
        )


@pytest.fixture(params=KINDS)
def way(request: pytest.FixtureRequest, tls: bool, ca: ThrowAwayCA, links: Links) -> Iterator[Way]:
    with contextlib.ExitStack() as stack:
        if request.param == "https" and not tls:
            # The fixture's links bring a context for wss only.
            links.make = with_context(links.make, ca)  # type: ignore[method-assign]
        yield Way(stack, ca, links, request.param, tls)


def with_context(make: Any, ca: ThrowAwayCA) -> Any:
    def made(*arguments: Any, **options: Any) -> Any:
        link = make(*arguments, **options)
        object.__setattr__(link._request, "ssl_context", ca.client_context())
        return link

    return made


def test_a_session_goes_through_every_kind_of_proxy(way: Way) -> None:
    link = way.link()
    link.open()
    way.owner.wait_ready()
    for number in range(20):
        link.send(b'{"id":"%d","type":"publishRequest","data":{"text":"%s"}}' % (number, b"x" * 9000), LONG)
    way.server.publish({"text": "y" * 200_000})
    way.owner.wait_for(lambda: any("y" * 100 in str(one) for one in way.owner.reports), "the message")
    link.close(1000, "Done")
    assert way.owner.wait_ended().code == 1000
    local_name = "127.0.0.1" if way.url.startswith("socks5:") else HOST
    assert way.proxy.asked == [f"{local_name}:443"]
    assert way.server.violations == []


def failure(link: Any) -> AttemptFailed:
    with pytest.raises(AttemptFailed) as caught:
        link.open()
    assert PASSWORD not in str(caught.value)
    return caught.value


def test_a_proxy_that_nobody_finds(links: Links) -> None:
    def unknown(host: str, port: int) -> list[AddressInfo]:
        raise OSError(-2, "Name or service not known")

    link = links.make(1, Owner(), tls=False, host=HOST, found=unknown, proxy=parse_proxy("http://p:1"))
    error = failure(link)
    assert error.failure is Failure.NETWORK
    assert error.message.startswith("cannot resolve the proxy http://p:1: ")


def test_a_host_that_socks5_needs_looked_up_and_nobody_finds(links: Links) -> None:
    def unknown(host: str, port: int) -> list[AddressInfo]:
        if host == HOST:
            raise OSError(-2, "Name or service not known")
        return [nobody()]

    link = links.make(1, Owner(), tls=False, host=HOST, found=unknown, proxy=parse_proxy("socks5://p:1"))
    assert failure(link).message.startswith(f"cannot resolve {HOST}:1: ")


def through(links: Links, proxy: str, found: list[AddressInfo], **request: Any) -> Any:
    tls = request.pop("tls", True)
    return links.make(443, Owner(), tls=tls, host=HOST, found=found, proxy=parse_proxy(proxy), **request)


def test_a_proxy_that_refuses_tcp(links: Links) -> None:
    error = failure(through(links, "http://p:1", [nobody()]))
    assert error.failure is Failure.NETWORK
    assert error.message == "the proxy http://p:1 cannot be reached: Connection refused"


def test_the_next_address_of_the_proxys_name_is_tried(links: Links) -> None:
    with Proxy(instead=say(b"HTTP/1.1 407 No\r\n\r\n")) as proxy:
        error = failure(through(links, "http://p:1", [nobody(), proxy.peer.address]))
    assert error.message == "the proxy http://p:1 refused: 407 No"


def test_t1_a_proxy_that_swallows_packets(links: Links) -> None:
    with full_backlog() as address:
        error = failure(through(links, "http://p:1", [address], open_timeout=SHORT))
    assert (error.failure, error.message) == (
        Failure.NETWORK,
        f"the proxy http://p:1 did not answer within {SHORT} s",
    )


@pytest.mark.parametrize("url", ["http://p:1", "https://p:1", "socks5h://p:1"])
def test_t1_a_mute_proxy(url: str, links: Links) -> None:
    with Peer(lambda peer, sock: peer.hold()) as peer:
        error = failure(through(links, url, [peer.address], open_timeout=SHORT))
    assert error.message == f"the proxy {url} did not answer within {SHORT} s"


@pytest.mark.parametrize(
    "script", [lambda peer, sock: None, lambda peer, sock: reset(sock)], ids=["hangs up", "resets"]
)
def test_a_proxy_that_leaves(script: Any, links: Links) -> None:
    with Proxy(instead=script) as proxy:
        error = failure(through(links, "http://p:1", [proxy.peer.address]))
    assert error.failure is Failure.NETWORK
    assert f"the proxy http://p:1 broke off before it had reached {HOST}:443: " in error.message


def test_a_proxy_nobody_trusts_and_one_without_tls(links: Links, server_context: ssl.SSLContext) -> None:
    with Proxy(context=server_context) as proxy:
        error = failure(through(links, "https://localhost:1", [proxy.peer.address]))
    assert error.failure is Failure.UNTRUSTED
    assert error.message.startswith("the certificate of the proxy https://localhost:1 is not valid: ")
    with Peer(lambda peer, sock: (sock.recv(1), sock.sendall(b"HTTP/1.1 400 Bad\r\n\r\n"))) as plain:
        error = failure(through(links, "https://localhost:1", [plain.address]))
    assert error.failure is Failure.MISPLACED
    assert error.message.startswith("the proxy https://localhost:1 does not speak TLS: ")


def test_a_server_behind_the_proxy_is_blamed_itself(links: Links, ca: ThrowAwayCA) -> None:
    context = ca.wrong_host_context()
    with LocalServer(ssl_context=context, strict=False) as server, Proxy(routes={HOST: server.port}) as proxy:
        error = failure(through(links, "http://p:1", [proxy.peer.address]))
    assert error.failure is Failure.UNTRUSTED
    assert error.message.startswith(
        f"the certificate of {HOST}:443 (through the proxy http://p:1) is not valid"
    )


@pytest.mark.parametrize("inner", ["mute", "gone"])
def test_a_server_that_does_not_answer_behind_a_proxy_in_tls(
    inner: str, links: Links, ca: ThrowAwayCA
) -> None:
    """TLS in TLS: also a proxy's goodbye in the middle of the inner handshake is an end."""

    def connected(peer: Peer, sock: Any) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        sock.recv(1 << 16)
        if inner == "mute":
            peer.hold()
        with contextlib.suppress(OSError):
            sock.unwrap()
        peer.hold()

    with Proxy(instead=connected, context=ca.server_context()) as proxy:
        timeout = SHORT * 4 if inner == "mute" else LONG
        error = failure(through(links, "https://localhost:1", [proxy.peer.address], open_timeout=timeout))
    assert error.failure is Failure.NETWORK
    assert f"{HOST}:443 (through the proxy https://localhost:1)" in error.message
    assert ("did not answer" in error.message) == (inner == "mute")


PHASES: dict[str, tuple[str, Callable[[Peer, Any], object] | None]] = {
    "TLS to the proxy": ("https://localhost:1", None),
    "the answer to CONNECT": ("http://p:1", lambda peer, sock: peer.hold()),
    "a dripping answer": ("http://p:1", drip),
    "SOCKS5": ("socks5h://p:1", None),
    "TLS through the proxy": ("http://p:1", say(b"HTTP/1.1 200 OK\r\n\r\n")),
}


@pytest.mark.parametrize(("url", "instead"), PHASES.values(), ids=PHASES)
def test_t0_abort_ends_every_phase_of_a_proxy(url: str, instead: Any, links: Links) -> None:
    proxy: Any = Proxy(instead=instead) if instead else Peer(lambda peer, sock: peer.hold())
    with proxy:
        peer: Peer = proxy.peer if instead else proxy
        link = through(links, url, [peer.address])
        opening = Background(link.open)
        assert peer.arrived.acquire(timeout=LONG)
        link.abort()
        error = opening.error(1.0)
    assert isinstance(error, AttemptFailed) and "was ended" in error.message


def test_t0_abort_ends_a_connect_to_the_proxy(links: Links) -> None:
    with full_backlog() as address:
        link = through(links, "http://p:1", [address])
        opening = Background(link.open)
        link.abort()
        assert "was ended" in str(opening.error(1.0))
