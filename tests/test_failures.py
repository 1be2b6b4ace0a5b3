"""docs/failures.md is true: every row of its tables is made to happen, and compared with what it says."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import itertools
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

import llm_sessions
from llm_sessions import (
    ConnectError,
    ConnectionLost,
    ConnectionPool,
    Endpoint,
    NotAuthorized,
    PoolConfig,
    Session,
    SessionState,
    Target,
    WaitTimeout,
)
from llm_sessions.connection.transport import AttemptFailed
from llm_sessions.protocol import closing
from llm_sessions.protocol.closing import FAILURES, CloseMeaning, Failure, Retried, classify_close
from llm_sessions.protocol.events import STATE_EVENTS
from llm_sessions.protocol.frames import FrameDecoder
from llm_sessions.protocol.mercury import Dropped, EndCause, SequenceGap
from llm_sessions.testing.server import LocalServer, ServerConnection
from tests.documents import ROOT, blocks, languages, read, table_rows
from tests.failing import WAYS, Place, Tokens, Way, World, raising
from tests.pool.support import (
    COMPLETE,
    FAILED,
    IMMINENT,
    URL,
    announce_shutdown,
    machine_of,
    no_connectors,
    refuse,
    waiting,
)
from tests.support import LONG, SHORT, Background, FakeLink, Gate, Recorder, eventually, fake_pool

PAGE = read("docs/failures.md")
MakePool = Callable[..., ConnectionPool]
Line = tuple[str, str]  # level and text

EVENTS = sorted(STATE_EVENTS - {"ping-pong-latency"})
SHORT_NAMES = {"imminent": IMMINENT, "complete": COMPLETE, "failed": FAILED}


# -- reading the page ----------------------------------------------------------------------------------------


def table(title: str, columns: int) -> list[list[str]]:
    """Return the rows under a heading that have so many cells; there must be some."""
    level = title.partition(" ")[0]
    found = re.search(
        rf"^{re.escape(title)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", PAGE, re.DOTALL | re.MULTILINE
    )
    assert found is not None, title
    rows = [row for row in table_rows(found[1]) if len(row) == columns]
    assert rows, title
    return rows


def code_in(cell: str) -> list[str]:
    return re.findall(r"`(.+?)`", cell)


def events_in(cell: str) -> list[str]:
    """Return the full names of the events that a cell lists."""
    if cell == "none":
        return []
    names = [SHORT_NAMES.get(name) or name.strip("`") for name in cell.split(" · ")]
    assert set(names) <= STATE_EVENTS, cell
    return names


def lines_in(cell: str) -> list[Line]:
    """Return the log lines that a cell lists."""
    found = [re.fullmatch(r"(DEBUG|INFO|WARNING|ERROR) `(.+)`", entry) for entry in cell.split(" · ")]
    assert all(found), cell
    return [(match[1], match[2]) for match in found if match is not None]


def matches(pattern: str, text: str) -> bool:
    """Whether a text is what the page says, where … stands for anything."""
    return re.fullmatch(".+?".join(map(re.escape, pattern.split("…"))), text, re.DOTALL) is not None


@dataclasses.dataclass(frozen=True)
class Course:
    """A row of the first table: what a failed attempt looks like."""

    session: str
    then: str
    events: str
    connect: str
    waits: str
    log: str


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table of failures."""

    failure: str
    what: str
    first: str
    never: str
    was: str
    error: str
    text: str

    def then(self, session: str) -> str:
        return self.never if session == "never online" else self.was


ATTEMPTS = "## An attempt fails"
COURSES = {(row[0], row[1]): Course(*row) for row in table(ATTEMPTS, 6)}
ROWS = [Row(row[0].strip("`"), *row[1:]) for row in table(ATTEMPTS, 7)]
CLOSES = table("### The server closes it", 7)
OTHER_ENDS = {row[0]: row for row in table("### It ends in another way", 5)}
SHUTDOWNS = {row[0]: row for row in table("### The server announces its shutdown", 5)}
ELSEWHERE = {
    ("SHORT_LIVED", "never online"): "(it was online)",
    ("SHORT_LIVED", "was online"): "(see the next chapter)",
    ("SOURCE", "never online"): "(see `MISCONFIGURED`)",
    ("MISCONFIGURED", "was online"): "(see `SOURCE`)",
}


def test_the_page_is_read_as_it_is_meant() -> None:
    assert matches("… answered HTTP …", "h:1 answered HTTP 404") and not matches("a …", "b c")
    assert not matches("cut", "cut off") and matches("it's …(…)", "it's x(y)")
    assert lines_in("INFO `a -> b: …` · DEBUG `c`") == [("INFO", "a -> b: …"), ("DEBUG", "c")]
    assert events_in("imminent · `offline`") == [IMMINENT, "offline"] and events_in("none") == []


# -- the tables and the code ---------------------------------------------------------------------------------


def test_every_state_is_explained() -> None:
    rows = table("# What happens when …", 3)
    assert sorted(name for row in rows for name in code_in(row[0])) == sorted(s.value for s in SessionState)


def test_there_is_a_course_for_each_outcome() -> None:
    thens = ("tries again", "used up", "ends")
    assert set(COURSES) == set(itertools.product(("never online", "was online"), thens))


