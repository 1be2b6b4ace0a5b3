"""Pools as metrics: named as Prometheus wants them, bounded, and never going back."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llm_sessions import ConfigurationError, ConnectCancelled, ConnectionPool, SessionState
from llm_sessions.connection.transport import Traffic
from llm_sessions.pool.stats import COUNTED
from llm_sessions.prometheus import _COUNTERS, PoolCollector
from llm_sessions.protocol.mercury import LatencyMeasured
from llm_sessions.testing.server import LocalServer
from tests.pool.support import URL, no_connectors
from tests.processes.script import Script
from tests.support import LONG, Background, FakeTransport, fake_pool, run_together

Series = dict[tuple[str, ...], float]
Make = Callable[..., tuple[ConnectionPool, FakeTransport]]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make pools over fake sockets, closed in the end."""
    pools: list[ConnectionPool] = []

    def make_one(name: str | None = None) -> tuple[ConnectionPool, FakeTransport]:
        pool, transport = fake_pool()
        pool.name = name or pool.name
        pools.append(pool)
        return pool, transport

    yield make_one
    for pool in pools:
        pool.close()


def scrape(collector: PoolCollector) -> dict[str, Series]:
    """What a scraper reads: for each metric its samples by their label values."""
    registry = CollectorRegistry()
    registry.register(collector)
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = tuple(sample.labels.values())
            assert labels not in series, f"{sample.name}{labels} came twice"
            series[labels] = sample.value
    return found


def metric(field: str) -> str:
    return f"{_COUNTERS[field][0]}_total"


def states(series: Series, pool: str, session: str) -> dict[str, float]:
    return {key[2]: value for key, value in series.items() if key[:2] == (pool, session) and value}


def test_every_count_has_a_counter() -> None:
    assert list(_COUNTERS) == list(COUNTED)
    assert len({name for name, _ in _COUNTERS.values()}) == len(COUNTED)


def test_the_names_are_those_of_prometheus() -> None:
    families = list(PoolCollector().describe())
    assert all(not family.samples for family in families)
    names = {family.name: family.type for family in families}
    assert all(name.startswith("llm_sessions_") for name in names)
    assert {name for name, kind in names.items() if kind == "counter"} == {n for n, _ in _COUNTERS.values()}
    assert set(names.values()) == {"counter", "gauge"}
    for name, kind in names.items():
        assert not name.endswith(("_total", "_count", "_sum", "_bucket")), "the exposition adds these"
        assert ("bytes" in name) == name.endswith("_bytes") and ("seconds" in name) == name.endswith(
            "_seconds"
        )
        assert "bytes" not in name or kind == "counter"
    assert all(family.documentation.endswith(".") for family in families)


def test_a_registry_knows_the_names_and_refuses_them_twice() -> None:
    registry = CollectorRegistry()
    collector = PoolCollector()
    registry.register(collector)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(PoolCollector())
    registry.unregister(collector)
    registry.register(PoolCollector())


def test_a_session_and_its_pool(make: Make) -> None:
    pool, transport = make("p")
    session = pool.connect(URL, "main")
    (link,) = transport.links
    link.traffic = Traffic(2, 30, 400)
    messages = session.messages()
    link.owner.link_received(link, [{"id": 1}, {"id": 2}, LatencyMeasured(0.25)])
    session.send("hello")
    no_connectors()  # the one that is through may still be counted
    found = scrape(PoolCollector(pool))
    stats = session.stats()
    for field in COUNTED:
        assert found[metric(field)] == {("p", "main"): getattr(stats, field), ("p", ""): 0}, field
    assert found["llm_sessions_messages_received_total"]["p", "main"] == 2
    assert found["llm_sessions_received_bytes_total"]["p", "main"] == stats.bytes_in > 0
    assert found["llm_sessions_state_timestamp_seconds"] == {("p", "main"): stats.since}
    assert found["llm_sessions_latency_seconds"] == {("p", "main"): 0.25}
    assert found["llm_sessions_queued_messages"] == {("p", "main"): 2, ("p", ""): 0}
    assert found["llm_sessions_paused"] == {("p", "main"): 0, ("p", ""): 0}
    assert found["llm_sessions_abandoned_attempts"] == {("p",): 0}
    assert found["llm_sessions_threads"] == {("p",): pool.stats().threads}
    messages.close()


