"""T11: a sample of all traffic with every logger at DEBUG; then every text is searched for secrets."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import ssl
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from llm_sessions import (
    ALL_SESSIONS,
    LLM_PRACTICE_SESSION,
    ConnectionPool,
    DataChannelClient,
    DeviceRegistration,
    Endpoint,
    LLMSessionsError,
    Meeting,
    OAuthTokens,
    PoolConfig,
    Target,
    TokenRefreshError,
)
from llm_sessions.connection.proxies import parse_proxy
from llm_sessions.testing.captions import CaptionService, Webinar
from llm_sessions.testing.server import LocalServer, make_token
from tests.datachannel.service import TokenService, http_answer
from tests.peers import Peer, nobody
from tests.proxies import CREDENTIALS, ENCODED, PASSWORD, Proxy, say
from tests.support import LONG, QUICK, SHORT, Background, Recorder, eventually

ACCESS = [f"s3cret-access-{number}-ZmFrZQ" for number in range(4)]
COOKIE = "s3cret-cookie-of-a-target"
NO_PYSOCKS = importlib.util.find_spec("socks") is None
CLIENT_SECRET, REFRESH = "s3cret-of-the-integration", "s3cret-refresh-first"


class Texts(logging.Handler):
    """Everything that was logged, raised or shown, as text.

    Attributes:
        secrets: What must not be in it.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.found: list[tuple[str, str]] = []  # where from, and the text
        self.loggers: set[str] = set()
        self.secrets = [*ACCESS, COOKIE, CLIENT_SECRET, REFRESH]

    def emit(self, record: logging.LogRecord) -> None:
        self.loggers.add(record.name)
        where = f"a record of {record.name}"
        text = logging.Formatter("%(name)s %(threadName)s %(message)s").format(record)
        self.found += [(where, text), (where, repr(vars(record)))]

    def note(self, *things: object) -> None:
        """Keep what a thing shows of itself; of an exception its chain and its traceback, too."""
        for thing in things:
            where = f"a {type(thing).__name__}"
            self.found += [(where, repr(thing)), (where, str(thing))]
            if isinstance(thing, BaseException):
                self.found += [(where, repr(thing.args)), (where, repr(vars(thing)))]
                lines = traceback.format_exception(type(thing), thing, thing.__traceback__)
                self.found.append((where, "".join(lines)))
                self.note(*(one for one in (thing.__cause__, thing.__context__) if one is not None))

    @contextlib.contextmanager
    def fails(self) -> Iterator[None]:
        """The block raises one of our errors."""
        with pytest.raises(LLMSessionsError) as caught:
            yield
        self.note(caught.value)

    def token(self, **claims: Any) -> str:
        """A data channel token that is a secret."""
        token = make_token(**claims)
        self.secrets += [token, token.split(".")[1]]
        return token

    def leaks(self) -> set[tuple[str, str]]:
        return {(where, secret) for where, text in self.found for secret in self.secrets if secret in text}


@pytest.fixture
def texts() -> Iterator[Texts]:
    texts, root = Texts(), logging.getLogger()
    loggers = [
        root,
        *(logging.getLogger(name) for name in ("llm_sessions", "urllib3", "websocket", "requests")),
    ]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.DEBUG)
    root.addHandler(texts)
    yield texts
    root.removeHandler(texts)
    for one, level in zip(loggers, levels, strict=True):
        one.setLevel(level)


@pytest.fixture(autouse=True)
def nothing_is_known_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another test has made known must not be what keeps a secret in this one."""
    monkeypatch.setattr("llm_sessions._logging._known", ({}, {}))


@pytest.fixture(autouse=True)
def no_wait_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_sessions.datachannel.auth.REFUSAL_WAIT", 0.01)


class Tokens:
    """A provider that goes through a list; a refresh beyond its end raises."""

    def __init__(self, *tokens: str) -> None:
        self.left = list(tokens)

    def get(self) -> str:
        return self.left[0]

    def refresh(self, rejected: str) -> str:
        if len(self.left) == 1:
            raise RuntimeError("there is no other")
        self.left.pop(0)
        return f"Bearer {self.left[0]}"


class WithHeaders(Endpoint):
    """An endpoint that brings a token and a cookie of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def resolve(self, attempt: Any) -> Target:
        return Target(self.url, token=ACCESS[0], headers={"Cookie": f"session={COOKIE}"})


