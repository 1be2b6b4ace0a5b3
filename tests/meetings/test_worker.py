"""The worker alone: what it does about sessions that others have their hands on, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest

from llm_sessions import AlreadyConnected, ConfigurationError, SessionState
from llm_sessions._sync import ThreadGroup
from llm_sessions.meetings.worker import SESSIONS, WARN_AFTER, Worker
from llm_sessions.protocol.mercury import EndCause
from llm_sessions.testing.server import make_token
from tests.datachannel.world import CHANNEL, LOCUS, OTHER, PRACTICE
from tests.meetings.world import (
    DEFAULT,
    PRACTICE_SESSION,
    MeetingWorld,
    gate_at,
    held,
    locus,
    panelist,
    world,
)
from tests.support import Background, Gate, eventually, library_threads

__all__ = ["world"]  # a fixture


def test_it_has_two_sessions_and_three_minutes() -> None:
    assert SESSIONS == ("llm-default-session", "llm-practice-session") and WARN_AFTER == 180


def test_a_channel_that_is_there_already_is_kept(world: MeetingWorld) -> None:
    world.one.register_and_connect(LOCUS, CHANNEL)
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    world.rest()
    assert len(world.posts) == 1


def test_a_channel_of_another_address_is_replaced(world: MeetingWorld) -> None:
    world.one.register_and_connect(LOCUS, OTHER)
    world.meeting.join({"locus": locus()})
    eventually(lambda: world.one.datachannel_url() == CHANNEL)
    world.meeting.wait_online()


def test_a_session_that_is_not_the_clients_is_a_failure_and_left_alone(world: MeetingWorld) -> None:
    world.pool.connect("wss://socket.example/mine", DEFAULT)
    world.meeting.join({"locus": locus()})
    (failed,) = world.heard.wait("failed")
    assert isinstance(failed.error, AlreadyConnected) and world.posts == []
    with pytest.raises(AlreadyConnected):
        world.meeting.wait_online()
    world.meeting.leave()
    assert world.state() is SessionState.ONLINE


def test_an_address_that_cannot_be_used_is_a_failure(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus(channel="http://llm.example/1")})
    (failed,) = world.heard.wait("failed")
    assert isinstance(failed.error, ConfigurationError)


def test_one_thread_a_join_that_ends_with_it(world: MeetingWorld) -> None:
    for _ in range(3):
        world.meeting.join({"locus": locus()})
        names = [one.name for one in library_threads()]
        assert names.count(f"llm-meeting[{world.meeting.name}]") == 1
        world.meeting.leave()
        eventually(lambda: not any("llm-meeting[" in one.name for one in library_threads()))


# -- ended for good ------------------------------------------------------------------------------------------


def test_i80_news_that_came_during_an_attempt_are_reason_enough_to_try_again(world: MeetingWorld) -> None:
    gate = Gate()
    world.answers = [held(gate, (400, {"message": "no"}))]
    world.meeting.join({"locus": locus()})
    gate.wait_arrived()
    world.meeting.admit()
    world.rest()
    gate.open()
    world.meeting.wait_online()
    assert len(world.posts) == 2


def test_i80_news_that_came_while_a_channel_was_online_are_no_reason_to_bring_it_back(
    world: MeetingWorld,
) -> None:
    world.join()
    world.meeting.admit()
    world.rest()
    world.link().end(4000, "replaced", EndCause.PEER)
    world.heard.wait("failed")
    world.rest()
    assert len(world.posts) == 1


def test_i80_a_failure_of_what_is_not_wanted_any_more_is_not_told(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    world.join()
    world.answers = [held(gate, (400, {"message": "no"}))]
    world.meeting.update_locus(locus(roles=["PANELIST"], practice=True))
    gate.wait_arrived()
    world.rest()
    looks = gate_at(monkeypatch, Worker, "_look")
    world.meeting.connect()
    looks.wait_arrived()
    gate.open()
    world.settle(PRACTICE_SESSION, SessionState.OFFLINE)
    world.meeting.update_roles(["ATTENDEE"])
    looks.open()
    world.rest()
    world.calm()
    assert (
        world.posted(PRACTICE) and world.heard.payloads("failed") == [] and world.meeting.last_error is None
    )


# -- threads that cannot start -------------------------------------------------------------------------------


def test_t0_a_join_whose_thread_cannot_start_leaves_nothing_behind(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = ThreadGroup.spawn

    def fail(group: ThreadGroup, target: Any, name: str, **options: Any) -> Any:
        if name.startswith("llm-meeting["):
            raise RuntimeError("can't start new thread")
        return spawn(group, target, name, **options)

    world.join()
    world.meeting.leave()
    with monkeypatch.context() as patch:
        patch.setattr(ThreadGroup, "spawn", fail)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="new thread"):
                world.meeting.join(panelist(tokens={"datachannelToken": make_token()}))
            assert not world.meeting.joined and world.one.get_token() is None
            assert not world.one._tokens.has_handler(DEFAULT)
            assert not world.one._sessions.listeners(DEFAULT).named("event:relay.event")
    world.meeting.join(panelist())
    world.meeting.wait_online(PRACTICE_SESSION)


def test_t0_a_leave_while_the_thread_cannot_start_leaves_nothing_behind(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, spawn = Gate(), ThreadGroup.spawn

    def fail(group: ThreadGroup, target: Any, name: str, **options: Any) -> Any:
        if name.startswith("llm-meeting["):
            gate.pass_through()
            raise RuntimeError("can't start new thread")
        return spawn(group, target, name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ThreadGroup, "spawn", fail)
        joining = Background(lambda: world.meeting.join({"locus": locus()}))
        gate.wait_arrived()
        world.meeting.leave(timeout=0)
        gate.open()
        assert isinstance(joining.error(), RuntimeError)
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
