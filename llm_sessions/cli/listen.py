"""`llm-sessions listen`: what comes on one or several sessions, as lines."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final, TextIO

from .._logging import one_line, redact
from ..errors import ConfigurationError
from ..pool.config import PoolConfig
from .filters import Filter
from .lines import Line
from .mailbox import Mailbox
from .meter import Meter, reason, summary_line
from .output import ClosedPipe, Plain, Printer, SaveFile, Unwritable, say
from .parser import ListenOptions
from .sessions import Closed, Failed, Plan, SessionEnded, Sessions
from .signals import Signal, Signals
from .statuses import Status, UsageError
from .targets import parse_targets
from .tokens import find_token

__all__ = ["run_listen"]

_REFRESH: Final = 0.25  # seconds between two looks at the sessions


@dataclasses.dataclass(frozen=True)
class Note:
    """A line of the library's log."""

    text: str


class _LogLines(logging.Handler):
    """Hands records to the main thread, which alone writes. They have been redacted where they were made."""

    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__(logging.INFO)
        self._mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        self._mailbox.tell(Note(one_line(f"{record.levelname} {record.name} {record.getMessage()}")))


def run_listen(options: ListenOptions) -> int:
    """Listen until something ends it, and say what it was.

    Returns:
        The exit status.

    Raises:
        UsageError: If the options cannot be used; nothing was started.
    """
    mailbox = Mailbox()
    try:
        sessions = Sessions(_plan(options), mailbox)
    except ConfigurationError as exc:
        raise UsageError(one_line(redact(str(exc)))) from exc
    with contextlib.ExitStack() as stack:
        save = None if options.save is None else SaveFile(options.save)
        stack.enter_context(Signals(mailbox.tell))
        if options.verbose:
            stack.enter_context(_logged(mailbox))
        printer = _printer(options, sessions, sys.stdout, sys.stderr)
        listening = Listening(options, mailbox, sessions, printer, save)
        try:
            status = listening.run()
        finally:
            printer.close()
    for text in listening.complaints:
        say(sys.stderr, f"llm-sessions listen: {text}")
    width = max(len(one.id) for one in sessions.all)
    for session in sessions.all:
        say(sys.stderr, summary_line(session, width))
    return status


def _plan(options: ListenOptions) -> Plan:
    targets = parse_targets(
        options.urls,
        own_device=options.own_device,
        device=options.device is not None,
        allow_insecure=options.allow_insecure,
    )
    if "@" in options.proxy:
        raise UsageError(
            "--proxy: a user and a password are not taken from the command line, where every user of "
            "this machine can read them; set https_proxy in the environment"
        )
    config = PoolConfig(
        wait_timeout=options.timeout,
        allow_insecure=options.allow_insecure,
        ca_file=options.ca_file,
        proxy=None if options.proxy == "none" else options.proxy,
    )
    return Plan(
        targets,
        find_token(os.environ, options.token_file),
        config,
        Filter(options.event, [one.session for one in targets]),
        raw=options.raw,
        device=options.device,
        device_name=options.device_name,
        catalog=options.catalog,
    )


@contextlib.contextmanager
def _logged(mailbox: Mailbox) -> Iterator[None]:
    logger, handler = logging.getLogger("llm_sessions"), _LogLines(mailbox)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _printer(options: ListenOptions, sessions: Sessions, stream: TextIO, notes: TextIO) -> Printer:
    if not options.json and not options.plain and stream.isatty():
        try:
            from .display import Display, is_fit
        except ImportError as exc:
            if (exc.name or "").partition(".")[0] != "rich":
                raise
        else:
            if is_fit(stream):
                return Display(Meter(sessions.stats, time.monotonic).rows, stream)
    width = max(len(one.id) for one in sessions.all)
    return Plain(stream, notes, json=options.json, width=width)