Make = Callable[..., ConnectionPool]


def test_t11_the_search_would_find_a_secret(texts: Texts) -> None:
    logging.getLogger("somebody.else").debug("it is %s", ACCESS[0])
    texts.note(ValueError(ACCESS[1]))
    try:
        raise KeyError(COOKIE) from OSError(REFRESH)
    except KeyError as exc:
        texts.note(exc)
    found = {secret for _, secret in texts.leaks()}
    assert found == {ACCESS[0], ACCESS[1], COOKIE, REFRESH}


def test_t11_d25_sockets(server: LocalServer, make_pool: Make, texts: Texts) -> None:
    """Good and refused handshakes and authorizations, refreshes, bad frames, drops, closes, timeouts."""

    def raises(envelope: Any) -> None:
        texts.note(envelope)
        raise RuntimeError(f"cannot go on with {ACCESS[1]}")  # which is logged, with its traceback

    pool = make_pool(Tokens(*ACCESS), max_retries=3, initial_max_retries=1)
    heard = Recorder().listen(pool, session_id=ALL_SESSIONS)
    server.tokens = {ACCESS[1]}
    session = pool.connect(server.url("a", access_token=ACCESS[2]), "a")  # the first is refused by a 4401
    texts.note(session.last_error)
    assert session.url is not None
    session.on("event:relay.event", raises)
    server.publish({"text": "hello", "token": ACCESS[1]}, session="a")
    server.send_text(f'{{"token": "{ACCESS[1]}"', session="a")  # no JSON
    server.send_binary(ACCESS[1].encode(), session="a")
    server.send_json({"type": "shutdown"}, session="a")
    heard.wait("event:mercury_shutdown_switchover_complete")
    server.drop("a")
    heard.wait("online", 2)
    server.tokens = {ACCESS[2]}
    server.close_session("a", 4401, "Authentication Failed")
    heard.wait("online", 3)
    texts.note(session.last_error, session, session.stats(), pool, pool.stats(), pool._env.config)
    server.tokens = None
    pool.connect(WithHeaders(server.url("headers")), "headers", token=ACCESS[2])
    assert (f"session={COOKIE}") in dict(server.connections("headers")[0].request_headers)["cookie"]
    for status in (302, 401, 403, 404, 429, 500, 4400, 4401, 4403, 1003):
        server.reject(status, session="refused", times=9, headers={"Location": server.url("b")})
        with texts.fails():
            pool.connect(server.url("refused", access_token=ACCESS[3]), "refused", token=Tokens(*ACCESS))
        texts.note(pool.session("refused").last_error)
        pool.disconnect("refused")
    port = nobody()[4][1]
    with texts.fails():
        pool.connect(server.url(access_token=ACCESS[3]).replace(str(server.port), str(port)), "nobody")
    server.hold_upgrades("held")
    with texts.fails():
        pool.connect(server.url("held", access_token=ACCESS[3]), "held", timeout=SHORT)
    waiting = Background(lambda: pool.connect(server.url("held"), "cancelled", token=ACCESS[3]))
    server.wait_for(lambda: len(server.connections("held")) == 2)
    pool.disconnect("cancelled")
    texts.note(waiting.error())
    for bad in (
        f"{ACCESS[0]}\r\nX: {ACCESS[1]}",
        f"{ACCESS[0]} {ACCESS[1]}",
        f"{ACCESS[0]}\0",
        f"{ACCESS[0]}ä",
    ):
        with texts.fails():
            pool.connect(server.url("bad"), "bad", token=bad)
        with texts.fails():
            pool.connect(server.url("bad"), "bad", token=lambda bad=bad: bad)
        pool.disconnect("bad")
    texts.note(*(payload for _, payload in heard.calls))
    pool.close()
    assert texts.leaks() == set()
    assert {"llm_sessions.pool"} <= texts.loggers


