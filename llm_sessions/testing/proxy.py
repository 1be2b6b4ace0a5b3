"""`FaultProxy`: a TCP proxy on the loopback that does to connections what networks do.

It passes bytes between clients and one target, TLS included, and on request delays, splits, drops or ends
them, in either direction and at any byte. It starts and stops in milliseconds and runs on one thread named
`llm-proxy[<port>]`.
"""

from __future__ import annotations

import logging
import random
import socket
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, Protocol, TypeAlias

from llm_sessions.testing._managed import Managed
from llm_sessions.testing.proxy_connection import Addresses, ProxiedConnection
from llm_sessions.testing.proxy_engine import ProxyEngine, ProxyTimeout
from llm_sessions.testing.proxy_lane import (
    WAYS,
    Bytes,
    Delay,
    Drip,
    Fault,
    Seconds,
    Stop,
    Trip,
)

__all__ = ["FaultProxy", "ProxiedConnection", "ProxyTimeout"]

logger: Final = logging.getLogger("llm_sessions.testing")

Direction: TypeAlias = Literal["both", "to_server", "to_client"]

_PORTS: Final = {"ws": 80, "http": 80, "wss": 443, "https": 443}


class HasAddress(Protocol):
    """A server: `LocalServer`, another `FaultProxy`, or one of yours."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...


class FaultProxy(Managed):
    """A TCP proxy with faults. It listens from its construction on; use it in a `with`.

    Verbs make faults. `direction` says in which direction of a connection: `to_server`, `to_client` or
    `both`. Those with `after` act when the receiver has got that many bytes more of that direction, counted
    for each connection: from its beginning, or from now on if it is live; without, at once. A direction has
    one `delay`, one `drip`, and one of `cut`, `reset` and `black_hole`: the last call decides.

    A fault applies to the live connections and to all that follow, until `heal`. `times=3` applies it to
    three connections, first the live ones in order, then the next that come; counted faults of one kind wait
    in line and come before one that stays. `once=True` is `times=1`. `on=` names connections, and then it
    applies to these only. To end what is live now, and nothing else: `proxy.reset(on=proxy.live())`. Verbs
    return how many live connections they reached; when one returns, no byte passes that should not.

    Sizes and times may be pairs: `drip((1, 9))` draws each write's size, `reset(after=(0, 5000))` each
    connection's byte, `delay((0.0, 0.1))` each chunk's time. What is drawn depends on the seed, the number of
    the connection and the direction, and on nothing else.

    A FIN and a RST of one side are passed on as such, in order with the bytes and as late as they are. A side
    is not read while 256 KiB of it wait for the other, so `delay` also limits the rate.

    Thread safety: every method may be called from any thread.

    Args:
        target: Where to connect to: host and port, a URL, or something with `.host` and `.port`. Its name is
            resolved once, here.
        host: Address to bind. The port is a free one.
        seed: For what is drawn; `None` draws that too. It is part of the repr.

    Attributes:
        host: Address it listens on.
        port: Port it listens on.
        seed: As given or drawn.

    Raises:
        ValueError: The target is a URL without a host, or without a port that its scheme implies.
        OSError: The target's name cannot be resolved, or the address not be bound.
    """

    def __init__(
        self,
        target: tuple[str, int] | str | HasAddress,
        *,
        host: str = "127.0.0.1",
        seed: int | None = None,
    ) -> None:
        self.seed: int = random.randrange(1 << 32) if seed is None else seed
        self.host = host
        self._engine = ProxyEngine(host, _resolve(target), self.seed)
        self.port: int = self._engine.port
        self._engine.start()

    def __repr__(self) -> str:
        state = "closed" if self._engine.stopping else f"{len(self.connections)} connections"
        return f"<FaultProxy {self.host}:{self.port} {state}, seed {self.seed}>"

    def close(self, timeout: float = 5) -> None:
        """Stop listening, close every socket, and join the thread; from any state and any number of times.

        If the thread has not ended after `timeout` seconds, that is logged.
        """
        if not self._engine.stop(timeout):
            logger.warning("%r: its thread still runs after %s s", self, timeout)

    def url(self, original: str) -> str:
        """Return the same URL through the proxy.

        Under TLS the certificate has to be good for the proxy's host.
        """
        parts = urllib.parse.urlsplit(original)
        user, at, _ = parts.netloc.rpartition("@")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return parts._replace(netloc=f"{user}{at}{host}:{self.port}").geturl()

    # --- looking

    @property
    def connections(self) -> list[ProxiedConnection]:
        """Every connection accepted so far, in order, also those that ended."""
        return self._engine.connections()

    def live(self) -> list[ProxiedConnection]:
        """The connections whose sockets the proxy has not given back, in the order they were accepted."""
        return [c for c in self.connections if c.closed_at is None]

    def wait_for(self, predicate: Callable[[], object], timeout: float = 10) -> None:
        """Wait until `predicate()` holds.

        It is asked in this thread, with no lock held, whenever something happened at the proxy: a connection,
        bytes, an end. It should depend on nothing else.

        Raises:
            ProxyTimeout: It did not hold within `timeout` seconds. Both an AssertionError, so that a test
                fails rather than errs, and a TimeoutError.
        """
        if not self._engine.wait_for(predicate, timeout):
            state = "\n  ".join(map(str, [self, *self.connections[-20:]]))
            raise ProxyTimeout(f"not within {timeout} s: {state}")

    # --- acting

    def delay(
        self,
        seconds: Seconds,
        *,
        direction: Direction = "both",
        times: int | None = None,
        once: bool = False,
        on: Iterable[ProxiedConnection] | None = None,
    ) -> int:
        """Hold each chunk, and the end, that many seconds. Their order is kept, also if the time changes."""
        _check_range(seconds, 0)
        return self._apply(Delay(seconds), direction, times, once, on)

    def drip(
        self,
        bytes_per_write: Bytes = 1,
        interval: Seconds = 0.0,
        *,
        direction: Direction = "both",
        times: int | None = None,
        once: bool = False,
        on: Iterable[ProxiedConnection] | None = None,
    ) -> int:
        """Write so many bytes at a time, at least `interval` seconds apart (in steps of a millisecond)."""
        _check_range(bytes_per_write, 1)
        _check_range(interval, 0)
        return self._apply(Drip(bytes_per_write, interval), direction, times, once, on)

    def cut(
        self,
        after: Bytes | None = None,
        *,
        direction: Direction = "both",
        times: int | None = None,
        once: bool = False,
        on: Iterable[ProxiedConnection] | None = None,
    ) -> int:
        """Send the receiver a FIN; what its peer sends from then on is read and dropped.

        With one direction the other goes on. The sockets are given back when both peers have ended too.
        """
        return self._apply(_trip(Stop.CUT, after), direction, times, once, on)

    def reset(
        self,
        after: Bytes | None = None,
        *,
        direction: Direction = "both",
        times: int | None = None,
        once: bool = False,
        on: Iterable[ProxiedConnection] | None = None,
    ) -> int:
        """Send both sides a RST, as soon as either of the directions has come to its byte.

        At byte 0 of a new connection the target does not see it at all. Bytes just written may be lost if
        their receiver does not read: that is what a RST does.
        """
        return self._apply(_trip(Stop.RESET, after), direction, times, once, on)

    def black_hole(
        self,
        after: Bytes | None = None,
        *,
        stop_reading: bool = False,
        direction: Direction = "both",
        times: int | None = None,
        once: bool = False,
        on: Iterable[ProxiedConnection] | None = None,
    ) -> int:
        """Pass on nothing, not even an end, while TCP stays up.

        Args:
            stop_reading: Do not read it either: the sender comes to a stop when the buffers are full, and
                after `heal` everything arrives. Otherwise it is read and dropped.
        """
        stop = Stop.STALL if stop_reading else Stop.BLACK_HOLE
        return self._apply(_trip(stop, after), direction, times, once, on)

    def refuse(self, times: int | None = None) -> None:
        """Answer the next `times` new connections with a RST, or all; live ones are left alone.

        The system accepts before the proxy can refuse, so a client's `connect` may succeed, and what
        follows fails.
        """
        _check_times(times)
        self._engine.refuse(times)

    def hold_connects(self) -> None:
        """Accept new connections, but neither connect them to the target nor read them, until released."""
        self._engine.hold(True)

    def release_connects(self) -> None:
        """Connect those held to the target, and new ones at once."""
        self._engine.hold(False)

    def heal(self) -> None:
        """End all faults, for future connections and for live ones as far as they can be healed.

        What a delay or `stop_reading` held back arrives now. An end that was passed on is not taken back. A
        connection that lost bytes in a black hole stays silent in that direction, since no network goes on
        behind a gap; when its sender ends, the receiver gets a RST.
        """
        self._engine.heal()

    # --- inside

    def _apply(
        self,
        fault: Fault,
        direction: Direction,
        times: int | None,
        once: bool,
        on: Iterable[ProxiedConnection] | None,
    ) -> int:
        if once and times not in (None, 1):
            raise ValueError("once is times=1")
        times = 1 if once else times
        _check_times(times)
        if on is not None and times is not None:
            raise ValueError("on= names the connections, times= counts them")
        if direction not in ("both", *WAYS):
            raise ValueError(f"direction is both, to_server or to_client, not {direction!r}")
        ways = WAYS if direction == "both" else (direction,)
        return self._engine.apply(fault, ways, times, None if on is None else list(on))


def _trip(stop: Stop, after: Bytes | None) -> Trip:
    if after is not None:
        _check_range(after, 0)
    return Trip(stop, 0 if after is None else after)


def _check_range(value: float | tuple[float, float], least: float) -> None:
    low, high = value if isinstance(value, tuple) else (value, value)
    if not least <= low <= high:
        raise ValueError(f"must be at least {least}, or a pair of such in order, not {value!r}")


def _check_times(times: int | None) -> None:
    if times is not None and times < 1:
        raise ValueError(f"times must be at least 1 or None, not {times}")


def _resolve(target: tuple[str, int] | str | HasAddress) -> Addresses:
    if isinstance(target, str):
        parts = urllib.parse.urlsplit(target)
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    elif isinstance(target, tuple):
        host, port = target
    else:
        host, port = target.host, target.port
    if not host or not port:
        raise ValueError(f"not an address: {target!r}")
    found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]
