"""D25 by hand: the cable is pulled for some seconds under a process with sessions.

    sudo python tests/manual/cable_pull.py [seconds]

The client runs in a network namespace of its own, joined to the server's by a pair of virtual Ethernet
devices; the cable is pulled with `ip link set … down`. It needs root and iproute2, and removes what it made.
The token crosses the pair in the clear, which the client has to allow.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from llm_sessions import ALL_SESSIONS, ConnectionPool, PoolConfig  # noqa: E402
from llm_sessions.testing.server import LocalServer  # noqa: E402

SPACE, OURS, THEIRS = "llm-cable", "llm-cable0", "llm-cable1"
SERVER, CLIENT = "198.51.100.1", "198.51.100.2"
TOKEN = "s3cret-of-the-cable"
SESSIONS = ("a", "b", "c")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def cable() -> Iterator[None]:
    ip("netns", "add", SPACE)
    try:
        ip("link", "add", OURS, "type", "veth", "peer", "name", THEIRS)
        ip("link", "set", THEIRS, "netns", SPACE)
        ip("addr", "add", f"{SERVER}/24", "dev", OURS)
        ip("link", "set", OURS, "up")
        ip("-n", SPACE, "addr", "add", f"{CLIENT}/24", "dev", THEIRS)
        ip("-n", SPACE, "link", "set", THEIRS, "up")
        yield
    finally:
        ip("netns", "del", SPACE)  # and the pair with it


def client(base: str) -> None:
    """Run in the namespace: stay online until a line comes, then say what happened."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(f"{record.levelname} {record.getMessage()}")

    logging.basicConfig(level=logging.DEBUG, handlers=[Keep()])
    started = time.monotonic()
    events: list[tuple[float, str, str]] = []
    config = PoolConfig(ping_interval=2, pong_timeout=2, allow_insecure=True, backoff_max=4, open_timeout=4)
    with ConnectionPool(TOKEN, config=config) as pool:
        for name in ("online", "offline"):
            pool.on(
                name,
                lambda event, name=name: events.append(  # type: ignore[misc]
                    (round(time.monotonic() - started, 1), name, event.session_id)
                ),
                session_id=ALL_SESSIONS,
            )
        for key in SESSIONS:
            pool.connect(base + key, key)
        print("online", flush=True)
        sys.stdin.readline()
        happened = list(events)
        attempts = {key: one.stats().attempts for key, one in pool.sessions().items()}
        states = {key: one.state.value for key, one in pool.sessions().items()}
    loud = [line for line in records if not line.startswith("DEBUG")]
    leaks = [line for line in records if TOKEN in line]
    print(json.dumps([happened, attempts, states, len(loud), len(records), len(leaks)]), flush=True)


def main(seconds: float) -> None:
    still = threading.Event()
    with cable(), LocalServer(host=SERVER) as server:
        command = ["ip", "netns", "exec", SPACE, sys.executable, __file__, "client", server.url("")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "online\n"
            still.wait(3)
            print(f"pulled for {seconds} s")
            ip("link", "set", OURS, "down")
            still.wait(seconds)
            ip("link", "set", OURS, "up")
            pulled_until = time.monotonic()
            server.wait_for(
                lambda: all(any(c.accepted_at > pulled_until for c in server.live(key)) for key in SESSIONS),
                timeout=30,
            )
            print(f"all online again {time.monotonic() - pulled_until:.1f} s after it was back")
            said, _ = process.communicate("\n", timeout=30)
        events, attempts, states, loud, records, leaks = json.loads(said)
        print("events:", *events, sep="\n  ")
        print("attempts:", attempts, "states:", states)
        print(f"log: {loud} lines above DEBUG of {records}; {leaks} with the token")
        assert [name for _, name, key in events if key == "a"] == ["online", "offline", "online"]
        assert set(states.values()) == {"online"}
        assert leaks == 0
        assert loud < 30 * len(SESSIONS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        client(sys.argv[2])
    else:
        assert os.geteuid() == 0, "it needs root"
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0)
