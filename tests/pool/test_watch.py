"""A reader that is held up is seen after two to three ticks, also while the thread comes and goes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions._sync import Deadline, ThreadGroup
from llm_sessions.pool.watch import _LONGEST, _TICKS_TO_SLEEP, TICK, Watch
from tests.support import LONG, Background, Gate, eventually, run_together


class Bell:
    """What the watch's thread waits with: a tick passes when the test says so, and the clock with it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._changed = threading.Condition()
        self._rung = False
        self._late: list[float] = []  # a tick that has not been heard yet: how late it is
        self._waits = 0  # how often the thread has begun to wait
        self.waiting: float | None = None  # for how long it waits now: -1 for no limit

    def clock(self) -> float:
        return self.now

    def locked(self) -> bool:
        return not self._rung

    def release(self) -> None:
        with self._changed:
            self._rung = True
            self._changed.notify_all()

    def acquire(self, timeout: float = -1) -> bool:
        with self._changed:
            self.waiting = timeout
            self._waits += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._rung or (timeout >= 0 and self._late), LONG)
            self.waiting = None
            if self._rung:
                self._rung = False
                return True
            self.now += timeout + self._late.pop()
            return False

    def wait_for(self, timeout: float) -> None:
        """Wait until the thread waits for so long: TICK, or -1 when it sleeps."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: self.waiting == timeout and not self._rung, LONG)
            assert arrived, f"it waits for {self.waiting}"

    def tick(self, count: int = 1, *, late: float = 0.0) -> None:
        """Let the thread look, so often; return when it has."""
        for _ in range(count):
            with self._changed:
                assert self._changed.wait_for(lambda: self.waiting == TICK, LONG), "it does not tick"
                looks = self._waits
                self._late.append(late)
                self._changed.notify_all()
                again = self._changed.wait_for(lambda looks=looks: self._waits > looks, LONG)
                assert again, "it does not wait again"


class Lookout:
    """A watch of one socket, whose time is the test's."""

    def __init__(self) -> None:
        self.threads, self.bell = ThreadGroup(), Bell()
        self.watch = Watch(self.threads, self.bell.clock)
        self.watch._bell = self.bell  # type: ignore[assignment]
        self.socket: Any = object()
        assert self.watch.enter(self.socket)
        self.relieved: list[object] = []

    def lend(self, name: object = "a", settled: bool = True) -> int:
        def relieve() -> bool:
            self.relieved.append(name)
            return settled

        return self.watch.lend(relieve)

    def asleep(self) -> None:
        """Bring the thread to sleep."""
        self.watch.give_back(self.lend())
        self.bell.wait_for(TICK)
        self.bell.tick(_TICKS_TO_SLEEP)
        self.bell.wait_for(-1)

    def no_thread(self) -> None:
        eventually(lambda: not self.threads.alive(), "the thread stays")


@pytest.fixture
def lookout() -> Iterator[Lookout]:
    lookout = Lookout()
    yield lookout
    lookout.watch.leave(lookout.socket)
    assert lookout.threads.join(Deadline(LONG)) == []


# -- looks -------------------------------------------------------------------------------------------------


def test_t3_a_reader_is_relieved_at_the_third_look_and_once(lookout: Lookout) -> None:
    assert lookout.lend()
    lookout.bell.tick(2)
    assert lookout.relieved == []
    lookout.bell.tick()
    assert lookout.relieved == ["a"]
    lookout.bell.tick(5)
    assert lookout.relieved == ["a"]


def test_a_reader_that_comes_back_in_time_is_let_alone(lookout: Lookout) -> None:
    for _ in range(5):
        number = lookout.lend()
        lookout.bell.tick(2)
        lookout.watch.give_back(number)
    assert lookout.relieved == []


def test_each_reader_is_looked_at_for_itself(lookout: Lookout) -> None:
    first = lookout.lend("first")
    lookout.bell.tick()
    lookout.lend("second")
    lookout.bell.tick(2)
    assert lookout.relieved == ["first"]
    lookout.bell.tick()
    assert lookout.relieved == ["first", "second"]
    lookout.watch.give_back(first)  # late, and of no consequence


def test_what_is_not_settled_is_tried_again_at_every_tick(lookout: Lookout) -> None:
    number = lookout.lend(settled=False)
    lookout.bell.tick(3)
    assert lookout.relieved == ["a"]
    lookout.bell.tick(3)
    assert lookout.relieved == ["a"] * 4
    lookout.watch.give_back(number)
    lookout.bell.tick(3)
    assert lookout.relieved == ["a"] * 4


def test_a_late_look_does_not_count(lookout: Lookout) -> None:
    """Then the whole process is held up, and the reader would have come back in the same time."""
    lookout.lend()
    lookout.bell.tick()
    lookout.bell.tick(10, late=0.02)
    assert lookout.relieved == []
    lookout.bell.tick(2)
    assert lookout.relieved == ["a"]


def test_t3_a_second_is_enough_however_late_the_looks_are(lookout: Lookout) -> None:
    lookout.lend()
    lookout.bell.tick(late=5.0)  # of which nothing was the reader's
    assert lookout.relieved == []
    lookout.bell.tick(late=_LONGEST / 2)
    assert lookout.relieved == []
    lookout.bell.tick(late=_LONGEST / 2)
    assert lookout.relieved == ["a"]


