"""A web application with captions: Flask answers requests, and a pool listens in the background.

    python examples/flask_captions.py

runs against a server of its own, asks the application what it shows, and ends. In earnest, with WEBEX_URL and
WEBEX_TOKEN in the environment:

    flask --app examples/flask_captions.py run
    gunicorn --worker-class gthread --workers 2 'examples.flask_captions:create_app()'

    GET /captions    the latest captions, oldest first
    GET /stats       what the pool of the process that answers has counted

A pool belongs to the process that made it, and servers fork their workers, often after the application was
made (gunicorn's --preload). So each process makes its own with the first request that it answers, and has a
socket of its own, which is closed when the worker ends. A child forgets whatever its parent had: a lock that
another thread held at the fork would never be released in it.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import threading
import time
import urllib.request
from typing import Any

from flask import Flask
from werkzeug.serving import make_server

from llm_sessions import (
    ConnectCancelled,
    ConnectionPool,
    Envelope,
    LLMSessionsError,
    PoolClosed,
    PoolStats,
    SessionState,
)

logger = logging.getLogger(__name__)


def final_captions(envelope: Envelope) -> list[str]:
    """Return the captions in a message that stay as they are; none if it is about something else."""
    payload = envelope.data.get("voiceaPayload", {})
    if payload.get("type") != "transcript_final_result":
        return []
    return [one["text"] for one in payload["transcripts"]]


class Captions:
    """The latest captions of a session, heard in the background.

    Args:
        url: The session's WebSocket URL.
        token: The access token.
        keep: How many captions to keep.
    """

    def __init__(self, url: str, token: str, keep: int = 50) -> None:
        self._url, self._token, self._keep = url, token, keep
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lock = threading.Lock()  # listeners run on the session's thread, requests on others
        self._texts: collections.deque[str] = collections.deque(maxlen=self._keep)
        self._pool: ConnectionPool | None = None

    def start(self) -> None:
        """Start to listen, the first time that this is called in a process. Waits for nothing."""
        with self._lock:
            if self._pool is not None:
                return
            pool = self._pool = ConnectionPool(self._token, name="captions")
        pool.on("event:relay.event", self._hear, session_id="captions")
        # A request should not wait for the network. The pool is closed at exit by itself.
        threading.Thread(target=self._connect, args=(pool,), name="connect", daemon=True).start()

    def latest(self) -> list[str]:
        with self._lock:
            return list(self._texts)

    def stats(self) -> PoolStats | None:
        """What the pool has counted; None before `start`."""
        with self._lock:
            pool = self._pool
        return pool.stats() if pool is not None else None

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()  # not under the lock: it waits for the listener, who wants it

    def _connect(self, pool: ConnectionPool) -> None:
        try:
            session = pool.connect(self._url, "captions", timeout=None)  # tries until it is online
            session.wait_closed()  # it reconnects by itself meanwhile
            if session.state is SessionState.OFFLINE:  # and not closed by us
                logger.error("there are no captions any more: %s", session.last_error)
        except (ConnectCancelled, PoolClosed):
            pass  # the process ends
        except LLMSessionsError as exc:
            logger.error("there are no captions: %s", exc)

    def _hear(self, envelope: Envelope) -> None:
        with self._lock:
            self._texts.extend(final_captions(envelope))


def as_json(stats: PoolStats) -> dict[str, Any]:
    """Return statistics as JSON can say them: states are enums."""
    sessions = {
        name: {**dataclasses.asdict(one), "state": one.state.value} for name, one in stats.sessions.items()
    }
    return {**dataclasses.asdict(stats), "sessions": sessions}


def create_app(captions: Captions | None = None) -> Flask:
    """Make the application; by default with the session that the environment names."""
    app = Flask(__name__)
    source = captions or Captions(os.environ["WEBEX_URL"], os.environ["WEBEX_TOKEN"])
    app.before_request(source.start)

    @app.get("/captions")
    def latest_captions() -> dict[str, Any]:
        return {"captions": source.latest()}

    @app.get("/stats")
    def stats() -> tuple[dict[str, Any], int]:
        found = source.stats()
        return (as_json(found), 200) if found is not None else ({}, 503)

    return app


def main() -> None:
    from llm_sessions.testing.captions import CaptionService
    from llm_sessions.testing.server import LocalServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it logs each request
    with LocalServer() as server:
        service, captions = CaptionService(server), Captions(server.url("captions"), "any-token")
        web = make_server("127.0.0.1", 0, create_app(captions), threaded=True)
        serving = threading.Thread(target=web.serve_forever)
        serving.start()
        address = f"http://127.0.0.1:{web.server_port}"

        def ask(path: str) -> dict[str, Any]:
            with urllib.request.urlopen(f"{address}/{path}", timeout=10) as answer:
                return dict(json.load(answer))

        print("captions at first:", ask("captions")["captions"])
        server.wait_live("captions")
        for text in ("Welcome, everyone.", "Can everybody hear me?"):
            service.transcript(text, session="captions")
        heard: list[str] = []
        while len(heard) < 2:
            time.sleep(0.05)
            heard = ask("captions")["captions"]
        print("captions:", heard)
        stats = ask("stats")
        print("state:", stats["sessions"]["captions"]["state"], "- messages:", stats["messages_in"])

        web.shutdown()
        serving.join()
        web.server_close()
        captions.close()


if __name__ == "__main__":
    main()
