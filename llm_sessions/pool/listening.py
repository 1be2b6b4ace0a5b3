"""`on` and `once` of pools, clients and sessions; here type checkers learn what each event's callback takes.

A type checker takes the first overload that fits. A name without one of its own may be any string, and its
payload is taken for an `Envelope`: that of every `event:…` but the switchover's. So is that of a name with a
session id at its end, like `online:captions`; `session_id=` says the same in a way that is understood. One
that may be any of several state events wants a callback that takes each of their payloads. The overloads are
there for type checkers only and cost nothing at run time.
"""

# Every name is also a string, which the last overloads are for; that the first ones differ is the purpose.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar, overload

from .listeners import Callback

if TYPE_CHECKING:
    from typing_extensions import deprecated

    from ..protocol.envelope import Envelope
    from ..protocol.events import (
        ConnectionFailed,
        Disconnected,
        Latency,
        Offline,
        Online,
        SequenceMismatch,
        StateEvent,
        SwitchoverComplete,
        SwitchoverFailed,
        SwitchoverLoss,
        SwitchoverStarted,
    )

    # A decorator gives back what it got with its own type, hence these. A call names the payload instead: no
    # type checker looks into a variable's bound for the type of a lambda's argument.
    OnlineF = TypeVar("OnlineF", bound=Callable[[Online], object])
    OfflineF = TypeVar("OfflineF", bound=Callable[[Offline], object])
    DisconnectedF = TypeVar("DisconnectedF", bound=Callable[[Disconnected], object])
    ConnectionFailedF = TypeVar("ConnectionFailedF", bound=Callable[[ConnectionFailed], object])
    SequenceMismatchF = TypeVar("SequenceMismatchF", bound=Callable[[SequenceMismatch], object])
    LatencyF = TypeVar("LatencyF", bound=Callable[[Latency], object])
    SwitchoverStartedF = TypeVar("SwitchoverStartedF", bound=Callable[[SwitchoverStarted], object])
    SwitchoverCompleteF = TypeVar("SwitchoverCompleteF", bound=Callable[[SwitchoverComplete], object])
    SwitchoverFailedF = TypeVar("SwitchoverFailedF", bound=Callable[[SwitchoverFailed], object])
    SwitchoverLossF = TypeVar("SwitchoverLossF", bound=Callable[[SwitchoverLoss], object])
    EnvelopeF = TypeVar("EnvelopeF", bound=Callable[[Envelope], object])
    R = TypeVar("R")
    P = TypeVar("P")
    Calls: TypeAlias = Callable[[P], R]
    _OfflineEvent: TypeAlias = Literal[
        "offline", "offline.transient", "offline.permanent", "offline.replaced"
    ]

__all__ = ["ALL_SESSIONS", "DEFAULT_SESSION", "PoolEvents", "SessionEvents", "SessionId"]


class _Marker(enum.Enum):
    """Stand for session ids where a string names one session and None makes an id up."""

    DEFAULT = "the pool's default session"
    ALL = "all sessions"

    def __repr__(self) -> str:
        return f"<{self.value}>"


ALL_SESSIONS: Final = _Marker.ALL
"""For `on(…, session_id=ALL_SESSIONS)`: the events of every session of the pool."""

DEFAULT_SESSION: Final = _Marker.DEFAULT
SessionId = str | _Marker

Whose = TypeVar("Whose", contravariant=True)


