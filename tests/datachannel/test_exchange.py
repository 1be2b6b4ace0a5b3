"""One HTTP exchange: its deadline, its limits, and what it never says."""

from __future__ import annotations

import gc
import pickle
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
import trustme

from llm_sessions._sync import Deadline
from llm_sessions.datachannel import exchange
from llm_sessions.datachannel.exchange import (
    MAX_ANSWER_BYTES,
    Answer,
    ExchangeFailed,
    check_url,
    clean,
    post_form,
    scrubbed,
)
from llm_sessions.errors import ConfigurationError, PoolClosed
from llm_sessions.protocol.closing import Failure
from tests.datachannel.service import TokenService, drip, everything_in, http_answer
from tests.peers import Peer, nobody, reset
from tests.support import LONG, descriptors

SECRET = "s3cret-in-the-form"
FORM = {"grant_type": "refresh_token", "client_secret": SECRET}
QUICK = 0.3
"""Seconds of a deadline that runs out."""


def ask(url: str, http: requests.Session | None = None, timeout: float = LONG) -> Answer:
    return post_form(url, FORM, http=http, connect=timeout, deadline=Deadline(timeout), secrets=[SECRET])


def fails(url: str, http: requests.Session | None = None, timeout: float = LONG) -> ExchangeFailed:
    with pytest.raises(ExchangeFailed) as caught:
        ask(url, http, timeout)
    return caught.value


# -- what is asked and answered ------------------------------------------------------------------------------


def test_a_form_goes_out_and_the_answer_comes_back(
    service: TokenService, http: requests.Session | None
) -> None:
    service.answers.append(http_answer(200, {"a": 1}, Retry_After="7"))
    answer = ask(service.url, http)
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (200, b'{"a": 1}', "7")
    assert answer.timing >= 0
    assert service.forms == [FORM]
    [head] = service.heads
    assert head.startswith(b"POST /v1/access_token HTTP/1.1\r\n")
    assert b"Content-Type: application/x-www-form-urlencoded" in head
    assert b"authorization" not in head.lower()


def test_t11_an_answer_does_not_show_what_it_holds() -> None:
    shown = repr(Answer(200, {"X": SECRET}, SECRET.encode(), 0.1))
    assert SECRET not in shown


@responses.activate
def test_an_answer_of_a_mocked_service_is_read() -> None:
    responses.post("https://service.example/token", json={"a": 1}, status=201)
    assert (ask("https://service.example/token").status, len(responses.calls)) == (201, 1)


@pytest.mark.parametrize("size", [MAX_ANSWER_BYTES, MAX_ANSWER_BYTES + 1])
def test_an_answer_is_read_up_to_its_limit(
    service: TokenService, http: requests.Session | None, size: int
) -> None:
    service.answers.append(http_answer(200, b" " * size))
    body = ask(service.url, http).body
    assert body == (b" " * size if size <= MAX_ANSWER_BYTES else None)


def test_an_answer_without_end_is_refused_and_its_connection_ends(
    service: TokenService, http: requests.Session | None
) -> None:
    ended = threading.Event()

    def flood(peer: Peer, sock: Any) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while not peer.over.is_set():
                sock.sendall(b" " * 1000)
        except OSError:
            ended.set()

    service.answers.append(flood)
    assert ask(service.url, http).body is None
    assert ended.wait(LONG)


def test_t12_redirects_are_not_followed(service: TokenService, http: requests.Session | None) -> None:
    with TokenService() as other:
        for status in (301, 302, 303, 307, 308):
            service.answers.append(http_answer(status, b"", Location=other.url))
            assert ask(service.url, http).status == status
        assert other.forms == []


