"""The public handle of one session."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .. import _json
from .._fork import OneProcess
from ..connection.transport import LinkBroken
from ..errors import ConfigurationError, ConnectionLost, NotOnline, WaitTimeout
from ..protocol.closing import check_close
from ..protocol.events import parse_event_name
from ..protocol.state import ONLINE, SessionState
from .config import check_count, check_seconds
from .listening import SessionEvents
from .messages import Messages

if TYPE_CHECKING:
    from ..protocol.envelope import Envelope
    from .core import Standing
    from .listeners import Callback
    from .machine import SessionMachine
    from .stats import SessionStats

__all__ = ["DEFAULT_TIMEOUT", "Session", "Timeout", "check_timeout", "encode", "transmit"]

F = TypeVar("F", bound="Callback")


class _Default(enum.Enum):
    """Stands for the pool's `wait_timeout` where None means no limit."""

    TIMEOUT = "the pool's wait_timeout"

    def __repr__(self) -> str:
        return f"<{self.value}>"


DEFAULT_TIMEOUT: Final = _Default.TIMEOUT
Timeout = float | None | _Default


def check_timeout(timeout: Timeout, default: float | None) -> float | None:
    """Return a caller's timeout in seconds, None for no limit.

    Raises:
        ConfigurationError: If it is not None or a number of seconds of at least 0.
    """
    if isinstance(timeout, _Default):
        return default
    if timeout is not None:
        check_seconds("timeout", timeout, zero=True)
    return timeout


def encode(message: Mapping[str, Any] | str) -> bytes:
    """Return a message as it is sent.

    Raises:
        ConfigurationError: If it is neither a mapping nor text, or cannot be written.
    """
    if isinstance(message, str):
        try:
            return message.encode()
        except UnicodeEncodeError as exc:
            raise ConfigurationError("message", f"cannot be encoded: {exc.reason}") from exc
    if isinstance(message, Mapping):
        try:
            return _json.dumps(dict(message))
        except (TypeError, ValueError, RecursionError) as exc:
            raise ConfigurationError("message", f"cannot be written as JSON: {exc}") from exc
    raise ConfigurationError("message", f"must be a mapping or a string, not {type(message).__name__}")


def transmit(machine: SessionMachine, standing: Standing, payload: bytes) -> None:
    """Send on the very socket that was the active one at a moment; see `Session.send`."""
    if standing.state not in ONLINE or standing.link is None:
        raise NotOnline(machine.session_id, f"it is {standing.state.value}")
    try:
        standing.link.send(payload, machine.env.config.send_timeout)
    except LinkBroken as exc:
        if exc.started:
            raise ConnectionLost(machine.session_id, 1006, str(exc)) from exc.__cause__
        raise NotOnline(machine.session_id, str(exc)) from exc.__cause__
    machine.count_sent()


