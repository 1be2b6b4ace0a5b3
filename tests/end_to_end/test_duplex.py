"""D15: disconnecting and connecting again on wss while both directions are full, many times."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from llm_sessions import ConnectionPool, LLMSessionsError, Session, SessionState
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, Background

CYCLES = int(os.environ.get("DUPLEX_CYCLES", "6"))
"""`make duplex` asks for 200."""


class Load:
    """Two threads that send through a session, and two that publish to it, until it is over."""

    def __init__(self, server: LocalServer, session: Session) -> None:
        self._server, self._session = server, session
        self._over = threading.Event()
        self.sent = self.published = 0
        self._threads = [Background(call) for call in (self._send, self._send, self._publish, self._publish)]

    def _send(self) -> None:
        text = "s" * 20_000
        while not self._over.is_set():
            try:
                self._session.send({"id": "1", "type": "publishRequest", "data": {"text": text}})
                self.sent += 1
            except LLMSessionsError:
                self._over.wait(0.001)  # between two connections

    def _publish(self) -> None:
        data = {"text": "p" * 20_000}
        while not self._over.is_set():
            if not self._server.live("s"):
                self._over.wait(0.001)
                continue
            self._server.publish(data, session="s")
            self.published += 1

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.result()


@pytest.mark.stress
@pytest.mark.timeout(60 + CYCLES * 2)
@pytest.mark.parametrize("tls", ["tls"], indirect=True)
def test_d15_disconnect_and_reconnect_under_full_duplex_load(
    server: LocalServer, make_pool: Callable[..., ConnectionPool]
) -> None:
    pool = make_pool(queue_size=100, when_full="drop_oldest")
    got = threading.Semaphore(0)
    pool.on("event:relay.event", lambda envelope: got.release(), session_id="s")
    session = pool.connect(server.url("s"), session_id="s", timeout=LONG)
    load = Load(server, session)
    try:
        for cycle in range(CYCLES):
            for _ in range(5):
                assert got.acquire(timeout=LONG), f"nothing came in cycle {cycle}"
            if cycle % 3 == 2:
                server.drop(session="s")  # the network's end, and the client's own reconnect
            else:
                pool.disconnect("s")
                assert session.state is SessionState.IDLE
            assert session is pool.connect(server.url("s"), session_id="s", timeout=LONG)
            while got.acquire(blocking=False):
                pass
        assert load.sent > 0 and load.published > 0
    finally:
        load.end()
    pool.close()