@pytest.mark.parametrize("failure", Failure, ids=lambda failure: failure.name)
def test_every_failure_has_rows_that_say_what_the_code_does(failure: Failure) -> None:
    rows, rule = [row for row in ROWS if row.failure == failure.name], FAILURES[failure]
    assert rows, f"docs/failures.md has no row for {failure.name}"
    thens = {
        Retried.YES: {("tries again", "tries again")},
        Retried.NO: {("ends", "ends")},
        Retried.ONCE_ONLINE: {("ends", "tries again")},
        Retried.IF_REFRESHED: {("tries again", "tries again"), ("ends", "ends")},
    }[rule.retried]
    found = set()
    for row in rows:
        assert row.first == rule.first.value, row
        raised = "raised `RegistrationError`" in row.what  # then it is what callers get
        assert code_in(row.error)[0] == ("RegistrationError" if raised else rule.error), row
        cells = (row.never, row.was)
        if any(cell.startswith("(") for cell in cells):
            for session in ("never online", "was online"):
                cell = row.then(session)
                assert not cell.startswith("(") or cell == ELSEWHERE[failure.name, session], row
                at = 0 if session == "never online" else 1
                assert cell.startswith("(") or cell in {pair[at] for pair in thens}, row
        else:
            assert cells in thens, row
            found.add(cells)
    assert found == thens or failure is Failure.SHORT_LIVED


def test_no_row_is_about_something_else() -> None:
    assert {row.failure for row in ROWS} == {failure.name for failure in Failure}
    assert len({(row.failure, row.what) for row in ROWS}) == len(ROWS)


def close_row(code: int, reason: str) -> list[str]:
    """Return the row of the table of closes that is about this close."""
    about = [row for row in CLOSES if str(code) in row[0].split(", ")]
    about = about or [row for row in CLOSES if "any other" in row[0]]
    named = [row for row in about if reason.lower() in code_in(row[1])]
    [row] = named or [row for row in about if row[1] in ("any", "another, or none")]
    return row


def meaning_of(row: list[str]) -> CloseMeaning:
    if row[2] == "ends":
        replaced = "offline.replaced" in events_in(row[3])
        return CloseMeaning.REPLACED if replaced else CloseMeaning.PERMANENT
    return {
        "reconnects": CloseMeaning.TRANSIENT,
        "refreshes the token, reconnects": CloseMeaning.UNAUTHORIZED,
    }[row[2]]


def test_the_table_of_closes_is_the_codes() -> None:
    reasons = {reason for row in CLOSES for reason in code_in(row[1])}
    assert reasons == {"replaced", *closing._IDLE_REASONS}
    for code, reason in itertools.product(range(1000, 5000), ["", "else", *reasons]):
        assert meaning_of(close_row(code, reason)) is classify_close(code, reason), (code, reason)
        assert close_row(code, reason) is close_row(code, reason.upper())


# -- what happens, as listeners, callers and the log see it --------------------------------------------------


class Watch:
    """Listens to a session's state events and reads its log.

    Args:
        caplog: pytest's.
        session: The session; listened to from now on.
        from_online: Whether to leave out how it came online.
    """

    def __init__(
        self, caplog: pytest.LogCaptureFixture, session: Session, *, from_online: bool = False
    ) -> None:
        caplog.set_level(logging.DEBUG, "llm_sessions")
        self._caplog, self._session, self._from_online = caplog, session, from_online
        self.events = Recorder().listen(session, *EVENTS)

    @property
    def lines(self) -> list[Line]:
        """What was logged: all from INFO on, and repetitions of warnings."""
        prefix, found = f"[{self._session.id}] ", []
        for record in list(self._caplog.records):
            repeated = record.getMessage().startswith((f"{prefix}attempt ", f"{prefix}refreshing "))
            if record.levelno >= logging.INFO or repeated:
                assert record.name == "llm_sessions.pool", record
                assert record.session_id == self._session.id, record  # type: ignore[attr-defined]
                found.append((record.levelname, record.getMessage().removeprefix(prefix)))
        if self._from_online:
            found = [line for line in found if not line[1].startswith(("idle -> ", "connecting -> "))]
        return found

    @property
    def names(self) -> list[str]:
        return self.events.names[self._from_online :]

    def wait_line(self, text: str) -> None:
        eventually(lambda: any(text == line for _, line in self.lines), f"no {text!r} in {self.lines}")

    def forget(self) -> None:
        """Start from here."""
        self._caplog.clear()
        self.events.calls.clear()

    def saw(self, events: list[str], lines: list[Line]) -> None:
        """Hold what was seen against these, in this order; wait for what is still on its way."""
        eventually(lambda: len(self.names) >= len(events) and len(self.lines) >= len(lines), self._story())
        assert self.names == events
        found = self.lines
        assert [level for level, _ in found] == [level for level, _ in lines], found
        for (_, text), (_, pattern) in zip(found, lines, strict=True):
            assert matches(pattern, text), (pattern, text)

    def _story(self) -> str:
        return f"events {self.names}, log {self.lines}"


def receive_all(session: Session, timeout: float | None = None) -> None:
    """Receive until it raises. A server says that it is ready by a message like any other."""
    while True:
        session.receive(timeout)


def check_callers(session: Session, cell: str, cause: type[Exception] | None = None) -> None:
    """Hold `wait_online` and `receive` against what a cell says of them."""
    if cell == "go on":
        assert session.wait_online(0) is session
        with pytest.raises(WaitTimeout):
            receive_all(session, 0)
        return
    [name] = code_in(cell)
    kind = getattr(llm_sessions, name)
    with pytest.raises(llm_sessions.LLMSessionsError) as waited:
        session.wait_online(0)
    with pytest.raises(llm_sessions.LLMSessionsError) as received:
        receive_all(session, 0)
    assert type(waited.value) is type(received.value) is kind
    assert cell.startswith("wait; ") == (kind is WaitTimeout)
    if cause is not None:
        assert type(waited.value.__cause__) is cause


