"""One JSON for both parsers: they take and refuse the same bytes and yield the same values."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_sessions import _json

MISSING = object()


def load(backend: str, *, without_orjson: bool = False) -> ModuleType:
    """Load the module anew, under a name of its own, as if LLM_SESSIONS_JSON were `backend`."""
    spec = importlib.util.spec_from_file_location(
        f"llm_sessions._json_{backend or 'default'}", _json.__file__
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    kept_setting = os.environ.get("LLM_SESSIONS_JSON")
    kept_module = sys.modules.get("orjson", MISSING)
    try:
        os.environ["LLM_SESSIONS_JSON"] = backend
        if without_orjson:
            sys.modules["orjson"] = None  # type: ignore[assignment]
        spec.loader.exec_module(module)
    finally:
        if kept_setting is None:
            del os.environ["LLM_SESSIONS_JSON"]
        else:
            os.environ["LLM_SESSIONS_JSON"] = kept_setting
        if kept_module is MISSING:
            sys.modules.pop("orjson", None)
        else:
            sys.modules["orjson"] = kept_module  # type: ignore[assignment]
    return module


FAST, STANDARD = load(""), load("json")


def test_the_backend_is_chosen_by_the_environment_and_by_what_is_installed() -> None:
    assert FAST.BACKEND == "orjson"
    assert STANDARD.BACKEND == "json"
    alone = load("", without_orjson=True)
    assert alone.BACKEND == "json"
    assert alone.loads(b'{"a": [1]}') == {"a": [1]}


def same(one: Any, other: Any) -> bool:
    """Say whether two values are the same in type, in sign of zero, and in the order of keys."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


REFUSED = "refused"


def outcome(module: ModuleType, payload: bytes) -> Any:
    try:
        return module.loads(payload)
    except module.BadJSON:
        return REFUSED


def agreed(payload: bytes) -> Any:
    """Return what both make of it; REFUSED if both refuse."""
    fast, standard = outcome(FAST, payload), outcome(STANDARD, payload)
    assert same(fast, standard), f"{payload[:80]!r}: orjson {fast!r:.80}, standard {standard!r:.80}"
    return fast


GOOD: list[tuple[bytes, Any]] = [
    (b"null", None),
    (b" \t\r\n[ ]\n ", []),
    (b'{"a":1,"a":2}', {"a": 2}),
    (b'{"":{}}', {"": {}}),
    (b"0", 0),
    (b"-0", 0),
    (b"-0.0", -0.0),
    (b"1E5", 1e5),
    (b"1e-400", 0.0),
    (b"5e-324", 5e-324),
    (b"1.7976931348623157e308", sys.float_info.max),
    (b"0.1", 0.1),
    (b"9007199254740993", 2**53 + 1),
    (str(2**63 - 1).encode(), 2**63 - 1),
    (str(2**63).encode(), 2**63),
    (str(2**64 - 1).encode(), 2**64 - 1),
    (str(2**64).encode(), float(2**64)),
    (str(-(2**63)).encode(), -(2**63)),
    (str(-(2**63) - 1).encode(), float(-(2**63) - 1)),
    (b"1" + b"0" * 25, 1e25),
    (b"-1" + b"0" * 25, -1e25),
    (b"1" + b"0" * 308, 1e308),
    (b"0." + b"3" * 6000, 1 / 3),
    (b'"\\ud83d\\ude00"', "\U0001f600"),
    (b'"\\uD83D\\uDE00"', "\U0001f600"),
    (b'{"\\ud83d\\ude00": 1}', {"\U0001f600": 1}),
    (b'"\\\\ud800"', "\\ud800"),  # an escaped backslash, then text
    (b'"\\\\\\ud83d\\ude00"', "\\\U0001f600"),
    (b'"\\u0000\\u001f\\u007f\\uffff"', "\0\x1f\x7f\uffff"),
    (b'"\x7f\xc2\x85\xe2\x80\xa8"', "\x7f\x85\u2028"),
    ('"ü€😀"'.encode(), "ü€😀"),
    (b'"\\"\\\\\\/\\b\\f\\n\\r\\t"', '"\\/\b\f\n\r\t'),
    (b'"\\u00e9"', "é"),
]


