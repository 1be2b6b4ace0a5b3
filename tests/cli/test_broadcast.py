"""Playing the script on a real server, with a clock of the test's own."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from llm_sessions import ConnectionPool, Session
from llm_sessions.cli.broadcast import Broadcast
from llm_sessions.cli.script import conversation, meeting
from llm_sessions.testing.server import LocalServer
from tests.support import Recorder, eventually


@pytest.fixture
def tls() -> bool:
    return False


def words(recorder: Recorder) -> list[str]:
    found = []
    for envelope in recorder.payloads("event:relay.event"):
        data: Any = envelope.data
        if data["relayType"] == "react":
            found.append(data["reaction"]["type"])
        else:
            found.append(data["voiceaPayload"]["transcripts"][0]["text"])
    return found


def listen(pool: ConnectionPool, server: LocalServer, key: str) -> tuple[Session, Recorder]:
    recorder = Recorder().listen(pool, "event:relay.event", "event:conversation.activity", session_id=key)
    return pool.connect(server.url(key), key), recorder


def test_every_session_hears_its_script_from_its_beginning(server: LocalServer, pool: ConnectionPool) -> None:
    play = Broadcast(server, ["main", "practice"], rate=8, seed=7, count=5)
    assert play.step(0.0) == pytest.approx(0.1)  # nobody is there: it looks again soon
    _, main = listen(pool, server, "main")
    for number in range(10):
        play.step(1 + number / 8)
    assert play.published == {"main": 5, "practice": 0} and not play.done
    _, practice = listen(pool, server, "practice")
    for number in range(5):
        play.step(3 + number / 8)
    assert play.done
    for key, recorder in (("main", main), ("practice", practice)):
        recorder.wait("event:relay.event", 5)
        assert words(recorder) == [one.text for one in islice(meeting(key, 7), 5)]


def test_the_pace(server: LocalServer, pool: ConnectionPool) -> None:
    play = Broadcast(server, ["main"], rate=2, seed=1)
    listen(pool, server, "main")
    assert [play.step(at) for at in (0.0, 0.1, 0.45)] == [
        pytest.approx(0.1),
        pytest.approx(0.1),
        pytest.approx(0.05),
    ]
    assert play.published["main"] == 1
    play.step(0.5)
    assert play.published["main"] == 2
    # After a minute that the process slept, a second is made up for, and not the whole minute.
    for _ in range(10):
        play.step(60.5)
    assert play.published["main"] == 5
    assert not play.done


def test_devices_hear_a_conversation(server: LocalServer, pool: ConnectionPool) -> None:
    play = Broadcast(server, ["main"], rate=1, seed=3)
    _, heard = listen(pool, server, "0f9c-a-device")
    for at in (0.0, 0.5, 1.0):
        play.step(at)
    activities = [one.data["activity"] for one in heard.wait("event:conversation.activity", 2)]
    assert [one["object"]["displayName"] for one in activities] == list(islice(conversation(3), 2))
    assert play.posted == 2


def test_a_session_may_be_called_devices(server: LocalServer, pool: ConnectionPool) -> None:
    play = Broadcast(server, ["devices"], rate=1, seed=3, count=2)
    listen(pool, server, "devices")
    listen(pool, server, "0f9c-a-device")
    for at in (0.0, 1.0, 2.0):
        play.step(at)
    assert (play.published, play.posted, play.done) == ({"devices": 2}, 3, True)


def test_faults_are_survived_and_nothing_comes_twice(server: LocalServer, pool: ConnectionPool) -> None:
    play = Broadcast(server, ["main"], rate=1, seed=5, faults=True)
    session, recorder = listen(pool, server, "main")
    at = 0.0
    while not (play.dropped and play.replaced):
        at += 1
        server.wait_live("main")
        play.step(at)
        assert at < 500, "the faults of this seed are one-sided"
    # A switchover comes to its end in steps, when its client has a second socket.
    eventually(lambda: play.step(at) and len(server.live("main")) == 1)
    eventually(lambda: session.online and session.stats().reconnects and session.stats().switchovers)
    said = [one.text for one in islice(meeting("main", 5), play.published["main"])]
    heard = words(recorder)
    assert heard and all(one in said for one in heard)
    ids = [one.id for one in recorder.payloads("event:relay.event")]
    assert len(set(ids)) == len(ids)


def test_who_does_not_switch_over_is_shown_out(
    server: LocalServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Broadcast(server, ["main"], rate=1, seed=5, faults=True)
    session, _ = listen(pool, server, "main")
    server.hold_upgrades("main")  # a second socket never comes
    monkeypatch.setattr(play._chance, "random", lambda: 0.9)
    play._make_trouble("main", 0.0)
    assert (play.replaced, play.dropped) == (1, 0)
    play.step(9.9)
    assert len(server.live("main")) == 1
    play.step(10.0)
    assert server.live("main") == []
    server.wait_for(lambda: server.connections("main")[0].closed_at is not None)
    session.disconnect()
    server.release_upgrades("main")


def test_one_fault_at_a_time(
    server: LocalServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Broadcast(server, ["main"], rate=100, seed=5, faults=True)
    session, _ = listen(pool, server, "main")
    server.hold_upgrades("main")
    chances = iter([0.9, 0.1])
    monkeypatch.setattr(play._chance, "random", lambda: next(chances))
    at = 0.0
    while not play.replaced:
        at += 0.01
        play.step(at)
    for _ in range(100):  # a drop is due many times over
        at += 0.01
        play.step(at)
    assert play.dropped == 0
    server.release_upgrades("main")
    server.wait_live("main", 2)
    while not play.dropped:
        at += 0.01
        play.step(at)
        assert at < 9, "the switchover did not end"
    eventually(lambda: session.online and session.stats().reconnects == 1)


def test_who_leaves_of_itself_is_forgotten(
    server: LocalServer, pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Broadcast(server, ["main"], rate=1, seed=5, faults=True)
    session, _ = listen(pool, server, "main")
    monkeypatch.setattr(play._chance, "random", lambda: 0.9)
    play._make_trouble("main", 0.0)
    session.disconnect()
    server.wait_for(lambda: server.live("main") == [])
    assert play.step(10.0) == pytest.approx(0.1)
    assert not play._leaving
