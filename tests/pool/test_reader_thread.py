"""The connector's thread, which goes on as its socket's reader, and is the connector again after that."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import ConnectionFailed, ConnectionPool, Endpoint, SessionState, Target
from llm_sessions.pool.served import read_by_this_thread, served_by_this_thread
from llm_sessions.testing.server import LocalServer, ServerConnection
from tests.support import LONG, Gate, Recorder, eventually

MakePool = Callable[..., ConnectionPool]
RELAY = "event:relay.event"
EARLY = {"id": "early", "data": {"eventType": "relay.event", "n": -1}}


@pytest.fixture
def tls() -> bool:
    return False


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is open in the end, whatever happened."""
    gate = Gate()
    yield gate
    gate.open()


def lose(server: LocalServer, *codes: int) -> None:
    """End the live socket; the next ones are closed with these codes instead of becoming ready."""
    for code in codes:
        server.reject(code)
    server.live()[-1].close(1001)


class Early:
    """The next socket brings a message before it is ready; none is ready before `release_ready`.

    Attributes:
        sockets: The one that has brought it.
    """

    def __init__(self, server: LocalServer) -> None:
        self.before, self.sockets = server.connections(), list[ServerConnection]()
        server.withhold_ready()
        server.on_message(self._authorized)

    def _authorized(self, connection: ServerConnection, message: dict[str, Any]) -> None:
        known = connection in self.before  # the server's thread may still be at its authorization
        if message.get("type") == "authorization" and not known and not self.sockets:
            connection.send_json(EARLY)
            self.sockets.append(connection)

    def wait(self) -> ServerConnection:
        eventually(lambda: self.sockets, "no socket brought an early message")
        return self.sockets[0]


# -- events of the connector between two sockets -----------------------------------------------------------


def test_failures_after_a_socket_that_was_read_are_told(server: LocalServer, pool: ConnectionPool) -> None:
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, "online", "connection_failed", RELAY)
    server.wait_live()
    lose(server, 4410, 4410, 4410)
    failed: list[ConnectionFailed] = recorder.wait("connection_failed", 2)
    assert [one.retries for one in failed] == [1, 2]
    recorder.wait("online")
    server.wait_live()
    server.publish({"n": 1})
    recorder.wait(RELAY)


def test_the_end_of_a_run_whose_socket_was_read_is_told(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(max_retries=0)
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, "offline.permanent", "online")
    server.wait_live()
    lose(server, 4410)
    recorder.wait("offline.permanent")
    session.wait_closed(LONG)
    pool.connect(server.url())
    recorder.wait("online")


