"""The conversation, by plain calls: bytes and the time go in, events and payloads come out."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest

from llm_sessions.errors import RemoteProtocolError
from llm_sessions.protocol.closing import CloseMeaning, classify_close
from llm_sessions.protocol.frames import BinaryMessage, Close, Item, Ping, Pong, TooLarge, Violation
from llm_sessions.protocol.mercury import (
    Dropped,
    EndCause,
    Ended,
    Event,
    LatencyMeasured,
    MercuryProtocol,
    Opened,
    SequenceGap,
    ShutdownAnnounced,
    Timing,
)

READY = {"id": "ready", "data": {"eventType": "mercury.buffer_state"}}
WALL_MS = 1_700_000_000_000.0


class ListEncoder:
    """Keeps what was to be framed. The frame's bytes are its number in `frames`."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, Any]] = []

    def _add(self, kind: str, content: Any) -> bytes:
        self.frames.append((kind, content))
        return bytes([len(self.frames) - 1])

    def texts(self, payloads: Sequence[bytes]) -> bytes:
        return b"".join(self._add("text", json.loads(payload)) for payload in payloads)

    def pong(self, payload: bytes) -> bytes:
        return self._add("pong", payload)

    def close(self, code: int | None, reason: str = "") -> bytes:
        return self._add("close", (code, reason))


class Talk:
    """A conversation and both its ends."""

    def __init__(self, *, ready: bool = True, open_deadline: float | None = None, **timing: float) -> None:
        self.encoder = ListEncoder()
        ids = itertools.count(1)
        self.protocol = MercuryProtocol(
            "Bearer secret",
            encoder=self.encoder,
            new_id=lambda: f"id-{next(ids)}",
            timing=Timing(**timing),
            open_deadline=open_deadline,
        )
        if ready:
            self.protocol.start()
            self.feed(READY)
            self.sent()

    def feed(self, *messages: object, now: float = 0.0, wall_ms: float = WALL_MS) -> list[Event]:
        """Let items come in one read; what is no item or bytes is sent as JSON."""
        items: list[Item] = [
            json.dumps(one).encode() if isinstance(one, (dict, list, str, int, type(None))) else one  # type: ignore[misc]
            for one in messages
        ]
        return self.protocol.receive(items, now, wall_ms)

    def sent(self) -> list[tuple[str, Any]]:
        """Take what is to be sent, in the order of its bytes."""
        return [self.encoder.frames[number] for number in self.protocol.data_to_send()]

    def sent_texts(self) -> list[Any]:
        return [content for kind, content in self.sent() if kind == "text"]

    def ping(self, now: float) -> str:
        """Let the next ping be due and return its id."""
        self.protocol.handle_timeout(now)
        (ping,) = self.sent_texts()
        assert ping["type"] == "ping"
        return str(ping["id"])


FIRST_PING = "id-3"  # after the two ids of the authorization


# -- the beginning -------------------------------------------------------------------------------------


def test_the_first_frame_is_the_authorization_and_the_token_is_forgotten() -> None:
    talk = Talk(ready=False)
    assert talk.sent() == []
    talk.protocol.start()
    assert talk.sent() == [
        (
            "text",
            {
                "id": "id-1",
                "type": "authorization",
                "data": {"token": "Bearer secret"},
                "trackingId": "llm-sessions_id-2",
            },
        )
    ]
    assert talk.sent() == []
    assert "secret" not in repr(vars(talk.protocol))


@pytest.mark.parametrize("event_type", ["mercury.buffer_state", "mercury.registration_status"])
def test_ready_is_acked_delivered_and_followed_by_a_ping(event_type: str) -> None:
    talk = Talk(ready=False)
    message = {"id": "m", "data": {"eventType": event_type}}
    assert not talk.protocol.ready
    assert talk.feed(message) == [Opened(), message]
    assert talk.protocol.ready
    assert talk.sent_texts() == [{"messageId": "m", "type": "ack"}, {"id": "id-1", "type": "ping"}]


def test_only_the_first_ready_frame_opens() -> None:
    talk = Talk()
    assert talk.feed(READY) == [READY]
    assert talk.sent_texts() == [{"messageId": "ready", "type": "ack"}]


@pytest.mark.parametrize(
    "message",
    [
        {"id": "m", "type": "event", "data": {"eventType": "mercury.buffer_state"}},
        {"id": "m", "eventType": "mercury.buffer_state"},
        {"id": "m", "data": {"eventType": "mercury.buffer_states"}},
        {"id": "m", "data": "mercury.buffer_state"},
        {"id": "m", "data": ["mercury.buffer_state"]},
        {"id": "m", "data": {"eventType": ["mercury.buffer_state"]}},
        {"id": "m", "data": {"eventType": {"mercury.buffer_state": 1}}},
        {"id": "m", "data": {"eventType": None}},
        {"id": "m", "data": {}},
        {"id": "m"},
    ],
)
def test_i1_frames_before_ready_are_tolerated_acked_and_delivered(message: dict[str, Any]) -> None:
    talk = Talk(ready=False, open_deadline=30.0)
    assert talk.feed(message) == [message]
    assert not talk.protocol.ready
    assert talk.sent_texts() == [{"messageId": "m", "type": "ack"}]
    assert talk.protocol.next_deadline() == 30.0
    assert talk.feed(READY) == [Opened(), READY]


