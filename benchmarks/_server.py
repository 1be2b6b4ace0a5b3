"""The far end of the benchmarks: a process that serves WebSocket clients and costs them little.

It prints its URL, takes clients until the line `go` arrives on stdin, then sends what its task says: a flood
of frames encoded beforehand, a few messages a second that carry the time, or nothing. When the last client
has left it prints what it counted and serves the next round. It ends when stdin does. Clients of `/` are
spoken to as a data channel does, those of `/slack` in the envelopes of Slack's socket mode;
`/slack?window=32` sends the next 32 messages when the last 32 are acked.

While there is traffic it never waits for a client's frames: a process asleep in poll would be woken by each
single ack, and the kernel charges that wake to the client. It reads every socket once in a `TICK` instead.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import resource
import selectors
import socket
import ssl
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICK = 0.005  # seconds between two looks for acks
BURST = 65_536  # bytes that one socket gets before the next one's turn
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
ID, SEQUENCE, STAMP = b"-" * 36, b":1000000,", b"0" * 20  # in a template; each message has its own
# Lengths of an ack: {"messageId":<36 characters>,"type":"ack"}, compact or as json.dumps writes it, and
# {"envelope_id": <36 characters>}.
CHANNEL_ACKS, SLACK_ACKS = (65, 68), (55,)


@dataclass(frozen=True)
class Task:
    """What the server does at `go`.

    Attributes:
        kind: "flood", "paced" or "idle".
        messages: For each client.
        size: Bytes of a message without its frame.
        chunk: Bytes of one write of a flood.
        fragments: Frames of each message.
        rate: Messages a second for each client, if paced.
        ca_file: Where to leave the certificate of the authority; None: no TLS.
    """

    kind: str = "flood"
    messages: int = 0
    size: int = 1024
    chunk: int = BURST
    fragments: int = 1
    rate: float = 5.0
    ca_file: str | None = None


# Messages


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def template(size: int, stamped: bool = False) -> bytes:
    """A caption of `size` bytes as the data channel sends it; below 500 bytes a bare event."""
    data: dict[str, object] = {"eventType": "relay.event"}
    message: dict[str, object] = {"id": ID.decode(), "data": data}
    if stamped:
        data["sentAt"] = STAMP.decode()
    if size >= 500:
        words = [{"text": "agenda", "start": 120 * n, "final": True} for n in range((size - 400) // 64)]
        data.update(relayType="voicea.transcription", voiceaPayload={"csis": [3060099329], "words": words})
        message.update(sequenceNumber=1_000_000, wsWriteTimestamp=1_780_000_000_000, headers={})
        message["trackingId"] = "LLM_5e550000-aaaa-4bbb-8ccc-1234567890ab_7"
    data["text"] = ""
    room = size - len(compact(message))
    if room < 0:
        raise SystemExit(f"a message has at least {size - room} bytes")
    data["text"] = ("and then the next item on the agenda " * (room // 37 + 1))[:room]
    return compact(message)


def slack_template(size: int, stamped: bool = False) -> bytes:
    """The same caption in an envelope of Slack's socket mode, `size` bytes in all."""
    envelope = {"envelope_id": ID.decode(), "type": "events_api", "accepts_response_payload": False}
    room = size - len(compact({**envelope, "payload": 0})) + 1
    return compact({**envelope, "payload": json.loads(template(room, stamped))})


def numbered(pattern: bytes, number: int) -> bytes:
    sequence = pattern.replace(SEQUENCE, b":%d," % (1_000_000 + number))
    return sequence.replace(ID, b"%08x-5e55-4000-8000-%012x" % (number, number))


def frame(payload: bytes, opcode: int = TEXT, final: bool = True) -> bytes:
    """One unmasked frame."""
    length = len(payload)
    if length < 126:
        head = bytes((length,))
    elif length < 65_536:
        head = b"\x7e" + length.to_bytes(2, "big")
    else:
        head = b"\x7f" + length.to_bytes(8, "big")
    return bytes((0x80 * final | opcode,)) + head + payload