def test_t12_credentials_for_others_are_not_sent(
    service: TokenService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password s3cret-netrc\n")
    monkeypatch.setenv("NETRC", str(netrc))
    ask(service.url)
    with requests.Session() as session:
        session.headers["Authorization"] = "Bearer s3cret-bearer"
        ask(service.url, session)
        session.auth = ("somebody", "s3cret-basic")
        ask(service.url, session)
    assert len(service.heads) == 3
    assert not [head for head in service.heads if b"authorization" in head.lower()]


def test_t12_what_goes_to_loopback_in_the_clear_is_shown_to_no_proxy(
    service: TokenService, http: requests.Session | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TokenService() as proxy:
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        assert ask(service.url, http).status == 200
        assert (len(service.forms), proxy.forms) == (1, [])


def test_a_proxy_of_the_environment_is_used_for_what_goes_further(monkeypatch: pytest.MonkeyPatch) -> None:
    with TokenService() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.rpartition("/v1")[0])
        monkeypatch.delenv("no_proxy", raising=False)
        assert ask("http://service.invalid/token").status == 200
        [head] = proxy.heads
        assert head.startswith(b"POST http://service.invalid/token HTTP/1.1")


def test_t12_a_session_that_asks_somebody_else_is_stopped(service: TokenService) -> None:
    class Elsewhere(requests.Session):
        def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
            prepared = super().prepare_request(request)
            prepared.url = prepared.url.replace("127.0.0.1", "localhost")  # type: ignore[union-attr]
            return prepared

    with Elsewhere() as session:
        assert "another way" in fails(service.url, session).message
    assert service.heads == []


def test_what_a_hook_that_raises_was_given_is_closed(
    service: TokenService, http: requests.Session | None
) -> None:
    opened: list[requests.Response] = []

    class Refusing(requests.auth.AuthBase):
        def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.register_hook("response", self.refuse)  # type: ignore[no-untyped-call]
            return request

        def refuse(self, response: requests.Response, **options: Any) -> None:
            opened.append(response)
            raise PoolClosed

    service.answers.append(lambda peer, sock: (sock.sendall(DRIPS[1]), peer.hold()))
    request = requests.Request("GET", service.url, auth=Refusing())
    with pytest.raises(PoolClosed):
        exchange.ask(request, http=http, connect=LONG, deadline=Deadline(LONG))
    assert opened[0].raw.closed


# -- one deadline --------------------------------------------------------------------------------------------

DRIPS = [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"HT"]


@pytest.mark.parametrize("start", DRIPS, ids=["header", "body", "status"])
def test_an_answer_that_drips_in_ends_with_the_deadline(service: TokenService, start: bytes) -> None:
    service.answers.append(drip(start))
    assert fails(service.url, timeout=QUICK).timed_out


def test_a_body_that_drips_into_a_given_session_ends_with_the_deadline(service: TokenService) -> None:
    service.answers.append(drip(DRIPS[1]))
    with requests.Session() as session:
        assert fails(service.url, session, timeout=QUICK).timed_out


def trust(monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, tmp_path: Path) -> None:
    bundle = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))


