"""The waker and the poll, and what stands in for them where the system lacks them."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from llm_sessions.connection.poll import POLLIN, POLLOUT, SelectPoll, Waker, milliseconds, new_poll
from tests.support import LONG, SHORT, Background


@pytest.fixture(params=["native", "fallback"])
def waker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waker]:
    if request.param == "fallback":
        monkeypatch.delattr(os, "eventfd", raising=False)
    waker = Waker()
    yield waker
    waker.close()


@pytest.fixture(params=["native", "fallback"])
def poll(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "fallback":
        monkeypatch.delattr(select, "poll", raising=False)
    poll = new_poll()
    assert isinstance(poll, SelectPoll) is (request.param == "fallback")
    return poll


def test_a_ring_ends_a_poll_from_another_thread(waker: Waker, poll: Any) -> None:
    poll.register(waker.fileno(), POLLIN)
    assert poll.poll(0) == []
    waiting = Background(lambda: poll.poll(int(LONG * 1000)))
    waker.ring()
    assert waiting.result() == [(waker.fileno(), POLLIN)]
    waker.quiet()
    assert poll.poll(0) == []
    waker.quiet()


def test_many_rings_never_block_and_are_quieted_at_once(waker: Waker, poll: Any) -> None:
    poll.register(waker.fileno(), POLLIN)
    for _ in range(3000):
        waker.ring()
    waker.quiet()
    assert poll.poll(0) == []


def test_a_full_waker_still_rings(waker: Waker) -> None:
    if waker._ends is None:
        os.eventfd_write(waker.fileno(), 2**64 - 2)
    else:
        with contextlib.suppress(BlockingIOError):
            while True:
                waker._ends[1].send(bytes(65536))
    waker.ring()
    assert select.select([waker.fileno()], [], [], LONG)[0]


def test_both_directions_and_none(poll: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poll.register(ours, POLLIN | POLLOUT)
        assert poll.poll(0) == [(ours.fileno(), POLLOUT)]
        theirs.send(b"x")
        assert poll.poll(int(LONG * 1000)) == [(ours.fileno(), POLLIN | POLLOUT)]
        poll.register(ours, POLLIN)
        assert poll.poll(None) == [(ours.fileno(), POLLIN)]
        poll.unregister(ours)
        assert poll.poll(1) == []


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [(None, None), (0.0, 0), (0.0001, 1), (SHORT, 50), (1e12, 86_400_000), (float("inf"), 86_400_000)],
)
def test_timeouts_fit_the_system(timeout: float | None, expected: int | None) -> None:
    assert milliseconds(timeout) == expected
    assert new_poll().poll(0 if expected is None else min(expected, 1)) == []
