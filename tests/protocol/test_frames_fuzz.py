"""The codec against two others: wsproto, which is strict, and websocket-client's ABNF, which it replaces.

Where the three may differ is written down once, in `explained()` and `refused_by_us_alone()`; anything else
is a failure.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websocket._abnf import ABNF, continuous_frame, frame_buffer
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as PingEvent
from wsproto.events import Pong as PongEvent
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from llm_sessions.protocol.frames import (
    BinaryMessage,
    Close,
    FrameDecoder,
    FrameEncoder,
    Item,
    Ping,
    Pong,
    TooLarge,
    Violation,
    decode_text,
)

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
BUDGET = 1 << 20

# No deadline, since a slow machine is no bug. A failure prints what reproduces it.
fuzz = settings(
    deadline=None, max_examples=100, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
fuzz_hard = settings(fuzz, max_examples=500)
fuzz_little = settings(fuzz, max_examples=40)  # the peers unmask large payloads slowly


# What each of the three makes of a stream


@dataclasses.dataclass
class Verdict:
    """Whole messages, then why the peer was refused, if it was."""

    items: list[Item]
    refused: int | None = None
    because: str = ""


def our_verdict(slices: Iterable[bytes], *, budget: int = BUDGET) -> Verdict:
    decoder = FrameDecoder(max_message_bytes=budget)
    items = [item for data in slices for item in decoder.feed(data)]
    assert not any(isinstance(item, (Close, Violation)) for item in items[:-1])
    if items and isinstance(items[-1], Violation):
        return Verdict(items[:-1], items[-1].code, items[-1].reason)
    return Verdict(items)


def wsproto_verdict(slices: Iterable[bytes], *, client: bool = True) -> Verdict:
    """By wsproto's frame layer: its connection reports a violation and a real close as the same event."""
    protocol = FrameProtocol(client=client, extensions=[])
    verdict = Verdict([])
    held = b""
    try:
        for data in slices:
            protocol.receive_bytes(data)
            for frame in protocol.received_frames():
                payload = frame.payload
                if frame.opcode is Opcode.CLOSE:
                    assert isinstance(payload, tuple)
                    verdict.items.append(Close(int(payload[0]), payload[1]))
                elif frame.opcode in (Opcode.PING, Opcode.PONG):
                    assert isinstance(payload, bytes)
                    verdict.items.append((Ping if frame.opcode is Opcode.PING else Pong)(payload))
                else:
                    assert isinstance(payload, (bytes, str))
                    held += payload.encode() if isinstance(payload, str) else payload
                    if frame.message_finished:
                        verdict.items.append(
                            held if frame.opcode is Opcode.TEXT else BinaryMessage(len(held))
                        )
                        held = b""
    except ParseFailed as refusal:
        verdict.refused, verdict.because = int(refusal.code), str(refusal)
    return verdict


def abnf_items(slices: Iterable[bytes]) -> list[Item]:
    """By websocket-client's parser, fed from a recv() that ends where the slices end."""
    held = bytearray(b"".join(slices))

    def recv(size: int) -> bytes:
        if not held:
            raise EOFError
        data = bytes(held[:size])
        del held[:size]
        return data

    frames, message = frame_buffer(recv, False), continuous_frame(False, False)
    items: list[Item] = []
    try:
        while True:
            frame = frames.recv_frame()
            payload = frame.data
            assert isinstance(payload, bytes)
            if frame.opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                items.append(Close(code, payload[2:].decode()))
                return items
            if frame.opcode in (PING, PONG):
                items.append(Ping(payload) if frame.opcode == PING else Pong(payload))
                continue
            message.validate(frame)
            message.add(frame)
            if message.is_fire(frame):
                opcode, whole = message.extract(frame)
                text = bytes(whole.data)
                items.append(text if opcode == TEXT else BinaryMessage(len(text)))
    except EOFError:
        return items


# Streams


