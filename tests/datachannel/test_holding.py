"""The one place that a client has for a meeting."""

from __future__ import annotations

import pytest

from llm_sessions import OwnershipError, PoolClosed
from llm_sessions._sync import Deadline
from llm_sessions.datachannel.holding import Holding


class Holder:
    def __init__(self) -> None:
        self.given_up = 0

    def give_up(self, deadline: Deadline) -> None:
        self.given_up += 1


def test_one_at_a_time_and_each_is_told_who_was_before() -> None:
    holding, one, two = Holding(), Holder(), Holder()
    assert holding.take(one) is None
    with pytest.raises(OwnershipError, match="in a meeting already"):
        holding.take(two)
    holding.give_back(two, two)  # it is not his to give
    with pytest.raises(OwnershipError):
        holding.take(two)
    holding.give_back(one, one)
    assert holding.take(two) is one
    holding.give_back(two, one)  # it never began
    assert holding.take(two) is one


def test_closing_turns_out_who_is_there_and_lets_nobody_in() -> None:
    holding, one = Holding(), Holder()
    holding.take(one)
    holding.close(Deadline(1))
    assert one.given_up == 1
    with pytest.raises(PoolClosed):
        holding.take(Holder())


def test_i67_closing_waits_also_for_one_that_was_left_and_is_not_through() -> None:
    holding, one = Holding(), Holder()
    holding.take(one)
    holding.give_back(one, one)
    holding.close(Deadline(1))
    assert one.given_up == 1


def test_closing_where_nobody_ever_was_waits_for_nobody() -> None:
    holding, one = Holding(), Holder()
    holding.take(one)
    holding.give_back(one, None)  # it never began
    holding.close(Deadline(1))
    assert one.given_up == 0


def test_only_the_last_one_can_have_itself_forgotten() -> None:
    holding, one, two = Holding(), Holder(), Holder()
    holding.take(one)
    holding.give_back(one, one)
    holding.forget(two)
    assert holding.take(two) is one
    holding.give_back(two, one)
    holding.forget(one)
    assert holding.take(two) is None
