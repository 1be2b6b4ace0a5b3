"""What users write, and what a type checker makes of it. Checked by `test_types.py`, never run."""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Mapping
from typing import Any, Literal

from typing_extensions import assert_type

from llm_sessions import (
    ALL_SESSIONS,
    LLM_PRACTICE_SESSION,
    CaptionEvent,
    CaptionLanguageAnswer,
    CaptionLanguages,
    ConnectionFailed,
    ConnectionPool,
    DataChannelClient,
    Disconnected,
    Envelope,
    EvaEvent,
    Highlight,
    LanguageDetected,
    Latency,
    Meeting,
    MeetingFailed,
    Offline,
    Online,
    PoolConfig,
    Reaction,
    SequenceMismatch,
    Session,
    SessionState,
    SwitchoverComplete,
    SwitchoverFailed,
    SwitchoverLoss,
    SwitchoverStarted,
    Transcript,
)

pool = ConnectionPool("token", config=PoolConfig(queue_size=10))
client = DataChannelClient("token", device="https://wdm.example/devices/1", pool=pool)
meeting = Meeting(client)
session = pool.connect("wss://example.test", session_id="captions", timeout=5)
seen: list[object] = []


def over(event: Disconnected) -> str:
    return event.session_id


# Every event, as a call with a lambda: its argument is known

assert_type(pool.on("online", lambda e: e.number), Callable[[Online], int])
assert_type(pool.on("offline", lambda e: e.code), Callable[[Offline], int])
assert_type(pool.on("offline.transient", lambda e: e.code), Callable[[Offline], int])
assert_type(pool.on("offline.permanent", lambda e: e.code), Callable[[Offline], int])
assert_type(pool.on("offline.replaced", lambda e: e.code), Callable[[Offline], int])
assert_type(pool.on("disconnected", over), Callable[[Disconnected], str])
assert_type(pool.on("connection_failed", lambda e: e.retries), Callable[[ConnectionFailed], int])
assert_type(pool.on("sequence-mismatch", lambda e: e.expected), Callable[[SequenceMismatch], int])
assert_type(pool.on("ping-pong-latency", lambda e: e.seconds), Callable[[Latency], float])
assert_type(pool.on("switchover-loss", lambda e: e.code), Callable[[SwitchoverLoss], int])
assert_type(
    pool.on("event:mercury_shutdown_imminent", lambda e: e.envelope), Callable[[SwitchoverStarted], Envelope]
)
assert_type(
    pool.on("event:mercury_shutdown_switchover_complete", lambda e: e.url),
    Callable[[SwitchoverComplete], str],
)
assert_type(
    pool.on("event:mercury_shutdown_switchover_failed", lambda e: e.reason),
    Callable[[SwitchoverFailed], Exception],
)
assert_type(pool.on("event", lambda e: e.data), Callable[[Envelope], Mapping[str, Any]])
assert_type(pool.on("event:relay", lambda e: e.data), Callable[[Envelope], Mapping[str, Any]])
assert_type(pool.on("event:relay.event", lambda e: e.data), Callable[[Envelope], Mapping[str, Any]])

assert_type(session.on("online", lambda e: e.number), Callable[[Online], int])
assert_type(session.on("offline", lambda e: e.code), Callable[[Offline], int])
assert_type(session.on("offline.transient", lambda e: e.code), Callable[[Offline], int])
assert_type(session.on("offline.permanent", lambda e: e.code), Callable[[Offline], int])
assert_type(session.on("offline.replaced", lambda e: e.code), Callable[[Offline], int])
assert_type(session.on("disconnected", over), Callable[[Disconnected], str])
assert_type(session.on("connection_failed", lambda e: e.retries), Callable[[ConnectionFailed], int])
assert_type(session.on("sequence-mismatch", lambda e: e.expected), Callable[[SequenceMismatch], int])
assert_type(session.on("ping-pong-latency", lambda e: e.seconds), Callable[[Latency], float])
assert_type(session.on("switchover-loss", lambda e: e.code), Callable[[SwitchoverLoss], int])
assert_type(
    session.on("event:mercury_shutdown_imminent", lambda e: e.envelope),
    Callable[[SwitchoverStarted], Envelope],
)
assert_type(
    session.on("event:mercury_shutdown_switchover_complete", lambda e: e.url),
    Callable[[SwitchoverComplete], str],
)
assert_type(
    session.on("event:mercury_shutdown_switchover_failed", lambda e: e.reason),
    Callable[[SwitchoverFailed], Exception],
)
assert_type(session.on("event", lambda e: e.data), Callable[[Envelope], Mapping[str, Any]])
assert_type(session.on("event:relay.event", lambda e: e.data), Callable[[Envelope], Mapping[str, Any]])

