"""Webex data channels for programs that are not async: many sessions at once, on threads.

"LLM" is Low Latency Mercury, the WebSocket that carries a meeting's captions, reactions, whiteboard and
state events; it has nothing to do with language models.
"""

import logging

from ._version import __version__
from .errors import (
    AlreadyConnected,
    BadRequest,
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    Forbidden,
    LLMSessionsError,
    LocalProtocolError,
    NotAuthorized,
    NotOnline,
    OwnershipError,
    PoolClosed,
    ProtocolError,
    RegistrationError,
    RemoteProtocolError,
    Replaced,
    SessionError,
    TokenRefreshError,
    UnknownResponse,
    WaitTimeout,
)
from .pool.config import PoolConfig
from .pool.messages import Messages
from .pool.pool import ALL_SESSIONS, ConnectionPool
from .pool.session import Session
from .pool.sources import Endpoint, StaticToken, Target, TokenProvider
from .pool.stats import PoolStats, SessionStats
from .protocol.envelope import Envelope
from .protocol.events import (
    ConnectionFailed,
    Disconnected,
    Latency,
    Offline,
    Online,
    SequenceMismatch,
    SwitchoverComplete,
    SwitchoverFailed,
    SwitchoverStarted,
)
from .protocol.state import SessionState
from .session_ids import DEFAULT_SESSION_ID, LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION

# Without it, Python would print our warnings for programs that have not configured logging.
logging.getLogger("llm_sessions").addHandler(logging.NullHandler())

__all__ = [
    "ALL_SESSIONS",
    "AlreadyConnected",
    "BadRequest",
    "ConfigurationError",
    "ConnectCancelled",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionFailed",
    "ConnectionLost",
    "ConnectionPool",
    "DEFAULT_SESSION_ID",
    "Disconnected",
    "Endpoint",
    "Envelope",
    "Forbidden",
    "LLMSessionsError",
    "LLM_DEFAULT_SESSION",
    "LLM_PRACTICE_SESSION",
    "Latency",
    "LocalProtocolError",
    "Messages",
    "NotAuthorized",
    "NotOnline",
    "Offline",
    "Online",
    "OwnershipError",
    "PoolClosed",
    "PoolConfig",
    "PoolStats",
    "ProtocolError",
    "RegistrationError",
    "RemoteProtocolError",
    "Replaced",
    "SequenceMismatch",
    "Session",
    "SessionError",
    "SessionState",
    "SessionStats",
    "StaticToken",
    "SwitchoverComplete",
    "SwitchoverFailed",
    "SwitchoverStarted",
    "Target",
    "TokenProvider",
    "TokenRefreshError",
    "UnknownResponse",
    "WaitTimeout",
    "__version__",
]
