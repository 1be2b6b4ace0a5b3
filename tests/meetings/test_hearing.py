"""What a join hears: every event once, judged by the session that it came on."""

from __future__ import annotations

from typing import Any

import pytest

from llm_sessions import SessionState
from llm_sessions.meetings.caption_events import Reaction, RelayEvent
from llm_sessions.meetings.hearing import MAX_BINDINGS, MAX_REMEMBERED, Hearing
from llm_sessions.protocol.mercury import EndCause, ShutdownAnnounced
from tests.datachannel.world import CHANNEL, LOCUS
from tests.meetings.world import (
    DEFAULT,
    PRACTICE_SESSION,
    LogHandler,
    MeetingWorld,
    give,
    locus,
    logged_to,
    panelist,
    stay,
    world,
)
from tests.support import LONG, Background, FakeLink, Gate, Recorder, called, eventually

__all__ = ["world"]  # a fixture

SWITCHED = "event:mercury_shutdown_switchover_complete"


def message(number: int | str, event_type: str = "relay.event", route: str | None = None, **data: Any) -> Any:
    recipients = {"recipients": {"route": route}} if route is not None else {}
    return {"id": f"m{number}", "data": {"eventType": event_type, "relayType": "x", **data}, **recipients}


def both(world: MeetingWorld) -> tuple[FakeLink, FakeLink]:
    world.meeting.join(panelist())
    world.meeting.wait_online(DEFAULT)
    world.meeting.wait_online(PRACTICE_SESSION)
    return world.links(DEFAULT)[0], world.links(PRACTICE_SESSION)[0]


def test_i82_both_channels_are_heard_once_each(world: MeetingWorld) -> None:
    main, practice = both(world)
    state = message(1, "locus.state_message")
    give(main, state)
    world.heard.wait("locus.state_message")
    give(practice, state, message(2, "locus.state_message"))
    found = world.heard.wait("locus.state_message", 2)
    assert [(one.session_id, one.id) for one in found] == [(DEFAULT, "m1"), (PRACTICE_SESSION, "m2")]


def test_what_has_no_id_is_never_taken_for_a_repeat(world: MeetingWorld) -> None:
    main, practice = both(world)
    for link in (main, practice):
        give(link, {"data": {"eventType": "locus.state_message"}})
    world.heard.wait("locus.state_message", 2)


def test_i83_a_relay_event_is_judged_by_the_binding_of_its_own_session(world: MeetingWorld) -> None:
    main, practice = both(world)
    ours, theirs = world.one.binding(DEFAULT), world.one.binding(PRACTICE_SESSION)
    reaction = {"relayType": "react", "reaction": {"type": "celebrate"}}
    give(main, message(1, route=theirs, **reaction), message(2, route=ours, **reaction))
    give(practice, message(3, route=ours))
    give(practice, message(4, route=theirs), message(5))
    found = world.heard.wait("relay", 3)
    assert sorted(type(one).__name__ for one in found) == ["Reaction", "RelayEvent", "RelayEvent"]
    assert {(type(one), one.session_id) for one in found} == {
        (Reaction, DEFAULT),
        (RelayEvent, PRACTICE_SESSION),
    }


