"""What one join hears on its sessions, and what becomes of it: the meeting's events, once each.

- **Owner:** the `Meeting` of the join. It starts and stops this under its lock.
- **Lock:** one of rank 40, which guards what is remembered of envelopes and bindings.
- **Thread:** none; listeners run on the dispatchers of the sessions.
- **Judged by its own session:** what is addressed to a binding counts if that is, or was, one of the session
  that it came on. A switchover or a reconnect changes the binding while messages for the old one are still
  under way.
- **Once:** each session drops what its server repeats. The same envelope on both sessions counts once.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .._logging import Repeats, get_logger
from .._sync import LEAF, make_lock
from ..datachannel.registration import RegisteredTarget
from ..protocol.envelope import Envelope
from .caption_events import (
    CaptionEvent,
    CaptionLanguageAnswer,
    CaptionLanguages,
    EvaEvent,
    Highlight,
    LanguageDetected,
    Reaction,
    Transcript,
)
from .caption_reader import read_relay, route_of
from .worker import SESSIONS

if TYPE_CHECKING:
    from ..datachannel.client import DataChannelClient
    from ..pool.listeners import Callback, ListenerTable

__all__ = ["MAX_BINDINGS", "MAX_REMEMBERED", "Hearing"]

logger = get_logger("meetings")

MAX_REMEMBERED: Final = 1000
"""Envelopes whose ids are remembered, to know one that comes on the other session as well."""

MAX_BINDINGS: Final = 16
"""Bindings that are remembered of each session."""

_NAMES: Final[dict[type, str]] = {
    CaptionLanguages: "languages",
    CaptionLanguageAnswer: "language_answer",
    Transcript: "transcript",
    Highlight: "highlight",
    EvaEvent: "eva",
    LanguageDetected: "language_detected",
    Reaction: "reaction",
}


class Hearing:
    """Listens to both sessions of a client for one join.

    Args:
        client: Whose sessions.
        put: Delivers an event to the meeting's listeners: its name, its payload, whether it may wait.
        heard: Called with each relay event before its listeners are.
        changed: Called when a session came online, or went offline, or has another socket.
    """

    def __init__(
        self,
        client: DataChannelClient,
        put: Callable[[str, object, bool], None],
        *,
        heard: Callable[[CaptionEvent], None],
        changed: Callable[[], None],
    ) -> None:
        self._client, self._put, self._heard_event, self._changed = client, put, heard, changed
        self._registered: list[tuple[ListenerTable, str, Callback]] = []
        # Guards all below. Rank 40: nothing is called under it.
        self._lock = make_lock("meeting-hearing", LEAF)
        self._heard: collections.OrderedDict[str | int, str] = collections.OrderedDict()
        self._bindings: dict[str, list[str]] = {session_id: [] for session_id in SESSIONS}
        self._repeats = Repeats()

    def start(self) -> None:
        """Register the listeners.

        Raises:
            PoolClosed
        """
        for session_id in SESSIONS:
            table = self._client._sessions.listeners(session_id)
            whose: dict[str, Callable[[Any], object]] = {
                "online": partial(self._online, session_id),
                "offline": self._offline,
                "event:mercury_shutdown_switchover_complete": partial(self._switched, session_id),
                "event:relay.event": self._relay,
                "event:locus.state_message": self._locus,
            }
            for name, callback in whose.items():
                self._registered.append((table, name, callback))
                table.add(name, callback, internal=True)

    def stop(self) -> None:
        """Take all listeners back. One that has begun goes on; what it delivers is dropped by then."""
        for table, name, callback in self._registered:
            table.remove(name, callback)

    # -- on the dispatchers -------------------------------------------------------------------------------

    def _online(self, session_id: str, payload: object) -> None:
        self._know_binding(session_id)
        self._put("online", payload, False)
        self._changed()

    def _switched(self, session_id: str, payload: object) -> None:
        self._know_binding(session_id)
        self._changed()

    def _offline(self, payload: object) -> None:
        self._put("offline", payload, False)
        self._changed()

    def _locus(self, envelope: Envelope) -> None:
        if self._is_new(envelope):
            self._put("locus.state_message", envelope, True)

    def _relay(self, envelope: Envelope) -> None:
        if not self._is_addressed(envelope) or not self._is_new(envelope):
            return
        reading = read_relay(envelope)
        for event in reading.events:
            self._heard_event(event)
            self._put("relay", event, True)
            name = _NAMES.get(type(event))
            if name is not None:
                self._put(name, event, True)
        for problem in reading.problems:
            with self._lock:
                due = self._repeats.due("malformed")
            if due is not None:
                logger.warning("[%s] a relay event cannot be read: %s", envelope.session_id, problem)

    def _is_addressed(self, envelope: Envelope) -> bool:
        route = route_of(envelope)
        if route is None:
            return True
        self._know_binding(envelope.session_id)
        with self._lock:
            return route in self._bindings[envelope.session_id]

    def _know_binding(self, session_id: str) -> None:
        standing = self._client._sessions.standing(session_id)
        target = standing.target if standing is not None else None
        if not isinstance(target, RegisteredTarget):
            return
        with self._lock:
            known = self._bindings[session_id]
            if target.binding not in known:
                known.append(target.binding)
                del known[:-MAX_BINDINGS]

    def _is_new(self, envelope: Envelope) -> bool:
        """Whether the envelope has not come on the other session before."""
        if not isinstance(envelope.id, (str, int)):
            return True
        with self._lock:
            first = self._heard.setdefault(envelope.id, envelope.session_id)
            if len(self._heard) > MAX_REMEMBERED:
                self._heard.popitem(last=False)
        return first == envelope.session_id