@pytest.mark.parametrize(("payload", "value"), GOOD, ids=lambda part: repr(part)[:30])
def test_both_take(payload: bytes, value: Any) -> None:
    assert same(agreed(payload), value)


BAD = [
    b"",
    b" ",
    b"nul",
    b"{",
    b"}",
    b"[1,]",
    b'{"a":1,}',
    b"{a:1}",
    b"{'a':1}",
    b'{"a" 1}',
    b'{1:"a"}',
    b"[1 2]",
    b"1 2",
    b"[]]",
    b"// comment\n1",
    b"NaN",
    b"[NaN]",
    b"Infinity",
    b"-Infinity",
    b'{"a":-Infinity}',
    b"1e400",
    b"-1e400",
    b"[1e309]",
    b"1" + b"0" * 400,
    b"-" + b"9" * 400,
    b"9" * 5000,
    b"01",
    b"-01",
    b"+1",
    b".5",
    b"1.",
    b"1.e5",
    b"1e",
    b"1e+",
    b"-",
    b"0x10",
    b"1_000",
    "١".encode(),
    b'"',
    b'"\\"',
    b'"\\x41"',
    b'"\\u12"',
    b'"\\u12g4"',
    b'"\\u+123"',
    b'"\\u 123"',
    b'"\\U0041"',
    b'"\n"',
    b'"\t"',
    b'"\x00"',
    b'"\x1f"',
    b"\x00",
    b"1\x00",
    b"\x0b1",
    b"\xc2\xa01",
    b"\xef\xbb\xbf{}",  # a byte order mark
    b"\xff\xfe{\x00}\x00",
    b'"\xff"',
    b'"\xc3"',
    b'"\xc0\xaf"',
    b'"\xe0\x80\xaf"',
    b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"',
    b'{"\xff": 1}',
    b'"\\ud800"',
    b'"\\uDFFF"',
    b'"\\udc00\\ud800"',
    b'"\\ud800\\ud800\\udc00"',
    b'"\\ud800\\udc00\\udc00"',
    b'"\\ud800x\\udc00"',
    b'"\\ud800\\n"',
    b'"\\\\\\ud800"',
    b'{"\\ud800": 1}',
    b'{"a": "\\ud800", "a": 1}',  # one that the parsed value does not show
    b'["\\ud83d\\ude00", "\\ud83d"]',
    b"t" * 300,
]


@pytest.mark.parametrize("payload", BAD, ids=lambda payload: repr(payload)[:30])
def test_i8_both_refuse(payload: bytes) -> None:
    assert agreed(payload) == REFUSED


# -- depth ----------------------------------------------------------------------------------------------


def nested(levels: int, opening: bytes = b"[", inner: bytes = b"", closing: bytes = b"]") -> bytes:
    return opening * levels + inner + closing * levels


@pytest.mark.parametrize("digits", [18, 19, 20, 21])
def test_a_long_number_is_seen_wherever_it_begins(digits: int) -> None:
    for before in range(20):
        number = int(("9" + "1234567890" * 2)[:digits])
        value = agreed(b" " * before + b"[%d]" % number)
        assert same(value, [number if number < 2**64 else float(number)])


@pytest.mark.parametrize(
    ("opening", "inner", "closing"),
    [
        (b"[", b"", b"]"),
        (b"[", b"1", b"]"),
        (b'{"a":', b"1", b"}"),
        (b'{"a":', b"{}", b"}"),
        (b"[1,", b'"]"', b',"[[["]'),
        (b'["\\"[",', b"1", b',"\\\\"]'),
        (b' [ "{" , ', b"1", b" ] "),
    ],
)
def test_i8_nesting_ends_at_256_levels(opening: bytes, inner: bytes, closing: bytes) -> None:
    own = 1 if inner == b"{}" else 0
    assert _json.MAX_DEPTH == 256
    assert agreed(nested(256 - own, opening, inner, closing)) != REFUSED
    assert agreed(nested(257 - own, opening, inner, closing)) == REFUSED
    assert agreed(b'{"x":' + nested(255 - own, opening, inner, closing) + b"}") != REFUSED
    assert agreed(b'{"x":' + nested(256 - own, opening, inner, closing) + b"}") == REFUSED


