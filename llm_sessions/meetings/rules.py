"""Which data channels a meeting should have, and the next step towards them. Pure.

`wanted` says from the facts what should be there; `next_step` compares that with what is there. Whoever takes
the step reads facts and sessions again before the next one, so nothing is ever done for facts that are gone,
and being interrupted costs nothing. The steps come in this order:

1. end what is not wanted any more: the practice session's channel, then the default one;
2. the default channel: end the one with other URLs, then connect;
3. the practice session's: end the one with other URLs, then connect, or wait for the default one. Only
   starting it needs the default one: a channel that is there stays when the default one is lost.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from ..errors import ConfigurationError
from ..protocol.state import BUSY, ONLINE, SessionState
from ..session_ids import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION

__all__ = [
    "DONE",
    "REPLACED",
    "Channel",
    "Connect",
    "Disconnect",
    "Facts",
    "Role",
    "Seen",
    "Step",
    "next_step",
    "read_roles",
    "wanted",
]

DONE: Final = (3050, "done (permanent)")
"""Close code and reason of a channel that is not wanted any more."""

REPLACED: Final = (3050, "replaced")
"""Those of a practice session's channel that another takes the place of."""


class Role(enum.Enum):
    """What one may be in a meeting. One may be several things at once."""

    MODERATOR = "MODERATOR"
    COHOST = "COHOST"
    PANELIST = "PANELIST"
    ATTENDEE = "ATTENDEE"

    @classmethod
    def find(cls, name: str) -> Role | None:
        """Return the role of a name in any case, or None."""
        return cls.__members__.get(name.upper())


def read_roles(roles: Iterable[Role | str]) -> frozenset[Role]:
    """Return roles, some or all given by their names in any case, as a set.

    Raises:
        ConfigurationError: If there is something else, or an unknown name.
    """
    if isinstance(roles, (str, Mapping)) or not isinstance(roles, Iterable):
        raise ConfigurationError("roles", f"must be a list of roles, not {type(roles).__name__}")
    found = set()
    for role in roles:
        known = Role.find(role) if isinstance(role, str) else role
        if not isinstance(known, Role):
            allowed = ", ".join(Role.__members__)
            raise ConfigurationError("roles", f"must be some of {allowed}, not {role!r}")
        found.add(known)
    return frozenset(found)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known about a meeting and wanted of it, all of one moment.

    Attributes:
        joined: Between the join and the leave.
        admitted: Not in the lobby.
        locus_url: The meeting's address.
        datachannel_url: Where its data channel is registered.
        practice_url: Where its practice session's is.
        roles: The own ones.
        practice_enabled: Whether the practice session is on.
        connect_wanted: Whether there should be channels at all.
        visit: How many visits to the lobby there were; a channel does not outlive one.
    """

    joined: bool = False
    admitted: bool = True
    locus_url: str | None = None
    datachannel_url: str | None = None
    practice_url: str | None = None
    roles: frozenset[Role] = frozenset()
    practice_enabled: bool = False
    connect_wanted: bool = True
    visit: int = 0


@dataclasses.dataclass(frozen=True)
class Channel:
    """What a data channel is registered with; two that are equal are the same channel.

    Attributes:
        locus_url: The meeting's address.
        datachannel_url: Where it is registered.
        visit: `Facts.visit` when it was connected.
    """

    locus_url: str
    datachannel_url: str
    visit: int = 0


@dataclasses.dataclass(frozen=True)
class Seen:
    """Where one session stands.

    Attributes:
        channel: What it is connected or connecting for; None for nothing, or for something unknown.
        state: The session's.
        settled: The newest generation of the facts for which this session has ended for good: that in which
            the attempt began, if it failed, and that in which the channel ended, if it had been online. None
            if neither has happened.
    """

    channel: Channel | None = None
    state: SessionState = SessionState.IDLE
    settled: int | None = None


@dataclasses.dataclass(frozen=True)
class Connect:
    """Register and connect a session; it stands in IDLE or OFFLINE."""

    session_id: str
    channel: Channel


@dataclasses.dataclass(frozen=True)
class Disconnect:
    """Disconnect a session, or end its attempt, with this close code and reason."""

    session_id: str
    code: int
    reason: str


Step: TypeAlias = Connect | Disconnect


def wanted(facts: Facts) -> Mapping[str, Channel]:
    """Return the channels that should exist, by session id."""
    if not (facts.joined and facts.admitted and facts.connect_wanted and facts.locus_url):
        return {}
    channels = {}
    if facts.datachannel_url:
        channels[LLM_DEFAULT_SESSION] = Channel(facts.locus_url, facts.datachannel_url, facts.visit)
    if Role.PANELIST in facts.roles and facts.practice_enabled and facts.practice_url:
        channels[LLM_PRACTICE_SESSION] = Channel(facts.locus_url, facts.practice_url, facts.visit)
    return channels


def next_step(facts: Facts, seen: Mapping[str, Seen], generation: int) -> Step | None:
    """Return what to do next, or None if there is nothing to do until something changes.

    Args:
        facts: As they are now.
        seen: Where the sessions stand; one that is missing has never been connected.
        generation: The number of these facts, which grows with each change of them. A session that ended for
            good is not connected again before it does.
    """
    want = wanted(facts)
    default = seen.get(LLM_DEFAULT_SESSION, _NOTHING)
    practice = seen.get(LLM_PRACTICE_SESSION, _NOTHING)
    for session_id, one in ((LLM_PRACTICE_SESSION, practice), (LLM_DEFAULT_SESSION, default)):
        outlived = one.channel is not None and one.channel.visit != facts.visit
        if (session_id not in want or outlived) and one.state in BUSY:
            return Disconnect(session_id, *DONE)
    step = _towards(LLM_DEFAULT_SESSION, want, default, generation, DONE)
    if step is not None:
        return step
    step = _towards(LLM_PRACTICE_SESSION, want, practice, generation, REPLACED)
    if isinstance(step, Connect) and default.state not in ONLINE:
        return None  # until that is online
    return step


_NOTHING: Final = Seen()
_AT_REST: Final = frozenset({SessionState.IDLE, SessionState.OFFLINE})


def _towards(
    session_id: str, want: Mapping[str, Channel], one: Seen, generation: int, goodbye: tuple[int, str]
) -> Connect | Disconnect | None:
    channel = want.get(session_id)
    if channel is None:
        return None
    if one.state in BUSY:
        return None if one.channel == channel else Disconnect(session_id, *goodbye)
    # DISCONNECTING is left alone: the step comes when the session is at rest.
    if one.state in _AT_REST and (one.settled is None or one.settled < generation):
        return Connect(session_id, channel)
    return None