class PoolEvents(Generic[Whose]):
    """`on` and `once` of what has several sessions. `Whose` is how one of them is named."""

    __slots__ = ()

    if TYPE_CHECKING:  # what they do is of each class

        def _register(self, event: str, callback: Any, session_id: Any, once: bool) -> Any: ...

    if TYPE_CHECKING:

        @overload
        def on(
            self, event: Literal["online"], callback: Calls[Online, R], *, session_id: Whose = ...
        ) -> Calls[Online, R]: ...
        @overload
        def on(
            self, event: Literal["online"], *, session_id: Whose = ...
        ) -> Callable[[OnlineF], OnlineF]: ...
        @overload
        def on(
            self, event: _OfflineEvent, callback: Calls[Offline, R], *, session_id: Whose = ...
        ) -> Calls[Offline, R]: ...
        @overload
        def on(self, event: _OfflineEvent, *, session_id: Whose = ...) -> Callable[[OfflineF], OfflineF]: ...
        @overload
        def on(
            self, event: Literal["disconnected"], callback: Calls[Disconnected, R], *, session_id: Whose = ...
        ) -> Calls[Disconnected, R]: ...
        @overload
        def on(
            self, event: Literal["disconnected"], *, session_id: Whose = ...
        ) -> Callable[[DisconnectedF], DisconnectedF]: ...
        @overload
        def on(
            self,
            event: Literal["connection_failed"],
            callback: Calls[ConnectionFailed, R],
            *,
            session_id: Whose = ...,
        ) -> Calls[ConnectionFailed, R]: ...
        @overload
        def on(
            self, event: Literal["connection_failed"], *, session_id: Whose = ...
        ) -> Callable[[ConnectionFailedF], ConnectionFailedF]: ...
        @overload
        def on(
            self,
            event: Literal["sequence-mismatch"],
            callback: Calls[SequenceMismatch, R],
            *,
            session_id: Whose = ...,
        ) -> Calls[SequenceMismatch, R]: ...
        @overload
        def on(
            self, event: Literal["sequence-mismatch"], *, session_id: Whose = ...
        ) -> Callable[[SequenceMismatchF], SequenceMismatchF]: ...
        @overload
        def on(
            self, event: Literal["ping-pong-latency"], callback: Calls[Latency, R], *, session_id: Whose = ...
        ) -> Calls[Latency, R]: ...
        @overload
        def on(
            self, event: Literal["ping-pong-latency"], *, session_id: Whose = ...
        ) -> Callable[[LatencyF], LatencyF]: ...
        @overload
        def on(
            self,
            event: Literal["event:mercury_shutdown_imminent"],
            callback: Calls[SwitchoverStarted, R],
            *,
            session_id: Whose = ...,
        ) -> Calls[SwitchoverStarted, R]: ...
        @overload
        def on(
            self, event: Literal["event:mercury_shutdown_imminent"], *, session_id: Whose = ...
        ) -> Callable[[SwitchoverStartedF], SwitchoverStartedF]: ...
        @overload
        def on(
            self,
            event: Literal["event:mercury_shutdown_switchover_complete"],
            callback: Calls[SwitchoverComplete, R],
            *,
            session_id: Whose = ...,
        ) -> Calls[SwitchoverComplete, R]: ...
        @overload
        def on(
            self, event: Literal["event:mercury_shutdown_switchover_complete"], *, session_id: Whose = ...
        ) -> Callable[[SwitchoverCompleteF], SwitchoverCompleteF]: ...
        @overload
        def on(
            self,
            event: Literal["event:mercury_shutdown_switchover_failed"],
            callback: Calls[SwitchoverFailed, R],
            *,
            session_id: Whose = ...,
        ) -> Calls[SwitchoverFailed, R]: ...
        @overload
        def on(
            self,
            event: Literal["switchover-loss"],
            callback: Calls[SwitchoverLoss, R],
            *,
            session_id: Whose = ...,
        ) -> Calls[SwitchoverLoss, R]: ...
        @overload
        def on(
            self, event: Literal["event:mercury_shutdown_switchover_failed"], *, session_id: Whose = ...
        ) -> Callable[[SwitchoverFailedF], SwitchoverFailedF]: ...
        @overload
        def on(
            self, event: Literal["switchover-loss"], *, session_id: Whose = ...
        ) -> Callable[[SwitchoverLossF], SwitchoverLossF]: ...
        @overload
        def on(
            self, event: StateEvent, callback: Calls[object, R], *, session_id: Whose = ...
        ) -> Calls[object, R]: ...
        @overload
        @deprecated("This event brings no Envelope but an object of its own class: see ConnectionPool.on")
        def on(
            self, event: StateEvent, callback: Calls[Envelope, R], *, session_id: Whose = ...
        ) -> Calls[Envelope, R]: ...
        @overload
        def on(
            self, event: str, callback: Calls[Envelope, R], *, session_id: Whose = ...
        ) -> Calls[Envelope, R]: ...
        @overload
        def on(self, event: str, *, session_id: Whose = ...) -> Callable[[EnvelopeF], EnvelopeF]: ...

    def on(
        self, event: str, callback: Callback | None = None, *, session_id: Whose | _Marker = DEFAULT_SESSION
    ) -> Any:
        """Call `callback` with the payload of every such event; as a call or as a decorator.

        Args:
            event: `online`, `offline`, `offline.transient`, `offline.permanent`, `offline.replaced`,
                `disconnected`, `connection_failed`, `sequence-mismatch`, `switchover-loss`,
                `ping-pong-latency`, `event:mercury_shutdown_imminent`, `…_switchover_complete`,
                `…_switchover_failed`; or `event`, `event:<namespace>`, `event:<namespace>.<name>` for
                envelopes. With `:<session id>` at its end, another session's; type checkers understand
                `session_id` better.
            callback: Takes the payload: an `Envelope`, or the event's own class. A session's callbacks run
                one after another, not always on the same thread; see `Session.on`. None to use this as a
                decorator.
            session_id: Whose events; `ALL_SESSIONS` for everyone's. By default those of the session that
                `event` names, or of the default one.

        Returns:
            The callback.

        Raises:
            ConfigurationError: If there is no such event, or the callback is not callable or is a coroutine
                function.
            PoolClosed
        """
        return self._register(event, callback, session_id, once=False)

    if TYPE_CHECKING:
        once = on
        """Like `on`, for the next such event only."""
    else:

        def once(self, event, callback=None, *, session_id=DEFAULT_SESSION):
            """Like `on`, for the next such event only."""
            return self._register(event, callback, session_id, once=True)


