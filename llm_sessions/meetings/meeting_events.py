"""`on`, `once` and `off` of a meeting; type checkers learn here what each event's callback takes.

They take the first overload that fits. Where the name is known at run time only, the callback has to take any
object. The overloads are there for type checkers only and cost nothing at run time.
"""

# Every name is also a string, which the last overloads are for; that the first ones differ is the purpose.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from ..pool.listeners import Callback
from .delivery import MeetingDelivery

if TYPE_CHECKING:
    from ..pool.listening import Calls
    from ..protocol.envelope import Envelope
    from ..protocol.events import Offline, Online
    from .caption_events import (
        CaptionEvent,
        CaptionLanguageAnswer,
        CaptionLanguages,
        EvaEvent,
        Highlight,
        LanguageDetected,
        Reaction,
        Transcript,
    )
    from .delivery import MeetingFailed

    # See `pool.listening`.
    OnlineF = TypeVar("OnlineF", bound=Callable[[Online], object])
    OfflineF = TypeVar("OfflineF", bound=Callable[[Offline], object])
    MeetingFailedF = TypeVar("MeetingFailedF", bound=Callable[[MeetingFailed], object])
    CaptionEventF = TypeVar("CaptionEventF", bound=Callable[[CaptionEvent], object])
    EnvelopeF = TypeVar("EnvelopeF", bound=Callable[[Envelope], object])
    CaptionLanguagesF = TypeVar("CaptionLanguagesF", bound=Callable[[CaptionLanguages], object])
    CaptionLanguageAnswerF = TypeVar(
        "CaptionLanguageAnswerF", bound=Callable[[CaptionLanguageAnswer], object]
    )
    TranscriptF = TypeVar("TranscriptF", bound=Callable[[Transcript], object])
    HighlightF = TypeVar("HighlightF", bound=Callable[[Highlight], object])
    EvaEventF = TypeVar("EvaEventF", bound=Callable[[EvaEvent], object])
    LanguageDetectedF = TypeVar("LanguageDetectedF", bound=Callable[[LanguageDetected], object])
    ReactionF = TypeVar("ReactionF", bound=Callable[[Reaction], object])
    AnyF = TypeVar("AnyF", bound=Callable[[object], object])
    R = TypeVar("R")

__all__ = ["MeetingEvents"]

F = TypeVar("F", bound=Callback)


class MeetingEvents:
    """`on`, `once` and `off` of a `Meeting`.

    Args:
        delivery: Who calls the handlers.
        check_open: Raises if the client is closed, or another process's.
    """

    def __init__(self, delivery: MeetingDelivery, check_open: Callable[[], None]) -> None:
        self._delivery, self._check = delivery, check_open

    if TYPE_CHECKING:

        @overload
        def on(self, event: Literal["online"], callback: Calls[Online, R]) -> Calls[Online, R]: ...
        @overload
        def on(self, event: Literal["online"]) -> Callable[[OnlineF], OnlineF]: ...
        @overload
        def on(self, event: Literal["offline"], callback: Calls[Offline, R]) -> Calls[Offline, R]: ...
        @overload
        def on(self, event: Literal["offline"]) -> Callable[[OfflineF], OfflineF]: ...
        @overload
        def on(
            self, event: Literal["failed"], callback: Calls[MeetingFailed, R]
        ) -> Calls[MeetingFailed, R]: ...
        @overload
        def on(self, event: Literal["failed"]) -> Callable[[MeetingFailedF], MeetingFailedF]: ...
        @overload
        def on(self, event: Literal["relay"], callback: Calls[CaptionEvent, R]) -> Calls[CaptionEvent, R]: ...
        @overload
        def on(self, event: Literal["relay"]) -> Callable[[CaptionEventF], CaptionEventF]: ...
        @overload
        def on(
            self, event: Literal["locus.state_message"], callback: Calls[Envelope, R]
        ) -> Calls[Envelope, R]: ...
        @overload
        def on(self, event: Literal["locus.state_message"]) -> Callable[[EnvelopeF], EnvelopeF]: ...
        @overload
        def on(
            self, event: Literal["languages"], callback: Calls[CaptionLanguages, R]
        ) -> Calls[CaptionLanguages, R]: ...
        @overload
        def on(self, event: Literal["languages"]) -> Callable[[CaptionLanguagesF], CaptionLanguagesF]: ...
        @overload
        def on(
            self, event: Literal["language_answer"], callback: Calls[CaptionLanguageAnswer, R]
        ) -> Calls[CaptionLanguageAnswer, R]: ...
        @overload
        def on(
            self, event: Literal["language_answer"]
        ) -> Callable[[CaptionLanguageAnswerF], CaptionLanguageAnswerF]: ...
        @overload
        def on(
            self, event: Literal["transcript"], callback: Calls[Transcript, R]
        ) -> Calls[Transcript, R]: ...
        @overload
        def on(self, event: Literal["transcript"]) -> Callable[[TranscriptF], TranscriptF]: ...
        @overload
        def on(self, event: Literal["highlight"], callback: Calls[Highlight, R]) -> Calls[Highlight, R]: ...
        @overload
        def on(self, event: Literal["highlight"]) -> Callable[[HighlightF], HighlightF]: ...
        @overload
        def on(self, event: Literal["eva"], callback: Calls[EvaEvent, R]) -> Calls[EvaEvent, R]: ...
        @overload
        def on(self, event: Literal["eva"]) -> Callable[[EvaEventF], EvaEventF]: ...
        @overload
        def on(
            self, event: Literal["language_detected"], callback: Calls[LanguageDetected, R]
        ) -> Calls[LanguageDetected, R]: ...
        @overload
        def on(
            self, event: Literal["language_detected"]
        ) -> Callable[[LanguageDetectedF], LanguageDetectedF]: ...
        @overload
        def on(self, event: Literal["reaction"], callback: Calls[Reaction, R]) -> Calls[Reaction, R]: ...
        @overload
        def on(self, event: Literal["reaction"]) -> Callable[[ReactionF], ReactionF]: ...
        @overload
        def on(self, event: str, callback: Calls[object, R]) -> Calls[object, R]: ...
        @overload
        def on(self, event: str) -> Callable[[AnyF], AnyF]: ...

    def on(self, event: str, callback: Callback | None = None) -> Any:
        """Call `callback` with the payload of every such event; as a call or as a decorator.

        Handlers of a meeting run one after another, in a thread of its own, while it is joined. They may
        call anything of this library.

        Args:
            event: `online`, `offline` (of either channel), `failed` (`MeetingFailed`), `relay` (every relay
                event that is addressed to this client), `locus.state_message` (`Envelope`), or one of the
                relay events: `languages`, `language_answer`, `transcript`, `highlight`, `eva`,
                `language_detected`, `reaction`.
            callback: Takes the payload.

        Returns:
            The callback.

        Raises:
            ConfigurationError: If there is no such event, or the callback is not callable.
            PoolClosed
        """
        return self._register(event, callback, once=False)

    if TYPE_CHECKING:
        once = on
        """Like `on`, for the next such event only."""
    else:

        def once(self, event, callback=None):
            """Like `on`, for the next such event only."""
            return self._register(event, callback, once=True)

    def _register(self, event: str, callback: F | None, once: bool) -> F | Callable[[F], F]:
        self._check()

        def register(function: F) -> F:
            self._delivery.on(event, function, once=once)
            return function

        return register if callback is None else register(callback)

    def off(self, event: str, callback: Callback | None = None) -> None:
        """Take a callback back, or with None all of this event. Unknown ones are ignored."""
        self._check()
        self._delivery.off(event, callback)
