"""Names of events, which users type."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_sessions.errors import ConfigurationError
from llm_sessions.protocol import events
from llm_sessions.protocol.events import STATE_EVENTS, names_of, parse_event_name

# PROTOCOL 2.4 but for the three kinds of name of envelopes.
NAMES = [
    "online",
    "offline",
    "offline.transient",
    "offline.permanent",
    "offline.replaced",
    "disconnected",
    "connection_failed",
    "sequence-mismatch",
    "ping-pong-latency",
    "switchover-loss",
    "event:mercury_shutdown_imminent",
    "event:mercury_shutdown_switchover_complete",
    "event:mercury_shutdown_switchover_failed",
]
ENVELOPES = ["event", "event:relay", "event:relay.event", "event:a.b.c", "event:online", "event:ünï-code_1"]


def test_the_state_events_are_those_of_the_table() -> None:
    assert sorted(NAMES) == sorted(STATE_EVENTS)


@pytest.mark.parametrize("name", NAMES + ENVELOPES)
def test_a_plain_name_has_no_session(name: str) -> None:
    assert parse_event_name(name) == (name, None)


@pytest.mark.parametrize("name", NAMES + [name for name in ENVELOPES if name != "event"])
@pytest.mark.parametrize("session", ["captions", "llm-practice-session", "a b", "event", "42%"])
def test_i34_a_suffix_is_the_session(name: str, session: str) -> None:
    assert parse_event_name(f"{name}:{session}") == (name, session)


def test_what_follows_event_is_always_a_namespace() -> None:
    assert parse_event_name("event:captions") == ("event:captions", None)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        "Online",
        "onlin",
        "offline.other",
        "events",
        "relay.event",
        "online:",
        "online:a:b",
        "online\n",
        "event:",
        "event::x",
        "event:a:",
        "event:a:b:c",
        "event:.a",
        "event:a.",
        "event:a b",
        "event:a\n",
        "event:a:\n",
        "event:relay.event:",
        ":captions",
    ],
)
def test_a_name_that_no_event_has_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_event_name(name)
    assert caught.value.argument == "event"


@pytest.mark.parametrize("name", [None, 5, b"online", ["online"]])
def test_only_strings_are_names(name: object) -> None:
    with pytest.raises(ConfigurationError, match="must be a string"):
        parse_event_name(name)


def test_a_refusal_lists_what_is_allowed() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_event_name("offlin")
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize(
    ("event_type", "names"),
    [
        ("relay.event", ("event", "event:relay", "event:relay.event")),
        ("relay", ("event", "event:relay")),
        ("a.b.c", ("event", "event:a", "event:a.b.c")),
        ("a.", ("event", "event:a", "event:a.")),
        ("", ("event",)),
        (None, ("event",)),
        (5, ("event",)),
        (["relay.event"], ("event",)),
        ({"a": 1}, ("event",)),
    ],
)
def test_i35_the_names_of_an_envelope_in_order(event_type: object, names: tuple[str, ...]) -> None:
    assert names_of(event_type) == names


WORD = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters=":."), min_size=1)


@given(st.lists(WORD, min_size=1, max_size=3).map(".".join), WORD.filter(str.isprintable))
def test_every_name_of_an_ordinary_envelope_can_be_listened_to(event_type: str, session: str) -> None:
    for name in names_of(event_type):
        assert parse_event_name(name) == (name, None)
        if name != "event":
            assert parse_event_name(f"{name}:{session}") == (name, session)


def test_payloads_are_frozen_and_name_their_session() -> None:
    payloads = [getattr(events, name) for name in events.__all__ if isinstance(getattr(events, name), type)]
    assert len(payloads) == 10
    for payload in payloads:
        fields = [field.name for field in dataclasses.fields(payload)]
        assert fields[0] == "session_id"
        one = payload(*fields)
        assert one == payload(*fields)
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.session_id = "other"
