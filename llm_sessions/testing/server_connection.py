"""What a test sees of one connection to `LocalServer`, and what it can do to it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from wsproto.frame_protocol import Opcode

from llm_sessions.testing import server_checks as checks
from llm_sessions.testing.server_state import ServerState
from llm_sessions.testing.server_stream import ServerStream

DROP_TIMEOUT = 5.0  # seconds `drop` waits for the connection's thread to have sent the RST


class ServerConnection:
    """A connection that `LocalServer` accepted, at any stage, also after its end.

    Thread safety: every method may be called from any thread. Attributes are written by the connection's own
    thread; lists only grow, in order.

    Attributes:
        number: Counts the server's connections from 1, in the order they were accepted.
        session: The server-side session key, the last segment of the path; `""` until the request is read,
            and for REST.
        rest: Whether the request, or the last one, is for a REST route.
        path: Path of the request, without the query. On a connection with more than one it is the last one's,
            as are the query and the headers.
        query: Query of the request, parsed; a repeated key has more than one value.
        request_headers: Headers of the request in order; the names are in lower case.
        upgraded: Whether the WebSocket upgrade was answered with 101.
        authorization: The first frame, as it came, if it was an authorization.
        token: Its bearer token, without the scheme.
        authorized: Whether the token was accepted.
        ready: Whether the ready event was sent.
        received: Every JSON object the client sent, the authorization included.
        acks: `messageId` of every ack.
        pings: `id` of every JSON ping.
        sent: Every JSON object sent to the client, in the order of the wire.
        close_code: Code of the client's close frame; 1005 if it was empty, 1006 if TCP ended without one.
        close_reason: Its reason.
        accepted_at: When TCP was accepted, in seconds of `time.monotonic`.
        closed_at: When the server gave the socket back, likewise; `None` before.
        error: What ended the connection if it was not a close: a reset, a TLS failure, a bug in a callback.
        raw: The socket. Under TLS its bytes are ciphertext.
    """

    def __init__(self, state: ServerState, number: int, stream: ServerStream) -> None:
        self.number = number
        self.session = self.path = ""
        self.query: dict[str, list[str]] = {}
        self.request_headers: list[tuple[str, str]] = []
        self.authorization: dict[str, Any] | None = None
        self.token: str | None = None
        self.rest = self.upgraded = self.authorized = self.ready = False
        self.received: list[dict[str, Any]] = []
        self.acks: list[Any] = []
        self.pings: list[Any] = []
        self.sent: list[dict[str, Any]] = []
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self.accepted_at: float = time.monotonic()
        self.closed_at: float | None = None
        self.error: Exception | None = None
        self.raw: socket.socket = stream.socket
        self._state, self._stream = state, stream
        self._close_sent = self._ending = False  # guarded by the server's condition
        self._stop = self._reset = False  # asked for by another thread, which then wakes this one
        # Counted under the stream's lock before they leave.
        self._ids_sent: Counter[str] = Counter()
        # Held from taking a sequence number to posting it: numbers leave in order.
        self._numbering = threading.Lock()
        self._numbered = 0
        self._thread: threading.Thread | None = None

    # --- looking

    @property
    def open(self) -> bool:
        """Whether the WebSocket is up and neither side has begun to close it."""
        return self.upgraded and self.close_code is None and self.closed_at is None and not self._closing

    @property
    def live(self) -> bool:
        """Whether it is authorized and open."""
        return self.authorized and self.open

    def __repr__(self) -> str:
        names = ("upgraded", "authorized", "ready", "open")
        stage = " ".join(name for name in names if getattr(self, name)) or "accepted"
        end = "" if self.close_code is None else f" close={self.close_code} {self.close_reason!r}"
        error = "" if self.error is None else f" error={self.error!r}"
        counts = f"received={len(self.received)} sent={len(self.sent)}"
        tcp = "" if self.closed_at is None else " ended"
        return f"<#{self.number} {self.session!r} {stage}{tcp} {counts}{end}{error}>"

    # --- acting

    def send_json(self, obj: object) -> bool:
        """Send any JSON value as one text frame; False if nothing can be sent any more."""
        return self.send_encoded(checks.encode_json(obj), obj)

    def send_text(self, text: str | bytes) -> bool:
        """Send one text frame, unchecked: not JSON, or as bytes not even UTF-8."""
        payload = text.encode() if isinstance(text, str) else text
        try:
            obj = json.loads(payload)
        except (ValueError, RecursionError):
            obj = None
        return self.send_encoded(checks.encode_frame(Opcode.TEXT, payload), obj)

    def send_binary(self, data: bytes) -> bool:
        """Send one binary frame."""
        return self.send_encoded(checks.encode_frame(Opcode.BINARY, data))

    def send_raw(self, data: bytes, *, ids: Collection[str | int] = ()) -> bool:
        """Send bytes past the WebSocket codec (under TLS they are encrypted).

        Args:
            data: Anything; a broken frame spoils the rest of the stream.
            ids: Top-level ids of the messages in it, so that acks for them are not violations.
        """
        return self._stream.post(data, lambda: self._ids_sent.update(map(json.dumps, ids)), raw=True)

    def send_encoded(self, frame: bytes, obj: object = None) -> bool:
        """Send bytes made beforehand and record `obj` as what they mean."""

        return self._stream.post(frame, lambda: self._record_sent(obj))

    def send_numbered(self, envelope: Mapping[str, Any]) -> bool:
        """Send an envelope with this connection's next `sequenceNumber`, from 1."""
        with self._numbering:
            self._numbered += 1
            return self.send_json({**envelope, "sequenceNumber": self._numbered})

    def close(self, code: int = 1000, reason: str = "") -> bool:
        """Begin the closing handshake; TCP ends once the client has answered.

        Args:
            code: 1005 sends an empty close frame, 1006 none: TCP ends with FIN.
            reason: At most 123 bytes of UTF-8.

        Returns:
            False if there is no WebSocket to close, or a close frame was sent already.

        Raises:
            ValueError: No close frame can carry this.
        """
        frame = b"" if code == 1006 else checks.encode_close(code, reason)
        with self._state.condition:
            if not self.upgraded or self.closed_at is not None or self._closing:
                return False
            if frame:
                self._close_sent = True
            else:
                self._ending = True
            self._state.changed()
        if not frame:
            self._stream.wake()
            return True
        return self._stream.post(frame, last=True)

    def drop(self) -> bool:
        """End TCP with RST, at any stage; False if it has ended already.

        Returns when it has happened, but for a call from this connection's own thread (a callback), where it
        happens right after, and at most after 5 seconds.
        """
        if self.closed_at is not None:
            return False
        self._reset = True
        self.stop()
        if threading.current_thread() is not self._thread:
            with self._state.condition:
                self._state.condition.wait_for(lambda: self.closed_at is not None, DROP_TIMEOUT)
        return True

    # --- for the server

    def wake(self) -> None:
        """Make the connection look at the faults asked for again."""
        self._stream.wake()

    def stop(self) -> None:
        """Ask the thread to end TCP without a close frame. Does not wait."""
        self._stop = True
        self._stream.wake()

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the thread to end, unless it is the calling one; say whether."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        return not thread.is_alive()

    def _record_sent(self, obj: object) -> None:
        """Called under the stream's lock, right before the bytes leave."""
        if isinstance(obj, dict):
            self.sent.append(obj)
            if "id" in obj:
                self._ids_sent[json.dumps(obj["id"])] += 1

    @property
    def _closing(self) -> bool:
        return self._close_sent or self._ending
