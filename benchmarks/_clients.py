"""One client process of the benchmarks: connects all sessions, takes the traffic, prints what it cost.

Run by `_driver.py` with the name of a client and a task. It prints `{"ready": true}` once all sessions are
connected, and its result as one line of JSON. CPU is that of the whole process, from `ready` until the last
message is with its listener.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import json
import os
import re
import resource
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any, Protocol

CONNECT_TIMEOUT, TRAFFIC_TIMEOUT = 60.0, 120.0  # seconds
SETTLE = 0.3  # seconds after the last connect: first pings, pongs and acks are no part of the traffic
QUIET = 60.0  # seconds between keepalives while idle
Listener = Callable[[Any], None]
Result = dict[str, float]


class Client(Protocol):
    """A way to keep sessions."""

    def connect(self, listener: Listener | None) -> None: ...

    def wait_online(self) -> None:
        """Until all are, for clients whose `connect` returns before."""

    def sent_at(self, message: Any) -> int:
        """When the server sent what a listener was called with, in nanoseconds of the monotonic clock."""

    def disconnect_all(self) -> None: ...


class Raw:
    """What one writes by hand: a thread for each socket, a loop over `recv`, `json.loads`, an ack."""

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        self.url, self.sslopt = url, {"context": context} if context else None
        self.sockets: list[Any] = []
        self.authorized = threading.Semaphore(0)

    def connect(self, listener: Listener | None) -> None:
        self.begin(listener)
        self.wait_authorized()

    def begin(self, listener: Listener | None) -> None:
        import websocket

        def loop() -> None:
            ws.recv()  # the server says that it is ready
            self.authorized.release()
            while True:
                message = json.loads(ws.recv())
                if "id" in message:
                    ws.send(json.dumps({"messageId": message["id"], "type": "ack"}))
                if listener is not None and message.get("data", {}).get("eventType") == "relay.event":
                    listener(message)

        ws = websocket.create_connection(self.url, sslopt=self.sslopt, skip_utf8_validation=True)
        ws.send(json.dumps({"id": "0", "type": "authorization", "data": {"token": "Bearer t"}}))
        self.sockets.append(ws)
        threading.Thread(target=loop, daemon=True).start()

    def wait_authorized(self) -> None:
        if not self.authorized.acquire(timeout=CONNECT_TIMEOUT):
            raise SystemExit("the server did not say that it is ready")

    def wait_online(self) -> None:
        """Nothing to wait for."""

    def sent_at(self, message: Any) -> int:
        return int(message["data"]["sentAt"])

    def disconnect_all(self) -> None:
        """Nothing: the end of the process closes the sockets."""


class RawAhead(Raw):
    """The same, but it opens the next socket without waiting until the one before is online."""

    def connect(self, listener: Listener | None) -> None:
        self.begin(listener)

    def wait_online(self) -> None:
        for _ in self.sockets:
            self.wait_authorized()


class Pool:
    """Ours: one `ConnectionPool`, a listener for each session."""

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        from llm_sessions import ConnectionPool, PoolConfig

        self.url, self.numbers = url, itertools.count()
        self.pool = ConnectionPool("t", config=PoolConfig(ssl_context=context, ping_interval=QUIET))

    def connect(self, listener: Listener | None) -> None:
        session_id = f"s{next(self.numbers)}"
        if listener is not None:
            self.pool.on("event:relay.event", listener, session_id=session_id)
        self.pool.connect(self.url, session_id=session_id, timeout=CONNECT_TIMEOUT)

    def wait_online(self) -> None:
        """Nothing to wait for."""

    def sent_at(self, message: Any) -> int:
        return int(message.data["sentAt"])

    def disconnect_all(self) -> None:
        self.pool.disconnect_all()
        self.pool.close()


class Slack:
    """slack_sdk's socket mode as its documentation says: one listener, which acks the envelope first."""

    def __init__(self, url: str, path: str) -> None:
        self.url = url + path
        self.clients: list[Any] = []

    def make(self) -> Any:
        raise NotImplementedError

    def connect(self, listener: Listener | None) -> None:
        from slack_sdk.socket_mode.response import SocketModeResponse

        def process(client: Any, request: Any) -> None:
            client.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id))
            if listener is not None:
                listener(request)

        client = self.make()
        client.wss_uri = self.url  # otherwise it asks Slack for one
        client.socket_mode_request_listeners.append(process)
        client.connect()
        self.clients.append(client)

    def wait_online(self) -> None:
        if not all(client.is_connected() for client in self.clients):
            raise SystemExit("slack_sdk did not connect")

    def sent_at(self, message: Any) -> int:
        return int(message.payload["data"]["sentAt"])

    def disconnect_all(self) -> None:
        """Nothing: a thousand of its workers are slow to join, and nobody measures it."""


