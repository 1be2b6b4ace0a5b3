"""`LocalServer`: a Mercury / data-channel server on the loopback, for tests and demonstrations.

It speaks what the service speaks, checks what a client sends, and does on request what a service and a
network do to clients: refuse, stall, mute, drop. It needs no network, starts and stops in milliseconds, and
runs on threads named `llm-server-…`: one that accepts, and one for each connection.
"""

from __future__ import annotations

import importlib.util
import logging
import socket
import ssl
import time
import urllib.parse
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

if importlib.util.find_spec("wsproto") is None:
    raise ModuleNotFoundError(
        "LocalServer needs wsproto, which is not installed: pip install 'llm-sessions[testing]'",
        name="wsproto",
    )
from llm_sessions.testing import server_checks as checks
from llm_sessions.testing._managed import Managed
from llm_sessions.testing.rest import RestRequest, RestService, make_token
from llm_sessions.testing.server_connection import ServerConnection
from llm_sessions.testing.server_conversation import Conversation
from llm_sessions.testing.server_listener import Listener
from llm_sessions.testing.server_rest import RestVerbs
from llm_sessions.testing.server_state import (
    FIRST_CLOSE_CODE,
    Fault,
    Options,
    Rejection,
    ServerState,
    ServerTimeout,
)
from llm_sessions.testing.server_stream import ServerStream

if TYPE_CHECKING:
    from llm_sessions.testing.certificates import ThrowAwayCA

__all__ = ["LocalServer", "RestRequest", "ServerConnection", "ServerTimeout", "make_token"]

logger: Final = logging.getLogger("llm_sessions.testing")

Callback = TypeVar("Callback", bound=Callable[[ServerConnection, dict[str, Any]], object])


