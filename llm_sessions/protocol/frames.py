"""RFC 6455 frames for the client role: bytes in, messages out, and back.

Pure: no socket, thread, clock or randomness. Neither class is thread-safe; the connection's lock serialises
their calls. No extension is negotiated, so every reserved bit is a violation (RFC 6455, 5.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import iter_unpack
from typing import TypeAlias

__all__ = [
    "BinaryMessage",
    "Close",
    "FrameDecoder",
    "FrameEncoder",
    "Item",
    "Ping",
    "Pong",
    "TooLarge",
    "Violation",
    "decode_text",
]

# Opcodes and the final-frame bit: RFC 6455, 5.2.
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_FIN, _MASKED = 0x80, 0x80
_WHOLE_TEXT = _FIN | _TEXT
_MAX_CONTROL_PAYLOAD = 125
_PROTOCOL_ERROR, _INVALID_PAYLOAD, _TOO_BIG, _NO_STATUS = 1002, 1007, 1009, 1005
# RFC 6455, 7.4 and the IANA registry. 1004, 1005, 1006 and 1015 never travel; 1016-2999 are unassigned.
_WIRE_CLOSE_CODES = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})

# From a server: data frames, final or not, and control frames, always final.
_LEGAL_FIRST_BYTES = frozenset({0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A})
# A too large text is skipped, since it is cheaper to drop a message than a connection. Beyond this many
# budgets the peer is not in error but out of control.
_SKIP_FACTOR = 4
_KEY_POOL_BYTES = 4096
_KEYS_AHEAD = 64  # batches like the present one; a session that only pings keeps a small pool
# Larger integers cost a third more per byte (1.7 against 2.4 ns on CPython 3.11) and memory without bound.
_XOR_CHUNK = 16 * 1024


@dataclass(frozen=True, slots=True)
class BinaryMessage:
    """A binary message of `size` payload bytes, which were discarded: this protocol has none."""

    size: int


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping with at most 125 bytes, to be answered by `FrameEncoder.pong(payload)` (RFC 6455, 5.5.2)."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """A pong with at most 125 bytes, asked for or not (RFC 6455, 5.5.3)."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The peer's close frame: the last item (RFC 6455, 5.5.1). The code is 1005 if it carried none."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A text over the budget, skipped. `size` is its payload and the headers of its fragments, in bytes."""

    size: int


@dataclass(frozen=True, slots=True)
class Violation:
    """The peer broke the protocol: the last item. Close with `code` and `reason` (RFC 6455, 7.1.7)."""

    code: int
    reason: str


Item: TypeAlias = bytes | BinaryMessage | Ping | Pong | Close | TooLarge | Violation


class _Refused(Exception):
    """Carries the code and the reason of a `Violation` up to `feed`."""


def decode_text(payload: bytes) -> str:
    """Decode a whole text message, as `FrameDecoder.feed` returned it, by RFC 6455, 8.1.

    Raises:
        UnicodeDecodeError: If it is not strict UTF-8: surrogates and overlong forms are refused too.
    """
    return payload.decode("utf-8")


class FrameDecoder:
    """Cut a server's byte stream into messages (RFC 6455, 5 and 6.2).

    Memory follows the bytes that came, never a length that was announced, up to one budget; an idle decoder
    holds none. Time is linear in the bytes fed, however they are sliced or fragmented.

    Args:
        max_message_bytes: Budget of one message in bytes: its payload and, if it comes in fragments, their
            headers, so that endless empty fragments end too. A text over the budget is skipped and reported
            as `TooLarge`; any message over four budgets is a `Violation` with code 1009.

    Raises:
        ValueError: If the budget is not positive.
    """

    def __init__(self, *, max_message_bytes: int) -> None:
        if max_message_bytes < 1:
            raise ValueError(f"max_message_bytes must be positive, not {max_message_bytes}")
        self._budget = max_message_bytes
        self._ended = False
        # Start of a header or control frame that is not complete yet: at most 126 bytes, so prepending it
        # to the next slice stays cheap. Payloads of data frames never wait here.
        self._tail = b""
        self._reset()

    def _reset(self) -> None:
        self._opcode = 0  # of the data message in progress; 0 between messages
        self._text: bytearray | None = None  # None while the payload is being discarded
        self._size = 0  # payload bytes announced so far
        self._cost = 0  # the same and the headers of fragments, held against the budget
        self._final = False  # the frame in progress is the message's last
        self._missing = 0  # payload bytes of the frame in progress that have not come yet

    @property
    def mid_message(self) -> bool:
        """Whether the bytes fed so far end inside a frame or between the fragments of a message."""
        return bool(self._opcode or self._tail)

    def feed(self, data: bytes) -> list[Item]:
        """Parse the next bytes of the stream, cut anywhere.

        Args:
            data: Bytes as they came from the transport; any number of them.

        Returns:
            What these bytes completed, in order. A text message is its bare payload, *not yet checked to
            be UTF-8*: the JSON layer does that, with `decode_text` or a parser as strict. After a `Close`
            or a `Violation`, always the last item, whatever else is fed is dropped and the list is empty.
            Nothing the peer sends raises.
        """
        items: list[Item] = []
        if self._ended:
            return items
        if self._tail:
            data = self._tail + data
            self._tail = b""
        try:
            self._parse(data, items)
        except _Refused as refused:
            items.append(Violation(*refused.args))
            self._end()
        return items

    def _parse(self, data: bytes, items: list[Item]) -> None:
        append, budget, end = items.append, self._budget, len(data)
        last = end - 3  # before it, the two bytes of an extended length can be read unchecked
        position = self._collect(data, 0, items) if self._missing else 0
        while position < end:
            if not self._opcode:
                # Nearly all traffic: unfragmented texts below 64 KiB. Anything else leaves this loop
                # with nothing consumed and is looked at again by _frame(), which knows every rule.
                while position < last and data[position] == _WHOLE_TEXT:
                    length = data[position + 1]
                    start = position + 2
                    if length == 126:
                        length = data[start] << 8 | data[position + 3]
                        start += 2
                        if length < 126:
                            break
                    elif length > 126:
                        break
                    stop = start + length
                    if stop > end or length > budget:
                        break
                    append(data[start:stop])
                    position = stop
            parsed = self._frame(data, position, items)
            if parsed == position:
                self._tail = data[position:]
                return
            position = parsed

    def _frame(self, data: bytes, position: int, items: list[Item]) -> int:
        """Parse one frame and return where parsing goes on: at `position` itself if bytes are missing."""
        available = len(data) - position
        if available < 2:
            return position
        first, length = data[position], data[position + 1]
        if first not in _LEGAL_FIRST_BYTES:
            raise _Refused(_PROTOCOL_ERROR, _why_illegal(first))
        if length & _MASKED:
            raise _Refused(_PROTOCOL_ERROR, "masked frame from the server")
        opcode, control = first & 0x0F, first & 0x08
        if control and length > _MAX_CONTROL_PAYLOAD:
            raise _Refused(_PROTOCOL_ERROR, "control frame longer than 125 bytes")
        if not control and bool(opcode) == bool(self._opcode):
            why = "new message inside a fragmented one" if opcode else "continuation of no message"
            raise _Refused(_PROTOCOL_ERROR, why)
        start = position + 2
        if length > 125:
            start += 2 if length == 126 else 8
            if start - position > available:
                return position
            length = _extended_length(data[position + 2 : start])
        if control:
            stop = start + length
            if stop > len(data):
                return position
            items.append(self._control(opcode, data[start:stop]))
            return len(data) if self._ended else stop
        self._begin(first, start - position, length)
        return self._collect(data, start, items)

    def _control(self, opcode: int, payload: bytes) -> Item:
        if opcode != _CLOSE:
            return Ping(payload) if opcode == _PING else Pong(payload)
        close = _parse_close(payload)
        self._end()
        return close

    def _begin(self, first: int, header: int, length: int) -> None:
        """Enter a data frame whose header is known: charge it before a byte of it is kept."""
        opcode = first & 0x0F
        self._final = first >= _FIN
        if opcode:
            self._opcode = opcode
            if opcode == _TEXT:
                self._text = bytearray()
        self._missing = length
        self._size += length
        self._cost += length if opcode and self._final else header + length
        if self._cost > self._budget:
            if self._cost > self._budget * _SKIP_FACTOR:
                raise _Refused(_TOO_BIG, f"message over {self._budget * _SKIP_FACTOR} bytes")
            self._text = None

    def _collect(self, data: bytes, start: int, items: list[Item]) -> int:
        """Take what `data` holds of the data frame in progress and return where that ends."""
        stop = min(start + self._missing, len(data))
        self._missing -= stop - start
        if self._text is not None:
            self._text += data[start:stop]
        if self._final and not self._missing:
            if self._opcode == _BINARY:
                items.append(BinaryMessage(self._size))
            elif self._text is None:
                items.append(TooLarge(self._cost))
            else:
                items.append(bytes(self._text))
            self._reset()
        return stop

    def _end(self) -> None:
        self._ended = True
        self._reset()


def _why_illegal(first: int) -> str:
    if first & 0x70:
        return "reserved bit set"
    opcode = first & 0x0F
    return "fragmented control frame" if opcode in (_CLOSE, _PING, _PONG) else f"unknown opcode {opcode:#x}"


def _extended_length(field: bytes) -> int:
    length = int.from_bytes(field, "big")
    if length <= (125 if len(field) == 2 else 0xFFFF):
        raise _Refused(_PROTOCOL_ERROR, "length not minimally encoded")
    if length >> 63:
        raise _Refused(_PROTOCOL_ERROR, "length with its top bit set")
    return length


def _parse_close(payload: bytes) -> Close:
    if not payload:
        return Close(_NO_STATUS, "")
    if len(payload) == 1:
        raise _Refused(_PROTOCOL_ERROR, "close payload of one byte")
    code = int.from_bytes(payload[:2], "big")
    if code not in _WIRE_CLOSE_CODES:
        raise _Refused(_PROTOCOL_ERROR, f"close code {code} is not allowed on the wire")
    try:
        return Close(code, payload[2:].decode("utf-8"))
    except UnicodeDecodeError:
        raise _Refused(_INVALID_PAYLOAD, "close reason is not UTF-8") from None


class FrameEncoder:
    """Build a client's frames, each masked with a fresh key (RFC 6455, 5.3).

    Args:
        random_bytes: Returns as many unpredictable bytes as it is asked for, such as `os.urandom`. Asked
            for up to 4 KiB at a time, because a system call for each key would give the GIL away.
    """

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._keys = b""
        self._used = 0  # bytes of _keys that were handed out

    def text(self, payload: bytes) -> bytes:
        """Return one masked text frame; the payload is UTF-8 of any length, not checked."""
        return self._frames(_WHOLE_TEXT, (payload,))

    def texts(self, payloads: Sequence[bytes]) -> bytes:
        """Return one masked text frame for each payload, in order; none for none."""
        return self._frames(_WHOLE_TEXT, payloads)

    def pong(self, payload: bytes) -> bytes:
        """Return a pong with a ping's payload (RFC 6455, 5.5.3); ValueError if that is over 125 bytes."""
        if len(payload) > _MAX_CONTROL_PAYLOAD:
            raise ValueError(f"a control frame carries at most 125 bytes, not {len(payload)}")
        return self._frames(_FIN | _PONG, (payload,))

    def close(self, code: int | None, reason: str = "") -> bytes:
        """Return a close frame (RFC 6455, 5.5.1).

        Args:
            code: The close code; `None` sends an empty payload, which the peer reads as 1005.
            reason: Cut to 123 bytes of UTF-8, between characters.

        Raises:
            ValueError: If the code may not be sent (RFC 6455, 7.4), if a reason comes without a code, or
                if the reason has lone surrogates.
        """
        if code is None:
            if reason:
                raise ValueError("a close reason needs a code")
            return self._frames(_FIN | _CLOSE, (b"",))
        if code not in _WIRE_CLOSE_CODES:
            raise ValueError(f"close code {code} is not allowed on the wire")
        text = reason.encode("utf-8")
        if len(text) > _MAX_CONTROL_PAYLOAD - 2:
            text = text[: _MAX_CONTROL_PAYLOAD - 2].decode("utf-8", "ignore").encode("utf-8")
        return self._frames(_FIN | _CLOSE, (code.to_bytes(2, "big") + text,))

    def _frames(self, first: int, payloads: Sequence[bytes]) -> bytes:
        # A key travels in clear before the payload it masks: key ^ zeros. So the pad under each frame is
        # zeros for the header, then the key repeated, and one XOR of two strings masks the whole batch.
        plain: list[bytes] = []
        pad: list[bytes] = []
        add_plain, add_pad, headers = plain.append, pad.append, _HEADERS[first]
        keys = iter_unpack("4s", self._take_keys(len(payloads)))
        for payload, (key,) in zip(payloads, keys, strict=True):
            length = len(payload)
            if length < 126:
                add_plain(headers[length])
                add_pad(b"\0\0")
            else:
                header = _long_header(first, length)
                add_plain(header)
                add_pad(bytes(len(header) - 4))
            add_plain(payload)
            add_pad((key * (length // 4 + 2))[: length + 4])
        return _xor(b"".join(plain), b"".join(pad))

    def _take_keys(self, count: int) -> bytes:
        size = 4 * count
        if self._used + size > len(self._keys):
            self._keys, self._used = (
                self._random_bytes(max(size, min(_KEYS_AHEAD * size, _KEY_POOL_BYTES))),
                0,
            )
        self._used += size
        return self._keys[self._used - size : self._used]


# Headers of short frames, with four zeros where the key comes, by first byte and payload length.
_HEADERS = {
    first: tuple(bytes((first, _MASKED | length, 0, 0, 0, 0)) for length in range(126))
    for first in (_WHOLE_TEXT, _FIN | _PONG, _FIN | _CLOSE)
}


def _long_header(first: int, length: int) -> bytes:
    if length <= 0xFFFF:
        return bytes((first, _MASKED | 126)) + length.to_bytes(2, "big") + bytes(4)
    return bytes((first, _MASKED | 127)) + length.to_bytes(8, "big") + bytes(4)


def _xor(left: bytes, right: bytes) -> bytes:
    size = len(left)
    if size <= _XOR_CHUNK:
        return (int.from_bytes(left, "little") ^ int.from_bytes(right, "little")).to_bytes(size, "little")
    return b"".join(
        _xor(left[at : at + _XOR_CHUNK], right[at : at + _XOR_CHUNK]) for at in range(0, size, _XOR_CHUNK)
    )