class Listening:
    """The main thread's loop: it alone writes, counts, and decides when it is over.

    Args:
        options: When to end by itself.
        mailbox: Where everything comes from.
        sessions: Not started yet.
        printer: Shows lines.
        save: Keeps them; None for nothing. Closed at the end.
        clock: Monotonic seconds.

    Attributes:
        complaints: What went wrong and could not be shown as it happened.
    """

    def __init__(
        self,
        options: ListenOptions,
        mailbox: Mailbox,
        sessions: Sessions,
        printer: Printer,
        save: SaveFile | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options, self._mailbox, self._sessions = options, mailbox, sessions
        self._printer: Printer | None = printer
        self._save, self._clock = save, clock
        self._status: Status | None = None  # since something has ended it
        self._lines = 0
        self._gone: set[str] = set()
        self.complaints: list[str] = []

    def run(self) -> Status:
        """Start the sessions; return when nothing of them is left and everything is written."""
        self._sessions.start()
        now = self._clock()
        ends_at = None if self._options.seconds is None else now + self._options.seconds
        refresh_at = now
        while True:
            news = self._mailbox.get(self._patience(refresh_at, ends_at))
            if isinstance(news, Closed):
                break
            self._take(news)
            now = self._clock()
            if ends_at is not None and now >= ends_at:
                self._run_out()
            if now >= refresh_at and self._printer is not None:
                refresh_at = now + _REFRESH
                self._printer.refresh()
        self._sessions.join()
        self._close_save()
        assert self._status is not None  # who closes says why
        return Status.FAILED if self._status is Status.DONE and self._gone else self._status

    def _patience(self, refresh_at: float, ends_at: float | None) -> float:
        due = refresh_at if ends_at is None or self._status is not None else min(refresh_at, ends_at)
        return max(0.0, due - self._clock())

    def _run_out(self) -> None:
        if self._status is None:
            for session in self._sessions.never_online:
                why = reason(session, self._sessions.get(session).last_error)
                self._lose(session, f"session {session!r} did not come online in time: {why}")
        self._end(Status.DONE)

    def _end(self, status: Status) -> None:
        """Begin to end for a reason. The first one counts, but that lost lines outweigh any other."""
        if self._status is None or status is Status.UNWRITTEN:
            self._status = status
        self._sessions.begin_close()

    def _take(self, news: object) -> None:
        if isinstance(news, Line):
            self._write(news)
        elif isinstance(news, Signal):
            self._end(Status(128 + news.number))
        elif isinstance(news, Failed):
            self._lose(news.session, f"session {news.session!r} failed: {reason(news.session, news.error)}")
        elif isinstance(news, SessionEnded):
            why = reason(news.session, self._sessions.get(news.session).last_error)
            self._lose(news.session, f"session {news.session!r} has ended: {why}")
        elif isinstance(news, Note) and self._printer is not None:
            self._printer.note(news.text)

    def _lose(self, session: str, complaint: str) -> None:
        if self._status is not None or self._printer is None or session in self._gone:
            return
        self._gone.add(session)
        self._printer.note(complaint)  # now, for others may go on
        if len(self._gone) == len(self._sessions.all):
            self._end(Status.FAILED)

    def _write(self, line: Line) -> None:
        if self._lines == self._options.count:
            return  # it was delivered behind the last one that was asked for
        self._lines += 1
        if self._save is not None:
            try:
                self._save.write(line)
            except Unwritable as exc:
                self._close_save()
                self._complain(exc)
        if self._printer is not None:
            try:
                self._printer.write(line)
            except ClosedPipe:
                self._printer = None  # what is still to come is saved, if it is to be
                self._end(Status.CLOSED_PIPE)
            except Unwritable as exc:
                self._printer = None
                self._complain(exc)
        if self._lines == self._options.count:
            self._end(Status.DONE)

    def _complain(self, error: Unwritable) -> None:
        self.complaints.append(str(error))
        self._end(Status.UNWRITTEN)

    def _close_save(self) -> None:
        save, self._save = self._save, None
        if save is not None:
            try:
                save.close()
            except Unwritable as exc:
                self._complain(exc)
