"""REST through proxies: who is asked, what they see, and which hop is blamed for each failure."""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from llm_sessions import ConfigurationError, OAuthTokens, PoolConfig
from llm_sessions._sync import Deadline
from llm_sessions.datachannel.exchange import Answer, ExchangeFailed, ask
from llm_sessions.datachannel.hops import chain_of, way_to
from llm_sessions.datachannel.rest import RestClient
from llm_sessions.protocol.closing import Failure
from llm_sessions.testing.certificates import ThrowAwayCA
from tests.datachannel.service import TokenService
from tests.peers import Peer, reset
from tests.proxies import ENCODED, HOST, PASSWORD, Proxy, clean_environment, drip, say
from tests.support import LONG

needs_pysocks = pytest.mark.skipif(
    importlib.util.find_spec("socks") is None, reason="PySocks (extra socks) is not installed"
)
KINDS = ["http", "https", *(pytest.param(kind, marks=needs_pysocks) for kind in ("socks5", "socks5h"))]
QUICK = 0.3


@pytest.fixture
def ca() -> Iterator[ThrowAwayCA]:
    with ThrowAwayCA() as ca:
        yield ca


@pytest.fixture
def service(ca: ThrowAwayCA) -> Iterator[TokenService]:
    with TokenService(ca.server_context(HOST, "127.0.0.1")) as service:
        yield service


def asked(proxy: str | None, ca: ThrowAwayCA, url: str = f"https://{HOST}/token", **options: Any) -> Answer:
    request = requests.Request("POST", url, data={"a": "b"}, headers={"Authorization": "Bearer s3cret-token"})
    deadline = Deadline(options.pop("timeout", LONG))
    context = options.pop("context", ca.client_context)
    return ask(request, http=None, connect=LONG, deadline=deadline, ssl_context=context, proxy=proxy)


def fails(proxy: str, ca: ThrowAwayCA, **options: Any) -> ExchangeFailed:
    with pytest.raises(ExchangeFailed) as caught:
        asked(proxy, ca, **options)
    failed = caught.value
    for one in (failed, failed.__cause__, *chain_of(failed)):
        assert PASSWORD not in repr(one) and ENCODED not in repr(one)
    return failed


