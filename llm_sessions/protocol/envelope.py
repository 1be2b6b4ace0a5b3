"""Inbound messages: what users see of one, and what the server may change in one before they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

__all__ = ["Envelope", "apply_header_overrides", "sequence_number"]

_MAX_PATH: Final = 32  # components of a header's path; each is a level of nesting that somebody may walk


class Envelope:
    """One message from the server.

    A thin view of the decoded JSON object, made only for listeners. The object itself is `raw` and belongs
    to all listeners of the message together: copy it before changing it.

    Attributes:
        session_id: The session that it came on.
        raw: The decoded JSON object, header overrides applied.
    """

    __slots__ = ("raw", "session_id")

    def __init__(self, session_id: str, raw: Mapping[str, Any]) -> None:
        self.session_id: str = session_id
        self.raw: Mapping[str, Any] = raw

    @property
    def id(self) -> Any:
        """The message's id, or None."""
        return self.raw.get("id")

    @property
    def type(self) -> Any:
        """The top-level type, or None; events have none."""
        return self.raw.get("type")

    @property
    def data(self) -> Mapping[str, Any]:
        """The payload; empty if the message has none that is an object."""
        data = self.raw.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def event_type(self) -> str | None:
        """`data.eventType`, such as `relay.event`, or None."""
        value = self.data.get("eventType")
        return value if isinstance(value, str) else None

    @property
    def headers(self) -> Mapping[str, Any]:
        """The top-level headers; empty if there are none."""
        headers = self.raw.get("headers")
        return headers if isinstance(headers, dict) else {}

    @property
    def tracking_id(self) -> Any:
        """`trackingId`, or None."""
        return self.raw.get("trackingId")

    @property
    def sequence_number(self) -> int | None:
        """`sequenceNumber` as an int, or None."""
        return sequence_number(self.raw.get("sequenceNumber"))

    def __getitem__(self, key: str) -> Any:
        return self.raw[key]

    def __contains__(self, key: object) -> bool:
        return key in self.raw

    def get(self, key: str, default: Any = None) -> Any:
        """Return a top-level member, or `default`."""
        return self.raw.get(key, default)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Envelope):
            return NotImplemented
        return self.session_id == other.session_id and self.raw == other.raw

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # equal by a mutable object

    def __repr__(self) -> str:
        return f"<Envelope session={self.session_id!r} event_type={self.event_type!r} id={self.id!r}>"


def sequence_number(value: object) -> int | None:
    """Return a `sequenceNumber` as an int, None for what is not a whole number (protocol.md 1.3)."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        return int(value)
    return None


def apply_header_overrides(data: dict[str, Any]) -> None:
    """Set every key of `data["headers"]` as a path on `data`: `{"a.b": 1}` makes `data["a"]["b"]` 1.

    What stands in a path's way and is no object is replaced by one. In a list a number picks an existing
    item; lists never grow. Paths with an empty component or more than 32 are left alone.
    """
    headers = data.get("headers")
    if not isinstance(headers, dict):
        return
    # A path may lead into the headers themselves; the copy is what is walked.
    for path, value in list(headers.items()):
        steps = path.split(".", _MAX_PATH)
        if len(steps) <= _MAX_PATH and all(steps):
            _set_path(data, steps, value)


def _set_path(target: Any, steps: list[str], value: Any) -> None:
    for step in steps[:-1]:
        below = _child(target, step)
        if not isinstance(below, (dict, list)):
            below = {}
            if not _assign(target, step, below):
                return
        target = below
    _assign(target, steps[-1], value)


def _index(items: list[Any], step: str) -> int | None:
    if step.isascii() and step.isdigit() and len(step) < 10 and int(step) < len(items):
        return int(step)
    return None


def _child(target: Any, step: str) -> Any:
    if isinstance(target, dict):
        return target.get(step)
    index = _index(target, step)
    return None if index is None else target[index]


def _assign(target: Any, step: str, value: Any) -> bool:
    if isinstance(target, dict):
        target[step] = value
        return True
    index = _index(target, step)
    if index is None:
        return False
    target[index] = value
    return True
