"""The events that users listen to: their names, and the payloads of all that are not envelopes.

Names are the JavaScript SDK's. A bare name on a pool is the default session's; another session's carries
its id as a suffix, once: `online:captions`, `event:relay.event:captions`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from ..errors import ConfigurationError
from ..session_ids import check_session_id

if TYPE_CHECKING:
    from .envelope import Envelope

__all__ = [
    "STATE_EVENTS",
    "ConnectionFailed",
    "Disconnected",
    "Latency",
    "Offline",
    "Online",
    "SequenceMismatch",
    "StateEvent",
    "SwitchoverComplete",
    "SwitchoverFailed",
    "SwitchoverLoss",
    "SwitchoverStarted",
    "names_of",
    "parse_event_name",
]


@dataclasses.dataclass(frozen=True)
class Online:
    """The session can send: its socket is authorized. Payload of `online`.

    Attributes:
        session_id: Which.
        number: How many times it has come online, this one included.
    """

    session_id: str
    number: int = dataclasses.field(default=1, compare=False)


@dataclasses.dataclass(frozen=True)
class Offline:
    """The session's active socket ended.

    Payload of `offline`, and of the one of `offline.transient` (it reconnects), `offline.permanent` (it
    does not) and `offline.replaced` (another client took over) that follows.

    Attributes:
        code: Close code (RFC 6455 7.4); 1006 if there was none.
        reason: Close reason, possibly empty.
    """

    session_id: str
    code: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Disconnected:
    """An explicit disconnect is complete and the session's state is cleared. Payload of `disconnected`."""

    session_id: str


@dataclasses.dataclass(frozen=True)
class ConnectionFailed:
    """An attempt failed. Payload of `connection_failed`, from the second failure of a run on.

    Attributes:
        error: Why; with the original exception as its `__cause__`.
        retries: How many attempts of this run had failed before this one.
    """

    session_id: str
    error: Exception
    retries: int


@dataclasses.dataclass(frozen=True)
class SequenceMismatch:
    """A numbered message is not the one that had to follow. Payload of `sequence-mismatch`."""

    session_id: str
    actual: int
    expected: int


@dataclasses.dataclass(frozen=True)
class Latency:
    """The time from a ping to its pong. Payload of `ping-pong-latency`.

    Attributes:
        seconds: By the monotonic clock.
    """

    session_id: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class SwitchoverStarted:
    """The server announced its shutdown. Payload of `event:mercury_shutdown_imminent`."""

    session_id: str
    envelope: Envelope


@dataclasses.dataclass(frozen=True)
class SwitchoverComplete:
    """A second socket has become the active one. Payload of `event:mercury_shutdown_switchover_complete`.

    Attributes:
        url: Where it is connected to, without its query.
    """

    session_id: str
    url: str


@dataclasses.dataclass(frozen=True)
class SwitchoverFailed:
    """No second socket could be made. Payload of `event:mercury_shutdown_switchover_failed`.

    Attributes:
        reason: The last attempt's error.
    """

    session_id: str
    reason: Exception


@dataclasses.dataclass(frozen=True)
class SwitchoverLoss:
    """A replaced socket broke off, or was closed by us over unread messages. Payload of `switchover-loss`.

    What it was to bring and had not brought yet is lost, unless the new socket brings it. The session stays
    online.

    Attributes:
        code: Close code; 1006 if there was none.
        reason: Close reason, possibly empty.
    """

    session_id: str
    code: int
    reason: str


StateEvent: TypeAlias = Literal[
    "online",
    "offline",
    "offline.transient",
    "offline.permanent",
    "offline.replaced",
    "disconnected",
    "connection_failed",
    "sequence-mismatch",
    "ping-pong-latency",
    "switchover-loss",
    "event:mercury_shutdown_imminent",
    "event:mercury_shutdown_switchover_complete",
    "event:mercury_shutdown_switchover_failed",
]
"""The names in `STATE_EVENTS`, for type checkers."""

STATE_EVENTS: Final[frozenset[str]] = frozenset(get_args(StateEvent))
"""Every event but those of envelopes: `event`, `event:<namespace>` and `event:<namespace>.<name>`."""

_EVENT_TYPE = re.compile(r"[^\s:.]+(\.[^\s:]+)?")


def parse_event_name(name: object) -> tuple[str, str | None]:
    """Split an event's name into the plain name and the session id of its suffix, None without one.

    In `event:X` the X is always a namespace; all events of session X are `event` with `session_id="X"`.

    Raises:
        ConfigurationError: If no event can have this name.
    """
    if not isinstance(name, str):
        raise ConfigurationError("event", f"must be a string, not {type(name).__name__}")
    parts = name.split(":")
    keep = 2 if parts[0] == "event" and len(parts) > 1 else 1
    plain = ":".join(parts[:keep])
    known = plain in STATE_EVENTS or plain == "event" or (keep == 2 and _EVENT_TYPE.fullmatch(parts[1]))
    if not known or len(parts) > keep + 1:
        allowed = ", ".join(sorted(STATE_EVENTS))
        raise ConfigurationError(
            "event",
            f"{name!r} does not exist; allowed are event, event:<namespace>, event:<namespace>.<name> and "
            f"{allowed}, each with :<session id> at its end or without",
        )
    if len(parts) == keep:
        return plain, None
    return plain, check_session_id(parts[keep], "event")


def names_of(event_type: object) -> tuple[str, ...]:
    """Return the plain names under which an envelope with this `data.eventType` is announced, in order.

    Never one of `STATE_EVENTS`: who listens to those gets their own payloads.
    """
    if not isinstance(event_type, str) or not event_type:
        return ("event",)
    namespace = event_type.partition(".")[0]
    names = f"event:{namespace}", f"event:{event_type}"
    return ("event", *(name for name in dict.fromkeys(names) if name not in STATE_EVENTS))
