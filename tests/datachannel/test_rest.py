"""REST calls: what is sent where, what an answer must be, and what each failure is, alone and in a pool."""

from __future__ import annotations

import email.utils
import gzip
import logging
import pickle
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
import trustme
from requests.auth import AuthBase

from llm_sessions import (
    ConfigurationError,
    ConnectError,
    ConnectionPool,
    ConnectTimeout,
    Endpoint,
    RegistrationError,
    Target,
    TokenRefreshError,
)
from llm_sessions.datachannel import rest as rest_module
from llm_sessions.datachannel.rest import Reply, RestClient
from llm_sessions.pool.sources import AttemptInfo, StaticToken, Unreachable
from llm_sessions.testing.server import LocalServer
from tests.datachannel.service import TokenService, drip, everything_in, http_answer
from tests.peers import Peer, reset
from tests.support import LONG, Recorder, run_together

TOKEN = "s3cret-access-token"
FRESH = "s3cret-access-fresh"
URL = "https://service.example/api"
QUICK = 0.3
"""Seconds of a deadline that runs out."""

NOT_FOUND = 404


class Tokens:
    """A provider that counts."""

    def __init__(self) -> None:
        self.token, self.asked = TOKEN, 0
        self.refused: list[str] = []

    def get(self) -> str:
        self.asked += 1
        return self.token

    def refresh(self, rejected: str) -> str:
        self.refused.append(rejected)
        self.token = FRESH
        return FRESH


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


def client(provider: Any = None, **options: Any) -> RestClient:
    return RestClient(provider or StaticToken(TOKEN), **{"timeout": LONG, **options})


def fails(
    rest: RestClient, url: str, kind: type[ConnectError] = RegistrationError, **options: Any
) -> ConnectError:
    """Return what a call raises; look for the token in every part of it."""
    with pytest.raises(ConnectError) as caught:
        rest.call(options.pop("method", "GET"), url, session_id="here", **options)
    error = caught.value
    assert type(error) is kind
    assert error.session_id == "here"
    assert not [text for text in everything_in(error) if TOKEN in text]
    assert TOKEN.encode() not in pickle.dumps(error)
    return error


def header(head: bytes, name: str) -> str | None:
    for line in head.decode().split("\r\n")[1:]:
        key, _, value = line.partition(": ")
        if key.lower() == name.lower():
            return value
    return None


# -- what is asked and answered ------------------------------------------------------------------------------


def test_a_call_has_the_token_a_tracking_id_and_a_json_body(http: requests.Session | None) -> None:
    with responses.RequestsMock() as mock:
        mock.post(f"{URL}?a=b&c=d", json={"binding": "b"}, status=201)
        reply = client(http=http).call("POST", f"{URL}?a=b", params={"c": "d"}, json={"device": "ü"})
        sent = mock.calls[0].request
    assert (reply.status, reply.body, reply.url, reply.asked) == (201, {"binding": "b"}, URL, f"POST {URL}")
    assert reply.timing >= 0
    assert sent.headers["Authorization"] == f"Bearer {TOKEN}"
    assert sent.headers["Content-Type"] == "application/json"
    assert sent.body == '{"device":"ü"}'.encode()
    assert sent.headers["trackingId"].startswith("llm-sessions_")


@responses.activate
def test_every_call_has_a_tracking_id_of_its_own() -> None:
    responses.get(URL, json={})
    for _ in range(3):
        client().call("GET", URL)
    assert len({call.request.headers["trackingId"] for call in responses.calls}) == 3
    assert "Content-Type" not in responses.calls[0].request.headers


@responses.activate
@pytest.mark.parametrize("token", [TOKEN, f"Bearer {TOKEN}"])
def test_a_scheme_is_not_added_twice(token: str) -> None:
    responses.get(URL, json={})
    client(StaticToken(token)).call("GET", URL)
    client(None).call("GET", URL, token=token)
    assert {call.request.headers["Authorization"] for call in responses.calls} == {f"Bearer {TOKEN}"}


