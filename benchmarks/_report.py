"""From measurements to Markdown: no measuring here, and nothing of the machine that this runs on.

Results are what `bench.py` writes as JSON: `machine` and `versions` (texts by name), and `cells`, each with
`workload`, `wire`,
`amount` (how much was measured), `left_out` (reasons by peer) and `rounds`, each with a result by peer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from _workloads import (
    EXPONENT_TOLERANCE,
    EXPONENTS,
    PEERS,
    PLAIN,
    POOL,
    RAW,
    REFERENCE,
    TARGETS,
    TLS,
    WORKLOADS,
    Target,
    Workload,
)

Results = dict[str, Any]
Cell = dict[str, Any]


class Spread(NamedTuple):
    """Median, minimum and maximum."""

    middle: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        return f"{self.middle:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def spread(cell: Cell, peer: str, measure: str, against: str = "") -> Spread | None:
    """A figure of a peer over all rounds, or its ratio to that of another one in the same round.

    None if no round has it, or the other's is zero.
    """
    values = []
    for one in cell["rounds"]:
        value = one.get(peer, {}).get(measure)
        if against and value is not None:
            other = one.get(against, {}).get(measure)
            value = value / other if other else None
        if value is not None:
            values.append(value)
    return Spread(median(values), min(values), max(values)) if values else None


# Targets


@dataclass(frozen=True)
class Verdict:
    """A target on a wire, and what was measured."""

    target: Target
    wire: str
    limit: float
    measured: Spread | None

    @property
    def word(self) -> str:
        if self.measured is None:
            return "not measured"
        return "met" if self.measured.middle <= self.limit else "missed"

    def text(self) -> str:
        """What a cell of a workload's table says."""
        measure = MEASURES[self.target.measure]
        against = f" × {SHORT[self.target.against]}" if self.target.against else ""
        unit = "" if self.target.against or not measure.unit else f" {measure.unit}"
        return f"{measure.short} ≤ {self.limit:g}{against}{unit}: {self.word}"


def verdicts(cell: Cell, peer: str = "") -> list[Verdict]:
    """The verdicts on one table, or on one peer in it."""
    found = []
    for target in TARGETS:
        limit = target.on(cell["wire"])
        if target.workload == cell["workload"] and limit is not None and peer in ("", target.peer):
            measured = spread(cell, target.peer, target.measure, target.against)
            found.append(Verdict(target, cell["wire"], round(limit, 4), measured))
    return found


# Tables


class Measure(NamedTuple):
    """How a figure is called: in the list of targets, at the head of a column; its unit and digits."""

    short: str
    head: str
    unit: str
    digits: int


MEASURES = {
    "cpu": Measure("CPU", "CPU, µs a message", "µs", 1),
    "system": Measure("system", "in the kernel", "µs", 1),
    "voluntary": Measure("switches", "switches a message", "", 2),
    "server": Measure("server", "server's CPU", "µs", 1),
    "others": Measure("others", "others", "", 1),
    "p50": Measure("p50", "p50, µs", "µs", 0),
    "p99": Measure("p99", "p99, µs", "µs", 0),
    "rss": Measure("memory", "KiB a session", "KiB", 1),
    "wakeups": Measure("wake-ups", "wake-ups of all", "", 0),
    "connect": Measure("connects", "connects, s", "s", 2),
    "connect_cpu": Measure("CPU of connects", "their CPU, s", "s", 2),
    "disconnect": Measure("disconnect_all", "disconnect_all, s", "s", 2),
}
SHORT = {RAW: "raw", REFERENCE: "reference"}
# By kind of workload: figure, and against whom.
COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "flood": (
        ("cpu", ""),
        ("cpu", RAW),
        ("cpu", REFERENCE),
        ("system", ""),
        ("voluntary", ""),
        ("server", ""),
        ("others", ""),
    ),
    "paced": (("cpu", ""), ("cpu", RAW), ("p50", ""), ("p99", ""), ("p99", RAW), ("others", "")),
    "idle": (
        ("rss", ""),
        ("wakeups", ""),
        ("connect", ""),
        ("connect", RAW),
        ("connect_cpu", ""),
        ("connect_cpu", RAW),
        ("disconnect", ""),
        ("others", ""),
    ),
}
WITH_SPREAD = ("cpu", "p50", "p99", "connect", "connect_cpu", "rss")


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def head_of(measure: str, against: str) -> str:
    if not against:
        return MEASURES[measure].head
    return f"× {SHORT[against]}" if measure == "cpu" else f"{MEASURES[measure].short} × {SHORT[against]}"


def figure(cell: Cell, peer: str, measure: str, against: str) -> str:
    if peer == against or (measure == "disconnect" and peer != POOL):
        return ""
    found = spread(cell, peer, measure, against)
    if found is None:
        return "–"
    digits = 2 if against else MEASURES[measure].digits
    return found.text(digits) if measure in WITH_SPREAD else f"{found.middle:.{digits}f}"


def table(cell: Cell, workload: Workload) -> Iterator[str]:
    """The section of one workload on one wire."""
    count = len(cell["rounds"])
    yield f"### {workload.title}: {cell['wire']}\n"
    yield f"{count} round{'s' if count != 1 else ''}, {cell['amount']}.\n"
    there = {peer for one in cell["rounds"] for peer in one}
    columns = [column for column in COLUMNS[workload.kind] if not column[1] or column[1] in there]
    yield row(["client", *(head_of(*column) for column in columns), "target"])
    yield row(["---", *("---:" for _ in columns), "---"])
    for peer in workload.peers:
        if peer in there:
            figures = [figure(cell, peer, *column) for column in columns]
            yield row([PEERS[peer].title, *figures, "; ".join(one.text() for one in verdicts(cell, peer))])
    if cell["left_out"]:
        reasons = [f"{PEERS[peer].title} ({reason})" for peer, reason in cell["left_out"].items()]
        yield f"\nLeft out: {'; '.join(reasons)}."
    yield ""


