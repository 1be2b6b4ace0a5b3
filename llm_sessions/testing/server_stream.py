"""The byte stream of one accepted connection: socket, TLS, outgoing bytes, and the wake-up of its thread.

One thread, the *owner*, waits, reads and releases the descriptors. Any thread may `post` bytes or `wake` the
owner. TLS is an `ssl.SSLObject` on two `MemoryBIO`s under the stream's lock, because OpenSSL forbids two
threads inside one object and an `SSLSocket` would have the reader hold that lock while it waits.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable

READ_SIZE = 65536
TLS_FEED = 16384  # one TLS record; a MemoryBIO never shrinks, so it must not be fed a whole flood
SEND_SIZE = 1 << 18  # what one system call is offered; more would only be copied and refused
_LINGER_RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class Waker:
    """Wakes one thread out of its selector. `set` may be called from any thread, also after `close`."""

    def __init__(self) -> None:
        # Guards the descriptor's life: a late `set` must not write into a number that was given away again.
        self._lock = threading.Lock()
        self._closed = False
        if sys.platform == "linux":
            # One descriptor instead of two: 200 connections fit the usual limit of 1024.
            self._fd = self._number = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._reader, self._writer = socket.socketpair()
            self._reader.setblocking(False)
            self._writer.setblocking(False)
            self._number = self._reader.fileno()

    def fileno(self) -> int:
        return self._number

    def set(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):  # full means that it is already set
            if self._closed:
                return
            if sys.platform == "linux":
                os.write(self._fd, b"\1\0\0\0\0\0\0\0")
            else:
                self._writer.send(b"\0")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if sys.platform == "linux":
                os.read(self._fd, 8)
            else:
                self._reader.recv(4096)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if sys.platform == "linux":
                os.close(self._fd)
            else:
                self._reader.close()
                self._writer.close()


def make_selector() -> selectors.BaseSelector:
    """A selector that needs no descriptor of its own and, where there is poll, has no limit of 1024."""
    kind: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)
    return kind()


class ServerStream:
    """Bytes in, bytes out.

    Args:
        sock: An accepted socket. The stream owns it from here on.
        context: TLS context of the server side; `None` speaks plain TCP.
        outbox_limit: Bytes that may wait for a peer that does not read before `post` waits for room.
        write_timeout: Seconds `post` waits for room.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext | None,
        *,
        outbox_limit: int,
        write_timeout: float,
    ) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._context = context
        self._outbox_limit, self._write_timeout = outbox_limit, write_timeout
        # Guards the TLS object, its BIOs, the outbox, the flags and the use of the socket for writing.
        # Held for non-blocking calls only; notified when the outbox shrinks below its limit and at the end.
        self._room = threading.Condition(threading.Lock())
        self._outbox = bytearray()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._handshaken = self._peer_ended = self._sealed = False
        self._finishing = self._shut = self._ended = self._write_dead = False
        self._owner: int | None = None
        self._waker = Waker()
        self._selector = make_selector()
        self._watched = 0
        self._selector.register(self._waker, selectors.EVENT_READ)

    # --- the owner's side

    def adopt(self) -> None:
        """Make the calling thread the owner. Comes before every other call of this side."""
        self._owner = threading.get_ident()
        # Without this a reply waits for the peer's delayed ack (40 ms). It fails on a socket already reset.
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def wait(self, timeout: float | None, *, read: bool = True) -> bool:
        """Wait for bytes, room to write, a `wake`, or `timeout` seconds; return whether there is to read."""
        with self._room:
            self._flush()
            writing = bool(self._outbox)
        if read and self._peer_ended:
            return True  # TLS has ended, perhaps TCP has not: nothing more would make the socket readable
        self._watch((selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if writing else 0))
        readable = False
        for key, events in self._selector.select(timeout):
            if key.fileobj is self._waker:
                self._waker.clear()
            else:
                readable = bool(events & selectors.EVENT_READ)
        return readable

    def read(self) -> bytes | None:
        """Return what came: `None` for nothing yet, `b""` for the peer's end.

        Raises:
            OSError: The connection was reset, or TLS failed (`ssl.SSLError`).
        """
        if self._peer_ended:
            return b""
        try:
            data = self.socket.recv(READ_SIZE if self._tls is None else TLS_FEED)
        except (BlockingIOError, InterruptedError):
            return None
        if self._tls is None or not data:
            return data
        with self._room:
            self._incoming.write(data)
            try:
                plain = self._decrypt(self._tls)
            finally:
                # Also after a failure: the alert tells the peer what was wrong.
                self._outbox += self._outgoing.read()
                self._flush()
        return plain or None

    def finish(self) -> None:
        """Accept no more to send; end our direction once everything before it has left."""
        with self._room:
            if self._finishing or self._ended:
                return
            self._finishing = True
            if self._tls is not None and self._handshaken:
                with contextlib.suppress(
                    ssl.SSLError
                ):  # it wants the peer's close_notify, which may not come
                    self._tls.unwrap()
                self._outbox += self._outgoing.read()
            self._flush()
            self._room.notify_all()

    def release(self, *, reset: bool) -> None:
        """Give the descriptors back; `reset` makes the peer see RST instead of FIN. Only the owner may."""
        with self._room:
            self._ended = True
            self._outbox.clear()
            self._room.notify_all()
            if reset:
                with contextlib.suppress(OSError):
                    self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._selector.close()
            self._waker.close()
            self.socket.close()

    # --- every thread's side

    def post(
        self,
        data: bytes,
        record: Callable[[], None] | None = None,
        *,
        last: bool = False,
        raw: bool = False,
    ) -> bool:
        """Queue `data` as a whole and send what the socket takes at once; the owner sends the rest.

        `record` runs under the stream's lock right before, so that records are in the order of the wire and
        exist before the peer can react. After a `last` one (a close frame) only `raw` ones go out. Waits
        only for room, and only in threads that are not the owner.

        Returns:
            False if the stream has ended or the peer made no room within `write_timeout` seconds; then
            nothing of `data` was or will be sent.
        """
        foreign = threading.get_ident() != self._owner
        with self._room:
            if foreign and not self._room.wait_for(self._has_room, self._write_timeout):
                return False
            if self._finishing or self._ended or self._write_dead or (self._sealed and not raw):
                return False
            self._sealed = self._sealed or last
            if record is not None:
                record()
            if self._tls is None:
                self._outbox += data
            elif data:
                self._tls.write(data)  # into a MemoryBIO: takes all of it, never waits
                self._outbox += self._outgoing.read()
            self._flush()
            left = bool(self._outbox)
        if left and foreign:
            self._waker.set()  # the owner must begin to poll for writability
        return True

    def wake(self) -> None:
        """Make the owner's `wait` return. Harmless after the end."""
        self._waker.set()

    # --- inside

    def _has_room(self) -> bool:
        return len(self._outbox) <= self._outbox_limit or self._finishing or self._ended or self._write_dead

    def _decrypt(self, tls: ssl.SSLObject) -> bytes:
        parts: list[bytes] = []
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self._handshaken:
                tls.do_handshake()
                self._handshaken = True
            while chunk := tls.read(TLS_FEED):
                parts.append(chunk)
            self._peer_ended = True  # close_notify
        return b"".join(parts)

    def _flush(self) -> None:
        """Send what the socket takes now. The lock is held."""
        before = len(self._outbox)
        try:
            while self._outbox:
                with memoryview(self._outbox) as view:
                    sent = self.socket.send(view[:SEND_SIZE])
                del self._outbox[:sent]
            if self._finishing and not self._shut:
                self._shut = True
                self.socket.shutdown(socket.SHUT_WR)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            # Only this direction is known to be dead: what the peer sent before can still be read, and the
            # owner's next recv reports the end.
            self._write_dead = True
            self._outbox.clear()
        if before > self._outbox_limit >= len(self._outbox) or self._write_dead:
            self._room.notify_all()

    def _watch(self, events: int) -> None:
        """Poll the socket for `events`. With none it is not polled at all, since poll would always report a
        hang-up and the loop would spin on it."""
        if events == self._watched:
            return
        if not self._watched:
            self._selector.register(self.socket, events)
        elif not events:
            self._selector.unregister(self.socket)
        else:
            self._selector.modify(self.socket, events)
        self._watched = events