def test_a_switchover_whose_candidate_was_read_and_failed_is_told(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool(max_retries=0)
    session = pool.connect(server.url())
    failed = "event:mercury_shutdown_switchover_failed"
    recorder = Recorder().listen(session, failed, RELAY)
    server.wait_live()
    server.reject(4410)
    server.shutdown_frame()
    recorder.wait(failed)
    server.publish({"n": 1})
    recorder.wait(RELAY)
    assert session.state is SessionState.ONLINE


# -- a callback while a socket is not ready yet --------------------------------------------------------------


def test_a_callback_that_blocks_before_a_socket_is_ready_holds_up_no_further_attempt(
    server: LocalServer, pool: ConnectionPool, gate: Gate
) -> None:
    session = pool.connect(server.url())
    session.on(RELAY, lambda envelope: gate.pass_through())
    server.wait_live()
    early = Early(server)
    lose(server)
    candidate = early.wait()
    gate.wait_arrived()
    server.release_ready()  # for those to come
    candidate.close(1001)
    session.wait_online(LONG)


def test_a_callback_may_wait_for_the_session_before_its_socket_is_ready(
    server: LocalServer, pool: ConnectionPool
) -> None:
    session = pool.connect(server.url())
    waited: list[object] = []
    began = threading.Event()

    def callback(envelope: object) -> None:
        began.set()
        waited.append(session.wait_online(LONG / 2))

    session.on(RELAY, callback)
    server.wait_live()
    early = Early(server)
    lose(server)
    candidate = early.wait()
    assert began.wait(LONG)
    candidate.close(1001)
    eventually(lambda: len(server.connections()) >= 3, "no further attempt", timeout=LONG / 4)
    server.release_ready()
    session.wait_online(LONG)
    eventually(lambda: waited == [session])


def test_a_callback_before_a_socket_is_ready_runs_on_a_dispatcher(
    server: LocalServer, pool: ConnectionPool
) -> None:
    """A slow one on the connector's thread would make that the dispatcher, which stays for more."""
    session = pool.connect(server.url())
    recorder, names = Recorder().listen(session, RELAY, "online"), list[str]()
    session.on(RELAY, lambda envelope: names.append(threading.current_thread().name))
    server.wait_live()
    early = Early(server)
    lose(server)
    candidate = early.wait()
    recorder.wait(RELAY)
    server.release_ready()
    recorder.wait("online")
    assert candidate is server.wait_live()[-1]
    eventually(lambda: session._machine.dispatcher.thread is None)
    server.publish({"n": 1})
    recorder.wait(RELAY, 2)
    assert names == ["llm-dispatcher[mercury-default-session]", "llm-reader[mercury-default-session#2.1]"]


def test_the_last_read_of_a_socket_that_was_never_ready_is_delivered_by_another_thread(
    server: LocalServer, pool: ConnectionPool, gate: Gate
) -> None:
    session = pool.connect(server.url())
    session.on(RELAY, lambda envelope: gate.pass_through())
    server.wait_live()
    server.withhold_ready()
    before, ended = server.connections(), list[ServerConnection]()

    @server.on_message
    def authorized(connection: ServerConnection, message: dict[str, Any]) -> None:
        if message.get("type") == "authorization" and connection not in before and not ended:
            ended.append(connection)
            connection.send_json(EARLY)
            connection.close(1001)
            server.release_ready()

    lose(server)
    gate.wait_arrived()
    session.wait_online(LONG)


# -- what the thread is between two sockets ------------------------------------------------------------------


class Marks(Endpoint):
    """Writes down what the thread is that asks for the address."""

    def __init__(self, url: str) -> None:
        self.url, self.seen = url, list[tuple[str, object, object]]()

    def resolve(self, attempt: Any) -> Target:
        name = threading.current_thread().name
        self.seen.append((name, served_by_this_thread(), read_by_this_thread()))
        return Target(self.url)


def test_the_connector_is_no_reader_between_two_sockets(server: LocalServer, pool: ConnectionPool) -> None:
    place = Marks(server.url())
    server.reject(4410, times=2)
    session = pool.connect(place)
    assert place.seen == [("llm-connector[mercury-default-session]", session._machine, None)] * 3


class Raising(logging.Handler):
    """Raises when a certain message is logged."""

    def __init__(self, text: str) -> None:
        super().__init__(logging.DEBUG)
        self.text = text

    def handle(self, record: logging.LogRecord) -> bool:
        if self.text in record.getMessage():
            raise LookupError(self.text)
        return True


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[threading.ExceptHookArgs]]:
    """A log handler that raises when a socket's end is logged; what comes out of threads then."""
    logger, handler = logging.getLogger("llm_sessions"), Raising("a socket ended")
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield told
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_log_handler_that_raises_when_an_opening_socket_ends_costs_one_attempt(
    server: LocalServer, pool: ConnectionPool, raising: list[threading.ExceptHookArgs]
) -> None:
    server.reject(4410)
    pool.connect(server.url())
    assert [(one.exc_type, one.thread is not None) for one in raising] == [(LookupError, True)]


def test_a_log_handler_that_raises_in_a_reader_is_told_as_of_any_thread(
    server: LocalServer,
    pool: ConnectionPool,
    raising: list[threading.ExceptHookArgs],
    caplog: pytest.LogCaptureFixture,
) -> None:
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, "online")
    server.wait_live()
    server.close_session(code=1001)
    recorder.wait("online")
    eventually(lambda: raising)
    pool.close()
    assert not any("bug" in record.getMessage() for record in caplog.records)


def test_t0_a_run_that_is_cancelled_while_its_thread_reads_is_forgotten(
    server: LocalServer, pool: ConnectionPool
) -> None:
    server.withhold_ready()
    pool.begin_connect(server.url())
    server.wait_for(lambda: any(one.received for one in server.connections()))
    pool.disconnect()
    server.wait_for(lambda: all(one.closed_at is not None for one in server.connections()))
    eventually(lambda: pool.stats().abandoned_attempts == 0)
    server.release_ready()
    pool.connect(server.url())
    assert len(server.connections()) == 2