def test_ready_may_be_said_by_a_header() -> None:
    talk = Talk(ready=False)
    assert talk.feed({"data": {"headers": {"eventType": "mercury.buffer_state"}}})[0] == Opened()


def test_pings_and_pongs_of_any_kind_before_ready_change_nothing() -> None:
    talk = Talk(ready=False)
    assert talk.feed({"id": "p", "type": "pong"}) == []
    assert talk.sent_texts() == [{"messageId": "p", "type": "ack"}]
    assert not talk.protocol.closing


def test_i1_the_wait_for_ready_is_bounded() -> None:
    talk = Talk(ready=False, open_deadline=30.0)
    talk.protocol.handle_timeout(29.999)
    assert talk.protocol.ended is None
    talk.protocol.handle_timeout(30.0)
    assert talk.protocol.ended == Ended(1006, "", EndCause.OPEN_TIMEOUT)
    assert talk.protocol.next_deadline() is None


def test_without_an_open_deadline_nothing_is_due_before_ready() -> None:
    talk = Talk(ready=False)
    assert talk.protocol.next_deadline() is None
    talk.protocol.handle_timeout(1e9)
    assert talk.protocol.ended is None
    assert talk.sent() == []


def test_the_open_deadline_ends_with_ready() -> None:
    talk = Talk(ready=False, open_deadline=5.0)
    talk.feed(READY)
    talk.protocol.handle_timeout(5.0)
    assert talk.protocol.ended is None


# -- messages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", ["a", 'quote " and \\', "ünï\u2028", "\n\x00", 7, 0, -1, 2**64 - 1])
def test_every_frame_with_an_id_is_acked_with_that_id(identity: object) -> None:
    talk = Talk()
    talk.feed({"id": identity, "data": {"eventType": "a.b"}})
    assert talk.sent_texts() == [{"messageId": identity, "type": "ack"}]


@pytest.mark.parametrize("kind", ["pong", "shutdown", "ack", "anything"])
def test_frames_with_a_type_are_acked_too(kind: str) -> None:
    talk = Talk()
    talk.feed({"id": "m", "type": kind})
    assert {"messageId": "m", "type": "ack"} in talk.sent_texts()


@pytest.mark.parametrize("rest", [{}, {"id": None}, {"id": ""}, {"id": True}, {"id": []}, {"id": {}}])
def test_i6_no_usable_id_no_ack_no_error(rest: dict[str, Any]) -> None:
    talk = Talk()
    message = {"data": {"eventType": "a.b"}, **rest}
    assert talk.feed(message) == [message]
    assert talk.sent() == []


def test_acks_keep_the_order_of_the_messages_over_several_reads() -> None:
    talk = Talk()
    talk.feed({"id": "1"}, {"id": "2"})
    talk.feed({"id": "3"})
    assert [text["messageId"] for text in talk.sent_texts()] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("numbers", "gaps"),
    [
        ([1, None, 2], []),  # the row's own two examples
        ([1, 3], [SequenceGap(3, 2)]),
        ([5], []),
        ([1, 3, 4], [SequenceGap(3, 2)]),
        ([1, 3, 2], [SequenceGap(3, 2), SequenceGap(2, 4)]),
        ([1, 1], [SequenceGap(1, 2)]),
        (["1", 2, "3", 4.0], []),
        ([0, 1], []),
        ([0, 2], [SequenceGap(2, 1)]),
        ([1, "x", True, [3], 1.5, "", 2], []),
        ([None, None], []),
    ],
)
def test_i7_unnumbered_frames_do_not_touch_sequence_tracking(
    numbers: list[Any], gaps: list[SequenceGap]
) -> None:
    talk = Talk()
    messages = [{"sequenceNumber": number} if number is not None else {"x": 1} for number in numbers]
    events = talk.feed(*messages)
    assert [event for event in events if isinstance(event, SequenceGap)] == gaps
    assert [event for event in events if isinstance(event, dict)] == messages


def test_i7_a_gap_is_told_before_the_message_that_shows_it() -> None:
    talk = Talk()
    talk.feed({"sequenceNumber": 1})
    late = {"sequenceNumber": 9}
    assert talk.feed(late) == [SequenceGap(actual=9, expected=2), late]


