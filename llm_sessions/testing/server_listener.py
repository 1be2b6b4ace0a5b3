"""The listening socket of `LocalServer` and the thread that accepts."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Final

from llm_sessions.testing.server_stream import Waker, make_selector

logger: Final = logging.getLogger("llm_sessions.testing")

BACKLOG = 1024  # 200 clients may connect in the same millisecond
ACCEPT_PAUSE = 0.05  # seconds to wait when the process is out of descriptors


class Listener:
    """Accepts on one address and hands every socket to `welcome`, in its own thread.

    Args:
        host: Address to bind.
        port: Port to bind; 0 takes a free one.
        receive_buffer: SO_RCVBUF of accepted sockets in bytes; `None` leaves the default.
        welcome: Owns the socket it gets, unless it raises OSError.
    """

    def __init__(
        self, host: str, port: int, receive_buffer: int | None, welcome: Callable[[socket.socket], None]
    ) -> None:
        self._welcome = welcome
        self._stopping = False
        self._socket = socket.create_server((host, port), backlog=BACKLOG)
        if receive_buffer is not None:  # accepted sockets inherit it
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self._waker = Waker()
        self._thread = threading.Thread(
            target=self._main, name=f"llm-server-accept[{self.port}]", daemon=True
        )

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to end. Does not wait."""
        self._stopping = True
        self._waker.set()

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the thread; say whether it ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _main(self) -> None:
        with make_selector() as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            selector.register(self._waker, selectors.EVENT_READ)
            while not self._stopping:
                selector.select()
                self._accept(selector)
        self._socket.close()
        self._waker.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        while not self._stopping:
            try:
                sock, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:  # out of descriptors: others may be given back soon
                logger.warning("port %d cannot accept: %s", self.port, exc)
                selector.unregister(self._socket)
                selector.select(ACCEPT_PAUSE)
                selector.register(self._socket, selectors.EVENT_READ)
                return
            try:
                self._welcome(sock)
            except OSError as exc:
                logger.warning("port %d cannot serve a connection: %s", self.port, exc)
                sock.close()
