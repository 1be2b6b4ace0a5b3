"""What is watched during a round: every step of every session, every call, and what is left behind."""

from __future__ import annotations

import collections
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llm_sessions.pool.core import SessionCore
from llm_sessions.protocol.state import TRANSITIONS, SessionState, Trigger
from tests.support import descriptors

__all__ = ["Baseline", "Calls", "ErrorLog", "Metronome", "Step", "Steps", "illegal_steps", "slow_calls"]


# --- steps


class Step(NamedTuple):
    """A session's step."""

    session: object
    name: str
    before: SessionState
    trigger: Trigger
    after: SessionState


class Steps:
    """Writes down each step of each session, in its order: under the session's own lock."""

    def __init__(self) -> None:
        self.taken: list[Step] = []

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        original = SessionCore._step
        taken = self.taken

        def step(self: SessionCore, effects: Any, trigger: Trigger, why: object = None) -> None:
            before = self._state
            try:
                original(self, effects, trigger, why)
            finally:
                taken.append(Step(id(self), self.session_id, before, trigger, self._state))

        SessionCore._step = step  # type: ignore[method-assign]
        try:
            yield
        finally:
            SessionCore._step = original  # type: ignore[method-assign]

    def onlines(self, session: object) -> int:
        return sum(one.session == id(session) and one.trigger is Trigger.OPENED for one in self.taken)


def illegal_steps(steps: Sequence[Step]) -> Iterator[str]:
    """Name the steps that the table does not have, or that do not begin where the last one ended."""
    stands: dict[object, SessionState] = {}
    for step in steps:
        before = stands.get(step.session, SessionState.IDLE)
        if step.before is not before:
            yield f"{step.name}: {step.trigger.value} from {step.before.value}, and it was {before.value}"
        if TRANSITIONS[step.before].get(step.trigger) is not step.after:
            path = f"{step.before.value} -> {step.after.value}"
            yield f"{step.name}: {path} by {step.trigger.value} is not in the table"
        stands[step.session] = step.after


# --- calls


class Metronome:
    """Measures how long the process stood still: a thread that should wake every few milliseconds.

    A call is not slow because the machine was busy with something else.
    """

    BEAT = 0.02

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._late: list[tuple[float, float]] = []  # when, and how much
        self._thread = threading.Thread(target=self._run, name="chaos-metronome")

    def __enter__(self) -> Metronome:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        due = time.monotonic() + self.BEAT
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            now = time.monotonic()
            if now - due > self.BEAT:
                self._late.append((now, now - due))
            due = now + self.BEAT

    def stood_still(self, since: float) -> float:
        """Return the seconds that the process stood still after a moment."""
        return sum(late for at, late in list(self._late) if at >= since)


class Call(NamedTuple):
    """A call that has ended.

    Attributes:
        name: Of what was called.
        seconds: How long it took.
        limit: Its timeout.
        still: How long the process stood still meanwhile.
        error: What it raised, if that is none of the library's errors.
    """

    name: str
    seconds: float
    limit: float
    still: float = 0.0
    error: str = ""


class Calls:
    """Times calls.

    Args:
        metronome: See there.
        expected: Exceptions that calls may raise.
    """

    def __init__(self, metronome: Metronome, expected: tuple[type[Exception], ...]) -> None:
        self._metronome, self._expected = metronome, expected
        self._lock = threading.Lock()
        self.odd: list[Call] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self.slowest = Call("none", 0.0, 0.0)

    def time(self, name: str, limit: float, call: Callable[[], Any]) -> Any:
        """Make a call; return what it returns, or None if it raised."""
        began, error, result = time.monotonic(), "", None
        try:
            result = call()
        except self._expected:
            pass
        except Exception as exc:
            error = f"{type(exc).__name__}: {exc}"
        seconds = time.monotonic() - began
        done = Call(name, seconds, limit, self._metronome.stood_still(began), error)
        with self._lock:
            self.counts[name] += 1
            if seconds - limit > self.slowest.seconds - self.slowest.limit:
                self.slowest = done
            if error or seconds > limit:
                self.odd.append(done)
        return result


def slow_calls(calls: Sequence[Call], grace: float = 1.0) -> Iterator[str]:
    """Name the calls that took longer than their timeout and a second, or failed in a way of their own."""
    for call in calls:
        if call.error:
            yield f"{call.name} raised {call.error}"
        elif call.seconds - call.still > call.limit + grace:
            still = f", of which the process stood still for {call.still:.2f} s" if call.still else ""
            yield f"{call.name} took {call.seconds:.2f} s with a timeout of {call.limit:.2f} s{still}"


# --- errors


class ErrorLog(logging.Handler):
    """Collects what the library logs as an error, and threads that die of an exception."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        cause = record.exc_info[1] if record.exc_info else None
        self.found.append(f"logged: {record.getMessage()}" + (f" ({cause!r})" if cause else ""))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        before = threading.excepthook

        def died(args: threading.ExceptHookArgs) -> None:
            name = args.thread.name if args.thread is not None else "a thread"
            self.found.append(f"{name} died of {args.exc_value!r}")

        logger = logging.getLogger("llm_sessions")
        logger.addHandler(self)
        # Who else keeps records keeps the tracebacks in them, and all that is to be gone after the round.
        propagated, logger.propagate = logger.propagate, False
        threading.excepthook = died
        try:
            yield
        finally:
            threading.excepthook = before
            logger.propagate = propagated
            logger.removeHandler(self)


# --- what is left behind


class Baseline:
    """Threads, descriptors and the library's objects, to be compared with later.

    Attributes:
        threads: Those that run.
        descriptors: How many are open.
        objects: How many there are of each class of the library.
    """

    def __init__(self) -> None:
        self.threads = set(threading.enumerate())
        self.descriptors = descriptors()
        self.objects = count_objects()

    def left_behind(self, grace: float = 10.0) -> list[str]:
        """Name what there is more of by now; wait for it to go, at most `grace` seconds."""
        deadline, pause = time.monotonic() + grace, threading.Event()
        while found := self._more():
            if time.monotonic() >= deadline:
                return found
            pause.wait(0.05)
        return []

    def _more(self) -> list[str]:
        names = sorted(one.name for one in set(threading.enumerate()) - self.threads)
        found = [f"thread {name} still runs" for name in names]
        if (surplus := descriptors() - self.descriptors) > 0:
            found.append(f"{surplus} descriptors are still open")
        return found or grown(self.objects, count_objects())


def count_objects() -> Mapping[str, int]:
    """Count the instances of the library's classes."""
    gc.collect()
    kinds = collections.Counter(map(type, gc.get_objects()))
    return {
        f"{kind.__module__}.{kind.__qualname__}": count
        for kind, count in kinds.items()
        if str(kind.__module__).startswith("llm_sessions") and not issubclass(kind, type)
    }


def grown(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    """Name the classes that have more instances."""
    return [
        f"{count - before.get(kind, 0)} {kind} are left"
        for kind, count in sorted(after.items())
        if count > before.get(kind, 0)
    ]
