"""One connection through `FaultProxy`: what a test sees of it, and its two sockets."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from llm_sessions.testing.proxy_lane import READ_SIZE, End, Lane, Stop, Way

Stage: TypeAlias = Literal["held", "connecting", "open", "closed"]
EndedBy: TypeAlias = Literal[
    "client", "server", "cut", "reset", "refused", "unreachable", "closed"
]  # the last: by the proxy's close
Lock: TypeAlias = "contextlib.AbstractContextManager[bool]"
Addresses: TypeAlias = "list[tuple[socket.AddressFamily, Any]]"

BURST: Final = 32  # writes to one receiver before the others get their turn
_LINGER_RESET: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class ProxiedConnection:
    """A connection that `FaultProxy` accepted, also after its end.

    Thread safety: everything may be read from any thread. It is written by the proxy's thread.

    Attributes:
        number: Counts the proxy's connections from 1, in the order they were accepted.
        opened_at: When it was accepted, in seconds of `time.monotonic`.
        closed_at: When the proxy gave its sockets back, likewise; `None` before.
        ended_by: What ended it first, or one direction of it: `client` or `server` by a FIN or RST of theirs,
            `cut` or `reset`, `refused`, `unreachable` (the target did not accept), or `closed` (the proxy
            was); `None` before.
        error: Why the target could not be reached.
        stage: `held` until `release_connects`, `connecting` to the target, `open`, `closed`.
    """

    def __init__(self, number: int, lanes: Mapping[Way, Lane], lock: Lock) -> None:
        self.number = number
        self.opened_at: float = time.monotonic()
        self.closed_at: float | None = None
        self.ended_by: EndedBy | None = None
        self.error: OSError | None = None
        self.stage: Stage = "held"
        self._lanes = lanes
        # The engine's. Who has got a byte and then asks under it finds the byte counted.
        self._lock = lock

    @property
    def bytes_to_server(self) -> int:
        """Bytes passed on to the server."""
        with self._lock:
            return self._lanes["to_server"].passed

    @property
    def bytes_to_client(self) -> int:
        """Bytes passed on to the client."""
        with self._lock:
            return self._lanes["to_client"].passed

    @property
    def held(self) -> int:
        """Bytes read from either side that wait to be passed on."""
        with self._lock:
            return sum(lane.held for lane in self._lanes.values())

    @property
    def dropped(self) -> int:
        """Bytes read from either side that were never passed on."""
        with self._lock:
            return sum(lane.dropped for lane in self._lanes.values())

    def __repr__(self) -> str:
        end = "" if self.ended_by is None else f" by {self.ended_by}"
        end += "" if self.error is None else f" ({self.error})"
        counts = f"{self.bytes_to_server} bytes to server, {self.bytes_to_client} to client"
        return f"<#{self.number} {self.stage}{end}, {counts}, {self.held} held, {self.dropped} dropped>"


class Side:
    """One socket and what is known of it."""

    def __init__(self, name: Literal["client", "server"], sock: socket.socket) -> None:
        self.name: Final = name
        self.socket = sock
        self.watched = 0
        self.readable = self.blocked = False
        self.broken = False  # it did not take what was written: its FIN, if one comes, was a RST


class Relay(ProxiedConnection):
    """The sockets of a connection. All methods are for the proxy's thread, under its lock.

    Args:
        number: Of the connection.
        lanes: What happens to its bytes.
        lock: The engine's.
        client: The accepted socket; the relay owns it from here on.
        addresses: Of the target, to be tried in turn.
        selector: The proxy thread's.
    """

    def __init__(
        self,
        number: int,
        lanes: Mapping[Way, Lane],
        lock: Lock,
        client: socket.socket,
        addresses: Addresses,
        selector: selectors.BaseSelector,
    ) -> None:
        super().__init__(number, lanes, lock)
        self._selector = selector
        self._addresses = list(addresses)
        self._client = Side("client", client)
        self._server: Side | None = None
        self._again = False  # the burst was over before the bytes were
        client.setblocking(False)

    def lane(self, way: Way) -> Lane:
        return self._lanes[way]

    def due(self) -> float | None:
        """Return when `pump` should run if nothing happens; None if it need not."""
        if self.stage != "open":
            return None
        if self._again:
            return 0.0
        return min((due for lane in self._lanes.values() if (due := lane.due()) is not None), default=None)

    def connect(self) -> None:
        """Begin to connect to the target, or to its next address."""
        self.stage = "connecting"
        while self._addresses:
            family, address = self._addresses.pop(0)
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as exc:
                self.error = exc
                continue
            sock.setblocking(False)
            number = sock.connect_ex(address)
            if number in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                self._server = Side("server", sock)
                self._watch(self._server, selectors.EVENT_WRITE)
                return
            self.error = OSError(number, os.strerror(number))
            sock.close()
        self.release(reset=True, by="unreachable")

    def ready(self, side: Side, events: int) -> None:
        """Take note of what the selector saw."""
        if self.stage == "connecting":
            if number := side.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.error = OSError(number, os.strerror(number))
                self._watch(side, 0)
                side.socket.close()
                self._server = None
                self.connect()
                return
            self.stage, self.error = "open", None
            for both in (self._client.socket, side.socket):
                with contextlib.suppress(OSError):  # it fails on a socket already reset
                    both.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if events & selectors.EVENT_READ:
            side.readable = True
        if events & selectors.EVENT_WRITE:
            side.blocked = False

    def pump(self, now: float) -> None:
        """Do what can be done now without waiting."""
        self._again = False
        client, server = self._client, self._server
        if self.stage == "closed":
            return
        if self.stage != "open" or server is None:
            if any(lane.stopped is Stop.RESET for lane in self._lanes.values()):
                self.release(reset=True, by="reset")
            return
        to_server, to_client = self._lanes["to_server"], self._lanes["to_client"]
        self._read(to_server, client, now)
        self._read(to_client, server, now)
        alive = all(
            # A RST behind a cut of one direction. Where both were cut there is nobody left to tell.
            not (lane.ended is End.RESET and lane.over is End.FIN) or back.over is End.FIN or back.swallows
            for lane, back in ((to_server, to_client), (to_client, to_server))
        )
        alive = (
            alive
            and self._write(to_server, server, to_client, now)
            and self._write(to_client, client, to_server, now)
        )
        if not alive:
            self.release(reset=True, by="reset")
        elif all(lane.ended and (lane.over or lane.swallows) for lane in (to_server, to_client)):
            self.release(reset=False)
        else:
            for side, reads, writes in ((client, to_server, to_client), (server, to_client, to_server)):
                writing = side.blocked and writes.over is None
                self._watch(
                    side,
                    (selectors.EVENT_READ if reads.room() else 0) | (selectors.EVENT_WRITE if writing else 0),
                )

    def release(self, *, reset: bool, by: EndedBy | None = None) -> None:
        """Give the sockets back; `reset` makes both peers see RST. Harmless after the end."""
        if self.stage == "closed":
            return
        self.ended_by: EndedBy | None = self.ended_by or by
        self.stage: Stage = "closed"
        self.closed_at: float | None = time.monotonic()
        for side in (self._client, self._server):
            if side is not None:
                self._watch(side, 0)
                if reset:
                    with contextlib.suppress(OSError):
                        side.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
                side.socket.close()
        for lane in self._lanes.values():
            lane.finish(End.RESET if reset else End.FIN)

    # --- inside

    def _read(self, lane: Lane, sender: Side, now: float) -> None:
        room = lane.room()
        if not sender.readable or not room:
            return
        sender.readable = False
        try:
            data = sender.socket.recv(min(room, READ_SIZE))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, sender.broken = b"", True
        if data:
            lane.take(data, now)
        else:
            self.ended_by = self.ended_by or sender.name
            lane.end(End.RESET if sender.broken else End.FIN, now)

    def _write(self, lane: Lane, receiver: Side, back: Lane, now: float) -> bool:
        """Write what is due; return False if both sides have to be reset."""
        for _ in range(BURST):
            stopped = lane.stopped
            step = lane.step(now)
            if step is None:
                return True
            if isinstance(step, End):
                if stopped is Stop.CUT or stopped is Stop.RESET:
                    self.ended_by = self.ended_by or ("cut" if stopped is Stop.CUT else "reset")
                if step is End.FIN:
                    with contextlib.suppress(OSError):  # reset meanwhile
                        receiver.socket.shutdown(socket.SHUT_WR)
                return step is End.FIN
            try:
                count = receiver.socket.send(step)
            except (BlockingIOError, InterruptedError):
                receiver.blocked = True
                # A RST does not wait until the other end has room.
                return lane.ended is not End.RESET
            except OSError:
                return self._lose(lane, receiver, back)
            lane.sent(count, now)
        self._again = True
        return True

    def _lose(self, lane: Lane, receiver: Side, back: Lane) -> bool:
        """The receiver is gone. The lane back tells the sender, behind what it holds, unless it has ended."""
        lane.finish(End.RESET)
        receiver.broken = True
        return back.ended is None or back.swallows or back.stopped is Stop.STALL

    def _watch(self, side: Side, events: int) -> None:
        # With no events it is not polled at all: poll would report a hang-up anyway, and the loop spin on it.
        if events == side.watched:
            return
        if not side.watched:
            self._selector.register(side.socket, events, (self, side))
        elif not events:
            self._selector.unregister(side.socket)
        else:
            self._selector.modify(side.socket, events, (self, side))
        side.watched = events