def test_the_state_is_one_of_all(make: Make) -> None:
    pool, _ = make("p")
    session = pool.session("main")
    collector = PoolCollector(pool)
    for act, state in (
        (lambda: None, SessionState.IDLE),
        (lambda: pool.connect(URL, "main"), SessionState.ONLINE),
        (lambda: session.disconnect(), SessionState.IDLE),
    ):
        act()
        series = scrape(collector)["llm_sessions_session_state"]
        assert {key[2] for key in series} == {one.value for one in SessionState}
        assert states(series, "p", "main") == {state.value: 1}
        assert states(series, "p", "") == {}, "there is no other session"


def test_sessions_that_are_not_chosen_are_reported_together(make: Make) -> None:
    pool, transport = make("p")
    for number, name in enumerate("abc"):
        pool.connect(URL, name)
        link = transport.links[-1]
        link.owner.link_received(link, [LatencyMeasured(number + 1.0), *[{"id": 1}] * (number + 1)])
    pool.disconnect("c")
    received = metric("messages_in")
    for sessions, expected in (
        (None, {("p", "a"): 1, ("p", "b"): 2, ("p", "c"): 3, ("p", ""): 0}),
        (("a", "never made"), {("p", "a"): 1, ("p", ""): 5}),
        ((), {("p", ""): 6}),
    ):
        found = scrape(PoolCollector(pool, sessions=sessions))
        assert found[received] == expected
    assert states(found["llm_sessions_session_state"], "p", "") == {"online": 2, "idle": 1}
    assert found["llm_sessions_latency_seconds"] == {("p", ""): 2.0}, "the highest of those that have one"
    assert "llm_sessions_state_timestamp_seconds" not in found, "several sessions have no one moment"


def test_made_up_sessions_have_no_series_and_nothing_goes_back_when_they_go(make: Make) -> None:
    pool, transport = make("p")
    collector = PoolCollector(pool)
    received = metric("messages_in")
    pool.connect(URL, "main")
    for number in range(1, 4):
        session = pool.connect(URL, None)
        link = transport.links[-1]
        link.owner.link_received(link, [{"id": 1}, {"id": 2}])
        assert scrape(collector)[received] == {("p", "main"): 0, ("p", ""): 2 * number}
        assert pool.stats().made_up == (session.id,)
        session.disconnect()
        assert session.id not in pool.stats().sessions and pool.stats().made_up == ()
        assert scrape(collector)[received] == {("p", "main"): 0, ("p", ""): 2 * number}


@pytest.mark.stress
@pytest.mark.parametrize("sessions", [None, (), ("a",)], ids=["all", "none", "one"])
def test_counters_only_grow_whatever_the_sessions_do(make: Make, sessions: Any) -> None:
    pool, transport = make("p")
    collector = PoolCollector(pool, sessions=sessions)
    before: dict[str, Series] = {}

    def live(seed: int) -> Callable[[], None]:
        lot = random.Random(seed)

        def act() -> None:
            for _ in range(15):
                name = lot.choice(["a", "b", None])
                try:
                    session = pool.connect(URL, name)
                except ConnectCancelled:  # another actor disconnected it
                    continue
                for link in transport.links:
                    if link.ready and lot.random() < 0.5:
                        link.owner.link_received(link, [{"id": 1}])
                if name is None or lot.random() < 0.3:
                    session.disconnect()

        return act

    actors = [Background(live(seed)) for seed in range(3)]
    while True:
        last = all(actor.done for actor in actors)
        found = scrape(collector)
        for field in COUNTED:
            for labels, value in before.get(metric(field), {}).items():
                assert found[metric(field)][labels] >= value, (field, labels)
        before = found
        if last:
            break
    for actor in actors:
        actor.result()
    for field in COUNTED:
        assert sum(before[metric(field)].values()) == getattr(pool.stats(), field), field


def test_several_pools_are_told_apart(make: Make) -> None:
    (one, _), (two, _) = make("one"), make("two")
    collector = PoolCollector(one)
    two.connect(URL, "main")
    collector.add(two)
    collector.add(two)
    attempts = metric("attempts")
    assert scrape(collector)[attempts] == {("one", ""): 0, ("two", "main"): 1, ("two", ""): 0}
    collector.remove(one)
    collector.remove(one)
    assert scrape(collector)[attempts] == {("two", "main"): 1, ("two", ""): 0}
    collector.remove(two)
    assert scrape(collector) == {}


def test_a_closed_pool_is_reported_as_it_was_at_its_end(make: Make) -> None:
    pool, _ = make("p")
    pool.connect(URL, "main")
    collector = PoolCollector(pool)
    pool.close()
    found = scrape(collector)
    assert found[metric("attempts")]["p", "main"] == 1
    assert states(found["llm_sessions_session_state"], "p", "main") == {"idle": 1}
    assert found["llm_sessions_threads"] == {("p",): 0}


