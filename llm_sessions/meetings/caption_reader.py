"""Reads relay events of a meeting into the events of `caption_events`. Pure.

What a server sends never raises here. A part that cannot be understood becomes a text that says why; what is
sound beside it is read all the same. A kind that is not known is no mistake: it is a `RelayEvent`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from ..protocol.envelope import Envelope
from .caption_events import (
    CaptionEvent,
    CaptionLanguageAnswer,
    CaptionLanguages,
    EvaEvent,
    Highlight,
    LanguageDetected,
    Reaction,
    RelayEvent,
    Transcript,
)

__all__ = ["READERS", "TRANSCRIPTION_TYPES", "Reading", "read_relay", "route_of"]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What came of one envelope.

    Attributes:
        events: In the order in which they stand there; transcripts may be several.
        problems: What could not be understood, and why. No content of the meeting is quoted.
    """

    events: tuple[CaptionEvent, ...] = ()
    problems: tuple[str, ...] = ()


def read_relay(envelope: Envelope) -> Reading:
    """Read an envelope of the event type `relay.event`. Never raises, whatever the server put into it."""
    events: list[CaptionEvent] = []
    problems: list[str] = []
    try:
        relay_type = _text(envelope.data, "relayType", "data")
        for event in READERS.get(relay_type, _read_other)(envelope):
            if isinstance(event, _Malformed):
                problems.append(str(event))
            else:
                events.append(event)
    except _Malformed as exc:
        problems.append(str(exc))
    return Reading(tuple(events), tuple(problems))


def route_of(envelope: Envelope) -> str | None:
    """Return the binding that an envelope is addressed to, or None if it names none or several.

    `recipients` is an object with a `route`, or a list of such objects.
    """
    recipients = envelope.get("recipients")
    if isinstance(recipients, (list, tuple)):
        recipients = recipients[0] if len(recipients) == 1 else None
    route = recipients.get("route") if isinstance(recipients, Mapping) else None
    return route if isinstance(route, str) and route else None


class _Malformed(Exception):
    """A part of an envelope is not what it has to be. The text names the part, never what is in it."""


_Found: TypeAlias = Iterator[CaptionEvent | _Malformed]


def _read_other(envelope: Envelope) -> _Found:
    relay_type = _text(envelope.data, "relayType", "data")
    yield RelayEvent(envelope.session_id, envelope.data, relay_type, route_of(envelope))


def _read_announcement(envelope: Envelope) -> _Found:
    payload = _object(envelope.data, "voiceaPayload", "data")
    translation = _optional_object(payload, "translation", "voiceaPayload")
    recognition = _optional_object(payload, "ASR", "voiceaPayload")
    yield CaptionLanguages(
        envelope.session_id,
        payload,
        allowed_languages=_texts(translation, "allowed_languages", "voiceaPayload.translation"),
        max_languages=_number(translation, "max_languages", "voiceaPayload.translation") or 0,
        spoken_languages=_texts(recognition, "spoken_languages", "voiceaPayload.ASR"),
        service_id=_optional_text(envelope.headers, "from", "headers"),
    )


def _read_language_answer(envelope: Envelope) -> _Found:
    payload = _object(envelope.data, "voiceaPayload", "data")
    status = _number(payload, "statusCode", "voiceaPayload")
    error = payload.get("errorCode")
    if error is not None and (isinstance(error, bool) or not isinstance(error, (int, str))):
        raise _Malformed("voiceaPayload.errorCode is neither a number nor a text")
    if status is None and error is None:
        raise _Malformed("voiceaPayload has neither a statusCode nor an errorCode")
    message = _optional_text(payload, "message", "voiceaPayload")
    service_id = _optional_text(envelope.headers, "from", "headers")
    yield CaptionLanguageAnswer(
        envelope.session_id, payload, status == 200, status, error, message, service_id
    )


def _read_transcription(envelope: Envelope) -> _Found:
    payload = _object(envelope.data, "voiceaPayload", "data")
    kind = _text(payload, "type", "voiceaPayload")
    if kind in _TRANSCRIPTS:
        transcript_id = _optional_text(payload, "transcript_id", "voiceaPayload")
        yield from _transcripts(envelope, payload, "voiceaPayload", _TRANSCRIPTS[kind], transcript_id)
    elif kind == "highlight_created":
        yield _highlight(envelope, _object(payload, "highlight", "voiceaPayload"))
    elif kind in _EVA:
        text = _optional_text(payload, "command_response", "voiceaPayload")
        yield EvaEvent(envelope.session_id, payload, _EVA[kind], kind == "eva_wake", text)
    elif kind == "language_detected":
        language = _text(payload, "language", "voiceaPayload")
        yield LanguageDetected(envelope.session_id, payload, language)
    else:
        yield from _read_other(envelope)


def _read_manual(envelope: Envelope) -> _Found:
    payload = _object(envelope.data, "transcriptPayload", "data")
    final = _MANUAL.get(_text(payload, "type", "transcriptPayload"))
    if final is None:
        yield from _read_other(envelope)
        return
    transcript_id = _optional_text(payload, "id", "transcriptPayload")
    yield from _transcripts(envelope, payload, "transcriptPayload", final, transcript_id, manual=True)