@pytest.mark.parametrize(
    "payload",
    [
        b"[" + b"[]," * 1000 + b"[]]",
        b"[" + b'{"a":[]},' * 1000 + b"1]",
        b'"' + b"[" * 1000 + b'"',
        b'"' + b"{[" * 1000 + b'\\""',
        b'"\\\\\\"' + b"[" * 1000 + b'"',
        b'["\\\\", "' + b"[" * 1000 + b'"]',
        b'{"' + b"[" * 1000 + b'": "\\"' + b"{" * 1000 + b'"}',
        b'"\\u005b' + b"[" * 1000 + b'"',
        '["ü[", "'.encode() + b"[" * 1000 + b'"]',
    ],
    ids=range(9),
)
def test_i8_many_brackets_are_not_yet_depth(payload: bytes) -> None:
    assert same(agreed(payload), json.loads(payload))


@pytest.mark.parametrize(
    "payload",
    [
        b'["\\\\",' + nested(257) + b"]",
        b'["\\"",' + nested(257) + b"]",
        b'["\\\\\\"]",' + nested(257) + b"]",
        b'["' + b"]" * 1000 + b'",' + nested(257) + b"]",
        b"[" * 100_000,
        b"]" * 1000 + b"[" * 1000,
        b'{"a":' * 100_000,
        b'"' + b"[" * 1000,
        b'\\"' + b"[" * 1000,
        nested(100_000),
        nested(1000, b'{"a":', b"1", b"}"),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("space", [0, 200_000])
def test_i8_too_deep_is_refused_however_it_is_hidden(payload: bytes, space: int) -> None:
    assert agreed(payload + b" " * space) == REFUSED


@pytest.mark.parametrize(
    ("levels", "size", "looked"),
    [(3, 0, False), (3, 131_072, False), (3, 131_073, True), (256, 0, True), (257, 0, True)],
    ids=["written again", "just not large", "large", "deeper than is written", "too deep"],
)
def test_i8_orjson_writes_what_is_shallow_and_brackets_are_looked_at_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, levels: int, size: int, looked: bool
) -> None:
    asked, too_deep = list[bytes](), FAST._too_deep

    def note(payload: bytes) -> bool:
        asked.append(payload)
        return bool(too_deep(payload))

    monkeypatch.setattr(FAST, "_too_deep", note)
    payload = (b"[" + b"[]," * 600 + nested(levels - 1) + b"]").ljust(size)
    if levels > _json.MAX_DEPTH:
        with pytest.raises(FAST.BadJSON, match="nested deeper than 256 levels"):
            FAST.loads(payload)
    else:
        assert len(FAST.loads(payload)) == 601
    assert asked == [payload] * looked


def test_i8_an_orjson_that_writes_more_levels_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import orjson

    monkeypatch.setattr(orjson, "dumps", lambda value: b"")
    eager = load("")
    assert (eager.BACKEND, eager._write_shallow) == ("orjson", None)
    assert eager.loads(nested(256)) and FAST._write_shallow is not None
    with pytest.raises(eager.BadJSON, match="nested deeper"):
        eager.loads(nested(257) + b" " * 600)


@given(
    strings=st.lists(st.text('[]{}"\\a,', max_size=5), min_size=260, max_size=300),
    levels=st.sampled_from([3, 255, 256, 257]),
)
@settings(max_examples=50)
def test_i8_brackets_in_strings_are_no_depth(strings: list[str], levels: int) -> None:
    inner = json.dumps({"a": [[one] for one in strings]}, separators=(",", ":"))[1:-1]  # three levels
    payload = b"[" * (levels - 3) + b"{" + inner.encode() + b"}" + b"]" * (levels - 3)
    for module in (FAST, STANDARD):
        if levels > _json.MAX_DEPTH:
            with pytest.raises(module.BadJSON, match="nested deeper"):
                module.loads(payload)
        else:
            assert json.dumps(module.loads(payload)) == json.dumps(json.loads(payload))


# -- whatever comes ---------------------------------------------------------------------------------------

SOUP = st.lists(
    st.sampled_from(
        [
            *[b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b" ", b"\n", b"-", b"0", b"1", b"9" * 19],
            *[b".", b"e", b"E", b"+", b"400", b"true", b"null", b"NaN", b"a", b"u", b"\\u", b"\\ud83d"],
            *[b"\\ude00", b"d800", b'"a":', b'\\"', b"\\\\", b"\xff", b"\xc3\xbc", b"\xef\xbb\xbf", b"\x00"],
            *[
                b"18446744073709551615",
                b"18446744073709551616",
                b"-9223372036854775809",
                b"[" * 260,
                b"]" * 260,
            ],
        ]
    ),
    max_size=16,
).map(b"".join)

NUMBER = st.from_regex(r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
CHARACTER = st.sampled_from(
    [
        "a",
        "ü",
        "😀",
        "[",
        "{",
        "]",
        "/",
        "\\\\",
        '\\"',
        "\\n",
        "\\u0041",
        "\\ud83d\\ude00",
        "\\ud83d",
        "\\ude00",
    ]
)
STRING = st.lists(CHARACTER, max_size=6).map(lambda parts: '"' + "".join(parts) + '"')
SCALAR = NUMBER | STRING | st.sampled_from(["null", "true", "false", "NaN"])
SPACE = st.sampled_from(["", " ", "\n\t"])
DOCUMENT = st.recursive(
    SCALAR,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda parts: "[" + ", ".join(parts) + "]")
        | st.lists(st.tuples(STRING, inner), max_size=4).map(
            lambda parts: "{" + ",".join(f"{key} : {value}" for key, value in parts) + "}"
        )
    ),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(SOUP)
@example(b'{"a":"\\ud800","a":1}')
@example(b"[" * 256 + b"]" * 256)
def test_both_agree_on_soup(payload: bytes) -> None:
    agreed(payload)


@settings(max_examples=400, deadline=None)
@given(st.tuples(SPACE, DOCUMENT, SPACE).map("".join))
def test_both_agree_on_documents(document: str) -> None:
    agreed(document.encode())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_both_agree_on_bytes(payload: bytes) -> None:
    agreed(payload)


@settings(max_examples=200, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70))
def test_both_agree_on_numbers(number: float) -> None:
    value = agreed(repr(number).encode())
    assert (
        value == number if isinstance(number, float) or -(2**63) <= number < 2**64 else value == float(number)
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 300), st.integers(0, 5), st.text('[]{}"\\', max_size=12))
def test_i8_the_depth_of_what_is_taken_is_at_most_256(levels: int, extra: int, text: str) -> None:
    payload = nested(levels, b"[", json.dumps([text] * extra).encode())
    value = agreed(payload)
    assert (value == REFUSED) == (levels + 1 > 256)


