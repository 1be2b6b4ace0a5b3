"""Log records that say which session they are about, and never hold a token.

Logger names are fixed, one a layer (`llm_sessions.pool`, `llm_sessions.connection`, …). The library sets no
level and installs no handler.
"""

from __future__ import annotations

import logging
import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

__all__ = ["SessionLogger", "redact", "without_secrets"]

_SECRET = re.compile(r"(?i)(bearer\s+|\b(?:[a-z_]*token|authorization|password|secret)\"?\s*[=:]\s*\"?)[^\s\"'&,;}]+")


def redact(text: str) -> str:
    """Return `text` with whatever looks like a credential replaced. The one place that does it."""
    return _SECRET.sub(r"\1***", _SECRET.sub(r"\1***", text))


def without_secrets(url: str) -> str:
    """Return a URL fit for logs and exceptions: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port
    except ValueError:
        return "<not a URL>"
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}{parts.path}"


class SessionLogger(logging.LoggerAdapter):  # type: ignore[type-arg]  # generic only from 3.11 on
    """Prefix records with the session, and put it in `extra` for structured handlers."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra = dict(self.extra or {})
        kwargs["extra"] = {**extra, **kwargs.get("extra", {})}
        return f"[{extra.get('session_id')}] {msg}", kwargs
