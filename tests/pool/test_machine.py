"""One session under many threads: what callers, connectors, readers and closers may do to it, and when."""

from __future__ import annotations

import concurrent.futures
import gc
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from llm_sessions import (
    AlreadyConnected,
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    ConnectionLost,
    ConnectionPool,
    ConnectTimeout,
    Disconnected,
    Endpoint,
    Forbidden,
    LLMSessionsError,
    LocalProtocolError,
    NotOnline,
    Offline,
    PoolClosed,
    Replaced,
    Session,
    SessionState,
    Target,
    WaitTimeout,
)
from llm_sessions._sync import ThreadGroup, held_locks
from llm_sessions.connection.transport import AttemptFailed, Link, LinkOwner, OpenRequest
from llm_sessions.pool.attempt import Attempt
from llm_sessions.pool.core import _act
from llm_sessions.pool.machine import SessionMachine
from llm_sessions.protocol.closing import Failure
from llm_sessions.protocol.mercury import (
    Dropped,
    EndCause,
    LatencyMeasured,
    SequenceGap,
    ShutdownAnnounced,
)
from tests.support import (
    LONG,
    SHORT,
    Background,
    FakeLink,
    FakeTransport,
    Gate,
    Recorder,
    eventually,
    library_threads,
    run_together,
)

URL = "ws://localhost/socket"
Make = Callable[..., tuple[ConnectionPool, FakeTransport]]
S = SessionState

SHUTDOWN = ShutdownAnnounced({"type": "shutdown"})
GOODBYE = ["offline", "offline.permanent", "disconnected"]


def nothing(link: FakeLink) -> None:
    """An `on_open` or `on_close` after which nothing is reported."""


def refuse(link: FakeLink) -> None:
    raise AttemptFailed(Failure.NETWORK, "nobody home")


def machine_of(session: Session) -> SessionMachine:
    return session._machine


def announce_shutdown(link: FakeLink) -> None:
    link.owner.link_received(link, [SHUTDOWN])


def no_connectors() -> None:
    eventually(lambda: not any("connector" in thread.name for thread in library_threads()))


def waiting(session: Session, count: int) -> None:
    eventually(lambda: machine_of(session)._waiters == count, f"{count} callers do not wait")


# -- connect: one run, one outcome -------------------------------------------------------------------------


def test_i16_50_callers_share_one_socket_and_no_other_session_waits(make: Make) -> None:
    pool, transport = make()
    gate = Gate()

    def on_open(link: FakeLink) -> None:
        if link.name.startswith("stuck"):
            gate.pass_through()
        link.become_ready()

    transport.on_open = on_open
    stuck = Background(lambda: pool.connect(URL, "stuck"))
    gate.wait_arrived()
    sessions = run_together(50, lambda: pool.connect(URL, "x"))
    assert {id(session) for session in sessions} == {id(pool.session("x"))}
    assert [link.name for link in transport.links] == ["stuck#1.1", "x#1.1"]
    gate.open()
    assert stuck.result().online
    assert pool.connect(URL, "x") is sessions[0] and len(transport.links) == 2
    assert machine_of(sessions[0])._waiters == 0


def test_i17_every_waiter_gets_an_error_of_its_own_with_the_same_cause(make: Make) -> None:
    pool, _ = make(initial_max_retries=0)
    gate, cause = Gate(), ValueError("no token")

    def token() -> str:
        gate.pass_through()
        raise cause

    calls = [Background(lambda: pool.connect(URL, token=token)) for _ in range(4)]
    calls.append(Background(lambda: pool.wait_online()))
    waiting(pool.session(), 5)
    gate.open()
    errors = [call.error() for call in calls]
    assert {type(error) for error in errors} == {ConnectError} and len({str(error) for error in errors}) == 1
    assert len({id(error) for error in errors}) == 5
    assert {id(error.__cause__) for error in errors} == {id(cause)}
    lengths = []
    for error in errors:
        trace, length = error.__traceback__, 0
        while trace is not None:
            trace, length = trace.tb_next, length + 1
        lengths.append(length)
    assert len(set(lengths[:4])) == 1, "the traceback grew from waiter to waiter"
    assert pool.session().state is S.OFFLINE and machine_of(pool.session())._attempt is None


def test_i17_i12_disconnect_cancels_every_waiter(make: Make) -> None:
    pool, transport = make()
    transport.on_open = nothing
    calls = [Background(lambda: pool.connect(URL)) for _ in range(5)]
    waiting(pool.session(), 5)
    pool.disconnect()
    errors = [call.error() for call in calls]
    assert all(type(error) is ConnectCancelled for error in errors) and len({id(e) for e in errors}) == 5
    waiting(pool.session(), 0)
    assert transport.links[0].aborted.is_set() and pool.session().state is S.IDLE


def test_i15_only_the_owner_of_a_run_removes_it(make: Make) -> None:
    pool, transport = make()
    gates = [Gate(), Gate()]
    order = iter(gates)

    def token() -> str:
        next(order).pass_through()
        return "t"

    a = Background(lambda: pool.connect(URL, token=token))
    gates[0].wait_arrived()
    pool.disconnect()
    b = Background(lambda: pool.connect(URL, token=token))
    gates[1].wait_arrived()
    gates[0].open()
    assert isinstance(a.error(), ConnectCancelled)
    eventually(lambda: len(library_threads()) == 1)
    c = Background(lambda: pool.connect(URL))
    waiting(pool.session(), 2)
    gates[1].open()
    assert b.result() is c.result() and len(transport.links) == 1


def test_i13_disconnect_of_one_leaves_the_others(make: Make) -> None:
    pool, transport = make()
    gate = Gate()

    def on_open(link: FakeLink) -> None:
        if link.name.startswith("b#"):
            gate.pass_through()
        if not link.name.startswith("a#"):
            link.become_ready()

    transport.on_open = on_open
    a, b = (Background(lambda name=name: pool.connect(URL, name)) for name in "ab")  # type: ignore[misc]
    gate.wait_arrived()
    transport.wait_links(2)
    waiting(pool.session("a"), 1)
    pool.disconnect("a")
    assert isinstance(a.error(), ConnectCancelled)
    gate.open()
    assert b.result().online


def test_i18_a_failed_run_leaves_no_attempt_and_no_thread(make: Make) -> None:
    pool, transport = make(initial_max_retries=1)
    transport.on_open = refuse
    with pytest.raises(ConnectError, match="nobody home") as caught:
        pool.connect(URL)
    session = pool.session()
    machine = machine_of(session)
    assert session.state is S.OFFLINE and str(session.last_error) == str(caught.value)
    assert machine._attempt is None and machine._links == set() and machine._waiters == 0
    no_connectors()
    with pytest.raises(ConnectError, match="nobody home"):
        session.wait_online(timeout=None)
    transport.on_open = FakeLink.become_ready
    assert pool.connect() is session and session.online


def test_i38_the_last_error_is_kept_per_session(make: Make) -> None:
    pool, transport = make(initial_max_retries=0)
    transport.on_open = lambda link: link.end(4403 if link.name.startswith("a") else 4410)
    for name, kind in (("a", Forbidden), ("b", ConnectError)):
        with pytest.raises(kind):
            pool.connect(URL, name)
    assert [pool.session(name).last_error.code for name in "ab"] == [4403, 4410]  # type: ignore[union-attr]
    assert pool.session("c").last_error is None