# -- failed attempts -----------------------------------------------------------------------------------------

CASES = [
    pytest.param(row, way, session, id=f"{row.failure}-{row.what[:25]}-{number}-{session}".replace(" ", "_"))
    for row in ROWS
    for number, way in enumerate(WAYS.get((row.failure, row.what), []))
    for session in ("never online", "was online")
    if row.then(session) in ("tries again", "ends")
]


def test_every_row_of_the_table_of_failures_is_made_to_happen() -> None:
    short_lived = {(row.failure, row.what) for row in ROWS if row.failure == "SHORT_LIVED"}
    assert len(short_lived) == 1  # by a test of its own
    assert {(row.failure, row.what) for row in ROWS} - short_lived == set(WAYS)
    made = {(case.values[0], case.values[2]) for case in CASES}
    promised = {
        (row, session)
        for row in ROWS
        for session in ("never online", "was online")
        if not row.then(session).startswith("(")
    }
    assert made == promised


@pytest.fixture
def plain_server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server
    assert server.violations == []


@pytest.fixture
def world(plain_server: LocalServer, authority: trustme.CA) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        yield World(plain_server, stack, authority)


class Run:
    """One session whose attempts fail in a way, until the test heals them.

    Args:
        limit: How many failed attempts are retried; None for no limit.
    """

    def __init__(
        self, world: World, make_pool: MakePool, caplog: pytest.LogCaptureFixture, limit: int | None
    ) -> None:
        self.world, self.place = world, world.place
        self.pool = make_pool(
            "unused", backoff_initial=1, backoff_max=32, max_retries=limit, initial_max_retries=limit
        )
        environment = self.pool._env
        real = environment.transport
        environment.transport = lambda request, owner, name: real(world.tune(request), owner, name)
        self.session = self.pool.session()
        self.watch = Watch(caplog, self.session)
        self.call: Background | None = None

    def connect(self, timeout: float | None = None) -> Session:
        return self.pool.connect(self.place, token=self.world.token, timeout=timeout)

    def begin(self, way: Way, session: str) -> None:
        """Bring it to the first attempt that is going to fail, with a caller of `connect`."""
        if session == "never online":
            way(self.world)
            self.call = Background(self.connect)
            self.place.wait_arrived()
            self.watch.wait_line("idle -> connecting")  # logged by the caller's thread
        else:
            before = self.place.bad, self.world.tune
            way(self.world)
            bad, tune = self.place.bad, self.world.tune
            self.place.bad, self.world.tune = before
            self.place.go_on()
            self.connect(LONG)
            self.place.wait_arrived()
            self.watch.wait_line("connecting -> online")
            self.watch.events.wait("online")
            self.watch.forget()
            self.place.bad, self.world.tune = bad, tune
            self.world.server.drop("good")
            self.place.wait_arrived()
            self.call = Background(self.connect)
        waiting(self.session, 1)

    def fail(self) -> None:
        """Let an attempt fail; return at the next one."""
        self.place.go_on()
        self.place.wait_arrived()

    def fail_for_good(self) -> Exception:
        """Let an attempt fail; return the error that `connect` raises."""
        self.place.go_on()
        assert self.call is not None
        error = self.call.error()
        assert isinstance(error, Exception)
        no_connectors()
        return error

    def check(self, row: Row, course: Course, attempts: int) -> None:
        """Hold the events, the log and what was done first against the page."""
        events = events_in(course.events)
        if "1006" in row.error:
            events = [event for event in events if event != "connection_failed"]
        text, *more = code_in(row.text)
        lines: list[Line] = []
        for level, line in lines_in(course.log):
            lines.append((level, line.replace("<text>", text)))
            if line.startswith("attempt"):
                lines += [(level, other) for other in more]
        self.watch.saw(events, lines)
        told = attempts if row.first.startswith("tell the endpoint") else 0
        assert len(self.place.told) == told
        assert all(type(error).__name__ == code_in(row.error)[0] for error in self.place.told)
        if self.world.token is self.world.tokens:
            refreshed = attempts if row.first == "one forced token refresh" else 0
            assert len(self.world.tokens.refreshed) == refreshed


def check_error(error: Any, row: Row) -> None:
    name, *details = code_in(row.error)
    assert type(error) is getattr(llm_sessions, name)
    code = re.search(r"`code`( \d+)?", row.error)
    if code is None:
        assert getattr(error, "code", None) is None
    else:
        assert error.code == int(code[1]) if code[1] else error.code is not None
    if "if it had one" not in row.error:
        assert (getattr(error, "status", None) is not None) == ("status" in details)
    said = error.message if isinstance(error, ConnectError) else str(error)
    assert matches(code_in(row.text)[0], said), (row.text, said)