def test_a_name_belongs_to_one_open_pool_and_passes_on_when_that_is_closed(make: Make) -> None:
    (old, _), (new, _) = make("p"), make("p")
    old.connect(URL, "main")
    collector = PoolCollector(old)
    with pytest.raises(ConfigurationError, match="another open pool is named 'p'"):
        collector.add(new)
    assert scrape(collector)[metric("attempts")]["p", "main"] == 1, "the old one stays"
    old.close()
    collector.add(new)
    assert scrape(collector)[metric("attempts")] == {("p", ""): 0}
    with pytest.raises(ConfigurationError):
        PoolCollector(make("q")[0], make("q")[0])


def test_of_threads_that_add_pools_of_one_name_at_most_one_succeeds(make: Make) -> None:
    for _ in range(20):
        collector = PoolCollector()
        pools = [make("p")[0] for _ in range(4)]
        outcomes = run_together(4, lambda add=collector.add, left=pools: add(left.pop()))  # type: ignore[misc]
        assert outcomes.count(None) <= 1
        assert {type(one) for one in outcomes if one is not None} == {ConfigurationError}
        assert len(scrape(collector).get(metric("attempts"), {})) == outcomes.count(None)


def test_wrong_arguments(make: Make) -> None:
    pool, _ = make()
    for arguments, options, about in (
        (("pool",), {}, "pool"),
        ((pool,), {"sessions": "main"}, "sessions"),
        ((pool,), {"sessions": [1]}, "sessions"),
        ((pool,), {"sessions": [""]}, "sessions"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            PoolCollector(*arguments, **options)  # type: ignore[arg-type]
        assert caught.value.argument == about


def test_a_session_may_have_any_name(make: Make) -> None:
    pool, _ = make('a "pool"\\')
    name = 'quotes " and \\ and ünï'
    pool.session(name)
    assert (pool.name, name) in scrape(PoolCollector(pool))[metric("attempts")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_t7_a_fork_leaves_its_parents_pools_out_and_reports_its_own() -> None:
    code = """
    import warnings
    from prometheus_client import CollectorRegistry, generate_latest
    from llm_sessions.prometheus import PoolCollector
    from llm_sessions import _sync
    import gc

    warnings.simplefilter("ignore", DeprecationWarning)  # to fork with threads is what this is about
    _sync.check_lock_order(True)  # locks that can be found
    registry = CollectorRegistry()
    pool = ConnectionPool("token", config=config(), name="captions")
    collector = PoolCollector(pool)
    registry.register(collector)
    pool.connect(url("a"), "a")

    def lines():
        text = generate_latest(registry).decode()
        return [line for line in text.splitlines() if line.startswith("llm_sessions_connect_attempts_total")]

    reader, writer = os.pipe()
    if os.fork() == 0:
        for lock in gc.get_objects():  # as if threads that the child does not have held them
            if type(lock) is _sync.RankedLock:
                lock._lock.acquire(blocking=False)
        inherited = lines()
        own = ConnectionPool("token", config=config(), name="captions")
        own.connect(url("b"), "b")
        collector.add(own)
        os.write(writer, json.dumps([inherited, lines()]).encode())
        own.close()
        os._exit(0)
    os.close(writer)
    said = b""
    while piece := os.read(reader, 65536):
        said += piece
    os.wait()
    say([json.loads(said), lines()])
    pool.close()
    """
    name = "llm_sessions_connect_attempts_total"
    rest = f'{name}{{pool="captions",session=""}} 0.0'
    with LocalServer() as server, Script(server, code) as script:
        (inherited, own), parents = script.says()
        script.ends(within=LONG)
    assert inherited == []
    assert own == [f'{name}{{pool="captions",session="b"}} 1.0', rest]
    assert parents == [f'{name}{{pool="captions",session="a"}} 1.0', rest]


def fresh(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=LONG
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_nobody_imports_it_who_does_not_ask() -> None:
    everything = "from llm_sessions import *; import llm_sessions.cli.main, llm_sessions.testing.server"
    assert fresh(f"{everything}; import sys; print('prometheus_client' in sys.modules)") == "False"


def test_without_the_extra_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["prometheus_client"] = None
try:
    import llm_sessions.prometheus
except ImportError as exc:
    print(exc)
"""
    assert fresh(code) == "llm_sessions.prometheus needs more: pip install 'llm-sessions[prometheus]'"
