"""Threads that call everything there is to call, at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from typing import Any

from llm_sessions import ConnectionPool, Session, SessionState
from tests.chaos.watch import Calls

__all__ = ["Actor", "Limits"]


class Limits:
    """Timeouts of the pools' config that bound calls, in seconds."""

    SEND = 0.5
    FORCE_CLOSE = 0.3
    OPEN = 1.0


class Actor:
    """One thread's calls, drawn from its own source of randomness.

    Args:
        rng: That.
        calls: Times them.
        pools: The pool of each session, by key.
        urls: Where each session connects to, by key.
        fetching: Keys of the sessions whose messages may also be fetched.
        stop: Ends it.
    """

    def __init__(
        self,
        rng: random.Random,
        calls: Calls,
        pools: Mapping[str, ConnectionPool],
        urls: Mapping[str, str],
        fetching: tuple[str, ...],
        stop: threading.Event,
    ) -> None:
        self._rng, self._calls, self._stop = rng, calls, stop
        self._pools, self._urls, self._fetching = pools, urls, fetching
        self._keys = list(pools)
        self._sent = 0
        self._mine: list[tuple[Session, str, Callable[[Any], None]]] = []
        verbs = {
            self.connect: 30,
            self.wait_online: 8,
            self.send: 20,
            self.receive: 10,
            self.messages: 5,
            self.disconnect: 1.5,
            self.disconnect_all: 0.1,
            self.listen: 8,
            self.unlisten: 6,
            self.call_from_callback: 3,
            self.look: 15,
            self.wait_closed: 2,
        }
        self._verbs, self._weights = list(verbs), list(verbs.values())

    def run(self) -> None:
        while not self._stop.wait(self._rng.uniform(0.0, 0.06)):
            [verb] = self._rng.choices(self._verbs, self._weights)
            verb(self._rng.choice(self._keys))

    def _time(self, name: str, limit: float, call: Callable[[], Any]) -> Any:
        return self._calls.time(name, limit, call)

    def _session(self, key: str) -> Session:
        return self._pools[key].session(key)

    # --- verbs

    def connect(self, key: str) -> None:
        timeout = self._rng.choice((0.05, 0.5, 1.5))
        pool, url = self._pools[key], self._urls[key]
        self._time("connect", timeout, lambda: pool.connect(url, key, timeout=timeout))

    def wait_online(self, key: str) -> None:
        timeout = self._rng.choice((0.02, 0.5))
        self._time("wait_online", timeout, lambda: self._session(key).wait_online(timeout))

    def wait_closed(self, key: str) -> None:
        self._time("wait_closed", 0.05, lambda: self._session(key).wait_closed(0.05))

    def send(self, key: str) -> None:
        session = self._session(key)
        padding = "x" * self._rng.choice((0, 10, 500, 50_000))
        for _ in range(self._rng.randint(1, 5)):
            self._sent += 1
            message = {"id": f"{key}-{self._sent}", "type": "publishRequest", "data": {"text": padding}}
            self._time("send", Limits.SEND, lambda message=message: session.send(message))

    def receive(self, key: str) -> None:
        if key in self._fetching:
            timeout = self._rng.choice((0.0, 0.05, 0.3))
            self._time("receive", timeout, lambda: self._session(key).receive(timeout))

    def messages(self, key: str) -> None:
        if key not in self._fetching:
            return
        count, dropped = self._rng.randint(1, 20), self._rng.random() < 0.3

        def fetch() -> None:
            messages = self._session(key).messages(timeout=0.05)
            for _ in zip(range(count), messages, strict=False):
                pass
            if not dropped:  # else it is not closed, and the collector has to find it
                messages.close()

        # Each message may be waited for; they come faster than that.
        self._time("messages", 0.05 * (count + 1), fetch)

    def disconnect(self, key: str) -> None:
        code, reason = self._rng.choice(((None, None), (3050, "done (permanent)"), (4999, None)))
        pool = self._pools[key]
        self._time("disconnect", Limits.FORCE_CLOSE, lambda: pool.disconnect(key, code=code, reason=reason))

    def disconnect_all(self, key: str) -> None:
        self._time("disconnect_all", Limits.FORCE_CLOSE, self._pools[key].disconnect_all)

    def listen(self, key: str) -> None:
        session = self._session(key)
        name = self._rng.choice(("event", "online", "event:chaos", "event:chaos.event", "offline"))

        def listener(payload: Any) -> None:
            assert payload.session_id == key

        verb = self._rng.choice((session.on, session.once))
        self._time("on", 0.0, lambda: verb(name, listener))
        self._mine.append((session, name, listener))

    def unlisten(self, key: str) -> None:
        if self._mine:
            session, name, listener = self._mine.pop(self._rng.randrange(len(self._mine)))
            self._time("off", 0.0, lambda: session.off(name, listener))

    def call_from_callback(self, key: str) -> None:
        session, pool = self._session(key), self._pools[key]
        call, limit = self._rng.choice(
            (
                (lambda: session.send("{}"), Limits.SEND),
                (session.stats, 0.0),
                (lambda: pool.connect(self._urls[key], key, timeout=0.2), 0.2),
                (session.disconnect, Limits.FORCE_CLOSE),
                (lambda: session.receive(0.1), 0.0),  # refused
            )
        )
        name = self._rng.choice(("event", "offline", "online", "offline.transient", "disconnected"))
        self._time("on", 0.0, lambda: session.once(name, lambda _: self._time("in a callback", limit, call)))

    def look(self, key: str) -> None:
        session, pool = self._session(key), self._pools[key]
        what = self._rng.choice(
            (session.stats, pool.stats, lambda: repr(pool), lambda: self._glance(session))
        )
        self._time("look", 0.0, what)

    def _glance(self, session: Session) -> None:
        assert isinstance(session.state, SessionState)
        stats = session.stats()
        assert stats.queue_depth >= 0 and stats.messages_in >= 0
        assert session.url is None or session.url.startswith("ws")
        session.last_error, session.latency, session.time_offset, session.online  # noqa: B018
