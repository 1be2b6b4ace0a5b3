"""Captions as an iterator: `for line in meeting.captions.transcripts()`."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

from .._fork import OneProcess
from .caption_events import Transcript

__all__ = ["Aside", "Transcripts"]

Aside: TypeAlias = Callable[[], contextlib.AbstractContextManager[None]]
"""A context in which a thread waits for what comes on a session."""


class Transcripts(OneProcess):
    """The final captions of a joined meeting from one moment on, from `Captions.transcripts`.

    An iterator of `Transcript`, and a context manager that ends it. Every iterator gets every line; several
    threads that share one share its lines among them. It takes no lock that a finalizer could meet held: the
    queue is one that may be put into anywhere.

    Args:
        maxsize: Lines that may wait; the oldest make room for further ones.
        timeout: Seconds without a line after which it ends; None for no limit.
        check: Called before each wait; raises what forbids it.
        aside: A context for each wait.
    """

    def __init__(
        self,
        maxsize: int,
        timeout: float | None,
        check: Callable[[], None],
        aside: Aside = contextlib.nullcontext,
    ) -> None:
        self._maxsize, self._timeout, self._check, self._aside = maxsize, timeout, check, aside
        self._lines: queue.SimpleQueue[Transcript | None] = queue.SimpleQueue()  # None: nothing more comes
        self._newest = float("-inf")
        self._over = self._closed = False
        self._done = False  # somebody has been told that nothing more comes; a late line changes that no more
        self.dropped: int = 0  # lines that made room for newer ones

    def put(self, line: Transcript) -> bool:
        """Append a line; say whether it is the first that another one had to make room for.

        By one thread at a time.
        """
        if self._over:
            return False
        before = self.dropped
        while self._lines.qsize() >= self._maxsize:
            try:
                self._lines.get_nowait()
            except queue.Empty:  # somebody has taken it meanwhile
                break
            self.dropped += 1
        self._newest = time.monotonic()
        self._lines.put(line)
        if self._over:  # meanwhile: its end may have been what made room
            self._lines.put(None)
        return before == 0 < self.dropped

    def __iter__(self) -> Transcripts:
        return self

    def __next__(self) -> Transcript:
        """Wait for the next line.

        Raises:
            StopIteration: If no line came for the iterator's timeout, the meeting was left or its lobby
                entered, the client or its pool was closed, or `close` was called.
            LocalProtocolError: If called on a thread that delivers captions: in a callback of a session.
            PoolClosed: In a fork of the process.
        """
        self._check()
        if self._done:
            raise StopIteration
        with self._aside():
            return self._next()

    def _next(self) -> Transcript:
        began = time.monotonic()
        while True:
            wait = None
            if self._timeout is not None:
                # Silence is the meeting's: what another thread has taken counts, too.
                wait = max(0.0, max(began, self._newest) + self._timeout - time.monotonic())
            try:
                line = self._lines.get(timeout=wait)
            except queue.Empty:
                if self._timeout is not None and time.monotonic() < self._newest + self._timeout:
                    continue
                raise StopIteration from None
            if line is not None and not self._closed:
                return line
            self._done = True
            self._lines.put(None)  # for whoever else waits
            raise StopIteration

    def end(self) -> None:
        """Nothing more comes; what is there can be fetched."""
        if not self._over:
            self._over = True
            self._lines.put(None)

    def close(self) -> None:
        """End it: waiting lines are forgotten, and whoever waits for one is told that there is none.

        Waits for nothing; may be called anywhere, in finalizers, too.
        """
        self._closed = self._over = True
        try:
            while True:
                self._lines.get_nowait()
        except queue.Empty:
            self._lines.put(None)

    def __enter__(self) -> Transcripts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Transcripts {'ended' if self._over else 'open'}>"
