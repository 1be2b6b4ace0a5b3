"""D23: a process that stood still goes on with its sockets, or with one reconnect each, and no storm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import pytest

from llm_sessions.testing.server import LocalServer
from tests.processes.script import Script

Start = Callable[..., Script]

SESSIONS = ("a", "b", "c")
STILL = 1.5
"""Seconds that the process stands still: several keepalives and their timeouts, as a minute is by default."""

CODE = f"""
pool = make_pool(ping_interval=0.2, pong_timeout=0.3)
for key in {SESSIONS}:
    pool.connect(url(key), key)
say("online")
hear()
for key in {SESSIONS}:
    pool.wait_online(key)
say([pool.session(key).stats().reconnects for key in {SESSIONS}])
hear()
"""


def pings(server: LocalServer) -> dict[str, int]:
    return {key: sum(len(one.pings) for one in server.connections(key)) for key in SESSIONS}


@pytest.mark.parametrize("meanwhile", ["nothing", "reset", "close"])
def test_d23_a_suspended_process_reconnects_at_most_once(
    server: LocalServer, script: Start, meanwhile: str
) -> None:
    with script(server, CODE) as process:
        assert process.says() == "online"
        server.wait_for(lambda: min(pings(server).values()) >= 2)
        process.signal(signal.SIGSTOP)
        threading.Event().wait(STILL)
        if meanwhile == "reset":
            server.drop()
        elif meanwhile == "close":
            server.close_session(code=1001)
        before, lost = pings(server), 0 if meanwhile == "nothing" else 1
        process.signal(signal.SIGCONT)
        # Each session is alive again: five more keepalives, on one socket.
        server.wait_for(lambda: all(len(server.live(key)) == 1 for key in SESSIONS))
        server.wait_for(lambda: all(found >= before[key] + 5 for key, found in pings(server).items()))
        process.tell()
        reconnects = process.says()
        for key, reconnected in zip(SESSIONS, reconnects, strict=True):
            connections = server.connections(key)
            assert lost <= reconnected <= 1
            assert len(connections) == 1 + reconnected
            for connection in connections:
                assert len(connection.pings) == len(set(connection.pings))
                pongs = sum(one.get("type") == "pong" for one in list(connection.sent))
                assert len(connection.pings) <= pongs + 1, "one ping at a time"
        process.ends()
