"""What callers ask of a session, from any thread and at any moment: to connect, to wait, to disconnect."""

from __future__ import annotations

import gc
import logging
import random
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
    Offline,
    PoolClosed,
    Replaced,
    Target,
    WaitTimeout,
)
from llm_sessions._sync import held_locks
from llm_sessions.connection.transport import Link, LinkOwner, OpenRequest
from llm_sessions.pool.attempt import Attempt
from llm_sessions.protocol.mercury import (
    EndCause,
)
from tests.pool.support import (
    FAILED,
    GOODBYE,
    PERMANENT,
    REPLACED,
    SHUTDOWN,
    TRANSIENT,
    URL,
    Make,
    S,
    announce_shutdown,
    held,
    hold,
    machine_of,
    no_connectors,
    nothing,
    refuse,
    threads_but_dispatchers,
    waiting,
)
from tests.support import (
    LONG,
    SHORT,
    Background,
    FakeLink,
    FakeTransport,
    Gate,
    Recorder,
    ctrl_c,
    eventually,
    library_threads,
    run_together,
)

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
    transport.on_open = hold
    calls = [Background(lambda: pool.connect(URL)) for _ in range(5)]
    waiting(pool.session(), 5)
    held(transport, 1)
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
        (hold if link.name.startswith("a#") else FakeLink.become_ready)(link)

    transport.on_open = on_open
    a, b = (Background(lambda name=name: pool.connect(URL, name)) for name in "ab")  # type: ignore[misc]
    gate.wait_arrived()
    eventually(lambda: any(hasattr(link, "held") for link in transport.links))
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
    assert machine._attempt is None and machine._links == {} and machine._waiters == 0
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
    opened: list[FakeLink] = []
    transport.on_open = opened.append
    with pytest.raises(ConnectTimeout) as caught:
        pool.connect(URL, timeout=0)
    assert caught.value.attempts == 0 and caught.value.__cause__ is None
    assert pool.session().state is S.OFFLINE
    eventually(lambda: not library_threads())
    assert all(link.aborted.is_set() for link in opened)


def test_connect_timeout_while_reconnecting_chains_what_was_lost(make: Make) -> None:
    pool, transport = make(backoff_initial=3600, backoff_max=3600)
    session = pool.connect(URL)
    transport.on_open = hold
    transport.links[0].end(1001, "bye")
    with pytest.raises(ConnectTimeout, match="1001 bye") as caught:
        pool.connect(URL, timeout=SHORT)
    assert isinstance(caught.value.__cause__, ConnectionLost)
    assert session.state is S.RECONNECTING, "it belongs to the session"
    with pytest.raises(WaitTimeout, match="1001 bye") as waited:
        session.wait_online(SHORT)
    assert isinstance(waited.value.__cause__, ConnectionLost)
    assert session.state is S.RECONNECTING
    held(transport, 2)[1].become_ready()
    assert session.online


def test_another_endpoint_needs_a_disconnect(make: Make) -> None:
    pool, transport = make()
    other = "ws://localhost/other?token=s3cret"
    session = pool.connect(URL)
    for trigger in (lambda: None, lambda: announce_shutdown(transport.links[0])):
        transport.on_open = hold
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
    transport.on_open = hold
    transport.links[0].end(1006)
    call = Background(lambda: pool.connect(url))
    waiting(session, 1)
    held(transport, 2)[1].become_ready()
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
    transport.on_open = hold
    states: list[S] = []
    session = pool.session()
    forget = pool.observe(session, lambda: states.append(session.state))
    patient = Background(lambda: pool.connect(URL, timeout=0.2))
    (link,) = held(transport, 1)
    waiting(session, 1)
    with pytest.raises(ConnectTimeout):
        pool.connect(URL, timeout=0)
    assert session.state is S.CONNECTING and not link.aborted.is_set()
    assert isinstance(patient.error(), ConnectTimeout)
    assert session.state is S.OFFLINE and link.aborted.is_set()
    assert states == [S.CONNECTING, S.OFFLINE]
    assert isinstance(session.last_error, ConnectTimeout)
    forget()
    no_connectors()


