"""A switchover under load: what a listener sees while a server is being replaced.

    python benchmarks/switchover.py                          # 100 messages a second for 3 seconds
    python benchmarks/switchover.py --rate 2000 --ready-after 0.5

One session on a LocalServer, on real sockets. Messages are numbered and published as a real service does: on
the old socket until the new one is ready, on both with the same ids for a while, then on the new one. After a
third of the time the server announces its shutdown; it takes a moment to authorize the candidate, and in the
end closes the old socket with 4001. The exit code is 1 if an envelope was lost or delivered twice, or if the
session was not online all the time.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llm_sessions import ConnectionPool
from llm_sessions.testing.server import LocalServer, ServerConnection

STEP = 0.1  # seconds of a column of the timeline
TIMEOUT = 15.0  # seconds for what must happen
GRACE = 5.0  # seconds after the last message for those that are still on their way


@dataclasses.dataclass
class Account:
    """What was published and what became of it.

    Attributes:
        published: Numbers, in order.
        delivered: When the listener got which number, in the order of delivery; monotonic seconds.
        suppressed: Second copies that the session did not deliver.
        gaps: Sequence numbers of the server that did not follow one another on their socket.
        offline: Whether the session was not online at some time.
    """

    published: Sequence[int]
    delivered: Sequence[tuple[float, int]]
    suppressed: int = 0
    gaps: int = 0
    offline: bool = False

    @property
    def lost(self) -> list[int]:
        return sorted(set(self.published) - {number for _, number in self.delivered})

    @property
    def twice(self) -> list[int]:
        counts = collections.Counter(number for _, number in self.delivered)
        return sorted(number for number, count in counts.items() if count > 1)

    @property
    def silence(self) -> float:
        """The longest time between two deliveries, in seconds."""
        times = [at for at, _ in self.delivered]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    @property
    def good(self) -> bool:
        return not (self.lost or self.twice or self.gaps or self.offline)


class Service:
    """Publishes numbered messages as a real server does while it is being replaced."""

    def __init__(self, old: ServerConnection) -> None:
        self._lock = threading.Lock()
        self._sockets = [old]
        self.published: list[int] = []

    def use(self, *sockets: ServerConnection) -> None:
        """Publish on these from the next message on."""
        with self._lock:
            self._sockets = list(sockets)

    def publish(self) -> None:
        with self._lock:
            number = len(self.published)
            self.published.append(number)
            envelope = {"id": f"n-{number}", "data": {"eventType": "load.message", "number": number}}
            for socket in self._sockets:
                socket.send_numbered(envelope)


def paced(rate: float, seconds: float, stop: threading.Event) -> Iterator[None]:
    """Yield `rate` times a second, on a schedule: a late one does not delay those behind it."""
    start = time.monotonic()
    for number in range(int(rate * seconds)):
        if stop.wait(max(0.0, start + number / rate - time.monotonic())):
            return
        yield


def run(rate: float, seconds: float, ready_after: float, overlap: float) -> tuple[Account, dict[str, float]]:
    """Do it; return the account, and when what happened (monotonic seconds)."""
    times: dict[str, float] = {}
    delivered: list[tuple[float, int]] = []
    went_offline = threading.Event()
    happened = {name: threading.Event() for name in ("switched", "old closed")}

    def note(name: str) -> Callable[[Any], None]:
        def listener(_payload: Any) -> None:
            times.setdefault(name, time.monotonic())
            happened[name].set()

        return listener

    with LocalServer() as server, ConnectionPool("token") as pool:
        session = pool.connect(server.url())
        session.on("event:load.message", lambda one: delivered.append((time.monotonic(), one.data["number"])))
        session.on("offline", lambda _payload: went_offline.set())
        session.on("event:mercury_shutdown_switchover_complete", note("switched"))
        session.on("offline.replaced", note("old closed"))
        [old] = server.wait_live()
        service, stop = Service(old), threading.Event()
        times["start"] = time.monotonic()
        publisher = threading.Thread(
            target=lambda: [service.publish() for _ in paced(rate, seconds, stop)], name="publisher"
        )
        publisher.start()
        try:
            stop.wait(seconds / 3)
            replace(server, service, old, times, ready_after, overlap)
            for name, event in happened.items():
                if not event.wait(TIMEOUT):
                    raise SystemExit(f"not {name} within {TIMEOUT:g} s")
            publisher.join(seconds + TIMEOUT)
            await_deliveries(service, delivered)
        finally:
            stop.set()
            publisher.join(TIMEOUT)
        stats = session.stats()
        account = Account(
            service.published, list(delivered), stats.repeated, stats.sequence_gaps, went_offline.is_set()
        )
        return account, times


def replace(
    server: LocalServer,
    service: Service,
    old: ServerConnection,
    times: dict[str, float],
    ready_after: float,
    overlap: float,
) -> None:
    """Do what a service does with a server that is going to go."""
    pause = threading.Event()
    server.withhold_ready()
    times["announced"] = time.monotonic()
    server.shutdown_frame()
    server.wait_for(lambda: len(server.connections()) == 2 and server.connections()[1].authorized, TIMEOUT)
    new = server.connections()[1]
    times["connecting"] = new.accepted_at
    pause.wait(ready_after)
    server.release_ready()
    server.wait_for(lambda: new.ready, TIMEOUT)
    service.use(old, new)
    times["ready"] = time.monotonic()
    pause.wait(overlap)
    service.use(new)
    old.close(4001, "the server is gone")


def await_deliveries(service: Service, delivered: Sequence[tuple[float, int]]) -> None:
    """Wait until as many were delivered as were published, or for long enough."""
    deadline, pause = time.monotonic() + GRACE, threading.Event()
    while len(delivered) < len(service.published) and time.monotonic() < deadline:
        pause.wait(0.01)


STAGES = {
    "announced": "shutdown announced",
    "connecting": "candidate connecting",
    "ready": "candidate ready; messages come on both sockets",
    "switched": "switched: the session sends on the new socket",
    "old closed": "old socket closed with 4001",
}


def show(account: Account, times: dict[str, float], seconds: float) -> None:
    """Print the timeline and the account."""
    zero = times["announced"]
    before = (times["start"] - zero) // STEP * STEP
    counts = collections.Counter(int((at - zero) // STEP) for at, _ in account.delivered)
    stages = sorted((times[name], text) for name, text in STAGES.items() if name in times)
    print("    ms   delivered")
    for step in range(round(before / STEP), round((before + seconds) / STEP) + 1):
        if step * STEP + zero <= times["start"] + seconds or counts[step]:
            print(f"{step * STEP * 1000:>6.0f}   {counts[step]:>9}  {'#' * min(60, counts[step])}".rstrip())
        for at, text in stages:
            if int((at - zero) // STEP) == step:
                print(f"{(at - zero) * 1000:>6.1f}   {'':>9}  <- {text}")
    print(f"published {len(account.published)}, delivered {len(account.delivered)}", end=", ")
    print(f"duplicates suppressed {account.suppressed}, gaps {account.gaps}", end=", ")
    print(f"longest silence {account.silence * 1000:.0f} ms")
    for what, numbers in (("LOST", account.lost), ("DELIVERED TWICE", account.twice)):
        if numbers:
            print(f"{what}: {len(numbers)}: {', '.join(map(str, numbers[:20]))}")
    if account.offline:
        print("NOT ONLINE ALL THE TIME")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to publish")
    parser.add_argument("--ready-after", type=float, default=0.2, help="seconds to authorize the candidate")
    parser.add_argument("--overlap", type=float, default=0.5, help="seconds on both sockets")
    options = parser.parse_args(arguments)
    if options.seconds / 3 * 2 <= options.ready_after + options.overlap:
        parser.error("two thirds of --seconds must be more than --ready-after and --overlap together")
    account, times = run(options.rate, options.seconds, options.ready_after, options.overlap)
    show(account, times, options.seconds)
    return 0 if account.good else 1


if __name__ == "__main__":
    sys.exit(main())
