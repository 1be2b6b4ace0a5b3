"""What a client says about captions: requests, bodies for a meeting's controls, and two small machines. Pure.

    announcement  IDLE ─announce→ JOINING ─answered→ JOINED     JOINING | JOINED ─again→ JOINING
    captions      any state ─turn_on→ SENDING ─done→ ENABLED     SENDING ─failed→ IDLE
                  any state ─turn_off→ IDLE

Both begin anew with each join. An answer that comes when nothing was asked for changes nothing: it is another
participant's. Any other step that a table does not have raises and changes nothing.

What the service says is read in `caption_reader`. Whoever announces has to listen already: the answer, with
the list of languages, may come before the announcement's send returns.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from ..errors import ConfigurationError
from ..protocol.state import InvalidTransition

__all__ = [
    "ANNOUNCE_STEPS",
    "CAPTION_STEPS",
    "TRANSCRIPTION",
    "AnnounceState",
    "AnnounceTrigger",
    "CaptionState",
    "CaptionTrigger",
    "Publication",
    "announcement",
    "captions_body",
    "language_request",
    "manual_captions_body",
    "next_announce",
    "next_captions",
    "spoken_language_body",
    "transcribing_body",
]

TRANSCRIPTION: Final = "transcription"
"""The subchannel that captions come on."""


class AnnounceState(enum.Enum):
    """Whether the caption service knows of this client."""

    IDLE = "idle"  # not announced
    JOINING = "joining"  # announced; its answer has not come yet
    JOINED = "joined"  # it has answered


class AnnounceTrigger(enum.Enum):
    """What happens to the announcement."""

    ANNOUNCE = "announce"  # it is sent for the first time
    AGAIN = "again"  # it is sent again: on another channel, or because no answer came
    ANSWERED = "answered"  # the service has told its languages


class CaptionState(enum.Enum):
    """Whether the meeting has captions because this client asked for them."""

    IDLE = "idle"  # not asked for
    SENDING = "sending"  # the request is under way
    ENABLED = "enabled"  # it was granted


class CaptionTrigger(enum.Enum):
    """What happens to the request for captions."""

    TURN_ON = "turn_on"  # it is sent; also again, with another language
    DONE = "done"  # it was granted, or it was refused and an earlier one still holds
    FAILED = "failed"  # it was refused, or got no answer
    TURN_OFF = "turn_off"  # captions are not wanted any more


_A, _AT, _C, _CT = AnnounceState, AnnounceTrigger, CaptionState, CaptionTrigger

ANNOUNCE_STEPS: Final[Mapping[AnnounceState, Mapping[AnnounceTrigger, AnnounceState]]] = MappingProxyType(
    {
        _A.IDLE: {_AT.ANNOUNCE: _A.JOINING, _AT.ANSWERED: _A.IDLE},
        _A.JOINING: {_AT.AGAIN: _A.JOINING, _AT.ANSWERED: _A.JOINED},
        _A.JOINED: {_AT.AGAIN: _A.JOINING, _AT.ANSWERED: _A.JOINED},
    }
)

CAPTION_STEPS: Final[Mapping[CaptionState, Mapping[CaptionTrigger, CaptionState]]] = MappingProxyType(
    {
        _C.IDLE: {_CT.TURN_ON: _C.SENDING, _CT.TURN_OFF: _C.IDLE},
        _C.SENDING: {
            _CT.TURN_ON: _C.SENDING,
            _CT.DONE: _C.ENABLED,
            _CT.FAILED: _C.IDLE,
            _CT.TURN_OFF: _C.IDLE,
        },
        _C.ENABLED: {_CT.TURN_ON: _C.SENDING, _CT.TURN_OFF: _C.IDLE},
    }
)


def next_announce(state: AnnounceState, trigger: AnnounceTrigger) -> AnnounceState:
    """Return the state after `trigger`, or raise InvalidTransition."""
    try:
        return ANNOUNCE_STEPS[state][trigger]
    except KeyError:
        raise InvalidTransition(f"{trigger.name} in {state.name}") from None


def next_captions(state: CaptionState, trigger: CaptionTrigger) -> CaptionState:
    """Return the state after `trigger`, or raise InvalidTransition."""
    try:
        return CAPTION_STEPS[state][trigger]
    except KeyError:
        raise InvalidTransition(f"{trigger.name} in {state.name}") from None


@dataclasses.dataclass(frozen=True)
class Publication:
    """What to publish as a `relay.event`.

    Attributes:
        data: Goes into the request's `data` beside its `eventType`.
        headers: The request's.
    """

    data: Mapping[str, Any]
    headers: Mapping[str, str]


def announcement(service_id: str | None = None) -> Publication:
    """Return what tells the caption service that there is a client; it answers with its languages.

    Args:
        service_id: The service's id, if it has told one.
    """
    data = {"relayType": "client.annc", "clientPayload": {"version": "v2"}}
    return Publication(data, _to(service_id))


def language_request(language: str, request_id: str, service_id: str | None = None) -> Publication:
    """Return the request for captions in a language.

    Args:
        language: Its code, one of `CaptionLanguages.allowed_languages`.
        request_id: A new UUID.
        service_id: The service's id, if it has told one.

    Raises:
        ConfigurationError: If the language is not a non-empty string.
    """
    payload = {"translationLanguage": _language(language), "id": request_id}
    return Publication({"relayType": "voicea.transl.req", "clientPayload": payload}, _to(service_id))


def captions_body(language: str | None = None) -> dict[str, Any]:
    """Return the controls that turn captions on.

    Args:
        language: Code of the spoken language; None leaves it as it is.

    Raises:
        ConfigurationError: If the language is not a non-empty string.
    """
    body: dict[str, Any] = {"transcribe": {"caption": True}}
    return body if language is None else {**body, "languageCode": _language(language)}


def spoken_language_body(language: str) -> dict[str, Any]:
    """Return the controls that say which language is spoken.

    Raises:
        ConfigurationError: If the language is not a non-empty string.
    """
    return {"transcribe": {"spokenLanguage": _language(language)}}


def transcribing_body(on: bool) -> dict[str, Any]:
    """Return the controls that start or stop the transcript."""
    return {"transcribe": {"transcribing": bool(on)}}


def manual_captions_body(on: bool) -> dict[str, Any]:
    """Return the controls that allow or end captions typed by a person."""
    return {"manualCaption": {"enable": bool(on)}}


def _to(service_id: str | None) -> dict[str, str]:
    return {"to": service_id} if service_id else {}


def _language(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigurationError("language", f"must be a language's code such as 'en', not {value!r}")
    return value