@responses.activate
def test_a_given_token_is_used_instead_of_the_providers(tokens: Tokens) -> None:
    responses.get(URL, json={})
    client(tokens).call("GET", URL, token=FRESH)
    assert (responses.calls[0].request.headers["Authorization"], tokens.asked) == (f"Bearer {FRESH}", 0)


def test_without_any_token_nothing_is_asked() -> None:
    with responses.RequestsMock(), pytest.raises(ConfigurationError, match="token: is not known yet"):
        RestClient(None).call("GET", URL)


@pytest.mark.parametrize("bad", [None, 7, "", "two words", "lines\n"])
def test_a_provider_that_returns_no_token_is_told_so(bad: Any) -> None:
    with responses.RequestsMock(), pytest.raises(ConfigurationError) as caught:
        client(StaticToken(bad)).call("GET", URL)
    assert caught.value.argument == "token"


def test_what_a_provider_raises_comes_out() -> None:
    refused = TokenRefreshError("", "log in again", 401, final=True)

    class Provider(Tokens):
        def get(self) -> str:
            raise refused

    with responses.RequestsMock(), pytest.raises(TokenRefreshError) as caught:
        client(Provider()).call("GET", URL)
    assert caught.value is refused


@responses.activate
def test_an_empty_answer_is_good_where_it_is_expected() -> None:
    responses.delete(URL, status=204)
    assert client().call("DELETE", URL, empty_ok=True).body == {}
    error = fails(client(), URL, method="DELETE")
    assert error.status == 204


@responses.activate
def test_an_error_without_a_body_is_an_error_all_the_same() -> None:
    responses.delete(URL, status=404)
    assert fails(client(), URL, method="DELETE", empty_ok=True).status == NOT_FOUND


def test_t11_a_reply_does_not_show_what_it_holds() -> None:
    assert TOKEN not in repr(Reply(200, {"datachannelToken": TOKEN}, 0.1))


@pytest.mark.parametrize("more", [0, 1])
def test_limit_an_answer_is_read_up_to_max_bytes(
    service: TokenService, http: requests.Session | None, more: int
) -> None:
    body = b'{"a": "' + b"x" * 5000 + b'"}'
    service.answers.append(http_answer(200, body))
    rest = client(http=http)
    if not more:
        assert len(rest.call("GET", service.url, max_bytes=len(body)).body["a"]) == 5000
    else:
        error = fails(rest, service.url, max_bytes=len(body) - more)
        assert error.status == 200
        assert "too large a body" in error.message


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": "10"}, "timeout"),
        ({"http": "session"}, "http"),
        ({"allow_insecure": 1}, "allow_insecure"),
        ({"allowed_hosts": "service.example"}, "allowed_hosts"),
        ({"ssl_context": "context"}, "ssl_context"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        client(**options)
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"method": "get"}, "method"),
        ({"method": "GET /\r\nX:"}, "method"),
        ({"method": None}, "method"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"timeout": -1}, "timeout"),
        ({"json": ["a"]}, "json"),
        ({"json": {"a": object()}}, "json"),
        ({"json": {"a": float("nan")}}, "json"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(options: dict[str, Any], argument: str) -> None:
    with responses.RequestsMock(), pytest.raises(ConfigurationError) as caught:
        client().call(**{"method": "GET", "url": URL, **options})
    assert caught.value.argument == argument


# -- a session that was given --------------------------------------------------------------------------------


def test_a_given_session_is_used_and_left_as_it_was(service: TokenService) -> None:
    with requests.Session() as session:
        session.headers.update({"X-Ours": "yes", "Authorization": "Bearer s3cret-of-others"})
        session.auth = ("somebody", "s3cret-of-others")
        hooked: list[int] = []
        session.hooks["response"].append(lambda response, **options: hooked.append(response.status_code))
        before = (dict(session.headers), session.auth, dict(session.adapters), dict(session.params))
        service.answers += [http_answer(200, {}), http_answer(403, {})]
        client(http=session).call("GET", service.url, params={"a": "b"})
        fails(client(http=session), service.url)
        assert (dict(session.headers), session.auth, dict(session.adapters), dict(session.params)) == before
    assert hooked == [200, 403]
    for head in service.heads:
        assert (header(head, "X-Ours"), header(head, "Authorization")) == ("yes", f"Bearer {TOKEN}")


def test_threads_share_a_given_session(server: LocalServer, client_context: ssl.SSLContext) -> None:
    with requests.Session() as session:
        if server.base_url.startswith("https"):
            session.mount("https://", TrustingAdapter(client_context))
        rest = client(http=session)
        url = server.datachannel_url()
        replies = run_together(12, lambda: rest.call("POST", url, json={"deviceUrl": "here"}))
    assert len({reply.body["binding"] for reply in replies}) == 12
    assert len({request.headers["trackingid"] for request in server.requests}) == 12


class TrustingAdapter(requests.adapters.HTTPAdapter):
    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self.context, **options)  # type: ignore[misc]


