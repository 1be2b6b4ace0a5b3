"""The byte stream against raw peers, plain and TLS: opening, reading, writing, ending."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import select
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from llm_sessions._sync import Deadline
from llm_sessions.connection import stream as stream_module
from llm_sessions.connection.poll import POLLIN, SelectPoll
from llm_sessions.connection.stream import READ_SIZE, AddressInfo, Stream
from llm_sessions.connection.stream_errors import (
    StreamAborted,
    StreamBroken,
    StreamClosed,
    StreamError,
    StreamTimeout,
)
from tests.peers import (
    Peer,
    connected,
    full_backlog,
    nobody,
    read_exactly,
    read_to_end,
    reset,
    where,
)
from tests.support import LONG, SHORT, Background, eventually

Pair = Callable[..., AbstractContextManager[tuple[Stream, Any]]]

HUGE = bytes(range(256)) * (32 << 12)  # 32 MiB, more than any pair of kernel buffers takes


@pytest.fixture
def pair(tls: bool, client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> Pair:
    contexts = (client_context, server_context) if tls else (None, None)
    return lambda **options: connected(*contexts, **options)


@pytest.fixture(params=["native", "fallback"])
def machinery(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with what this system has, and with what every system has."""
    if request.param == "fallback":
        monkeypatch.delattr(os, "eventfd", raising=False)
        monkeypatch.delattr(select, "poll", raising=False)
    return str(request.param)


def read_all(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += stream.read_within(Deadline(LONG))
    return data


def watch_polls(stream: Stream) -> threading.Semaphore:
    """Return a semaphore that counts the reader's polls as they begin."""
    polls, real = threading.Semaphore(0), stream._poll_once

    def announced(events: int, timeout: float | None) -> int:
        polls.release()
        return real(events, timeout)

    stream._poll_once = announced  # type: ignore[method-assign]
    return polls


class SocketModule:
    """The module `socket`, but for what makes the stream's own one."""

    def __init__(self, make: Callable[..., socket.socket]) -> None:
        self.socket = make

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)


@contextlib.contextmanager
def opening(
    stream: Stream, addresses: list[AddressInfo], deadline: Deadline, **options: Any
) -> Iterator[Background]:
    """Open on another thread, which releases as the connector does."""

    def open_it() -> None:
        try:
            stream.open(addresses, deadline, **{"tls": None, "host": "localhost", **options})
        finally:
            stream.release()

    background = Background(open_it)
    yield background
    stream.abort()
    background.thread.join(LONG)
    assert background.done


# Both ways


def test_bytes_go_both_ways(pair: Pair, machinery: str) -> None:
    with pair() as (stream, peer):
        assert isinstance(stream._poll, SelectPoll) is (machinery == "fallback")
        stream.send(b"up", Deadline(LONG))
        assert read_exactly(peer, 2) == b"up"
        peer.sendall(b"down")
        assert read_all(stream, 4) == b"down"
        assert stream.read() is None
        assert not stream.wait(0, reading=True)


def test_a_large_transfer_in_both_directions_at_once(pair: Pair, machinery: str) -> None:
    with pair() as (stream, peer):
        up = Background(lambda: stream.send(HUGE, Deadline(LONG)))
        down = Background(lambda: peer.sendall(HUGE)) if not isinstance(peer, ssl.SSLSocket) else None
        received = Background(lambda: read_exactly(peer, len(HUGE)))
        if down is not None:
            assert read_all_while_waiting(stream, len(HUGE)) == HUGE
            down.result()
        up.result()
        assert received.result() == HUGE
        if down is None:  # one thread at a time in the peer's SSLSocket
            down = Background(lambda: peer.sendall(HUGE))
            assert read_all_while_waiting(stream, len(HUGE)) == HUGE
            down.result()


def read_all_while_waiting(stream: Stream, size: int) -> bytes:
    data, deadline = bytearray(), Deadline(LONG)
    while len(data) < size:
        stream.wait(LONG, reading=True)  # also ends when it could write
        assert not deadline.expired
        while len(data) < size and (piece := stream.read()):
            data += piece
    return bytes(data)


