"""The source of tokens: one request for all who ask, an end to every wait, and no secret ever said."""

from __future__ import annotations

import copy
import gc
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import requests
import responses

from llm_sessions import (
    WEBEX_HOSTS,
    ConfigurationError,
    ConnectionPool,
    LocalProtocolError,
    NotAuthorized,
    OAuthTokens,
    PoolConfig,
    RefreshedTokens,
    TokenProvider,
    TokenRefreshError,
)
from llm_sessions._sync import Latch
from llm_sessions.datachannel import oauth, oauth_grant
from llm_sessions.testing.clock import ManualClock
from llm_sessions.testing.server import LocalServer
from tests.datachannel.service import (
    ACCESS,
    ID,
    REFRESH,
    SECRET,
    TokenService,
    drip,
    everything_in,
    http_answer,
)
from tests.peers import reset
from tests.support import (
    LONG,
    SHORT,
    Background,
    Gate,
    Recorder,
    ctrl_c,
    descriptors,
    eventually,
    library_threads,
    run_together,
)

URL = "https://webexapis.com/v1/access_token"
REFUSAL = http_answer(400, {"error": "invalid_grant"})
BUSY = http_answer(503, {})


@pytest.fixture
def service() -> Iterator[TokenService]:
    with TokenService() as service:
        yield service
    eventually(lambda: not oauth_threads())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock(100.0)
    stopped = SimpleNamespace(time=clock.wall, monotonic=clock)
    monkeypatch.setattr(oauth_grant, "time", stopped)
    monkeypatch.setattr(oauth, "time", stopped)
    return clock


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def oauth_threads() -> list[threading.Thread]:
    return [thread for thread in library_threads() if thread.name == "llm-oauth"]


class CountedLatch(Latch):
    """Says how many wait on any of its kind."""

    __slots__ = ()
    waiting: ClassVar[list[threading.Thread]] = []

    def wait(self, timeout: float | None = None) -> bool:
        me = threading.current_thread()
        self.waiting.append(me)
        try:
            return super().wait(timeout)
        finally:
            self.waiting.remove(me)


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth, "Latch", CountedLatch)


def waiting(count: int) -> None:
    """Wait until `count` callers wait for a request."""
    eventually(lambda: len(CountedLatch.waiting) == count, f"{count} callers do not wait")


def held(service: TokenService) -> Gate:
    """Hold the requests from now on."""
    service.gate = Gate()
    return service.gate


# -- get -----------------------------------------------------------------------------------------------------


def test_a_first_token_is_asked_for_and_kept(service: TokenService) -> None:
    tokens = service.tokens()
    assert isinstance(tokens, TokenProvider)
    assert [tokens.get(), tokens.get()] == ["s3cret-access-1"] * 2
    assert service.forms == [
        {
            "grant_type": "refresh_token",
            "client_id": ID,
            "client_secret": SECRET,
            "refresh_token": REFRESH,
        }
    ]


@responses.activate
def test_webex_is_asked_by_default() -> None:
    responses.post(URL, json={"access_token": "new", "expires_in": 100, "refresh_token": "next"})
    assert OAuthTokens(ID, SECRET, REFRESH).get() == "new"
    [call] = responses.calls
    assert call.request.headers["Content-Type"] == "application/x-www-form-urlencoded"


@responses.activate
def test_a_given_session_is_used_and_not_closed() -> None:
    responses.post(URL, json={"access_token": "new"})
    with requests.Session() as session:
        closed: list[bool] = []
        session.close = lambda: closed.append(True)  # type: ignore[method-assign]
        session.headers["X-Ours"] = "yes"
        with OAuthTokens(ID, SECRET, REFRESH, http=session) as tokens:
            assert tokens.get() == "new"
        assert responses.calls[0].request.headers["X-Ours"] == "yes"
        assert not closed
        del session.close


def test_a_good_token_is_returned_without_a_request(service: TokenService) -> None:
    tokens = service.tokens(access_token=f"Bearer {ACCESS}", expires_at=time.time() + 1000)
    assert tokens.get() == ACCESS
    assert service.tokens(access_token=ACCESS).get() == ACCESS
    assert service.forms == []


@pytest.mark.parametrize("left", [30, 0, -1000])
def test_d6_a_token_is_refreshed_before_it_expires(service: TokenService, left: float) -> None:
    tokens = service.tokens(access_token=ACCESS, expires_at=time.time() + left, leeway=60)
    assert tokens.get() == "s3cret-access-1"


def test_d6_a_rotated_refresh_token_is_used_from_then_on(service: TokenService, clock: ManualClock) -> None:
    tokens = service.tokens()
    for number in (1, 2, 3):
        assert tokens.get() == f"s3cret-access-{number}"
        clock.advance(3600)
    assert [form["refresh_token"] for form in service.forms] == [
        REFRESH,
        "s3cret-refresh-1",
        "s3cret-refresh-2",
    ]


