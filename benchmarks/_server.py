"""The far end of `flood.py`: a process that floods WebSocket clients and costs them little of the machine.

It prints its URL, takes clients until the line `go` arrives on stdin, then sends each of them the same
frames, encoded beforehand. When the last client has left it prints what it counted and serves the next round.
It ends when stdin does. It never waits for a client's frames: a process asleep in poll would be woken by each
single ack, and the kernel charges that wake to the client. It reads every socket once in a `TICK` instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import selectors
import socket
import ssl
import sys
import time
from collections import deque
from pathlib import Path

TICK = 0.005  # seconds between two looks for acks
BURST = 65_536  # bytes that one socket gets before the next one's turn
ACK_LENGTHS = (65, 68)  # {"messageId":<36 characters>,"type":"ack"}, compact or as json.dumps writes it
TEXT, CLOSE = 1, 8
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def template(size: int) -> bytes:
    """A caption of `size` bytes as the data channel sends it; below 500 bytes a bare event."""
    data: dict[str, object] = {"eventType": "relay.event"}
    message: dict[str, object] = {"id": "-" * 36, "data": data}
    if size >= 500:
        words = [{"text": "agenda", "start": 120 * n, "final": True} for n in range((size - 400) // 64)]
        data.update(relayType="voicea.transcription", voiceaPayload={"csis": [3060099329], "words": words})
        message.update(sequenceNumber=1_000_000, wsWriteTimestamp=1_780_000_000_000, headers={})
        message["trackingId"] = "LLM_5e550000-aaaa-4bbb-8ccc-1234567890ab_7"
    data["text"] = ""
    room = size - len(json.dumps(message, separators=(",", ":")))
    if room < 0:
        raise SystemExit(f"a message has at least {size - room} bytes")
    data["text"] = ("and then the next item on the agenda " * (room // 37 + 1))[:room]
    return json.dumps(message, separators=(",", ":")).encode()


def frame(payload: bytes, opcode: int = TEXT) -> bytes:
    """One unmasked frame of up to 64 KiB."""
    length = len(payload)
    head = bytes((length,)) if length < 126 else b"\x7e" + length.to_bytes(2, "big")
    return bytes((0x80 | opcode,)) + head + payload


def encode(messages: int, size: int, chunk: int) -> list[memoryview]:
    """The flood in pieces of about `chunk` bytes: each is one write and, up to 16 KiB, one TLS record."""
    pattern, pieces, piece = frame(template(size)), [], bytearray()
    for n in range(messages):
        numbered = pattern.replace(b":1000000,", b":%d," % (1_000_000 + n))
        piece += numbered.replace(b"-" * 36, b"%08x-5e55-4000-8000-%012x" % (n, n))
        if len(piece) >= chunk or n == messages - 1:
            pieces.append(memoryview(bytes(piece)))
            piece.clear()
    return pieces


class Client:
    """One socket: set up blocking, then flooded and drained without blocking."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        sock.settimeout(5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock if context is None else context.wrap_socket(sock, server_side=True)
        self.outbox: deque[memoryview] = deque()
        self.begun = False  # the outbox' head is out in part, or OpenSSL must be shown it again
        self.authorized, self.acks, self.rest = False, 0, b""
        while b"\r\n\r\n" not in self.rest:
            self.rest += self.receive()
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        key = re.findall(rb"(?im)^sec-websocket-key:\s*(\S+)", head)[0]
        answer = base64.b64encode(hashlib.sha1(key + GUID).digest())
        self.sock.sendall(UPGRADED + b"Sec-WebSocket-Accept: " + answer + b"\r\n\r\n")
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
            if length in ACK_LENGTHS:
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
        elif not self.authorized:
            self.authorized = True
            ready = {"id": f"{0:036}", "data": {"eventType": "mercury.buffer_state"}}
            reply = frame(json.dumps(ready).encode())
        elif b'"ping"' in payload:
            reply = frame(json.dumps({"type": "pong", "id": json.loads(payload)["id"]}).encode())
        else:
            return
        self.outbox.insert(int(self.begun), memoryview(reply))
        self.flush()
        if opcode == CLOSE:
            raise ConnectionError("the client said goodbye")


def serve(listener: socket.socket, context: ssl.SSLContext | None, flood: list[memoryview]) -> None:
    """Rounds of setup, flood and farewell, until stdin ends."""
    selector = selectors.DefaultSelector()  # clients are in it only while they have something to get
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    clients: set[Client] = set()
    next_drain, flooding, acks, cpu = 0.0, False, 0, 0.0
    while True:
        for key, _ in selector.select(TICK if clients else None):
            try:
                if key.fileobj is listener:
                    clients.add(Client(listener.accept()[0], context))
                elif key.data is not None and key.data.flush():
                    selector.unregister(key.fileobj)
            except OSError as error:  # one that was flooded is found again, and buried, when it is drained
                print(f"client lost: {error!r}", file=sys.stderr)
            if key.fd == sys.stdin.fileno():
                if not sys.stdin.readline():
                    return
                flooding, acks, cpu = True, 0, time.process_time()
                for client in clients:
                    client.outbox.extend(flood)
                    selector.register(client.sock, selectors.EVENT_WRITE, client)
        if time.monotonic() < next_drain:
            continue
        next_drain = time.monotonic() + TICK
        for client in list(clients):
            try:
                client.drain()
            except OSError:
                clients.remove(client)
                if client.sock in selector.get_map():
                    selector.unregister(client.sock)
                client.sock.close()
                acks += client.acks
        if flooding and not clients:
            flooding = False
            print(json.dumps({"acks": acks, "cpu": time.process_time() - cpu}), flush=True)


def main(messages: int, size: int, chunk: int, ca_file: str | None) -> None:
    context = None
    if ca_file:
        import trustme

        authority = trustme.CA()
        Path(ca_file).write_bytes(authority.cert_pem.bytes())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
    flood = encode(messages, size, chunk)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    url = f"{'wss' if context else 'ws'}://127.0.0.1:{listener.getsockname()[1]}/"
    print(json.dumps({"url": url}), flush=True)
    serve(listener, context, flood)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