def test_reading_costs_one_poll_and_one_recv(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short read says that nothing more is there: no second recv to be told so."""
    with pair() as (stream, peer):
        while stream.wait(SHORT, reading=True):
            assert stream.read() is None  # TLS session tickets
        calls = []
        real = stream._receive
        monkeypatch.setattr(stream, "_receive", lambda: (calls.append(1), real())[1])
        polls = watch_polls(stream)
        for _ in range(10):
            peer.sendall(b"x" * 100)
            assert stream.wait(LONG, reading=True)
            data = stream.read()
            assert data is not None
            assert len(data) < READ_SIZE
        assert len(calls) == 10
        assert sum(polls.acquire(blocking=False) for _ in range(20)) == 10


# Opening: T0, T1


def test_t1_one_deadline_ends_a_connect_that_nobody_answers(machinery: str) -> None:
    with full_backlog() as address:
        stream = Stream()
        started = time.monotonic()
        with opening(stream, [address], Deadline(0.2)) as background:
            assert isinstance(background.error(), StreamTimeout)
        assert time.monotonic() - started < 2


def test_the_second_address_is_used_when_the_first_refuses(machinery: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = Stream()
        stream.open([nobody(), where(listener)], Deadline(LONG), tls=None, host="localhost")
        assert stream._sock is not None
        assert stream._sock.getpeername() == listener.getsockname()
        stream.release()


def test_the_second_address_is_used_when_the_first_swallows_packets(machinery: str) -> None:
    """Each has its share of the time: the first one's ends while there is time for the next."""
    with full_backlog() as silent, socket.create_server(("127.0.0.1", 0)) as listener:
        stream = Stream()
        stream.open([silent, nobody(), where(listener)], Deadline(1.5), tls=None, host="localhost")
        assert stream._sock is not None
        assert stream._sock.getpeername() == listener.getsockname()
        stream.release()


@pytest.mark.parametrize("last", ["refuses", "swallows"])
def test_the_last_address_says_why_it_failed(last: str) -> None:
    with full_backlog() as silent:
        addresses = [silent, nobody()] if last == "refuses" else [nobody(), silent]
        stream = Stream()
        expected = StreamBroken if last == "refuses" else StreamTimeout
        with pytest.raises(expected) as caught:
            stream.open(addresses, Deadline(0.3), tls=None, host="localhost")
        assert isinstance(caught.value.__cause__, ConnectionRefusedError) is (last == "refuses")
        stream.release()


def test_no_address_is_an_error() -> None:
    stream = Stream()
    with pytest.raises(StreamBroken, match="no address"):
        stream.open([], Deadline(LONG), tls=None, host="localhost")
    stream.release()


def test_an_address_of_no_family_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        odd: AddressInfo = (socket.AF_INET, socket.SOCK_RAW + 9000, 0, "", ("127.0.0.1", 1))
        stream = Stream()
        stream.open([odd, where(listener)], Deadline(LONG), tls=None, host="localhost")
        stream.release()


@pytest.mark.parametrize("way", ["eventfd", "socket"])
def test_no_descriptor_left_is_a_failed_attempt(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*args: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os if way == "eventfd" else socket, way, none_left)
    stream = Stream()
    with pytest.raises(StreamBroken, match="Too many open files"):
        stream.open([(2, 1, 6, "", ("127.0.0.1", 9))], Deadline(LONG), tls=None, host="localhost")
    stream.release()
    stream.release()
    stream.wake()
    stream.abort()


def test_an_odd_address_raises_what_it_raises_and_leaks_nothing() -> None:
    stream = Stream()
    with pytest.raises(OverflowError):
        stream.open([(2, 1, 6, "", ("127.0.0.1", 70000))], Deadline(LONG), tls=None, host="localhost")
    stream.release()


def test_t0_abort_ends_a_connect_to_a_full_backlog(machinery: str) -> None:
    with full_backlog() as address:
        stream = Stream()
        polls = watch_polls(stream)
        with opening(stream, [address, address], Deadline(None)) as background:
            assert polls.acquire(timeout=LONG)
            started = time.monotonic()
            stream.abort()
            assert isinstance(background.error(), StreamAborted)
            assert time.monotonic() - started < 1


def test_a_bell_during_the_connect_does_not_count_as_connected() -> None:
    with full_backlog() as address:
        stream = Stream()
        polls = watch_polls(stream)
        with opening(stream, [address], Deadline(None)) as background:
            for _ in range(3):
                assert polls.acquire(timeout=LONG), "the connect went on as if it had been answered"
                stream.wake()
            assert not background.done


def test_t0_an_abort_that_comes_first_opens_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = Stream()
        stream.abort()
        with pytest.raises(StreamAborted):
            stream.open([where(listener)], Deadline(LONG), tls=None, host="localhost")
        stream.release()
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("moment", ["before the socket is known", "at once connected"])
def test_t0_an_abort_in_between_is_not_lost(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The abort comes at an exact place of `_connect`; afterwards no descriptor is left (conftest)."""
    stream = Stream()
    real_socket = socket.socket

    class Sock(real_socket):
        def connect_ex(self, address: Any) -> int:
            super().connect_ex(address)
            stream.abort()
            return 0

    def make(*args: Any) -> socket.socket:
        if moment == "before the socket is known":
            stream.abort()
            return real_socket(*args)
        return Sock(*args)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(stream_module, "socket", SocketModule(make))
        with pytest.raises(StreamAborted):  # noqa: PT012  # open may have been too far already
            stream.open([where(listener)], Deadline(LONG), tls=None, host="localhost")
            stream.send(b"GET", Deadline(LONG))
        stream.release()


@pytest.mark.parametrize("how", ["abort", "deadline"])
def test_t0_a_mute_tls_server_holds_nobody(how: str, client_context: ssl.SSLContext) -> None:
    def mute(peer: Peer, sock: socket.socket) -> None:
        assert read_exactly(sock, 5)[0] == 22, "no ClientHello"
        peer.arrived.release()
        peer.hold()

    with Peer(mute) as peer:
        stream = Stream()
        deadline = Deadline(None if how == "abort" else 0.2)
        with opening(stream, [peer.address], deadline, tls=client_context) as background:
            for _ in range(2):
                assert peer.arrived.acquire(timeout=LONG)
            started = time.monotonic()
            if how == "abort":
                stream.abort()
            error = background.error()
            assert isinstance(error, StreamAborted if how == "abort" else StreamTimeout)
            assert time.monotonic() - started < 2


@pytest.mark.parametrize("how", ["close", "reset", "garbage"])
def test_a_tls_handshake_that_breaks_says_how(how: str, client_context: ssl.SSLContext) -> None:
    def breaks(peer: Peer, sock: socket.socket) -> None:
        sock.recv(65536)
        if how == "garbage":
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        if how == "reset":
            reset(sock)

    with Peer(breaks) as peer:
        stream = Stream()
        with pytest.raises(StreamBroken) as caught:
            stream.open([peer.address], Deadline(LONG), tls=client_context, host="localhost")
        kinds = {"close": StreamClosed, "reset": ConnectionResetError, "garbage": ssl.SSLError}
        assert isinstance(caught.value.__cause__, kinds[how])
        assert str(caught.value)
        stream.release()


def test_a_host_name_that_no_certificate_can_have_is_an_error(client_context: ssl.SSLContext) -> None:
    with Peer(lambda peer, sock: peer.hold()) as peer:
        stream = Stream()
        with pytest.raises(StreamBroken) as caught:
            stream.open([peer.address], Deadline(LONG), tls=client_context, host=".example")
        assert isinstance(caught.value.__cause__, ValueError)
        stream.release()


def test_a_client_hello_that_does_not_fit_is_sent_in_pieces(
    client_context: ssl.SSLContext, server_context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket

    class Narrow(real):
        """Takes a byte, then nothing, in turn."""

        turn = 0

        def send(self, data: Any, flags: int = 0) -> int:
            self.turn += 1
            if self.turn % 2:
                raise BlockingIOError
            return super().send(data[:100])

    with Peer(lambda peer, sock: sock.sendall(b"hello"), server_context) as peer:
        stream = Stream()
        monkeypatch.setattr(stream_module, "socket", SocketModule(Narrow))
        stream.open([peer.address], Deadline(LONG), tls=client_context, host="localhost")
        assert read_all(stream, 5) == b"hello"
        stream.release()


def test_bytes_that_come_with_the_end_of_the_tls_handshake_are_kept(
    client_context: ssl.SSLContext, server_context: ssl.SSLContext
) -> None:
    """TLS 1.2 lets the server speak in the same segment as its last flight."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2

    def glue(peer: Peer, sock: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = server_context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65536))
        tls.write(b"first")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        sock.sendall(outgoing.read())
        peer.hold()

    with Peer(glue) as peer:
        stream = Stream()
        stream.open([peer.address], Deadline(LONG), tls=old, host="localhost")
        assert stream.wait(LONG, reading=True)
        assert stream.read() == b"first"
        assert stream.wait(LONG, reading=True)
        with pytest.raises(StreamClosed):
            stream.read()
        stream.release()


def test_a_descriptor_above_1023_works(pair: Pair) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this system gives no so many descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    try:
        with contextlib.ExitStack() as stack:
            while True:
                filler = stack.enter_context(open(os.devnull))
                if filler.fileno() > 1024:
                    break
            with pair() as (stream, peer):
                assert stream._sock is not None
                assert stream._sock.fileno() > 1023
                stream.send(b"up", Deadline(LONG))
                assert read_exactly(peer, 2) == b"up"
                peer.sendall(b"down")
                assert read_all(stream, 4) == b"down"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Reading, and the peer's end


def test_t1_reading_within_a_deadline_ends_by_it_but_bytes_there_win(pair: Pair) -> None:
    with pair() as (stream, peer):
        peer.sendall(b"early")
        eventually(lambda: stream.wait(LONG, reading=True))
        late = Deadline(0)
        if stream._tls is None:
            assert stream.read_within(late) == b"early"
        else:  # session tickets may come first
            assert read_all(stream, 5) == b"early"
        with pytest.raises(StreamTimeout):
            stream.read_within(late)


def test_the_peers_end_is_told_after_what_came_before(pair: Pair) -> None:
    with pair() as (stream, peer):
        peer.sendall(b"last words")
        peer.close()
        assert read_all(stream, 10) == b"last words"
        with pytest.raises(StreamClosed):
            stream.read_within(Deadline(LONG))


def test_a_reset_is_told_as_what_it_is(pair: Pair) -> None:
    with pair() as (stream, peer):
        reset(peer)
        with pytest.raises(StreamBroken) as caught:
            stream.read_within(Deadline(LONG))
        assert isinstance(caught.value.__cause__, ConnectionResetError)


class BioServer:
    """The server's side of TLS by hand: what it says leaves in exactly one segment."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.context = context
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                break
            self.flush()
            self.incoming.write(sock.recv(65536))
        self.flush()

    def flush(self, extra: bytes = b"") -> None:
        self.sock.sendall(self.outgoing.read() + extra)

    def read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                data += self.tls.read(size - len(data))
            except ssl.SSLWantReadError:
                piece = self.sock.recv(16384)
                assert piece
                self.incoming.write(piece)
        return bytes(data)


@pytest.fixture
def bio_pair(
    client_context: ssl.SSLContext, server_context: ssl.SSLContext
) -> Iterator[tuple[Stream, BioServer]]:
    stream = Stream()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> BioServer:
            sock = listener.accept()[0]
            sock.settimeout(LONG)
            return BioServer(sock, server_context)

        accepting = Background(accept)
        stream.open([where(listener)], Deadline(LONG), tls=client_context, host="localhost")
        server = accepting.result()
    yield stream, server
    stream.release()
    server.sock.close()


def test_tls_may_end_with_data_in_the_same_segment_and_tcp_stay(
    bio_pair: tuple[Stream, BioServer],
) -> None:
    """close_notify glued to the last words, no FIN: the next wait must not wait for one."""
    stream, server = bio_pair
    server.tls.write(b"last words")
    with contextlib.suppress(ssl.SSLWantReadError):
        server.tls.unwrap()
    server.flush()
    assert read_all(stream, 10) == b"last words"
    waiting = Background(lambda: stream.wait(None, reading=True))
    try:
        waiting.thread.join(2)
        assert waiting.done, "it waits for a socket that says nothing more"
        assert waiting.result() is True
    finally:
        stream.abort()
    with pytest.raises(StreamClosed):
        stream.read()


@pytest.mark.parametrize("words", [b"", b"last words"])
def test_what_came_before_a_broken_record_is_not_lost(
    words: bytes, bio_pair: tuple[Stream, BioServer]
) -> None:
    """A close frame, then an alert or garbage in the same read: the close frame counts."""
    stream, server = bio_pair
    if words:
        server.tls.write(words)
    server.flush(b"\x17\x03\x03\x00\x20" + bytes(32))
    if words:
        assert read_all(stream, len(words)) == words
    assert stream.wait(LONG, reading=True)
    with pytest.raises(StreamBroken) as caught:
        stream.read_within(Deadline(LONG))
    assert isinstance(caught.value.__cause__, ssl.SSLError)


def test_an_abrupt_end_of_tls_is_an_end(bio_pair: tuple[Stream, BioServer]) -> None:
    stream, server = bio_pair
    server.tls.write(b"last words")
    server.flush()
    server.sock.shutdown(socket.SHUT_WR)
    assert read_all(stream, 10) == b"last words"
    with pytest.raises(StreamClosed):
        stream.read_within(Deadline(LONG))


def ask_for_key_update(server: BioServer) -> None:
    """`SSL_key_update` with the request for one in return, which the ssl module does not offer."""
    import _ssl
    import ctypes

    try:
        update = ctypes.CDLL(_ssl.__file__).SSL_key_update
    except AttributeError:
        pytest.skip("this OpenSSL does not show SSL_key_update")
    raw = id(server.tls._sslobj)  # type: ignore[attr-defined]
    word = ctypes.sizeof(ctypes.c_void_p)
    pointers = [ctypes.c_void_p.from_address(raw + n * word).value for n in range(8)]
    if id(server.context) not in pointers or pointers.index(id(server.context)) == 0:
        pytest.skip("this CPython lays its SSL objects out in another way")
    update.argtypes, update.restype = [ctypes.c_void_p, ctypes.c_int], ctypes.c_int
    assert update(pointers[pointers.index(id(server.context)) - 1], 1) == 1


def test_a_key_update_while_a_write_is_stuck_costs_nothing(bio_pair: tuple[Stream, BioServer]) -> None:
    stream, server = bio_pair
    sending = Background(lambda: stream.send(HUGE, Deadline(LONG)))
    eventually(lambda: stream._pollers, "the sender did not get stuck")
    for n in range(5):
        ask_for_key_update(server)
        server.tls.write(b"%d" % n)
        server.flush()
        assert read_all(stream, 1) == b"%d" % n
    received = server.read(len(HUGE))
    assert received == HUGE
    sending.result()
    stream.send(b"after", Deadline(LONG))
    assert server.read(5) == b"after"


# Writing


def test_t9_a_send_that_times_out_in_mid_frame_ends_the_stream(pair: Pair) -> None:
    with pair() as (stream, peer):
        with pytest.raises(StreamTimeout):
            stream.send(HUGE, Deadline(SHORT))
        assert stream.ended
        with pytest.raises(StreamAborted):
            stream.send(b"hello", Deadline(LONG))
        assert stream.post(b"hello")
        with pytest.raises(StreamAborted):
            stream.read()
        received = read_to_end(peer)
        assert 0 < len(received) < len(HUGE)
        assert HUGE.startswith(received), "something followed half a frame"


def test_a_stuck_sender_polls_and_does_not_spin(pair: Pair) -> None:
    with pair() as (stream, _):
        flushes, real = [], stream._flush
        stream._flush = lambda: (flushes.append(1), real())[1]  # type: ignore[method-assign]
        with pytest.raises(StreamTimeout):
            stream.send(HUGE, Deadline(0.3))
        assert len(flushes) < 50


def test_t1_abort_ends_a_stuck_sender_and_release_waits_for_it(pair: Pair, machinery: str) -> None:
    with pair() as (stream, _):
        sending = [Background(lambda: stream.send(HUGE, Deadline(None))) for _ in range(3)]
        eventually(lambda: len(stream._pollers) == 3, "the senders did not get stuck")
        started = time.monotonic()
        stream.abort()
        stream.release()
        assert not stream._pollers, "the descriptor was given back under a sender's poll"
        assert [type(sender.error()) for sender in sending] == [StreamAborted] * 3
        assert time.monotonic() - started < 1


def test_a_sender_that_comes_late_finds_no_descriptor(pair: Pair) -> None:
    """The stream is released between two looks at it: it must not poll another one's descriptor."""
    with pair() as (stream, _):
        real, polled = stream._flush, []

        def flush() -> bool:
            done = real()
            stream._ended = True
            return done

        stream._flush = flush  # type: ignore[method-assign]
        stream._pollers = type("Spy", (set,), {"add": lambda self, it: polled.append(it)})()
        with pytest.raises(StreamAborted):
            stream.send(HUGE, Deadline(LONG))
        assert polled == []
        stream._pollers, stream._flush = set(), real  # type: ignore[method-assign]


@pytest.mark.parametrize("left_before", [True, False])
def test_a_reset_ends_a_stuck_sender(left_before: bool, pair: Pair) -> None:
    with pair() as (stream, peer):
        if left_before:
            stream.send(b"x", Deadline(LONG))
        sending = Background(lambda: stream.send(HUGE, Deadline(None)))
        eventually(lambda: stream._pollers, "the sender did not get stuck")
        reset(peer)
        error = sending.error()
        assert isinstance(error, StreamBroken)
        assert isinstance(error.__cause__, OSError)
        with pytest.raises(StreamBroken):
            stream.send(b"hello", Deadline(LONG))
        assert stream.post(b"hello"), "there is nothing left to go on with"
        with pytest.raises(StreamError):
            stream.read_within(Deadline(LONG))


def test_a_broken_write_is_told_to_the_reader_that_waits(pair: Pair) -> None:
    """An error that only writing meets (no buffers, say) wakes the reader, who learns it once all is read."""
    with pair() as (stream, peer):
        while stream.wait(SHORT, reading=True):
            assert stream.read() is None  # TLS session tickets
        polls = watch_polls(stream)
        waiting = Background(lambda: stream.wait(None, reading=True))
        assert polls.acquire(timeout=LONG)
        real = stream._outbox.write

        def fails(*args: Any) -> None:
            raise OSError(errno.ENOBUFS, "No buffer space available")

        stream._outbox.write = fails  # type: ignore[method-assign]
        peer.sendall(b"last words")
        with pytest.raises(StreamBroken, match="No buffer"):
            stream.send(b"hello", Deadline(LONG))
        waiting.result()
        stream._outbox.write = real  # type: ignore[method-assign]
        assert stream.wait(LONG, reading=True)
        assert read_all(stream, 10) == b"last words"
        assert stream.wait(None, reading=True), "it waits for a stream that is over"
        with pytest.raises(StreamBroken, match="No buffer"):
            stream.read()


def test_frames_that_do_not_fit_are_posted_and_written_by_the_reader(pair: Pair, machinery: str) -> None:
    with pair() as (stream, peer):
        assert not stream.post(HUGE, own=True)
        assert stream.own_unsent > 0
        assert not stream.post(b"tail")
        reading = Background(lambda: read_exactly(peer, len(HUGE) + 4))
        while stream._outbox:
            stream.wait(LONG, reading=True)
            stream.read()
        assert reading.result() == HUGE + b"tail"
        assert stream.own_unsent == 0


def test_nothing_follows_a_close_frame(pair: Pair) -> None:
    with pair() as (stream, peer):
        assert stream.post(b"close", last=True)
        assert stream.post(b"ack", own=True)
        with pytest.raises(StreamClosed):
            stream.send(b"message", Deadline(LONG))
        assert stream.own_unsent == 0
        stream.abort()
        assert read_to_end(peer) == b"close"


@pytest.mark.stress
def test_t8_many_senders_interleave_whole_frames_only(pair: Pair) -> None:
    with pair() as (stream, peer):
        rng = random.Random(8)
        sizes = [rng.choice([1, 100, 5000, 70_000]) for _ in range(100)]

        def send_all(sender: int) -> None:
            for number, size in enumerate(sizes):
                head = bytes([sender, number]) + size.to_bytes(4, "big")
                stream.send(head + bytes([sender]) * size, Deadline(LONG))

        senders = [Background(lambda n=n: send_all(n)) for n in range(16)]  # type: ignore[misc]
        next_number = [0] * 16
        for _ in range(16 * len(sizes)):
            sender, number = read_exactly(peer, 2)
            size = int.from_bytes(read_exactly(peer, 4), "big")
            assert number == next_number[sender]
            assert size == sizes[number]
            assert read_exactly(peer, size) == bytes([sender]) * size
            next_number[sender] += 1
        for background in senders:
            background.result()


class OneAtATime:
    """A TLS object, or context, that raises if two threads are inside it."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._inside = inner, threading.Lock()
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        def alone(*args: Any, **named: Any) -> Any:
            assert self._inside.acquire(blocking=False), "two threads in one TLS object"
            try:
                self.calls += 1
                return method(*args, **named)
            finally:
                self._inside.release()

        return alone


@pytest.mark.stress
def test_t10_no_two_threads_are_in_one_tls_object(
    client_context: ssl.SSLContext, server_context: ssl.SSLContext
) -> None:
    made: list[OneAtATime] = []

    class Context:
        def wrap_bio(self, *args: Any, **named: Any) -> OneAtATime:
            made.append(OneAtATime(client_context.wrap_bio(*args, **named)))
            return made[-1]

    size, count = 2000, 300

    def echo(peer: Peer, sock: ssl.SSLSocket) -> None:
        for _ in range(4 * count):
            sock.sendall(read_exactly(sock, size))

    with Peer(echo, server_context) as peer:
        stream = Stream()
        stream.open([peer.address], Deadline(LONG), tls=Context(), host="localhost")  # type: ignore[arg-type]
        message = bytes(size)
        senders = [
            Background(lambda: [stream.send(message, Deadline(LONG)) for _ in range(count)]) for _ in range(4)
        ]
        assert len(read_all_while_waiting(stream, 4 * count * size)) == 4 * count * size
        for sender in senders:
            sender.result()
        stream.release()
    assert made[0].calls > 8 * count


# Interrupts: a signal handler raises in the main thread, anywhere


def test_an_interrupted_sender_leaves_a_whole_frame_to_the_reader(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def register(self, *args: object) -> None: ...

        def poll(self, timeout: object) -> None:
            raise KeyboardInterrupt

    with pair() as (stream, peer):
        polls = watch_polls(stream)
        reader = Background(lambda: stream.wait(None, reading=False))
        assert polls.acquire(timeout=LONG)
        monkeypatch.setattr(stream_module, "new_poll", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.send(HUGE, Deadline(LONG))
        assert not stream._pollers
        assert not stream._lock.locked()
        reader.result()  # woken, to go on with it
        receiving = Background(lambda: read_exactly(peer, len(HUGE)))
        while stream._outbox:
            stream.wait(LONG, reading=False)
        assert receiving.result() == HUGE


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_interrupt_around_the_write_ends_the_stream(place: str, pair: Pair) -> None:
    """Whether the bytes have left is not known then: writing them again, or not, could spoil the stream."""
    with pair() as (stream, peer):
        real = stream._sock
        assert real is not None

        class Sock:
            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def send(self, data: Any) -> int:
                if place == "after":
                    real.send(data)
                raise KeyboardInterrupt

        stream._sock = Sock()  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            stream.send(b"once", Deadline(LONG))
        assert not stream._lock.locked()
        assert stream.ended
        with pytest.raises(StreamAborted):
            stream.send(b"twice", Deadline(LONG))
        received = read_to_end(peer)
        assert received == (b"once" if place == "after" else b"")


@pytest.mark.stress
def test_t5_interrupts_at_any_moment_leave_whole_frames_and_no_lock(pair: Pair) -> None:
    """Real signals, anywhere in `send`: what arrives is always a sequence of whole frames, then an end."""
    main = threading.main_thread().ident
    assert main is not None
    size = 3000
    for seed in range(6):
        rng, ready, stop = random.Random(seed), threading.Event(), threading.Event()
        # Plain locks as outside of tests: a RankedLock is Python, and can be interrupted half-way.
        with pair() as (stream, peer):
            stream._lock = threading.Lock()
            stream._nobody_polls = threading.Condition(stream._lock)
            receiving = Background(lambda peer=peer: read_to_end(peer))  # type: ignore[misc]

            def interrupt(rng: random.Random = rng, ready: Any = ready, stop: Any = stop) -> None:
                assert ready.wait(LONG)
                for _ in range(15):
                    stop.wait(rng.random() * 0.002)
                    if stop.is_set():
                        return
                    signal.pthread_kill(main, signal.SIGINT)

            interrupting = Background(interrupt)
            number = 0
            try:
                ready.set()
                while not interrupting.done and not stream.ended:
                    try:
                        while not interrupting.done:
                            number += 1
                            stream.send(number.to_bytes(4, "big") * (size // 4), Deadline(LONG))
                    except (KeyboardInterrupt, StreamAborted, StreamBroken):
                        pass
            finally:
                stop.set()
                interrupting.thread.join(LONG)
            assert interrupting.done
            ended = stream.ended or stream._broken is not None
            assert stream._lock.acquire(timeout=LONG), "an interrupt left the lock held"
            stream._lock.release()
            while stream._outbox and not stream.ended:
                stream.wait(LONG, reading=False)
            stream.release()
            data = receiving.result()
        frames = [data[at : at + size] for at in range(0, len(data), size)]
        last = frames.pop() if frames and (ended or len(frames[-1]) < size) else b""
        numbers = [int.from_bytes(one[:4], "big") for one in frames]
        assert all(one == one[:4] * (size // 4) for one in frames)
        assert numbers == sorted(set(numbers))
        assert not last or ended, "half a frame on a stream that lives"


# Ending


def test_a_paused_reader_is_not_told_of_a_hangup_again_and_again(pair: Pair) -> None:
    """A poll reports a hang-up whether asked or not; a reader that may not read would spin on it."""
    with pair() as (stream, peer):
        assert stream._sock is not None
        reset(peer)
        eventually(lambda: stream._poll_once(POLLIN, LONG))
        assert stream._poll_once(0, 0) == 0
        assert not stream.wait(0, reading=False)
        assert stream._poll_once(0, 0) == 0
        assert stream._poll_once(POLLIN, 0)


def test_a_paused_reader_with_frames_to_write_learns_of_a_reset_once(pair: Pair) -> None:
    with pair() as (stream, peer):
        assert not stream.post(HUGE)
        reset(peer)
        while stream._outbox:
            assert not stream.wait(LONG, reading=False)
        assert stream._poll_once(0, 0) == 0


def test_release_comes_once_and_nothing_harms_afterwards(pair: Pair) -> None:
    with pair() as (stream, _):
        assert not stream.ended
        stream.release()
        assert stream.ended
        stream.release()
        stream.abort()
        stream.wake()
        assert stream.post(b"late")
        with pytest.raises(StreamAborted):
            stream.send(b"late", Deadline(LONG))


@pytest.mark.parametrize("how", ["abort", "wake"])
def test_t0_a_reader_that_waits_is_woken(how: str, pair: Pair, machinery: str) -> None:
    with pair() as (stream, _):
        while stream.wait(SHORT, reading=True):
            assert stream.read() is None
        polls = watch_polls(stream)
        waiting = Background(lambda: stream.wait(None, reading=True))
        assert polls.acquire(timeout=LONG)
        started = time.monotonic()
        getattr(stream, how)()
        if how == "wake":
            waiting.result()
        else:
            assert isinstance(waiting.error(), StreamAborted)
            with pytest.raises(StreamAborted):
                stream.read()
        assert time.monotonic() - started < 1


def test_an_abort_that_was_interrupted_can_be_repeated(pair: Pair) -> None:
    """Ctrl-C between the flag and the bell: the next abort must not take the flag for the deed."""
    with pair() as (stream, _):
        stream._ended = True
        waiting = Background(lambda: stream.wait(None, reading=False))
        stream.abort()
        assert isinstance(waiting.error(), StreamAborted)


def test_an_error_of_recv_after_an_abort_is_the_abort(pair: Pair) -> None:
    with pair() as (stream, peer):
        reset(peer)
        eventually(lambda: stream._poll_once(POLLIN, LONG))
        stream._ended = True
        with pytest.raises(StreamAborted):
            stream.read()


@pytest.mark.stress
def test_t2_abort_send_and_release_at_once_never_touch_a_foreign_descriptor(pair: Pair) -> None:
    """Rounds of senders, a reader and an aborter, while another thread takes every descriptor given back."""
    over = threading.Event()
    strangers: list[bytes] = []

    def take_descriptors() -> None:
        while not over.is_set():
            ours, theirs = socket.socketpair()
            with ours, theirs:
                ours.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    strangers.append(ours.recv(10))

    taking = Background(take_descriptors)
    try:
        for _ in range(15):
            with pair() as (stream, _):
                start = threading.Barrier(4)

                def send(stream: Stream = stream, start: threading.Barrier = start) -> None:
                    start.wait(LONG)
                    with contextlib.suppress(StreamError):
                        while True:
                            stream.send(b"x" * 100_000, Deadline(LONG))

                senders = [Background(send), Background(send)]
                aborting = Background(lambda s=stream, b=start: (b.wait(LONG), s.abort()))  # type: ignore[misc]
                start.wait(LONG)
                with pytest.raises(StreamAborted):
                    read_all_while_waiting(stream, 1 << 40)
                stream.release()
                for background in (*senders, aborting):
                    background.result()
    finally:
        over.set()
        taking.result()
    assert strangers == []
