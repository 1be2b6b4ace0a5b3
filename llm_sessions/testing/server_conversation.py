"""The server's side of one connection, in the connection's thread: upgrade, authorization, conversation."""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection
from wsproto.frame_protocol import Frame, FrameDecoder, MessageDecoder, Opcode, ParseFailed
from wsproto.utilities import RemoteProtocolError

from llm_sessions.testing import server_checks as checks
from llm_sessions.testing.rest import RestRequest, RestService, find_route, parse_request
from llm_sessions.testing.server_connection import ServerConnection
from llm_sessions.testing.server_state import Fault, ServerState
from llm_sessions.testing.server_stream import ServerStream

logger: Final = logging.getLogger("llm_sessions.testing")

MAX_BODY = 1 << 20  # bytes of a request's body
LINGER = 1.0  # seconds a peer has to end TCP after both close frames, so that what it still sends is seen


class Conversation(ServerConnection):
    """A `ServerConnection` with the thread that serves it. All but `start` and `discard` runs in that thread.

    h11 reads the request, wsproto answers the upgrade and decodes frames. What is sent is encoded without
    state (`server_checks.encode_frame`), so that other threads may send at any time.
    """

    def __init__(self, state: ServerState, number: int, stream: ServerStream, rest: RestService) -> None:
        super().__init__(state, number, stream)
        self._rest = rest
        self._http = h11.Connection(h11.SERVER)
        self._request: h11.Request | None = None
        self._upgrading = False  # whether the request is an upgrade
        self._body = bytearray()
        self._early = b""  # came before the request was answered
        self._unanswered: RestRequest | None = None
        self._frames, self._messages = FrameDecoder(client=False), MessageDecoder()
        self._parts: list[str | bytes] = []
        self._awaiting_upgrade = self._talking = self._deaf = False
        self._close_payload = b""  # echoed as it came
        self._finished_at: float | None = None
        self._ids_acked: Counter[str] = Counter()

    def start(self, name: str) -> None:
        """Start the connection's thread."""
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def discard(self, error: Exception) -> None:
        """End a connection whose thread could not be started."""
        self.error: Exception | None = error
        self._thread = None
        self._end()

    # --- the thread

    def _has(self, fault: Fault) -> bool:
        return self._state.has_fault(fault, self.session)

    def _violation(self, text: str) -> None:
        who = f"#{self.number} {self.session}".rstrip()
        self._state.violation(f"{who}: {text}")

    def _main(self) -> None:
        try:
            self._serve()
        except OSError as exc:  # also ssl.SSLError: the peer's doing, and what tests look at
            self.error = exc
        except Exception as exc:
            self.error = exc
            logger.exception("connection #%d failed; this is a bug in LocalServer", self.number)
        finally:
            self._end()

    def _end(self) -> None:
        self._stream.release(reset=self._reset)
        with self._state.condition:
            if self.close_code is None:
                self.close_code, self.close_reason = 1006, ""
            self.closed_at: float | None = time.monotonic()
            self._state.changed()

    def _serve(self) -> None:
        self._stream.adopt()
        opening_ends = self.accepted_at + self._state.options.open_timeout
        while not self._stop:
            self._advance()
            opening = self._request is None and self._finished_at is None
            deadline = opening_ends if opening else self._finished_at
            timeout = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                if opening:
                    raise TimeoutError(f"no request within {self._state.options.open_timeout} s")
                return
            readable = self._stream.wait(timeout, read=not self._stalled())
            if not readable or self._stalled():
                continue
            data = self._stream.read()
            if data == b"":
                return
            if data:
                self._feed(data)

    def _stalled(self) -> bool:
        return self._upgrading and self._has(Fault.STALL_READS)

    def _advance(self) -> None:
        """Do what became possible because a fault was undone or a close was asked for."""
        while self._unanswered is not None and not self._stop and not self._rest.is_held(self._unanswered):
            request, self._unanswered = self._unanswered, None
            self._answer_rest(request)
        if self._awaiting_upgrade and not self._has(Fault.HOLD_UPGRADES):
            self._awaiting_upgrade = False
            self._answer_upgrade()
        if self.authorized and not self.ready and self.open and not self._has(Fault.WITHHOLD_READY):
            self._send_ready()
        if self._ending:
            self._finish()
        if self.close_code is not None and self._finished_at is None and not self._has(Fault.IGNORE_CLOSE):
            with self._state.condition:
                answer, self._close_sent = not self._close_sent, True
            if answer:
                self._stream.post(checks.encode_frame(Opcode.CLOSE, self._close_payload), last=True)
            self._finish()

    def _finish(self) -> None:
        """Send what is queued, then FIN, and wait a moment for the peer's."""
        if self._finished_at is None:
            self._finished_at = time.monotonic() + LINGER
            self._stream.finish()

    def _feed(self, data: bytes) -> None:
        if self.upgraded:
            if not self._deaf:
                self._frames.receive_bytes(data)
                self._take_frames()
        elif self._finished_at is not None:
            pass  # an HTTP exchange is over
        elif self._awaiting_upgrade or self._unanswered is not None:
            self._early += data
        else:
            self._http.receive_data(data)
            try:
                self._take_request()
            except h11.RemoteProtocolError as exc:
                self._violation(f"not HTTP: {exc}")
                self._send_http(exc.error_status_hint)

    # --- HTTP

    def _take_request(self) -> None:
        while True:
            event = self._http.next_event()
            size = 0
            if isinstance(event, h11.Request):
                self._set_request(event)
                size = max([int(v) for name, v in event.headers if name == b"content-length"], default=0)
            elif isinstance(event, h11.Data):
                self._body += event.data
                size = len(self._body)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                if self._http.they_are_waiting_for_100_continue:
                    answer = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
                    self._stream.post(self._http.send(answer) or b"")
                return  # needs more
            if size > MAX_BODY:
                self._violation(f"body of more than {MAX_BODY} bytes")
                self._send_http(413)
                return
        self._early = self._http.trailing_data[0]
        # `_advance` answers.
        if self._upgrading:
            if self._state.options.strict:
                for problem in checks.check_query(self.query) + checks.check_headers(self.request_headers):
                    self._violation(problem)
            self._awaiting_upgrade = True
        else:
            self._unanswered = parse_request(
                self._method(), self.path, self.query, self.request_headers, bytes(self._body)
            )
            self._rest.record(self._unanswered)

    def _method(self) -> str:
        return "" if self._request is None else self._request.method.decode()

    def _request_headers(self) -> list[tuple[bytes, bytes]]:
        return [] if self._request is None else list(self._request.headers)

    def _set_request(self, request: h11.Request) -> None:
        path, _, query = request.target.decode("latin-1").partition("?")
        self._upgrading = any(
            name == b"upgrade" and value.lower() == b"websocket" for name, value in request.headers
        )
        with self._state.condition:
            self.path = path
            self.rest: bool = not self._upgrading and bool(find_route(path)[0])
            self.session: str = "" if self.rest else urllib.parse.unquote(path.rpartition("/")[2])
            self.query: dict[str, list[str]] = urllib.parse.parse_qs(query, keep_blank_values=True)
            self.request_headers: list[tuple[str, str]] = [
                (name.decode(), value.decode("latin-1")) for name, value in request.headers
            ]
            self._request = request
            self._state.changed()

    def _answer_rest(self, request: RestRequest) -> None:
        answer = self._rest.answer(request)
        for problem in answer.problems:
            self._violation(f"{request.method} {request.path}: {problem}")
        keep = self._http.their_state is h11.DONE and not answer.close

        def record() -> None:  # under the stream's lock: it is there when the client has the answer
            request.status, request.answer = answer.status, answer.body

        self._send_http(answer.status, answer.all_headers(), answer.payload(), keep=keep, record=record)
        with self._state.condition:
            self._state.changed()
        if keep:
            # A new one, not start_next_cycle: h11 has not seen the answer.
            self._http = h11.Connection(h11.SERVER)
            self._body.clear()
            early, self._early = self._early, b""
            if early:
                self._feed(early)

    def _send_http(
        self,
        status: int,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        *,
        keep: bool = False,
        record: Callable[[], None] | None = None,
    ) -> None:
        names = {name.lower() for name in headers or ()}
        own = {} if keep else {"Connection": "close"}
        if status not in (204, 304):
            own["Content-Length"] = str(len(body))
        lines = [*(headers or {}).items(), *((k, v) for k, v in own.items() if k.lower() not in names)]
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = "Refused"
        # Not h11's encoder: a refusal may be anything, also what no server should answer to an upgrade.
        head = "".join(f"{name}: {value}\r\n" for name, value in lines)
        if self._method() == "HEAD" or status in (204, 304):
            body = b""
        self._stream.post(f"HTTP/1.1 {status} {phrase}\r\n{head}\r\n".encode("latin-1") + body, record)
        if not keep:
            self._finish()

    def _answer_upgrade(self) -> None:
        assert self._request is not None
        rejection = self._state.take_rejection(self.session, upgrade=True)
        if rejection is not None:
            self._send_http(rejection.code, dict(rejection.headers), rejection.body)
            return
        if self._rest.is_stale(self.session):
            self._send_http(404)
            return
        upgrade = WSConnection(ConnectionType.SERVER)
        try:
            upgrade.initiate_upgrade_connection(self._request_headers(), self._request.target)
        except RemoteProtocolError as exc:
            self._violation(f"bad upgrade: {exc}")
            self._send_http(400)
            return
        for _ in upgrade.events():
            pass  # the request once more

        def record() -> None:  # under the stream's lock: nobody else's bytes can come before the 101
            self.upgraded = True

        self._stream.post(upgrade.send(AcceptConnection()), record)
        with self._state.condition:
            self._state.changed()
        early, self._early = self._early, b""
        if early:
            self._feed(early)

    # --- WebSocket

    def _take_frames(self) -> None:
        try:
            while not self._deaf:
                frame = self._frames.process_buffer()
                if frame is None:
                    return
                if self.close_code is not None:
                    self._violation(f"{frame.opcode.name} frame after the close frame")
                else:
                    self._take_frame(frame)
        except ParseFailed as exc:
            self._deaf = True  # the stream has no frame boundaries any more
            self._violation(f"bad frame: {exc}")
            self.close(int(exc.code))
            self._finish()

    def _take_frame(self, frame: Frame) -> None:
        payload = frame.payload
        if frame.opcode is Opcode.PING and isinstance(payload, bytes):
            self._stream.post(checks.encode_frame(Opcode.PONG, payload))
        elif frame.opcode is Opcode.CLOSE and isinstance(payload, bytes):
            code, reason, problems = checks.decode_close(payload)
            with self._state.condition:
                self.close_code: int | None = code
                self.close_reason: str | None = reason
                self._close_payload = payload
                self._state.changed()
            for problem in problems:
                self._violation(problem)
        elif not frame.opcode.iscontrol():
            part = self._messages.process_frame(frame)
            if isinstance(part.payload, (str, bytes)):
                self._parts.append(part.payload)
            if part.message_finished:
                parts, self._parts = self._parts, []
                if part.opcode is Opcode.TEXT:
                    self._take_text("".join(map(str, parts)))
                else:
                    self._violation("binary message")

    def _take_text(self, text: str) -> None:
        try:
            obj = json.loads(text)
        except (ValueError, RecursionError):
            self._violation(f"text is not JSON: {text[:80]!r}")
            obj = None
        if obj is not None and not isinstance(obj, dict):
            self._violation(f"JSON is not an object: {text[:80]!r}")
        if isinstance(obj, dict):
            with self._state.condition:
                self.received.append(obj)
                self._state.changed()
        first, self._talking = not self._talking, True
        if first:
            self._take_first(obj if isinstance(obj, dict) else {})
        elif isinstance(obj, dict):
            self._take_object(obj)
        if isinstance(obj, dict):
            self._call_back(obj)

    def _take_first(self, obj: dict[str, Any]) -> None:
        for problem in checks.check_authorization(obj):
            self._violation(problem)
        if obj.get("type") != "authorization":
            self.close(4400, "Bad Request")
            return
        token = checks.bearer_token(obj)
        with self._state.condition:
            self.authorization: dict[str, Any] | None = obj
            self.token: str | None = token
        rejection = self._state.take_rejection(self.session, upgrade=False)
        if rejection is not None:
            self.close(rejection.code, rejection.reason)
        elif token is None or not self._state.accepts(token):
            self.close(4401, "Authentication Failed")
        elif self._has(Fault.WITHHOLD_READY):
            with self._state.condition:
                self.authorized = True
                self._state.changed()
        else:
            self._send_ready()

    def _send_ready(self) -> None:
        data = {"eventType": self._state.options.ready_event}
        obj = {"id": str(uuid.uuid4()), "data": data, "wsWriteTimestamp": int(time.time() * 1000)}

        def record() -> None:
            # Under the stream's lock: who sees the connection live sends after this event, and a client that
            # is online finds it ready.
            self.authorized = self.ready = True
            self._record_sent(obj)

        self._stream.post(checks.encode_json(obj), record)
        with self._state.condition:
            self._state.changed()

    def _take_object(self, obj: dict[str, Any]) -> None:
        kind = obj.get("type")
        if kind == "ack":
            self._take_ack(obj)
        elif kind == "ping":
            if "id" not in obj:
                self._violation("ping without id")
            with self._state.condition:
                self.pings.append(obj.get("id"))
                self._state.changed()
            if not self._closing and not self._has(Fault.MUTE):
                echo = str(uuid.uuid4()) if self._has(Fault.WRONG_PONG) else obj.get("id")
                self.send_json({"type": "pong", "id": echo, "wsWriteTimestamp": int(time.time() * 1000)})

    def _take_ack(self, obj: dict[str, Any]) -> None:
        if "messageId" not in obj:
            self._violation("ack without messageId")
            return
        key = json.dumps(obj["messageId"])
        self._ids_acked[key] += 1
        if not self._ids_sent[key]:
            self._violation(f"ack for {key}, which was never sent")
        elif self._ids_acked[key] > self._ids_sent[key]:
            self._violation(f"{key} acked {self._ids_acked[key]} times, sent {self._ids_sent[key]}")
        with self._state.condition:
            self.acks.append(obj["messageId"])
            self._state.changed()

    def _call_back(self, obj: dict[str, Any]) -> None:
        for callback in list(self._state.callbacks):
            try:
                callback(self, obj)
            except Exception as exc:  # the script's bug must not end the conversation
                self.error = exc
                logger.exception("on_message callback failed")
