"""CPU of a client process per message when the server sends as fast as the sockets take it.

    python benchmarks/flood.py                  # 1 and 100 sessions, 1 KB messages, plain
    python benchmarks/flood.py --tls --size 100 1024 10240 --repeat 9 --no-orjson

`raw` is what one writes by hand: a thread for each socket that loops over websocket-client's `recv`,
`json.loads`, an ack and the listener. `pool` is a `ConnectionPool` with a listener for each session. Every
figure comes from a fresh process: it connects all sessions, then counts its own CPU from the start of the
flood until the last message is with its listener. The server is another process, and counts the acks. raw and
pool take turns, and the ratio is that of two neighbours: a machine that slows down meanwhile slows both.

Look at `others` before you believe a figure of many sessions. Threads fight for the GIL only where a second
core is free to wake them: on two idle cores raw takes some 115 µs a message with 100 sessions, 30 to 40 when
other programs keep a core busy (`others` near 1) or under `taskset -c 0`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve()
CONNECT_TIMEOUT, FLOOD_TIMEOUT, EXIT_TIMEOUT = 60.0, 120.0, 15.0  # seconds
Listener = Callable[[Any], None]
Result = dict[str, float]


# The child: one client process, one measurement.


class Countdown:
    """Makes a listener for each session; `done` is set once each of them got all its messages."""

    def __init__(self, sessions: int, messages: int) -> None:
        self.sessions, self.messages = sessions, messages
        self.done = threading.Event()
        self.lock = threading.Lock()

    def listener(self) -> Listener:
        left = self.messages

        def count(_envelope: Any) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                with self.lock:
                    self.sessions -= 1
                    if self.sessions == 0:
                        self.done.set()

        return count


def start_raw(url: str, context: ssl.SSLContext | None, countdown: Countdown) -> Callable[[], None]:
    """The hand-written peer; returns what closes it."""
    import websocket

    def loop(ws: websocket.WebSocket, listener: Listener) -> None:
        while True:
            message = json.loads(ws.recv())
            if "id" in message:
                ws.send(json.dumps({"messageId": message["id"], "type": "ack"}))
            if message.get("data", {}).get("eventType") == "relay.event":
                listener(message)

    for _ in range(countdown.sessions):
        sslopt = {"context": context} if context else None
        ws = websocket.create_connection(url, sslopt=sslopt, skip_utf8_validation=True)
        ws.send(json.dumps({"id": "0", "type": "authorization", "data": {"token": "Bearer t"}}))
        threading.Thread(target=loop, args=(ws, countdown.listener()), daemon=True).start()
    return lambda: None  # the end of the process closes the sockets


def start_pool(url: str, context: ssl.SSLContext | None, countdown: Countdown) -> Callable[[], None]:
    """Ours; returns what closes it."""
    from llm_sessions import ConnectionPool, PoolConfig

    pool = ConnectionPool(token="t", config=PoolConfig(ssl_context=context))
    for number in range(countdown.sessions):
        session_id = f"s{number}"
        pool.on("event:relay.event", countdown.listener(), session_id=session_id)
        pool.connect(url, session_id=session_id, timeout=CONNECT_TIMEOUT)
    return pool.close


CLIENTS = {"raw": start_raw, "pool": start_pool}


def child(client: str, url: str, ca_file: str | None, sessions: int, messages: int) -> None:
    """Connect, say so, take the flood, print what it cost."""
    context = ssl.create_default_context(cafile=ca_file) if ca_file else None
    countdown = Countdown(sessions, messages)
    close = CLIENTS[client](url, context, countdown)
    time.sleep(0.3)  # first pings, pongs and acks are no part of the flood
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    print(json.dumps({"ready": True}), flush=True)
    if not countdown.done.wait(FLOOD_TIMEOUT):
        raise SystemExit(f"{countdown.sessions} of {sessions} sessions still wait for messages")
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    total = sessions * messages
    result = {
        "cpu": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e6 / total,
        "system": (after.ru_stime - before.ru_stime) * 1e6 / total,
        "wall": wall * 1e6 / total,
        "voluntary": (after.ru_nvcsw - before.ru_nvcsw) / total,
        "involuntary": (after.ru_nivcsw - before.ru_nivcsw) / total,
    }
    close()
    print(json.dumps(result), flush=True)


# The driver: a server for each cell of the table, children in turn.


def spawn(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *arguments], stdin=pipe, stdout=pipe, bufsize=0, env=environment)


def answer(process: subprocess.Popen[bytes], timeout: float) -> dict[str, Any]:
    """The next line of a process, which is JSON."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], timeout)[0]:
        raise SystemExit(f"no answer within {timeout:g} s: {process.args!r}")
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"ended without an answer: {process.args!r}")
    found: dict[str, Any] = json.loads(line)
    return found


