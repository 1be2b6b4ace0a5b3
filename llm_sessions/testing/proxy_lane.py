"""What `FaultProxy` does to which bytes: one direction of one connection, and the faults of those to come.

Nothing here knows of sockets, threads or clocks. A `Lane` is told what came and what time it is, and says
what to write, when to look again, and how much more it takes.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import random
from collections import deque
from typing import Final, Literal, TypeAlias

HELD_LIMIT: Final = 1 << 18  # bytes that a lane holds before its sender is no longer read
MAX_PIECES: Final = 4096  # of those, so that single bytes with a delay each cost no more than large chunks
READ_SIZE: Final = 1 << 16

Way: TypeAlias = Literal["to_server", "to_client"]
WAYS: Final[tuple[Way, Way]] = ("to_server", "to_client")
Bytes: TypeAlias = "int | tuple[int, int]"
Seconds: TypeAlias = "float | tuple[float, float]"


class End(enum.Enum):
    """How one direction of TCP ends."""

    FIN = "fin"
    RESET = "reset"


class Stop(enum.Enum):
    """What happens at a given byte."""

    CUT = "cut"
    RESET = "reset"
    BLACK_HOLE = "black_hole"  # drops what comes
    STALL = "stall"  # reads no more


@dataclasses.dataclass(frozen=True)
class Delay:
    """Hold each chunk that long."""

    seconds: Seconds


@dataclasses.dataclass(frozen=True)
class Drip:
    """Write so many bytes at a time, so many seconds apart."""

    size: Bytes
    interval: Seconds


@dataclasses.dataclass(frozen=True)
class Trip:
    """Do something once so many more bytes have been passed on."""

    stop: Stop
    after: Bytes


Fault: TypeAlias = "Delay | Drip | Trip"


class Lane:
    """The bytes of one direction between two sockets.

    Attributes:
        passed: Bytes that the receiver took.
        dropped: Bytes that it will never get.
        held: Bytes that wait to be passed on.
        ended: How the sender ended, once it did.
        over: How the receiver was told of an end; nothing is passed on any more, what comes is dropped.
        lost: Whether bytes are missing in the middle. What came after them would be nonsense, or under TLS an
            attack, so the lane can never be healed: it drops everything until the sender ends.
    """

    def __init__(self, rng: random.Random, limit: int = HELD_LIMIT) -> None:
        self.passed: int = 0
        self.dropped: int = 0
        self.held: int = 0
        self.ended: End | None = None
        self.over: End | None = None
        self.lost: bool = False
        self._rng, self._limit = rng, limit
        # What to pass on, each with the time when it may be; an End is always the last.
        self._queue: deque[tuple[float, memoryview | End]] = deque()
        self._last_due = -math.inf
        self._delay: Delay | None = None
        self._drip: Drip | None = None
        self._size, self._next_write = 0, -math.inf  # of the next drop
        self._stop: Stop | None = None
        self._stop_at = 0  # compared with `passed`

    # --- faults

    def apply(self, fault: Fault) -> None:
        """Let a fault apply from now on. It replaces one of its kind."""
        if isinstance(fault, Delay):
            self._delay = fault
        elif isinstance(fault, Drip):
            self._drip = fault
            self._size = self._pick_bytes(fault.size)
        elif not self._fated:
            self._stop = fault.stop
            # In a lane that has lost bytes nothing is passed on that could be counted.
            self._stop_at = self.passed + (0 if self.lost else self._pick_bytes(fault.after))

    def heal(self) -> None:
        """Take all faults back that can be. What was held for a time is due now."""
        self._delay = self._drip = None
        if not self._fated:
            self._stop = None
        self._next_write = self._last_due = -math.inf
        self._queue = deque((-math.inf, item) for _, item in self._queue)

    @property
    def stopped(self) -> Stop | None:
        """What the lane has come to, if it has reached the byte of such a fault."""
        return self._stop if self.passed >= self._stop_at else None

    @property
    def _fated(self) -> bool:
        """Whether an end is only waiting for its `step`: a verb was called, and another right behind it."""
        return self.stopped is Stop.CUT or self.stopped is Stop.RESET

    @property
    def swallows(self) -> bool:
        """Whether bytes vanish and the receiver is told nothing."""
        return self.over is None and (self.lost or self.stopped is Stop.BLACK_HOLE)

    # --- the sender's side

    def room(self) -> int:
        """Return how many bytes may be read from the sender now."""
        if self.ended is not None:
            return 0
        if self.over is not None or self.swallows:
            return READ_SIZE
        if len(self._queue) >= MAX_PIECES:
            return 0
        room = self._limit - self.held
        if self._stop is Stop.STALL:
            room = min(room, self._stop_at - self.passed - self.held)
        return max(0, room)

    def take(self, data: bytes, now: float) -> None:
        """Take bytes from the sender."""
        self._enqueue(memoryview(data), now)
        self.held += len(data)
        if self.over is not None or self.swallows:
            self._drop()

    def end(self, how: End, now: float) -> None:
        """Take the end of the sender. It is passed on behind its bytes, as late as they are."""
        self.ended = how
        self._enqueue(how, now)

    # --- the receiver's side

    def step(self, now: float) -> memoryview | End | None:
        """Return what to do to the receiver now: write bytes (report it by `sent`), end it, or nothing."""
        if self.over is not None:
            return None
        if self._fated:
            return self.finish(End.FIN if self._stop is Stop.CUT else End.RESET)
        if self.swallows:
            self._drop()
            # Once the network is back, the one that lives on hears that the other is gone.
            return self.finish(End.RESET) if self.ended is not None and self._stop is None else None
        if self.stopped is Stop.STALL or not self._queue or self._queue[0][0] > now:
            return None
        item = self._queue[0][1]
        if isinstance(item, End):
            return self.finish(item)
        if self._stop is not None:
            item = item[: self._stop_at - self.passed]
        if self._drip is not None:
            item = item[: self._size] if now >= self._next_write else item[:0]
        return item or None

    def sent(self, count: int, now: float) -> None:
        """Take note that the receiver took the first bytes of a step."""
        due, item = self._queue.popleft()
        assert isinstance(item, memoryview)
        if count < len(item):
            self._queue.appendleft((due, item[count:]))
        self.passed += count
        self.held -= count
        if self._drip is not None:
            self._size = self._pick_bytes(self._drip.size)
            self._next_write = now + self._pick_seconds(self._drip.interval)

    def finish(self, how: End) -> End:
        """Pass on nothing more."""
        self.over = how
        self._drop()
        return how

    def due(self) -> float | None:
        """Return when there will be a step, perhaps in the past; None if only another call makes one."""
        if self.over is not None or self.swallows or self.stopped is not None or not self._queue:
            return None
        due, item = self._queue[0]
        return due if isinstance(item, End) or self._drip is None else max(due, self._next_write)

    # --- inside

    def _enqueue(self, item: memoryview | End, now: float) -> None:
        due = now if self._delay is None else now + self._pick_seconds(self._delay.seconds)
        self._last_due = max(self._last_due, due)  # a later chunk never overtakes
        self._queue.append((self._last_due, item))

    def _drop(self) -> None:
        if self.held:
            self.lost = self.lost or self.over is None
            self.dropped += self.held
            self.held = 0
            self._queue = deque(entry for entry in self._queue if isinstance(entry[1], End))

    def _pick_bytes(self, value: Bytes) -> int:
        return self._rng.randint(*value) if isinstance(value, tuple) else value

    def _pick_seconds(self, value: Seconds) -> float:
        return self._rng.uniform(*value) if isinstance(value, tuple) else value


@dataclasses.dataclass(eq=False)
class _Counted:
    fault: Fault
    left: int
    last: int = 0  # the connection that took it last: both directions of one count once


class FutureFaults:
    """Which faults a connection begins with. Counted ones come first, in the order they were made."""

    def __init__(self) -> None:
        self._sticky: dict[tuple[type[Fault], Way], Fault] = {}
        self._counted: dict[tuple[type[Fault], Way], list[_Counted]] = {}

    def add(self, fault: Fault, ways: tuple[Way, ...], times: int | None) -> None:
        """Add a fault for the next `times` connections. For all of them, it replaces those of its kind."""
        counted = None if times is None else _Counted(fault, times)
        for way in ways:
            slot = (type(fault), way)
            if counted is not None:
                self._counted.setdefault(slot, []).append(counted)
            else:
                self._sticky[slot] = fault
                self._counted.pop(slot, None)

    def take(self, number: int, way: Way) -> list[Fault]:
        """Return the faults of one direction of connection `number`, and count it."""
        faults: list[Fault] = []
        for kind in (Delay, Drip, Trip):
            slot = (kind, way)
            for counted in self._counted.get(slot, []):
                if counted.last != number and counted.left:
                    counted.last, counted.left = number, counted.left - 1
                if counted.last == number:
                    faults.append(counted.fault)
                    break
            else:
                faults += [self._sticky[slot]] if slot in self._sticky else []
        return faults

    def clear(self) -> None:
        self._sticky.clear()
        self._counted.clear()
