"""`Meeting`: the data channels of one meeting, from the facts about it.

::

    left ── join ──► joined ── leave, the client's close ──► left (and may be joined again)
                        │ update_… admit unadmit connect: new facts, which the worker acts upon

A join is one object, `Join`: its facts and its worker, what it listens to, and the mark of its events. It is
made by `join` and dropped by `leave`, both under the meeting's lock; whatever was begun for it and ends later
finds that it is not the meeting's join any more, and is dropped.

- **Owner:** the program. A client has one joined meeting at most; `Holding` of the client knows which.
- **Lock:** one of rank 5, before those of clients and pools. Under it facts, tokens, refresh handlers and
  listeners change together, so that no token of an old meeting is left behind in the client, whoever calls
  what at the same time. Nothing blocks under it, and no user code runs.
- **Threads:** the worker and one for handlers, while joined; see `worker` and `delivery`.
- **What ends each wait:** `wait_online` see `worker`; `leave` waits until its worker is through, at most its
  timeout, and not at all on that worker's own thread. All it does is done before it waits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .._fork import OneProcess
from .._sync import MEETING, Deadline, make_lock
from ..datachannel.client import DataChannelClient
from ..datachannel.holding import Holder
from ..errors import (
    ConfigurationError,
    ConnectCancelled,
    LocalProtocolError,
    OwnershipError,
    PoolClosed,
    TokenRefreshError,
)
from ..pool.config import check_flag
from ..pool.session import DEFAULT_TIMEOUT, Timeout, check_timeout
from ..session_ids import LLM_DEFAULT_SESSION
from .captioning import Captioning
from .captions import Captions
from .delivery import MeetingDelivery
from .join import Join, checked_tokens, fetch_token, without_state
from .locus import JoinResponse, Locus, read_join, read_locus
from .meeting_events import MeetingEvents
from .rules import Facts, Role, read_roles
from .worker import SESSIONS

if TYPE_CHECKING:
    from ..pool.session import Session

__all__ = ["Meeting"]

_numbers = itertools.count(1)


class Meeting(MeetingEvents, OneProcess):
    """Keeps the data channels of a meeting as they should be: the main one, and that of the practice session.

    The main channel is wanted while the meeting is joined and not in the lobby; the practice session's for a
    panelist while it is on, and it is started only while the main one is online. Methods that bring news
    return at once; a thread of the meeting acts upon them. A channel that failed is tried again with the next
    news, whatever it is.

    Safe from any thread and any callback. Use it as a context manager, or call `leave`.

    Args:
        client: Whose sessions `LLM_DEFAULT_SESSION` and `LLM_PRACTICE_SESSION` it uses while it is joined.
        auto_connect: Whether channels are connected before `connect` is called.

    Attributes:
        name: For threads and logs.
        captions: The meeting's captions.

    Raises:
        ConfigurationError: If an argument cannot be used.
        PoolClosed
    """

    def __init__(self, client: DataChannelClient, *, auto_connect: bool = True) -> None:
        if not isinstance(client, DataChannelClient):
            raise ConfigurationError("client", f"must be a DataChannelClient, not {type(client).__name__}")
        check_flag("auto_connect", auto_connect)
        client._check_open()
        self.name: str = f"meeting-{next(_numbers)}"
        self._client, self._auto_connect = client, auto_connect
        env = client.pool._env
        # Guards the join and what it holds. Rank 5.
        self._lock = make_lock("meeting", MEETING)
        self._join: Join | None = None
        self._last_error: Exception | None = None
        super().__init__(MeetingDelivery(self.name, env.threads, env.config.queue_size), client._check_open)
        self.captions: Captions = Captions(
            self._captioning,
            lambda: self._current().captioning,
            self._delivery.aside,
            env.config.wait_timeout,
            env.config.queue_size,
        )

    # -- join and leave -----------------------------------------------------------------------------------

    def join(self, join_response: JoinResponse | Mapping[str, Any]) -> None:
        """Take the meeting that was joined; its channels are connected from now on. Returns at once.

        Its data channel tokens are the client's from now until the meeting is left. Where the client has no
        refresh handler, the meeting fetches new ones.

        Args:
            join_response: What the service answered: an object with the `locus`; see `JoinResponse`.

        Raises:
            ConfigurationError: If it has no locus with a `url`, or a member has a wrong type.
            OwnershipError: If the client is in a meeting already, this one or another.
            PoolClosed
        """
        joined = read_join(join_response)
        tokens = checked_tokens(join_response["locus"])
        facts = Facts(
            joined=True,
            locus_url=joined.locus_url,
            datachannel_url=joined.datachannel_url,
            practice_url=joined.practice_url,
            roles=joined.roles or frozenset(),
            practice_enabled=bool(joined.practice_enabled),
            connect_wanted=self._auto_connect,
        )
        self._client._check_open()
        join = Join(
            self._client,
            self._lock,
            without_state(joined),
            facts,
            self.name,
            put=lambda join, name, payload, wait: self._delivery.put(join, name, payload, wait=wait),
            leave=lambda join: self._leave(join, join),
            over=self._worker_over,
        )
        before: Holder | None = None
        try:
            with self._lock:
                if self._join is not None:
                    raise OwnershipError("this meeting is joined already; leave it first")
                before = self._client._holding.take(join)
                self._join = join
                self._enter(joined.locus_url, tokens)
                for session_id in SESSIONS:
                    if not self._client._tokens.has_handler(session_id):
                        join.handlers[session_id] = partial(self._fetch, join, session_id)
                        self._client.set_refresh_handler(join.handlers[session_id], session_id)
                join.hearing.start()
                self._delivery.begin(join)
            join.worker.start(before.worker if isinstance(before, Join) else None)
        except BaseException:
            self._leave(join, before if join.worker.cancel() else join)
            raise

    def leave(self, timeout: float = 5.0) -> None:
        """Leave the meeting: disconnect both channels and forget its tokens.

        No handler of the meeting begins once this has; one that has begun is not waited for. Handlers stay
        registered, for the next join. Does nothing if no meeting is joined.

        Args:
            timeout: Seconds to wait until the channels' sockets are gone; they go all the same.

        Raises:
            ConfigurationError: If the timeout is not a number of seconds.
        """
        deadline = Deadline(check_timeout(timeout, None))
        if self._client._sessions.forked:
            return
        with self._lock:
            join = self._join
        if join is not None:
            join.give_up(deadline)

    def _leave(self, join: Join, last: Holder | None) -> None:
        """End a join, unless it has ended.

        Args:
            join: Which.
            last: Whom the client's next one is to wait for.
        """
        # The place for one that never became the meeting's: Ctrl-C may come as soon as it has it.
        give_back = partial(self._client._holding.give_back, join, last)
        _do_all([partial(self._drop, join, last), join.hearing.stop, give_back])

    def _drop(self, join: Join, last: Holder | None) -> None:
        with self._lock:
            if self._join is not join:
                return
            tokens = self._client._tokens
            _do_all(
                [
                    partial(self._delivery.end, join),  # first: no handler runs after leave has begun
                    partial(setattr, self, "_last_error", join.last_error),
                    join.worker.end,
                    partial(join.captioning.end, _left("the meeting was left")),
                    *(partial(tokens.drop_handler, *handler) for handler in join.handlers.items()),
                    *(partial(tokens.leave, session_id) for session_id in SESSIONS),
                    partial(self._client._holding.give_back, join, last),
                    partial(setattr, self, "_join", None),  # last: from then on there is nothing to do again
                ]
            )

    def _worker_over(self, join: Join) -> None:
        # By itself it ends only with its pool: those who wait to deliver something must not do so for good.
        self._delivery.end(join)
        join.captioning.end(PoolClosed())
        self._client._holding.forget(join)

    def __enter__(self) -> Meeting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    # -- news ---------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Have channels connected from now on, in a meeting with `auto_connect=False`. Returns at once.

        Raises:
            LocalProtocolError: If no meeting is joined.
        """
        self._change(connect_wanted=True)

    def update_locus(self, locus: Locus | Mapping[str, Any]) -> None:
        """Take the meeting's newest description, or a part of it.

        What it does not mention stays as it is. A token in it is used from the next registration on.

        Raises:
            ConfigurationError: If it is another meeting's, or a member has a wrong type; nothing changed.
            LocalProtocolError: If no meeting is joined.
            PoolClosed
        """
        while True:
            join = self._current()
            before = join.joined
            # Not under the lock: a mapping may be a class of the user's.
            after = read_locus(before, locus)
            tokens = checked_tokens(locus)
            with self._lock:
                if self._join is not join or join.joined is not before:
                    continue
                self._enter(after.locus_url, tokens)
                said: dict[str, Any] = {
                    "datachannel_url": after.datachannel_url,
                    "practice_url": after.practice_url,
                    "roles": after.roles,
                    "practice_enabled": after.practice_enabled,
                }
                join.joined = without_state(after)
                join.worker.change(**{name: value for name, value in said.items() if value is not None})
                return

    def update_roles(self, roles: Iterable[Role | str]) -> None:
        """Take the participant's own roles, all of them.

        Raises:
            ConfigurationError: If one is unknown.
            LocalProtocolError: If no meeting is joined.
        """
        self._change(roles=read_roles(roles))

    def update_practice_session(self, enabled: bool) -> None:
        """Hear whether the practice session is on.

        Raises:
            ConfigurationError: If it is not True or False.
            LocalProtocolError: If no meeting is joined.
        """
        self._change(practice_enabled=check_flag("enabled", enabled))

    def admit(self) -> None:
        """Hear that the participant is not in the lobby any more, as is taken for granted after `join`.

        Raises:
            LocalProtocolError: If no meeting is joined.
        """
        self._change(admitted=True)

    def unadmit(self) -> None:
        """Hear that the participant is in the lobby: both channels are disconnected, their tokens forgotten.

        Captions are as they are after a join: whatever was asked for is to be asked for again.

        Raises:
            LocalProtocolError: If no meeting is joined.
        """
        self._client._check_open()
        with self._lock:
            join = self._joined()
            worker, before = join.worker, join.captioning
            _do_all(
                [
                    partial(worker.change, admitted=False, visit=worker.facts.visit + 1),
                    *(partial(self._client._tokens.leave, session_id) for session_id in SESSIONS),
                    partial(setattr, join, "captioning", Captioning(self._client, join.joined.locus_url)),
                    partial(before.end, _left("the participant is in the lobby")),
                ]
            )

    def _enter(self, locus_url: str, tokens: Mapping[str, str]) -> None:
        """Have the client's tokens be this meeting's: new ones, or those it has unless they are another's."""
        for session_id in SESSIONS:
            self._client._tokens.enter(session_id, locus_url, tokens.get(session_id))

    def _change(self, **facts: Any) -> None:
        self._client._check_open()
        with self._lock:
            self._joined().worker.change(**facts)

    def _current(self) -> Join:
        self._client._check_open()
        with self._lock:
            return self._joined()

    def _joined(self) -> Join:
        """Return the join; the lock is held."""
        if self._join is None:
            raise LocalProtocolError("no meeting is joined")
        return self._join

    def _captioning(self) -> Captioning | None:
        join = self._join
        return join.captioning if join is not None else None

    # -- asking the service -------------------------------------------------------------------------------

    def request_practice_session(self, enabled: bool) -> None:
        """Ask the service to start or to stop the practice session; return when it has answered.

        Whether it is on is heard afterwards, by `update_locus` or `update_practice_session`.

        Raises:
            ConfigurationError: If it is not True or False.
            RegistrationError: If the service refused.
            ConnectError: If it did not answer.
            LocalProtocolError: If no meeting is joined.
        """
        body = {"practiceSession": {"enabled": check_flag("enabled", enabled)}}
        url = f"{self._current().joined.locus_url.rstrip('/')}/controls"
        self._client._rest.call("PATCH", url, json=body, empty_ok=True)

    def _fetch(self, join: Join, session_id: str) -> str:
        """Fetch a new token of a session; its refresh handler. The kind is the session's, not the role's."""
        with self._lock:
            joined = join.joined
            if self._join is not join:
                raise TokenRefreshError(session_id, "the meeting was left")
        token = fetch_token(self._client, joined, session_id)
        with self._lock:
            if self._join is not join:  # it is another meeting's token by now, or nobody's
                raise TokenRefreshError(session_id, "the meeting was left meanwhile")
        return token

    # -- looking ------------------------------------------------------------------------------------------

    @property
    def joined(self) -> bool:
        """Whether a meeting is joined."""
        return self._join is not None

    @property
    def last_error(self) -> Exception | None:
        """Why a channel of the newest join ended for good the last time; None if none has."""
        join = self._join  # without the lock: it may belong to a thread of the process before a fork
        return self._last_error if join is None else join.last_error

    def wait_online(
        self, session_id: str = LLM_DEFAULT_SESSION, timeout: Timeout = DEFAULT_TIMEOUT
    ) -> Session:
        """Wait until a channel is online; return its session.

        Returns also if it was online for an instant since the call. A channel that is not wanted is waited
        for: somebody may still be promoted, or the practice session be started.

        Args:
            session_id: `LLM_DEFAULT_SESSION` or `LLM_PRACTICE_SESSION`.
            timeout: Seconds; None for no limit; by default the pool's `wait_timeout`.

        Raises:
            ConfigurationError: If an argument cannot be used.
            WaitTimeout: If the time ran out.
            ConnectCancelled: If the meeting was left meanwhile, or somebody else disconnected the channel.
            SessionError: The channel's error, if it has ended for good and there has been no news since.
            LocalProtocolError: If no meeting is joined, or the call would wait for itself.
            PoolClosed
        """
        if session_id not in SESSIONS:
            raise ConfigurationError("session_id", f"must be one of {', '.join(SESSIONS)}")
        seconds = check_timeout(timeout, self._client._sessions.config.wait_timeout)
        return self._current().worker.wait_online(session_id, seconds)

    def __repr__(self) -> str:
        return f"<Meeting {self.name!r} {'joined' if self.joined else 'not joined'}>"


def _left(why: str) -> ConnectCancelled:
    return ConnectCancelled(LLM_DEFAULT_SESSION, why)


def _do_all(steps: Iterable[Callable[[], object]]) -> None:
    """Do all of it, also when one of them fails. When Ctrl-C comes in between, all are done again."""
    steps = list(steps)
    error: BaseException | None = None
    try:
        for step in steps:
            try:
                step()
            except KeyboardInterrupt:
                raise
            except BaseException as exc:  # noqa: BLE001  # the first one is raised
                error = error or exc
    except KeyboardInterrupt:  # within one of them: each can be done twice
        _do_all(steps)
        raise
    if error is not None:
        raise error
