"""The connector: the thread that runs one attempt run, and what each failure asks of it.

It waits in five places: the endpoint and the token provider (user code or REST, which cannot be interrupted:
the run is abandoned there and this thread stores nothing when it wakes), `Link.open` (ends by `abort`),
`Link.read`, by which it is the socket's reader until that is over, the run's `news` (ready, ended or
cancelled), and between attempts (ends by `cancel`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from logging import ERROR, WARNING
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from .. import errors
from .._logging import SessionLogger, get_logger, know_secret, without_secrets
from ..connection.proxies import choose
from ..connection.socks import check_installed
from ..connection.transport import AttemptFailed, Link, LinkOwner, OpenRequest
from ..errors import (
    BadRequest,
    ConfigurationError,
    ConnectError,
    Forbidden,
    NotAuthorized,
    RegistrationError,
    TokenRefreshError,
    UnknownResponse,
    named,
)
from ..protocol.closing import FAILURES, Failure, First, Retried, classify_failed_open, classify_status
from ..protocol.mercury import EndCause, Ended, Timing
from ..protocol.url import connection_url
from .attempt import Attempt
from .retry import parse_retry_after
from .served import reads, serve
from .sources import BadAnswer, Unreachable, answered, check_target

if TYPE_CHECKING:
    from .config import PoolConfig
    from .environment import Environment

__all__ = ["Connector", "Owner"]

logger: Final = get_logger("pool")

T = TypeVar("T")


class Owner(LinkOwner, Protocol):
    """The session, as its connector sees it. All but `session_id` and `env` may be called at any time."""

    session_id: str
    env: Environment

    @property
    def was_online(self) -> bool:
        """Whether the session has been online since it was connected."""

    def adopt(self, attempt: Attempt, link: Link) -> bool:
        """Take the link that the run is about to open; False if nobody wants it any more."""

    def disown(self, attempt: Attempt, link: Link) -> None:
        """Forget a link that could not be opened."""

    def attempt_failed(self, attempt: Attempt, error: Exception) -> tuple[float, bool]:
        """Count a failed attempt; return the seconds to wait, and whether another one is allowed."""

    def tries_again(self, attempt: Attempt) -> None:
        """Hear that the run goes on."""

    def complain(self, what: str, level: int) -> None:
        """Log the exception that is being handled: it came out of user code, and may come again and again."""

    def give_up(self, attempt: Attempt, error: Exception) -> None:
        """Settle the run with an error, unless it is settled or cancelled."""

    def connector_ended(self, attempt: Attempt) -> None:
        """Hear that nothing more is done for the run."""


class _Failed(Exception):
    """This attempt failed: the row of the failure table, and the error that users see."""

    def __init__(self, failure: Failure, error: Exception, retry_after: float | None = None) -> None:
        super().__init__(failure)
        self.failure, self.error, self.retry_after = failure, error, retry_after


class Connector:
    """Runs an attempt run to its end.

    Args:
        machine: The session.
        attempt: The run.
    """

    __slots__ = ("_asked_to_wait", "_attempt", "_config", "_fresh", "_machine", "_refused")

    def __init__(self, machine: Owner, attempt: Attempt) -> None:
        self._machine = machine
        self._attempt = attempt
        self._config: PoolConfig = machine.env.config
        self._refused: str | None = None  # the endpoint's own token that was refused last
        self._fresh: str | None = None  # what a forced refresh returned, for the next attempt
        self._asked_to_wait = 0.0  # by a refresh that failed, in seconds

    def run(self) -> None:
        """The thread's main function. It has one exit, and the run is settled there at the latest."""
        serve(self._machine)
        error: Exception | None = None
        try:
            error = self._run()
        except BaseException as exc:
            error = ConnectError(self._attempt.session_id, "the connector failed")
            error.__cause__ = exc
            log = SessionLogger(logger, {"session_id": self._attempt.session_id})
            log.exception("the connector failed; this is a bug in llm_sessions")
        finally:
            try:
                if error is not None:
                    self._machine.give_up(self._attempt, error)
            finally:
                self._machine.connector_ended(self._attempt)

    def _run(self) -> Exception | None:
        """Return None once the run is settled or nobody wants it, or the error to give up with."""
        attempt = self._attempt
        wait = attempt.first_wait
        if attempt.stale is not None:
            self._tell_endpoint(attempt.stale)
        if attempt.rejected is not None:
            refused = self._refresh(attempt.rejected)
            if refused is not None:
                return refused
        wait = max(wait, self._asked_to_wait)
        while True:
            if wait > 0 and attempt.wait_cancelled(wait):
                return None
            if attempt.cancelled:
                return None
            attempt.number += 1
            try:
                self._try_once()
                return None
            except _Failed as exc:
                if attempt.cancelled:
                    return None
                verdict = self._judge(exc)
                if isinstance(verdict, Exception):
                    return verdict
                wait = verdict
                self._machine.tries_again(attempt)

    # -- one attempt ------------------------------------------------------------------------------------

    def _try_once(self) -> None:
        """Return when the session is online or the run cancelled; raise _Failed otherwise."""
        attempt, machine = self._attempt, self._machine
        request = self._prepare()
        if request is None:
            return
        link = machine.env.transport(
            request, machine, f"{attempt.session_id}#{attempt.generation}.{attempt.number}"
        )
        if not machine.adopt(attempt, link):
            return
        try:
            link.open()
        except AttemptFailed as exc:
            machine.disown(attempt, link)
            raise self._from_open(exc) from exc
        except BaseException:
            machine.disown(attempt, link)
            raise
        self._read(link)
        # Ready, ended, or cancelled: the reader enforces the open timeout and always reports.
        attempt.news.wait()
        ended = attempt.link_ended
        if attempt.cancelled or ended is None:
            return
        raise self._from_end(request, ended)

    def _read(self, link: Link) -> None:
        """Be the socket's reader, and the connector again after that.

        The run has long been settled then, unless the link ended before it was ready.
        """
        me = threading.current_thread()
        name = me.name
        try:
            link.read()
        except BaseException:  # noqa: BLE001  # a log handler's; the link has reported its end all the same
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), me)))
        reads(None)  # or the link would be asked to deliver what this thread reports from now on
        if self._attempt.link_ended is not None:
            me.name = name

    def _prepare(self) -> OpenRequest | None:
        """Ask the endpoint and the provider; return None if the run was cancelled meanwhile."""
        attempt, config = self._attempt, self._config
        try:
            attempt.token = ""  # that of the attempt before is not what the endpoint is refused with
            target = attempt.endpoint.resolve(attempt)
            if attempt.cancelled:
                return None
            address = self._check(lambda: check_target(target, config))
            attempt.target = target
            token = target.token if target.token is not None else self._own_token()
            if attempt.cancelled:
                return None
            attempt.token = self._check(lambda: answered(token))
            know_secret(attempt.token.removeprefix("Bearer "))
            # Each time: the environment may name another one by now, and the session's URL stays its own.
            proxy = choose(config.proxy, "wss" if address.tls else "ws", address.host, address.port)
            if proxy is not None and proxy.socks:
                check_installed("python_socks")
            needs_tls = address.tls or (proxy is not None and proxy.tls)
            context = config.tls_context() if needs_tls else None
        except BaseException as exc:  # SystemExit too: it would end this thread, and strand all who wait
            raise self._from_source(exc) from exc
        return OpenRequest(
            url=connection_url(target.url, now_ms=int(time.time() * 1000)),
            address=address,
            token=attempt.token,
            headers=dict(target.headers),
            ssl_context=context,
            proxy=proxy,
            open_timeout=config.open_timeout,
            send_timeout=config.send_timeout,
            max_message_bytes=config.max_message_bytes,
            timing=Timing(config.ping_interval, config.pong_timeout, config.force_close_delay),
        )

    def _own_token(self) -> str:
        if self._attempt.provider is None:
            raise ConfigurationError("token", "neither the pool nor connect() was given one")
        fresh, self._fresh = self._fresh, None
        return self._attempt.provider.get() if fresh is None else fresh

    def _check(self, check: Callable[[], T]) -> T:
        """Check what a source returned. Once the session has been online, a bad answer is a passing fault."""
        try:
            return check()
        except ConfigurationError as exc:
            if not self._machine.was_online:
                raise
            raise self._error(ConnectError, str(exc), exc) from exc

    # -- what failed ------------------------------------------------------------------------------------

    def _error(self, kind: type[ConnectError], message: str, cause: BaseException | None) -> ConnectError:
        error = kind(self._attempt.session_id, message, self._attempt.number)
        error.__cause__ = cause
        return error

    def _from_source(self, exc: BaseException) -> _Failed:
        retry_after = _seconds(getattr(exc, "retry_after", None))
        if isinstance(exc, ConfigurationError):
            if isinstance(exc, BadAnswer):
                exc = ConfigurationError(exc.argument, exc.problem)
                if self._machine.was_online:  # as if `_check` had found it
                    return _Failed(Failure.SOURCE, self._error(ConnectError, str(exc), exc))
            return _Failed(Failure.MISCONFIGURED, exc)
        if isinstance(exc, TokenRefreshError):
            # Its status is the token service's: a 401 is no reason to refresh, and none is no reason to end.
            failure = Failure.REFUSED if exc.final else Failure.SOURCE
            return _Failed(failure, named(exc, self._attempt.session_id, self._attempt.number), retry_after)
        if isinstance(exc, RegistrationError):
            failure = classify_status(exc.status) if isinstance(exc.status, int) else Failure.REFUSED
            if failure in (Failure.MISPLACED, Failure.STALE):  # these rows are the upgrade's
                failure = Failure.REFUSED
            return _Failed(failure, exc, retry_after)
        if isinstance(exc, Unreachable):
            return _Failed(exc.failure, self._error(ConnectError, exc.message, exc.__cause__))
        if isinstance(exc, ConnectError):
            return _Failed(_BY_ERROR.get(type(exc), Failure.SOURCE), exc, retry_after)
        what = f"the URL or token source raised {type(exc).__name__}"
        return _Failed(Failure.SOURCE, self._error(ConnectError, what, exc), retry_after)

    def _from_open(self, exc: AttemptFailed) -> _Failed:
        attempt = self._attempt
        retry_after = parse_retry_after(
            exc.retry_after, now=time.time(), longest=self._config.backoff_max * 10
        )
        kind = _class_of(exc.failure)
        error: ConnectError
        if issubclass(kind, RegistrationError):
            url = without_secrets(attempt.target.url) if attempt.target is not None else ""
            error = kind(attempt.session_id, exc.message, exc.status, url, None, retry_after)
            error.attempts = attempt.number
        else:
            error = kind(
                attempt.session_id,
                exc.message,
                attempt.number,
                exc.code,
                exc.reason,
                exc.status,
                retry_after,
            )
        error.__cause__ = exc.__cause__
        return _Failed(exc.failure, error, retry_after)

    def _from_end(self, request: OpenRequest, ended: Ended) -> _Failed:
        where = request.address
        if ended.cause is EndCause.OPEN_TIMEOUT:
            what = (
                f"{where} opened a WebSocket but did not say that it is ready within "
                f"{request.open_timeout} s; is it a Mercury server?"
            )
            return _Failed(Failure.NETWORK, self._closed(ConnectError, what, ended))
        if ended.cause in (EndCause.LOST, EndCause.ABORTED):
            what = f"{where} dropped the connection before it was ready"
            return _Failed(Failure.NETWORK, self._closed(ConnectError, what, ended))
        if ended.cause is EndCause.VIOLATION:
            what = f"{where} broke the WebSocket protocol before it was ready: {ended.reason}"
            return _Failed(Failure.CLOSED, self._closed(ConnectError, what, ended))
        failure = classify_failed_open(ended.code, ended.reason)
        what = f"{where} closed with {ended.code} {ended.reason!r} before it was ready"
        return _Failed(failure, self._closed(_class_of(failure), what, ended))

    def _closed(self, kind: type[ConnectError], message: str, ended: Ended) -> ConnectError:
        error = kind(
            self._attempt.session_id, message, self._attempt.number, code=ended.code, reason=ended.reason
        )
        error.__cause__ = ended.error
        return error

    # -- what follows -----------------------------------------------------------------------------------

    def _judge(self, failed: _Failed) -> float | Exception:
        """Do what the failure table says; return the seconds to wait, or the error to give up with."""
        attempt, machine = self._attempt, self._machine
        rule, error = FAILURES[failed.failure], failed.error
        self._asked_to_wait = min(failed.retry_after or 0.0, self._config.backoff_max * 10)
        backoff, left = machine.attempt_failed(attempt, error)
        if rule.first is First.TELL_ENDPOINT:
            self._tell_endpoint(error)
        elif rule.first is First.REFRESH_TOKEN:
            refused = self._refresh(attempt.token, error)
            if refused is not None:
                return refused
        if rule.retried is Retried.NO or (rule.retried is Retried.ONCE_ONLINE and not machine.was_online):
            return error
        if not left:
            return error
        return max(backoff, self._asked_to_wait)

    def _tell_endpoint(self, error: Exception) -> None:
        attempt = self._attempt
        if attempt.target is None:
            return
        try:
            attempt.endpoint.rejected(attempt.target, error)
        except BaseException:  # noqa: BLE001  # it is logged
            self._machine.complain("the endpoint's rejected() raised", ERROR)

    def _refresh(self, rejected: str, error: Exception | None = None) -> Exception | None:
        """Have a refused token replaced; return an error if there is no other one.

        A refresh that raises is no such error: the next attempt may fare better.
        """
        attempt = self._attempt
        if error is None:
            what = "the server refused the token of the online session"
            error = NotAuthorized(attempt.session_id, what, code=4401)
            error.__cause__ = attempt.last_error
        if attempt.target is not None and attempt.target.token is not None:
            # The endpoint's own: whether it has another shows when it is asked again.
            self._tell_endpoint(error)
            again, self._refused = rejected == self._refused, rejected
            return error if again else None
        provider = attempt.provider
        if provider is None:
            return error
        try:
            # No token was sent if it was the endpoint that was refused: with the one at hand, then.
            bare = (rejected or provider.get()).removeprefix("Bearer ")
            fresh = provider.refresh(bare)
        except BaseException as exc:  # noqa: BLE001  # it is logged
            self._machine.complain("refreshing the token failed", WARNING)
            if isinstance(exc, TokenRefreshError) and exc.final:
                return named(exc, attempt.session_id, attempt.number)
            asked = _seconds(getattr(exc, "retry_after", None)) or 0.0
            self._asked_to_wait = max(self._asked_to_wait, min(asked, self._config.backoff_max * 10))
            return None
        if isinstance(fresh, str) and fresh.removeprefix("Bearer ") == bare:
            return error
        self._fresh = fresh
        return None


_BY_ERROR: dict[type[ConnectError], Failure] = {
    BadRequest: Failure.BAD_REQUEST,
    Forbidden: Failure.FORBIDDEN,
    NotAuthorized: Failure.UNAUTHORIZED,
    UnknownResponse: Failure.UNKNOWN_RESPONSE,
}


def _class_of(failure: Failure) -> type[ConnectError]:
    """Return the error that the failure table names, for failures that are not exceptions of a source's."""
    kind: type[ConnectError] = getattr(errors, FAILURES[failure].error)
    return kind


def _seconds(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(min(value, 10**9))  # a huge int has no float
    return None