def test_i7_pongs_and_shutdowns_take_part_in_the_sequence_and_dropped_frames_do_not() -> None:
    talk = Talk()
    talk.feed({"sequenceNumber": 1})
    assert not any(isinstance(e, SequenceGap) for e in talk.feed({"type": "shutdown", "sequenceNumber": 2}))
    talk.feed(b'{"sequenceNumber": 77')
    assert talk.feed({"type": "pong", "id": FIRST_PING, "sequenceNumber": 4})[0] == SequenceGap(4, 3)


def test_i7_each_socket_counts_by_itself() -> None:
    Talk().feed({"sequenceNumber": 1})
    other = {"sequenceNumber": 50}
    assert Talk().feed(other) == [other]


def test_i37_header_paths_are_applied_before_anybody_sees_the_message() -> None:
    talk = Talk()
    (message,) = talk.feed({"data": {"headers": {"a.b": 1, "x": 2}, "x": 0}})
    assert isinstance(message, dict)
    assert message["data"]["a"]["b"] == 1
    assert message["data"]["x"] == 2


@pytest.mark.parametrize("headers", [{}, None, [], "x", 0, 1, [1], True])
def test_i37_headers_that_hold_nothing_change_nothing(headers: object) -> None:
    talk = Talk()
    message = {"data": {"headers": headers, "x": 0}}
    assert talk.feed(message) == [message]


def test_i37_headers_of_shutdowns_count_too_and_top_level_headers_do_not() -> None:
    talk = Talk()
    (event,) = talk.feed({"type": "shutdown", "headers": {"y": 1}, "data": {"headers": {"x": 1}}})
    assert isinstance(event, ShutdownAnnounced)
    assert event.raw["data"]["x"] == 1
    assert "y" not in event.raw and "y" not in event.raw["data"]


@pytest.mark.parametrize(
    ("stamp", "offset"),
    [
        (WALL_MS - 250, 250.0),
        (WALL_MS + 250.5, -250.5),
        (1, WALL_MS - 1),
        (0, None),
        (-5, None),
        ("1700000000000", None),
        (True, None),
        (None, None),
        ([1], None),
    ],
)
@pytest.mark.parametrize("kind", [None, "pong", "shutdown"])
def test_the_time_offset_is_our_clock_minus_the_servers(
    stamp: object, offset: float | None, kind: str | None
) -> None:
    talk = Talk()
    message = {"wsWriteTimestamp": stamp, "id": FIRST_PING} | ({"type": kind} if kind else {})
    talk.feed(message)
    assert talk.protocol.time_offset == offset


def test_a_useless_timestamp_keeps_the_offset_that_was_known() -> None:
    talk = Talk()
    talk.feed({"wsWriteTimestamp": WALL_MS - 3}, {"wsWriteTimestamp": 0}, {"wsWriteTimestamp": "x"}, {})
    assert talk.protocol.time_offset == 3.0


@pytest.mark.parametrize("message", [{"id": "1"}, {"id": "1", "data": {}}, {"id": "1", "data": 5}, {}])
def test_i35_frames_without_data_or_event_type_are_delivered(message: dict[str, Any]) -> None:
    assert Talk().feed(message) == [message]


@pytest.mark.parametrize("kind", ["ack", "", 0, [], {"pong": 1}, "Pong", "SHUTDOWN"])
def test_frames_of_unknown_types_are_delivered_as_they_are(kind: object) -> None:
    message = {"type": kind, "data": {"eventType": "a.b"}}
    assert Talk().feed(message) == [message]


def test_a_shutdown_is_announced_and_is_no_event() -> None:
    talk = Talk()
    message = {"type": "shutdown", "id": "s"}
    assert talk.feed(message, {"id": "n"}) == [ShutdownAnnounced(message), {"id": "n"}]
    assert not talk.protocol.closing


@pytest.mark.parametrize(
    "bad",
    [
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"true",
        b"{",
        b"",
        b"\xff\xfe",
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\\ud800"}',
        b'{"a": NaN}',
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"id": "m"} trailing',
        BinaryMessage(3),
        TooLarge(10**7),
    ],
    ids=lambda bad: repr(bad)[:30],
)
def test_i8_bad_frames_are_dropped_and_counted_and_the_socket_lives(bad: Any) -> None:
    talk = Talk()
    (event,) = talk.feed(bad)
    assert isinstance(event, Dropped) and event.problem
    assert talk.feed({"id": "good"}) == [{"id": "good"}]
    assert talk.sent_texts() == [{"messageId": "good", "type": "ack"}]
    assert not talk.protocol.closing


def test_i8_a_bad_frame_takes_no_other_one_with_it() -> None:
    talk = Talk()
    first, last = {"id": "1"}, {"id": "2"}
    events = talk.feed(first, b"{", None, BinaryMessage(1), last)
    assert events[0] == first and events[-1] == last
    assert [type(event) for event in events[1:-1]] == [Dropped] * 3


