"""`llm-sessions demo`: the main job in a few seconds, and an account of every caption at the end."""

from __future__ import annotations

import collections
import logging
import statistics
import threading
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..pool.config import PoolConfig
from ..pool.pool import ALL_SESSIONS, ConnectionPool
from ..pool.session import Session
from ..protocol.envelope import Envelope
from ..protocol.events import STATE_EVENTS, Latency, Offline
from ..session_ids import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION
from ..testing.server import LocalServer

__all__ = ["run_demo"]

_CAPTIONS = (
    "Welcome, everyone.",
    "The panelists are in the practice session.",
    "Two channels are open at once,",
    "each with its own captions,",
    "each with its own reader thread.",
)
_PACE = 0.12  # seconds between two captions, so that one can follow
_CONFIG = PoolConfig(ping_interval=0.5, pong_timeout=5.0, backoff_initial=0.2)
_STYLES = {"online": "bold green", "offline": "red", "disconnected": "yellow", "event:relay.event": "cyan"}


class _StateLines(logging.Handler):
    """Shows the changes of state, which the library logs as they happen."""

    def __init__(self, narrator: _Narrator) -> None:
        super().__init__(logging.INFO)
        self._narrator = narrator

    def emit(self, record: logging.LogRecord) -> None:
        session_id = str(getattr(record, "session_id", ""))
        self._narrator.say(session_id, "state", record.getMessage().removeprefix(f"[{session_id}] "))


class _Narrator:
    """Prints what happens as it happens, and keeps count. Its methods run on dispatcher threads."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._changed = threading.Condition()
        self.events: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.latencies: dict[str, list[float]] = collections.defaultdict(list)
        self.captions: dict[str, list[str]] = collections.defaultdict(list)

    def watch(self, pool: ConnectionPool) -> None:
        """Show every event of every session."""
        for name in sorted(STATE_EVENTS):
            pool.on(name, lambda payload, name=name: self._state(name, payload), session_id=ALL_SESSIONS)
        pool.on("event:relay.event", self._caption, session_id=ALL_SESSIONS)

    def say(self, session_id: str, event: str, detail: str = "") -> None:
        """Print a line; safe from any thread."""
        line = Text(f"{time.monotonic() - self._started:7.3f} s  ", style="dim")
        line.append(f"{session_id:<21}", style="default")
        line.append(f"{event:<19}", style=_STYLES.get(event.partition(".")[0], _STYLES.get(event, "")))
        line.append(detail, style="default")
        self._console.print(line, soft_wrap=True)

    def _state(self, name: str, payload: Any) -> None:
        detail = ""
        if isinstance(payload, Offline):
            detail = f"{payload.code} {payload.reason}".strip()
        elif isinstance(payload, Latency):
            detail = f"{payload.seconds * 1000:.1f} ms"
        self.say(payload.session_id, name, detail)
        with self._changed:
            self.events[payload.session_id][name] += 1
            if isinstance(payload, Latency):
                self.latencies[payload.session_id].append(payload.seconds)
            self._changed.notify_all()

    def _caption(self, envelope: Envelope) -> None:
        text = str(envelope.data.get("text", ""))
        self.say(envelope.session_id, "event:relay.event", f"“{text}”")
        with self._changed:
            self.captions[envelope.session_id].append(text)
            self._changed.notify_all()

    def wait_captions(self, session_id: str, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self.captions[session_id]) >= count, 5)

    def wait_event(self, session_id: str, name: str, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.events[session_id][name] >= count, 5)


def run_demo(*, plain: bool = False) -> int:
    """Run the demo and print an account.

    Args:
        plain: No colours, also on a terminal.

    Returns:
        0 if every caption that was published arrived, once and in order; 1 otherwise.
    """
    console = Console(no_color=plain, highlight=False)
    narrator = _Narrator(console)
    published: dict[str, list[str]] = collections.defaultdict(list)
    logger = logging.getLogger("llm_sessions.pool")
    states, level, propagate = _StateLines(narrator), logger.level, logger.propagate
    logger.addHandler(states)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # each line once
    try:
        with LocalServer() as server:
            with ConnectionPool("demo-token", config=_CONFIG, name="demo") as pool:
                narrator.watch(pool)
                _act(server, pool, narrator, published)
                sessions = list(pool.sessions().values())
    finally:
        logger.removeHandler(states)
        logger.setLevel(level)
        logger.propagate = propagate
    console.print(_account(sessions, narrator, published))
    complete = all(narrator.captions[one.id] == published[one.id] for one in sessions)
    survived = narrator.events[LLM_DEFAULT_SESSION]["online"] == 2
    if complete and survived and not server.violations:
        console.print(Text("Every caption arrived, once and in order.", "bold green"))
        return 0
    console.print(Text(f"Something is wrong: {server.violations or 'captions are missing'}", "bold red"))
    return 1


def _act(
    server: LocalServer, pool: ConnectionPool, narrator: _Narrator, published: dict[str, list[str]]
) -> None:
    narrator.say("", "", f"a local server listens on {server.url('')}")
    main = pool.connect(server.url("main"), session_id=LLM_DEFAULT_SESSION)
    practice = pool.connect(server.url("practice"), session_id=LLM_PRACTICE_SESSION)
    _caption_all(server, narrator, published, main, practice)
    narrator.say("", "", "the practice session ends; the main channel goes on")
    pool.disconnect(practice.id, code=3050, reason="done (permanent)")
    _caption_all(server, narrator, published, main)
    narrator.say("", "", "the network drops the main channel")
    server.drop(session="main")
    narrator.wait_event(main.id, "offline", 1)
    main.wait_online(timeout=10)
    _caption_all(server, narrator, published, main)


def _caption_all(
    server: LocalServer, narrator: _Narrator, published: dict[str, list[str]], *sessions: Session
) -> None:
    pace = threading.Event()
    for text in _CAPTIONS:
        for session in sessions:
            key = "main" if session.id == LLM_DEFAULT_SESSION else "practice"
            server.publish({"text": text}, session=key)
            published[session.id].append(text)
        pace.wait(_PACE)
    for session in sessions:
        narrator.wait_captions(session.id, len(published[session.id]))


def _account(sessions: list[Session], narrator: _Narrator, published: dict[str, list[str]]) -> Table:
    table = Table(title="\nSessions", title_justify="left", title_style="bold")
    table.add_column("session", no_wrap=True)
    for heading in ("published", "received", "online", "offline", "latency"):
        table.add_column(heading, justify="right", no_wrap=True)
    for session in sessions:
        name = session.id
        latencies = narrator.latencies[name]
        table.add_row(
            name,
            str(len(published[name])),
            str(len(narrator.captions[name])),
            str(narrator.events[name]["online"]),
            str(narrator.events[name]["offline"]),
            f"{statistics.median(latencies) * 1000:.1f} ms" if latencies else "-",
        )
    return table
