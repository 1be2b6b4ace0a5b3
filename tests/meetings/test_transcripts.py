"""Captions as an iterator: who gets which, what makes room, and what ends it."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
from collections.abc import Callable
from queue import Empty
from types import SimpleNamespace
from typing import Any

import pytest

from llm_sessions import ConfigurationError, PoolClosed, _fork
from llm_sessions.meetings import transcripts
from llm_sessions.meetings.caption_events import Transcript
from llm_sessions.meetings.transcripts import Transcripts
from llm_sessions.testing.clock import ManualClock
from tests.meetings.world import PRACTICE_SESSION, MeetingWorld, give, transcript, world
from tests.support import LONG, SHORT, Background, Gate, ctrl_c, eventually, run_together

__all__ = ["world"]  # a fixture


def make(maxsize: int = 10, timeout: float | None = LONG) -> Transcripts:
    return Transcripts(maxsize, timeout, lambda: None)


def line(text: str) -> Transcript:
    return Transcript("s", {}, text, final=True)


def texts(found: Any) -> list[str]:
    return [one.text for one in found]


# -- alone ---------------------------------------------------------------------------------------------------


def test_lines_come_in_order_and_it_ends_after_them() -> None:
    lines = make()
    for text in ("a", "b"):
        assert not lines.put(line(text))
    lines.end()
    assert not lines.put(line("late"))
    assert texts(lines) == ["a", "b"] and list(lines) == []
    assert repr(lines) == "<Transcripts ended>" and repr(make()) == "<Transcripts open>"


def test_the_oldest_make_room_and_are_counted() -> None:
    lines = make(maxsize=2)
    assert [lines.put(line(str(number))) for number in range(5)] == [False, False, True, False, False]
    lines.end()
    assert texts(lines) == ["3", "4"] and lines.dropped == 3


def test_an_end_that_would_be_what_makes_room_is_not_lost() -> None:
    # `end` on another thread, between the look and the put
    lines = make(maxsize=1)
    strikes = iter([True])

    class Queue:
        def __getattr__(self, name: str) -> Any:
            return getattr(queue, name)

        def qsize(self) -> int:
            if next(strikes, False):
                lines.end()
            return queue.qsize()

    queue, lines._lines = lines._lines, Queue()  # type: ignore[assignment]
    lines.put(line("a"))
    assert texts(lines) == ["a"] and lines._lines.qsize() == 1


def test_close_forgets_what_waits_and_wakes_everybody() -> None:
    lines, got = make(timeout=None), []

    def take() -> None:
        for one in lines:
            assert one.final
            got.append(one.text)

    waiting = [Background(take) for _ in range(3)]
    lines.put(line("a"))
    eventually(lambda: got)  # not only taken from the queue: a close forgets what is on its way
    assert not any(one.done for one in waiting)
    lines.close()
    for one in waiting:
        one.result()
    assert got == ["a"]
    lines.put(line("b"))
    lines.close()
    assert list(lines) == []


@pytest.mark.parametrize("way", ["end", "close"])
def test_a_line_that_is_put_while_it_ends_does_not_come_after_the_end(way: str) -> None:
    lines = make()
    queue, strikes = lines._lines, iter([True])

    def put(one: Transcript | None) -> None:
        if one is not None and next(strikes, False):
            getattr(lines, way)()
        queue.put(one)

    standin: Any = SimpleNamespace(put=put, get=queue.get, get_nowait=queue.get_nowait, qsize=queue.qsize)
    lines._lines = standin
    lines.put(line("late"))
    assert [list(lines) for _ in range(3)] == [[], [], []]


def test_as_a_context_manager_it_is_closed() -> None:
    with make() as lines:
        lines.put(line("a"))
    assert list(lines) == []


@pytest.mark.parametrize(("taken_at", "waits"), [(None, [10.0]), (4.0, [10.0, 4.0])])
def test_the_timeout_is_silence_so_what_another_thread_takes_counts(
    monkeypatch: pytest.MonkeyPatch, taken_at: float | None, waits: list[float]
) -> None:
    clock, lines, waited = ManualClock(), make(timeout=10.0), []
    monkeypatch.setattr(transcripts, "time", SimpleNamespace(monotonic=clock))

    def get(timeout: float) -> Transcript:
        waited.append(timeout)
        if taken_at is not None and len(waited) == 1:
            clock.advance(taken_at)
            lines.put(line("a"))
            queue.get_nowait()
            clock.advance(timeout - taken_at)
        else:
            clock.advance(timeout)
        raise Empty

    queue = lines._lines
    standin: Any = SimpleNamespace(get=get, put=queue.put, qsize=queue.qsize)
    lines._lines = standin
    assert list(lines) == [] and waited == waits


def test_threads_that_share_one_share_its_lines() -> None:
    lines = make()
    both = [Background(lambda: list(lines)) for _ in range(2)]
    for number in range(6):
        lines.put(line(str(number)))
    eventually(lines._lines.empty)
    lines.end()
    assert sorted(texts(itertools.chain(*(one.result() for one in both)))) == list("012345")


def test_a_timeout_of_nothing_takes_what_is_there() -> None:
    lines = make(timeout=0)
    assert list(lines) == []
    lines.put(line("a"))
    assert texts([next(lines)]) == ["a"]


def test_it_is_checked_before_each_wait() -> None:
    def refuse() -> None:
        raise PoolClosed("no")

    lines = Transcripts(1, None, refuse)
    lines.put(line("a"))
    with pytest.raises(PoolClosed):
        next(lines)


def test_t5_ctrl_c_while_waiting_loses_nothing() -> None:
    strikes = iter([True])

    def strike() -> None:
        if next(strikes, False):
            raise KeyboardInterrupt

    lines = Transcripts(10, LONG, strike)
    lines.put(line("a"))
    with pytest.raises(KeyboardInterrupt):
        next(lines)
    assert next(lines).text == "a"


def test_t5_ctrl_c_ends_a_wait_without_limit_and_nobody_elses() -> None:
    begun = threading.Semaphore(0)
    lines = Transcripts(10, None, begun.release)
    other = Background(lambda: next(lines))
    with ctrl_c(lambda: begun.acquire(timeout=LONG) and begun.acquire(timeout=LONG)):
        next(lines)
    lines.put(line("a"))
    assert other.result().text == "a"


@pytest.mark.stress
def test_threads_that_put_take_and_close_all_end() -> None:
    for _ in range(30):
        lines = make(maxsize=3, timeout=None)
        numbers = itertools.count()

        def step(lines: Transcripts = lines, numbers: Any = numbers) -> list[str]:
            match next(numbers):
                case 0:
                    for number in range(50):
                        lines.put(line(str(number)))
                case 1:
                    lines.end()
                case 2:
                    lines.close()
                case _:
                    return texts(lines)
            return []

        outcomes = run_together(6, step)
        assert all(isinstance(one, list) for one in outcomes)
        got = list(itertools.chain(*outcomes))
        assert len(got) == len(set(got)) <= 50 and list(lines) == []


# -- in a meeting --------------------------------------------------------------------------------------------


def test_finals_of_both_channels_come_once_each_and_interims_do_not(world: MeetingWorld) -> None:
    world.join(both=True)
    main, practice = world.link(), world.link(PRACTICE_SESSION)
    first, second = world.captions.transcripts(LONG), world.captions.transcripts(LONG)
    same = transcript("same")
    give(main, transcript("interim", final=False), same)
    world.calm()
    give(practice, same, transcript("practice"))
    world.calm()
    world.meeting.leave()
    assert texts(first) == texts(second) == ["same", "practice"]


def test_what_came_before_is_not_in_it(world: MeetingWorld) -> None:
    world.join()
    give(world.link(), transcript("before"))
    world.calm()
    lines = world.captions.transcripts(LONG)
    give(world.link(), transcript("after"))
    assert next(lines).text == "after"


def test_t4_too_many_are_dropped_counted_and_warned_of_once(
    world: MeetingWorld, caplog: pytest.LogCaptureFixture
) -> None:
    world.join()
    lines = world.captions.transcripts(LONG, maxsize=2)
    other = world.captions.transcripts(LONG)
    give(world.link(), *(transcript(str(number)) for number in range(6)))
    world.calm()
    warned = [one for one in caplog.records if "oldest are dropped" in one.getMessage()]
    assert lines.dropped == 4 and other.dropped == 0
    assert len(warned) == 1 and warned[0].levelno == logging.WARNING
    assert texts([next(lines), next(lines)]) == ["4", "5"]


def test_by_default_the_pools_queue_size_may_wait(world: MeetingWorld) -> None:
    world.join()
    assert world.captions.transcripts()._maxsize == world.pool._env.config.queue_size
    assert world.captions.transcripts(maxsize=1)._maxsize == 1
    with pytest.raises(ConfigurationError):
        world.captions.transcripts(maxsize=True)


def test_an_iterator_that_nobody_has_is_forgotten(world: MeetingWorld) -> None:
    world.join()
    join = world.meeting._join
    assert join is not None
    kept = world.captions.transcripts()
    for _ in range(50):
        world.captions.transcripts()
    gc.collect()
    world.captions.transcripts()
    assert len(join.captioning._readers) <= 3
    kept.close()


class Holder:
    """What the garbage collector finds, and closes the iterator of."""

    def __init__(self, lines: Transcripts) -> None:
        self.lines, self.itself = lines, self

    def __del__(self) -> None:
        self.lines.close()


def test_closing_takes_no_lock_for_it_may_come_out_of_the_garbage_collector(world: MeetingWorld) -> None:
    world.join()
    join = world.meeting._join
    assert join is not None
    lines = world.captions.transcripts(LONG)
    waiting = Background(lambda: list(lines))
    holder = Holder(lines)
    with join.captioning._lock:  # held by this very thread
        del holder
        gc.collect()
        assert waiting.result() == []


def test_close_in_the_middle_of_a_delivery_ends_it(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.join()
    lines, gate = world.captions.transcripts(LONG), Gate()
    put: Callable[[Transcripts, Transcript], bool] = Transcripts.put

    def late(self: Transcripts, one: Transcript) -> bool:
        gate.pass_through()
        return put(self, one)

    monkeypatch.setattr(Transcripts, "put", late)
    give(world.link(), transcript("a"))
    gate.wait_arrived()
    lines.close()
    gate.open()
    world.calm()
    assert list(lines) == [] and lines._lines.qsize() == 1


def test_t7_in_a_fork_it_says_so(world: MeetingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.join()
    lines = world.captions.transcripts(SHORT)
    captions = world.captions
    with monkeypatch.context() as patch:
        patch.setattr(_fork, "_generation", _fork.generation() + 1)
        for call in (
            lambda: next(lines),
            captions.announce,
            captions.turn_on,
            captions.turn_off,
            captions.subscribe,
            captions.wait_languages,
            lambda: captions.request_language("de"),
            captions.transcripts,
        ):
            with pytest.raises(PoolClosed, match="process"):
                call()
    assert list(lines) == [] and world.one.is_connected()
