"""What tests share: waits for what happened, threads that start at one moment, stand-ins for sockets."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_sessions import ConnectionPool, PoolConfig
from llm_sessions._sync import LateCondition
from llm_sessions.connection.transport import (
    AttemptFailed,
    Link,
    LinkBroken,
    LinkOwner,
    OpenRequest,
    Traffic,
)
from llm_sessions.protocol.closing import Failure
from llm_sessions.protocol.mercury import EndCause, Ended

LONG = 20.0
"""Seconds within which things happen that must happen. Never the measure of anything."""

SHORT = 0.05
"""Seconds of a timeout whose expiry is what the test is about."""


def waiting_for(changed: LateCondition) -> int:
    """How many threads wait for it."""
    made = changed._condition
    return 0 if made is None else len(made._waiters)  # type: ignore[attr-defined]


def eventually(predicate: Callable[[], object], what: str = "", timeout: float = LONG) -> None:
    """Wait for a predicate that nothing announces. Prefer a Condition, an Event or a Recorder."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not predicate():
        assert time.monotonic() < deadline, what or "the predicate did not become true"
        pause.wait(0.002)


def run_together(count: int, call: Callable[[], object], timeout: float = LONG) -> list[Any]:
    """Call from `count` threads at one moment; return results and exceptions alike, in no order."""
    barrier = threading.Barrier(count)
    outcomes: list[Any] = []

    def body() -> None:
        barrier.wait(timeout)
        try:
            outcomes.append(call())
        except Exception as exc:
            outcomes.append(exc)

    threads = [threading.Thread(target=body, name=f"together-{n}") for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), f"{thread.name} did not end"
    return outcomes


class Background:
    """A call on a thread of its own. `result()` returns or raises what it did."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._outcome: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="background")
        self.thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._call()
        except BaseException as exc:
            self._error = exc

    @property
    def done(self) -> bool:
        return not self.thread.is_alive()

    def result(self, timeout: float = LONG) -> Any:
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "the call did not return"
        if self._error is not None:
            raise self._error
        return self._outcome

    def error(self, timeout: float = LONG) -> BaseException:
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "the call did not return"
        assert self._error is not None, f"it returned {self._outcome!r}"
        return self._error


@contextlib.contextmanager
def ctrl_c(when: Callable[[], object] = lambda: True, what: str = "") -> Iterator[None]:
    """Expect that a real Ctrl-C ends the block in the main thread, once `when` is true and the thread waits.

    A signal that comes after CPython has looked for one and before a wait begins is heard when the wait ends.
    So it is sent when the thread has stayed at one instruction for a while.
    """
    main = threading.main_thread().ident or 0

    def places() -> list[tuple[int, int]]:
        frame, found = sys._current_frames().get(main), []
        while frame is not None:
            found.append((id(frame), frame.f_lasti))
            frame = frame.f_back
        return found

    def strike() -> None:
        eventually(when, what)
        pause, looks, before = threading.Event(), 0, places()
        while looks < 25:
            pause.wait(0.004)
            now = places()
            looks, before = (looks + 1 if now == before else 0), now
        signal.pthread_kill(main, signal.SIGINT)

    striker = Background(strike)
    with pytest.raises(KeyboardInterrupt):
        yield
    striker.result()


class Recorder:
    """A listener that keeps what it was called with, and can be waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.calls: list[tuple[str, Any]] = []

    def named(self, name: str) -> Callable[[Any], None]:
        """Return a listener that records under this name."""

        def record(payload: Any) -> None:
            with self._changed:
                self.calls.append((name, payload))
                self._changed.notify_all()

        return record

    def listen(self, target: Any, *names: str, **where: Any) -> Recorder:
        """Register with a pool or a session for these events, or for all state events and `event`."""
        from llm_sessions.protocol.events import STATE_EVENTS

        for name in names or (*sorted(STATE_EVENTS), "event"):
            target.on(name, self.named(name), **where)
        return self

    @property
    def names(self) -> list[str]:
        with self._changed:
            return [name for name, _ in self.calls]

    def payloads(self, name: str) -> list[Any]:
        with self._changed:
            return [payload for called, payload in self.calls if called == name]

    def wait(self, name: str, count: int = 1, timeout: float = LONG) -> list[Any]:
        """Wait until an event was recorded `count` times; return its payloads."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: self.names_locked().count(name) >= count, timeout)
            assert arrived, f"{name} x{count} did not come; there were {self.names_locked()}"
        return self.payloads(name)

    def names_locked(self) -> list[str]:
        return [name for name, _ in self.calls]


def called(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> threading.Event:
    """Return an Event that is set once a method has been called and has returned."""
    event, method = threading.Event(), getattr(owner, name)

    def told(*args: Any, **options: Any) -> Any:
        found = method(*args, **options)
        event.set()
        return found

    monkeypatch.setattr(owner, name, told)
    return event


class Gate:
    """A place that a thread announces and stops at until the test lets it go on."""

    def __init__(self) -> None:
        self._arrived = threading.Semaphore(0)
        self._open = threading.Event()

    def pass_through(self) -> None:
        """Called by the code under test."""
        self._arrived.release()
        assert self._open.wait(LONG), "the test never opened the gate"

    def wait_arrived(self, timeout: float = LONG) -> None:
        assert self._arrived.acquire(timeout=timeout), "nobody came to the gate"

    def open(self) -> None:
        self._open.set()


class FakeLink:
    """A `Link` that does what the test says. Its reports are made on whatever thread calls them."""

    def __init__(self, transport: FakeTransport, request: OpenRequest, owner: LinkOwner, name: str) -> None:
        self.transport, self.request, self.owner, self.name = transport, request, owner, name
        self.ready = False
        self.time_offset: float | None = None
        self.sent: list[bytes] = []
        self.closes: list[tuple[int | None, str | None]] = []
        self.aborted = threading.Event()
        self.retired: float | None = None
        self.resumed = 0
        self.traffic = Traffic()
        self.ended = False

    def open(self) -> None:
        self.transport.on_open(self)
        if self.aborted.is_set():
            raise AttemptFailed(Failure.NETWORK, "the attempt was ended")

    def read(self) -> None:
        """Return at once: its reports are made on whatever thread calls them."""

    def become_ready(self) -> None:
        self.ready = True
        self.owner.link_ready(self)

    def end(
        self, code: int = 1006, reason: str = "", cause: EndCause = EndCause.PEER, *, missed: bool = False
    ) -> None:
        """Report the end, once."""
        if not self.ended:
            self.ended, self.ready = True, False
            self.owner.link_ended(self, Ended(code, reason, cause, missed=missed))

    def send(self, payload: bytes, timeout: float | None) -> None:
        if not self.ready:
            raise LinkBroken("the connection is closing", started=False)
        self.sent.append(payload)

    def close(self, code: int | None, reason: str | None) -> None:
        self.closes.append((code, reason))
        self.transport.on_close(self)

    def abort(self) -> None:
        self.aborted.set()

    def retire(self, seconds: float) -> None:
        self.retired = seconds

    def resume(self) -> None:
        self.resumed += 1

    def lend(self) -> None:
        raise AssertionError("its reports are made on threads that read nothing")

    def relieve(self) -> bool:
        return False


class FakeTransport:
    """A `Transport` whose links open at once and are ready, until the test sets `on_open` or `on_close`.

    Attributes:
        on_open: Called in `Link.open` on the connector's thread; may block, raise AttemptFailed, or report.
        on_close: Called in `Link.close`.
        links: Every link ever made.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.links: list[FakeLink] = []
        self.on_open: Callable[[FakeLink], None] = FakeLink.become_ready
        self.on_close: Callable[[FakeLink], None] = lambda link: link.end(1000, "Done", EndCause.LOCAL)

    def __call__(self, request: OpenRequest, owner: LinkOwner, name: str) -> Link:
        link = FakeLink(self, request, owner, name)
        with self._changed:
            self.links.append(link)
            self._changed.notify_all()
        return link

    def wait_links(self, count: int, timeout: float = LONG) -> list[FakeLink]:
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self.links) >= count, timeout)
            assert arrived, f"{len(self.links)} links instead of {count}"
            return list(self.links)


