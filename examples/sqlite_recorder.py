"""A recorder: whatever comes on some sessions goes into an SQLite file, once; a stop loses nothing.

    python examples/sqlite_recorder.py

runs against a server of its own, twice on one file. In earnest, with WEBEX_TOKEN and WEBEX_URL in the
environment, and PRACTICE_URL if there is a second session,

    python examples/sqlite_recorder.py events.db

records until Ctrl-C, SIGTERM, SIGHUP, or the end of all sessions, and goes on with the file that is there.

SQLite wants a connection used by the thread that made it, and one writer at a time. So a thread for each
session fetches its messages into a bounded queue that all share, and the main thread, which owns the
connection, writes what is in the queue, as one transaction. If the disk is slow the queue fills up, the
sessions are read no more, and the server waits.

A session that fails is told of at once, and the others go on. A transaction is in the file as a whole or not
at all. If the file cannot be written, because the disk is full or another program holds it for half a minute,
that is the end; what was received and not written by then is lost.

Exit status: 0 after a signal, 1 if all sessions failed or ended for good, 2 for a wrong setting, 74 if the
file cannot be written.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from llm_sessions import (
    ConfigurationError,
    ConnectCancelled,
    ConnectionPool,
    Envelope,
    LLMSessionsError,
    PoolClosed,
)

# A message that comes again, after a reconnect or from another recorder, is there already. One without an id
# cannot be known again, and is kept each time: NULLs are never equal.
SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    session TEXT NOT NULL,
    id TEXT,
    received_at REAL NOT NULL,
    event_type TEXT,
    raw TEXT NOT NULL,
    UNIQUE (session, id)
)
"""
INSERT = "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)"
BATCH = 500

Row = tuple[str, "str | None", float, "str | None", str]


class Recorder:
    """Records sessions into one file, from the thread that calls `run`.

    Args:
        file: The SQLite file; made if need be.
        pool: Where the sessions live; closed in the end.
        stop: Setting it ends `run`, within a second and when all that came is written.
    """

    def __init__(self, file: Path, pool: ConnectionPool, stop: threading.Event) -> None:
        self._file, self._pool, self._stop = file, pool, stop
        # Rows, and None from each thread that is through.
        self._rows: queue.Queue[Row | None] = queue.Queue(maxsize=10 * BATCH)
        self.errors: list[Exception] = []

    def run(self, sessions: Mapping[str, str]) -> int:
        """Connect the sessions, by id and URL; record until they have ended; return how many rows are new.

        Raises:
            sqlite3.Error: If the file cannot be written; the sessions are closed.
        """
        with contextlib.closing(sqlite3.connect(self._file, timeout=30)) as database:
            database.execute("PRAGMA journal_mode = WAL")  # others can read meanwhile
            with database:
                database.execute(SCHEMA)
            threads = [threading.Thread(target=self._fetch, args=item) for item in sessions.items()]
            for thread in threads:
                thread.start()
            try:
                for batch in self._batches(len(threads)):
                    with database:  # one transaction, and one wait for the disk
                        database.executemany(INSERT, batch)
            finally:
                self._pool.close()  # also if the disk is full: nobody empties the queue any more
                self._drop_what_is_left(threads)
            return database.total_changes

    def _fetch(self, session_id: str, url: str) -> None:
        try:
            # Before the connect, so that nothing is missed.
            with self._pool.session(session_id).messages() as messages:
                self._pool.connect(url, session_id, timeout=None)
                # Ends when the pool is closed, with what came before.
                for envelope in messages:
                    self._rows.put(self._row(envelope))
        except (ConnectCancelled, PoolClosed):
            pass  # closed by us while it was connecting
        except LLMSessionsError as exc:
            print(exc, file=sys.stderr)  # now: the others may go on for days
            self.errors.append(exc)
        finally:
            self._rows.put(None)

    @staticmethod
    def _row(envelope: Envelope) -> Row:
        name = None if envelope.id is None else str(envelope.id)
        raw = json.dumps(envelope.raw, ensure_ascii=False)
        return (envelope.session_id, name, time.time(), envelope.event_type, raw)

    def _batches(self, threads: int) -> Iterator[list[Row]]:
        """Yield what is in the queue, again and again, until all threads are through."""
        while threads:
            if self._stop.is_set():
                self._pool.close()  # the second time it does nothing
            try:
                # Python calls signal handlers in this thread. One that comes when it is just about to wait is
                # called when the wait ends, so it ends every second.
                batch = [self._rows.get(timeout=1)]
            except queue.Empty:
                continue
            with contextlib.suppress(queue.Empty):
                while len(batch) < BATCH:
                    batch.append(self._rows.get_nowait())
            threads -= batch.count(None)
            yield [row for row in batch if row is not None]

    def _drop_what_is_left(self, threads: list[threading.Thread]) -> None:
        while any(thread.is_alive() for thread in threads):
            with contextlib.suppress(queue.Empty):
                self._rows.get(timeout=0.1)


