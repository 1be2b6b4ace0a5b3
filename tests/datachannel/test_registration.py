"""One registration: what is asked, what an answer must have, and what is left when nobody wants it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import responses

from llm_sessions import (
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    RegistrationError,
    StaticToken,
    TokenRefreshError,
)
from llm_sessions.datachannel.auth import HEADER
from llm_sessions.datachannel.registration import Registrar, Registration, subscribing_url
from llm_sessions.datachannel.rest import RestClient
from llm_sessions.datachannel.tokens import TokenStore
from llm_sessions.testing.server import make_token

LOCUS = "https://locus.example/locus/1"
CHANNEL = "https://llm.example/datachannel/1"
SOCKET = "wss://socket.example/s?a=b"
DEVICE = "https://wdm.example/devices/1"
GOOD, OLD = make_token(), make_token(expires_in=-10)


class Asking:
    """An attempt that a test can cancel."""

    session_id, number = "default", 1

    def __init__(self) -> None:
        self.cancelled = False
        self.waits: list[float] = []

    def wait_cancelled(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return self.cancelled


@pytest.fixture
def service() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as service:
        yield service


@pytest.fixture
def registrar() -> Registrar:
    return Registrar(RestClient(StaticToken("access")), TokenStore(), lambda attempt: DEVICE, lambda: True)


def registration(registrar: Registrar, **changes: Any) -> Registration:
    return Registration(
        **{"registrar": registrar, "session_id": "default", "locus_url": LOCUS, "datachannel_url": CHANNEL}
        | changes
    )


def register(registrar: Registrar, attempt: Asking | None = None) -> Any:
    return registration(registrar).resolve(attempt or Asking())


def good(service: responses.RequestsMock, **body: object) -> None:
    service.post(CHANNEL, json={"webSocketUrl": SOCKET, "binding": "b1"} | body)


def headers(service: responses.RequestsMock) -> list[str | None]:
    return [call.request.headers.get(HEADER) for call in service.calls]


# -- what is asked and answered ------------------------------------------------------------------------------


def test_what_goes_out_and_what_comes_back(registrar: Registrar, service: responses.RequestsMock) -> None:
    good(service)
    target = register(registrar)
    [call] = service.calls
    assert json.loads(call.request.body) == {"deviceUrl": DEVICE}
    assert call.request.headers["Authorization"] == "Bearer access"
    assert target.url == SOCKET + "&subscriptionAwareSubchannels=transcription"
    assert (target.web_socket_url, target.binding, target.subscribing) == (SOCKET, "b1", True)
    assert target.register_seconds >= 0 and target.token is None
    assert target.registration == registration(registrar)


@pytest.mark.parametrize("toggle", [True, False])
@pytest.mark.parametrize("token", [GOOD, None])
def test_i45_the_header_goes_out_if_the_toggle_is_on_and_there_is_a_token(
    registrar: Registrar, service: responses.RequestsMock, toggle: bool, token: str | None
) -> None:
    good(service)
    registrar.wants_tokens = lambda: toggle
    if token is not None:
        registrar.tokens.set("default", token)
    target = register(registrar)
    assert headers(service) == [GOOD if toggle and token else None]
    assert ("subscriptionAwareSubchannels" in target.url) is target.subscribing is toggle


@pytest.mark.parametrize("first", [True, False])
def test_i52_one_decision_is_for_the_header_and_the_query(
    registrar: Registrar, service: responses.RequestsMock, first: bool
) -> None:
    toggle, asked = [first], []

    def wants_tokens() -> bool:
        asked.append(toggle[0])
        return toggle[0]

    def answer(request: Any) -> tuple[int, dict[str, str], str]:
        toggle[0] = not first
        return 200, {}, json.dumps({"webSocketUrl": SOCKET, "binding": "b1"})

    service.add_callback(responses.POST, CHANNEL, answer)
    registrar.tokens.set("default", GOOD)
    registrar.wants_tokens = wants_tokens
    target = register(registrar)
    assert asked == [first]
    assert headers(service) == [GOOD if first else None]
    assert target.subscribing is first and ("subscriptionAware" in target.url) is first


@pytest.mark.parametrize(
    ("url", "made"),
    [
        ("wss://h/p", "wss://h/p?subscriptionAwareSubchannels=transcription"),
        ("wss://h/p?", "wss://h/p?subscriptionAwareSubchannels=transcription"),
        ("wss://h/p?a=%20&b", "wss://h/p?a=%20&b&subscriptionAwareSubchannels=transcription"),
        (
            "wss://h/p?subscriptionAwareSubchannels=a&x=1&subscriptionAware%53ubchannels=b",
            "wss://h/p?x=1&subscriptionAwareSubchannels=transcription",
        ),
    ],
)
def test_i24_the_url_says_once_that_its_client_subscribes(url: str, made: str) -> None:
    assert subscribing_url(url) == made == subscribing_url(made)


BAD_BODIES = {
    "{}": {},
    "no binding": {"webSocketUrl": SOCKET},
    "empty binding": {"webSocketUrl": SOCKET, "binding": ""},
    "binding of another kind": {"webSocketUrl": SOCKET, "binding": 7},
    "no webSocketUrl": {"binding": "b"},
    "webSocketUrl of another kind": {"webSocketUrl": [SOCKET], "binding": "b"},
    "not a socket": {"webSocketUrl": "https://socket.example/", "binding": "b"},
    "in the clear": {"webSocketUrl": "ws://socket.example/", "binding": "b"},
    "not JSON": b"<html>sign in</html>",
    "a list": [SOCKET, "b"],
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES)
def test_i51_an_answer_that_cannot_be_used_is_a_clear_error_with_the_timing(
    registrar: Registrar, service: responses.RequestsMock, body: Any
) -> None:
    known = {"body": body} if isinstance(body, bytes) else {"json": body}
    service.post(f"{CHANNEL}?key=s3cret", **known)
    asked = registration(registrar, datachannel_url=f"{CHANNEL}?key=s3cret")
    with pytest.raises(RegistrationError) as caught:
        asked.resolve(Asking())
    error = caught.value
    assert (error.session_id, error.status, error.url) == ("default", 200, CHANNEL)
    assert error.timing is not None and error.timing >= 0
    assert "s3cret" not in f"{error} {error!r} {asked} {asked!r}"


@pytest.mark.parametrize(
    ("name", "said"), [("webSocketUrl", "without a webSocketUrl"), ("binding", "without a binding")]
)
def test_i51_it_says_what_is_missing(
    registrar: Registrar, service: responses.RequestsMock, name: str, said: str
) -> None:
    body = {"webSocketUrl": SOCKET, "binding": "b"}
    del body[name]
    service.post(CHANNEL, json=body)
    with pytest.raises(RegistrationError, match=said):
        register(registrar)


def test_t12_a_socket_on_a_host_that_may_not_get_the_token_is_refused(
    registrar: Registrar, service: responses.RequestsMock
) -> None:
    good(service)
    registrar.rest = RestClient(StaticToken("access"), allowed_hosts=["llm.example", "*.webex.com"])
    with pytest.raises(RegistrationError, match=r"socket\.example is not in allowed_hosts"):
        register(registrar)


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0)])
def test_d24_a_busy_service_says_when_to_come_back(
    registrar: Registrar, service: responses.RequestsMock, value: str, seconds: float
) -> None:
    service.post(CHANNEL, status=429, headers={"Retry-After": value})
    with pytest.raises(RegistrationError) as caught:
        register(registrar)
    assert (caught.value.status, caught.value.retry_after) == (429, seconds)


def test_d24_no_answer_is_a_passing_fault(registrar: Registrar, service: responses.RequestsMock) -> None:
    service.post(CHANNEL, body=requests.ConnectionError("reset"))
    with pytest.raises(ConnectError) as caught:
        register(registrar)
    assert not isinstance(caught.value, RegistrationError)


# -- tokens --------------------------------------------------------------------------------------------------


def test_i54_cache_before_fetch(registrar: Registrar, service: responses.RequestsMock) -> None:
    good(service)
    registrar.tokens.set_refresh_handler(lambda: "fetched")
    registrar.tokens.set("default", GOOD)
    register(registrar)
    registrar.tokens.clear("default")
    register(registrar)
    assert headers(service) == [GOOD, "fetched"]
    assert registrar.tokens.get("default") == "fetched"


def test_i54_if_there_is_none_to_be_had_it_registers_without(
    registrar: Registrar, service: responses.RequestsMock, caplog: pytest.LogCaptureFixture
) -> None:
    good(service)
    registrar.tokens.set_refresh_handler(lambda: "")
    with caplog.at_level(logging.WARNING):
        assert register(registrar).binding == "b1"
    assert headers(service) == [None] and "without a data channel token" in caplog.text


def test_i45_with_the_toggle_off_no_token_is_fetched(
    registrar: Registrar, service: responses.RequestsMock
) -> None:
    good(service)
    registrar.wants_tokens = lambda: False
    registrar.tokens.set_refresh_handler(lambda: pytest.fail("it was asked"))
    register(registrar)
    assert headers(service) == [None]


def test_i56_the_session_decides_whose_token_and_whose_refresh(
    registrar: Registrar, service: responses.RequestsMock
) -> None:
    service.post(CHANNEL, status=401)
    good(service)
    registrar.tokens.set("default", GOOD)
    registrar.tokens.set("practice", "of-the-practice-session")
    registrar.tokens.set_refresh_handler(lambda: "new")
    registrar.tokens.set_refresh_handler(lambda: pytest.fail("the wrong one"), "practice")
    attempt = Asking()
    register(registrar, attempt)
    assert headers(service) == [GOOD, "new"] and sum(attempt.waits) == 2.0
    assert registrar.tokens.get("practice") == "of-the-practice-session"


@pytest.mark.parametrize("status", [401, 403])
def test_i60_refused_twice_it_says_so_with_the_original(
    registrar: Registrar, service: responses.RequestsMock, status: int
) -> None:
    service.post(CHANNEL, status=status, json={"message": "not you"})
    registrar.tokens.set("default", GOOD)
    registrar.tokens.set_refresh_handler(lambda: "new")
    with pytest.raises(
        RegistrationError, match=r"not you.*refused again with a new data channel token"
    ) as caught:
        register(registrar)
    error = caught.value
    assert (error.status, error.url) == (status, CHANNEL) and error.timing is not None
    assert type(error.__cause__) is RegistrationError and error.__cause__.status == status
    assert headers(service) == [GOOD, "new"]


def test_i60_a_401_without_the_header_is_the_access_tokens_business(
    registrar: Registrar, service: responses.RequestsMock
) -> None:
    service.post(CHANNEL, status=401)
    registrar.tokens.set("practice", GOOD)
    attempt = Asking()
    with pytest.raises(RegistrationError) as caught:
        register(registrar, attempt)
    assert type(caught.value) is RegistrationError and caught.value.status == 401
    assert len(service.calls) == 1 and attempt.waits == []


def test_i58_a_refused_token_that_cannot_be_refreshed(
    registrar: Registrar, service: responses.RequestsMock
) -> None:
    service.post(CHANNEL, status=403)
    registrar.tokens.set("default", GOOD)
    with pytest.raises(TokenRefreshError, match="no refresh handler") as caught:
        register(registrar)
    assert caught.value.final and headers(service) == [GOOD]


# -- nobody wants it any more --------------------------------------------------------------------------------

Step = Callable[[Callable[[], None], Registrar, responses.RequestsMock], None]


def at_the_toggle(cancel: Callable[[], None], registrar: Registrar, service: responses.RequestsMock) -> None:
    registrar.wants_tokens = lambda: cancel() is None


def at_the_device(cancel: Callable[[], None], registrar: Registrar, service: responses.RequestsMock) -> None:
    def device_url(attempt: object) -> str:
        cancel()
        return DEVICE

    registrar.device_url = device_url


def at_the_fetch(cancel: Callable[[], None], registrar: Registrar, service: responses.RequestsMock) -> None:
    def fetch() -> str:
        cancel()
        return GOOD

    registrar.tokens.clear("default")
    registrar.tokens.set_refresh_handler(fetch)


def at_the_post(cancel: Callable[[], None], registrar: Registrar, service: responses.RequestsMock) -> None:
    def answer(request: Any) -> tuple[int, dict[str, str], str]:
        cancel()
        return 200, {}, json.dumps({"webSocketUrl": SOCKET, "binding": "late"})

    service.replace(responses.CallbackResponse(responses.POST, CHANNEL, callback=answer))


@pytest.mark.parametrize(
    ("step", "posts"), [(at_the_toggle, 0), (at_the_device, 0), (at_the_fetch, 0), (at_the_post, 1)]
)
def test_i48_cancelled_at_each_step_nothing_more_is_sent_or_returned(
    registrar: Registrar, service: responses.RequestsMock, step: Step, posts: int
) -> None:
    good(service)
    registrar.tokens.set("default", GOOD)
    attempt = Asking()
    step(lambda: setattr(attempt, "cancelled", True), registrar, service)
    later: list[str] = []
    if step is at_the_toggle:
        registrar.device_url = lambda attempt: later.append("device") or DEVICE  # type: ignore[func-returns-value]
    if step in (at_the_toggle, at_the_device):
        registrar.tokens.clear("default")
        registrar.tokens.set_refresh_handler(lambda: later.append("fetch") or GOOD)  # type: ignore[func-returns-value]
    with pytest.raises(ConnectCancelled):
        register(registrar, attempt)
    assert len(service.calls) == posts and later == []


@pytest.mark.parametrize(
    ("step", "posts"), [(at_the_toggle, 0), (at_the_device, 0), (at_the_fetch, 0), (at_the_post, 1)]
)
def test_i48_a_client_that_was_closed_meanwhile_registers_nothing(
    registrar: Registrar, service: responses.RequestsMock, step: Step, posts: int
) -> None:
    good(service)
    registrar.tokens.set("default", GOOD)
    step(lambda: setattr(registrar, "closed", True), registrar, service)
    with pytest.raises(ConfigurationError, match="is closed"):
        register(registrar)
    assert len(service.calls) == posts


@pytest.mark.parametrize("ended", ["attempt", "client"])
def test_i48_given_up_in_the_wait_after_a_refusal_it_is_not_sent_again(
    registrar: Registrar, service: responses.RequestsMock, ended: str
) -> None:
    service.post(CHANNEL, status=401)
    registrar.tokens.set("default", GOOD)
    registrar.tokens.set_refresh_handler(lambda: pytest.fail("it was asked"))
    attempt = Asking()

    def wait(seconds: float) -> bool:
        attempt.cancelled = ended == "attempt"
        registrar.closed = ended == "client"
        return attempt.cancelled

    attempt.wait_cancelled = wait  # type: ignore[method-assign]
    with pytest.raises(RegistrationError):
        register(registrar, attempt)
    assert len(service.calls) == 1


def test_i48_tokens_that_went_with_their_client_are_no_passing_fault(
    registrar: Registrar, service: responses.RequestsMock
) -> None:
    """The client is closed between the last look at it and the refresh: the run must end all the same."""

    class Closing(StaticToken):
        def get(self) -> str:
            registrar.closed = True
            registrar.tokens.close()
            return "access"

    registrar.rest = RestClient(Closing("access"))
    registrar.tokens.set_refresh_handler(lambda: "new")
    registrar.tokens.set("default", OLD)
    with pytest.raises(ConfigurationError, match="is closed"):
        register(registrar)
    assert len(service.calls) == 0


# -- the same place ------------------------------------------------------------------------------------------


def test_i47_equal_are_those_of_one_client_session_and_urls(registrar: Registrar) -> None:
    one = registration(registrar)
    assert one == registration(registrar) and hash(one) == hash(registration(registrar))
    others = [
        registration(dataclasses.replace(registrar)),
        registration(registrar, session_id="practice"),
        registration(registrar, locus_url=LOCUS + "2"),
        registration(registrar, datachannel_url=CHANNEL + "2"),
    ]
    assert all(one != other for other in others) and len({one, *others}) == 5


def test_t11_no_secret_is_shown(registrar: Registrar) -> None:
    asked = registration(registrar, datachannel_url=CHANNEL + "?key=s3cret", locus_url=LOCUS + "?k=s3cret")
    assert str(asked) == CHANNEL
    assert repr(asked) == f"<Registration of 'default' at {CHANNEL}>"