def fake_pool(transport: FakeTransport | None = None, **config: Any) -> tuple[ConnectionPool, FakeTransport]:
    """Return a pool whose sockets are fakes, with short waits and no jitter unless told otherwise."""
    transport = transport or FakeTransport()
    settings: dict[str, Any] = {
        "backoff_initial": 0.01,
        "backoff_max": 0.05,
        "jitter": False,
        "wait_timeout": LONG,
    }
    pool = ConnectionPool("token", config=PoolConfig(**{**settings, **config}))
    pool._env.transport = transport
    return pool, transport


QUICK: dict[str, Any] = {
    "backoff_initial": 0.01,
    "backoff_max": 0.05,
    "jitter": False,
    "force_close_delay": 0.3,
    "wait_timeout": LONG,
    "open_timeout": LONG,
}
"""PoolConfig settings for tests against real sockets, where a wait between attempts is not the point."""


def descriptors() -> int:
    """Return how many file descriptors this process has open (Linux)."""
    return len(os.listdir("/proc/self/fd"))


def resident_bytes() -> int:
    """Return the memory that the process has (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def library_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("llm-")]


@contextlib.contextmanager
def no_leaks(grace: float = LONG) -> Iterator[None]:
    """Fail if the block leaves threads or descriptors behind, and name the threads."""
    before, open_before = set(threading.enumerate()), descriptors()
    yield
    deadline = time.monotonic() + grace
    pause = threading.Event()
    while True:
        left = [thread for thread in threading.enumerate() if thread not in before]
        if not left and descriptors() <= open_before:
            return
        if time.monotonic() >= deadline:
            break
        pause.wait(0.002)
    assert not left, f"threads left running: {sorted(thread.name for thread in left)}"
    assert descriptors() <= open_before, f"{descriptors() - open_before} descriptors left open"


def decode_frames(data: bytes) -> Sequence[tuple[int, bytes]]:
    """Return opcode and unmasked payload of each whole client frame in `data`."""
    frames = []
    at = 0
    while at < len(data):
        opcode, size = data[at] & 0x0F, data[at + 1] & 0x7F
        at += 2
        if size == 126:
            size, at = int.from_bytes(data[at : at + 2], "big"), at + 2
        elif size == 127:
            size, at = int.from_bytes(data[at : at + 8], "big"), at + 8
        key, at = data[at : at + 4], at + 4
        payload = bytes(byte ^ key[n % 4] for n, byte in enumerate(data[at : at + size]))
        frames.append((opcode, payload))
        at += size
    return frames
