"""The Mermaid diagram of a session's states as SVG.

The steps are those of the text, which a test holds to the table in `protocol/state.py`. Where each state is,
and which way a step bends around what is between, is said here: there are seven, and a picture that people
read is better laid out by hand. A state that has no place here is an error.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from html import escape

PLACES = {
    "idle": (125, 110),
    "disconnecting": (125, 250),
    "connecting": (360, 110),
    "online": (560, 110),
    "switching": (800, 110),
    "reconnecting": (680, 250),
    "offline": (445, 400),
}
BUSY = ("connecting", "online", "switching", "reconnecting")
FRAME = (270, 50, 610, 248)  # x, y, width and height around the busy states
HALF_WIDTH, HALF_HEIGHT = 58, 17
SIZE = (890, 440)
CHARACTER = 6.6  # pixels of an average one, in the size of site.css


@dataclasses.dataclass(frozen=True)
class Way:
    """How a step is drawn.

    Attributes:
        bend: How far its curve goes to the right of the straight line, seen from where it begins; negative
            for the left.
        along: Where its text is, from 0 at the beginning to 1 at the end.
        via: The two control points of its curve instead of `bend`, for one that goes around others.
    """

    bend: float = 0.0
    along: float = 0.5
    via: tuple[tuple[float, float], tuple[float, float]] | None = None


WAYS = {
    ("idle", "connecting"): Way(along=0.35),
    ("online", "switching"): Way(bend=-26),
    ("switching", "online"): Way(bend=-26),
    ("online", "reconnecting"): Way(bend=22, along=0.55),
    ("reconnecting", "online"): Way(bend=14, along=0.4),
    ("connecting", "offline"): Way(bend=-26, along=0.5),
    ("offline", "connecting"): Way(bend=-26, along=0.5),
    ("online", "offline"): Way(along=0.6),
    ("reconnecting", "offline"): Way(bend=-14, along=0.6),
    ("switching", "offline"): Way(via=((880, 330), (740, 400)), along=0.72),
    ("offline", "idle"): Way(via=((20, 425), (-40, 250)), along=0.22),
}
STEP = re.compile(r"(\w+) --> (\w+) : (\w+)")


def draw(text: str) -> str:
    """Return the picture.

    Raises:
        ValueError: If a line is no step, or a state has no place.
    """
    title, *lines = [line.strip() for line in text.splitlines() if line.strip()]
    if title != "stateDiagram-v2":
        raise ValueError(f"{title} is no diagram of states")
    steps: dict[tuple[str, str], list[str]] = defaultdict(list)
    for line in lines:
        found = STEP.fullmatch(line)
        if found is None or not {found[1], found[2]} <= set(PLACES):
            raise ValueError(f"cannot draw {line!r}")
        steps[found[1], found[2]].append(found[3])
    shared = _shared(steps)
    drawn = [_frame(), *(_shared_step(target, trigger) for target, trigger in shared)]
    for (source, target), triggers in steps.items():
        rest = [one for one in triggers if source not in BUSY or (target, one) not in shared]
        if rest:
            drawn.append(_step(source, target, rest))
    drawn += [_state(name) for name in PLACES]
    width, height = SIZE
    return (
        f'<svg class="states" role="img" aria-label="the states of a session" '
        f'viewBox="0 0 {width} {height}" width="{width}">{"".join(drawn)}</svg>'
    )


def _shared(steps: dict[tuple[str, str], list[str]]) -> list[tuple[str, str]]:
    """Return target and trigger of the steps that every busy state has: they begin at the frame."""
    first, *others = BUSY
    own = [(target, one) for (source, target), names in steps.items() if source == first for one in names]
    return [step for step in own if all(step[1] in steps.get((name, step[0]), ()) for name in others)]


def _frame() -> str:
    x, y, width, height = FRAME
    return f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>'


def _state(name: str) -> str:
    x, y = PLACES[name]
    kind = "box online" if name in ("online", "switching") else "box"
    return (
        f'<rect class="{kind}" x="{x - HALF_WIDTH}" y="{y - HALF_HEIGHT}" width="{2 * HALF_WIDTH}" '
        f'height="{2 * HALF_HEIGHT}" rx="{HALF_HEIGHT}"/><text class="head" x="{x}" y="{y + 4}">{name}</text>'
    )


def _shared_step(target: str, trigger: str) -> str:
    x, y = PLACES[target]
    start, end = FRAME[0], x + HALF_WIDTH
    arrow = _arrow((start, y), (start - 1, y), (end + 8, y), (end, y))
    return arrow + _label((start + end) / 2, y - 8, trigger)


def _step(source: str, target: str, triggers: list[str]) -> str:
    way = WAYS.get((source, target), Way())
    start, end = PLACES[source], PLACES[target]
    if way.via is not None:
        first, second = way.via
    else:
        length = math.dist(start, end)
        across = (-(end[1] - start[1]) / length, (end[0] - start[0]) / length)
        # Control points at a third of the way: the curve gets three quarters as far.
        first, second = (
            (
                start[0] + (end[0] - start[0]) * part + across[0] * way.bend * 4 / 3,
                start[1] + (end[1] - start[1]) * part + across[1] * way.bend * 4 / 3,
            )
            for part in (1 / 3, 2 / 3)
        )
    start, end = _border(source, first), _border(target, second)
    x, y = _point(start, first, second, end, way.along)
    return _arrow(start, first, second, end) + _label(x, y + 4, *triggers)


def _border(name: str, towards: tuple[float, float]) -> tuple[float, float]:
    """Return where the line from a state's middle leaves its box."""
    x, y = PLACES[name]
    dx, dy = towards[0] - x, towards[1] - y
    scale = min(HALF_WIDTH / abs(dx) if dx else math.inf, HALF_HEIGHT / abs(dy) if dy else math.inf)
    return x + dx * scale, y + dy * scale


def _point(
    a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float], t: float
) -> tuple[float, float]:
    s = 1 - t
    weights = (s**3, 3 * s * s * t, 3 * s * t * t, t**3)
    points = (a, b, c, d)
    return (
        sum(w * p[0] for w, p in zip(weights, points, strict=True)),
        sum(w * p[1] for w, p in zip(weights, points, strict=True)),
    )


def _arrow(
    a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]
) -> str:
    line = " ".join(f"{x:.1f} {y:.1f}" for x, y in (b, c, d))
    turned = f"rotate({math.degrees(math.atan2(d[1] - c[1], d[0] - c[0])):.1f})"
    return (
        f'<path class="edge" d="M{a[0]:.1f} {a[1]:.1f}C{line}"/>'
        f'<path class="tip" transform="translate({d[0]:.1f} {d[1]:.1f}) {turned}" d="M0 0l-9 -4v8z"/>'
    )


def _label(x: float, y: float, *lines: str) -> str:
    drawn = []
    for number, line in enumerate(lines):
        top, half = y + 14 * number, len(line) * CHARACTER / 2
        drawn.append(
            f'<rect class="blank" x="{x - half:.1f}" y="{top - 11:.1f}" width="{2 * half:.1f}" height="14"/>'
            f'<text class="label" x="{x:.1f}" y="{top:.1f}">{escape(line)}</text>'
        )
    return "".join(drawn)
