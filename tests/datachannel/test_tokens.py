"""Data channel tokens: when one counts as expired, and one refresh for all who need it."""

from __future__ import annotations

import base64
import itertools
import math
import threading
from collections.abc import Callable

import pytest
import requests

from llm_sessions import LocalProtocolError, PoolClosed, TokenRefreshError, _logging
from llm_sessions.datachannel.tokens import EXPIRY_SKEW, TokenStore, check_token, expired
from llm_sessions.errors import ConfigurationError
from llm_sessions.testing.server import make_token
from tests.support import LONG, SHORT, Background, Gate, eventually, run_together

NOW = 1_800_000_000.0


def jwt(payload: bytes, header: bytes = b'{"alg":"HS256"}') -> str:
    return ".".join(base64.urlsafe_b64encode(one).decode().rstrip("=") for one in (header, payload, b"x"))


# -- expiry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exp", "gone"),
    [
        (NOW + EXPIRY_SKEW - 1, True),
        (NOW + EXPIRY_SKEW, False),
        (NOW + EXPIRY_SKEW + 1, False),
        (NOW - 3600, True),
        (0, True),
        (10**400, False),
        (None, True),
        (True, True),
        ("1900000000", True),
        ([], True),
        (math.nan, True),
        (math.inf, False),
    ],
)
def test_a_token_counts_as_expired_half_a_minute_before_it_is(exp: object, gone: bool) -> None:
    assert EXPIRY_SKEW == 30
    assert expired(make_token(None, exp=exp), NOW) is gone


def test_a_token_without_exp_does_not_expire() -> None:
    assert not expired(make_token(expires_in=None), NOW)
    assert expired(make_token(None, exp=NOW + 5), NOW, skew=6)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "opaque-token",
        "a.b.c",
        "\ud800.a.b",
        jwt(b"[]"),
        jwt(b"\xff"),
        jwt(b"{}", b"[]"),
        jwt(b"[" * 9999),
    ],
    ids=range(8),
)
def test_a_token_that_cannot_be_read_counts_as_expired(token: str) -> None:
    assert expired(token, NOW)


def test_a_token_is_read_without_its_signature_and_its_other_claims() -> None:
    claims = b'{"exp": 1900000000, "iat": "x", "sub": 3, "nbf": 1999999999, "aud": "somebody"}'
    assert not expired(jwt(claims, b'{"alg": "none"}'), NOW)


