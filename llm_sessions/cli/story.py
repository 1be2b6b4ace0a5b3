"""The story that the demo tells: a webinar's participant is promoted, demoted, leaves, and comes back.

It plays on a `LocalServer`, through everything that a program would use, and is recorded as it happens: what
the program calls, what goes over REST, what is sent and heard on each channel. The demo prints the record,
and the sequence diagram of docs/meetings.md is made from it.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..datachannel.client import DataChannelClient
from ..meetings.caption_events import CaptionLanguages, Transcript
from ..meetings.meeting import Meeting
from ..pool.config import PoolConfig
from ..protocol.events import Offline, Online
from ..session_ids import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION
from ..testing.captions import CaptionService, Webinar
from ..testing.server import LocalServer

__all__ = ["CHANNELS", "Line", "Record", "Story", "sequence_diagram"]

PROGRAM, MEETING, REST, MAIN, PRACTICE = "program", "meeting", "REST", "main", "practice"

CHANNELS: Final = {LLM_DEFAULT_SESSION: MAIN, LLM_PRACTICE_SESSION: PRACTICE}
"""What the sessions are called in the story."""

_CONFIG: Final = PoolConfig(ping_interval=0.5, pong_timeout=5.0, backoff_initial=0.2)
_DEVICE: Final = "https://wdm.example/devices/1"
_TOKEN_HEADER: Final = "data-channel-auth-token"
_LONG: Final = 10.0  # seconds after which the story has come to a halt


@dataclasses.dataclass(frozen=True)
class Line:
    """Something that happened.

    Attributes:
        at: Seconds since the beginning.
        source: Who did it; None for a heading.
        target: To whom; None for a heading.
        text: What.
    """

    at: float
    source: str | None
    target: str | None
    text: str


class Record:
    """What happened, in its order. Safe from any thread.

    Args:
        server: Whose requests over REST belong to it.
        show: Called with each line, one at a time.
    """

    def __init__(self, server: LocalServer, show: Callable[[Line], None]) -> None:
        self.lines: list[Line] = []
        self._server, self._show = server, show
        self._started = time.monotonic()
        self._requests = 0
        # Guards all of it. Lines are shown under it, or they would come in another order.
        self._lock = threading.Lock()
        self._tokens: list[str] = []

    def add(self, source: str | None, target: str | None, text: str) -> None:
        """Add a line, after those of all requests that came before it."""
        with self._lock:
            for request in self._server.requests[self._requests :]:
                self._requests += 1
                token = request.headers.get(_TOKEN_HEADER)
                what = f"{request.method} {request.path}"
                self._append(MEETING, REST, f"{what} with {self._name(token)}" if token else what)
            self._append(source, target, text)

    def _append(self, source: str | None, target: str | None, text: str) -> None:
        line = Line(time.monotonic() - self._started, source, target, text)
        self.lines.append(line)
        self._show(line)

    def _name(self, token: str) -> str:
        if token not in self._tokens:
            self._tokens.append(token)
        return f"token {self._tokens.index(token) + 1}"


class Story:
    """One webinar, told once.

    Args:
        show: Called with each line of the record as it happens.
        pace: Seconds between two captions, so that one can follow.
    """

    def __init__(self, show: Callable[[Line], None] = lambda line: None, *, pace: float = 0.0) -> None:
        self._show, self._pace = show, pace
        self._changed = threading.Condition()
        self.published: dict[str, list[str]] = collections.defaultdict(list)
        self.received: dict[str, list[str]] = collections.defaultdict(list)
        self.onlines: collections.Counter[str] = collections.Counter()
        self.announcements: collections.Counter[str] = collections.Counter()
        self.languages: collections.Counter[str] = collections.Counter()
        self.violations: list[str] = []
        self.lines: list[Line] = []

    @property
    def complete(self) -> bool:
        """Whether every caption arrived once and in order, and nobody misbehaved."""
        return bool(self.published) and self.published == self.received and not self.violations

    def tell(self, *, drop: bool = True) -> None:
        """Tell it from beginning to end.

        Args:
            drop: Whether the network drops the main channel once.
        """
        with LocalServer() as server:
            record = Record(server, self._show)
            self.lines = record.lines
            server.on_message(lambda connection, obj: self._sent(record, connection.session, obj))
            service, webinar = CaptionService(server), Webinar(server)
            webinar.start_practice()
            with (
                DataChannelClient("any-token", device=_DEVICE, config=_CONFIG) as client,
                Meeting(client) as meeting,
            ):
                self._listen(record, client, meeting)
                told = _Telling(self, server, service, webinar, client, meeting, record, self._pace)
                told.first_join()
                told.promotion("promoted, and the practice session's channel follows")
                told.demotion()
                told.promotion("promoted again, with the token of the join")
                if drop:
                    told.dropped()
                told.leave()
                told.second_join()
            self.violations = server.violations

    # -- what the record and the account are made from ------------------------------------------------------

    def _listen(self, record: Record, client: DataChannelClient, meeting: Meeting) -> None:
        # On the client, before the meeting listens: what the meeting does upon it comes later in the record.
        def online(event: Online) -> None:
            record.add(CHANNELS[event.session_id], MEETING, "online")
            self._count(self.onlines, event.session_id)

        def offline(event: Offline) -> None:
            record.add(CHANNELS[event.session_id], MEETING, f"offline: {event.code}")

        for session_id in CHANNELS:
            client.on("online", online, session_id=session_id)
            client.on("offline.transient", offline, session_id=session_id)

        @meeting.on("languages")
        def languages(event: CaptionLanguages) -> None:
            codes = ", ".join(event.allowed_languages)
            record.add(CHANNELS[event.session_id], MEETING, f"caption languages {codes}")
            self._count(self.languages, event.session_id)

        @meeting.on("transcript")
        def transcript(event: Transcript) -> None:
            record.add(CHANNELS[event.session_id], PROGRAM, f"caption “{event.text}”")
            with self._changed:
                self.received[event.session_id].append(event.text)
                self._changed.notify_all()

    def _sent(self, record: Record, key: str, message: dict[str, Any]) -> None:
        session_id = LLM_PRACTICE_SESSION if key == "practice" else LLM_DEFAULT_SESSION
        if message.get("type") == "subchannelSubscriptionRequest":
            record.add(MEETING, CHANNELS[session_id], "subscribe to transcription")
        elif message.get("type") == "publishRequest":
            record.add(MEETING, CHANNELS[session_id], "announce")
            self._count(self.announcements, session_id)

    def _count(self, counter: collections.Counter[str], session_id: str) -> None:
        with self._changed:
            counter[session_id] += 1
            self._changed.notify_all()

    def wait(self, predicate: Callable[[], bool]) -> None:
        """Wait until something has come about.

        Raises:
            TimeoutError: If it does not within ten seconds.
        """
        with self._changed:
            if not self._changed.wait_for(predicate, _LONG):
                raise TimeoutError("the story has come to a halt")


@dataclasses.dataclass
class _Telling:
    """The steps of the story. Each ends when its effects are there, so that the next one finds them."""

    story: Story
    server: LocalServer
    service: CaptionService
    webinar: Webinar
    client: DataChannelClient
    meeting: Meeting
    record: Record
    pace: float

    def first_join(self) -> None:
        self._heading("joined as an attendee, while the practice session is on")
        self._join("Welcome, everyone.")

    def promotion(self, heading: str) -> None:
        self._heading(heading)
        with self._languages_come(LLM_PRACTICE_SESSION):
            self._call("update_locus, now a panelist")
            self.meeting.update_locus(self.webinar.promote())
            self.meeting.wait_online(LLM_PRACTICE_SESSION)
        self._captions("Can everybody hear me?", LLM_DEFAULT_SESSION)
        self._captions("Only panelists hear this.", LLM_PRACTICE_SESSION)

    def demotion(self) -> None:
        self._heading("demoted: the practice session's channel goes, the main one stays")
        self._call("update_locus, now an attendee")
        self.meeting.update_locus(self.webinar.demote())
        self._closed("practice")
        self._captions("The main meeting goes on.", LLM_DEFAULT_SESSION)

    def dropped(self) -> None:
        self._heading("the network drops the main channel")
        before = self.story.onlines[LLM_DEFAULT_SESSION]
        self.server.drop(session="default")
        self.story.wait(lambda: self.story.onlines[LLM_DEFAULT_SESSION] > before)
        self.server.wait_for(lambda: len(self.service.subscribed("default")) == 1)
        self._captions("And we are back.", LLM_DEFAULT_SESSION)

    def leave(self) -> None:
        self._heading("left: both channels close, tokens and captions are forgotten")
        self._call("leave")
        self.meeting.leave()
        self._closed("practice")
        self._closed("default")

    def second_join(self) -> None:
        self._heading("joined again: the announcement works again")
        self.webinar.demote()
        self._join("Welcome back.")

    def _join(self, caption: str) -> None:
        before = self.story.onlines[LLM_DEFAULT_SESSION]
        self._call("join")
        self.meeting.join(self.webinar.join_response())
        self.meeting.wait_online()
        self.story.wait(lambda: self.story.onlines[LLM_DEFAULT_SESSION] > before)
        with self._languages_come(LLM_DEFAULT_SESSION):
            self._call("captions.turn_on")
            self.meeting.captions.turn_on()
            self.meeting.captions.wait_languages()
        self._captions(caption, LLM_DEFAULT_SESSION)

    # -- helpers --------------------------------------------------------------------------------------------

    def _heading(self, text: str) -> None:
        self.record.add(None, None, text)

    def _call(self, text: str) -> None:
        self.record.add(PROGRAM, MEETING, text)

    @contextmanager
    def _languages_come(self, session_id: str) -> Iterator[None]:
        before = self.story.languages[session_id]
        yield
        self.story.wait(lambda: self.story.languages[session_id] > before)

    def _captions(self, text: str, session_id: str) -> None:
        threading.Event().wait(self.pace)
        key = "practice" if session_id == LLM_PRACTICE_SESSION else "default"
        self.service.transcript(text, session=key)
        self.story.published[session_id].append(text)
        count = len(self.story.published[session_id])
        self.story.wait(lambda: len(self.story.received[session_id]) >= count)

    def _closed(self, key: str) -> None:
        self.server.wait_for(lambda: not self.server.live(key))
        last = self.server.connections(key)[-1]
        name = PRACTICE if key == "practice" else MAIN
        self.record.add(MEETING, name, f"close {last.close_code} “{last.close_reason}”")


def sequence_diagram(lines: list[Line]) -> str:
    """Return a record as a Mermaid sequence diagram."""
    names = {
        PROGRAM: "your program",
        MEETING: "Meeting",
        REST: "REST",
        MAIN: "main channel",
        PRACTICE: "practice channel",
    }
    drawn = ["sequenceDiagram", *(f"    participant {name} as {shown}" for name, shown in names.items())]
    for line in lines:
        if line.source is None:
            drawn.append(f"    Note over {PROGRAM},{PRACTICE}: {line.text}")
        else:
            drawn.append(f"    {line.source}->>{line.target}: {line.text}")
    return "\n".join(drawn) + "\n"
