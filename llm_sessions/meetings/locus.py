"""What a meeting's locus says, as far as data channels go. Pure: a locus in, a new `Joined` out.

A locus is the service's description of one meeting. A participant gets all of it when joining, and updates
later, which leave things out: an update that lacks an address or a token takes nothing back. Tokens come
with the join response and hardly ever again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypedDict

from ..errors import ConfigurationError
from ..session_ids import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION
from .rules import Role

__all__ = ["JoinResponse", "Joined", "Locus", "read_join", "read_locus", "tokens_in"]


class LocusInfo(TypedDict, total=False):
    """`locus["info"]`: where the data channels are registered."""

    datachannelUrl: str
    practiceSessionDatachannelUrl: str


class LocusRole(TypedDict, total=False):
    """A role, and whether one has it."""

    type: str
    hasRole: bool


class LocusRoles(TypedDict, total=False):
    """`locus["self"]["controls"]["role"]`."""

    roles: list[LocusRole]


class SelfControls(TypedDict, total=False):
    """`locus["self"]["controls"]`: what the participant may do."""

    role: LocusRoles


class LocusSelf(TypedDict, total=False):
    """`locus["self"]`: the participant that this is the view of."""

    id: str
    datachannelToken: str
    practiceSessionDatachannelToken: str
    controls: SelfControls


class PracticeSession(TypedDict, total=False):
    """`locus["controls"]["practiceSession"]`."""

    enabled: bool


class LocusControls(TypedDict, total=False):
    """`locus["controls"]`: what holds for the whole meeting."""

    practiceSession: PracticeSession


class Locus(TypedDict, total=False):
    """The description of a meeting, or an update of it. A real one has much more."""

    url: str
    info: LocusInfo
    self: LocusSelf
    controls: LocusControls


class JoinResponse(TypedDict, total=False):
    """What a participant gets for joining."""

    locus: Locus


@dataclasses.dataclass(frozen=True)
class Joined:
    """What is known of the meeting that was joined. None stands for what no locus has said so far.

    Attributes:
        locus_url: The meeting's address, by which it is told from others.
        datachannel_url: Where its data channel is registered.
        practice_url: Where its practice session's is.
        participant_id: The own id in the meeting, which fetching a token takes.
        practice_enabled: Whether the practice session is on.
        roles: The own roles; those that `Role` does not know are left out.
    """

    locus_url: str
    datachannel_url: str | None = None
    practice_url: str | None = None
    participant_id: str | None = None
    practice_enabled: bool | None = None
    roles: frozenset[Role] | None = None


def read_join(join_response: Mapping[str, object]) -> Joined:
    """Read the answer to a join.

    Args:
        join_response: See `JoinResponse`. Needed is the locus with its `url`; in the lobby there is no more.

    Raises:
        ConfigurationError: If that is missing, or anything used here has a wrong type.
    """
    if not isinstance(join_response, Mapping):
        raise _wrong("join_response", "an object", join_response)
    locus = _member(join_response, "locus", "join_response")
    url = _text(locus, "url", "join_response.locus")
    if url is None:
        raise ConfigurationError("join_response", "must have a locus with its url")
    return _merged(Joined(url), locus, "join_response.locus")


def read_locus(joined: Joined, locus: Mapping[str, object]) -> Joined:
    """Return what is known once a later locus of the meeting has been read; `joined` stays as it is.

    What the locus carries replaces what was known, and what it lacks (or has as null or as an empty string)
    changes nothing. One without a `url` counts as this meeting's.

    Raises:
        ConfigurationError: If it is another meeting's, or anything used here has a wrong type.
    """
    if not isinstance(locus, Mapping):
        raise _wrong("locus", "an object", locus)
    url = _text(locus, "url", "locus")
    if url not in (None, joined.locus_url):
        raise ConfigurationError("locus.url", f"is another meeting's: {url}, not {joined.locus_url}")
    return _merged(joined, locus, "locus")


def tokens_in(locus: Mapping[str, object]) -> dict[str, str]:
    """Return the data channel tokens that a locus carries, by session id.

    Raises:
        ConfigurationError: If one is not a string.
    """
    if not isinstance(locus, Mapping):
        raise _wrong("locus", "an object", locus)
    return _tokens(_member(locus, "self", "locus"), "locus.self")


def _tokens(own: Mapping[str, object], path: str) -> dict[str, str]:
    found = {
        LLM_DEFAULT_SESSION: _text(own, "datachannelToken", path),
        LLM_PRACTICE_SESSION: _text(own, "practiceSessionDatachannelToken", path),
    }
    return {session_id: token for session_id, token in found.items() if token is not None}


def _merged(joined: Joined, locus: Mapping[str, object], path: str) -> Joined:
    info, own = _member(locus, "info", path), _member(locus, "self", path)
    _tokens(own, f"{path}.self")  # what is none is refused here, too
    practice = _member(_member(locus, "controls", path), "practiceSession", f"{path}.controls")
    said: dict[str, Any] = {
        "datachannel_url": _text(info, "datachannelUrl", f"{path}.info"),
        "practice_url": _text(info, "practiceSessionDatachannelUrl", f"{path}.info"),
        "participant_id": _text(own, "id", f"{path}.self"),
        "practice_enabled": _flag(practice, "enabled", f"{path}.controls.practiceSession"),
        "roles": _roles(own, f"{path}.self"),
    }
    return dataclasses.replace(joined, **{name: value for name, value in said.items() if value is not None})


def _roles(own: Mapping[str, object], path: str) -> frozenset[Role] | None:
    path = f"{path}.controls"
    role = _member(_member(own, "controls", path.rpartition(".")[0]), "role", path)
    entries = role.get("roles")
    if entries is None:
        return None
    if not isinstance(entries, (list, tuple)):
        raise _wrong(f"{path}.role.roles", "a list", entries)
    found = set()
    for number, entry in enumerate(entries):
        where = f"{path}.role.roles[{number}]"
        if not isinstance(entry, Mapping):
            raise _wrong(where, "an object", entry)
        name = _text(entry, "type", where)
        if name is not None and _flag(entry, "hasRole", where) and (known := Role.find(name)) is not None:
            found.add(known)
    return frozenset(found)


def _member(parent: Mapping[str, object], name: str, path: str) -> Mapping[str, object]:
    value = parent.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong(f"{path}.{name}", "an object", value)
    return value


def _text(parent: Mapping[str, object], name: str, path: str) -> str | None:
    value = parent.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _wrong(f"{path}.{name}", "a string", value)
    return value


def _flag(parent: Mapping[str, object], name: str, path: str) -> bool | None:
    value = parent.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(f"{path}.{name}", "true or false", value)
    return value


def _wrong(path: str, kind: str, value: object) -> ConfigurationError:
    # Only the type: the value may be a token, or hold one.
    return ConfigurationError(path, f"must be {kind}, not {type(value).__name__}")
