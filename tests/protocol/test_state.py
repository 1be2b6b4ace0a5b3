"""The session machine: reachable, exact, and closed against every other step."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_sessions.protocol.state import (
    BUSY,
    ONLINE,
    TRANSITIONS,
    InvalidTransition,
    SessionState,
    Trigger,
    next_state,
)

# The diagram, step by step, written out apart from the table.
STEPS = """
    idle            connect         connecting
    connecting      opened          online
    connecting      gave_up         offline
    connecting      disconnect      disconnecting
    online          shutdown        switching
    online          lost            reconnecting
    online          ended           offline
    online          disconnect      disconnecting
    switching       switched        online
    switching       switch_failed   online
    switching       lost            reconnecting
    switching       ended           offline
    switching       disconnect      disconnecting
    reconnecting    opened          online
    reconnecting    gave_up         offline
    reconnecting    disconnect      disconnecting
    disconnecting   closed          idle
    offline         connect         connecting
    offline         disconnect      idle
"""
LEGAL = {
    (SessionState(before), Trigger(trigger)): SessionState(after)
    for before, trigger, after in (line.split() for line in STEPS.strip().splitlines())
}
ILLEGAL = [pair for pair in itertools.product(SessionState, Trigger) if pair not in LEGAL]


@pytest.mark.parametrize(("state", "trigger"), LEGAL, ids=lambda part: part.value)
def test_every_legal_step_leads_where_it_should(state: SessionState, trigger: Trigger) -> None:
    assert next_state(state, trigger) is LEGAL[state, trigger]


@pytest.mark.parametrize(("state", "trigger"), ILLEGAL, ids=lambda part: part.value)
def test_every_illegal_step_raises_and_says_which(state: SessionState, trigger: Trigger) -> None:
    before = {one: dict(steps) for one, steps in TRANSITIONS.items()}
    with pytest.raises(InvalidTransition, match=f"^{trigger.name} in {state.name}$") as caught:
        next_state(state, trigger)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert {one: dict(steps) for one, steps in TRANSITIONS.items()} == before


def test_an_illegal_step_is_a_bug_and_no_error_for_users() -> None:
    assert issubclass(InvalidTransition, AssertionError)
    assert len(LEGAL) + len(ILLEGAL) == len(SessionState) * len(Trigger)
    assert sum(len(steps) for steps in TRANSITIONS.values()) == len(LEGAL)


def test_every_state_is_reached_from_idle_and_can_be_left() -> None:
    reached, todo = {SessionState.IDLE}, [SessionState.IDLE]
    while todo:
        fresh = set(TRANSITIONS[todo.pop()].values()) - reached
        reached |= fresh
        todo += fresh
    assert reached == set(SessionState)
    assert all(TRANSITIONS[state] for state in SessionState)


def test_every_trigger_is_of_use() -> None:
    assert {trigger for _, trigger in LEGAL} == set(Trigger)


def test_send_works_in_the_two_online_states_and_disconnect_ends_the_four_busy_ones() -> None:
    assert {SessionState.ONLINE, SessionState.SWITCHING} == ONLINE
    assert {state for state in SessionState if (state, Trigger.DISCONNECT) in LEGAL} == BUSY | {
        SessionState.OFFLINE
    }
    assert all(LEGAL[state, Trigger.DISCONNECT] is SessionState.DISCONNECTING for state in BUSY)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[SessionState.IDLE] = {}  # type: ignore[index]


def test_i26_once_we_asked_for_a_close_nothing_reconnects() -> None:
    assert dict(TRANSITIONS[SessionState.DISCONNECTING]) == {Trigger.CLOSED: SessionState.IDLE}


@given(st.lists(st.sampled_from(Trigger), max_size=60))
def test_a_walk_moves_by_legal_steps_and_stays_put_on_others(triggers: list[Trigger]) -> None:
    state = SessionState.IDLE
    ready_sockets = 0
    for trigger in triggers:
        before = state
        try:
            state = next_state(state, trigger)
        except InvalidTransition:
            assert (before, trigger) not in LEGAL
            assert state is before
            continue
        assert LEGAL[before, trigger] is state
        # What the states claim, kept by hand: a session is online exactly while it has a ready socket.
        if trigger is Trigger.OPENED:
            ready_sockets = 1
        elif trigger in (Trigger.LOST, Trigger.ENDED, Trigger.DISCONNECT):
            ready_sockets = 0
        assert (state in ONLINE) == bool(ready_sockets)
        # Two disconnects at most bring every session home.
        if state in BUSY:
            home = next_state(next_state(state, Trigger.DISCONNECT), Trigger.CLOSED)
            assert home is SessionState.IDLE
