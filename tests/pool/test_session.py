"""The handle of one session."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import (
    ConfigurationError,
    ConnectionLost,
    ConnectionPool,
    NotOnline,
    PoolClosed,
    SessionState,
    WaitTimeout,
    _fork,
)
from llm_sessions.connection.transport import LinkBroken
from llm_sessions.pool.session import DEFAULT_TIMEOUT, check_timeout
from llm_sessions.protocol.mercury import LatencyMeasured
from tests.support import LONG, SHORT, Background, FakeLink, FakeTransport, Recorder, eventually, waiting_for

URL = "ws://localhost/socket?token=s3cret"
Make = Callable[..., tuple[ConnectionPool, FakeTransport]]


def test_a_session_tells_where_it_stands(make: Make) -> None:
    pool, transport = make()
    session = pool.session("s")
    assert (session.id, session.state, session.online, session.url) == ("s", SessionState.IDLE, False, None)
    assert session.last_error is session.latency is session.time_offset is None
    assert repr(session) == "<Session 's' idle>"
    pool.connect(URL, "s")
    assert (session.state, session.online, session.url) == (SessionState.ONLINE, True, URL)
    assert "s3cret" not in repr(session) + repr(pool)
    (link,) = transport.links
    link.owner.link_received(link, [LatencyMeasured(0.5)])
    assert session.latency == 0.5 and session.time_offset is None
    link.time_offset = -1500.0
    assert session.time_offset == -1.5


def test_a_session_object_lives_as_long_as_its_pool(make: Make) -> None:
    pool, _ = make()
    session = pool.connect(URL)
    recorder = Recorder().listen(session, "online")
    pool.disconnect()
    assert pool.connect() is session is pool.session()
    recorder.wait("online")
    assert recorder.names == ["online"]


# -- send ---------------------------------------------------------------------------------------------------


def test_send_takes_objects_and_text(make: Make) -> None:
    pool, transport = make(send_timeout=3)
    session = pool.connect(URL)
    session.send({"a": [1, "ü"]})
    session.send("ü")
    sent = transport.links[0].sent
    assert sent[0].decode().replace(" ", "") in ('{"a":[1,"ü"]}', '{"a":[1,"\\u00fc"]}')
    assert sent[1] == "ü".encode()


@pytest.mark.parametrize(
    "message", [5, None, b"x", ["x"], {"a": object()}, {"a": {1, 2}}, "\ud800", {("a",): 1}], ids=range(8)
)
def test_what_cannot_be_sent_is_refused_whatever_the_state(make: Make, message: Any) -> None:
    pool, transport = make()
    session = pool.session()
    for _ in range(2):
        with pytest.raises(ConfigurationError) as caught:
            session.send(message)
        assert caught.value.argument == "message"
        pool.connect(URL)
    assert transport.links[0].sent == []


def test_an_object_within_itself_is_refused(make: Make) -> None:
    pool, _ = make()
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(ConfigurationError):
        pool.connect(URL).send(endless)


def test_send_while_not_online(make: Make) -> None:
    pool, transport = make()
    session = pool.session()
    with pytest.raises(NotOnline, match="idle"):
        session.send("x")
    pool.connect(URL)
    transport.links[0].end(1003)
    with pytest.raises(NotOnline, match="offline"):
        session.send("x")


def test_send_on_a_socket_that_breaks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _ = make(send_timeout=3)
    session = pool.connect(URL)
    cause = OSError("reset")
    timeouts: list[float | None] = []
    started = [False, True]

    def send(self: FakeLink, payload: bytes, timeout: float | None) -> None:
        timeouts.append(timeout)
        raise LinkBroken("the connection ended", started=started.pop()) from cause

    monkeypatch.setattr(FakeLink, "send", send)
    for kind in (ConnectionLost, NotOnline):
        with pytest.raises(kind) as caught:
            session.send("x")
        assert caught.value.__cause__ is cause and "the connection ended" in str(caught.value)
    assert timeouts == [3, 3]


# -- waits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "1", True, b"", 10**9])
def test_a_bad_timeout_is_refused(make: Make, timeout: Any) -> None:
    pool, transport = make()
    session = pool.session()
    for call in (
        lambda: session.wait_online(timeout),
        lambda: session.wait_closed(timeout),
        lambda: pool.wait_online(timeout=timeout),
        lambda: pool.connect(URL, timeout=timeout),
        lambda: pool.close(timeout),
    ):
        with pytest.raises(ConfigurationError) as caught:
            call()
        assert caught.value.argument == "timeout"
    assert session.state is SessionState.IDLE and transport.links == []
    pool.session()  # close refused too


def test_the_default_timeout_is_the_pools(make: Make) -> None:
    assert check_timeout(DEFAULT_TIMEOUT, 7) == 7 and check_timeout(DEFAULT_TIMEOUT, None) is None
    assert check_timeout(None, 7) is None and check_timeout(0, 7) == 0
    assert repr(DEFAULT_TIMEOUT) == "<the pool's wait_timeout>"
    pool, _ = make(wait_timeout=SHORT)
    with pytest.raises(WaitTimeout, match=str(SHORT)):
        pool.session().wait_online()


def test_wait_closed(make: Make) -> None:
    pool, transport = make()
    session = pool.session()
    session.wait_closed(0)
    pool.connect(URL)
    with pytest.raises(WaitTimeout, match="still online"):
        session.wait_closed(0)
    call = Background(lambda: session.wait_closed())
    transport.links[0].end(1003)
    call.result()
    session.wait_closed(0)


# -- listeners ----------------------------------------------------------------------------------------------


def test_on_works_as_a_call_and_as_a_decorator(make: Make) -> None:
    pool, transport = make()
    session = pool.session("x")
    recorder = Recorder()
    first = recorder.named("call")
    assert session.on("event", first) is first
    second = recorder.named("decorator")
    assert session.once("event")(second) is second
    pool.connect(URL, "x")
    (link,) = transport.links
    for _ in range(2):
        link.owner.link_received(link, [{"id": "1"}])
    recorder.wait("call", 2)
    assert recorder.names == ["call", "decorator", "call"]


def test_i34_the_sessions_own_suffix_is_allowed_and_no_other(make: Make) -> None:
    pool, _ = make()
    session = pool.session("x")
    recorder = Recorder()
    callback = recorder.named("online")
    session.on("online:x", callback)
    session.on("online", callback)
    for call in (session.on, session.once, session.off):
        with pytest.raises(ConfigurationError) as caught:
            call("online:y", callback)
        assert caught.value.argument == "event"
    pool.connect(URL, "x")
    recorder.wait("online", 2)
    session.off("online:x", callback)
    pool.disconnect("x")
    pool.connect(None, "x")
    eventually(lambda: not session._machine.dispatcher._queue)
    assert recorder.names == ["online", "online"]


@pytest.mark.parametrize("event", ["onlin", "", "event:", "event:a:b:c", 5, None, "online:", "online:a:b"])
def test_an_event_that_cannot_exist_is_refused(make: Make, event: Any) -> None:
    pool, _ = make()
    for target in (pool, pool.session("b")):
        for call in (target.on, target.once, target.off):
            with pytest.raises(ConfigurationError) as caught:
                call(event, print)
            assert caught.value.argument == "event"


def test_a_callback_must_be_callable(make: Make) -> None:
    pool, _ = make()
    for target in (pool, pool.session()):
        for call in (target.on, target.once):
            with pytest.raises(ConfigurationError) as caught:
                call("online", 5)
            assert caught.value.argument == "callback"


def test_off_of_what_is_not_there_is_ignored(make: Make) -> None:
    pool, _ = make()
    pool.session().off("online", print)
    pool.session().off("online")


# -- closed and forked --------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Any], object]] = {
    "send": lambda session: session.send("x"),
    "wait_online": lambda session: session.wait_online(0),
    "disconnect": lambda session: session.disconnect(),
    "on": lambda session: session.on("online", print),
    "once": lambda session: session.once("online", print),
    "off": lambda session: session.off("online", print),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_i39_every_call_of_a_closed_pools_session_is_refused(
    make: Make, call: Callable[[Any], object]
) -> None:
    pool, _ = make()
    session = pool.connect(URL)
    pool.close()
    with pytest.raises(PoolClosed):
        call(session)
    session.wait_closed(0)  # closed it is
    assert session.state is SessionState.IDLE and not session.online and session.time_offset is None


@pytest.mark.parametrize(
    "call", [*CALLS.values(), lambda session: session.wait_closed(0)], ids=[*CALLS, "wait_closed"]
)
def test_t7_a_forked_childs_calls_are_refused_before_any_lock(
    make: Make, monkeypatch: pytest.MonkeyPatch, call: Callable[[Any], object]
) -> None:
    pool, _ = make()
    session = pool.connect(URL)
    with monkeypatch.context() as fork, session._machine._lock, session._machine.listeners._lock:
        fork.setattr(_fork, "_generation", _fork.generation() + 1)
        with pytest.raises(PoolClosed, match="fork"):
            Background(lambda: call(session)).result(LONG)
    assert session.online and threading.current_thread() is threading.main_thread()


def test_connecting_again_without_a_url_uses_the_same_token(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL, session_id="a", token="its-own")
    session.disconnect()
    pool.connect(session_id="a")
    pool.disconnect("a")
    pool.connect(URL, session_id="a")
    assert [link.request.token for link in transport.links] == [
        "Bearer its-own",
        "Bearer its-own",
        "Bearer token",
    ]


def test_a_wait_for_the_end_is_not_lost_to_a_quick_reconnect(make: Make) -> None:
    pool, _ = make()
    session = pool.connect(URL, session_id="a")
    for _ in range(100):
        waiter = Background(lambda: session.wait_closed(LONG))
        eventually(lambda: waiting_for(session._machine._changed))
        session.disconnect()
        pool.connect(session_id="a")  # perhaps before the waiter has woken
        waiter.result()