@pytest.mark.parametrize("status", [302, 401, 403, 500])
def test_t11_an_answer_whose_headers_quote_a_secret(
    server: LocalServer, make_pool: Make, texts: Texts, status: int
) -> None:
    """As when a gateway names the address that was asked for, query and all."""
    headers = {"Location": server.url("b", access_token=ACCESS[3]), "Content-Type": f"text/{ACCESS[0]}"}
    server.reject(status, times=9, headers=headers)
    with texts.fails():
        make_pool(ACCESS[0], initial_max_retries=0).connect(server.url(access_token=ACCESS[3]))
    assert texts.leaks() == set()


@pytest.mark.parametrize("code", [3050, 4000, 4001, 1011])
def test_t11_a_close_reason_that_quotes_a_secret(
    server: LocalServer, make_pool: Make, texts: Texts, code: int
) -> None:
    pool = make_pool(ACCESS[0], initial_max_retries=0, max_retries=0)
    session = pool.connect(server.url())
    heard = Recorder().listen(session, "offline")
    server.wait_live()
    server.close_session(code=code, reason=f"not with {ACCESS[0]}")
    texts.note(*heard.wait("offline"), session.last_error)
    server.reject(code, session="before", times=9, reason=f"not with {ACCESS[0]}")
    with texts.fails():
        pool.connect(server.url("before"), "before")
    assert texts.leaks() == set()
    assert any("not with ***" in text for _, text in texts.found)


def test_t11_d25_a_certificate_that_is_not_trusted(server_context: ssl.SSLContext, texts: Texts) -> None:
    config = PoolConfig(**{**QUICK, "ssl_context": ssl.create_default_context()})
    with LocalServer(ssl_context=server_context, strict=False) as server:
        with ConnectionPool(ACCESS[0], config=config) as pool, texts.fails():
            pool.connect(server.url(access_token=ACCESS[1]))
        with DataChannelClient(ACCESS[0], device="https://wdm.example/1", config=config) as client:
            client.set_token(token := texts.token())
            with texts.fails():
                client.register_and_connect(server.locus_url(), server.datachannel_url(), token, timeout=1.0)
            texts.note(client, client.session(), client.session().last_error)
    assert texts.leaks() == set()


REPEATS = f"HTTP/1.1 403 not {PASSWORD}\r\nX: {ENCODED}\r\n\r\n".encode()
PROXIES: dict[str, Callable[[Peer, Any], object] | None] = {
    "relays": None,
    "refuses": say(REPEATS),
    "is none": say(f"{PASSWORD}\r\n\r\n".encode()),
    "breaks off": lambda peer, sock: sock.close(),
}


@pytest.mark.parametrize("tls", ["tls"], indirect=True)
@pytest.mark.parametrize("how", PROXIES)
@pytest.mark.parametrize(
    "scheme",
    [
        *("http", "https"),
        pytest.param("socks5h", marks=pytest.mark.skipif(NO_PYSOCKS, reason="PySocks is not installed")),
    ],
)
def test_t11_d25_proxies(
    scheme: str,
    how: str,
    server: LocalServer,
    client_context: ssl.SSLContext,
    server_context: ssl.SSLContext,
    texts: Texts,
) -> None:
    """With a password, for sockets and REST; some repeat what they were told."""
    texts.secrets += [PASSWORD, ENCODED, CREDENTIALS, CREDENTIALS.partition(":")[2]]
    context, instead = server_context if scheme == "https" else None, PROXIES[how]
    with Proxy(
        "socks5" if scheme == "socks5h" else "http", context=context, auth=True, instead=instead
    ) as proxy:
        given = {"ssl_context": client_context, "proxy": proxy.url(scheme), "initial_max_retries": 0}
        config = PoolConfig(**{**QUICK, **given})
        with DataChannelClient(ACCESS[0], device="https://wdm.example/1", config=config) as client:
            ways: list[Callable[[], object]] = [
                lambda: client.pool.connect(server.url("a", access_token=ACCESS[1]), "a"),
                lambda: client.register_and_connect(
                    server.locus_url(), server.datachannel_url("b"), texts.token(), session_id="b"
                ),
            ]
            for way in ways:
                with contextlib.nullcontext() if instead is None else texts.fails():
                    texts.note(way())
            texts.note(config, parse_proxy(config.proxy), client, client.pool, client.pool.sessions())
    assert texts.leaks() == set()
    assert proxy.asked


