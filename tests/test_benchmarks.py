"""The benchmark of a switchover runs, shows what it says, and notices what it is there to notice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.documents import ROOT
from tests.support import LONG

SCRIPT = ROOT / "benchmarks" / "switchover.py"
SMALL = ("--rate", "100", "--seconds", "0.6", "--ready-after", "0.05", "--overlap", "0.1")


@pytest.fixture
def benchmark() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "switchover"}
    # dataclasses look their module up.
    sys.modules["switchover"] = type(sys)("switchover")
    try:
        exec(compile(SCRIPT.read_text(encoding="utf-8"), str(SCRIPT), "exec"), names)
    finally:
        del sys.modules["switchover"]
    return names


def test_i99_d17_a_switchover_under_load_loses_nothing() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), *SMALL],
        capture_output=True,
        text=True,
        timeout=LONG,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    stages = re.findall(r"^ *(-?[\d.]+) +<- (.+)$", done.stdout, re.MULTILINE)
    first, second, *_, last = [text for _, text in stages]
    assert (first, second, last) == (
        "shutdown announced",
        "candidate connecting",
        "old socket closed with 4001",
    )
    assert len(stages) == 5
    account = re.search(
        r"^published (\d+), delivered (\d+), duplicates suppressed (\d+), gaps 0, longest silence \d+ ms$",
        done.stdout,
        re.MULTILINE,
    )
    assert account is not None, done.stdout
    assert account[1] == account[2] == "60" and int(account[3]) > 0
    counted = re.findall(r"^ *-?\d+ +(\d+)(?:  #+)?$", done.stdout, re.MULTILINE)
    assert sum(map(int, counted)) == 60


def test_the_account_of_a_switchover(benchmark: dict[str, Any]) -> None:
    make: Callable[..., Any] = benchmark["Account"]
    good = make([0, 1, 2], [(1.0, 0), (1.5, 2), (1.7, 1)], suppressed=2)
    assert good.good and (good.lost, good.twice, good.silence) == ([], [], 0.5)
    lost = make([0, 1, 2, 3], [(1.0, 0), (2.0, 3)])
    assert not lost.good and lost.lost == [1, 2]
    twice = make([0, 1], [(1.0, 0), (2.0, 1), (2.0, 0)])
    assert not twice.good and twice.twice == [0]
    assert not make([0], [(1.0, 0)], gaps=1).good
    assert not make([0], [(1.0, 0)], offline=True).good
    assert make([], []).silence == 0.0


@pytest.mark.parametrize("fault", ["lost", "twice"])
def test_a_switchover_that_loses_or_repeats_is_found(
    benchmark: dict[str, Any], capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    service = benchmark["Service"]
    publish = service.publish

    def faulty(self: Any) -> None:
        if len(self.published) != 30:
            publish(self)
        elif fault == "lost":
            self.published.append(30)
        else:
            publish(self)
            self._sockets[-1].send_json({"data": {"eventType": "load.message", "number": 30}})

    service.publish = faulty
    benchmark["GRACE"] = 0.2  # it is waited for in vain
    assert benchmark["main"](SMALL) == 1
    word = "LOST" if fault == "lost" else "DELIVERED TWICE"
    assert f"{word}: 1: 30\n" in capsys.readouterr().out