class LocalServer(Managed, RestVerbs):
    """A fake Webex Mercury / data-channel server, WebSocket and REST on one port.

    It listens from its construction on; use it in a `with`.

    A connection belongs to the *session key* that is the last segment of its path; `url(key)` makes such an
    address. Verbs take `session=` to reach the connections of one key; `None` means all. Faults that last
    (`mute`, `wrong_pong`, `ignore_close`, `withhold_ready`, `stall_reads`, `hold_upgrades`) apply to present
    and future connections until undone; the last call that names a key, or all, decides. Unless said
    otherwise a verb returns the number of connections it reached.

    Every method may be called from any thread, also from an `on_message` callback.

    Args:
        ssl_context: Speak `wss` with this server-side context; each connection's thread does its handshake.
        tls: Likewise, with certificates of its own; see `client_context` and `ca_file`.
        host: Address to bind.
        port: Port to bind; 0 takes a free one. A fixed one lets a server "restart" under the same address.
        tokens: Bearer tokens to accept, without the scheme; `None` accepts any. May be replaced while running
            (`server.tokens = {"new"}`). Another token is refused with close 4401.
        ready_event: `eventType` of the envelope that tells a client that it is authorized.
        strict: Record into `violations` what clients do wrong; behaviour is the same without.
        receive_buffer: SO_RCVBUF in bytes, so that a stalled client fills it soon; `None` leaves the default.
        open_timeout: Seconds a client has for TLS and its HTTP request.
        outbox_limit: Bytes that may wait for a client that does not read, before senders wait for room.
        write_timeout: Seconds they wait; then the message is not sent, and the connection does not count as
            reached.

    Attributes:
        host: Address it listens on.
        port: Port it listens on.
        violations: A text for everything a client did wrong, in order.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        tls: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        tokens: Collection[str] | None = None,
        ready_event: str = "mercury.buffer_state",
        strict: bool = True,
        receive_buffer: int | None = None,
        open_timeout: float = 10.0,
        outbox_limit: int = 64 << 20,
        write_timeout: float = 10.0,
    ) -> None:
        self._authority: ThrowAwayCA | None = None
        if tls:
            if ssl_context is not None:
                raise ValueError("with tls=True the server makes its own ssl_context")
            # Here, so that a server without TLS needs neither trustme nor the time to import it.
            from llm_sessions.testing.certificates import ThrowAwayCA

            self._authority = ThrowAwayCA()
            ssl_context = self._authority.server_context(*{host, "localhost", "127.0.0.1"})
        self._ssl_context = ssl_context
        self._outbox_limit, self._write_timeout = outbox_limit, write_timeout
        self._state = ServerState(Options(ready_event, strict, open_timeout), tokens)
        self.violations: list[str] = self._state.violations
        self._connections: list[ServerConnection] = []  # guarded by the state's condition, like _closed
        self._closed = False
        self._listener = Listener(host, port, receive_buffer, self._welcome)
        self.host = host
        self.port: int = self._listener.port
        scheme = "http" if ssl_context is None else "https"
        self._rest = RestService(self._state, f"{scheme}://{host}:{self.port}", self.url)
        self._listener.start()

    def __repr__(self) -> str:
        with self._state.condition:
            state = "closed" if self._closed else f"{len(self._connections)} connections"
        return f"<LocalServer {self.host}:{self.port} {state}, {len(self.violations)} violations>"

    def close(self, timeout: float = 5) -> None:
        """Stop listening, end every connection without a close frame, and join the threads.

        Works from any state and any number of times. A thread that is still inside a callback after `timeout`
        seconds is logged and left; it ends when the callback returns. Called from a callback, it does not
        wait for that callback's own thread.
        """
        deadline = time.monotonic() + timeout
        with self._state.condition:
            self._closed = True
            connections = list(self._connections)
        self._listener.stop()
        for connection in connections:
            connection.stop()
        # The listener first: once it ended, every connection has its thread.
        listening = not self._listener.join(timeout)
        alive = [c for c in connections if not c.join(max(0.0, deadline - time.monotonic()))]
        if alive or listening:
            logger.warning("%r: threads still running after %s s: %s", self, timeout, alive)
        if self._authority is not None:
            self._authority.close()

    def url(self, session: str = "default", **query: str) -> str:
        """The address of a session key, with `query` as the query string."""
        scheme = "ws" if self._ssl_context is None else "wss"
        tail = f"?{urllib.parse.urlencode(query)}" if query else ""
        return f"{scheme}://{self.host}:{self.port}/{urllib.parse.quote(session, safe='')}{tail}"

    @property
    def client_context(self) -> ssl.SSLContext:
        """A new client's context that trusts a server made with `tls=True`."""
        return self._own_authority().client_context()

    @property
    def ca_file(self) -> str:
        """Path of a PEM file to verify a server made with `tls=True`; `close` removes it."""
        return self._own_authority().ca_file

    @property
    def tokens(self) -> frozenset[str] | None:
        """The bearer tokens accepted from now on; `None` accepts any."""
        with self._state.condition:
            return None if self._state.tokens is None else frozenset(self._state.tokens)

    @tokens.setter
    def tokens(self, tokens: Collection[str] | None) -> None:
        with self._state.condition:
            self._state.tokens = None if tokens is None else set(tokens)

    # --- looking

    def connections(self, session: str | None = None) -> list[ServerConnection]:
        """Every connection accepted so far, in order, also refused ones and those that ended.

        A connection has the key `""` until its request has been read, and is not listed while it is there for
        REST.
        """
        return [c for c in self._accepted() if not c.rest and session in (None, c.session)]

    def live(self, session: str | None = None) -> list[ServerConnection]:
        """The connections that are authorized and open, in the order they were accepted."""
        return [c for c in self.connections(session) if c.live]

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 10) -> None:
        """Wait until `predicate()` holds.

        It is asked in this thread, with no lock held, whenever the server saw something: a connection, a
        request, a frame, an end, a violation. It should depend on nothing else.

        Raises:
            ServerTimeout: It did not hold within `timeout` seconds. Both an AssertionError, so that a test
                fails rather than errs, and a TimeoutError.
        """
        self._state.wait_for(predicate, timeout, self._describe)

    def wait_live(
        self, session: str | None = None, count: int = 1, timeout: float = 10
    ) -> list[ServerConnection]:
        """Wait until a key has at least `count` live connections, and return them.

        Raises:
            ServerTimeout: It had fewer for `timeout` seconds.
        """
        self.wait_for(lambda: len(self.live(session)) >= count, timeout)
        return self.live(session)

    # --- acting

    def publish(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        session: str | None = None,
        event_type: str = "relay.event",
        id: str | None = None,
        sequence: bool | int = False,
        headers: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> dict[str, Any]:
        """Send an envelope to the live connections.

        Args:
            data: Goes into `data` beside `eventType`.
            session: Session key; `None` for all.
            event_type: `data.eventType`.
            id: Top-level id; `None` makes one, `""` leaves it out.
            sequence: A `sequenceNumber` for all, or True for each connection's own next one, from 1.
            headers: `data.headers`, the overrides a client applies to `data`.
            **extra: Further top-level keys; they win.

        Returns:
            The envelope; with `sequence=True` without the number.
        """
        content = {"eventType": event_type, **(data or {})}
        if headers is not None:
            content["headers"] = dict(headers)
        envelope: dict[str, Any] = {} if id == "" else {"id": id or str(uuid.uuid4())}
        envelope |= {"data": content, "wsWriteTimestamp": int(time.time() * 1000)}
        if sequence is not False and sequence is not True:
            envelope["sequenceNumber"] = sequence
        envelope |= extra
        if sequence is True:
            for connection in self.live(session):
                connection.send_numbered(envelope)
        else:
            self.send_json(envelope, session=session)
        return envelope

    def send_json(self, obj: object, *, session: str | None = None) -> int:
        """Send any JSON value as a text frame to the live connections."""
        frame = checks.encode_json(obj)
        return sum([c.send_encoded(frame, obj) for c in self.live(session)])

    def send_text(self, text: str | bytes, *, session: str | None = None) -> int:
        """Send a text frame, unchecked (not JSON, not even UTF-8), to the live connections."""
        return sum([c.send_text(text) for c in self.live(session)])

    def send_binary(self, data: bytes, *, session: str | None = None) -> int:
        """Send a binary frame to the live connections."""
        return sum([c.send_binary(data) for c in self.live(session)])

    def send_raw(self, data: bytes, *, session: str | None = None, ids: Collection[str | int] = ()) -> int:
        """Send bytes past the WebSocket codec to the live connections; see `ServerConnection.send_raw`."""
        return sum([c.send_raw(data, ids=ids) for c in self.live(session)])

    def on_message(self, callback: Callback) -> Callback:
        """Call `callback(connection, obj)` for every JSON object a client sends, after the server's answer.

        It runs in the connection's thread. What it raises is logged and kept as the connection's `error`.
        Works as a decorator.
        """
        with self._state.condition:
            self._state.callbacks.append(callback)
        return callback

    def report(self, text: str) -> None:
        """Add to `violations` what a callback of yours found wrong; one that is not `strict` does not."""
        self._state.violation(text)

    def shutdown_frame(self, session: str | None = None) -> int:
        """Tell clients that this server is about to go, so that they connect anew before it does."""
        return self.send_json({"type": "shutdown"}, session=session)

    # --- faults

    def close_session(self, session: str | None = None, code: int = 1000, reason: str = "") -> int:
        """Send a close frame on every upgraded, open connection, authorized or not.

        See `ServerConnection.close` for the codes 1005 and 1006.

        Raises:
            ValueError: No close frame can carry this.
        """
        return sum([c.close(code, reason) for c in self.connections(session)])

    def drop(self, session: str | None = None) -> int:
        """End TCP with RST, at any stage of a connection. It has happened when this returns.

        Without a session REST's connections too.
        """
        return sum([c.drop() for c in self._accepted() if session in (None, c.session)])

    def mute(self, session: str | None = None) -> int:
        """Read JSON pings but do not answer them, until `unmute`."""
        return self._set(Fault.MUTE, session)

    def unmute(self, session: str | None = None) -> int:
        """Answer JSON pings from now on; those missed stay unanswered."""
        return self._set(Fault.MUTE, session, on=False)

    def wrong_pong(self, session: str | None = None, on: bool = True) -> int:
        """Answer JSON pings with another id."""
        return self._set(Fault.WRONG_PONG, session, on=on)

    def ignore_close(self, session: str | None = None, on: bool = True) -> int:
        """Read close frames but neither answer them nor end TCP; off answers those that wait."""
        return self._set(Fault.IGNORE_CLOSE, session, on=on)

    def withhold_ready(self, session: str | None = None) -> int:
        """Accept authorizations but send no ready event, until `release_ready`."""
        return self._set(Fault.WITHHOLD_READY, session)

    def release_ready(self, session: str | None = None) -> int:
        """Send the ready events held back."""
        return self._set(Fault.WITHHOLD_READY, session, on=False)

    def stall_reads(self, session: str | None = None) -> int:
        """Stop reading the sockets once their request is read; a client's end goes unnoticed too."""
        return self._set(Fault.STALL_READS, session)

    def resume_reads(self, session: str | None = None) -> int:
        """Read again."""
        return self._set(Fault.STALL_READS, session, on=False)

    def hold_upgrades(self, session: str | None = None) -> int:
        """Read upgrade requests but do not answer them, until `release_upgrades`."""
        return self._set(Fault.HOLD_UPGRADES, session)

    def release_upgrades(self, session: str | None = None) -> int:
        """Answer the upgrade requests held back."""
        return self._set(Fault.HOLD_UPGRADES, session, on=False)

    def reject(
        self,
        status_or_code: int,
        *,
        session: str | None = None,
        times: int = 1,
        reason: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> None:
        """Refuse the next `times` connections of a key.

        Args:
            status_or_code: Below 1000 the upgrade's HTTP status; else the close code for the authorization.
            session: Session key; `None` for whichever come next.
            times: How many, at least 1.
            reason: Of the close frame.
            headers: Of the HTTP answer, e.g. `{"Retry-After": "1"}`.
            body: Of the HTTP answer.

        Raises:
            ValueError: `times` is below 1, the status is no status, or no close frame can carry the code and
                reason.
        """
        if times < 1 or status_or_code < 100:
            raise ValueError(f"cannot reject with {status_or_code}, {times} times")
        if status_or_code >= FIRST_CLOSE_CODE and status_or_code != 1006:
            checks.encode_close(status_or_code, reason)  # refuses now what it would refuse then
        self._state.add_rejection(
            Rejection(status_or_code, session, times, reason, dict(headers or {}), body or b"")
        )

    # --- inside

    def _accepted(self) -> list[ServerConnection]:
        with self._state.condition:
            return list(self._connections)

    def _wake_all(self) -> None:
        for connection in self._accepted():
            connection.wake()

    def _own_authority(self) -> ThrowAwayCA:
        if self._authority is None:
            raise ValueError("the server was not made with tls=True")
        return self._authority

    def _set(self, fault: Fault, session: str | None, *, on: bool = True) -> int:
        self._state.set_fault(fault, session, on)
        reached = [c for c in self.connections(session) if c.closed_at is None]
        for connection in reached:
            connection.wake()
        return len(reached)

    def _describe(self) -> str:
        lines: Iterable[object] = [
            self,
            *self.connections()[-20:],
            *self.requests[-20:],
            *self.violations[-20:],
        ]
        return "\n  ".join(map(str, lines))

    def _welcome(self, sock: socket.socket) -> None:
        stream = ServerStream(
            sock,
            self._ssl_context,
            outbox_limit=self._outbox_limit,
            write_timeout=self._write_timeout,
        )
        with self._state.condition:
            connection = Conversation(self._state, len(self._connections) + 1, stream, self._rest)
            closed = self._closed
            if not closed:
                self._connections.append(connection)
                self._state.changed()
        if closed:
            connection.discard(ConnectionAbortedError("the server is closed"))
            return
        try:
            connection.start(f"llm-server-conn[{self.port}#{connection.number}]")
        except RuntimeError as exc:  # no thread to be had
            connection.discard(exc)
