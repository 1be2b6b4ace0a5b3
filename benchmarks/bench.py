"""Measures this library beside others and writes the figures into docs/benchmarks.

    python benchmarks/bench.py                              # everything, at most 20 minutes
    python benchmarks/bench.py --quick --output <folder>    # some of it in 2 minutes
    python benchmarks/bench.py --only flood-1x --wires plain --output <folder>
    python benchmarks/bench.py --from docs/benchmarks/results.json    # the tables and plots once more

Rounds over the whole table are repeated until the time is up: in each, all clients of a workload have their
turn one after another, so that a machine that slows down meanwhile slows all of them. The reference is
fetched from the npm registry into a temporary folder; without node, npm or the registry it is left out, and
the report says so. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _plots
import _report
from _driver import Bench, Failed, Result, bench
from _workloads import OURS, PEERS, PLAIN, RAW, WORKLOADS, Workload

ROOT = Path(__file__).resolve().parent.parent
MINUTES, QUICK_MINUTES = 18.0, 1.5  # after that no round begins; the one under way may take a minute more
QUICK_SHARE = 3  # a quick run has so many times fewer messages
DISTRIBUTIONS = ("websocket-client", "orjson", "slack_sdk")


@dataclasses.dataclass
class Cell:
    """One workload on one wire, and what came of it."""

    workload: Workload
    wire: str
    peers: list[str]
    left_out: dict[str, str]
    rounds: list[dict[str, Result]] = dataclasses.field(default_factory=list)
    seconds: float = 0.0  # that the last round took

    def run(self, shared: Bench) -> None:
        """One more round. A client other than raw and ours that fails is left out from then on.

        Raises:
            Failed: If raw or ours does.
        """
        began, number = time.monotonic(), len(self.rounds) % len(self.peers)
        results = shared.round(self.workload, self.wire, self.peers[number:] + self.peers[:number])
        good: dict[str, Result] = {}
        for peer, result in results.items():
            if not isinstance(result, Failed):
                good[peer] = result
            elif peer in (RAW, *OURS):
                raise result
            else:
                self.left_out[peer] = str(result)
                self.peers.remove(peer)
        self.rounds.append({peer: good[peer] for peer in self.workload.peers if peer in good})
        self.seconds = time.monotonic() - began

    def line(self) -> str:
        """The last round, for people who wait."""
        figures = []
        for peer, result in self.rounds[-1].items():
            measure = "rss" if self.workload.kind == "idle" else "cpu"
            figures.append(f"{peer} {result[measure]:.1f}")
        others = max((result["others"] for result in self.rounds[-1].values()), default=0.0)
        return f"{self.workload.name:<22} {self.wire:<5}  {', '.join(figures)}; others {others:.1f}"


def cells(shared: Bench, workloads: Sequence[Workload], options: argparse.Namespace) -> list[Cell]:
    """What is going to be measured, and why some peers are not."""
    found, said = [], set()
    for workload in workloads:
        for wire in workload.wires:
            if wire.lower() not in options.wires:
                continue
            wanted = [peer for peer in workload.peers if peer in options.peers]
            reasons = {peer: shared.missing(peer, wire) for peer in wanted}
            left_out = {peer: reason for peer, reason in reasons.items() if reason}
            for peer, reason in left_out.items():
                if (peer, reason) not in said:
                    said.add((peer, reason))
                    print(f"left out: {peer}: {reason}", flush=True)
            peers = [peer for peer in wanted if peer not in left_out]
            if peers:
                found.append(Cell(workload, wire, peers, left_out))
    return found


def run(shared: Bench, table: Sequence[Cell], rounds: int, deadline: float) -> None:
    """Rounds over the whole table until each workload has enough of them, or the time is up."""
    for number in range(rounds):
        for cell in table:
            if number < cell.workload.rounds and time.monotonic() + cell.seconds < deadline:
                cell.run(shared)
                print(f"round {number + 1}  {cell.line()}", flush=True)


def quick(workload: Workload) -> Workload:
    messages = max(1, workload.messages // QUICK_SHARE)
    return dataclasses.replace(workload, messages=messages, seconds=3.0, wires=(PLAIN,))


def machine() -> dict[str, str]:
    """What the figures depend on."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    model = re.search(r"(?m)^model name\s*: (.*)$", text)
    return {
        "CPU": model[1].strip() if model else platform.machine(),
        "cores": str(os.cpu_count()),
        platform.system(): platform.release(),
    }


def versions(shared: Bench) -> dict[str, str]:
    found = {
        platform.python_implementation(): platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
    }
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if shared.modules is not None:
        done = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=30, check=True)
        found["node"] = done.stdout.strip().removeprefix("v")
        name = "@webex/internal-plugin-mercury"
        package = json.loads((shared.modules / "node_modules" / name / "package.json").read_text())
        found[name] = package["version"]
    return found


def as_json(shared: Bench, table: Sequence[Cell]) -> dict[str, Any]:
    measured = [
        {
            "workload": cell.workload.name,
            "wire": cell.wire,
            "amount": _report.amount(cell.workload),
            "left_out": cell.left_out,
            "rounds": cell.rounds,
        }
        for cell in table
        if cell.rounds
    ]
    return {"machine": machine(), "versions": versions(shared), "cells": measured}


def write(results: dict[str, Any], folder: Path) -> None:
    """The page and its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(_report.markdown(results), encoding="utf-8")
    _plots.plot_floods(results, folder / "flood.png")
    _plots.plot_growth(results, folder / "growth.png")
    print(f"written: results.md, flood.png and growth.png in {folder}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for."""
    began = time.monotonic()
    chosen = [workload for workload in WORKLOADS if any(part in workload.name for part in options.only)]
    if options.quick:
        chosen = [quick(workload) for workload in chosen if workload.quick]
    minutes = options.minutes or (QUICK_MINUTES if options.quick else MINUTES)
    with bench(options.reference, fetch_reference="reference" in options.peers) as shared:
        table = cells(shared, chosen, options)
        run(shared, table, options.rounds, began + 60 * minutes)
        for cell in table:
            if not cell.rounds:
                print(f"not measured, the time was up: {cell.workload.name} {cell.wire}")
        return as_json(shared, table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the main workloads, plain, in 2 minutes")
    parser.add_argument("--minutes", type=float, help=f"begin no round after that (default {MINUTES:g})")
    parser.add_argument("--rounds", type=int, default=9, help="at most so many")
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART", help="workloads whose name has it")
    parser.add_argument("--wires", nargs="+", choices=("plain", "tls"), default=["plain", "tls"])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--reference", type=Path, help="a folder with the reference's node_modules")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--from", dest="source", type=Path, help="results.json: measure nothing")
    options = parser.parse_args(arguments)
    if options.source:
        results = json.loads(options.source.read_text(encoding="utf-8"))
    else:
        try:
            results = measure(options)
        except Failed as failure:
            print(f"failed: {failure}", file=sys.stderr)
            return 1
        options.output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=1, ensure_ascii=False)
        (options.output / "results.json").write_text(text + "\n", encoding="utf-8")
    write(results, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
