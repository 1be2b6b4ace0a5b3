"""Ctrl-C in the calls of a meeting, and threads that cannot start: nothing is left, the next call works."""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

import llm_sessions
from llm_sessions import SessionState, WaitTimeout
from llm_sessions._sync import ThreadGroup, check_lock_order
from llm_sessions.datachannel.holding import Holding
from llm_sessions.datachannel.tokens import TokenStore
from llm_sessions.meetings.captioning import Captioning
from llm_sessions.meetings.delivery import MeetingDelivery
from llm_sessions.meetings.hearing import Hearing
from llm_sessions.meetings.rules import Role
from llm_sessions.meetings.worker import Worker
from llm_sessions.pool.listeners import ListenerTable
from llm_sessions.pool.owned import OwnedSessions
from llm_sessions.testing.server import make_token
from tests.datachannel.world import OTHER
from tests.meetings.world import (
    DEFAULT,
    DONE,
    PRACTICE_SESSION,
    MeetingWorld,
    captioning,
    gate_at,
    interrupted_at,
    locus,
    next_meeting,
    panelist,
    stay,
)
from tests.support import LONG, Background, FakeLink, Gate, eventually, library_threads

S = SessionState
BOTH = (DEFAULT, PRACTICE_SESSION)
LIBRARY = os.path.dirname(llm_sessions.__file__) + os.sep
TOKENS = {"datachannelToken": make_token(), "practiceSessionDatachannelToken": make_token()}


@pytest.fixture
def world() -> Iterator[MeetingWorld]:
    """Like that of `world.py`, but with the locks that programs have; those of tests have seams."""
    check_lock_order(False)
    try:
        world = MeetingWorld()
        with world.service:
            yield world
            world.meeting.leave()
            world.one.close()
            world.pool.close()
    finally:
        check_lock_order(True)


class CtrlC:
    """Interrupts a call at one of the places at which CPython looks for signals: where a function of the
    library begins, and where one that is written in C has returned to the library.

    Args:
        at: Which of them, from 1 on.

    Attributes:
        where: Where it came; empty if there are fewer places.
    """

    def __init__(self, at: int) -> None:
        self._left, self.where = at, ""

    def strikes(self, call: Callable[[], object]) -> bool:
        """Make the call; say whether it was interrupted."""
        sys.setprofile(self._profile)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return False

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event not in ("call", "c_return") or not code.co_filename.startswith(LIBRARY):
            return
        if event == "call" and code.co_flags & inspect.CO_GENERATOR:
            return  # it may be closed just now, and nobody hears what comes out of that
        self._left -= 1
        if self._left == 0:
            self.where = (
                f"{code.co_filename.removeprefix(LIBRARY)}:{frame.f_lineno}, {event} in {code.co_name}"
            )
            raise KeyboardInterrupt


def left_behind(world: MeetingWorld) -> list[str]:
    """Say what there still is of a join."""
    one, delivery = world.one, world.meeting._delivery
    found = [thread.name for thread in library_threads() if "[meeting-" in thread.name]
    for session_id in BOTH:
        table, machine = one._sessions.listeners(session_id), world.pool._get(session_id)[1]
        held = {
            "channel": world.state(session_id) is not S.IDLE,
            "token": one.get_token(session_id) is not None,
            "refresh handler": one._tokens.has_handler(session_id),
            "listeners": any(table.named(name) for name in list(table._by_name)),
            "observers": machine._observers != (),
        }
        found += [f"{what} of {session_id}" for what, is_there in held.items() if is_there]
    if one._holding._holder is not None or one._holding._last is not None:
        found.append("place in the client")
    if delivery._join is not None or delivery._queue:
        found.append("events")
    return found


def nothing_left(world: MeetingWorld, where: str = "") -> None:
    assert world.meeting._lock.acquire(timeout=LONG), f"{where} leaves the lock held"
    world.meeting._lock.release()
    assert not world.meeting.joined, where
    eventually(lambda: not left_behind(world), f"{where} leaves something behind")


def online(world: MeetingWorld) -> None:
    world.meeting.join(panelist(tokens=TOKENS))
    for session_id in BOTH:
        world.meeting.wait_online(session_id)
    world.rest()  # from now on it acts upon what it is told of only


def attendee(world: MeetingWorld) -> None:
    world.meeting.join({"locus": locus(tokens=TOKENS)})


def hears(world: MeetingWorld) -> bool:
    """Whether a joined meeting would hear of its channels, and tell its handlers."""
    tables = [world.one._sessions.listeners(session_id) for session_id in BOTH]
    return all(table.named("online") for table in tables) and world.meeting._delivery._join is not None


# -- anywhere ------------------------------------------------------------------------------------------------


def join(world: MeetingWorld) -> None:
    world.meeting.join(panelist(tokens=TOKENS))


def leave(world: MeetingWorld) -> None:
    world.meeting.leave()


def unadmit(world: MeetingWorld) -> None:
    world.meeting.unadmit()


