"""Which channels a meeting should have, each step towards them, and that the steps always arrive."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llm_sessions import ConfigurationError
from llm_sessions.meetings.rules import (
    Channel,
    Connect,
    Disconnect,
    Facts,
    Role,
    Seen,
    next_step,
    read_roles,
    wanted,
)
from llm_sessions.protocol.state import BUSY, ONLINE, SessionState, Trigger, next_state
from llm_sessions.session_ids import LLM_DEFAULT_SESSION as DEFAULT
from llm_sessions.session_ids import LLM_PRACTICE_SESSION as PRACTICE

IDLE, CONNECTING, OFFLINE = SessionState.IDLE, SessionState.CONNECTING, SessionState.OFFLINE
PANELIST = Facts(
    joined=True,
    locus_url="locus",
    datachannel_url="main",
    practice_url="practice",
    roles=frozenset({Role.PANELIST}),
    practice_enabled=True,
)
ATTENDEE = dataclasses.replace(PANELIST, roles=frozenset({Role.ATTENDEE}))
LEFT = dataclasses.replace(PANELIST, joined=False)
MAIN, INNER = Channel("locus", "main"), Channel("locus", "practice")
BOTH = {DEFAULT: MAIN, PRACTICE: INNER}


def seen(
    default: SessionState = IDLE, practice: SessionState = IDLE, settled: int | None = None
) -> dict[str, Seen]:
    return {
        DEFAULT: Seen(None if default is IDLE else MAIN, default, settled),
        PRACTICE: Seen(None if practice is IDLE else INNER, practice, settled),
    }


# Roles


@pytest.mark.parametrize("spelling", [str.upper, str.lower, str.title])
def test_roles_are_read_in_any_case(spelling: Any) -> None:
    assert read_roles([spelling(role.value) for role in Role]) == set(Role)
    assert read_roles(iter([Role.PANELIST, spelling("panelist")])) == {Role.PANELIST}
    assert read_roles([]) == frozenset()


@pytest.mark.parametrize("roles", [["PRESENTER"], [""], [None], [3], [["PANELIST"]]])
def test_what_is_no_role_is_refused(roles: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be some of MODERATOR, COHOST, PANELIST, ATTENDEE"):
        read_roles(roles)


@pytest.mark.parametrize("roles", ["PANELIST", None, 3, {"PANELIST": True}, Role.PANELIST])
def test_roles_are_a_list(roles: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be a list of roles"):
        read_roles(roles)


# What is wanted


def test_a_panelist_in_a_practice_session_wants_both_channels() -> None:
    assert wanted(PANELIST) == BOTH
    assert wanted(dataclasses.replace(PANELIST, roles=frozenset(Role))) == BOTH


@pytest.mark.parametrize(
    "missing",
    [
        {"joined": False},
        {"admitted": False},
        {"connect_wanted": False},
        {"locus_url": None},
        {"locus_url": ""},
    ],
    ids=str,
)
@pytest.mark.invariant("I66")
def test_i66_without_being_in_the_meeting_nothing_is_wanted(missing: dict[str, Any]) -> None:
    assert wanted(dataclasses.replace(PANELIST, **missing)) == {}


@pytest.mark.parametrize(
    "missing",
    [
        {"roles": frozenset()},
        {"roles": frozenset({Role.ATTENDEE})},
        {"roles": frozenset({Role.MODERATOR, Role.COHOST})},
        {"practice_enabled": False},
        {"practice_url": None},
        {"practice_url": ""},
    ],
    ids=range(6),
)
def test_the_practice_session_takes_a_panelist_a_url_and_being_on(missing: dict[str, Any]) -> None:
    assert wanted(dataclasses.replace(PANELIST, **missing)) == {DEFAULT: MAIN}


@pytest.mark.parametrize("url", [None, ""])
def test_without_the_main_url_the_practice_session_waits(url: str | None) -> None:
    facts = dataclasses.replace(PANELIST, datachannel_url=url)
    assert wanted(facts) == {PRACTICE: INNER}
    assert next_step(facts, {}, 1) is None


def test_nobody_wants_anything_at_first() -> None:
    assert wanted(Facts()) == {}
    assert next_step(Facts(), {}, 0) is None


# One step


def test_the_default_channel_comes_first() -> None:
    assert next_step(PANELIST, {}, 1) == Connect(DEFAULT, MAIN)
    assert next_step(PANELIST, seen(), 1) == Connect(DEFAULT, MAIN)


@pytest.mark.parametrize("state", SessionState)
def test_the_practice_session_is_started_only_while_the_default_one_is_online(state: SessionState) -> None:
    step = next_step(PANELIST, {DEFAULT: Seen(MAIN, state, 1)}, 1)
    assert step == (Connect(PRACTICE, INNER) if state in ONLINE else None)


@pytest.mark.parametrize("practice", sorted(BUSY, key=str))
@pytest.mark.parametrize("default", SessionState)
def test_a_practice_session_that_is_there_stays_when_the_default_one_is_lost(
    default: SessionState, practice: SessionState
) -> None:
    step = next_step(PANELIST, seen(default, practice), 1)
    assert step == (Connect(DEFAULT, MAIN) if default in (IDLE, OFFLINE) else None)


@pytest.mark.parametrize("facts", [ATTENDEE, dataclasses.replace(PANELIST, practice_enabled=False)])
@pytest.mark.parametrize("state", SessionState)
def test_i77_revoked_is_ended_also_while_it_connects(state: SessionState, facts: Facts) -> None:
    step = next_step(facts, seen(SessionState.ONLINE, state), 1)
    assert step == (Disconnect(PRACTICE, 3050, "done (permanent)") if state in BUSY else None)


@pytest.mark.parametrize("facts", [LEFT, dataclasses.replace(PANELIST, admitted=False)])
def test_i67_leaving_ends_the_practice_session_and_then_the_default_one(facts: Facts) -> None:
    online = SessionState.ONLINE
    assert next_step(facts, seen(online, online), 1) == Disconnect(PRACTICE, 3050, "done (permanent)")
    assert next_step(facts, seen(online), 1) == Disconnect(DEFAULT, 3050, "done (permanent)")
    assert next_step(facts, seen(online, SessionState.DISCONNECTING), 1) == Disconnect(
        DEFAULT, 3050, "done (permanent)"
    )
    assert next_step(facts, seen(OFFLINE, OFFLINE), 1) is None


@pytest.mark.parametrize("state", sorted(BUSY, key=str))
@pytest.mark.parametrize("change", [{"locus_url": "new"}, {"datachannel_url": "new"}])
def test_other_urls_end_the_default_channel_and_connect_it_anew(
    change: dict[str, str], state: SessionState
) -> None:
    facts = dataclasses.replace(PANELIST, **change)
    there = seen(state)
    assert next_step(facts, there, 2) == Disconnect(DEFAULT, 3050, "done (permanent)")
    there[DEFAULT] = Seen(MAIN, SessionState.DISCONNECTING)
    assert next_step(facts, there, 2) is None
    there[DEFAULT] = Seen()
    assert next_step(facts, there, 2) == Connect(DEFAULT, wanted(facts)[DEFAULT])


@pytest.mark.parametrize("state", sorted(BUSY, key=str))
def test_i79_a_practice_session_with_another_url_is_replaced(state: SessionState) -> None:
    facts = dataclasses.replace(PANELIST, practice_url="new")
    there = seen(SessionState.ONLINE, state)
    assert next_step(facts, there, 2) == Disconnect(PRACTICE, 3050, "replaced")
    there[PRACTICE] = Seen()
    assert next_step(facts, there, 2) == Connect(PRACTICE, Channel("locus", "new"))


def test_a_session_that_somebody_else_connected_is_taken_over() -> None:
    there = {DEFAULT: Seen(None, SessionState.ONLINE)}
    assert next_step(PANELIST, there, 1) == Disconnect(DEFAULT, 3050, "done (permanent)")


@pytest.mark.parametrize("session_id", [DEFAULT, PRACTICE])
def test_i80_what_ended_for_good_waits_for_a_new_fact(session_id: str) -> None:
    there = {DEFAULT: Seen(MAIN, SessionState.ONLINE), session_id: Seen(BOTH[session_id], OFFLINE, 5)}
    assert next_step(PANELIST, there, 5) is None
    assert next_step(PANELIST, there, 4) is None  # an old look at the facts tries nothing either
    assert next_step(PANELIST, there, 6) == Connect(session_id, BOTH[session_id])
    # An end that was told before its session was seen at rest counts too.
    there[session_id] = Seen(None, IDLE, 5)
    assert next_step(PANELIST, there, 5) is None


# All of it: any facts in any order, any fate of any session, and the steps between them


class World:
    """Two sessions that do what steps say and suffer what a network does to them."""

    def __init__(self) -> None:
        self.facts, self.generation = Facts(), 0
        self.seen = {DEFAULT: Seen(), PRACTICE: Seen()}
        self.begun: dict[str, int] = {}
        self.attempts: set[tuple[str, int]] = set()

    def change(self, **facts: Any) -> None:
        self.facts, self.generation = dataclasses.replace(self.facts, **facts), self.generation + 1

    def happen(self, session_id: str, trigger: Trigger, **more: Any) -> None:
        one = self.seen[session_id]
        self.seen[session_id] = dataclasses.replace(one, state=next_state(one.state, trigger), **more)

    def step(self) -> Connect | Disconnect | None:
        step = next_step(self.facts, self.seen, self.generation)
        assert step is None or wanted(self.facts) or self.open
        if isinstance(step, Connect):
            assert wanted(self.facts)[step.session_id] == step.channel
            if step.session_id == PRACTICE:
                assert self.seen[DEFAULT].state in ONLINE
                assert self.seen[DEFAULT].channel == wanted(self.facts)[DEFAULT]
            self.begun[step.session_id] = self.generation
            self.happen(step.session_id, Trigger.CONNECT, channel=step.channel)
        elif isinstance(step, Disconnect):
            # Never of what is right as it is, and never twice: DISCONNECTING takes no DISCONNECT.
            assert self.seen[step.session_id].channel != wanted(self.facts).get(step.session_id)
            self.happen(step.session_id, Trigger.DISCONNECT)
        return step

    def let_happen(self, session_id: str) -> bool:
        """Let the best come of whatever is under way in a session."""
        state = self.seen[session_id].state
        if state in (CONNECTING, SessionState.RECONNECTING):
            self.happen(session_id, Trigger.OPENED)
        elif state is SessionState.DISCONNECTING:
            self.happen(session_id, Trigger.CLOSED, channel=None)
        else:
            return False
        return True

    def fail(self, session_id: str) -> None:
        self.happen(session_id, Trigger.GAVE_UP, settled=self.begun[session_id])

    def end(self, session_id: str) -> None:
        self.happen(session_id, Trigger.ENDED, settled=self.generation)

    @property
    def open(self) -> dict[str, Channel | None]:
        return {session_id: one.channel for session_id, one in self.seen.items() if one.state in BUSY}

    def settle(self) -> int:
        """Take steps and let them succeed until nothing happens any more; return how many steps it took."""
        for taken in range(20):
            step = self.step()
            moved = [self.let_happen(session_id) for session_id in self.seen]
            if step is None and not any(moved):
                return taken
        raise AssertionError("the steps do not come to an end")


FACTS = st.one_of(
    st.builds(dict, joined=st.booleans()),
    st.builds(dict, admitted=st.booleans()),
    st.builds(dict, connect_wanted=st.booleans()),
    st.builds(dict, locus_url=st.sampled_from(["locus", "locus 2", None])),
    st.builds(dict, datachannel_url=st.sampled_from(["main", "main 2", None])),
    st.builds(dict, practice_url=st.sampled_from(["practice", "practice 2", None])),
    st.builds(dict, practice_enabled=st.booleans()),
    st.builds(dict, roles=st.frozensets(st.sampled_from(Role))),
    st.just({field.name: getattr(PANELIST, field.name) for field in dataclasses.fields(Facts)}),
)
SESSIONS = st.sampled_from([DEFAULT, PRACTICE])


class Meetings(RuleBasedStateMachine):
    """Facts change, sessions open, fail, are lost and end, in any order, with single steps in between."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(facts=FACTS)
    def the_facts_change(self, facts: dict[str, Any]) -> None:
        self.world.change(**facts)

    @rule()
    def a_step_is_taken(self) -> None:
        before = dict(self.world.seen)
        step = self.world.step()
        if step is None:
            assert self.world.seen == before
        else:
            assert self.world.step() != step  # not before something has come of it

    @rule(session_id=SESSIONS)
    def a_session_arrives(self, session_id: str) -> None:
        self.world.let_happen(session_id)

    @rule(session_id=SESSIONS, trigger=st.sampled_from(["fail", "end", "lost", "shutdown", "switched"]))
    def a_session_suffers(self, session_id: str, trigger: str) -> None:
        state = self.world.seen[session_id].state
        if trigger == "fail":
            assume(state in (CONNECTING, SessionState.RECONNECTING))
            self.world.fail(session_id)
        elif trigger == "end":
            assume(state in ONLINE)
            self.world.end(session_id)
        else:
            assume(state is SessionState.SWITCHING if trigger == "switched" else state in ONLINE)
            assume(trigger != "shutdown" or state is SessionState.ONLINE)
            self.world.happen(session_id, Trigger(trigger))

    @precondition(lambda self: self.world.generation % 3 == 0)
    @rule()
    def all_is_well_for_a_while(self) -> None:
        world = self.world
        world.change()  # so that nothing is settled from before
        assert world.settle() <= 10
        want = wanted(world.facts)
        reachable = want if DEFAULT in want else {}
        # The practice session cannot begin without the default channel, but stays.
        if world.seen[PRACTICE].state in BUSY and PRACTICE in want:
            reachable = want
        assert world.open == dict(reachable)
        assert all(world.seen[session_id].state in ONLINE for session_id in reachable)

    @invariant()
    def asking_changes_nothing_and_gives_the_same(self) -> None:
        world = self.world
        before = dict(world.seen)
        first = next_step(world.facts, world.seen, world.generation)
        assert next_step(world.facts, world.seen, world.generation) == first
        assert world.seen == before


