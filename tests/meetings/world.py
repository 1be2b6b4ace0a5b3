"""A meeting over stand-ins: the world of `tests.datachannel`, with the meeting's own addresses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import responses

from llm_sessions import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION, SessionState
from llm_sessions.meetings.meeting import Meeting
from llm_sessions.testing.server import make_token
from tests.datachannel.world import CHANNEL, LOCUS, PRACTICE, World
from tests.support import FakeLink, Recorder, eventually

DEFAULT, PRACTICE_SESSION = LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION
FETCH = f"{LOCUS}/participant/me/datachannel/token"
FETCH_PRACTICE = f"{LOCUS}/participant/me/practiceSession/datachannel/token"


class MeetingWorld(World):
    """A `World` with a client, and a meeting on it.

    Attributes:
        fetches: What to answer to the next requests for a token; a fresh one if there is none.
        fetched: The address of each such request.
        controls: Method and body of each request to the controls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fetches: list[Callable[[], tuple[int, Any]]] = []
        self.fetched: list[str] = []
        self.controls: list[tuple[str, Any]] = []
        for url in (FETCH, FETCH_PRACTICE):
            self.service.add_callback(responses.GET, url, self._fetch)
        self.service.add_callback(responses.PATCH, f"{LOCUS}/controls", self._control)
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

    def posted(self, url: str) -> list[str | None]:
        """The token of each POST to a data channel's address."""
        return [token for where, token in list(self.posts) if where == url]

    def state(self, session_id: str = DEFAULT) -> SessionState:
        return self.one.session(session_id).state

    def settle(self, session_id: str, state: SessionState) -> None:
        eventually(lambda: self.state(session_id) is state, f"{session_id} is not {state}")

    def links(self, session_id: str) -> list[FakeLink]:
        return [link for link in list(self.transport.links) if link.name.startswith(f"{session_id}#")]

    def rest(self) -> None:
        """Wait until the worker has nothing to do any more."""
        join = self.meeting._join
        assert join is not None
        worker = join.worker

        def waits() -> bool:
            with worker._lock:
                return worker._seen_changes == worker._changes

        eventually(waits, "the worker does not come to rest")


def locus(**changes: Any) -> dict[str, Any]:
    """A locus; with `roles`, `practice` (on or not), `tokens`, `channel`, `practice_url`."""
    found: dict[str, Any] = {"url": LOCUS, "info": {}, "self": {"id": "me"}}
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


@pytest.fixture
def world() -> Iterator[MeetingWorld]:
    world = MeetingWorld()
    with world.service:
        yield world
        world.meeting.leave()
        for client in world.clients:
            client.close()
        world.pool.close()