def test_i8_what_is_said_about_a_bad_frame_does_not_quote_it() -> None:
    (event,) = Talk().feed(b'{"token": "Bearer secret", }')
    assert isinstance(event, Dropped)
    assert "secret" not in event.problem


def test_a_websocket_ping_is_answered_and_a_pong_ignored() -> None:
    talk = Talk()
    assert talk.feed(Ping(b"hi"), Pong(b"x")) == []
    assert talk.sent() == [("pong", b"hi")]


# -- keepalive -----------------------------------------------------------------------------------------


def test_a_pong_in_time_measures_the_latency_and_schedules_the_next_ping() -> None:
    talk = Talk(ping_interval=15.0, pong_timeout=14.0)
    assert talk.protocol.next_deadline() == 14.0
    assert talk.feed({"type": "pong", "id": FIRST_PING}, now=0.25) == [LatencyMeasured(0.25)]
    assert talk.protocol.next_deadline() == 15.25  # from the pong, not from the ping
    talk.protocol.handle_timeout(15.0)
    assert talk.sent_texts() == [{"messageId": FIRST_PING, "type": "ack"}]
    second = talk.ping(15.25)
    assert second != FIRST_PING
    assert talk.protocol.next_deadline() == 29.25
    assert talk.feed({"type": "pong", "id": second}, now=16.25) == [LatencyMeasured(1.0)]


def test_latency_is_never_negative() -> None:
    assert Talk().feed({"type": "pong", "id": FIRST_PING}, now=-1.0) == [LatencyMeasured(0.0)]


def test_a_pong_is_no_event_and_a_late_one_read_before_the_timeout_counts() -> None:
    talk = Talk()
    assert talk.feed({"type": "pong", "id": FIRST_PING}, now=99.0) == [LatencyMeasured(99.0)]
    talk.protocol.handle_timeout(99.0)
    assert not talk.protocol.closing


@pytest.mark.parametrize("identity", [FIRST_PING, "other", None, 5])
def test_a_pong_while_no_ping_is_outstanding_is_ignored(identity: object) -> None:
    talk = Talk()
    talk.feed({"type": "pong", "id": FIRST_PING}, now=1.0)
    talk.sent()
    assert talk.feed({"type": "pong", "id": identity}, now=2.0) == []
    assert not talk.protocol.closing
    assert talk.protocol.next_deadline() == 16.0
    assert len(talk.sent_texts()) == (identity is not None)


@pytest.mark.parametrize("identity", ["other", None, 5, [FIRST_PING], {}, ""])
def test_i10_a_wrong_pong_closes_and_is_a_transient_loss(identity: object) -> None:
    talk = Talk()
    assert talk.feed({"type": "pong", "id": identity}, now=1.0) == []
    assert talk.sent()[-1] == ("close", (1000, "Pong mismatch"))
    talk.feed(Close(1000, "whatever"), now=1.5)
    ended = talk.protocol.ended
    assert ended == Ended(1000, "Pong mismatch", EndCause.KEEPALIVE)
    assert classify_close(ended.code, ended.reason) is CloseMeaning.TRANSIENT


def test_i10_a_missing_pong_closes_and_is_a_transient_loss() -> None:
    talk = Talk(pong_timeout=14.0)
    talk.protocol.handle_timeout(13.999)
    assert talk.sent() == []
    talk.protocol.handle_timeout(14.0)
    assert talk.sent() == [("close", (1000, "Pong not received"))]
    talk.feed(Close(1005, ""), now=14.5)
    ended = talk.protocol.ended
    assert ended == Ended(1000, "Pong not received", EndCause.KEEPALIVE)
    assert classify_close(ended.code, ended.reason) is CloseMeaning.TRANSIENT


def _mismatch(talk: Talk) -> str:
    talk.feed({"type": "pong", "id": "other"}, now=14.0)
    return "Pong mismatch"


def _silence(talk: Talk) -> str:
    talk.protocol.handle_timeout(14.0)
    return "Pong not received"


BROKEN = OSError("broken")


@pytest.mark.parametrize("fail", [_mismatch, _silence])
@pytest.mark.parametrize(
    "finish",
    [
        lambda talk: talk.protocol.handle_timeout(16.0),
        lambda talk: talk.feed(Close(1000, "Done")),
        lambda talk: talk.feed(Close(1001, "going away")),
        lambda talk: talk.feed(Close(1005, "")),
        lambda talk: talk.feed(Close(4001, "")),
        lambda talk: talk.feed(Close(4403, "forbidden")),
        lambda talk: talk.feed(Violation(1002, "bad")),
        lambda talk: talk.protocol.lost(),
        lambda talk: talk.protocol.lost(BROKEN),
        lambda talk: (
            talk.protocol.close(3050, "done (permanent)", 15.0),
            talk.protocol.handle_timeout(16.0),
        ),
    ],
)
def test_i10_whatever_becomes_of_the_close_the_loss_is_reported_as_one(fail: Any, finish: Any) -> None:
    talk = Talk(pong_timeout=14.0, force_close_delay=2.0)
    reason = fail(talk)
    assert talk.protocol.closing and talk.protocol.ended is None
    assert talk.protocol.next_deadline() == 16.0
    talk.protocol.handle_timeout(15.999)
    assert talk.protocol.ended is None
    finish(talk)
    ended = talk.protocol.ended
    assert ended is not None
    assert (ended.code, ended.reason, ended.cause) == (1000, reason, EndCause.KEEPALIVE)