def make_proxy(kind: str, ca: ThrowAwayCA, **options: Any) -> Proxy:
    context = ca.server_context() if kind == "https" else None
    return Proxy("socks5" if kind.startswith("socks") else "http", context=context, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("auth", [False, True])
def test_t12_a_call_goes_through_every_kind_of_proxy(
    kind: str, auth: bool, ca: ThrowAwayCA, service: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch, https_proxy="http://127.0.0.1:1")  # which does not count
    host = "127.0.0.1" if kind == "socks5" else HOST  # else the system would be asked for it
    port = service.url.rpartition(":")[2].partition("/")[0]
    with make_proxy(kind, ca, auth=auth, routes={HOST: int(port)}) as proxy:
        assert asked(proxy.url(kind), ca, f"https://{host}:{port}/token").status == 200
        assert proxy.asked == [f"{host}:{port}"]
        assert not [head for head in proxy.heads if b"s3cret" in head or b"\r\nAuthorization" in head]
    assert len(service.forms) == 1


def test_a_proxy_may_be_none(ca: ThrowAwayCA, service: TokenService, monkeypatch: pytest.MonkeyPatch) -> None:
    clean_environment(monkeypatch, https_proxy="http://127.0.0.1:1", all_proxy="http://127.0.0.1:1")
    assert asked(None, ca, service.url).status == 200


def test_the_environment_is_read_as_for_sockets(ca: ThrowAwayCA, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(instead=say(b"HTTP/1.1 403 Filtered\r\n\r\n")) as proxy:
        clean_environment(monkeypatch, https_proxy=proxy.url().removeprefix("http://"))
        assert way_to(f"https://{HOST}/", "environment")[0] is not None
        assert (
            fails("environment", ca).message
            == f"the proxy http://localhost:{proxy.port} refused: 403 Filtered"
        )
        monkeypatch.setenv("no_proxy", HOST)
        assert way_to(f"https://{HOST}/", "environment") == (None, f"{HOST}:443")


@pytest.mark.parametrize(
    ("status", "failure", "text"),
    [
        (
            b"407 Proxy Authentication Required",
            Failure.MISPLACED,
            "refused: 407 Proxy Authentication Required",
        ),
        (b"502 Bad Gateway", Failure.BUSY, f"cannot reach {HOST}:443: 502 Bad Gateway"),
        (b"429 Slow", Failure.BUSY, "refused: 429 Slow"),
    ],
)
def test_a_proxy_that_refuses_is_quoted(status: bytes, failure: Failure, text: str, ca: ThrowAwayCA) -> None:
    with Proxy(auth=True, instead=say(b"HTTP/1.1 " + status + b"\r\n\r\n")) as proxy:
        failed = fails(proxy.url(), ca)
    assert (failed.message, failed.failure) == (f"the proxy http://localhost:{proxy.port} {text}", failure)


def test_a_proxy_that_wants_a_password_for_plain_http(ca: ThrowAwayCA) -> None:
    def script(peer: Peer, sock: Any) -> None:
        sock.recv(1 << 16)
        sock.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")

    with Peer(script) as peer:
        failed = fails(f"http://127.0.0.1:{peer.port}", ca, url=f"http://{HOST}/")
    assert failed.failure is Failure.MISPLACED and "refused: 407" in failed.message


def test_a_proxy_that_is_not_there(ca: ThrowAwayCA) -> None:
    with Proxy() as proxy:
        url = proxy.url()
    failed = fails(url, ca)
    assert (failed.message, failed.failure) == (
        f"the proxy {url} cannot be reached: Connection refused",
        Failure.NETWORK,
    )


@pytest.mark.parametrize("kind", ["http", "https"])
@pytest.mark.parametrize("instead", [lambda peer, sock: peer.hold(), drip], ids=["mute", "dripping"])
def test_t1_a_proxy_that_does_not_answer_is_named(instead: Any, kind: str, ca: ThrowAwayCA) -> None:
    with make_proxy(kind, ca, instead=instead) as proxy:
        failed = fails(proxy.url(), ca, timeout=QUICK)
    assert failed.timed_out and failed.failure is Failure.NETWORK
    assert failed.message == f"the proxy {proxy.url()} did not answer"


@pytest.mark.parametrize("kind", ["http", "https"])
@pytest.mark.parametrize(
    ("instead", "failure", "text"),
    [
        (lambda peer, sock: sock.close(), Failure.NETWORK, f"broke off before it had reached {HOST}:443: "),
        (lambda peer, sock: reset(sock), Failure.NETWORK, f"broke off before it had reached {HOST}:443: "),
        (say(b"SSH-2.0-x\r\n"), Failure.MISPLACED, "does not speak HTTP, so it is no HTTP proxy: "),
    ],
    ids=["closes", "resets", "another protocol"],
)
def test_a_proxy_that_breaks_off_is_named(
    instead: Any, failure: Failure, text: str, kind: str, ca: ThrowAwayCA
) -> None:
    with make_proxy(kind, ca, instead=instead) as proxy:
        failed = fails(proxy.url(), ca)
    assert failed.message.startswith(f"the proxy {proxy.url()} {text}") and failed.failure is failure


def test_a_service_that_breaks_off_behind_a_proxy_is_not_the_proxy(ca: ThrowAwayCA) -> None:
    with Peer(lambda peer, sock: (sock.recv(1), reset(sock))) as service:
        with Proxy(routes={HOST: service.port}) as proxy:
            failed = fails(proxy.url(), ca)
    assert failed.failure is None
    assert failed.message.endswith(f"(through the proxy {proxy.url()})")


def test_a_proxy_that_nobody_trusts_and_a_service_that_nobody_trusts(
    ca: ThrowAwayCA, service: TokenService, server_context: ssl.SSLContext
) -> None:
    with Proxy(context=server_context) as proxy:
        failed = fails(proxy.url(), ca)
    assert failed.failure is Failure.UNTRUSTED
    assert failed.message.startswith(
        f"the certificate of the proxy https://localhost:{proxy.port} is not valid"
    )
    with Proxy(routes={HOST: int(service.url.rpartition(":")[2].partition("/")[0])}) as proxy:
        failed = fails(proxy.url(), ca, context=ssl.create_default_context())
    assert failed.failure is Failure.UNTRUSTED
    assert failed.message.startswith(f"the certificate of {HOST}:443 (through the proxy http://localhost:")


def test_a_service_without_tls_and_one_that_wants_a_certificate(ca: ThrowAwayCA) -> None:
    with Peer(lambda peer, sock: (sock.recv(1), sock.sendall(b"HTTP/1.1 400 Bad\r\n\r\n"))) as plain:
        failed = fails("environment", ca, url=f"https://127.0.0.1:{plain.port}/")
        assert failed.failure is Failure.MISPLACED and "does not speak TLS" in failed.message
    with TokenService(ca.server_context(client_certificates=True)) as strict:
        failed = fails("environment", ca, url=strict.url)
        assert failed.failure is Failure.UNTRUSTED and "wants a client certificate" in failed.message
        mine = PoolConfig(ca_file=ca.ca_file, client_cert=ca.client_file("me.example"))
        assert asked(None, ca, strict.url, context=mine.tls_context).status == 200


@needs_pysocks
@pytest.mark.parametrize(
    ("answer", "failure", "text"),
    [
        (b"\x05\x02\x00\x01" + bytes(6), Failure.MISPLACED, "refused: 0x02"),
        (b"\x05\x05\x00\x01" + bytes(6), Failure.NETWORK, f"cannot reach {HOST}:443: 0x05"),
        (b"\x09" + bytes(9), Failure.MISPLACED, "does not speak SOCKS5"),
    ],
)
def test_what_a_socks_proxy_refuses_is_quoted(
    answer: bytes, failure: Failure, text: str, ca: ThrowAwayCA
) -> None:
    with Proxy("socks5", instead=say(answer)) as proxy:
        failed = fails(proxy.url("socks5h"), ca)
    assert failed.failure is failure
    assert failed.message.startswith(f"the proxy socks5h://127.0.0.1:{proxy.port} {text}")


@needs_pysocks
def test_a_socks_proxy_that_is_not_there_and_one_with_another_password(ca: ThrowAwayCA) -> None:
    with Proxy("socks5", auth=True) as proxy:
        failed = fails(proxy.url("socks5h", credentials="user:another-pass"), ca)
        assert failed.failure is Failure.MISPLACED and "refused the user or the password" in failed.message
    assert "cannot be reached: " in fails(proxy.url("socks5h"), ca).message


def test_socks_without_pysocks_says_what_to_install(ca: ThrowAwayCA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install llm-sessions\[socks\]"):
        asked("socks5h://127.0.0.1:1", ca)


def test_a_pools_settings_are_those_of_its_rest_calls(ca: ThrowAwayCA, service: TokenService) -> None:
    port = int(service.url.rpartition(":")[2].partition("/")[0])
    with Proxy(routes={HOST: port}, auth=True) as proxy:
        config = PoolConfig(ca_file=ca.ca_file, proxy=proxy.url())
        rest = RestClient(None, config=config)
        assert rest.call("GET", f"https://{HOST}/x", token="s3cret-token").status == 200
        tokens = OAuthTokens("id", "s3cret", "s3cret-refresh", url=f"https://{HOST}/token", config=config)
        assert tokens.get()
        assert proxy.asked == [f"{HOST}:443"] * 2
    with pytest.raises(ConfigurationError):
        OAuthTokens("id", "s3cret", "s3cret-refresh", config=5)  # type: ignore[arg-type]


def test_a_chain_ends_where_it_began() -> None:
    first, second = ValueError(1), KeyError(2)
    first.__cause__, second.__context__ = second, first
    assert chain_of(first) == [first, second]
