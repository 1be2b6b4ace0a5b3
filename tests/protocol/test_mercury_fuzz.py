"""Whatever a server sends, in whatever pieces: what comes of each message is what a plain model says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_sessions.protocol.envelope import Envelope
from llm_sessions.protocol.frames import FrameDecoder
from llm_sessions.protocol.mercury import (
    Dropped,
    EndCause,
    Ended,
    Event,
    MercuryProtocol,
    Opened,
    SequenceGap,
    ShutdownAnnounced,
)

LIMIT = 2_000  # bytes of a message

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
TYPES = st.sampled_from(["relay.event", "a", "a.b.c", "", "mercury.buffer_state", 5, None, [], {}])
members: dict[str, st.SearchStrategy[Any]] = {
    "id": st.one_of(values, st.integers(0, 3), st.sampled_from(["a", "b"])),
    "sequenceNumber": st.one_of(st.integers(0, 4), st.sampled_from(["3", 4.0, True, "x", -1]), values),
    "type": st.one_of(st.sampled_from(["shutdown", "event", ""]), values.filter(lambda one: one != "pong")),
    "data": st.one_of(values, st.fixed_dictionaries({}, optional={"eventType": TYPES, "x": values})),
    "headers": values,
    "wsWriteTimestamp": values,
    "trackingId": values,
}
objects = st.fixed_dictionaries({}, optional=members)
payloads = st.one_of(
    objects.map(lambda one: json.dumps(one).encode()),
    objects.map(lambda one: json.dumps(one, ensure_ascii=False).encode(errors="replace")),
    values.map(lambda one: json.dumps(one).encode()),
    st.binary(max_size=20).filter(lambda one: not _is_json(one)),
    st.sampled_from([b"", b"{", b"[" * 500, b'{"id":' * 200, b"\xef\xbb\xbf{}", b"x" * (LIMIT + 1)]),
)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def frames_of(payload: bytes, cuts: Sequence[int], ping: bool) -> bytes:
    """Return a message as frames, with a ping between its parts."""
    edges = [0, *sorted(cut % (len(payload) + 1) for cut in cuts), len(payload)]
    parts = [payload[start:end] for start, end in itertools.pairwise(edges)]
    made = []
    for place, part in enumerate(parts):
        head = bytes([(0x80 if place == len(parts) - 1 else 0) | (0 if place else 1)])
        size = bytes([len(part)]) if len(part) < 126 else b"\x7e" + len(part).to_bytes(2, "big")
        made.append(head + size + part)
    return (b"\x89\x01!" if ping else b"").join(made)


class ListEncoder:
    """Keeps what was to be sent."""

    def __init__(self) -> None:
        self.texts_sent: list[Any] = []
        self.others: list[tuple[str, Any]] = []

    def texts(self, payloads: Sequence[bytes]) -> bytes:
        self.texts_sent += map(json.loads, payloads)
        return b""

    def pong(self, payload: bytes) -> bytes:
        self.others.append(("pong", payload))
        return b""

    def close(self, code: int | None, reason: str = "") -> bytes:
        self.others.append(("close", code))
        return b""


class Talk:
    """A ready conversation behind a decoder."""

    def __init__(self) -> None:
        self.encoder = ListEncoder()
        ids = itertools.count(1)
        self.protocol = MercuryProtocol("t", encoder=self.encoder, new_id=lambda: f"id-{next(ids)}")
        self.decoder = FrameDecoder(max_message_bytes=LIMIT)
        self.events: list[Event] = []
        self.protocol.start()
        ready = json.dumps({"data": {"eventType": "mercury.buffer_state"}}).encode()
        self.feed(frames_of(ready, [], False))
        assert isinstance(self.events[0], Opened)
        del self.events[:]
        del self.encoder.texts_sent[:]

    def feed(self, data: bytes) -> None:
        items = self.decoder.feed(data)
        self.events += self.protocol.receive(items, 1.0, 1_000_000.0)
        self.protocol.data_to_send()

    @property
    def ids_acked(self) -> list[Any]:
        assert all(
            sent["type"] == "ack" and set(sent) == {"type", "messageId"} for sent in self.encoder.texts_sent
        )
        return [sent["messageId"] for sent in self.encoder.texts_sent]


class Model:
    """What each message should come to, in the plainest words."""

    def __init__(self) -> None:
        self.expected: int | None = None
        self.acked: list[Any] = []

    def takes(self, payload: bytes) -> list[object]:
        try:
            message = json.loads(payload.decode()) if len(payload) <= LIMIT else None
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            return [Dropped]
        found: list[object] = []
        number = Envelope("", message).sequence_number
        if number is not None:
            if self.expected not in (None, number):
                found.append(SequenceGap(number, self.expected or 0))
            self.expected = number + 1
        identity = message.get("id")
        if isinstance(identity, (str, int)) and not isinstance(identity, bool) and identity != "":
            self.acked.append(identity)
        return [*found, ShutdownAnnounced if message.get("type") == "shutdown" else message]


def same(events: Sequence[Event], expected: Sequence[object]) -> bool:
    return len(events) == len(expected) and all(
        isinstance(event, want) if isinstance(want, type) else event == want
        for event, want in zip(events, expected, strict=True)
    )


streams = st.lists(st.tuples(payloads, st.lists(st.integers(0, 60), max_size=3), st.booleans()), max_size=6)


def has_overrides(payload: bytes) -> bool:
    return b'"headers"' in payload and b'"data"' in payload


@settings(max_examples=150)
@given(streams)
def test_i6_i7_i8_i35_every_message_comes_to_what_the_model_says(
    stream: list[tuple[bytes, list[int], bool]],
) -> None:
    # What headers do to data has tests of its own, in test_envelope.py.
    stream = [one for one in stream if not has_overrides(one[0])]
    talk, model = Talk(), Model()
    expected: list[object] = []
    for payload, cuts, ping in stream:
        talk.feed(frames_of(payload, cuts, ping))
        expected += model.takes(payload)
    assert same(talk.events, expected), (talk.events, expected)
    assert talk.ids_acked == model.acked and talk.protocol.acks == len(model.acked)
    assert talk.protocol.ended is None and not talk.protocol.closing
    pings = sum(len(cuts) for _, cuts, ping in stream if ping)
    assert talk.encoder.others == [("pong", b"!")] * pings


@settings(max_examples=30)
@given(streams)
def test_i8_a_conversation_cut_at_every_byte_is_the_same(stream: list[tuple[bytes, list[int], bool]]) -> None:
    data = b"".join(frames_of(*one) for one in stream)[:600] + b"\x88\x05\x0f\xa1bye"
    whole = Talk()
    whole.feed(data)
    byte_by_byte = Talk()
    for place in range(len(data)):
        byte_by_byte.feed(data[place : place + 1])
    cut_in_two = [Talk() for _ in range(0, len(data) + 1, 1 + len(data) // 60)]
    for step, talk in enumerate(cut_in_two):
        cut = step * (1 + len(data) // 60)
        talk.feed(data[:cut])
        talk.feed(data[cut:])
    for talk in (byte_by_byte, *cut_in_two):
        assert talk.events == whole.events
        assert talk.ids_acked == whole.ids_acked
        assert talk.encoder.others == whole.encoder.others
        assert repr(talk.protocol.ended) == repr(whole.protocol.ended)  # errors are equal by identity


def test_a_close_after_whole_messages_ends_it_wherever_it_is_cut() -> None:
    data = frames_of(b'{"id":"a"}', [3], True) + b"\x88\x05\x0f\xa1bye"
    for cut in range(len(data) + 1):
        talk = Talk()
        talk.feed(data[:cut])
        talk.feed(data[cut:])
        assert talk.events == [{"id": "a"}] and talk.ids_acked == ["a"]
        assert talk.protocol.ended == Ended(4001, "bye", EndCause.PEER)


@given(objects, st.sampled_from(["a", "session"]))
def test_i35_an_envelope_of_anything_can_be_read(message: dict[str, Any], session: str) -> None:
    envelope = Envelope(session, message)
    assert isinstance(envelope.data, dict) and isinstance(envelope.headers, dict)
    assert envelope.event_type is None or isinstance(envelope.event_type, str)
    assert envelope.sequence_number is None or type(envelope.sequence_number) is int
    assert (envelope.id, envelope.type) == (message.get("id"), message.get("type"))
    assert all(key in envelope and envelope[key] is message[key] for key in message)
    assert session in repr(envelope)
