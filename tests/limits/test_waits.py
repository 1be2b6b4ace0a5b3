"""Waits between the attempts of a session, and of its callers, at their edge. Sockets are fakes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import ConnectionPool, ConnectTimeout, Endpoint, SessionState, Target
from llm_sessions._sync import Deadline, LateCondition
from llm_sessions.pool.retry import parse_retry_after
from llm_sessions.protocol.mercury import EndCause
from tests.limits.support import WatchedClock, just_before
from tests.pool.support import URL, hold, machine_of, nothing
from tests.support import LONG, Background, FakeLink, FakeTransport, Recorder, eventually

Make = Callable[..., tuple[ConnectionPool, FakeTransport]]


# -- waits between attempts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("lived", "wait"), [(just_before(8), 2), (8, 0)])
def test_limit_backoff_max_online_starts_the_waits_from_the_beginning(
    make: Make, clock: WatchedClock, lived: float, wait: float
) -> None:
    pool, transport = make(backoff_initial=2, backoff_max=8)
    pool._env.clock = clock
    machine = machine_of(pool.connect(URL))
    machine._retries.after_loss()  # it was lost before, so another quick loss has to wait
    transport.on_open = hold
    clock.set(lived)
    transport.links[0].end(1006)
    assert machine._attempt is not None and machine._attempt.first_wait == wait


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("319", 319.0),
        ("320", 320.0),
        ("321", 320.0),
        ("0000000010", 10.0),
        ("Thu, 01 Jan 1970 00:05:19 GMT", 319.0),
        ("Thu, 01 Jan 1970 00:05:20 GMT", 320.0),
        ("Thu, 01 Jan 1970 00:05:21 GMT", 320.0),
    ],
)
def test_limit_backoff_max_times_ten_caps_retry_after(value: str, seconds: float) -> None:
    assert parse_retry_after(value, now=0.0, longest=320.0) == seconds


@pytest.mark.parametrize(
    ("asked", "wait"),
    [(319.5, 319.5), (320, 320), (320.5, 320), (10**400, 320)],
    ids=["below", "at", "beyond", "far beyond"],
)
def test_limit_backoff_max_times_ten_caps_a_sources_retry_after(
    make: Make, waits: list[float], asked: float, wait: float
) -> None:
    class Later(Exception):
        retry_after = asked

    class Place(Endpoint):
        def resolve(self, attempt: Any) -> Target:
            if attempt.number == 1:
                raise Later
            return Target(URL)

    pool, _ = make(backoff_initial=1, backoff_max=32)
    assert pool.connect(Place()).online
    assert waits == [wait]


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_limit_max_retries_n_are_n_plus_1_attempts(make: Make, retries: int) -> None:
    pool, transport = make(max_retries=retries, initial_max_retries=50)
    session = pool.connect(URL)
    recorder = Recorder().listen(session, "offline.permanent")
    transport.on_open = lambda link: link.end(1011)
    transport.links[0].end(1006)
    recorder.wait("offline.permanent")
    assert len(transport.links) == 1 + retries + 1


@pytest.mark.parametrize("retries", [1, 3])
def test_limit_max_retries_the_last_of_them_may_succeed(make: Make, retries: int) -> None:
    pool, transport = make(max_retries=retries)
    session = pool.connect(URL)
    recorder = Recorder().listen(session, "online", "offline.permanent")
    transport.on_open = lambda link: (
        link.become_ready() if len(transport.links) == 1 + retries + 1 else link.end(1011)
    )
    transport.links[0].end(1006)
    recorder.wait("online")
    assert recorder.names == ["online"] and len(transport.links) == 1 + retries + 1


@pytest.mark.parametrize(("short", "told"), [(True, 1), (False, 0)])
def test_limit_short_life_is_less_than_a_second(
    make: Make, clock: WatchedClock, short: bool, told: int
) -> None:
    rejections: list[Exception] = []

    class Place(Endpoint):
        def resolve(self, attempt: Any) -> Target:
            return Target(URL)

        def rejected(self, target: Target, error: Exception) -> None:
            rejections.append(error)

    def on_open(link: FakeLink) -> None:
        clock.set(len(transport.links))  # whole seconds: differences are exact
        link.become_ready()

    pool, transport = make()
    pool._env.clock = clock
    transport.on_open = on_open
    session = pool.connect(Place())
    for number in range(1, 4):
        eventually(lambda number=number: session.online and len(transport.links) == number)  # type: ignore[misc]
        clock.set(just_before(number + 1) if short else number + 1)
        transport.links[-1].end(1006)
    eventually(lambda: session.online and len(transport.links) == 4)
    assert len(rejections) == told


# -- callers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "spent", "in_time"), [(100, 100 - LONG, True), (100, 100, False), (None, 10**9, True)]
)
def test_limit_wait_timeout_of_connect_is_for_all_that_it_waits_for(
    make: Make, clock: WatchedClock, limit: float | None, spent: float, in_time: bool
) -> None:
    """Here first for a disconnect and then for an attempt."""
    pool, transport = make(wait_timeout=limit)
    pool._env.clock = clock
    pool.connect(URL)
    transport.on_close = nothing
    leaving = Background(pool.disconnect)
    eventually(lambda: transport.links[0].closes)
    machine, waiting = machine_of(pool.session()), threading.Event()
    await_idle = machine._await_idle

    def announced(deadline: Deadline) -> None:
        waiting.set()
        await_idle(deadline)

    machine._await_idle = announced  # type: ignore[method-assign]
    call = Background(lambda: pool.connect(URL))
    assert waiting.wait(LONG)
    clock.set(spent)
    if not in_time:
        transport.on_open = hold
    transport.links[0].end(1000, "Done", EndCause.LOCAL)
    leaving.result()
    if in_time:
        assert call.result().online
    else:
        error = call.error()
        assert isinstance(error, ConnectTimeout) and "within 100 s" in str(error)
        assert pool.session().state is SessionState.OFFLINE


def test_limit_wait_timeout_reaches_the_wait_as_it_is(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait's own clock is the system's: what it is given is all that can be asked here."""
    for limit in (7.5, None):
        pool, _ = make(wait_timeout=limit)
        machine, given = machine_of(pool.session()), list[float | None]()

        class Noted(LateCondition):
            def wait_for(
                self,
                predicate: Callable[[], bool],
                timeout: float | None = None,
                given: list[float | None] = given,
            ) -> bool:
                given.append(timeout)
                return False

        monkeypatch.setattr(machine, "_changed", Noted(machine._lock))
        with pytest.raises(TimeoutError):
            pool.wait_online()
        with pytest.raises(TimeoutError):
            pool.session().wait_online()
        assert given == [limit, limit]
