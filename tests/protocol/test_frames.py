"""Every rule of the codec, at its edges. What the peers think of the same bytes is in test_frames_fuzz.py."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

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
PLENTY = 1 << 20


def frame(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """A server's frame with its length minimally encoded."""
    return header(opcode, len(payload), final=final) + payload


def header(opcode: int, length: int, *, final: bool = True) -> bytes:
    first = bytes([opcode | (0x80 if final else 0)])
    if length < 126:
        return first + bytes([length])
    if length < 1 << 16:
        return first + b"\x7e" + length.to_bytes(2, "big")
    return first + b"\x7f" + length.to_bytes(8, "big")


def close_frame(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def decode(data: bytes, *, budget: int = PLENTY) -> list[Item]:
    return FrameDecoder(max_message_bytes=budget).feed(data)


def decode_bytewise(data: bytes, *, budget: int = PLENTY) -> list[Item]:
    decoder = FrameDecoder(max_message_bytes=budget)
    return [item for value in data for item in decoder.feed(bytes([value]))]


def only_violation(data: bytes, *, budget: int = PLENTY) -> Violation:
    """The one item of a stream that is refused, however it is cut."""
    (item,) = decode(data, budget=budget)
    assert isinstance(item, Violation)
    assert decode_bytewise(data, budget=budget) == [item]
    assert len(item.reason.encode()) <= 123
    return item


# Data messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 65537])
def test_text_of_each_length_encoding_is_returned_as_its_payload(size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    decoder = FrameDecoder(max_message_bytes=PLENTY)
    assert decoder.feed(frame(TEXT, payload)) == [payload]
    assert not decoder.mid_message
    assert decoder.feed(frame(TEXT, payload) + frame(TEXT, b"next")) == [payload, b"next"]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_binary_is_counted_and_discarded(size: int) -> None:
    assert decode(frame(BINARY, bytes(size)) + frame(TEXT, b"next")) == [BinaryMessage(size), b"next"]


def test_i8_binary_in_fragments_is_counted_and_the_socket_lives() -> None:
    data = frame(BINARY, b"abc", final=False) + frame(CONTINUATION, b"de") + frame(TEXT, b"next")
    assert decode(data) == [BinaryMessage(5), b"next"]
    assert decode_bytewise(data) == [BinaryMessage(5), b"next"]


def test_i8_invalid_utf8_is_left_to_the_json_layer_and_the_socket_lives() -> None:
    bad, good = decode(frame(TEXT, b"\xff\xfe") + frame(TEXT, "gr\u00fcn".encode()))
    assert isinstance(bad, bytes)
    assert isinstance(good, bytes)
    with pytest.raises(UnicodeDecodeError):
        decode_text(bad)
    assert decode_text(good) == "gr\u00fcn"


@pytest.mark.parametrize("payload", [b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe2\x82"])
def test_decode_text_is_strict(payload: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        decode_text(payload)


@pytest.mark.parametrize(
    "parts",
    [
        [b"a", b"b"],
        [b"", b""],
        [b"", b"x", b""],
        [b"\xc3", b"\xbc"],  # a character may be cut in two
        [b"x" * 125, b"y" * 126, b"z" * 65535, b"w" * 65536],
    ],
)
def test_fragments_are_joined(parts: list[bytes]) -> None:
    opcodes = itertools.chain([TEXT], itertools.repeat(CONTINUATION))
    data = b"".join(
        frame(opcode, part, final=False) for opcode, part in zip(opcodes, parts[:-1], strict=False)
    ) + frame(CONTINUATION, parts[-1])
    assert decode(data) == [b"".join(parts)]
    assert decode(data + data) == [b"".join(parts)] * 2


def test_controls_inside_a_fragmented_message_come_first() -> None:
    data = (
        frame(TEXT, b"a", final=False)
        + frame(PING, b"p")
        + frame(CONTINUATION, b"b", final=False)
        + frame(PONG, b"q")
        + frame(CONTINUATION, b"c")
    )
    assert decode(data) == decode_bytewise(data) == [Ping(b"p"), Pong(b"q"), b"abc"]


# Control frames


@pytest.mark.parametrize("size", [0, 1, 125])
def test_ping_and_pong_carry_up_to_125_bytes(size: int) -> None:
    data = frame(PING, b"x" * size) + frame(PONG, b"y" * size)
    assert decode(data) == decode_bytewise(data) == [Ping(b"x" * size), Pong(b"y" * size)]


def test_ping_and_pong_of_one_payload_are_not_equal() -> None:
    ping, pong = Ping(b"x"), Pong(b"x")
    assert len({ping, pong}) == 2


def test_close_without_payload_is_1005() -> None:
    assert decode(frame(CLOSE)) == [Close(1005, "")]


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1010, 1011, 1014, 3000, 3050, 3999, 4000, 4401, 4999]
)
def test_close_code_allowed_on_the_wire(code: int) -> None:
    assert decode(close_frame(code)) == [Close(code, "")]


@pytest.mark.parametrize(
    "code", [0, 1, 125, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 9999, 65535]
)
def test_close_code_not_allowed_on_the_wire(code: int) -> None:
    assert only_violation(close_frame(code, b"why")).code == 1002


def test_close_reason_of_123_bytes() -> None:
    reason = "\u00fc" * 61 + "x"
    assert decode(close_frame(4000, reason.encode())) == [Close(4000, reason)]


@pytest.mark.parametrize("reason", [b"\xff", b"caf\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_close_reason_that_is_not_utf8_is_1007(reason: bytes) -> None:
    assert only_violation(close_frame(1000, reason)).code == 1007


def test_close_payload_of_one_byte() -> None:
    assert only_violation(frame(CLOSE, b"\x03")) == Violation(1002, "close payload of one byte")


def test_close_inside_a_fragmented_message_ends_it() -> None:
    decoder = FrameDecoder(max_message_bytes=PLENTY)
    assert decoder.feed(frame(TEXT, b"a", final=False) + close_frame(1001)) == [Close(1001, "")]
    assert not decoder.mid_message


# Violations


@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG])
@pytest.mark.parametrize("bit", [0x40, 0x20, 0x10, 0x70])
def test_reserved_bits_are_refused(opcode: int, bit: int) -> None:
    violation = only_violation(bytes([0x80 | opcode | bit, 0]))
    assert violation == Violation(1002, "reserved bit set")


@pytest.mark.parametrize("opcode", [0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF])
@pytest.mark.parametrize("final", [True, False])
def test_unknown_opcodes_are_refused(opcode: int, final: bool) -> None:
    assert only_violation(frame(opcode, final=final)) == Violation(1002, f"unknown opcode {opcode:#x}")


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
@pytest.mark.parametrize("length", [0, 5, 126, 127])
def test_masked_frames_are_refused(opcode: int, length: int) -> None:
    violation = only_violation(bytes([0x80 | opcode, 0x80 | length]))
    assert violation == Violation(1002, "masked frame from the server")


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_fragmented_control_frames_are_refused(opcode: int) -> None:
    assert only_violation(frame(opcode, final=False)) == Violation(1002, "fragmented control frame")


@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
@pytest.mark.parametrize("length", [126, 127])
def test_long_control_frames_are_refused_before_their_length_arrives(opcode: int, length: int) -> None:
    violation = only_violation(bytes([0x80 | opcode, length]))
    assert violation == Violation(1002, "control frame longer than 125 bytes")


@pytest.mark.parametrize("final", [True, False])
def test_continuation_of_no_message_is_refused(final: bool) -> None:
    assert only_violation(frame(CONTINUATION, b"x", final=final)).code == 1002
    whole, violation = decode(frame(TEXT, b"whole") + frame(CONTINUATION, b"x", final=final))
    assert whole == b"whole"
    assert violation == Violation(1002, "continuation of no message")


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("inner", [TEXT, BINARY])
@pytest.mark.parametrize("final", [True, False])
def test_new_message_inside_a_fragmented_one_is_refused(opcode: int, inner: int, final: bool) -> None:
    violation = only_violation(frame(opcode, b"a", final=False) + frame(inner, b"b", final=final))
    assert violation == Violation(1002, "new message inside a fragmented one")


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("length", [0, 1, 125])
def test_16_bit_length_must_be_needed(opcode: int, length: int) -> None:
    data = bytes([0x80 | opcode, 126]) + length.to_bytes(2, "big") + bytes(length)
    assert decode(data) == [Violation(1002, "length not minimally encoded")]
    assert decode_bytewise(data) == [Violation(1002, "length not minimally encoded")]


@pytest.mark.parametrize("length", [0, 125, 126, 65535])
def test_64_bit_length_must_be_needed(length: int) -> None:
    data = bytes([0x80 | TEXT, 127]) + length.to_bytes(8, "big")
    assert only_violation(data) == Violation(1002, "length not minimally encoded")


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1])
def test_64_bit_length_with_its_top_bit_set_is_a_protocol_error_not_a_size(length: int) -> None:
    data = bytes([0x80 | TEXT, 127]) + length.to_bytes(8, "big")
    assert only_violation(data) == Violation(1002, "length with its top bit set")


def test_t13_largest_length_that_is_a_length() -> None:
    assert only_violation(header(TEXT, (1 << 63) - 1)).code == 1009


def test_messages_before_a_violation_in_the_same_bytes_are_delivered() -> None:
    data = frame(TEXT, b"a") + frame(PING, b"b") + frame(BINARY, b"c") + b"\xc1\x00" + frame(TEXT, b"lost")
    expected = [b"a", Ping(b"b"), BinaryMessage(1), Violation(1002, "reserved bit set")]
    assert decode(data) == decode_bytewise(data) == expected


@pytest.mark.parametrize("last", [frame(CLOSE), b"\xc1\x00", header(TEXT, 1 << 40)])
def test_i9_nothing_is_parsed_after_the_last_item(last: bytes) -> None:
    decoder = FrameDecoder(max_message_bytes=PLENTY)
    assert len(decoder.feed(frame(TEXT, b"a") + last + frame(TEXT, b"b") + b"\x81")) == 2
    assert not decoder.mid_message
    for data in (frame(TEXT, b"c"), frame(CLOSE), b"\xff" * 20, b""):
        assert decoder.feed(data) == []
        assert not decoder.mid_message


# Budgets


@pytest.mark.parametrize("budget", [1, 10, 125, 126, 1000, 65535, 70_000])
def test_t13_budget_edges_of_a_text_in_one_frame(budget: int) -> None:
    after = frame(TEXT, b"!")
    assert decode(frame(TEXT, bytes(budget)) + after, budget=budget) == [bytes(budget), b"!"]
    assert decode(frame(TEXT, bytes(budget + 1)) + after, budget=budget) == [TooLarge(budget + 1), b"!"]
    assert decode(frame(TEXT, bytes(4 * budget)) + after, budget=budget) == [TooLarge(4 * budget), b"!"]
    violation = only_violation(header(TEXT, 4 * budget + 1), budget=budget)
    assert violation == Violation(1009, f"message over {4 * budget} bytes")


def test_t13_budget_edges_of_binary() -> None:
    assert decode(frame(BINARY, bytes(11)), budget=10) == [BinaryMessage(11)]
    assert decode(frame(BINARY, bytes(40)), budget=10) == [BinaryMessage(40)]
    assert only_violation(header(BINARY, 41), budget=10).code == 1009


def test_t13_budget_counts_the_headers_of_fragments() -> None:
    def fragmented(size: int) -> bytes:
        return frame(TEXT, b"ab", final=False) + frame(CONTINUATION, bytes(size))

    after = frame(TEXT, b"!")
    # Two headers of two bytes and "ab" make six.
    assert decode(fragmented(4) + after, budget=10) == [b"ab" + bytes(4), b"!"]
    assert decode(fragmented(5) + after, budget=10) == [TooLarge(11), b"!"]
    assert decode(fragmented(34) + after, budget=10) == [TooLarge(40), b"!"]
    assert only_violation(fragmented(0)[:4] + header(CONTINUATION, 35), budget=10).code == 1009


def test_t13_budget_counts_long_headers_as_they_are() -> None:
    def fragmented(size: int) -> bytes:
        return frame(TEXT, bytes(126), final=False) + frame(CONTINUATION, bytes(size))

    cost = (4 + 126) + (10 + 65536)
    assert decode(fragmented(65536), budget=cost) == [bytes(126 + 65536)]
    assert decode(fragmented(65536), budget=cost - 1) == [TooLarge(cost)]


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_t13_endless_empty_fragments_end(opcode: int) -> None:
    decoder = FrameDecoder(max_message_bytes=100)
    assert decoder.feed(frame(opcode, final=False)) == []
    fed = 2
    for _ in range(1000):
        items = decoder.feed(frame(CONTINUATION, final=False))
        fed += 2
        if items:
            break
    assert items == [Violation(1009, "message over 400 bytes")]
    assert fed == 402


def test_t13_skipped_message_lets_control_frames_through() -> None:
    data = (
        frame(TEXT, bytes(8), final=False)
        + frame(PING, b"p")
        + frame(CONTINUATION, bytes(8), final=False)
        + frame(PONG, b"q")
        + frame(CONTINUATION, b"")
        + frame(TEXT, b"next")
    )
    assert decode(data, budget=10) == [Ping(b"p"), Pong(b"q"), TooLarge(22), b"next"]
    assert decode_bytewise(data, budget=10) == [Ping(b"p"), Pong(b"q"), TooLarge(22), b"next"]


def test_t13_skipping_one_message_does_not_charge_the_next() -> None:
    data = frame(TEXT, bytes(20)) + frame(TEXT, bytes(10), final=False) + frame(CONTINUATION)
    assert decode(data + frame(TEXT, bytes(10)), budget=10) == [TooLarge(20), TooLarge(14), bytes(10)]


@pytest.mark.parametrize("budget", [0, -1])
def test_budget_must_be_positive(budget: int) -> None:
    with pytest.raises(ValueError):
        FrameDecoder(max_message_bytes=budget)


# Memory


def peak_while(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_t13_terabyte_header_allocates_nothing(opcode: int) -> None:
    decoder = FrameDecoder(max_message_bytes=16 << 20)
    data = header(opcode, 1 << 40) + bytes(1000)
    assert peak_while(lambda: decoder.feed(data)) < 1 << 20
    assert not decoder.mid_message
    assert only_violation(header(opcode, 1 << 40), budget=16 << 20).code == 1009


def test_t13_header_within_the_budget_allocates_only_what_arrives() -> None:
    decoder = FrameDecoder(max_message_bytes=16 << 20)
    data = header(TEXT, 16 << 20) + bytes(1000)
    assert peak_while(lambda: decoder.feed(data)) < 1 << 20
    assert decoder.mid_message


@pytest.mark.parametrize(("opcode", "budget"), [(TEXT, 1 << 20), (BINARY, 1 << 20), (BINARY, 4 << 20)])
def test_t13_discarded_payload_is_not_buffered(opcode: int, budget: int) -> None:
    decoder = FrameDecoder(max_message_bytes=budget)
    chunk = bytes(64 << 10)
    expected = TooLarge(4 << 20) if opcode == TEXT else BinaryMessage(4 << 20)

    def feed_all() -> None:
        items = decoder.feed(header(opcode, 4 << 20))
        for _ in range(64):
            items += decoder.feed(chunk)
        assert items == [expected]

    assert peak_while(feed_all) < 512 << 10


def test_t13_text_that_outgrows_its_budget_gives_its_buffer_back() -> None:
    decoder = FrameDecoder(max_message_bytes=1 << 20)
    part = bytes(512 << 10)
    tracemalloc.start()
    try:
        decoder.feed(frame(TEXT, part, final=False))
        decoder.feed(header(CONTINUATION, len(part)))
        assert tracemalloc.get_traced_memory()[0] < 64 << 10
    finally:
        tracemalloc.stop()
    assert decoder.feed(part) == [TooLarge((1 << 20) + 20)]


def test_one_byte_fragments_cost_no_object_each() -> None:
    fragments = frame(TEXT, b"x", final=False) + frame(CONTINUATION, b"y", final=False) * 99_999
    decoder = FrameDecoder(max_message_bytes=PLENTY)
    assert peak_while(lambda: decoder.feed(fragments)) < 400_000
    assert decoder.feed(frame(CONTINUATION)) == [b"x" + b"y" * 99_999]


def test_idle_decoder_holds_nothing() -> None:
    decoder = FrameDecoder(max_message_bytes=PLENTY)
    data = frame(TEXT, bytes(300_000)) + frame(PING, b"p")
    tracemalloc.start()
    try:
        for at in range(0, len(data), 1000):
            decoder.feed(data[at : at + 1000])
        assert tracemalloc.get_traced_memory()[0] < 4096
    finally:
        tracemalloc.stop()
    assert not decoder.mid_message


# Slicing


def mixed_stream() -> bytes:
    return (
        frame(TEXT, b"short")
        + frame(TEXT, b"m" * 130)
        + frame(TEXT, b"a", final=False)
        + frame(PING, b"ping")
        + frame(CONTINUATION, b"b" * 140)
        + frame(TEXT)
        + frame(BINARY, b"bin")
        + frame(TEXT, b"L" * 210)
        + frame(PONG)
        + close_frame(4000, b"replaced")
    )


MIXED_ITEMS: list[Item] = [
    b"short",
    b"m" * 130,
    Ping(b"ping"),
    b"a" + b"b" * 140,
    b"",
    BinaryMessage(3),
    TooLarge(210),
    Pong(b""),
    Close(4000, "replaced"),
]


def test_every_split_in_two_gives_the_same_items() -> None:
    data = mixed_stream()
    assert decode(data, budget=200) == MIXED_ITEMS
    for cut in range(len(data) + 1):
        decoder = FrameDecoder(max_message_bytes=200)
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == MIXED_ITEMS


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64])
def test_small_feeds_give_the_same_items(step: int) -> None:
    data = mixed_stream()
    decoder = FrameDecoder(max_message_bytes=200)
    items = [item for at in range(0, len(data), step) for item in decoder.feed(data[at : at + step])]
    assert items == MIXED_ITEMS