def update_locus(world: MeetingWorld) -> None:
    world.meeting.update_locus(locus(channel=OTHER, tokens=TOKENS))


def update_roles(world: MeetingWorld) -> None:
    world.meeting.update_roles(["ATTENDEE"])


def wait_online(world: MeetingWorld) -> None:
    with pytest.raises(WaitTimeout):
        world.meeting.wait_online(PRACTICE_SESSION, timeout=0)


def joined_or_not(world: MeetingWorld, where: str) -> None:
    """A leave was done, or it was not begun: then the meeting goes on."""
    if world.meeting.joined:
        assert hears(world) and world.one.get_token() is not None, where
        world.meeting.wait_online()
        world.meeting.leave()


def admitted_or_not(world: MeetingWorld, where: str) -> None:
    """The lobby was entered, or it was not; either is true of facts, tokens and channels alike."""
    tokens = [world.one.get_token(session_id) for session_id in BOTH]
    if world.worker.facts.admitted:
        assert None not in tokens and world.state() is S.ONLINE, where
        world.meeting.unadmit()
    else:
        assert tokens == [None, None], where
    for session_id in BOTH:
        world.settle(session_id, S.IDLE)


def moved_or_not(world: MeetingWorld, where: str) -> None:
    """Another address is used, or it was not heard of: then it is with the next call."""
    if world.worker.facts.datachannel_url != OTHER:
        update_locus(world)
    eventually(lambda: world.one.datachannel_url() == OTHER, f"{where}: nobody acts upon the news")


def demoted_or_not(world: MeetingWorld, where: str) -> None:
    """The role was heard of and acted upon, or it was not; then it is with the next call."""
    if Role.PANELIST in world.worker.facts.roles:
        update_roles(world)
    eventually(lambda: world.state(PRACTICE_SESSION) is S.IDLE, f"{where}: nobody acts upon the news")


def goes_on(world: MeetingWorld, where: str) -> None:
    """Who waits for a channel gets it all the same."""
    world.meeting.wait_online()


def is_over(world: MeetingWorld, where: str) -> None:
    """What has not become a join is none, without any leave."""
    assert not world.meeting.joined, where


Calls = Callable[[MeetingWorld], object]
SWEEPS: dict[str, tuple[Calls, Calls, Callable[[MeetingWorld, str], None]]] = {
    "join": (lambda world: None, join, is_over),
    "leave": (online, leave, joined_or_not),
    "unadmit": (online, unadmit, admitted_or_not),
    "update_locus": (online, update_locus, moved_or_not),
    "update_roles": (online, update_roles, demoted_or_not),
    "wait_online": (attendee, wait_online, goes_on),
}


@pytest.mark.stress
@pytest.mark.parametrize("name", SWEEPS)
def test_t5_ctrl_c_at_any_place_of_a_call_leaves_nothing_behind(world: MeetingWorld, name: str) -> None:
    before, call, check = SWEEPS[name]
    places = 0
    while True:
        before(world)
        ctrl_c = CtrlC(places + 1)
        struck = ctrl_c.strikes(lambda: call(world))
        if not ctrl_c.where:
            break
        places += 1
        assert struck, f"Ctrl-C is lost: {ctrl_c.where}"
        check(world, ctrl_c.where)
        world.meeting.leave()
        nothing_left(world, ctrl_c.where)
    assert places > 10
    world.meeting.leave()
    nothing_left(world)
    online(world)


# -- here and there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Holding, "take"),
        (TokenStore, "enter"),
        (TokenStore, "set_refresh_handler"),
        (Hearing, "start"),
        (MeetingDelivery, "begin"),
        (Worker, "start"),
        (ThreadGroup, "spawn"),
    ],
)
def test_t5_a_join_that_is_interrupted_is_none(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, after: bool
) -> None:
    with monkeypatch.context() as patch:
        interrupted_at(patch, owner, name, after=after)
        with pytest.raises(KeyboardInterrupt):
            join(world)
    nothing_left(world)
    online(world)


def test_t5_a_worker_that_begins_after_its_start_was_interrupted_does_nothing(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, spawn, late = Gate(), ThreadGroup.spawn, []

    def strike(group: ThreadGroup, target: Callable[[], None], name: str, **options: Any) -> None:
        def run() -> None:
            gate.pass_through()
            target()

        late.append(spawn(group, run, name, **options))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ThreadGroup, "spawn", strike)
        with pytest.raises(KeyboardInterrupt):
            join(world)
    online(world)
    gate.open()
    late[0].join(LONG)
    world.rest()
    assert [link.closes for link in world.transport.links] == [[], []]