def amount(workload: Workload) -> str:
    """How much is measured, in words."""
    if workload.kind == "idle":
        return f"idle for {workload.seconds:g} s between two keepalives"
    if workload.kind == "paced":
        return f"{workload.messages / workload.rate:g} s each"
    return f"{workload.sessions * workload.messages} messages in all"


def targets(cells: Sequence[Cell]) -> Iterator[str]:
    """All targets in one table."""
    titles = {workload.name: workload.title for workload in WORKLOADS}
    all_verdicts = [verdict for cell in cells for verdict in verdicts(cell)]
    met = sum(verdict.word == "met" for verdict in all_verdicts)
    yield f"## Targets: {met} of {len(all_verdicts)} met\n"
    yield row(["workload", "wire", "client", "what", "target", "measured", ""])
    yield row(["---", "---", "---", "---", "---:", "---:", "---"])
    for verdict in all_verdicts:
        target = verdict.target
        against = f" × {SHORT[target.against]}" if target.against else ""
        digits = 2 if target.against else MEASURES[target.measure].digits
        yield row(
            [
                titles[target.workload],
                verdict.wire,
                PEERS[target.peer].title,
                MEASURES[target.measure].short + against,
                f"≤ {verdict.limit:g}",
                verdict.measured.text(digits) if verdict.measured else "–",
                verdict.word if verdict.word == "met" else f"**{verdict.word}**",
            ]
        )
    yield ""


# Growth


def curve(cells: Sequence[Cell], axis: str, peer: str) -> list[tuple[int, Spread]]:
    """CPU of one message of a peer at each point of an axis, in order."""
    points = {workload.name: getattr(workload, axis) for workload in WORKLOADS if workload.axis == axis}
    return sorted(
        (points[cell["workload"]], value)
        for cell in cells
        if cell["workload"] in points and (value := spread(cell, peer, "cpu"))
    )


def exponent(points: Sequence[tuple[int, Spread]]) -> float | None:
    """How the cost of a message grows over the last step of a curve: 0 not at all, 1 in proportion."""
    if len(points) < 2:
        return None
    (before, low), (after, high) = points[-2:]
    return math.log(high.middle / low.middle) / math.log(after / before)


def growth(cells: Sequence[Cell]) -> Iterator[str]:
    if not any(curve(cells, axis, POOL) for axis in EXPONENTS):
        return
    yield "## Growth\n"
    yield "![CPU of a message by sessions, size and fragments](growth.png)\n"
    yield (
        "CPU of one message in µs. The exponent is that of the last step: 0 if a message costs the same at "
        "both ends, 1 if its cost is in proportion.\n"
    )
    for axis, linear in EXPONENTS.items():
        peers = next(workload.peers for workload in WORKLOADS if workload.axis == axis)
        curves = {peer: curve(cells, axis, peer) for peer in peers}
        values = sorted({value for points in curves.values() for value, _ in points})
        if not values:
            continue
        yield row(["client", *(f"{value} {AXES[axis]}" for value in values), "exponent", "target"])
        yield row(["---", *("---:" for _ in values), "---:", "---"])
        for peer, points in curves.items():
            known, grows = dict(points), exponent(points)
            limit, verdict = linear + EXPONENT_TOLERANCE, ""
            if peer.startswith(POOL) and grows is not None:
                verdict = f"≤ {limit:g}: {'met' if grows <= limit else 'missed'}"
            figures = [known[value].text(1) if value in known else "–" for value in values]
            yield row([PEERS[peer].title, *figures, "–" if grows is None else f"{grows:.2f}", verdict])
        yield ""


AXES = {"sessions": "sessions", "size": "bytes", "fragments": "fragments"}

PREFACE = """\
# Benchmarks

Written by `make bench`; do not edit. What is measured is in `benchmarks/_workloads.py`.
"""

NOTES = """\
Every figure comes from a fresh client process; the server is another process, and counts the acks. The
clients take turns, and a ratio is that of two clients in one round. Figures are medians, with the smallest
and the largest round in brackets. CPU is that of the client process, from the start of the traffic until the
last message is with its listener. `others` is how many cores other programs kept busy meanwhile: with little
idle machine left, figures of many threads are lower than on an idle one, because a second core that is free
is what makes threads fight for the GIL.

slack_sdk's clients get the same captions in envelopes of its own protocol, of the same size, and a tenth as
many. Its builtin client gets 32 at a time: its parser calls itself for each frame, and fails in a flood that
does not pause. Memory is the resident set after a collection and `malloc_trim`, less what it was with one
session. Wake-ups are the voluntary context switches of the whole process. Connects come one after another,
each until it is online; the loop that connects ahead does not wait for the server's answer in between, and
learns only later who was refused.
"""


def listed(texts: dict[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in texts.items())


def markdown(results: Results) -> str:
    """The whole page."""
    cells: list[Cell] = results["cells"]
    by_name = {(cell["workload"], cell["wire"]): cell for cell in cells}
    lines = [PREFACE]
    lines += (f"{name.capitalize()}: {listed(results[name])}.\n" for name in ("machine", "versions"))
    lines += [NOTES, *targets(cells), "## Workloads\n", "![CPU of a message in each flood](flood.png)\n"]
    for workload in WORKLOADS:
        for wire in (PLAIN, TLS):
            if not workload.axis and (cell := by_name.get((workload.name, wire))) and cell["rounds"]:
                lines += table(cell, workload)
    lines += growth(cells)
    return "\n".join(lines).rstrip() + "\n"
