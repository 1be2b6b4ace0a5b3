"""The worker of one join: it makes the sessions what the facts want them to be.

    read the facts and look at both sessions ─► `next_step` ─► take that one step ─► again
                                                     └─ none: wait until something changes

- **Owner:** the `Meeting` of the join. It changes the facts under its lock, and each change begins a new
  generation. The worker alone connects and disconnects, also when the meeting is left: so nothing can come
  up behind a leave, and the next join's worker takes no step before this one is through.
- **Lock:** the meeting's, of rank 5: it is taken before any of a client or a pool. Under it only facts and
  tokens change hands; looks and steps are made without it. A change that comes between a look and the wait is
  not lost: changes are counted, and the wait is for a count that is not the look's.
- **Thread:** `llm-meeting[<n>]`. No step blocks. It waits in one place, on the lock's condition.
- **What ends each wait:** the worker's, a fact, a session's change of state (told by the session itself,
  never through a dispatcher), the predecessor's end, or the moment of the warning. A caller's in
  `wait_online`, that the session is online or was for an instant, its failure, the leave, the pool's close,
  or the timeout.
- **Ended for good:** an attempt that failed is settled for the generation in which it began, and a channel
  that was lost for the one in which it was seen last. Nothing is tried again before there is a newer one.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .._logging import SessionLogger, get_logger, guarded
from .._sync import Deadline, Lock
from ..datachannel.registration import Registration
from ..errors import (
    AlreadyConnected,
    ConnectCancelled,
    LLMSessionsError,
    LocalProtocolError,
    PoolClosed,
    WaitTimeout,
    fresh_copy,
)
from ..protocol.state import BUSY, ONLINE, SessionState
from ..session_ids import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION
from .rules import DONE, Channel, Connect, Disconnect, Facts, Seen, Step, next_step, wanted

if TYPE_CHECKING:
    from ..datachannel.client import DataChannelClient
    from ..pool.core import Standing
    from ..pool.session import Session

__all__ = ["SESSIONS", "WARN_AFTER", "Worker"]

SESSIONS: Final = (LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION)
"""The sessions that a meeting has to do with."""

WARN_AFTER: Final = 180.0
"""Seconds that the default channel may be down, while it is wanted, before there is a warning."""


@dataclasses.dataclass
class _Life:
    """What the worker remembers of a session. The last two are guarded by the lock, the rest is its own.

    Attributes:
        session: Its handle.
        open: Whether it was connected and its end has not been seen.
        asked: Whether the worker itself has asked for that end.
        began: The generation in which it was connected.
        onlines: How many times it had been online before; -1 if it was found connected.
        looked: The newest generation in which it was seen busy.
        visit: See `Channel`.
        finished: Whether it was at rest since the worker began to end; who has it now is somebody else.
        settled: See `Seen`.
        error: Why it ended for good in that one.
    """

    session: Session
    open: bool = False
    asked: bool = False
    began: int = 0
    onlines: int = 0
    looked: int = 0
    visit: int = 0
    finished: bool = False
    settled: int | None = None
    error: Exception | None = None


class Worker:
    """Reconciles the sessions of a client with the facts of one join.

    Args:
        client: Whose sessions.
        lock: The meeting's.
        facts: At the beginning.
        name: For its thread and its log.
        failed: Called on the worker without a lock when a session that is wanted has ended for good.
        over: Called once on the worker without a lock, when it is through.
    """

    def __init__(
        self,
        client: DataChannelClient,
        lock: Lock,
        facts: Facts,
        name: str,
        *,
        failed: Callable[[str, Exception], None],
        over: Callable[[], None],
    ) -> None:
        self._client, self._sessions = client, client._sessions
        self._env = client.pool._env
        self._lock, self._changed = lock, threading.Condition(lock)
        self._name, self._failed, self._on_over = name, failed, over
        self._log = SessionLogger(get_logger("meetings"), {"session_id": name})
        self._lives = {session_id: _Life(client.pool.session(session_id)) for session_id in SESSIONS}
        self._thread: threading.Thread | None = None
        self._down_since: float | None = None  # the worker's own, like the next
        self._warned = False
        # Guarded by the lock.
        self.facts = facts
        self.generation = 1
        self._changes = 0  # of facts and sessions alike; only grows
        self._seen_changes = -1  # how many there were when it began to wait; for tests
        self._ending = self._over = False
        self._predecessor: Worker | None = None
        self._successors: list[Callable[[], None]] = []

    # -- the meeting's calls: the lock is held -------------------------------------------------------------

    def change(self, **facts: Any) -> None:
        """Change facts. Also what is not new begins a generation: it is a reason to try again."""
        changed = dataclasses.replace(self.facts, **facts)
        # First: whoever is woken waits for the lock. So Ctrl-C leaves no change that nobody is told of.
        self._notify()
        self.facts, self.generation = changed, self.generation + 1

    def end(self) -> None:
        """Disconnect everything, and be through then."""
        self._ending = True
        self.change(joined=False)

    def _notify(self) -> None:
        self._changes += 1
        self._changed.notify_all()

    # -- from any thread, without the lock ------------------------------------------------------------------

    def start(self, predecessor: Worker | None) -> None:
        """Start the thread.

        Args:
            predecessor: Who takes steps on the same sessions until it is through; None for nobody.

        Raises:
            RuntimeError: If the system cannot start another thread.
        """
        self._predecessor = predecessor
        if predecessor is not None:
            predecessor._followed_by(self.notify)
        self._env.threads.spawn(self._run, f"llm-meeting[{self._name}]")

    def cancel(self) -> bool:
        """Have the thread do nothing, if it has not begun; say whether that is so."""
        with self._lock:
            if self._thread is None:
                self._over = True
                self._notify()
            return self._thread is None

    def notify(self) -> None:
        """Hear that a session, or the predecessor, is not what it was."""
        with self._lock:
            self._notify()

    def _followed_by(self, notify: Callable[[], None]) -> None:
        with self._lock:
            if not self._over:
                self._successors.append(notify)

    def wait_over(self, deadline: Deadline) -> bool:
        """Wait until the worker is through; say whether it is. It does not wait on a thread that it needs."""
        if threading.current_thread() is self._thread:
            return False
        if any(self._sessions.serves_this_thread(session_id) for session_id in SESSIONS):
            return False
        with self._lock:
            return bool(self._changed.wait_for(lambda: self._over, deadline.left()))

    def wait_online(self, session_id: str, timeout: float | None) -> Session:
        """Return once a session is, or since the call was, online; see `Meeting.wait_online`."""
        self._sessions.refuse_own_thread(session_id, "wait_online()")
        if threading.current_thread() is self._thread:
            raise LocalProtocolError(
                "wait_online() would wait for itself: this thread is the meeting's worker"
            )
        life, deadline = self._lives[session_id], Deadline(timeout)
        onlines = self._sessions.onlines(session_id)
        while True:
            with self._lock:
                changes, error = self._changes, None
                if self._ending or self._over:
                    raise self._ended(session_id)
                channel = wanted(self.facts).get(session_id) if self._predecessor is None else None
                if life.settled is not None and life.settled >= self.generation:
                    error = life.error
            # Looked at after the changes were counted: one that comes now ends the wait below.
            standing = self._sessions.standing(session_id)
            came = self._sessions.onlines(session_id) != onlines
            is_wanted = standing is not None and _channel(standing, life.visit) == channel
            if standing is not None and is_wanted and (came or standing.state in ONLINE):
                return life.session
            if error is not None and (standing is None or standing.state is SessionState.OFFLINE):
                raise fresh_copy(error) from error.__cause__
            with self._lock:
                if not self._changed.wait_for(
                    lambda seen=changes: self._changes != seen or self._over,  # type: ignore[misc]
                    deadline.left(),
                ):
                    last = life.session.last_error
                    said = f": {last}" if last is not None else ""
                    raise WaitTimeout(session_id, f"not online within {timeout} s{said}") from last

    def _ended(self, session_id: str) -> Exception:
        if self._env.closed:
            return PoolClosed()
        why = "the meeting was left" if self._ending else "the meeting's worker failed; the log says why"
        return ConnectCancelled(session_id, why)

    # -- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        with self._lock:
            if self._over:
                return  # its start was interrupted
            self._thread = threading.current_thread()
        forget: list[Callable[[], None]] = []
        try:
            forget += [self._sessions.observe(session_id, self.notify) for session_id in SESSIONS]
            self._work()
        except PoolClosed:
            pass  # it has disconnected the sessions itself
        except Exception:  # noqa: BLE001  # it is logged
            self._log.exception("the meeting's worker failed; this is a bug in llm_sessions")
        finally:
            for one in forget:
                one()
            with self._lock:
                self._over, successors = True, self._successors
                self._notify()
            self._on_over()
            for notify in successors:
                notify()

    def _work(self) -> None:
        while True:
            self._sessions.check_open()
            with self._lock:
                changes, facts, generation, ending = (
                    self._changes,
                    self.facts,
                    self.generation,
                    self._ending,
                )
            before = self._predecessor
            if before is not None:
                if not before._over:
                    self._wait(changes, None)
                    continue
                with self._lock:  # who waits for a channel may look at it from now on
                    self._predecessor = None
                    self._notify()
                continue
            seen = {session_id: self._look(session_id, facts, generation, ending) for session_id in SESSIONS}
            step = self._choose(facts, seen, generation, ending)
            if isinstance(step, (Connect, Disconnect)):
                if not self._take(step, generation):
                    self._wait(changes, None)
            elif ending and all(one.state is SessionState.IDLE for one in seen.values()):
                return
            else:
                self._wait(changes, self._until_warning(facts, seen))

    def _take(self, step: Connect | Disconnect, generation: int) -> bool:
        """Take a step; return False if there is nothing to do before something changes."""
        try:
            if isinstance(step, Connect):
                return self._connect(step, generation)
            self._lives[step.session_id].asked = True
            self._sessions.begin_disconnect(step.session_id, step.code, step.reason)
        except PoolClosed:
            raise
        except Exception as exc:  # noqa: BLE001  # a log handler's; the step may have been taken all the same
            guarded(lambda: self._log.exception("a log handler raised"))
            standing = self._sessions.standing(step.session_id)
            if isinstance(step, Connect) and (standing is None or standing.state not in BUSY):
                self._settle(step.session_id, generation, exc)
            return False
        return True

    def _wait(self, changes: int, seconds: float | None) -> None:
        with self._lock:
            self._seen_changes = changes
            self._changed.wait_for(lambda: self._changes != changes, seconds)

    def _choose(self, facts: Facts, seen: dict[str, Seen], generation: int, ending: bool) -> Step | None:
        step = next_step(facts, seen, generation)
        default, practice = seen[LLM_DEFAULT_SESSION], seen[LLM_PRACTICE_SESSION]
        if step is None and practice.state is SessionState.CONNECTING and default.state not in ONLINE:
            # What it is waiting for on its way, such as a token, may have taken long enough for the default
            # one to be lost: it starts again once that is back.
            return Disconnect(LLM_PRACTICE_SESSION, *DONE)
        if step is None and ending:
            for session_id, one in seen.items():
                if one.state is SessionState.OFFLINE:  # nothing of it is left open, but of what it knows
                    return Disconnect(session_id, *DONE)
        return step

    def _look(self, session_id: str, facts: Facts, generation: int, ending: bool) -> Seen:
        """Return where a session stands, and remember what that says about its end."""
        life, standing = self._lives[session_id], self._sessions.standing(session_id)
        channel = _channel(standing, life.visit) if standing is not None else None
        state = standing.state if standing is not None else SessionState.IDLE
        if ending and (life.finished or (channel is not None and channel.locus_url != facts.locus_url)):
            return Seen()  # somebody else's by now
        life.finished = ending and state is SessionState.IDLE
        if state in BUSY:
            if not life.open or life.asked:  # somebody else has connected it
                life.open, life.asked, life.began, life.onlines = True, False, generation, -1
                if life.visit != facts.visit:
                    life.visit = facts.visit
                    self.notify()  # whoever waits for this channel may have looked at it already
                channel = _channel(standing, life.visit) if standing is not None else None
            life.looked = generation
        elif life.open and state in (SessionState.IDLE, SessionState.OFFLINE):
            life.open = False
            if not life.asked:
                was_online = self._sessions.onlines(session_id) != life.onlines
                error: Exception = ConnectCancelled(session_id, "somebody disconnected it")
                if state is SessionState.OFFLINE:
                    error = life.session.last_error or error
                self._settle(session_id, life.looked if was_online else life.began, error)
            life.asked = False
        return Seen(channel, state, life.settled)

    def _settle(self, session_id: str, generation: int, error: Exception) -> None:
        life = self._lives[session_id]
        with self._lock:
            life.settled, life.error = generation, error
            tell = session_id in wanted(self.facts)
            self._notify()
        if tell and type(error) is not ConnectCancelled:
            guarded(lambda: self._failed(session_id, error))

    def _connect(self, step: Connect, generation: int) -> bool:
        session_id, channel = step.session_id, step.channel
        life = self._lives[session_id]
        life.onlines = self._sessions.onlines(session_id)
        with self._lock:
            if self.generation != generation:
                return True  # it is not what is wanted any more
            self._client._tokens.enter(session_id, channel.locus_url, None)
            life.visit = channel.visit
        try:
            begun = self._client.begin_register_and_connect(
                channel.locus_url, channel.datachannel_url, session_id
            )
        except PoolClosed:
            raise
        except AlreadyConnected as exc:
            if self._sessions.is_taken(session_id):
                self._settle(session_id, generation, exc)
            # Otherwise somebody has connected it through this client: that is what the next look finds.
        except LLMSessionsError as exc:
            self._settle(session_id, generation, exc)
        else:
            if not begun:
                return False  # a disconnect is under way, of somebody else's channel
            life.open, life.asked = True, False
            life.began = life.looked = generation
        return True

    def _until_warning(self, facts: Facts, seen: dict[str, Seen]) -> float | None:
        """Return the seconds until the default channel has been down too long; warn if it has."""
        if LLM_DEFAULT_SESSION not in wanted(facts) or seen[LLM_DEFAULT_SESSION].state in ONLINE:
            self._down_since, self._warned = None, False
            return None
        now = self._env.clock()
        if self._down_since is None:
            self._down_since = now
        left = self._down_since + WARN_AFTER - now
        if left > 0 or self._warned:
            return left if not self._warned else None
        self._warned = True
        error = self._lives[LLM_DEFAULT_SESSION].session.last_error
        guarded(
            lambda: self._log.warning(
                "the data channel is still down after %d s: %s", WARN_AFTER, error or "no error yet"
            )
        )
        return None


def _channel(standing: Standing, visit: int) -> Channel:
    registration = standing.endpoint
    assert isinstance(registration, Registration)
    return Channel(registration.locus_url, registration.datachannel_url, visit)
