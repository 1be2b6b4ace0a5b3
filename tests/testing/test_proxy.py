"""FaultProxy: its lanes by plain calls, then raw sockets through it, then a pool and a LocalServer."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from llm_sessions import ConnectionPool, SessionState
from llm_sessions.testing.proxy import FaultProxy, ProxiedConnection, ProxyTimeout
from llm_sessions.testing.proxy_lane import (
    HELD_LIMIT,
    MAX_PIECES,
    READ_SIZE,
    WAYS,
    Delay,
    Drip,
    End,
    FutureFaults,
    Lane,
    Stop,
    Trip,
    Way,
)
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, SHORT, Background, Recorder, descriptors, library_threads

MakePool = Callable[..., ConnectionPool]

# -- one lane, without a socket ------------------------------------------------------------------------------


def make_lane(*faults: Delay | Drip | Trip, data: bytes = b"", limit: int = HELD_LIMIT) -> Lane:
    lane = Lane(random.Random(1), limit)
    for fault in faults:
        lane.apply(fault)
    if data:
        lane.take(data, 0)
    return lane


def run(lane: Lane, now: float = 0.0) -> tuple[list[bytes], End | None]:
    """Take all steps of one moment: what was written, write by write, and the end."""
    writes: list[bytes] = []
    while (step := lane.step(now)) is not None:
        if isinstance(step, End):
            assert lane.over is step
            assert lane.step(now) is None
            return writes, step
        writes.append(bytes(step))
        lane.sent(len(step), now)
    return writes, None


def test_a_lane_passes_on_what_comes_and_then_the_end() -> None:
    for end in End:
        lane = make_lane(data=b"one")
        lane.take(b"two", 0)
        assert (lane.held, lane.due()) == (6, 0)
        assert run(lane) == ([b"one", b"two"], None)
        assert (lane.held, lane.passed, lane.due()) == (0, 6, None)
        lane.end(end, 0)
        assert lane.room() == 0
        assert run(lane) == ([], end)


def test_a_lane_is_told_how_much_the_receiver_took() -> None:
    lane = make_lane(data=b"abcdef")
    lane.sent(2, 0)
    assert (bytes(lane.step(0) or b""), lane.held) == (b"cdef", 4)  # type: ignore[arg-type]


def test_a_lane_holds_no_more_than_its_limit() -> None:
    lane = make_lane(data=b"x" * 70, limit=100)
    assert lane.room() == 30
    lane.take(b"x" * 30, 0)
    assert lane.room() == 0
    run(lane)
    assert lane.room() == 100
    lane = make_lane(Delay(1))
    for _ in range(MAX_PIECES):
        assert lane.room() > 0
        lane.take(b"x", 0)
    assert lane.room() == 0


def test_a_delay_keeps_the_order_even_if_it_shrinks() -> None:
    lane = make_lane(Delay(10), data=b"slow")
    lane.apply(Delay(1))
    lane.take(b"quick", 2)
    lane.end(End.FIN, 3)
    assert (run(lane, 9.9), lane.due()) == (([], None), 10)
    assert run(lane, 10) == ([b"slow", b"quick"], End.FIN)


def test_a_drip_writes_so_much_at_a_time() -> None:
    lane = make_lane(Drip(2, 5), data=b"abcde")
    lane.end(End.FIN, 0)
    assert (run(lane, 1), lane.due()) == (([b"ab"], None), 6)
    assert run(lane, 5.9) == ([], None)
    assert run(lane, 6) == ([b"cd"], None)
    assert run(lane, 11) == ([b"e"], End.FIN)  # the end needs no drop of its own
    assert run(make_lane(Drip(1, 0), data=b"abc")) == ([b"a", b"b", b"c"], None)


def test_sizes_and_times_are_drawn_from_a_pair() -> None:
    writes, _ = run(make_lane(Drip((1, 3), (0.0, 0.0)), data=b"x" * 300))
    assert {len(write) for write in writes} == {1, 2, 3}
    assert run(make_lane(Drip((1, 3), (0.0, 0.0)), data=b"x" * 300)) == (writes, None)
    lane = make_lane(Delay((1.0, 2.0)))
    for now in range(20):
        lane.take(b"x", now)
    assert 1 <= (lane.due() or 0) <= 2
    places = {len(b"".join(run(make_lane(Trip(Stop.CUT, (n, n + 9)), data=b"x" * 99))[0])) for n in range(50)}
    assert len(places) > 20


@pytest.mark.parametrize(("stop", "end"), [(Stop.CUT, End.FIN), (Stop.RESET, End.RESET)])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 99])
def test_a_lane_ends_at_the_byte(stop: Stop, end: End, size: int) -> None:
    lane = make_lane(Trip(stop, 4))
    text = b"0123456789"
    for at in range(0, len(text), size):
        lane.take(text[at : at + size], 0)
    writes, how = run(lane)
    assert (b"".join(writes), how) == (b"0123", end)
    assert (lane.dropped, lane.lost) == (6, False)
    assert lane.room() == READ_SIZE  # its sender is not to notice
    lane.take(b"more", 0)
    assert (lane.dropped, lane.held) == (10, 0)


def test_bytes_are_counted_from_the_call_and_those_held_count() -> None:
    lane = make_lane(data=b"abc")
    run(lane)
    lane.take(b"def", 0)
    lane.apply(Trip(Stop.CUT, 4))
    lane.take(b"ghi", 0)
    assert run(lane) == ([b"def", b"g"], End.FIN)


def test_without_a_byte_it_ends_at_once_and_loses_what_it_holds() -> None:
    lane = make_lane(Delay(9), data=b"abc")
    lane.apply(Trip(Stop.RESET, 0))
    assert (run(lane), lane.dropped) == (([], End.RESET), 3)


def test_an_end_that_was_asked_for_is_not_taken_back() -> None:
    lane = make_lane(Trip(Stop.CUT, 0))
    lane.apply(Trip(Stop.BLACK_HOLE, 0))
    lane.heal()
    assert run(lane) == ([], End.FIN)
    lane = make_lane(Trip(Stop.CUT, 1), data=b"ab")  # still to come
    lane.heal()
    assert run(lane) == ([b"ab"], None)


def test_a_black_hole_drops_what_comes_behind_its_byte_and_the_end() -> None:
    lane = make_lane(Trip(Stop.BLACK_HOLE, 2), data=b"abc")
    assert not lane.swallows
    assert run(lane) == ([b"ab"], None)
    assert lane.swallows
    lane.take(b"def", 0)
    lane.end(End.FIN, 0)
    assert (run(lane), lane.dropped, lane.lost, lane.due()) == (([], None), 4, True, None)


def test_what_lost_bytes_cannot_be_healed_but_its_end_is_passed_on() -> None:
    lane = make_lane(Trip(Stop.BLACK_HOLE, 0), data=b"abc")
    lane.heal()
    lane.take(b"def", 0)
    assert (run(lane), lane.dropped, lane.swallows) == (([], None), 6, True)
    lane.end(End.FIN, 0)
    assert run(lane) == ([], End.RESET)
    lane = make_lane(Trip(Stop.BLACK_HOLE, 0), data=b"abc")
    lane.apply(Trip(Stop.CUT, 100))  # nothing will ever be counted
    assert run(lane) == ([], End.FIN)


def test_a_black_hole_that_swallowed_only_an_end_is_healed() -> None:
    lane = make_lane(Trip(Stop.BLACK_HOLE, 0))
    lane.end(End.FIN, 0)
    assert run(lane) == ([], None)
    lane.heal()
    assert run(lane) == ([], End.FIN)


def test_a_stalled_lane_reads_no_more_and_loses_nothing() -> None:
    lane = make_lane(Trip(Stop.STALL, 5))
    assert lane.room() == 5
    lane.take(b"abc", 0)
    assert (run(lane), lane.room()) == (([b"abc"], None), 2)
    lane.take(b"de", 0)
    assert (run(lane), lane.room(), lane.due()) == (([b"de"], None), 0, None)
    lane.heal()
    assert lane.room() > 0
    lane.take(b"f", 0)
    assert run(lane) == ([b"f"], None)
    lane = make_lane(data=b"held")
    lane.apply(Trip(Stop.STALL, 1))
    assert (run(lane), lane.held, lane.room()) == (([b"h"], None), 3, 0)
    lane.heal()
    assert run(lane) == ([b"eld"], None)


def test_healing_makes_due_what_was_held() -> None:
    lane = make_lane(Delay(1000), Drip(1, 1000), data=b"abc")
    lane.end(End.FIN, 0)
    lane.heal()
    assert run(lane) == ([b"abc"], End.FIN)


def test_counted_faults_come_first_in_order_and_once_for_both_directions() -> None:
    cut, reset, hole = Trip(Stop.CUT, 1), Trip(Stop.RESET, 2), Trip(Stop.BLACK_HOLE, 3)
    future = FutureFaults()
    future.add(hole, WAYS, None)
    future.add(cut, WAYS, 2)
    future.add(reset, ("to_client",), 1)
    future.add(Delay(1), ("to_server",), None)
    taken = [[future.take(number, way) for way in WAYS] for number in (1, 2, 3, 4)]
    late = Delay(1)
    assert taken == [
        [[late, cut], [cut]],
        [[late, cut], [cut]],
        [[late, hole], [reset]],
        [[late, hole], [hole]],
    ]
    future.add(cut, WAYS, 5)
    future.add(reset, WAYS, None)  # replaces all of its kind
    assert future.take(5, "to_client") == [reset]
    future.clear()
    assert future.take(6, "to_server") == []


# -- raw sockets ---------------------------------------------------------------------------------------------


class Target:
    """A listening socket behind a FaultProxy."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(LONG)
        self.host, self.port = self.listener.getsockname()[:2]
        self.proxy = FaultProxy(self, seed=7)
        self.stack = contextlib.ExitStack()
        self.stack.callback(self.listener.close)

    def client(self) -> socket.socket:
        return self.stack.enter_context(socket.create_connection((self.proxy.host, self.proxy.port), LONG))

    def accept(self) -> socket.socket:
        server = self.stack.enter_context(self.listener.accept()[0])
        server.settimeout(LONG)
        return server

    def connect(self) -> tuple[socket.socket, socket.socket, ProxiedConnection]:
        """Return client, server and what the proxy knows."""
        client, server = self.client(), self.accept()
        connection = self.proxy.connections[-1]
        self.proxy.wait_for(lambda: connection.stage == "open")
        return client, server, connection