def build(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size < 1 << 16:
        length = b"\x7e" + size.to_bytes(2, "big")
    else:
        length = b"\x7f" + size.to_bytes(8, "big")
    return bytes([opcode | (0x80 if final else 0)]) + length + payload


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The data in slices that end at `places`, taken modulo its length; some may be empty."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


short = st.text(max_size=40)
# Sizes on both sides of where the encoding of lengths changes, too long to be drawn letter by letter.
long = st.builds(
    lambda size, letter: letter * (size // len(letter.encode())),
    st.sampled_from([124, 125, 126, 127, 300, 5000, 65534, 65535, 65536, 65540]),
    st.sampled_from(["x", "\u00fc", "\u20ac", "\U0001f600"]),
)
texts = st.one_of(short, short, long)
controls = st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125))
places = st.lists(st.integers(0, 1 << 20), max_size=12)
close_codes = st.one_of(
    st.sampled_from([1000, 1001, 1002, 1003, 1007, 1011, 1012, 1013]), st.integers(3000, 4999)
)
closes = st.one_of(
    st.none(), st.tuples(close_codes, st.text(max_size=40).filter(lambda reason: len(reason.encode()) <= 123))
)


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[Item]]:
    """The frames of one message with control frames in between, and what they should come out as."""
    kind = draw(st.sampled_from([TEXT, TEXT, TEXT, BINARY, PING]))
    if kind == PING:
        opcode, body = draw(controls)
        return build(opcode, body), [Ping(body) if opcode == PING else Pong(body)]
    payload = draw(texts).encode() if kind == TEXT else draw(st.binary(max_size=200))
    parts = cut(payload, draw(st.lists(st.integers(0, 1 << 20), max_size=4)))
    data, items = b"", list[Item]()
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        data += build(CONTINUATION if index else kind, part, final=last)
        if not last and draw(st.booleans()):
            opcode, body = draw(controls)
            data += build(opcode, body)
            items.append(Ping(body) if opcode == PING else Pong(body))
    items.append(payload if kind == TEXT else BinaryMessage(len(payload)))
    return data, items


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[Item]]:
    data, items = b"", list[Item]()
    for more, expected in draw(st.lists(messages(), max_size=8)):
        data += more
        items += expected
    if draw(st.booleans()):
        close = draw(closes)
        data += build(CLOSE, close[0].to_bytes(2, "big") + close[1].encode() if close else b"")
        items.append(Close(*close) if close else Close(1005, ""))
    return data, items


# Valid streams


@fuzz
@given(streams(), places)
def test_valid_streams_come_out_as_from_both_peers(
    stream: tuple[bytes, list[Item]], where: list[int]
) -> None:
    data, expected = stream
    slices = cut(data, where)
    assert our_verdict(slices) == Verdict(expected)
    assert wsproto_verdict(slices) == Verdict(expected)
    assert abnf_items(slices) == expected


server_events = st.one_of(
    st.builds(TextMessage, data=texts, message_finished=st.booleans()),
    st.builds(TextMessage, data=texts),
    st.builds(BytesMessage, data=st.binary(max_size=300)),
    st.builds(PingEvent, payload=st.binary(max_size=125)),
    st.builds(PongEvent, payload=st.binary(max_size=125)),
)


@fuzz
@given(st.lists(server_events, max_size=10), closes, places)
def test_what_wsprotos_server_sends_is_what_we_receive(
    events: list[TextMessage | BytesMessage | PingEvent | PongEvent],
    close: tuple[int, str] | None,
    where: list[int],
) -> None:
    server = Connection(ConnectionType.SERVER)
    data, expected, held = b"", list[Item](), None
    for event in events:
        if isinstance(event, BytesMessage) and held is not None:
            continue  # wsproto rightly refuses to send it inside a text
        data += server.send(event)
        if isinstance(event, PingEvent):
            expected.append(Ping(bytes(event.payload)))
        elif isinstance(event, PongEvent):
            expected.append(Pong(bytes(event.payload)))
        elif isinstance(event, BytesMessage):
            expected.append(BinaryMessage(len(event.data)))
        else:
            held = (held or b"") + event.data.encode()
            if event.message_finished:
                expected.append(held)
                held = None
    if close:
        data += server.send(CloseConnection(*close))
        expected.append(Close(*close))
    assert our_verdict(cut(data, where)) == Verdict(expected)


# Hostile streams


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(streams())[0][:4000])
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["flip", "set", "insert", "delete", "truncate"]))
        if change == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif change == "delete":
            del data[at : at + draw(st.integers(1, 4))]
        elif change == "truncate":
            del data[at:]
        elif at < len(data):
            data[at] = (
                data[at] ^ (1 << draw(st.integers(0, 7))) if change == "flip" else draw(st.integers(0, 255))
            )
    return bytes(data)