def test_connect_timeout_names_and_chains_the_last_error(make: Make) -> None:
    pool, transport = make(backoff_initial=3600, backoff_max=3600)
    transport.on_open = refuse
    with pytest.raises(ConnectTimeout, match="nobody home") as caught:
        pool.connect(URL, timeout=SHORT)
    assert isinstance(caught.value, TimeoutError)
    assert type(caught.value.__cause__) is ConnectError and caught.value.attempts == 1
    assert pool.session().state is S.OFFLINE
    assert isinstance(pool.session().last_error, ConnectTimeout)
    no_connectors()


def test_connect_timeout_before_any_attempt_ended(make: Make) -> None:
    pool, transport = make()
    transport.on_open = nothing
    with pytest.raises(ConnectTimeout) as caught:
        pool.connect(URL, timeout=0)
    assert caught.value.attempts == 0 and caught.value.__cause__ is None
    assert pool.session().state is S.OFFLINE
    eventually(lambda: not library_threads())
    assert all(link.aborted.is_set() for link in transport.links)


def test_connect_timeout_while_reconnecting_chains_what_was_lost(make: Make) -> None:
    pool, transport = make(backoff_initial=3600, backoff_max=3600)
    session = pool.connect(URL)
    transport.on_open = nothing
    transport.links[0].end(1001, "bye")
    with pytest.raises(ConnectTimeout, match="1001 bye") as caught:
        pool.connect(URL, timeout=SHORT)
    assert isinstance(caught.value.__cause__, ConnectionLost)
    assert session.state is S.RECONNECTING, "it belongs to the session"
    with pytest.raises(WaitTimeout, match="1001 bye") as waited:
        session.wait_online(SHORT)
    assert isinstance(waited.value.__cause__, ConnectionLost)
    assert session.state is S.RECONNECTING
    transport.wait_links(2)[1].become_ready()
    assert session.online


def test_another_endpoint_needs_a_disconnect(make: Make) -> None:
    pool, transport = make()
    other = "ws://localhost/other?token=s3cret"
    session = pool.connect(URL)
    for trigger in (lambda: None, lambda: announce_shutdown(transport.links[0])):
        transport.on_open = nothing
        trigger()
        with pytest.raises(AlreadyConnected) as caught:
            pool.connect(other)
        assert caught.value.url == URL
        with pytest.raises(AlreadyConnected):
            pool.begin_connect(other)
    transport.links[0].end(1006)
    with pytest.raises(AlreadyConnected):
        pool.connect(other)
    pool.disconnect()
    transport.on_open = FakeLink.become_ready
    assert pool.connect(other) is session and session.url == other
    with pytest.raises(AlreadyConnected) as caught:
        pool.connect(URL)
    assert "s3cret" not in str(caught.value)


def test_an_equal_endpoint_joins(make: Make) -> None:
    pool, transport = make()

    def url() -> str:
        return URL

    session = pool.connect(url)
    assert pool.connect(url) is session and pool.begin_connect(url) is True
    transport.on_open = nothing
    transport.links[0].end(1006)
    call = Background(lambda: pool.connect(url))
    waiting(session, 1)
    transport.wait_links(2)[1].become_ready()
    assert call.result() is session


def test_how_endpoints_compare_is_user_code_and_runs_without_a_lock(make: Make) -> None:
    """An `__eq__` or `__str__` that looks at its pool waited for the lock that its own thread held."""
    pool, _ = make()

    class Place(Endpoint):
        def __init__(self, name: str) -> None:
            self.name = name

        def resolve(self, attempt: Any) -> Target:
            return Target(URL)

        def __eq__(self, other: object) -> bool:
            assert not held_locks()
            pool.session().on("online", print)
            return isinstance(other, Place) and self.name == other.name

        __hash__ = None  # type: ignore[assignment]

        def __str__(self) -> str:
            assert not held_locks()
            return repr(pool)

    pool.connect(Place("a"))
    assert pool.connect(Place("a")).online
    with pytest.raises(AlreadyConnected):
        Background(lambda: pool.connect(Place("b"))).result()


def test_the_endpoint_changes_while_it_is_compared(make: Make) -> None:
    pool, transport = make()
    gate = Gate()

    class Place(Endpoint):
        def __init__(self, name: str) -> None:
            self.name, self.slow = name, False

        def resolve(self, attempt: Any) -> Target:
            return Target(URL)

        def __eq__(self, other: object) -> bool:
            if self.slow:
                self.slow = False
                gate.pass_through()
            return isinstance(other, Place) and self.name == other.name

        __hash__ = None  # type: ignore[assignment]

    pool.connect(Place("a"))
    late = Place("a")
    late.slow = True
    call = Background(lambda: pool.connect(late))
    gate.wait_arrived()
    pool.disconnect()
    pool.connect(Place("b"))
    gate.open()
    assert isinstance(call.error(), AlreadyConnected)
    assert len(transport.links) == 2


def test_without_a_url_it_is_the_sessions_last_endpoint(make: Make) -> None:
    pool, transport = make()
    for start in (pool.connect, pool.begin_connect):
        with pytest.raises(ConfigurationError) as caught:
            start()
        assert caught.value.argument == "url"
    session = pool.connect(URL)
    assert pool.connect() is session
    pool.disconnect()
    assert pool.connect().url == URL and len(transport.links) == 2


def test_a_token_counts_only_when_a_run_starts(make: Make) -> None:
    pool, transport = make()
    pool.connect(URL, token="a")
    pool.connect(URL, token="b")
    transport.links[0].end(1006)
    eventually(lambda: pool.is_online())
    assert [link.request.token for link in transport.links] == ["Bearer a"] * 2
    pool.disconnect()
    pool.connect(URL, token="b")
    assert transport.links[-1].request.token == "Bearer b"


