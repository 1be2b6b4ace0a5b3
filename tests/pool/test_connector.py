"""One attempt run: what each failure asks of it (PROTOCOL 1.5), tokens, waits, and who may get the token."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import (
    BadRequest,
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    ConnectionPool,
    Endpoint,
    Forbidden,
    LocalProtocolError,
    NotAuthorized,
    RegistrationError,
    SessionState,
    Target,
    TokenRefreshError,
    UnknownResponse,
)
from llm_sessions._sync import ThreadGroup
from llm_sessions.connection.transport import AttemptFailed
from llm_sessions.pool.attempt import Attempt
from llm_sessions.pool.machine import SessionMachine
from llm_sessions.protocol.closing import Failure
from llm_sessions.protocol.mercury import EndCause
from tests.support import (
    LONG,
    Background,
    FakeLink,
    FakeTransport,
    Gate,
    Recorder,
    eventually,
    library_threads,
)

URL = "ws://localhost/socket"
Make = Callable[..., tuple[ConnectionPool, FakeTransport]]
Step = Callable[[FakeLink], None]

ready: Step = FakeLink.become_ready


def refuse(failure: Failure, **details: Any) -> Step:
    """The attempt fails before the socket is a WebSocket."""

    def on_open(link: FakeLink) -> None:
        raise AttemptFailed(failure, "the peer said no", **details)

    return on_open


def close(code: int, reason: str = "", cause: EndCause = EndCause.PEER) -> Step:
    """The socket ends before it is ready."""
    return lambda link: link.end(code, reason, cause)


def in_turn(transport: FakeTransport, *steps: Step) -> None:
    """Let each link do the next step; the last step repeats."""
    left = list(steps)

    def on_open(link: FakeLink) -> None:
        (left.pop(0) if len(left) > 1 else left[0])(link)

    transport.on_open = on_open


class Place(Endpoint):
    """Answers with what it was given in turn (the last repeats), and remembers what it is told."""

    def __init__(self, *answers: Target | BaseException) -> None:
        self.answers = list(answers) or [Target(URL)]
        self.asked: list[int] = []
        self.told: list[tuple[Target, Exception]] = []

    def resolve(self, attempt: Any) -> Target:
        self.asked.append(attempt.number)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def rejected(self, target: Target, error: Exception) -> None:
        self.told.append((target, error))


class Tokens:
    """A provider whose `refresh` answers in turn; an exception is raised."""

    def __init__(self, *fresh: str | BaseException, current: str = "t0") -> None:
        self.current, self.fresh = current, list(fresh)
        self.rejected: list[str] = []

    def get(self) -> str:
        return self.current

    def refresh(self, rejected: str) -> str:
        self.rejected.append(rejected)
        answer = self.fresh.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        self.current = answer
        return answer


def tokens_of(transport: FakeTransport) -> list[str]:
    return [link.request.token for link in transport.links]


# -- PROTOCOL 1.5: the table ------------------------------------------------------------------------------

TABLE: list[tuple[str, Step, type[ConnectError], bool, bool]] = [
    # what happens, how, the error, whether the endpoint is told, whether it is retried
    ("network", refuse(Failure.NETWORK), ConnectError, False, True),
    ("reset", close(1006, cause=EndCause.LOST), ConnectError, False, True),
    ("aborted", close(1006, cause=EndCause.ABORTED), ConnectError, False, True),
    ("open timeout", close(1006, cause=EndCause.OPEN_TIMEOUT), ConnectError, False, True),
    ("http 5xx", refuse(Failure.BUSY, status=503), ConnectError, False, True),
    ("http 404", refuse(Failure.STALE, status=404), ConnectError, True, True),
    ("1005 without reason", close(1005), UnknownResponse, True, True),
    ("1005 with reason", close(1005, "x"), ConnectError, False, True),
    ("4400", close(4400, "bad"), BadRequest, False, False),
    ("4403", close(4403, "no"), Forbidden, False, False),
    ("http 4xx", refuse(Failure.REFUSED, status=418), RegistrationError, False, False),
    ("certificate", refuse(Failure.UNTRUSTED), ConnectError, False, False),
    ("a web page", refuse(Failure.MISPLACED, status=200), ConnectError, False, False),
    ("violation", close(1002, "mask", EndCause.VIOLATION), ConnectError, False, True),
    ("4410", close(4410, "other"), ConnectError, False, True),
    ("1000", close(1000), ConnectError, False, True),
    ("4001", close(4001), ConnectError, False, True),
]


@pytest.mark.parametrize(("what", "step", "error", "told", "retried"), TABLE, ids=[row[0] for row in TABLE])
def test_i42_what_a_failed_attempt_asks_for(
    make: Make,
    waits: list[float],
    what: str,
    step: Step,
    error: type[ConnectError],
    told: bool,
    retried: bool,
) -> None:
    pool, transport = make()
    in_turn(transport, step, ready)
    place = Place()
    if retried:
        session = pool.connect(place)
        assert session.online and len(transport.links) == 2 and place.asked == [1, 2]
        failure: Any = session.last_error
    else:
        with pytest.raises(ConnectError) as caught:
            pool.connect(place)
        failure = caught.value
        session = pool.session()
        assert session.state is SessionState.OFFLINE and len(transport.links) == 1
        assert type(session.last_error) is type(failure) and str(session.last_error) == str(failure)
    assert type(failure) is error and failure.attempts == 1
    assert [target for target, _ in place.told] == [Target(URL)] * told
    assert not told or type(place.told[0][1]) is error


def test_i42_a_close_before_ready_is_told_with_code_and_reason(make: Make) -> None:
    pool, transport = make()
    in_turn(transport, close(4403, "go away"))
    with pytest.raises(Forbidden, match="4403 'go away'") as caught:
        pool.connect(URL)
    assert (caught.value.code, caught.value.reason, caught.value.session_id) == (
        4403,
        "go away",
        pool.session().id,
    )


def test_an_http_answer_is_told_with_its_status(make: Make) -> None:
    pool, transport = make()
    in_turn(transport, refuse(Failure.REFUSED, status=418))
    with pytest.raises(ConnectError) as caught:
        pool.connect(URL)
    assert (caught.value.status, caught.value.code) == (418, None)


@pytest.mark.parametrize("step", [refuse(Failure.UNTRUSTED), refuse(Failure.MISPLACED)])
def test_a_wrong_certificate_is_retried_once_the_session_was_online(
    make: Make, waits: list[float], step: Step
) -> None:
    pool, transport = make()
    in_turn(transport, ready, step, step, ready)
    session = pool.connect(URL)
    transport.links[0].end(1006)
    eventually(lambda: session.online and len(transport.links) == 4)
    pool.disconnect()  # an explicit disconnect forgets that it was online
    in_turn(transport, step)
    with pytest.raises(ConnectError):
        pool.connect(URL)


SOURCES: list[tuple[str, BaseException, type[Exception], bool]] = [
    ("anything", ValueError("x"), ConnectError, True),
    ("exit", SystemExit(3), ConnectError, True),
    ("interrupt", KeyboardInterrupt(), ConnectError, True),
    ("configuration", ConfigurationError("device", "is no URL"), ConfigurationError, False),
    ("REST 503", RegistrationError("s", "busy", 503), RegistrationError, True),
    ("REST 429", RegistrationError("s", "slow", 429), RegistrationError, True),
    ("REST 408", RegistrationError("s", "late", 408), RegistrationError, True),
    ("REST 404", RegistrationError("s", "gone", 404), RegistrationError, False),
    ("REST 403", RegistrationError("s", "no", 403), RegistrationError, False),
    ("REST 200, no JSON", RegistrationError("s", "what", 200), RegistrationError, False),
    ("REST, unusable", RegistrationError("s", "no webSocketUrl"), RegistrationError, False),
    ("no refresh", TokenRefreshError("s", "revoked", 401, final=True), TokenRefreshError, False),
    ("no refresh now", TokenRefreshError("s", "no answer"), TokenRefreshError, True),
    ("its own ConnectError", ConnectError("s", "offline"), ConnectError, True),
    ("its own Forbidden", Forbidden("s", "no"), Forbidden, False),
    ("its own BadRequest", BadRequest("s", "no"), BadRequest, False),
]


@pytest.mark.parametrize("source", ["endpoint", "provider"])
@pytest.mark.parametrize(("what", "raised", "error", "retried"), SOURCES, ids=[row[0] for row in SOURCES])
def test_what_a_source_that_raises_asks_for(
    make: Make,
    waits: list[float],
    source: str,
    what: str,
    raised: BaseException,
    error: type[Exception],
    retried: bool,
) -> None:
    pool, transport = make(initial_max_retries=1)
    place, calls = Place(), []

    def get() -> str:
        calls.append(1)
        if source == "provider":
            raise raised
        return "t"

    if source == "endpoint":
        place.answers = [raised]
    with pytest.raises(error) as caught:
        pool.connect(place, token=get)
    assert type(caught.value) is error and transport.links == []
    assert len(place.asked) == 1 + retried
    assert raised in (pool.session().last_error, getattr(pool.session().last_error, "__cause__", None))
    assert pool.session().state is SessionState.OFFLINE
    eventually(lambda: not library_threads(), "the connector's thread did not end")


def test_a_source_is_named_when_it_fails(make: Make) -> None:
    pool, _ = make(initial_max_retries=0)
    cause = ValueError("x")
    with pytest.raises(ConnectError, match="source raised ValueError") as caught:
        pool.connect(Place(cause))
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize(
    "answer", ["wss://h", Target("http://h"), Target("ws://example.org"), Target(URL, "a b")]
)
def test_an_endpoints_bad_answer_ends_the_run(make: Make, answer: Any) -> None:
    pool, transport = make()
    place = Place(answer)
    with pytest.raises(ConfigurationError):
        pool.connect(place)
    assert place.asked == [1] and transport.links == []


def test_a_transport_that_fails_unexpectedly_ends_the_run(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pool, transport = make()
    bug = SystemError("a bug")

    def on_open(link: FakeLink) -> None:
        raise bug

    transport.on_open = on_open
    with pytest.raises(ConnectError, match="connector failed") as caught:
        pool.connect(URL)
    assert caught.value.__cause__ is bug and "this is a bug" in caplog.text
    assert pool.session()._machine._links == {}


def test_an_endpoint_whose_rejected_raises_is_logged(
    make: Make, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Place):
        def rejected(self, target: Target, error: Exception) -> None:
            raise SystemExit

    pool, transport = make()
    in_turn(transport, close(1005), ready)
    assert pool.connect(Broken()).online
    assert "rejected() raised" in caplog.text


def test_an_endpoint_is_told_nothing_of_a_target_it_never_gave(make: Make, waits: list[float]) -> None:
    pool, _ = make()
    place = Place(UnknownResponse("s", "hm"), Target(URL))
    assert pool.connect(place).online
    assert place.told == []


def test_every_attempt_asks_afresh_for_url_and_token(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    in_turn(transport, close(1006), close(1006), ready)
    numbers = iter(range(9))
    tokens = iter("abc")
    pool.connect(lambda: f"{URL}?n={next(numbers)}&clientTimestamp=1", token=lambda: next(tokens))
    assert [link.request.url.split("?")[1].split("&")[0] for link in transport.links] == ["n=0", "n=1", "n=2"]
    assert all(link.request.url.count("clientTimestamp=") == 1 for link in transport.links)
    assert tokens_of(transport) == ["Bearer a", "Bearer b", "Bearer c"]


def test_i31_a_reconnect_uses_the_sessions_own_source(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    session = pool.connect(f"{URL}?a=1&bufferStates=true")
    transport.links[0].end(1006)
    eventually(lambda: session.online and len(transport.links) == 2)
    for link in transport.links:
        query = link.request.url.split("?")[1].split("&")
        assert sorted(pair.split("=")[0] for pair in query) == sorted(
            ["a", "bufferStates", "outboundWireFormat", "aliasHttpStatus", "clientTimestamp"]
        )
    assert session.url == f"{URL}?a=1&bufferStates=true"


def test_the_request_carries_the_pools_limits(make: Make) -> None:
    pool, transport = make(
        open_timeout=3, send_timeout=4, max_message_bytes=5, ping_interval=6, pong_timeout=7
    )
    pool.connect(Place(Target(URL, "own", {"X-Key": "v"})))
    request = transport.links[0].request
    assert (request.open_timeout, request.send_timeout, request.max_message_bytes) == (3, 4, 5)
    assert (request.timing.ping_interval, request.timing.pong_timeout) == (6, 7)
    assert request.token == "Bearer own" and request.headers == {"X-Key": "v"} and request.ssl_context is None
    assert transport.links[0].name == f"{pool.session().id}#1.1"


def test_wss_gets_the_tls_context(make: Make) -> None:
    pool, transport = make()
    pool.connect("wss://example.org/")
    assert transport.links[0].request.ssl_context is pool._env.config.tls_context()


# -- waits and limits -------------------------------------------------------------------------------------


def test_i40_the_waits_of_a_run(make: Make, waits: list[float]) -> None:
    pool, transport = make(backoff_initial=1, backoff_max=32, initial_max_retries=7)
    in_turn(transport, refuse(Failure.NETWORK))
    with pytest.raises(ConnectError) as caught:
        pool.connect(URL)
    assert waits == [1, 2, 4, 8, 16, 32, 32]
    assert len(transport.links) == 8 and caught.value.attempts == 8


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_i40_n_retries_are_n_plus_1_attempts(make: Make, waits: list[float], limit: int) -> None:
    pool, transport = make(initial_max_retries=limit, max_retries=50)
    in_turn(transport, refuse(Failure.NETWORK))
    with pytest.raises(ConnectError):
        pool.connect(URL)
    assert len(transport.links) == limit + 1
    transport.links.clear()
    with pytest.raises(ConnectError):
        pool.connect(URL)  # a fresh run counts and waits afresh
    assert len(transport.links) == limit + 1 and len(waits) == 2 * limit
    assert waits[:limit] == waits[limit:]


def test_i33_limits_are_per_session_and_by_whether_it_was_online(make: Make, waits: list[float]) -> None:
    pool, transport = make(initial_max_retries=1, max_retries=3)
    a = pool.connect(URL, "a")
    in_turn(transport, refuse(Failure.NETWORK))
    with pytest.raises(ConnectError):
        pool.connect(URL, "b")
    assert len(transport.links) == 1 + 2
    recorder = Recorder().listen(a)
    transport.links[0].end(1006)
    recorder.wait("offline.permanent")
    assert len(transport.links) == 3 + 4
    with pytest.raises(ConnectError):
        pool.connect(URL, "a")  # it was online: its own limit still
    assert len(transport.links) == 7 + 4
    pool.disconnect("a")
    with pytest.raises(ConnectError):
        pool.connect(URL, "a")
    assert len(transport.links) == 11 + 2


def test_t15_a_server_that_accepts_and_closes_makes_no_storm(make: Make, waits: list[float]) -> None:
    pool, transport = make(backoff_initial=1, backoff_max=32, max_retries=None)
    in_turn(transport, *[ready] * 8, lambda link: None)
    session = pool.connect(URL)
    for number in range(8):
        eventually(lambda number=number: session.online and len(transport.links) == number + 1)  # type: ignore[misc]
        transport.links[number].end(1006)
    transport.wait_links(9)
    assert waits == [1, 2, 4, 8, 16, 32, 32]  # and none before the first reconnect


def test_waits_and_counts_start_anew_after_backoff_max_online(make: Make, waits: list[float]) -> None:
    pool, transport = make(backoff_initial=1, backoff_max=8, max_retries=2)
    now = [0.0]
    pool._env.clock = lambda: now[0]
    no = refuse(Failure.NETWORK)
    in_turn(transport, ready, no, no, ready, no, no, ready, no, no, no)
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    for links, lived in ((1, 8.0), (4, 8.0)):
        eventually(lambda links=links: session.online and len(transport.links) == links)  # type: ignore[misc]
        now[0] += lived
        transport.links[-1].end(1006)
    eventually(lambda: session.online and len(transport.links) == 7)
    assert waits == [1, 2, 1, 2]
    now[0] += 7.9  # not long enough: two failures count from before
    transport.links[-1].end(1006)
    recorder.wait("offline.permanent")
    assert waits == [1, 2, 1, 2, 4] and len(transport.links) == 8


def test_waits_of_whole_seconds_are_waits_too(make: Make, waits: list[float]) -> None:
    """Of `PoolConfig(backoff_initial=1)` ints come; they were taken for the error to give up with."""
    pool, transport = make(backoff_initial=1, backoff_max=2, jitter=False)
    in_turn(transport, refuse(Failure.NETWORK), ready)
    assert pool.connect(URL).online
    assert waits == [1]


def test_jitter_draws_between_almost_nothing_and_the_wait(make: Make, waits: list[float]) -> None:
    pool, transport = make(backoff_initial=1, backoff_max=32, jitter=True, initial_max_retries=40)
    in_turn(transport, refuse(Failure.NETWORK))
    with pytest.raises(ConnectError):
        pool.connect(URL)
    assert len(set(waits)) > 30 and all(0.1 <= wait <= 32 for wait in waits)


@pytest.mark.parametrize(
    ("header", "wait"),
    [("7", 7), ("0", 1), ("junk", 1), (None, 1), ("99999", 320), ("Sun, 06 Nov 1994 08:49:37 GMT", 1)],
)
def test_retry_after_is_honoured_and_capped(
    make: Make, waits: list[float], header: str | None, wait: int
) -> None:
    pool, transport = make(backoff_initial=1, backoff_max=32)
    in_turn(transport, refuse(Failure.BUSY, status=429, retry_after=header), ready)
    session = pool.connect(URL)
    assert waits == [wait]
    assert session.last_error.retry_after == {"junk": None, None: None, "7": 7, "99999": 320}.get(header, 0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("asked", "wait"), [(5, 5), (2.5, 2.5), (10**9, 320), (-1, 1), (True, 1), ("5", 1), (float("nan"), 1)]
)
def test_a_sources_retry_after_is_honoured_and_capped(
    make: Make, waits: list[float], asked: Any, wait: float
) -> None:
    class Later(Exception):
        retry_after = asked

    pool, _ = make(backoff_initial=1, backoff_max=32)
    pool.connect(Place(Later(), Target(URL)))
    assert waits == [wait]


def test_t0_a_wait_for_retry_after_ends_with_the_disconnect(make: Make) -> None:
    pool, transport = make(backoff_max=1000)
    in_turn(transport, refuse(Failure.BUSY, status=503, retry_after="9000"))
    call = Background(lambda: pool.connect(URL, timeout=None))
    eventually(lambda: pool.session().last_error is not None)
    pool.disconnect()
    assert isinstance(call.error(), ConnectCancelled)
    eventually(lambda: not library_threads())
    assert len(transport.links) == 1


# -- connection_failed --------------------------------------------------------------------------------------


def test_i43_connection_failed_from_the_second_failure_on(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    recorder = Recorder().listen(pool, "connection_failed", "online")
    in_turn(transport, close(4410), close(4410), close(4410), ready)
    pool.connect(URL)
    recorder.wait("online")
    assert [payload.retries for payload in recorder.payloads("connection_failed")] == [1, 2]
    assert [payload.error.code for payload in recorder.payloads("connection_failed")] == [4410, 4410]
    assert recorder.names == ["connection_failed", "connection_failed", "online"]


def test_i43_never_for_1006(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    recorder = Recorder().listen(pool, "connection_failed", "online")
    in_turn(transport, close(1006), close(1006), close(1006), close(4410), ready)
    pool.connect(URL)
    recorder.wait("online")
    assert [payload.retries for payload in recorder.payloads("connection_failed")] == [3]


def test_i43_the_count_is_of_the_run_not_of_the_session(make: Make, waits: list[float]) -> None:
    """The counter that limits retries outlives a short connection; the event's must not."""
    pool, transport = make()
    recorder = Recorder().listen(pool, "connection_failed", "online")
    in_turn(transport, close(4410), close(4410), ready, close(4410), close(4410), ready)
    pool.connect(URL)
    transport.links[2].end(1006)
    recorder.wait("online", 2)
    assert [payload.retries for payload in recorder.payloads("connection_failed")] == [1, 1]


