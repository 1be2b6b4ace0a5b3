"""The service behind the server: numbers events, publishes them, and survives the server's restarts."""

from __future__ import annotations

import collections
import socket
import ssl
import threading
from collections.abc import Callable

from llm_sessions.testing.server import LocalServer, ServerConnection
from tests.chaos.ledger import Copy, Fate

__all__ = ["EVENT_TYPE", "RANGE", "Service", "event_number"]

EVENT_TYPE = "chaos.event"

RANGE = 1_000_000
"""Sequence numbers of one socket: no two sockets share one, so that a number names its socket."""

SERVERS = 10_000
"""Connections of one server."""


class Service:
    """Publishes numbered events on every ready socket of a session, and keeps the books.

    Args:
        context: TLS of the server; None for plain.
        prepare: Called with each new server.

    Attributes:
        violations: What clients did wrong, of all servers.
    """

    def __init__(
        self, context: ssl.SSLContext | None, prepare: Callable[[LocalServer], None] = lambda server: None
    ) -> None:
        self._context, self._prepare = context, prepare
        # Guards the server and the books. What is sent is sent under it, so that books and wire agree.
        self._lock = threading.RLock()
        self._past: list[LocalServer] = []
        self._published: dict[str, dict[int, tuple[Copy, ...]]] = collections.defaultdict(dict)
        self._next: dict[int, int] = {}  # the sequence number due on a connection
        self._fates: dict[str, collections.deque[Fate]] = collections.defaultdict(collections.deque)
        self._spoilt: dict[str, str] = {}
        self._live: dict[str, list[ServerConnection]] = {}
        # Between two servers somebody else would get the port. A socket that does not listen keeps it.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind(("127.0.0.1", 0))
        self.server = self._open()
        self.up = True

    def _open(self) -> LocalServer:
        server = LocalServer(ssl_context=self._context, port=self._port.getsockname()[1])
        self._prepare(server)
        return server

    def stop(self) -> None:
        """Close the server; connections end without a close frame."""
        with self._lock:
            if not self.up:
                return
            self.up, self._live = False, {}
            self._past.append(self.server)
        self.server.close()

    def start(self) -> None:
        """Open another one on the same port."""
        with self._lock:
            if not self.up:
                self.server = self._open()
                self.up = True

    def close(self) -> None:
        """Close the server for good."""
        self.stop()
        self._port.close()

    # --- publishing

    def look(self) -> None:
        """Look which sockets there are. Not done for each event: a server remembers all it ever had."""
        with self._lock:
            live = self.server.live() if self.up else []
            self._live = collections.defaultdict(list)
            for connection in live:
                self._live[connection.session].append(connection)

    def fate(self, key: str, fate: Fate, count: int = 1, how: str = "{") -> None:
        """Decide what becomes of the next events of a session."""
        with self._lock:
            self._fates[key].extend([fate] * count)
            self._spoilt[key] = how

    def publish(self, key: str) -> int:
        """Publish the next event of a session; return its number."""
        with self._lock:
            books = self._published[key]
            number = len(books) + 1
            fates = self._fates[key]
            fate: Fate = fates.popleft() if fates else "sent"
            copies: list[Copy] = []
            books[number] = ()
            for connection in self._live.get(key, ()) if self.up else ():
                if connection.live and connection.ready:
                    copies += self._send(connection, key, number, fate)
            books[number] = tuple(copies)
            return number

    def _send(self, connection: ServerConnection, key: str, number: int, fate: Fate) -> list[Copy]:
        owner = len(self._past) * SERVERS + connection.number
        base = owner * RANGE
        sequence = self._next.get(owner, base + 1)
        if sequence == base + 1:
            fate = "sent"  # the first number of a socket: what came before it nobody could miss
        data = {"eventType": EVENT_TYPE, "session": key, "number": number}
        envelope = {"id": f"{key}/{number}", "sequenceNumber": sequence, "data": data}
        if fate == "sent":
            gone = connection.send_json(envelope)
        elif fate == "spoiled":
            gone = _spoil(connection, self._spoilt[key], envelope)
        else:
            gone = True
        if not gone:
            return []
        self._next[owner] = sequence + 1
        return [Copy(owner, sequence, fate)]

    # --- the books

    def published(self, key: str) -> dict[int, tuple[Copy, ...]]:
        with self._lock:
            return dict(self._published[key])

    def acked(self, key: str) -> set[tuple[int, int]]:
        """Return connection and number of each event that was acknowledged."""
        found = set()
        for past, server in enumerate([*self._past, *([self.server] if self.up else [])]):
            for connection in server.connections(key):
                for identity in list(connection.acks):
                    if isinstance(identity, str) and identity.startswith(f"{key}/"):
                        found.add((past * SERVERS + connection.number, event_number(identity)))
        return found

    @property
    def violations(self) -> list[str]:
        return [text for server in {*self._past, self.server} for text in server.violations]


def event_number(identity: str) -> int:
    """Return the number in an event's id."""
    return int(identity.rpartition("/")[2])


def _spoil(connection: ServerConnection, how: str, envelope: dict[str, object]) -> bool:
    """Send what a client cannot use in an event's place."""
    if how == "large":
        return connection.send_json({**envelope, "id": "large", "padding": "x" * 40_000})
    return connection.send_binary(b"\0\1") if how == "binary" else connection.send_text(how)
