"""Decide under the lock, act outside it: effects, and the user code that they reach."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import (
    ConnectError,
    Endpoint,
    LocalProtocolError,
    Target,
)
from llm_sessions._sync import ThreadGroup, held_locks
from llm_sessions.pool.core import _act
from llm_sessions.protocol.mercury import (
    EndCause,
    LatencyMeasured,
    SequenceGap,
)
from tests.pool.support import (
    COMPLETE,
    URL,
    Make,
    S,
    announce_shutdown,
    held,
    hold,
    no_connectors,
    nothing,
    refuse,
)
from tests.support import (
    LONG,
    Background,
    FakeLink,
    Recorder,
    eventually,
)

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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_log_handler_that_raises_even_about_the_failure_strands_nobody(
    make: Make, log_to: Callable[[Callable[[str], object]], None]
) -> None:
    """The run is settled even if the connector's thread dies of telling what happened."""
    pool, transport = make(initial_max_retries=0)
    transport.on_open = refuse

    def fail(message: str) -> None:
        if "failed" in message:
            raise SystemError("a handler's mistake")

    log_to(fail)
    with pytest.raises(ConnectError, match="connector failed") as caught:
        pool.connect(URL, timeout=LONG)
    assert isinstance(caught.value.__cause__, SystemError)
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

    def spawning(
        self: ThreadGroup, target: Callable[[], None], name: str, **options: bool
    ) -> threading.Thread:
        look(f"spawn {name.partition('[')[0]}")
        return spawn(self, target, name, **options)

    monkeypatch.setattr(ThreadGroup, "spawn", spawning)
    log_to(lambda message: look("log"))
    forget = pool.observe(session, lambda: look("observer"))
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
    transport.on_open = hold
    transport.links[-1].end(1006)
    held(transport, 6)
    pool.disconnect()
    recorder.wait("disconnected")
    forget()  # closing the pool is told, too, and nothing can be looked at after that
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
    transport.on_open, transport.on_close = hold, nothing
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
    reader = Background(held(transport, 1)[0].become_ready)
    reader.result()
    assert len(caught) == 1 and session.state is S.ONLINE
