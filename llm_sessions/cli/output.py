"""Where lines go: standard output, and the file of `--save`."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO

from .lines import Line, as_json, as_text
from .statuses import UsageError

__all__ = [
    "ClosedPipe",
    "Plain",
    "Printer",
    "SaveFile",
    "Unwritable",
    "forget",
    "is_utf8",
    "say",
    "write_out",
]


class Unwritable(Exception):
    """Something could not be written. The text says what and why."""


class ClosedPipe(Exception):
    """Whoever read the output is gone."""


class Printer(Protocol):
    """What shows lines. For one thread only."""

    def write(self, line: Line) -> None:
        """Show a line.

        Raises:
            Unwritable: If it cannot be written.
            ClosedPipe: If nobody reads any more.
        """

    def note(self, text: str) -> None:
        """Show something about the sessions that is no event; never raises."""

    def refresh(self) -> None:
        """Show how the sessions stand at this moment."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Plain:
    """One line for each event, and nothing else, on a stream; notes go to another one.

    Args:
        stream: For events; flushed after each.
        notes: For everything else.
        json: Whether lines are JSON.
        width: Columns for the ids of sessions.
    """

    def __init__(self, stream: TextIO, notes: TextIO, *, json: bool = False, width: int = 0) -> None:
        self._stream, self._notes = stream, notes
        self._render: Callable[[Line], str] = lambda line: as_text(line, width=width)
        if json:
            ascii_only = not is_utf8(stream)
            self._render = lambda line: as_json(line, ascii_only=ascii_only)

    def write(self, line: Line) -> None:
        write_out(self._stream, f"{self._render(line)}\n")

    def note(self, text: str) -> None:
        say(self._notes, text)

    def refresh(self) -> None:
        pass

    def close(self) -> None:
        pass


def is_utf8(stream: TextIO) -> bool:
    """Say whether a stream takes every character."""
    try:
        return codecs.lookup(stream.encoding or "utf-8").name == "utf-8"
    except LookupError:
        return False


def write_out(stream: TextIO, text: str) -> None:
    """Write to standard output and flush. What its encoding does not know becomes an escape.

    Raises:
        ClosedPipe: If nobody reads any more.
        Unwritable: If it cannot be written. After either, the stream leads nowhere, so that the interpreter's
            own flush at exit has nothing to complain of.
    """
    encoding = stream.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        forget(stream)
        raise ClosedPipe from None
    except OSError as exc:
        forget(stream)
        raise Unwritable(f"cannot write the output: {exc.strerror}") from exc


def say(stream: TextIO, text: str) -> None:
    """Write a line for people, where they may have stopped to read."""
    with contextlib.suppress(ClosedPipe, Unwritable):
        write_out(stream, f"{text}\n")


def forget(stream: TextIO) -> None:
    """Have a stream that cannot be written lead nowhere, so that nobody else complains of what is left in it.

    See "Note on SIGPIPE" in Python's documentation of `signal`. A stream without a descriptor stays as it is.
    """
    with contextlib.suppress(OSError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


class SaveFile:
    """A file that lines are appended to as JSON, whole ones only. For one thread, and one process.

    A file that is made is its owner's alone (mode 0600); one that is there keeps its mode.

    Args:
        path: The file.

    Raises:
        UsageError: If it cannot be opened, or another process saves to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Whoever holds a pipe's reading end, too, is not told when its reader is gone, and waits for ever.
        mode = os.O_WRONLY if path.is_fifo() else os.O_RDWR
        try:
            self._file = os.open(path, mode | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise UsageError(f"cannot save to {path}: {exc.strerror}") from exc
        self._regular = stat.S_ISREG(os.fstat(self._file).st_mode)
        try:
            if self._regular:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._end_last_line()
        except BlockingIOError as exc:
            os.close(self._file)
            raise UsageError(f"cannot save to {path}: another process does") from exc
        except OSError as exc:
            os.close(self._file)
            raise UsageError(f"cannot save to {path}: {exc.strerror}") from exc

    def _end_last_line(self) -> None:
        """Have what comes begin on a line of its own, whatever wrote to the file before."""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")

    def write(self, line: Line) -> None:
        """Append a line. It has been given to the operating system when this returns.

        Raises:
            Unwritable: If it could not be, such as on a full disk. Nothing of the line is left in the file.
        """
        rest = memoryview(f"{as_json(line)}\n".encode())
        done = 0
        try:
            while done < len(rest):
                done += os.write(self._file, rest[done:])
        except OSError as exc:
            if self._regular and done:
                with contextlib.suppress(OSError):  # the line before it counts more than this half
                    os.ftruncate(self._file, os.fstat(self._file).st_size - done)
            raise Unwritable(f"cannot save to {self._path}: {exc.strerror}") from exc

    def close(self) -> None:
        """Close the file.

        Raises:
            Unwritable: If the operating system says only now that something was not written.
        """
        try:
            os.close(self._file)
        except OSError as exc:
            raise Unwritable(f"cannot save to {self._path}: {exc.strerror}") from exc

    def __enter__(self) -> SaveFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