@pytest.mark.parametrize("size", [126, 65536])
def test_long_length_split_anywhere(size: int) -> None:
    data = frame(TEXT, b"x" * size)
    for cut in range(15):
        decoder = FrameDecoder(max_message_bytes=PLENTY)
        assert decoder.feed(data[:cut]) == []
        assert decoder.mid_message == (cut > 0)
        assert decoder.feed(data[cut:]) == [b"x" * size]


def test_payloads_are_bytes_however_they_came() -> None:
    whole, fragmented, cut = (
        frame(TEXT, b"ab"),
        frame(TEXT, b"a", final=False) + frame(CONTINUATION, b"b"),
        b"\x81\x02a",
    )
    decoder = FrameDecoder(max_message_bytes=PLENTY)
    items = decoder.feed(whole + fragmented + cut) + decoder.feed(b"b")
    assert items == [b"ab"] * 3
    assert {type(item) for item in items} == {bytes}


def test_feeding_nothing_gives_nothing() -> None:
    decoder = FrameDecoder(max_message_bytes=PLENTY)
    assert decoder.feed(b"") == []
    assert not decoder.mid_message
    assert decoder.feed(b"\x81\x02a") == []
    assert decoder.feed(b"") == []
    assert decoder.mid_message
    assert decoder.feed(b"b") == [b"ab"]


