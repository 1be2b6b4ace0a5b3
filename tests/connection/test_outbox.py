"""The order and the account of what is to be written."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest

from llm_sessions.connection.outbox import Outbox


class FakeSocket:
    """Takes as many bytes as the test says, then no more."""

    def __init__(self, *room: int) -> None:
        self.room: Iterator[int] = iter(room)
        self.data, self.calls = bytearray(), 0

    def send(self, data: Any) -> int:
        self.calls += 1
        room = next(self.room, 0)
        if not room:
            raise BlockingIOError
        taken = min(room, len(data))
        self.data += data[:taken]
        return taken


def write(outbox: Outbox, sock: FakeSocket) -> bool:
    try:
        outbox.write(sock, None)  # type: ignore[arg-type]
    except BlockingIOError:
        return False
    return True


def test_frames_leave_in_order_and_are_counted() -> None:
    outbox, sock = Outbox(), FakeSocket(10**9)
    assert not outbox
    assert outbox.put(b"one", False) == 3
    assert outbox.put(b"three", True) == 8
    assert outbox
    assert outbox.own_unsent == 5
    assert write(outbox, sock)
    assert (bytes(sock.data), sock.calls) == (b"onethree", 1), "small frames leave in one write"
    assert (outbox.written, outbox.own_unsent, bool(outbox)) == (8, 0, False)


@pytest.mark.parametrize("seed", range(20))
def test_any_partial_writes_keep_order_and_account(seed: int) -> None:
    rng = random.Random(seed)
    outbox, whole, tickets, own_total = Outbox(), bytearray(), [], 0
    sock = FakeSocket()
    for n in range(200):
        data, own = bytes([n]) * rng.choice([1, 7, 1000, 65536, 65537, 200_000]), rng.random() < 0.5
        tickets.append(outbox.put(data, own))
        whole += data
        own_total += len(data) if own else 0
        sock.room = iter([rng.choice([1, 100, 65535, 65536]) for _ in range(rng.randrange(3))])
        write(outbox, sock)
        assert outbox.written <= len(sock.data) <= outbox.posted
        assert 0 <= outbox.own_unsent <= own_total
    sock.room = itertools.repeat(10**9)
    assert write(outbox, sock)
    assert sock.data == whole
    assert outbox.written == outbox.posted == tickets[-1] == len(whole)
    assert outbox.own_unsent == 0


def test_dropped_frames_are_not_written() -> None:
    outbox, sock = Outbox(), FakeSocket(2)
    ticket = outbox.put(b"frame", True)
    assert not write(outbox, sock)
    outbox.drop()
    assert not outbox
    assert outbox.own_unsent == 0
    assert write(outbox, FakeSocket(10**9))
    assert outbox.written < ticket, "nobody may take it for sent"


@pytest.mark.timeout(60)
def test_time_is_linear_in_the_number_of_frames_and_in_their_size() -> None:
    """100,000 queued frames, and one of 64 MiB that leaves in small pieces: quadratic would take minutes."""
    outbox = Outbox()
    for _ in range(100_000):
        outbox.put(b"x" * 40, True)
    sock = FakeSocket()
    sock.room = itertools.repeat(1000)
    assert write(outbox, sock)
    outbox.put(bytes(64 << 20), False)
    sock.room = itertools.repeat(4096)
    sock.data.clear()
    assert write(outbox, sock)
    assert not outbox
