"""The worker alone: what it does about sessions that others have their hands on, and how it ends."""

from __future__ import annotations

import pytest

from llm_sessions import AlreadyConnected, ConfigurationError, SessionState
from llm_sessions.meetings.worker import SESSIONS, WARN_AFTER
from tests.datachannel.world import CHANNEL, LOCUS, OTHER
from tests.meetings.world import DEFAULT, MeetingWorld, locus, world
from tests.support import eventually, library_threads

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