def test_mid_message_between_fragments() -> None:
    decoder = FrameDecoder(max_message_bytes=PLENTY)
    decoder.feed(frame(TEXT, b"a", final=False))
    assert decoder.mid_message
    decoder.feed(frame(PING))
    assert decoder.mid_message
    decoder.feed(frame(CONTINUATION, b"b"))
    assert not decoder.mid_message


# Sixteen megabytes take a fraction of a second if parsing is linear and minutes if it is not, which the
# time limit of the test run would notice. Nothing here measures time.


def test_linear_16_mib_in_1_kib_fragments() -> None:
    part = b"x" * 1024
    data = frame(TEXT, part, final=False) + frame(CONTINUATION, part, final=False) * (16 * 1024 - 1)
    data += frame(CONTINUATION)
    decoder = FrameDecoder(max_message_bytes=17 << 20)
    items = [item for at in range(0, len(data), 1500) for item in decoder.feed(data[at : at + 1500])]
    assert items == [b"x" * (16 << 20)]


def test_linear_one_byte_feeds() -> None:
    data = frame(TEXT, b"x" * (1 << 20))
    assert decode_bytewise(data) == [b"x" * (1 << 20)]


# Encoder


class Keys:
    """Random bytes that are not: 1, 2, 3, … as 32-bit numbers, with every request on record."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self._numbers: Iterator[int] = itertools.count(1)

    def __call__(self, size: int) -> bytes:
        self.asked.append(size)
        return b"".join(next(self._numbers).to_bytes(4, "big") for _ in range(size // 4))


def read_masked(data: bytes) -> list[tuple[int, bytes, bytes]]:
    """First byte, key and payload of each of a client's frames, unmasked one byte at a time."""
    frames = []
    at = 0
    while at < len(data):
        first, length = data[at], data[at + 1]
        assert length & 0x80, "a client masks every frame"
        length &= 0x7F
        at += 2
        if length > 125:
            width = 2 if length == 126 else 8
            length = int.from_bytes(data[at : at + width], "big")
            assert length > (125 if width == 2 else 65535), "lengths are minimally encoded"
            at += width
        key = data[at : at + 4]
        at += 4
        masked = data[at : at + length]
        assert len(masked) == length
        frames.append((first, key, bytes(byte ^ key[index % 4] for index, byte in enumerate(masked))))
        at += length
    return frames


