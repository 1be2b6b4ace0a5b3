"""D23 by hand: the wall clock jumps by an hour, both ways, under a process with sessions.

    apt-get install faketime
    python -m pytest -p no:cacheprovider tests/manual/clock_jumps.py

It is no part of the suite because it needs libfaketime in the child process.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trustme

from llm_sessions.testing.server import LocalServer
from tests.processes.script import Script

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)

CODE = """
pool = make_pool(ping_interval=0.1, pong_timeout=5.0)
events = []
for name in ("offline", "online", "connection_failed"):
    pool.on(name, lambda event: events.append(type(event).__name__), session_id=ALL_SESSIONS)
for key in ("a", "b"):
    pool.connect(url(key), key)
say(time.time())
for _ in range(2):
    hear()
    started, wall = time.monotonic(), time.time()
    try:
        pool.session("nobody").wait_online(timeout=0.5)
    except WaitTimeout:
        pass
    states = {key: session.state.value for key, session in pool.sessions().items()}
    say([time.monotonic() - started, wall, len(events), states])
hear()
"""


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("jump", ["+1h", "-1h"])
def test_d23_a_clock_that_jumps_ends_nothing(
    server: LocalServer, authority: trustme.CA, tls: bool, jump: str, tmp_path: Path
) -> None:
    assert LIBRARY is not None, "apt-get install faketime"
    bundle, clock = tmp_path / "ca.pem", tmp_path / "clock"
    authority.cert_pem.write_to_path(str(bundle))
    clock.write_text("+0")
    env = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # as when somebody sets the clock
    }
    with Script(server, CODE, ca_file=bundle if tls else None, env=env) as process:
        began = process.says()
        walls = []
        for now in (jump, "+0"):
            clock.write_text(now)
            pings = [len(one.pings) for one in server.live()]
            process.tell()
            took, wall, events, states = process.says()
            walls.append(wall)
            assert 0.4 < took < 5
            assert events == 2, "each session came online once, and nothing else happened"
            assert states == {"a": "online", "b": "online", "nobody": "idle"}
            server.wait_for(
                lambda pings=pings: all(  # type: ignore[misc]
                    len(one.pings) > before for one, before in zip(server.live(), pings, strict=True)
                )
            )
            threading.Event().wait(0.3)
            assert all(len(one.pings) - before < 60 for one, before in zip(server.live(), pings, strict=True))
        assert abs(walls[0] - began) > 3000, "the clock did not jump"
        assert abs(walls[1] - began) < 60, "the clock did not jump back"
        process.ends()
    assert [one.close_code for one in server.connections()] == [1000, 1000]