# -- out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        ({"a": [1, 2.5, None, True], "b": "ü"}, '{"a":[1,2.5,null,true],"b":"ü"}'.encode()),
        ("\U0001f600\u2028\x7f", '"\U0001f600\u2028\x7f"'.encode()),
        ('"\\\n\x00', b'"\\"\\\\\\n\\u0000"'),
        ([], b"[]"),
    ],
)
def test_dumps_is_compact_utf8(value: Any, payload: bytes) -> None:
    assert _json.dumps(value) == payload
    assert _json.dump_text(value).encode() == payload
    assert agreed(payload) == value


def looped() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(200_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: object(), TypeError),
        (lambda: b"bytes", TypeError),
        (lambda: {1, 2}, TypeError),
        (lambda: {("a", 1): 1}, TypeError),
        (lambda: math.nan, ValueError),
        (lambda: [math.inf], ValueError),
        (lambda: {"a": -math.inf}, ValueError),
        (lambda: "\ud800", ValueError),
        (lambda: {"\ud800": 1}, ValueError),
        (looped, ValueError),
        (deep, RecursionError),
    ],
    ids=range(11),
)
def test_dumps_refuses_what_json_has_no_form_for(make: Callable[[], Any], error: type[Exception]) -> None:
    value = make()
    with pytest.raises(error):
        _json.dumps(value)
    while isinstance(value, list) and value and value[0] is not value:
        value = value[0]  # a structure this deep is taken apart by hand: its destructor would recurse


@settings(deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
        ),
        max_leaves=20,
    )
)
def test_what_dumps_writes_both_read(value: Any) -> None:
    assert same(agreed(_json.dumps(value)), value)


def test_bad_json_says_what_is_wrong_and_keeps_the_cause() -> None:
    for module in (FAST, STANDARD):
        with pytest.raises(module.BadJSON) as caught:
            module.loads(b'{"a": ')
        assert str(caught.value)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(module.BadJSON, match="256"):
            module.loads(nested(257))
