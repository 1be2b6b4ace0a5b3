"""What a client says of its sessions and what it sends on them, as functions of where a session stands."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigurationError
from ..pool.core import Standing
from ..protocol.state import ONLINE, SessionState
from .registration import RegisteredTarget, Registration

__all__ = ["DataChannel", "describe", "names", "publish_request", "subscription_request"]


@dataclasses.dataclass(frozen=True)
class DataChannel:
    """One session of a client, all of one moment.

    Attributes:
        session_id: Its key.
        state: Where it stands.
        online: Whether `publish` works.
        locus_url: What it was registered for.
        datachannel_url: Where.
        web_socket_url: What its active socket was registered as; of the last one while it reconnects, None
            before the first and once it has ended.
        binding: The route of that socket; likewise.
        register_seconds: How long that registration took; likewise.
        online_seconds: How long it took from there until the session was online; likewise.
    """

    session_id: str
    state: SessionState
    online: bool
    locus_url: str
    datachannel_url: str
    web_socket_url: str | None = None
    binding: str | None = None
    register_seconds: float | None = None
    online_seconds: float | None = None


def describe(session_id: str, standing: Standing) -> DataChannel:
    """Return what a client's session is, as it stands."""
    registration, target = standing.endpoint, standing.target
    assert isinstance(registration, Registration)
    channel = DataChannel(
        session_id,
        standing.state,
        standing.state in ONLINE,
        registration.locus_url,
        registration.datachannel_url,
    )
    if standing.state not in (*ONLINE, SessionState.RECONNECTING):
        return channel
    if not isinstance(target, RegisteredTarget) or target.registration != registration:
        return channel  # nothing yet: what is there is left over from a registration before this one
    return dataclasses.replace(
        channel,
        web_socket_url=target.web_socket_url,
        binding=target.binding,
        register_seconds=target.register_seconds,
        online_seconds=max(0.0, standing.online_at - target.registered_at),
    )


def names(given: Iterable[str], argument: str) -> list[str]:
    """Return names as a list.

    Raises:
        ConfigurationError: If they are anything else.
    """
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping)):
        raise ConfigurationError(argument, f"must be a list of names, not {type(given).__name__}")
    found = list(given)
    if not all(isinstance(name, str) and name for name in found):
        raise ConfigurationError(argument, "must be a list of names")
    return found


def publish_request(
    target: RegisteredTarget,
    number: str,
    data: Mapping[str, Any],
    headers: Mapping[str, Any] | None,
    event_type: str,
) -> dict[str, Any]:
    """Return the request that publishes on the channel of a target (protocol.md 3.4)."""
    return {
        "id": number,
        "type": "publishRequest",
        "recipients": {"route": target.binding},
        "headers": dict(headers or {}),
        "data": {"eventType": event_type, **data},
        "trackingId": f"llm-sessions_{uuid.uuid4()}",
    }


def subscription_request(
    target: RegisteredTarget, number: str, subscribe: list[str], unsubscribe: list[str]
) -> dict[str, Any]:
    """Return the request that changes the subscriptions of a target's socket (protocol.md 3.4).

    Raises:
        ConfigurationError: If it was registered as one that has none.
    """
    if not target.subscribing or target.registration is None:
        raise ConfigurationError("data_channel_tokens", "must be on to subscribe to subchannels")
    return {
        "id": number,
        "type": "subchannelSubscriptionRequest",
        "data": {
            "datachannelUri": target.registration.datachannel_url,
            "subscribe": subscribe,
            "unsubscribe": unsubscribe,
        },
        "trackingId": f"llm-sessions_{uuid.uuid4()}",
    }