@st.composite
def hostile_frames(draw: st.DrawFn) -> bytes:
    """Frames in which each field is drawn without regard to the others, but which mostly parse."""
    first = draw(
        st.sampled_from([0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A] * 4 + list(range(256)))
    )
    masked = draw(st.sampled_from([0] * 9 + [0x80]))
    payload = draw(
        st.one_of(
            st.binary(max_size=130),
            st.text(max_size=30).map(str.encode),
            st.builds(
                lambda code, reason: code.to_bytes(2, "big") + reason,
                st.one_of(st.integers(990, 1020), st.integers(2990, 3010), st.integers(4990, 5010)),
                st.one_of(st.binary(max_size=6), st.text(max_size=6).map(str.encode)),
            ),
        )
    )
    size = len(payload)
    shape = draw(st.sampled_from(["minimal"] * 8 + ["16", "64", "any64"]))
    if shape == "minimal" and size < 126:
        length = bytes([masked | size])
    elif shape in ("minimal", "16"):
        length = bytes([masked | 126]) + size.to_bytes(2, "big")
    else:
        announced = size if shape == "64" else draw(st.integers(0, (1 << 64) - 1))
        length = bytes([masked | 127]) + announced.to_bytes(8, "big")
    return bytes([first]) + length + payload


hostile = st.one_of(
    st.binary(max_size=300),
    mutated(),
    st.lists(hostile_frames(), max_size=6).map(b"".join),
)


def refused_by_us_alone(ours: Verdict) -> bool:
    """Rules in which we are stricter than wsproto: it has no limit on the size of a message."""
    return ours.refused == 1009


def explained(ours: Verdict, theirs: Verdict) -> bool:
    """Rules in which wsproto is stricter than we are.

    It checks the UTF-8 of a text while it is coming in; we leave that to the JSON layer, which gets the whole
    message. And it does not know close code 1014 (bad gateway), which is registered with IANA.
    """
    if theirs.refused == 1007:
        # All that it accepted before is what we accepted; then comes a text that is no text or never ended.
        rest = ours.items[len(theirs.items) :]
        return theirs.items == ours.items[: len(theirs.items)] and not_utf8_or_unfinished(rest)
    return (
        theirs.because == "CLOSE with unknown reserved code"
        and isinstance(ours.items[-1], Close)
        and ours.items[-1].code == 1014
        and ours.items[:-1] == theirs.items
    )


def not_utf8_or_unfinished(rest: list[Item]) -> bool:
    for item in rest:
        if isinstance(item, bytes):
            try:
                decode_text(item)
            except UnicodeDecodeError:
                return True
            return False
        if not isinstance(item, (Ping, Pong, Close)):  # a control frame may come inside the bad text
            return False
    return True


@fuzz_hard
@given(hostile, places)
@example(build(CLOSE, (1014).to_bytes(2, "big")), [])
@example(build(TEXT, b"\xff"), [])
@example(build(TEXT, b"\xff", final=False) + build(PING, b"") + build(CONTINUATION, b""), [])
@example(build(TEXT, b"\xff", final=False) + build(TEXT, b""), [])
@example(build(TEXT, b"\xe2\x82", final=False) + build(CONTINUATION, b"\xac"), [1, 3])
@example(b"\x81\xff", [])
@example(b"\x81\x7f" + (1 << 62).to_bytes(8, "big"), [])
@example(build(BINARY, b"x", final=False) + b"\x82\x7e", [])
def test_hostile_bytes_get_the_same_verdict_from_wsproto(data: bytes, where: list[int]) -> None:
    slices = cut(data, where)
    ours = our_verdict(slices)
    # We judge a frame by its first two bytes where wsproto waits for the whole header and a byte of payload.
    theirs = wsproto_verdict([*slices, bytes(16)] if ours.refused else slices)
    if refused_by_us_alone(ours):
        assert ours.items[: len(theirs.items)] == theirs.items[: len(ours.items)] or theirs.refused == 1007
    elif ours.refused is None:
        assert theirs.refused is None or explained(ours, theirs), (ours, theirs)
        if theirs.refused is None:
            assert ours.items == theirs.items
    else:
        assert theirs.refused is not None, (ours, theirs)
        if theirs.refused == ours.refused:
            assert ours.items == theirs.items or explained(ours, theirs)
        else:
            assert explained(ours, theirs), (ours, theirs)