def test_cookies_of_answers_do_not_travel(service: TokenService) -> None:
    rest = client()
    for _ in range(2):
        service.answers.append(http_answer(200, {}, Set_Cookie="session=of-another; Path=/"))
        rest.call("GET", service.url)
    assert [header(head, "Cookie") for head in service.heads] == [None, None]


# -- where the token may go ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://service.example/api",
        "ws://service.example/api",
        "https://user:s3cret@service.example/",
        "https://service.example/#part",
        "https://service.example\\@other.example/",
        "",
        None,
    ],
)
def test_t12_a_url_that_may_not_get_the_token_is_refused_before_it_is_asked_for(
    url: Any, tokens: Tokens
) -> None:
    with responses.RequestsMock(), pytest.raises(ConfigurationError) as caught:
        client(tokens).call("GET", url)
    assert (caught.value.argument, tokens.asked) == ("url", 0)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://service.example/api", "https://service.example/api"])
def test_t12_plain_http_to_others_must_be_allowed(url: str) -> None:
    with responses.RequestsMock() as mock:
        mock.get(url, json={})
        assert client(allow_insecure=True).call("GET", url).body == {}


def test_t12_plain_http_goes_to_loopback(service: TokenService) -> None:
    service.answers.append(http_answer(200, {"a": 1}))
    assert client().call("GET", service.url).body == {"a": 1}


@pytest.mark.parametrize(
    ("allowed", "host", "goes"),
    [
        (None, "any.example", True),
        (["service.example"], "service.example", True),
        (["SERVICE.example"], "Service.Example", True),
        (["*.example"], "a.b.example", True),
        (["*.example"], "example", False),
        (["service.example"], "other.example", False),
        (["service.example"], "service.example.evil.example", False),
        (["*.example"], "evilexample", False),
        ([], "service.example", False),
    ],
)
def test_t12_only_allowed_hosts_get_the_token(
    allowed: list[str] | None, host: str, goes: bool, tokens: Tokens
) -> None:
    rest = client(tokens, allowed_hosts=allowed)
    with responses.RequestsMock() as mock:
        if goes:
            mock.get(f"https://{host}/", json={})
            rest.call("GET", f"https://{host}/")
        else:
            with pytest.raises(ConfigurationError, match=r"url: the host \S+ is not in allowed_hosts"):
                rest.call("GET", f"https://{host}/")
            assert tokens.asked == 0


def test_t12_an_address_is_checked_under_the_name_of_its_argument() -> None:
    with pytest.raises(ConfigurationError) as caught:
        client(allowed_hosts=["service.example"]).check_url("https://other.example", "catalog_url")
    assert caught.value.argument == "catalog_url"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_d24_t12_a_redirect_to_another_host_does_not_get_the_token(
    service: TokenService, http: requests.Session | None, status: int
) -> None:
    with TokenService() as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        service.answers.append(http_answer(status, b"", Location=elsewhere))
        error = fails(client(http=http), service.url, method="POST", json={})
        assert error.status == status
        assert "redirect" in error.message
        assert other.heads == [] and not other.peer.arrived.acquire(timeout=0)


