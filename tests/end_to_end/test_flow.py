"""Messages fetched, queues that fill, and what is counted: what users see, on real sockets."""

from __future__ import annotations

import gc
import itertools
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from llm_sessions import (
    ConnectCancelled,
    ConnectionLost,
    ConnectionPool,
    Envelope,
    Session,
    SessionState,
    WaitTimeout,
)
from llm_sessions.connection import connection as connection_module
from llm_sessions.pool.delivery import Delivery
from llm_sessions.testing.server import LocalServer
from llm_sessions.testing.server_connection import ServerConnection
from tests.support import LONG, SHORT, Background, Gate, Recorder, eventually, run_together

MakePool = Callable[..., ConnectionPool]


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open in the end, whatever happened."""
    gate = Gate()
    yield gate
    gate.open()


def relayed(messages: Iterable[Envelope]) -> Iterator[int]:
    """The numbers of what the test published: what the server says by itself may come after the connect."""
    return (one.data["n"] for one in messages if one.event_type == "relay.event")


def received(session: Session) -> Iterator[Envelope]:
    while True:
        yield session.receive(LONG)


def delivery_of(session: Session) -> Delivery:
    return session._machine._delivery


# -- fetching -----------------------------------------------------------------------------------------------


def test_receive_and_messages_in_one_program(server: LocalServer, pool: ConnectionPool) -> None:
    session = pool.connect(server.url())
    by_hand = relayed(received(session))
    call = Background(lambda: next(by_hand))
    eventually(lambda: delivery_of(session)._kept is not None)
    server.publish({"n": 0})
    assert call.result() == 0
    with session.messages(timeout=LONG) as messages:
        fetched = relayed(messages)
        for n in range(1, 4):
            server.publish({"n": n})
            assert next(fetched) == n
    assert [next(by_hand) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(WaitTimeout):
        session.receive(SHORT)


def test_fetching_goes_on_over_a_reconnect_and_ends_with_the_session(
    server: LocalServer, pool: ConnectionPool
) -> None:
    session = pool.connect(server.url())
    got: list[int] = []
    ended = threading.Event()

    def fetch() -> str:
        try:
            for envelope in session.messages():
                got.extend([envelope.data["n"]] if envelope.event_type == "relay.event" else [])
        except ConnectionLost as exc:
            return str(exc.code)
        finally:
            ended.set()
        return "quiet"

    call = Background(fetch)
    eventually(lambda: delivery_of(session)._streams)
    server.publish({"n": 1})
    server.drop()
    eventually(lambda: session.stats().reconnects == 1)
    server.wait_live()
    server.publish({"n": 2})
    eventually(lambda: got == [1, 2])
    server.close_session(code=1003, reason="no more")
    assert call.result() == "1003" and ended.is_set()


@pytest.mark.parametrize("how", ["disconnect", "close"])
def test_d3_disconnect_and_close_end_every_fetch(server: LocalServer, pool: ConnectionPool, how: str) -> None:
    session = pool.connect(server.url())
    receiving = Background(lambda: list(received(session)))
    iterating = Background(lambda: list(relayed(session.messages())))
    eventually(lambda: delivery_of(session)._kept is not None and delivery_of(session)._streams)
    getattr(pool, how)()
    assert "disconnected" in str(receiving.error()) or "closed" in str(receiving.error())
    assert iterating.result() == []


def test_requests_and_answers_without_a_callback(server: LocalServer, pool: ConnectionPool) -> None:
    """Subscribe, send, look for the answer: nothing can come in between."""

    def answer(connection: ServerConnection, message: dict[str, Any]) -> None:
        if message.get("type") == "question":
            connection.send_json({"id": "a", "data": {"answer": message["id"]}})

    server.on_message(answer)
    session = pool.connect(server.url())
    for n in range(50):
        with session.messages(timeout=LONG) as messages:
            session.send({"id": n, "type": "question"})
            assert next(one for one in messages if one.data.get("answer") == n)


# -- slow consumers -----------------------------------------------------------------------------------------

COUNT, SIZE = 10_000, 1000


def flood(server: LocalServer) -> None:
    for n in range(COUNT):
        server.publish({"n": n, "text": "x" * SIZE})


def test_d9_a_slow_listener_under_block_loses_nothing_and_costs_no_memory(
    server: LocalServer, make_pool: MakePool, gate: Gate
) -> None:
    pool = make_pool(queue_size=100, ping_interval=0.1, pong_timeout=1.0)
    session = pool.connect(server.url())
    got: list[int] = []
    recorder = Recorder().listen(session, "offline", "connection_failed")

    def slow(envelope: Any) -> None:
        got.append(envelope.data["n"])
        if len(got) == 10:
            gate.pass_through()

    session.on("event:relay.event", slow)
    [connection] = server.wait_live()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        sender = Background(lambda: flood(server))
        gate.wait_arrived()
        eventually(lambda: session.stats().paused)
        pings = len(connection.pings)
        server.wait_for(lambda: len(connection.pings) >= pings + 15)  # longer than the pong's time
        stats = session.stats()
        # A read more than the queue takes is what there can be at most; a message is a dict by then.
        assert 100 <= stats.queue_depth <= 100 + 64 * 1024 // SIZE + 2
        of_ours = [
            one
            for one in tracemalloc.take_snapshot().statistics("filename")
            if "llm_sessions/testing" not in one.traceback[0].filename
        ]
        held = sum(one.size for one in of_ours if "llm_sessions" in one.traceback[0].filename)
        assert held < 2_000_000, f"{held} bytes held by a full queue of 100 (from {before})"
    finally:
        tracemalloc.stop()
    gate.open()
    sender.result()
    eventually(lambda: len(got) == COUNT)
    assert got == list(range(COUNT))
    stats = session.stats()
    assert (stats.dropped, stats.sequence_gaps, stats.reconnects) == (0, 0, 0)
    assert recorder.names == [] and len(server.connections()) == 1


def test_d9_a_slow_listener_under_drop_oldest_is_told_how_many_it_lost(
    server: LocalServer, make_pool: MakePool, gate: Gate
) -> None:
    pool = make_pool(queue_size=100, when_full="drop_oldest", ping_interval=0.1, pong_timeout=LONG)
    session = pool.connect(server.url())
    got: list[int] = []

    def slow(envelope: Any) -> None:
        got.append(envelope.data["n"])
        if len(got) == 10:
            gate.pass_through()

    session.on("event:relay.event", slow)
    sender = Background(lambda: flood(server))
    gate.wait_arrived()
    sender.result()
    [connection] = server.wait_live()
    last = connection.sent[-1]["id"]
    server.wait_for(lambda: last in connection.acks)
    assert session.stats().queue_depth <= 100 and not session.stats().paused
    gate.open()
    eventually(lambda: got[-1] == COUNT - 1)
    assert len(got) + session.stats().dropped == COUNT
    assert got == sorted(set(got)), "out of order, or twice"
    assert session.online and session.stats().sequence_gaps == 0


def test_d9_slow_fetching_loses_nothing_under_block(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(queue_size=50)
    session = pool.connect(server.url())
    with session.messages(LONG) as messages, session.messages(LONG, maxsize=7) as others:
        sender = Background(lambda: flood(server))
        eventually(lambda: session.stats().paused)
        other = Background(lambda: list(itertools.islice(relayed(others), COUNT)))
        assert list(itertools.islice(relayed(messages), COUNT)) == list(range(COUNT))
        assert other.result() == list(range(COUNT))
    sender.result()
    assert session.stats().dropped == 0 and session.stats().queue_depth == 0


def test_t4_an_iterator_that_was_left_behind_does_not_stop_the_session(
    server: LocalServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_ASK_AGAIN", 0.05)
    pool = make_pool(queue_size=5)
    session = pool.connect(server.url())
    left_behind = session.messages()
    for n in range(100):
        server.publish({"n": n, "text": "x" * 5000})
    eventually(lambda: session.stats().paused)
    recorder = Recorder().listen(session, "event:relay.event")
    del left_behind
    gc.collect()
    assert recorder.wait("event:relay.event")[-1].data["n"] <= 99
    eventually(
        lambda: not session.stats().paused and recorder.payloads("event:relay.event")[-1].data["n"] == 99
    )


def test_t3_d9_an_iterator_that_is_not_asked_does_not_cost_the_connection(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool(queue_size=5, ping_interval=0.05, pong_timeout=0.3)
    session = pool.connect(server.url())
    with session.messages(LONG) as messages:
        [connection] = server.wait_live()
        for n in range(100):
            server.publish({"n": n, "text": "x" * 5000})
        eventually(lambda: session.stats().paused)
        pings = len(connection.pings)
        server.wait_for(lambda: len(connection.pings) >= pings + 20)
        assert list(itertools.islice(relayed(messages), 100)) == list(range(100))
    assert session.online and session.stats().reconnects == 0


@pytest.mark.parametrize("how", ["disconnect", "close"])
def test_t4_a_reader_held_by_receive_is_woken(server: LocalServer, make_pool: MakePool, how: str) -> None:
    pool = make_pool(queue_size=1, force_close_delay=LONG)
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    by_hand = relayed(received(session))
    call = Background(lambda: next(by_hand))
    eventually(lambda: delivery_of(session)._kept is not None)
    for n in range(50):
        server.publish({"n": n, "text": "x" * 5000})
    assert call.result() == 0
    eventually(lambda: session.stats().paused)
    getattr(pool, how)()
    assert connection.close_code == 1000
    if how == "disconnect":
        assert next(by_hand) == 1, "what was read before is not lost"
        while True:
            try:
                session.receive()
            except ConnectCancelled:
                break


# -- statistics ---------------------------------------------------------------------------------------------


def test_stats_agree_with_what_the_server_saw(server: LocalServer, pool: ConnectionPool, tls: bool) -> None:
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    for n in range(20):
        server.publish({"n": n})
    server.send_text("{")
    server.send_binary(b"\x00")
    server.publish({"n": 20}, sequence=1)
    server.publish({"n": 21}, sequence=1000)
    run_together(5, lambda: [session.send({"type": "hello"}) for _ in range(10)])
    server.wait_for(lambda: sum(one.get("type") == "hello" for one in list(connection.received)) == 50)
    eventually(lambda: session.stats().messages_in == 23 and session.latency is not None)
    server.wait_for(lambda: session.stats().acks == len(connection.acks))
    stats = session.stats()
    assert stats.state is SessionState.ONLINE and stats.latency == session.latency
    assert (stats.attempts, stats.reconnects, stats.switchovers) == (1, 0, 0)
    assert (stats.messages_in, stats.messages_out) == (23, 50)  # with the buffer state
    assert (stats.unusable, stats.dropped, stats.repeated) == (2, 0, 0)
    assert stats.sequence_gaps == 1
    assert stats.bytes_in > 23 * 50 and stats.bytes_out > 50 * 20
    server.drop()
    eventually(lambda: session.stats().reconnects == 1)
    server.shutdown_frame()
    eventually(lambda: session.stats().switchovers == 1)
    eventually(lambda: session.stats().messages_in == 25)  # what says ready is delivered after it
    later = pool.stats()
    assert later.attempts == 3 and later.messages_out == 50 and later.messages_in == 25
    assert later.bytes_in > stats.bytes_in and later.online == 1