# -- refused tokens -----------------------------------------------------------------------------------------

UNAUTHORIZED = [close(4401, "expired"), refuse(Failure.UNAUTHORIZED, status=401)]


@pytest.mark.parametrize("no", UNAUTHORIZED, ids=["4401", "401"])
def test_i41_a_refused_token_is_refreshed_once_per_failed_attempt(
    make: Make, waits: list[float], no: Step
) -> None:
    pool, transport = make(backoff_initial=1, backoff_max=32)
    in_turn(transport, no, no, ready)
    tokens, place = Tokens("t1", "t2"), Place()
    session = pool.connect(place, token=tokens)
    assert tokens_of(transport) == ["Bearer t0", "Bearer t1", "Bearer t2"]
    assert tokens.rejected == ["t0", "t1"] and place.told == []
    assert isinstance(session.last_error, NotAuthorized) and waits == [1, 2]


@pytest.mark.parametrize("no", UNAUTHORIZED, ids=["4401", "401"])
def test_i41_a_plain_string_cannot_be_refreshed(make: Make, no: Step) -> None:
    pool, transport = make()
    in_turn(transport, no, ready)
    with pytest.raises(NotAuthorized):
        pool.connect(URL)
    assert len(transport.links) == 1


@pytest.mark.parametrize("given", ["same", "Bearer same"])
def test_i41_a_provider_that_returns_the_rejected_token_ends_the_run(make: Make, given: str) -> None:
    pool, transport = make()
    in_turn(transport, close(4401), ready)
    tokens = Tokens("same", current=given)
    with pytest.raises(NotAuthorized):
        pool.connect(URL, token=tokens)
    assert tokens.rejected == ["same"] and len(transport.links) == 1


