"""One seed, one round."""

from __future__ import annotations

import pytest

from tests.chaos.director import Director
from tests.chaos.meeting_world import MeetingScript
from tests.chaos.plan import KINDS, MEETING_KINDS, make_plan

SEEDS = range(60)


def test_the_same_seed_gives_the_same_round() -> None:
    for seed in SEEDS:
        assert make_plan(seed, 5.0) == make_plan(seed, 5.0)
        numbers = [make_plan(seed, 5.0).rng("actor-1").random() for _ in range(2)]
        assert numbers[0] == numbers[1] != make_plan(seed, 5.0).rng("actor-2").random()


def test_other_seeds_give_other_rounds() -> None:
    assert len({make_plan(seed, 5.0).actions for seed in SEEDS}) == len(SEEDS)
    shapes = [make_plan(seed, 1.0) for seed in SEEDS]
    assert {plan.tls for plan in shapes} == {True, False}
    assert len({plan.queue_size for plan in shapes}) > 2


def test_a_longer_round_begins_as_a_shorter_one() -> None:
    short, long = make_plan(7, 3.0), make_plan(7, 9.0)
    assert long.actions[: len(short.actions)] == short.actions
    assert long.meeting_actions[: len(short.meeting_actions)] == short.meeting_actions
    assert len(long.actions) > len(short.actions)


def test_actions_are_in_order_within_the_round_and_as_long_as_their_kind() -> None:
    for seed in SEEDS:
        plan = make_plan(seed, 4.0)
        for actions, kinds in ((plan.actions, KINDS), (plan.meeting_actions, MEETING_KINDS)):
            assert list(actions) == sorted(actions, key=lambda action: action.at)
            for action in actions:
                low, high = kinds[action.kind].lasts or (0.0, 0.0)
                assert 0 < action.at <= 4.0 and low - 0.001 <= action.seconds <= high + 0.001
                assert action.session in (None, *plan.sessions, "default", "practice")


def test_every_kind_comes_and_can_be_done() -> None:
    plans = [make_plan(seed, 20.0) for seed in SEEDS]
    assert {action.kind for plan in plans for action in plan.actions} == set(KINDS)
    assert {action.kind for plan in plans for action in plan.meeting_actions} == set(MEETING_KINDS)
    for kind in KINDS:
        assert callable(getattr(Director, f"do_{kind}"))
    for kind in MEETING_KINDS:
        assert callable(getattr(MeetingScript, f"do_{kind}"))


@pytest.mark.parametrize("seed", range(5))
def test_an_action_says_what_it_is(seed: int) -> None:
    for action in make_plan(seed, 4.0).actions:
        assert action.kind in str(action) and f"{action.at:.3f}" in str(action)
        assert str(action).endswith(" s") == bool(action.seconds)
