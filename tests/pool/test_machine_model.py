"""The session machine without a thread: connectors, readers, callers and the server in any order.

The test is the connector and the readers: it opens links, makes them ready, has them bring messages and end,
while callers connect and disconnect. The server publishes each message on every socket that is ready.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llm_sessions import ConnectError, PoolConfig
from llm_sessions.connection.transport import Traffic
from llm_sessions.pool.attempt import Attempt, RunKind
from llm_sessions.pool.environment import Environment
from llm_sessions.pool.machine import SessionMachine
from llm_sessions.pool.sources import Target, as_endpoint, as_provider
from llm_sessions.protocol.closing import CloseMeaning, classify_close
from llm_sessions.protocol.mercury import EndCause, Ended
from llm_sessions.protocol.state import BUSY, ONLINE
from tests.chaos.ledger import Entry, grammar
from tests.pool.support import SHUTDOWN, URL, S

LOST = [(1001, ""), (1006, ""), (1000, "idle"), (4000, "moved"), (4401, "")]
ENDED = [(1000, "bye"), (1003, ""), (4000, "replaced")]
GONE = [(4001, "")] * 3
CLOSES = st.sampled_from([*LOST, *ENDED, *GONE])


class PlainLink:
    """A `Link` that reports what the test says, when it says so."""

    time_offset = None
    traffic = Traffic()

    def __init__(self, number: int) -> None:
        self.number = number
        self.ready = self.ended = self.aborted = self.closed = False
        self.waiting: list[int] = []  # copies of messages that were sent on it and not read yet

    def __repr__(self) -> str:
        return f"link {self.number}"

    def close(self, code: int | None, reason: str | None) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def retire(self, seconds: float) -> None:
        assert self.ready

    @property
    def silent(self) -> bool:
        """Whether nothing that comes on it counts any more."""
        return self.ended or self.aborted or self.closed


class NoThreads:
    """Threads that are never run: the test does what they would."""

    def spawn(self, target: Callable[[], None], name: str, *, calls_back: bool = False) -> None:
        assert name.startswith("llm-connector[")


class Sessions(RuleBasedStateMachine):
    """One session; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[PlainLink] = []
        self.attempts: list[Attempt] = []
        self.numbers = itertools.count(1)
        self.delivered: list[int] = []
        self.told: list[Entry] = []

    @initialize(retries=st.sampled_from([None, 0, 2]))
    def begin(self, retries: int | None) -> None:
        config = PoolConfig(jitter=False, max_retries=retries, initial_max_retries=retries)
        env = Environment(config, as_provider("token"), transport=lambda *_: None, clock=lambda: 0.0)  # type: ignore[arg-type, return-value]
        env.threads = NoThreads()  # type: ignore[assignment]
        self.endpoint = as_endpoint(URL, allow_insecure=True)
        self.machine = SessionMachine("a", env)
        dispatcher: Any = self.machine.dispatcher
        dispatcher.put_state = self.be_told
        dispatcher.put_batch = self.be_brought

    def be_told(self, name: str, payload: Any) -> bool:
        number = payload.number if name == "online" else getattr(payload, "code", 0)
        self.told.append(Entry(name, number))
        return False

    def be_brought(self, batch: list[dict[str, Any]]) -> bool:
        self.delivered += [message["id"] for message in batch]
        return False

    # -- what there is

    @property
    def run(self) -> Attempt | None:
        return self.machine._attempt

    def opening(self) -> PlainLink | None:
        link: Any = self.run.link if self.run is not None else None
        return link

    def heard(self) -> list[PlainLink]:
        return [link for link in self.links if link.ready and not link.silent]

    def note(self) -> None:
        if self.run is not None and self.run not in self.attempts:
            self.attempts.append(self.run)

    def read(self, link: PlainLink) -> None:
        """What was sent on a socket before something else comes before it."""
        while link.waiting:
            self.machine.link_received(link, [{"id": link.waiting.pop(0)}])  # type: ignore[arg-type]

    # -- callers

    @rule()
    def somebody_connects(self) -> None:
        before = self.machine.state
        begun = self.machine.begin_connect(self.endpoint, None)
        assert begun is (before is not S.DISCONNECTING)
        if before in (S.IDLE, S.OFFLINE):
            assert self.machine.state is S.CONNECTING
        self.note()

    @rule(code=st.sampled_from([None, 3050]))
    def somebody_disconnects(self, code: int | None) -> None:
        before = self.machine.state
        ticket = self.machine.begin_disconnect(code, None)
        assert self.machine.state in (S.IDLE, S.DISCONNECTING)
        assert (ticket is None) == (before in (S.IDLE, S.OFFLINE))
        if before in BUSY:
            assert all(link.silent for link in self.links)

    # -- the connector

    @precondition(lambda self: self.run is not None and self.opening() is None)
    @rule()
    def the_connector_opens_a_link(self) -> None:
        run = self.run
        assert run is not None
        run.number += 1
        run.target = Target(URL)
        link: Any = PlainLink(len(self.links))
        self.links.append(link)
        assert self.machine.adopt(run, link)

    @precondition(lambda self: any(run.cancelled for run in self.attempts))
    @rule()
    def a_cancelled_connector_wakes_up(self) -> None:
        for run in [one for one in self.attempts if one.cancelled]:
            before, told = self.machine.state, len(self.told)
            link: Any = PlainLink(-1)
            assert not self.machine.adopt(run, link)
            self.machine.tries_again(run)
            self.machine.give_up(run, ConnectError("a", "too late"))
            assert (self.machine.state, len(self.told)) == (before, told)

    @precondition(lambda self: self.opening() is not None)
    @rule()
    def the_link_becomes_ready(self) -> None:
        link, run = self.opening(), self.run
        assert link is not None and run is not None
        kind, onlines = run.kind, self.count("online")
        link.ready = True
        self.machine.link_ready(link)  # type: ignore[arg-type]
        assert self.machine.state is S.ONLINE and self.machine.active is link
        assert self.count("online") - onlines == (kind is not RunKind.SWITCH)

    @precondition(lambda self: self.opening() is not None)
    @rule(close=CLOSES, gives_up=st.booleans())
    def the_attempt_fails(self, close: tuple[int, str], gives_up: bool) -> None:
        link, run = self.opening(), self.run
        assert link is not None and run is not None
        link.ended = True
        self.machine.link_ended(link, Ended(*close, EndCause.PEER))  # type: ignore[arg-type]
        error = ConnectError("a", "it closed", code=close[0], reason=close[1])
        _, left = self.machine.attempt_failed(run, error)
        if gives_up or not left:
            self.machine.give_up(run, error)
            assert self.run is not run
        else:
            self.machine.tries_again(run)
            assert self.run is run
        self.note()

    def count(self, name: str) -> int:
        return sum(entry.kind == name for entry in self.told)

    # -- the server

    @rule()
    def the_server_publishes(self) -> None:
        number = next(self.numbers)
        for link in self.heard():
            link.waiting.append(number)

    @precondition(lambda self: any(link.waiting for link in self.heard()))
    @rule(data=st.data(), count=st.integers(1, 4))
    def a_link_brings_messages(self, data: st.DataObject, count: int) -> None:
        link = data.draw(st.sampled_from([one for one in self.heard() if one.waiting]))
        brought, link.waiting = link.waiting[:count], link.waiting[count:]
        self.machine.link_received(link, [{"id": number} for number in brought])  # type: ignore[arg-type]
        assert set(brought) <= set(self.delivered)

    @precondition(lambda self: self.heard())
    @rule(data=st.data())
    def a_shutdown_is_announced(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from(self.heard()))
        self.read(link)
        counts = self.machine.state is S.ONLINE and link is self.machine.active
        before = self.machine.state
        self.machine.link_received(link, [SHUTDOWN])  # type: ignore[arg-type]
        assert self.machine.state is (S.SWITCHING if counts else before)
        self.note()

    @precondition(lambda self: any(link.ready and not link.ended for link in self.links))
    @rule(data=st.data(), close=CLOSES)
    def a_socket_ends(self, data: st.DataObject, close: tuple[int, str]) -> None:
        link = data.draw(st.sampled_from([one for one in self.links if one.ready and not one.ended]))
        active, before, told = self.machine.active is link, self.machine.state, len(self.told)
        link.ended = True
        self.machine.link_ended(link, Ended(*close, EndCause.PEER))  # type: ignore[arg-type]
        self.note()
        said = [entry.kind for entry in self.told[told:]]
        if before is S.DISCONNECTING:
            assert self.machine.state in (S.IDLE, S.DISCONNECTING)
        elif not active or (before is S.SWITCHING and close[0] == 4001):
            assert self.machine.state is before
            assert said in ([], ["offline.replaced"])
        else:
            meaning = classify_close(*close)
            lost = meaning in (CloseMeaning.TRANSIENT, CloseMeaning.UNAUTHORIZED)
            assert self.machine.state is (S.RECONNECTING if lost else S.OFFLINE)
            assert said[0] == "offline"

    # -- several steps at once, so that more happens in a few

    @rule()
    def it_comes_online(self) -> None:
        if self.machine.state in (S.IDLE, S.OFFLINE):
            self.somebody_connects()
        if self.run is not None and self.opening() is None:
            self.the_connector_opens_a_link()
        if self.opening() is not None:
            self.the_link_becomes_ready()

    @precondition(lambda self: self.machine.state is S.ONLINE)
    @rule()
    def it_is_switched_over(self) -> None:
        active: Any = self.machine.active
        self.read(active)
        self.machine.link_received(active, [SHUTDOWN])
        self.note()
        self.the_connector_opens_a_link()
        self.the_link_becomes_ready()

    @precondition(lambda self: len(self.heard()) > 1)
    @rule(data=st.data())
    def a_message_overtakes_itself(self, data: st.DataObject) -> None:
        """One socket has it at once, the others some time."""
        self.the_server_publishes()
        link = data.draw(st.sampled_from(self.heard()))
        self.read(link)

    # -- what always holds

    @invariant()
    def every_message_is_delivered_once(self) -> None:
        assert len(self.delivered) == len(set(self.delivered)), self.delivered

    @invariant()
    def the_events_tell_one_story(self) -> None:
        if hasattr(self, "machine"):
            assert list(grammar(self.told)) == []

    @invariant()
    def the_state_fits_what_there_is(self) -> None:
        if not hasattr(self, "machine"):
            return
        machine = self.machine
        assert (self.run is not None) == (machine.state in (S.CONNECTING, S.RECONNECTING, S.SWITCHING))
        active: Any = machine.active
        if machine.state in ONLINE and machine._kept_close is None:
            assert active is not None and active.ready and not active.silent
        if machine.state in (S.IDLE, S.OFFLINE):
            assert active is None and not machine._links
        if machine.state is S.DISCONNECTING:
            assert machine._links
        for link in self.links:  # nobody forgets a socket
            assert link in machine._links or link.ended or link.aborted

    @invariant()
    def every_run_has_one_outcome(self) -> None:
        for run in self.attempts:
            assert run.settled == (run is not self.run)


class TestSessions(Sessions.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
