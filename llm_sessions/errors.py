"""Every exception that llm_sessions raises.

::

    LLMSessionsError
    ├── ConfigurationError  a bad argument, found before anything starts (also a ValueError)
    ├── PoolClosed  the pool was closed, or this process is a fork of the one that made it
    ├── ProtocolError
    │   ├── LocalProtocolError  this program did something that cannot work
    │   └── RemoteProtocolError  the server did
    ├── OwnershipError  the client already belongs to another joined meeting
    └── SessionError  about one session, named by `session_id`
        ├── NotOnline  send() while the session is not online
        ├── AlreadyConnected  the session is busy with another endpoint
        ├── ConnectError  the session could not be brought online
        │   ├── ConnectTimeout  the caller's time ran out (also a TimeoutError)
        │   ├── ConnectCancelled  disconnect() or close() came first
        │   ├── BadRequest  the server answered 4400
        │   ├── NotAuthorized  the server answered 4401 or HTTP 401
        │   ├── Forbidden  the server answered 4403
        │   ├── UnknownResponse  the server closed before the session was ready and did not say why
        │   └── RegistrationError  a bad answer over REST
        │       └── TokenRefreshError  a token could not be refreshed
        ├── ConnectionLost  an online connection ended
        │   └── Replaced  another client took this registration over
        └── WaitTimeout  a wait ran out (also a TimeoutError)

Exceptions carry data; their text is made from it. They pickle, and `copy.copy` gives an equal one. What
the operating system, requests or websocket-client raised is their `__cause__` and never crosses a layer
itself. No exception holds a token.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

__all__ = [
    "AlreadyConnected",
    "BadRequest",
    "ConfigurationError",
    "ConnectCancelled",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionLost",
    "Forbidden",
    "LLMSessionsError",
    "LocalProtocolError",
    "NotAuthorized",
    "NotOnline",
    "OwnershipError",
    "PoolClosed",
    "ProtocolError",
    "RegistrationError",
    "RemoteProtocolError",
    "Replaced",
    "SessionError",
    "TokenRefreshError",
    "UnknownResponse",
    "WaitTimeout",
]


class LLMSessionsError(Exception):
    """Base of all errors raised by llm_sessions."""


class ConfigurationError(LLMSessionsError, ValueError):
    """An argument cannot be used. Nothing was started.

    Attributes:
        argument: Name of the argument.
        problem: What is wrong with it, and what is allowed.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(argument, problem)  # the same arguments again: pickling calls the class with them
        self.argument = argument
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.argument}: {self.problem}"


class PoolClosed(LLMSessionsError):
    """The pool was closed, or this process is a fork of the one that made it."""

    def __init__(self, message: str = "the pool is closed") -> None:
        super().__init__(message)


class ProtocolError(LLMSessionsError):
    """Somebody broke the rules of the conversation: see the two subclasses."""


class LocalProtocolError(ProtocolError):
    """This program asked for something that cannot work, such as a wait for itself."""


class RemoteProtocolError(ProtocolError):
    """The server sent what no WebSocket or Mercury server may send."""


class OwnershipError(LLMSessionsError):
    """The client already belongs to another joined meeting; use a second client."""


class SessionError(LLMSessionsError):
    """Something about one session.

    Attributes:
        session_id: The session it is about; empty if it is about none in particular.
        message: What happened, for people.
    """

    def __init__(self, session_id: str, message: str = "") -> None:
        super().__init__(session_id, message)
        self.session_id = session_id
        self.message = message

    def __str__(self) -> str:
        return f"session {self.session_id!r}: {self.message}" if self.session_id else self.message


class NotOnline(SessionError):
    """send() was called while the session was not online."""


class AlreadyConnected(SessionError):
    """connect() named another endpoint than the one that the session is busy with.

    Attributes:
        url: The endpoint in use, for people; query and credentials left out.
    """

    def __init__(self, session_id: str, url: str) -> None:
        SessionError.__init__(self, session_id, f"already uses {url}; disconnect it first")
        self.args: tuple[Any, ...] = (session_id, url)
        self.url = url


