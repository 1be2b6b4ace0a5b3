"""Locks that know their order, deadlines on a clock made by hand, and threads that are all waited for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from llm_sessions import _sync
from llm_sessions._sync import (
    CONNECTION,
    LEAF,
    POOL,
    SESSION,
    STREAM,
    Deadline,
    Latch,
    LateCondition,
    RankedLock,
    ThreadGroup,
    check_lock_order,
    held_locks,
    make_lock,
)
from tests.support import LONG, SHORT, Background, Gate, eventually, run_together


@pytest.fixture
def unchecked() -> Iterator[None]:
    check_lock_order(False)
    yield
    check_lock_order(True)


# -- locks ----------------------------------------------------------------------------------------------


def test_the_ranks_are_those_of_the_layers() -> None:
    assert (POOL, SESSION, CONNECTION, STREAM, LEAF) == (10, 20, 30, 35, 40)


def test_locks_are_checked_in_tests_and_plain_otherwise(unchecked: None) -> None:
    assert type(make_lock("a", LEAF)) is type(threading.Lock())
    check_lock_order(True)
    assert isinstance(make_lock("a", LEAF), RankedLock)


def test_locks_nest_upwards() -> None:
    pool, session, leaf = RankedLock("pool", POOL), RankedLock("session", SESSION), RankedLock("leaf", LEAF)
    with pool, session, leaf:
        assert held_locks() == ["pool", "session", "leaf"]
        assert pool.locked() and session.locked() and leaf.locked()
    assert held_locks() == []
    assert not (pool.locked() or session.locked() or leaf.locked())


@pytest.mark.parametrize(("held", "wanted"), [(LEAF, POOL), (SESSION, SESSION), (STREAM, CONNECTION)])
def test_a_lock_out_of_order_is_refused_before_it_is_taken(held: int, wanted: int) -> None:
    first, second = RankedLock("first", held), RankedLock("second", wanted)
    with first:
        with pytest.raises(AssertionError, match="'second' taken while holding 'first'"):
            second.acquire()
        with pytest.raises(AssertionError):
            second.acquire(blocking=False)
        assert not second.locked()
        assert held_locks() == ["first"]
    with second:
        assert held_locks() == ["second"]


def test_a_lock_is_not_reentrant_and_says_so_instead_of_hanging() -> None:
    lock = RankedLock("lock", LEAF)
    with lock, pytest.raises(AssertionError):
        lock.acquire()


def test_locks_may_be_released_in_any_order() -> None:
    pool, session, leaf = RankedLock("pool", POOL), RankedLock("session", SESSION), RankedLock("leaf", LEAF)
    pool.acquire()
    session.acquire()
    pool.release()
    assert held_locks() == ["session"]
    with leaf:
        pass
    with pytest.raises(AssertionError):
        pool.acquire()
    session.release()
    assert pool.acquire()
    pool.release()


def test_a_lock_is_released_when_its_block_raises() -> None:
    lock = RankedLock("lock", LEAF)
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.locked() and held_locks() == []


def test_order_is_each_threads_own_and_a_lock_excludes_other_threads() -> None:
    lock = RankedLock("lock", LEAF)
    with lock:
        assert lock._is_owned()

        def elsewhere() -> tuple[bool, bool, bool, list[str]]:
            with RankedLock("pool", POOL):
                return (
                    lock._is_owned(),
                    lock.acquire(blocking=False),
                    lock.acquire(timeout=SHORT),
                    held_locks(),
                )

        assert Background(elsewhere).result() == (False, False, False, ["pool"])
    assert not lock._is_owned()

    def take_and_release() -> bool:
        with lock:
            return lock._is_owned()

    assert Background(take_and_release).result()


def test_a_lock_is_not_released_by_a_thread_that_does_not_hold_it() -> None:
    lock = RankedLock("lock", LEAF)
    with lock:
        Background(lock.release).error()
        assert lock.locked()


def test_a_condition_works_on_a_checked_lock_and_gives_it_up_while_it_waits() -> None:
    lock = RankedLock("lock", SESSION)
    changed = threading.Condition(lock)  # type: ignore[arg-type]
    ready: list[int] = []

    def wait() -> list[str]:
        with lock:
            assert changed.wait_for(lambda: ready, LONG)
            return held_locks()

    waiter = Background(wait)
    with lock:
        ready.append(1)
        changed.notify_all()
    assert waiter.result() == ["lock"]
    with pytest.raises(RuntimeError):
        changed.notify_all()  # without the lock


# -- deadlines ------------------------------------------------------------------------------------------


class ManualClock:
    def __init__(self, at: float = 100.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def test_a_deadline_counts_down_to_zero_and_not_below() -> None:
    clock = ManualClock()
    deadline = Deadline(5.0, clock)
    assert (deadline.timeout, deadline.at, deadline.left(), deadline.expired) == (5.0, 105.0, 5.0, False)
    clock.at = 104.5
    assert (deadline.left(), deadline.expired) == (0.5, False)
    clock.at = 105.0
    assert (deadline.left(), deadline.expired) == (0.0, True)
    clock.at = 1000.0
    assert (deadline.left(), deadline.expired) == (0.0, True)


def test_no_timeout_never_expires() -> None:
    clock = ManualClock()
    deadline = Deadline(None, clock)
    clock.at = 1e12
    assert (deadline.timeout, deadline.at, deadline.left(), deadline.expired) == (None, None, None, False)


@pytest.mark.parametrize("timeout", [0, 0.0, -5.0])
def test_no_time_has_expired_at_once(timeout: float) -> None:
    deadline = Deadline(timeout, ManualClock())
    assert (deadline.left(), deadline.expired) == (0.0, True)


def test_the_clock_is_the_monotonic_one_unless_told_otherwise() -> None:
    left = Deadline(1000.0).left()
    assert left is not None and 900.0 < left <= 1000.0


# -- threads --------------------------------------------------------------------------------------------


def test_threads_are_named_daemonic_and_counted_while_they_run() -> None:
    group, gate = ThreadGroup(), Gate()
    thread = group.spawn(gate.pass_through, "llm-test")
    gate.wait_arrived()
    assert (thread.name, thread.daemon, group.alive()) == ("llm-test", True, [thread])
    gate.open()
    assert group.join(Deadline(LONG)) == []
    assert not thread.is_alive()
    assert group.alive() == []


def test_join_returns_who_is_still_there_at_the_deadline() -> None:
    group, gate = ThreadGroup(), Gate()
    stuck = group.spawn(gate.pass_through, "llm-stuck")
    gate.wait_arrived()
    assert group.join(Deadline(SHORT)) == [stuck]
    assert group.join(Deadline(0)) == [stuck]
    gate.open()
    assert group.join(Deadline(None)) == []


def test_one_deadline_is_for_all_threads_together() -> None:
    group, gate, clock = ThreadGroup(), Gate(), ManualClock()
    threads = [group.spawn(gate.pass_through, f"llm-{n}") for n in range(3)]
    for _ in threads:
        gate.wait_arrived()
    deadline = Deadline(LONG, clock)
    clock.at += LONG  # used up: nobody is waited for
    assert set(group.join(deadline)) == set(threads)
    gate.open()
    assert group.join(Deadline(LONG)) == []


def test_i97_one_of_the_groups_own_does_not_wait_for_itself_nor_for_those_that_call_back() -> None:
    group, gate = ThreadGroup(), Gate()
    other = group.spawn(gate.pass_through, "llm-other", calls_back=True)
    gate.wait_arrived()
    left: list[list[threading.Thread]] = []
    inner = group.spawn(lambda: left.append(group.join(Deadline(LONG))), "llm-inner")
    inner.join(LONG)
    assert not inner.is_alive()
    assert left == [[]]
    assert other.is_alive()
    gate.open()
    assert group.join(Deadline(LONG)) == []


def test_t2_join_waits_for_what_a_thread_spawns_meanwhile() -> None:
    group, first, second, joining = ThreadGroup(), Gate(), Gate(), Gate()
    spawned: list[threading.Thread] = []

    def parent() -> None:
        first.pass_through()
        spawned.append(group.spawn(second.pass_through, "llm-child"))

    class Announced(Deadline):
        def left(self) -> float | None:
            joining.pass_through()  # the set of threads to wait for has been looked at
            return super().left()

    group.spawn(parent, "llm-parent")
    first.wait_arrived()
    joiner = Background(lambda: group.join(Announced(LONG)))
    joining.wait_arrived()
    first.open()
    second.wait_arrived()
    joining.open()
    second.open()
    assert joiner.result() == []
    assert not spawned[0].is_alive()


def test_a_thread_that_is_about_to_be_started_is_not_joined() -> None:
    group = ThreadGroup()
    unborn = threading.Thread(target=lambda: None, name="llm-unborn")
    group._threads.append(unborn)  # between the append and the start in spawn()
    assert group.join(Deadline(LONG)) == []
    assert group.alive() == []
    assert group._threads == [unborn]


def test_a_thread_that_raises_is_counted_off() -> None:
    group = ThreadGroup()
    raised: list[BaseException | None] = []
    kept, threading.excepthook = threading.excepthook, lambda args: raised.append(args.exc_value)
    try:
        thread = group.spawn(lambda: [][0], "llm-raises")
        thread.join(LONG)
    finally:
        threading.excepthook = kept
    assert isinstance(raised[0], IndexError)
    assert group.alive() == []


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_a_thread_that_cannot_be_started_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def start(self: threading.Thread) -> None:
        raise error

    group = ThreadGroup()
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(type(error)):
        group.spawn(lambda: None, "llm-unborn")
    assert group.alive() == []


def test_t5_a_thread_that_started_although_its_starter_was_interrupted_stays_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group, gate = ThreadGroup(), Gate()
    real = threading.Thread.start

    def start(self: threading.Thread) -> None:
        real(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            group.spawn(gate.pass_through, "llm-started")
    gate.wait_arrived()
    assert [thread.name for thread in group.alive()] == ["llm-started"]
    gate.open()
    assert group.join(Deadline(LONG)) == []


def test_many_threads_at_once_are_all_counted_and_all_counted_off() -> None:
    group = ThreadGroup()
    done: list[int] = []
    outcomes = run_together(16, lambda: group.spawn(lambda: done.append(1), "llm-one"))
    assert all(isinstance(outcome, threading.Thread) for outcome in outcomes)
    assert group.join(Deadline(LONG)) == []
    assert len(done) == 16
    assert group.alive() == []


def test_the_check_of_locks_is_on_in_every_test() -> None:
    assert _sync._checking


def test_i28_ended_threads_are_swept_out() -> None:
    group = ThreadGroup()
    for _ in range(200):
        group.spawn(lambda: None, "llm-short").join(10)
    assert len(group._threads) <= 2 * _sync._FEW_THREADS
    assert group.join(Deadline(10)) == []


# -- LateCondition ------------------------------------------------------------------------------------------


def test_a_late_condition_is_made_for_its_first_waiter_and_wakes_them_all() -> None:
    lock = threading.Lock()
    changed, ready = LateCondition(lock), list[bool]()
    with lock:
        changed.notify_all()
        assert changed._condition is None, "nobody waits: there is nothing to make"
        assert changed.wait_for(lambda: False, SHORT) is False
        made = changed._condition

    def wait_for_it() -> bool:
        with lock:
            return changed.wait_for(lambda: bool(ready))

    def wait_for_news() -> None:
        with lock:
            changed.wait()

    calls = [Background(wait_for_it), Background(wait_for_it)]
    other = Background(wait_for_news)
    assert made is not None and changed._condition is made, "one, or they would not share it"
    eventually(lambda: len(made._waiters) == 3)  # type: ignore[attr-defined]
    with lock:
        ready.append(True)
        changed.notify_all()
    assert [call.result() for call in calls] == [True, True]
    other.result()


# -- Latch --------------------------------------------------------------------------------------------------


def test_a_latch_wakes_all_who_wait_and_holds_up_nobody_later() -> None:
    latch = Latch()
    assert not latch.is_set() and latch.wait(0) is False and latch.wait(SHORT) is False
    calls = [Background(lambda: latch.wait()) for _ in range(5)]
    calls += [Background(lambda: latch.wait(LONG)) for _ in range(5)]
    eventually(lambda: len(latch._waiters) == 10)  # those whose time ran out are gone
    latch.set()
    latch.set()
    assert all(call.result() is True for call in calls)
    assert latch.is_set() and latch.wait(0) is True


def test_a_latch_may_be_set_by_several_threads_at_once() -> None:
    for _ in range(50):
        latch = Latch()
        calls = [Background(lambda latch=latch: latch.wait(LONG)) for _ in range(3)]
        assert run_together(4, latch.set) == [None] * 4
        assert all(call.result() is True for call in calls)


def test_a_latch_keeps_nothing_of_those_whose_time_ran_out() -> None:
    latch = Latch()
    for _ in range(100):
        assert latch.wait(0) is False
    assert latch._waiters == []
    latch.set()
    assert latch.wait() is True and latch._waiters == []


@pytest.mark.parametrize("timeout", [-1, -0.5])
def test_a_latch_does_not_wait_when_the_time_is_over_already(timeout: float) -> None:
    assert Background(lambda: Latch().wait(timeout)).result() is False


def test_a_latch_is_set_while_the_time_of_its_waiters_runs_out() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            latch = Latch()
            calls = [Background(lambda latch=latch: latch.wait(0.0005)) for _ in range(3)]
            latch.set()
            assert all(call.result() in (True, False) for call in calls)
            assert latch._waiters == []
    finally:
        sys.setswitchinterval(interval)


def test_no_wake_up_of_a_latch_is_lost() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            latch = Latch()
            calls = [Background(lambda latch=latch: latch.wait(LONG)) for _ in range(3)]
            latch.set()
            assert all(call.result() is True for call in calls)
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("limit", [None, LONG])
def test_i97_one_of_the_groups_own_does_not_wait_for_those_that_begin_to_call_back(
    limit: float | None,
) -> None:
    """Two callbacks that close the pool: the second begins when the first has begun to wait."""
    group, gate, joining = ThreadGroup(), Gate(), threading.Event()
    left: list[list[threading.Thread]] = []

    class Announced(Deadline):
        def left(self) -> float | None:
            joining.set()
            return super().left()

    def reader() -> None:
        assert joining.wait(LONG)
        group.lend(threading.current_thread())
        gate.pass_through()
        group.give_back(threading.current_thread())

    other = group.spawn(reader, "llm-reader")
    inner = group.spawn(lambda: left.append(group.join(Announced(limit))), "llm-inner")
    inner.join(LONG)
    assert left == [[]] and not inner.is_alive() and other.is_alive()
    gate.wait_arrived()
    Background(lambda: left.append(group.join(Deadline(0)))).result()
    assert left[1] == [other], "from outside it is waited for"
    gate.open()
    assert group.join(Deadline(LONG)) == [] and group._lent == set()
