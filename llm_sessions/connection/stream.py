"""A byte stream over TCP or TLS that any thread can end at any moment.

Who does what: one thread (the connector) opens it and runs the upgrade over it; then one thread (the
reader) reads, waits, and is the only one to release the descriptor. Any thread posts, sends, wakes and
aborts. The lock guards the TLS object with its BIOs, the outbox and the descriptor; nothing waits under it.

What ends each wait: an event on the socket, the waker (deadline changes, abort), the timeout. `abort` sets
the flag, shuts the raw socket down (that wakes every poll) and rings the waker, in that order, under the
lock.

TLS is an `SSLObject` on two memory BIOs over the raw socket: OpenSSL forbids two threads in one object, and
an `SSLSocket` that waits in the middle of a write cannot serve a key update that the peer asks for.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from .._sync import STREAM, Deadline, LateCondition, make_lock
from .outbox import Outbox
from .poll import POLLBAD, POLLIN, POLLOUT, Waker, milliseconds, new_poll
from .stream_errors import StreamAborted, StreamBroken, StreamClosed, StreamError, StreamTimeout
from .tls import TLS

__all__ = ["READ_SIZE", "AddressInfo", "Stream"]

AddressInfo = tuple[int, int, int, str, tuple[object, ...]]
"""What `socket.getaddrinfo` returns."""

READ_SIZE: Final = 64 * 1024
_MIN_ADDRESS_SHARE: Final = 0.25  # seconds


class Stream:
    """See the module.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Guards everything below but what is said to be the reader's own. Rank 35.
        self._lock = make_lock("stream", STREAM)
        # Senders that poll; `release` waits for them. A set, not a count: an interrupt leaves it right.
        self._pollers: frozenset[object] = frozenset()
        self._nobody_polls = LateCondition(self._lock)
        self._ended = False  # aborted or released; never goes back
        self._released = False
        self._sealed = False  # the close frame is in the outbox; nothing follows it
        self._broken: Exception | None = None  # why writing failed
        self._sock: socket.socket | None = None
        self._waker: Waker | None = None
        self._tls: TLS | None = None
        self._outbox = Outbox()
        # The waiting thread's own: the connector's first, then the reader's.
        self._poll: Any = None
        self._polled_for = 0
        self._glued = b""  # plaintext that came with the last bytes of the TLS handshake
        self._eof = False  # the plaintext ended; what came before it may still be glued

    # -- opening: one thread --------------------------------------------------------------------------

    def open(
        self, addresses: Sequence[AddressInfo], deadline: Deadline, *, tls: ssl.SSLContext | None, host: str
    ) -> None:
        """Connect to the first address that answers; with `tls`, shake hands with `host`.

        Each address gets its fair share of the time that is left, so that a first one that swallows
        packets does not cost the second its chance.

        Raises:
            StreamTimeout, StreamAborted, StreamBroken: `release` must follow all the same.
        """
        with self._lock:
            if self._ended:
                raise StreamAborted
            try:
                self._waker = Waker()
            except OSError as exc:  # out of descriptors
                raise StreamBroken(str(exc)) from exc
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
            self.start_tls(tls, host, deadline)

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
                while not self._wait_until(POLLOUT, deadline):
                    pass  # time to look at the deadline, or a bell that was not for us
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
        self._poll = new_poll()
        self._poll.register(self._waker.fileno(), POLLIN)
        self._polled_for = 0

    def start_tls(self, context: ssl.SSLContext, host: str, deadline: Deadline) -> None:
        """Shake hands with `host`, inside of the TLS that is there (a proxy's). Raises what `open` raises."""
        try:
            if self._eof:
                raise StreamClosed
            with self._lock:
                self._tls = tls = TLS(context, host, self._tls)
            while True:
                with self._lock:
                    try:
                        complete = tls.shake_hands()
                    finally:
                        # Also when it fails: the peer should get our alert.
                        flushed = self._flush()
                if complete and flushed:
                    # A server may speak first; what came with its last flight is already in the BIO.
                    with self._lock:
                        self._glued, self._eof = tls.decrypt(b"")
                    return
                self._wait_until(POLLIN if flushed else POLLIN | POLLOUT, deadline)
                data = self._receive()
                if data is not None:
                    with self._lock:
                        tls.feed(data)
        except StreamClosed as exc:
            raise StreamBroken("the connection was closed during the TLS handshake") from exc
        except (ssl.SSLError, ValueError) as exc:  # ValueError: no certificate could have such a host name
            raise StreamBroken(str(exc)) from exc

    def _wait_until(self, events: int, deadline: Deadline) -> int:
        left = deadline.left()
        if left == 0.0:
            raise StreamTimeout
        got = self._poll_once(events, left)
        if self._ended:
            raise StreamAborted
        return got

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

        Raises:
            StreamAborted
        """
        if reading and (self._glued or self._eof or self._broken is not None):
            return True  # nothing more need come: TLS may have ended and TCP not
        unsent = bool(self._outbox)
        events = (POLLIN if reading else 0) | (POLLOUT if unsent else 0)
        got = self._poll_once(events, timeout)
        if self._ended:
            raise StreamAborted  # also to a reader that does not read
        if got & (POLLOUT | POLLBAD) and unsent:
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
        for descriptor, found in poll.poll(milliseconds(timeout)):
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
        data: bytes | None
        if self._glued:
            data, self._glued = self._glued, b""
            return data
        tls = self._tls
        if not self._eof:
            data = self._receive()
            if data is None or tls is None:
                return data
            with self._lock:
                data, self._eof = tls.decrypt(data)
                self._flush()  # the answer to a key update, or an alert
            if data or not self._eof:
                return data or None
        assert tls is not None
        if tls.failure is not None:
            raise StreamBroken(str(tls.failure)) from tls.failure
        raise StreamClosed

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
        if not data and self._broken is not None:  # and all that the peer said before is read
            raise StreamBroken(str(self._broken)) from self._broken
        if data == b"":
            raise StreamClosed
        return data

    # -- writing: any thread ----------------------------------------------------------------------------

    @property
    def own_unsent(self) -> int:
        """Bytes that the reader posted and that have not left."""
        return self._outbox.own_unsent

    @property
    def written(self) -> int:
        """Bytes that have left, before TLS."""
        return self._outbox.written

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
            StreamAborted, StreamClosed, StreamBroken: If the stream ended first.
        """
        me, poll = object(), None
        try:
            with self._lock:
                if not self._may_write():
                    raise self._unwritable()
                ticket, sock = self._outbox.put(data, own=False), self._sock
            while True:
                with self._lock:
                    if me in self._pollers:
                        self._stop_polling(me)
                    self._flush()
                    if self._outbox.written >= ticket:
                        return
                    if self._ended or self._broken is not None:
                        raise self._unwritable()
                    left = deadline.left()
                    if left != 0.0:
                        self._pollers |= {me}
                if left == 0.0:
                    self.abort()
                    raise StreamTimeout
                if poll is None:
                    poll = new_poll()
                    poll.register(sock, POLLOUT)
                poll.poll(milliseconds(left))
        except BaseException:
            # Also an interrupt: what is queued stays whole, and the reader writes it.
            with self._lock:
                self._stop_polling(me)
            self.wake()
            raise

    def _stop_polling(self, sender: object) -> None:
        self._pollers -= {sender}
        if not self._pollers:
            self._nobody_polls.notify_all()

    def _unwritable(self) -> StreamError:
        if self._ended:
            return StreamAborted("the stream was ended")
        if self._broken is not None:
            error = StreamBroken(str(self._broken))
            error.__cause__ = self._broken
            return error
        return StreamClosed("a close frame was sent")

    def _may_write(self) -> bool:
        return not (self._ended or self._sealed or self._broken is not None)

    def _flush(self) -> bool:
        """Write what the kernel takes; say whether all is out. The lock is held."""
        sock = self._sock
        if self._broken is not None or sock is None:
            return True
        try:
            self._outbox.write(sock, self._tls)
            return True
        except BlockingIOError:
            return False
        except (OSError, ssl.SSLError) as exc:
            # (A write that wants to read is a TLS 1.2 renegotiation, which TLS 1.3 has abolished.)
            # Only writing is over: what the peer said before it went is still to be read.
            self._stop_writing(exc)
            return True
        except BaseException as exc:
            # Raised in here by a signal handler: how much has left is not known, so nothing may follow.
            self._stop_writing(StreamAborted(f"interrupted by {type(exc).__name__}"))
            self._abort()
            raise

    def _stop_writing(self, error: Exception) -> None:
        self._broken = error
        self._outbox.drop()
        if self._waker is not None:
            self._waker.ring()  # the reader, who may have nothing left to wait for

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
        if self._released:
            return
        self._ended = True  # no reason to stop here the next time: an interrupt may come in between
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
            if self._pollers:
                self._nobody_polls.wait_for(lambda: not self._pollers)
            if self._released:
                return
            self._released = True
            self._outbox.drop()
            self._tls = None
            sock, self._sock = self._sock, None
            if sock is not None:
                sock.close()
            if self._waker is not None:
                self._waker.close()
        self._poll = None
