"""What listeners see of a message, and what its headers may do to it."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_sessions.protocol.envelope import Envelope, apply_header_overrides, sequence_number


def overridden(headers: Any, data: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return data after its header overrides, without the headers."""
    data = {**(data or {}), "headers": headers}
    apply_header_overrides(data)
    data.pop("headers", None)
    return data


@pytest.mark.parametrize(
    ("headers", "before", "after"),
    [
        ({"a.b": 1, "x": 2}, {}, {"a": {"b": 1}, "x": 2}),  # PROTOCOL's own example
        ({"a.b": 1}, {"a": {"c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"a": 1}, {"a": {"c": 2}}, {"a": 1}),
        ({"a.b.c": 1}, {"a": "text"}, {"a": {"b": {"c": 1}}}),
        ({"a.b": 1}, {"a": None}, {"a": {"b": 1}}),
        ({"a.b": {"c": [1]}}, {}, {"a": {"b": {"c": [1]}}}),
        ({"a": None}, {"a": 1}, {"a": None}),
        ({"eventType": "x.y"}, {"eventType": "a.b"}, {"eventType": "x.y"}),
        # In the order in which they stand.
        ({"a": {"b": 1}, "a.b": 2}, {}, {"a": {"b": 2}}),
        ({"a.b": 2, "a": {"b": 1}}, {}, {"a": {"b": 1}}),
        # Lists.
        ({"a.0": "x"}, {"a": [1, 2]}, {"a": ["x", 2]}),
        ({"a.1.b": "x"}, {"a": [1, {"c": 2}]}, {"a": [1, {"c": 2, "b": "x"}]}),
        ({"a.0.b": "x"}, {"a": [1]}, {"a": [{"b": "x"}]}),
        ({"a.01": "x"}, {"a": [1, 2]}, {"a": [1, "x"]}),
        ({"a.1": "x"}, {"a": [1]}, {"a": [1]}),
        ({"a.5.b": "x"}, {"a": [1]}, {"a": [1]}),
        ({"a.-1": "x"}, {"a": [1]}, {"a": [1]}),
        ({"a.length": 9}, {"a": [1]}, {"a": [1]}),
        (
            {"a.4294967296": 9, "a.9999999999999999": 9, "a.x.y": 9, f"a.{'0' * 5000}1": 9},
            {"a": [1]},
            {"a": [1]},
        ),
        ({"a.²": 9, "a.٠": 9}, {"a": [1]}, {"a": [1]}),
        ({"a.0": 9}, {}, {"a": {"0": 9}}),
        # Paths that are none.
        ({"": 1, ".": 1, "a.": 1, ".a": 1, "a..b": 1, "...": 1}, {"k": 0}, {"k": 0}),
        # Nothing special about these.
        (
            {"__proto__.x": 1, "constructor": 2, "a[0]": 3, "a b": 4},
            {},
            {"__proto__": {"x": 1}, "constructor": 2, "a[0]": 3, "a b": 4},
        ),
        ({}, {"a": 1}, {"a": 1}),
    ],
)
def test_i37_every_header_is_a_path_on_data(
    headers: dict[str, Any], before: dict[str, Any], after: dict[str, Any]
) -> None:
    assert overridden(headers, before) == after


@pytest.mark.parametrize("headers", [None, 0, "a.b", ["a.b"], [["a.b", 1]], True, 1.5])
def test_i37_headers_that_are_no_object_change_nothing(headers: object) -> None:
    data = {"headers": headers, "a": 1}
    apply_header_overrides(data)
    assert data == {"headers": headers, "a": 1}


def test_i37_data_without_headers_stays_as_it_is() -> None:
    data: dict[str, Any] = {"a": 1}
    apply_header_overrides(data)
    assert data == {"a": 1}


def test_i37_a_path_may_have_32_components_and_not_more() -> None:
    deep: Any = overridden({".".join(["a"] * 32): 1})
    for _ in range(32):
        deep = deep["a"]
    assert deep == 1
    assert overridden({".".join(["a"] * 33): 1}) == {}
    assert overridden({".".join(["a"] * 100_000): 1, "." * 100_000: 1}) == {}


def test_i37_headers_may_change_the_headers_while_they_are_applied() -> None:
    data: dict[str, Any] = {"headers": {"headers.new": 1, "headers": {"other.path": 2}, "x": 3}}
    apply_header_overrides(data)
    assert data == {"headers": {"other.path": 2}, "x": 3}


def test_i37_a_header_may_put_the_headers_away() -> None:
    data: dict[str, Any] = {"headers": {"headers": None, "y": 1}}
    apply_header_overrides(data)
    assert data == {"headers": None, "y": 1}


STEP = st.sampled_from(["a", "b", "headers", "0", "1", "", "x"])
TREE = st.recursive(
    st.none() | st.integers(0, 3) | st.text("ab", max_size=1),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(STEP, inner, max_size=2),
    max_leaves=6,
)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=0)


@given(
    st.dictionaries(st.lists(STEP, max_size=5).map(".".join), TREE, max_size=6),
    st.dictionaries(STEP, TREE, max_size=3),
)
def test_i37_no_headers_raise_make_a_loop_or_nest_beyond_their_paths(
    headers: dict[str, Any], data: dict[str, Any]
) -> None:
    data["headers"] = headers
    deepest = depth(data)
    apply_header_overrides(data)
    json.dumps(data)  # raises on a loop
    assert depth(data) <= deepest + 5


@given(
    st.dictionaries(
        st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(".".join), st.integers(), max_size=6
    )
)
def test_i37_against_a_plain_model(headers: dict[str, int]) -> None:
    model: dict[str, Any] = {}
    for path, value in headers.items():
        *above, last = path.split(".")
        at = model
        for step in above:
            if not isinstance(at.get(step), dict):
                at[step] = {}
            at = at[step]
        at[last] = value
    assert overridden(headers) == model


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, 0),
        (7, 7),
        (-1, -1),
        (2**64 - 1, 2**64 - 1),
        (7.0, 7),
        ("7", 7),
        ("007", 7),
        ("9" * 19, int("9" * 19)),
        ("9" * 20, None),
        ("9" * 100_000, None),
        (7.5, None),
        (float("inf"), None),
        (float("nan"), None),
        (True, None),
        (False, None),
        (None, None),
        ("", None),
        ("x", None),
        ("-7", None),
        (" 7", None),
        ("7.0", None),
        ("²", None),
        ("٧", None),
        ([7], None),
        ({}, None),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_sequence_number_is_a_whole_number(value: object, number: int | None) -> None:
    found = sequence_number(value)
    assert found == number
    assert type(found) is type(number)


# -- Envelope -----------------------------------------------------------------------------------------------

RAW: dict[str, Any] = {
    "id": "1",
    "type": "t",
    "data": {"eventType": "a.b"},
    "headers": {"route": "r"},
    "trackingId": "track",
    "sequenceNumber": "9",
    "extra": 5,
}


def test_an_envelope_reads_its_message() -> None:
    envelope = Envelope("main", RAW)
    assert envelope.session_id == "main"
    assert envelope.raw is RAW
    assert (envelope.id, envelope.type, envelope.tracking_id) == ("1", "t", "track")
    assert envelope.data == {"eventType": "a.b"}
    assert envelope.event_type == "a.b"
    assert envelope.headers == {"route": "r"}
    assert envelope.sequence_number == 9
    assert envelope["extra"] == 5
    assert "extra" in envelope and "missing" not in envelope
    assert (envelope.get("extra"), envelope.get("missing"), envelope.get("missing", 1)) == (5, None, 1)
    with pytest.raises(KeyError):
        envelope["missing"]


@pytest.mark.parametrize(
    "raw", [{}, {"data": None, "headers": None}, {"data": [], "headers": 5}, {"data": {"eventType": 5}}]
)
def test_i35_an_envelope_of_nothing_raises_nothing(raw: dict[str, Any]) -> None:
    envelope = Envelope("main", raw)
    assert envelope.event_type is None
    assert envelope.headers == {}
    assert (envelope.id, envelope.type, envelope.tracking_id, envelope.sequence_number) == (None,) * 4
    assert isinstance(envelope.data, dict)


def test_envelopes_are_equal_by_content_and_session() -> None:
    assert Envelope("main", RAW) == Envelope("main", dict(RAW))
    assert Envelope("main", RAW) != Envelope("other", RAW)
    assert Envelope("main", RAW) != Envelope("main", {})
    assert Envelope("main", RAW) != RAW
    with pytest.raises(TypeError):
        hash(Envelope("main", RAW))


def test_envelopes_copy_and_pickle() -> None:
    envelope = Envelope("main", RAW)
    assert copy.copy(envelope) == envelope
    assert copy.deepcopy(envelope).raw is not RAW
    assert pickle.loads(pickle.dumps(envelope)) == envelope


def test_t11_an_envelopes_repr_holds_no_payload() -> None:
    envelope = Envelope("main", {**RAW, "data": {"eventType": "a.b", "token": "hunter2"}})
    assert repr(envelope) == "<Envelope session='main' event_type='a.b' id='1'>"
