"""What `make chaos` prints, and when it fails."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.chaos.command import failure, main, run, show
from tests.chaos.ledger import Account
from tests.chaos.round import Result
from tests.chaos.watch import Call
from tests.chaos.world import Outcome
from tests.documents import ROOT
from tests.support import LONG


def result(seed: int, *complaints: str, unreported: int = 0) -> Result:
    outcome = Outcome(Account(10, 7, 1, 1, 1, unreported, list(complaints)))
    outcome.faults.update({"drop": 2, "close": 1})
    outcome.counts.update({"attempts": 4, "reconnects": 3, "switchovers": 1})
    outcome.log.append("  0.100 did drop b0")
    return Result(seed, 15.0, outcome, 100, Call("connect", 0.75, 0.5), seed << 20)


def test_the_tallies_are_those_of_all_rounds() -> None:
    assert list(show([result(5), result(6)])) == [
        "chaos: 2 rounds from seed 5",
        "  events published 20: delivered 14,",
        "    reported lost 2, dropped by a full queue as asked 2,",
        "    published to nobody amid a switchover 2, unreported 0",
        "  faults close 2, drop 4",
        "  sessions attempts 8, reconnects 6, switchovers 2",
        "  memory 5 MiB after the first round, 6 MiB after the last",
        "  calls 200, slowest connect: 0.250 s over its timeout",
    ]


def test_a_failure_can_be_replayed() -> None:
    lines = list(failure(result(5, "b0: event 3 was lost", *["more"] * 50)))
    assert lines[0] == "FAILED: the round of seed 5; again: make chaos SEED=5"
    assert "  b0: event 3 was lost" in lines
    assert "  … and 11 more" in lines
    assert lines[-1] == "    0.100 did drop b0"


def test_rounds_follow_one_another_until_one_fails() -> None:
    said: list[str] = []
    played: list[tuple[int, float]] = []

    def play(seed: int, seconds: float) -> Result:
        played.append((seed, seconds))
        return result(seed, *(["lost"] if seed == 7 else []))

    assert run(5, 1000.0, 2.0, play, said.append) == 1
    assert played == [(5, 2.0), (6, 2.0), (7, 2.0)]
    assert said[0] == "chaos: seed 5, rounds of 2 s"
    assert said[3] == "  round 7: published 10, delivered 7, unreported 0  FAILED"
    assert "FAILED: the round of seed 7; again: make chaos SEED=7" in said


def test_without_time_it_is_one_round() -> None:
    said: list[str] = []
    assert run(5, 0.0, 2.0, lambda seed, seconds: result(seed), said.append) == 0
    assert "chaos: 1 rounds from seed 5" in said
    assert run(5, 0.0, 2.0, lambda seed, seconds: result(seed, unreported=1), said.append) == 1


def test_the_command_plays_a_round() -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.chaos", "--seed", "3", "--round", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG * 2, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("chaos: seed 3, rounds of 0.3 s\n  round 3: published ")
    assert ", unreported 0\n" in done.stdout


def test_nonsense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--minutes", "soon"])
    assert "invalid float" in capsys.readouterr().err