def record(file: Path, sessions: Mapping[str, str], token: str) -> int:
    """Record until a signal comes, or until all sessions have ended; return the exit status."""
    stop = threading.Event()
    # Nothing is interrupted: no transaction, and no message between the queue and the file. The main thread
    # looks at this Event but never waits for it: set() in the middle of its own wait() may wait for itself.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # which nohup means
            signal.signal(number, lambda *_: stop.set())
    try:
        with ConnectionPool(token) as pool:
            recorder = Recorder(file, pool, stop)
            new = recorder.run(sessions)
    except ConfigurationError as exc:
        print(exc, file=sys.stderr)
        return 2
    except sqlite3.Error as exc:
        print(f"{file}: {exc}", file=sys.stderr)
        return os.EX_IOERR
    print(f"{new} new events in {file.name}")
    if stop.is_set():
        return 0
    return 2 if any(isinstance(error, ConfigurationError) for error in recorder.errors) else 1


def main() -> int:
    if not {"WEBEX_URL", "WEBEX_TOKEN"} & set(os.environ) and len(sys.argv) == 1:
        return rehearse()
    if not {"WEBEX_URL", "WEBEX_TOKEN"} <= set(os.environ) or len(sys.argv) != 2:
        print("usage: WEBEX_TOKEN=... WEBEX_URL=... sqlite_recorder.py FILE", file=sys.stderr)
        return 2
    sessions = {"main": os.environ["WEBEX_URL"]}
    if "PRACTICE_URL" in os.environ:
        sessions["practice"] = os.environ["PRACTICE_URL"]
    return record(Path(sys.argv[1]), sessions, os.environ["WEBEX_TOKEN"])


def rehearse() -> int:
    """Record a server of our own twice. The second time it says again what was said last."""
    from llm_sessions.testing.server import LocalServer

    names = ("main", "practice")

    def is_online(server: LocalServer, name: str) -> bool:
        # The first acknowledgement is that of having heard so.
        return any(one.acks for one in server.live(name))

    def speak(server: LocalServer, texts: tuple[str, ...]) -> None:
        try:
            for name in names:
                server.wait_for(functools.partial(is_online, server, name))
                for text in texts:
                    server.publish({"text": text}, session=name, id=f"{name}-{text}")
            last = {f"{name}-{texts[-1]}" for name in names}
            server.wait_for(lambda: last <= {ack for one in server.connections() for ack in one.acks})
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    status = 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "events.db"
        for texts in (("one", "two"), ("two", "three")):
            with LocalServer() as server:
                speaker = threading.Thread(target=speak, args=(server, texts))
                speaker.start()
                status |= record(file, {name: server.url(name) for name in names}, "any-token")
                speaker.join()
        with contextlib.closing(sqlite3.connect(file)) as database:
            for name in names:
                query = (
                    "SELECT raw FROM events WHERE event_type = 'relay.event' AND session = ? ORDER BY rowid"
                )
                said = [json.loads(raw)["data"]["text"] for (raw,) in database.execute(query, [name])]
                print(f"{name}: {', '.join(said)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