def test_t11_d25_registrations(server: LocalServer, client_context: ssl.SSLContext, texts: Texts) -> None:
    """REST with both tokens: refused, refreshed, echoed, redirected, dropped; addresses that may not be."""
    server.tokens, server.datachannel_tokens = {ACCESS[1]}, set()
    config = PoolConfig(**{**QUICK, "ssl_context": client_context, "initial_max_retries": 1})
    device = f"{server.base_url}/wdm/api/v1/devices/1"
    with DataChannelClient(Tokens(*ACCESS), device=device, config=config) as client:
        url, channel = server.locus_url(), server.datachannel_url("a")
        fresh = texts.token()
        client.set_refresh_handler(lambda: fresh)
        with texts.fails():
            client.register_and_connect(url, channel, texts.token())  # refused, refreshed, refused
        client.set_refresh_handler(lambda: 1 / 0)
        with texts.fails():
            client.register_and_connect(url, channel, texts.token(expires_in=-99))
        texts.note(client, client.connections(), client.session().last_error)
        server.datachannel_tokens = None
        for status in (301, 307, 401, 403, 404, 429, 500):
            echo = {"message": f"not with {ACCESS[0]}, {ACCESS[1]} and {fresh}"}
            headers = {"Location": f"https://evil.example/?t={ACCESS[0]}", "Retry-After": "0"}
            server.reject_rest(status, path=f"/datachannel/{status}", times=9, headers=headers, body=echo)
            with texts.fails():
                client.register_and_connect(url, server.datachannel_url(str(status)), fresh)
        for body in (b"<html>", {}, {"webSocketUrl": f"ws://evil.example/?t={ACCESS[0]}", "binding": "b"}):
            server.reject_rest(200, path="/datachannel/odd", body=body)
            with texts.fails():
                client.register_and_connect(url, server.datachannel_url("odd"), fresh)
        server.tokens = None
        session = client.register_and_connect(url, channel, fresh)
        client.publish({"token": "of the message"})
        texts.note(client.connections(), session, session.stats(), client.pool, client.binding())
        with texts.fails():
            client.set_token(f"{fresh}\r\nX: 1")
        with texts.fails():
            client.refresh_token()
    assert texts.leaks() == set()
    assert {"llm_sessions.datachannel", "llm_sessions.pool", "urllib3.connectionpool"} <= texts.loggers


def test_t11_d25_devices(server: LocalServer, client_context: ssl.SSLContext, texts: Texts) -> None:
    server.tokens = {ACCESS[1]}
    config = PoolConfig(**{**QUICK, "ssl_context": client_context, "initial_max_retries": 1})
    catalog = f"{server.base_url}/u2c/api/v1/catalog"
    with (
        DeviceRegistration(Tokens(*ACCESS[:2]), catalog_url=catalog, config=config) as device,
        ConnectionPool(config=config) as pool,
    ):
        heard = Recorder().listen(pool)
        for status in (302, 403, 429, 500):
            server.reject_rest(status, body={"message": f"not with {ACCESS[0]}"})  # which it was sent
            with texts.fails():
                device.url()
        session = pool.connect(device)
        texts.note(device, session, pool, session.last_error)
        server.forget_devices()
        server.drop()
        heard.wait("online", 2)
        texts.note(*(payload for _, payload in heard.calls), device)
    assert texts.leaks() == set()


