"""Which events are shown."""

from __future__ import annotations

import pytest

from llm_sessions import ConfigurationError
from llm_sessions.cli.filters import SILENT, Filter
from llm_sessions.cli.statuses import UsageError
from llm_sessions.protocol.events import STATE_EVENTS


def test_without_names_it_is_all_that_tells_somebody_something() -> None:
    every = Filter([], ["main"])
    assert set(every.state_events) == STATE_EVENTS - SILENT
    assert every.wants_state("main", "online") and not every.wants_state("main", "ping-pong-latency")
    assert every.wants_message("main", "relay.event") and every.wants_message("main", None)
    assert not every.wants_message("main", "mercury.buffer_state")


@pytest.mark.parametrize(
    ("name", "event_type", "wanted"),
    [
        ("event", "relay.event", True),
        ("event", None, True),
        ("event", "mercury.buffer_state", True),
        ("event:relay", "relay.event", True),
        ("event:relay.event", "relay.event", True),
        ("event:relay.event", "relay.other", False),
        ("event:relay.event", None, False),
        ("online", "online", False),
        ("event:relay.event:main", "relay.event", True),
        ("event:relay.event:practice", "relay.event", False),
    ],
)
def test_messages_by_name(name: str, event_type: str | None, wanted: bool) -> None:
    assert Filter([name], ["main", "practice"]).wants_message("main", event_type) is wanted


def test_state_events_by_name() -> None:
    some = Filter(["online", "offline.transient:practice", "ping-pong-latency"], ["main", "practice"])
    assert some.state_events == ["offline.transient", "online", "ping-pong-latency"]
    assert some.wants_state("main", "online") and some.wants_state("practice", "online")
    assert some.wants_state("practice", "offline.transient")
    assert not some.wants_state("main", "offline.transient")
    assert not some.wants_message("main", "relay.event")


def test_a_name_that_no_event_has_and_a_session_that_there_is_not() -> None:
    with pytest.raises(ConfigurationError, match="'onlin' does not exist"):
        Filter(["onlin"], ["main"])
    with pytest.raises(UsageError, match="names the session 'mian'; there are 'main', 'practice'"):
        Filter(["online:mian"], ["main", "practice"])