def test_the_error_behind_a_loss_is_kept() -> None:
    talk = Talk()
    _silence(talk)
    talk.protocol.lost(BROKEN)
    assert talk.protocol.ended == Ended(1000, "Pong not received", EndCause.KEEPALIVE, BROKEN)


def test_frames_before_a_wrong_pong_are_acked_and_frames_after_it_are_not() -> None:
    talk = Talk()
    before, after = {"id": "before"}, {"id": "after"}
    assert talk.feed(before, Ping(b"x"), {"type": "pong", "id": "other"}, after, Ping(b"y")) == [before]
    assert talk.sent() == [
        ("text", {"messageId": "before", "type": "ack"}),
        ("text", {"messageId": "other", "type": "ack"}),
        ("pong", b"x"),
        ("close", (1000, "Pong mismatch")),
    ]


def test_t4_while_paused_pings_go_on_and_no_pong_is_missed() -> None:
    talk = Talk(ping_interval=15.0, pong_timeout=14.0)
    talk.protocol.pause(2.0)
    assert talk.protocol.next_deadline() == 15.0  # as if the first pong had come with its ping
    talk.protocol.handle_timeout(14.999)
    assert talk.sent() == []
    ids = [talk.ping(15.0), talk.ping(30.0), talk.ping(45.0)]
    assert len({FIRST_PING, *ids}) == 4
    assert not talk.protocol.closing
    talk.protocol.resume(50.0)
    assert talk.protocol.next_deadline() == 64.0  # the whole time again, and no ping before a pong
    for number, ping in enumerate([FIRST_PING, *ids]):
        talk.feed({"type": "pong", "id": ping}, now=51.0 + number)
    assert not talk.protocol.closing
    assert talk.protocol.next_deadline() == 54.0 + 15.0


def test_t4_a_pause_that_began_late_pings_at_once() -> None:
    talk = Talk(ping_interval=5.0, pong_timeout=14.0)
    talk.protocol.pause(9.0)
    assert talk.protocol.next_deadline() == 9.0
    talk.ping(9.0)
    assert talk.protocol.next_deadline() == 14.0


def test_t4_a_pause_between_pong_and_ping_keeps_the_schedule() -> None:
    talk = Talk()
    talk.feed({"type": "pong", "id": FIRST_PING}, now=1.0)
    talk.sent()
    talk.protocol.pause(2.0)
    assert talk.protocol.next_deadline() == 16.0
    talk.protocol.resume(3.0)
    assert talk.protocol.next_deadline() == 16.0
    ping = talk.ping(16.0)
    assert talk.feed({"type": "pong", "id": ping}, now=16.5) == [LatencyMeasured(0.5)]


def test_t4_after_a_pause_each_pong_gives_the_next_its_whole_time() -> None:
    talk = Talk(ping_interval=15.0, pong_timeout=14.0)
    talk.protocol.pause(1.0)
    second = talk.ping(15.0)
    talk.protocol.resume(20.0)
    talk.feed({"type": "pong", "id": FIRST_PING}, now=30.0)
    assert talk.protocol.next_deadline() == 44.0
    talk.protocol.handle_timeout(44.0)
    assert ("close", (1000, "Pong not received")) in talk.sent()
    assert talk.feed({"type": "pong", "id": second}, now=44.1) == []


def test_t4_a_pong_for_a_later_ping_answers_the_earlier_ones() -> None:
    talk = Talk()
    talk.protocol.pause(1.0)
    second = talk.ping(15.0)
    talk.protocol.resume(16.0)
    talk.feed({"type": "pong", "id": second}, now=17.0)
    assert talk.protocol.next_deadline() == 32.0
    assert not talk.protocol.closing


def test_t4_a_wrong_pong_after_a_pause_still_closes() -> None:
    talk = Talk()
    talk.protocol.pause(1.0)
    talk.ping(15.0)
    talk.protocol.resume(16.0)
    talk.feed({"type": "pong", "id": "other"}, now=17.0)
    assert talk.sent()[-1] == ("close", (1000, "Pong mismatch"))


