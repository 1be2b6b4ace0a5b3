"""The world of a round: what is in it, how it is run, how it is brought to rest, and its account."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import trustme

from llm_sessions import ConnectionPool, LLMSessionsError, PoolConfig
from llm_sessions.testing.proxy import FaultProxy
from llm_sessions.testing.server import LocalServer
from tests.chaos.actors import Actor, Limits
from tests.chaos.client import Ear, Tokens
from tests.chaos.director import Director, Script
from tests.chaos.ledger import Account, Record, reconcile
from tests.chaos.plan import Plan
from tests.chaos.service import Service
from tests.chaos.watch import Calls, Steps

__all__ = ["CONFIG", "Outcome", "PoolWorld", "World"]

CONFIG: dict[str, Any] = {
    "ping_interval": 0.25,
    "pong_timeout": 0.4,
    "backoff_initial": 0.02,
    "backoff_max": 0.3,
    "open_timeout": Limits.OPEN,
    "send_timeout": Limits.SEND,
    "force_close_delay": Limits.FORCE_CLOSE,
    "retire_timeout": 0.8,
    "wait_timeout": 2.0,
    "max_message_bytes": 30_000,
}
"""Times so small that much happens in a minute."""

SETTLE = (
    20.0  # seconds for every session to be online and hear the last event, once nothing is wrong any more
)
TICK = 0.01  # seconds from one look of the publisher at what is due to the next


@dataclasses.dataclass
class Outcome:
    """What came of a world.

    Attributes:
        account: Of all its sessions.
        faults: How often what was done.
        counts: Of the pools: reconnects, switchovers, attempts.
        log: What was done and when, and each session's journal.
    """

    account: Account = dataclasses.field(default_factory=Account)
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    log: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.account += other.account
        self.faults += other.faults
        self.counts += other.counts
        self.log += other.log


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's and the client's, made once: all rounds have one authority."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


class World:
    """What both worlds have: a service, its publisher, a director, and threads.

    Attributes:
        ears: The listeners, by the key of the session at the server.
    """

    service: Service
    script: Script
    ears: dict[str, Ear]

    def __init__(self, plan: Plan, calls: Calls, steps: Steps, began: float) -> None:
        self.plan, self.calls, self.steps, self.began = plan, calls, steps, began
        self.ears = {}
        self._stop = threading.Event()
        self._silence = threading.Event()  # stops the publisher
        self._threads: list[threading.Thread] = []
        self.complaints: list[str] = []

    def spawn(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=f"chaos-{name}")
        self._threads.append(thread)
        thread.start()

    def start(self) -> None:
        """Let chaos begin."""
        self.spawn("publisher", self._publish)
        self.spawn("director", lambda: self.script.run(self._stop))

    def _publish(self) -> None:
        owed = dict.fromkeys(self.ears, 0.0)
        last = time.monotonic()
        while not self._silence.wait(TICK):
            now = time.monotonic()
            self.service.look()
            for key in owed:
                owed[key] += min(0.1, now - last) * self.plan.rate
                while owed[key] >= 1:
                    owed[key] -= 1
                    self.service.publish(key)
            last = now

    def stop(self) -> None:
        """Let no more harm be done, and undo what was done."""
        self._stop.set()
        self._silence.set()
        self.heal()
        for thread in self._threads:
            thread.join(SETTLE)
            if thread.is_alive():
                self.complaints.append(f"{thread.name} does not end")
        self.heal()

    def heal(self) -> None:
        """Undo all harm."""
        for ear in self.ears.values():
            ear.wake()

    def settle(self) -> None:
        """Bring every session online, and publish until something arrives."""
        deadline, pause = time.monotonic() + SETTLE, threading.Event()
        for key, ear in self.ears.items():
            arrived = False
            while not arrived and time.monotonic() < deadline:
                with contextlib.suppress(LLMSessionsError):
                    self.bring_online(key)
                self.service.look()
                number = self.service.publish(key)
                until = time.monotonic() + 1.0
                while not (arrived := ear.has(number)) and time.monotonic() < until:
                    pause.wait(0.005)
            if not arrived:
                self.complaints.append(f"{key} did not come back: {ear.session!r}")
        while time.monotonic() < deadline and not all(ear.caught_up for ear in self.ears.values()):
            pause.wait(0.005)

    def bring_online(self, key: str) -> None:
        """Connect a session, if it is not online."""
        raise NotImplementedError

    def close(self) -> None:
        """Close all there is."""
        raise NotImplementedError

    def finished(self) -> Outcome:
        """Close the account. All is over."""
        found = Outcome(faults=self.script.counts, log=list(self.script.log))
        for key, ear in self.ears.items():
            stats = ear.session._machine.stats()  # the pool is closed
            record = Record(
                key=key,
                session_id=ear.session.id,
                drops=key in self.plan.dropping,
                published=self.service.published(key),
                journal=ear.journal,
                acked=self.service.acked(key),
                heard=ear.heard,
                messages_in=stats.messages_in,
                dropped=stats.dropped,
                onlines=self.steps.onlines(ear.session._machine),
            )
            found.account += reconcile(record)
            for name in ("reconnects", "switchovers", "attempts"):
                found.counts[name] += getattr(stats, name)
            found.log += [f"{key}: {entry}" for entry in ear.journal]
        found.account.complaints += [*self.complaints, *self.service.violations]
        return found


class PoolWorld(World):
    """Two pools, and a server behind a proxy for each session."""

    def __init__(self, plan: Plan, calls: Calls, steps: Steps, began: float) -> None:
        super().__init__(plan, calls, steps, began)
        server_context, client_context = contexts() if plan.tls else (None, None)
        self._tokens = Tokens(self._accept)
        self._good: set[str] | None = None
        self.service = Service(server_context, self._prepare)
        server = self.service.server
        self._proxies = {key: FaultProxy((server.host, server.port), seed=plan.seed) for key in plan.sessions}
        self._urls = {key: proxy.url(server.url(key)) for key, proxy in self._proxies.items()}
        config = {**CONFIG, "queue_size": plan.queue_size, "ssl_context": client_context}
        blocking = ConnectionPool(self._tokens, config=PoolConfig(**config), name="blocking")
        dropping = ConnectionPool(
            self._tokens, config=PoolConfig(**config, when_full="drop_oldest"), name="dropping"
        )
        self.pools = dict.fromkeys(plan.blocking, blocking) | dict.fromkeys(plan.dropping, dropping)
        for key, pool in self.pools.items():
            self.ears[key] = Ear(pool.session(key), key, began)
        self.script = Director(plan.actions, began, self.service, self._proxies, self.ears, self._tokens)

    def _prepare(self, server: LocalServer) -> None:
        server.tokens = self._good

    def _accept(self, tokens: set[str]) -> None:
        self._good = tokens
        self.service.server.tokens = tokens

    def start(self) -> None:
        super().start()
        for number in range(self.plan.actors):
            rng = self.plan.rng(f"actor-{number}")
            # Who fetches from a pool that drops makes `stats().dropped` speak of more than listeners.
            actor = Actor(rng, self.calls, self.pools, self._urls, self.plan.blocking, self._stop)
            self.spawn(f"actor-{number}", actor.run)

    def heal(self) -> None:
        super().heal()
        self.service.start()
        self._tokens.unblock()
        self._tokens.failing = False
        for proxy in self._proxies.values():
            proxy.heal()

    def bring_online(self, key: str) -> None:
        pool = self.pools[key]
        self.calls.time("connect", 5.0, lambda: pool.connect(self._urls[key], key, timeout=5.0))

    def close(self) -> None:
        for pool in {id(pool): pool for pool in self.pools.values()}.values():
            self.calls.time("close", 5.0, pool.close)
        for proxy in self._proxies.values():
            proxy.close()
        self.service.close()


@contextlib.contextmanager
def running(*worlds: World) -> Iterator[None]:
    """Start worlds; stop, settle and close them, whatever happens."""
    try:
        for world in worlds:
            world.start()
        yield
        for world in worlds:
            world.stop()
        for world in worlds:
            world.settle()
    finally:
        for world in worlds:
            world.stop()
            world.close()