def test_i81_after_reconnects_an_event_is_delivered_once(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    for number in range(1, 6):
        link = world.transport.wait_links(number)[-1]
        world.heard.wait("online", number)
        link.end()
    link = world.transport.wait_links(6)[-1]
    world.heard.wait("online", 6)
    give(link, message(1), message(2))
    world.heard.wait("relay", 2)
    assert len(world.heard.payloads("relay")) == 2


def test_i81_an_online_that_is_delivered_before_it_is_looked_at_is_not_lost(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered, gate = called(monkeypatch, Hearing, "_online"), Gate()
    world.join()
    delivered.clear()
    world.transport.on_open = stay
    world.link().end()
    (_, second) = world.transport.wait_links(2)
    with logged_to(LogHandler(gate.pass_through, "background", "-> online")):
        opening = Background(second.become_ready)
        gate.wait_arrived()  # its observers have not been told
        assert delivered.wait(LONG)
        gate.open()
        opening.result()
    world.heard.wait("online", 2)
    world.calm()


def test_what_is_addressed_to_the_binding_before_a_reconnect_is_still_heard(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    world.heard.wait("online")
    before = world.one.binding()
    world.links(DEFAULT)[0].end()
    world.heard.wait("online", 2)
    assert world.one.binding() != before
    give(world.links(DEFAULT)[1], message(1, route=before))
    world.heard.wait("relay")


def test_i83_what_is_addressed_to_a_binding_between_two_switchovers_is_still_heard(
    world: MeetingWorld,
) -> None:
    switched = Recorder()
    world.join()
    world.one.on(SWITCHED, switched.named("switched"))
    bindings = [world.one.binding()]
    for number in (1, 2):
        give(world.links(DEFAULT)[-1], ShutdownAnnounced({"type": "shutdown"}))
        switched.wait("switched", number)
        bindings.append(world.one.binding())
        world.links(DEFAULT)[number - 1].end(4001, "replaced by a switchover", EndCause.PEER)
    give(world.links(DEFAULT)[2], message(1, route=bindings[1]), message(2, route="nobody"))
    world.calm()
    relayed = [one for one in world.heard.payloads("relay") if one.relay_type == "x"]
    assert [one.route for one in relayed] == [bindings[1]] and len(set(bindings)) == 3


def test_a_channel_that_is_switching_over_at_the_join_is_heard(world: MeetingWorld) -> None:
    world.one.register_and_connect(LOCUS, CHANNEL)
    world.transport.on_open = stay
    give(world.link(), ShutdownAnnounced({"type": "shutdown"}))
    (_, second) = world.transport.wait_links(2)
    world.settle(DEFAULT, SessionState.SWITCHING)
    world.meeting.join({"locus": locus()})
    give(world.links(DEFAULT)[0], message(1))
    (heard,) = world.heard.wait("relay")
    assert heard.relay_type == "x"
    second.become_ready()


def test_malformed_events_are_logged_without_their_content_and_harm_nothing(
    world: MeetingWorld, caplog: Any
) -> None:
    main, _ = both(world)
    give(main, message(1, relayType="react", reaction="s3cret"), message(2))
    world.heard.wait("relay")
    (text,) = [one.getMessage() for one in caplog.records if "cannot be read" in one.getMessage()]
    assert "s3cret" not in text


def test_only_the_newest_ids_are_remembered(world: MeetingWorld) -> None:
    main, practice = both(world)
    many = [message(number, "locus.state_message") for number in range(MAX_REMEMBERED + 1)]
    give(main, *many)
    world.heard.wait("locus.state_message", len(many))
    give(practice, many[1], many[0])
    found = world.heard.wait("locus.state_message", len(many) + 1)
    assert found[-1].id == "m0" and len(found) == len(many) + 1
    join = world.meeting._join
    assert join is not None
    eventually(lambda: len(join.hearing._heard) == MAX_REMEMBERED)


def test_only_the_newest_bindings_are_remembered(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    bindings = []
    for number in range(1, MAX_BINDINGS + 2):
        world.heard.wait("online", number)
        bindings.append(world.one.binding())
        if number <= MAX_BINDINGS:
            world.link(number=number).end()
    assert len(set(bindings)) == MAX_BINDINGS + 1
    link = world.link(number=MAX_BINDINGS + 1)
    give(link, message(1, route=bindings[0]), message(2, route=bindings[1]), message(3, route=bindings[-1]))
    assert len(world.heard.wait("relay", 2)) == 2
    world.calm()
    assert [one.route for one in world.heard.payloads("relay")[:2]] == [bindings[1], bindings[-1]]
