"""JSON in and out: orjson parses if it is installed, the standard library otherwise, alike in every respect.

The two differ in what they let through (NaN, lone surrogates, numbers beyond 64 bits, depth), so the
standard parser is held to orjson's rules, and both to one depth limit. Writing is never hot here (acks are
framed by hand), so it is the standard library's alone. Set the environment variable
`LLM_SESSIONS_JSON=json` before the import to do without orjson.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any, Final

__all__ = ["BACKEND", "MAX_DEPTH", "BadJSON", "dump_text", "dumps", "loads"]

MAX_DEPTH: Final = 256
"""Levels of nesting that a message may have. Real envelopes have fewer than 20; both parsers recurse."""

_SPACE: Final = " \t\r\n"
_MAX_INT: Final = 2**64 - 1
_MIN_INT: Final = -(2**63)


class BadJSON(ValueError):
    """The bytes are not one JSON value in strict UTF-8, or are nested deeper than `MAX_DEPTH`."""


def _parse_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise BadJSON(f"number out of range: {text[:32]}")
    return value


def _parse_int(text: str) -> int | float:
    if len(text) < 19:
        return int(text)
    value = _parse_float(text)
    if len(text) < 22 and _MIN_INT <= (exact := int(text)) <= _MAX_INT:
        return exact
    return value


def _refuse_constant(text: str) -> None:
    raise BadJSON(f"not JSON: {text}")


_careful = json.JSONDecoder(parse_float=_parse_float, parse_int=_parse_int, parse_constant=_refuse_constant)
# A call of ours for each integer would double the time that a message with many of them takes.
_fast = json.JSONDecoder(parse_float=_parse_float, parse_constant=_refuse_constant)
_ZERO_DIGITS = bytes(ord("0") if digit in b"123456789" else digit for digit in range(256))
_LONG_NUMBER: Final = b"0" * 19  # fewer digits are an integer below 2**63
_ITS_THIRDS: Final = _LONG_NUMBER[: len(_LONG_NUMBER) // 3]  # what every third byte shows of it, at least
# Group 1 is a surrogate without its other half. In valid JSON a backslash is always the start of an escape.
_ESCAPE_IN_TEXT = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F])|.)"
)

dump_text: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
"""Compact JSON of a value as `str`; see `dumps` for what it raises."""


def _has_long_number(payload: bytes) -> bool:
    # Most messages are through after a third of them. Dates and random ids have too few digits in a row.
    if _ITS_THIRDS not in payload[::3].translate(_ZERO_DIGITS):
        return False
    return _LONG_NUMBER in payload.translate(_ZERO_DIGITS)


def _standard_parse(payload: bytes) -> Any:
    text = str(payload, "utf-8")
    decoder = _careful if _has_long_number(payload) else _fast
    if text[:1] != "{":
        text = text.lstrip(_SPACE)
    value, end = decoder.raw_decode(text)
    if end != len(text) and text[end:].strip(_SPACE):
        raise BadJSON(f"more than one value: {text[end : end + 32]!r}")
    # The first look is for one character, which takes a tenth of the time.
    if "\\" in text and "\\u" in text and any(match[1] for match in _ESCAPE_IN_TEXT.finditer(text)):
        raise BadJSON("a surrogate stands alone")
    return value


def _choose_parser() -> tuple[str, Callable[[bytes], Any], Callable[[Any], bytes] | None]:
    if os.environ.get("LLM_SESSIONS_JSON") != "json":
        try:
            import orjson
        except ImportError:
            pass
        else:
            return "orjson", orjson.loads, orjson.dumps if _refuses_depth(orjson.dumps) else None
    return "json", _standard_parse, None


def _refuses_depth(write: Callable[[Any], bytes]) -> bool:
    value: list[Any] = []
    for _ in range(MAX_DEPTH):
        value = [value]
    try:
        write(value)
    except TypeError:
        return True
    return False


# The third writes less than `MAX_DEPTH` levels, and raises TypeError for more.
BACKEND, _parse, _write_shallow = _choose_parser()


def loads(payload: bytes) -> Any:
    """Parse one message.

    Args:
        payload: JSON as UTF-8 bytes.

    Raises:
        BadJSON: If it is not JSON (RFC 8259; no NaN, no lone surrogates), not UTF-8, holds a number
            beyond a double, or is nested deeper than `MAX_DEPTH`.
    """
    deep = (
        len(payload) > 2 * MAX_DEPTH  # each level has two brackets
        and len(payload.translate(None, _NOT_BRACKETS)) > 2 * MAX_DEPTH
    )
    # Written again, what is shallow shows itself five times faster than by its brackets. But a message that
    # is hostile and large costs less memory if it is refused before it is parsed.
    write = _write_shallow if len(payload) <= _MAX_WRITTEN else None
    if deep and write is None:
        _check_depth(payload)
    try:
        value = _parse(payload)
    except (ValueError, RecursionError) as exc:
        raise BadJSON(str(exc)) from exc
    if deep and write is not None:
        try:
            write(value)
        except TypeError:
            _check_depth(payload)
    return value


_MAX_WRITTEN: Final = 128 * 1024
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NEITHER_BRACKETS_NOR_QUOTES = bytes(set(_NOT_BRACKETS) - set(b'"'))
_AS_PARENTHESES = bytes.maketrans(b"[]{}", b"()()")
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_USUAL_DEPTH: Final = 20


def _check_depth(payload: bytes) -> None:
    if _too_deep(payload):
        raise BadJSON(f"nested deeper than {MAX_DEPTH} levels")


def _too_deep(payload: bytes) -> bool:
    if b"\\" in payload:
        payload = _ESCAPE.sub(b"", payload)
    # Strings without brackets are two quotes now. Before the first one with brackets there is an odd quote.
    outside = payload.translate(_AS_PARENTHESES, _NEITHER_BRACKETS_NOR_QUOTES).replace(b'""', b"")
    if b'"' in outside:
        # Without escapes, every other piece between quotes is outside a string.
        outside = b"".join(payload.split(b'"')[::2]).translate(_AS_PARENTHESES, _NOT_BRACKETS)
    depth = 0
    while depth < _USUAL_DEPTH and b"()" in outside:
        outside = outside.replace(b"()", b"")  # the innermost level of each branch: one less everywhere
        depth += 1
    for bracket in outside:
        depth += 1 if bracket == ord("(") else -1
        if depth > MAX_DEPTH:
            return True
    return False


def dumps(value: Any) -> bytes:
    """Return `value` as compact JSON in UTF-8.

    Raises:
        TypeError: If it holds something that JSON has no form for.
        ValueError: If it holds a NaN, an infinity, a lone surrogate, or itself.
        RecursionError: If it is nested too deeply.
    """
    return dump_text(value).encode()
