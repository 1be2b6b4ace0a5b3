"""What a well-behaved client sends about captions: pure functions that name departures."""

from __future__ import annotations

import urllib.parse
from collections.abc import Collection, Mapping
from typing import Any

from llm_sessions.testing import server_checks as checks

__all__ = ["SUBCHANNELS", "check_message", "member", "route_of"]

SUBCHANNELS = "subscriptionAwareSubchannels"
"""Key of a socket's query: the subchannels that it gets only if it subscribes to them."""


def member(obj: object, *names: str) -> Any:
    """What stands at a path of names in nested objects; `None` if there is nothing."""
    for name in names:
        obj = obj.get(name) if isinstance(obj, Mapping) else None
    return obj


def route_of(message: Mapping[str, Any]) -> Any:
    """The binding that a request is addressed to; `None` for none. Recipients may be a list of one."""
    recipients = message.get("recipients")
    if isinstance(recipients, list) and len(recipients) == 1:
        recipients = recipients[0]
    return member(recipients, "route")


def check_message(
    message: Mapping[str, Any],
    *,
    session: str,
    bindings: Collection[str],
    service_ids: Collection[str],
    datachannel_url: str,
    subscribing: bool,
) -> list[str]:
    """Violations in what a client sent, if it is a publish or a subscription request.

    Args:
        message: The JSON object.
        session: Session key of the connection that it came on.
        bindings: Those that were handed out for this key; if there are none, any route will do.
        service_ids: Those that the caption service has had.
        datachannel_url: Where the key is registered; a proxy may have another host.
        subscribing: Whether the socket said that it subscribes to subchannels.
    """
    kind = message.get("type")
    if kind == "publishRequest":
        problems = _check_publish(message, session, bindings, service_ids)
    elif kind == "subchannelSubscriptionRequest":
        problems = _check_subscription(message, datachannel_url, subscribing)
    else:
        return []
    for name in ("id", "trackingId"):
        if not _is_text(message.get(name)):
            problems.append(f"{name} is not a string: {message.get(name)!r}")
    return [f"{kind} on {session!r}: {problem}" for problem in problems]


def _check_publish(
    message: Mapping[str, Any], session: str, bindings: Collection[str], service_ids: Collection[str]
) -> list[str]:
    problems = []
    route = route_of(message)
    if not _is_text(route):
        problems.append(f"no route: {message.get('recipients')!r}")
    elif bindings and route not in bindings:
        problems.append(f"route {route!r} is not a binding of {session!r}")
    headers = message.get("headers", {})
    if not isinstance(headers, dict):
        problems.append(f"headers are not an object: {headers!r}")
    to = member(headers, "to")
    if to is not None and to not in service_ids:
        problems.append(f"addressed to {to!r}, which is no caption service")
    relay_type = member(message, "data", "relayType")
    if member(message, "data", "eventType") == "relay.event" and not _is_text(relay_type):
        problems.append(f"relay event without a relayType: {relay_type!r}")
    payload = member(message, "data", "clientPayload")
    if relay_type == "client.annc" and member(payload, "version") != "v2":
        problems.append(f"announcement whose version is not v2: {payload!r}")
    if relay_type == "voicea.transl.req":
        if not _is_text(member(payload, "translationLanguage")):
            problems.append(f"language request without a translationLanguage: {payload!r}")
        if not checks.is_uuid4(member(payload, "id")):
            problems.append(f"language request whose id is not a uuid4: {payload!r}")
    return problems


def _check_subscription(message: Mapping[str, Any], datachannel_url: str, subscribing: bool) -> list[str]:
    problems = [] if subscribing else [f"the socket's query has no {SUBCHANNELS}"]
    data = message.get("data")
    uri = member(data, "datachannelUri")
    if not _is_text(uri) or _path(uri) != _path(datachannel_url):
        problems.append(f"datachannelUri is {uri!r}, not {datachannel_url}")
    lists = [member(data, name) for name in ("subscribe", "unsubscribe")]
    problems += [
        f"subchannels are not a list of names: {names!r}"
        for names in lists
        if not isinstance(names, list) or not all(map(_is_text, names))
    ]
    if not any(lists):
        problems.append("neither subscribes nor unsubscribes")
    return problems


def _path(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).path
    except ValueError:
        return ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
