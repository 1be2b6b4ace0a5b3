"""`python -m tests.chaos`: rounds until the time is over, and what they added up to."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from llm_sessions import _sync
from tests.chaos.round import Result, run_round
from tests.chaos.world import Outcome

__all__ = ["main", "run", "show"]

SHOWN = 40  # complaints


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--minutes", type=float, help="how long; 1, or with --seed one round, if not given")
    parser.add_argument("--seed", type=int, help="of the first round; drawn if not given")
    parser.add_argument("--round", type=float, default=15.0, help="seconds of a round")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    minutes = options.minutes
    if minutes is None:
        minutes = 1.0 if options.seed is None else 0.0
    _sync.check_lock_order(True)
    return run(seed, minutes * 60, options.round, run_round)


def run(
    seed: int,
    seconds: float,
    one: float,
    play: Callable[[int, float], Result],
    say: Callable[[str], None] = print,
) -> int:
    """Run rounds until the time is over, at least one; stop at the first that fails.

    Args:
        seed: Of the first round; the others' follow.
        seconds: Of all together.
        one: Of one round.
        play: Runs a round of a seed for some seconds.
        say: Prints a line.

    Returns:
        The exit status.
    """
    say(f"chaos: seed {seed}, rounds of {one:g} s")
    results: list[Result] = []
    ends = time.monotonic() + seconds
    while not results or (results[-1].good and time.monotonic() < ends):
        result = play(seed + len(results), one)
        if result.good:
            result.outcome.log.clear()  # hours of it are a lot
        results.append(result)
        account = result.outcome.account
        say(
            f"  round {result.seed}: published {account.published}, delivered {account.delivered}, "
            f"unreported {account.unreported}{'' if result.good else '  FAILED'}"
        )
        sys.stdout.flush()
    for line in show(results):
        say(line)
    if results[-1].good:
        return 0
    for line in failure(results[-1]):
        say(line)
    return 1


def show(results: Sequence[Result]) -> Iterator[str]:
    """Yield the tallies of some rounds."""
    total = Outcome()
    for result in results:
        total.add(result.outcome)
    account, counts = total.account, total.counts
    slowest = max((result.slowest for result in results), key=lambda call: call.seconds - call.limit)
    yield f"chaos: {len(results)} rounds from seed {results[0].seed}"
    yield f"  events published {account.published}: delivered {account.delivered},"
    yield f"    reported lost {account.reported}, dropped by a full queue as asked {account.dropped},"
    yield f"    published to nobody amid a switchover {account.unconnected}, unreported {account.unreported}"
    yield "  faults " + ", ".join(f"{kind} {count}" for kind, count in sorted(total.faults.items()))
    yield "  sessions " + ", ".join(
        f"{name} {counts[name]}" for name in ("attempts", "reconnects", "switchovers")
    )
    late = max(0.0, slowest.seconds - slowest.limit)
    first, last = (result.resident / 2**20 for result in (results[0], results[-1]))
    yield f"  memory {first:.0f} MiB after the first round, {last:.0f} MiB after the last"
    calls = sum(result.calls for result in results)
    yield f"  calls {calls}, slowest {slowest.name}: {late:.3f} s over its timeout"


def failure(result: Result) -> Iterator[str]:
    """Yield what went wrong in a round, and what was done in it, and when."""
    yield f"FAILED: the round of seed {result.seed}; again: make chaos SEED={result.seed}"
    yield from (f"  {text}" for text in result.complaints[:SHOWN])
    if len(result.complaints) > SHOWN:
        yield f"  … and {len(result.complaints) - SHOWN} more"
    yield "what was done, and what listeners were told, in seconds of the round:"
    yield from (f"  {line}" for line in result.outcome.log)