def test_t4_pongs_that_waited_behind_unread_data_measure_no_latency() -> None:
    talk = Talk()
    talk.protocol.pause(1.0)
    second = talk.ping(15.0)
    talk.protocol.resume(100.0)
    assert talk.feed({"type": "pong", "id": FIRST_PING}, {"type": "pong", "id": second}, now=100.5) == []
    talk.sent()
    third = talk.ping(115.5)
    assert talk.feed({"type": "pong", "id": third}, now=115.75) == [LatencyMeasured(0.25)]


def test_t4_a_ping_of_the_very_instant_of_the_resume_measures_no_latency() -> None:
    talk = Talk()
    talk.protocol.pause(1.0)
    second = talk.ping(15.0)
    talk.protocol.resume(15.0)
    assert talk.feed({"type": "pong", "id": second}, now=16.0) == []


def test_t4_pongs_of_the_read_that_filled_the_queue_start_no_deadline() -> None:
    talk = Talk()
    talk.protocol.pause(1.0)
    second = talk.ping(15.0)
    assert talk.feed({"type": "pong", "id": FIRST_PING}, now=15.5) == []
    assert talk.protocol.next_deadline() == 30.0  # the next ping; nothing is due that was not read
    talk.feed({"type": "pong", "id": second}, now=17.0)
    assert talk.protocol.next_deadline() == 32.0


def test_t4_a_socket_that_becomes_ready_while_paused_is_pinged_without_a_deadline() -> None:
    talk = Talk(ready=False)
    talk.protocol.pause(0.0)
    talk.feed(READY, now=1.0)
    assert talk.protocol.next_deadline() == 16.0
    talk.protocol.resume(2.0)
    assert talk.protocol.next_deadline() == 16.0  # now it is the pong's: 2 + 14
    talk.protocol.handle_timeout(16.0)
    assert talk.protocol.closing


# -- we close ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason", "on_the_wire", "reported"),
    [
        (None, None, (1000, "Done"), (1000, "Done (forced)")),
        (None, "bye", (1000, "bye"), (1000, "Done (forced)")),
        (3050, "done (permanent)", (3050, "done (permanent)"), (3050, "done (permanent)")),
        (1000, "bye", (1000, "bye"), (1000, "bye")),
        (3050, None, (3050, "Done"), (3050, "Done (unknown)")),
        (1000, None, (1000, "Done"), (1000, "Done (unknown)")),
        (4999, "", (4999, ""), (4999, "")),
    ],
)
def test_i3_a_forced_close_reports_the_table(
    code: int | None, reason: str | None, on_the_wire: tuple[int, str], reported: tuple[int, str]
) -> None:
    talk = Talk(force_close_delay=2.0)
    talk.protocol.close(code, reason, 10.0)
    assert talk.sent() == [("close", on_the_wire)]
    assert talk.protocol.closing and talk.protocol.ended is None
    assert talk.protocol.next_deadline() == 12.0
    talk.protocol.handle_timeout(11.999)
    assert talk.protocol.ended is None
    talk.protocol.handle_timeout(12.0)
    assert talk.protocol.ended == Ended(*reported, EndCause.LOCAL)
    assert talk.protocol.next_deadline() is None
    assert talk.sent() == []


@pytest.mark.parametrize(
    ("answer", "reported"),
    [
        (Close(1000, "Done"), (1000, "Done")),
        (Close(1001, ""), (1001, "")),
        (Close(1005, ""), (1005, "")),
        (Close(1005, "Replaced"), (4000, "Replaced")),
        (Close(4000, "replaced"), (4000, "replaced")),
    ],
)
def test_i26_i27_what_the_peer_answers_is_reported_as_our_close(
    answer: Close, reported: tuple[int, str]
) -> None:
    talk = Talk()
    talk.protocol.close(None, None, 0.0)
    talk.sent()
    talk.feed(answer)
    assert talk.protocol.ended == Ended(*reported, EndCause.LOCAL)
    assert talk.sent() == []  # ours was the close frame of this side


def test_i27_a_connection_that_breaks_while_we_close_ended_by_us() -> None:
    talk = Talk()
    talk.protocol.close(3050, "done (permanent)", 0.0)
    talk.protocol.lost(BROKEN)
    assert talk.protocol.ended == Ended(1006, "", EndCause.LOCAL, BROKEN)


def test_i27_a_peer_that_breaks_the_protocol_while_we_close_gets_no_second_close_frame() -> None:
    talk = Talk()
    talk.protocol.close(None, None, 0.0)
    talk.sent()
    talk.feed(Violation(1002, "reserved bit set"))
    ended = talk.protocol.ended
    assert ended is not None
    assert (ended.code, ended.cause) == (1006, EndCause.LOCAL)
    assert talk.sent() == []