@pytest.mark.parametrize(
    "token", [None, 3, b"bytes", "", "two words", "line\n", "ümlaut", "\x7f"], ids=range(8)
)
def test_i58_what_cannot_be_a_headers_value_is_refused_and_not_quoted(token: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_token(token)
    assert "words" not in str(caught.value) and "mlaut" not in str(caught.value)


# -- the store -----------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> TokenStore:
    return TokenStore()


def counted(calls: list[str] | None = None) -> Callable[[], str]:
    """A handler that returns new-1, new-2, …"""
    numbers = itertools.count(1)

    def handler() -> str:
        token = f"new-{next(numbers)}"
        if calls is not None:
            calls.append(token)
        return token

    return handler


def gated(gate: Gate, token: str = "new") -> Callable[[], str]:
    def handler() -> str:
        gate.pass_through()
        return token

    return handler


def followers(store: TokenStore, session_id: str, count: int) -> None:
    """Wait until so many threads wait for the session's refresh."""
    eventually(lambda: len(store._refreshes[session_id].over._waiters) >= count)  # type: ignore[attr-defined]


def test_i53_each_session_has_its_own_token(store: TokenStore) -> None:
    store.set("default", "one")
    store.set("practice", "two")
    assert (store.get("default"), store.get("practice"), store.get("else")) == ("one", "two", None)
    store.clear("default")
    assert (store.get("default"), store.get("practice")) == (None, "two")
    assert TokenStore().get("practice") is None


def test_i57_a_token_that_is_set_replaces_the_one_before(store: TokenStore) -> None:
    store.set("default", "one")
    store.set("default", "two")
    assert store.get("default") == "two"
    with pytest.raises(ConfigurationError):
        store.set("default", "")
    assert store.get("default") == "two"


def test_t11_every_token_is_known_as_a_secret(store: TokenStore) -> None:
    store.set("default", "s3cret-that-was-set")
    store.set_refresh_handler(lambda: "s3cret-that-was-fetched")
    store.refresh("default")
    said = _logging.redact("got s3cret-that-was-set and s3cret-that-was-fetched")
    assert said == "got *** and ***"


def test_i63_a_refreshed_token_is_stored_under_its_session(store: TokenStore) -> None:
    store.set("default", "old")
    store.set("practice", "old")
    store.set_refresh_handler(counted())
    assert store.refresh("practice", "old") == "new-1"
    assert (store.get("default"), store.get("practice")) == ("old", "new-1")


def test_i55_i56_the_sessions_own_handler_is_asked_before_the_default_one(store: TokenStore) -> None:
    store.set_refresh_handler(lambda: "default-one")
    store.set_refresh_handler(lambda: "own", "practice")
    assert (store.refresh("practice"), store.refresh("else")) == ("own", "default-one")
    store.set_refresh_handler(None, "practice")
    assert store.refresh("practice") == "default-one"
    store.set_refresh_handler(None)
    assert not store.has_handler("practice")
    with pytest.raises(TokenRefreshError):
        store.refresh("practice")


def test_i55_two_stores_do_not_ask_each_others_handlers(store: TokenStore) -> None:
    calls: list[str] = []
    store.set_refresh_handler(counted(calls))
    other = TokenStore()
    other.set_refresh_handler(counted())
    other.refresh("default")
    assert calls == [] and store.get("default") is None


def test_a_handler_must_be_callable(store: TokenStore) -> None:
    with pytest.raises(ConfigurationError):
        store.set_refresh_handler("token")  # type: ignore[arg-type]


# -- I58: a failed refresh is a clear error ------------------------------------------------------------------


def test_i58_without_a_handler_there_is_a_final_error(store: TokenStore) -> None:
    store.set("default", "old")
    with pytest.raises(TokenRefreshError, match="no refresh handler") as caught:
        store.refresh("default", "old")
    assert caught.value.final and caught.value.session_id == "default"
    assert store.get("default") == "old"


def test_i58_a_handler_that_raises_is_the_cause(store: TokenStore) -> None:
    error = RuntimeError("s3cret-of-the-handler")

    def handler() -> str:
        raise error

    store.set("default", "old")
    store.set_refresh_handler(handler)
    with pytest.raises(TokenRefreshError, match="raised RuntimeError") as caught:
        store.refresh("default", "old")
    assert caught.value.__cause__ is error and not caught.value.final
    assert "s3cret" not in str(caught.value)
    assert store.get("default") == "old"
    store.set_refresh_handler(lambda: "new")
    assert store.refresh("default", "old") == "new"


def test_i58_what_a_handler_says_of_its_failure_is_kept(store: TokenStore) -> None:
    def handler() -> str:
        raise TokenRefreshError("default", "log in again", 403, "https://x/", 0.1, None, True)

    store.set_refresh_handler(handler)
    with pytest.raises(TokenRefreshError, match="log in again") as caught:
        store.refresh("default")
    assert (caught.value.final, caught.value.status) == (True, 403)


@pytest.mark.parametrize("body", [None, "", {}, "two words", 7, b"bytes"], ids=range(6))
def test_i58_a_handler_that_returns_no_token_fails(store: TokenStore, body: object) -> None:
    store.set_refresh_handler(lambda: body)  # type: ignore[arg-type, return-value]
    with pytest.raises(TokenRefreshError, match="the token that it returned: must be"):
        store.refresh("default")
    assert store.get("default") is None


def test_t1_a_handler_that_asks_for_a_refresh_is_refused(store: TokenStore) -> None:
    store.set_refresh_handler(lambda: store.refresh("practice"), "default")
    store.set_refresh_handler(lambda: store.refresh("default"), "practice")
    with pytest.raises(TokenRefreshError) as caught:
        store.refresh("default")
    assert isinstance(caught.value.__cause__, LocalProtocolError)
    store.set_refresh_handler(counted(), "default")
    assert store.refresh("default") == "new-1", "the thread may ask again"


# -- one refresh for all -------------------------------------------------------------------------------------


def test_compare_and_invalidate_who_comes_later_gets_the_new_one(store: TokenStore) -> None:
    calls: list[str] = []
    store.set("default", "old")
    store.set_refresh_handler(counted(calls))
    assert store.refresh("default", "old") == "new-1"
    assert store.refresh("default", "old") == "new-1"
    assert calls == ["new-1"]
    assert store.refresh("default", "new-1") == "new-2"
    assert store.refresh("default") == "new-3", "without a name it is the one at hand that is replaced"


def test_one_refresh_serves_all_who_ask_at_once(store: TokenStore) -> None:
    gate, calls = Gate(), list[int]()

    def handler() -> str:
        calls.append(threading.get_ident())
        gate.pass_through()
        return "new"

    store.set("default", "old")
    store.set_refresh_handler(handler)
    first = Background(lambda: store.refresh("default", "old"))
    gate.wait_arrived()
    rest = [Background(lambda: store.refresh("default", "old", timeout=LONG)) for _ in range(7)]
    followers(store, "default", 7)
    gate.open()
    assert [one.result() for one in (first, *rest)] == ["new"] * 8
    assert len(calls) == 1


def test_callers_that_start_together_make_one_refresh(store: TokenStore) -> None:
    for _ in range(20):
        calls: list[str] = []
        store.set("default", "old")
        store.set_refresh_handler(counted(calls))
        assert run_together(8, lambda: store.refresh("default", "old")) == ["new-1"] * 8
        assert calls == ["new-1"]


def test_a_failed_refresh_gives_each_waiter_its_own_exception(store: TokenStore) -> None:
    gate, cause = Gate(), RuntimeError("no")

    def handler() -> str:
        gate.pass_through()
        raise cause

    store.set_refresh_handler(handler)
    waiting = [Background(lambda: store.refresh("default", "old"))]
    gate.wait_arrived()
    waiting += [Background(lambda: store.refresh("default", "old")) for _ in range(3)]
    followers(store, "default", 3)
    gate.open()
    errors = [one.error() for one in waiting]
    assert len({id(error) for error in errors}) == 4
    assert all(isinstance(error, TokenRefreshError) and error.__cause__ is cause for error in errors)


def test_sessions_do_not_wait_for_one_another(store: TokenStore) -> None:
    gate = Gate()
    store.set_refresh_handler(gated(gate), "slow")
    store.set_refresh_handler(counted())
    slow = Background(lambda: store.refresh("slow"))
    gate.wait_arrived()
    assert store.refresh("default") == "new-1"
    gate.open()
    assert slow.result() == "new"


def test_t1_who_waits_for_another_threads_refresh_leaves_in_time(store: TokenStore) -> None:
    gate = Gate()
    store.set_refresh_handler(gated(gate))
    first = Background(lambda: store.refresh("default"))
    gate.wait_arrived()
    with pytest.raises(TokenRefreshError, match=r"did not return within 0\.05 s"):
        store.refresh("default", timeout=SHORT)
    gate.open()
    assert first.result() == "new"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_t5_an_interrupted_refresh_strands_nobody(store: TokenStore, interrupt: type[BaseException]) -> None:
    gate = Gate()

    def handler() -> str:
        gate.pass_through()
        raise interrupt

    store.set_refresh_handler(handler)
    first = Background(lambda: store.refresh("default", "old"))
    gate.wait_arrived()
    second = Background(lambda: store.refresh("default", "old"))
    followers(store, "default", 1)
    gate.open()
    assert isinstance(first.error(), interrupt)
    assert isinstance(second.error(), TokenRefreshError)
    store.set_refresh_handler(counted())
    assert store.refresh("default", "old") == "new-1"


def test_t5_an_interrupt_beside_the_handler_strands_nobody(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> str:
        raise KeyboardInterrupt

    store.set_refresh_handler(counted())
    with monkeypatch.context() as patched:
        patched.setattr(store, "_lead", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.refresh("default")
    assert store.refresh("default") == "new-1"


def test_a_waiter_whose_token_is_another_one_is_not_given_the_error_of_this_one(store: TokenStore) -> None:
    gate = Gate()

    def failing() -> str:
        gate.pass_through()
        raise RuntimeError

    store.set("default", "one")
    store.set_refresh_handler(failing)
    first = Background(lambda: store.refresh("default", "one"))
    gate.wait_arrived()
    store.set("default", "two")
    second = Background(lambda: store.refresh("default", "two"))
    followers(store, "default", 1)
    store.set_refresh_handler(counted())
    gate.open()
    assert isinstance(first.error(), TokenRefreshError)
    assert second.result() == "new-1"


def test_a_handler_that_returns_the_refused_token_is_asked_once(store: TokenStore) -> None:
    gate, calls = Gate(), list[int]()

    def handler() -> str:
        calls.append(1)
        gate.pass_through()
        return "old"

    store.set("default", "old")
    store.set_refresh_handler(handler)
    both = [Background(lambda: store.refresh("default", "old"))]
    gate.wait_arrived()
    both.append(Background(lambda: store.refresh("default", "old")))
    followers(store, "default", 1)
    gate.open()
    assert [one.result() for one in both] == ["old", "old"] and calls == [1]


# -- what comes in between -----------------------------------------------------------------------------------


def test_i57_a_token_that_is_set_during_a_refresh_counts(store: TokenStore) -> None:
    gate = Gate()
    store.set("default", "old")
    store.set_refresh_handler(gated(gate))
    asking = Background(lambda: store.refresh("default", "old"))
    gate.wait_arrived()
    store.set("default", "from-the-locus")
    gate.open()
    assert asking.result() == store.get("default") == "from-the-locus"


@pytest.mark.parametrize("ended_by", ["clear", "close"])
def test_i61_a_token_that_comes_after_a_clear_is_not_stored(store: TokenStore, ended_by: str) -> None:
    gate = Gate()
    store.set("default", "old")
    store.set_refresh_handler(gated(gate))
    leader = Background(lambda: store.refresh("default", "old"))
    gate.wait_arrived()
    follower = Background(lambda: store.refresh("default", "old"))
    followers(store, "default", 1)
    store.clear("default") if ended_by == "clear" else store.close()
    assert isinstance(follower.error(), TokenRefreshError), "it does not wait for the handler any more"
    gate.open()
    assert isinstance(leader.error(), TokenRefreshError)
    assert store.get("default") is None


def test_i61_a_refresh_that_begins_after_a_clear_has_nothing_to_do_with_one_before(store: TokenStore) -> None:
    gate = Gate()
    store.set("default", "old")
    store.set_refresh_handler(gated(gate, "late"))
    before = Background(lambda: store.refresh("default", "old"))
    gate.wait_arrived()
    store.clear("default")
    store.set_refresh_handler(counted())
    assert store.refresh("default") == "new-1"
    gate.open()
    assert isinstance(before.error(), TokenRefreshError)
    assert store.get("default") == "new-1"


def test_i61_a_refresh_for_a_token_of_an_epoch_that_is_over_is_refused(store: TokenStore) -> None:
    calls: list[str] = []
    store.set_refresh_handler(counted(calls))
    store.set("default", "old")
    token, epoch = store.read("default")
    assert token == "old"
    assert store.refresh("default", token, epoch=epoch) == "new-1"
    store.clear("practice")
    assert store.refresh("default", "new-1", epoch=epoch) == "new-2", "another session's clear is no matter"
    store.clear("default")
    with pytest.raises(TokenRefreshError, match="cleared meanwhile"):
        store.refresh("default", "new-2", epoch=epoch)
    assert calls == ["new-1", "new-2"] and store.get("default") is None
    assert store.read("default") == (None, epoch + 1)


def test_a_closed_store_keeps_and_gives_nothing(store: TokenStore) -> None:
    store.set("default", "old")
    store.set_refresh_handler(counted())
    store.close()
    assert store.get("default") is None
    with pytest.raises(PoolClosed):
        store.set("default", "new")
    with pytest.raises(PoolClosed):
        store.refresh("default")
    assert store.get("default") is None


@pytest.mark.stress
def test_many_threads_refresh_set_and_clear_and_all_return(store: TokenStore) -> None:
    numbers = itertools.count(1)
    store.set_refresh_handler(lambda: f"new-{next(numbers)}")
    turns = itertools.count()

    def body() -> None:
        for _ in range(200):
            turn = next(turns) % 5
            session_id = f"s{turn % 2}"
            try:
                if turn == 0:
                    store.clear(session_id)
                elif turn == 1:
                    store.set(session_id, f"set-{next(numbers)}")
                else:
                    token, epoch = store.read(session_id)
                    fresh = store.refresh(session_id, token, epoch=epoch, timeout=LONG)
                    assert fresh != token
            except TokenRefreshError as exc:
                if "cleared" not in str(exc):
                    raise

    assert run_together(6, body) == [None] * 6
    assert not store._refreshes


def test_i41_a_handler_of_requests_that_is_answered_401_says_so(store: TokenStore) -> None:
    def handler() -> str:
        response = requests.Response()
        response.status_code = 401
        raise requests.HTTPError(response=response)

    store.set_refresh_handler(handler)
    with pytest.raises(TokenRefreshError) as caught:
        store.refresh("default")
    assert caught.value.status == 401
