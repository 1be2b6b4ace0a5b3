"""One socket: the stream, its frames, its conversation, and the thread that reads it.

The connector's thread runs `open` and then `read`, by which it becomes the reader, who owns the socket. The
lock (rank 30) guards the protocol, the order in which its frames reach the outbox, and who the reader is; the
reader takes it to decode what a read brought and again to send the acks, not for each message. The reader
waits in one place, `Stream.wait`, for the socket, the protocol's next deadline, or the waker; it never waits
to write, and never for the owner (an owner that is full pauses reading). Between two reads its thread may be
lent to the owner; if that takes long, another one reads on.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from functools import partial
from logging import DEBUG
from threading import current_thread, get_ident
from typing import Final

from .._logging import get_logger, redact
from .._sync import CONNECTION, Deadline, ThreadGroup, make_lock
from ..protocol.frames import FrameDecoder, FrameEncoder, Item
from ..protocol.mercury import EndCause, Event, MercuryProtocol, Opened
from .opening import open_stream
from .stream import READ_SIZE, AddressInfo, Stream
from .stream_errors import StreamBroken, StreamError, StreamTimeout
from .transport import LinkBroken, LinkOwner, OpenRequest, Traffic

__all__ = ["Connection"]

logger: Final = get_logger("connection")

_MAX_OWN_UNSENT: Final = 256 * 1024
"""Bytes of acks and pongs that may wait for a peer that does not read; beyond it we stop reading too."""

_MAX_OVERDUE_BYTES: Final = 8 * 1024 * 1024
"""More than a kernel buffers: once a deadline has passed and this much was read, no answer was in time."""


_ASK_AGAIN: Final = 1.0
"""Seconds after which a paused reader asks the owner again whether there is room."""


_PORTION: Final = 32 * 1024
"""Bytes of messages that are decoded and delivered before the next ones are.

CPython searches for cycles when there are 700 more objects and arrays than before. With a whole read of large
messages in hand that came several times a read, and took a sixth of the time.
"""


_MAX_SHOWN: Final = 500  # characters of a message at DEBUG
_MAX_LOOKED_AT: Final = (
    8192  # bytes of it that are redacted; tokens before the 500th character make it shorter
)
_CUT_WORD: Final = re.compile(r"[\w.~+/=%-]+\Z")


def resolve(host: str, port: int) -> list[AddressInfo]:
    """Return the addresses of a host, by the system's resolver. It cannot be interrupted."""
    return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # type: ignore[return-value]


def _new_id() -> str:
    return str(uuid.uuid4())


def _shown(payload: bytes) -> str:
    """Return what logs show of a message."""
    text = payload[:_MAX_LOOKED_AT].decode(errors="replace")
    if len(payload) > _MAX_LOOKED_AT:
        text = _CUT_WORD.sub("", text)  # what is left of a secret that was cut would not be found
    text = redact(text)
    cut = len(payload) > _MAX_LOOKED_AT or len(text) > _MAX_SHOWN
    return text[:_MAX_SHOWN] + ("…" if cut else "")


