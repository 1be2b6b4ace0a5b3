"""What a stream waits with: a poll, and a descriptor that makes it return. Each with a fallback."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
from typing import Any, Final

__all__ = ["POLLBAD", "POLLIN", "POLLOUT", "SelectPoll", "Waker", "milliseconds", "new_poll"]

POLLIN: Final = getattr(select, "POLLIN", 1)
POLLOUT: Final = getattr(select, "POLLOUT", 4)
POLLBAD: Final = getattr(select, "POLLERR", 8) | getattr(select, "POLLHUP", 16)

_LONGEST: Final = 24 * 60 * 60  # seconds; the system counts milliseconds in an int, callers wait in a loop


class Waker:
    """A descriptor that makes a poll return.

    Raises:
        OSError: If there is no descriptor left.
    """

    def __init__(self) -> None:
        self._ends: tuple[socket.socket, socket.socket] | None = None
        if hasattr(os, "eventfd"):
            self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:  # two descriptors instead of one, but everywhere
            self._ends = socket.socketpair()
            for end in self._ends:
                end.setblocking(False)
            self._descriptor = self._ends[0].fileno()

    def fileno(self) -> int:
        return self._descriptor

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is ringing already
            if self._ends is None:
                os.eventfd_write(self._descriptor, 1)
            else:
                self._ends[1].send(b"!")

    def quiet(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it rang, and was heard before
            if self._ends is None:
                os.eventfd_read(self._descriptor)
            else:
                self._ends[0].recv(4096)

    def close(self) -> None:
        if self._ends is None:
            os.close(self._descriptor)
        else:
            for end in self._ends:
                end.close()


class SelectPoll:
    """`select.poll` for systems that have none (Windows)."""

    def __init__(self) -> None:
        self._descriptors: dict[int, int] = {}

    def register(self, fileobj: Any, events: int) -> None:
        self._descriptors[fileobj if isinstance(fileobj, int) else fileobj.fileno()] = events

    def unregister(self, fileobj: Any) -> None:
        del self._descriptors[fileobj.fileno()]

    def poll(self, timeout: int | None) -> list[tuple[int, int]]:
        reading = [fd for fd, events in self._descriptors.items() if events & POLLIN]
        writing = [fd for fd, events in self._descriptors.items() if events & POLLOUT]
        # A connect that failed is an exceptional condition on Windows, not writability.
        got = select.select(reading, writing, writing, None if timeout is None else timeout / 1000)
        found: dict[int, int] = {}
        for fds, event in zip(got, (POLLIN, POLLOUT, POLLOUT), strict=True):
            for fd in fds:
                found[fd] = found.get(fd, 0) | event
        return list(found.items())


def new_poll() -> Any:
    """Return what `select.poll` returns, or what does its work."""
    return select.poll() if hasattr(select, "poll") else SelectPoll()


def milliseconds(timeout: float | None) -> int | None:
    """Return a timeout in seconds as a poll takes it: never 0 for more than 0, never too large for it."""
    return None if timeout is None else math.ceil(min(timeout, _LONGEST) * 1000)
