"""Where URLs and tokens come from, and what is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from llm_sessions import ConfigurationError, Endpoint, PoolConfig, StaticToken, Target, TokenProvider
from llm_sessions.pool.sources import UrlEndpoint, as_endpoint, as_provider, bearer, check_target
from llm_sessions.protocol.url import Address


class Provider:
    def get(self) -> str:
        return "got"

    def refresh(self, rejected: str) -> str:
        return f"not {rejected}"


class CallableProvider(Provider):
    def __call__(self) -> str:
        raise AssertionError("a provider is recognised before a callable")


class StringProvider(str):
    def get(self) -> str:
        return "got"

    def refresh(self, rejected: str) -> str:
        return "fresh"


def test_a_provider_is_recognised_first_then_a_callable_then_a_string() -> None:
    for provider in (Provider(), CallableProvider(), StringProvider("x")):
        assert as_provider(provider) is provider
    called = as_provider(iter(["a", "b"]).__next__)
    assert (called.get(), called.refresh("a")) == ("a", "b")
    static = as_provider("t")
    assert static == StaticToken("t") and static.refresh("t") == static.get() == "t"
    assert isinstance(static, TokenProvider)


def test_a_provider_class_is_a_callable_that_makes_no_token() -> None:
    assert as_provider(Provider) is not Provider


@pytest.mark.parametrize(
    "token", [5, b"x", None, "", "Bearer ", "two words", "tab\t", "line\n", "ümlaut", "\x7f"]
)
def test_t11_a_bad_token_is_refused_and_not_quoted(token: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        as_provider(token, "access_token")
    assert caught.value.argument == "access_token"
    assert not isinstance(token, str) or not token.strip() or token not in str(caught.value)


def test_a_token_is_sent_with_its_scheme_once() -> None:
    assert bearer("abc") == bearer("Bearer abc") == "Bearer abc"


def test_t11_a_token_never_shows_in_a_repr() -> None:
    shown = repr((StaticToken("s3cret"), Target("wss://h", "s3cret", {"X-Key": "s3cret"})))
    assert "s3cret" not in shown


def test_equal_urls_are_the_same_place() -> None:
    def url() -> str:
        return "wss://h/"

    assert as_endpoint("wss://h/", allow_insecure=False) == as_endpoint("wss://h/", allow_insecure=True)
    assert as_endpoint(url, allow_insecure=False) == UrlEndpoint(url)
    assert UrlEndpoint("wss://h/") != UrlEndpoint("wss://h/?a=1")


def test_an_endpoint_is_taken_as_it_is() -> None:
    endpoint = Endpoint()
    assert as_endpoint(endpoint, allow_insecure=False) is endpoint


@pytest.mark.parametrize(
    "url", [5, b"wss://h", "", "https://h", "wss://", "ws://example.org/", "wss://u:p@h/", ["x"]]
)
def test_a_bad_url_is_refused(url: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        as_endpoint(url, allow_insecure=False)
    assert caught.value.argument == "url"


@pytest.mark.parametrize(
    "url", ["ws://localhost/", "ws://127.0.0.1:80/", "ws://[::1]/", "wss://example.org/"]
)
def test_t12_plain_ws_goes_to_loopback_only(url: str) -> None:
    as_endpoint(url, allow_insecure=False)
    as_endpoint("ws://example.org/", allow_insecure=True)


def test_an_endpoint_is_named_without_its_secrets() -> None:
    assert str(UrlEndpoint("wss://h:1/p?token=s3cret")) == "wss://h:1/p"
    assert "callable" in str(UrlEndpoint(lambda: "wss://h"))
    assert str(Endpoint()) == "Endpoint"


def test_an_endpoint_must_say_where_to_and_may_ignore_rejections() -> None:
    class Lazy(Endpoint):
        pass

    with pytest.raises(TypeError, match="Lazy"):
        Lazy().resolve(None)  # type: ignore[arg-type]
    assert Lazy().rejected(Target("wss://h"), ValueError()) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    "target",
    [
        "wss://h",
        None,
        Target("wss://h", headers={"Host": "x"}),
        Target("wss://h", headers={"a": 5}),  # type: ignore[dict-item]
        Target("wss://h", headers=None),  # type: ignore[arg-type]
    ],
)
def test_what_an_endpoint_must_not_return(target: Any) -> None:
    with pytest.raises(ConfigurationError):
        check_target(target, PoolConfig())
    good = Target("wss://h", headers={"X-A": "b"})
    assert check_target(good, PoolConfig()) == Address("h", 443, True)
