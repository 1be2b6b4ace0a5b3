"""A meeting over stand-ins: the world of `tests.datachannel`, with the meeting's own addresses."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import responses

from llm_sessions import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION, SessionState
from llm_sessions.meetings.captioning import Captioning
from llm_sessions.meetings.captions import Captions
from llm_sessions.meetings.meeting import Meeting
from llm_sessions.meetings.worker import Worker
from llm_sessions.testing.server import make_token
from tests.datachannel.world import CHANNEL, LOCUS, OTHER, PRACTICE, World
from tests.support import FakeLink, Gate, Recorder, eventually

DEFAULT, PRACTICE_SESSION = LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION
FETCH = f"{LOCUS}/participant/me/datachannel/token"
FETCH_PRACTICE = f"{LOCUS}/participant/me/practiceSession/datachannel/token"
DONE = (3050, "done (permanent)")

NEXT_LOCUS = "https://locus.example/locus/2"
"""Another meeting's, whose data channel is `OTHER`."""


class MeetingWorld(World):
    """A `World` with a client, and a meeting on it.

    Attributes:
        fetches: What to answer to the next requests for a token; a fresh one if there is none.
        fetched: The address of each such request.
        controls: Method and body of each request to the controls.
        grants: What to answer to the next requests that change captions; 200 if there is none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fetches: list[Callable[[], tuple[int, Any]]] = []
        self.fetched: list[str] = []
        self.controls: list[tuple[str, Any]] = []
        self.grants: list[Callable[[], tuple[int, Any]]] = []
        self._marks = itertools.count(1)
        for url in (LOCUS, NEXT_LOCUS):
            for fetch in (FETCH, FETCH_PRACTICE):
                self.service.add_callback(responses.GET, fetch.replace(LOCUS, url), self._fetch)
            self.service.add_callback(responses.PATCH, f"{url}/controls", self._control)
            self.service.add_callback(responses.PUT, f"{url}/controls/", self._grant)
        self.one = self.client()
        self.meeting = Meeting(self.one)
        self.heard = Recorder()
        for name in ("online", "offline", "failed", "relay", "locus.state_message"):
            self.meeting.on(name, self.heard.named(name))

    def _fetch(self, request: Any) -> tuple[int, dict[str, str], str]:
        self.fetched.append(request.url)
        status, body = self.fetches.pop(0)() if self.fetches else (200, {"datachannelToken": make_token()})
        return status, {}, json.dumps(body)

    def _control(self, request: Any) -> tuple[int, dict[str, str], str]:
        self.controls.append((request.method, json.loads(request.body)))
        return 200, {}, ""

    def _grant(self, request: Any) -> tuple[int, dict[str, str], str]:
        self.controls.append((request.method, json.loads(request.body)))
        status, body = self.grants.pop(0)() if self.grants else (200, {})
        return status, {}, json.dumps(body)

    @property
    def captions(self) -> Captions:
        return self.meeting.captions

    def posted(self, url: str) -> list[str | None]:
        """The token of each POST to a data channel's address."""
        return [token for where, token in list(self.posts) if where == url]

    def state(self, session_id: str = DEFAULT) -> SessionState:
        return self.one.session(session_id).state

    def settle(self, session_id: str, state: SessionState) -> None:
        eventually(lambda: self.state(session_id) is state, f"{session_id} is not {state}")

    def links(self, session_id: str) -> list[FakeLink]:
        return [link for link in list(self.transport.links) if link.name.startswith(f"{session_id}#")]

    def link(self, session_id: str = DEFAULT, number: int = 1) -> FakeLink:
        """Wait for the link of this number that a session opens, until it is ready."""
        eventually(
            lambda: len(found := self.links(session_id)) >= number and found[number - 1].ready,
            f"{session_id} has no link {number}",
        )
        return self.links(session_id)[number - 1]

    def join(self, *, both: bool = False) -> None:
        """Join, wait until the channels that there should be are online, and everybody has heard of it."""
        self.meeting.join(panelist() if both else {"locus": locus()})
        self.meeting.wait_online(DEFAULT)
        if both:
            self.meeting.wait_online(PRACTICE_SESSION)
        self.calm()

    def calm(self) -> None:
        """Wait until the dispatchers have dealt with everything that has happened to live links."""
        for session_id in (DEFAULT, PRACTICE_SESSION):
            for link in self.links(session_id)[-1:]:
                if link.ready:
                    mark = f"mark-{next(self._marks)}"
                    give(link, relay(mark))
                    eventually(
                        lambda mark=mark: any(  # type: ignore[misc]
                            getattr(one, "relay_type", "") == mark for one in self.heard.payloads("relay")
                        ),
                        f"{session_id} is stuck",
                    )

    def flush(self) -> None:
        """Wait until the meeting's handlers have got everything that was put before this."""
        mark = f"mark-{next(self._marks)}"
        self.meeting._delivery.put(self.meeting._join, "failed", mark)
        eventually(lambda: mark in self.heard.payloads("failed"), "the meeting's handlers are stuck")

    @property
    def worker(self) -> Worker:
        return worker_of(self.meeting)

    def rest(self, meeting: Meeting | None = None) -> None:
        """Wait until the worker, of `meeting` if one is given, has nothing to do any more."""
        worker = worker_of(meeting or self.meeting)

        def waits() -> bool:
            with worker._lock:
                return worker._seen_changes == worker._changes

        eventually(waits, "the worker does not come to rest")


