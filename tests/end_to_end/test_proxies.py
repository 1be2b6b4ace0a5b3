"""Sessions and data channels through proxies: chosen anew for each attempt, ended at any moment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import (
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    ConnectionPool,
    DataChannelClient,
    PoolConfig,
)
from llm_sessions.testing.certificates import ThrowAwayCA
from llm_sessions.testing.server import LocalServer
from tests.peers import Peer
from tests.proxies import CREDENTIALS, ENCODED, HOST, PASSWORD, Proxy, clean_environment, drip, say
from tests.support import LONG, QUICK, Background, Recorder, eventually

MakePool = Callable[..., ConnectionPool]


@pytest.fixture
def ca() -> Iterator[ThrowAwayCA]:
    with ThrowAwayCA() as ca:
        yield ca


@pytest.fixture
def mercury(ca: ThrowAwayCA) -> Iterator[LocalServer]:
    """A server that is known as `HOST`."""
    with LocalServer(ssl_context=ca.server_context(HOST)) as server:
        yield server
    assert server.violations == []


def far(server: LocalServer, name: str = "s") -> str:
    """A session's URL, as if the server were elsewhere."""
    return f"wss://{HOST}/{server.url(name).partition('://')[2].partition('/')[2]}"


def settings(ca: ThrowAwayCA, **more: Any) -> dict[str, Any]:
    return {"ssl_context": None, "ca_file": ca.ca_file, **more}


def test_the_environments_proxy_is_asked_anew_for_each_attempt(
    mercury: LocalServer, ca: ThrowAwayCA, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes = {HOST: mercury.port}
    with Proxy(routes=routes) as first, Proxy("socks5", routes=routes, auth=True) as second:
        clean_environment(monkeypatch, https_proxy=first.url())
        pool = make_pool(**settings(ca))
        session = pool.connect(far(mercury), timeout=LONG)
        seen = Recorder().listen(session, "online")
        monkeypatch.setenv("https_proxy", second.url("socks5h"))
        mercury.drop()
        seen.wait("online")
        assert (first.asked, second.asked) == ([f"{HOST}:443"], [f"{HOST}:443"])
        session.send({"id": "1", "type": "publishRequest"})
        pool.close()


def test_d14_a_proxy_that_dies_under_a_session_costs_one_reconnect(
    mercury: LocalServer, ca: ThrowAwayCA, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(routes={HOST: mercury.port}) as second:
        with Proxy(routes={HOST: mercury.port}) as first:
            clean_environment(monkeypatch, https_proxy=first.url())
            pool = make_pool(**settings(ca))
            session = pool.connect(far(mercury), timeout=LONG)
            seen = Recorder().listen(session, "online", "offline.transient")
            monkeypatch.setenv("https_proxy", second.url())
        seen.wait("offline.transient")
        seen.wait("online")
        assert (first.asked, second.asked) == ([f"{HOST}:443"], [f"{HOST}:443"])
        assert session.url == far(mercury), "its own URL is not the proxy's"
        pool.close()


def test_t12_no_secret_of_ours_reaches_the_proxy_or_a_log(
    mercury: LocalServer, ca: ThrowAwayCA, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Proxy(routes={HOST: mercury.port}, auth=True) as proxy:
        pool = make_pool("s3cret-access-token", **settings(ca, proxy=proxy.url()))
        session = pool.connect(far(mercury), timeout=LONG)
        [head] = proxy.heads
        assert b"s3cret" not in head and f"Basic {ENCODED}".encode() in head
        for text in (caplog.text, repr(pool), repr(session), repr(pool._env.config)):
            assert PASSWORD not in text and ENCODED not in text and CREDENTIALS not in text
        pool.close()


def test_a_refusal_is_final_at_first_and_names_the_hop(ca: ThrowAwayCA, make_pool: MakePool) -> None:
    with Proxy(auth=True) as proxy:
        pool = make_pool(**settings(ca, proxy=proxy.url(credentials="user:not-the-pass")))
        with pytest.raises(ConnectError) as caught:
            pool.connect(f"wss://{HOST}/", timeout=LONG)
    assert caught.value.status == 407 and type(caught.value) is ConnectError
    assert caught.value.message == (
        f"the proxy http://localhost:{proxy.port} refused: 407 Proxy Authentication Required"
    )


def test_ws_goes_by_connect_too(make_pool: MakePool) -> None:
    with LocalServer() as server, Proxy(routes={HOST: server.port}) as proxy:
        pool = make_pool(proxy=proxy.url(), allow_insecure=True)
        pool.connect(far(server).replace("wss:", "ws:"), timeout=LONG)
        assert proxy.asked == [f"{HOST}:80"]
        pool.close()


def test_a_bad_proxy_in_the_environment_ends_the_run(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean_environment(monkeypatch, all_proxy="socks4://user:s3cret-pass@proxy")
    with pytest.raises(ConfigurationError, match="environment's all_proxy") as caught:
        make_pool().connect(f"wss://{HOST}/", timeout=LONG)
    assert "s3cret" not in str(caught.value)


PHASES: dict[str, tuple[str, Any]] = {
    "TLS to the proxy": ("https://localhost", None),
    "a mute HTTP proxy": ("http://localhost", None),
    "a dripping HTTP proxy": ("http://localhost", drip),
    "a mute SOCKS proxy": ("socks5h://localhost", None),
    "TLS through the proxy": ("http://localhost", say(b"HTTP/1.1 200 OK\r\n\r\n")),
}


@pytest.mark.parametrize(("url", "instead"), PHASES.values(), ids=PHASES)
def test_t0_disconnect_ends_an_attempt_in_every_phase_of_a_proxy(
    url: str, instead: Any, make_pool: MakePool, ca: ThrowAwayCA
) -> None:
    proxy: Any = Proxy(instead=instead) if instead else Peer(lambda peer, sock: peer.hold())
    with proxy:
        peer: Peer = proxy.peer if instead else proxy
        pool = make_pool(**settings(ca, proxy=f"{url}:{peer.port}"))
        calling = Background(lambda: pool.connect(f"wss://{HOST}/", session_id="s"))
        assert peer.arrived.acquire(timeout=LONG)
        ending = Background(lambda: pool.disconnect("s"))
        ending.result(1.0)
        assert isinstance(calling.error(1.0), ConnectCancelled)
        eventually(lambda: pool.session("s").state.value == "idle")


@pytest.mark.parametrize("tls", ["tls"], indirect=True)
def test_a_data_channel_goes_through_one_proxy_with_all_that_it_asks(
    server: LocalServer, ca: ThrowAwayCA, client_context: Any
) -> None:
    with Proxy(auth=True) as proxy:
        config = PoolConfig(**{**QUICK, "ssl_context": client_context, "proxy": proxy.url()})
        with DataChannelClient("token", device="https://wdm.example/devices/1", config=config) as client:
            client.register_and_connect(server.locus_url(), server.datachannel_url("main"), timeout=LONG)
        assert proxy.asked == [f"127.0.0.1:{server.port}"] * 2, "one for REST, one for the socket"
