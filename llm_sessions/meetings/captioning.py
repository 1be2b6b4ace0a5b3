"""The captions of one join: what is wanted of them, and what each socket has been told of that.

::

    wanted     subscription, announcement, caption language      changed by calls, and by the service
    a socket   what was sent on it of these                      forgotten with the socket
    `sync`     sends on a session's active socket what it lacks  after each change of these or of a session

- **Owner:** the join of a `Meeting`. There is a new one for each join, and for each visit to the lobby: so a
  reset is nothing that could be forgotten. What is wanted survives sockets, channels and their addresses.
- **Lock:** one of rank 40, under which only the queues of iterators are put into.
- **Thread:** none; see `caption_sending` for whose threads send.
- **Once a socket:** the message is made for the socket that it goes out on, and that is noted down in the
  same step. A message that is lost with its socket is due on the next one; one whose send was interrupted
  may not have gone out, and is due again.
- **What ends each wait:** for languages or an answer, that it comes, the end of the join, or the timeout.
"""

from __future__ import annotations

import dataclasses
import uuid
import weakref
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from .._logging import get_logger
from .._sync import LEAF, Deadline, Latch, make_lock
from ..datachannel.channels import publish_request, subscription_request
from ..errors import NotOnline, PoolClosed, WaitTimeout, fresh_copy
from ..session_ids import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION
from .caption_events import CaptionEvent, CaptionLanguageAnswer, CaptionLanguages, Transcript
from .caption_protocol import (
    TRANSCRIPTION,
    AnnounceState,
    AnnounceTrigger,
    CaptionState,
    CaptionTrigger,
    Publication,
    announcement,
    language_request,
    next_announce,
    next_captions,
)
from .caption_sending import CaptionSending, Steps
from .transcripts import Aside, Transcripts
from .worker import SESSIONS

if TYPE_CHECKING:
    from ..datachannel.client import DataChannelClient
    from ..datachannel.registration import RegisteredTarget

__all__ = ["Captioning"]

logger: Final = get_logger("meetings")

_RELAY: Final = "relay.event"


@dataclasses.dataclass(eq=False)
class _Socket:
    """What has been sent on a socket."""

    target: RegisteredTarget
    subscribed: bool | None = False  # None: nobody knows
    announced: bool = False
    asked: _Ask | None = None


class _Ask:
    """A request for a caption language. Guarded by the lock until it is over."""

    def __init__(self, language: str, waited_for: bool) -> None:
        self.language, self.waited_for = language, waited_for
        self.id = str(uuid.uuid4())
        self.answer: CaptionLanguageAnswer | None = None
        self.over = Latch()

    def publication(self, service_id: str | None) -> Publication:
        return language_request(self.language, self.id, service_id)