def test_i9_nothing_happens_while_closing() -> None:
    talk = Talk(pong_timeout=14.0)
    talk.protocol.close(None, None, 13.0)
    talk.sent()
    assert talk.feed({"id": "m"}, b"{", Ping(b"x"), BinaryMessage(1), TooLarge(9), Pong(b"")) == []
    assert talk.feed({"type": "pong", "id": "other"}) == []
    talk.protocol.handle_timeout(14.0)  # the pong would be due
    talk.protocol.close(4000, "again", 14.0)  # the first call counts
    assert talk.sent() == []
    assert talk.protocol.next_deadline() == 15.0
    talk.protocol.handle_timeout(15.0)
    assert talk.protocol.ended == Ended(1000, "Done (forced)", EndCause.LOCAL)


def missed(talk: Talk) -> bool:
    assert talk.protocol.ended is not None
    return talk.protocol.ended.missed


@pytest.mark.parametrize(
    ("ignored", "expected"),
    [
        ([], False),
        ([{"type": "pong", "id": "1"}], False),
        ([{"id": "m"}], True),
        ([{"type": "pong"}, {"id": "m"}, {"type": "pong"}], True),
        ([b'{"type": "pong"'], True),
        ([b'["pong"]'], True),
        ([{"data": "pong"}], True),
    ],
)
def test_what_comes_while_we_close_is_missed(ignored: list[Any], expected: bool) -> None:
    talk = Talk()
    talk.feed({"id": "taken"})
    talk.protocol.close(None, None, 0.0)
    talk.feed(*ignored, Close(1000, "Done"))
    assert missed(talk) is expected


def test_nothing_is_missed_before_a_close_of_the_peers() -> None:
    talk = Talk()
    talk.feed({"id": "m"}, Close(1001, ""))
    assert not missed(talk)


@pytest.mark.parametrize("how", ["lost", "violation", "forced", "pong"])
def test_without_a_close_of_the_peers_something_may_be_missed(how: str) -> None:
    talk = Talk(pong_timeout=14.0, force_close_delay=2.0)
    if how == "lost":
        talk.protocol.lost(BROKEN)
    elif how == "violation":
        talk.feed(Violation(1002, "reserved bit set"))
    else:
        if how == "forced":
            talk.protocol.close(None, None, 12.0)
        for now in (14.0, 16.0):
            talk.protocol.handle_timeout(now)
    assert missed(talk)


def test_acks_of_what_came_before_our_close_go_out_before_it() -> None:
    talk = Talk()
    talk.feed({"id": "m"})
    talk.protocol.close(None, None, 0.0)
    assert talk.sent() == [("text", {"messageId": "m", "type": "ack"}), ("close", (1000, "Done"))]


@pytest.mark.parametrize(
    ("code", "reason", "reported"),
    [
        (None, None, (1000, "Done (forced)")),
        (3050, "replaced", (3050, "replaced")),
        (3000, None, (3000, "Done (unknown)")),
    ],
)
@pytest.mark.parametrize("started", [False, True])
def test_i2_a_close_before_ready_is_over_at_once_and_sends_nothing(
    code: int | None, reason: str | None, reported: tuple[int, str], started: bool
) -> None:
    talk = Talk(ready=False, open_deadline=30.0)
    if started:
        talk.protocol.start()
        talk.feed({"id": "m"}, Ping(b"x"))
    talk.protocol.close(code, reason, 1.0)
    assert talk.protocol.ended == Ended(*reported, EndCause.ABORTED)
    assert talk.sent() == []
    assert talk.feed(READY) == []
    assert not talk.protocol.ready
    assert talk.protocol.next_deadline() is None


# -- the other side ends it ----------------------------------------------------------------------------


@pytest.mark.parametrize("ready", [False, True])
@pytest.mark.parametrize(
    ("close", "echo", "reported"),
    [
        (Close(1000, "idle"), 1000, (1000, "idle")),
        (Close(1001, ""), 1001, (1001, "")),
        (Close(1005, ""), None, (1005, "")),
        (Close(1005, "Replaced"), None, (4000, "Replaced")),
        (Close(1005, "Authentication Failed"), None, (1008, "Authentication Failed")),
        (Close(4401, "no"), 4401, (4401, "no")),
    ],
)
def test_a_peers_close_is_reported_and_answered_with_its_code(
    close: Close, echo: int | None, reported: tuple[int, str], ready: bool
) -> None:
    talk = Talk(ready=ready)
    talk.feed(close)
    assert talk.protocol.ended == Ended(*reported, EndCause.PEER)
    assert talk.protocol.closing
    assert talk.sent() == [("close", (echo, ""))]


def test_messages_before_a_peers_close_are_delivered_and_acked() -> None:
    talk = Talk()
    assert talk.feed({"id": "m"}, Ping(b"x"), Close(1001, "")) == [{"id": "m"}]
    assert talk.sent() == [("text", {"messageId": "m", "type": "ack"}), ("pong", b"x"), ("close", (1001, ""))]