# -- sleep -------------------------------------------------------------------------------------------------


def test_it_sleeps_when_nothing_is_lent_and_a_lending_wakes_it(lookout: Lookout) -> None:
    lookout.asleep()
    assert lookout.lend()
    lookout.bell.tick(3)
    assert lookout.relieved == ["a"]


def test_it_does_not_sleep_while_a_reader_is_lent(lookout: Lookout) -> None:
    number = lookout.lend(settled=False)
    lookout.bell.tick(_TICKS_TO_SLEEP + 5)
    assert lookout.bell.waiting == TICK
    lookout.watch.give_back(number)
    lookout.bell.tick(_TICKS_TO_SLEEP)
    lookout.bell.wait_for(-1)


@pytest.mark.parametrize("sees_that_it_sleeps", [True, False])
def test_t3_a_lending_while_it_falls_asleep_is_not_missed(
    lookout: Lookout, sees_that_it_sleeps: bool
) -> None:
    """The lender is stopped at both places: before and after the thread has said that it will sleep."""
    gate = Gate()

    class Entries(dict[int, Any]):
        def __bool__(self) -> bool:
            if not lookout.watch._awake:  # it has said so
                gate.pass_through()
            return len(self) > 0

    lookout.watch._lent = Entries()
    lookout.watch.give_back(lookout.lend())
    lookout.bell.wait_for(TICK)
    falls_asleep = Background(lambda: lookout.bell.tick(_TICKS_TO_SLEEP))
    gate.wait_arrived()
    if sees_that_it_sleeps:
        assert lookout.lend()
    else:  # it found the thread awake a moment ago, and rings no bell
        lookout.watch._lent[0] = lambda: bool(lookout.relieved.append("a")) or True
    gate.open()
    falls_asleep.result()
    lookout.bell.tick(3)
    assert lookout.relieved == ["a"]


# -- the thread comes and goes -----------------------------------------------------------------------------


def test_t2_it_starts_with_the_first_lending_and_ends_with_the_last_socket(lookout: Lookout) -> None:
    other: Any = object()
    assert lookout.watch.enter(other) and not lookout.watch.enter(other)
    assert lookout.threads.alive() == []
    lookout.watch.give_back(lookout.lend())
    assert [thread.name for thread in lookout.threads.alive()] == ["llm-watch"]
    lookout.watch.leave(other)
    assert not lookout.watch.knows(other) and lookout.watch.knows(lookout.socket)
    lookout.bell.tick(2)
    assert len(lookout.threads.alive()) == 1
    lookout.watch.leave(lookout.socket)
    lookout.no_thread()


def test_t2_it_ends_with_the_last_socket_also_while_it_sleeps_or_a_callback_blocks(lookout: Lookout) -> None:
    lookout.asleep()
    lookout.watch.leave(lookout.socket)
    lookout.no_thread()
    lookout.watch.enter(lookout.socket)
    lookout.lend(settled=False)
    lookout.watch.leave(lookout.socket)
    lookout.no_thread()


def test_it_starts_again_for_a_later_socket(lookout: Lookout) -> None:
    for _ in range(3):
        number = lookout.lend("early")
        lookout.bell.wait_for(TICK)
        lookout.watch.give_back(number)
        lookout.watch.leave(lookout.socket)
        lookout.no_thread()
        lookout.watch.enter(lookout.socket)
    lookout.lend()
    lookout.bell.tick(3)
    assert lookout.relieved == ["a"]


def no_more(target: Callable[[], None], name: str) -> threading.Thread:
    raise RuntimeError("can't start new thread")


def test_a_reader_that_nobody_can_watch_is_not_lent(
    lookout: Lookout, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(lookout.threads, "spawn", no_more)
        assert [lookout.lend(), lookout.lend()] == [0, 0]
    assert lookout.lend("next")
    lookout.bell.tick(3)
    assert lookout.relieved == ["next"]


def test_a_lending_while_the_thread_is_being_started_does_not_count_on_it(
    lookout: Lookout, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    def fail(target: Callable[[], None], name: str) -> threading.Thread:
        gate.pass_through()
        return no_more(target, name)

    with monkeypatch.context() as broken:
        broken.setattr(lookout.threads, "spawn", fail)
        starter = Background(lookout.lend)
        gate.wait_arrived()
        assert lookout.lend("meanwhile") == 0
        gate.open()
        assert starter.result() == 0
    assert lookout.lend("later")
    lookout.bell.tick(3)
    assert lookout.relieved == ["later"]


def test_many_readers_at_once_leave_nothing_behind() -> None:
    threads = ThreadGroup()
    watch = Watch(threads)
    unwatched: list[int] = []

    def read() -> None:
        for _ in range(300):
            socket: Any = object()
            watch.enter(socket)
            number = watch.lend(lambda: True)
            if not number:
                unwatched.append(number)
            watch.give_back(number)
            watch.leave(socket)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert run_together(4, read) == [None] * 4
    finally:
        sys.setswitchinterval(interval)
    assert len(unwatched) < 1200, "nobody was watched"
    assert watch._lent == {} and threads.join(Deadline(LONG)) == []
