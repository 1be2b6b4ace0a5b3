"""Two things at once: a step of the worker, a leave, another join, and what others do to the same sessions.

The worker may be slow anywhere, and a registration too. In these tests one of them stands still at a place
where it must not be trusted with what it has seen before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import (
    ConnectCancelled,
    DataChannelClient,
    LocalProtocolError,
    SessionState,
    WaitTimeout,
)
from llm_sessions.datachannel.tokens import TokenStore
from llm_sessions.meetings.captioning import Captioning
from llm_sessions.meetings.captions import Captions
from llm_sessions.meetings.meeting import Meeting
from llm_sessions.meetings.worker import Worker
from llm_sessions.pool.owned import OwnedSessions
from llm_sessions.protocol.mercury import EndCause
from llm_sessions.testing.server import make_token
from tests.datachannel.world import CHANNEL, LOCUS, OTHER
from tests.meetings.world import (
    DEFAULT,
    DONE,
    NEXT_LOCUS,
    PRACTICE_SESSION,
    LogHandler,
    MeetingWorld,
    gate_at,
    give,
    locus,
    logged_to,
    next_meeting,
    panelist,
    relay,
    stay,
    transcript,
    world,
)
from tests.support import LONG, SHORT, Background, FakeLink, Gate, Recorder, eventually

__all__ = ["world"]  # a fixture

S = SessionState
ELSEWHERE = "wss://socket.example/mine"


def end(link: FakeLink) -> None:
    """An `on_close` that is answered at once."""
    link.end(1000, "Done", EndCause.LOCAL)


def state_message(number: str) -> dict[str, Any]:
    return {"id": number, "data": {"eventType": "locus.state_message"}}


def waits(world: MeetingWorld, count: int) -> bool:
    """Whether so many threads wait for the worker of the join, its own included."""
    join = world.meeting._join
    return join is not None and len(join.worker._changed._waiters) >= count  # type: ignore[attr-defined]


def given_up(world: MeetingWorld) -> bool:
    """Whether the first attempt to register has come to its end without a request."""
    return bool(world.posts) or world.state() is not S.CONNECTING or world.one.session().stats().attempts > 1


def over(world: MeetingWorld) -> bool:
    return not any(one.name.startswith("llm-meeting[") for one in threading.enumerate())


# -- tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name"), [(Worker, "_connect"), (DataChannelClient, "begin_register_and_connect")]
)
def test_i61_a_late_step_of_the_join_before_takes_no_token_away(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    gate, token = gate_at(monkeypatch, owner, name), make_token()
    world.meeting.join({"locus": locus(tokens={"datachannelToken": make_token()})})
    gate.wait_arrived()
    world.meeting.leave(timeout=0)
    world.meeting.join(next_meeting(tokens={"datachannelToken": token}))
    gate.open()
    world.meeting.wait_online()
    assert world.posts == [(OTHER, token)] and world.fetched == [] and world.one.get_token() == token


def test_i61_a_late_step_for_other_urls_takes_no_token_away(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, token = gate_at(monkeypatch, Worker, "_connect"), make_token()
    world.meeting.join({"locus": locus()})
    gate.wait_arrived()
    world.meeting.update_locus(locus(channel=OTHER, tokens={"datachannelToken": token}))
    gate.open()
    world.meeting.wait_online()
    assert world.posts[-1] == (OTHER, token) and world.fetched == []


def registering_when_left(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, before_token: Callable[[], Gate]
) -> tuple[Gate, Gate]:
    """A meeting was left while its registration stood still, and its worker has not ended that yet."""
    registering = before_token()
    ending = gate_at(monkeypatch, OwnedSessions, "begin_disconnect")
    world.meeting.join({"locus": locus(tokens={"datachannelToken": make_token()})})
    registering.wait_arrived()
    world.meeting.leave(timeout=0)
    ending.wait_arrived()
    return registering, ending


@pytest.mark.parametrize("where", ["read", "get"])
def test_i61_the_next_meetings_token_is_not_sent_to_the_left_ones_address(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    toggled = Gate()

    def place() -> Gate:
        if where == "read":
            return gate_at(monkeypatch, TokenStore, "read")
        monkeypatch.setattr(
            world.one._registrar, "wants_tokens", lambda: toggled.pass_through() is None, raising=True
        )
        return toggled

    registering, ending = registering_when_left(world, monkeypatch, place)
    token = make_token()
    world.meeting.join(next_meeting(tokens={"datachannelToken": token}))
    registering.open()
    eventually(lambda: given_up(world))
    ending.open()
    world.meeting.wait_online()
    assert world.posts == [(OTHER, token)]


@pytest.mark.parametrize("then", ["leave", "join"])
def test_i67_a_registration_of_a_meeting_that_was_left_stores_no_token(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    toggled, handed = Gate(), []

    def toggle() -> bool:
        toggled.pass_through()
        return True

    def handler() -> str:
        handed.append(make_token())
        return handed[-1]

    monkeypatch.setattr(world.one._registrar, "wants_tokens", toggle)
    world.one.set_refresh_handler(handler)
    registering, ending = registering_when_left(world, monkeypatch, lambda: toggled)
    registering.open()
    eventually(lambda: given_up(world))
    ending.open()
    eventually(lambda: over(world))
    assert world.posts == [] and handed == [] and world.one.get_token() is None
    if then == "join":
        world.meeting.join(next_meeting())
        world.meeting.wait_online()
        assert [token for _, token in world.posts] == handed and len(handed) == 1


def test_i67_a_token_of_the_programs_own_handler_that_comes_after_the_leave_is_not_kept(
    world: MeetingWorld,
) -> None:
    gate = Gate()

    def handler() -> str:
        gate.pass_through()
        return make_token()

    world.one.set_refresh_handler(handler)
    world.meeting.join({"locus": locus()})
    gate.wait_arrived()
    world.meeting.leave()
    gate.open()
    eventually(lambda: world.pool.stats().abandoned_attempts == 0)
    assert world.posts == [] and world.one.get_token() is None


def test_a_token_that_an_update_brought_outlives_a_registration_that_was_refused(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pool.connect(ELSEWHERE, DEFAULT)
    world.meeting.join({"locus": locus(tokens={"datachannelToken": make_token()})})
    world.heard.wait("failed")
    gate, token = gate_at(monkeypatch, TokenStore, "put_back"), make_token()
    refused = Background(lambda: world.one.register_and_connect(LOCUS, CHANNEL))
    gate.wait_arrived()
    world.meeting.update_locus(locus(tokens={"datachannelToken": token}))
    gate.open()
    refused.error()
    assert world.one.get_token() == token


# -- the worker's log ----------------------------------------------------------------------------------------


def test_d_a_log_handler_that_raises_ends_neither_the_worker_nor_a_leave(world: MeetingWorld) -> None:
    raised: list[str] = []

    def full() -> None:
        raised.append(threading.current_thread().name)
        raise OSError("disk full")

    with logged_to(LogHandler(full, "llm-meeting[")):
        world.join(both=True)
        world.meeting.update_roles(["ATTENDEE"])
        world.settle(PRACTICE_SESSION, S.IDLE)
        world.meeting.update_roles(["PANELIST"])
        world.meeting.wait_online(PRACTICE_SESSION)
        world.meeting.leave(timeout=LONG)
        assert [world.state(one) for one in (DEFAULT, PRACTICE_SESSION)] == [S.IDLE, S.IDLE]
        assert world.one.get_token() is None
        eventually(lambda: over(world))
        world.meeting.join(panelist())
        world.meeting.wait_online(PRACTICE_SESSION)
    assert raised


@pytest.mark.parametrize("text", ["-> connecting", "-> disconnecting"])
def test_t2_leave_in_a_log_handler_on_the_worker_does_not_wait_for_it(world: MeetingWorld, text: str) -> None:
    left: list[object] = []

    def leave() -> None:
        if not left:
            left.append(None)
            world.meeting.leave(timeout=3 * LONG)
            left.append(world.meeting.joined)

    with logged_to(LogHandler(leave, "llm-meeting[", text)):
        world.meeting.join(panelist())
        if text == "-> disconnecting":
            world.meeting.wait_online()
            world.meeting.unadmit()
        eventually(lambda: len(left) == 2)
    eventually(lambda: over(world))
    assert left == [None, False] and world.state() is S.IDLE


def refused_to_wait(world: MeetingWorld, refused: list[Exception]) -> None:
    """Wait for the main channel; note down the refusal."""
    try:
        world.meeting.wait_online(timeout=3 * LONG)
    except LocalProtocolError as exc:
        refused.append(exc)


def test_t2_waiting_in_a_log_handler_on_the_worker_is_refused(world: MeetingWorld) -> None:
    refused: list[Exception] = []

    def wait() -> None:
        refused_to_wait(world, refused)

    with logged_to(LogHandler(wait, "llm-meeting[", "-> connecting")):
        world.meeting.join({"locus": locus()})
        eventually(lambda: refused)
    world.meeting.wait_online()


def test_t2_leave_in_a_log_handler_on_a_reader_does_not_wait_for_it(world: MeetingWorld) -> None:
    left: list[bool] = []

    def leave() -> None:
        if not left:
            left.append(True)
            world.meeting.leave(timeout=3 * LONG)

    def read(link: FakeLink) -> None:
        link.become_ready()
        eventually(lambda: link.closes)
        end(link)

    world.transport.on_open = world.transport.on_close = stay
    world.meeting.join({"locus": locus()})
    (link,) = world.transport.wait_links(1)
    with logged_to(LogHandler(leave, "background", "-> online")):
        Background(lambda: read(link)).result()
    eventually(lambda: over(world))
    assert left and link.closes == [DONE] and world.state() is S.IDLE


def test_t2_leave_in_a_refresh_handler_does_not_wait_for_it(world: MeetingWorld) -> None:
    left: list[bool] = []

    def handler() -> str:
        world.meeting.leave(timeout=3 * LONG)
        left.append(world.meeting.joined)
        return make_token()

    world.one.set_refresh_handler(handler)
    world.meeting.join({"locus": locus()})
    eventually(lambda: left and world.pool.stats().abandoned_attempts == 0)
    assert left == [False] and world.one.get_token() is None
    assert [token for _, token in world.posts] in ([], [None])  # it may have gone on without one


def test_t2_waiting_in_a_refresh_handler_is_refused(world: MeetingWorld) -> None:
    refused: list[Exception] = []

    def handler() -> str:
        refused_to_wait(world, refused)
        return make_token()

    world.one.set_refresh_handler(handler)
    world.meeting.join({"locus": locus()})
    eventually(lambda: refused)
    world.meeting.wait_online()


# -- others have their hands on the session ------------------------------------------------------------------


def count_attempts(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, client: DataChannelClient
) -> list[int]:
    counted, begin = [], client.begin_register_and_connect

    def counting(*arguments: str) -> bool:
        counted.append(1)
        return begin(*arguments)

    monkeypatch.setattr(client, "begin_register_and_connect", counting)
    return counted


def test_the_worker_rests_while_somebody_elses_disconnect_is_under_way(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.transport.on_close = stay
    world.pool.connect(ELSEWHERE, DEFAULT)
    leaving = Background(lambda: world.pool.disconnect(DEFAULT))
    world.settle(DEFAULT, S.DISCONNECTING)
    attempts = count_attempts(world, monkeypatch, world.one)
    world.meeting.join({"locus": locus()})
    world.rest()
    assert len(attempts) <= 2 and world.posts == []
    world.transport.on_close = end
    end(world.links(DEFAULT)[0])
    leaving.result()
    world.meeting.wait_online()


def test_the_worker_rests_while_another_clients_meeting_is_disconnected(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = world.client()
    second = Meeting(two)
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    second.join({"locus": locus()})
    eventually(lambda: second.last_error)
    world.transport.on_close = stay
    world.meeting.leave(timeout=0)
    world.settle(DEFAULT, S.DISCONNECTING)
    attempts = count_attempts(world, monkeypatch, two)
    second.admit()
    world.rest(second)
    assert len(attempts) <= 2
    world.transport.on_close = end
    end(world.links(DEFAULT)[0])
    second.wait_online()
    second.leave()


def test_a_channel_that_the_program_connects_before_the_worker_can_is_no_failure(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = gate_at(monkeypatch, world.one, "begin_register_and_connect")
    world.meeting.join({"locus": locus()})
    gate.wait_arrived()
    world.one.register_and_connect(LOCUS, OTHER)
    gate.open()
    world.meeting.wait_online()
    eventually(lambda: world.one.datachannel_url() == CHANNEL and world.state() is S.ONLINE)
    world.flush()
    assert [one for one in world.heard.payloads("failed") if not isinstance(one, str)] == []
    assert world.meeting.last_error is None


def test_a_channel_that_the_program_put_in_place_of_the_workers_is_lost_for_good(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    world.rest()
    world.transport.on_close = stay
    world.meeting.update_locus(locus(channel=OTHER))
    world.settle(DEFAULT, S.DISCONNECTING)
    world.rest()
    looks = gate_at(monkeypatch, Worker, "_look")
    end(world.links(DEFAULT)[0])
    looks.wait_arrived()  # the worker has not seen that its disconnect is over
    world.transport.on_close = end
    world.one.register_and_connect(LOCUS, OTHER)
    looks.open()
    world.rest()
    world.links(DEFAULT)[1].end(4000, "replaced", EndCause.PEER)
    (failed,) = world.heard.wait("failed")
    world.rest()
    assert failed.session_id == DEFAULT and [url for url, _ in world.posts] == [CHANNEL, OTHER]


# -- what is heard -------------------------------------------------------------------------------------------


def test_i78_what_is_queued_of_the_meeting_before_reaches_no_handler_of_the_next(world: MeetingWorld) -> None:
    slow = Gate()
    world.one.once("event", lambda envelope: slow.pass_through())
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    world.heard.wait("online")
    link = world.links(DEFAULT)[0]
    give(link, state_message("first"))
    slow.wait_arrived()
    give(link, state_message("late"), relay("late"), transcript("late"))
    world.meeting.leave()
    world.meeting.join(next_meeting())
    world.meeting.wait_online()
    lines = world.captions.transcripts(timeout=0)
    slow.open()
    world.heard.wait("online", 2)
    world.calm()
    relayed = [one.relay_type for one in world.heard.payloads("relay")]
    assert "late" not in relayed and "voicea.transcription" not in relayed and list(lines) == []
    assert world.heard.payloads("locus.state_message") == world.heard.payloads("offline") == []


def test_i78_what_still_comes_on_the_channel_of_the_meeting_before_is_not_heard(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.join()
    ending = gate_at(monkeypatch, OwnedSessions, "begin_disconnect")
    world.meeting.leave(timeout=0)
    ending.wait_arrived()
    world.meeting.join(next_meeting())
    dealt_with = Recorder()
    world.pool.on("event", dealt_with.named("event"), session_id=DEFAULT)
    give(world.link(), state_message("late"), state_message("later"))
    dealt_with.wait("event", 2)
    ending.open()
    world.meeting.wait_online()
    world.calm()
    assert world.heard.payloads("locus.state_message") == []


def test_i83_what_comes_on_a_session_that_is_not_the_clients_is_not_the_meetings(world: MeetingWorld) -> None:
    others: list[Any] = []
    world.pool.connect(ELSEWHERE, DEFAULT)
    world.meeting.join({"locus": locus()})
    world.heard.wait("failed")
    world.pool.on("event", others.append, session_id=DEFAULT)
    link = world.links(DEFAULT)[0]
    give(link, state_message("1"), relay("theirs"))
    give(link, state_message("2"))
    eventually(lambda: len(others) == 3)  # all before the last one is dealt with
    world.pool.disconnect(DEFAULT)
    world.meeting.admit()
    world.meeting.wait_online()
    world.calm()
    assert world.heard.payloads("locus.state_message") == world.heard.payloads("offline") == []
    assert not any(one.relay_type == "theirs" for one in world.heard.payloads("relay"))


def test_a_channel_that_was_there_before_the_join_is_heard_from_then_on(world: MeetingWorld) -> None:
    world.one.register_and_connect(LOCUS, CHANNEL)
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    world.rest()
    give(world.links(DEFAULT)[0], state_message("after"))
    assert [one.id for one in world.heard.wait("locus.state_message")] == ["after"] and len(world.posts) == 1


def test_i83_the_binding_of_a_socket_that_came_and_went_during_a_callback_is_known(
    world: MeetingWorld,
) -> None:
    slow = Gate()
    world.meeting.join({"locus": locus()})
    world.heard.wait("online")
    world.one.once("offline", lambda payload: slow.pass_through())
    world.links(DEFAULT)[0].end()
    slow.wait_arrived()
    second = world.link(number=2)
    world.settle(DEFAULT, S.ONLINE)
    route = {"recipients": {"route": world.one.binding()}}
    give(second, {**relay("mine"), **route})
    second.end()
    world.link(number=3)
    slow.open()
    world.heard.wait("online", 3)
    world.calm()
    assert [one.relay_type for one in world.heard.payloads("relay")].count("mine") == 1


# -- wait_online ---------------------------------------------------------------------------------------------


def test_t17_the_channel_of_the_meeting_before_is_not_what_is_waited_for(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    ending = gate_at(monkeypatch, OwnedSessions, "begin_disconnect")
    world.meeting.leave(timeout=0)
    ending.wait_arrived()
    world.meeting.join(next_meeting())
    waiting = Background(lambda: (world.meeting.wait_online(), world.one.locus_url())[1])
    eventually(lambda: waiting.done or waits(world, 2))
    ending.open()
    assert waiting.result() == NEXT_LOCUS


def test_t17_the_channel_of_the_join_before_is_not_what_is_waited_for_in_the_same_meeting(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    ending = gate_at(monkeypatch, OwnedSessions, "begin_disconnect")
    world.meeting.leave(timeout=0)
    ending.wait_arrived()
    world.meeting.join({"locus": locus()})
    waiting = Background(lambda: (world.meeting.wait_online(), len(world.links(DEFAULT)))[1])
    eventually(lambda: waiting.done or waits(world, 2))
    ending.open()
    assert waiting.result() == 2


def test_i74_an_online_between_the_look_and_the_wait_of_a_caller_is_not_lost(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, calls, onlines = Gate(), iter(range(2)), OwnedSessions.onlines

    def look(sessions: OwnedSessions, session_id: str) -> int:
        found = onlines(sessions, session_id)
        if threading.current_thread().name == "background" and next(calls, None) == 1:
            looked.pass_through()  # it has seen that the channel is not online, and waits next
        return found

    monkeypatch.setattr(OwnedSessions, "onlines", look)
    world.transport.on_open = stay
    world.meeting.join({"locus": locus()})
    (link,) = world.transport.wait_links(1)
    waiting = Background(lambda: world.meeting.wait_online(timeout=3 * LONG))
    looked.wait_arrived()
    link.become_ready()
    world.heard.wait("online")
    world.rest()
    looked.open()
    waiting.result()


def test_t17_the_channel_with_the_old_url_is_not_what_is_waited_for(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    for channel in (OTHER, CHANNEL, OTHER):
        world.meeting.update_locus(locus(channel=channel))
        world.meeting.wait_online()
        assert world.one.datachannel_url() == channel


def test_t17_a_session_that_somebody_else_brings_online_is_not_what_is_waited_for(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = Meeting(world.one, auto_connect=False)
    meeting.join({"locus": locus()})
    world.rest(meeting)
    counted = gate_at(monkeypatch, OwnedSessions, "onlines", after=True)
    waiting: Background | None = None
    try:
        waiting = Background(lambda: meeting.wait_online(timeout=SHORT))
        counted.wait_arrived()
        world.pool.connect(ELSEWHERE, DEFAULT)
        counted.open()
        assert isinstance(waiting.error(), WaitTimeout)
    finally:
        meeting.leave()


def test_t17_an_error_that_is_made_up_for_is_not_raised(world: MeetingWorld) -> None:
    world.answers = [(400, {"message": "no"})]
    world.meeting.join({"locus": locus()})
    world.heard.wait("failed")
    world.rest()
    world.one.register_and_connect(LOCUS, CHANNEL)
    world.rest()
    world.transport.on_open = stay
    world.links(DEFAULT)[0].end()
    world.settle(DEFAULT, S.RECONNECTING)
    world.rest()
    with pytest.raises(WaitTimeout):
        world.meeting.wait_online(timeout=SHORT)


# -- leave, close, join --------------------------------------------------------------------------------------


def test_t3_handlers_of_two_meetings_that_close_their_pool_do_not_wait_for_each_other(
    world: MeetingWorld,
) -> None:
    together, closed = threading.Barrier(2), []

    def close(payload: object) -> None:
        together.wait(LONG)
        world.pool.close(timeout=2 * LONG)
        closed.append(payload)

    second = Meeting(world.client())
    world.answers = [(400, {}), (400, {})]
    for meeting in (world.meeting, second):  # one after the other: both have the same session
        meeting.on("failed", close)
        meeting.join({"locus": locus()})
        eventually(lambda meeting=meeting: meeting.last_error or closed)  # type: ignore[misc]
    eventually(lambda: len(closed) == 2)


def test_i67_a_close_just_after_a_leave_says_the_same_goodbye(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.join(both=True)
    join = world.meeting._join
    assert join is not None
    ending = gate_at(monkeypatch, OwnedSessions, "begin_disconnect")
    world.meeting.leave(timeout=0)
    ending.wait_arrived()
    closing = Background(world.one.close)
    eventually(lambda: join.worker._changed._waiters or world.links(DEFAULT)[0].closes)  # type: ignore[attr-defined]
    ending.open()
    closing.result()
    for session_id in (DEFAULT, PRACTICE_SESSION):
        assert world.links(session_id)[0].closes == [DONE]


@pytest.mark.parametrize("seen", ["both", "each"])
def test_i66_a_lobby_that_is_left_at_once_still_ends_the_channel(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    token, fetched = make_token(), make_token()
    world.meeting.join({"locus": locus(tokens={"datachannelToken": token})})
    world.meeting.wait_online()
    world.rest()
    world.fetches = [lambda: (200, {"datachannelToken": fetched})]
    if seen == "both":
        looks = gate_at(monkeypatch, Worker, "_look")
        world.meeting.connect()
        looks.wait_arrived()
        world.meeting.unadmit()
        world.meeting.admit()
        looks.open()
    else:
        world.meeting.unadmit()
        world.meeting.admit()
    world.link(number=2)
    world.meeting.wait_online()
    world.rest()
    assert world.links(DEFAULT)[0].closes == [DONE] and world.posts == [(CHANNEL, token), (CHANNEL, fetched)]


def test_i64_the_next_worker_takes_no_step_before_the_one_before_is_through(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.join(both=True)
    ending = gate_at(monkeypatch, OwnedSessions, "begin_disconnect")
    world.meeting.leave(timeout=0)
    ending.wait_arrived()
    world.meeting.join(next_meeting())
    world.rest()
    assert [link.closes for link in world.transport.links] == [[], []]
    ending.open()
    world.meeting.wait_online()
    world.rest()
    assert [url for url, _ in world.posts].count(OTHER) == 1 and world.meeting.last_error is None


def test_i64_the_next_worker_hears_that_the_one_before_is_through(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = gate_at(monkeypatch, Worker, "_work", after=True)
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    world.meeting.leave(timeout=0)
    through.wait_arrived()  # nothing of its sessions will change any more
    world.meeting.join(next_meeting())
    world.rest()
    through.open()
    world.meeting.wait_online()


class SlowToLookAt:
    """A worker whose end is looked for by the next one, which stops before it does anything about it."""

    def __init__(self, worker: Worker, gate: Gate) -> None:
        self._worker, self._gate = worker, gate
        self._followed_by = worker._followed_by

    @property
    def _over(self) -> bool:
        found = self._worker._over
        if not found:
            self._gate.pass_through()
        return found


def test_i64_an_end_between_the_look_and_the_wait_of_the_next_worker_is_not_lost(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, start = Gate(), Worker.start
    ending = gate_at(monkeypatch, OwnedSessions, "begin_disconnect")
    world.join()
    before = world.worker
    world.meeting.leave(timeout=0)
    ending.wait_arrived()
    slow: Any = SlowToLookAt(before, looked)
    monkeypatch.setattr(Worker, "start", lambda worker, predecessor: start(worker, slow))
    world.meeting.join(next_meeting())
    looked.wait_arrived()
    changes = world.worker._changes
    ending.open()
    eventually(lambda: world.worker._changes > changes and not before._thread.is_alive())  # type: ignore[union-attr]
    looked.open()
    world.meeting.wait_online()


def test_t1_leave_hears_that_the_worker_is_through(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = gate_at(monkeypatch, Worker, "_work", after=True)
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    join = world.meeting._join
    assert join is not None
    leaving = Background(lambda: world.meeting.leave(timeout=3 * LONG))
    through.wait_arrived()
    eventually(lambda: join.worker._changed._waiters)  # type: ignore[attr-defined]
    through.open()
    leaving.result()


# -- captions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("turn_on", lambda captions: captions.turn_on()),
        ("put", lambda captions: captions.turn_on()),
        ("put", lambda captions: captions.set_spoken_language("en")),
        ("put", lambda captions: captions.set_transcribing(True)),
        ("put", lambda captions: captions.set_manual(True)),
    ],
)
def test_captions_are_asked_for_of_the_meeting_that_the_call_was_for(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, name: str, call: Callable[[Captions], None]
) -> None:
    gate = gate_at(monkeypatch, Captioning, name)
    world.join()
    asking = Background(lambda: call(world.captions))
    gate.wait_arrived()
    world.meeting.leave()
    world.meeting.join(next_meeting())
    world.meeting.wait_online()
    gate.open()
    assert isinstance(asking.error(), ConnectCancelled) and world.controls == []
    assert world.captions.state.value == "idle"