def test_connect_during_a_disconnect_waits_and_starts_afresh(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    transport.on_close = nothing
    leaving = Background(pool.disconnect)
    eventually(lambda: session.state is S.DISCONNECTING)
    with pytest.raises(ConnectTimeout, match="still disconnecting"):
        pool.connect(URL, timeout=SHORT)
    assert pool.begin_connect(URL) is False
    call = Background(lambda: pool.connect("ws://localhost/other"))
    late = Background(lambda: session.wait_online())
    waiting(session, 1)
    assert len(transport.links) == 1
    transport.links[0].end(1000)
    leaving.result()
    assert call.result() is session and session.url == "ws://localhost/other"
    assert late.result() is session, "disconnected before the call: it waits for whoever starts it"


# -- the last caller ---------------------------------------------------------------------------------------


def test_t16_the_last_caller_ends_a_first_run_in_one_step(make: Make) -> None:
    pool, transport = make()
    transport.on_open = nothing
    states: list[S] = []
    session = pool.session()
    forget = pool.observe(session, lambda: states.append(session.state))
    patient = Background(lambda: pool.connect(URL, timeout=LONG))
    waiting(session, 1)
    with pytest.raises(ConnectTimeout):
        pool.connect(URL, timeout=0)
    assert session.state is S.CONNECTING and not transport.wait_links(1)[0].aborted.is_set()
    transport.links[0].become_ready()
    patient.result()
    pool.disconnect()
    forget()
    states.clear()
    with pytest.raises(ConnectTimeout):
        pool.connect(URL, timeout=SHORT)
    assert session.state is S.OFFLINE and states == [], "an observer that was taken back was called"
    assert transport.links[1].aborted.is_set()
    no_connectors()


def test_t16_a_wait_online_counts_as_a_caller(make: Make) -> None:
    pool, transport = make()
    transport.on_open = nothing
    session = pool.session()
    watcher = Background(lambda: session.wait_online(LONG))
    waiting(session, 1)
    with pytest.raises(ConnectTimeout):
        pool.connect(URL, timeout=SHORT)
    assert session.state is S.CONNECTING
    transport.wait_links(1)[0].become_ready()
    assert watcher.result().online

    pool.disconnect()
    starter = Background(lambda: pool.connect(URL, timeout=0.2))
    eventually(lambda: session.state is S.CONNECTING)
    with pytest.raises(WaitTimeout):
        session.wait_online(0.5)
    assert isinstance(starter.error(), ConnectTimeout)
    assert session.state is S.OFFLINE and isinstance(session.last_error, WaitTimeout)


def test_t16_a_run_that_the_library_holds_outlives_callers(make: Make) -> None:
    pool, transport = make()
    transport.on_open = nothing
    assert pool.begin_connect(URL) is True
    with pytest.raises(ConnectTimeout):
        pool.connect(URL, timeout=SHORT)
    assert pool.session().state is S.CONNECTING
    transport.wait_links(1)[0].become_ready()
    assert pool.is_online() and pool.begin_connect() is True


@pytest.mark.parametrize("newcomer_first", [True, False])
def test_t16_a_newcomer_gets_the_old_run_or_a_fresh_one_never_a_dead_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, newcomer_first: bool
) -> None:
    pool, transport = make()
    transport.on_open = nothing
    session = pool.session()
    machine, gate = machine_of(session), Gate()
    decide, leave = machine._decide, machine._leave

    def slow(decision: Any, *arguments: Any) -> Any:
        if decision == leave and threading.current_thread() is leaver.thread:
            gate.pass_through()
        return decide(decision, *arguments)

    monkeypatch.setattr(machine, "_decide", slow)
    started = threading.Event()
    leaver = Background(lambda: started.wait(LONG) and pool.connect(URL, timeout=SHORT))
    started.set()
    gate.wait_arrived()  # its time is up, and it has not left yet
    if newcomer_first:
        newcomer = Background(lambda: pool.connect(URL, timeout=LONG))
        waiting(session, 2)
        gate.open()
        assert isinstance(leaver.error(), ConnectTimeout)
        assert len(transport.links) == 1 and not transport.links[0].aborted.is_set()
    else:
        gate.open()
        assert isinstance(leaver.error(), ConnectTimeout)
        newcomer = Background(lambda: pool.connect(URL, timeout=LONG))
        transport.wait_links(2)
        assert transport.links[0].aborted.is_set()
    transport.links[-1].become_ready()
    assert newcomer.result().online


