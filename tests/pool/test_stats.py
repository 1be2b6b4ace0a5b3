"""Statistics of sessions and pools."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import (
    ConnectionPool,
    ConnectTimeout,
    NotOnline,
    PoolStats,
    SessionState,
    SessionStats,
    StaticToken,
)
from llm_sessions.connection.transport import Traffic
from llm_sessions.pool.stats import COUNTED, Counts, added, pool_stats
from llm_sessions.protocol.mercury import Dropped, LatencyMeasured, SequenceGap
from tests.pool.support import (
    URL,
    announce_shutdown,
    held,
    hold,
    no_connectors,
    nothing,
    refuse,
    switching,
)
from tests.support import LONG, SHORT, Background, FakeLink, FakeTransport, Gate, eventually

Make = Callable[..., tuple[ConnectionPool, FakeTransport]]
S = SessionState


def nonzero(stats: Counts) -> dict[str, int]:
    return {name: getattr(stats, name) for name in COUNTED if getattr(stats, name)}


def test_a_session_that_did_nothing(make: Make) -> None:
    pool, _ = make()
    before = time.time()
    stats = pool.session("s").stats()
    assert isinstance(stats, SessionStats)
    assert (stats.session_id, stats.state, stats.latency) == ("s", S.IDLE, None)
    assert before <= stats.since <= time.time()
    assert (stats.queue_depth, stats.paused, stats.abandoned_attempts) == (0, False, 0)
    assert nonzero(stats) == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.acks = 1  # type: ignore[misc]


def test_since_tells_when_the_state_began(make: Make) -> None:
    pool, transport = make()
    session = pool.session()
    idle = session.stats().since
    pool.connect(URL)
    online = session.stats()
    assert online.state is S.ONLINE and online.since >= idle
    transport.links[0].owner.link_received(transport.links[0], [LatencyMeasured(0.25)])
    assert session.stats().since == online.since and session.stats().latency == 0.25
    pool.disconnect()
    assert session.stats().latency is None and session.stats().since >= online.since


def test_what_a_session_receives_is_counted_by_kind(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    (link,) = transport.links
    events = [{"id": 1}, SequenceGap(5, 2), {"id": 2}, Dropped("not usable"), {"id": 3}]
    link.owner.link_received(link, events)
    link.owner.link_received(link, [{"id": 4}])
    assert nonzero(session.stats()) == {
        "attempts": 1,
        "messages_in": 4,
        "sequence_gaps": 1,
        "unusable": 1,
    }


def test_traffic_is_that_of_all_links_and_none_is_counted_twice(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    first = transport.links[0]
    first.traffic = Traffic(20, 300, 4)
    assert session.stats().bytes_in == 20
    announce_shutdown(first)
    second = transport.wait_links(2)[1]
    eventually(lambda: session.stats().switchovers == 1)
    second.traffic = Traffic(1, 1, 1)

    def traffic() -> tuple[int, int, int]:
        now = session.stats()
        return now.bytes_in, now.bytes_out, now.acks

    assert traffic() == (21, 301, 5), "the retired socket still counts"
    first.traffic = Traffic(30, 300, 4)
    first.end(4001)
    assert traffic() == (31, 301, 5)
    second.end(1006)
    transport.wait_links(3)
    session.wait_online()
    transport.links[2].traffic = Traffic(0, 0, 1)
    pool.disconnect()
    assert traffic() == (31, 301, 6)
    assert session.stats().reconnects == 1


def test_traffic_of_a_candidate_that_is_given_up_does_not_vanish(make: Make) -> None:
    _, transport, session, _ = switching(make)
    transport.links[1].traffic = Traffic(7, 9, 0)
    assert session.stats().bytes_in == 7
    transport.links[0].end(1003)
    assert session.stats().state is S.OFFLINE
    assert (session.stats().bytes_in, session.stats().bytes_out) == (7, 9)


def test_attempts_are_counted_while_they_run_and_after(make: Make, waits: list[float]) -> None:
    pool, transport = make(initial_max_retries=2)
    transport.on_open = refuse
    with pytest.raises(Exception, match="nobody home"):
        pool.connect(URL)
    assert pool.session().stats().attempts == 3
    transport.on_open = hold
    call = Background(lambda: pool.connect(URL))
    held(transport, 4)
    assert pool.session().stats().attempts == 4
    pool.disconnect()
    call.error()
    assert pool.session().stats().attempts == 4
    assert pool.session().stats().reconnects == 0


def test_repeated_messages_of_a_switchover_are_counted_and_not_as_received(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    old = transport.links[0]
    announce_shutdown(old)
    new = transport.wait_links(2)[1]
    eventually(lambda: session.stats().switchovers == 1)
    for link in (old, new):
        link.owner.link_received(link, [{"id": "a"}, {"id": "b"}])
    stats = session.stats()
    assert (stats.messages_in, stats.repeated, stats.switchovers) == (2, 2, 1)


def test_the_depth_of_all_queues_together(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    (link,) = transport.links
    gate = Gate()
    session.on("event", lambda envelope: gate.pass_through() if envelope.id == 0 else None)
    messages = session.messages()
    link.owner.link_received(link, [{"id": 0}])
    gate.wait_arrived()
    link.owner.link_received(link, [{"id": 1}, {"id": 2}])
    assert session.stats().queue_depth == pool.stats().queue_depth == 6
    next(messages)
    assert session.stats().queue_depth == 5
    gate.open()
    eventually(lambda: session.stats().queue_depth == 2)


@pytest.mark.parametrize("made_up", [False, True], ids=["named", "made-up"])
def test_t0_abandoned_attempts_are_counted_until_they_end(make: Make, made_up: bool) -> None:
    pool, transport = make()
    gate = Gate()

    class Slow(StaticToken):
        def get(self) -> str:
            gate.pass_through()
            return super().get()

    with pytest.raises(ConnectTimeout):
        pool.connect(URL, None if made_up else "s", token=Slow("token"), timeout=SHORT)
    gate.wait_arrived()
    if not made_up:
        assert pool.session("s").stats().abandoned_attempts == 1
        assert pool.session("other").stats().abandoned_attempts == 0
    assert pool.stats().abandoned_attempts == 1 and pool.stats().threads >= 1
    assert ("s" in pool.stats().sessions) is not made_up
    gate.open()
    eventually(lambda: pool.stats().abandoned_attempts == 0)
    no_connectors()
    assert transport.links == [] and pool.stats().attempts == 1


def test_a_run_that_ends_by_itself_is_never_abandoned(make: Make) -> None:
    pool, transport = make(initial_max_retries=0)
    transport.on_open = refuse
    with pytest.raises(Exception, match="nobody home"):
        pool.connect(URL)
    transport.on_open = FakeLink.become_ready
    pool.connect(URL)
    no_connectors()
    assert pool.stats().abandoned_attempts == 0


def test_a_pool_sums_up_its_sessions(make: Make) -> None:
    pool, transport = make()
    for name in "ab":
        pool.connect(URL, name)
    pool.session("idle")
    for number, link in enumerate(transport.links):
        link.traffic = Traffic(2, 3, 4 + number)
        link.owner.link_received(link, [{"id": number}])
    pool.session("b").send("hello")
    stats = pool.stats()
    assert isinstance(stats, PoolStats)
    assert (stats.name, stats.online, sorted(stats.sessions)) == (pool.name, 2, ["a", "b", "idle"])
    assert nonzero(stats) == {
        "attempts": 2,
        "messages_in": 2,
        "messages_out": 1,
        "bytes_in": 4,
        "bytes_out": 6,
        "acks": 9,
    }
    assert stats.sessions["b"] == pool.session("b").stats()
    pool.close()
    assert pool.stats().online == 0 and pool.stats().acks == 9


def test_statistics_are_copied_pickled_and_made_dicts_of(make: Make) -> None:
    """As a queue of multiprocessing and a writer of JSON do it."""
    pool, _ = make()
    pool.connect(URL, "a")
    for stats in (pool.stats(), pool.session("a").stats()):
        for again in (pickle.loads(pickle.dumps(stats)), copy.copy(stats), copy.deepcopy(stats)):
            assert again == stats and type(again) is type(stats)
    values = dataclasses.asdict(pool.stats())
    assert values["sessions"]["a"]["attempts"] == values["attempts"] == 1
    pool.stats().sessions.clear()  # type: ignore[attr-defined]
    assert list(pool.stats().sessions) == ["a"], "it is a copy"


def test_what_forgotten_sessions_counted_stays_in_the_pools_sums(make: Make) -> None:
    pool, transport = make()
    for _ in range(3):
        session = pool.connect(URL, None)
        transport.links[-1].traffic = Traffic(1, 1, 1)
        session.disconnect()
    assert dict(pool.stats().sessions) == {}
    assert (pool.stats().attempts, pool.stats().acks) == (3, 3)


def test_the_ids_that_the_pool_made_up_are_named(make: Make) -> None:
    pool, _ = make()
    pool.connect(URL, "chosen")
    made_up = pool.connect(URL, None)
    assert pool.stats().made_up == (made_up.id,) and len(pool.stats().sessions) == 2
    pool.disconnect("chosen")
    made_up.disconnect()
    assert pool.stats().made_up == () and list(pool.stats().sessions) == ["chosen"]


def test_t0_a_session_that_is_forgotten_meanwhile_counts_no_more_than_it_leaves_behind(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the sums would shrink: here a sender is late to count its message."""
    pool, _ = make()
    session = pool.connect(URL, None)
    machine = session._machine
    gate, stats = Gate(), type(machine).stats
    reading = threading.Event()

    def late(self: object) -> SessionStats:
        if reading.is_set():
            reading.clear()
            gate.pass_through()
            machine.count_sent()
        return stats(machine)

    monkeypatch.setattr(type(machine), "stats", late)
    reading.set()
    first = Background(pool.stats)
    gate.wait_arrived()
    leaving = Background(session.disconnect)
    eventually(lambda: session.state is S.IDLE)
    leaving.thread.join(SHORT)  # it forgets the session, unless that has to wait
    gate.open()
    counted = first.result().messages_out
    leaving.result()
    assert session.id not in pool.stats().sessions
    assert counted == pool.stats().messages_out == 1


