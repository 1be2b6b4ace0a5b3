"""The meeting's events: one handler at a time, none for a join that is over, and an end to every wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from llm_sessions import ConfigurationError
from llm_sessions._sync import Deadline, ThreadGroup
from llm_sessions.meetings.delivery import MEETING_EVENTS, MeetingDelivery
from tests.support import LONG, Background, Gate, Recorder, eventually

JOIN, NEXT = object(), object()


@pytest.fixture
def threads() -> ThreadGroup:
    return ThreadGroup()


@pytest.fixture
def delivery(threads: ThreadGroup) -> Iterator[MeetingDelivery]:
    delivery = MeetingDelivery("meeting-0", threads, limit=2)
    delivery.begin(JOIN)
    yield delivery
    delivery.end(JOIN)
    delivery.end(NEXT)
    assert threads.join(Deadline(LONG)) == []


def test_events_come_in_order_on_one_thread(delivery: MeetingDelivery) -> None:
    heard, names = Recorder(), set()
    for name in ("online", "relay"):
        delivery.on(name, lambda payload: names.add(threading.current_thread().name))
        delivery.on(name, heard.named(name))
    for number in range(20):
        delivery.put(JOIN, "relay" if number % 2 else "online", number, wait=True)
    heard.wait("relay", 10)
    assert [payload for _, payload in heard.calls] == list(range(20))
    assert names == {"llm-dispatcher[meeting-0]"}


@pytest.mark.parametrize("name", ["", "nothing", "event", None, "online:x"])
def test_an_event_that_does_not_exist_is_refused(delivery: MeetingDelivery, name: Any) -> None:
    for call in (lambda: delivery.on(name, print), lambda: delivery.off(name)):
        with pytest.raises(ConfigurationError, match="event"):
            call()
    with pytest.raises(ConfigurationError, match="callback"):
        delivery.on("online", "print")  # type: ignore[arg-type]
    assert "online" in MEETING_EVENTS


def test_once_off_and_a_handler_that_raises(delivery: MeetingDelivery, caplog: Any) -> None:
    heard = Recorder()
    once, gone = heard.named("once"), heard.named("gone")

    def fail(payload: object) -> None:
        raise SystemExit("s")

    delivery.on("relay", once, once=True)
    delivery.on("relay", fail)
    delivery.on("relay", gone)
    delivery.off("relay", gone)
    delivery.on("relay", heard.named("last"))
    for number in range(2):
        delivery.put(JOIN, "relay", number)
    heard.wait("last", 2)
    assert heard.names == ["once", "last", "last"]
    assert "a listener of 'relay' raised" in caplog.text


def test_a_handler_that_an_earlier_one_took_back_is_not_called(delivery: MeetingDelivery) -> None:
    heard = Recorder()
    later = heard.named("later")
    delivery.on("relay", lambda payload: delivery.off("relay", later))
    delivery.on("relay", later)
    delivery.on("relay", heard.named("end"))
    delivery.put(JOIN, "relay", 1)
    heard.wait("end")
    assert heard.names == ["end"]


def test_i94_what_is_queued_when_a_join_ends_is_dropped(delivery: MeetingDelivery) -> None:
    gate, heard = Gate(), Recorder()
    delivery.on("online", lambda payload: gate.pass_through())
    delivery.on("online", heard.named("second"))
    delivery.on("relay", heard.named("relay"))
    delivery.put(JOIN, "online", 1)
    gate.wait_arrived()
    delivery.put(JOIN, "relay", 1)
    delivery.end(JOIN)
    delivery.put(JOIN, "relay", 2)
    delivery.begin(NEXT)
    delivery.put(NEXT, "relay", 3)
    gate.open()
    assert heard.wait("relay") == [3] and heard.names == ["relay"]


@pytest.mark.parametrize("end", ["room", "end"])
def test_t1_a_producer_waits_for_room_until_there_is_some_or_the_join_ends(
    delivery: MeetingDelivery, end: str
) -> None:
    gate, heard = Gate(), Recorder()
    delivery.on("online", lambda payload: gate.pass_through())
    delivery.on("relay", heard.named("relay"))
    delivery.put(JOIN, "online", 0)
    gate.wait_arrived()
    delivery.put(JOIN, "relay", 1, wait=True)
    delivery.put(JOIN, "relay", 2, wait=True)
    waiting = Background(lambda: delivery.put(JOIN, "relay", 3, wait=True))
    eventually(lambda: delivery._room._waiters)  # type: ignore[attr-defined]
    delivery.put(JOIN, "online", 4)  # what must not wait does not
    if end == "end":
        delivery.end(JOIN)
        waiting.result()
    gate.open()
    waiting.result()
    if end == "room":
        assert heard.wait("relay", 3) == [1, 2, 3]


def test_a_handler_may_bring_events_while_the_queue_is_full(delivery: MeetingDelivery) -> None:
    heard = Recorder()

    def more(payload: int) -> None:
        for number in range(5):
            delivery.put(JOIN, "relay", number, wait=True)

    delivery.on("online", more)
    delivery.on("relay", heard.named("relay"))
    delivery.put(JOIN, "online", 0)
    assert heard.wait("relay", 5) == list(range(5))


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_t0_after_a_thread_that_could_not_start_the_next_event_starts_one(
    delivery: MeetingDelivery,
    threads: ThreadGroup,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    heard = Recorder()
    delivery.on("relay", heard.named("relay"))
    with monkeypatch.context() as patch:
        patch.setattr(threads, "spawn", fail)
        if isinstance(error, RuntimeError):
            delivery.put(JOIN, "relay", 1)
            assert "cannot start a dispatcher thread" in caplog.text
        else:
            with pytest.raises(KeyboardInterrupt):
                delivery.put(JOIN, "relay", 1)
    delivery.put(JOIN, "relay", 2)
    assert heard.wait("relay")[-1] == 2


def test_t1_who_waits_for_room_goes_on_when_no_thread_can_start(
    delivery: MeetingDelivery, threads: ThreadGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, spawn, heard, fails = Gate(), threads.spawn, Recorder(), iter([True])

    def fail_once(*arguments: Any, **options: Any) -> Any:
        if next(fails, False):
            gate.pass_through()
            raise RuntimeError("can't start new thread")
        return spawn(*arguments, **options)

    monkeypatch.setattr(threads, "spawn", fail_once)
    delivery.on("relay", heard.named("relay"))
    first = Background(lambda: delivery.put(JOIN, "relay", 0))
    gate.wait_arrived()
    delivery.put(JOIN, "relay", 1)
    waiting = Background(lambda: delivery.put(JOIN, "relay", 2, wait=True))
    eventually(lambda: delivery._room._waiters)  # type: ignore[attr-defined]
    gate.open()
    first.result()
    waiting.result()
    assert heard.wait("relay") == [2]


def test_t5_a_thread_whose_start_was_interrupted_is_the_only_one(
    delivery: MeetingDelivery, threads: ThreadGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, heard = threads.spawn, Recorder()

    def strike(*arguments: Any, **options: Any) -> None:
        spawn(*arguments, **options)
        eventually(lambda: delivery._thread is not None)
        raise KeyboardInterrupt

    delivery.on("relay", heard.named("relay"))
    with monkeypatch.context() as patch:
        patch.setattr(threads, "spawn", strike)
        with pytest.raises(KeyboardInterrupt):
            delivery.put(JOIN, "relay", 1)
    delivery.put(JOIN, "relay", 2)
    heard.wait("relay")
    eventually(lambda: len(threads.alive()) == 1)
    delivery.put(JOIN, "relay", 3)
    eventually(lambda: heard.payloads("relay")[-1] == 3)


def test_t1_a_handler_that_waits_aside_makes_room_for_those_who_wait(delivery: MeetingDelivery) -> None:
    begun, go_on, heard = Gate(), Gate(), Recorder()

    def handler(payload: object) -> None:
        begun.pass_through()
        with delivery.aside():
            go_on.pass_through()

    delivery.on("online", handler)
    delivery.on("relay", heard.named("relay"))
    delivery.put(JOIN, "online", 0)
    begun.wait_arrived()
    for number in range(2):
        delivery.put(JOIN, "relay", number, wait=True)
    waiting = Background(lambda: delivery.put(JOIN, "relay", 2, wait=True))
    eventually(lambda: delivery._room._waiters)  # type: ignore[attr-defined]
    begun.open()
    go_on.wait_arrived()
    waiting.result()
    delivery.put(JOIN, "relay", 3, wait=True)
    go_on.open()
    assert heard.wait("relay", 4) == [0, 1, 2, 3]


def test_t1_who_is_no_handler_makes_no_room_by_waiting_aside(delivery: MeetingDelivery) -> None:
    gate = Gate()
    delivery.on("online", lambda payload: gate.pass_through())
    delivery.put(JOIN, "online", 0)
    gate.wait_arrived()
    for number in range(2):
        delivery.put(JOIN, "online", number)
    with delivery.aside():
        waiting = Background(lambda: delivery.put(JOIN, "online", 2, wait=True))
        eventually(lambda: delivery._room._waiters)  # type: ignore[attr-defined]
    gate.open()
    waiting.result()