def test_d6_a_refresh_that_fails_early_leaves_the_old_token(
    service: TokenService, clock: ManualClock, log: pytest.LogCaptureFixture
) -> None:
    service.answers += [BUSY, BUSY]
    tokens = service.tokens(access_token=ACCESS, expires_at=clock.wall() + 30, leeway=60)
    assert [tokens.get(), tokens.get()] == [ACCESS] * 2  # not asked again at once: the service is in trouble
    assert len(service.forms) == 1
    [record] = [record for record in log.records if record.levelno == logging.WARNING]
    assert "answered 503" in record.getMessage()
    clock.advance(5)
    assert tokens.get() == ACCESS
    assert len(service.forms) == 2
    clock.advance(5)
    assert tokens.get() == "s3cret-access-3"


def test_d6_the_service_says_when_to_ask_again_while_the_old_token_is_good(
    service: TokenService, clock: ManualClock
) -> None:
    service.answers.append(http_answer(429, {}, Retry_After="20"))
    tokens = service.tokens(access_token=ACCESS, expires_at=clock.wall() + 30, leeway=60)
    assert tokens.get() == ACCESS
    clock.advance(19)
    assert tokens.get() == ACCESS
    assert len(service.forms) == 1
    clock.advance(1)
    assert tokens.get() == "s3cret-access-2"


def test_d6_a_refresh_that_fails_too_late_raises(service: TokenService, clock: ManualClock) -> None:
    service.answers.append(http_answer(429, {}, Retry_After="7"))
    tokens = service.tokens(access_token=ACCESS, expires_at=clock.wall())
    with pytest.raises(TokenRefreshError) as caught:
        tokens.get()
    error = caught.value
    assert (error.status, error.retry_after, error.final, error.url) == (429, 7, False, service.url)
    clock.advance(7)
    assert tokens.get() == "s3cret-access-2"  # whoever waits is the caller


def test_a_token_of_a_short_life_is_not_refreshed_by_every_get(service: TokenService) -> None:
    service.expires_in = 30
    tokens = service.tokens(leeway=60)
    assert [tokens.get(), tokens.get()] == ["s3cret-access-1"] * 2


# -- refresh -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "Bearer "])
def test_i41_a_refused_token_is_replaced(service: TokenService, prefix: str) -> None:
    tokens = service.tokens(access_token=ACCESS)
    assert tokens.refresh(prefix + ACCESS) == tokens.get() == "s3cret-access-1"
    assert len(service.forms) == 1


def test_i41_a_token_that_was_replaced_already_costs_no_request(service: TokenService) -> None:
    tokens = service.tokens(access_token=ACCESS)
    assert tokens.refresh("an older one") == ACCESS
    assert tokens.refresh(ACCESS) == tokens.refresh(ACCESS) == tokens.refresh("") == "s3cret-access-1"
    assert len(service.forms) == 1


def test_i41_a_service_that_has_no_other_token_says_so(service: TokenService) -> None:
    service.answers.append(http_answer(200, {"access_token": ACCESS}))
    assert service.tokens(access_token=ACCESS).refresh(ACCESS) == ACCESS


def test_i41_a_refused_token_is_not_used_again_though_its_refresh_failed(service: TokenService) -> None:
    service.answers += [BUSY, BUSY]
    tokens = service.tokens(access_token=ACCESS, expires_at=time.time() + 1000)
    with pytest.raises(TokenRefreshError):
        tokens.refresh(ACCESS)
    with pytest.raises(TokenRefreshError):  # not ACCESS, which is refused
        tokens.get()
    assert tokens.refresh("an older one") == "s3cret-access-3"


def test_refresh_wants_a_string(service: TokenService) -> None:
    with pytest.raises(ConfigurationError, match="rejected"):
        service.tokens().refresh(None)  # type: ignore[arg-type]


# -- one request for all -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True], ids=["own session", "given session"])
def test_d6_many_callers_share_one_request(service: TokenService, given: bool) -> None:
    gate = held(service)
    with requests.Session() as session:
        tokens = service.tokens(access_token=ACCESS, http=session if given else None)
        calls = [
            Background(lambda n=n: tokens.refresh(ACCESS) if n % 2 else tokens.get())  # type: ignore[misc]
            for n in range(1, 20, 2)
        ]
        gate.wait_arrived()
        calls += [Background(tokens.get) for _ in range(10)]
        waiting(20)
        assert len(oauth_threads()) == 1
        gate.open()
        assert {call.result() for call in calls} == {"s3cret-access-1"}
    assert len(service.forms) == 1


def test_d6_many_callers_share_one_failure_each_as_its_own(service: TokenService) -> None:
    service.answers.append(lambda peer, sock: reset(sock))
    gate = held(service)
    tokens = service.tokens()
    calls = [Background(tokens.get) for _ in range(20)]
    gate.wait_arrived()
    waiting(20)
    gate.open()
    errors = [call.error() for call in calls]
    assert len(service.forms) == 1
    assert len({id(error) for error in errors}) == 20
    assert {str(error) for error in errors} == {str(errors[0])}
    assert len({id(error.__cause__) for error in errors}) == 1
    assert isinstance(errors[0].__cause__, requests.ConnectionError)
    assert all(error.__context__ is None for error in errors)