class Session(SessionEvents, OneProcess):
    """One session of a pool, from `ConnectionPool.connect` or `.session`; it lives as long as its pool.

    Disconnecting and connecting again keeps it and its listeners. Safe to use from any thread and from any
    callback.
    """

    __slots__ = ("_machine",)

    def __init__(self, machine: SessionMachine) -> None:
        self._machine = machine

    @property
    def id(self) -> str:
        """The session's key in its pool."""
        return self._machine.session_id

    @property
    def state(self) -> SessionState:
        """Where the session stands at this moment."""
        return self._machine.state

    @property
    def online(self) -> bool:
        """Whether `send` works at this moment; not quite while a broken connection is being given up."""
        return self._machine.state in ONLINE

    @property
    def url(self) -> str | None:
        """The URL that the active socket was opened for, as its endpoint gave it; None before the first and
        after a disconnect."""
        return self._machine.url

    @property
    def last_error(self) -> Exception | None:
        """Why the last attempt failed or the last connection ended; None if nothing ever did."""
        return self._machine.last_error

    @property
    def time_offset(self) -> float | None:
        """Our wall clock minus the server's in seconds, by its newest message; None if unknown."""
        link = self._machine.active
        offset = link.time_offset if link is not None else None
        return offset / 1000 if offset is not None else None

    @property
    def latency(self) -> float | None:
        """Seconds from the newest answered ping to its pong; None before the first and after a disconnect."""
        return self._machine.latency

    def send(self, message: Mapping[str, Any] | str) -> None:
        """Send one message; return once it is handed to the operating system whole.

        Args:
            message: An object to send as JSON, or text to send as it is.

        Raises:
            ConfigurationError: If it is neither, or cannot be written as JSON.
            NotOnline: If the session is not online.
            ConnectionLost: If the connection ended first, or took nothing for `send_timeout` seconds, which
                ends it. Part of the message may have been sent.
            PoolClosed
        """
        payload = encode(message)
        self._machine.env.check_open()
        transmit(self._machine, self._machine.standing(), payload)

    def receive(self, timeout: float | None = None) -> Envelope:
        """Return the next message; wait for it if there is none.

        From the first call on, messages that come between calls are kept for the next one: up to the pool's
        `queue_size`. Beyond that `when_full` applies, but `block` stops reading only while nobody else, a
        listener or an iterator of `messages`, takes the session's messages; otherwise the oldest kept ones
        are dropped. When the session is connected anew, after a disconnect or its end, what is left is
        dropped, too.

        Calls from several threads share the messages among them. Listeners and `messages` get them as well.

        Args:
            timeout: Seconds; None for no limit.

        Raises:
            WaitTimeout: If the time ran out.
            ConnectCancelled: If the session was disconnected by us, and nothing is left to return. A session
                that was never connected is waited for.
            SessionError: The session's error, if it has ended for good and nothing is left to return.
            LocalProtocolError: If called in a callback of the session, or on its connector or reader thread.
            PoolClosed
        """
        seconds = check_timeout(timeout, None)
        self._machine.env.check_open()
        return self._machine.receive(seconds)

    def messages(self, timeout: float | None = None, maxsize: int | None = None) -> Messages:
        """Return an iterator over the messages that come from now on; also a context manager that ends it.

        It ends quietly when no message came for `timeout` seconds, and when the session is disconnected by
        us. It raises the session's error when that ends for good. What came before is handed out first. On
        a session that is idle it waits for the connect.

        Args:
            timeout: Seconds without a message, however many threads share the iterator, after which it
                ends; None for no limit. The time that a slow consumer takes does not count.
            maxsize: Messages that may wait in it before `when_full` applies; None for the pool's
                `queue_size`.

        Raises:
            ConfigurationError: If an argument cannot be used.
            LocalProtocolError: If called in a callback of the session, or on its connector or reader thread.
            PoolClosed
        """
        seconds = check_timeout(timeout, None)
        if maxsize is not None:
            check_count("maxsize", maxsize, least=1)
        self._machine.env.check_open()
        return Messages(self._machine, self._machine.subscribe(maxsize), seconds)

    def stats(self) -> SessionStats:
        """Return what the session has done since it was made, and how it stands."""
        self._machine.env.check_process()
        return self._machine.stats()

    def wait_online(self, timeout: Timeout = DEFAULT_TIMEOUT) -> Session:
        """Wait until the session is online; return it.

        Returns also if it was online for an instant since the call. A session that nobody has connected yet
        is waited for.

        Args:
            timeout: Seconds; None for no limit; by default the pool's `wait_timeout`.

        Raises:
            WaitTimeout: If the time ran out.
            ConnectCancelled: If it was disconnected meanwhile.
            SessionError: Its error, if it has ended for good; at once.
            PoolClosed
        """
        self._machine.wait_online(check_timeout(timeout, self._machine.env.config.wait_timeout))
        return self

    def wait_closed(self, timeout: float | None = None) -> None:
        """Wait until nothing of the session is open or being opened; at once if it is idle or offline.

        Returns also if it was so for an instant since the call.

        Args:
            timeout: Seconds; None for no limit.

        Raises:
            WaitTimeout: If the time ran out.
            LocalProtocolError: If called from the session's own endpoint or token provider.
        """
        seconds = check_timeout(timeout, None)
        self._machine.env.check_process()
        self._machine.refuse_own_thread("wait_closed()")
        if not self._machine.wait_at_rest(seconds):
            raise WaitTimeout(self.id, f"still {self.state.value} after {seconds} s")

    def disconnect(self, *, code: int | None = None, reason: str | None = None) -> None:
        """Disconnect; return when the session's sockets are gone. See `ConnectionPool.disconnect`."""
        machine = self._machine
        check_close(code, reason)
        machine.env.check_open()
        machine.refuse_own_thread("disconnect()")
        machine.wait_disconnected(machine.begin_disconnect(code, reason))

    def _own_name(self, event: str) -> str:
        name, session_id = parse_event_name(event)
        if session_id is not None and session_id != self.id:
            raise ConfigurationError("event", f"{event!r} is another session's; this one is {self.id!r}")
        return name

    def _register(self, event: str, callback: F | None, once: bool) -> F | Callable[[F], F]:
        name = self._own_name(event)
        self._machine.env.check_open()

        def register(function: F) -> F:
            self._machine.listeners.add(name, function, once=once)
            return function

        return register if callback is None else register(callback)

    def off(self, event: str, callback: Callback | None = None) -> None:
        """Take a callback back, or with None all of this event. Unknown ones are ignored.

        Inside a callback of this session it holds at once; from another thread, one more call may begin.
        """
        self._machine.env.check_open()
        self._machine.listeners.remove(self._own_name(event), callback)

    def __repr__(self) -> str:
        return f"<Session {self.id!r} {self.state.value}>"