def _transcripts(
    envelope: Envelope,
    payload: Mapping[str, Any],
    path: str,
    final: bool,
    transcript_id: str | None,
    manual: bool = False,
) -> _Found:
    entries = payload.get("transcripts")
    if not isinstance(entries, (list, tuple)):
        raise _Malformed(f"{path}.transcripts is no list")
    for number, entry in enumerate(entries):
        where = f"{path}.transcripts[{number}]"
        try:
            if not isinstance(entry, Mapping):
                raise _Malformed(f"{where} is no object")
            yield Transcript(
                envelope.session_id,
                entry,
                text=_text(entry, "text", where, empty=True),
                csis=_numbers(entry, "csis", where),
                final=final,
                start_millis=_number(entry, "start_millis", where),
                end_millis=_number(entry, "end_millis", where),
                transcript_id=transcript_id,
                language=_optional_text(entry, "transcript_language_code", where),
                manual=manual,
            )
        except _Malformed as exc:
            yield exc


def _highlight(envelope: Envelope, found: Mapping[str, Any]) -> Highlight:
    where = "voiceaPayload.highlight"
    return Highlight(
        envelope.session_id,
        found,
        text=_text(found, "transcript", where, empty=True),
        highlight_id=_optional_text(found, "highlight_id", where),
        label=_optional_text(found, "highlight_label", where),
        source=_optional_text(found, "highlight_source", where),
        csis=_numbers(found, "csis", where),
        end_millis=_number(found, "end_millis", where),
    )


def _read_reaction(envelope: Envelope) -> _Found:
    data = envelope.data
    kind = _text(_object(data, "reaction", "data"), "type", "data.reaction")
    sender = _optional_object(data, "sender", "data")
    yield Reaction(
        envelope.session_id,
        data,
        kind,
        sender_id=_optional_text(sender, "participantId", "data.sender"),
        sender_name=_optional_text(sender, "displayName", "data.sender"),
        route=route_of(envelope),
    )


READERS: Final[Mapping[str, Callable[[Envelope], _Found]]] = {
    "voicea.annc": _read_announcement,
    "voicea.transl.rsp": _read_language_answer,
    "voicea.transcription": _read_transcription,
    "aibridge.manual_transcription": _read_manual,
    "client.manual_transcription": _read_manual,
    "react": _read_reaction,
}
"""What each relay type is read by; any other is a `RelayEvent`."""

# Kinds of transcripts, and whether they are final.
_TRANSCRIPTS: Final = {"transcript_interim_results": False, "transcript_final_result": True}
_MANUAL: Final = {
    "manual_caption_interim_result": False,
    "manual_caption_interim_results": False,
    "manual_caption_final_result": True,
}
_EVA: Final = {"eva_wake": "wake", "eva_thanks": "thanks", "eva_cancel": "cancel"}

TRANSCRIPTION_TYPES: Final = (*_TRANSCRIPTS, "highlight_created", *_EVA, "language_detected")
"""The types of a `voicea.transcription` that have an event of their own."""


# Members of objects: what is missing or null is None, or refused where it is needed; another type is refused.


def _object(parent: Mapping[str, Any], name: str, path: str) -> Mapping[str, Any]:
    value = parent.get(name)
    if not isinstance(value, Mapping):
        raise _Malformed(f"{path}.{name} is no object")
    return value


def _optional_object(parent: Mapping[str, Any], name: str, path: str) -> Mapping[str, Any]:
    return {} if parent.get(name) is None else _object(parent, name, path)


def _text(parent: Mapping[str, Any], name: str, path: str, *, empty: bool = False) -> str:
    value = parent.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise _Malformed(f"{path}.{name} is no text")
    return value


def _optional_text(parent: Mapping[str, Any], name: str, path: str) -> str | None:
    if parent.get(name) is None:
        return None
    return _text(parent, name, path, empty=True) or None


def _texts(parent: Mapping[str, Any], name: str, path: str) -> tuple[str, ...]:
    return tuple(_items(parent, name, path, lambda item: item if isinstance(item, str) else None))


def _number(parent: Mapping[str, Any], name: str, path: str) -> int | None:
    value = parent.get(name)
    if value is None:
        return None
    number = _whole(value)
    if number is None:
        raise _Malformed(f"{path}.{name} is no number")
    return number


def _numbers(parent: Mapping[str, Any], name: str, path: str) -> tuple[int, ...]:
    return tuple(_items(parent, name, path, _whole))


def _items(
    parent: Mapping[str, Any], name: str, path: str, convert: Callable[[object], Any]
) -> Iterator[Any]:
    value = parent.get(name)
    if value is None:
        return
    if not isinstance(value, (list, tuple)):
        raise _Malformed(f"{path}.{name} is no list")
    for number, item in enumerate(value):
        found = convert(item)
        if found is None:
            raise _Malformed(f"{path}.{name}[{number}] has the wrong type")
        yield found


def _whole(value: object) -> int | None:
    # JavaScript has one kind of number, so a whole one may come with a fraction.
    if isinstance(value, float) and math.isfinite(value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
