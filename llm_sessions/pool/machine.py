"""What callers ask of a session: to connect, to wait, to disconnect.

Waiters are counted under the session's lock; the last one that leaves a first run ends it in the same
critical section. A disconnect takes out the sockets that are not ready at once, for there is no close
handshake to wait for: aborted, they are gone in a moment.
"""

from __future__ import annotations

import threading
from functools import partial

from .._sync import Deadline
from ..errors import (
    AlreadyConnected,
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    ConnectTimeout,
    LocalProtocolError,
    PoolClosed,
    WaitTimeout,
    fresh_copy,
)
from ..protocol.envelope import Envelope
from ..protocol.state import BUSY, ONLINE, SessionState, Trigger
from .attempt import Attempt, RunKind
from .core import Effects, said
from .inbox import Inbox
from .reports import SessionReports
from .retry import Retries
from .served import served_by_this_thread
from .sources import Endpoint, TokenProvider

__all__ = ["SessionMachine"]


class SessionMachine(SessionReports):
    """One session, shared by all threads. `Session` is its public face."""

    __slots__ = ()

    # -- callers ------------------------------------------------------------------------------------------

    def connect(self, endpoint: Endpoint | None, provider: TokenProvider | None, deadline: Deadline) -> None:
        """Return once the session is online; see `ConnectionPool.connect`."""
        self.refuse_own_thread("connect()")
        joined: list[bool] = []
        try:
            while True:
                found = self._decide(self._join, endpoint, provider, joined)
                if isinstance(found, Attempt):
                    return self._await_outcome(found, deadline, joined)
                if isinstance(found, Endpoint):
                    endpoint = self._same(endpoint, found)
                elif found:
                    return None
                else:
                    self._await_idle(deadline)
        finally:
            interrupted = ConnectCancelled(self.session_id, "its last caller was interrupted")
            self._decide(self._leave, joined, interrupted)

    def _join(
        self,
        effects: Effects,
        endpoint: Endpoint | None,
        provider: TokenProvider | None,
        joined: list[bool] | None,
    ) -> Attempt | Endpoint | bool:
        """Return the run to wait for; True if the session is online, False if it must become idle first.

        Or the endpoint that it is busy with, for `_same` to compare.
        """
        self._check_usable()
        if endpoint is None:
            endpoint = self._endpoint
            provider = (
                self._provider if provider is None else provider
            )  # to reconnect by hand is to do the same again
        if endpoint is None:
            raise ConfigurationError("url", f"session {self.session_id!r} never had one; give it one")
        if self._state is SessionState.DISCONNECTING:
            return False
        at_rest = self._state in (SessionState.IDLE, SessionState.OFFLINE)
        if not at_rest and endpoint is not self._endpoint:
            assert self._endpoint is not None
            return self._endpoint
        if self._state in ONLINE:
            return True
        if joined is not None:
            self._waiters += 1  # in this order: an interrupt comes only after a call
            joined.append(True)
        if at_rest:
            self._endpoint = endpoint
            self._provider = self.env.provider if provider is None else provider
            self._retries = Retries(self.env.config)
            self._short_lives = 0
            self._repeats.forget()  # what fails now is news
            self._step(effects, Trigger.CONNECT)
            self._new_attempt(effects, RunKind.FIRST)  # after the step: its log line comes before theirs
        assert self._attempt is not None
        if joined is None:
            self._attempt.held = True
        return self._attempt

    def _same(self, wanted: Endpoint | None, current: Endpoint) -> Endpoint:
        # Not under the lock: how endpoints compare, and what they are called, is user code.
        if wanted != current:
            raise AlreadyConnected(self.session_id, str(current))
        return current

    def _check_usable(self) -> None:
        self.env.check_open()
        if self._forgotten:
            raise ConnectCancelled(self.session_id, "it was disconnected, and its id was made up: it is gone")

    def _await_outcome(self, attempt: Attempt, deadline: Deadline, joined: list[bool]) -> None:
        if attempt.wait_settled(deadline.left()):
            if attempt.error is not None:
                raise fresh_copy(attempt.error) from attempt.error.__cause__
            return
        last = attempt.last_error
        said = f": {last.message if isinstance(last, ConnectError) else last}" if last is not None else ""
        timeout_error = ConnectTimeout(
            self.session_id, f"not online within {deadline.timeout} s{said}", attempt.failures
        )
        timeout_error.__cause__ = last
        self._decide(self._leave, joined, timeout_error)
        # In the instant between, the run may have settled after all.
        if attempt.settled and attempt.error is None:
            return
        raise fresh_copy(timeout_error) from last

    def _leave(self, effects: Effects, joined: list[bool], error: Exception) -> None:
        """A waiter goes, if it came; the last one ends a first run that nobody else keeps."""
        if not joined:
            return
        joined.clear()
        self._waiters -= 1
        attempt = self._attempt
        if (
            self._waiters == 0
            and self._state is SessionState.CONNECTING
            and attempt is not None
            and not attempt.held
        ):
            self._cancel_attempt(effects, error)
            self.last_error: Exception | None = error
            self._end_with(error)
            self._step(effects, Trigger.GAVE_UP, said(error))

    def _await_idle(self, deadline: Deadline) -> None:
        with self._lock:
            seen = self._disconnects
            if not self._changed.wait_for(
                lambda: self._state is not SessionState.DISCONNECTING or self._disconnects != seen,
                deadline.left(),
            ):
                raise ConnectTimeout(
                    self.session_id, f"still disconnecting after {deadline.timeout} s"
                ) from None

    def begin_connect(self, endpoint: Endpoint | None, provider: TokenProvider | None) -> bool:
        """Start what `connect` starts, without waiting and without a caller who could give up.

        Returns:
            False if a disconnect is still under way: try again when `observe` says that something changed.
        """
        while True:
            found = self._decide(self._join, endpoint, provider, None)
            if not isinstance(found, Endpoint):
                return bool(found)
            endpoint = self._same(endpoint, found)

    def wait_online(self, timeout: float | None) -> None:
        """Return once the session is, or was for an instant since the call, online."""
        self.env.check_process()
        self.refuse_own_thread("wait_online()")
        joined: list[bool] = []
        gave_up: Exception = ConnectCancelled(self.session_id, "its last caller was interrupted")
        try:
            with self._lock:
                self._check_usable()
                onlines, endings = self._onlines, self._endings
                self._waiters += 1
                joined.append(True)
                arrived = self._changed.wait_for(
                    lambda: (
                        self._state in ONLINE
                        or self._state is SessionState.OFFLINE
                        or (self._onlines, self._endings) != (onlines, endings)
                    ),
                    timeout,
                )
                if self._state in ONLINE or self._onlines != onlines:
                    return
                error = self._why_ended()
                last = self._attempt.last_error if self._attempt is not None else self.last_error
            if arrived:
                raise fresh_copy(error) from error.__cause__
            said = f": {last}" if last is not None else ""
            gave_up = WaitTimeout(self.session_id, f"not online within {timeout} s{said}")
            gave_up.__cause__ = last
            raise fresh_copy(gave_up) from last
        finally:
            self._decide(self._leave, joined, gave_up)

    def refuse_own_thread(self, call: str) -> None:
        """Refuse a call that would wait for the thread it is made on.

        Raises:
            LocalProtocolError
        """
        if served_by_this_thread() is self:
            raise LocalProtocolError(
                f"{call} on session {self.session_id!r} would wait for itself: this thread is its connector "
                "or its reader (in its endpoint, its token provider, or a log handler)"
            )

    # -- fetching messages --------------------------------------------------------------------------------

    def receive(self, timeout: float | None) -> Envelope:
        """Return the next message that `receive` has not returned yet; see `Session.receive`."""
        self.env.check_process()
        self.refuse_pulling("receive()")
        with self._lock:
            self._check_usable()
            inbox = self._delivery.kept()
        raw, error = self._delivery.take(inbox, timeout, ends=False)
        if raw is not None:
            return Envelope(self.session_id, raw)
        if error is not None:
            raise fresh_copy(error) from error.__cause__
        raise WaitTimeout(self.session_id, f"no message within {timeout} s")

    def subscribe(self, limit: int | None) -> Inbox:
        """Return an inbox that gets every message from now on, at most `limit` at a time."""
        self.refuse_pulling("messages()")
        with self._lock:
            self._check_usable()
            return self._delivery.subscribe(self.env.config.queue_size if limit is None else limit)

    def fetch(self, inbox: Inbox, timeout: float | None) -> Envelope | None:
        """Wait for a message of an inbox; None once it is over, quietly.

        Raises:
            SessionError: The session's error, if it has ended for good.
        """
        self.env.check_process()
        self.refuse_pulling("messages()")
        raw, error = self._delivery.take(inbox, timeout, ends=True)
        if raw is not None:
            return Envelope(self.session_id, raw)
        if error is not None and not inbox.ours:
            raise fresh_copy(error) from error.__cause__
        return None

    def count_sent(self) -> None:
        """Count a message that `Session.send` has sent."""
        with self._lock:
            self._count.messages_out += 1

    def close_inbox(self, inbox: Inbox) -> None:
        """Take a subscription back."""
        self._delivery.close(inbox)

    def refuse_pulling(self, call: str) -> None:
        """Refuse to wait for a message on a thread that has to deliver it.

        Raises:
            LocalProtocolError
        """
        self.refuse_own_thread(call)
        if threading.current_thread() is self.dispatcher.thread:
            raise LocalProtocolError(
                f"{call} on session {self.session_id!r} would hold up its listeners: this thread is its "
                "dispatcher (in a callback)"
            )

    # -- disconnecting ------------------------------------------------------------------------------------

    def begin_disconnect(self, code: int | None, reason: str | None, closing: bool = False) -> int | None:
        """Start to disconnect without waiting.

        Args:
            code: Close code, checked.
            reason: Close reason, checked.
            closing: Whether the whole pool closes, which is what waiters are told then.

        Returns:
            A ticket for `wait_disconnected`, None if there is nothing to wait for.
        """
        return self._decide(self._begin_disconnect, code, reason, closing)

    def _begin_disconnect(
        self, effects: Effects, code: int | None, reason: str | None, closing: bool
    ) -> int | None:
        if closing:  # also those who wait for somebody to connect
            self._end_with(PoolClosed())
            self._changed.notify_all()
            effects.extend(self._observers)  # a session at rest takes no step that would tell them
            if self._state is SessionState.IDLE:
                self._delivery.rest(PoolClosed(), ours=True)
        if self._state is SessionState.DISCONNECTING:
            return self._disconnects  # joins the one under way; the first code wins
        if self._state is SessionState.OFFLINE:
            self._step(effects, Trigger.DISCONNECT)
            self._cleared(effects)
            return None
        if self._state not in BUSY:
            return None
        error = PoolClosed() if closing else ConnectCancelled(self.session_id, "disconnect() came first")
        ticket = self._disconnects
        self._asked, self._farewell, self._kept_close = (code, reason), None, None
        self._cancel_attempt(effects, error)
        if not closing:
            self._end_with(error)
        self._step(effects, Trigger.DISCONNECT, "the pool closes" if closing else "disconnect()")
        for link in list(self._links):
            if link.ready:
                effects.append(partial(link.close, code, reason))
            else:
                self._let_go(link)
                effects.append(link.abort)
        if not self._links:
            self._closed(effects)
        return ticket

    def begin_disconnect_from(
        self, endpoint: Endpoint, code: int | None, reason: str | None
    ) -> tuple[bool, int | None]:
        """Start to disconnect without waiting, if the session was connected with this very endpoint last.

        Returns:
            Whether it was, and a ticket for `wait_disconnected`.
        """

        def decision(effects: Effects) -> tuple[bool, int | None]:
            if self._endpoint is not endpoint:
                return False, None
            return True, self._begin_disconnect(effects, code, reason, False)

        return self._decide(decision)

    def forget(self) -> bool:
        """Say whether nobody uses the session; nobody can from then on. For ids that the pool made up."""
        with self._lock:
            self._forgotten = self._state is SessionState.IDLE
            if self._forgotten:
                self._end_with(ConnectCancelled(self.session_id, "it was disconnected"))
                self._changed.notify_all()
                self._delivery.rest(self._ended_by_us(), ours=True)
            return self._forgotten

    def wait_disconnected(self, ticket: int | None, timeout: float | None = None) -> bool:
        """Wait until the disconnect of that ticket is complete; say whether it is."""
        if ticket is None:
            return True
        with self._lock:
            return self._changed.wait_for(lambda: self._disconnects > ticket, timeout)

    def wait_at_rest(self, timeout: float | None) -> bool:
        """Wait until nothing of the session is open, or was for an instant; say whether that came."""
        with self._lock:
            rests = self._rests
            return self._changed.wait_for(
                lambda: self._state in (SessionState.IDLE, SessionState.OFFLINE) or self._rests != rests,
                timeout,
            )