@pytest.mark.parametrize("start", DRIPS, ids=["header", "body", "status"])
def test_tls_too(
    start: bytes,
    server_context: Any,
    authority: trustme.CA,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    trust(monkeypatch, authority, tmp_path)
    with TokenService(server_context) as service:
        assert ask(service.url).status == 200
        service.answers.append(drip(start))
        assert fails(service.url, timeout=QUICK).timed_out


def test_a_certificate_that_is_not_trusted_is_named(server_context: Any) -> None:
    with TokenService(server_context) as service:
        failed = fails(service.url)
        assert " is not valid: " in failed.message and not failed.timed_out
        assert failed.failure is Failure.UNTRUSTED
        assert isinstance(failed.__cause__, requests.exceptions.SSLError)
        assert service.forms == []


def test_a_mute_service_ends_with_the_deadline(service: TokenService, http: requests.Session | None) -> None:
    service.answers.append(lambda peer, sock: peer.hold())
    failed = fails(service.url, http, timeout=QUICK)
    assert failed.timed_out
    assert isinstance(failed.__cause__, requests.ReadTimeout)
    assert isinstance(failed.__cause__.__cause__, TimeoutError)


def test_nothing_is_sent_after_the_deadline(service: TokenService, monkeypatch: pytest.MonkeyPatch) -> None:
    # The answer would come to nobody, with the only copy of a new refresh token.
    deadline = Deadline(QUICK)
    lookup = socket.getaddrinfo
    late = threading.Event()

    def slow(*args: Any, **kwargs: Any) -> Any:
        while not deadline.expired:
            late.wait(0.01)
        return lookup(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(ExchangeFailed) as caught:
        post_form(service.url, FORM, http=None, connect=LONG, deadline=deadline)
    assert caught.value.timed_out
    assert service.peer.arrived.acquire(timeout=LONG)  # it was connected all the same
    assert service.heads == []


def test_no_request_begins_after_the_deadline(service: TokenService, http: requests.Session | None) -> None:
    past = Deadline(1.0, now=iter([0.0, 2.0, 2.0, 2.0]).__next__)
    with pytest.raises(ExchangeFailed) as caught:
        post_form(service.url, FORM, http=http, connect=LONG, deadline=past)
    assert caught.value.timed_out
    assert not service.peer.arrived.acquire(timeout=0)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("start", [b"", *DRIPS], ids=["mute", "header", "body", "status"])
def test_no_descriptor_waits_for_the_garbage_collector(
    start: bytes,
    scheme: str,
    server_context: Any,
    authority: trustme.CA,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    trust(monkeypatch, authority, tmp_path)
    with TokenService(server_context if scheme == "https" else None) as service:
        service.answers.append(lambda peer, sock: (sock.sendall(start), peer.hold()))
        before = descriptors()
        gc.collect()
        gc.disable()
        try:
            assert fails(service.url, timeout=QUICK).timed_out
            assert descriptors() == before + 1  # the service's end
        finally:
            gc.enable()


# -- what is raised ------------------------------------------------------------------------------------------


def test_t11_a_failure_holds_neither_the_request_nor_its_frames(
    service: TokenService, http: requests.Session | None
) -> None:
    service.answers.append(lambda peer, sock: reset(sock))
    failed = fails(service.url, http)
    assert failed.__context__ is None
    cause = failed.__cause__
    assert isinstance(cause, requests.ConnectionError)
    assert (cause.request, cause.response, cause.__traceback__, cause.__context__) == (None,) * 4
    system = cause.__cause__
    assert isinstance(system, ConnectionResetError)
    assert (system.__traceback__, system.__context__, system.__cause__) == (None,) * 3
    failed.__traceback__ = None  # its frames are the caller's, who has the form
    assert SECRET not in "".join(everything_in(failed))
    assert SECRET.encode() not in pickle.dumps(failed) + pickle.dumps(cause)
    assert str(failed.message).startswith("ConnectionError: ")


def test_a_refused_connection_keeps_its_error_number() -> None:
    port = nobody()[-1][1]
    failed = fails(f"http://127.0.0.1:{port}/")
    assert failed.__cause__ is not None
    system = failed.__cause__.__cause__
    assert isinstance(system, ConnectionRefusedError) and system.errno
    assert not failed.timed_out


def test_an_exception_that_cannot_be_made_anew_is_named(service: TokenService) -> None:
    def hook(response: requests.Response, **kwargs: Any) -> None:
        raise UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET)

    with requests.Session() as session:
        session.hooks["response"].append(hook)
        failed = fails(service.url, session)
    assert type(failed.__cause__) is RuntimeError
    assert failed.message.startswith("RuntimeError: UnicodeDecodeError: ")
    assert SECRET not in failed.message


def test_a_chain_that_bites_its_tail_ends() -> None:
    one, two = ValueError("one"), OSError(5, "two")
    one.__context__, two.__context__ = two, one
    twin, timed_out = scrubbed(one, ())
    assert (repr(twin), repr(twin.__cause__)) == ("ValueError('one')", "OSError(5, 'two')")
    assert not timed_out


@responses.activate
def test_ctrl_c_is_nobodys_failure() -> None:
    def interrupt(request: Any) -> Any:
        raise KeyboardInterrupt

    responses.add_callback(responses.POST, "https://service.example/token", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask("https://service.example/token")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("fine", "fine"),
        (f"the token {SECRET} is bad", "the token *** is bad"),
        ("two\r\nlines\x1b[0m", "two  lines [0m"),
        ("x" * 300, "x" * 300),
        ("x" * 301, "x" * 300 + "…"),
        ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz", "Authorization: ***"),
    ],
)
def test_t11_foreign_text_is_cleaned(text: str, cleaned: str) -> None:
    assert clean(text, ["", SECRET]) == cleaned


def test_t11_a_secret_within_another_leaves_nothing_of_it() -> None:
    assert clean("see abcdef", ["abc", "abcdef"]) == "see ***"


# -- where secrets may go ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://webexapis.com/v1/access_token",
        "https://host:8443/?realm=a",
        "http://127.0.0.1:80/x",
        "http://[::1]/x",
        "http://localhost",
        "HTTPS://HOST/",
    ],
)
def test_t12_urls_that_may_get_secrets(url: str) -> None:
    assert check_url(url, allow_insecure=False) == url


def test_t12_plain_http_needs_to_be_allowed() -> None:
    with pytest.raises(ConfigurationError, match="unencrypted"):
        check_url("http://example.com/", allow_insecure=False)
    assert check_url("http://example.com/", allow_insecure=True)


@pytest.mark.parametrize(
    "url",
    [
        None,
        7,
        "",
        "example.com",
        "wss://host/",
        "https://",
        "https:///path",
        "https://host:0/",
        "https://host:x/",
        "https://[host/",
        "https://user@host/",
        "https://user:s3cret@host/",
        "https://host/#s3cret",
        "https://host/a b",
        "https://höst/",
        "https://host\\@other/",
        "https://host/\n",
    ],
)
def test_t12_urls_that_are_refused(url: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_url(url, allow_insecure=True, argument="there")
    assert caught.value.argument == "there"
    assert "s3cret" not in str(caught.value)
