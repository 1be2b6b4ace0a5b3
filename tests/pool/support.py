"""Sessions over fakes: how the tests of their parts bring them where they want them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_sessions import ConnectionPool, Session, SessionState
from llm_sessions.connection.transport import AttemptFailed, Link
from llm_sessions.pool.machine import SessionMachine
from llm_sessions.pool.served import reads, serve
from llm_sessions.protocol.closing import Failure
from llm_sessions.protocol.mercury import ShutdownAnnounced
from tests.support import FakeLink, FakeTransport, Recorder, eventually, library_threads

URL = "ws://localhost/socket"
Make = Callable[..., tuple[ConnectionPool, FakeTransport]]
S = SessionState

SHUTDOWN = ShutdownAnnounced({"type": "shutdown"})
GOODBYE = ["offline", "offline.permanent", "disconnected"]


def nothing(link: FakeLink) -> None:
    """An `on_close` after which nothing is reported."""


def hold(link: FakeLink) -> None:
    """An `on_open` after which nothing is reported until the test does it."""
    link.held = True  # type: ignore[attr-defined]


def held(transport: FakeTransport, count: int) -> list[FakeLink]:
    """Wait until the newest of `count` links is the run's and opening; return all."""
    links = transport.wait_links(count)
    eventually(lambda: getattr(links[count - 1], "held", False), "it was not opened")
    return links


def refuse(link: FakeLink) -> None:
    raise AttemptFailed(Failure.NETWORK, "nobody home")


def machine_of(session: Session) -> SessionMachine:
    return session._machine


def announce_shutdown(link: FakeLink) -> None:
    link.owner.link_received(link, [SHUTDOWN])


class FakeWatch:
    """An environment's `Watch` that only writes down.

    Attributes:
        able: Whether it can watch a reader.
        lent: What is lent now: how each reader is relieved, by its number.
        times: How often a reader was lent.
    """

    def __init__(self) -> None:
        self.able, self.times = True, 0
        self.readers: set[Link] = set()
        self.lent: dict[int, Callable[[], bool]] = {}

    def enter(self, link: Link) -> bool:
        new = link not in self.readers
        self.readers.add(link)
        return new

    def leave(self, link: Link) -> None:
        self.readers.discard(link)

    def knows(self, link: Link) -> bool:
        return link in self.readers

    def lend(self, relieve: Callable[[], bool]) -> int:
        if not self.able:
            return 0
        self.times += 1
        self.lent[self.times] = relieve
        return self.times

    def give_back(self, number: int) -> None:
        self.lent.pop(number, None)


def watched(pool: ConnectionPool) -> FakeWatch:
    """Have a pool's readers watched by a fake."""
    watch = FakeWatch()
    pool._env.watch = watch  # type: ignore[assignment]
    return watch


def read(link: FakeLink, *reports: Callable[[], object]) -> list[bool]:
    """Be a link's reader on the calling thread: make reports, and be lent after each that asks for it.

    Args:
        link: What it reads.
        reports: The first one of a new reader is `begin`.

    Returns:
        What each `link_lent` returned.
    """
    asked: list[bool] = []
    answers: list[bool] = []
    link.lend = lambda: asked.append(True)  # type: ignore[method-assign]
    serve(link.owner)
    reads(link)
    for report in reports:
        report()
        while asked:
            asked.clear()
            answers.append(link.owner.link_lent(link))
    return answers


def begin(link: FakeLink) -> Callable[[], object]:
    """The report of a reader that begins; the second one of a link relieves the first."""
    return lambda: link.owner.link_reading(link, lends=True)


def no_connectors() -> None:
    eventually(lambda: not any("connector" in thread.name for thread in library_threads()))


def waiting(session: Session, count: int) -> None:
    eventually(lambda: machine_of(session)._waiters == count, f"{count} callers do not wait")


def threads_but_dispatchers() -> list[str]:
    return [thread.name for thread in library_threads() if "dispatcher" not in thread.name]


TRANSIENT, PERMANENT, REPLACED = "offline.transient", "offline.permanent", "offline.replaced"

IMMINENT, COMPLETE, FAILED = (
    f"event:mercury_shutdown_{name}" for name in ("imminent", "switchover_complete", "switchover_failed")
)


def switching(make: Make, **config: Any) -> tuple[ConnectionPool, FakeTransport, Session, Recorder]:
    """A session whose candidate socket is opening."""
    pool, transport = make(**config)
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    transport.on_open = hold
    announce_shutdown(transport.links[0])
    held(transport, 2)
    assert session.state is S.SWITCHING
    return pool, transport, session, recorder
