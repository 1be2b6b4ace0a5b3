"""What one join hears on its sessions, and what becomes of it: the meeting's events, once each.

- **Owner:** the `Meeting` of the join.
- **Lock:** one of rank 40, which guards what is remembered of envelopes and bindings.
- **Thread:** none; listeners run on the dispatchers of the sessions, observers on what changes these.
- **Judged by its own session:** what is addressed to a binding counts if that is, or was, one of the session
  that it came on. A switchover or a reconnect changes the binding while messages for the old one are still
  under way, so bindings are learnt when a session comes online, not when that is delivered.
- **Of this join only:** behind a slow callback a session's queue may hold what the meeting before has left
  there, and somebody else may use the session. So nothing counts before an `online` that is this join's;
  onlines are numbered, and whose each was is noted when it happened.
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
from ..errors import PoolClosed
from ..protocol.envelope import Envelope
from ..protocol.events import Offline, Online, SwitchoverComplete
from ..protocol.state import ONLINE
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
    from ..pool.listeners import ListenerTable

__all__ = ["MAX_BINDINGS", "MAX_REMEMBERED", "Hearing"]

logger: Final = get_logger("meetings")

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
        locus_url: The meeting's.
        put: Delivers an event to the meeting's listeners: its name, its payload, whether it may wait.
        heard: Called with each relay event before its listeners are.
        changed: Called when a session came online, or went offline, or has another socket.
    """

    def __init__(
        self,
        client: DataChannelClient,
        locus_url: str,
        put: Callable[[str, object, bool], None],
        *,
        heard: Callable[[CaptionEvent], None],
        changed: Callable[[], None],
    ) -> None:
        self._client, self._locus_url, self._put = client, locus_url, put
        self._heard_event, self._changed = heard, changed
        self._tables: list[ListenerTable] = []
        self._forget: list[Callable[[], None]] = []
        # Guards all below. Rank 40: nothing is called under it.
        self._lock = make_lock("meeting-hearing", LEAF)
        self._heard: collections.OrderedDict[str | int, str] = collections.OrderedDict()
        self._bindings: dict[str, list[str]] = {session_id: [] for session_id in SESSIONS}
        self._ours: dict[str, dict[int, bool]] = {session_id: {} for session_id in SESSIONS}  # by number
        self._open: set[str] = set()
        self._repeats = Repeats()

    def start(self) -> None:
        """Register the listeners.

        Raises:
            PoolClosed
        """
        sessions = self._client._sessions
        for session_id in SESSIONS:
            self._forget.append(sessions.observe(session_id, partial(self._look, session_id)))
            self._look(session_id)
            if self._ours[session_id].get(sessions.onlines(session_id)):
                self._open.add(session_id)  # connected before the join
            table = sessions.listeners(session_id)
            self._tables.append(table)
            whose: dict[str, Callable[[Any], object]] = {
                "online": self._online,
                "offline": self._offline,
                "event:mercury_shutdown_switchover_complete": self._switched,
                "event:relay.event": self._relay,
                "event:locus.state_message": self._locus,
            }
            for name, callback in whose.items():
                table.add(name, callback, owner=self, internal=True)

    def stop(self) -> None:
        """Take all listeners back. One that has begun goes on; what it delivers is dropped by then."""
        for table in self._tables:
            table.remove_owned(self)
        for forget in self._forget:
            forget()

    # -- on the threads that change a session ---------------------------------------------------------------

    def _look(self, session_id: str) -> None:
        """Take notice of whose channel is online and of its binding, before anything of it is delivered."""
        try:
            standing = self._client._sessions.standing(session_id)
        except PoolClosed:
            return
        target = standing.target if standing is not None else None
        registration = target.registration if isinstance(target, RegisteredTarget) else None
        number = self._client._sessions.onlines(session_id)
        with self._lock:
            if standing is not None and standing.state in ONLINE and registration is not None:
                ours = registration.locus_url == self._locus_url
                numbers = self._ours[session_id]
                numbers[number] = ours
                while len(numbers) > MAX_BINDINGS:
                    del numbers[min(numbers)]
                known = self._bindings[session_id]
                if ours and isinstance(target, RegisteredTarget) and target.binding not in known:
                    known.append(target.binding)
                    del known[:-MAX_BINDINGS]

    # -- on the dispatchers -------------------------------------------------------------------------------

    def _online(self, payload: Online) -> None:
        with self._lock:
            is_known = payload.number in self._ours[payload.session_id]
        if not is_known:
            # The observer comes later: it runs on the thread of the socket, from which nothing has been
            # delivered yet. Nor has it been lost, so it is the one to be seen now.
            self._look(payload.session_id)
        with self._lock:
            ours = self._ours[payload.session_id].get(payload.number, False)
            (self._open.add if ours else self._open.discard)(payload.session_id)
        if ours:
            self._put("online", payload, False)
            self._changed()

    def _switched(self, payload: SwitchoverComplete) -> None:
        if self._is_open(payload.session_id):
            self._changed()

    def _offline(self, payload: Offline) -> None:
        if self._is_open(payload.session_id):
            self._put("offline", payload, False)
            self._changed()

    def _is_open(self, session_id: str) -> bool:
        """Whether what comes on a session now came since this join's own channel was online there."""
        with self._lock:
            return session_id in self._open

    def _locus(self, envelope: Envelope) -> None:
        if self._is_open(envelope.session_id) and self._is_new(envelope):
            self._put("locus.state_message", envelope, True)

    def _relay(self, envelope: Envelope) -> None:
        if not self._is_open(envelope.session_id) or not self._is_addressed(envelope):
            return
        if not self._is_new(envelope):
            return
        reading = read_relay(envelope)
        for event in reading.events:
            self._heard_event(event)  # all of them: it waits for nothing
        for event in reading.events:
            self._put("relay", event, True)
            name = _NAMES.get(type(event))
            if name is not None:
                self._put(name, event, True)
        for problem in reading.problems:
            with self._lock:
                due = self._repeats.due("malformed")
            if due is not None:
                about = {"session_id": envelope.session_id}
                text = "[%s] a relay event cannot be read: %s"
                logger.warning(text, envelope.session_id, problem, extra=about)

    def _is_addressed(self, envelope: Envelope) -> bool:
        route = route_of(envelope)
        with self._lock:
            return route is None or route in self._bindings[envelope.session_id]

    def _is_new(self, envelope: Envelope) -> bool:
        """Whether the envelope has not come on the other session before."""
        if not isinstance(envelope.id, (str, int)):
            return True
        with self._lock:
            first = self._heard.setdefault(envelope.id, envelope.session_id)
            if len(self._heard) > MAX_REMEMBERED:
                self._heard.popitem(last=False)
        return first == envelope.session_id
