"""Log records that say which session they are about, and never hold a token.

Logger names are fixed, one a layer (`llm_sessions.pool`, `llm_sessions.connection`, …), and come from
`get_logger`, whose loggers redact every record: this is the one place that does. The library sets no level
and installs no handler.
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, MutableMapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

__all__ = [
    "Repeats",
    "SessionLogger",
    "get_logger",
    "guarded",
    "know_secret",
    "one_line",
    "redact",
    "without_secrets",
]

_MIN_SECRET: Final = 8  # characters; shorter ones are words, and their loss would garble records
_MAX_SECRETS: Final = 1024
_MAX_KINDS: Final = 256
_FRAMES: Final = 1 if sys.version_info >= (3, 11) else 2  # to skip; older Pythons count logging's own, too
_QUIET: Final = 60.0  # seconds in which records that are alike make one line

# The newest secrets, and those before them. No lock guards them: finalizers may log under any lock, and in
# the middle of these functions. Single operations on a dict of strings are atomic, and so is a list of its
# keys. A list of its items is not: making the tuples may run finalizers, and those let other threads on.
_known: tuple[dict[str, None], dict[str, None]] = {}, {}
_said = itertools.count(1)

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


def know_secret(secret: str) -> None:
    """Have a token, or a password, redacted wherever it is found from now on, whatever is around it.

    At least the newest thousand are known. Ones of less than 8 characters are found only by what is around
    them.
    """
    if len(secret) < _MIN_SECRET:
        return
    global _known
    secret = str.__str__(secret)  # a subclass may compare in its own way
    for form in {secret, quote(secret, safe="")}:
        while form not in _known[0]:  # again if it went where they were the newest until this moment
            if not next(_said) % _MAX_SECRETS:  # of all threads, one comes here for each thousand
                _known = {}, _known[0]
            _known[0][form] = None


def redact(text: str) -> str:
    """Return `text` without known secrets and without whatever looks like a credential."""
    newer, older = _known
    for secret in sorted((one for one in [*newer, *older] if one in text), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _SECRET.sub(_kept, text)


def _kept(match: re.Match[str]) -> str:
    return f"{match[match.lastindex] if match.lastindex else ''}***"


def one_line(text: str) -> str:
    """Return somebody else's text with a space for whatever cannot be printed, line breaks too."""
    return "".join(ch if ch.isprintable() else " " for ch in text)


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


class _Redaction(logging.Filter):
    """Takes credentials out of every record of the logger that it is added to."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except Exception as exc:  # noqa: BLE001  # of an argument's __str__; it must not end who logs
            record.msg, record.args = f"{record.msg!r} cannot be formatted: {type(exc).__name__}", None
            text = record.msg
        safe = redact(text)
        if safe != text:
            record.msg, record.args = safe, None
        if record.exc_info and record.exc_info[0] is not None:
            # Only if it must be: handlers that collect errors want the exception, not its text.
            trace = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            safe = redact(trace)
            if safe != trace:
                record.exc_info, record.exc_text = None, safe
        return True


_redaction = _Redaction()


def get_logger(layer: str) -> logging.Logger:
    """Return the logger `llm_sessions.<layer>`, whose records are redacted."""
    logger = logging.getLogger(f"llm_sessions.{layer}")
    logger.addFilter(_redaction)  # a second time it changes nothing
    return logger


class Repeats:
    """Thins out records that are alike: the first makes a line, and then at most one a minute does.

    Not thread-safe: guard it.

    Args:
        clock: Monotonic seconds.
    """

    __slots__ = ("_clock", "_seen")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, int]] = {}  # when there was a line; how many were left out since

    def due(self, kind: str) -> int | None:
        """Return how many were left out since the last line if there is to be one now, else None."""
        now = self._clock()
        if len(self._seen) > _MAX_KINDS:  # what errors say of themselves may differ without end
            self._seen.clear()
        said_at, left_out = self._seen.get(kind, (float("-inf"), 0))
        if now - said_at < _QUIET:
            self._seen[kind] = said_at, left_out + 1
            return None
        self._seen[kind] = now, 0
        return left_out

    def forget(self) -> None:
        """Begin anew: the next of every kind makes a line."""
        self._seen.clear()


def guarded(call: Callable[[], object]) -> None:
    """Log by `call` on a thread that must go on even if a log handler of the user's raises."""
    try:
        call()
    except BaseException:  # noqa: BLE001  # to be told where logging itself tells of it
        if logging.raiseExceptions:
            traceback.print_exc()


class SessionLogger(logging.LoggerAdapter):  # type: ignore[type-arg]  # generic only from 3.11 on
    """Prefix records with the session, and put it in `extra` for structured handlers."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log with the session's id in front, as an argument: it may have a % in it."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + _FRAMES
        super().log(level, f"[%s] {msg}", (self.extra or {}).get("session_id"), *args, **kwargs)

    def thinned(
        self, repeats: Repeats, kind: str, level: int, text: str, *args: object, exc_info: bool = False
    ) -> Callable[[], None]:
        """Return what logs a record that may be one of many alike; see `Repeats`.

        The line says how many were left out. Those are logged, too, at DEBUG.
        """
        left_out = repeats.due(kind)
        if left_out is None:
            level = logging.DEBUG
        elif left_out:
            text, args = f"{text} (and %d more like it since the last line)", (*args, left_out)
        return lambda: self.log(level, text, *args, exc_info=exc_info)