def test_stats_do_not_wait_for_a_session_that_is_busy(make: Make) -> None:
    pool, transport = make()
    transport.on_open, transport.on_close = hold, nothing
    call = Background(lambda: pool.connect(URL))
    (link,) = held(transport, 1)
    assert pool.stats().sessions[pool.session().id].state is S.CONNECTING
    link.become_ready()
    call.result()
    leaving = Background(pool.disconnect)
    eventually(lambda: pool.session().state is S.DISCONNECTING)
    assert pool.stats().sessions[pool.session().id].state is S.DISCONNECTING
    link.end(1000)
    leaving.result(LONG)


def test_sums() -> None:
    assert added([]) == Counts()
    assert added([Counts(acks=1, dropped=2), Counts(acks=3)]) == Counts(acks=4, dropped=2)
    empty: Any = pool_stats("p", [], Counts(acks=2), 3, 1)
    assert (empty.acks, empty.threads, empty.abandoned_attempts, empty.online) == (2, 3, 1, 0)


def test_messages_out_counts_what_was_sent(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    session.send("one")
    session.send({"two": 2})
    transport.links[0].end(1003)
    with pytest.raises(NotOnline):
        session.send("three")
    assert session.stats().messages_out == 2


def test_a_run_whose_connector_was_never_started_is_not_abandoned(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = make()
    machine = pool.session("s")._machine

    def interrupted(attempt: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "_start_connector", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.connect(URL, "s")
    assert pool.stats().abandoned_attempts == 0 and pool.session("s").state is S.OFFLINE
