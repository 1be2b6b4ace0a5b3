"""The grant without I/O: when a token expires, what may be given, what an answer means."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from llm_sessions.datachannel import oauth_grant
from llm_sessions.datachannel.exchange import Answer
from llm_sessions.datachannel.oauth_grant import (
    Expiry,
    Held,
    RefreshedTokens,
    check_secret,
    check_timeout,
    first_held,
    read_answer,
)
from llm_sessions.errors import ConfigurationError, TokenRefreshError
from llm_sessions.testing.clock import ManualClock

HELD = Held("s3cret-refresh", "s3cret-access")
WHERE = "https://service.example/token"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock(100.0, epoch=1_700_000_000.0)
    monkeypatch.setattr(oauth_grant, "time", SimpleNamespace(time=clock.wall, monotonic=clock))
    return clock


def read(
    body: object, status: int = 200, headers: dict[str, str] | None = None
) -> tuple[Held, RefreshedTokens] | TokenRefreshError:
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    answer = Answer(status, headers or {}, content, 0.25)
    return read_answer(
        answer,
        held=HELD,
        asked=Expiry(1_700_000_000.0, 100.0),
        leeway=60,
        where=WHERE,
        secrets=[HELD.refresh],
    )


def granted(body: object, status: int = 200) -> tuple[Held, RefreshedTokens]:
    outcome = read(body, status)
    assert not isinstance(outcome, TokenRefreshError), outcome
    return outcome


def refused(body: object, status: int = 200, **headers: str) -> TokenRefreshError:
    outcome = read(body, status, {name.replace("_", "-"): value for name, value in headers.items()})
    assert isinstance(outcome, TokenRefreshError)
    assert "s3cret" not in repr(outcome)
    return outcome


# -- two clocks ----------------------------------------------------------------------------------------------


def test_d6_a_token_expires_with_the_clocks(clock: ManualClock) -> None:
    held = Held("r", "a", Expiry.now() + 100, margin=10)
    assert (held.good, held.due, held.expiry and held.expiry.left) == ("a", False, 100)
    clock.advance(89.5)
    assert (held.good, held.due) == ("a", False)
    clock.advance(0.5)
    assert (held.good, held.due) == ("a", True)
    clock.advance(10)
    assert (held.good, held.due) == (None, True)


def test_d6_a_wall_clock_that_is_set_back_keeps_no_token_alive(clock: ManualClock) -> None:
    held = first_held("r", "a", clock.wall() + 100, 10)
    clock.set_wall(0)
    clock.advance(100)
    assert held.good is None


def test_d6_a_suspended_machine_keeps_no_token_alive(clock: ManualClock) -> None:
    held = first_held("r", "a", clock.wall() + 100, 10)
    clock.set_wall(clock.wall() + 100)  # and the monotonic clock stood still
    assert held.good is None


def test_a_token_of_unknown_age_is_good_until_it_is_refused() -> None:
    held = first_held("r", "Bearer a", None, 60)
    assert (held.good, held.due) == ("a", False)
    rejected = Held("r", "a", rejected=True)
    assert (rejected.good, rejected.due) == (None, True)
    assert Held("r").due


def test_t11_what_is_held_is_not_shown() -> None:
    tokens = granted({"access_token": "s3cret-new", "expires_in": 10})[1]
    assert "s3cret" not in repr(HELD) + repr(tokens)
    assert "expires_at" in repr(tokens)


# -- what may be given ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 7, "", " a", "a\n", "a\tb", "ä", b"bytes"])
def test_t11_what_is_no_secret_is_refused_and_not_quoted(value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_secret(value, "client_secret")
    assert caught.value.argument == "client_secret"
    assert not value or repr(value) not in str(caught.value)


def test_a_secret_may_have_a_space_inside() -> None:
    assert check_secret("a b~!", "client_secret") == "a b~!"


@pytest.mark.parametrize(
    ("timeout", "seconds"), [(10, (5, 10)), (0.5, (0.25, 0.5)), ((2, 6), (2, 8)), ((0.5, 0.5), (0.5, 1.0))]
)
def test_a_timeout_is_a_whole_or_a_pair(timeout: Any, seconds: tuple[float, float]) -> None:
    assert check_timeout(timeout) == seconds


@pytest.mark.parametrize(
    "timeout", [None, 0, -1, True, "5", (1,), (1, 0), (None, 5), (1, 2, 3), float("inf")]
)
def test_other_timeouts_are_refused(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        check_timeout(timeout)


@pytest.mark.parametrize(
    ("access", "expires_at", "argument"),
    [
        (7, None, "access_token"),
        ("", None, "access_token"),
        ("s3cret two", None, "access_token"),
        ("a", "soon", "expires_at"),
        ("a", True, "expires_at"),
        ("a", float("nan"), "expires_at"),
        ("a", 1_700_000_000_000, "expires_at"),
        (None, float("inf"), "expires_at"),
    ],
)
def test_tokens_that_cannot_be_used_are_refused(access: Any, expires_at: Any, argument: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        first_held("r", access, expires_at, 60)
    assert caught.value.argument == argument
    assert "s3cret" not in str(caught.value)


# -- answers -------------------------------------------------------------------------------------------------


def test_a_whole_answer_is_used(clock: ManualClock) -> None:
    held, tokens = granted(
        {
            "access_token": "new",
            "expires_in": 1000,
            "refresh_token": "next",
            "refresh_token_expires_in": "5000",
            "token_type": "Bearer",
        }
    )
    assert tokens == RefreshedTokens("new", "next", 1_700_001_000.0, 1_700_005_000.0)
    assert held == Held("next", "new", Expiry(1_700_001_000.0, 1100.0), 60)


@pytest.mark.parametrize("status", [200, 201, 299])
def test_an_access_token_alone_is_enough(status: int) -> None:
    held, tokens = granted({"access_token": "Bearer new", "refresh_token": None}, status)
    assert tokens == RefreshedTokens("new", HELD.refresh, None, None)
    assert held == Held(HELD.refresh, "new")


@pytest.mark.parametrize("lifetime", [0, -5, True, "soon", None, [], 1e300, "-1", "", "²"])
def test_a_lifetime_that_cannot_be_understood_is_none(lifetime: object) -> None:
    assert granted({"access_token": "new", "expires_in": lifetime})[1].expires_at is None


def test_a_token_that_lives_shorter_than_the_leeway_serves_for_half_its_time() -> None:
    assert granted({"access_token": "new", "expires_in": 30})[0].margin == 15


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<html>", b"[]", b'"s3cret"', b"7", b"null", b"{", b'{"access_token": "s3cret', b"\xff"),
        *({}, {"access_token": None}, {"access_token": ""}, {"access_token": 7}),
        *({"access_token": "s3cret two"}, {"access_token": "s3cret\n"}, {"access_token": ["s3cret"]}),
    ],
)
def test_an_answer_without_a_token_is_temporary(body: object) -> None:
    error = refused(body)
    assert (error.status, error.url, error.timing, error.final) == (200, WHERE, 0.25, False)
    assert "without an access token" in str(error)
    assert error.session_id == "" and str(error) == error.message
    assert error.__cause__ is None


def test_an_answer_that_is_too_large_says_so() -> None:
    answer = Answer(200, {}, None, 0.25, "too large a body")
    outcome = read_answer(answer, held=Held("r"), asked=Expiry.now(), leeway=0.0, where=WHERE, secrets=[])
    assert f"{WHERE} answered 200 with too large a body" in str(outcome)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": "invalid_grant"}),
        (400, {"message": "the refresh token is invalid", "trackingId": "x"}),
        (401, {"message": "no"}),
        (403, {"error": "invalid_grant"}),
    ],
)
def test_d6_a_refused_refresh_token_is_final(status: int, body: object) -> None:
    error = refused(body, status)
    assert error.final and error.status == status
    assert "the refresh token is not valid any more" in str(error)


@pytest.mark.parametrize("code", ["invalid_client", "unauthorized_client"])
def test_d6_a_refused_client_is_final(code: str) -> None:
    error = refused({"error": code}, 401)
    assert error.final and "the client id or the client secret is not accepted" in str(error)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {}),
        (401, b"<html>"),
        (400, {"error": "temporarily_unavailable"}),
        (400, {"error": "slow_down"}),
        (401, {"error": "server_error"}),
        (400, b"<html>Bad Request</html>"),
        (400, {}),
        (403, b"blocked by a firewall"),
        (404, {"error": 404}),
        (407, {}),
        (408, {"error": "invalid_grant"}),
        (429, {"error": "invalid_grant"}),
        *((status, {"error": "invalid_grant"}) for status in (302, 500, 502, 503, 599)),
    ],
)
def test_d6_what_something_on_the_way_says_is_temporary(status: int, body: object) -> None:
    error = refused(body, status)
    assert (error.final, error.status) == (False, status)
    assert ("redirect" in str(error)) == (status == 302)


@pytest.mark.parametrize(
    ("value", "seconds"), [("7", 7), ("Tue, 14 Nov 2023 22:14:20 GMT", 60), ("soon", None), ("9" * 30, 86400)]
)
def test_retry_after_is_passed_on(clock: ManualClock, value: str, seconds: float | None) -> None:
    assert refused({}, 429, Retry_After=value).retry_after == seconds
    assert refused({}, 503).retry_after is None


def test_t11_what_the_service_says_is_cleaned() -> None:
    said = f"the token {HELD.refresh} is unknown\r\nnext line " + "x" * 1000
    error = refused({"error": "invalid_grant", "error_description": said}, 400)
    assert "invalid_grant: the token *** is unknown  next line" in str(error)
    assert len(str(error)) < 500
