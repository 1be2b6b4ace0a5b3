"""Frames on their way out, in order."""

from __future__ import annotations

import socket
from typing import Final

from .tls import TLS

__all__ = ["Outbox"]

_WRITE_SIZE: Final = 64 * 1024


class Outbox:
    """A queue of whole frames, and the piece of them that is being written. Guarded by its stream's lock.

    Attributes:
        posted: Bytes ever put in.
        written: Bytes that have left.
        own_unsent: Bytes of the reader's own frames (acks, pings, pongs) that have not left.
    """

    def __init__(self) -> None:
        self._queue: list[tuple[memoryview, bool]] = []  # a deque would cost an idle session 0.7 KiB
        self.posted: int = 0
        self.written: int = 0
        self.own_unsent: int = 0
        self._head: memoryview | None = None  # what was taken (and encrypted) and is not wholly written
        self._taken = self._taken_own = 0  # bytes of frames in it

    def put(self, data: bytes, own: bool) -> int:
        """Append a frame; return the value that `written` reaches when it has left."""
        self._queue.append((memoryview(data), own))
        self.posted += len(data)
        if own:
            self.own_unsent += len(data)
        return self.posted

    def write(self, sock: socket.socket, tls: TLS | None) -> None:
        """Write all, also what TLS itself has to say.

        Raises:
            BlockingIOError: If the kernel takes no more now.
            OSError: If writing is over.
        """
        while True:
            if self._head is None:
                piece = self._take()
                if tls is not None:
                    tls.encrypt(piece)
                    piece = tls.ciphertext()
                if not piece:
                    return
                self._head = memoryview(piece)
            sent = sock.send(self._head)
            if sent < len(self._head):
                self._head = self._head[sent:]
            else:
                self._head = None
                self.written += self._taken
                self.own_unsent -= self._taken_own

    def _take(self) -> bytes | memoryview:
        pieces: list[memoryview] = []
        self._taken = self._taken_own = 0
        gone = 0  # off the queue at once below: one by one would move the rest of it each time
        while gone < len(self._queue) and self._taken < _WRITE_SIZE:
            piece, own = self._queue[gone]
            room = _WRITE_SIZE - self._taken
            if len(piece) > room:
                self._queue[gone] = piece[room:], own
                piece = piece[:room]
            else:
                gone += 1
            pieces.append(piece)
            self._taken += len(piece)
            self._taken_own += len(piece) if own else 0
        del self._queue[:gone]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def drop(self) -> None:
        """Forget all that has not left."""
        self._queue.clear()
        self._head = None
        self.own_unsent = 0

    def __bool__(self) -> bool:
        return self._head is not None or bool(self._queue)