class TestMeetings(Meetings.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@given(st.lists(FACTS, max_size=12))
def test_i72_any_facts_in_any_order_arrive_at_what_is_wanted_last(changes: list[dict[str, Any]]) -> None:
    world = World()
    for facts in changes:
        world.change(**facts)
        world.step()  # a single one: the next facts come while it is under way
    world.settle()
    want = wanted(world.facts)
    if DEFAULT in want:
        assert world.open == want
    else:
        assert world.open in ({}, want)


def test_i73_one_wait_however_many_updates() -> None:
    world = World()
    world.change(**{field.name: getattr(PANELIST, field.name) for field in dataclasses.fields(Facts)})
    assert world.step() == Connect(DEFAULT, MAIN)
    for _ in range(20):
        world.change(practice_enabled=True)
        assert world.step() is None
    world.let_happen(DEFAULT)
    assert [world.step(), world.step()] == [Connect(PRACTICE, INNER), None]


@pytest.mark.parametrize(
    "change",
    [{"joined": False}, {"roles": frozenset()}, {"practice_enabled": False}, {"practice_url": None}],
    ids=str,
)
def test_i75_what_is_taken_back_while_it_waits_never_starts(change: dict[str, Any]) -> None:
    there = seen(CONNECTING)
    assert next_step(PANELIST, there, 1) is None
    facts = dataclasses.replace(PANELIST, **change)
    there = seen(SessionState.ONLINE)
    assert next_step(facts, there, 2) in (None, Disconnect(DEFAULT, 3050, "done (permanent)"))


def test_i76_the_default_channel_drops_before_the_practice_session_begins() -> None:
    assert next_step(PANELIST, seen(SessionState.ONLINE), 1) == Connect(PRACTICE, INNER)
    assert next_step(PANELIST, seen(SessionState.RECONNECTING), 1) is None
