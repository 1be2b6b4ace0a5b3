"""The account of some short rounds adds up, and a library that loses, repeats or leaks is found out.

`make chaos` plays longer ones.
"""

from __future__ import annotations

import logging
import random
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import SessionState
from llm_sessions.pool.reports import SessionReports
from llm_sessions.protocol.state import Trigger
from tests.chaos.command import failure
from tests.chaos.round import Result, run_round
from tests.chaos.service import EVENT_TYPE
from tests.chaos.watch import Call, Step
from tests.chaos.world import PoolWorld

SECONDS = 2.5
SEEDS = (3, 14)  # plain, many switchovers, short queues; TLS, likewise


def passed(result: Result) -> None:
    if not result.good:
        pytest.fail("\n".join(failure(result)), pytrace=False)
    account = result.outcome.account
    assert account.published == (account.delivered + account.dropped + account.reported + account.unconnected)
    assert account.delivered > 20 and result.calls > 50


@pytest.mark.stress
@pytest.mark.parametrize("seed", SEEDS)
def test_every_event_is_delivered_once_or_its_loss_is_reported(seed: int) -> None:
    passed(run_round(seed, SECONDS))


@pytest.mark.stress
def test_every_event_is_accounted_for_in_a_round_that_nobody_has_seen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    with capsys.disabled():
        print(f"\nchaos: a round of seed {seed}")  # noqa: T201  # so that it can be played again
    passed(run_round(seed, SECONDS))


def is_event(event: Any) -> bool:
    return (
        type(event) is dict
        and isinstance(event.get("data"), dict)
        and (event["data"].get("eventType") == EVENT_TYPE)
    )


Received = Callable[[SessionReports, Any, Any], bool]


@pytest.mark.parametrize(
    ("copies", "complaint"),
    [
        (0, r"event (\d+) was (acknowledged and not delivered|lost in the middle)"),
        (2, r"(\d+) was delivered 2 times"),
    ],
)
def test_a_library_that_loses_or_repeats_an_event_is_found_out(
    monkeypatch: pytest.MonkeyPatch, copies: int, complaint: str
) -> None:
    original: Received = SessionReports.link_received
    chosen = range(5, 100, 10)

    def received(self: SessionReports, link: Any, events: Any) -> bool:
        blocks = self.session_id.startswith("b")
        found = [
            event
            for event in events
            for _ in range(copies if blocks and is_event(event) and event["data"]["number"] in chosen else 1)
        ]
        return original(self, link, found)

    monkeypatch.setattr(SessionReports, "link_received", received)
    result = run_round(1, 0.5)
    assert not result.good
    numbers = [int(found[1]) for text in result.complaints if (found := re.search(complaint, text))]
    assert numbers and set(numbers) <= set(chosen), result.complaints
    assert any(result.complaints[0] in line for line in failure(result))


def test_a_round_that_leaves_a_thread_fails_a_call_or_takes_a_wrong_step_is_found_out() -> None:
    go = threading.Event()

    def sabotage(world: PoolWorld) -> None:
        threading.Thread(target=go.wait, args=(30,), name="straggler").start()
        world.calls.time("broken", 0.0, lambda: {}["missing"])
        world.calls.odd.append(Call("slow", 2.0, 0.5))
        world.steps.taken.append(Step(0, "x", SessionState.IDLE, Trigger.LOST, SessionState.OFFLINE))
        logging.getLogger("llm_sessions.pool").error("oh dear")
        world.service.server.report("the client did wrong")

    try:
        result = run_round(1, 0.2, sabotage, grace=0.1)
    finally:
        go.set()
    assert result.complaints == [
        "the client did wrong",
        "logged: oh dear",
        "x: idle -> offline by lost is not in the table",
        "broken raised KeyError: 'missing'",
        "slow took 2.00 s with a timeout of 0.50 s",
        "thread straggler still runs",
    ]
