"""From measurements to pictures, by matplotlib; see `_report.py` for what results are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _report import AXES, Cell, Results, curve, spread
from _workloads import EXPONENTS, PEERS, PLAIN, WORKLOADS

COLOURS = dict(
    zip(PEERS, ("#7f7f7f", "#b3b3b3", "#1f77b4", "#76b7e5", "#d9772b", "#efb07f", "#59a14f"), strict=True)
)
DPI = 120


def figure(width: float, height: float) -> Any:
    """A figure without the global state of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(found)
    return found


def bars(cells: Sequence[Cell]) -> list[tuple[str, dict[str, tuple[float, float, float]]]]:
    """Title of each flood on a plain socket, and by peer the CPU: median, below it, above it."""
    found = []
    for workload in WORKLOADS:
        for cell in cells:
            if (
                workload.kind != "flood"
                or workload.axis
                or (cell["workload"], cell["wire"])
                != (
                    workload.name,
                    PLAIN,
                )
            ):
                continue
            figures = {peer: spread(cell, peer, "cpu") for peer in workload.peers}
            known = {
                peer: (one.middle, one.middle - one.low, one.high - one.middle)
                for peer, one in figures.items()
                if one is not None
            }
            found.append((workload.title.removeprefix("Flood, ").replace(", ", "\n"), known))
    return found


def plot_floods(results: Results, path: Path) -> None:
    """Bars, one group for each flood."""
    groups = bars(results["cells"])
    drawn = figure(10, 5)
    axes = drawn.add_subplot()
    width = 0.8 / len(PEERS)
    for number, (peer, about) in enumerate(PEERS.items()):
        places = [(at, known[peer]) for at, (_, known) in enumerate(groups) if peer in known]
        if not places:
            continue
        axes.bar(
            [at + (number - (len(PEERS) - 1) / 2) * width for at, _ in places],
            [middle for _, (middle, _, _) in places],
            width,
            yerr=[[one[1] for _, one in places], [one[2] for _, one in places]],
            label=about.title,
            color=COLOURS[peer],
            error_kw={"linewidth": 0.8},
        )
    axes.set_yscale("log")
    axes.set_xticks(range(len(groups)), [title for title, _ in groups])
    axes.set_ylabel("CPU of the client, µs a message (log)")
    axes.set_title("Flood: median, smallest and largest round")
    axes.grid(axis="y", linewidth=0.3)
    if groups:
        axes.legend(fontsize="small")
    drawn.savefig(path, dpi=DPI)


def plot_growth(results: Results, path: Path) -> None:
    """One panel for each axis, logarithmic both ways: what is in proportion is a straight line."""
    drawn = figure(12, 4)
    for panel, axis in zip(drawn.subplots(1, len(EXPONENTS)), EXPONENTS, strict=True):
        for peer, about in PEERS.items():
            points = curve(results["cells"], axis, peer)
            if points:
                panel.errorbar(
                    [value for value, _ in points],
                    [one.middle for _, one in points],
                    yerr=[
                        [one.middle - one.low for _, one in points],
                        [one.high - one.middle for _, one in points],
                    ],
                    marker="o",
                    markersize=3,
                    label=about.title,
                    color=COLOURS[peer],
                )
                panel.legend(fontsize="small")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(AXES[axis])
        panel.set_ylabel("CPU, µs a message")
        panel.grid(linewidth=0.3)
    drawn.savefig(path, dpi=DPI)
