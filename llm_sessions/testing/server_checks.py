"""What a well-behaved client sends: pure functions that name departures, and the server's frame encoder."""

from __future__ import annotations

import json
import re
import struct
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from wsproto.frame_protocol import Opcode

BEARER = "Bearer "


def encode_frame(opcode: Opcode, payload: bytes) -> bytes:
    """One final, unmasked frame. Not wsproto's encoder: faults need frames that it rightly refuses, and this
    one has no state, so that any thread may use it."""
    size = len(payload)
    if size < 126:
        header = struct.pack("!BB", 0x80 | opcode, size)
    elif size < 1 << 16:
        header = struct.pack("!BBH", 0x80 | opcode, 126, size)
    else:
        header = struct.pack("!BBQ", 0x80 | opcode, 127, size)
    return header + payload


def encode_json(obj: object) -> bytes:
    """The text frame of a JSON value."""
    return encode_frame(Opcode.TEXT, json.dumps(obj, separators=(",", ":")).encode())


def encode_close(code: int, reason: str) -> bytes:
    """A close frame; 1005 gives an empty one.

    Raises:
        ValueError: The code does not fit two bytes, the reason is over 123 bytes, or 1005 has a reason.
    """
    text = reason.encode()
    if code == 1005:
        if text:
            raise ValueError("an empty close frame (1005) carries no reason")
        return encode_frame(Opcode.CLOSE, b"")
    if not 0 <= code < 1 << 16 or len(text) > 123:
        raise ValueError(f"no close frame can carry {code} {reason!r}")
    return encode_frame(Opcode.CLOSE, struct.pack("!H", code) + text)


def decode_close(payload: bytes) -> tuple[int, str, list[str]]:
    """Code (1005 for none), reason and violations of a client's close frame."""
    if not payload:
        return 1005, "", []
    if len(payload) == 1:
        return 1005, "", ["close frame with a payload of 1 byte"]
    (code,) = struct.unpack("!H", payload[:2])
    problems = []
    if not (1000 <= code <= 1014 or 3000 <= code <= 4999) or code in (1004, 1005, 1006):
        problems.append(f"close code {code} must not be sent")
    try:
        reason = payload[2:].decode()
    except UnicodeDecodeError:
        reason = payload[2:].decode(errors="replace")
        problems.append("close reason is not UTF-8")
    return code, reason, problems


def check_headers(headers: Sequence[tuple[str, str]]) -> list[str]:
    """Violations in an upgrade request's headers (names in lower case)."""
    offers = [value for name, value in headers if name == "sec-websocket-extensions"]
    return [f"extension offered: {', '.join(offers)}"] if offers else []


def check_query(query: Mapping[str, Sequence[str]]) -> list[str]:
    """Violations in an upgrade request's query."""
    problems = [
        f"query key {key} given {len(values)} times" for key, values in query.items() if len(values) > 1
    ]
    wanted = {"outboundWireFormat": "text", "aliasHttpStatus": "true"}
    if "mercuryRegistrationStatus" in query:
        wanted |= {"mercuryRegistrationStatus": "true", "isRegistrationRefreshEnabled": "true"}
        if "bufferStates" in query:
            problems.append("query has bufferStates beside mercuryRegistrationStatus")
    else:
        wanted["bufferStates"] = "true"
    for key, value in wanted.items():
        if key not in query:
            problems.append(f"query lacks {key}={value}")
        elif query[key][0] != value:
            problems.append(f"query has {key}={query[key][0]}, not {value}")
    stamps = query.get("clientTimestamp", ())
    if not stamps:
        problems.append("query lacks clientTimestamp")
    elif not re.fullmatch("[0-9]+", stamps[0]):
        problems.append(f"clientTimestamp is not digits: {stamps[0]!r}")
    return problems


def bearer_token(obj: Mapping[str, Any]) -> str | None:
    """The token of an authorization frame, without its scheme; `None` if there is none to be found."""
    data = obj.get("data")
    token = data.get("token") if isinstance(data, dict) else None
    return token.removeprefix(BEARER) if isinstance(token, str) and token else None


def is_uuid4(value: object) -> bool:
    """Say whether a value is a UUID of version 4 in its usual spelling."""
    try:
        return isinstance(value, str) and len(value) == 36 and uuid.UUID(value).version == 4
    except ValueError:
        return False


def check_authorization(obj: Mapping[str, Any]) -> list[str]:
    """Violations in a first frame. Never quotes the token."""
    if obj.get("type") != "authorization":
        return [f"first frame is not an authorization: type {obj.get('type')!r}"]
    problems = []
    if not is_uuid4(obj.get("id")):
        problems.append(f"authorization id is not a uuid4: {obj.get('id')!r}")
    data = obj.get("data")
    token = data.get("token") if isinstance(data, dict) else None
    if not isinstance(token, str) or not token.removeprefix(BEARER):
        problems.append("authorization without data.token")
    elif not token.startswith(BEARER):
        problems.append("authorization whose data.token has no Bearer scheme")
    if not isinstance(obj.get("trackingId"), str) or not obj["trackingId"]:
        problems.append(f"authorization trackingId is not a string: {obj.get('trackingId')!r}")
    if obj.get("logLevelToken", "") is None:
        problems.append("authorization with a null logLevelToken")
    return problems