@pytest.fixture
def target() -> Iterator[Target]:
    target = Target()
    with target.stack, target.proxy:
        yield target


@pytest.fixture
def proxy(target: Target) -> FaultProxy:
    return target.proxy


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return request.param  # type: ignore[no-any-return]


def ends(way: Way, client: socket.socket, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return sender and receiver of a direction."""
    return (client, server) if way == "to_server" else (server, client)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(min(size - len(data), 1 << 20))
        assert chunk, f"it ended after {len(data)} bytes of {size}"
        data += chunk
    return bytes(data)


def read_to_end(sock: socket.socket) -> tuple[bytes, Literal["fin", "reset"]]:
    data = bytearray()
    try:
        while chunk := sock.recv(1 << 16):
            data += chunk
    except ConnectionResetError:
        return bytes(data), "reset"
    return bytes(data), "fin"


def attempt(target: Target) -> str:
    """Return how a connection ends at which the server does nothing."""
    try:
        return read_to_end(target.client())[1]
    except ConnectionResetError:  # the RST came before connect had returned
        return "reset"


def silent(sock: socket.socket) -> bool:
    """Say that nothing comes, not even an end. It cannot be waited for, so not for long."""
    return not select.select([sock], [], [], SHORT)[0]


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def closed(proxy: FaultProxy) -> None:
    proxy.wait_for(lambda: not proxy.live())


def test_bytes_and_ends_pass(target: Target, proxy: FaultProxy, way: Way) -> None:
    client, server, connection = target.connect()
    sender, receiver = ends(way, client, server)
    sender.sendall(b"hello")
    assert read_exactly(receiver, 5) == b"hello"
    sender.shutdown(socket.SHUT_WR)
    assert read_to_end(receiver) == (b"", "fin")
    receiver.sendall(b"the other half goes on")
    receiver.shutdown(socket.SHUT_WR)
    assert read_to_end(sender) == (b"the other half goes on", "fin")
    closed(proxy)
    assert connection.ended_by == ("client" if way == "to_server" else "server")
    assert {connection.bytes_to_server, connection.bytes_to_client} == {5, 22}
    assert connection.closed_at is not None
    assert connection.opened_at <= connection.closed_at <= time.monotonic()
    assert (connection.number, connection.stage) == (1, "closed")
    assert (connection.held, connection.dropped) == (0, 0)


def test_a_reset_passes_behind_the_bytes(target: Target, proxy: FaultProxy, way: Way) -> None:
    client, server, connection = target.connect()
    sender, receiver = ends(way, client, server)
    sender.sendall(b"last words")
    proxy.wait_for(lambda: connection.bytes_to_server + connection.bytes_to_client == 10)
    reset(sender)
    assert read_to_end(receiver) == (b"last words", "reset")
    closed(proxy)
    assert connection.ended_by == ("client" if way == "to_server" else "server")


def test_a_reset_does_not_wait_for_a_receiver_that_does_not_read(
    target: Target, proxy: FaultProxy, way: Way
) -> None:
    client, server, connection = target.connect()
    sender, _ = ends(way, client, server)
    sent = 0

    def taken() -> bool:
        return connection.bytes_to_server + connection.bytes_to_client + connection.held >= sent

    # Until the proxy holds something, but less than its limit: then it still reads, and will see a RST.
    while not connection.held:
        sender.sendall(b"x" * 50_000)
        sent += 50_000
        proxy.wait_for(taken)
    assert connection.held < HELD_LIMIT
    reset(sender)
    closed(proxy)
    assert connection.ended_by == ("client" if way == "to_server" else "server")


def test_a_sender_hears_that_its_receiver_is_gone(target: Target, proxy: FaultProxy, way: Way) -> None:
    client, server, connection = target.connect()
    sender, receiver = ends(way, client, server)
    receiver.shutdown(socket.SHUT_WR)
    assert read_to_end(sender) == (b"", "fin")
    receiver.close()  # now it would answer bytes with a RST
    sender.sendall(b"x")  # the answer to this byte is a RST; the next write finds it, unless poll did
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while proxy.live():
            sender.sendall(b"x")
    closed(proxy)
    assert connection.ended_by == ("server" if way == "to_server" else "client")


def test_ten_megabytes_each_way_at_once(target: Target) -> None:
    client, server, connection = target.connect()
    size = 10_000_000
    up, down = os.urandom(size), os.urandom(size)
    sending = [Background(lambda: client.sendall(up)), Background(lambda: server.sendall(down))]
    reading = Background(lambda: read_exactly(server, size))
    assert read_exactly(client, size) == down
    assert reading.result() == up
    for sender in sending:
        sender.result()
    assert (connection.bytes_to_server, connection.bytes_to_client) == (size, size)


def test_a_receiver_that_does_not_read_stops_the_sender(target: Target, proxy: FaultProxy, way: Way) -> None:
    client, server, connection = target.connect()
    sender, receiver = ends(way, client, server)
    data = os.urandom(1 << 20) * 32
    sending = Background(lambda: sender.sendall(data))
    most = []

    def full() -> bool:
        most.append(connection.held)
        return most[-1] == HELD_LIMIT

    proxy.wait_for(full)
    assert max(most) <= HELD_LIMIT
    assert not sending.done
    assert read_exactly(receiver, len(data)) == data
    sending.result()


def test_a_delay_holds_the_bytes_and_then_the_end(target: Target, proxy: FaultProxy, way: Way) -> None:
    client, server, connection = target.connect()
    sender, receiver = ends(way, client, server)
    assert proxy.delay(0.1, direction=way) == 1
    began = time.monotonic()
    sent = b"".join(b"%d," % number for number in range(200))
    for number in range(200):
        sender.sendall(b"%d," % number)
    sender.shutdown(socket.SHUT_WR)
    proxy.wait_for(lambda: connection.held)
    receiver.sendall(b"this way is free")
    assert read_exactly(sender, 16) == b"this way is free"
    assert read_to_end(receiver) == (sent, "fin")
    assert time.monotonic() - began >= 0.1


def test_order_is_kept_while_delays_and_drops_are_drawn(target: Target, proxy: FaultProxy, way: Way) -> None:
    proxy.delay((0.0, 0.01))
    proxy.drip((1, 50), (0.0, 0.0005))
    client, server, _ = target.connect()
    sender, receiver = ends(way, client, server)
    sent = b"".join(b"%d," % number for number in range(1000))

    def send() -> None:
        for number in range(1000):
            sender.sendall(b"%d," % number)

    sending = Background(send)
    assert read_exactly(receiver, len(sent)) == sent
    sending.result()


def test_a_drip_is_seen_byte_by_byte(target: Target, proxy: FaultProxy, way: Way) -> None:
    client, server, connection = target.connect()
    sender, receiver = ends(way, client, server)
    proxy.drip(interval=3600, direction=way)
    sender.sendall(b"abc")
    assert receiver.recv(100) == b"a"
    assert connection.held == 2
    proxy.drip(2, 3600, direction=way)  # the interval begun goes on
    assert silent(receiver)
    proxy.heal()
    assert read_exactly(receiver, 2) == b"bc"


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("after", [None, 0, 1, 100])
def test_cut_ends_one_direction_at_the_byte(
    target: Target, proxy: FaultProxy, way: Way, after: int | None, live: bool
) -> None:
    if not live:
        assert proxy.cut(after, direction=way) == 0
    client, server, connection = target.connect()
    sender, receiver = ends(way, client, server)
    if live:
        sender.sendall(b"before")
        assert read_exactly(receiver, 6) == b"before"
        assert proxy.cut(after, direction=way) == 1
    sender.sendall(b"x" * 101)
    assert read_to_end(receiver) == (b"x" * (after or 0), "fin")
    receiver.sendall(b"back")
    assert read_exactly(sender, 4) == b"back"
    assert (connection.stage, connection.ended_by) == ("open", "cut")
    sender.close()
    receiver.close()
    closed(proxy)
    assert connection.ended_by == "cut"


def test_cut_in_both_directions_counts_each(target: Target, proxy: FaultProxy) -> None:
    proxy.cut(after=3)
    client, server, _ = target.connect()
    client.sendall(b"12345")
    assert read_to_end(server) == (b"123", "fin")
    server.sendall(b"67890")
    assert read_to_end(client) == (b"678", "fin")
    client.close()
    server.close()
    closed(proxy)


@pytest.mark.parametrize(("live", "after"), [(True, None), (True, 0), (True, 1), (False, 1), (False, 100)])
def test_reset_ends_both_sides_at_the_byte_of_either(
    target: Target, proxy: FaultProxy, way: Way, after: int | None, live: bool
) -> None:
    if not live:
        assert proxy.reset(after, direction=way) == 0
    client, server, connection = target.connect()
    sender, receiver = ends(way, client, server)
    if live:
        assert proxy.reset(after, direction=way) == 1
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # without `after` it may be over already
        sender.sendall(b"x" * 101)
        assert read_to_end(sender) == (b"", "reset")
    assert read_to_end(receiver) == (b"x" * (after or 0), "reset")
    closed(proxy)
    assert connection.ended_by == "reset"


@pytest.mark.parametrize("after", [None, 0])
def test_reset_at_the_beginning_hides_the_connection_from_the_target(
    target: Target, proxy: FaultProxy, way: Way, after: int | None
) -> None:
    proxy.reset(after, direction=way)
    assert attempt(target) == "reset"
    assert silent(target.listener)
    assert proxy.connections[0].ended_by == "reset"


def test_reset_of_both_directions_comes_with_the_first_that_gets_there(
    target: Target, proxy: FaultProxy
) -> None:
    proxy.reset(after=5)
    client, server, connection = target.connect()
    client.sendall(b"1234")
    assert read_exactly(server, 4) == b"1234"
    server.sendall(b"67890---")
    assert read_to_end(client) == (b"67890", "reset")
    assert read_to_end(server) == (b"", "reset")
    closed(proxy)
    assert (connection.bytes_to_server, connection.bytes_to_client) == (4, 5)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("after", [None, 4])
def test_a_black_hole_drops_bytes_and_ends(
    target: Target, proxy: FaultProxy, way: Way, after: int | None, live: bool
) -> None:
    if not live:
        proxy.black_hole(after, direction=way)
    client, server, connection = target.connect()
    if live:
        assert proxy.black_hole(after, direction=way) == 1
    sender, receiver = ends(way, client, server)
    sender.sendall(b"x" * 100)
    proxy.wait_for(lambda: connection.dropped == 100 - (after or 0))
    assert read_exactly(receiver, after or 0) == b"x" * (after or 0)
    receiver.sendall(b"this way is free")
    assert read_exactly(sender, 16) == b"this way is free"
    sender.shutdown(socket.SHUT_WR)
    proxy.wait_for(lambda: connection.ended_by)
    assert silent(receiver)
    assert connection.stage == "open"
    proxy.heal()
    assert read_to_end(receiver) == (b"", "reset")
    closed(proxy)


def test_a_black_hole_drops_any_amount(target: Target, proxy: FaultProxy) -> None:
    client, _, connection = target.connect()
    proxy.black_hole()
    client.sendall(bytes(5_000_000))
    proxy.wait_for(lambda: connection.dropped == 5_000_000)
    assert connection.held == 0


def test_a_black_hole_hides_that_a_side_is_gone_until_both_are(target: Target, proxy: FaultProxy) -> None:
    client, server, connection = target.connect()
    proxy.black_hole()
    reset(client)
    proxy.wait_for(lambda: connection.ended_by == "client")
    server.sendall(b"anyone there?")
    assert silent(server)
    assert proxy.live() == [connection]
    server.close()
    closed(proxy)


@pytest.mark.parametrize("after", [None, 4])
def test_a_black_hole_that_does_not_read_fills_the_buffers_and_heals(
    target: Target, proxy: FaultProxy, way: Way, after: int | None
) -> None:
    client, server, connection = target.connect()
    sender, receiver = ends(way, client, server)
    proxy.black_hole(after, stop_reading=True, direction=way)
    data = os.urandom(1 << 20) * 32
    sending = Background(lambda: sender.sendall(data))
    assert read_exactly(receiver, after or 0) == data[: after or 0]
    assert silent(receiver)
    assert not sending.done
    assert (connection.held, connection.dropped) == (0, 0)
    proxy.heal()
    assert read_exactly(receiver, len(data) - (after or 0)) == data[after or 0 :]
    sending.result()


def test_refuse_resets_new_connections_only(target: Target, proxy: FaultProxy) -> None:
    client, server, connection = target.connect()
    proxy.refuse(times=2)
    assert [attempt(target), attempt(target)] == ["reset", "reset"]
    client.sendall(b"x")
    assert read_exactly(server, 1) == b"x"
    client.close()
    target.connect()
    assert [c.ended_by for c in proxy.connections[1:]] == ["refused", "refused", None]
    proxy.refuse()
    assert [attempt(target) for _ in range(3)] == ["reset"] * 3
    proxy.heal()
    target.connect()
    assert connection.ended_by == "client"


@pytest.mark.parametrize("release", [FaultProxy.release_connects, FaultProxy.heal])
def test_held_connections_go_on_when_released(
    target: Target, proxy: FaultProxy, release: Callable[[FaultProxy], None]
) -> None:
    proxy.hold_connects()
    client, hasty = target.client(), target.client()
    client.sendall(b"early")
    hasty.sendall(b"bye")
    hasty.close()
    proxy.wait_for(lambda: [c.stage for c in proxy.live()] == ["held", "held"])
    assert silent(target.listener)
    release(proxy)
    assert sorted(target.accept().recv(5) for _ in range(2)) == [b"bye", b"early"]
    client.close()


def test_held_connections_can_be_reset(target: Target, proxy: FaultProxy) -> None:
    proxy.hold_connects()
    client = target.client()
    proxy.wait_for(proxy.live)
    assert proxy.reset(on=proxy.live()) == 1
    assert read_to_end(client) == (b"", "reset")
    assert proxy.connections[0].ended_by == "reset"


def test_a_target_that_does_not_listen_resets_the_client(target: Target, proxy: FaultProxy) -> None:
    target.listener.close()
    assert attempt(target) == "reset"
    closed(proxy)
    [connection] = proxy.connections
    assert connection.ended_by == "unreachable"
    assert isinstance(connection.error, ConnectionRefusedError)
    assert "by unreachable ([Errno" in repr(connection)


def test_a_fault_stays_until_it_is_healed(target: Target, proxy: FaultProxy) -> None:
    proxy.cut(direction="to_client")
    for _ in range(3):
        client, _, _ = target.connect()
        assert read_to_end(client) == (b"", "fin")
    proxy.heal()
    client, server, _ = target.connect()
    server.sendall(b"x")
    assert read_exactly(client, 1) == b"x"


def test_a_counted_fault_takes_live_connections_first(target: Target, proxy: FaultProxy) -> None:
    first, second = target.connect()[0], target.connect()
    assert proxy.reset(once=True) == 1
    assert read_to_end(first) == (b"", "reset")
    assert proxy.reset(times=3) == 1
    assert read_to_end(second[0]) == (b"", "reset")
    assert [attempt(target), attempt(target)] == ["reset", "reset"]
    client, _, _ = target.connect()
    assert silent(client)


def test_a_fault_can_name_its_connections(target: Target, proxy: FaultProxy) -> None:
    (first, _, _), (second, _, connection) = target.connect(), target.connect()
    assert proxy.reset(on=[connection]) == 1
    assert read_to_end(second) == (b"", "reset")
    closed_one = [connection]
    proxy.wait_for(lambda: connection.closed_at is not None)
    assert proxy.reset(on=closed_one) == 0
    third, _, _ = target.connect()
    assert silent(first)
    assert silent(third)


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    def places(seed: int) -> list[int]:
        counts = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()[:2]
            with FaultProxy(address, seed=seed) as proxy:
                proxy.cut(after=(0, 1000), direction="to_server")
                for _ in range(3):
                    with socket.create_connection((proxy.host, proxy.port), LONG) as client:
                        server, _ = listener.accept()
                        with server:
                            server.settimeout(LONG)
                            client.sendall(bytes(1001))
                            counts.append(len(read_to_end(server)[0]))
        return counts

    assert places(1) == places(1) != places(2)


def test_wait_for_tells_what_it_saw(target: Target, proxy: FaultProxy) -> None:
    target.connect()
    with pytest.raises(
        ProxyTimeout, match=r"(?s)FaultProxy .*1 connections, seed 7>.*<#1 open, 0 bytes to server"
    ):
        proxy.wait_for(lambda: False, SHORT)
    assert issubclass(ProxyTimeout, AssertionError) and issubclass(ProxyTimeout, TimeoutError)


@pytest.mark.parametrize("fault", ["delay", "drip"])
def test_wait_for_is_woken_by_the_last_byte_that_was_held(
    target: Target, proxy: FaultProxy, fault: str, way: Way
) -> None:
    """It passes because its time has come: no socket had anything to say."""
    client, server, connection = target.connect()
    sender, receiver = ends(way, client, server)
    passed = f"bytes_{way}"
    if fault == "delay":
        proxy.delay(SHORT, direction=way)
    else:
        proxy.drip(1, SHORT, direction=way)
    waiting = Background(lambda: proxy.wait_for(lambda: getattr(connection, passed) == 2, 2 * LONG))
    sender.sendall(b"ab")
    assert read_exactly(receiver, 2) == b"ab"
    waiting.result()  # within LONG


def test_targets_and_urls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for target in (("127.0.0.1", port), f"ws://user@127.0.0.1:{port}/a?b=c", f"wss://localhost:{port}"):
            with (
                FaultProxy(target) as proxy,
                socket.create_connection((proxy.host, proxy.port), LONG) as client,
            ):
                listener.settimeout(LONG)
                server, _ = listener.accept()
                with server:
                    server.sendall(b"x")
                    assert read_exactly(client, 1) == b"x"
                assert proxy.url("wss://me:secret@example.com:1/a/b?c=d#e") == (
                    f"wss://me:secret@127.0.0.1:{proxy.port}/a/b?c=d#e"
                )
                assert proxy.url("ws://example.com") == f"ws://127.0.0.1:{proxy.port}"
    for wrong in ("ws://", "gopher://example.com/", "127.0.0.1:80", ("", 1)):
        with pytest.raises(ValueError, match="not an address"):
            FaultProxy(wrong)


def test_ipv6() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    with listener, FaultProxy(listener.getsockname()[:2], host="::1") as proxy:
        assert proxy.url("ws://x/y") == f"ws://[::1]:{proxy.port}/y"
        with socket.create_connection((proxy.host, proxy.port), LONG) as client:
            listener.settimeout(LONG)
            server, _ = listener.accept()
            with server:
                server.sendall(b"x")
                assert read_exactly(client, 1) == b"x"


def test_the_addresses_of_a_target_are_tried_in_turn(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        dead = unused.getsockname()[1]
    found = [
        (family, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        for family, port in ((9999, 1), (socket.AF_INET, dead), (socket.AF_INET, target.port))
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    proxy = FaultProxy(("two.example", 1))
    monkeypatch.undo()
    with proxy, socket.create_connection((proxy.host, proxy.port), LONG) as client:
        target.accept().sendall(b"x")
        assert read_exactly(client, 1) == b"x"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda proxy: proxy.delay(-1),
        lambda proxy: proxy.delay(float("nan")),
        lambda proxy: proxy.delay((2.0, 1.0)),
        lambda proxy: proxy.drip(0),
        lambda proxy: proxy.drip(1, -1),
        lambda proxy: proxy.cut(-1),
        lambda proxy: proxy.cut((3, 2)),
        lambda proxy: proxy.cut(times=0),
        lambda proxy: proxy.cut(once=True, times=2),
        lambda proxy: proxy.cut(on=[], once=True),
        lambda proxy: proxy.cut(direction="up"),
        lambda proxy: proxy.refuse(0),
    ],
)
def test_wrong_arguments_are_refused(proxy: FaultProxy, wrong: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError):
        wrong(proxy)


# -- the end of the proxy ------------------------------------------------------------------------------------

STATES: dict[str, Callable[[FaultProxy], object]] = {
    "idle": lambda proxy: None,
    "held": FaultProxy.hold_connects,
    "black hole": FaultProxy.black_hole,
    "stalled": lambda proxy: proxy.black_hole(stop_reading=True),
    "dripping": lambda proxy: proxy.drip(1, 3600),
    "dripping fast": lambda proxy: proxy.drip(1, 0),
    "delayed": lambda proxy: proxy.delay(3600),
    "cut": FaultProxy.cut,
    "half cut": lambda proxy: proxy.cut(10, direction="to_client"),
    "reset": lambda proxy: proxy.reset(10),
    "refusing": FaultProxy.refuse,
}


@pytest.mark.parametrize("state", STATES)
def test_close_leaves_nothing_in_any_state(target: Target, proxy: FaultProxy, state: str) -> None:
    threads, files = set(threading.enumerate()), descriptors()
    assert any(thread.name == f"llm-proxy[{proxy.port}]" for thread in library_threads())
    STATES[state](proxy)
    clients = []
    for _ in range(3):
        with contextlib.suppress(ConnectionResetError):
            clients.append(target.client())
    proxy.wait_for(lambda: len(proxy.connections) == 3)
    for client in clients:
        client.setblocking(False)
        with contextlib.suppress(OSError):
            while True:  # until nothing more is taken
                client.send(b"x" * (1 << 16))
    began = time.monotonic()
    proxy.close()
    assert time.monotonic() - began < 2
    assert threads - set(threading.enumerate()) == {proxy._engine._thread}
    # Gone are the listener and the waker; the sockets of the connections are none of those counted before.
    assert descriptors() == files - 2 + len(clients)
    assert proxy.live() == []
    assert all(c.stage == "closed" and c.ended_by for c in proxy.connections)
    proxy.close()
    proxy.heal()
    assert proxy.cut() == 0
    assert "closed" in repr(proxy)
    with pytest.raises(ConnectionRefusedError):
        target.client()


def test_it_starts_and_stops_quickly(target: Target) -> None:
    began = time.monotonic()
    for _ in range(100):
        FaultProxy(target).close()
    assert time.monotonic() - began < 10


def test_a_thread_that_cannot_start_leaves_nothing(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    files = descriptors()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        FaultProxy(target)
    assert descriptors() == files


def test_a_thread_that_does_not_end_is_told(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(proxy._engine, "stop", lambda timeout: False)
        proxy.close(3)
    assert "still runs after 3 s" in caplog.text


def test_it_goes_on_after_running_out_of_descriptors(
    target: Target, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept, failed = socket.socket.accept, threading.Event()

    def accept_later(sock: socket.socket) -> Any:
        if failed.is_set():
            return accept(sock)
        failed.set()
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "accept", accept_later)
    client = target.client()
    assert failed.wait(LONG)
    target.accept().sendall(b"x")
    assert read_exactly(client, 1) == b"x"
    assert "cannot accept" in caplog.text


def test_many_connections_come_and_go_under_changing_faults(target: Target, proxy: FaultProxy) -> None:
    draw = random.Random(3)
    verbs: list[Callable[[], object]] = [
        lambda: proxy.cut(draw.randrange(50), once=True),
        lambda: proxy.reset(draw.randrange(50), once=True),
        lambda: proxy.black_hole(draw.randrange(50), times=2),
        lambda: proxy.drip((1, 5), 0),
        lambda: proxy.delay((0.0, 0.002)),
        proxy.heal,
        lambda: proxy.refuse(1),
    ]

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                server, _ = target.listener.accept()
                with server, contextlib.suppress(OSError):
                    server.settimeout(0.2)
                    server.sendall(server.recv(100) * 2)

    serving = Background(serve)
    for _ in range(60):
        draw.choice(verbs)()
        with contextlib.suppress(OSError):
            with socket.create_connection((proxy.host, proxy.port), LONG) as client:
                client.settimeout(0.05)
                client.sendall(b"0123456789" * 5)
                client.recv(100)
    target.listener.shutdown(socket.SHUT_RDWR)
    serving.result()
    proxy.heal()
    closed(proxy)


# -- a pool and a LocalServer --------------------------------------------------------------------------------


def test_a_pool_connects_and_receives_byte_by_byte(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder().listen(pool, "online", "event")
    with FaultProxy(server) as proxy:
        proxy.drip()
        session = pool.connect(proxy.url(server.url("a")))
        sent = server.publish({"text": "x" * 300}, session="a")
        recorder.wait("event", 2)
        assert sent["id"] in [event.id for event in recorder.payloads("event")]
        session.disconnect()
        closed(proxy)
        pool.close()


@pytest.mark.parametrize("after", [1, 2, 10])
def test_a_pool_reconnects_after_a_reset_within_a_frame(
    server: LocalServer, pool: ConnectionPool, after: int
) -> None:
    recorder = Recorder().listen(pool)
    with FaultProxy(server) as proxy:
        pool.connect(proxy.url(server.url()))
        server.wait_live()
        proxy.reset(after=after, direction="to_client", once=True)
        server.publish({"text": "x" * 300})
        recorder.wait("offline.transient")
        recorder.wait("online", 2)
        first, second = proxy.connections
        assert (first.ended_by, second.stage) == ("reset", "open")
        pool.close()


def test_a_pool_notices_a_black_hole_and_comes_back_when_it_is_healed(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool(ping_interval=0.1, pong_timeout=0.6, open_timeout=1.0)
    recorder = Recorder().listen(pool)
    with FaultProxy(server) as proxy:
        session = pool.connect(proxy.url(server.url()))
        [first] = server.wait_live()
        assert proxy.black_hole() == 1
        recorder.wait("offline.transient")
        assert session.state is not SessionState.ONLINE
        assert first.closed_at is None  # nobody told it
        proxy.heal()
        recorder.wait("online", 2)
        server.wait_for(lambda: first.closed_at is not None)
        pool.close()


def test_a_pool_survives_refused_and_held_connections(server: LocalServer, pool: ConnectionPool) -> None:
    with FaultProxy(server) as proxy:
        proxy.refuse(times=2)
        proxy.hold_connects()
        call = Background(lambda: pool.connect(proxy.url(server.url())))
        proxy.wait_for(lambda: [c.stage for c in proxy.live()] == ["held"])
        assert not call.done
        assert [c.ended_by for c in proxy.connections] == ["refused", "refused", None]
        proxy.release_connects()
        assert call.result().online
        pool.close()
