"""What a round does and when, from its seed alone. Pure."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["KINDS", "MEETING_KINDS", "Action", "Kind", "Plan", "make_plan"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to do harm.

    Attributes:
        weight: How often, beside the others.
        lasts: Seconds that it lasts, from and to; None for what is done at once.
        value: Draws what else there is to it.
    """

    weight: float
    lasts: tuple[float, float] | None = None
    value: Callable[[random.Random], Any] = lambda rng: None


@dataclasses.dataclass(frozen=True)
class Action:
    """One thing to do.

    Attributes:
        at: Seconds after the round's beginning.
        kind: One of `KINDS`.
        session: To which session; None for what concerns all.
        seconds: How long it lasts.
        value: As its kind says.
    """

    at: float
    kind: str
    session: str | None
    seconds: float = 0.0
    value: Any = None

    def __str__(self) -> str:
        whom = "all" if self.session is None else self.session
        lasts = f" for {self.seconds:.2f} s" if self.seconds else ""
        value = "" if self.value is None else f" {self.value!r}"
        return f"{self.at:7.3f} {self.kind} {whom}{value}{lasts}"


CLOSES: Final = (
    *((1001, "going away"), (1005, ""), (1006, ""), (1011, "oops"), (1000, "idle"), (4000, "moved")),
    *((4401, "expired"), (3050, "done (forced)"), (1000, "bye"), (1003, "no"), (4001, "gone")),
    *((4000, "replaced"), (1008, "policy")),
)
REJECTIONS: Final = (401, 404, 429, 503, 408, 403, 4401, 1011, 1005, 1006, 4400, 4403, 1008)
GARBAGE: Final = ("null", "[]", "{", "binary", "utf-8", "deep", "empty", "fragments", "ping", "strange")
FAREWELLS: Final = ("4001", "4001", "4001", "1006", "drop", "1000", "stay", "again")

KINDS: Final[Mapping[str, Kind]] = {
    # by the server
    "drop": Kind(4),
    "close": Kind(6, value=lambda rng: rng.choice(CLOSES)),
    # how long after it the old socket goes, and how
    "shutdown": Kind(12, (0.0, 1.2), lambda rng: rng.choice(FAREWELLS)),
    "reject": Kind(4, value=lambda rng: (rng.choice(REJECTIONS), rng.randint(1, 2))),
    "garbage": Kind(4, value=lambda rng: rng.choice(GARBAGE)),
    "skip": Kind(6, value=lambda rng: rng.randint(1, 4)),
    "spoil": Kind(4, value=lambda rng: rng.choice(("large", "{", "binary"))),
    "burst": Kind(6, value=lambda rng: rng.randint(20, 300)),
    "restart": Kind(1.5, (0.0, 0.5)),
    "new_token": Kind(2),
    "mute": Kind(3, (0.1, 1.0)),
    "wrong_pong": Kind(3, (0.1, 0.6)),
    "withhold_ready": Kind(2, (0.1, 1.3)),
    "hold_upgrades": Kind(2, (0.1, 1.3)),
    "stall_reads": Kind(2, (0.1, 1.0)),
    "ignore_close": Kind(2, (0.1, 1.0)),
    # by the network
    "reset": Kind(4),
    "cut": Kind(3, value=lambda rng: rng.choice(("both", "to_client", "to_server"))),
    "black_hole": Kind(3, (0.1, 1.2), lambda rng: rng.choice(("both", "to_client", "to_server"))),
    "freeze": Kind(3, (0.1, 0.8), lambda rng: rng.choice(("both", "to_client", "to_server"))),
    "drip": Kind(3, (0.1, 1.0), lambda rng: rng.choice((1, 3, 50, 700))),
    "delay": Kind(3, (0.1, 1.0), lambda rng: rng.choice((0.01, 0.05, 0.2))),
    "refuse": Kind(2, (0.05, 0.5)),
    "hold_connects": Kind(2, (0.1, 1.3)),
    "early_reset": Kind(2, value=lambda rng: rng.randint(1, 3)),
    # by the program
    "slow_listener": Kind(4, (0.05, 0.7)),
    "blocked_token": Kind(1, (0.1, 1.0)),
    "failing_token": Kind(1, (0.1, 0.5)),
}
"""What may be done to the sessions of the pools."""

