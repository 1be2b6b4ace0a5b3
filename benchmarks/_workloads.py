"""What is measured, with whom, and what we want of it. Tables only; `_driver.py` runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PLAIN, TLS = "plain", "TLS"
TLS_ALLOWANCE = 1.2  # ratios against raw on TLS may be that much larger


@dataclass(frozen=True)
class Peer:
    """Somebody to be measured.

    Attributes:
        client: What `_clients.py` runs, or "reference" for the script of node.
        title: In tables.
        environment: What its process gets besides.
        slower: It gets so many times fewer messages, because it takes so long.
    """

    client: str
    title: str
    environment: Mapping[str, str] = field(default_factory=dict)
    slower: int = 1


RAW, RAW_AHEAD, POOL, POOL_JSON = "raw", "raw-ahead", "pool", "pool-json"
SLACK_BUILTIN, SLACK_WEBSOCKET, REFERENCE = "slack-builtin", "slack-websocket", "reference"

PEERS = {
    RAW: Peer("raw", "raw websocket-client loop"),
    RAW_AHEAD: Peer("raw-ahead", "raw loop that connects ahead"),
    POOL: Peer("pool", "llm_sessions, orjson"),
    POOL_JSON: Peer("pool", "llm_sessions, json", {"LLM_SESSIONS_JSON": "json"}),
    SLACK_BUILTIN: Peer("slack-builtin", "slack_sdk, builtin", slower=10),
    SLACK_WEBSOCKET: Peer("slack-websocket", "slack_sdk, websocket_client", slower=10),
    REFERENCE: Peer("reference", "reference Socket on node"),
}
OURS = (POOL, POOL_JSON)


@dataclass(frozen=True)
class Workload:
    """One table of the report, or one point of a curve.

    Attributes:
        name: Unique, for the command line and the results.
        title: For people.
        kind: "flood", "paced" or "idle".
        peers: Who takes part, each once a round.
        sessions: Sockets of the client process.
        size: Bytes of a message.
        messages: For each session.
        fragments: Frames of a message.
        rate: Messages a second for each session, if paced.
        seconds: How long to look at idle sessions.
        listen: Whether idle sessions have a listener.
        wires: PLAIN, TLS or both.
        rounds: At most so many.
        axis: The curve whose point this is: "sessions", "size" or "fragments".
        quick: Whether a quick run has it.
    """

    name: str
    title: str
    kind: str
    peers: tuple[str, ...]
    sessions: int = 1
    size: int = 1024
    messages: int = 0
    fragments: int = 1
    rate: float = 5.0
    seconds: float = 10.0
    listen: bool = True
    wires: tuple[str, ...] = (PLAIN, TLS)
    rounds: int = 9
    axis: str = ""
    quick: bool = False


def flood(
    sessions: int, size: int, total: int, *peers: str, title: str | None = None, quick: bool = False
) -> Workload:
    kilobytes = f"{size // 1024} KB" if size >= 1024 else f"{size} B"
    plural = "s" if sessions > 1 else ""
    return Workload(
        f"flood-{sessions}x{size}",
        title or f"Flood, {sessions} session{plural}, {kilobytes}",
        "flood",
        (RAW, *OURS, *peers),
        sessions,
        size,
        total // sessions,
        quick=quick,
    )


def growth(
    axis: str, value: int, total: int, sessions: int = 1, size: int = 1024, fragments: int = 1
) -> Workload:
    return Workload(
        f"growth-{axis}-{value}",
        f"Growth with {axis}: {value}",
        "flood",
        (RAW, *OURS) if axis == "size" else (RAW, POOL),
        sessions,
        size,
        max(1, total // sessions),
        fragments,
        wires=(PLAIN,),
        rounds=3,
        axis=axis,
    )


def idle(name: str, title: str, listen: bool, wires: tuple[str, ...], quick: bool = False) -> Workload:
    peers = (RAW, RAW_AHEAD, POOL)
    return Workload(name, title, "idle", peers, 1000, listen=listen, wires=wires, rounds=3, quick=quick)


WORKLOADS = (
    flood(1, 100, 60_000, REFERENCE, quick=True),
    flood(1, 1024, 60_000, SLACK_BUILTIN, SLACK_WEBSOCKET, REFERENCE, quick=True),
    flood(1, 10_240, 12_000, SLACK_BUILTIN, SLACK_WEBSOCKET, REFERENCE, quick=True),
    flood(100, 1024, 20_000, SLACK_BUILTIN, SLACK_WEBSOCKET, REFERENCE, quick=True),
    flood(500, 1024, 20_000, REFERENCE),
    Workload(
        "paced-100x300",
        "100 sessions, 5 messages a second each, 300 B",
        "paced",
        (RAW, *OURS, SLACK_BUILTIN, SLACK_WEBSOCKET, REFERENCE),
        sessions=100,
        size=300,
        messages=50,
        rounds=3,
        quick=True,
    ),
    idle("idle-1000-listener", "1000 idle sessions, each with a listener", True, (PLAIN, TLS), quick=True),
    idle("idle-1000", "1000 idle sessions without listeners", False, (PLAIN,)),
    *(growth("sessions", n, 20_000, sessions=n) for n in (1, 10, 100, 300, 1000)),
    *(
        growth("size", n, min(20_000, 60_000_000 // n), size=n)
        for n in (100, 300, 1024, 4096, 16_384, 65_536)
    ),
    *(
        growth("fragments", n, min(10_000, 200_000 // n), size=10_240, fragments=n)
        for n in (1, 10, 100, 1000)
    ),
)


@dataclass(frozen=True)
class Target:
    """A bound that one of our figures should keep.

    Attributes:
        workload: Its name.
        peer: Whose figure.
        measure: Which figure of a result.
        limit: The largest good value: a ratio if there is `against`, otherwise in the unit of the figure.
        against: Whose figure is the measure.
    """

    workload: str
    peer: str
    measure: str
    limit: float
    against: str = ""

    def on(self, wire: str) -> float | None:
        """The limit on a wire; None: there is none."""
        if wire == PLAIN:
            return self.limit
        return self.limit * TLS_ALLOWANCE if self.against == RAW else None


def ratios(
    workload: str, pool: float, pool_json: float | None, against: str = RAW, measure: str = "cpu"
) -> list[Target]:
    targets = [Target(workload, POOL, measure, pool, against)]
    if pool_json is not None:
        targets.append(Target(workload, POOL_JSON, measure, pool_json, against))
    return targets


TARGETS = (
    *ratios("flood-1x100", 0.4, 0.5),
    *ratios("flood-1x1024", 0.4, 0.5),
    *ratios("flood-1x1024", 0.6, 0.8, REFERENCE),
    *ratios("flood-1x10240", 0.5, 0.8),
    *ratios("flood-100x1024", 0.15, 0.2),
    *ratios("flood-100x1024", 1.0, None, REFERENCE),
    *ratios("flood-500x1024", 0.2, 0.3),
    *ratios("paced-100x300", 1.2, 1.3),
    *ratios("paced-100x300", 1.5, None, measure="p99"),
    Target("idle-1000-listener", POOL, "rss", 45.0),
    Target("idle-1000-listener", POOL, "wakeups", 0.0),
    Target("idle-1000-listener", POOL, "connect", 1.5, RAW),
    Target("idle-1000-listener", POOL, "connect_cpu", 1.5, RAW),
    Target("idle-1000-listener", POOL, "disconnect", 2.0),
    Target("idle-1000", POOL, "rss", 30.0),
    Target("idle-1000", POOL, "wakeups", 0.0),
)

# How the cost of one message may grow along an axis, as the exponent of its last step: the cost of all
# messages is linear if that of one does not depend on the number of sessions, and is at most in proportion to
# its bytes and frames.
EXPONENTS = {"sessions": 0.0, "size": 1.0, "fragments": 1.0}
EXPONENT_TOLERANCE = 0.2
