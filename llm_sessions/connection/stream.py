"""A byte stream over TCP or TLS that any thread can end at any moment.

Who does what: one thread (the connector) opens it and runs the upgrade over it; then one thread (the
reader) reads, waits, and is the only one to release the descriptor. Any thread posts, sends, wakes and
aborts. The lock guards the TLS object with its BIOs, the outbox and the descriptor; nothing waits under it.

What ends each wait: an event on the socket, the waker (deadline changes, abort), the timeout. `abort` sets
the flag, shuts the raw socket down (that wakes every poll) and rings the waker, in that order, under the lock.

TLS is an `SSLObject` on two memory BIOs over the raw socket: OpenSSL forbids two threads in one object, and
an `SSLSocket` that waits in the middle of a write cannot serve a key update that the peer asks for.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import math
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from .._sync import STREAM, Deadline, make_lock

__all__ = ["AddressInfo", "Stream", "StreamAborted", "StreamBroken", "StreamClosed", "StreamError", "StreamTimeout"]

AddressInfo = tuple[int, int, int, str, tuple[object, ...]]
"""What `socket.getaddrinfo` returns."""

READ_SIZE: Final = 64 * 1024
_WRITE_SIZE: Final = 64 * 1024
_BIO_STEP: Final = 16 * 1024  # a memory BIO never shrinks
_MIN_ADDRESS_SHARE: Final = 0.25  # seconds


class StreamError(Exception):
    """Base of this module's errors; none is an OSError, so that websocket-client lets them pass."""


class StreamTimeout(StreamError):
    """The deadline passed."""


class StreamAborted(StreamError):
    """`abort` was called."""


class StreamClosed(StreamError):
    """The peer ended the stream."""


class StreamBroken(StreamError):
    """The network or TLS failed; `__cause__` says how."""