class ConnectError(SessionError):
    """The session could not be brought online.

    Attributes:
        attempts: How many attempts had failed by then; 0 when none had ended.
        code: WebSocket close code of the last attempt, or None if it did not end by a close.
        reason: Close reason, possibly empty.
        status: HTTP status of the last attempt, or None if no HTTP answer ended it.
        retry_after: Seconds that the server asked to wait, or None.
    """

    def __init__(
        self,
        session_id: str,
        message: str = "",
        attempts: int = 0,
        code: int | None = None,
        reason: str = "",
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(session_id, message)
        self.args: tuple[Any, ...] = (session_id, message, attempts, code, reason, status, retry_after)
        self.attempts = attempts
        self.code = code
        self.reason = reason
        self.status = status
        self.retry_after = retry_after

    def __str__(self) -> str:
        counted = f" (after {self.attempts} attempts)" if self.attempts > 1 else ""
        return super().__str__() + counted


class ConnectTimeout(ConnectError, TimeoutError):
    """The session was not online within the caller's timeout; `__cause__` is the last attempt's error."""


class ConnectCancelled(ConnectError):
    """disconnect() or close() ended the attempt that this caller waited for."""


class BadRequest(ConnectError):
    """The server refused the request for good (close 4400)."""


class NotAuthorized(ConnectError):
    """The server refused the access token (close 4401, HTTP 401)."""


class Forbidden(ConnectError):
    """The server refused this client for good (close 4403)."""


class UnknownResponse(ConnectError):
    """The server closed before the session was ready, without a code or a reason (1005)."""


class RegistrationError(ConnectError):
    """The REST service answered with something that cannot be used.

    Attributes:
        url: What was asked, without query and credentials.
        timing: Seconds until the answer, or None if there was none.
    """

    def __init__(
        self,
        session_id: str,
        message: str = "",
        status: int | None = None,
        url: str = "",
        timing: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(session_id, message, status=status, retry_after=retry_after)
        self.args: tuple[Any, ...] = (session_id, message, status, url, timing, retry_after)
        self.url = url
        self.timing = timing


class TokenRefreshError(RegistrationError):
    """A token was needed and could not be refreshed.

    Attributes:
        final: Whether asking again cannot help: somebody has to log in again.
    """

    def __init__(
        self,
        session_id: str,
        message: str = "",
        status: int | None = None,
        url: str = "",
        timing: float | None = None,
        retry_after: float | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(session_id, message, status, url, timing, retry_after)
        self.args: tuple[Any, ...] = (*self.args, final)
        self.final = final


class ConnectionLost(SessionError):
    """The server or the network ended the connection.

    Attributes:
        code: WebSocket close code (RFC 6455 7.4); 1006 if none was received.
        reason: Close reason, possibly empty.
    """

    def __init__(self, session_id: str, code: int = 1006, reason: str = "") -> None:
        super().__init__(session_id, f"connection lost ({code}{' ' if reason else ''}{reason})")
        self.args: tuple[Any, ...] = (session_id, code, reason)
        self.code = code
        self.reason = reason


class Replaced(ConnectionLost):
    """Another client took this registration over (close 4000 `replaced`); it is not reconnected."""


class WaitTimeout(SessionError, TimeoutError):
    """A wait ran out; `__cause__` is the last attempt's error, if there was one."""


E = TypeVar("E", bound=BaseException)
C = TypeVar("C", bound=ConnectError)


def fresh_copy(error: E) -> E:
    """Return an equal exception with the same cause and no traceback.

    An outcome that many threads wait for is one exception; raising one object from each of them would
    let its traceback grow with every raise. A class of the user's that cannot be copied is returned itself.
    """
    try:
        twin = copy.copy(error)
    except Exception:  # noqa: BLE001  # whatever the user's __init__ raises: the error itself says more
        return error
    twin.__cause__ = error.__cause__
    twin.__suppress_context__ = error.__suppress_context__
    return twin.with_traceback(None)


def named(error: C, session_id: str, attempts: int = 0) -> C:
    """Return an error that came out of a source, which knows of no session, as one about this session.

    Args:
        error: It is returned itself if it names a session already, else a fresh copy.
        session_id: The session.
        attempts: How many of its attempts had failed by then.
    """
    if error.session_id:
        return error
    error = fresh_copy(error)
    error.session_id, error.attempts = session_id, attempts
    error.args = (session_id, *error.args[1:])
    return error