def test_text_is_the_example_of_rfc_6455() -> None:
    encoder = FrameEncoder(lambda size: (b"\x37\xfa\x21\x3d" * size)[:size])
    assert encoder.text(b"Hello") == bytes.fromhex("81 85 37 fa 21 3d 7f 9f 4d 51 58")  # 5.7


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 16383, 16384, 65535, 65536, 65537])
def test_text_of_each_length_encoding_is_masked(size: int) -> None:
    payload = bytes(index % 253 for index in range(size))
    assert read_masked(FrameEncoder(Keys()).text(payload)) == [(0x81, b"\0\0\0\1", payload)]


def test_batch_is_the_same_as_its_frames_one_by_one() -> None:
    payloads = [bytes([size % 256]) * size for size in (60, 0, 1, 125, 126, 3, 65535, 65536, 17, 40_000)]
    one_by_one = FrameEncoder(Keys())
    batch = FrameEncoder(Keys()).texts(payloads)
    assert batch == b"".join(one_by_one.text(payload) for payload in payloads)
    assert [payload for _, _, payload in read_masked(batch)] == payloads


def test_empty_batch_is_no_bytes_and_no_key() -> None:
    keys = Keys()
    assert FrameEncoder(keys).texts([]) == b""
    assert keys.asked == []