class Connection:
    """A `transport.Link` over a real socket.

    Args:
        request: What to open.
        owner: Whom to report to.
        name: `<session>#<n>`, for the reader's name.
        threads: Where the reader is counted.
        resolver: Returns a host's addresses; blocks.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        request: OpenRequest,
        owner: LinkOwner,
        name: str,
        *,
        threads: ThreadGroup,
        resolver: Callable[[str, int], list[AddressInfo]] = resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request = request
        self._owner = owner
        self._name = name
        self._threads = threads
        self._resolve = resolver
        self._clock = clock
        self._stream = Stream(clock=clock)
        # Guards the protocol, the order of its frames in the outbox, and who reads. Rank 30; the stream's
        # lock is taken under it.
        self._lock = make_lock("connection", CONNECTION)
        self._reader = 0  # the thread that reads, by its number; 0 for none
        self._lent = False  # it is in the owner's hands
        self._protocol: MercuryProtocol | None = None
        self._encoder = FrameEncoder(os.urandom)
        # The reader's own; they pass to the one that relieves it.
        self._decoder = FrameDecoder(max_message_bytes=request.max_message_bytes)
        self._full_since: float | None = None  # when the owner was asked last, while it takes nothing more
        self._stuck_since: float | None = None  # when our own acks began to pile up
        self._overdue = 0  # bytes read since a deadline passed
        self._timed_out = False  # and no answer is to be waited for any more
        self._glued = b""  # what came with the answer to the upgrade
        self._items: list[Item] = []  # read and not taken yet
        self._portion = 1  # of them at a time
        self._more = False  # the last read was full: there may be more without asking
        self._asked_for = False  # by `lend`
        self._resumed = False  # set by `resume`, taken back by the reader
        self._bytes_in = 0
        self._before_frames = 0  # bytes that the opening handshake wrote

    # -- opening ----------------------------------------------------------------------------------------

    def open(self) -> None:
        try:
            self._start(*open_stream(self._stream, self._request, self._resolve, self._clock))
        except BaseException:
            self._stream.release()
            raise

    def _start(self, glued: bytes, deadline: Deadline) -> None:
        self._glued = glued
        protocol = MercuryProtocol(
            self._request.token,
            encoder=self._encoder,
            new_id=_new_id,
            timing=self._request.timing,
            open_deadline=deadline.at,
        )
        with self._lock:
            self._before_frames = self._stream.written  # first: `traffic` takes no lock
            self._protocol = protocol

    def _about(self) -> dict[str, str]:
        """Return what a log record says of this socket besides its text."""
        return {"session_id": self._name.rpartition("#")[0]}

    # -- the reader -------------------------------------------------------------------------------------

    def read(self) -> None:
        assert self._protocol is not None
        glued, self._glued = self._glued, b""
        current_thread().name = self._reader_name
        self._read(self._protocol, glued)

    @property
    def _reader_name(self) -> str:
        return f"llm-reader[{self._name}]"

    def _read(self, protocol: MercuryProtocol, glued: bytes | None) -> None:
        """The main function of a reader.

        Args:
            protocol: The conversation.
            glued: What came with the answer to the upgrade; None for a thread that relieves another one.
        """
        error: Exception | None = None
        with self._lock:
            if glued is None and not self._lent:
                return  # it has come back by itself
            self._lent, self._reader = False, get_ident()
        try:
            self._owner.link_reading(self, lends=True)
            if glued is not None:
                with self._lock:
                    protocol.start()
                    self._send_own(protocol)
            if glued:
                self._take(glued)
            self._read_until_over(protocol)
        except StreamBroken as exc:
            error = exc
        except StreamError:
            pass  # closed or aborted: `lost` says so
        except Exception as exc:
            text = "[%s] the reader failed; this is a bug in llm_sessions"
            logger.exception(text, self._name, extra=self._about())
            error = exc
        finally:
            if self._reader == get_ident():
                self._finish(protocol, error)

    def _finish(self, protocol: MercuryProtocol, error: Exception | None) -> None:
        with self._lock:
            protocol.lost(error)
            self._send_own(protocol)  # the answer to a close; nobody waits for it
            ended = protocol.ended
        assert ended is not None
        aborted = ended.code == 1006 and self._stream.ended and ended.cause is EndCause.LOST
        cause = EndCause.ABORTED if aborted else ended.cause
        # A reason is the server's words, and becomes part of errors and events: it may quote the token.
        ended = dataclasses.replace(ended, reason=redact(ended.reason), cause=cause)
        self._stream.release()
        try:
            self._owner.link_ended(self, ended)
        finally:  # also if a log handler raised: nobody else has been asked to deliver
            if self._asked_for:
                self._owner.link_lent(self)  # nothing is left to read: there is nobody to relieve

    def _read_until_over(self, protocol: MercuryProtocol) -> None:
        """Return when the conversation is over, or somebody else reads on."""
        while protocol.ended is None:
            if self._asked_for and not self._hand_out(protocol):
                return
            now = self._clock()
            if self._full_since is not None:
                self._resume_or_ask(protocol, now)
            if self._items and (self._full_since is None or protocol.closing):
                self._process(protocol)
                continue
            if self._timed_out:  # and what came before is taken: the answer may have been in it
                self._timed_out = False
                self._keep_time(protocol, now)
                continue
            reading = protocol.closing or not (self._full_since is not None or self._stuck(now))
            left = self._time_left(protocol, now)
            # An answer that came in time may still lie unread, behind others or because this process was
            # stopped for a while. So a deadline counts only when a read after it found nothing.
            due = left is not None and left <= 0
            readable = reading if self._more or due else self._stream.wait(left, reading=reading)
            data = self._stream.read() if readable else None
            self._more = data is not None and len(data) >= READ_SIZE
            if data is not None:
                self._overdue = self._overdue + len(data) if due else 0
                self._take(data)
            self._timed_out = due and (data is None or self._overdue > _MAX_OVERDUE_BYTES)

    def _hand_out(self, protocol: MercuryProtocol) -> bool:
        """Lend this thread to the owner; say whether it is the reader after that."""
        self._asked_for = False
        with self._lock:
            self._lent = True
        # In this order: whoever ends the link now either sees that its reader is lent, or is seen here.
        if protocol.closing or self._stream.ended:
            self._relieve_now()
        goes_on = True
        try:
            goes_on = self._owner.link_lent(self)
        finally:
            if not goes_on:
                # Nor the one that ends it: the socket is the parent's, as is whoever may hold the lock.
                self._reader = 0
            else:
                with self._lock:
                    if self._reader == get_ident():
                        self._lent = False
        return self._reader == get_ident()

    def _keep_time(self, protocol: MercuryProtocol, now: float) -> None:
        self._overdue = 0
        with self._lock:
            protocol.handle_timeout(now)
            self._send_own(protocol)
        if protocol.closing or self._stuck_since is None:  # closing has its own deadline
            return
        if now - self._stuck_since >= self._request.send_timeout:
            raise StreamBroken("the peer reads nothing")

    def _time_left(self, protocol: MercuryProtocol, now: float) -> float | None:
        deadline = protocol.next_deadline()
        if self._stuck_since is not None and not protocol.closing:
            stuck = self._stuck_since + self._request.send_timeout
            deadline = stuck if deadline is None else min(deadline, stuck)
        if self._full_since is not None and not protocol.closing:
            again = self._full_since + _ASK_AGAIN
            deadline = again if deadline is None else min(deadline, again)
        return None if deadline is None else deadline - now

    def _stuck(self, now: float) -> bool:
        if self._stream.own_unsent <= _MAX_OWN_UNSENT:
            self._stuck_since = None
            return False
        if self._stuck_since is None:
            self._stuck_since = now
        return True

    def _take(self, data: bytes) -> None:
        self._bytes_in += len(data)
        items = self._items = self._decoder.feed(data)  # none were left: they go before another read
        portions = -(-len(data) // _PORTION)
        self._portion = max(1, -(-len(items) // portions))
        if items and logger.isEnabledFor(DEBUG):
            for item in items:
                shown = _shown(item) if isinstance(item, bytes) else item
                logger.debug("[%s] < %s", self._name, shown, extra=self._about())

    def _process(self, protocol: MercuryProtocol) -> None:
        items = self._items[: self._portion]
        del self._items[: self._portion]
        with self._lock:
            opening = not protocol.ready
            events = protocol.receive(items, self._clock(), time.time() * 1000)
        if opening and protocol.ready:
            # What came before ready is delivered before `online`, the rest after it.
            at = next(n for n, event in enumerate(events) if isinstance(event, Opened))
            self._deliver(protocol, events[:at])
            self._owner.link_ready(self)
            events = events[at + 1 :]
        self._deliver(protocol, events)
        if not self._items:  # the acks of one read in one write, once the owner has what they are for
            with self._lock:
                self._send_own(protocol)

    def _deliver(self, protocol: MercuryProtocol, events: list[Event]) -> None:
        if events and not self._owner.link_received(self, events):
            now = self._full_since = self._clock()
            with self._lock:
                protocol.pause(now)

    def _resume_or_ask(self, protocol: MercuryProtocol, now: float) -> None:
        assert self._full_since is not None
        if not self._resumed:
            if now - self._full_since < _ASK_AGAIN:
                return
            self._full_since = now
            if not self._owner.link_received(self, []):
                return
        self._full_since = None
        self._resumed = False
        with self._lock:
            protocol.resume(now)

    def _send_own(self, protocol: MercuryProtocol) -> None:
        frames = protocol.data_to_send()
        if frames:
            self._stream.post(frames, own=True, last=protocol.closing)

    # -- any thread -------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        protocol = self._protocol
        return protocol is not None and protocol.ready and not protocol.closing

    @property
    def time_offset(self) -> float | None:
        return self._protocol.time_offset if self._protocol is not None else None

    @property
    def traffic(self) -> Traffic:
        protocol = self._protocol
        if protocol is None:
            return Traffic()
        written = self._stream.written - self._before_frames
        return Traffic(self._bytes_in, written, protocol.acks)

    def send(self, payload: bytes, timeout: float | None) -> None:
        with self._lock:
            if not self.ready:
                raise LinkBroken("the connection is closing", started=False)
            frame = self._encoder.text(payload)
        try:
            self._stream.send(frame, Deadline(timeout, self._clock))
        except StreamTimeout as exc:
            raise LinkBroken(
                f"the message was not written within {timeout} s; the connection was ended", started=True
            ) from exc
        except StreamError as exc:
            raise LinkBroken("the connection ended before the message was written", started=True) from exc
        if logger.isEnabledFor(DEBUG):
            logger.debug("[%s] > %s", self._name, _shown(payload), extra=self._about())

    def close(self, code: int | None, reason: str | None) -> None:
        protocol = self._protocol
        try:
            with self._lock:
                if protocol is not None:
                    protocol.close(code, reason, self._clock())
                    self._send_own(protocol)
            if protocol is None or protocol.ended is not None:
                self._stream.abort()
            else:
                self._stream.wake()
        except BaseException:
            self._stream.abort()  # Ctrl-C in between: a close that is half begun would have no end
            raise
        self._relieve_now()

    def abort(self) -> None:
        self._stream.abort()
        self._relieve_now()

    def _relieve_now(self) -> None:
        """Have somebody read the end, whatever a callback does."""
        try:
            self.relieve()
        except RuntimeError:
            pass  # no thread to be had: the reader does it when it comes back, or the owner tries again

    def retire(self, seconds: float) -> None:
        with self._lock:
            if self._protocol is not None:
                self._protocol.retire_at(self._clock() + seconds)
        self._stream.wake()

    def resume(self) -> None:
        self._resumed = True
        self._stream.wake()

    def lend(self) -> None:
        self._asked_for = True

    def relieve(self) -> bool:
        protocol = self._protocol
        if protocol is None or not self._lent:
            return False
        self._threads.spawn(partial(self._read, protocol, None), self._reader_name)
        return True
