"""Webex data channels for programs that are not async: many sessions at once, on threads.

"LLM" is Low Latency Mercury, the WebSocket that carries a meeting's captions, reactions, whiteboard and
state events; it has nothing to do with language models.

PYTEST_DONT_REWRITE: or pytest warns that it cannot, when a program imports this package and then runs pytest.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Final

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

if TYPE_CHECKING:
    from .datachannel.channels import DataChannel
    from .datachannel.client import DataChannelClient
    from .datachannel.device import DeviceRegistration
    from .datachannel.oauth import OAuthTokens
    from .datachannel.oauth_grant import RefreshedTokens
    from .meetings.caption_events import (
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
    from .meetings.caption_protocol import AnnounceState, CaptionState
    from .meetings.captions import Captions
    from .meetings.delivery import MeetingFailed
    from .meetings.locus import JoinResponse, Locus
    from .meetings.meeting import Meeting
    from .meetings.rules import Role
    from .meetings.transcripts import Transcripts
    from .pool.config import WEBEX_HOSTS, PoolConfig
    from .pool.listening import ALL_SESSIONS
    from .pool.messages import Messages
    from .pool.pool import ConnectionPool
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
        SwitchoverLoss,
        SwitchoverStarted,
    )
    from .protocol.state import SessionState
    from .session_ids import DEFAULT_SESSION_ID, LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION

# Without it, Python would print our warnings for programs that have not configured logging.
logging.getLogger("llm_sessions").addHandler(logging.NullHandler())

__all__ = [
    "ALL_SESSIONS",
    "AlreadyConnected",
    "AnnounceState",
    "BadRequest",
    "CaptionEvent",
    "CaptionLanguageAnswer",
    "CaptionLanguages",
    "CaptionState",
    "Captions",
    "ConfigurationError",
    "ConnectCancelled",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionFailed",
    "ConnectionLost",
    "ConnectionPool",
    "DEFAULT_SESSION_ID",
    "DataChannel",
    "DataChannelClient",
    "DeviceRegistration",
    "Disconnected",
    "Endpoint",
    "Envelope",
    "EvaEvent",
    "Forbidden",
    "Highlight",
    "JoinResponse",
    "LLMSessionsError",
    "LLM_DEFAULT_SESSION",
    "LLM_PRACTICE_SESSION",
    "LanguageDetected",
    "Latency",
    "LocalProtocolError",
    "Locus",
    "Meeting",
    "MeetingFailed",
    "Messages",
    "NotAuthorized",
    "NotOnline",
    "OAuthTokens",
    "Offline",
    "Online",
    "OwnershipError",
    "PoolClosed",
    "PoolConfig",
    "PoolStats",
    "ProtocolError",
    "Reaction",
    "RefreshedTokens",
    "RegistrationError",
    "RelayEvent",
    "RemoteProtocolError",
    "Replaced",
    "Role",
    "SequenceMismatch",
    "Session",
    "SessionError",
    "SessionState",
    "SessionStats",
    "StaticToken",
    "SwitchoverComplete",
    "SwitchoverFailed",
    "SwitchoverLoss",
    "SwitchoverStarted",
    "Target",
    "TokenProvider",
    "TokenRefreshError",
    "Transcript",
    "Transcripts",
    "UnknownResponse",
    "WEBEX_HOSTS",
    "WaitTimeout",
    "__version__",
]

# Where the names above are defined that are not imported here: their modules and those they need take a tenth
# of a second, and pytest imports this package in every run, for the fixtures in `testing`.
_HOMES: Final = {
    name: module
    for module, names in {
        "datachannel.channels": ["DataChannel"],
        "datachannel.client": ["DataChannelClient"],
        "datachannel.device": ["DeviceRegistration"],
        "datachannel.oauth": ["OAuthTokens"],
        "datachannel.oauth_grant": ["RefreshedTokens"],
        "meetings.caption_events": [
            "CaptionEvent",
            "CaptionLanguageAnswer",
            "CaptionLanguages",
            "EvaEvent",
            "Highlight",
            "LanguageDetected",
            "Reaction",
            "RelayEvent",
            "Transcript",
        ],
        "meetings.caption_protocol": ["AnnounceState", "CaptionState"],
        "meetings.captions": ["Captions"],
        "meetings.locus": ["JoinResponse", "Locus"],
        "meetings.rules": ["Role"],
        "meetings.transcripts": ["Transcripts"],
        "meetings.delivery": ["MeetingFailed"],
        "meetings.meeting": ["Meeting"],
        "pool.config": ["WEBEX_HOSTS", "PoolConfig"],
        "pool.messages": ["Messages"],
        "pool.listening": ["ALL_SESSIONS"],
        "pool.pool": ["ConnectionPool"],
        "pool.session": ["Session"],
        "pool.sources": ["Endpoint", "StaticToken", "Target", "TokenProvider"],
        "pool.stats": ["PoolStats", "SessionStats"],
        "protocol.envelope": ["Envelope"],
        "protocol.events": [
            *("ConnectionFailed", "Disconnected", "Latency", "Offline", "Online", "SequenceMismatch"),
            *("SwitchoverComplete", "SwitchoverFailed", "SwitchoverLoss", "SwitchoverStarted"),
        ],
        "protocol.state": ["SessionState"],
        "session_ids": ["DEFAULT_SESSION_ID", "LLM_DEFAULT_SESSION", "LLM_PRACTICE_SESSION"],
    }.items()
    for name in names
}

if not TYPE_CHECKING:  # a type checker would take it for a promise that any name is there

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # Threads that ask at once get the same object: the import system has its own locks.
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
