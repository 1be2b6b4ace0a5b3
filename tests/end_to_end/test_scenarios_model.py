"""D13: connects, disconnects, drops and races of these in any order, beside a model of what must be there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from llm_sessions import ALL_SESSIONS, ConnectCancelled, ConnectionPool, PoolConfig, SessionState
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, QUICK, Background, Recorder, eventually

NAMES = st.sampled_from(["a", "b"])


class Sessions(RuleBasedStateMachine):
    """The model is a set: the sessions that somebody has connected and nobody has disconnected since."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.server = self.stack.enter_context(LocalServer())
        self.pool = self.stack.enter_context(ConnectionPool("token", config=PoolConfig(**QUICK)))
        self.heard = Recorder().listen(self.pool, session_id=ALL_SESSIONS)
        self.wanted: set[str] = set()

    def connect(self, name: str) -> None:
        self.pool.connect(self.server.url(name), name, timeout=LONG)

    @rule(name=NAMES)
    def somebody_connects(self, name: str) -> None:
        self.connect(name)
        self.wanted.add(name)

    @rule(name=NAMES)
    def somebody_disconnects(self, name: str) -> None:
        self.pool.disconnect(name)
        self.wanted.discard(name)
        assert self.pool.session(name).state is SessionState.IDLE

    @rule(name=NAMES)
    def the_connection_drops(self, name: str) -> None:
        self.server.drop(name)

    @rule(name=NAMES, order=st.permutations(["connect", "disconnect", "connect", "drop"]))
    def all_of_it_at_once(self, name: str, order: list[str]) -> None:
        calls: dict[str, Callable[[], object]] = {
            "connect": lambda: self.may_be_cancelled(name),
            "disconnect": lambda: self.pool.disconnect(name),
            "drop": lambda: self.server.drop(name),
        }
        for call in [Background(calls[what]) for what in order]:
            call.result()
        self.somebody_connects(name)

    def may_be_cancelled(self, name: str) -> None:
        with contextlib.suppress(ConnectCancelled):
            self.connect(name)

    @invariant()
    def what_is_wanted_is_there_and_nothing_else(self) -> None:
        for name in self.wanted:
            self.pool.wait_online(name, timeout=LONG)
        eventually(lambda: sorted(one.session for one in self.server.live()) == sorted(self.wanted))
        online = {name for name, one in self.pool.sessions().items() if one.online}
        assert online <= self.wanted

    def teardown(self) -> None:
        self.pool.disconnect_all()
        assert self.pool.stats().online == 0
        connected = len(self.server.connections())
        self.stack.close()
        assert len(self.server.connections()) == connected, "something came up behind the end"
        # A goodbye to one that was not online yet says offline, too.
        assert self.heard.names.count("online") <= self.heard.names.count("offline")


class TestD13(Sessions.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