def worker_of(meeting: Meeting) -> Worker:
    join = meeting._join
    assert join is not None
    return join.worker


def locus(**changes: Any) -> dict[str, Any]:
    """A locus; with `url`, `roles`, `practice` (on or not), `tokens`, `channel`, `practice_url`."""
    found: dict[str, Any] = {"url": changes.get("url", LOCUS), "info": {}, "self": {"id": "me"}}
    channel, practice_url = changes.get("channel", CHANNEL), changes.get("practice_url", PRACTICE)
    if channel is not None:
        found["info"]["datachannelUrl"] = channel
    if practice_url is not None:
        found["info"]["practiceSessionDatachannelUrl"] = practice_url
    if "practice" in changes:
        found["controls"] = {"practiceSession": {"enabled": changes["practice"]}}
    if "roles" in changes:
        roles = [{"type": role, "hasRole": True} for role in changes["roles"]]
        found["self"]["controls"] = {"role": {"roles": roles}}
    found["self"].update(changes.get("tokens", {}))
    return found


def panelist(**changes: Any) -> dict[str, Any]:
    """What a panelist gets for joining while the practice session is on."""
    return {"locus": locus(roles=["PANELIST"], practice=True, **changes)}


def next_meeting(**changes: Any) -> dict[str, Any]:
    """What one gets for joining another meeting, which has no practice session."""
    return {"locus": locus(url=NEXT_LOCUS, channel=OTHER, practice_url=None, **changes)}


def stay(link: FakeLink) -> None:
    """An `on_open` after which nothing is reported, or an `on_close` that nobody answers."""


def held(gate: Gate, answer: tuple[int, Any]) -> Callable[[], tuple[int, Any]]:
    """An answer that comes when the gate is opened."""

    def wait() -> tuple[int, Any]:
        gate.pass_through()
        return answer

    return wait


def gate_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool = False) -> Gate:
    """Have the next call of a method stop at the gate that is returned: before it, or once it is done."""
    gate, method, turns = Gate(), getattr(owner, name), iter([True])

    def call(*args: Any, **options: Any) -> Any:
        mine = next(turns, False)
        if mine and not after:
            gate.pass_through()
        found = method(*args, **options)
        if mine and after:
            gate.pass_through()
        return found

    monkeypatch.setattr(owner, name, call)
    return gate


def give(link: FakeLink, *messages: Any) -> None:
    """Have messages arrive on a link."""
    link.owner.link_received(link, list(messages))