@pytest.mark.parametrize(("row", "way", "session"), CASES)
def test_an_attempt_that_fails(
    row: Row,
    way: Way,
    session: str,
    world: World,
    make_pool: MakePool,
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    course = COURSES[session, row.then(session)]
    run = Run(world, make_pool, caplog, None)
    run.begin(way, session)
    if course.then == "ends":
        assert (course.connect, course.waits) == ("raises the error", "raise the error")
        check_error(run.fail_for_good(), row)
        assert run.session.state is SessionState.OFFLINE
        check_error(run.session.last_error, row)
        for call in (run.session.wait_online, run.session.receive):
            with pytest.raises(llm_sessions.LLMSessionsError) as caught:
                call()
            check_error(caught.value, row)
        run.check(row, course, attempts=1)
        return
    run.fail()
    for call, cell in ((run.connect, course.connect), (run.session.wait_online, course.waits)):
        with pytest.raises(llm_sessions.LLMSessionsError) as timed_out:
            call(0)
        assert cell.startswith("wait") and [type(timed_out.value).__name__] == code_in(cell)
        check_error(timed_out.value.__cause__, row)
        assert str(getattr(timed_out.value.__cause__, "message", "")) in str(timed_out.value)
    with pytest.raises(WaitTimeout):
        run.session.receive(0)
    run.fail()
    check_error(run.session.last_error, row)
    world.heal()
    run.place.go_on()
    assert run.call is not None and run.call.result() is run.session
    asked_for = "Retry-After" in row.first and "returned" not in row.what
    assert waits == ([7, 7] if asked_for else [1, 2])
    run.check(row, course, attempts=2)


@pytest.mark.parametrize(
    ("row", "way", "session"),
    [case for case in CASES if case.values[0].then(case.values[2]) == "tries again"],
)
def test_an_attempt_that_fails_and_retries_are_used_up(
    row: Row,
    way: Way,
    session: str,
    world: World,
    make_pool: MakePool,
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Run(world, make_pool, caplog, 1)
    run.begin(way, session)
    run.fail()
    check_error(run.fail_for_good(), row)
    for call in (run.session.wait_online, run.session.receive):
        with pytest.raises(llm_sessions.LLMSessionsError) as caught:
            call()
        check_error(caught.value, row)
    assert run.session.state is SessionState.OFFLINE
    course = COURSES[session, "used up"]
    assert (course.connect, course.waits) == ("raises the error", "raise the error")
    run.check(row, course, attempts=2)


def test_short_lives(
    plain_server: LocalServer, make_pool: MakePool, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    [row] = [row for row in ROWS if row.failure == "SHORT_LIVED"]
    place = Place(plain_server.url())
    place.go_on(4)
    pool = make_pool()
    pool._env.clock = lambda: 0.0  # however slow this machine is
    watch = Watch(caplog, pool.session())
    session = pool.connect(place)
    for lives in (1, 2, 3):
        watch.events.wait("online", lives)
        watch.wait_line("connecting -> online" if lives == 1 else "reconnecting -> online")
        assert place.told == []
        plain_server.wait_live()
        plain_server.close_session(code=1001)
        watch.events.wait("offline.transient", lives)
        if lives < 3:
            watch.events.wait("online", lives + 1)
    watch.events.wait("online", 4)
    [told] = place.told
    assert type(told).__name__ == code_in(row.error)[0] and isinstance(told, ConnectionLost)
    assert f"`code` {told.code}" in row.error
    assert [text for _, text in watch.lines].count(code_in(row.text)[0]) == 3
    assert session.online and watch.events.names == [
        "online",
        *["offline", "offline.transient", "online"] * 3,
    ]


# -- the server closes an online socket ----------------------------------------------------------------------


def examples(row: list[str]) -> Iterator[tuple[int, str]]:
    """Yield closes that a row is about."""
    named = code_in(row[1])
    codes = [int(code) for code in re.findall(r"\d{4}", row[0])]
    codes += [4400, 4403, 4999] if "any other" in row[0] else []
    for code in codes:
        for reason in named or ([""] if code in (1005, 1006) else ["", "something else"]):
            yield code, reason.title() if named and code == 1000 else reason


CLOSED = [(row, code, reason) for row in CLOSES for code, reason in examples(row)]
IDS = [f"{code}-{reason.replace(' ', '_')}" for _, code, reason in CLOSED]


@pytest.mark.parametrize(("row", "code", "reason"), CLOSED, ids=IDS)
def test_the_server_closes_an_online_socket(
    row: list[str],
    code: int,
    reason: str,
    plain_server: LocalServer,
    make_pool: MakePool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = Tokens()
    pool = make_pool(tokens)
    watch = online(pool, plain_server, caplog)
    [connection] = plain_server.live()
    reconnects = "reconnects" in row[2]
    plain_server.hold_upgrades()
    connection.close(code, reason)
    watch.events.wait(events_in(row[3])[1])
    session = pool.session()
    assert type(session.last_error) is (llm_sessions.Replaced if "Replaced" in row[4] else ConnectionLost)
    check_callers(session, row[4], ConnectionLost if reconnects else None)
    plain_server.release_upgrades()
    if reconnects:
        session.wait_online()
    watch.saw(events_in(row[3]), closes_as(lines_in(row[5]), code, reason))
    assert len(plain_server.connections()) == 1 + reconnects
    assert len(tokens.refreshed) == ("refreshes the token" in row[2])


@pytest.mark.parametrize(("row", "code", "reason"), CLOSED, ids=IDS)
def test_the_server_closes_a_replaced_socket(
    row: list[str],
    code: int,
    reason: str,
    plain_server: LocalServer,
    pool: ConnectionPool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = online(pool, plain_server, caplog)
    [old] = plain_server.live()
    old.send_json({"type": "shutdown"})
    watch.events.wait(COMPLETE)
    watch.wait_line("switching -> online")
    watch.forget()
    marked = Recorder().listen(pool, "event:marker")
    old.close(code, reason)
    eventually(lambda: len(machine_of(pool.session())._links) == 1)
    plain_server.wait_for(lambda: len(plain_server.live()) == 1)
    plain_server.publish(event_type="marker")
    marked.wait("event:marker")  # behind whatever the close caused
    loss = "a replaced socket ended with …, and may have had more to bring"
    watch.saw(events_in(row[6]), [("WARNING", loss)] if row[6] == "`switchover-loss`" else [])
    assert pool.session().state is SessionState.ONLINE and len(plain_server.connections()) == 2


def online(
    pool: ConnectionPool, server: LocalServer, caplog: pytest.LogCaptureFixture, **options: Any
) -> Watch:
    """Bring the default session online; return what watches it from then on."""
    watch = Watch(caplog, pool.session())
    pool.connect(server.url(), **options)
    server.wait_live()
    watch.wait_line("connecting -> online")
    watch.events.wait("online")
    watch.forget()
    return watch


def closes_as(lines: list[Line], code: int, reason: str) -> list[Line]:
    return [(level, text.replace("<close>", f"{code} {reason}".rstrip())) for level, text in lines]


# -- other ends ----------------------------------------------------------------------------------------------


class Scene:
    """One session, online, and what is going to happen to it.

    Attributes:
        back: Called when the callers were looked at, to let the session come back.
        waiting: A caller of `receive`, if one has to be there when it happens.
    """

    def __init__(
        self, server: LocalServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, cell: str
    ) -> None:
        self._make_pool, self._caplog, self.server, self.cell = make_pool, caplog, server, cell
        self.waiting: Background | None = None
        self.back: Callable[[], object] = lambda: None
        self.watch: Any = None
        self.pool: Any = None
        self.session: Any = None

    def online(self, token: Any = "token", **config: Any) -> ServerConnection:
        self.uses(self._make_pool(token, **config))
        self.watch = online(self.pool, self.server, self._caplog)
        if "ConnectCancelled" in self.cell:
            self.waiting = Background(lambda: receive_all(self.session))
            eventually(lambda: machine_of(self.session)._delivery._kept is not None)
        [connection] = self.server.live()
        return connection

    def uses(self, pool: ConnectionPool) -> None:
        self.pool, self.session = pool, pool.session()

    def holding(self) -> None:
        """Let no new socket be ready before the callers were looked at."""
        self.server.hold_upgrades()
        self.back = self.server.release_upgrades

    def shut_down(self, ready: bool = False) -> ServerConnection:
        """Announce a shutdown and hold the candidate back unless it is to be ready; return the old socket."""
        [old] = self.server.live()
        if not ready:
            self.server.withhold_ready()
        old.send_json({"type": "shutdown"})
        if ready:
            self.watch.events.wait(COMPLETE)
        else:
            self.server.wait_for(lambda: len(self.server.connections()) == 2)
            self.server.wait_for(lambda: self.server.connections()[1].authorized)
        return old

    def kept(self) -> None:
        """Wait until the old socket's 4001 was read."""
        eventually(lambda: machine_of(self.session)._kept_close is not None)


def pong(fault: str) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        scene.uses(scene._make_pool())
        environment = scene.pool._env
        real, links = environment.transport, itertools.count()

        def transport(request: Any, owner: Any, name: str) -> Any:
            if next(links) == 0:  # only the first socket is in a hurry
                timing = dataclasses.replace(request.timing, pong_timeout=0.1)
                request = dataclasses.replace(request, timing=timing)
            return real(request, owner, name)

        environment.transport = transport
        getattr(scene.server, fault)()
        scene.watch = Watch(scene._caplog, scene.session, from_online=True)  # it may be over at once
        scene.holding()
        scene.server.release_upgrades()
        scene.pool.connect(scene.server.url())
        scene.server.hold_upgrades()
        scene.watch.events.wait("offline.transient")
        scene.server.unmute()
        scene.server.wrong_pong(on=False)

    return act


def reset_tcp(scene: Scene) -> None:
    scene.online()
    scene.holding()
    scene.server.live()[0].drop()


def end_tcp(scene: Scene) -> None:
    connection = scene.online()
    scene.holding()
    connection.close(1006)


def break_protocol(scene: Scene) -> None:
    connection = scene.online()
    scene.holding()
    connection.send_raw(b"\xff\xff\xff\xff")


def stall(scene: Scene) -> None:
    scene.online(send_timeout=0.1)
    scene.holding()
    scene.server.stall_reads()
    with pytest.raises(ConnectionLost):
        scene.session.send({"text": "x" * (16 << 20)})
    scene.server.resume_reads()


def refuse_the_only_token(scene: Scene) -> None:
    scene.online().close(4401)


def disconnect(scene: Scene) -> None:
    scene.online()
    scene.pool.disconnect()


def disconnect_from_a_mute_server(scene: Scene) -> None:
    scene.server.ignore_close()
    scene.online(force_close_delay=0.1)
    scene.pool.disconnect()


def close_the_pool(scene: Scene) -> None:
    scene.online()
    scene.pool.close()


ENDS: dict[str, Callable[[Scene], None]] = {
    "no pong within `pong_timeout`": pong("mute"),
    "a pong with another id": pong("wrong_pong"),
    "TCP is reset": reset_tcp,
    "TCP ends without a close frame": end_tcp,
    "the server breaks the WebSocket protocol": break_protocol,
    "a `send` is not written within `send_timeout` (it raises `ConnectionLost`)": stall,
    "4401, and there is no other token": refuse_the_only_token,
    "`disconnect()`, and the server answers": disconnect,
    "`disconnect()`, and it does not answer within `force_close_delay`": disconnect_from_a_mute_server,
    "`pool.close()`": close_the_pool,
}


def switch_then_4001(scene: Scene) -> None:
    scene.online()
    scene.shut_down(ready=True).close(4001)


def switch_then_another_close(scene: Scene) -> None:
    scene.online()
    scene.shut_down(ready=True).close(1003)
    eventually(lambda: len(machine_of(scene.session)._links) == 1)


def switch_then_a_drop(scene: Scene) -> None:
    scene.online()
    scene.shut_down(ready=True).drop()
    scene.watch.events.wait("switchover-loss")


def switch_then_nothing(scene: Scene) -> None:
    scene.online(retire_timeout=SHORT)
    old = scene.shut_down(ready=True)
    scene.server.wait_for(lambda: old.close_code == 1000 and old.closed_at is not None)
    eventually(lambda: len(machine_of(scene.session)._links) == 1)


def switch_fails(scene: Scene) -> None:
    scene.online(max_retries=1)
    scene.server.reject(4410, times=2)
    scene.server.shutdown_frame()
    scene.watch.events.wait(FAILED)


def switch_4001_first(scene: Scene) -> None:
    scene.online()
    scene.shut_down().close(4001)
    scene.kept()
    assert scene.session.state is SessionState.SWITCHING and scene.session.online
    scene.server.release_ready()


def switch_4001_and_an_attempt_fails(scene: Scene) -> None:
    scene.online()
    scene.shut_down().close(4001)
    scene.kept()
    scene.holding()
    scene.server.release_ready("nobody")  # only this one is dropped: the next may be ready
    scene.server.connections()[1].drop()
    scene.watch.events.wait("offline.transient")
    scene.back = lambda: (scene.server.release_ready(), scene.server.release_upgrades())


def switch_4001_and_no_candidate(scene: Scene) -> None:
    scene.online(max_retries=0)
    scene.shut_down().close(4001)
    scene.kept()
    scene.server.connections()[1].drop()


def switch_old_ends(code: int, reason: str = "") -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        scene.online()
        scene.shut_down().close(code, reason)
        scene.back = scene.server.release_ready

    return act


def switch_disconnect(scene: Scene) -> None:
    scene.online()
    scene.shut_down()
    scene.pool.disconnect()


SWITCHES: dict[str, Callable[[Scene], None]] = {
    "the candidate is ready, then the server closes the old socket with 4001": switch_then_4001,
    "the candidate is ready, and the server closes the old socket with another code": (
        switch_then_another_close
    ),
    "the candidate is ready, and the old socket breaks off": switch_then_a_drop,
    "the candidate is ready, and the server does not close the old socket": switch_then_nothing,
    "no candidate can be made (`max_retries` used up)": switch_fails,
    "the old socket is closed with 4001 before the candidate is ready": switch_4001_first,
    "the old socket is closed with 4001, then an attempt fails and another is due": (
        switch_4001_and_an_attempt_fails
    ),
    "the old socket is closed with 4001, then no candidate can be made": switch_4001_and_no_candidate,
    "the old socket ends with 1006, or another close that reconnects, before that": (switch_old_ends(1006)),
    "the old socket is closed with 1003, or another close that ends a session, before that": (
        switch_old_ends(1003)
    ),
    "the old socket is closed with 4000 `replaced` before that": switch_old_ends(4000, "replaced"),
    "`disconnect()` before the candidate is ready": switch_disconnect,
}


def test_every_row_of_the_other_tables_is_made_to_happen() -> None:
    assert set(OTHER_ENDS) == set(ENDS)
    assert set(SHUTDOWNS) == set(SWITCHES)


@pytest.mark.parametrize("what", [*ENDS, *SWITCHES])
def test_the_end_of_an_online_socket(
    what: str, plain_server: LocalServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    row = (OTHER_ENDS | SHUTDOWNS)[what]
    events, cell = events_in(row[2]), row[3]
    scene = Scene(plain_server, make_pool, caplog, cell)
    (ENDS | SWITCHES)[what](scene)
    comes_back = events[-1] == "online"
    for event in events[:-1] if comes_back else events:
        scene.watch.events.wait(event)
    session = scene.session
    if scene.waiting is not None:
        assert type(scene.waiting.error()).__name__ == code_in(cell)[0]
        assert session.state is SessionState.IDLE
    else:
        if "wait; " in cell:
            assert session.state is SessionState.RECONNECTING
        if "NotAuthorized" in cell:
            assert isinstance(session.last_error, NotAuthorized)
        check_callers(session, cell)
    scene.back()
    if comes_back:
        session.wait_online()
    scene.watch.saw(events, lines_in(row[4]))
    assert ("state `idle`" in row[1]) == (session.state is SessionState.IDLE)
    assert bool(re.search(r"\breconnects?\b", row[1])) == comes_back
    assert bool(re.search(r"\bends\b", row[1])) == (not session.online)
    assert ("stays online" in row[1] or comes_back) == session.online
    plain_server.release_ready()


# -- the log -------------------------------------------------------------------------------------------------

LOG = table("## The log", 4)


def logged_texts(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the format of every record from WARNING on that a module makes, and whether it is thinned out."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        assigned: dict[str, list[str]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                pairs = [(node.targets[0], node.value)]
                if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
                for target, value in pairs:
                    if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
                        assigned.setdefault(target.id, []).append(str(value.value))
        for node in ast.walk(function):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in ("_warn", "warning", "error", "exception", "complain", "thinned"):
                continue
            thinned = node.func.attr in ("_warn", "complain", "thinned")
            for argument in node.args:
                if isinstance(argument, ast.Constant) and " " in str(argument.value):
                    yield str(argument.value), thinned
                elif isinstance(argument, ast.Name):
                    yield from [(text, thinned) for text in assigned.get(argument.id, []) if " " in text]


def test_every_warning_of_the_code_is_on_the_page() -> None:
    found = {}
    for layer in ("pool", "connection"):
        for path in sorted((ROOT / "llm_sessions" / layer).glob("*.py")):
            logger = "dispatch" if path.name == "dispatch.py" else layer
            for text, thinned in logged_texts(path):
                shown = re.sub(r"%\w", "…", text.removeprefix("[%s] "))
                found[f"`llm_sessions.{logger}`", f"`{shown}`"] = thinned
    assert set(found) == {(row[0], row[2]) for row in LOG}
    assert "all rows but the last four" in PAGE
    assert [found[row[0], row[2]] for row in LOG] == [True] * (len(LOG) - 4) + [False] * 4


class Stage:
    """A pool over fakes, and what is raised on it.

    Args:
        config: Of the pool.
    """

    def __init__(self, **config: Any) -> None:
        self.pool, self.transport = fake_pool(**config)
        self.session = self.pool.session()
        self.gate = Gate()

    def online(self) -> FakeLink:
        self.pool.connect(URL)
        return self.transport.links[0]

    def close(self) -> None:
        self.gate.open()
        self.pool.close()


def an_attempt_fails() -> Stage:
    stage = Stage(initial_max_retries=0)
    stage.transport.on_open = refuse
    with pytest.raises(ConnectError):
        stage.online()
    return stage


def a_refresh_raises() -> Stage:
    stage, tokens = Stage(), Tokens()
    tokens.answer = raising(OSError("no"))
    stage.pool.connect(URL, token=tokens)
    stage.transport.links[0].end(4401)
    return stage


def a_queue_is_full(when_full: str) -> Callable[[], Stage]:
    def act() -> Stage:
        stage = Stage(queue_size=1, when_full=when_full)
        stage.session.on("event", lambda envelope: stage.gate.pass_through())
        link = stage.online()
        link.owner.link_received(link, [{"id": str(number)} for number in range(4)])
        return stage

    return act


def a_replaced_socket_breaks_off() -> Stage:
    stage = Stage()
    old = stage.online()
    announce_shutdown(old)
    eventually(lambda: old.retired is not None)
    old.end(1006, "", EndCause.LOST, missed=True)
    return stage


def a_reader_reports(event: Any) -> Callable[[], Stage]:
    def act() -> Stage:
        stage = Stage()
        link = stage.online()
        link.owner.link_received(link, [event])
        return stage

    return act


def an_endpoint_raises_when_told() -> Stage:
    class Broken(Endpoint):
        def resolve(self, attempt: Any) -> Target:
            return Target(URL)

        def rejected(self, target: Target, error: Exception) -> None:
            raise RuntimeError("mine")

    stage = Stage(initial_max_retries=0)
    stage.transport.on_open = raising_link(AttemptFailed(Failure.STALE, "gone"))
    with pytest.raises(ConnectError):
        stage.pool.connect(Broken())
    return stage


def raising_link(error: Exception) -> Callable[[FakeLink], None]:
    def on_open(link: FakeLink) -> None:
        raise error

    return on_open


def a_listener_raises() -> Stage:
    stage = Stage()
    stage.session.on("online", lambda payload: raising(RuntimeError("mine"))())
    stage.online()
    return stage


def no_thread_relieves_a_reader() -> Stage:
    stage = Stage()
    link = stage.online()
    link.relieve = raising(RuntimeError("can't start new thread"))  # type: ignore[method-assign]
    assert stage.session._machine._relieve(link) is False
    return stage


def no_thread_is_left() -> Stage:
    stage = Stage()
    spawn = stage.pool._env.threads.spawn

    def failing(target: Callable[[], None], name: str, **options: bool) -> threading.Thread:
        if "dispatcher" in name:
            raise RuntimeError("can't start new thread")
        return spawn(target, name, **options)

    stage.pool._env.threads.spawn = failing  # type: ignore[method-assign]
    stage.session.on("online", print)
    stage.online()
    return stage


def a_connector_fails() -> Stage:
    stage = Stage()
    stage.transport.on_open = raising_link(RuntimeError("a bug"))
    with pytest.raises(ConnectError):
        stage.online()
    return stage


def a_reader_fails() -> Stage:
    with LocalServer() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameDecoder, "feed", lambda self, data: raising(RuntimeError("a bug"))())
        real = ConnectionPool("token", config=PoolConfig(initial_max_retries=0))
        with real, pytest.raises(ConnectError) as caught:
            real.connect(server.url())
        assert caught.value.code == 1006
    return Stage()


def close_runs_out_of_time() -> Stage:
    stage = Stage()
    stage.session.on("online", lambda payload: stage.gate.pass_through())
    stage.online()
    stage.gate.wait_arrived()
    stage.pool.close(timeout=SHORT)
    return stage


RECORDS: dict[str, Callable[[], Stage]] = {
    "`attempt … failed: …`": an_attempt_fails,
    "`refreshing the token failed`": a_refresh_raises,
    "`a queue is full: the session is not read until it is taken from`": a_queue_is_full("block"),
    "`a queue is full: its oldest messages are dropped, … so far`": a_queue_is_full("drop_oldest"),
    "`message … came, … was due`": a_reader_reports(SequenceGap(7, 5)),
    "`a replaced socket ended with …, and may have had more to bring`": a_replaced_socket_breaks_off,
    "`dropped a message: …`": a_reader_reports(Dropped("not a JSON object but list")),
    "`a listener takes long, and no thread can be started to read meanwhile: …`": no_thread_relieves_a_reader,
    "`the endpoint's rejected() raised`": an_endpoint_raises_when_told,
    "`a listener of … raised`": a_listener_raises,
    "`cannot start a dispatcher thread; events wait for the next`": no_thread_is_left,
    "`the connector failed; this is a bug in llm_sessions`": a_connector_fails,
    "`the reader failed; this is a bug in llm_sessions`": a_reader_fails,
    "`… closed, but these threads still run: …`": close_runs_out_of_time,
}


@pytest.mark.parametrize("row", LOG, ids=lambda row: row[2].strip("`").replace(" ", "_"))
def test_a_record_of_the_log(row: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llm_sessions")
    assert len(RECORDS) == len(LOG)
    [pattern] = code_in(row[2])

    def found() -> list[logging.LogRecord]:
        texts = (pattern, f"[…] {pattern}")
        return [one for one in list(caplog.records) if any(matches(text, one.getMessage()) for text in texts)]

    stage = RECORDS[row[2]]()
    try:
        eventually(found, f"no {pattern!r} in {[one.getMessage() for one in caplog.records]}")
        assert {(f"`{one.name}`", one.levelname) for one in found()} == {(row[0], row[1])}
    finally:
        stage.close()


def test_every_level_is_on_the_page() -> None:
    levels = [row[0] for row in table("## The log", 2)]
    assert levels == [logging.getLevelName(level) for level in (10, 20, 30, 40)]


def test_every_logger_is_on_the_page() -> None:
    made = set()
    for path in (ROOT / "llm_sessions").rglob("*.py"):
        made |= set(re.findall(r'get_logger\("(\w+)"\)', path.read_text(encoding="utf-8")))
        made |= set(re.findall(r'getLogger\("llm_sessions\.(\w+)"\)', path.read_text(encoding="utf-8")))
    assert made == set(re.findall(r"`llm_sessions\.(\w+)`", PAGE))


def test_what_records_carry(
    plain_server: LocalServer, pool: ConnectionPool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "llm_sessions")
    raised = Recorder()
    session = pool.session("captions")

    def broken(envelope: Any) -> None:
        raised.named("raised")(envelope)
        raise RuntimeError("mine")

    session.on("event:relay.event", broken)
    pool.connect(plain_server.url(), "captions")
    plain_server.wait_live()
    plain_server.publish({"text": "y" * 600})
    plain_server.publish({"text": "again"})
    raised.wait("raised", 2)

    def logged(name: str, level: int) -> list[Any]:
        return [
            one for one in list(caplog.records) if (one.name, one.levelno) == (f"llm_sessions.{name}", level)
        ]

    eventually(lambda: logged("dispatch", logging.DEBUG) and len(logged("pool", logging.INFO)) == 2)
    changes = logged("pool", logging.INFO)
    assert {(one.session_id, one.state) for one in changes} == {
        ("captions", "connecting"),
        ("captions", "online"),
    }
    assert all(one.getMessage().startswith("[captions] ") for one in changes)
    for level in (logging.ERROR, logging.DEBUG):  # the second one within a minute
        [error] = [one for one in logged("dispatch", level) if "raised" in one.getMessage()]
        assert error.session_id == "captions" and error.exc_info[0] is RuntimeError
        assert matches("[captions] a listener of … raised", error.getMessage())
    messages = [one.getMessage() for one in logged("connection", logging.DEBUG)]
    assert all(re.match(r"\[captions#1\.1\] [<>] ", message) for message in messages)
    longest = max(messages, key=len)
    assert longest.endswith("y…") and len(longest) == len("[captions#1.1] < ") + 500 + len("…")


def test_the_recipe_shows_what_it_says() -> None:
    assert languages(PAGE) == ["python"]
    [recipe] = blocks(PAGE)
    script = recipe + (
        "from llm_sessions import ConnectionPool\n"
        "from llm_sessions.testing.server import LocalServer\n"
        "with LocalServer() as server, ConnectionPool('a-secret-token') as pool:\n"
        "    session = pool.connect(server.url('x', key='a-secret-query'))\n"
        "    with session.messages(timeout=20) as messages:\n"
        "        server.publish({'text': 'hello'})\n"
        "        next(messages)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"INFO +llm_sessions\.pool \[.+\] connecting -> online$", done.stderr, re.MULTILINE)
    assert re.search(r'DEBUG +llm_sessions\.connection \[.+#1\.1\] < \{.*"hello"', done.stderr)
    assert "secret" not in done.stderr
