"""The well-known session ids, and what a session id may be."""

from __future__ import annotations

from .errors import ConfigurationError

__all__ = ["DEFAULT_SESSION_ID", "LLM_DEFAULT_SESSION", "LLM_PRACTICE_SESSION", "check_session_id"]

DEFAULT_SESSION_ID = "mercury-default-session"
"""The session that a pool means when none is named."""

LLM_DEFAULT_SESSION = "llm-default-session"
"""The data channel of the main meeting, and the name of its kind of token."""

LLM_PRACTICE_SESSION = "llm-practice-session"
"""The data channel of a webinar's practice session, and the name of its kind of token."""


def check_session_id(value: object, argument: str = "session_id") -> str:
    """Return `value` if it can be a session id.

    A colon separates an event's name from its session (`online:captions`), so no id contains one.

    Raises:
        ConfigurationError: If it is not a non-empty printable string without a colon.
    """
    if not isinstance(value, str):
        raise ConfigurationError(argument, f"must be a string, not {type(value).__name__}")
    if not value or not value.isprintable() or ":" in value:
        raise ConfigurationError(argument, f"must be non-empty, printable and without ':', not {value!r}")
    return value