def test_t16_a_run_that_succeeds_while_its_last_caller_leaves(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, transport = make()
    transport.on_open = nothing
    machine, gate = machine_of(pool.session()), Gate()
    decide, leave = machine._decide, machine._leave

    def slow(decision: Any, *arguments: Any) -> Any:
        if decision == leave:
            gate.pass_through()
        return decide(decision, *arguments)

    monkeypatch.setattr(machine, "_decide", slow)
    call = Background(lambda: pool.connect(URL, timeout=SHORT))
    gate.wait_arrived()
    transport.links[0].become_ready()
    gate.open()
    assert call.result().online


def test_t5_ctrl_c_in_the_last_caller_ends_a_first_run(make: Make) -> None:
    pool, transport = make()
    transport.on_open = nothing
    session = pool.session()

    def interrupt() -> None:
        waiting(session, 1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    for call in (lambda: pool.connect(URL, timeout=LONG), lambda: session.wait_online(LONG)):
        if session.state is not S.IDLE:
            pool.disconnect()
        killer = Background(interrupt)
        with pytest.raises(KeyboardInterrupt):
            call()
        killer.result()
        assert machine_of(session)._waiters == 0
    no_connectors()
    assert transport.links[0].aborted.is_set()


def test_t5_ctrl_c_strands_no_other_caller(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, transport = make()
    transport.on_open = nothing
    session = pool.session()
    other = Background(lambda: pool.connect(URL, timeout=LONG))
    waiting(session, 1)
    exception = concurrent.futures.Future.exception

    def interrupted(self: Any, timeout: float | None = None) -> Any:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return exception(self, timeout)

    monkeypatch.setattr(concurrent.futures.Future, "exception", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.connect(URL)
    assert machine_of(session)._waiters == 1 and session.state is S.CONNECTING
    transport.wait_links(1)[0].become_ready()
    assert other.result().online


def test_t5_ctrl_c_alone_leaves_the_session_offline(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, transport = make()
    transport.on_open = nothing

    def interrupted(self: Any, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(concurrent.futures.Future, "exception", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.connect(URL)
    assert pool.session().state is S.OFFLINE and machine_of(pool.session())._waiters == 0
    assert isinstance(pool.session().last_error, ConnectCancelled)
    no_connectors()


# -- wait_online -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [None, 1e-6], ids=["", "shaken"])
def test_t17_online_for_an_instant_is_not_lost(make: Make, interval: float | None) -> None:
    pool, transport = make()

    def flash(link: FakeLink) -> None:
        link.become_ready()
        link.end(1008, "only an instant")

    transport.on_open = flash
    session = pool.session()
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval or before)
    try:
        for _ in range(200):
            waiter = Background(lambda: session.wait_online(LONG))
            waiting(session, 1)
            pool.begin_connect(URL)
            assert waiter.result() is session
            eventually(lambda: session.state is S.OFFLINE)
            pool.disconnect()
    finally:
        sys.setswitchinterval(before)


def test_wait_online_returns_at_once_when_online_or_switching(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    assert session.wait_online(0) is session
    transport.on_open = nothing
    announce_shutdown(transport.links[0])
    assert session.state is S.SWITCHING and session.wait_online(0) is session


def test_wait_online_on_a_session_that_ended_raises_its_error_at_once(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    transport.links[0].end(4000, "replaced")
    for timeout in (None, 0):
        with pytest.raises(Replaced) as caught:
            session.wait_online(timeout)
        assert caught.value is not session.last_error and caught.value.code == 4000


def test_wait_online_of_a_session_that_nobody_starts_runs_out(make: Make) -> None:
    pool, _ = make()
    with pytest.raises(WaitTimeout) as caught:
        pool.wait_online("never", SHORT)
    assert isinstance(caught.value, TimeoutError) and caught.value.session_id == "never"
    assert pool.session("never").state is S.IDLE


def test_wait_online_of_a_session_that_is_disconnected_meanwhile(make: Make) -> None:
    pool, transport = make()
    transport.on_open = nothing
    pool.begin_connect(URL)
    calls = [Background(lambda: pool.wait_online(timeout=None)) for _ in range(3)]
    waiting(pool.session(), 3)
    pool.disconnect()
    assert all(isinstance(call.error(), ConnectCancelled) for call in calls)
    with pytest.raises(WaitTimeout):
        pool.wait_online(timeout=SHORT)


def test_wait_online_of_a_session_that_fails_meanwhile(make: Make) -> None:
    pool, transport = make()
    gate = Gate()

    def on_open(link: FakeLink) -> None:
        gate.pass_through()
        link.end(4403)

    transport.on_open = on_open
    pool.begin_connect(URL)
    call = Background(lambda: pool.wait_online(timeout=None))
    waiting(pool.session(), 1)
    gate.open()
    assert isinstance(call.error(), Forbidden)


# -- PROTOCOL 2.2: what a close means ----------------------------------------------------------------------

TRANSIENT, PERMANENT, REPLACED = "offline.transient", "offline.permanent", "offline.replaced"
CLOSES = [
    *[(code, "", TRANSIENT) for code in (1001, 1005, 1006, 1011)],
    *[
        (code, reason, TRANSIENT)
        for code in (1000, 3050)
        for reason in ("Idle", "done (forced)", "Pong not received", "pong mismatch")
    ],
    *[(code, reason, PERMANENT) for code in (1000, 3050) for reason in ("", "Done", "done (permanent)")],
    (4000, "Replaced", REPLACED),
    (4000, "", TRANSIENT),
    (4000, "other", TRANSIENT),
    (4001, "", PERMANENT),
    *[(code, "x", PERMANENT) for code in (1002, 1003, 1008, 1012, 3000, 4400, 4403, 4999)],
]


@pytest.mark.parametrize(("code", "reason", "event"), CLOSES)
def test_i30_the_close_of_the_active_socket(make: Make, code: int, reason: str, event: str) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    transport.on_open = nothing
    transport.links[0].end(code, reason)
    recorder.wait(event)
    assert recorder.names == ["offline", event]
    assert {payload for _, payload in recorder.calls} == {Offline(session.id, code, reason)}
    assert type(session.last_error) is (Replaced if event == REPLACED else ConnectionLost)
    if event == TRANSIENT:
        assert session.state is S.RECONNECTING
        transport.wait_links(2)[1].become_ready()
        recorder.wait("online")
        assert recorder.names == ["offline", event, "online"]
    else:
        assert session.state is S.OFFLINE and not library_threads_but_dispatchers()
        assert len(transport.links) == 1
        with pytest.raises(NotOnline):
            session.send({})


def library_threads_but_dispatchers() -> list[str]:
    return [thread.name for thread in library_threads() if "dispatcher" not in thread.name]


@pytest.mark.parametrize(("code", "reason", "event"), [*CLOSES, (4401, "", TRANSIENT)])
def test_i29_the_close_of_a_retired_socket(make: Make, code: int, reason: str, event: str) -> None:
    pool, transport = make(retire_timeout=7)
    session = pool.connect(URL)
    old = transport.links[0]
    announce_shutdown(old)
    eventually(lambda: session.state is S.ONLINE)
    assert old.retired == 7 and len(transport.links) == 2
    recorder = Recorder().listen(session)
    old.end(code, reason)
    old.owner.link_received(transport.links[1], [{"id": "after"}])
    recorder.wait("event")
    assert recorder.names == ([REPLACED] if code == 4001 else []) + ["event"]
    assert session.state is S.ONLINE and session.last_error is None and len(transport.links) == 2
    session.send("x")
    assert transport.links[1].sent == [b"x"]


def test_i32_one_sessions_end_is_not_anothers(make: Make) -> None:
    pool, transport = make()
    pool.connect(URL)
    other = pool.connect(URL, "practice")
    transport.links[0].end(1003)
    assert not pool.is_online() and pool.is_online("practice") and pool.any_online
    other.send("x")
    transport.links[1].end(1003)
    assert not pool.any_online


# -- switchover --------------------------------------------------------------------------------------------


def switching(make: Make, **config: Any) -> tuple[ConnectionPool, FakeTransport, Session, Recorder]:
    """A session whose candidate socket is opening."""
    pool, transport = make(**config)
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    transport.on_open = nothing
    announce_shutdown(transport.links[0])
    transport.wait_links(2)
    assert session.state is S.SWITCHING
    return pool, transport, session, recorder


IMMINENT, COMPLETE, FAILED = (
    f"event:mercury_shutdown_{name}" for name in ("imminent", "switchover_complete", "switchover_failed")
)


def test_i19_i20_i21_the_candidate_takes_over_when_ready(make: Make) -> None:
    _, transport, session, recorder = switching(make)
    old, new = transport.links
    session.send("to the old one")
    old.owner.link_received(old, [{"id": "1"}])
    new.owner.link_received(new, [{"id": "2"}])  # before ready: tolerated and delivered
    assert session.online and session.latency is None
    new.become_ready()
    assert session.state is S.ONLINE
    session.send("to the new one")
    assert old.sent == [b"to the old one"] and new.sent == [b"to the new one"]
    old.owner.link_received(old, [{"id": "3"}])
    recorder.wait("event", 3)
    assert recorder.names == [IMMINENT, "event", "event", COMPLETE, "event"]
    assert recorder.payloads(IMMINENT)[0].envelope.raw == {"type": "shutdown"}
    assert recorder.payloads(COMPLETE)[0].url == URL
    old.end(4001)
    new.end(1006)
    recorder.wait("offline.transient")
    assert recorder.names[5:] == ["offline.replaced", "offline", "offline.transient"]


def test_i23_a_second_shutdown_is_ignored_and_sessions_switch_alone(make: Make) -> None:
    pool, transport, _, recorder = switching(make)
    announce_shutdown(transport.links[0])
    transport.on_open = FakeLink.become_ready
    other = pool.connect(URL, "other")
    announce_shutdown(transport.links[2])
    eventually(lambda: other.state is S.ONLINE and len(transport.links) == 4)
    transport.links[1].become_ready()
    announce_shutdown(transport.links[0])  # on the retired one
    recorder.wait(COMPLETE)
    assert recorder.names == [IMMINENT, COMPLETE] and len(transport.links) == 4


def test_i24_the_candidate_uses_the_sessions_own_url(make: Make) -> None:
    pool, transport = make()
    pool.connect(f"{URL}?subscriptionAwareSubchannels=transcription")
    announce_shutdown(transport.links[0])
    assert "subscriptionAwareSubchannels=transcription" in transport.wait_links(2)[1].request.url


@pytest.mark.parametrize(("code", "state"), [(1006, S.RECONNECTING), (4001, S.OFFLINE)])
def test_i22_after_a_failed_switchover_the_old_socket_is_active_again(
    make: Make, code: int, state: S
) -> None:
    _, transport, session, recorder = switching(make, max_retries=0)
    transport.links[1].end(1006)
    (payload,) = recorder.wait(FAILED)
    assert session.state is S.ONLINE and isinstance(payload.reason, ConnectError)
    session.send("x")
    assert transport.links[0].sent == [b"x"] and transport.links[0].retired is None
    transport.links[0].end(code)
    assert session.state is state
    recorder.wait("offline.transient" if code == 1006 else "offline.permanent")
    if code == 1006:
        transport.wait_links(3)[2].become_ready()
        recorder.wait("online")


def test_i98_4001_of_the_old_one_is_kept_until_the_candidate_is_ready(make: Make) -> None:
    _, transport, session, recorder = switching(make)
    transport.links[0].end(4001, "moved")
    assert session.state is S.SWITCHING
    with pytest.raises(NotOnline):
        session.send("x")
    transport.links[1].become_ready()
    recorder.wait("offline.replaced")
    assert recorder.names == [IMMINENT, COMPLETE, "offline.replaced"]
    assert recorder.payloads("offline.replaced") == [Offline(session.id, 4001, "moved")]
    assert session.state is S.ONLINE


def test_i98_4001_of_the_old_one_is_judged_when_the_candidate_fails(make: Make) -> None:
    _, transport, session, recorder = switching(make, max_retries=0)
    transport.links[0].end(4001)
    transport.links[1].end(1006)
    recorder.wait("offline.permanent")
    assert recorder.names == [IMMINENT, FAILED, "offline", "offline.permanent"]
    assert session.state is S.OFFLINE and session.last_error.code == 4001  # type: ignore[union-attr]


@pytest.mark.parametrize("code", [1006, 4401])
def test_i98_a_transient_loss_turns_the_candidate_into_the_reconnect(make: Make, code: int) -> None:
    pool, transport, session, recorder = switching(make)
    transport.links[0].end(code)
    assert session.state is S.RECONNECTING
    call = Background(lambda: pool.connect(URL))
    waiting(session, 1)
    transport.links[1].become_ready()
    assert call.result() is session
    recorder.wait("online")
    assert recorder.names == [IMMINENT, "offline", "offline.transient", "online"]
    assert len(transport.links) == 2


def test_i98_a_candidate_that_became_the_reconnect_may_fail_for_good(make: Make) -> None:
    _, transport, session, recorder = switching(make)
    transport.links[0].end(1006)
    transport.links[1].end(4403)
    recorder.wait("offline.permanent")
    assert recorder.names == [IMMINENT, "offline", "offline.transient", "offline.permanent"]
    assert isinstance(session.last_error, Forbidden) and session.state is S.OFFLINE


@pytest.mark.parametrize(("code", "reason", "event"), [(1003, "", PERMANENT), (4000, "replaced", REPLACED)])
def test_i98_another_close_of_the_old_one_cancels_the_candidate(
    make: Make, code: int, reason: str, event: str
) -> None:
    _, transport, session, recorder = switching(make)
    transport.links[0].end(code, reason)
    assert session.state is S.OFFLINE and transport.links[1].aborted.is_set()
    transport.links[1].become_ready()  # too late: never published
    recorder.wait(event)
    assert recorder.names == [IMMINENT, "offline", event] and session.state is S.OFFLINE
    no_connectors()


def test_i25_disconnect_ends_candidate_and_old(make: Make) -> None:
    pool, transport, session, recorder = switching(make)
    pool.disconnect(code=3050, reason="bye")
    old, new = transport.links
    assert old.closes == [(3050, "bye")] and new.aborted.is_set() and new.closes == []
    new.become_ready()
    recorder.wait("disconnected")
    assert recorder.names == [IMMINENT, *GOODBYE] and session.state is S.IDLE
    no_connectors()
    assert len(transport.links) == 2


def test_i25_disconnect_waits_for_a_retired_socket_too(make: Make) -> None:
    pool, transport, session, _ = switching(make)
    transport.links[1].become_ready()
    transport.on_close = nothing
    call = Background(pool.disconnect)
    eventually(lambda: all(link.closes for link in transport.links))
    transport.links[1].end(1000)
    assert session.state is S.DISCONNECTING
    transport.links[0].end(4001)
    call.result()
    assert session.state is S.IDLE


@pytest.mark.parametrize("how", ["ended", "gave up"])
def test_i25_a_session_that_ended_keeps_no_retired_socket(make: Make, how: str) -> None:
    """OFFLINE kept it: disconnect and close had nothing to wait for, and its reader stayed."""
    pool, transport, session, _ = switching(make)
    old, new = transport.links
    new.become_ready()
    if how == "ended":
        new.end(1003)
    else:
        transport.on_open = lambda link: link.end(4403)
        new.end(1006)
        eventually(lambda: session.state is S.OFFLINE)
    assert session.state is S.OFFLINE and machine_of(session)._links == set()
    assert old.aborted.is_set()
    recorder = Recorder().listen(session, REPLACED)
    old.end(4001)
    pool.disconnect()
    assert recorder.names == []


def test_a_switchover_of_a_long_lived_session_counts_and_waits_anew(make: Make, waits: list[float]) -> None:
    """Failures before a session came online were counted against its switchover hours later."""
    pool, transport = make(backoff_initial=1, backoff_max=8, max_retries=2)
    now = [0.0]
    pool._env.clock = lambda: now[0]
    left = [refuse] * 4
    transport.on_open = lambda link: (left.pop() if left else FakeLink.become_ready)(link)
    session = pool.connect(URL)
    assert waits == [1, 2, 4, 8]
    now[0] += 8
    recorder = Recorder().listen(session)
    left.extend([refuse] * 2)
    announce_shutdown(transport.links[-1])
    recorder.wait(COMPLETE)
    assert waits[4:] == [1, 2]


# -- disconnect in every state -----------------------------------------------------------------------------


class Stage:
    """A session brought into one of its states, and what must be let go in the end."""

    def __init__(self, make: Make, **config: Any) -> None:
        self.pool, self.transport = make(**{"backoff_initial": 3600, "backoff_max": 3600, **config})
        self.session = self.pool.session()
        self.gate = Gate()
        self.expected = GOODBYE
        self.farewell = (1000, "Done")

    def token(self) -> str:
        self.gate.pass_through()
        return "t"

    def idle(self) -> None:
        self.expected = []

    def offline(self) -> None:
        self.transport.on_open = lambda link: link.end(4403)
        with pytest.raises(Forbidden):
            self.pool.connect(URL)
        self.expected = []

    def connecting_source(self) -> None:
        self.pool.begin_connect(URL, token=self.token)
        self.gate.wait_arrived()

    def connecting_open(self) -> None:
        self.transport.on_open = lambda link: self.gate.pass_through()
        self.pool.begin_connect(URL)
        self.gate.wait_arrived()

    def connecting_authorization(self) -> None:
        self.transport.on_open = nothing
        self.pool.begin_connect(URL)
        self.transport.wait_links(1)

    def connecting_backoff(self) -> None:
        self.transport.on_open = refuse
        self.pool.begin_connect(URL)
        eventually(lambda: self.session.last_error)

    def online(self) -> None:
        self.pool.connect(URL)

    def switching(self) -> None:
        self.online()
        self.transport.on_open = nothing
        announce_shutdown(self.transport.links[0])
        self.transport.wait_links(2)

    def switching_kept_4001(self) -> None:
        self.switching()
        self.transport.links[0].end(4001)

    def reconnecting(self) -> None:
        self.online()
        self.transport.on_open = refuse
        self.transport.links[0].end(1006)
        eventually(lambda: isinstance(self.session.last_error, ConnectError))

    def reconnecting_authorization(self) -> None:
        self.online()
        self.transport.on_open = nothing
        self.transport.links[0].end(1006)
        self.transport.wait_links(2)


STAGES = [name for name in vars(Stage) if not name.startswith("_") and name != "token"]


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest, make: Make) -> Iterator[Stage]:
    one = Stage(make)
    getattr(one, request.param)()
    yield one
    one.gate.open()


def test_i28_disconnect_in_every_state(stage: Stage) -> None:
    session = stage.session
    recorder = Recorder()
    states: list[S] = []
    for name in (*GOODBYE, "online", "offline.transient", "connection_failed"):
        session.on(name, recorder.named(name))
    session.on("disconnected", lambda payload: states.append(session.state))
    error, opened = session.last_error, len(stage.transport.links)
    started = time.monotonic()
    stage.pool.disconnect()
    assert time.monotonic() - started < 1
    assert session.state is S.IDLE
    stage.pool.disconnect()
    if stage.expected:
        recorder.wait("disconnected")
    stage.gate.open()
    no_connectors()
    for link in stage.transport.links[-1:]:
        link.become_ready()  # readiness after the cancel opens nothing
        link.end(1006)
    eventually(lambda: not library_threads())
    assert recorder.names == stage.expected and session.state is S.IDLE
    if stage.expected:
        assert states == [S.IDLE], "the state is cleared before `disconnected`"
        assert recorder.payloads("offline") == [Offline(session.id, *stage.farewell)]
        assert recorder.payloads("disconnected") == [Disconnected(session.id)]
    assert (session.last_error, len(stage.transport.links)) == (error, opened)
    assert machine_of(session)._links == set() and machine_of(session)._attempt is None
    assert session.url is None


def test_t2_close_in_every_state(stage: Stage) -> None:
    watcher = None
    if stage.session.state not in (S.ONLINE, S.SWITCHING, S.OFFLINE):
        watcher = Background(lambda: stage.session.wait_online(timeout=None))
        waiting(stage.session, 1)
    recorder = Recorder().listen(stage.session, *GOODBYE)
    closing = Background(stage.pool.close)
    if watcher is not None:
        assert isinstance(watcher.error(), PoolClosed)
    stage.gate.open()
    closing.result()
    assert recorder.names == stage.expected
    assert stage.session.state is S.IDLE and not library_threads()
    with pytest.raises(PoolClosed):
        stage.pool.connect(URL)
    stage.pool.close()


def test_i26_a_connect_that_waits_gets_pool_closed(make: Make) -> None:
    pool, transport = make()
    transport.on_open = nothing
    calls = [Background(lambda: pool.connect(URL)) for _ in range(3)]
    waiting(pool.session(), 3)
    pool.close()
    errors = [call.error() for call in calls]
    assert all(type(error) is PoolClosed for error in errors) and len({id(error) for error in errors}) == 3


@pytest.mark.parametrize("code", [1000, 1001, 1006, 4000, 4401])
def test_i26_i27_a_close_that_we_asked_for_never_reconnects(make: Make, code: int) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    transport.on_close = lambda link: link.end(code, "whatever")
    pool.disconnect()
    recorder.wait("disconnected")
    assert recorder.names == GOODBYE
    assert recorder.payloads("offline") == [Offline(session.id, code, "whatever")]
    assert len(transport.links) == 1 and not library_threads_but_dispatchers()


def test_the_first_code_wins_and_disconnects_join(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    transport.on_close = nothing
    first = Background(lambda: pool.disconnect(code=3050, reason="first"))
    eventually(lambda: session.state is S.DISCONNECTING)
    others = [Background(lambda: session.disconnect(code=4999)), Background(pool.disconnect_all)]
    pool.begin_disconnect(code=4998)
    assert transport.links[0].closes == [(3050, "first")]
    assert not first.done
    transport.links[0].end(3050, "first", EndCause.LOCAL)
    for call in (first, *others):
        call.result()
    recorder.wait("disconnected")
    assert recorder.names == GOODBYE and len(transport.links[0].closes) == 1


@pytest.mark.parametrize(
    ("code", "reason", "reported"),
    [
        (None, None, (1000, "Done")),
        (3050, None, (3050, "Done")),
        (None, "x", (1000, "x")),
        (4000, "", (4000, "")),
    ],
)
def test_what_a_disconnect_without_a_socket_reports(
    make: Make, code: int | None, reason: str | None, reported: tuple[int, str]
) -> None:
    pool, transport = make()
    transport.on_open = nothing
    pool.begin_connect(URL)
    recorder = Recorder().listen(pool)
    pool.disconnect(code=code, reason=reason)
    recorder.wait("disconnected")
    assert recorder.payloads("offline") == [Offline(pool.session().id, *reported)]


@pytest.mark.parametrize(
    ("code", "reason", "argument"),
    [
        (1001, None, "code"),
        (2999, None, "code"),
        (5000, None, "code"),
        (True, None, "code"),
        (None, "x" * 124, "reason"),
    ],
)
def test_i5_a_bad_code_is_refused_before_anything_changes(
    make: Make, code: Any, reason: Any, argument: str
) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    for call in (pool.disconnect, pool.disconnect_all, pool.begin_disconnect, session.disconnect):
        with pytest.raises(ConfigurationError) as caught:
            call(code=code, reason=reason)
        assert caught.value.argument == argument
    assert session.state is S.ONLINE
    session.send("x")
    assert transport.links[0].sent == [b"x"] and transport.links[0].closes == []


def test_an_active_socket_that_is_about_to_report_its_end_is_not_waited_for(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    transport.links[0].ready = False  # the peer closed; its reader has not told us yet
    pool.disconnect()
    assert transport.links[0].aborted.is_set() and session.state is S.IDLE
    transport.links[0].end(1006)
    assert session.state is S.IDLE and session.last_error is None


def test_disconnect_forgets_that_the_session_was_online(make: Make) -> None:
    pool, _ = make()
    session = pool.connect(URL)
    assert machine_of(session).was_online and session.url == URL
    pool.disconnect()
    assert not machine_of(session).was_online and session.url is None


# -- stale and odd reports ---------------------------------------------------------------------------------


def test_reports_of_a_socket_that_was_given_up_change_nothing(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    (old,) = transport.links
    pool.disconnect()
    pool.connect(URL)
    recorder.wait("online")
    before = list(recorder.names)
    old.owner.link_ready(old)
    assert old.owner.link_received(old, [{"id": "1"}]) is True
    assert old.owner.link_received(old, [SHUTDOWN, LatencyMeasured(1.0)]) is True
    old.ended = False
    old.end(4000, "replaced")
    assert session.state is S.ONLINE and session.latency is None and old.aborted.is_set()
    transport.links[1].owner.link_received(transport.links[1], [{"id": "2"}])
    recorder.wait("event")
    assert recorder.names == [*before, "event"]


def test_a_run_is_settled_once(make: Make) -> None:
    pool, transport = make()
    transport.on_open = nothing
    pool.begin_connect(URL)
    machine = machine_of(pool.session())
    (link,) = transport.wait_links(1)
    attempt = machine._attempt
    assert attempt is not None
    link.become_ready()
    machine.give_up(attempt, ConnectError("s", "late"))
    assert machine.attempt_failed(attempt, ConnectError("s", "late")) is not None
    pool.disconnect()
    machine.give_up(attempt, ConnectError("s", "later"))
    assert attempt.outcome.exception(0) is None and pool.session().state is S.IDLE


def test_a_cancelled_run_counts_no_failure(make: Make) -> None:
    pool, transport = make()
    transport.on_open = nothing
    pool.begin_connect(URL)
    machine = machine_of(pool.session())
    attempt = machine._attempt
    assert attempt is not None
    pool.disconnect()
    assert machine.attempt_failed(attempt, ValueError("late")) == (0.0, False)
    assert not machine.adopt(attempt, transport.wait_links(1)[0])
    assert machine.last_error is None and attempt.failures == 0


def test_what_readers_report_becomes_events(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llm_sessions")
    pool, transport = make()
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    (link,) = transport.links
    assert link.owner.link_received(
        link,
        [{"id": 1}, LatencyMeasured(0.25), {"id": 2}, SequenceGap(5, 3), Dropped("not JSON"), {"id": 3}],
    )
    recorder.wait("event", 3)
    assert recorder.names == ["event", "ping-pong-latency", "event", "sequence-mismatch", "event"]
    assert session.latency == recorder.payloads("ping-pong-latency")[0].seconds == 0.25
    gap = recorder.payloads("sequence-mismatch")[0]
    assert (gap.actual, gap.expected) == (5, 3)
    assert "not JSON" in caplog.text and "message 5 came, 3 was due" in caplog.text


def test_t4_a_full_queue_pauses_the_reader_and_resumes_it(make: Make) -> None:
    pool, transport = make(queue_size=2)
    session = pool.connect(URL)
    gate = Gate()
    session.on("event:stop", lambda envelope: gate.pass_through())
    (link,) = transport.links
    assert link.owner.link_received(link, [{"id": 1, "data": {"eventType": "stop"}}])
    gate.wait_arrived()
    assert link.owner.link_received(link, [{"id": 2}]) is True
    assert link.owner.link_received(link, [LatencyMeasured(1), {"id": 3}, LatencyMeasured(2)]) is False
    assert link.resumed == 0
    gate.open()
    eventually(lambda: link.resumed == 1)


def test_t4_disconnect_returns_while_a_reader_is_paused(make: Make) -> None:
    pool, transport = make(queue_size=1)
    session = pool.connect(URL)
    gate, recorder = Gate(), Recorder().listen(session)
    session.on("event", lambda envelope: gate.pass_through() if envelope.id == 1 else None)
    (link,) = transport.links
    assert not link.owner.link_received(link, [{"id": 1}, {"id": 2}])
    gate.wait_arrived()
    Background(pool.disconnect).result()
    assert session.state is S.IDLE and "offline" not in recorder.names
    gate.open()
    recorder.wait("disconnected")
    assert recorder.names == ["event", "event", *GOODBYE], "what came before the close is delivered before it"


def test_t4_dropping_is_warned_of_once_per_session(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    pool, transport = make(queue_size=1, when_full="drop_oldest")
    session = pool.connect(URL)
    gate = Gate()
    session.on("event", lambda envelope: gate.pass_through() if envelope.id == 1 else None)
    (link,) = transport.links
    link.owner.link_received(link, [{"id": 1}])
    gate.wait_arrived()
    for number in range(5):
        assert link.owner.link_received(link, [{"id": 2 + number}])
    gate.open()
    assert [record.message for record in caplog.records if "dropped" in record.message] == [
        f"[{session.id}] the listeners are too slow: oldest messages are dropped"
    ]


# -- effects -----------------------------------------------------------------------------------------------


def test_every_effect_is_done_also_when_one_raises() -> None:
    done: list[int] = []

    def fail() -> None:
        done.append(-1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _act([lambda: done.append(1), fail, lambda: done.append(2), fail, lambda: done.append(3)])
    assert done == [1, -1, 2, -1, 3]


class Handler(logging.Handler):
    """User code: called with every record of the library."""

    def __init__(self, call: Callable[[str], object]) -> None:
        super().__init__(logging.DEBUG)
        self.call = call

    def emit(self, record: logging.LogRecord) -> None:
        self.call(record.getMessage())


@pytest.fixture
def log_to() -> Iterator[Callable[[Callable[[str], object]], None]]:
    logger = logging.getLogger("llm_sessions")
    level, handlers = logger.level, list(logger.handlers)
    logger.setLevel(logging.DEBUG)
    yield lambda call: logger.addHandler(Handler(call))
    logger.setLevel(level)
    logger.handlers = handlers


def test_t5_ctrl_c_in_a_log_handler_leaves_no_session_disconnecting(
    make: Make, log_to: Callable[[Callable[[str], object]], None]
) -> None:
    """The close was an effect behind the log call: lost, and the session stuck for good."""
    pool, transport = make()
    session = pool.connect(URL)

    def interrupt(message: str) -> None:
        if "-> disconnecting" in message:
            raise KeyboardInterrupt

    log_to(interrupt)
    with pytest.raises(KeyboardInterrupt):
        pool.disconnect()
    assert transport.links[0].closes == [(None, None)] and session.state is S.IDLE


def test_a_log_handler_or_an_observer_that_raises_strands_nobody(
    make: Make, log_to: Callable[[Callable[[str], object]], None]
) -> None:
    pool, transport = make(initial_max_retries=0)
    transport.on_open = refuse

    def fail(message: str) -> None:
        if "attempt 1 failed" in message:
            raise SystemError("a handler's mistake")

    log_to(fail)
    with pytest.raises(ConnectError):
        pool.connect(URL, timeout=LONG)
    no_connectors()


def test_i97_no_user_code_runs_under_a_lock(
    make: Make, log_to: Callable[[Callable[[str], object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every place where the library calls out looks at the pool and registers listeners."""
    pool, transport = make(queue_size=1, max_retries=3)
    seen: set[str] = set()
    wrong: list[str] = []
    session = pool.session()

    def look(where: str) -> None:
        seen.add(where)
        if held_locks():
            wrong.append(f"{where}: {held_locks()}")
            return
        assert repr(pool) and repr(session) and pool.sessions() and session.state
        pool.is_online()
        pool.off("online", pool.on("online", look))
        pool.begin_disconnect("nobody")

    class Place(Endpoint):
        def resolve(self, attempt: Any) -> Target:
            look("resolve")
            return Target(URL)

        def rejected(self, target: Target, error: Exception) -> None:
            look("rejected")

    class Tokens:
        count = 0

        def get(self) -> str:
            look("get")
            return f"t{self.count}"

        def refresh(self, rejected: str) -> str:
            look("refresh")
            self.count += 1
            return self.get()

    steps = [lambda link: link.end(1005), lambda link: link.end(4401)]

    def on_open(link: FakeLink) -> None:
        look("open")
        (steps.pop(0) if steps else FakeLink.become_ready)(link)

    def on_close(link: FakeLink) -> None:
        look("close")
        link.end(1000, "Done", EndCause.LOCAL)

    transport.on_open, transport.on_close = on_open, on_close
    for name in ("abort", "retire", "resume", "send"):
        original = getattr(FakeLink, name)

        def spy(self: FakeLink, *arguments: Any, original: Any = original, name: str = name) -> Any:
            look(name)
            return original(self, *arguments)

        monkeypatch.setattr(FakeLink, name, spy)
    spawn = ThreadGroup.spawn

    def spawning(self: ThreadGroup, target: Callable[[], None], name: str) -> threading.Thread:
        look(f"spawn {name.partition('[')[0]}")
        return spawn(self, target, name)

    monkeypatch.setattr(ThreadGroup, "spawn", spawning)
    log_to(lambda message: look("log"))
    pool.observe(session, lambda: look("observer"))
    recorder = Recorder().listen(session)
    session.on("event", lambda envelope: look("callback"))

    pool.connect(Place(), token=Tokens())
    link = transport.links[-1]
    link.owner.link_received(link, [{"id": 1}, SequenceGap(2, 1), LatencyMeasured(1), {"id": 2}, {"id": 3}])
    recorder.wait("event", 3)
    eventually(lambda: link.resumed)
    session.send("x")
    announce_shutdown(link)
    recorder.wait(COMPLETE)
    transport.links[-1].end(1006)
    recorder.wait("online", 2)
    transport.on_open = nothing
    transport.links[-1].end(1006)
    transport.wait_links(6)
    pool.disconnect()
    recorder.wait("disconnected")
    assert wrong == []
    assert seen == {
        *("resolve", "rejected", "get", "refresh", "open", "close", "abort", "retire", "resume", "send"),
        *("spawn llm-connector", "spawn llm-dispatcher", "log", "observer", "callback"),
    }


@pytest.mark.parametrize("wait", ["connect", "disconnect", "disconnect_all", "wait_online", "wait_closed"])
def test_i97_a_log_handler_on_the_readers_thread_cannot_wait_for_itself(
    make: Make, log_to: Callable[[Callable[[str], object]], None], wait: str
) -> None:
    """`disconnect` waited for the end of the socket whose reader it was called on: for ever."""
    pool, transport = make()
    transport.on_open, transport.on_close = nothing, nothing
    session = pool.session()
    caught: list[object] = []

    def handler(message: str) -> None:
        if "-> online" in message:
            try:
                getattr(session if wait == "wait_closed" else pool, wait)()
            except LocalProtocolError as exc:
                caught.append(exc)

    log_to(handler)
    pool.begin_connect(URL)
    reader = Background(transport.wait_links(1)[0].become_ready)
    reader.result()
    assert len(caught) == 1 and session.state is S.ONLINE


# -- memory and threads over time --------------------------------------------------------------------------


def test_i28_1000_cycles_leave_nothing_behind(make: Make) -> None:
    pool, transport = make()
    recorder = Recorder().listen(pool, "disconnected")
    session = pool.session()
    machine = machine_of(session)
    for cycle in range(1000):
        transport.on_open = refuse if cycle % 5 == 4 else FakeLink.become_ready
        if cycle % 5 == 4:
            with pytest.raises(ConnectTimeout):
                pool.connect(URL, timeout=0)
        else:
            pool.connect(URL)
        if cycle % 5 == 3:
            transport.links[-1].end(1003)
        pool.disconnect()
        transport.links.clear()
    recorder.wait("disconnected", 600)
    eventually(lambda: not library_threads())
    assert len(recorder.names) == 600
    assert machine._links == set() and machine._waiters == 0 and machine._observers == ()
    assert not machine.dispatcher._queue and not machine.dispatcher._paused
    assert len(pool.sessions()) == 1 and not pool._env.threads.alive()
    del recorder
    gc.collect()
    alive = [thing for thing in gc.get_objects() if isinstance(thing, (Attempt, FakeLink))]
    assert len(alive) <= 4, f"{len(alive)} runs and sockets are still referred to"


def test_i11_50_reconnects_add_no_listener_and_no_thread(make: Make, waits: list[float]) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    recorder = Recorder().listen(session, "online")
    for number in range(1, 51):
        transport.links[-1].end(1006)
        recorder.wait("online", number)
    assert len(recorder.names) == 50 and len(machine_of(session).listeners.named("online")) == 1
    no_connectors()
    assert [thread.name for thread in library_threads()] == [f"llm-dispatcher[{session.id}]"]
    assert len(machine_of(session)._links) == 1


# -- many threads, random order ----------------------------------------------------------------------------


class WildLink(FakeLink):
    """Reports on the network's thread, like a reader: once, also after an abort."""

    transport: Network

    def open(self) -> None:
        self.transport.opened.append(self)
        self.transport.jobs.put(("open", self))

    def close(self, code: int | None, reason: str | None) -> None:
        self.transport.jobs.put(("close", self))

    def abort(self) -> None:
        self.transport.jobs.put(("abort", self))


class Network(FakeTransport):
    """Plays all readers on one thread, in random order."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.jobs: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self.opened: list[WildLink] = []
        self.trouble: list[BaseException] = []
        self.thread = threading.Thread(target=self.run, name="network")

    def __call__(self, request: OpenRequest, owner: LinkOwner, name: str) -> Link:
        return WildLink(self, request, owner, name)

    def run(self) -> None:
        while True:
            what, link = self.jobs.get()
            if what == "stop":
                return
            try:
                self.play(what, link)
            except BaseException as exc:
                self.trouble.append(exc)

    def play(self, what: str, link: FakeLink) -> None:
        dice = self.random.random()
        if link.ended:
            return
        if what == "open":
            if dice < 0.7:
                link.become_ready()
            elif dice < 0.9:
                link.end(self.random.choice([1005, 1006, 4401, 4410]))
            else:
                self.jobs.put(("open", link))
        elif what == "shutdown":
            link.owner.link_received(link, [{"id": "1"}, SHUTDOWN, {"id": "2"}])
        elif what == "lose":
            link.end(self.random.choice([1000, 1001, 1003, 1006, 1011, 4000, 4001, 4401]), "")
        else:
            link.end(1000 if what == "close" else 1006, "", EndCause.ABORTED)


@pytest.mark.stress
@pytest.mark.parametrize("interval", [None, 1e-6], ids=["", "shaken"])
def test_stress_random_order(
    make: Make, interval: float | None, record_property: Callable[..., None]
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    record_property("seed", seed)
    print("seed", seed)  # noqa: T201  # shown if the test fails
    network = Network(seed)
    pool, _ = make(
        network, backoff_initial=0.0005, backoff_max=0.002, max_retries=3, initial_max_retries=3, queue_size=4
    )
    names = ("a", "b")
    recorders = {name: Recorder().listen(pool.session(name)) for name in names}
    expected = (ConnectError, ConnectionLost, WaitTimeout)
    unexpected: list[BaseException] = []
    seeds = iter(range(seed, seed + 16))
    lock = threading.Lock()

    def chaos() -> None:
        with lock:
            dice = random.Random(next(seeds))
        for _ in range(60):
            name = dice.choice(names)
            try:
                action = dice.randrange(6)
                if action <= 1:
                    pool.connect(URL, name, timeout=dice.choice([0, 0.001, 0.01, 0.05]))
                elif action == 2:
                    pool.wait_online(name, timeout=dice.choice([0, 0.001, 0.01]))
                elif action == 3:
                    pool.disconnect(name)
                else:
                    link = machine_of(pool.session(name)).active
                    if link is not None:
                        network.jobs.put((dice.choice(["lose", "shutdown"]), link))
            except expected:
                pass
            except BaseException as exc:
                unexpected.append(exc)

    before = sys.getswitchinterval()
    sys.setswitchinterval(interval or before)
    network.thread.start()
    try:
        run_together(16, chaos)
        Background(pool.disconnect_all).result()
        no_connectors()
        eventually(lambda: all(link.ended for link in network.opened), "a socket was left open")
    finally:
        sys.setswitchinterval(before)
        network.jobs.put(("stop", None))
        network.thread.join(LONG)
    assert not network.thread.is_alive() and network.trouble == [] and unexpected == []
    eventually(lambda: not library_threads())
    for name in names:
        session = pool.session(name)
        machine = machine_of(session)
        assert session.state is S.IDLE
        assert machine._links == set() and machine._attempt is None and machine._active is None
        assert machine._waiters == 0 and machine.dispatcher._waiting == 0 and not machine.dispatcher._paused
        told = [one for one in recorders[name].names if one not in ("event", "connection_failed")]
        check_order(told)


def check_order(told: list[str]) -> None:
    """Fail unless the state events are ones that a session can tell in this order."""
    online = False
    at = 0
    while at < len(told):
        name = told[at]
        following = told[at + 1] if at + 1 < len(told) else ""
        if name == "online":
            assert not online, told[: at + 1]
            online = True
        elif name == "offline":
            assert following in (TRANSIENT, PERMANENT, REPLACED), told[: at + 2]
            at += 1
            online = False
            if at + 1 < len(told) and told[at + 1] == "disconnected":
                assert following == PERMANENT
                at += 1
        elif name.startswith("event:mercury_shutdown"):
            assert online or name == FAILED, told[: at + 1]
        else:
            # Alone there is only the end of a reconnect, and the 4001 of a replaced socket.
            assert name in (PERMANENT, REPLACED), told[: at + 1]
            assert name == REPLACED or not online
        at += 1


@pytest.mark.stress
def test_stress_close_at_any_moment(make: Make) -> None:
    for seed in range(20):
        network = Network(seed)
        pool, _ = make(network, backoff_initial=0.0005, backoff_max=0.002)
        network.thread.start()
        wrong: list[BaseException] = []

        def chaos(pool: ConnectionPool = pool, wrong: list[BaseException] = wrong) -> None:
            for number in range(20):
                try:
                    pool.connect(URL, "ab"[number % 2] if number % 3 else None, timeout=0.01)
                    pool.disconnect("ab"[number % 2])
                except PoolClosed:
                    return
                except LLMSessionsError:
                    pass
                except BaseException as exc:
                    wrong.append(exc)

        calls = [Background(chaos) for _ in range(6)]
        closers = [Background(pool.close) for _ in range(2)]
        for call in (*closers, *calls):
            call.result()
        eventually(lambda: not library_threads())
        eventually(lambda network=network: all(link.ended for link in network.opened))  # type: ignore[misc]
        network.jobs.put(("stop", None))
        network.thread.join(LONG)
        assert not network.thread.is_alive() and wrong == [] and network.trouble == []
        assert all(machine.state is S.IDLE and not machine._links for machine in pool._machines())