@fuzz_hard
@given(hostile, places, st.sampled_from([1, 7, 50, 200, BUDGET]))
def test_slicing_never_changes_the_items(data: bytes, where: list[int], budget: int) -> None:
    whole = FrameDecoder(max_message_bytes=budget)
    sliced = FrameDecoder(max_message_bytes=budget)
    assert [item for part in cut(data, where) for item in sliced.feed(part)] == whole.feed(data)
    assert sliced.mid_message == whole.mid_message


@fuzz
@given(st.one_of(hostile, streams().map(lambda stream: stream[0][:2000])), st.sampled_from([7, 50, BUDGET]))
def test_one_byte_at_a_time_never_changes_the_items(data: bytes, budget: int) -> None:
    whole = FrameDecoder(max_message_bytes=budget)
    bytewise = FrameDecoder(max_message_bytes=budget)
    assert [item for value in data for item in bytewise.feed(bytes([value]))] == whole.feed(data)
    assert bytewise.mid_message == whole.mid_message


@fuzz
@given(streams(), places, st.integers(1, 400))
def test_t13_a_budget_only_replaces_or_ends(
    stream: tuple[bytes, list[Item]], where: list[int], budget: int
) -> None:
    """With any budget, a valid stream gives what it gives without, but for texts that are too large."""
    data, expected = stream
    verdict = our_verdict(cut(data, where), budget=budget)
    if verdict.refused is None:
        assert len(verdict.items) == len(expected)
    else:
        assert verdict.refused == 1009
    for item, wanted in zip(verdict.items, expected, strict=False):
        if isinstance(item, TooLarge):
            assert isinstance(wanted, bytes)
            assert budget < item.size <= 4 * budget
            assert len(wanted) <= item.size
        else:
            assert item == wanted
            assert not isinstance(item, bytes) or len(item) <= budget


# The encoder

payloads = st.lists(texts.map(str.encode), max_size=8)


@fuzz_little
@given(st.lists(payloads, max_size=4))
def test_batches_are_read_back_by_both_peers(batches: list[list[bytes]]) -> None:
    encoder = FrameEncoder(os.urandom)
    data = b"".join(encoder.texts(batch) for batch in batches)
    expected: list[Item] = [payload for batch in batches for payload in batch]
    assert wsproto_verdict([data], client=False) == Verdict(expected)
    assert abnf_items([data]) == expected


@fuzz_little
@given(
    st.lists(st.one_of(controls.map(lambda control: control[1]), texts), max_size=6),
    closes,
)
def test_all_kinds_of_frames_are_read_back_by_both_peers(
    sent: list[bytes | str], close: tuple[int, str] | None
) -> None:
    encoder = FrameEncoder(os.urandom)
    data, expected = b"", list[Item]()
    for one in sent:
        data += encoder.text(one.encode()) if isinstance(one, str) else encoder.pong(one)
        expected.append(one.encode() if isinstance(one, str) else Pong(one))
    data += encoder.close(*close) if close else encoder.close(None)
    expected.append(Close(*close) if close else Close(1005, ""))
    assert wsproto_verdict([data], client=False) == Verdict(expected)
    assert abnf_items([data]) == expected


@fuzz
@given(close_codes, st.text(max_size=200))
def test_close_reasons_of_any_length_are_read_back(code: int, reason: str) -> None:
    data = FrameEncoder(os.urandom).close(code, reason)
    (close,) = wsproto_verdict([data], client=False).items
    assert isinstance(close, Close)
    assert abnf_items([data]) == [close]
    assert close.code == code
    assert reason.startswith(close.reason)
    assert len(close.reason.encode()) > 119 or close.reason == reason


@fuzz
@given(st.binary(min_size=4, max_size=4), st.binary(max_size=300))
def test_any_key_masks_as_abnf_does(key: bytes, payload: bytes) -> None:
    frame = ABNF.create_frame(payload, ABNF.OPCODE_TEXT)
    frame.get_mask_key = lambda size: key
    assert FrameEncoder(lambda size: key * (size // 4)).text(payload) == frame.format()