assert_type(meeting.on("online", lambda e: e.number), Callable[[Online], int])
assert_type(meeting.on("offline", lambda e: e.code), Callable[[Offline], int])
assert_type(meeting.on("failed", lambda e: e.error), Callable[[MeetingFailed], Exception])
assert_type(meeting.on("relay", lambda e: e.raw), Callable[[CaptionEvent], Mapping[str, Any]])
assert_type(meeting.on("locus.state_message", lambda e: e.data), Callable[[Envelope], Mapping[str, Any]])
assert_type(
    meeting.on("languages", lambda e: e.allowed_languages), Callable[[CaptionLanguages], tuple[str, ...]]
)
assert_type(meeting.on("language_answer", lambda e: e.ok), Callable[[CaptionLanguageAnswer], bool])
assert_type(meeting.on("transcript", lambda e: e.text), Callable[[Transcript], str])
assert_type(meeting.on("highlight", lambda e: e.label), Callable[[Highlight], str | None])
assert_type(meeting.on("eva", lambda e: e.listening), Callable[[EvaEvent], bool])
assert_type(meeting.on("language_detected", lambda e: e.language), Callable[[LanguageDetected], str])
assert_type(meeting.on("reaction", lambda e: e.kind), Callable[[Reaction], str])

# Whose events

assert_type(pool.on("online", lambda e: e.number, session_id=ALL_SESSIONS), Callable[[Online], int])
assert_type(pool.once("offline", lambda e: e.code, session_id="captions"), Callable[[Offline], int])
assert_type(client.on("offline", lambda e: e.code, session_id=ALL_SESSIONS), Callable[[Offline], int])
assert_type(
    client.on("event:relay.event", lambda e: e.data, session_id=LLM_PRACTICE_SESSION),
    Callable[[Envelope], Mapping[str, Any]],
)
assert_type(
    client.once("ping-pong-latency", lambda e: e.seconds, session_id=None), Callable[[Latency], float]
)
assert_type(session.once("sequence-mismatch", lambda e: e.actual), Callable[[SequenceMismatch], int])
assert_type(meeting.once("failed", lambda e: e.error), Callable[[MeetingFailed], Exception])


# Decorators give back what they got, with its own type


@pool.on("event:relay.event")
def show(envelope: Envelope) -> str:
    return str(envelope.data.get("text"))


@client.on("offline", session_id=ALL_SESSIONS)
@client.once("offline.permanent")
def gone(event: Offline, *, loudly: bool = False) -> int:
    return event.code


@session.once("online")
def back(event: Online) -> None:
    seen.append(event.number)


@meeting.on("transcript")
def line(event: Transcript) -> str:
    return event.text


class Counter:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def __call__(self, event: object) -> None:
        self.seen.append(event)


counter = pool.on("ping-pong-latency")(Counter())
assert_type(counter, Counter)
assert_type(gone(Offline("captions", 1006, ""), loudly=True), int)
assert_type(back(Online("captions")), None)
assert_type(line(Transcript("captions", {}, "hello")), str)
assert_type(pool.on("event:relay.event", show), Callable[[Envelope], str])

# Callbacks that take more than this event's payload


def log(event: object) -> None:
    seen.append(event)


def either(event: Online | Offline) -> None:
    seen.append(event.session_id)


def anything(event: Any) -> None:
    seen.append(event)


offlines: queue.Queue[Offline] = queue.Queue()
everything: queue.Queue[object] = queue.Queue()
pool.on("offline", offlines.put)
pool.on("online", everything.put)
pool.on("online", print)
pool.on("online", either)
pool.on("online", anything)
session.on("offline", either)
meeting.on("offline", offlines.put)
meeting.on("relay", log)
pool.on("offline", functools.partial(print, "offline:"))


for state_event in ("online", "offline", "ping-pong-latency"):  # no type checker takes it for a mere string
    pool.on(state_event, log)
    session.once(state_event, print)


# Names that are known at run time only


def relay(
    name: str, state: Literal["online", "offline"], callback: Callable[[Any], object], log_all: Counter
) -> None:
    pool.on(name, callback)
    pool.on(name, log_all)
    pool.on(f"event:{name}", show)
    session.on(state, either)
    meeting.on(name, log)
    meeting.off(name, callback)


# The rest of a program

assert_type(session, Session)
assert_type(session.state, SessionState)
assert_type(session.receive(timeout=1), Envelope)
assert_type(pool.sessions(), dict[str, Session])
for message in session.messages(timeout=1):
    assert_type(message, Envelope)
for transcript in meeting.captions.transcripts(timeout=1):
    assert_type(transcript, Transcript)
with pool as same:
    assert_type(same, ConnectionPool)