def test_a_leave_in_which_something_fails_leaves_nothing_behind(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = MeetingDelivery.end

    def fail(delivery: MeetingDelivery, join: object) -> None:
        end(delivery, join)
        raise RuntimeError("a mistake")

    online(world)
    ending = gate_at(monkeypatch, OwnedSessions, "begin_disconnect")
    with monkeypatch.context() as patch:
        patch.setattr(MeetingDelivery, "end", fail)
        with pytest.raises(RuntimeError, match="a mistake"):
            world.meeting.leave()
    ending.open()  # the worker ends the delivery, too
    nothing_left(world)
    online(world)


def test_t5_the_join_after_one_that_was_interrupted_waits_for_its_worker(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, ending = Worker.start, gate_at(monkeypatch, OwnedSessions, "begin_disconnect")

    def strike(worker: Worker, predecessor: Worker | None) -> None:
        start(worker, predecessor)
        world.settle(DEFAULT, S.ONLINE)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "start", strike)
        with pytest.raises(KeyboardInterrupt):
            attendee(world)
    ending.wait_arrived()
    world.meeting.join(next_meeting())
    world.rest()
    assert [link.closes for link in world.transport.links] == [[]]
    ending.open()
    world.meeting.wait_online()


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (MeetingDelivery, "end"),
        (Worker, "end"),
        (Captioning, "end"),
        (TokenStore, "drop_handler"),
        (TokenStore, "leave"),
        (Holding, "give_back"),
        (Hearing, "stop"),
        (ListenerTable, "remove_owned"),
        (Worker, "wait_over"),
    ],
)
def test_t5_a_leave_that_is_interrupted_is_done(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, after: bool
) -> None:
    online(world)
    with monkeypatch.context() as patch:
        interrupted_at(patch, owner, name, after=after)
        with pytest.raises(KeyboardInterrupt):
            world.meeting.leave()
    nothing_left(world)
    assert [world.links(session_id)[0].closes for session_id in BOTH] == [[DONE], [DONE]]
    online(world)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize(("owner", "name"), [(Worker, "change"), (TokenStore, "leave"), (Captioning, "end")])
def test_t5_an_unadmit_that_is_interrupted_is_done(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, after: bool
) -> None:
    online(world)
    world.captions.subscribe()
    with monkeypatch.context() as patch:
        interrupted_at(patch, owner, name, after=after)
        with pytest.raises(KeyboardInterrupt):
            world.meeting.unadmit()
    assert not world.worker.facts.admitted and not captioning(world)._subscribe
    assert [world.one.get_token(session_id) for session_id in BOTH] == [None, None]
    for session_id in BOTH:
        world.settle(session_id, S.IDLE)
    world.meeting.admit()
    world.meeting.wait_online(PRACTICE_SESSION)


def test_t5_a_wait_that_is_interrupted_takes_nothing_from_the_others(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.transport.on_open = stay
    join(world)
    (link,) = world.transport.wait_links(1)
    world.rest()
    changed = world.worker._changed
    other = Background(lambda: world.meeting.wait_online(timeout=LONG))
    eventually(lambda: len(changed._waiters) == 2)  # type: ignore[attr-defined]  # with the worker
    with monkeypatch.context() as patch:
        interrupted_at(patch, changed, "wait")
        with pytest.raises(KeyboardInterrupt):
            world.meeting.wait_online(timeout=LONG)
    world.transport.on_open = FakeLink.become_ready
    link.become_ready()
    assert other.result().online
    world.meeting.wait_online(PRACTICE_SESSION)


def test_t5_a_leave_whose_wait_is_interrupted_goes_on_by_itself(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    online(world)
    ending = gate_at(monkeypatch, OwnedSessions, "begin_disconnect")
    with monkeypatch.context() as patch:
        interrupted_at(patch, world.worker._changed, "wait")
        with pytest.raises(KeyboardInterrupt):
            world.meeting.leave(timeout=LONG)
    ending.wait_arrived()
    assert not world.meeting.joined
    ending.open()
    nothing_left(world)
    assert [world.links(session_id)[0].closes for session_id in BOTH] == [[DONE], [DONE]]


# -- threads that cannot start -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llm-meeting[", "llm-connector["])
@pytest.mark.parametrize("session_id", BOTH)
def test_t0_a_thread_that_cannot_start_leaves_nothing_behind(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, kind: str, session_id: str
) -> None:
    spawn, failed = ThreadGroup.spawn, threading.Event()

    def fail(group: ThreadGroup, target: Any, name: str, **options: Any) -> Any:
        if name.startswith(kind) and (kind == "llm-meeting[" or session_id in name):
            failed.set()
            raise RuntimeError("can't start new thread")
        return spawn(group, target, name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ThreadGroup, "spawn", fail)
        if kind == "llm-meeting[":
            with pytest.raises(RuntimeError, match="new thread"):
                join(world)
            nothing_left(world)
        else:
            join(world)
            (told,) = world.heard.wait("failed")
            assert failed.is_set() and told.session_id == session_id
            world.rest()
    if kind == "llm-meeting[":
        join(world)
    else:
        world.meeting.admit()
    world.meeting.wait_online(session_id)
    world.meeting.leave()
    nothing_left(world)