FOR_ALL: Final = frozenset({"restart", "new_token", "blocked_token", "failing_token"})

MEETING_KINDS: Final[Mapping[str, Kind]] = {
    **{name: KINDS[name] for name in ("drop", "shutdown", "burst", "skip", "mute", "reject")},
    "close": Kind(5, value=lambda rng: rng.choice(CLOSES[:7])),
    "expire_tokens": Kind(2),
    "reject_rest": Kind(3, value=lambda rng: rng.choice((401, 403, 429, 500, 503))),
    "hold_rest": Kind(2, (0.1, 0.8)),
    # by the meeting
    "roles": Kind(25, value=lambda rng: rng.choice(("promote", "demote"))),
    "practice": Kind(12, value=lambda rng: rng.choice((True, True, False))),
    "lobby": Kind(2, (0.05, 0.4)),
    "rejoin": Kind(2),
    "move": Kind(2, value=lambda rng: rng.choice(("default", "practice"))),
}
"""What may be done to the meeting and its two sessions."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One round.

    Attributes:
        seed: Of which all else is made.
        seconds: How long harm is done.
        tls: Whether the pools' server speaks TLS.
        queue_size: That of the two pools.
        blocking: Keys of the sessions of the pool that blocks when a queue is full.
        dropping: Keys of those of the pool that drops.
        actors: How many threads call.
        rate: Events a second and session.
        actions: What is done to the pools' sessions, in order.
        meeting_actions: What is done to the meeting, in order.
    """

    seed: int
    seconds: float
    tls: bool
    queue_size: int
    blocking: tuple[str, ...]
    dropping: tuple[str, ...]
    actors: int
    rate: float
    actions: tuple[Action, ...]
    meeting_actions: tuple[Action, ...]

    @property
    def sessions(self) -> tuple[str, ...]:
        return self.blocking + self.dropping

    def rng(self, name: str) -> random.Random:
        """Return the source of randomness of one thread."""
        return random.Random(f"{self.seed}/{name}")


def make_plan(seed: int, seconds: float) -> Plan:
    """Return the round of a seed. A longer one begins as a shorter one does."""
    rng = random.Random(f"{seed}/plan")
    blocking = tuple(f"b{number}" for number in range(rng.randint(2, 6)))
    dropping = tuple(f"d{number}" for number in range(rng.randint(1, 2)))
    every = rng.choice((0.04, 0.1, 0.25))
    return Plan(
        seed=seed,
        seconds=seconds,
        tls=rng.random() < 0.5,
        queue_size=rng.choice((3, 10, 50, 1000)),
        blocking=blocking,
        dropping=dropping,
        actors=rng.randint(4, 10),
        rate=rng.choice((20.0, 60.0, 120.0)),
        actions=_draw(random.Random(f"{seed}/pools"), KINDS, blocking + dropping, seconds, every),
        meeting_actions=_draw(
            random.Random(f"{seed}/meeting"), MEETING_KINDS, ("default", "practice"), seconds, 0.08
        ),
    )


_OF_THE_MEETING: Final = frozenset(
    {"roles", "practice", "lobby", "rejoin", "move", "expire_tokens", "reject_rest", "hold_rest"}
)


def _draw(
    rng: random.Random, kinds: Mapping[str, Kind], sessions: tuple[str, ...], seconds: float, every: float
) -> tuple[Action, ...]:
    names, weights = list(kinds), [kind.weight for kind in kinds.values()]
    actions: list[Action] = []
    at = rng.expovariate(1 / every)
    while at < seconds:
        name = rng.choices(names, weights)[0]
        kind = kinds[name]
        session = None if name in FOR_ALL or name in _OF_THE_MEETING else rng.choice(sessions)
        lasts = 0.0 if kind.lasts is None else rng.uniform(*kind.lasts)
        actions.append(Action(round(at, 3), name, session, round(lasts, 3), kind.value(rng)))
        at += rng.expovariate(1 / every)
    return tuple(actions)
