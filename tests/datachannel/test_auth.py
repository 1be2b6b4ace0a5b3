"""The header of a data channel token: expiry before a request, refusal after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import responses

from llm_sessions import ConnectCancelled, RegistrationError, TokenRefreshError
from llm_sessions.datachannel.auth import HEADER, REFUSAL_WAIT, DataChannelAuth, _less
from llm_sessions.datachannel.tokens import TokenStore
from llm_sessions.testing.server import make_token
from tests.datachannel.service import http_answer
from tests.peers import Peer
from tests.support import LONG, Background, Gate

URL = "https://service.example/datachannel/1?query=s3cret"
GOOD, OLD = make_token(), make_token(expires_in=-10)


class Waits:
    """Takes the place of the wait, and keeps for how long it was asked to."""

    def __init__(self, cancel_at: int = 0) -> None:
        self.asked: list[float] = []
        self._cancel_at = cancel_at

    def __call__(self, seconds: float) -> bool:
        self.asked.append(seconds)
        return len(self.asked) == self._cancel_at


@pytest.fixture
def store() -> TokenStore:
    store = TokenStore()
    store.set("default", GOOD)
    return store


@pytest.fixture
def service() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as service:
        yield service


def handler(*tokens: object) -> Callable[[], str]:
    """A refresh handler that returns or raises these, one after the other."""
    rest = list(tokens)

    def give() -> str:
        one = rest.pop(0)
        if isinstance(one, Exception):
            raise one
        return one  # type: ignore[return-value]

    return give


def post(store: TokenStore, waits: Callable[[float], bool], token: str = GOOD, **options: Any) -> Any:
    _, epoch = store.read("default")
    auth = DataChannelAuth(store, "default", token, epoch, wait=waits, timeout=LONG)
    with requests.Session() as session:
        return session.post(URL, json={"deviceUrl": "d"}, auth=auth, **options)


def sent(service: responses.RequestsMock) -> list[str]:
    return [call.request.headers[HEADER] for call in service.calls]


def test_a_good_token_is_sent_and_a_good_answer_is_the_end(
    store: TokenStore, service: responses.RequestsMock
) -> None:
    service.post(URL, json={})
    waits = Waits()
    assert post(store, waits).status_code == 200
    assert sent(service) == [GOOD] and waits.asked == []


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_other_refusals_are_not_about_the_token(
    store: TokenStore, service: responses.RequestsMock, status: int
) -> None:
    service.post(URL, status=status)
    assert post(store, Waits()).status_code == status
    assert len(service.calls) == 1


# -- before the request --------------------------------------------------------------------------------------


def test_an_expired_token_is_refreshed_first(store: TokenStore, service: responses.RequestsMock) -> None:
    service.post(URL, json={})
    store.set("default", OLD)
    store.set_refresh_handler(handler("new"))
    post(store, Waits(), OLD)
    assert sent(service) == ["new"] and store.get("default") == "new"


def test_i58_if_that_fails_the_old_one_is_sent_and_it_is_logged(
    store: TokenStore, service: responses.RequestsMock, caplog: pytest.LogCaptureFixture
) -> None:
    service.post(URL, json={})
    store.set("default", OLD)
    store.set_refresh_handler(handler(RuntimeError("no")))
    with caplog.at_level(logging.WARNING):
        assert post(store, Waits(), OLD).status_code == 200
    assert sent(service) == [OLD]
    assert "sent all the same" in caplog.text and OLD not in caplog.text


@pytest.mark.parametrize("new", ["new", RuntimeError("no")])
def test_i48_who_is_given_up_during_that_refresh_sends_nothing(
    store: TokenStore, service: responses.RequestsMock, new: object
) -> None:
    service.post(URL, json={})
    store.set("default", OLD)
    store.set_refresh_handler(handler(new))
    with pytest.raises(ConnectCancelled):
        post(store, Waits(cancel_at=1), OLD)
    assert len(service.calls) == 0


def test_a_token_that_was_just_refreshed_is_not_looked_at_again(
    store: TokenStore, service: responses.RequestsMock
) -> None:
    """Neither before the first request nor before the second: two refreshes, though all three expired."""
    service.post(URL, status=401)
    service.post(URL, json={})
    newer, newest = make_token(expires_in=-9), make_token(expires_in=-8)
    store.set("default", OLD)
    store.set_refresh_handler(handler(newer, newest))
    assert post(store, Waits(), OLD).status_code == 200
    assert sent(service) == [newer, newest]


# -- after a refusal -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_i60_a_refused_token_is_refreshed_after_two_seconds_and_sent_once_more(
    store: TokenStore, service: responses.RequestsMock, status: int
) -> None:
    service.post(URL, status=status)
    service.post(URL, json={"binding": "b"})
    store.set_refresh_handler(handler("new"))
    waits = Waits()
    response = post(store, waits)
    assert response.json() == {"binding": "b"}
    assert [one.status_code for one in response.history] == [status]
    assert sent(service) == [GOOD, "new"]
    assert waits.asked[0] == REFUSAL_WAIT == 2.0 and sum(waits.asked) == 2.0
    bodies = [call.request.body for call in service.calls]
    assert bodies[0] == bodies[1] == b'{"deviceUrl": "d"}'


@pytest.mark.parametrize("status", [401, 403])
def test_i60_two_sends_at_most(store: TokenStore, service: responses.RequestsMock, status: int) -> None:
    service.post(URL, status=status)
    store.set_refresh_handler(handler("new", "newer"))
    waits = Waits()
    assert post(store, waits).status_code == status
    assert sent(service) == [GOOD, "new"] and sum(waits.asked) == 2.0
    assert store.get("default") == "new"


def test_i59_each_request_has_its_own_budget(store: TokenStore, service: responses.RequestsMock) -> None:
    """Two are refused at once. One refreshes, the other takes what that got, and both are sent again."""
    accepted = {"new"}
    service.add_callback(
        responses.POST, URL, lambda request: (200 if request.headers[HEADER] in accepted else 401, {}, "{}")
    )
    calls, gate = list[int](), Gate()

    def refresh() -> str:
        calls.append(1)
        gate.pass_through()
        return "new"

    store.set_refresh_handler(refresh)
    both = [Background(lambda: post(store, Waits())) for _ in range(2)]
    gate.wait_arrived()
    gate.open()
    assert [one.result().status_code for one in both] == [200, 200]
    assert sorted(sent(service)) == sorted([GOOD, GOOD, "new", "new"])
    assert calls == [1]


def test_i59_a_refusal_does_not_use_up_the_next_requests_budget(
    store: TokenStore, service: responses.RequestsMock
) -> None:
    for status in (401, 200, 401, 200):
        service.post(URL, status=status)
    second, third = make_token(), make_token()
    store.set_refresh_handler(handler(second, third))
    assert post(store, Waits()).status_code == 200
    assert post(store, Waits(), second).status_code == 200
    assert sent(service) == [GOOD, second, second, third]


@pytest.mark.parametrize("cancel_at", [1, 2])
def test_i48_who_is_given_up_sends_nothing_more(
    store: TokenStore, service: responses.RequestsMock, cancel_at: int
) -> None:
    """In the wait, and after the refresh."""
    service.post(URL, status=401, json={"message": "no"})
    store.set_refresh_handler(handler("new"))
    waits = Waits(cancel_at)
    assert post(store, waits).status_code == 401
    assert sent(service) == [GOOD] and len(waits.asked) == cancel_at
    assert store.get("default") == (GOOD if cancel_at == 1 else "new")


@pytest.mark.parametrize(
    ("refresh", "status", "kind"),
    [
        (None, 401, RegistrationError),
        (RegistrationError("default", "refused", 401), 401, RegistrationError),
        (RuntimeError("passing"), 401, TokenRefreshError),
        (None, 403, TokenRefreshError),
        (RegistrationError("default", "refused", 401), 403, TokenRefreshError),
        (RuntimeError("passing"), 403, TokenRefreshError),
    ],
)
def test_i58_a_refusal_without_a_refresh_says_both(
    store: TokenStore,
    service: responses.RequestsMock,
    refresh: Exception | None,
    status: int,
    kind: type[Exception],
) -> None:
    """A 401 that is probably about the access token is no TokenRefreshError: the pool refreshes that one."""
    service.post(URL, status=status)
    if refresh is not None:
        store.set_refresh_handler(handler(refresh))
    with pytest.raises(
        RegistrationError, match=f"the data channel token was refused with {status}: "
    ) as caught:
        post(store, Waits())
    error = caught.value
    assert type(error) is kind and isinstance(error.__cause__, TokenRefreshError)
    assert (error.session_id, error.status) == ("default", status)
    assert error.url == "https://service.example/datachannel/1" and error.timing is not None
    assert getattr(error, "final", refresh is None) is (refresh is None)
    assert sent(service) == [GOOD]


def test_i61_a_clear_after_the_request_was_sent_ends_it(
    store: TokenStore, service: responses.RequestsMock
) -> None:
    service.post(URL, status=401)
    store.set_refresh_handler(handler("new"))

    def wait(seconds: float) -> bool:
        store.clear("default")
        return False

    with pytest.raises(TokenRefreshError, match="cleared meanwhile"):
        post(store, wait)
    assert sent(service) == [GOOD] and store.get("default") is None


# -- on real sockets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["answered", "given up", "no refresh"])
def test_the_refused_answer_is_not_read_and_its_connection_not_left_open(
    store: TokenStore, outcome: str
) -> None:
    """Its body would never end."""
    heads: list[bytes] = []

    def serve(peer: Peer, sock: Any) -> None:
        heads.append(sock.recv(65536))
        if len(heads) == 1:
            sock.sendall(b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            while sock.recv(65536):
                pass  # until the client closes it
        else:
            sock.sendall(http_answer(200, {"a": 1}))

    if outcome == "answered":
        store.set_refresh_handler(handler("new"))
    with Peer(serve) as peer, requests.Session() as session:
        auth = DataChannelAuth(store, "default", GOOD, 0, wait=Waits(1 if outcome == "given up" else 0))
        asking = lambda: session.post(  # noqa: E731
            f"http://127.0.0.1:{peer.port}/", data=b"x", auth=auth, stream=True, timeout=(LONG, LONG)
        )
        if outcome == "no refresh":
            with pytest.raises(RegistrationError):
                asking()
        else:
            with asking() as response:
                assert response.content == (b'{"a": 1}' if outcome == "answered" else b"")
    assert len(heads) == (2 if outcome == "answered" else 1)


def test_the_second_request_has_what_time_is_left_of_the_first(
    store: TokenStore, service: responses.RequestsMock
) -> None:
    timeouts: list[tuple[float, float]] = []

    def answer(request: Any) -> tuple[int, dict[str, str], str]:
        timeouts.append(request.req_kwargs["timeout"])
        return 401 if len(timeouts) == 1 else 200, {}, "{}"

    service.add_callback(responses.POST, URL, answer)
    store.set_refresh_handler(handler("new"))
    assert post(store, Waits(), timeout=(LONG, 2 * LONG)).status_code == 200
    first, second = timeouts
    assert first == (LONG, 2 * LONG)
    assert 0 < second[0] < LONG and second[1] == pytest.approx(second[0] + LONG)


@pytest.mark.parametrize(
    ("timeout", "left"),
    [(None, None), (5, 2), (3.5, 0.5), (1, 0.001), ((5, None), (2, None)), ((9, 2), (6, 0.001))],
)
def test_what_is_left_of_a_timeout(timeout: object, left: object) -> None:
    assert _less(timeout, 3) == left