def test_t12_the_body_of_a_redirect_is_read_no_further_than_any_other(service: TokenService) -> None:
    ended = threading.Event()

    def flood(peer: Peer, sock: Any) -> None:
        sock.sendall(b"HTTP/1.1 302 Found\r\nLocation: https://service.example/\r\n\r\n")
        try:
            while not peer.over.is_set():
                sock.sendall(b" " * 1000)
        except OSError:
            ended.set()

    service.answers.append(flood)
    with requests.Session() as session:
        assert fails(client(http=session), service.url, max_bytes=10_000).status == 302
    assert ended.wait(LONG)


def test_t12_what_goes_to_loopback_in_the_clear_is_shown_to_no_proxy(
    service: TokenService, http: requests.Session | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TokenService() as proxy:
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        if http is not None:
            http.proxies = {"http": proxy.url}
        service.answers.append(http_answer(200, {}))
        client(http=http).call("GET", service.url)
        assert (len(service.heads), proxy.heads) == (1, [])


# -- TLS -----------------------------------------------------------------------------------------------------


class Watched(ssl.SSLContext):
    """A context that says what is set in it."""

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__.setdefault("changes", []).append(name)
        super().__setattr__(name, value)

    def set_alpn_protocols(self, protocols: Any) -> None:
        self.__dict__.setdefault("changes", []).append("alpn")
        super().set_alpn_protocols(protocols)

    def load_verify_locations(self, *args: Any, **options: Any) -> None:
        self.__dict__.setdefault("changes", []).append("trust")
        super().load_verify_locations(*args, **options)


def test_t10_the_tls_context_is_used_and_not_changed(
    server_context: ssl.SSLContext,
    authority: trustme.CA,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # Sockets of the pool are wrapped by it at the same moment, on other threads.
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    context = Watched(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    trusted = context.cert_store_stats()
    context.__dict__["changes"] = []
    with LocalServer(ssl_context=server_context) as server:
        rest = client(ssl_context=context)
        url = f"{server.base_url}/u2c/api/v1/catalog"
        for _ in range(2):
            assert "wdm" in rest.call("GET", url, params={"format": "hostmap"}).body["serviceLinks"]
    assert context.__dict__["changes"] == []
    assert context.cert_store_stats() == trusted


def test_a_certificate_that_the_context_does_not_trust_is_named(server_context: ssl.SSLContext) -> None:
    with LocalServer(ssl_context=server_context) as server:
        rest = client(ssl_context=ssl.create_default_context())
        error = fails(rest, f"{server.base_url}/datachannel/a", Unreachable)
        assert "is not valid: unable to get" in error.message
        assert server.requests == []


def test_a_certificate_of_another_host_is_named(
    authority: trustme.CA, client_context: ssl.SSLContext
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("other.example").configure_cert(context)
    with TokenService(context) as service:
        error = fails(client(ssl_context=client_context), service.url, Unreachable)
        assert "is not valid: IP address mismatch" in error.message
        assert service.heads == []


# -- bad answers ---------------------------------------------------------------------------------------------


def http_date(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("status", "value", "low", "high"),
    [
        (429, "7", 7, 7),
        (429, http_date(3600), 3000, 3600),
        (429, http_date(-3600), 0, 0),
        (503, "99999999", 86400, 86400),
        (429, "soon", None, None),
        (429, None, None, None),
        (500, "3", 3, 3),
    ],
    ids=["seconds", "date", "date in the past", "too long", "nonsense", "none", "500"],
)
def test_d24_retry_after_is_seconds_or_a_date(
    service: TokenService, status: int, value: str | None, low: float | None, high: float | None
) -> None:
    service.answers.append(http_answer(status, {}, **({"Retry-After": value} if value else {})))
    error = fails(client(), service.url)
    assert error.status == status
    if low is None or high is None:
        assert error.retry_after is None
    else:
        assert error.retry_after is not None and low <= error.retry_after <= high


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 429, 500, 502, 503, 599])
def test_d24_a_refusal_has_status_url_timing_and_what_the_service_says(
    service: TokenService, http: requests.Session | None, status: int
) -> None:
    service.answers.append(http_answer(status, {"message": f"no, not with {TOKEN}"}))
    error = fails(client(http=http), f"{service.url}?key=s3cret-query", params={"p": "s3cret-param"})
    assert isinstance(error, RegistrationError)
    assert (error.status, error.url) == (status, service.url)
    assert error.timing is not None and error.timing >= 0
    assert f"answered {status}: no, not with *** (llm-sessions_" in error.message
    assert "s3cret" not in str(error)


HTML = b"<!DOCTYPE html><html><body>s3cret portal</body></html>"


@pytest.mark.parametrize("status", [200, 404, 500])
def test_d24_a_web_page_is_no_answer(
    service: TokenService, http: requests.Session | None, status: int
) -> None:
    service.answers.append(http_answer(status, HTML, Content_Type="text/html"))
    error = fails(client(http=http), service.url)
    assert error.status == status
    assert "s3cret" not in error.message
    if status == 200:
        assert "no JSON object (text/html)" in error.message


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'"text"', b"null", b"{", b'{"a": NaN}', b"\xff", b"[" * 5000], ids=repr
)
def test_what_is_no_json_object_is_no_answer(service: TokenService, body: bytes) -> None:
    service.answers.append(http_answer(200, body))
    error = fails(client(), service.url)
    assert (error.status, "no JSON object" in error.message) == (200, True)