@pytest.mark.stress
def test_d6_callers_that_come_and_go_cost_one_request_for_each_token(service: TokenService) -> None:
    tokens = service.tokens(access_token=ACCESS)
    told: list[str] = []
    tokens._on_refresh = lambda new: told.append(new.access_token)
    for number in range(10):
        refused = ACCESS if not number else f"s3cret-access-{number}"
        fresh = f"s3cret-access-{number + 1}"
        assert run_together(12, lambda refused=refused: tokens.refresh(refused)) == [fresh] * 12  # type: ignore[misc]
        assert tokens.get() == fresh
    assert len(service.forms) == len(told) == 10


# -- every wait ends -----------------------------------------------------------------------------------------

DRIPS = {"headers": b"HTTP/1.1 200 OK\r\nX: ", "body": b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"}


@pytest.mark.parametrize("start", DRIPS.values(), ids=DRIPS)
@pytest.mark.parametrize("given", [False, True], ids=["own session", "given session"])
def test_d6_a_dripping_service_holds_nobody_longer_than_the_deadline(
    service: TokenService, start: bytes, given: bool
) -> None:
    service.answers.append(drip(start))
    with requests.Session() as session:
        tokens = service.tokens(timeout=0.3, http=session if given else None)
        for outcome in run_together(20, tokens.get):
            assert isinstance(outcome, TokenRefreshError)
            assert not outcome.final and outcome.status is None and "within 0.3 s" in str(outcome)
        if start == DRIPS["headers"] and given:  # nothing ends that request but the service
            with pytest.raises(TokenRefreshError, match="within"):
                tokens.get()
            assert len(service.forms) == 1
            service.peer.over.set()
        eventually(lambda: not oauth_threads())
        tokens._timeout = LONG
        if not service.peer.over.is_set():
            assert tokens.get() == "s3cret-access-2"


def test_d6_an_answer_after_the_deadline_still_counts(
    service: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A service that replaces refresh tokens has replaced this one: only this answer has the new one.
    monkeypatch.setattr(oauth, "_PATIENCE", LONG / SHORT)
    gate = held(service)
    told: list[RefreshedTokens] = []
    tokens = service.tokens(timeout=SHORT, on_refresh=told.append)
    for _ in range(2):
        with pytest.raises(TokenRefreshError, match=f"did not answer within {SHORT} s"):
            tokens.get()
    gate.wait_arrived()
    gate.open()
    eventually(lambda: not oauth_threads())
    assert [new.refresh_token for new in told] == ["s3cret-refresh-1"]
    assert tokens.get() == "s3cret-access-1"
    assert len(service.forms) == 1


@pytest.mark.parametrize("bad", ["reset", "closed", "nonsense", "too large", "redirect"])
def test_d6_an_unusable_answer_is_temporary(service: TokenService, bad: str) -> None:
    service.answers.append(
        {
            "reset": lambda peer, sock: reset(sock),
            "closed": b"",
            "nonsense": b"SSH-2.0-OpenSSH\r\n",
            "too large": http_answer(200, b" " * 100_000),
            "redirect": http_answer(307, b"", Location=service.url),
        }[bad]
    )
    tokens = service.tokens()
    with pytest.raises(TokenRefreshError) as caught:
        tokens.get()
    assert not caught.value.final and caught.value.url == service.url
    assert tokens.get() == "s3cret-access-2"


def test_t5_ctrl_c_in_a_waiting_caller_strands_nobody(plain_locks: None, service: TokenService) -> None:
    gate = held(service)
    tokens = service.tokens()

    def interruptible() -> bool:
        gate.wait_arrived()
        waiting(2)
        return True

    other = Background(tokens.get)
    with ctrl_c(interruptible):
        tokens.get()
    gate.open()
    assert other.result() == tokens.get() == "s3cret-access-1"


def test_t5_ctrl_c_before_there_is_a_thread_strands_nobody(
    service: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = service.tokens()
    gate = Gate()

    def interrupted(*args: Any) -> threading.Thread:
        gate.pass_through()
        raise KeyboardInterrupt

    monkeypatch.setattr(tokens._threads, "spawn", interrupted)
    first = Background(tokens.get)
    gate.wait_arrived()
    second = Background(tokens.get)
    waiting(1)
    monkeypatch.undo()
    gate.open()
    assert isinstance(first.error(), KeyboardInterrupt)
    error = second.error()
    assert isinstance(error, TokenRefreshError) and "KeyboardInterrupt" in str(error) and not error.final
    assert tokens.get() == "s3cret-access-1"


def test_t5_ctrl_c_once_the_thread_runs_changes_nothing(
    service: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = held(service)
    tokens = service.tokens()
    spawn = tokens._threads.spawn

    def interrupted(*args: Any) -> threading.Thread:
        spawn(*args)
        gate.wait_arrived()
        raise KeyboardInterrupt

    monkeypatch.setattr(tokens._threads, "spawn", interrupted)
    first = Background(tokens.get)
    assert isinstance(first.error(), KeyboardInterrupt)
    second = Background(tokens.get)
    waiting(1)
    gate.open()
    assert second.result() == "s3cret-access-1"
    assert len(service.forms) == 1


def test_t5_a_thread_that_begins_after_its_request_was_abandoned_asks_nothing(
    service: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = service.tokens()
    runs: list[Callable[[], None]] = []

    def interrupted(run: Callable[[], None], name: str) -> threading.Thread:
        runs.append(run)
        raise KeyboardInterrupt

    monkeypatch.setattr(tokens._threads, "spawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokens.get()
    runs[0]()
    assert service.forms == []


def test_t5_a_request_that_nobody_started_is_replaced_after_its_deadline(
    service: TokenService, clock: ManualClock
) -> None:
    # Ctrl-C may come twice, the second time where the first is dealt with.
    tokens = service.tokens()
    tokens._request = lost = oauth._Request(0, 1.0)
    lost.deadline = oauth.Deadline(1.0, clock)
    clock.advance(1)
    assert tokens.get() == "s3cret-access-1"


def test_a_thread_that_cannot_start_is_temporary(
    service: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = service.tokens(access_token=ACCESS, expires_at=time.time() + 30)

    def refuse(*args: Any) -> threading.Thread:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(tokens._threads, "spawn", refuse)
    assert tokens.get() == ACCESS  # still good for half a minute
    with pytest.raises(TokenRefreshError, match="no thread") as caught:
        tokens.refresh(ACCESS)
    assert isinstance(caught.value.__cause__, RuntimeError)
    monkeypatch.undo()
    assert tokens.get() == "s3cret-access-1"


def test_a_bug_strands_nobody(
    service: TokenService, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    tokens = service.tokens()
    monkeypatch.setattr(tokens, "_settle", lambda *args: 1 / 0)
    with pytest.raises(TokenRefreshError, match="see the log"):
        tokens.get()
    assert "this is a bug in llm_sessions" in log.text
    monkeypatch.undo()
    assert tokens.get() == "s3cret-access-2"


# -- a refusal -----------------------------------------------------------------------------------------------


def test_d6_a_refused_refresh_token_is_not_sent_again(
    service: TokenService, log: pytest.LogCaptureFixture
) -> None:
    service.answers.append(REFUSAL)
    tokens = service.tokens(access_token=ACCESS)
    errors = []
    for call in (lambda: tokens.refresh(ACCESS), tokens.get, tokens.get, lambda: tokens.refresh("")):
        with pytest.raises(TokenRefreshError, match="the refresh token is not valid any more") as caught:
            call()
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 4
    assert all(error.final and error.status == 400 for error in errors)
    assert len(service.forms) == 1
    assert log.text.count("not valid any more") == 1
    tokens.set_refresh_token("s3cret-another")
    assert tokens.get() == "s3cret-access-2"
    assert service.forms[1]["refresh_token"] == "s3cret-another"


def test_d6_a_good_token_serves_though_the_refresh_token_was_refused(
    service: TokenService, clock: ManualClock
) -> None:
    service.answers.append(http_answer(401, {"error": "invalid_client"}))
    tokens = service.tokens(access_token=ACCESS, expires_at=clock.wall() + 30)
    assert [tokens.get(), tokens.get()] == [ACCESS] * 2
    clock.advance(30)
    with pytest.raises(TokenRefreshError, match="client secret is not accepted") as caught:
        tokens.get()
    assert caught.value.final
    assert len(service.forms) == 1


def test_set_refresh_token_with_an_access_token_needs_no_request(service: TokenService) -> None:
    service.answers.append(REFUSAL)
    tokens = service.tokens()
    with pytest.raises(TokenRefreshError):
        tokens.get()
    tokens.set_refresh_token("s3cret-another", access_token="s3cret-new", expires_at=time.time() + 1000)
    assert tokens.get() == "s3cret-new"
    assert len(service.forms) == 1


def test_set_refresh_token_keeps_a_good_access_token(service: TokenService) -> None:
    tokens = service.tokens(access_token=ACCESS)
    tokens.set_refresh_token("s3cret-another")
    assert tokens.get() == ACCESS
    assert tokens.refresh(ACCESS) == "s3cret-access-1"
    assert service.forms[0]["refresh_token"] == "s3cret-another"


def test_set_refresh_token_refuses_what_is_none(service: TokenService) -> None:
    tokens = service.tokens()
    with pytest.raises(ConfigurationError, match="refresh_token"):
        tokens.set_refresh_token("")
    assert tokens.get() == "s3cret-access-1"


@pytest.mark.parametrize("outcome", ["granted", "refused"])
def test_a_refresh_token_that_was_replaced_meanwhile_decides_nothing(
    service: TokenService, outcome: str
) -> None:
    gate = held(service)
    service.answers += [REFUSAL] if outcome == "refused" else []
    told: list[RefreshedTokens] = []
    tokens = service.tokens(on_refresh=told.append)
    calls = [Background(tokens.get) for _ in range(3)]
    gate.wait_arrived()
    waiting(3)
    tokens.set_refresh_token("s3cret-another")
    gate.open()
    assert {call.result() for call in calls} == {"s3cret-access-2"}
    assert [form["refresh_token"] for form in service.forms] == [REFRESH, "s3cret-another"]
    assert [new.access_token for new in told] == ["s3cret-access-2"]


def test_the_same_refresh_token_again_keeps_the_request_under_way(service: TokenService) -> None:
    gate = held(service)
    tokens = service.tokens()
    call = Background(tokens.get)
    gate.wait_arrived()
    tokens.set_refresh_token(REFRESH)
    gate.open()
    assert call.result() == "s3cret-access-1"
    assert len(service.forms) == 1


# -- on_refresh ----------------------------------------------------------------------------------------------


def test_on_refresh_gets_all_that_is_worth_keeping(service: TokenService) -> None:
    told: list[RefreshedTokens] = []
    began = time.time()
    tokens = service.tokens(on_refresh=told.append)
    tokens.get()
    [new] = told
    assert (new.access_token, new.refresh_token) == ("s3cret-access-1", "s3cret-refresh-1")
    assert new.expires_at is not None and new.refresh_token_expires_at is not None
    assert began <= new.expires_at - 3600 == new.refresh_token_expires_at - 7200 <= time.time()
    service.rotate, service.expires_in = False, None
    tokens.refresh(new.access_token)
    assert told[1] == RefreshedTokens("s3cret-access-2", "s3cret-refresh-1", None, None)


def test_nobody_has_the_new_token_before_on_refresh_is_over(service: TokenService) -> None:
    kept, gate = [], Gate()

    def keep(new: RefreshedTokens) -> None:
        gate.pass_through()
        kept.append(new.access_token)

    tokens = service.tokens(access_token=ACCESS, on_refresh=keep)
    first = Background(lambda: (tokens.refresh(ACCESS), list(kept)))
    gate.wait_arrived()
    late = [Background(lambda call=call: (call(), list(kept))) for call in (tokens.get, first.result)]  # type: ignore[misc]
    stale = Background(lambda: (tokens.refresh(ACCESS), list(kept)))
    waiting(3)
    gate.open()
    assert first.result() == late[0].result() == stale.result() == ("s3cret-access-1", ["s3cret-access-1"])
    assert late[1].result()[0] == first.result()
    assert len(service.forms) == 1


def test_on_refresh_is_not_called_for_a_failure(service: TokenService) -> None:
    service.answers.append(BUSY)
    told: list[RefreshedTokens] = []
    tokens = service.tokens(on_refresh=told.append)
    with pytest.raises(TokenRefreshError):
        tokens.get()
    assert told == []


def test_calls_from_on_refresh_do_not_wait_for_themselves(service: TokenService) -> None:
    outcomes: list[object] = []

    def keep(new: RefreshedTokens) -> None:
        outcomes.append(tokens.get())
        for rejected in (new.access_token, ACCESS):
            with pytest.raises(LocalProtocolError):
                tokens.refresh(rejected)
        tokens.set_refresh_token("s3cret-another")
        tokens.close()
        outcomes.append(repr(tokens))

    tokens = service.tokens(access_token=ACCESS, on_refresh=keep)
    assert tokens.refresh(ACCESS) == tokens.get() == "s3cret-access-1"
    assert outcomes == ["s3cret-access-1", repr(tokens)]


def test_calls_from_the_request_itself_do_not_wait_for_it(service: TokenService) -> None:
    caught: list[BaseException] = []

    def hook(response: requests.Response, **kwargs: Any) -> None:
        try:
            tokens.get()
        except LocalProtocolError as exc:
            caught.append(exc)

    with requests.Session() as session:
        session.hooks["response"].append(hook)
        tokens = service.tokens(http=session)
        assert tokens.get() == "s3cret-access-1"
    assert len(caught) == 1


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit, KeyError])
def test_t11_an_on_refresh_that_raises_is_logged_and_the_refresh_counts(
    service: TokenService, log: pytest.LogCaptureFixture, kind: type[BaseException]
) -> None:
    def keep(new: RefreshedTokens) -> None:
        raise kind(f"cannot write {new.access_token} and {new.refresh_token} to disk")

    tokens = service.tokens(on_refresh=keep)
    assert tokens.get() == "s3cret-access-1"
    [record] = [record for record in log.records if record.levelno == logging.ERROR]
    assert record.exc_info is None
    assert f"on_refresh raised {kind.__name__}" in record.getMessage()
    assert "to disk" in record.getMessage() and "in keep" in record.getMessage()
    assert "s3cret" not in repr(vars(record))


def test_an_on_refresh_that_hangs_holds_the_token_only_so_long(
    service: TokenService, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    tokens = service.tokens(access_token=ACCESS, on_refresh=lambda new: gate.pass_through())
    first = Background(lambda: tokens.refresh(ACCESS))
    gate.wait_arrived()
    request = tokens._request
    assert request is not None and request.telling is not None
    request.deadline = request.telling = oauth.Deadline(SHORT)  # the first keeps those it began with
    assert tokens.get() == tokens.refresh("an older one") == "s3cret-access-1"
    with pytest.raises(TokenRefreshError, match="on_refresh has not returned yet"):
        tokens.refresh("s3cret-access-1")
    assert log.text.count("on_refresh did not return within") == 1
    gate.open()
    assert first.result() == "s3cret-access-1"
    assert tokens.get() == "s3cret-access-2"  # the first was refused above
    assert len(service.forms) == 2


def test_whoever_asked_first_gets_the_new_token_though_on_refresh_hangs(
    service: TokenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    tokens = service.tokens(on_refresh=lambda new: gate.pass_through())
    monkeypatch.setattr(
        tokens, "_wait", lambda request: (gate.wait_arrived(), overdue(request), wait(request))[2]
    )
    wait = oauth.OAuthTokens._wait.__get__(tokens)

    def overdue(request: Any) -> None:
        request.deadline = request.telling = oauth.Deadline(SHORT)

    assert tokens.get() == "s3cret-access-1"
    assert oauth_threads()
    gate.open()


# -- close ---------------------------------------------------------------------------------------------------


def test_after_close_a_token_is_used_up_and_none_is_asked_for(
    service: TokenService, clock: ManualClock
) -> None:
    tokens = service.tokens(access_token=ACCESS, expires_at=clock.wall() + 30)
    tokens.close()
    tokens.close()
    assert tokens.get() == ACCESS
    clock.advance(30)
    for call in (tokens.get, lambda: tokens.refresh(ACCESS)):
        with pytest.raises(ConfigurationError, match="closed"):
            call()
    assert service.forms == []


def test_close_waits_for_the_request_under_way(service: TokenService) -> None:
    gate = held(service)
    told: list[RefreshedTokens] = []
    tokens = service.tokens(on_refresh=told.append)
    call = Background(tokens.get)
    gate.wait_arrived()
    closing = Background(lambda: tokens.close(LONG))
    eventually(lambda: tokens._closed)
    gate.open()
    closing.result()
    assert len(told) == 1
    assert call.result() == "s3cret-access-1"


def test_close_does_not_wait_for_ever(service: TokenService, log: pytest.LogCaptureFixture) -> None:
    gate = held(service)
    tokens = service.tokens()
    call = Background(tokens.get)
    gate.wait_arrived()
    tokens.close(SHORT)
    assert "it ends by its own deadline" in log.text
    gate.open()
    assert call.result() == "s3cret-access-1"


def test_nothing_is_open_and_no_thread_runs_between_requests(service: TokenService) -> None:
    before = descriptors()
    tokens = service.tokens()
    tokens.get()
    eventually(lambda: not oauth_threads())
    eventually(lambda: descriptors() <= before)


# -- forks ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_t7_a_forked_child_is_told_though_a_lock_was_held() -> None:
    script = """
        import os, signal, threading
        from llm_sessions import ConfigurationError, OAuthTokens

        tokens = OAuthTokens("id", "secret", "refresh", access_token="access")
        locked, done = threading.Event(), threading.Event()

        def hold():
            with tokens._lock:
                locked.set()
                done.wait(30)

        threading.Thread(target=hold, daemon=True).start()
        locked.wait(30)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            told = 0
            for call in (tokens.get, lambda: tokens.refresh("access"), lambda: tokens.set_refresh_token("x")):
                try:
                    call()
                except ConfigurationError as exc:
                    told += "forked" in str(exc)
            tokens.close()
            repr(tokens)
            own = OAuthTokens("id", "secret", "refresh", access_token="child")
            os._exit(0 if told == 3 and own.get() == "child" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        done.set()
        assert tokens.get() == "access"
        print("done")
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


# -- arguments and secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("client_id", ""),
        ("client_id", None),
        ("client_secret", "two\nlines"),
        ("refresh_token", 7),
        ("access_token", "two words"),
        ("expires_at", "soon"),
        ("expires_at", 1_700_000_000_000),
        ("on_refresh", "print"),
        ("url", "http://example.com/"),
        ("url", "ftp://localhost/"),
        ("http", object()),
        ("timeout", 0),
        ("timeout", (1, 2, 3)),
        ("leeway", -1),
        ("allow_insecure", 1),
    ],
)
def test_bad_arguments_are_refused(argument: str, value: Any) -> None:
    good = {"client_id": ID, "client_secret": SECRET, "refresh_token": REFRESH, "access_token": ACCESS}
    with pytest.raises(ConfigurationError) as caught:
        OAuthTokens(**{**good, argument: value})
    assert caught.value.argument == argument
    assert "s3cret" not in str(caught.value)


def test_t12_plain_http_to_others_needs_to_be_allowed() -> None:
    assert OAuthTokens(ID, SECRET, REFRESH, url="http://example.com/", allow_insecure=True)
    config = PoolConfig(allow_insecure=True)
    assert OAuthTokens(ID, SECRET, REFRESH, url="http://example.com/", config=config)
    with pytest.raises(ConfigurationError, match="unencrypted"):
        OAuthTokens(ID, SECRET, REFRESH, url="http://example.com/", config=PoolConfig())


def test_t12_with_a_config_the_secrets_go_to_its_hosts_only() -> None:
    config = PoolConfig(allowed_hosts=WEBEX_HOSTS)
    assert OAuthTokens(ID, SECRET, REFRESH, config=config)
    with pytest.raises(ConfigurationError, match=r"evil\.example is not in allowed_hosts") as caught:
        OAuthTokens(ID, SECRET, REFRESH, url="https://evil.example/token", config=config)
    assert caught.value.argument == "url"
    assert OAuthTokens(ID, SECRET, REFRESH, url="https://evil.example/token", config=PoolConfig())


def test_t12_a_redirect_takes_the_secrets_nowhere(service: TokenService) -> None:
    with TokenService() as other:
        service.answers.append(http_answer(307, b"", Location=other.url))
        with pytest.raises(TokenRefreshError, match="a redirect"):
            service.tokens().get()
        assert other.forms == []


SCRIPTS: dict[str, Any] = {
    "reset": lambda peer, sock: reset(sock),
    "mute": lambda peer, sock: peer.hold(),
    "refused": http_answer(400, {"error": "invalid_grant", "error_description": f"{REFRESH} is unknown"}),
    "half a token": http_answer(200, b'{"access_token": "s3cret-half'),
    "html": http_answer(502, f"<html>{SECRET}</html>".encode()),
    "redirect": http_answer(302, b"", Location=f"https://example.com/?token={REFRESH}"),
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("given", [False, True], ids=["own session", "given session"])
def test_t11_no_secret_in_any_error_record_or_repr(
    service: TokenService, log: pytest.LogCaptureFixture, name: str, given: bool
) -> None:
    service.answers.append(SCRIPTS[name])
    with requests.Session() as session:
        tokens = service.tokens(
            url=f"{service.url}?key=s3cret-query",
            access_token=ACCESS,
            expires_at=time.time() - 1,
            timeout=0.3 if name == "mute" else LONG,
            http=session if given else None,
        )
        with pytest.raises(TokenRefreshError) as caught:
            tokens.get()
        error = caught.value
        eventually(lambda: not oauth_threads())
    assert error.__context__ is None
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.final) == (str(error), error.final)
    ours = [record for record in log.records if record.name.startswith("llm_sessions")]
    texts = [*everything_in(error), *everything_in(copy.copy(error)), repr(tokens), str(tokens)]
    texts += [repr(vars(record)) for record in ours] + [record.getMessage() for record in ours]
    assert ours and "s3cret" not in "".join(texts)
    foreign = [record.getMessage() for record in log.records if record not in ours]
    assert not [text for text in foreign if any(one in text for one in (SECRET, REFRESH, ACCESS))]


def test_t11_a_repr_names_the_client_only() -> None:
    tokens = OAuthTokens(ID, SECRET, REFRESH, access_token=ACCESS, url=f"{URL}?key=s3cret")
    assert repr(tokens) == f"<OAuthTokens of client '{ID}' at {URL}>"
    assert "s3cret" not in repr(tokens._held) + repr(tokens._request)


# -- in a pool -----------------------------------------------------------------------------------------------

NAMES = [f"session-{number}" for number in range(20)]


@pytest.mark.parametrize("refusal", ["4401", "401", "both"])
def test_d6_twenty_refused_sessions_cost_one_refresh(
    service: TokenService,
    server: LocalServer,
    make_pool: Callable[..., ConnectionPool],
    log: pytest.LogCaptureFixture,
    refusal: str,
) -> None:
    server.tokens = {"s3cret-access-1"}
    for number, name in enumerate(NAMES):
        if refusal == "401" or (refusal == "both" and number % 2):
            server.reject(401, session=name)
    gate = held(service)
    told: list[RefreshedTokens] = []
    tokens = service.tokens(access_token=ACCESS, on_refresh=told.append)
    pool = make_pool(tokens)
    server.hold_upgrades()
    calls = [
        Background(lambda name=name: pool.connect(server.url(name), name))  # type: ignore[misc]
        for name in NAMES
    ]
    server.wait_for(lambda: len(server.connections()) == 20)  # all have the old token
    server.release_upgrades()
    gate.wait_arrived()
    waiting(20)
    gate.open()
    assert all(call.result().online for call in calls)
    assert len(service.forms) == len(told) == 1
    assert {connection.token for connection in server.live()} == {"s3cret-access-1"}
    assert "s3cret" not in "".join(repr(vars(record)) for record in log.records)


def test_d6_a_token_refused_online_is_refreshed_once(
    service: TokenService, server: LocalServer, make_pool: Callable[..., ConnectionPool]
) -> None:
    tokens = service.tokens(access_token=ACCESS)
    pool = make_pool(tokens)
    recorder = Recorder().listen(pool)
    pool.connect(server.url())
    [connection] = server.wait_live()
    server.tokens = {"s3cret-access-1"}
    connection.close(4401, "Authentication Failed")
    recorder.wait("online", 2)
    assert len(service.forms) == 1


def test_i41_a_failing_refresh_is_tried_again(
    service: TokenService, server: LocalServer, make_pool: Callable[..., ConnectionPool]
) -> None:
    server.tokens = {"s3cret-access-3"}
    service.answers += [BUSY, BUSY]
    pool = make_pool(service.tokens(access_token=ACCESS))
    assert pool.connect(server.url()).online
    assert len(service.forms) == 3
    assert len(server.connections()) == 2  # with the refused token no second time


def test_d6_a_refused_refresh_token_ends_the_session(
    service: TokenService, server: LocalServer, make_pool: Callable[..., ConnectionPool]
) -> None:
    server.tokens = {"another"}
    service.answers.append(REFUSAL)
    pool = make_pool(service.tokens(access_token=ACCESS))
    with pytest.raises(TokenRefreshError, match="not valid any more") as caught:
        pool.connect(server.url())
    assert caught.value.final
    assert len(service.forms) == len(server.connections()) == 1


def test_d6_a_service_without_another_token_ends_the_session(
    service: TokenService, server: LocalServer, make_pool: Callable[..., ConnectionPool]
) -> None:
    server.tokens = {"another"}
    service.answers.append(http_answer(200, {"access_token": ACCESS}))
    pool = make_pool(service.tokens(access_token=ACCESS))
    with pytest.raises(NotAuthorized):
        pool.connect(server.url())
    assert len(service.forms) == len(server.connections()) == 1


def test_an_expired_token_is_refreshed_before_the_first_attempt(
    service: TokenService, server: LocalServer, make_pool: Callable[..., ConnectionPool]
) -> None:
    pool = make_pool(service.tokens(access_token=ACCESS, expires_at=time.time() - 1))
    pool.connect(server.url())
    assert [connection.token for connection in server.connections()] == ["s3cret-access-1"]
    gc.collect()  # whatever requests left behind is found by the check for open descriptors


@pytest.mark.parametrize("bad", ["no answer", "no JSON", "busy"])
def test_d6_a_token_service_in_trouble_ends_no_session(
    service: TokenService, server: LocalServer, make_pool: Callable[..., ConnectionPool], bad: str
) -> None:
    answer: Any = {"no answer": lambda peer, sock: reset(sock), "no JSON": http_answer(200, b"<html>")}
    service.answers += [answer.get(bad, BUSY)] * 3
    assert make_pool(service.tokens()).connect(server.url()).online
    assert len(service.forms) == 4


@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize("given", [None, ACCESS])
def test_d6_a_final_refusal_ends_the_session_with_its_name(
    service: TokenService,
    server: LocalServer,
    make_pool: Callable[..., ConnectionPool],
    status: int,
    given: str | None,
) -> None:
    server.tokens = {"another"}
    service.answers += [http_answer(status, {"error": "invalid_grant"})] * 9
    pool = make_pool(service.tokens(access_token=given))
    with pytest.raises(TokenRefreshError) as caught:
        pool.connect(server.url(), "captions")
    assert (caught.value.final, caught.value.status, caught.value.session_id) == (True, status, "captions")
    assert str(caught.value).startswith("session 'captions': the refresh token is not valid any more")
    assert len(service.forms) == 1


# -- a service that is busy, a log that is broken ------------------------------------------------------------


def test_d24_while_the_service_asks_for_quiet_nobody_asks_it(
    service: TokenService, clock: ManualClock
) -> None:
    """Also without a good token: sessions that come one after the other must not make a request each."""
    tokens = service.tokens()
    service.answers[:] = [http_answer(429, {}, Retry_After="60")]
    with pytest.raises(TokenRefreshError) as first:
        tokens.get()
    clock.advance(20)
    with pytest.raises(TokenRefreshError) as second:
        tokens.get()
    assert (first.value.retry_after, second.value.retry_after) == (60, 40) and not second.value.final
    assert first.value is not second.value and len(service.forms) == 1
    clock.advance(40)
    assert tokens.get() and len(service.forms) == 2


def test_a_log_handler_that_raises_does_not_cost_the_rotated_token(service: TokenService) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.INFO:
                raise RuntimeError("the disk is full")

    told: list[RefreshedTokens] = []
    tokens = service.tokens(on_refresh=told.append)
    logger, broken = logging.getLogger("llm_sessions.datachannel"), Broken()
    logger.addHandler(broken)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        assert tokens.get()
    finally:
        logger.removeHandler(broken)
        logger.setLevel(level)
    assert len(told) == 1