def relay(relay_type: str, headers: dict[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    """A relay event with an id of its own."""
    data = {"eventType": "relay.event", "relayType": relay_type, **data}
    return {"id": str(uuid.uuid4()), "headers": headers or {}, "data": data}


def transcript(text: str, *, final: bool = True) -> dict[str, Any]:
    """A caption."""
    kind = "transcript_final_result" if final else "transcript_interim_results"
    entry = {"text": text, "csis": [1], "end_millis": 1000}
    payload = {"type": kind, "transcript_id": str(uuid.uuid4()), "transcripts": [entry]}
    return relay("voicea.transcription", voiceaPayload=payload)


def languages(service_id: str | None = "voicea-1", *allowed: str) -> dict[str, Any]:
    """The caption service's answer to an announcement."""
    payload = {
        "translation": {"allowed_languages": list(allowed or ("de", "en")), "max_languages": 5},
        "ASR": {"spoken_languages": ["en"]},
    }
    return relay("voicea.annc", {"from": service_id} if service_id else {}, voiceaPayload=payload)


def answer(ok: bool = True, service_id: str | None = None, **payload: Any) -> dict[str, Any]:
    """The caption service's answer to a request for a language."""
    said = {"statusCode": 200} if ok else {"errorCode": 400, "message": "no"}
    headers = {"from": service_id} if service_id else {}
    return relay("voicea.transl.rsp", headers, voiceaPayload={**said, **payload})


def said(link: FakeLink) -> list[str]:
    """What was sent on a link about captions, each in a word or two."""
    return [_in_short(json.loads(payload)) for payload in list(link.sent)]


def _in_short(message: dict[str, Any]) -> str:
    data = message["data"]
    if message["type"] == "subchannelSubscriptionRequest":
        assert [data["subscribe"], data["unsubscribe"]].count(["transcription"]) == 1
        return "subscribe" if data["subscribe"] else "unsubscribe"
    if data["relayType"] == "client.annc":
        return "announce"
    return f"ask {data['clientPayload']['translationLanguage']}"


class Voicea:
    """A caption service on every link that opens from now on. It answers before the send has returned.

    Args:
        world: Whose links.

    Attributes:
        service_id: Its id.
        quiet: Whether it answers nothing.
        refuses: Languages that it refuses.
        asked: Languages it was asked for, and the `to` of each request.
    """

    def __init__(self, world: MeetingWorld) -> None:
        self.service_id, self.quiet = "voicea-1", False
        self.refuses: set[str] = set()
        self.asked: list[tuple[str, Any]] = []
        world.transport.on_open = self.open

    def open(self, link: FakeLink) -> None:
        send = link.send

        def answering(payload: bytes, timeout: float | None) -> None:
            send(payload, timeout)
            self._take(link, json.loads(payload))

        link.send = answering  # type: ignore[method-assign]
        link.become_ready()

    def _take(self, link: FakeLink, message: dict[str, Any]) -> None:
        what = _in_short(message)
        if what.startswith("ask "):
            language = what.removeprefix("ask ")
            self.asked.append((language, message["headers"].get("to")))
            if not self.quiet:
                give(link, answer(language not in self.refuses))
        elif what == "announce" and not self.quiet:
            give(link, languages(self.service_id))


def captioning(world: MeetingWorld) -> Captioning:
    join = world.meeting._join
    assert join is not None
    return join.captioning


def are_said(link: FakeLink, *expected: str) -> None:
    """Wait until this, and nothing else, was sent on a link."""
    eventually(lambda: len(said(link)) >= len(expected), f"{said(link)} instead of {expected}")
    assert said(link) == list(expected)


def free(world: MeetingWorld) -> None:
    """Nothing is held, and nobody is left marked as sending."""
    found = captioning(world)
    sending = found._sending
    assert not found._lock.locked() and not sending._sending and not sending._again


def interrupted_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool = False) -> None:
    """Have the first call of a method, on the thread that asks for this, be interrupted."""
    method, strikes, me = getattr(owner, name), iter([True]), threading.current_thread()

    def strike(*args: Any, **options: Any) -> Any:
        if threading.current_thread() is not me or not next(strikes, False):
            return method(*args, **options)
        if after:
            method(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, strike)


class LogHandler(logging.Handler):
    """A program's log handler that does something at some records, on the thread that logs them.

    Args:
        act: What it does.
        thread: How the names of the threads begin on which it does.
        text: What a record has to say for it.
    """

    def __init__(self, act: Callable[[], object], thread: str, text: str = "") -> None:
        super().__init__(logging.DEBUG)
        self._act, self._thread, self._text = act, thread, text

    def emit(self, record: logging.LogRecord) -> None:
        if threading.current_thread().name.startswith(self._thread) and self._text in record.getMessage():
            self._act()


@contextlib.contextmanager
def logged_to(handler: logging.Handler) -> Iterator[None]:
    """Have everything that the library logs go to a handler, too."""
    logger = logging.getLogger("llm_sessions")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture
def world() -> Iterator[MeetingWorld]:
    world = MeetingWorld()
    with world.service:
        yield world
        world.meeting.leave()
        for client in world.clients:
            client.close()
        world.pool.close()
