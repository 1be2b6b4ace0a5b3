"""The mailbox: order, the bound, and writers that must never wait."""

from __future__ import annotations

import signal
import threading

import pytest

from llm_sessions.cli.mailbox import Mailbox
from tests.support import LONG, SHORT, Background, eventually, run_together


def test_things_come_in_their_order() -> None:
    mailbox = Mailbox()
    mailbox.put(1)
    mailbox.tell(2)
    mailbox.put(3)
    assert [mailbox.get(LONG) for _ in range(3)] == [1, 2, 3]
    assert mailbox.get(SHORT) is None


def test_a_full_one_has_writers_wait_but_for_those_who_tell() -> None:
    mailbox = Mailbox(size=2)
    mailbox.put("first")
    mailbox.put("second")
    third = Background(lambda: mailbox.put("third"))
    mailbox.tell("news")
    third.thread.join(SHORT)
    assert not third.done
    assert mailbox.get(LONG) == "first"
    third.result()
    assert [mailbox.get(LONG) for _ in range(3)] == ["second", "news", "third"]


def test_news_take_no_room() -> None:
    mailbox = Mailbox(size=1)
    for number in range(5):
        mailbox.tell(number)
    mailbox.put("thing")
    assert [mailbox.get(LONG) for _ in range(6)] == [0, 1, 2, 3, 4, "thing"]
    Background(lambda: mailbox.put("another")).result()


@pytest.mark.stress
def test_nothing_is_lost_and_nobody_is_left_waiting() -> None:
    mailbox, numbers = Mailbox(size=3), iter(range(8))

    def write() -> None:
        mine = next(numbers)
        for count in range(50):
            mailbox.put((mine, count))

    writers = Background(lambda: run_together(8, write))
    found = [mailbox.get(LONG) for _ in range(400)]
    assert writers.result() == [None] * 8
    assert sorted(found) == [(mine, count) for mine in range(8) for count in range(50)]  # type: ignore[type-var]
    for mine in range(8):
        assert [one[1] for one in found if one[0] == mine] == list(range(50))  # type: ignore[index]


def test_a_signal_handler_wakes_a_reader_that_waits() -> None:
    mailbox = Mailbox()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: mailbox.tell(number))
    main = threading.main_thread().ident or 0

    def strike() -> None:  # again, for one may come before the reader waits
        eventually(lambda: signal.pthread_kill(main, signal.SIGUSR1) or done.wait(SHORT))

    done = threading.Event()
    striker = Background(strike)
    try:
        assert mailbox.get(LONG) == signal.SIGUSR1
    finally:
        done.set()
        striker.result()
        signal.signal(signal.SIGUSR1, before)
