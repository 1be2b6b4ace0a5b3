"""What the positional arguments of `listen` mean."""

from __future__ import annotations

from typing import Any

import pytest

from llm_sessions.cli.statuses import UsageError
from llm_sessions.cli.targets import OWN_DEVICE, Kind, Target, parse_targets


def parse(*arguments: str, **options: Any) -> list[Target]:
    settings = {"own_device": False, "device": True, "allow_insecure": False, **options}
    return parse_targets(arguments, **settings)


@pytest.mark.parametrize(
    ("argument", "session", "kind", "url"),
    [
        ("wss://h/a", "a", Kind.WEBSOCKET, "wss://h/a"),
        ("wss://h/a/b/?x=y", "b", Kind.WEBSOCKET, "wss://h/a/b/?x=y"),
        ("wss://h", "session-1", Kind.WEBSOCKET, "wss://h"),
        ("wss://h/0f9c", "session-1", Kind.WEBSOCKET, "wss://h/0f9c"),
        ("wss://h/a%20b", "session-1", Kind.WEBSOCKET, "wss://h/a%20b"),
        ("main=wss://h/a?b=c", "main", Kind.WEBSOCKET, "wss://h/a?b=c"),
        ("two words=WSS://h/a", "two words", Kind.WEBSOCKET, "WSS://h/a"),
        ("ws://localhost:1/a", "a", Kind.WEBSOCKET, "ws://localhost:1/a"),
        ("https://h/datachannel/x", "x", Kind.REGISTRATION, "https://h/datachannel/x"),
        ("m=http://127.0.0.1/x", "m", Kind.REGISTRATION, "http://127.0.0.1/x"),
    ],
)
def test_an_argument(argument: str, session: str, kind: Kind, url: str) -> None:
    assert parse(argument) == [Target(session, kind, url)]


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("s3cret", "url must start with wss://"),
        ("name=s3cret", "url must start with wss://"),
        ("ftp://s3cret", "url must start with wss://"),
        ("wss://me:s3cret@h/", "must not hold a user or a password"),
        ("https://me:s3cret@h/", "must not hold a user, a password"),
        ("wss://h:s3cret/", "is not a URL"),
        ("ws://example.com/s3cret", "use wss://, a loopback host, or --allow-insecure"),
        ("http://example.com/s3cret", "use https://, a loopback host, or --allow-insecure"),
        ("\x07=wss://h/s3cret", "name must be non-empty, printable"),
        ("wss:///s3cret", "must name a host"),
    ],
)
def test_t11_what_cannot_be_is_refused_and_not_repeated(argument: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        parse("wss://h/first", argument)
    text = str(caught.value)
    assert text.startswith("argument 2: ")
    assert "s3cret" not in text and text.isprintable()


def test_insecure_ones_if_that_is_allowed() -> None:
    urls = ("ws://example.com/a", "http://example.com/b")
    assert [one.url for one in parse(*urls, allow_insecure=True)] == list(urls)


def test_the_own_device_is_one_more() -> None:
    assert parse(own_device=True) == [Target(OWN_DEVICE, Kind.DEVICE)]
    both = parse("https://h/x", own_device=True, device=False)
    assert [one.kind for one in both] == [Kind.REGISTRATION, Kind.DEVICE]


def test_nothing_to_listen_to_and_nothing_to_register_with() -> None:
    with pytest.raises(UsageError, match="name at least one URL, or give --own-device"):
        parse()
    with pytest.raises(UsageError, match="a registration URL needs --device URL, or --own-device"):
        parse("https://h/x", device=False)


def test_two_of_one_name() -> None:
    with pytest.raises(UsageError, match="2 sessions would be called 'a'; give names"):
        parse("wss://h/a", "wss://g/a")
    assert [one.session for one in parse("wss://h/a", "b=wss://g/a", "wss://h/")] == ["a", "b", "session-3"]
