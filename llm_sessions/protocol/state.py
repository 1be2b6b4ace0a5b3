"""The session machine: every state and every step that a session can take, as one table.

    IDLE ─connect→ CONNECTING ─opened→ ONLINE ─shutdown→ SWITCHING ─switched | switch_failed→ ONLINE
    CONNECTING ─gave_up→ OFFLINE        ONLINE | SWITCHING ─lost→ RECONNECTING ─opened→ ONLINE
    ONLINE | SWITCHING ─ended→ OFFLINE  RECONNECTING ─gave_up→ OFFLINE
    any busy state ─disconnect→ DISCONNECTING ─closed→ IDLE
    OFFLINE ─connect→ CONNECTING        OFFLINE ─disconnect→ IDLE

An illegal step raises and changes nothing: it is a bug of this library, never the user's fault. That we
asked for a close is a state (DISCONNECTING), not a close reason: whatever code comes back, nothing
reconnects.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["BUSY", "ONLINE", "TRANSITIONS", "InvalidTransition", "SessionState", "Trigger", "next_state"]


class SessionState(enum.Enum):
    """Where a session stands."""

    IDLE = "idle"  # never connected, or disconnected by us
    CONNECTING = "connecting"  # the first attempt run since IDLE or OFFLINE; ends with its last waiter
    ONLINE = "online"  # the active socket is ready
    SWITCHING = "switching"  # online, while a candidate socket is being made to replace the active one
    RECONNECTING = "reconnecting"  # the active socket was lost; an attempt run makes another
    DISCONNECTING = "disconnecting"  # we asked; the sockets are still closing
    OFFLINE = "offline"  # ended for good, or never came up; `last_error` says why


class Trigger(enum.Enum):
    """What happens to a session."""

    CONNECT = "connect"
    OPENED = "opened"
    GAVE_UP = "gave_up"
    LOST = "lost"
    ENDED = "ended"
    SHUTDOWN = "shutdown"
    SWITCHED = "switched"
    SWITCH_FAILED = "switch_failed"
    DISCONNECT = "disconnect"
    CLOSED = "closed"


_S, _T = SessionState, Trigger

TRANSITIONS: Final[Mapping[SessionState, Mapping[Trigger, SessionState]]] = MappingProxyType(
    {
        _S.IDLE: {_T.CONNECT: _S.CONNECTING},
        _S.CONNECTING: {_T.OPENED: _S.ONLINE, _T.GAVE_UP: _S.OFFLINE, _T.DISCONNECT: _S.DISCONNECTING},
        _S.ONLINE: {
            _T.LOST: _S.RECONNECTING,
            _T.ENDED: _S.OFFLINE,
            _T.SHUTDOWN: _S.SWITCHING,
            _T.DISCONNECT: _S.DISCONNECTING,
        },
        _S.SWITCHING: {
            _T.SWITCHED: _S.ONLINE,
            _T.SWITCH_FAILED: _S.ONLINE,
            _T.LOST: _S.RECONNECTING,
            _T.ENDED: _S.OFFLINE,
            _T.DISCONNECT: _S.DISCONNECTING,
        },
        _S.RECONNECTING: {_T.OPENED: _S.ONLINE, _T.GAVE_UP: _S.OFFLINE, _T.DISCONNECT: _S.DISCONNECTING},
        _S.DISCONNECTING: {_T.CLOSED: _S.IDLE},
        _S.OFFLINE: {_T.CONNECT: _S.CONNECTING, _T.DISCONNECT: _S.IDLE},
    }
)

ONLINE: Final = frozenset({SessionState.ONLINE, SessionState.SWITCHING})
"""The states in which send() works."""

BUSY: Final = frozenset({_S.CONNECTING, _S.ONLINE, _S.SWITCHING, _S.RECONNECTING})
"""The states that disconnect() has something to end in."""


class InvalidTransition(AssertionError):
    """A step that the table does not have: a bug in llm_sessions, never the user's fault."""


def next_state(state: SessionState, trigger: Trigger) -> SessionState:
    """Return the state after `trigger`, or raise InvalidTransition."""
    try:
        return TRANSITIONS[state][trigger]
    except KeyError:
        raise InvalidTransition(f"{trigger.name} in {state.name}") from None