def test_an_unknown_status_is_told_as_it_is(service: TokenService) -> None:
    service.answers.append(http_answer(799, b""))
    assert "answered 799 (llm-sessions_" in fails(client(), service.url).message


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize("coding", ["gzip", "Deflate", "identity, gzip", "x-\x1b[31m"])
def test_t13_a_compressed_answer_is_refused_and_never_unpacked(
    service: TokenService,
    http: requests.Session | None,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    coding: str,
) -> None:
    def unpacked(response: requests.Response, size: int) -> Any:
        raise AssertionError("the body is read")

    monkeypatch.setattr(requests.Response, "iter_content", unpacked)
    bomb = gzip.compress(b" " * 10_000_000)
    service.answers.append(http_answer(status, bomb, Content_Encoding=coding))
    error = fails(client(http=http), service.url)
    shown = coding.lower().replace("\x1b", " ")
    assert f"answered {status} with a body in {shown}, which was not asked for" in error.message
    assert error.status == status, "that it was refused counts all the same"
    assert b"\r\nAccept-Encoding: identity\r\n" in service.heads[0]


@pytest.mark.parametrize(
    ("status", "body", "coding"),
    [(200, b"{}", "Identity"), (200, b"{}", ""), (204, b"", "gzip"), (200, b"", "gzip")],
)
def test_what_is_not_compressed_may_say_so(
    service: TokenService, http: requests.Session | None, status: int, body: bytes, coding: str
) -> None:
    service.answers.append(http_answer(status, body, Content_Encoding=coding))
    reply = client(http=http).call("POST", service.url, empty_ok=True)
    assert (reply.status, reply.body) == (status, {})


# -- no answer -----------------------------------------------------------------------------------------------


def test_d24_a_reset_is_retried_and_not_final(service: TokenService, http: requests.Session | None) -> None:
    service.answers.append(lambda peer, sock: reset(sock))
    error = fails(client(http=http), service.url, ConnectError)
    assert error.status is None
    assert isinstance(error.__cause__, requests.ConnectionError)
    assert isinstance(error.__cause__.__cause__, ConnectionResetError)


def test_d24_a_reset_in_the_middle_of_the_body(service: TokenService, http: requests.Session | None) -> None:
    def cut(peer: Peer, sock: Any) -> None:
        sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"a":')
        reset(sock)

    service.answers.append(cut)
    assert fails(client(http=http), service.url, ConnectError).status is None