class _Waker:
    """A descriptor that makes a poll return."""

    def __init__(self) -> None:
        self._event = self._ends = None
        if hasattr(os, "eventfd"):
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:  # two descriptors instead of one, but everywhere
            self._ends = socket.socketpair()
            for end in self._ends:
                end.setblocking(False)

    def fileno(self) -> int:
        return self._event if self._ends is None else self._ends[0].fileno()

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is ringing already
            if self._ends is None:
                os.eventfd_write(self._event, 1)
            else:
                self._ends[1].send(b"!")

    def quiet(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it rang, and was heard before
            if self._ends is None:
                os.eventfd_read(self._event)
            else:
                self._ends[0].recv(4096)

    def close(self) -> None:
        if self._ends is None:
            os.close(self._event)
        else:
            for end in self._ends:
                end.close()


class _SelectPoll:
    """`select.poll` for systems that have none (Windows)."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}

    def register(self, fileobj: Any, events: int) -> None:
        self._events[fileobj if isinstance(fileobj, int) else fileobj.fileno()] = events

    def unregister(self, fileobj: Any) -> None:
        del self._events[fileobj.fileno()]

    def poll(self, timeout: int | None) -> list[tuple[int, int]]:
        reading = [fd for fd, events in self._events.items() if events & POLLIN]
        writing = [fd for fd, events in self._events.items() if events & POLLOUT]
        # A connect that failed is an exceptional condition on Windows, not writability.
        got = select.select(reading, writing, writing, None if timeout is None else timeout / 1000)
        found: dict[int, int] = {}
        for fds, event in zip(got, (POLLIN, POLLOUT, POLLOUT), strict=True):
            for fd in fds:
                found[fd] = found.get(fd, 0) | event
        return list(found.items())


POLLIN: Final = getattr(select, "POLLIN", 1)
POLLOUT: Final = getattr(select, "POLLOUT", 4)
_POLLBAD: Final = getattr(select, "POLLERR", 8) | getattr(select, "POLLHUP", 16)


def _new_poll() -> Any:
    return select.poll() if hasattr(select, "poll") else _SelectPoll()


class _Outbox:
    """Frames on their way out, in order. Guarded by the stream's lock."""

    def __init__(self) -> None:
        self._queue: collections.deque[tuple[memoryview, bool]] = collections.deque()
        self.posted = 0  # bytes ever put in
        self.written = 0  # bytes that have left, or were dropped
        self.own_unsent = 0  # bytes of the reader's own frames (acks, pings, pongs) that have not left
        self._taken = self._taken_own = 0

    def put(self, data: bytes, own: bool) -> int:
        """Append a frame; return the value that `written` reaches when it has left."""
        self._queue.append((memoryview(data), own))
        self.posted += len(data)
        if own:
            self.own_unsent += len(data)
        return self.posted

    def take(self) -> bytes | memoryview:
        """Return the next piece to write; empty if there is none. `done` must follow."""
        pieces: list[memoryview] = []
        self._taken = self._taken_own = 0
        while self._queue and self._taken < _WRITE_SIZE:
            piece, own = self._queue.popleft()
            room = _WRITE_SIZE - self._taken
            if len(piece) > room:
                self._queue.appendleft((piece[room:], own))
                piece = piece[:room]
            pieces.append(piece)
            self._taken += len(piece)
            self._taken_own += len(piece) if own else 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def done(self) -> None:
        self.written += self._taken
        self.own_unsent -= self._taken_own
        self._taken = self._taken_own = 0

    def drop(self) -> None:
        self._queue.clear()
        self.own_unsent = self._taken = self._taken_own = 0

    def __bool__(self) -> bool:
        return bool(self._queue)


class _TLS:
    """The TLS engine: ciphertext in, plaintext out, and back. Guarded by the stream's lock."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def shake_hands(self) -> bool:
        """Go on with the handshake; say whether it is complete."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def feed(self, data: bytes) -> None:
        """Take ciphertext during the handshake."""
        self._incoming.write(data)

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """Return the plaintext that `data` completes, and whether the peer has ended the stream."""
        pieces: list[bytes] = []
        view = memoryview(data)
        start = 0
        while True:
            self._incoming.write(view[start : start + _BIO_STEP])
            start += _BIO_STEP
            try:
                while piece := self._object.read(READ_SIZE):
                    pieces.append(piece)
                return b"".join(pieces), True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                return b"".join(pieces), True
            if start >= len(data):
                return b"".join(pieces), False

    def encrypt(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._object.write(view) :]

    def ciphertext(self) -> bytes:
        return self._outgoing.read() if self._outgoing.pending else b""


class Stream:
    """See the module.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Guards everything below but what is said to be the reader's own. Rank 35.
        self._lock = make_lock("stream", STREAM)
        self._nobody_polls = threading.Condition(self._lock)
        self._pollers = 0  # senders that wait for the descriptor to become writable
        self._ended = False  # aborted or released; never goes back
        self._released = False
        self._sealed = False  # the close frame is in the outbox; nothing follows it
        self._broken: Exception | None = None  # why writing failed
        self._sock: socket.socket | None = None
        self._waker: _Waker | None = None
        self._tls: _TLS | None = None
        self._outbox = _Outbox()
        self._head: memoryview | None = None  # what has been taken from the outbox and not wholly written
        # The waiting thread's own: the connector's first, then the reader's.
        self._poll: Any = None
        self._polled_for = 0
        self._glued = b""  # plaintext that came with the last bytes of the TLS handshake
        self._eof = False  # the plaintext ended; what came before it has been returned

    # -- opening: one thread --------------------------------------------------------------------------

    def open(
        self, addresses: Sequence[AddressInfo], deadline: Deadline, *, tls: ssl.SSLContext | None, host: str
    ) -> None:
        """Connect to the first address that answers; with `tls`, shake hands with `host`.

        Each address gets its fair share of the time that is left, so that a first one that swallows
        packets does not cost the second its chance. (A proxy's CONNECT has its place between the two steps.)

        Raises:
            StreamTimeout, StreamAborted, StreamBroken: `release` must follow all the same.
        """
        with self._lock:
            if self._ended:
                raise StreamAborted
            self._waker = _Waker()
        last: StreamError = StreamBroken("the host name has no address")
        for number, address in enumerate(addresses):
            share = deadline.left()
            if share is not None:
                share = max(share / (len(addresses) - number), min(share, _MIN_ADDRESS_SHARE))
            try:
                self._connect(address, Deadline(share, self._clock))
                break
            except (StreamTimeout, StreamBroken) as exc:
                last = exc
        else:
            raise last
        if tls is not None:
            self._start_tls(tls, host, deadline)

    def _connect(self, address: AddressInfo, deadline: Deadline) -> None:
        family, kind, proto, _, where = address
        try:
            sock = socket.socket(family, kind, proto)
        except OSError as exc:
            raise StreamBroken(str(exc)) from exc
        with self._lock:
            if self._ended:
                sock.close()
                raise StreamAborted
            self._sock = sock
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            error = sock.connect_ex(where)
            if error in (errno.EINPROGRESS, errno.EWOULDBLOCK):
                self._start_polling(sock)
                self._wait_until(POLLOUT, deadline)
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            elif not error:
                self._start_polling(sock)
            if error:
                raise OSError(error, os.strerror(error))
        except BaseException as exc:
            with self._lock:
                self._sock = None
                sock.close()
                aborted = self._ended
            if aborted:
                raise StreamAborted from None
            if isinstance(exc, OSError):
                raise StreamBroken(str(exc)) from exc
            raise

    def _start_polling(self, sock: socket.socket) -> None:
        assert self._waker is not None
        self._poll = _new_poll()
        self._poll.register(self._waker.fileno(), POLLIN)
        self._polled_for = 0

    def _start_tls(self, context: ssl.SSLContext, host: str, deadline: Deadline) -> None:
        try:
            with self._lock:
                self._tls = tls = _TLS(context, host)
            while True:
                with self._lock:
                    try:
                        complete = tls.shake_hands()
                    finally:
                        # Also when it fails: the peer should get our alert.
                        flushed = self._flush()
                if complete:
                    # A server may speak first; what came with its last flight is already in the BIO.
                    with self._lock:
                        self._glued, self._eof = tls.decrypt(b"")
                    return
                if not flushed:
                    self._wait_until(POLLIN | POLLOUT, deadline)
                else:
                    self._wait_until(POLLIN, deadline)
                data = self._receive()
                if data is not None:
                    with self._lock:
                        tls.feed(data)
        except (ssl.SSLError, ssl.CertificateError) as exc:
            raise StreamBroken(str(exc)) from exc

    def _wait_until(self, events: int, deadline: Deadline) -> None:
        left = deadline.left()
        if left == 0.0:
            raise StreamTimeout
        self._poll_once(events, left)
        if self._ended:
            raise StreamAborted

    def read_within(self, deadline: Deadline) -> bytes:
        """Return the next bytes; for the upgrade. Bytes that are there win over the deadline.

        Raises:
            StreamTimeout, StreamAborted, StreamClosed, StreamBroken
        """
        while True:
            data = self.read()
            if data:
                return data
            self._wait_until(POLLIN, deadline)

    # -- reading and waiting: the reader only -----------------------------------------------------------

    def wait(self, timeout: float | None, *, reading: bool) -> bool:
        """Wait for the socket, the waker, or the timeout; say whether there may be something to read.

        Also waits for writability while there is something to write, and writes it.

        Args:
            timeout: Seconds; None for no limit.
            reading: False leaves what the peer sends in the kernel.
        """
        if self._glued and reading:
            return True
        unsent = self._head is not None or bool(self._outbox)
        events = (POLLIN if reading else 0) | (POLLOUT if unsent else 0)
        got = self._poll_once(events, timeout)
        if got & (POLLOUT | _POLLBAD) and unsent:
            with self._lock:
                self._flush()
        return reading and bool(got & ~POLLOUT)

    def _poll_once(self, events: int, timeout: float | None) -> int:
        poll, sock, waker = self._poll, self._sock, self._waker
        assert poll is not None and sock is not None and waker is not None
        if events != self._polled_for:
            # Without events the socket is left out: a poll would report a hang-up again and again.
            if not events:
                poll.unregister(sock)
            else:
                poll.register(sock, events)
            self._polled_for = events
        got = 0
        for descriptor, found in poll.poll(None if timeout is None else math.ceil(timeout * 1000)):
            if descriptor == waker.fileno():
                waker.quiet()
            else:
                got = found
        return got

    def read(self) -> bytes | None:
        """Return what is there: None if nothing is (TLS: or no whole record yet).

        A result of `READ_SIZE` or more means that there may be more.

        Raises:
            StreamAborted, StreamClosed, StreamBroken
        """
        if self._glued:
            data, self._glued = self._glued, b""
            return data
        if self._eof:
            raise StreamClosed
        data_or_none = self._receive()
        if data_or_none is None or self._tls is None:
            return data_or_none
        try:
            with self._lock:
                plain, self._eof = self._tls.decrypt(data_or_none)
                self._flush()  # the answer to a key update
        except ssl.SSLError as exc:
            raise StreamBroken(str(exc)) from exc
        if not plain and self._eof:
            raise StreamClosed
        return plain or None

    def _receive(self) -> bytes | None:
        sock = self._sock
        assert sock is not None
        try:
            data = sock.recv(READ_SIZE)
        except BlockingIOError:
            data = None
        except OSError as exc:
            if self._ended:
                raise StreamAborted from None
            raise StreamBroken(str(exc)) from exc
        if self._ended:
            raise StreamAborted
        if data == b"":
            raise StreamClosed
        return data

    # -- writing: any thread ----------------------------------------------------------------------------

    @property
    def own_unsent(self) -> int:
        """Bytes that the reader posted and that have not left."""
        return self._outbox.own_unsent

    def post(self, data: bytes, *, own: bool = False, last: bool = False) -> bool:
        """Queue whole frames and write what can be written now. Never blocks.

        Args:
            data: Frames.
            own: They are the reader's own, which pauses when too many of these pile up.
            last: A close frame; whatever is posted later is refused.

        Returns:
            Whether all is written. If not, somebody must go on: the reader does before every wait.
        """
        with self._lock:
            if not self._may_write():
                return True
            self._sealed = last
            self._outbox.put(data, own)
            return self._flush()

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Queue a frame and wait until it has left, together with all before it.

        Raises:
            StreamTimeout: If the deadline passed; the stream is aborted then, for half a frame may be out.
            StreamAborted, StreamClosed: If the stream ended first.
        """
        with self._lock:
            if not self._may_write():
                raise StreamAborted if self._ended else StreamClosed
            ticket = self._outbox.put(data, own=False)
            self._flush()
            sock = self._sock
        assert sock is not None
        poll: Any = None
        polling = False
        try:
            while True:
                with self._lock:
                    if polling:
                        polling = False
                        self._stop_polling()
                        self._flush()
                    if self._outbox.written >= ticket:
                        return
                    if self._ended or self._broken is not None:
                        raise StreamAborted("the connection ended before the message was written")
                    left = deadline.left()
                    if left != 0.0:
                        if poll is None:
                            poll = _new_poll()
                            poll.register(sock, POLLOUT)
                        self._pollers += 1
                        polling = True
                if left == 0.0:
                    self.abort()
                    raise StreamTimeout
                    poll.poll(None if left is None else math.ceil(left * 1000))
        finally:
            if polling:  # interrupted: what is queued stays whole, the reader writes it
                with self._lock:
                    self._stop_polling()
                self.wake()

    def _stop_polling(self) -> None:
        self._pollers -= 1
        if not self._pollers:
            self._nobody_polls.notify_all()

    def _may_write(self) -> bool:
        return not (self._ended or self._sealed or self._broken is not None)

    def _flush(self) -> bool:
        """Write what the kernel takes; say whether all is out. The lock is held."""
        sock = self._sock
        if self._broken is not None or self._released or sock is None:
            return True
        try:
            while True:
                if self._head is None:
                    piece = self._outbox.take()
                    if self._tls is not None:
                        self._tls.encrypt(piece)
                        piece = self._tls.ciphertext()
                    if not piece:
                        return True
                    self._head = memoryview(piece)
                sent = sock.send(self._head)
                if sent < len(self._head):
                    self._head = self._head[sent:]
                else:
                    self._head = None
                    self._outbox.done()
        except BlockingIOError:
            return False
        except (OSError, ssl.SSLError) as exc:
            # (A write that wants to read is a TLS 1.2 renegotiation, which TLS 1.3 has abolished.)
            # Only writing is over: what the peer said before it went is still to be read.
            self._broken = exc
            self._head = None
            self._outbox.drop()
            return True

    # -- ending: any thread, then the reader ------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether `abort` or `release` was called."""
        return self._ended

    def wake(self) -> None:
        """Make the reader look at its deadlines and its outbox."""
        with self._lock:
            if self._waker is not None and not self._released:
                self._waker.ring()

    def abort(self) -> None:
        """End the stream now; whoever waits on it wakes. The descriptor stays the reader's to release."""
        with self._lock:
            self._abort()

    def _abort(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._sock is not None:
            try:
                # Not on an SSL object: that would turn the rest of the stream into raw records.
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # not connected (yet, or any more): then there is nothing to shut down
        if self._waker is not None:
            self._waker.ring()

    def release(self) -> None:
        """Give the descriptors back; once, by the thread that opened or reads. Waits for no peer.

        A sender that polls the descriptor is woken by the shutdown and leaves first: otherwise the system
        could give the number to another socket under its hands.
        """
        with self._lock:
            self._abort()
            self._nobody_polls.wait_for(lambda: not self._pollers)
            if self._released:
                return
            self._released = True
            self._outbox.drop()
            self._head = None
            self._tls = None
            sock, self._sock = self._sock, None
            if sock is not None:
                sock.close()
            if self._waker is not None:
                self._waker.close()
        self._poll = None
