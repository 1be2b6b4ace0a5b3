"""The thread of a `FaultProxy`: it accepts, relays, and keeps the faults and the records."""

from __future__ import annotations

import logging
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Final

from llm_sessions.testing.proxy_connection import Addresses, ProxiedConnection, Relay
from llm_sessions.testing.proxy_lane import WAYS, Fault, FutureFaults, Lane, Way
from llm_sessions.testing.server_stream import Waker, make_selector

logger: Final = logging.getLogger("llm_sessions.testing")

BACKLOG: Final = 1024
ACCEPT_PAUSE: Final = 0.05  # seconds to wait when the process is out of descriptors


class ProxyTimeout(AssertionError, TimeoutError):
    """What a test waited for at the proxy did not happen in time; the text tells the proxy's state."""


class ProxyEngine:
    """One listening socket, its connections, and the selector that serves them all.

    Thread safety: every public method may be called from any thread.

    Args:
        host: Address to bind.
        addresses: Of the target.
        seed: For the lanes.

    Attributes:
        port: Port it listens on.
    """

    def __init__(self, host: str, addresses: Addresses, seed: int) -> None:
        self._addresses, self._seed = addresses, seed
        # Guards all of this group and everything in the relays; notified when anything changed. The thread
        # holds it for non-blocking calls only, so that a fault is in force when its verb returns.
        self._changed = threading.Condition(threading.Lock())
        self._version = 0
        self._connections: list[Relay] = []
        self._future = FutureFaults()
        self._refusals: int | None = 0  # how many more; None for all
        self._holding = self._stopping = self._touched = False
        # The thread's own.
        self._live: dict[int, Relay] = {}
        self._accept_again: float | None = None
        self._accept_error: OSError | None = None
        self._selector = make_selector()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family, backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._waker = Waker()
        self._thread = threading.Thread(target=self._main, name=f"llm-proxy[{self.port}]", daemon=True)

    def start(self) -> None:
        """Begin to accept.

        Raises:
            RuntimeError: If the system cannot start another thread.
        """
        try:
            self._thread.start()
        except RuntimeError:
            self._listener.close()
            self._waker.close()
            raise

    def stop(self, timeout: float) -> bool:
        """End the thread and all it has; return whether it ended within `timeout` seconds."""
        with self._changed:
            self._stopping = True
        self._waker.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        with self._changed:
            return self._stopping

    def connections(self) -> list[ProxiedConnection]:
        """Return every connection accepted so far, in order."""
        with self._changed:
            return list(self._connections)

    def wait_for(self, predicate: Callable[[], object], timeout: float) -> bool:
        """Return whether `predicate` held in time. It is asked without a lock, after each change."""
        deadline = time.monotonic() + timeout
        left = timeout
        while True:
            with self._changed:
                seen = self._version
            if predicate():
                return True
            if left <= 0:
                return False
            with self._changed:
                if self._version == seen:
                    self._changed.wait(left)
            left = deadline - time.monotonic()

    # --- faults

    def apply(
        self, fault: Fault, ways: tuple[Way, ...], times: int | None, on: Collection[ProxiedConnection] | None
    ) -> int:
        """Apply a fault to live connections and note it for those to come; return how many it reached."""
        with self._changed:
            reached = [
                relay
                for relay in self._connections
                if relay.closed_at is None
                and (on is None or relay in on)
                and any(relay.lane(way).over is None for way in ways)
            ][:times]
            for relay in reached:
                for way in ways:
                    relay.lane(way).apply(fault)
            left = None if times is None else times - len(reached)
            if on is None and left != 0:
                self._future.add(fault, ways, left)
        self._touch()
        return len(reached)

    def refuse(self, times: int | None) -> None:
        """Refuse the next new connections, or all."""
        with self._changed:
            self._refusals = times

    def hold(self, on: bool) -> None:
        """Hold new connections, or let them and those held go on."""
        with self._changed:
            self._holding = on
        self._touch()

    def heal(self) -> None:
        """End all faults as far as they can be."""
        with self._changed:
            self._holding, self._refusals = False, 0
            self._future.clear()
            for relay in self._connections:
                if relay.closed_at is None:
                    for way in WAYS:
                        relay.lane(way).heal()
        self._touch()

    def _touch(self) -> None:
        """Have every connection looked at again."""
        with self._changed:
            self._touched = True
        self._waker.set()

    # --- the thread

    def _main(self) -> None:
        try:
            self._selector.register(self._waker, selectors.EVENT_READ)
            self._selector.register(self._listener, selectors.EVENT_READ)
            events: list[tuple[selectors.SelectorKey, int]] = []
            while True:
                with self._changed:
                    if self._stopping:
                        break
                    due = self._turn(events)
                if self._accept_error is not None:  # not logged under the lock
                    logger.warning("port %d cannot accept: %s", self.port, self._accept_error)
                    self._accept_error = None
                events = self._selector.select(None if due is None else max(0.0, due - time.monotonic()))
        finally:
            with self._changed:
                self._stopping = True
                for relay in self._live.values():
                    relay.release(reset=False, by="closed")
                self._note_changes()
                self._selector.close()
                self._listener.close()
                self._waker.close()

    def _turn(self, events: list[tuple[selectors.SelectorKey, int]]) -> float | None:
        """Do all that can be done now; return when there is more. The lock is held."""
        touched, self._touched = self._touched, False
        ready: set[Relay] = set()
        for key, mask in events:
            if key.fileobj is self._waker:
                self._waker.clear()
            elif key.fileobj is self._listener:
                ready.update(self._accept())
            else:
                relay, side = key.data
                relay.ready(side, mask)
                ready.add(relay)
        now = time.monotonic()
        if self._accept_again is not None and now >= self._accept_again:
            self._accept_again = None
            self._selector.register(self._listener, selectors.EVENT_READ)
        dues = [] if self._accept_again is None else [self._accept_again]
        pumped = False
        for relay in list(self._live.values()):
            due = relay.due()
            if touched or relay in ready or (due is not None and due <= now):
                pumped = True
                relay.pump(now)
                if relay.stage == "held" and not self._holding:
                    relay.connect()
                due = relay.due()
            if relay.closed_at is not None:
                del self._live[relay.number]
            elif due is not None:
                dues.append(due)
        if events or touched or pumped:  # also when time alone made it write, and nothing is due any more
            self._note_changes()
        return min(dues, default=None)

    def _note_changes(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _accept(self) -> list[Relay]:
        accepted: list[Relay] = []
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return accepted
            except OSError as exc:  # out of descriptors: others may be given back soon
                self._accept_error = exc
                self._selector.unregister(self._listener)
                self._accept_again = time.monotonic() + ACCEPT_PAUSE
                return accepted
            number = len(self._connections) + 1
            lanes = {way: Lane(random.Random(f"{self._seed}/{number}/{way}")) for way in WAYS}
            relay = Relay(number, lanes, self._changed, sock, self._addresses, self._selector)
            self._connections.append(relay)
            if self._refusals != 0:
                self._refusals = None if self._refusals is None else self._refusals - 1
                relay.release(reset=True, by="refused")
                continue
            for way in WAYS:
                for fault in self._future.take(number, way):
                    lanes[way].apply(fault)
            self._live[number] = relay
            accepted.append(relay)