DRIPS = {
    "status": b"HT",
    "header": b"HTTP/1.1 200 OK\r\nX: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n",
    "chunked body": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8000\r\n",
}


@pytest.mark.parametrize("start", DRIPS.values(), ids=DRIPS)
def test_d24_a_slow_answer_ends_with_the_deadline(service: TokenService, start: bytes) -> None:
    service.answers.append(drip(start))
    error = fails(client(timeout=QUICK), service.url, ConnectError)
    assert f"was not answered within {QUICK} s" in error.message


@pytest.mark.parametrize("start", [DRIPS["body"], DRIPS["chunked body"]], ids=["body", "chunked body"])
def test_d24_a_slow_body_ends_with_the_deadline_of_a_given_session_too(
    service: TokenService, start: bytes
) -> None:
    service.answers.append(drip(start))
    with requests.Session() as session:
        fails(client(http=session, timeout=QUICK), service.url, ConnectError)


def test_a_call_may_have_a_deadline_of_its_own(service: TokenService) -> None:
    service.answers.append(lambda peer, sock: peer.hold())
    error = fails(client(), service.url, ConnectError, timeout=QUICK)
    assert f"within {QUICK} s" in error.message


def test_a_name_that_does_not_exist_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    error = fails(client(), URL, ConnectError)
    assert "Name or service not known" in error.message


# -- auth ----------------------------------------------------------------------------------------------------


