"""What must not cross: tokens to other hosts, cookies to other sessions, lines out of their headers."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import (
    WEBEX_HOSTS,
    ConfigurationError,
    ConnectError,
    ConnectionPool,
    DataChannelClient,
    DeviceRegistration,
    Endpoint,
    LLMSessionsError,
    Meeting,
    PoolConfig,
    RegistrationError,
    Target,
)
from llm_sessions.pool.sources import check_host
from llm_sessions.testing.captions import CaptionService, Webinar
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, QUICK, Recorder

MakePool = Callable[..., ConnectionPool]
MakeClient = Callable[..., DataChannelClient]

DEVICE = "https://wdm.example/devices/1"
WDM = "/wdm/api/v1/devices"


@pytest.fixture
def make_client(client_context: ssl.SSLContext) -> Iterator[MakeClient]:
    clients: list[DataChannelClient] = []

    def make(**settings: Any) -> DataChannelClient:
        config = PoolConfig(**{**QUICK, "ssl_context": client_context, "initial_max_retries": 0, **settings})
        clients.append(DataChannelClient("token", device=DEVICE, config=config))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


# -- hosts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *("webexapis.com", "wdm-a.wbx2.com", "mercury-connection-a.wbx2.com", "locus-a.wbx2.com"),
        *("u2c.wbx2.com", "idbroker.webex.com", "llm.prod.infra.webex.com", "WDM-A.WBX2.COM"),
        "api.ciscospark.com",
    ],
)
def test_t12_the_hosts_of_webex_get_the_token(host: str) -> None:
    check_host(host, WEBEX_HOSTS)


@pytest.mark.parametrize(
    "host",
    [
        *("webex.com.evil.example", "evilwebex.com", "wbx2.com.", "wbx2.co", "xwbx2.com", "com", "127.0.0.1"),
        *("localhost", "", ".wbx2.com.evil.example", "wbx2.com@evil.example"),
    ],
)
def test_t12_no_other_host_gets_it(host: str) -> None:
    with pytest.raises(ConfigurationError, match="allowed_hosts"):
        check_host(host, WEBEX_HOSTS)


def test_the_hosts_of_webex_can_be_added_to_and_not_changed() -> None:
    more = PoolConfig(allowed_hosts=WEBEX_HOSTS | {"gateway.example"}).allowed_hosts
    check_host("gateway.example", more)
    check_host("a.wbx2.com", more)
    assert isinstance(WEBEX_HOSTS, frozenset)
    for domain in ("webex.com", "wbx2.com", "ciscospark.com", "webexapis.com"):
        assert {domain, f"*.{domain}"} <= WEBEX_HOSTS


def test_t12_beyond_the_hosts_of_webex_nothing_is_asked(
    server: LocalServer, make_pool: MakePool, make_client: MakeClient, client_context: ssl.SSLContext
) -> None:
    """The server here is none of them: not one connection reaches it, whoever names it."""
    only = {"allowed_hosts": WEBEX_HOSTS}
    pool, client = make_pool(**only), make_client(**only)
    with pytest.raises(ConfigurationError, match="allowed_hosts"):
        pool.connect(server.url())
    with pytest.raises(ConfigurationError, match="allowed_hosts"):
        pool.connect(lambda: server.url(), "a source")
    with pytest.raises(ConfigurationError, match="allowed_hosts"):
        client.register_and_connect(server.locus_url(), server.datachannel_url())
    with pytest.raises(ConfigurationError, match="allowed_hosts"):
        DeviceRegistration(
            "token",
            catalog_url=f"{server.base_url}/u2c/api/v1/catalog",
            config=PoolConfig(ssl_context=client_context, **only),  # type: ignore[arg-type]
        )
    assert server.connections() == [] and server.requests == []


def test_t12_a_join_response_that_names_another_host_gets_no_token(
    server: LocalServer, make_client: MakeClient
) -> None:
    """Neither registration, nor the fetch of a data channel token, nor captions."""
    CaptionService(server)
    client, heard = make_client(allowed_hosts=WEBEX_HOSTS), Recorder()
    with Meeting(client) as meeting:
        meeting.on("failed", heard.named("failed"))
        meeting.join(Webinar(server).join_response(tokens=False))
        [failed] = heard.wait("failed")
        assert isinstance(failed.error, ConfigurationError) and "allowed_hosts" in str(failed.error)
        for call in (
            client.refresh_token,  # of the meeting: at the locus
            lambda: meeting.request_practice_session(True),
            meeting.captions.turn_on,
            lambda: meeting.captions.set_spoken_language("de"),
        ):
            with pytest.raises(LLMSessionsError) as caught:
                call()
            assert "allowed_hosts" in f"{caught.value} {caught.value.__cause__}"
    assert server.connections() == [] and server.requests == []


def test_t12_a_registration_that_names_another_host_is_not_connected_to(
    server: LocalServer, make_client: MakeClient
) -> None:
    client = make_client(allowed_hosts=["127.0.0.1"])
    elsewhere = server.url().replace("127.0.0.1", "localhost")
    server.reject_rest(200, body={"webSocketUrl": elsewhere, "binding": "b"})
    with pytest.raises(RegistrationError, match="localhost is not in allowed_hosts"):
        client.register_and_connect(server.locus_url(), server.datachannel_url())
    assert [one.path for one in server.requests] == ["/datachannel/default"]
    assert server.connections() == []


@pytest.mark.parametrize("which", ["catalog", "device", "socket"])
def test_t12_a_service_that_names_another_host_is_not_followed(
    server: LocalServer, make_pool: MakePool, client_context: ssl.SSLContext, which: str
) -> None:
    config = PoolConfig(**{**QUICK, "ssl_context": client_context, "allowed_hosts": ["127.0.0.1"]})
    other = server.base_url.replace("127.0.0.1", "localhost")
    if which == "catalog":
        server.reject_rest(
            200, path="*/catalog", body={"serviceLinks": {"wdm": f"{other}/wdm/api/v1"}}, times=9
        )
    else:
        found = {"url": f"{server.base_url}{WDM}/1", "webSocketUrl": server.url("socket")}
        found["url" if which == "device" else "webSocketUrl"] = (
            f"{other}{WDM}/1" if which == "device" else server.url().replace("127.0.0.1", "localhost")
        )
        server.reject_rest(200, path=WDM, body={"devices": []})
        server.reject_rest(200, path=WDM, body=found)
    with DeviceRegistration(
        "token", catalog_url=f"{server.base_url}/u2c/api/v1/catalog", config=config
    ) as device:
        with pytest.raises(LLMSessionsError, match=r"allowed_hosts|may get the token"):
            device.url()
        hosts = {one.headers["host"].partition(":")[0] for one in server.requests}
    assert hosts == {"127.0.0.1"} and server.connections() == []


# -- redirects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_t12_d24_no_redirect_is_followed_with_a_token(
    server: LocalServer, make_pool: MakePool, make_client: MakeClient, status: int
) -> None:
    with LocalServer() as other:
        server.reject(status, headers={"Location": other.url()})
        with pytest.raises(ConnectError):
            make_pool(initial_max_retries=0).connect(server.url())
        server.reject_rest(status, headers={"Location": other.datachannel_url()})
        with pytest.raises(RegistrationError, match="redirect") as caught:
            make_client().register_and_connect(server.locus_url(), server.datachannel_url())
        assert caught.value.status == status
        assert other.connections() == [] and other.requests == []


# -- cookies -------------------------------------------------------------------------------------------------


def test_a_cookie_of_one_session_is_on_no_other(
    server: LocalServer, make_pool: MakePool, make_client: MakeClient
) -> None:
    """Set by a handshake that ends in a redirect, which websocket-client would keep, and over REST."""
    pool, client = make_pool(), make_client()
    cookie = {"Set-Cookie": "session=a; Domain=127.0.0.1; Path=/"}
    server.reject(302, session="a", headers=cookie)
    server.reject_rest(503, headers=cookie)
    with pytest.raises(RegistrationError):
        client.register_and_connect(server.locus_url(), server.datachannel_url("b"))
    with pytest.raises(ConnectError):
        pool.connect(server.url("a"), "a")
    for key in ("a", "b"):
        pool.connect(server.url(key), key)
    client.register_and_connect(server.locus_url(), server.datachannel_url("b"))
    assert len(server.connections("a")) == 2
    for connection in server.connections():
        assert "cookie" not in dict(connection.request_headers)
    assert len(server.requests) == 2
    for request in server.requests:
        assert "cookie" not in request.headers


class Cooked(Endpoint):
    """An endpoint with headers of its own."""

    def __init__(self, url: str, headers: Any) -> None:
        self.url, self.headers = url, headers

    def resolve(self, attempt: Any) -> Target:
        return Target(self.url, headers=self.headers)


def test_a_cookie_that_an_endpoint_brings_is_on_its_own_session_alone(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool()
    pool.connect(Cooked(server.url("a"), {"Cookie": "own=a"}), "a")
    pool.connect(Cooked(server.url("b"), {}), "b")
    sent = {one.session: dict(one.request_headers).get("cookie") for one in server.connections()}
    assert sent == {"a": "own=a", "b": None}


# -- lines ---------------------------------------------------------------------------------------------------

BREAKS = ["\r\nX-Evil: 1", "\nX-Evil: 1", "\rX-Evil: 1", "\0", "\x0b", "\x85X-Evil: 1", "\u2028"]


@pytest.mark.parametrize("end", BREAKS, ids=ascii)
def test_nothing_breaks_out_of_a_header(
    server: LocalServer, make_pool: MakePool, make_client: MakeClient, end: str
) -> None:
    pool, client = make_pool(), make_client()
    locus, channel = server.locus_url(), server.datachannel_url()
    refused: dict[str, Callable[[], object]] = {
        "token": lambda: pool.connect(server.url(), token=f"token{end}"),
        "token of a source": lambda: pool.connect(server.url(), token=lambda: f"token{end}"),
        "header": lambda: pool.connect(Cooked(server.url(), {"X-Own": f"a{end}"}), "header"),
        "cookie": lambda: pool.connect(Cooked(server.url(), {"Cookie": f"a=b{end}"}), "cookie"),
        "name": lambda: pool.connect(Cooked(server.url(), {f"X-Own{end}": "a"}), "name"),
        "url": lambda: pool.connect(f"{server.url()}?a={end}"),
        "url of a source": lambda: pool.connect(lambda: f"{server.url()}?a={end}", "source"),
        "data channel token": lambda: client.set_token(f"token{end}"),
        "data channel": lambda: client.register_and_connect(locus, f"{channel}{end}"),
        "device": lambda: DataChannelClient("token", device=f"{DEVICE}{end}"),
        "catalog": lambda: DeviceRegistration("token", catalog_url=f"https://u2c.example/{end}"),
    }
    for name, call in refused.items():
        with pytest.raises(LLMSessionsError) as caught:
            call()
        assert isinstance(caught.value, ConfigurationError), name
        assert str(caught.value).isprintable(), name
    assert server.connections() == [] and server.requests == []


def test_an_id_from_a_join_response_stays_within_its_path(
    server: LocalServer, make_client: MakeClient
) -> None:
    odd = "me/../../evil?x=1#y\r\nX-Evil: 1 \u20ac"
    client = make_client()
    with Meeting(client) as meeting:
        meeting.join(Webinar(server, participant_id=odd).join_response(tokens=False))
        meeting.wait_online(timeout=LONG)
    fetch = server.requests[0]
    quoted = "me%2F..%2F..%2Fevil%3Fx%3D1%23y%0D%0AX-Evil%3A%201%20%E2%82%AC"
    assert fetch.path == f"/locus/meeting/participant/{quoted}/datachannel/token"
    assert fetch.query == {} and "x-evil" not in fetch.headers
