"""What `listen` connects to, as it is said on the command line."""

from __future__ import annotations

import collections
import dataclasses
import enum
import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

from ..datachannel.exchange import check_url
from ..errors import ConfigurationError
from ..protocol.url import parse_url
from ..session_ids import check_session_id
from .statuses import UsageError

__all__ = ["OWN_DEVICE", "Kind", "Target", "can_be_said", "parse_targets"]

OWN_DEVICE: Final = "own-device"
"""The session id of the user's own device."""

_NAMED = re.compile(r"([^:/?#=]+)=(.*)", re.S)
_PLAIN_NAME = re.compile(r"[A-Za-z][\w.-]{0,31}", re.ASCII)


class Kind(enum.Enum):
    """How to come to a session's socket."""

    WEBSOCKET = "WebSocket"
    REGISTRATION = "registration"
    DEVICE = "device"


@dataclasses.dataclass(frozen=True)
class Target:
    """One session.

    Attributes:
        session: Its id.
        kind: What the URL is.
        url: Where to connect or to register; empty for the own device.
    """

    session: str
    kind: Kind
    url: str = ""


def can_be_said(name: str) -> bool:
    """Say whether `NAME=URL` on the command line means a session of this name."""
    named = _NAMED.fullmatch(f"{name}=")
    return named is not None and named[1] == name and not name.startswith("-")


def parse_targets(
    arguments: Sequence[str], *, own_device: bool, device: bool, allow_insecure: bool
) -> list[Target]:
    """Return the sessions that the arguments ask for.

    Args:
        arguments: Each `URL` or `name=URL`. Without a name it is the end of the URL's path.
        own_device: Whether there is one more, the user's own device.
        device: Whether there is a device to register data channels with.
        allow_insecure: Whether `ws://` and `http://` may go to other hosts than loopback.

    Raises:
        UsageError: If there are none, or one cannot be used. No argument is quoted: it may hold a secret.
    """
    found = [_parse(number, one, allow_insecure) for number, one in enumerate(arguments, 1)]
    if own_device:
        found.append(Target(OWN_DEVICE, Kind.DEVICE))
    if not found:
        raise UsageError("name at least one URL, or give --own-device")
    if not (device or own_device) and any(one.kind is Kind.REGISTRATION for one in found):
        raise UsageError("a registration URL needs --device URL, or --own-device")
    [(name, count)] = collections.Counter(one.session for one in found).most_common(1)
    if count > 1:
        raise UsageError(f"{count} sessions would be called {name!r}; give names, as in a=URL b=URL")
    return found


def _parse(number: int, argument: str, allow_insecure: bool) -> Target:
    named = _NAMED.fullmatch(argument)
    name, url = (named[1], named[2]) if named is not None else ("", argument)
    scheme = url.partition("://")[0].lower()
    try:
        if scheme in ("http", "https"):
            check_url(url, allow_insecure=allow_insecure)
            kind = Kind.REGISTRATION
        elif scheme in ("ws", "wss"):
            parse_url(url, allow_insecure=allow_insecure)
            kind = Kind.WEBSOCKET
        else:
            raise ConfigurationError("url", "must start with wss:// (or ws://) or https:// (or http://)")
        name = name or _name_of(url, number)
        return Target(check_session_id(name, "name"), kind, url)
    except ConfigurationError as exc:
        problem = re.sub(r"(?:PoolConfig\()?allow_insecure=True\)?", "--allow-insecure", exc.problem)
        problem = re.sub(r"(is not a URL|without ':').*", r"\1", problem)  # some quote a part of it
        raise UsageError(f"argument {number}: {exc.argument} {problem}") from None


def _name_of(url: str, number: int) -> str:
    last = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])
    return last if _PLAIN_NAME.fullmatch(last) else f"session-{number}"