def test_i41_a_callable_is_called_again(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    in_turn(transport, close(4401), ready)
    given = iter(["old", "new", "new"])
    pool.connect(URL, token=lambda: next(given))
    assert tokens_of(transport) == ["Bearer old", "Bearer new"]
    in_turn(transport, close(4401), ready)
    with pytest.raises(NotAuthorized):
        pool.connect(URL, "other", token=lambda: "old")


@pytest.mark.parametrize("error", [ValueError("REST"), ConfigurationError("a", "b"), SystemExit(1)])
def test_i41_a_refresh_that_raises_still_retries(
    make: Make, waits: list[float], error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    pool, transport = make()
    in_turn(transport, close(4401), close(4401), ready)
    tokens = Tokens(error, "t1")
    assert pool.connect(URL, token=tokens).online
    assert tokens_of(transport) == ["Bearer t0", "Bearer t0", "Bearer t1"]
    assert "refreshing the token failed" in caplog.text


def test_i41_a_refresh_that_is_refused_for_good_ends_the_run(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    in_turn(transport, close(4401), ready)
    with pytest.raises(TokenRefreshError, match="log in again") as caught:
        pool.connect(URL, "s", token=Tokens(TokenRefreshError("", "log in again", 400, final=True)))
    assert caught.value.session_id == "s" and waits == [] and len(transport.links) == 1


@pytest.mark.parametrize(("asked", "waited"), [(7, 7), (10**6, 320), (0, 1), ("soon", 1), (-5, 1)])
def test_i41_a_refresh_that_asks_for_time_gets_it(
    make: Make, waits: list[float], asked: object, waited: float
) -> None:
    error = OSError("the token service is busy")
    error.retry_after = asked  # type: ignore[attr-defined]
    pool, transport = make(backoff_initial=1, backoff_max=32)
    in_turn(transport, close(4401), ready)
    assert pool.connect(URL, token=Tokens(error)).online
    assert waits == [waited]


def test_i41_also_for_the_token_of_a_socket_that_was_online(make: Make, waits: list[float]) -> None:
    error = OSError("the token service is busy")
    error.retry_after = 7  # type: ignore[attr-defined]
    pool, transport = make(backoff_initial=1, backoff_max=32)
    session = pool.connect(URL, token=Tokens(error))
    transport.links[0].end(4401)
    transport.wait_links(2)
    session.wait_online()
    assert waits == [7]


def test_i41_a_refresh_that_returns_nonsense_is_found_by_the_next_attempt(
    make: Make, waits: list[float]
) -> None:
    pool, transport = make()
    in_turn(transport, close(4401), ready)
    with pytest.raises(ConfigurationError) as caught:
        pool.connect(URL, token=Tokens(5))  # type: ignore[arg-type]
    assert caught.value.argument == "token"


def test_i41_an_endpoints_own_token_is_refreshed_by_the_endpoint(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    in_turn(transport, close(4401), close(4401), ready)
    tokens = Tokens()
    place = Place(Target(URL, "e0"), Target(URL, "e1"), Target(URL, "e2"))
    assert pool.connect(place, token=tokens).online
    assert tokens_of(transport) == ["Bearer e0", "Bearer e1", "Bearer e2"]
    assert [target.token for target, _ in place.told] == ["e0", "e1"] and tokens.rejected == []


def test_i41_an_endpoint_that_returns_its_rejected_token_ends_the_run(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    in_turn(transport, close(4401))
    place = Place(Target(URL, "e0"))
    with pytest.raises(NotAuthorized):
        pool.connect(place)
    assert len(transport.links) == 2 and len(place.told) == 2


def test_i41_no_provider_at_all_cannot_refresh(make: Make) -> None:
    pool, _ = make()
    pool._provider = None
    place = Place(RegistrationError("s", "who are you", 401), Target(URL, "e0"))
    with pytest.raises(RegistrationError):
        pool.connect(place)
    assert place.asked == [1]


def test_i41_a_401_over_rest_refreshes_the_token_at_hand(make: Make, waits: list[float]) -> None:
    """The endpoint used the provider's token before any was sent: that one was refused."""
    pool, transport = make()
    tokens = Tokens("t1")
    assert pool.connect(Place(RegistrationError("s", "no", 401), Target(URL)), token=tokens).online
    assert tokens.rejected == ["t0"] and tokens_of(transport) == ["Bearer t1"]


def test_i41_a_401_over_rest_with_a_plain_string_ends_the_run(make: Make, waits: list[float]) -> None:
    pool, _ = make(initial_max_retries=5)
    place = Place(RegistrationError("s", "no", 401))
    with pytest.raises(RegistrationError):
        pool.connect(place)
    assert place.asked == [1]


def test_i41_an_endpoint_that_is_refused_at_a_reconnect_gets_one_more_chance(
    make: Make, waits: list[float]
) -> None:
    """Nothing was sent in the new run: no token had been rejected twice."""
    pool, transport = make()
    place = Place(Target(URL, "e0"), RegistrationError("s", "no", 401), Target(URL, "e1"))
    session = pool.connect(place)
    transport.links[0].end(1006)
    eventually(lambda: session.online and len(transport.links) == 2)
    assert tokens_of(transport) == ["Bearer e0", "Bearer e1"] and len(place.told) == 1


def test_i41_4401_on_a_live_session_refreshes_before_the_reconnect(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    tokens = Tokens("t1")
    session = pool.connect(URL, token=tokens)
    recorder = Recorder().listen(session)
    transport.links[0].end(4401, "expired")
    recorder.wait("online")
    assert recorder.names == ["offline", "offline.transient", "online"]
    assert tokens.rejected == ["t0"] and tokens_of(transport) == ["Bearer t0", "Bearer t1"]


def test_i41_4401_on_a_live_session_with_a_plain_string_ends_it(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    transport.links[0].end(4401, "expired")
    (payload,) = recorder.wait("offline.permanent")
    assert recorder.names == ["offline", "offline.transient", "offline.permanent"]
    assert payload.code == 4401 and isinstance(session.last_error, NotAuthorized)
    assert session.last_error.__cause__.code == 4401  # type: ignore[union-attr]
    assert len(transport.links) == 1


def test_i41_4401_on_a_live_session_of_an_endpoint_with_own_token(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    place = Place(Target(URL, "e0"), Target(URL, "e1"))
    session = pool.connect(place)
    transport.links[0].end(4401)
    eventually(lambda: session.online and len(transport.links) == 2)
    assert [target.token for target, _ in place.told] == ["e0"]


def test_d7_three_short_lives_in_a_row_are_told_to_the_endpoint(make: Make, waits: list[float]) -> None:
    pool, transport = make(max_retries=None)
    now = [0.0]
    pool._env.clock = lambda: now[0]
    place = Place()
    session = pool.connect(place)
    for number, lived in enumerate([0.5, 0.5, 1.0, 0.5, 0.5, 0.5, 0.5], 1):
        eventually(lambda number=number: session.online and len(transport.links) == number)  # type: ignore[misc]
        assert len(place.told) == (number == 7)
        now[0] += lived
        transport.links[-1].end(1006, "short")
    eventually(lambda: session.online and len(transport.links) == 8)
    assert len(place.told) == 1 and place.told[0][0] == Target(URL)
    assert "short" in str(place.told[0][1])


# -- hosts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["wss://evil.org/", "wss://example.org.evil.org/", "wss://xexample.org/"])
def test_t12_only_allowed_hosts_get_the_token(make: Make, url: str) -> None:
    pool, transport = make(allowed_hosts=["example.org", "*.example.org"])
    for given in (url, lambda: url, Place(Target(url))):
        with pytest.raises(ConfigurationError) as caught:
            pool.connect(given)
        assert caught.value.argument == "url" and "allowed_hosts" in str(caught.value)
    assert transport.links == []


def test_t12_allowed_hosts_compare_in_lower_case(make: Make) -> None:
    pool, transport = make(allowed_hosts=["Example.org", "*.EXAMPLE.org"])
    pool.connect("wss://EXAMPLE.org/", "a")
    pool.connect(lambda: "wss://Deep.Example.ORG/", "b")
    assert len(transport.links) == 2


def test_t12_plain_ws_to_other_hosts_must_be_allowed(make: Make) -> None:
    pool, transport = make()
    for given in ("ws://example.org/", lambda: "ws://example.org/"):
        with pytest.raises(ConfigurationError, match="allow_insecure"):
            pool.connect(given)
    assert transport.links == []
    pool, transport = make(allow_insecure=True)
    pool.connect("ws://example.org/")
    assert len(transport.links) == 1


def test_no_token_at_all_ends_the_run(make: Make) -> None:
    pool, transport = make()
    pool._env.provider = None
    with pytest.raises(ConfigurationError) as caught:
        pool.connect(Place())
    assert caught.value.argument == "token" and transport.links == []


# -- cancelled ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["returns", "raises"])
@pytest.mark.parametrize("where", ["resolve", "get", "refresh", "rejected"])
def test_t0_i12_i14_a_run_that_is_cancelled_in_a_source_opens_and_stores_nothing(
    make: Make, where: str, outcome: str
) -> None:
    pool, transport = make()
    gate = Gate()

    def stop() -> None:
        gate.pass_through()
        if outcome == "raises":
            raise ValueError("too late")

    class Slow(Place, Tokens):
        def resolve(self, attempt: Any) -> Target:
            if where == "resolve":
                stop()
            return Target(URL, "own" if where == "rejected" else None)

        def get(self) -> str:
            if where == "get":
                stop()
            return "t"

        def refresh(self, rejected: str) -> str:
            stop()
            return "fresh"

        def rejected(self, target: Target, error: Exception) -> None:  # type: ignore[override]
            stop()

    slow = Slow()
    if where in ("refresh", "rejected"):
        in_turn(transport, close(4401))
    call = Background(lambda: pool.connect(slow, token=slow))
    gate.wait_arrived()
    before = len(transport.links)
    started = time.monotonic()
    pool.disconnect_all()
    assert time.monotonic() - started < 1
    assert isinstance(call.error(), ConnectCancelled)
    session = pool.session()
    assert session.state is SessionState.IDLE
    transport.on_open = ready
    assert pool.connect(URL) is session and session.online  # at once, while the old one is still stuck
    error = session.last_error
    gate.open()
    eventually(lambda: not any("connector" in thread.name for thread in library_threads()))
    assert session.online and session.url == URL and session.last_error is error
    assert len(transport.links) == before + 1


def test_t0_a_run_that_is_cancelled_before_its_link_is_adopted_opens_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, transport = make()
    gate, adopt = Gate(), SessionMachine.adopt

    def slow(self: SessionMachine, attempt: Attempt, link: Any) -> bool:
        gate.pass_through()
        return adopt(self, attempt, link)

    monkeypatch.setattr(SessionMachine, "adopt", slow)
    opened: list[FakeLink] = []
    transport.on_open = opened.append
    call = Background(lambda: pool.connect(URL))
    gate.wait_arrived()
    pool.disconnect()
    gate.open()
    assert isinstance(call.error(), ConnectCancelled)
    eventually(lambda: not library_threads())
    assert opened == []


def test_i12_a_backoff_wait_ends_with_the_disconnect(make: Make) -> None:
    pool, transport = make(backoff_initial=3600, backoff_max=3600)
    in_turn(transport, refuse(Failure.NETWORK))
    calls = [Background(lambda name=name: pool.connect(URL, name)) for name in "ab"]  # type: ignore[misc]
    eventually(lambda: all(pool.session(name).last_error for name in "ab"))
    pool.disconnect_all()
    assert all(isinstance(call.error(), ConnectCancelled) for call in calls)
    eventually(lambda: not library_threads())
    assert len(transport.links) == 2


def test_a_thread_that_cannot_start_settles_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = make()
    cause = RuntimeError("can't start new thread")

    def spawn(self: ThreadGroup, target: object, name: str) -> threading.Thread:
        raise cause

    with monkeypatch.context() as broken:
        broken.setattr(ThreadGroup, "spawn", spawn)
        with pytest.raises(ConnectError, match="cannot start") as caught:
            pool.connect(URL, timeout=None)
    assert caught.value.__cause__ is cause
    assert pool.session().state is SessionState.OFFLINE
    assert pool.connect(URL).online


@pytest.mark.parametrize(
    "call",
    [
        lambda pool: pool.connect(),
        lambda pool: pool.wait_online(),
        lambda pool: pool.disconnect(),
        lambda pool: pool.disconnect_all(),
        lambda pool: pool.session().wait_closed(),
    ],
)
@pytest.mark.parametrize("where", ["resolve", "get", "refresh", "rejected"])
def test_own_connector_must_not_wait_for_itself(
    make: Make, waits: list[float], where: str, call: Callable[[ConnectionPool], object]
) -> None:
    pool, transport = make()
    caught: list[Exception] = []

    def attempt_it() -> None:
        try:
            call(pool)
        except LocalProtocolError as exc:
            caught.append(exc)

    class Nosy(Place, Tokens):
        def resolve(self, attempt: Any) -> Target:
            if where == "resolve":
                attempt_it()
            return Target(URL, str(attempt.number) if where == "rejected" else None)

        def get(self) -> str:
            if where == "get":
                attempt_it()
            return "t"

        def refresh(self, rejected: str) -> str:
            attempt_it()
            return "fresh"

        def rejected(self, target: Target, error: Exception) -> None:  # type: ignore[override]
            attempt_it()

    if where in ("refresh", "rejected"):
        in_turn(transport, close(4401), ready)
    nosy = Nosy()
    assert pool.connect(nosy, token=nosy).online
    assert len(caught) == 1 and "itself" in str(caught[0])


def test_another_sessions_connector_may_wait(make: Make) -> None:
    pool, _ = make()

    def get() -> str:
        pool.connect(URL, "other")
        pool.disconnect("other")
        return "t"

    assert pool.connect(URL, token=get).online


def test_t2_a_token_provider_may_close_the_pool(make: Make) -> None:
    pool, transport = make()

    def get() -> str:
        pool.close()
        return "t"

    error = Background(lambda: pool.connect(URL, token=get, timeout=LONG)).error()
    assert "closed" in str(error)
    eventually(lambda: not library_threads())
    assert transport.links == []


class NoTokens(Tokens):
    """A provider that happens to be false."""

    def __len__(self) -> int:
        return 0


def test_t11_a_provider_that_is_false_is_a_provider(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL, token=NoTokens(current="mine"))
    session.disconnect()
    pool.connect()
    assert tokens_of(transport) == ["Bearer mine", "Bearer mine"]


def test_i41_the_next_attempt_sends_what_the_refresh_returned(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    tokens = Tokens("new")
    tokens.refresh = lambda rejected: "new"  # type: ignore[method-assign]  # and get() goes on with the old
    in_turn(transport, close(4401), ready)
    assert pool.connect(URL, token=tokens).online
    assert tokens_of(transport) == ["Bearer t0", "Bearer new"]


@pytest.mark.parametrize("answer", [None, "new\n", 5, ""])
def test_a_bad_answer_of_a_source_ends_no_session_that_was_online(
    make: Make, waits: list[float], answer: Any
) -> None:
    pool, transport = make()
    answers: list[Any] = ["good", answer, "good"]
    session = pool.connect(URL, token=lambda: answers.pop(0))
    transport.links[0].end(1006)
    transport.wait_links(2)
    assert session.wait_online(LONG).online and answers == []
    error = session.last_error
    assert isinstance(error, ConnectError) and isinstance(error.__cause__, ConfigurationError)
    assert "new\n" not in str(error)


def test_a_status_that_is_no_number_is_no_bug_of_ours(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    pool, _ = make()

    class Odd(Endpoint):
        def resolve(self, attempt: Any) -> Target:
            raise RegistrationError(attempt.session_id, "no", "503")  # type: ignore[arg-type]

    with pytest.raises(RegistrationError):
        pool.connect(Odd())
    assert "bug" not in caplog.text


def test_i41_a_401_over_rest_after_a_refused_socket_is_about_the_newest_token(
    make: Make, waits: list[float]
) -> None:
    pool, transport = make()
    tokens = Tokens("t1", "t2")
    in_turn(transport, close(4401), ready)
    place = Place(Target(URL), RegistrationError("s", "no", 401), Target(URL))
    assert pool.connect(place, token=tokens).online
    assert tokens.rejected == ["t0", "t1"]
