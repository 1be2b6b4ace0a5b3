"""What a session may be called."""

from __future__ import annotations

import pytest

from llm_sessions import session_ids
from llm_sessions.errors import ConfigurationError
from llm_sessions.protocol.events import parse_event_name
from llm_sessions.session_ids import check_session_id


def test_the_well_known_ids_are_those_of_the_reference() -> None:
    assert session_ids.DEFAULT_SESSION_ID == "mercury-default-session"
    assert session_ids.LLM_DEFAULT_SESSION == "llm-default-session"
    assert session_ids.LLM_PRACTICE_SESSION == "llm-practice-session"


GOOD = ["a", "llm-default-session", "a b", "ünï", "42%", "a.b/c", "event", "[x]", "x" * 1000]


@pytest.mark.parametrize("value", GOOD)
def test_good_ids_are_returned_and_can_be_a_suffix(value: str) -> None:
    assert check_session_id(value) is value
    assert parse_event_name(f"online:{value}") == ("online", value)


@pytest.mark.parametrize(
    "value", ["", ":", "a:b", "a:", "a\n", "\t", "a\x00b", "\x7f", "\u2028", "\ud800", "a\u200bb"]
)
def test_ids_that_break_names_or_logs_are_refused(value: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_session_id(value, "name")
    assert caught.value.argument == "name"
    assert value not in str(caught.value) or value in ("", ":", "a:b", "a:")


@pytest.mark.parametrize("value", [None, 5, b"a", ["a"], True])
def test_only_strings_are_ids(value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_session_id(value)
    assert caught.value.argument == "session_id"
    assert type(value).__name__ in str(caught.value)