def machine_cpu() -> float:
    """Seconds of CPU that all processes together, and the host, have taken from this machine (Linux)."""
    user, nice, system, _idle, _iowait, *interrupts = Path("/proc/stat").read_text().split(None, 9)[1:9]
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")


def measure(
    client: str, task: dict[str, Any], server: subprocess.Popen[bytes], environment: dict[str, str]
) -> Result:
    """One child from start to end."""
    assert server.stdin is not None
    process = spawn([str(HERE), "--child", client, json.dumps(task)], environment)
    try:
        answer(process, CONNECT_TIMEOUT + 10)
        busy, began = machine_cpu(), time.perf_counter()
        server.stdin.write(b"go\n")
        result: Result = answer(process, FLOOD_TIMEOUT + 10)
        busy, seconds = machine_cpu() - busy, time.perf_counter() - began
        process.wait(EXIT_TIMEOUT)
        counted = answer(server, EXIT_TIMEOUT)
    finally:
        process.kill()
        process.wait()
    total = task["sessions"] * task["messages"]
    if counted["acks"] < total:
        raise SystemExit(f"{client} acked {counted['acks']} of {total} messages")
    others = max(0.0, busy - result["cpu"] * total / 1e6 - counted["cpu"]) / seconds
    return {**result, "server": counted["cpu"] * 1e6 / total, "others": others}


def cell(sessions: int, size: int, options: argparse.Namespace) -> None:
    """Measure all clients in turn and print a line for each."""
    total = options.messages or min(60_000, 120_000_000 // size)
    messages = max(1, total // sessions)
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment["PYTHONPATH"] = f"{HERE.parents[1]}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    if options.no_orjson:
        environment["LLM_SESSIONS_JSON"] = "json"
    results: dict[str, list[Result]] = {client: [] for client in options.clients}
    with tempfile.TemporaryDirectory() as folder:
        ca_file = str(Path(folder, "ca.pem")) if options.tls else None
        task = {"messages": messages, "size": size, "chunk": options.chunk, "ca_file": ca_file}
        server = spawn([str(HERE.with_name("_server.py")), json.dumps(task)], environment)
        try:
            url = answer(server, CONNECT_TIMEOUT)["url"]
            task = {"url": url, "ca_file": ca_file, "sessions": sessions, "messages": messages}
            for _ in range(options.repeat):
                for client in options.clients:
                    results[client].append(measure(client, task, server, environment))
        finally:
            server.kill()
            server.wait()
    for client, rows in results.items():
        cpu, *others = ([row[key] for row in rows] for key in COLUMNS)
        line = f"{sessions:>8} {size:>6}  {client:<5}{spread(cpu, 1):>20}"
        line += "".join(f"{median(values):>9.2f}" for values in others)
        if client != "raw" and "raw" in results:
            ratios = [ours / row["cpu"] for ours, row in zip(cpu, results["raw"], strict=True)]
            line += f"  {spread(ratios, 2):>18}"
        print(line, flush=True)


COLUMNS = ("cpu", "system", "wall", "voluntary", "involuntary", "server", "others")
HEADER = (
    "sessions  bytes  client      cpu (min-max)   system     wall   switch preempted   server   others"
    "  pool/raw (min-max)"
)


def spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--size", type=int, nargs="+", default=[1024], help="bytes, 100 to 65000")
    parser.add_argument("--messages", type=int, help="of all sessions (default 60000, fewer if large)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--chunk", type=int, default=65_536, help="bytes a write; 1: a TLS record a message")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--no-orjson", action="store_true", help="the library uses json, as raw always does")
    parser.add_argument("--child", nargs=2, metavar=("CLIENT", "TASK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], **json.loads(options.child[1]))
        return
    library = "json" if options.no_orjson else "orjson if importable"
    wire = "TLS" if options.tls else "plain"
    print(f"{wire}, {options.repeat} runs each, raw with json, pool with {library}")
    print("cpu, system, wall, server: µs a message; switch, preempted: context switches a message;")
    print("others: cores that other programs kept busy meanwhile")
    print(HEADER)
    for size in options.size:
        for sessions in options.sessions:
            cell(sessions, size, options)


if __name__ == "__main__":
    main()