class SlackBuiltin(Slack):
    """Its parser calls itself for each frame and returns when a read ends with one: no endless flood."""

    def __init__(self, url: str, _context: ssl.SSLContext | None) -> None:
        super().__init__(url, "slack?window=32")

    def make(self) -> Any:
        from slack_sdk.socket_mode import SocketModeClient

        return SocketModeClient(app_token="xapp-t")


class SlackWebsocket(Slack):
    def __init__(self, url: str, _context: ssl.SSLContext | None) -> None:
        super().__init__(url, "slack")
        self.opened = threading.Semaphore(0)

    def make(self) -> Any:
        from slack_sdk.socket_mode.websocket_client import SocketModeClient

        opened = [lambda _socket: self.opened.release()]
        return SocketModeClient(app_token="xapp-t", on_open_listeners=opened)

    def wait_online(self) -> None:
        for _ in self.clients:  # its connect lets a thread of its own do it, within half a second
            if not self.opened.acquire(timeout=CONNECT_TIMEOUT):
                raise SystemExit("slack_sdk did not connect")


CLIENTS: dict[str, Callable[[str, ssl.SSLContext | None], Client]] = {
    "raw": Raw,
    "raw-ahead": RawAhead,
    "pool": Pool,
    "slack-builtin": SlackBuiltin,
    "slack-websocket": SlackWebsocket,
}


# Measurements


class Countdown:
    """Makes a listener for each session; `done` is set once each of them got all its messages."""

    def __init__(self, sessions: int, messages: int) -> None:
        self.messages, self.done = messages, threading.Event()
        self.sessions, self.complete = sessions, itertools.count(1)
        self.latencies: list[int] = []

    def listener(self) -> Listener:
        numbers, last = itertools.count(1), self.messages  # a count is atomic: slack_sdk has ten threads

        def count(_message: Any) -> None:
            if next(numbers) == last and next(self.complete) == self.sessions:
                self.done.set()

        return count

    def timing_listener(self, sent_at: Callable[[Any], int]) -> Listener:
        count, note, now = self.listener(), self.latencies.append, time.monotonic_ns

        def time_it(message: Any) -> None:
            note(now() - sent_at(message))
            count(message)

        return time_it


def traffic(client: Client, sessions: int, messages: int, timed: bool) -> Result:
    """A flood, or paced messages that say when they were sent."""
    countdown = Countdown(sessions, messages)
    for _ in range(sessions):
        client.connect(countdown.timing_listener(client.sent_at) if timed else countdown.listener())
    client.wait_online()
    time.sleep(SETTLE)
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    print(json.dumps({"ready": True}), flush=True)
    if not countdown.done.wait(TRAFFIC_TIMEOUT):
        raise SystemExit(f"{next(countdown.complete) - 1} of {sessions} sessions got all their messages")
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    total = sessions * messages
    result = {
        "cpu": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e6 / total,
        "system": (after.ru_stime - before.ru_stime) * 1e6 / total,
        "wall": wall * 1e6 / total,
        "voluntary": (after.ru_nvcsw - before.ru_nvcsw) / total,
        "involuntary": (after.ru_nivcsw - before.ru_nivcsw) / total,
    }
    if timed:
        hundredths = quantiles(countdown.latencies, n=100, method="inclusive")
        result.update(p50=hundredths[49] / 1e3, p99=hundredths[98] / 1e3)
    client.disconnect_all()
    return result


def resident() -> int:
    """Bytes resident after a full collection, and after malloc has given back what it keeps for later."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return int(re.findall(r"(?m)^Rss:\s+(\d+) kB", rollup)[0]) * 1024


def idle(client: Client, sessions: int, seconds: float, listen: bool) -> Result:
    """What sessions cost that nobody says anything to; one more is there before the first measurement."""
    listener = (lambda _message: None) if listen else None
    client.connect(listener)
    time.sleep(SETTLE)
    base = resident()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(sessions):
        client.connect(listener)
    client.wait_online()
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - began
    result = {
        "connect": wall,
        "connect_cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }
    time.sleep(SETTLE)
    result["rss"] = (resident() - base) / sessions / 1024
    print(json.dumps({"ready": True}), flush=True)
    before = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(seconds)  # this thread's own switch is taken off again
    after = resource.getrusage(resource.RUSAGE_SELF)
    result["wakeups"] = after.ru_nvcsw - before.ru_nvcsw - 1
    result["idle_cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    began = time.perf_counter()
    client.disconnect_all()
    result["disconnect"] = time.perf_counter() - began
    return result


def main(name: str, task: dict[str, Any]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = ssl.create_default_context(cafile=task["ca_file"]) if task["ca_file"] else None
    client = CLIENTS[name](task["url"], context)
    if task["kind"] == "idle":
        result = idle(client, task["sessions"], task["seconds"], task["listen"])
    else:
        result = traffic(client, task["sessions"], task["messages"], task["kind"] == "paced")
    print(json.dumps(result), flush=True)
    os._exit(0)  # slack_sdk's workers would be joined, and are not told to end


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