@pytest.mark.parametrize("ready", [False, True])
def test_a_violation_is_answered_with_its_code_and_reported_as_1006(ready: bool) -> None:
    talk = Talk(ready=ready)
    talk.feed(Violation(1002, "reserved bit set"))
    ended = talk.protocol.ended
    assert ended is not None
    assert (ended.code, ended.reason) == (1006, "protocol error: reserved bit set")
    assert ended.cause is EndCause.VIOLATION
    assert isinstance(ended.error, RemoteProtocolError)
    assert "reserved bit set" in str(ended.error)
    assert talk.sent() == [("close", (1002, "reserved bit set"))]


@pytest.mark.parametrize("error", [None, BROKEN])
def test_a_lost_connection_is_1006(error: Exception | None) -> None:
    talk = Talk()
    talk.protocol.lost(error)
    assert talk.protocol.ended == Ended(1006, "", EndCause.LOST, error)
    assert talk.sent() == []


ENDINGS = [
    lambda talk: talk.feed(Close(1000, "first")),
    lambda talk: talk.feed(Violation(1002, "first")),
    lambda talk: talk.protocol.lost(),
    lambda talk: (talk.protocol.close(None, None, 0.0), talk.protocol.handle_timeout(100.0)),
    lambda talk: (talk.protocol.close(None, None, 0.0), talk.feed(Close(1000, "Done"))),
    lambda talk: (talk.protocol.handle_timeout(14.0), talk.protocol.lost()),
]


@pytest.mark.parametrize("end", ENDINGS)
def test_i9_nothing_happens_after_the_end_and_the_first_end_counts(end: Any) -> None:
    talk = Talk()
    end(talk)
    ended = talk.protocol.ended
    assert ended is not None
    talk.sent()
    assert talk.protocol.next_deadline() is None
    everything = (
        {"id": "m", "sequenceNumber": 9},
        {"type": "pong", "id": "other"},
        {"type": "shutdown"},
        b"{",
    )
    assert talk.feed(*everything, Ping(b"x"), BinaryMessage(1), TooLarge(9)) == []
    assert talk.feed(Violation(1009, "more")) == []
    assert talk.feed(Close(4401, "later")) == []
    talk.protocol.lost(BROKEN)
    talk.protocol.retire_at(1.0)
    talk.protocol.pause(1.0)
    talk.protocol.resume(2.0)
    talk.protocol.close(4000, "later", 3.0)
    talk.protocol.handle_timeout(1e9)
    assert talk.protocol.ended is ended
    assert talk.protocol.next_deadline() is None
    assert talk.protocol.closing
    assert talk.sent() == []


# -- retiring ------------------------------------------------------------------------------------------


def test_a_retired_socket_goes_on_until_its_time_and_is_closed_then() -> None:
    talk = Talk(pong_timeout=100.0)
    talk.protocol.retire_at(60.0)
    assert talk.protocol.next_deadline() == 60.0
    assert talk.feed({"id": "m"}, now=30.0) == [{"id": "m"}]
    talk.sent()
    talk.protocol.handle_timeout(59.999)
    assert not talk.protocol.closing
    talk.protocol.handle_timeout(60.0)
    assert talk.sent() == [("close", (1000, "Done"))]
    talk.protocol.handle_timeout(62.0)
    assert talk.protocol.ended == Ended(1000, "Done (forced)", EndCause.LOCAL)


def test_a_retired_socket_that_the_server_closes_first_says_so() -> None:
    talk = Talk()
    talk.protocol.retire_at(60.0)
    talk.feed(Close(4001, ""))
    assert talk.protocol.ended == Ended(4001, "", EndCause.PEER)


def test_a_retired_socket_keeps_pinging() -> None:
    talk = Talk()
    talk.protocol.retire_at(60.0)
    talk.feed({"type": "pong", "id": FIRST_PING}, now=1.0)
    talk.sent()
    talk.ping(16.0)
    talk.protocol.handle_timeout(30.0)
    assert talk.sent() == [("close", (1000, "Pong not received"))]


# -- the order of what is sent -------------------------------------------------------------------------


def test_frames_leave_in_the_order_texts_controls_and_once() -> None:
    talk = Talk()
    talk.feed(Ping(b"a"), {"id": "m"}, Ping(b"b"))
    assert talk.sent() == [("text", {"messageId": "m", "type": "ack"}), ("pong", b"a"), ("pong", b"b")]
    assert talk.protocol.data_to_send() == b""


def test_events_and_ends_are_equal_by_content_and_cannot_be_changed() -> None:
    for make in (
        Opened,
        lambda: LatencyMeasured(1.0),
        lambda: SequenceGap(3, 2),
        lambda: ShutdownAnnounced({}),
        lambda: Dropped("why"),
        lambda: Ended(1000, "", EndCause.PEER),
        Timing,
    ):
        one: Any = make()
        assert one == make()
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.seconds = one.actual = 0
    assert (Timing().ping_interval, Timing().pong_timeout, Timing().force_close_delay) == (15.0, 14.0, 2.0)