class Captioning:
    """The captions of one join. Safe from any thread.

    Args:
        client: Whose sessions.
        locus_url: The meeting's.
    """

    def __init__(self, client: DataChannelClient, locus_url: str) -> None:
        self._client, self._locus_url = client, locus_url
        # Guards all below. Rank 40.
        self._lock = make_lock("captions", LEAF)
        self._announce, self._captions = AnnounceState.IDLE, CaptionState.IDLE
        self._subscribe = self._announcing = False  # what is wanted
        self._granted = False  # captions were turned on
        self._requests = 0  # to turn them on or off
        self._off_at = 0  # the newest of these that turned them off
        self._languages: CaptionLanguages | None = None
        self._chosen: str | None = None
        self._is_stale = False  # whether the service has changed since it granted that
        self._ask: _Ask | None = None
        self._sockets: dict[str, _Socket] = {}
        self._sending = CaptionSending(client, self._lock, self._due)
        self._readers: list[weakref.ref[Transcripts]] = []
        self._news = Latch()  # the next change that somebody may wait for
        self._over: Exception | None = None

    # -- looking ------------------------------------------------------------------------------------------

    @property
    def announce_state(self) -> AnnounceState:
        return self._announce

    @property
    def caption_state(self) -> CaptionState:
        return self._captions

    @property
    def languages(self) -> CaptionLanguages | None:
        return self._languages

    @property
    def chosen(self) -> str | None:
        """The caption language that the service granted."""
        return self._chosen

    # -- the announcement ---------------------------------------------------------------------------------

    def announce(self) -> None:
        """See `Captions.announce`."""
        with self._lock:
            self._check()
            if self._announce is AnnounceState.JOINED:
                return
        if not any(self._is_online(session_id) for session_id in SESSIONS):
            raise NotOnline(LLM_DEFAULT_SESSION, "no channel of the meeting is online")
        with self._lock:
            self._check()
            self._announcing = True
            for socket in self._sockets.values():
                socket.announced = False
        self.sync()

    def wait_languages(self, timeout: float | None) -> CaptionLanguages:
        """See `Captions.wait_languages`."""
        self._refuse_own_thread("wait_languages()")
        deadline = Deadline(timeout)
        while True:
            with self._lock:
                self._check()
                if self._languages is not None:
                    return self._languages
                news = self._news
            if not news.wait(deadline.left()):
                raise WaitTimeout(
                    LLM_DEFAULT_SESSION, f"the caption service told no languages in {timeout} s"
                )

    # -- captions -----------------------------------------------------------------------------------------

    def put(self, body: Mapping[str, Any]) -> None:
        """Change the meeting's controls: of this meeting, whatever is joined by now."""
        with self._lock:
            self._check()
        self._client._rest.call("PUT", f"{self._locus_url.rstrip('/')}/controls/", json=body, empty_ok=True)

    def turn_on(self, body: Mapping[str, Any]) -> None:
        """See `Captions.turn_on`; the body asks the service for it."""
        number, granted = 0, False
        try:
            with self._lock:
                self._check()
                self._captions = next_captions(self._captions, CaptionTrigger.TURN_ON)
                self._requests += 1
                number = self._requests
            self.put(body)
            granted = True
        finally:
            with self._lock:
                self._requested(number, granted)
        with self._lock:
            self._check()
        self.sync()

    def _requested(self, number: int, granted: bool) -> None:
        """Take how a request to turn captions on ended; the lock is held."""
        if self._over is not None or number <= self._off_at:
            return  # turned off meanwhile
        if granted:
            self._granted = self._subscribe = self._announcing = True
        if number == self._requests and self._captions is CaptionState.SENDING:
            trigger = CaptionTrigger.DONE if self._granted else CaptionTrigger.FAILED
            self._captions = next_captions(self._captions, trigger)
        elif granted and self._captions is CaptionState.IDLE:  # a newer one was refused
            self._captions = next_captions(self._captions, CaptionTrigger.TURN_ON)
            self._captions = next_captions(self._captions, CaptionTrigger.DONE)

    def turn_off(self) -> None:
        """See `Captions.turn_off`."""
        with self._lock:
            self._check()
            self._requests += 1
            self._off_at = self._requests
            self._captions = next_captions(self._captions, CaptionTrigger.TURN_OFF)
            self._granted = self._subscribe = False
        self.sync()

    def subscribe(self) -> None:
        """See `Captions.subscribe`."""
        with self._lock:
            self._check()
            self._subscribe = True
        self.sync()

    def transcripts(self, maxsize: int, timeout: float | None, aside: Aside) -> Transcripts:
        """See `Captions.transcripts`."""
        reader = Transcripts(maxsize, timeout, self._check_fetching, aside)
        with self._lock:
            self._check()
            self._readers = [weakref.ref(one) for one in (*self._living(), reader)]
        return reader

    # -- the caption language -----------------------------------------------------------------------------

    def request_language(self, language: str, timeout: float | None) -> CaptionLanguageAnswer:
        """See `Captions.request_language`."""
        language_request(language, "", None)  # refuses what is none
        self._refuse_own_thread("request_language()")
        deadline, mine = Deadline(timeout), _Ask(language, waited_for=True)
        try:
            self._enqueue(mine, deadline)
            self.sync()
            mine.over.wait(deadline.left())
            with self._lock:
                if mine.answer is not None:
                    return mine.answer
                self._check()
            raise WaitTimeout(LLM_DEFAULT_SESSION, f"no answer to {language!r} within {timeout} s")
        finally:
            with self._lock:
                if self._ask is mine:
                    self._ask = None
                renewed = self._renew()
            mine.over.set()
            if renewed:
                self.sync()

    def _enqueue(self, mine: _Ask, deadline: Deadline) -> None:
        """Make a request the one under way, once that before it is over. Answers do not say to which."""
        while True:
            with self._lock:
                self._check()
                other = self._ask
                if other is None or not other.waited_for:
                    self._ask = mine
                    return
            if not other.over.wait(deadline.left()):
                what = f"another request for a caption language was not answered within {deadline.timeout} s"
                raise WaitTimeout(LLM_DEFAULT_SESSION, what)

    # -- what the service says, on the dispatchers --------------------------------------------------------

    def hear(self, event: CaptionEvent) -> None:
        """Take what came on a session."""
        full = False
        with self._lock:
            if self._over is not None:
                return
            if isinstance(event, Transcript) and event.final:
                full = sum(reader.put(event) for reader in self._living()) > 0  # all of them get it
            elif isinstance(event, CaptionLanguages):
                self._announce = next_announce(self._announce, AnnounceTrigger.ANSWERED)
                if self._announce is AnnounceState.IDLE:
                    return  # nobody here has asked
                before, self._languages = self._languages, event
                moved = before is not None and before.service_id != event.service_id
                if moved:  # the new service knows of nothing
                    self._is_stale = self._chosen is not None
                    for socket in self._sockets.values():
                        socket.asked = None
                    self._renew()
                self._tell()
            elif isinstance(event, CaptionLanguageAnswer):
                self._answered(event)
        if full:
            logger.warning("too many captions wait to be fetched: the oldest are dropped")
        if isinstance(event, (CaptionLanguages, CaptionLanguageAnswer)):
            self.sync()

    def _answered(self, answer: CaptionLanguageAnswer) -> None:
        ask, told = self._ask, self._languages
        if ask is None or answer.raw.get("id", ask.id) != ask.id:
            return  # nobody's any more
        if told is not None and answer.service_id not in (None, told.service_id):
            return  # of the service before, to a request that the new one gets, too
        self._ask, ask.answer = None, answer
        if answer.ok:
            self._chosen, self._is_stale = ask.language, False
        elif not ask.waited_for:
            self._chosen, self._is_stale = None, False  # what the service before had granted
        self._renew()
        ask.over.set()

    def _renew(self) -> bool:
        """Ask a new service for what the one before had granted, unless somebody asks. The lock is held."""
        if self._over is not None or self._ask is not None or self._chosen is None or not self._is_stale:
            return False
        self._ask = _Ask(self._chosen, waited_for=False)
        return True

    # -- sending ------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Send on each session that is online what its socket has not been told yet."""
        self._sending.sync()

    def _due(
        self, session_id: str, in_use: bool, undo: Steps, target: RegisteredTarget, number: str
    ) -> Mapping[str, Any] | None:
        """Return the next message that a socket lacks; note down that it has it, and how to undo that."""
        with self._lock:
            registration = target.registration
            if self._over is not None or registration is None or registration.locus_url != self._locus_url:
                return None
            socket = self._sockets.get(session_id)
            if socket is None or socket.target is not target:
                socket = self._sockets[session_id] = _Socket(target)
            if target.subscribing and socket.subscribed != self._subscribe:
                undo.append(partial(setattr, socket, "subscribed", None))
                socket.subscribed = on = self._subscribe
                return subscription_request(
                    target, number, [TRANSCRIPTION] if on else [], [] if on else [TRANSCRIPTION]
                )
            service_id = self._languages.service_id if self._languages is not None else None
            if self._announcing and not socket.announced and in_use and self._is_announcement_due(session_id):
                undo.append(partial(setattr, socket, "announced", False))
                first = self._announce is AnnounceState.IDLE
                trigger = AnnounceTrigger.ANNOUNCE if first else AnnounceTrigger.AGAIN
                self._announce, socket.announced = next_announce(self._announce, trigger), True
                publication = announcement(service_id)
            elif self._ask is not None and socket.asked is not self._ask and in_use:
                undo.append(partial(setattr, socket, "asked", None))
                socket.asked = self._ask
                publication = self._ask.publication(service_id)
            else:
                return None
        return publish_request(target, number, publication.data, publication.headers, _RELAY)

    def _is_announcement_due(self, session_id: str) -> bool:
        """Whether the service should hear of this socket: it has not answered, or the channel is another."""
        return session_id == LLM_PRACTICE_SESSION or self._announce is not AnnounceState.JOINED

    # -- inside -------------------------------------------------------------------------------------------

    def end(self, error: Exception) -> None:
        """Send no more, tell whoever waits, and be idle.

        Args:
            error: What they are told.
        """
        with self._lock:
            if self._over is not None:
                return
            self._over = error
            self._announce, self._captions = AnnounceState.IDLE, CaptionState.IDLE
            self._languages = self._chosen = None
            ask, readers = self._ask, self._living()
            self._tell()
        if ask is not None:
            ask.over.set()
        for reader in readers:
            reader.end()

    def _check(self) -> None:
        if self._over is not None:
            raise fresh_copy(self._over)

    def _tell(self) -> None:
        news, self._news = self._news, Latch()
        news.set()

    def _living(self) -> list[Transcripts]:
        """Return the iterators that somebody still has."""
        return [reader for one in self._readers if (reader := one()) is not None]

    def _is_online(self, session_id: str) -> bool:
        return self._client._sessions.is_online(session_id)

    def _refuse_own_thread(self, call: str) -> None:
        if self._client._sessions.forked:
            raise PoolClosed("the meeting belongs to the process that this one was forked from")
        for session_id in SESSIONS:
            self._client._sessions.refuse_pulling(session_id, call)

    def _check_fetching(self) -> None:
        try:
            self._refuse_own_thread("transcripts()")
        except PoolClosed:
            if self._client._sessions.forked:
                raise  # otherwise an iterator ends by itself
