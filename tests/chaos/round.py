"""One round, from its seed: worlds are made, harmed, settled and closed, and an account is given."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from llm_sessions import LLMSessionsError
from tests.chaos.meeting_world import MeetingWorld
from tests.chaos.plan import Plan, make_plan
from tests.chaos.watch import Baseline, Call, Calls, ErrorLog, Metronome, Steps, illegal_steps, slow_calls
from tests.chaos.world import Outcome, PoolWorld, running
from tests.support import resident_bytes

__all__ = ["Result", "run_round"]


@dataclasses.dataclass
class Result:
    """How a round went.

    Attributes:
        seed: Of it.
        seconds: How long harm was done.
        outcome: Of both worlds.
        calls: How many calls were made.
        slowest: The call that came closest to its limit.
        resident: Bytes of memory that the process had in the end.
    """

    seed: int
    seconds: float
    outcome: Outcome
    calls: int
    slowest: Call
    resident: int = 0

    @property
    def complaints(self) -> list[str]:
        return self.outcome.account.complaints

    @property
    def good(self) -> bool:
        return not self.complaints and not self.outcome.account.unreported


def run_round(
    seed: int,
    seconds: float,
    sabotage: Callable[[PoolWorld], None] = lambda world: None,
    grace: float = 10.0,
) -> Result:
    """Run the round of a seed.

    Args:
        seed: What it is made of.
        seconds: How long harm is done.
        sabotage: Called with the pools' world before it starts: for tests of the checks.
        grace: Seconds for what is left behind to go.
    """
    plan = make_plan(seed, seconds)
    outcome = Outcome()
    baseline = Baseline()
    errors, steps = ErrorLog(), Steps()
    with Metronome() as metronome, errors.watched(), steps.watched():
        calls = Calls(metronome, (LLMSessionsError,))
        _run_worlds(plan, calls, steps, outcome, sabotage)
    found = [*errors.found, *illegal_steps(steps.taken), *slow_calls(calls.odd)]
    result = Result(seed, seconds, outcome, calls.counts.total(), calls.slowest)
    del calls, steps, errors, metronome
    outcome.account.complaints += [*found, *baseline.left_behind(grace)]
    result.resident = resident_bytes()
    return result


def _run_worlds(
    plan: Plan, calls: Calls, steps: Steps, outcome: Outcome, sabotage: Callable[[PoolWorld], None]
) -> None:
    # A function of its own: with its end the worlds are gone, and what they leave behind can be seen.
    began = time.monotonic()
    pools, meeting = PoolWorld(plan, calls, steps, began), MeetingWorld(plan, calls, steps, began)
    sabotage(pools)
    with running(pools, meeting):
        threading.Event().wait(plan.seconds)
    outcome.add(pools.finished())
    outcome.add(meeting.finished())