def test_t16_a_wait_online_counts_as_a_caller(make: Make) -> None:
    pool, transport = make()
    transport.on_open = hold
    session = pool.session()
    watcher = Background(lambda: session.wait_online(LONG))
    waiting(session, 1)
    with pytest.raises(ConnectTimeout):
        pool.connect(URL, timeout=SHORT)
    assert session.state is S.CONNECTING
    held(transport, 1)[0].become_ready()
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
    transport.on_open = hold
    assert pool.begin_connect(URL) is True
    with pytest.raises(ConnectTimeout):
        pool.connect(URL, timeout=SHORT)
    assert pool.session().state is S.CONNECTING
    held(transport, 1)[0].become_ready()
    assert pool.is_online() and pool.begin_connect() is True


@pytest.mark.parametrize("newcomer_first", [True, False])
def test_t16_a_newcomer_gets_the_old_run_or_a_fresh_one_never_a_dead_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, newcomer_first: bool
) -> None:
    pool, transport = make()
    transport.on_open = hold
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
        (link,) = held(transport, 1)
        assert not link.aborted.is_set()
    else:
        held(transport, 1)
        gate.open()
        assert isinstance(leaver.error(), ConnectTimeout)
        newcomer = Background(lambda: pool.connect(URL, timeout=LONG))
        old, link = held(transport, 2)
        assert old.aborted.is_set()
    link.become_ready()
    assert newcomer.result().online


