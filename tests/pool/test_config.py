"""PoolConfig: every value is checked when it is made, and the error names it."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import pickle
import ssl
from pathlib import Path
from typing import Any

import pytest

from llm_sessions import ConfigurationError, PoolConfig
from llm_sessions.pool.config import check_seconds
from llm_sessions.testing.certificates import ThrowAwayCA
from tests.support import run_together

SECONDS = (
    *("ping_interval", "pong_timeout", "backoff_initial", "backoff_max", "open_timeout"),
    *("send_timeout", "force_close_delay", "retire_timeout", "wait_timeout"),
)


def refused(**settings: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        PoolConfig(**settings)
    assert caught.value.argument in settings
    return caught.value.problem


def test_the_defaults_are_the_documented_ones() -> None:
    assert dataclasses.asdict(PoolConfig()) == {
        "ping_interval": 15.0,
        "pong_timeout": 14.0,
        "backoff_initial": 1.0,
        "backoff_max": 32.0,
        "jitter": True,
        "max_retries": None,
        "initial_max_retries": None,
        "wait_timeout": 30.0,
        "open_timeout": 10.0,
        "send_timeout": 10.0,
        "force_close_delay": 2.0,
        "retire_timeout": 60.0,
        "max_message_bytes": 16 * 1024 * 1024,
        "queue_size": 10_000,
        "when_full": "block",
        "allow_insecure": False,
        "allowed_hosts": None,
        "ssl_context": None,
        "ca_file": None,
        "client_cert": None,
        "proxy": "environment",
    }


def test_it_is_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PoolConfig().jitter = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        PoolConfig(15.0)  # type: ignore[misc]


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize(
    "value", [0, -1, math.nan, math.inf, -math.inf, "1", True, None, 10**7 + 1, 10**400, b""]
)
def test_a_time_is_a_finite_positive_number(name: str, value: Any) -> None:
    if name == "wait_timeout" and value is None:
        assert PoolConfig(wait_timeout=None).wait_timeout is None
    else:
        refused(**{name: value})


@pytest.mark.parametrize("name", SECONDS)
def test_a_whole_number_of_seconds_will_do(name: str) -> None:
    settings = {name: 3, "backoff_max": 7} if name == "backoff_initial" else {name: 3}
    assert getattr(PoolConfig(**settings), name) == 3


def test_zero_is_allowed_where_asked_for() -> None:
    check_seconds("timeout", 0, zero=True)
    with pytest.raises(ConfigurationError, match="at least 0"):
        check_seconds("timeout", -0.1, zero=True)


def test_i40_the_longest_wait_is_not_shorter_than_the_first() -> None:
    assert "backoff_initial" in refused(backoff_initial=2, backoff_max=1)
    assert PoolConfig(backoff_initial=2, backoff_max=2).backoff_max == 2


@pytest.mark.parametrize("name", ["max_retries", "initial_max_retries"])
@pytest.mark.parametrize("value", [-1, 1.0, True, "3"])
def test_retries_are_counted_in_whole_numbers(name: str, value: Any) -> None:
    assert "None" in refused(**{name: value})
    assert getattr(PoolConfig(**{name: 0}), name) == 0


@pytest.mark.parametrize("name", ["max_message_bytes", "queue_size"])
@pytest.mark.parametrize("value", [0, -1, 1.0, None, False])
def test_sizes_are_at_least_one(name: str, value: Any) -> None:
    refused(**{name: value})


@pytest.mark.parametrize("name", ["jitter", "allow_insecure"])
def test_switches_are_booleans(name: str) -> None:
    refused(**{name: 1})


@pytest.mark.parametrize("value", ["drop", None, [], True])
def test_when_full_is_one_of_two(value: Any) -> None:
    refused(when_full=value)


def test_the_tls_context_is_one() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert PoolConfig(ssl_context=context).ssl_context is context
    refused(ssl_context=object())


@pytest.mark.parametrize(
    "value", ["example.org", 5, [5], b"x", iter(["a"]), ["*"], ["*."], [""], ["ex*.org"], ["*.*.org"]]
)
def test_allowed_hosts_is_a_collection_of_names(value: Any) -> None:
    refused(allowed_hosts=value)
    hosts = frozenset({"a", "*.example.org"})
    assert PoolConfig(allowed_hosts=hosts).allowed_hosts == hosts


@pytest.mark.parametrize("value", [7, b"http://proxy", "", "ftp://proxy", "http://proxy:s3cret@"])
def test_a_proxy_is_a_url_the_environment_or_none(value: Any) -> None:
    assert "s3cret" not in refused(proxy=value)
    assert PoolConfig(proxy=None).proxy is None
    for url in ("http://proxy", "proxy:1", "https://u:p@proxy", "socks5://proxy:1"):
        assert PoolConfig(proxy=url).proxy == url


def test_t12_a_proxys_password_is_in_no_repr() -> None:
    assert "s3cret" not in repr(PoolConfig(proxy="http://user:s3cret-pass@proxy"))


def test_socks_without_its_package_is_told_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "llm-sessions[socks]" in refused(proxy="socks5h://proxy")
    assert PoolConfig(proxy="http://proxy").proxy


def test_tls_files_are_read_at_once(tmp_path: Path) -> None:
    with ThrowAwayCA() as ca:
        mine = ca.client_file("me.example")
        config = PoolConfig(ca_file=ca.ca_file, client_cert=mine)
        for name in ("ca_file", "client_cert"):
            assert "cannot be read" in refused(**{name: tmp_path / "gone.pem"})
            given = {name: mine, "ssl_context": ssl.create_default_context()}
            assert "beside ssl_context" in refused(**given)
        context = config.tls_context()
        assert context.cert_store_stats()["x509_ca"] == 1
        assert dataclasses.replace(config, queue_size=7).tls_context() is not context
        assert pickle.loads(pickle.dumps(config)) == config
        assert "SSLContext" not in repr(config)
    assert config.tls_context() is context, "the files are not needed any more"


def test_there_is_one_context_for_all() -> None:
    config = PoolConfig()
    found = run_together(8, config.tls_context)
    assert len(set(map(id, found))) == 1
    assert config.tls_context().verify_mode is ssl.CERT_REQUIRED
    assert config.tls_context().check_hostname
    given = ssl.create_default_context()
    assert PoolConfig(ssl_context=given).tls_context() is given
