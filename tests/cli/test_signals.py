"""Handlers: told once, out of the way afterwards, and given back."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from llm_sessions.cli.signals import Signal, Signals
from tests.support import Background

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_one_is_told_and_the_second_one_would_end_the_process(number: signal.Signals) -> None:
    told: list[Signal] = []
    with Signals(told.append):
        signal.raise_signal(number)
        assert told == [Signal(number)]
        assert [signal.getsignal(one) for one in NUMBERS] == [signal.SIG_DFL] * 3


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    told: list[Signal] = []
    try:
        with Signals(told.append):
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert told == [Signal(signal.SIGTERM)]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_nothing_is_handled() -> None:
    before = signal.getsignal(signal.SIGINT)

    def run() -> object:
        with Signals(lambda one: None):
            return signal.getsignal(signal.SIGINT)

    assert Background(run).result() is before
