"""What is shown of an event: one line, as JSON or as text, without secrets and without terminal codes."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from .._logging import one_line, redact
from ..protocol.envelope import Envelope

__all__ = ["Line", "as_json", "as_text", "excerpt", "line_of", "scrubbed"]

# What json.dumps leaves as it is and terminals, or whoever splits at line ends, do not.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_HIDDEN: Final = "***"

# Where messages of meetings have their words; the first that is there counts.
_WORDS: Final = (
    ("voiceaPayload", "transcripts", 0, "text"),
    ("transcriptPayload", "transcripts", 0, "text"),
    ("voiceaPayload", "highlight", "transcript"),
    ("reaction", "type"),
    ("activity", "object", "displayName"),
    ("text",),
)
_INTERIM: Final = frozenset({"transcript_interim_results", "manual_caption_interim_result"})


@dataclasses.dataclass(frozen=True)
class Line:
    """An event of a session.

    Attributes:
        session: The session's id.
        event: The event's name, as `on` takes it.
        time: When it was delivered, in seconds since the epoch by the wall clock.
        data: Of a message its `data`, or all of it; of other events what they tell. Not scrubbed yet.
    """

    session: str
    event: str
    time: float
    data: Any


def line_of(event: str, payload: Any, now: float, *, raw: bool = False) -> Line:
    """Return the line of what a listener was called with.

    Args:
        event: Its name; of a message the name is made from its type.
        payload: An envelope, or a state event's own class.
        now: Seconds since the epoch.
        raw: Whether a message is shown whole.
    """
    if isinstance(payload, Envelope):
        name = "event" if payload.event_type is None else f"event:{payload.event_type}"
        return Line(payload.session_id, name, now, payload.raw if raw else payload.data)
    data = {
        field.name: _plain(getattr(payload, field.name))
        for field in dataclasses.fields(payload)
        if field.name != "session_id"
    }
    return Line(payload.session_id, event, now, data)


def _plain(value: Any) -> Any:
    if isinstance(value, Exception):
        return f"{type(value).__name__}: {value}"
    return value.raw if isinstance(value, Envelope) else value


def scrubbed(value: Any) -> Any:
    """Return a JSON value without secrets: known ones, what looks like one, and what is called one."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            redact(str(key)): _HIDDEN if _hides(str(key), one) else scrubbed(one)
            for key, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [scrubbed(one) for one in value]
    return value


def _hides(key: str, value: Any) -> bool:
    if value is None or isinstance(value, (bool, Mapping, list, tuple)):
        return False
    return value != "" and _names_a_secret(key[-64:])


@functools.lru_cache(1024)
def _names_a_secret(key: str) -> bool:
    """Ask what redacts log records, so that there is one opinion of it."""
    member = f'{key}": "x"'
    return redact(member) != member


def as_json(line: Line, *, ascii_only: bool = False) -> str:
    """Return a line as one JSON object without a line end; what cannot be printed is escaped.

    Args:
        line: The line.
        ascii_only: For a stream that is not UTF-8.
    """
    content = {
        "session": line.session,
        "event": redact(one_line(line.event)),
        "time": _stamp(line.time),
        "data": scrubbed(line.data),
    }
    text = json.dumps(content, ensure_ascii=ascii_only)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _stamp(time: float) -> str:
    moment = datetime.datetime.fromtimestamp(time, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_text(line: Line, *, width: int = 0, brief: bool = False) -> str:
    """Return a line for people: local time, session, event, and the words in it.

    Args:
        line: The line.
        width: Columns for the session's id.
        brief: Leave out the event of what says itself what is relayed: on a terminal its words need the room.
    """
    relayed = line.event == "event:relay.event" and isinstance(_member(line.data, ("relayType",)), str)
    event = "" if brief and relayed else f"{one_line(redact(line.event))}  "
    clock = datetime.datetime.fromtimestamp(line.time).strftime("%H:%M:%S.%f")[:-3]
    return f"{clock}  {line.session:<{width}}  {event}{excerpt(line.data)}".rstrip()


def excerpt(data: Any) -> str:
    """Return the words of a message, or all that an event tells, on one line."""
    safe = scrubbed(data)
    content = safe.get("data", safe) if isinstance(safe, dict) else safe
    words = next((found for path in _WORDS if isinstance(found := _member(content, path), str)), None)
    if words is not None:
        relay = _member(content, ("relayType",))
        kind = _member(content, ("voiceaPayload", "type")) or _member(content, ("transcriptPayload", "type"))
        more = " …" if kind in _INTERIM else ""
        return one_line(f"{relay}  {words}{more}" if isinstance(relay, str) else words + more)
    if isinstance(safe, dict):
        safe = {key: value for key, value in safe.items() if key != "eventType"}
    return one_line(json.dumps(safe, ensure_ascii=False)) if safe else ""


def _member(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and len(value) > step else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    return value
