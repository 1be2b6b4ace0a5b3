"""The conversation on one socket, without the socket, a clock, or a thread.

Feed it what the frame decoder found; send what `data_to_send` returns; deliver the events. Time is an
argument (seconds on the caller's monotonic clock), ids and randomness are injected.

States: *authorizing* from `start` until the first inbound frame that says ready; *ready*; *closing* from
`close` on, when all but the peer's close frame is ignored; *over* once `ended` is set, when nothing happens
any more. What ends each: authorizing by ready, a close, or the open deadline; ready by a close of either
side or a missing pong; closing by the peer's answer or `force_close_delay`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from .. import _json
from ..errors import RemoteProtocolError
from .closing import DEFAULT_CODE, DEFAULT_REASON, fixed_up, forced_close
from .envelope import apply_header_overrides, sequence_number
from .frames import BinaryMessage, Close, Item, Ping, TooLarge, Violation

__all__ = [
    "Dropped",
    "Encoder",
    "EndCause",
    "Ended",
    "Event",
    "LatencyMeasured",
    "MercuryProtocol",
    "Opened",
    "SequenceGap",
    "ShutdownAnnounced",
    "Timing",
]

# Compared one by one: what a server sends as eventType may be no string, and not even hashable.
READY_EVENTS: Final = ("mercury.buffer_state", "mercury.registration_status")


@dataclasses.dataclass(frozen=True)
class Opened:
    """The server has authorized this socket."""


@dataclasses.dataclass(frozen=True)
class LatencyMeasured:
    """A pong came in time; `seconds` since its ping."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class SequenceGap:
    """A numbered message was not the expected one."""

    actual: int
    expected: int


@dataclasses.dataclass(frozen=True)
class ShutdownAnnounced:
    """The server is going to close this socket; `raw` is its message."""

    raw: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A message that could not be used was dropped."""

    problem: str


# Ordinary messages are the decoded objects themselves: thousands a second, most of them for nobody.
Event = dict[str, Any] | Opened | LatencyMeasured | SequenceGap | ShutdownAnnounced | Dropped


class EndCause(enum.Enum):
    """Who or what ended a conversation."""

    PEER = "the server closed"
    LOCAL = "we closed"
    KEEPALIVE = "a pong was missing or wrong"
    OPEN_TIMEOUT = "not ready in time"
    VIOLATION = "the server broke the protocol"
    LOST = "the connection broke"
    ABORTED = "we ended the attempt"


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a conversation ended.

    Attributes:
        code: What is reported: the peer's close code, the forced one (protocol.md 1.5), or 1006.
        reason: Likewise; possibly empty.
        cause: Who or what ended it.
        error: The exception behind it, or None.
        missed: Whether the peer may have sent messages that were not taken: its close frame was not read, or
            came behind messages that were ignored because we were closing.
    """

    code: int
    reason: str
    cause: EndCause
    error: Exception | None = None
    missed: bool = dataclasses.field(default=False, compare=False)


class Encoder(Protocol):
    """What makes frames of payloads; `frames.FrameEncoder` outside of tests."""

    def texts(self, payloads: Sequence[bytes]) -> bytes: ...
    def pong(self, payload: bytes) -> bytes: ...
    def close(self, code: int | None, reason: str = "") -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Timing:
    """The times of one conversation, in seconds."""

    ping_interval: float = 15.0
    pong_timeout: float = 14.0
    force_close_delay: float = 2.0


