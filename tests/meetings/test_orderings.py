"""I72 to I77 once more, in random orders: who goes on next, and when there are news, is drawn by lot.

Every request, every socket and the worker itself stop at a turnstile. One at a time is let through, and news
come while the worker stands still.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from llm_sessions import DataChannelClient, SessionState
from llm_sessions.meetings.rules import wanted
from llm_sessions.meetings.worker import Worker
from llm_sessions.protocol.state import BUSY, ONLINE
from llm_sessions.testing.server import make_token
from tests.datachannel.world import CHANNEL, OTHER, PRACTICE, good
from tests.meetings.world import DEFAULT, PRACTICE_SESSION, MeetingWorld, locus, panelist, world
from tests.support import FakeLink, Gate, eventually, library_threads

__all__ = ["world"]  # a fixture

S = SessionState
BOTH = (DEFAULT, PRACTICE_SESSION)
AT_REST = (S.IDLE, S.ONLINE, S.OFFLINE)
News = Callable[[], object]

seeded = pytest.mark.parametrize("seed", range(6))


class Endless(list[Callable[[], Any]]):
    """As many answers of one kind as are asked for."""

    def pop(self, index: Any = -1) -> Callable[[], Any]:
        return self[0]


class Orders:
    """Lets a meeting's threads go on one at a time. Made before the join.

    Args:
        world: Whose.
        monkeypatch: Of the test.
        seed: What is drawn depends on it.

    Attributes:
        chance: What draws.
        begun: The address of each connect of the practice session's channel that the worker began.
        kept: Kinds of turnstiles that nobody is let through: of post, fetch, open, look and connect.
        wrong: What was seen that must not be.
    """

    def __init__(self, world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        self.world, self.chance = world, random.Random(seed)
        self.begun: list[str] = []
        self.kept: set[str] = set()
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._stopped: list[tuple[str, str, Gate]] = []  # kind, the thread's name
        self._free = False
        self._numbers = itertools.count(1)
        self._worker: Worker | None = None
        world.answers = Endless([self._post])
        world.fetches = Endless([self._fetch])
        world.transport.on_open = self._open
        begin, choose, connect = DataChannelClient.begin_register_and_connect, Worker._choose, Worker._connect

        def begun(client: DataChannelClient, locus_url: str, url: str, session_id: str) -> bool:
            channel = wanted(self.worker.facts).get(session_id)
            if channel is None or channel.datachannel_url != url:
                self.wrong.append(f"{session_id} is connected to {url}, which nobody wants")
            if session_id == PRACTICE_SESSION:
                self.begun.append(url)
            return begin(client, locus_url, url, session_id)

        def chosen(worker: Worker, *seen: Any) -> Any:
            step = choose(worker, *seen)
            self._stop("look")
            return step

        def connected(worker: Worker, *step: Any) -> Any:
            self._stop("connect")
            return connect(worker, *step)

        monkeypatch.setattr(DataChannelClient, "begin_register_and_connect", begun)
        monkeypatch.setattr(Worker, "_choose", chosen)
        monkeypatch.setattr(Worker, "_connect", connected)

    @property
    def worker(self) -> Worker:
        """The worker of the join, also when that was left."""
        if self._worker is None:
            self._worker = self.world.worker
        return self._worker

    def run(self, news: Iterable[News] = ()) -> None:
        """Have the news come, and everybody go on, in any order, until nobody can."""
        pending = list(news)
        while True:
            eventually(self._all_stand, "somebody neither stops nor rests")
            self._look()
            gates = self._gates()
            if pending and (not gates or self.chance.random() < 0.3):
                pending.pop(0)()
            elif gates:
                self._let_through(self.chance.choice(gates))
            elif self._stopped or self._is_over():
                return
            else:
                eventually(lambda: self._stopped or self._is_over(), "nothing happens any more")

    def free(self) -> None:
        """Stop nobody any more."""
        with self._lock:
            self._free, stopped, self._stopped = True, self._stopped, []
        for _, _, gate in stopped:
            gate.open()

    def settle(self) -> None:
        """Stop nobody any more, and wait until the channels are what the facts say."""
        self.free()
        for session_id in BOTH:
            if session_id in wanted(self.worker.facts):
                self.world.meeting.wait_online(session_id)
            else:
                self.world.settle(session_id, S.IDLE)
        self.world.rest()
        assert self.wrong == [] and self.world.heard.payloads("failed") == []

    def _look(self) -> None:
        """Look at the sessions while the worker has done all that is to be done."""
        practice = self.world.state(PRACTICE_SESSION)
        if not self._rests():
            return
        if practice in BUSY and PRACTICE_SESSION not in wanted(self.worker.facts):
            self.wrong.append("the practice session's channel is there though nobody wants it")
        if practice is S.CONNECTING and self.world.state() not in ONLINE:
            self.wrong.append("the practice session's channel is started while the main one is away")

    def _gates(self) -> list[tuple[str, str, Gate]]:
        with self._lock:
            return [one for one in self._stopped if one[0] not in self.kept]

    def _let_through(self, one: tuple[str, str, Gate]) -> None:
        with self._lock:
            self._stopped.remove(one)
        one[2].open()

    def _rests(self) -> bool:
        with self.worker._lock:
            return self.worker._over or self.worker._seen_changes == self.worker._changes

    def _all_stand(self) -> bool:
        """Whether the worker and the sessions' connectors can do nothing before somebody is let through."""
        with self._lock:
            stopped = {name for _, name, _ in self._stopped}
        names = {thread.name for thread in library_threads() if thread.name.startswith("llm-connector[")}
        return names <= stopped and (any("llm-meeting[" in name for name in stopped) or self._rests())

    def _is_over(self) -> bool:
        return all(self.world.state(session_id) in AT_REST for session_id in BOTH)

    def _stop(self, kind: str) -> None:
        gate = Gate()
        with self._lock:
            if self._free:
                return
            self._stopped.append((kind, threading.current_thread().name, gate))
        gate.pass_through()

    def _post(self) -> tuple[int, Any]:
        number = next(self._numbers)
        self._stop("post")
        return good(number)

    def _fetch(self) -> tuple[int, Any]:
        self._stop("fetch")
        return 200, {"datachannelToken": make_token()}

    def _open(self, link: FakeLink) -> None:
        self._stop("open")
        if not link.aborted.is_set():
            link.become_ready()

    # -- news ---------------------------------------------------------------------------------------------

    def role(self, name: str) -> News:
        return lambda: self.world.meeting.update_roles([name])

    def practice(self, on: bool) -> News:
        return lambda: self.world.meeting.update_practice_session(on)

    def moved(self, **urls: str) -> News:
        return lambda: self.world.meeting.update_locus(locus(**urls))

    def drop(self) -> None:
        """The main channel is lost, if it is there."""
        for link in self.world.links(DEFAULT)[-1:]:
            if link.ready:
                link.end()

    def drawn(self, count: int) -> list[News]:
        """Return news of any kind."""
        kinds: list[News] = [self.role(name) for name in ("PANELIST", "ATTENDEE")]
        kinds += [self.practice(on) for on in (True, False)]
        kinds += [self.moved(practice_url=url) for url in (PRACTICE, OTHER)]
        kinds += [self.moved(channel=CHANNEL), self.drop, self.world.meeting.admit]
        return self.chance.choices(kinds, k=count)


