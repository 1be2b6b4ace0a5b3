"""Listener tables: changes from any thread, deliveries without a lock."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import ConfigurationError
from llm_sessions.pool.listeners import ListenerTable
from tests.support import run_together


def test_listeners_keep_their_order_and_count() -> None:
    table = ListenerTable()
    assert table.named("online") == ()
    table.add("online", print)
    table.add("online", repr)
    table.add("online", print)
    assert [one.callback for one in table.named("online")] == [print, repr, print]
    assert table.version == 3


def test_off_takes_every_registration_of_a_callback_or_all() -> None:
    table = ListenerTable()
    for callback in (print, repr, print):
        table.add("online", callback)
    assert table.remove("online", print)
    assert [one.callback for one in table.named("online")] == [repr]
    assert not table.remove("online", print) and not table.remove("offline", None)
    assert table.remove("online", None) and table.named("online") == ()


def test_every_change_is_seen_by_its_version() -> None:
    table = ListenerTable()
    versions = [table.version]
    table.add("online", print, once=True)
    versions.append(table.version)
    assert table.claim("online", table.named("online")[0])
    versions.append(table.version)
    table.add("online", print)
    versions.append(table.version)
    table.remove("online", print)
    versions.append(table.version)
    assert versions == sorted(set(versions))
    table.remove("online", print)
    assert table.version == versions[-1]


def test_what_was_looked_up_does_not_change() -> None:
    table = ListenerTable()
    table.add("online", print)
    found = table.named("online")
    table.remove("online", None)
    assert [one.callback for one in found] == [print]


def test_a_once_listener_is_claimed_once_however_many_threads_want_it() -> None:
    table = ListenerTable()
    for _ in range(30):
        table.add("online", print, once=True)
        table.add("online", repr)
        once = table.named("online")[0]
        assert sum(run_together(8, lambda once=once: table.claim("online", once))) == 1  # type: ignore[misc]
        assert [one.callback for one in table.named("online")] == [repr]
        table.remove("online", None)


def test_a_callback_must_be_callable() -> None:
    table = ListenerTable()
    with pytest.raises(ConfigurationError) as caught:
        table.add("online", 5)  # type: ignore[arg-type]
    assert caught.value.argument == "callback" and table.named("online") == ()


class Later:
    async def __call__(self, event: object) -> None:
        raise AssertionError("called")


@pytest.mark.parametrize(
    "callback",
    [Later().__call__, Later(), functools.partial(Later.__call__, Later())],
    ids=["method", "object", "partial"],
)
def test_a_callback_that_would_have_to_be_awaited_is_refused(callback: Callable[[Any], object]) -> None:
    table = ListenerTable()
    with pytest.raises(ConfigurationError, match="must not be a coroutine function") as caught:
        table.add("online", callback)
    assert caught.value.argument == "callback" and table.named("online") == ()


def test_taking_back_all_of_an_event_spares_what_the_library_listens_to() -> None:
    table = ListenerTable()
    table.add("online", print)
    table.add("online", repr, internal=True)
    assert table.remove("online", None) is True
    assert [one.callback for one in table.named("online")] == [repr]
    assert table.remove("online", None) is False
    assert table.remove("online", repr) is True and table.named("online") == ()


def test_a_route_is_looked_up_once_until_something_changes() -> None:
    table, other = ListenerTable(), print
    table.add("event:a", other)
    first = table.route("a.b")
    assert [(name, listener.callback) for name, _, listener in first] == [("event:a", other)]
    assert table.route("a.b") is first
    assert table.route(None) == ()
    table.add("event:a.b", repr)
    table.add("event", len)
    assert [name for name, _, _ in table.route("a.b")] == ["event", "event:a", "event:a.b"]
    assert [name for name, _, _ in table.route(None)] == ["event"]
    table.remove("event", None)
    table.remove("event:a", None)
    assert [name for name, _, _ in table.route("a.b")] == ["event:a.b"]
    [(_, _, listener)] = table.route("a.b")
    assert table.claim("event:a.b", listener)
    assert table.route("a.b") == ()
