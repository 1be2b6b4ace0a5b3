"""A meeting whose roles flap, on a server of its own: the main session and the practice session's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from llm_sessions import (
    LLM_DEFAULT_SESSION,
    LLM_PRACTICE_SESSION,
    DataChannelClient,
    LLMSessionsError,
    Meeting,
    PoolConfig,
)
from llm_sessions.testing.captions import CaptionService, Webinar
from tests.chaos.client import Ear
from tests.chaos.director import ServerScript
from tests.chaos.plan import Action, Plan
from tests.chaos.service import Service
from tests.chaos.watch import Calls, Steps
from tests.chaos.world import CONFIG, World

__all__ = ["MeetingWorld"]

DEVICE = "https://wdm.example/devices/1"
SESSIONS = {"default": LLM_DEFAULT_SESSION, "practice": LLM_PRACTICE_SESSION}


class MeetingScript(ServerScript):
    """The director of the meeting, and of its sessions."""

    def __init__(self, actions: Sequence[Action], began: float, world: MeetingWorld) -> None:
        super().__init__(actions, began, world.service)
        self._world = world

    # --- by the server

    def do_expire_tokens(self, action: Action) -> None:
        self._service.server.datachannel_tokens = set()

    def do_reject_rest(self, action: Action) -> None:
        self._service.server.reject_rest(action.value, headers={"Retry-After": "0"})

    def do_hold_rest(self, action: Action) -> Callable[[], Any]:
        self._service.server.hold_rest()
        return self._service.server.release_rest

    # --- by the meeting

    def do_roles(self, action: Action) -> None:
        webinar = self._world.webinar
        self._update(webinar.promote() if action.value == "promote" else webinar.demote())

    def do_practice(self, action: Action) -> None:
        webinar = self._world.webinar
        self._update(webinar.start_practice() if action.value else webinar.stop_practice())

    def do_move(self, action: Action) -> None:
        """Another address of the same channel: it is registered anew."""
        locus = self._world.webinar.locus()
        name = "datachannelUrl" if action.value == "default" else "practiceSessionDatachannelUrl"
        locus["info"][name] += f"?moved={action.at}"
        self._update(locus)

    def do_lobby(self, action: Action) -> Callable[[], Any]:
        meeting = self._world.meeting
        self._world.time("unadmit", 0.0, meeting.unadmit)
        return lambda: self._world.time("admit", 0.0, meeting.admit)

    def do_rejoin(self, action: Action) -> None:
        self._world.time("leave", 2.0, lambda: self._world.meeting.leave(2.0))
        self._world.join()

    def _update(self, locus: dict[str, Any]) -> None:
        self._world.time("update_locus", 0.0, lambda: self._world.meeting.update_locus(locus))


class MeetingWorld(World):
    """One client and its meeting."""

    def __init__(self, plan: Plan, calls: Calls, steps: Steps, began: float) -> None:
        super().__init__(plan, calls, steps, began)
        self.service = Service(None)
        self.webinar = Webinar(self.service.server, practice_enabled=True)
        CaptionService(self.service.server)
        self.client = DataChannelClient(
            "token", device=DEVICE, config=PoolConfig(**{**CONFIG, "queue_size": plan.queue_size})
        )
        self.meeting = Meeting(self.client)
        for key, session_id in SESSIONS.items():
            self.ears[key] = Ear(self.client.pool.session(session_id), key, began)
        self.script = MeetingScript(plan.meeting_actions, began, self)

    def time(self, name: str, limit: float, call: Callable[[], Any]) -> Any:
        return self.calls.time(f"meeting.{name}", limit, call)

    def join(self) -> None:
        self.time("join", 0.0, lambda: self.meeting.join(self.webinar.join_response()))

    def start(self) -> None:
        self.join()
        super().start()
        self.spawn("watcher", self._use)

    def _use(self) -> None:
        """Call what a program calls in a meeting."""
        rng = self.plan.rng("meeting")
        captions = self.meeting.captions
        verbs: list[tuple[str, float, Callable[[], Any]]] = [
            ("wait_online", 0.1, lambda: self.meeting.wait_online(timeout=0.1)),
            ("wait_online", 0.1, lambda: self.meeting.wait_online(LLM_PRACTICE_SESSION, timeout=0.1)),
            ("announce", 1.0, captions.announce),
            ("publish", 0.5, lambda: self.client.publish({"relayType": "client.note"})),
            ("is_connected", 0.0, self.client.is_connected),
            ("repr", 0.0, lambda: f"{self.meeting!r} {self.client!r}"),
            ("connections", 0.0, self.client.connections),
        ]
        while not self._stop.wait(rng.uniform(0.0, 0.08)):
            self.time(*rng.choice(verbs))

    def heal(self) -> None:
        super().heal()
        server = self.service.server
        server.unmute()
        server.release_rest()
        server.datachannel_tokens = None

    def stop(self) -> None:
        super().stop()
        with contextlib.suppress(LLMSessionsError):
            self.meeting.admit()
        self.service.look()

    def bring_online(self, key: str) -> None:
        meeting, webinar = self.meeting, self.webinar
        for locus in (webinar.start_practice(), webinar.promote()):  # news: what failed is tried again
            meeting.update_locus(locus)
        self.time("wait_online", 2.0, lambda: meeting.wait_online(SESSIONS[key], timeout=2.0))

    def close(self) -> None:
        self.time("leave", 2.0, lambda: self.meeting.leave(2.0))
        self.time("close", 5.0, self.client.close)
        self.service.close()