class Twice(AuthBase):
    """Answers a refusal as DataChannelAuth does."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["X-Try"] = "1"
        request.register_hook("response", self.again)  # type: ignore[no-untyped-call]
        return request

    def again(self, response: requests.Response, **options: Any) -> requests.Response:
        if response.status_code != 403:
            return response
        if self.error is not None:
            raise self.error
        response.close()
        request = response.request.copy()
        request.headers["X-Try"] = "2"
        second: requests.Response = response.connection.send(request, **options)  # type: ignore[attr-defined]
        return second


def test_an_auth_may_send_a_request_again(service: TokenService, http: requests.Session | None) -> None:
    service.answers += [http_answer(403, {}), http_answer(200, {"a": 1})]
    reply = client(http=http).call("POST", service.url, json={}, auth=Twice())
    assert reply.body == {"a": 1}
    assert [header(head, "X-Try") for head in service.heads] == ["1", "2"]
    assert [header(head, "Authorization") for head in service.heads] == [f"Bearer {TOKEN}"] * 2


def test_the_second_try_of_an_auth_has_what_is_left_of_the_time(service: TokenService) -> None:
    service.answers += [http_answer(403, {}), drip(DRIPS["header"])]
    fails(client(timeout=QUICK), service.url, ConnectError, auth=Twice())


def test_the_second_try_of_an_auth_is_not_redirected_either(
    service: TokenService, http: requests.Session | None
) -> None:
    with TokenService() as other:
        service.answers += [http_answer(403, {}), http_answer(302, b"", Location=other.url)]
        assert fails(client(http=http), service.url, auth=Twice()).status == 302
        assert other.heads == []


def test_t11_an_error_of_an_auth_comes_out_without_the_frames_of_the_request(service: TokenService) -> None:
    service.answers.append(http_answer(403, {}))
    error = TokenRefreshError("here", "no other token", 403)
    caught = fails(client(), service.url, TokenRefreshError, auth=Twice(error))
    assert (caught.args, caught is error) == (error.args, False)


def test_an_error_of_an_auth_that_is_not_ours_is_a_failed_call(service: TokenService) -> None:
    service.answers.append(http_answer(403, {}))
    error = fails(client(), service.url, ConnectError, auth=Twice(ValueError(f"a bug with {TOKEN}")))
    assert "failed: ValueError: a bug with ***" in error.message


# -- addresses in answers ------------------------------------------------------------------------------------


def reply(**body: Any) -> Reply:
    return Reply(200, body, 0.25, f"POST {URL}", URL)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("webSocketUrl", "wss://service.example/a?b=c"),
        ("webSocketUrl", "ws://127.0.0.1:80/a"),
        ("url", "https://service.example/a"),
        ("url", "http://localhost/a"),
    ],
)
def test_an_address_in_an_answer_is_returned(name: str, url: str) -> None:
    assert client().link(reply(**{name: url}), name) == url
    assert client().link(reply(), name, within={name: url}) == url


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("webSocketUrl", None),
        ("webSocketUrl", ""),
        ("webSocketUrl", 7),
        ("webSocketUrl", "https://service.example/"),
        ("webSocketUrl", "ws://service.example/s3cret"),
        ("webSocketUrl", "wss://other.invalid/"),
        ("webSocketUrl", "wss://user:s3cret@service.example/"),
        ("url", "wss://service.example/"),
        ("url", "http://service.example/s3cret"),
        ("url", "https://other.invalid/"),
        ("url", "s3cret"),
    ],
)
def test_t12_an_address_in_an_answer_that_may_not_get_the_token_is_refused(name: str, url: Any) -> None:
    rest = client(allowed_hosts=["*.example"])
    with pytest.raises(RegistrationError) as caught:
        rest.link(reply(**{name: url}), name, "here")
    error = caught.value
    assert (error.session_id, error.status, error.url, error.timing) == ("here", 200, URL, 0.25)
    assert f"POST {URL} answered 200 with" in error.message and name in error.message
    assert "s3cret" not in str(error)
    with pytest.raises(RegistrationError):
        rest.link(reply(), name, within=["no", "mapping"])


# -- nothing is said of secrets ------------------------------------------------------------------------------


def test_t11_no_record_holds_a_token(service: TokenService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service.answers += [http_answer(200, {"datachannelToken": TOKEN}), http_answer(403, {"message": TOKEN})]
    rest = client()
    rest.call("GET", service.url)
    fails(rest, service.url)
    ours = [record for record in caplog.records if record.name.startswith("llm_sessions")]
    assert len(ours) == 2
    assert TOKEN not in caplog.text


# -- through the pool ----------------------------------------------------------------------------------------


class Registering(Endpoint):
    """Registers a data channel of a LocalServer, or whatever answers there."""

    def __init__(self, rest: RestClient, url: str) -> None:
        self.rest, self.url = rest, url
        self.attempts: list[int] = []

    def resolve(self, attempt: AttemptInfo) -> Target:
        self.attempts.append(attempt.number)
        answer = self.rest.call(
            "POST", self.url, session_id=attempt.session_id, json={"deviceUrl": "https://device.example/1"}
        )
        return Target(self.rest.link(answer, "webSocketUrl", attempt.session_id))


MakePool = Callable[..., ConnectionPool]


@pytest.fixture
def registering(server: LocalServer, client_context: ssl.SSLContext, tokens: Tokens) -> Registering:
    return Registering(client(tokens, ssl_context=client_context), server.datachannel_url("room"))


@pytest.mark.parametrize(
    ("status", "headers", "least", "most"),
    [
        (429, {"Retry-After": "7"}, 7, 7),
        (429, {"Retry-After": "in 200 s"}, 100, 200),
        (429, {"Retry-After": "99999"}, 320, 320),
        (429, {}, 1, 1),
        (500, {}, 1, 1),
        (503, {"Retry-After": "9"}, 9, 9),
    ],
    ids=["seconds", "date", "capped", "429", "500", "503"],
)
def test_d24_the_session_tries_again_when_the_service_says_so(
    server: LocalServer,
    make_pool: MakePool,
    registering: Registering,
    waits: list[float],
    status: int,
    headers: dict[str, str],
    least: float,
    most: float,
) -> None:
    # The date is made here: a run of all tests takes longer than 200 s.
    dated = {name: http_date(200) if value == "in 200 s" else value for name, value in headers.items()}
    server.reject_rest(status, headers=dated)
    pool = make_pool(TOKEN, backoff_initial=1, backoff_max=32)
    session = pool.connect(registering)
    assert session.online
    assert registering.attempts == [1, 2]
    [wait] = waits
    assert least <= wait <= most
    assert isinstance(session.last_error, RegistrationError) and session.last_error.status == status


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, HTML, {"Content-Type": "text/html"}),
        (200, {}, {}),
        (200, {"webSocketUrl": "wss://user:s3cret@service.example/"}, {}),
        (302, None, {"Location": "https://other.example/"}),
        (400, {"message": "no"}, {}),
        (403, {}, {}),
        (404, {}, {}),
    ],
    ids=["HTML", "no webSocketUrl", "bad webSocketUrl", "redirect", "400", "403", "404"],
)
def test_d24_an_answer_that_cannot_be_used_ends_the_run(
    server: LocalServer,
    make_pool: MakePool,
    registering: Registering,
    status: int,
    body: object,
    headers: dict[str, str],
) -> None:
    server.reject_rest(status, body=body, headers=headers)
    pool = make_pool(TOKEN)
    recorder = Recorder().listen(pool, "online", "connection_failed")
    with pytest.raises(RegistrationError) as caught:
        pool.connect(registering, session_id="room")
    assert (caught.value.session_id, caught.value.status) == ("room", status)
    assert caught.value.timing is not None
    assert (registering.attempts, recorder.names, server.connections()) == ([1], [], [])
    assert pool.connect(registering, session_id="room").online  # nothing was left behind


def test_d24_a_401_refreshes_the_access_token_once(
    server: LocalServer, make_pool: MakePool, registering: Registering, tokens: Tokens
) -> None:
    server.tokens = {FRESH}
    assert make_pool(tokens).connect(registering).online
    assert tokens.refused == [TOKEN]
    assert [request.status for request in server.requests] == [401, 200]


def test_d24_a_401_that_nothing_helps_against_ends_the_run(
    server: LocalServer, make_pool: MakePool, client_context: ssl.SSLContext
) -> None:
    server.tokens = set()
    rest = client(ssl_context=client_context)
    with pytest.raises(RegistrationError) as caught:
        make_pool(TOKEN).connect(Registering(rest, server.datachannel_url()))
    assert caught.value.status == 401


@pytest.mark.parametrize("fault", ["reset", "slow body"])
def test_d24_no_answer_is_tried_again(
    service: TokenService, make_pool: MakePool, tokens: Tokens, fault: str
) -> None:
    with LocalServer() as server:
        service.answers += [
            (lambda peer, sock: reset(sock)) if fault == "reset" else drip(DRIPS["body"]),
            http_answer(200, {"webSocketUrl": server.url("room")}),
        ]
        registering = Registering(client(tokens, timeout=1.0), service.url)
        pool = make_pool(TOKEN)
        session = pool.connect(registering)
        assert (session.online, registering.attempts) == (True, [1, 2])
        assert type(session.last_error) is ConnectError
        pool.close()


def test_t0_a_call_that_is_not_answered_does_not_hold_a_disconnect(
    server: LocalServer, make_pool: MakePool, registering: Registering
) -> None:
    server.hold_rest()
    pool = make_pool(TOKEN)
    with pytest.raises(ConnectTimeout):
        pool.connect(registering, timeout=0.05)
    server.wait_for(lambda: len(server.requests) == 1)
    began = time.monotonic()
    pool.disconnect()
    assert time.monotonic() - began < 1
    server.release_rest()
    assert pool.connect(registering).online
    assert len(server.connections()) == 1


def test_the_log_says_what_to_ask_the_service_about(
    service: TokenService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, rest_module.logger.name)
    service.answers.append(http_answer(200, {}))
    client().call("GET", service.url)
    tracking_id = header(service.heads[0], "trackingId")
    assert re.search(rf"answered 200 in \d+\.\d{{3}} s \({tracking_id}\)", caplog.text)
