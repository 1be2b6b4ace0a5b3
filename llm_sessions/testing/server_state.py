"""What `LocalServer` and its connections share: the condition, the faults asked for, and the records.

Nothing here does I/O. Everything may be called from any thread.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

logger: Final = logging.getLogger("llm_sessions.testing")

FIRST_CLOSE_CODE = 1000  # `reject`: smaller numbers are HTTP statuses


class ServerTimeout(AssertionError, TimeoutError):
    """What a test waited for at the server did not happen in time; the text tells the server's state."""


class Fault(enum.Enum):
    """Faults that stay until undone."""

    MUTE = "mute"  # JSON pings are not answered
    WRONG_PONG = "wrong_pong"  # pongs carry another id
    IGNORE_CLOSE = "ignore_close"  # close frames are not answered
    WITHHOLD_READY = "withhold_ready"  # the ready event is held back
    STALL_READS = "stall_reads"  # the socket is not read
    HOLD_UPGRADES = "hold_upgrades"  # the upgrade request is not answered


@dataclasses.dataclass
class Rejection:
    """The next `times` upgrades (HTTP status) or authorizations (close code) of a session are refused."""

    code: int
    session: str | None
    times: int
    reason: str = ""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""


@dataclasses.dataclass(frozen=True)
class Options:
    """What does not change while a server runs. Times in seconds, sizes in bytes."""

    ready_event: str
    strict: bool
    open_timeout: float


class ServerState:
    """The shared part of one server."""

    def __init__(self, options: Options, tokens: Collection[str] | None) -> None:
        self.options = options
        # Guards everything below and what connections record about their peer. Leaf: nothing is called
        # under it, neither a predicate nor a callback nor a socket.
        self.condition: threading.Condition = threading.Condition(threading.Lock())
        self.tokens: set[str] | None = None if tokens is None else set(tokens)
        self.violations: list[str] = []
        self.callbacks: list[Callable[[Any, dict[str, Any]], object]] = []
        self._version = 0
        self._everywhere: set[Fault] = set()
        self._by_session: dict[tuple[Fault, str], bool] = {}
        self._rejections: list[Rejection] = []

    def changed(self) -> None:
        """Wake those who wait for a change. The condition is held."""
        self._version += 1
        self.condition.notify_all()

    def violation(self, text: str) -> None:
        """Record what a client did wrong."""
        if self.options.strict:
            with self.condition:
                self.violations.append(text)
                self.changed()

    def set_fault(self, fault: Fault, session: str | None, on: bool) -> None:
        """The last call that names a session, or all of them (`None`), decides for it."""
        with self.condition:
            if session is not None:
                self._by_session[fault, session] = on
                return
            for key in [key for key in self._by_session if key[0] is fault]:
                del self._by_session[key]
            (self._everywhere.add if on else self._everywhere.discard)(fault)

    def has_fault(self, fault: Fault, session: str) -> bool:
        """Say whether `fault` applies to `session` now."""
        with self.condition:
            return self._by_session.get((fault, session), fault in self._everywhere)

    def add_rejection(self, rejection: Rejection) -> None:
        """Queue a refusal. Those for a session and those for all are used up in the order they were made."""
        with self.condition:
            self._rejections.append(rejection)

    def take_rejection(self, session: str, *, upgrade: bool) -> Rejection | None:
        """Use up one refusal of an upgrade, or else of an authorization."""
        with self.condition:
            for rejection in self._rejections:
                if rejection.session in (None, session) and (rejection.code < FIRST_CLOSE_CODE) is upgrade:
                    rejection.times -= 1
                    if not rejection.times:
                        self._rejections.remove(rejection)
                    return rejection
        return None

    def accepts(self, token: str) -> bool:
        """Say whether a bearer token, without its scheme, is good."""
        with self.condition:
            return self.tokens is None or token in self.tokens

    def wait_for(self, predicate: Callable[[], bool], timeout: float, describe: Callable[[], str]) -> None:
        """Return when `predicate` holds; it is asked without a lock, after each change and at the end.

        Raises:
            ServerTimeout: It did not hold within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        left = timeout
        while True:
            with self.condition:
                seen = self._version
            if predicate():
                return
            if left <= 0:
                raise ServerTimeout(f"not within {timeout} s: {describe()}")
            with self.condition:
                if self._version == seen:
                    self.condition.wait(left)  # every notification comes with a new version
            left = deadline - time.monotonic()
