"""Events are values: equal by what they say, hashable, and nobody can change one that others get too."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from llm_sessions.meetings.caption_events import CaptionEvent, Transcript

ONE = Transcript("s", {"text": "Hello", "translations": {"fr": "Salut"}}, "Hello", (1,), True)


def test_events_are_equal_by_what_they_say() -> None:
    same = dataclasses.replace(ONE, raw={})
    assert same == ONE and hash(same) == hash(ONE)
    assert dataclasses.replace(ONE, text="other") != ONE != dataclasses.replace(ONE, session_id="other")


def test_the_repr_leaves_out_what_was_received() -> None:
    assert "Hello" in repr(ONE) and "Salut" not in repr(ONE)


@pytest.mark.parametrize("kind", get_args(CaptionEvent))
def test_each_event_is_frozen_documented_and_tells_its_session(kind: type) -> None:
    assert dataclasses.is_dataclass(kind) and kind.__dict__["__dataclass_params__"].frozen
    fields = [field.name for field in dataclasses.fields(kind)]
    assert fields[:2] == ["session_id", "raw"]
    text = kind.__doc__ or ""
    assert all(f"    {name}: " in text for name in fields[2:])