class MercuryProtocol:
    """One socket's conversation. Not thread-safe: its connection's lock guards it.

    Args:
        token: Access token with its scheme, as it is sent.
        encoder: Makes the frames.
        new_id: Returns a fresh UUID string.
        timing: See `Timing`.
        open_deadline: When the socket must be ready, on the caller's clock; None for no limit.
    """

    def __init__(
        self,
        token: str,
        *,
        encoder: Encoder,
        new_id: Callable[[], str],
        timing: Timing = Timing(),
        open_deadline: float | None = None,
    ) -> None:
        self._token = token
        self._encoder = encoder
        self._new_id = new_id
        self._timing = timing
        self._open_deadline = open_deadline
        self._texts: list[bytes] = []  # payloads that are not framed yet
        self._controls: list[bytes] = []  # frames; a close is always the last
        self._expected: int | None = None  # next sequenceNumber
        self._pings: list[tuple[str, float]] = []  # id, sent at; oldest first
        self._ping_at: float | None = None
        self._pong_deadline: float | None = None
        self._paused = False
        self._resumed_at = float("-inf")
        self._asked: tuple[int | None, str | None] | None = None  # our close, as it was asked for
        self._ignored = False  # a message came while we were closing
        self._closing_for = EndCause.LOCAL
        self._close_deadline: float | None = None
        self._retire_at: float | None = None
        self.ready: bool = False
        self.ended: Ended | None = None
        self.time_offset: float | None = None  # ms; our wall clock minus the server's
        self.acks: int = 0

    @property
    def closing(self) -> bool:
        """Whether a close of ours is under way or the conversation is over."""
        return self._asked is not None or self.ended is not None

    def start(self) -> None:
        """Queue the authorization, which must be the first frame."""
        self._texts.append(
            _json.dumps(
                {
                    "id": self._new_id(),
                    "type": "authorization",
                    "data": {"token": self._token},
                    "trackingId": f"llm-sessions_{self._new_id()}",
                }
            )
        )
        self._token = ""  # sent once; a conversation that lives for weeks need not hold it

    # -- bytes in, bytes out ------------------------------------------------------------------------

    def receive(self, items: Sequence[Item], now: float, wall_ms: float) -> list[Event]:
        """Take what one read brought; return what to deliver, in order.

        Args:
            items: From the frame decoder.
            now: Monotonic seconds.
            wall_ms: Wall clock, milliseconds since the epoch.
        """
        events: list[Event] = []
        for item in items:
            if type(item) is not bytes:
                self._receive_control(item, events)
                continue
            if self._asked is not None or self.ended is not None:
                self._ignored = self._ignored or not _is_pong(item)
                continue
            try:
                message = _json.loads(item)
            except _json.BadJSON as exc:
                events.append(Dropped(f"not usable as JSON: {exc}"))
                continue
            if type(message) is not dict:
                events.append(Dropped(f"not a JSON object but {type(message).__name__}"))
                continue
            number = message.get("sequenceNumber")
            if number is not None:
                self._track(number, events)
            identity = message.get("id")
            if identity is not None:
                self._acknowledge(identity)
            stamp = message.get("wsWriteTimestamp")
            if stamp is not None and type(stamp) in (int, float) and stamp > 0:
                self.time_offset = wall_ms - stamp
            data = message.get("data")
            if type(data) is dict:
                if data.get("headers"):
                    apply_header_overrides(data)
            else:
                data = None
            kind = message.get("type")
            if kind is None:
                if not self.ready and data is not None and data.get("eventType") in READY_EVENTS:
                    self._become_ready(events, now)
            elif kind == "pong":
                self._receive_pong(identity, events, now)
                continue
            elif kind == "shutdown":
                events.append(ShutdownAnnounced(message))
                continue
            events.append(message)
        return events

    def data_to_send(self) -> bytes:
        """Return and forget the frames to send, several in one piece; empty if there are none."""
        frames = b""
        if self._texts:
            frames = self._encoder.texts(self._texts)
            self._texts = []
        if self._controls:
            frames += b"".join(self._controls)
            self._controls = []
        return frames

    def _track(self, value: object, events: list[Event]) -> None:
        number = value if type(value) is int else sequence_number(value)
        if number is None:
            return
        if self._expected is not None and number != self._expected:
            events.append(SequenceGap(number, self._expected))
        self._expected = number + 1

    def _acknowledge(self, identity: object) -> None:
        if (type(identity) is str and identity) or type(identity) is int:
            self._texts.append(f'{{"messageId":{_json.dump_text(identity)},"type":"ack"}}'.encode())
            self.acks += 1

    def _receive_control(self, item: Item, events: list[Event]) -> None:
        if self.ended is not None:
            return
        if isinstance(item, Close):
            self._receive_close(item)
        elif isinstance(item, Violation):
            error = RemoteProtocolError(f"the server broke the WebSocket protocol: {item.reason}")
            if self._asked is None:
                self._controls.append(self._encoder.close(item.code, item.reason))
            self._end(1006, f"protocol error: {item.reason}", EndCause.VIOLATION, error)
        elif self._asked is not None:
            return
        elif isinstance(item, Ping):
            self._controls.append(self._encoder.pong(item.payload))
        elif isinstance(item, TooLarge):
            events.append(Dropped(f"a message of {item.size} bytes is over the limit"))
        elif isinstance(item, BinaryMessage):
            events.append(Dropped(f"a binary message of {item.size} bytes"))

    # -- ready and keepalive ------------------------------------------------------------------------

    def _become_ready(self, events: list[Event], now: float) -> None:
        self.ready = True
        self._open_deadline = None
        events.append(Opened())
        self._send_ping(now)

    def _send_ping(self, now: float) -> None:
        identity = self._new_id()
        self._texts.append(f'{{"id":"{identity}","type":"ping"}}'.encode())
        self._pings.append((identity, now))
        self._ping_at = now + self._timing.ping_interval if self._paused else None
        if not self._paused:
            self._pong_deadline = now + self._timing.pong_timeout

    def _receive_pong(self, identity: object, events: list[Event], now: float) -> None:
        if not self._pings:
            return
        answered = [number for number, (ping, _) in enumerate(self._pings) if ping == identity]
        if not answered:
            self._give_up_keepalive("Pong mismatch", now)
            return
        _, sent_at = self._pings[answered[0]]
        del self._pings[: answered[0] + 1]
        # One that may have waited behind unread data would measure our own slowness.
        if not self._paused and sent_at > self._resumed_at:
            events.append(LatencyMeasured(max(0.0, now - sent_at)))
        if self._pings:
            self._pong_deadline = None if self._paused else now + self._timing.pong_timeout
        else:
            self._pong_deadline = None
            self._ping_at = now + self._timing.ping_interval

    def pause(self, now: float) -> None:
        """Our own queue is full and nothing is read: pings go on, no pong is missed."""
        self._paused = True
        self._pong_deadline = None
        if self._pings:
            self._ping_at = max(now, self._pings[-1][1] + self._timing.ping_interval)

    def resume(self, now: float) -> None:
        """Reading goes on; a pong that is due gets its whole time again, it is behind the unread data."""
        self._paused = False
        self._resumed_at = now
        if self._pings:
            self._ping_at = None
            self._pong_deadline = now + self._timing.pong_timeout

    def _give_up_keepalive(self, reason: str, now: float) -> None:
        self.close(DEFAULT_CODE, reason, now)
        self._closing_for = EndCause.KEEPALIVE

    # -- time ---------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Return when `handle_timeout` must be called, or None."""
        if self.ended is not None:
            return None
        if self._asked is not None:
            return self._close_deadline
        due = [
            at
            for at in (self._open_deadline, self._ping_at, self._pong_deadline, self._retire_at)
            if at is not None
        ]
        return min(due, default=None)

    def handle_timeout(self, now: float) -> None:
        """Do what is due. Call it when there was nothing more to read: bytes that came in time count."""
        if self.ended is not None:
            return
        if self._asked is not None:
            if self._close_deadline is not None and now >= self._close_deadline:
                self._end(*forced_close(*self._asked), EndCause.LOCAL)
        elif self._open_deadline is not None and now >= self._open_deadline:
            self._end(1006, "", EndCause.OPEN_TIMEOUT)
        elif self._pong_deadline is not None and now >= self._pong_deadline:
            self._give_up_keepalive("Pong not received", now)
        elif self._retire_at is not None and now >= self._retire_at:
            self.close(None, None, now)
        elif self._ping_at is not None and now >= self._ping_at:
            self._send_ping(now)

    def retire_at(self, at: float) -> None:
        """Close by ourselves at `at` if the server has not: another socket has taken over."""
        self._retire_at = at

    # -- the end ------------------------------------------------------------------------------------

    def close(self, code: int | None, reason: str | None, now: float) -> None:
        """Ask the peer to close; the first call counts.

        A socket that is not ready has no handshake to wait for: it is over at once, with nothing sent. On a
        ready one the acks of what came before go out first.

        Args:
            code: 1000 or 3000...4999; None for 1000.
            reason: At most 123 bytes; None for `Done`.
            now: Monotonic seconds.
        """
        if self._asked is not None or self.ended is not None:
            return
        self._asked = (code, reason)
        if not self.ready:
            self._texts, self._controls = [], []
            self._end(*forced_close(code, reason), EndCause.ABORTED)
            return
        self._close_deadline = now + self._timing.force_close_delay
        self._controls.append(
            self._encoder.close(
                DEFAULT_CODE if code is None else code, DEFAULT_REASON if reason is None else reason
            )
        )

    def _receive_close(self, item: Close) -> None:
        if self._asked is None:
            # Only data that came before the close is acked; the answer is written after the report, for
            # the peer may be gone already.
            self._controls.append(self._encoder.close(None if item.code == 1005 else item.code, ""))
            self._end(*fixed_up(item.code, item.reason), EndCause.PEER, missed=False)
        else:
            self._end(*fixed_up(item.code, item.reason), EndCause.LOCAL, missed=self._ignored)

    def lost(self, error: Exception | None = None) -> None:
        """The connection ended without a close frame, or cannot go on."""
        self._end(1006, "", EndCause.LOST, error)

    def _end(
        self, code: int, reason: str, cause: EndCause, error: Exception | None = None, missed: bool = True
    ) -> None:
        if self.ended is not None:
            return
        if self._asked is not None:
            if self._closing_for is EndCause.KEEPALIVE:
                # Whatever the peer made of it: this was a loss, and it is reported as one.
                code, reason = self._asked[0] or DEFAULT_CODE, self._asked[1] or ""
                cause = EndCause.KEEPALIVE
            elif cause is not EndCause.ABORTED:
                cause = EndCause.LOCAL
        self.ended = Ended(code, reason, cause, error, missed)


def _is_pong(payload: bytes) -> bool:
    if b"pong" not in payload:
        return False
    try:
        message = _json.loads(payload)
    except _json.BadJSON:
        return False
    return type(message) is dict and message.get("type") == "pong"