def test_no_key_is_used_twice() -> None:
    encoder = FrameEncoder(Keys())
    data = b"".join(
        encoder.texts([b"x"] * 60) + encoder.text(b"y") + encoder.pong(b"z") + encoder.close(1000)
        for _ in range(100)
    )
    keys = [key for _, key, _ in read_masked(data)]
    assert len(keys) == len(set(keys)) == 6300


def test_random_bytes_are_asked_for_in_chunks() -> None:
    keys = Keys()
    encoder = FrameEncoder(keys)
    for _ in range(64):
        encoder.text(b"x")
    assert keys.asked == [256]
    encoder.text(b"x")
    assert keys.asked == [256, 256]


def test_random_bytes_for_batches_are_asked_for_in_larger_chunks() -> None:
    keys = Keys()
    encoder = FrameEncoder(keys)
    for _ in range(16):
        encoder.texts([b"x"] * 64)
    assert keys.asked == [4096]
    encoder.texts([b"x"] * 64)
    assert keys.asked == [4096, 4096]


def test_batch_larger_than_a_chunk_of_keys() -> None:
    keys = Keys()
    data = FrameEncoder(keys).texts([b"x"] * 5000)
    assert keys.asked == [20_000]
    assert len({key for _, key, _ in read_masked(data)}) == 5000