def frames(payload: bytes, fragments: int) -> bytes:
    """A message in so many frames of about one size, the last ones empty if there are more than bytes."""
    step = -(-len(payload) // fragments)
    return b"".join(
        frame(payload[n * step : (n + 1) * step], TEXT if n == 0 else 0, n == fragments - 1)
        for n in range(fragments)
    )


@functools.cache
def encode(task: Task, slack: bool, window: int) -> list[memoryview]:
    """The flood in pieces.

    Each has about `task.chunk` bytes, and is one write and, up to 16 KiB, one TLS record; or it has `window`
    messages.
    """
    pattern, pieces, piece = (slack_template if slack else template)(task.size), [], bytearray()
    for n in range(task.messages):
        piece += frames(numbered(pattern, n), task.fragments)
        full = (n + 1) % window == 0 if window else len(piece) >= task.chunk
        if full or n == task.messages - 1:
            pieces.append(memoryview(bytes(piece)))
            piece.clear()
    return pieces


# Clients


class Client:
    """One socket: set up blocking, then fed and drained without blocking."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        sock.settimeout(5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock if context is None else context.wrap_socket(sock, server_side=True)
        self.outbox: deque[memoryview] = deque()
        self.begun = False  # the outbox' head is out in part, or OpenSSL must be shown it again
        self.later: deque[memoryview] = deque()  # pieces that wait for acks
        self.acks, self.due, self.rest = 0, 0, b""  # due: acks that let the next piece go
        while b"\r\n\r\n" not in self.rest:
            self.rest += self.receive()
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        path = head.split(b" ", 2)[1]
        self.slack = path.startswith(b"/slack")
        self.window = int(path.partition(b"window=")[2] or 0)
        self.ack_lengths = SLACK_ACKS if self.slack else CHANNEL_ACKS
        key = re.findall(rb"(?im)^sec-websocket-key:\s*(\S+)", head)[0]
        answer = base64.b64encode(hashlib.sha1(key + GUID).digest())
        self.sock.sendall(UPGRADED + b"Sec-WebSocket-Accept: " + answer + b"\r\n\r\n")
        self.authorized = self.slack
        if self.slack:
            self.sock.sendall(frame(compact({"type": "hello", "num_connections": 1})))
        while not self.authorized:
            self.parse(self.receive())
        self.sock.setblocking(False)

    def receive(self) -> bytes:
        data = self.sock.recv(BURST)
        if not data:
            raise ConnectionError("the client left")
        return data

    def drain(self) -> None:
        """Read all there is. OSError: the client has left."""
        try:
            while True:
                self.parse(self.receive())
        except WOULD_BLOCK:
            return

    def feed(self) -> None:
        """Let the next piece go if the last one is acked."""
        if self.later and self.acks >= self.due:
            self.outbox.append(self.later.popleft())
            self.due += self.window

    def flush(self) -> bool:
        """Write about BURST bytes at most; whether nothing is left to write."""
        budget = BURST
        try:
            while self.outbox and budget > 0:
                self.begun = True
                sent = self.sock.send(self.outbox[0])
                budget -= sent
                self.outbox[0] = self.outbox[0][sent:]
                if not self.outbox[0]:
                    self.outbox.popleft()
                    self.begun = False
        except WOULD_BLOCK:
            return False
        return not self.outbox

    def parse(self, data: bytes) -> None:
        """Walk over the frame headers; unmask only what is no ack."""
        data = self.rest + data
        at, end = 0, len(data)
        while end - at >= 6:
            length, body = data[at + 1] & 127, at + 6
            if length >= 126:
                width = 2 if length == 126 else 8
                length, body = int.from_bytes(data[at + 2 : at + 2 + width], "big"), body + width
            if body + length > end:
                break
            if length in self.ack_lengths and data[at] & 15 == TEXT:
                self.acks += 1
            else:
                payload = bytes(data[body + n] ^ data[body - 4 + n % 4] for n in range(length))
                self.answer(data[at] & 15, payload)
            at = body + length
        self.rest = data[at:]

    def answer(self, opcode: int, payload: bytes) -> None:
        """Say what the protocol wants said, between two frames of the flood."""
        if opcode == CLOSE:
            reply = frame(payload[:2], CLOSE)
        elif opcode == PING:
            reply = frame(payload, PONG)
        elif not self.authorized:
            self.authorized = True
            reply = frame(compact({"id": f"{0:036}", "data": {"eventType": "mercury.buffer_state"}}))
        elif b'"ping"' in payload:
            reply = frame(compact({"type": "pong", "id": json.loads(payload)["id"]}))
        else:
            return
        self.outbox.insert(int(self.begun), memoryview(reply))
        self.flush()
        if opcode == CLOSE:
            raise ConnectionError("the client said goodbye")


class Server:
    """Rounds of setup, traffic and farewell, until stdin ends."""

    def __init__(self, task: Task, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        self.task, self.listener, self.context = task, listener, context
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        self.clients: dict[Client, int] = {}  # and what the selector looks for
        self.running, self.acks, self.cpu = False, 0, 0.0
        self.schedule: list[Client] = []  # paced: clients in the order of their turns
        self.began, self.turn = 0.0, 0
        self.pattern = dict[bool, bytes]()

    def run(self) -> None:
        next_look = 0.0
        while True:
            for key, events in self.selector.select(self.patience()):
                if key.fileobj is self.listener:
                    self.accept()
                elif key.data is not None:
                    self.touch(key.data, events)
                elif sys.stdin.readline():
                    self.start()
                else:
                    return
            self.pace()
            if self.task.kind != "idle" and time.monotonic() >= next_look:
                next_look = time.monotonic() + TICK
                for client in list(self.clients):
                    self.touch(client, selectors.EVENT_READ)
            if self.running and not self.clients:
                self.running = False
                print(json.dumps({"acks": self.acks, "cpu": time.process_time() - self.cpu}), flush=True)

    def patience(self) -> float | None:
        if not self.clients or self.task.kind == "idle":
            return None
        if not self.schedule:
            return TICK
        return min(TICK, max(0.0, self.due() - time.monotonic()))

    def accept(self) -> None:
        try:
            client = Client(self.listener.accept()[0], self.context)
        except OSError as error:
            print(f"client lost: {error!r}", file=sys.stderr)
            return
        if self.task.kind == "flood":
            encode(self.task, client.slack, client.window)  # now, not while the client is being measured
        self.clients[client] = 0
        self.watch(client)

    def start(self) -> None:
        self.running, self.acks, self.cpu = True, 0, time.process_time()
        if self.task.kind == "paced":
            for slack in {client.slack for client in self.clients}:
                self.pattern[slack] = (slack_template if slack else template)(self.task.size, stamped=True)
            self.schedule, self.began, self.turn = list(self.clients), time.monotonic(), 0
        elif self.task.kind == "flood":
            for client in self.clients:
                pieces = encode(self.task, client.slack, client.window)
                (client.later if client.window else client.outbox).extend(pieces)
                client.feed()
                self.watch(client)

    def due(self) -> float:
        return self.began + self.turn / (self.task.rate * len(self.schedule))

    def pace(self) -> None:
        """Send what is due, one client after another, with the time at which it is sent."""
        while self.schedule and self.due() <= time.monotonic():
            client = self.schedule[self.turn % len(self.schedule)]
            self.turn += 1
            if client in self.clients:
                message = numbered(self.pattern[client.slack], self.turn)
                stamped = message.replace(STAMP, b"%020d" % time.monotonic_ns())
                client.outbox.append(memoryview(frames(stamped, self.task.fragments)))
                self.touch(client, selectors.EVENT_WRITE)
            if self.turn == self.task.messages * len(self.schedule):
                self.schedule = []

    def touch(self, client: Client, events: int) -> None:
        """Read and write what can be; bury a client that has left."""
        if client not in self.clients:
            return
        try:
            if events & selectors.EVENT_READ:
                client.drain()
                client.feed()
            if events & selectors.EVENT_WRITE:
                client.flush()
            self.watch(client)
        except OSError as error:
            if client.outbox or client.later:
                print(f"client lost: {error!r}", file=sys.stderr)
            if self.clients.pop(client):
                self.selector.unregister(client.sock)
            client.sock.close()
            self.acks += client.acks

    def watch(self, client: Client) -> None:
        """Have the selector look for what the client needs: room if it has an outbox, its frames if idle."""
        events = selectors.EVENT_READ * (self.task.kind == "idle") | selectors.EVENT_WRITE * bool(
            client.outbox
        )
        before, self.clients[client] = self.clients[client], events
        if events and before and events != before:
            self.selector.modify(client.sock, events, client)
        elif events and not before:
            self.selector.register(client.sock, events, client)
        elif before and not events:
            self.selector.unregister(client.sock)


def main(**fields: Any) -> None:
    task = Task(**fields)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = None
    if task.ca_file:
        import trustme

        authority = trustme.CA()
        Path(task.ca_file).write_bytes(authority.cert_pem.bytes())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    url = f"{'wss' if context else 'ws'}://127.0.0.1:{listener.getsockname()[1]}/"
    print(json.dumps({"url": url}), flush=True)
    Server(task, listener, context).run()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