@pytest.fixture
def orders(world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, seed: int) -> Iterator[Orders]:
    found = Orders(world, monkeypatch, seed)
    yield found
    found.free()


@seeded
def test_i72_nothing_is_started_that_the_newest_facts_do_not_want(
    world: MeetingWorld, orders: Orders, seed: int
) -> None:
    world.meeting.join(panelist())
    orders.run([*orders.drawn(12), orders.role("PANELIST"), orders.practice(True)])
    orders.settle()
    url = wanted(orders.worker.facts)[PRACTICE_SESSION].datachannel_url
    assert orders.begun[-1] == world.one.datachannel_url(PRACTICE_SESSION) == url


@seeded
def test_i73_many_updates_before_the_main_channel_is_there_are_one_registration(
    world: MeetingWorld, orders: Orders, seed: int
) -> None:
    orders.kept = {"open"}
    world.meeting.join(panelist())
    orders.run([same for _ in range(10) for same in (orders.role("PANELIST"), orders.practice(True))])
    assert orders.begun == []
    orders.kept = set()
    orders.run()
    orders.settle()
    assert orders.begun == [PRACTICE] and [url for url, _ in world.posts] == [CHANNEL, PRACTICE]


@seeded
def test_i74_whenever_the_main_channel_comes_online_the_practice_one_follows(
    world: MeetingWorld, orders: Orders, seed: int
) -> None:
    world.meeting.join(panelist())
    orders.run()
    assert [world.state(session_id) for session_id in BOTH] == [S.ONLINE, S.ONLINE]
    orders.settle()
    assert orders.begun == [PRACTICE]


@seeded
def test_i75_after_a_leave_at_any_moment_nothing_is_started(
    world: MeetingWorld, orders: Orders, seed: int
) -> None:
    started: list[list[str]] = []

    def leave() -> None:
        world.meeting.leave(timeout=0)
        started.append(list(orders.begun))

    world.meeting.join(panelist())
    orders.run([*orders.drawn(orders.chance.randrange(6)), leave])
    orders.free()
    eventually(lambda: orders.worker._over)
    eventually(lambda: world.pool.stats().abandoned_attempts == 0)
    assert started == [orders.begun] and orders.wrong == []
    assert [world.state(session_id) for session_id in BOTH] == [S.IDLE, S.IDLE]
    assert all(link.closes or link.aborted.is_set() or not link.ready for link in world.transport.links)


@seeded
def test_i76_whenever_the_main_channel_drops_the_practice_one_waits_for_it_again(
    world: MeetingWorld, orders: Orders, seed: int
) -> None:
    world.meeting.join(panelist())
    orders.run([orders.drop, *orders.chance.choices([orders.drop, world.meeting.admit], k=8)])
    orders.settle()
    assert set(orders.begun) == {PRACTICE}


@seeded
def test_i77_a_revocation_at_any_moment_ends_the_practice_connect(
    world: MeetingWorld, orders: Orders, seed: int
) -> None:
    give, take = ("PANELIST", True), ("ATTENDEE", False)
    news: list[News] = []
    for _ in range(5):
        for role, on in (give, take):
            news.append(orders.chance.choice([orders.role(role), orders.practice(on)]))
    world.meeting.join(panelist())
    orders.run([*news, orders.role("ATTENDEE")])
    orders.settle()
    assert world.state() is S.ONLINE and world.state(PRACTICE_SESSION) is S.IDLE
    links = world.links(PRACTICE_SESSION)
    assert all(link.closes or link.aborted.is_set() for link in links)