def test_batch_is_never_cut_short_by_too_few_random_bytes() -> None:
    encoder = FrameEncoder(lambda size: bytes(8))
    with pytest.raises(ValueError):
        encoder.texts([b"a", b"b", b"c"])


def test_encoder_survives_a_failing_source_of_randomness() -> None:
    failures: list[Exception] = [OSError("no entropy")]
    keys = Keys()

    def sometimes(size: int) -> bytes:
        if failures:
            raise failures.pop()
        return keys(size)

    encoder = FrameEncoder(sometimes)
    with pytest.raises(OSError, match="no entropy"):
        encoder.text(b"x")
    assert read_masked(encoder.text(b"x")) == [(0x81, b"\0\0\0\1", b"x")]


@pytest.mark.parametrize("size", [0, 1, 125])
def test_pong_returns_the_payload(size: int) -> None:
    assert read_masked(FrameEncoder(Keys()).pong(b"p" * size)) == [(0x8A, b"\0\0\0\1", b"p" * size)]


def test_pong_over_125_bytes_is_refused() -> None:
    with pytest.raises(ValueError):
        FrameEncoder(Keys()).pong(bytes(126))


def close_payload(code: int | None, reason: str = "") -> bytes:
    ((first, _, payload),) = read_masked(FrameEncoder(Keys()).close(code, reason))
    assert first == 0x88
    return payload


