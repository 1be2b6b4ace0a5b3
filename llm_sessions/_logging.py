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

# One pass; no part can match a run of text from more than a few starts, so time is linear in the text.
# Kept are the groups: a key (its end is enough), its separator and the quote before its value.
_KEY = r"(?:authorization|passw(?:or)?d|secret|token)"
_VALUE = r"""(?!(?:none|null|true|false)(?![\w.~+/=-]))(?:(?:bearer|basic)\s+)?[^\s"'&,;{}()<>[\]\\]+"""
_SECRET = re.compile(
    rf"""
    ( {_KEY} \\*["']? \s* [:=] \s* b?" ) (?!") [^"\\]* (?: \\. [^"\\]* )*
  | ( {_KEY} \\*["']? \s* [:=] \s* b?' ) (?!') [^'\\]* (?: \\. [^'\\]* )*
  | ( {_KEY} \\*["']? \s* [:=] \s* b?\\+["'] ) [^"'\\]+  # JSON inside of JSON
  | ( {_KEY} \s* =(?!=) \s* | {_KEY} \\*["'] \s* [:=] \s* ) {_VALUE}
  | ( (?:(?<=[\w-])token | authorization | passw(?:or)?d | secret) \s* : \s* ) {_VALUE}  # a header
  | ( token \s* : \s* ) [\w.~+/=-]{{16,}}  # shorter ones are words: "token: must be a string"
  | ( bearer (?:\s+|%20) ) (?! (?:tokens?|auth\w*|schemes?|of|and|or|is|was) (?![\w.~+/=-]) ) {_VALUE}
  | (?: (?<![\w-]) | (?<=%[0-9a-f][0-9a-f]) ) eyJ[\w-]+ \. [\w-]+ \. [\w-]* (?: \.[\w-]+ )*  # a JWT
  | ( :// ) [^\s/?\#@]+ (?=@)
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


def redact(text: str) -> str:
    """Return `text` with whatever looks like a credential replaced. The one place that does it."""
    return _SECRET.sub(_kept, text)


def _kept(match: re.Match[str]) -> str:
    return f"{match[match.lastindex] if match.lastindex else ''}***"


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
        kwargs["extra"] = {**extra, **(kwargs.get("extra") or {})}
        # The id becomes part of the format, where a % in it would take one of the arguments.
        session_id = str(extra.get("session_id")).replace("%", "%%")
        return f"[{session_id}] {msg}", kwargs
