"""The meeting: which channels there are after which news, whatever comes in between."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import responses

from llm_sessions import (
    ConfigurationError,
    ConnectCancelled,
    LocalProtocolError,
    OwnershipError,
    PoolClosed,
    RegistrationError,
    SessionState,
    TokenRefreshError,
    WaitTimeout,
)
from llm_sessions.connection.transport import AttemptFailed
from llm_sessions.meetings.meeting import Meeting
from llm_sessions.meetings.worker import WARN_AFTER, Worker
from llm_sessions.pool.owned import OwnedSessions
from llm_sessions.protocol.closing import Failure
from llm_sessions.protocol.mercury import EndCause
from llm_sessions.testing.clock import ManualClock
from llm_sessions.testing.server import make_token
from tests.datachannel.world import CHANNEL, LOCUS, OTHER, PRACTICE, good
from tests.meetings.world import (
    DEFAULT,
    DONE,
    FETCH,
    FETCH_PRACTICE,
    NEXT_LOCUS,
    PRACTICE_SESSION,
    MeetingWorld,
    gate_at,
    give,
    held,
    locus,
    next_meeting,
    panelist,
    relay,
    stay,
    world,
)
from tests.support import LONG, SHORT, Background, FakeLink, Gate, eventually, run_together

__all__ = ["world"]  # a fixture

S = SessionState
BOTH = (DEFAULT, PRACTICE_SESSION)


@pytest.fixture(autouse=True)
def no_wait_after_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_sessions.datachannel.auth.REFUSAL_WAIT", 0.0)


def both_online(world: MeetingWorld, **changes: Any) -> None:
    world.meeting.join(panelist(**changes))
    world.meeting.wait_online(DEFAULT)
    world.meeting.wait_online(PRACTICE_SESSION)


# -- join ----------------------------------------------------------------------------------------------------


def test_a_join_connects_the_main_channel_with_the_token_of_the_locus(world: MeetingWorld) -> None:
    token = make_token()
    world.meeting.join({"locus": locus(tokens={"datachannelToken": token})})
    assert world.meeting.wait_online().id == DEFAULT and world.meeting.joined
    assert world.posts == [(CHANNEL, token)] and world.state(PRACTICE_SESSION) is S.IDLE


@pytest.mark.parametrize("response", [{}, {"locus": {}}, {"locus": {"url": 1}}, None])
def test_a_join_response_that_cannot_be_used_changes_nothing(world: MeetingWorld, response: Any) -> None:
    with pytest.raises(ConfigurationError):
        world.meeting.join(response)
    assert not world.meeting.joined
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()


NEWS: dict[str, Callable[[Meeting], object]] = {
    "connect": lambda meeting: meeting.connect(),
    "update_locus": lambda meeting: meeting.update_locus(locus()),
    "update_roles": lambda meeting: meeting.update_roles(["PANELIST"]),
    "update_practice_session": lambda meeting: meeting.update_practice_session(True),
    "admit": lambda meeting: meeting.admit(),
    "unadmit": lambda meeting: meeting.unadmit(),
    "request_practice_session": lambda meeting: meeting.request_practice_session(True),
    "wait_online": lambda meeting: meeting.wait_online(),
}


@pytest.mark.parametrize("name", NEWS)
def test_news_need_a_joined_meeting(world: MeetingWorld, name: str) -> None:
    with pytest.raises(LocalProtocolError, match="no meeting is joined"):
        NEWS[name](world.meeting)


@pytest.mark.parametrize("name", [*NEWS, "join"])
@pytest.mark.parametrize("whose", ["client", "pool"])
def test_t0_after_a_close_every_call_says_so(world: MeetingWorld, whose: str, name: str) -> None:
    world.join()
    {"client": world.one, "pool": world.pool}[whose].close()
    with pytest.raises(PoolClosed):
        {**NEWS, "join": lambda meeting: meeting.join(panelist())}[name](world.meeting)
    world.meeting.leave()


def test_without_auto_connect_tokens_are_kept_and_nothing_connects(
    world: MeetingWorld,
) -> None:
    token, meeting = make_token(), Meeting(world.one, auto_connect=False)
    meeting.join({"locus": locus(tokens={"datachannelToken": token})})
    meeting.update_locus(locus())
    with pytest.raises(WaitTimeout):
        meeting.wait_online(timeout=SHORT)
    assert world.posts == [] and world.one.get_token() == token
    meeting.connect()
    meeting.wait_online()
    assert world.posts == [(CHANNEL, token)]
    meeting.leave()


def test_i64_a_second_meeting_on_a_client_is_refused_and_changes_nothing(world: MeetingWorld) -> None:
    token = make_token()
    world.meeting.join({"locus": locus(tokens={"datachannelToken": token})})
    world.meeting.wait_online()
    second = Meeting(world.one)
    for meeting in (second, world.meeting):
        with pytest.raises(OwnershipError):
            meeting.join({"locus": locus(tokens={"datachannelToken": make_token()})})
    second.leave()
    assert world.one.get_token() == token and world.state() is S.ONLINE and not second.joined
    world.meeting.leave()
    second.join({"locus": locus()})
    second.wait_online()
    second.leave()


def test_i64_of_meetings_that_join_at_once_one_succeeds(world: MeetingWorld) -> None:
    meetings = iter([Meeting(world.one) for _ in range(4)])
    joined: list[Meeting] = []

    def join() -> None:
        meeting = next(meetings)
        meeting.join({"locus": locus()})
        joined.append(meeting)

    outcomes = run_together(4, join)
    assert sum(isinstance(one, OwnershipError) for one in outcomes) == 3 and len(joined) == 1
    joined[0].wait_online()
    joined[0].leave()


# -- the main channel ----------------------------------------------------------------------------------------


def test_i65_a_locus_without_the_url_keeps_the_channel(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    world.meeting.update_locus({"url": LOCUS})
    world.rest()
    assert world.state() is S.ONLINE and len(world.posts) == 1


def test_another_url_replaces_the_main_channel(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    world.meeting.update_locus(locus(channel=OTHER))
    eventually(lambda: world.one.datachannel_url() == OTHER and world.state() is S.ONLINE)
    first, _ = world.links(DEFAULT)
    assert first.closes == [DONE]


def test_i57_a_token_in_a_locus_replaces_the_cached_one(
    world: MeetingWorld,
) -> None:
    first, second = make_token(), make_token()
    world.meeting.join({"locus": locus(tokens={"datachannelToken": first})})
    world.meeting.update_locus(locus())
    assert world.one.get_token() == first
    world.meeting.update_locus(locus(tokens={"datachannelToken": second}))
    assert world.one.get_token() == second


def test_another_meetings_locus_is_refused(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    with pytest.raises(ConfigurationError, match="another meeting"):
        world.meeting.update_locus({"url": LOCUS + "x", "self": {"datachannelToken": make_token()}})
    world.meeting.wait_online()
    assert world.fetched == [FETCH]  # what was refused brought no token


def test_i66_the_lobby_disconnects_and_admission_brings_the_channel_back(world: MeetingWorld) -> None:
    both_online(world)
    world.meeting.unadmit()
    for session_id in BOTH:
        world.settle(session_id, S.IDLE)
        assert world.links(session_id)[0].closes == [DONE] and world.one.get_token(session_id) is None
    world.meeting.admit()
    world.meeting.wait_online(DEFAULT)
    world.meeting.wait_online(PRACTICE_SESSION)


def test_i95_admitted_without_a_token_it_is_fetched_before_the_first_post(world: MeetingWorld) -> None:
    token = make_token()
    world.fetches.append(lambda: (200, {"datachannelToken": token}))
    world.meeting.join({"locus": {"url": LOCUS, "self": {"id": "me"}}})
    world.rest()
    assert world.posts == []
    world.meeting.admit()
    world.meeting.update_locus(locus())
    world.meeting.wait_online()
    assert world.fetched == [FETCH] and world.posts == [(CHANNEL, token)]


# -- the practice session ------------------------------------------------------------------------------------


def test_i72_the_practice_channel_waits_for_the_main_one(world: MeetingWorld) -> None:
    gate = Gate()
    world.answers = [held(gate, good(1))]
    world.meeting.join(panelist())
    gate.wait_arrived()
    world.rest()
    assert world.posted(PRACTICE) == [] and world.fetched == [FETCH]
    gate.open()
    world.meeting.wait_online(PRACTICE_SESSION)
    assert [url for url, _ in world.posts] == [CHANNEL, PRACTICE] and world.fetched == [FETCH, FETCH_PRACTICE]


@pytest.mark.parametrize("news", ["demote", "stop", "leave", "unadmit"])
def test_i72_what_is_not_wanted_after_the_wait_is_not_started(world: MeetingWorld, news: str) -> None:
    gate = Gate()
    world.answers = [held(gate, good(1))]
    world.meeting.join(panelist())
    gate.wait_arrived()
    {
        "demote": lambda: world.meeting.update_roles(["attendee"]),
        "stop": lambda: world.meeting.update_practice_session(False),
        "leave": world.meeting.leave,
        "unadmit": world.meeting.unadmit,
    }[news]()
    gate.open()
    if news in ("demote", "stop"):
        world.meeting.wait_online()
    if world.meeting.joined:
        world.rest()
    assert world.posted(PRACTICE) == [] and world.state(PRACTICE_SESSION) is S.IDLE


def test_i72_another_url_while_it_waits_is_the_one_that_is_used(world: MeetingWorld) -> None:
    gate = Gate()
    world.answers = [held(gate, good(1))]
    world.meeting.join(panelist())
    gate.wait_arrived()
    world.meeting.update_locus(locus(practice_url=OTHER))
    gate.open()
    world.meeting.wait_online(PRACTICE_SESSION)
    assert [url for url, _ in world.posts] == [CHANNEL, OTHER]


def test_i73_many_updates_while_it_waits_are_one_registration(world: MeetingWorld) -> None:
    gate = Gate()
    world.answers = [held(gate, good(1))]
    world.meeting.join(panelist())
    gate.wait_arrived()
    for _ in range(20):
        world.meeting.update_locus(locus(roles=["PANELIST"], practice=True))
        world.meeting.update_roles(["PANELIST"])
    gate.open()
    world.meeting.wait_online(PRACTICE_SESSION)
    world.rest()
    assert [url for url, _ in world.posts] == [CHANNEL, PRACTICE]


def test_i74_an_online_between_the_look_and_the_wait_is_not_lost(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, looked = Gate(), Gate()
    original = Worker._choose

    def choose(worker: Worker, *arguments: Any) -> Any:
        step = original(worker, *arguments)
        if world.state() is S.CONNECTING:
            looked.pass_through()
        return step

    def open_late(link: FakeLink) -> None:
        opened.pass_through()
        link.become_ready()

    monkeypatch.setattr(Worker, "_choose", choose)
    world.transport.on_open = open_late
    world.meeting.join(panelist())
    looked.wait_arrived()  # it has seen that the main channel is not online
    opened.wait_arrived()
    join = world.meeting._join
    assert join is not None
    before = join.worker._changes
    opened.open()
    eventually(lambda: world.state() is S.ONLINE and join.worker._changes > before)
    looked.open()
    world.meeting.wait_online(PRACTICE_SESSION)


def test_i75_after_leave_an_online_starts_nothing(world: MeetingWorld) -> None:
    world.transport.on_open = stay
    world.meeting.join(panelist())
    (link,) = world.transport.wait_links(1)
    world.meeting.leave()
    link.become_ready()
    assert link.aborted.is_set() and world.posted(PRACTICE) == []
    assert world.state() is S.IDLE and world.state(PRACTICE_SESSION) is S.IDLE


def test_i76_the_main_channel_drops_during_the_token_refresh(world: MeetingWorld) -> None:
    refresh, back = Gate(), Gate()
    world.fetches = [
        lambda: (200, {"datachannelToken": make_token()}),
        held(refresh, (200, {"datachannelToken": make_token()})),
    ]
    world.meeting.join(panelist())
    refresh.wait_arrived()

    def open_late(link: FakeLink) -> None:
        back.pass_through()
        link.become_ready()

    world.transport.on_open = open_late
    world.links(DEFAULT)[0].end()
    back.wait_arrived()
    world.settle(PRACTICE_SESSION, S.IDLE)
    refresh.open()
    eventually(lambda: world.pool.stats().abandoned_attempts == 0)
    assert world.posted(PRACTICE) == []
    back.open()
    world.meeting.wait_online(PRACTICE_SESSION)
    assert len(world.posted(PRACTICE)) == 1


def test_a_practice_channel_stays_when_the_main_one_drops(world: MeetingWorld) -> None:
    both_online(world)
    world.transport.on_open = stay
    world.links(DEFAULT)[0].end()
    world.settle(DEFAULT, S.RECONNECTING)
    world.rest()
    assert world.state(PRACTICE_SESSION) is S.ONLINE


@pytest.mark.parametrize("where", ["post", "socket"])
def test_i77_a_revocation_aborts_a_practice_connect_in_flight(world: MeetingWorld, where: str) -> None:
    gate = Gate()
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    if where == "post":
        world.answers = [held(gate, good(2))]
    else:
        world.transport.on_open = stay
    world.meeting.update_locus(locus(roles=["PANELIST"], practice=True))
    if where == "post":
        gate.wait_arrived()
    else:
        world.transport.wait_links(2)
    world.meeting.update_roles(["ATTENDEE"])
    world.settle(PRACTICE_SESSION, S.IDLE)
    gate.open()
    eventually(lambda: world.pool.stats().abandoned_attempts == 0)
    links = world.links(PRACTICE_SESSION)
    assert all(link.aborted.is_set() for link in links) and len(links) == (where == "socket")
    assert world.state() is S.ONLINE and world.heard.payloads("failed") == []


def test_i53_demoted_and_promoted_again_keeps_the_token(world: MeetingWorld) -> None:
    token = make_token()
    both_online(world, tokens={"practiceSessionDatachannelToken": token})
    world.meeting.update_roles(["ATTENDEE"])
    world.settle(PRACTICE_SESSION, S.IDLE)
    assert world.links(PRACTICE_SESSION)[0].closes == [DONE]
    world.meeting.update_roles(["PANELIST"])
    world.meeting.wait_online(PRACTICE_SESSION)
    assert world.posted(PRACTICE) == [token, token]


def test_i79_another_practice_url_replaces_the_channel(world: MeetingWorld) -> None:
    both_online(world)
    world.meeting.update_locus(locus(practice_url=OTHER))
    eventually(lambda: world.one.datachannel_url(PRACTICE_SESSION) == OTHER)
    world.meeting.wait_online(PRACTICE_SESSION)
    assert world.links(PRACTICE_SESSION)[0].closes == [(3050, "replaced")] and len(world.links(DEFAULT)) == 1


def test_a_practice_session_is_asked_for_over_rest(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    world.meeting.request_practice_session(True)
    world.meeting.request_practice_session(False)
    wanted = [("PATCH", {"practiceSession": {"enabled": on}}) for on in (True, False)]
    assert world.controls == wanted and world.posted(PRACTICE) == []
    with pytest.raises(ConfigurationError):
        world.meeting.request_practice_session(1)  # type: ignore[arg-type]


# -- failures ------------------------------------------------------------------------------------------------


def test_i80_a_failure_is_told_and_the_next_news_try_again(world: MeetingWorld) -> None:
    world.answers = [(400, {"message": "no"})]
    world.meeting.join({"locus": locus()})
    (failed,) = world.heard.wait("failed")
    assert failed.session_id == DEFAULT and isinstance(failed.error, RegistrationError)
    with pytest.raises(RegistrationError, match="no"):
        world.meeting.wait_online()
    assert world.meeting.last_error is failed.error
    world.rest()
    assert len(world.posts) == 1
    world.meeting.update_locus({"url": LOCUS})
    world.meeting.wait_online()
    assert len(world.posts) == 2 and len(world.heard.payloads("failed")) == 1


def test_a_channel_that_is_lost_for_good_is_told_and_the_next_news_try_again(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    world.links(DEFAULT)[0].end(4000, "replaced", EndCause.PEER)
    world.heard.wait("failed")
    world.rest()
    assert len(world.posts) == 1
    world.meeting.admit()
    world.meeting.wait_online()


def test_a_channel_that_somebody_disconnects_stays_so_until_there_are_news(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    world.one.disconnect()
    world.rest()
    with pytest.raises(ConnectCancelled):
        world.meeting.wait_online()
    assert len(world.posts) == 1 and world.heard.payloads("failed") == []
    world.meeting.admit()
    world.meeting.wait_online()


def test_the_sockets_failures_are_retried_by_the_session(world: MeetingWorld) -> None:
    failures = iter([True, False])

    def fail_once(link: FakeLink) -> None:
        if next(failures):
            raise AttemptFailed(Failure.NETWORK, "refused")
        link.become_ready()

    world.transport.on_open = fail_once
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    assert len(world.posts) == 2 and world.heard.payloads("failed") == []


# -- leave ---------------------------------------------------------------------------------------------------


def test_i67_leave_closes_both_channels_and_forgets_the_tokens(world: MeetingWorld) -> None:
    both_online(world)
    world.meeting.leave()
    for session_id in BOTH:
        assert world.links(session_id)[0].closes == [DONE] and world.state(session_id) is S.IDLE
        assert world.one.get_token(session_id) is None and not world.one._tokens.has_handler(session_id)
    assert not world.meeting.joined and len(world.posts) == 2
    world.meeting.leave()


@pytest.mark.parametrize("how", ["with", "close"])
def test_i67_every_way_out_is_a_leave(world: MeetingWorld, how: str) -> None:
    if how == "with":
        with world.meeting:
            both_online(world)
    else:
        both_online(world)
        world.one.close()
    assert [world.links(session_id)[0].closes for session_id in BOTH] == [[DONE], [DONE]]
    assert not world.meeting.joined


def test_a_left_meeting_can_be_joined_again(world: MeetingWorld) -> None:
    for number in range(1, 4):
        both_online(world)
        world.meeting.leave()
        assert len(world.posted(CHANNEL)) == len(world.posted(PRACTICE)) == number


def test_the_next_join_waits_until_the_one_before_is_through(world: MeetingWorld) -> None:
    closing: list[FakeLink] = []
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    world.transport.on_close = closing.append
    left = Background(lambda: world.meeting.leave(timeout=0))
    left.result()
    eventually(lambda: closing)
    world.meeting.join({"locus": locus()})
    assert len(world.posts) == 1
    world.transport.on_close = lambda link: link.end(1000, "Done", EndCause.LOCAL)
    closing[0].end(3050, "done (permanent)", EndCause.LOCAL)
    world.meeting.wait_online()
    assert len(world.posts) == 2 and world.links(DEFAULT)[1].closes == []


def test_i61_a_token_that_was_fetched_for_a_meeting_that_was_left_is_not_stored(world: MeetingWorld) -> None:
    gate, second = Gate(), make_token()
    world.fetches = [held(gate, (200, {"datachannelToken": make_token()}))]
    world.meeting.join({"locus": locus()})
    gate.wait_arrived()
    world.meeting.leave()
    world.meeting.join({"locus": locus(tokens={"datachannelToken": second})})
    gate.open()
    world.meeting.wait_online()
    eventually(lambda: world.pool.stats().abandoned_attempts == 0)
    assert world.posts == [(CHANNEL, second)] and world.one.get_token() == second


@pytest.mark.parametrize("when", ["before", "during"])
def test_i61_the_refresh_handler_of_a_meeting_that_was_left_returns_no_token(
    world: MeetingWorld, when: str
) -> None:
    world.join()
    assert world.meeting._join is not None
    handler, asked, gate = world.meeting._join.handlers[DEFAULT], len(world.fetched), Gate()
    world.fetches = [held(gate, (200, {"datachannelToken": make_token()}))]
    if when == "before":
        world.meeting.leave()
    asking = Background(handler)
    if when == "during":
        gate.wait_arrived()
        world.meeting.leave()
    gate.open()
    assert isinstance(asking.error(), TokenRefreshError)
    assert len(world.fetched) == asked + (when == "during")


def test_i78_the_listeners_of_a_join_are_gone_after_leave(world: MeetingWorld) -> None:
    table = world.one._sessions.listeners(DEFAULT)
    both_online(world)
    assert table.named("event:relay.event")
    world.links(DEFAULT)[0].end(4000, "replaced", EndCause.PEER)  # there is nothing left to disconnect
    world.heard.wait("failed")
    world.meeting.leave()
    assert not any(table.named(name) for name in ("online", "offline", "event:relay.event"))
    assert world.state() is S.IDLE


def test_i94_no_handler_begins_after_leave_has_begun(world: MeetingWorld) -> None:
    gate, offline = Gate(), []
    world.meeting.on("online", lambda payload: gate.pass_through())
    world.meeting.on("offline", offline.append)
    world.meeting.join({"locus": locus()})
    gate.wait_arrived()
    world.meeting.leave()
    gate.open()
    eventually(lambda: not world.meeting._delivery._running)
    assert offline == [] and world.heard.names.count("offline") == 0


def test_leave_from_a_handler_and_join_again_there(world: MeetingWorld) -> None:
    rejoined = threading.Event()

    def again(payload: Any) -> None:
        world.meeting.leave()
        world.meeting.join({"locus": locus()})
        rejoined.set()

    world.meeting.once("online", again)
    world.meeting.join({"locus": locus()})
    assert rejoined.wait(LONG)
    world.meeting.wait_online()
    assert len(world.posts) == 2


def test_t1_a_wait_ends_with_the_leave_the_close_or_its_timeout(world: MeetingWorld) -> None:
    world.transport.on_open = stay
    world.meeting.join({"locus": locus()})
    with pytest.raises(WaitTimeout, match="not online within"):
        world.meeting.wait_online(timeout=SHORT)
    waiting = Background(world.meeting.wait_online)
    world.transport.wait_links(1)
    world.meeting.leave()
    assert isinstance(waiting.error(), (ConnectCancelled, LocalProtocolError))


@pytest.mark.parametrize("connected", [True, False])
def test_t2_closing_the_pool_ends_the_worker_and_waiters(world: MeetingWorld, connected: bool) -> None:
    meeting = Meeting(world.one, auto_connect=connected)
    meeting.join({"locus": locus()})
    if connected:
        meeting.wait_online()
    waiting = Background(lambda: meeting.wait_online(PRACTICE_SESSION, timeout=LONG))
    world.pool.close()
    assert isinstance(waiting.error(), PoolClosed)
    assert world.pool.stats().threads == 0
    meeting.leave()


def test_t17_online_for_an_instant_is_not_lost(world: MeetingWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.transport.on_open = stay
    world.meeting.join({"locus": locus()})
    (link,) = world.transport.wait_links(1)
    gate = Gate()
    standing = world.one._sessions.standing

    def look(session_id: str) -> Any:
        found = standing(session_id)
        if threading.current_thread() not in (me, worker._thread):
            gate.pass_through()
        return found

    world.rest()
    me, worker = threading.current_thread(), world.worker
    monkeypatch.setattr(world.one._sessions, "standing", look)
    waiting = Background(world.meeting.wait_online)
    gate.wait_arrived()
    link.become_ready()
    link.end()
    gate.open()
    assert waiting.result().state is not S.ONLINE


def test_one_warning_when_the_main_channel_stays_down(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(world.pool._env, "clock", clock)
    world.transport.on_open = stay

    def warnings() -> int:
        return sum("still down" in record.getMessage() for record in caplog.records)

    world.meeting.join({"locus": locus()})
    (link,) = world.transport.wait_links(1)
    world.rest()
    for seconds, expected in ((WARN_AFTER - 0.5, 0), (0.5, 1), (WARN_AFTER, 1)):
        clock.advance(seconds)
        world.meeting.admit()
        world.rest()
        assert warnings() == expected
    link.become_ready()
    world.meeting.wait_online()
    world.rest()
    link.end()
    world.settle(DEFAULT, S.RECONNECTING)
    world.rest()
    clock.advance(WARN_AFTER)
    world.meeting.admit()
    world.rest()
    assert warnings() == 2


# -- any schedule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_news_in_any_order_end_with_what_the_last_ones_say(world: MeetingWorld, seed: int) -> None:
    chance = random.Random(seed)
    world.meeting.join(panelist())
    role, on = "PANELIST", True
    for _ in range(40):
        match chance.randrange(5):
            case 0:
                role = chance.choice(["PANELIST", "ATTENDEE"])
                world.meeting.update_roles([role])
            case 1:
                on = chance.random() < 0.5
                world.meeting.update_practice_session(on)
            case 2:
                world.meeting.update_locus(locus(channel=chance.choice([CHANNEL, OTHER])))
            case 3:
                for link in world.links(chance.choice(BOTH))[-1:]:
                    if link.ready:
                        link.end()
            case _:
                world.meeting.wait_online(DEFAULT)
    world.meeting.admit()
    world.meeting.wait_online(DEFAULT)
    if role == "PANELIST" and on:
        world.meeting.wait_online(PRACTICE_SESSION)
    else:
        world.settle(PRACTICE_SESSION, S.IDLE)
    world.meeting.leave()
    assert [world.state(session_id) for session_id in BOTH] == [S.IDLE, S.IDLE]
    assert all(link.closes or link.aborted.is_set() or not link.ready for link in world.transport.links)


def test_a_refresh_handler_that_was_set_meanwhile_outlives_the_leave(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    token = make_token()
    world.one.set_refresh_handler(lambda: token, DEFAULT)
    world.meeting.leave()
    assert world.one.refresh_token(DEFAULT) == token
    with pytest.raises(TokenRefreshError) as caught:
        world.one.refresh_token(PRACTICE_SESSION)
    assert caught.value.final


def test_i53_a_token_of_another_meeting_is_not_taken_along(world: MeetingWorld) -> None:
    world.one.register_and_connect(f"{LOCUS}/before", CHANNEL, make_token())
    world.one.disconnect()
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    (fetched,) = world.fetched
    assert fetched == FETCH and world.posts[-1][1] == world.one.get_token() != world.posts[0][1]


def test_a_token_that_the_program_has_set_before_the_join_is_used(world: MeetingWorld) -> None:
    token = make_token()
    world.one.set_token(token)
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    assert world.posts == [(CHANNEL, token)] and world.fetched == []


def test_a_program_that_takes_its_listeners_back_leaves_the_meetings_alone(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    for name in ("online", "offline", "event:relay.event"):
        world.one.off(name)
        world.pool.off(name, session_id=DEFAULT)
    world.links(DEFAULT)[0].end()
    assert len(world.heard.wait("online", 2)) == 2


# -- what a locus says, and what has been said since ---------------------------------------------------------


class Reading(dict[str, Any]):
    """A locus during whose reading something happens, once."""

    def __init__(self, content: dict[str, Any], act: Callable[[], object]) -> None:
        super().__init__(content)
        self._acts = iter([act])

    def get(self, key: str, default: Any = None) -> Any:
        for act in self._acts:
            act()
        return super().get(key, default)


def test_i67_a_locus_that_is_read_during_a_leave_brings_no_token(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus()})
    with pytest.raises(LocalProtocolError):
        world.meeting.update_locus(
            Reading(locus(tokens={"datachannelToken": make_token()}), world.meeting.leave)
        )
    assert world.one.get_token() is None


def test_i67_a_locus_that_is_read_during_a_leave_and_a_join_is_not_the_next_meetings(
    world: MeetingWorld,
) -> None:
    def again() -> None:
        world.meeting.leave()
        world.meeting.join(next_meeting())

    world.meeting.join({"locus": locus()})
    with pytest.raises(ConfigurationError, match="another meeting"):
        world.meeting.update_locus(Reading(locus(tokens={"datachannelToken": make_token()}), again))
    world.meeting.wait_online()
    assert world.one.locus_url() == NEXT_LOCUS


def test_a_locus_that_is_read_during_another_update_takes_nothing_back(world: MeetingWorld) -> None:
    def update() -> None:
        world.meeting.update_locus({"url": LOCUS, "self": {"id": "other"}})

    world.meeting.join({"locus": locus()})
    world.meeting.update_locus(Reading({"url": LOCUS}, update))
    assert world.meeting._join is not None and world.meeting._join.joined.participant_id == "other"


def test_i65_the_roles_of_the_join_do_not_come_back_with_a_locus_without_roles(world: MeetingWorld) -> None:
    both_online(world)
    world.meeting.update_roles(["ATTENDEE"])
    world.settle(PRACTICE_SESSION, S.IDLE)
    world.meeting.update_locus({"url": LOCUS})
    world.rest()
    assert len(world.posted(PRACTICE)) == 1 and world.state(PRACTICE_SESSION) is S.IDLE
    world.meeting.update_roles(["PANELIST"])
    world.meeting.wait_online(PRACTICE_SESSION)
    world.meeting.update_practice_session(False)
    world.settle(PRACTICE_SESSION, S.IDLE)
    world.meeting.update_locus({"url": LOCUS})
    world.rest()
    assert len(world.posted(PRACTICE)) == 2


def test_the_programs_own_refresh_handler_is_the_one_that_is_asked(world: MeetingWorld) -> None:
    token = make_token()
    world.one.set_refresh_handler(lambda: token, DEFAULT)
    world.meeting.join({"locus": locus()})
    world.meeting.wait_online()
    assert world.posts == [(CHANNEL, token)] and world.fetched == []
    world.meeting.leave()
    assert world.one._tokens.has_handler(DEFAULT) and not world.one._tokens.has_handler(PRACTICE_SESSION)


def test_the_own_id_is_quoted_in_the_address_that_tokens_are_fetched_from(world: MeetingWorld) -> None:
    token, asked = make_token(), []
    url = f"{LOCUS}/participant/a%2Fb%3Fc/datachannel/token"

    def fetch(request: Any) -> tuple[int, dict[str, str], str]:
        asked.append(request.url)
        return 200, {}, json.dumps({"datachannelToken": token})

    world.service.add_callback(responses.GET, url, fetch)
    found = locus()
    found["self"]["id"] = "a/b?c"
    world.meeting.join({"locus": found})
    world.meeting.wait_online()
    assert asked == [url] and world.posts == [(CHANNEL, token)]


# -- the last error ------------------------------------------------------------------------------------------


def test_the_last_error_outlives_the_leave_and_every_close(world: MeetingWorld) -> None:
    world.answers = [(400, {"message": "no"})]
    world.meeting.join({"locus": locus()})
    (failed,) = world.heard.wait("failed")
    for end in (world.meeting.leave, world.one.close, world.pool.close):
        end()
        assert world.meeting.last_error is failed.error and not world.meeting.joined


def test_a_join_has_no_error_yet(world: MeetingWorld) -> None:
    world.answers = [(400, {"message": "no"})]
    world.meeting.join({"locus": locus()})
    world.heard.wait("failed")
    world.meeting.leave()
    world.meeting.join({"locus": locus()})
    assert world.meeting.last_error is None
    world.meeting.wait_online()
    world.meeting.leave()
    assert world.meeting.last_error is None


# -- handlers ------------------------------------------------------------------------------------------------


def test_i94_a_handler_begins_no_more_though_the_channels_are_not_closed_yet(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, ending = Gate(), gate_at(monkeypatch, OwnedSessions, "begin_disconnect")
    world.meeting.once("online", lambda payload: handler.pass_through())
    world.meeting.join({"locus": locus()})
    handler.wait_arrived()
    give(world.link(), relay("late"))
    delivery = world.meeting._delivery
    eventually(lambda: any(name == "relay" for _, name, _ in delivery._queue))
    world.meeting.leave(timeout=0)
    ending.wait_arrived()
    handler.open()
    eventually(lambda: not delivery._running or world.heard.payloads("relay"))
    ending.open()
    assert world.heard.payloads("relay") == []


@pytest.mark.parametrize("joined", ["still", "left"])
def test_t2_closing_the_pool_ends_the_thread_of_the_handlers(world: MeetingWorld, joined: str) -> None:
    world.join()
    assert world.meeting._delivery._running
    if joined == "left":
        world.meeting.leave()
    world.pool.close()
    assert world.pool.stats().threads == 0 and not world.meeting._delivery._running


def test_t2_closing_the_pool_ends_those_who_wait_for_room_and_for_captions(world: MeetingWorld) -> None:
    handler, delivery = Gate(), world.meeting._delivery
    delivery._limit = 1
    world.join()
    world.meeting.once("relay", lambda event: handler.pass_through())
    waiting = Background(world.captions.wait_languages)
    give(world.link(), *[relay(f"r{number}") for number in range(4)])
    handler.wait_arrived()
    eventually(lambda: delivery._room._waiters)  # type: ignore[attr-defined]
    closing = Background(lambda: world.pool.close(timeout=2 * LONG))
    assert isinstance(waiting.error(), PoolClosed)
    eventually(lambda: not delivery._room._waiters)  # type: ignore[attr-defined]
    handler.open()
    closing.result()