class SessionEvents:
    """`on` and `once` of a session."""

    __slots__ = ()

    if TYPE_CHECKING:  # what they do is of each class

        def _register(self, event: str, callback: Any, once: bool) -> Any: ...

    if TYPE_CHECKING:

        @overload
        def on(self, event: Literal["online"], callback: Calls[Online, R]) -> Calls[Online, R]: ...
        @overload
        def on(self, event: Literal["online"]) -> Callable[[OnlineF], OnlineF]: ...
        @overload
        def on(self, event: _OfflineEvent, callback: Calls[Offline, R]) -> Calls[Offline, R]: ...
        @overload
        def on(self, event: _OfflineEvent) -> Callable[[OfflineF], OfflineF]: ...
        @overload
        def on(
            self, event: Literal["disconnected"], callback: Calls[Disconnected, R]
        ) -> Calls[Disconnected, R]: ...
        @overload
        def on(self, event: Literal["disconnected"]) -> Callable[[DisconnectedF], DisconnectedF]: ...
        @overload
        def on(
            self, event: Literal["connection_failed"], callback: Calls[ConnectionFailed, R]
        ) -> Calls[ConnectionFailed, R]: ...
        @overload
        def on(
            self, event: Literal["connection_failed"]
        ) -> Callable[[ConnectionFailedF], ConnectionFailedF]: ...
        @overload
        def on(
            self, event: Literal["sequence-mismatch"], callback: Calls[SequenceMismatch, R]
        ) -> Calls[SequenceMismatch, R]: ...
        @overload
        def on(
            self, event: Literal["sequence-mismatch"]
        ) -> Callable[[SequenceMismatchF], SequenceMismatchF]: ...
        @overload
        def on(
            self, event: Literal["ping-pong-latency"], callback: Calls[Latency, R]
        ) -> Calls[Latency, R]: ...
        @overload
        def on(self, event: Literal["ping-pong-latency"]) -> Callable[[LatencyF], LatencyF]: ...
        @overload
        def on(
            self, event: Literal["event:mercury_shutdown_imminent"], callback: Calls[SwitchoverStarted, R]
        ) -> Calls[SwitchoverStarted, R]: ...
        @overload
        def on(
            self, event: Literal["event:mercury_shutdown_imminent"]
        ) -> Callable[[SwitchoverStartedF], SwitchoverStartedF]: ...
        @overload
        def on(
            self,
            event: Literal["event:mercury_shutdown_switchover_complete"],
            callback: Calls[SwitchoverComplete, R],
        ) -> Calls[SwitchoverComplete, R]: ...
        @overload
        def on(
            self, event: Literal["event:mercury_shutdown_switchover_complete"]
        ) -> Callable[[SwitchoverCompleteF], SwitchoverCompleteF]: ...
        @overload
        def on(
            self,
            event: Literal["event:mercury_shutdown_switchover_failed"],
            callback: Calls[SwitchoverFailed, R],
        ) -> Calls[SwitchoverFailed, R]: ...
        @overload
        def on(
            self,
            event: Literal["switchover-loss"],
            callback: Calls[SwitchoverLoss, R],
        ) -> Calls[SwitchoverLoss, R]: ...
        @overload
        def on(
            self, event: Literal["event:mercury_shutdown_switchover_failed"]
        ) -> Callable[[SwitchoverFailedF], SwitchoverFailedF]: ...
        @overload
        def on(self, event: Literal["switchover-loss"]) -> Callable[[SwitchoverLossF], SwitchoverLossF]: ...
        @overload
        def on(self, event: StateEvent, callback: Calls[object, R]) -> Calls[object, R]: ...
        @overload
        @deprecated("This event brings no Envelope but an object of its own class: see ConnectionPool.on")
        def on(self, event: StateEvent, callback: Calls[Envelope, R]) -> Calls[Envelope, R]: ...
        @overload
        def on(self, event: str, callback: Calls[Envelope, R]) -> Calls[Envelope, R]: ...
        @overload
        def on(self, event: str) -> Callable[[EnvelopeF], EnvelopeF]: ...

    def on(self, event: str, callback: Callback | None = None) -> Any:
        """Call `callback` with the payload of every such event of this session; also as a decorator.

        Callbacks of a session run one after another, in the order of arrival, but not always on the same
        thread: keep nothing in thread-locals from one call to the next. One that raises is logged. They may
        call anything of this library, and block: the connection does not wait for them.

        Args:
            event: See `ConnectionPool.on`; without a session id, or with this session's.
            callback: Takes the payload. None to use this as a decorator.

        Returns:
            The callback.

        Raises:
            ConfigurationError: If there is no such event, or the callback is not callable or is a coroutine
                function.
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