def test_t16_a_run_that_succeeds_while_its_last_caller_leaves(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, transport = make()
    transport.on_open = hold
    machine, gate = machine_of(pool.session()), Gate()
    decide, leave = machine._decide, machine._leave

    def slow(decision: Any, *arguments: Any) -> Any:
        if decision == leave:
            gate.pass_through()
        return decide(decision, *arguments)

    monkeypatch.setattr(machine, "_decide", slow)
    call = Background(lambda: pool.connect(URL, timeout=SHORT))
    gate.wait_arrived()
    held(transport, 1)[0].become_ready()
    gate.open()
    assert call.result().online


def test_t5_ctrl_c_in_the_last_caller_ends_a_first_run(plain_locks: None, make: Make) -> None:
    pool, transport = make()
    transport.on_open = hold
    session = pool.session()

    def interruptible() -> bool:
        waiting(session, 1)
        return session.state is S.IDLE or bool(held(transport, 1))

    for call in (lambda: pool.connect(URL, timeout=LONG), lambda: session.wait_online(LONG)):
        if session.state is not S.IDLE:
            pool.disconnect()
        with ctrl_c(interruptible):
            call()
        assert machine_of(session)._waiters == 0
    no_connectors()
    assert transport.links[0].aborted.is_set()


def test_t5_ctrl_c_strands_no_other_caller(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, transport = make()
    transport.on_open = hold
    session = pool.session()
    other = Background(lambda: pool.connect(URL, timeout=LONG))
    waiting(session, 1)
    wait_settled = Attempt.wait_settled

    def interrupted(self: Any, timeout: float | None = None) -> Any:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return wait_settled(self, timeout)

    monkeypatch.setattr(Attempt, "wait_settled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.connect(URL)
    assert machine_of(session)._waiters == 1 and session.state is S.CONNECTING
    held(transport, 1)[0].become_ready()
    assert other.result().online


def test_t5_ctrl_c_alone_leaves_the_session_offline(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, transport = make()
    transport.on_open = hold

    def interrupted(self: Any, timeout: float | None = None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Attempt, "wait_settled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.connect(URL)
    assert pool.session().state is S.OFFLINE and machine_of(pool.session())._waiters == 0
    assert isinstance(pool.session().last_error, ConnectCancelled)
    no_connectors()


# -- wait_online -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "left"), [(1008, S.OFFLINE), (1006, S.RECONNECTING)])
@pytest.mark.parametrize("interval", [None, 1e-6], ids=["", "shaken"])
def test_t17_online_for_an_instant_is_not_lost(
    make: Make, interval: float | None, code: int, left: S
) -> None:
    pool, transport = make()
    session = pool.session()

    def flash(link: FakeLink) -> None:
        if session.state is S.CONNECTING:  # and what follows it is not online
            link.become_ready()
            link.end(code, "only an instant")

    transport.on_open = flash
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval or before)
    try:
        for _ in range(200):
            waiter = Background(lambda: session.wait_online(LONG))
            waiting(session, 1)
            pool.begin_connect(URL)
            assert waiter.result() is session
            eventually(lambda: session.state is left)
            pool.disconnect()
    finally:
        sys.setswitchinterval(before)


def test_wait_online_returns_at_once_when_online_or_switching(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    assert session.wait_online(0) is session
    transport.on_open = hold
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
    transport.on_open = hold
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
        self.transport.on_open = hold
        self.pool.begin_connect(URL)
        held(self.transport, 1)

    def connecting_backoff(self) -> None:
        self.transport.on_open = refuse
        self.pool.begin_connect(URL)
        eventually(lambda: self.session.last_error)

    def online(self) -> None:
        self.pool.connect(URL)

    def switching(self) -> None:
        self.online()
        self.transport.on_open = hold
        announce_shutdown(self.transport.links[0])
        held(self.transport, 2)

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
        self.transport.on_open = hold
        self.transport.links[0].end(1006)
        held(self.transport, 2)


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
    assert machine_of(session)._links == {} and machine_of(session)._attempt is None
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
    transport.on_open = hold
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
    no_connectors()  # the first run's may still be ending
    assert len(transport.links) == 1 and not threads_but_dispatchers()


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
    transport.on_open = hold
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


# -- memory and threads over time --------------------------------------------------------------------------


def runs_and_sockets() -> list[object]:
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, (Attempt, FakeLink))]


def test_i28_1000_cycles_leave_nothing_behind(make: Make) -> None:
    before = len(runs_and_sockets())
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
    assert machine._links == {} and machine._waiters == 0 and machine._observers == ()
    assert not machine.dispatcher._queue and not machine._delivery.held
    assert len(pool.sessions()) == 1 and not pool._env.threads.alive()
    del recorder
    more = len(runs_and_sockets()) - before
    assert more <= 4, f"{more} runs and sockets are still referred to"


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
        assert machine._links == {} and machine._attempt is None and machine._active is None
        assert machine._waiters == 0 and machine._delivery.waiting == 0 and not machine._delivery.held
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


def test_the_log_tells_of_a_connect_before_anything_of_its_attempts(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llm_sessions")
    pool, transport = make(initial_max_retries=0)
    transport.on_open = refuse
    threads = pool._env.threads
    spawn = threads.spawn

    def spawn_and_let_run(target: Callable[[], None], name: str, **options: bool) -> threading.Thread:
        thread = spawn(target, name)
        thread.join(LONG)  # it runs to its end before its starter goes on
        return thread

    threads.spawn = spawn_and_let_run  # type: ignore[method-assign]
    with pytest.raises(ConnectError):
        pool.connect(URL)
    assert [record.getMessage().partition("] ")[2] for record in caplog.records] == [
        "idle -> connecting",
        "attempt 1 failed: nobody home",
        "connecting -> offline: nobody home",
    ]


def test_what_fails_after_a_new_connect_makes_a_line_at_once(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pool, transport = make(initial_max_retries=0)
    transport.on_open = refuse
    for _ in range(3):
        with pytest.raises(ConnectError):
            pool.connect(URL)
    assert [record.levelname for record in caplog.records if "failed" in record.message] == ["WARNING"] * 3


def test_i97_a_log_handler_on_the_readers_thread_must_not_wait_for_its_session(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    (link,) = transport.links

    def on_the_reader() -> None:
        link.owner.link_reading(link)
        pool.connect(URL, session.id)

    assert isinstance(Background(on_the_reader).error(), LocalProtocolError)


def test_a_reason_of_the_servers_stays_in_its_line(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llm_sessions.pool")
    pool, transport = make()
    pool.connect(URL)
    transport.links[0].end(1003, "no\r\n2026-01-01 ERROR forged")
    assert caplog.messages[-1].endswith("online -> offline: 1003 no  2026-01-01 ERROR forged")
