"""Captions and what goes with them, as frozen events that users get. `caption_reader` reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = [
    "CaptionEvent",
    "CaptionLanguageAnswer",
    "CaptionLanguages",
    "EvaEvent",
    "Highlight",
    "LanguageDetected",
    "Reaction",
    "RelayEvent",
    "Transcript",
]


@dataclasses.dataclass(frozen=True)
class _Event:
    """What every event has.

    Attributes:
        session_id: The session that it came on.
        raw: What it was read from, as it came. Shared with all other readers: copy it before changing it.
    """

    session_id: str
    raw: Mapping[str, Any] = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class CaptionLanguages(_Event):
    """The caption service answered the announcement: what it has to offer.

    Attributes:
        allowed_languages: Codes of the languages that captions may be translated to.
        max_languages: How many of them the meeting may use at once.
        spoken_languages: Codes of the languages that it understands.
        service_id: Whom to address requests to; None if it did not say.
    """

    allowed_languages: tuple[str, ...]
    max_languages: int
    spoken_languages: tuple[str, ...]
    service_id: str | None


@dataclasses.dataclass(frozen=True)
class CaptionLanguageAnswer(_Event):
    """The caption service answered the request for a caption language.

    Attributes:
        ok: Whether captions will come in it.
        status_code: 200 if so; None if the answer had none.
        error_code: What went wrong otherwise, as a number or a text.
        message: The same for people, or None.
        service_id: Which service answered; None if it did not say.
    """

    ok: bool
    status_code: int | None = None
    error_code: int | str | None = None
    message: str | None = None
    service_id: str | None = None


@dataclasses.dataclass(frozen=True)
class Transcript(_Event):
    """A piece of what was said. Its `raw` is the entry of the list it came in, translations included.

    Attributes:
        text: The words.
        csis: Who speaks, as numbers of media sources.
        final: Whether it stays as it is; otherwise one with the same `transcript_id` takes its place.
        start_millis: When it began, in milliseconds of the meeting; None if that was not said.
        end_millis: When it ended, likewise.
        transcript_id: What tells which pieces are versions of one; None if that was not said.
        language: Code of the language, or None.
        manual: Whether a person typed it.
    """

    text: str
    csis: tuple[int, ...] = ()
    final: bool = False
    start_millis: int | None = None
    end_millis: int | None = None
    transcript_id: str | None = None
    language: str | None = None
    manual: bool = False


@dataclasses.dataclass(frozen=True)
class Highlight(_Event):
    """Somebody, or the assistant, marked something that was said.

    Attributes:
        text: The words.
        highlight_id: Its id, or None.
        label: What it is, such as a decision; or None.
        source: What it was made by, or None.
        csis: Who speaks.
        end_millis: When that ended, in milliseconds of the meeting, or None.
    """

    text: str
    highlight_id: str | None = None
    label: str | None = None
    source: str | None = None
    csis: tuple[int, ...] = ()
    end_millis: int | None = None


@dataclasses.dataclass(frozen=True)
class EvaEvent(_Event):
    """The meeting's voice assistant was spoken to.

    Attributes:
        kind: `wake`, `thanks` or `cancel`.
        listening: Whether it listens now.
        text: What it answered, if it did.
    """

    kind: str
    listening: bool
    text: str | None = None


@dataclasses.dataclass(frozen=True)
class LanguageDetected(_Event):
    """The service found out which language is spoken.

    Attributes:
        language: Its code.
    """

    language: str


@dataclasses.dataclass(frozen=True)
class Reaction(_Event):
    """A participant reacted.

    Attributes:
        kind: Its name, such as `celebrate`.
        sender_id: The participant's id, or None.
        sender_name: The participant's name, or None.
        route: The binding that it was sent to, or None.
    """

    kind: str
    sender_id: str | None = None
    sender_name: str | None = None
    route: str | None = None


@dataclasses.dataclass(frozen=True)
class RelayEvent(_Event):
    """Any other relay event.

    Attributes:
        relay_type: What it is.
        route: The binding that it was sent to, or None.
    """

    relay_type: str
    route: str | None = None


CaptionEvent: TypeAlias = (
    CaptionLanguages
    | CaptionLanguageAnswer
    | Transcript
    | Highlight
    | EvaEvent
    | LanguageDetected
    | Reaction
    | RelayEvent
)
"""Payload of a meeting's `relay`: any of these."""