def test_t11_d25_tokens_of_an_integration(
    tls: bool,
    server: LocalServer,
    make_pool: Make,
    server_context: ssl.SSLContext,
    authority: Any,
    tmp_path: Any,
    texts: Texts,
) -> None:
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(bundle))
    texts.secrets += [f"s3cret-{kind}-{number}" for kind in ("access", "refresh") for number in range(1, 9)]
    with TokenService(server_context if tls else None) as service, requests.Session() as http:
        http.verify, http.trust_env = str(bundle), False
        kept: list[Any] = []
        tokens = OAuthTokens(
            "id", CLIENT_SECRET, REFRESH, url=service.url, http=http, on_refresh=kept.append, timeout=LONG
        )
        pool = make_pool(tokens)
        server.tokens = {"s3cret-access-2"}
        session = pool.connect(server.url())  # the first is refused, and refreshed
        assert [form["refresh_token"] for form in service.forms] == [REFRESH, "s3cret-refresh-1"]
        texts.note(tokens, *kept, session, pool, session.last_error)
        for answer in (
            http_answer(500, {"error_description": f"no {REFRESH} {CLIENT_SECRET}"}),
            http_answer(302, b"", Location=f"https://evil.example/?t={REFRESH}"),
            http_answer(200, b'{"access_token": "' + ACCESS[3].encode()),
            lambda peer, sock: sock.close(),
        ):
            service.answers.append(answer)
            with pytest.raises(TokenRefreshError) as caught:
                tokens.refresh(tokens._held.access or "")
            texts.note(caught.value)
            tokens._busy = None
        service.answers.append(http_answer(400, {"error": "invalid_grant", "error_description": REFRESH}))
        with texts.fails():
            tokens.refresh(tokens._held.access or "")
        texts.note(tokens)
        tokens.close()
        pool.close()
    assert texts.leaks() == set()


def test_t11_d25_a_meeting_with_captions(
    server: LocalServer, client_context: ssl.SSLContext, texts: Texts
) -> None:
    server.tokens, server.datachannel_tokens = {ACCESS[1]}, set()
    config = PoolConfig(**{**QUICK, "ssl_context": client_context})
    service, webinar, heard = CaptionService(server), Webinar(server), Recorder()
    joined = webinar.join_response()
    own = joined["locus"]["self"]
    for name in ("datachannelToken", "practiceSessionDatachannelToken"):
        own[name] = texts.token(kind=name, expires_in=-99)  # is refreshed before it is sent
    with (
        DataChannelClient(Tokens(*ACCESS), device="https://wdm.example/1", config=config) as client,
        Meeting(client) as meeting,
    ):
        for name in ("online", "offline", "failed", "relay", "transcript", "languages", "reaction"):
            meeting.on(name, heard.named(name))
        server.reject_rest(500, path="*/datachannel/token", body={"message": f"not with {ACCESS[0]}"})
        meeting.join(joined)
        meeting.wait_online(timeout=LONG)
        texts.secrets += [str(one.answer) for one in server.requests if one.path.endswith("/token")]
        meeting.captions.turn_on()
        texts.note(meeting.captions.wait_languages(), meeting.captions.request_language("de"))
        meeting.update_locus(webinar.start_practice())
        meeting.update_locus(webinar.promote())
        meeting.wait_online(LLM_PRACTICE_SESSION, timeout=LONG)
        service.transcript("hello", session="default")
        heard.wait("transcript")
        server.reject_rest(403, body={"message": ACCESS[1]})
        with texts.fails():
            meeting.request_practice_session(True)
        server.drop("default")
        eventually(lambda: len(server.connections("default")) >= 2)
        meeting.wait_online(timeout=LONG)
        for token in (client.get_token(), client.get_token(LLM_PRACTICE_SESSION)):
            assert token is not None
            texts.secrets += [token, token.split(".")[1]]
        texts.note(meeting, meeting.captions, meeting.last_error, client, client.connections())
        texts.note(*(payload for _, payload in heard.calls))
        with texts.fails():
            meeting.join(joined)
    assert texts.leaks() == set()
    assert {"llm_sessions.meetings", "llm_sessions.datachannel", "llm_sessions.pool"} & texts.loggers