def test_close_without_code_has_an_empty_payload() -> None:
    assert close_payload(None) == b""


def test_close_with_code_and_reason() -> None:
    assert close_payload(3050) == b"\x0b\xea"
    assert close_payload(1000, "Done") == b"\x03\xe8Done"


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("x" * 123, 123),
        ("x" * 124, 123),
        ("x" * 122 + "\u00fc", 122),  # 124 bytes, the last two of them one character
        ("x" * 121 + "\u00fc", 123),
        ("\u20ac" * 41, 123),
        ("\u20ac" * 42, 123),
        ("x" + "\U0001f600" * 31, 121),
        ("x" * 10_000, 123),
    ],
)
def test_d18_close_reason_is_cut_between_characters(reason: str, sent: int) -> None:
    payload = close_payload(4000, reason)
    assert len(payload) == 2 + sent
    assert reason.startswith(payload[2:].decode("utf-8"))


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2000, 5000, 70_000, -1])
def test_close_code_that_may_not_travel_is_refused(code: int) -> None:
    with pytest.raises(ValueError):
        FrameEncoder(Keys()).close(code)


def test_close_reason_needs_a_code_and_utf8() -> None:
    with pytest.raises(ValueError):
        FrameEncoder(Keys()).close(None, "why")
    with pytest.raises(ValueError):
        FrameEncoder(Keys()).close(1000, "\ud800")
