"""One join of a meeting: its facts and its worker, what it listens to, and what it has of captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .._sync import Deadline, Lock
from ..datachannel.tokens import RefreshHandler, check_token
from ..errors import TokenRefreshError
from ..session_ids import LLM_PRACTICE_SESSION
from .captioning import Captioning
from .delivery import MeetingFailed
from .hearing import Hearing
from .locus import Joined, tokens_in
from .rules import Facts
from .worker import Worker

if TYPE_CHECKING:
    from ..datachannel.client import DataChannelClient

__all__ = ["Join", "checked_tokens", "fetch_token", "without_state"]


class Join:
    """One join. Guarded by the meeting's lock, but for what has its own.

    Args:
        client: Whose sessions.
        lock: The meeting's.
        joined: What is known of the meeting.
        facts: The rest of it.
        name: The meeting's.
        put: Gives an event of this join to the meeting's listeners: its name, its payload, and whether to
            wait while too many wait already. Called, like the next two, without a lock.
        leave: Leaves the meeting without waiting, if this is still its join.
        over: Called by the worker when it is through.

    Attributes:
        last_error: Why a channel ended for good the last time, or None.
        handlers: The refresh handlers of this join, by session.
    """

    def __init__(
        self,
        client: DataChannelClient,
        lock: Lock,
        joined: Joined,
        facts: Facts,
        name: str,
        *,
        put: Callable[[Join, str, object, bool], None],
        leave: Callable[[Join], None],
        over: Callable[[Join], None],
    ) -> None:
        self._put, self._leave = put, leave
        self.joined = joined
        self.last_error: Exception | None = None
        self.handlers: dict[str, RefreshHandler] = {}
        self.captioning: Captioning = Captioning(client, joined.locus_url)
        self.hearing: Hearing = Hearing(
            client,
            joined.locus_url,
            partial(put, self),
            heard=lambda event: self.captioning.hear(event),
            changed=lambda: self.captioning.sync(),
        )
        self.worker: Worker = Worker(client, lock, facts, name, failed=self._failed, over=partial(over, self))

    def _failed(self, session_id: str, error: Exception) -> None:
        self.last_error = error
        self._put(self, "failed", MeetingFailed(session_id, error), False)

    def give_up(self, deadline: Deadline) -> None:
        """Leave, because the client closes."""
        self._leave(self)
        self.worker.wait_over(deadline)


def fetch_token(client: DataChannelClient, joined: Joined, session_id: str) -> str:
    """Fetch a new token of a session (protocol.md 3.3). Its kind is the session's, not the role's.

    Raises:
        TokenRefreshError: If the own id in the meeting is not known, or none that an address can have.
        RegistrationError: If the service refused, or its answer cannot be used.
        ConnectError: If it did not answer.
    """
    if joined.participant_id is None:
        raise TokenRefreshError(session_id, "the own id in the meeting is not known")
    if joined.participant_id in (".", ".."):  # no quotes keep these from being taken out of a path
        raise TokenRefreshError(session_id, "the own id in the meeting cannot be part of an address")
    kind = "practiceSession/" if session_id == LLM_PRACTICE_SESSION else ""
    participant = quote(joined.participant_id, safe="")
    url = f"{joined.locus_url.rstrip('/')}/participant/{participant}/{kind}datachannel/token"
    reply = client._rest.call("GET", url, session_id=session_id)
    token = reply.body.get("datachannelToken")
    if not isinstance(token, str) or not token:
        raise reply.unusable(session_id, "without a datachannelToken")
    return token


def checked_tokens(locus: Mapping[str, Any]) -> dict[str, str]:
    """Return the data channel tokens that a locus carries, by session id.

    Raises:
        ConfigurationError: If one is none.
    """
    tokens = tokens_in(locus)
    for session_id, token in tokens.items():
        check_token(token, f"locus.self, the token of {session_id}")
    return tokens


def without_state(joined: Joined) -> Joined:
    """Return what is known but for what `Facts` has: a locus that says nothing of it must change nothing."""
    return dataclasses.replace(joined, roles=None, practice_enabled=None)
