"""Plays the script of `serve` on a `LocalServer`, step by step, and makes the trouble of `--faults`."""

from __future__ import annotations

import dataclasses
import random
import uuid
from collections.abc import Sequence
from typing import Final

from ..testing.captions import CaptionService
from ..testing.server import LocalServer, ServerConnection
from .script import Said, conversation, meeting

__all__ = ["Broadcast"]

_BEHIND: Final = 1.0  # seconds of delay that are made up for; what is more is let go
_LOOK: Final = 0.1  # seconds between two looks for listeners
_QUIET_STEPS: Final = (12, 25)  # messages of a session between two faults
_GRACE: Final = 10.0  # seconds until a server that has announced its end goes, whoever is left


@dataclasses.dataclass
class _Leaving:
    """A connection that was told to find another one."""

    connection: ServerConnection
    until: float


class Broadcast:
    """What all sessions of a server are told. For one thread.

    A session's script stands still while nobody listens to it, so that everybody hears it from its beginning.

    Args:
        server: Where.
        sessions: Session keys of the meetings.
        rate: Messages a second on each.
        seed: Of the script and the faults.
        count: Messages on each session, after which it is done; None for no end.
        faults: Whether connections are dropped and replaced now and then.

    Attributes:
        published: Messages so far, by session key.
        posted: Messages so far on all other sessions, which are those of devices.
        dropped: Connections that were dropped.
        replaced: Connections that were told to find another one.
    """

    def __init__(
        self,
        server: LocalServer,
        sessions: Sequence[str],
        *,
        rate: float,
        seed: int,
        count: int | None = None,
        faults: bool = False,
    ) -> None:
        self._server, self._service = server, CaptionService(server)
        self._interval, self._count, self._faults = 1 / rate, count, faults
        self._scripts = {key: meeting(key, seed) for key in sessions}
        self._conversation = conversation(seed)
        self._due: dict[str | None, float] = {}  # by session key; None for devices
        self._chance = random.Random(f"{seed}//faults")
        self._until_fault = dict.fromkeys(sessions, 0)
        for key in sessions:
            self._plan_fault(key)
        self._leaving: list[_Leaving] = []
        self.published: dict[str, int] = dict.fromkeys(sessions, 0)
        self.posted: int = 0
        self.dropped: int = 0
        self.replaced: int = 0

    @property
    def done(self) -> bool:
        """Whether every session has had its messages."""
        return self._count is not None and all(self.published[key] >= self._count for key in self._scripts)

    def step(self, now: float) -> float:
        """Publish what is due, and return the seconds until the next step.

        Args:
            now: Monotonic seconds.
        """
        self._see_off(now)
        live = {one.session for one in self._server.live()}
        for key in self._scripts:
            if key in live and (self._count is None or self.published[key] < self._count):
                self._catch_up(key, now)
            else:
                self._due.pop(key, None)
        devices = live - self._scripts.keys()
        if devices and self._due.setdefault(None, now) <= now:
            self._due[None] = now + self._interval
            self._post(devices)
        return max(0.0, min([_LOOK, *(due - now for due in self._due.values())]))

    def _catch_up(self, key: str, now: float) -> None:
        due = self._due.setdefault(key, now)
        if due > now:
            return
        self._due[key] = max(due, now - _BEHIND) + self._interval
        self._say(key, next(self._scripts[key]))
        self.published[key] += 1
        if self._faults:
            self._until_fault[key] -= 1
            # One at a time: a drop in the middle of a switchover would leave nothing of it to be seen.
            if self._until_fault[key] <= 0 and not any(
                one.connection.session == key for one in self._leaving
            ):
                self._plan_fault(key)
                self._make_trouble(key, now)

    def _say(self, key: str, said: Said) -> None:
        if said.kind == "reaction":
            self._service.reaction(said.text, session=key, sender=f"participant-{said.speaker}")
        else:
            self._service.transcript(
                said.text,
                session=key,
                final=said.kind == "final",
                transcript_id=said.transcript_id,
                csis=(said.speaker,),
                end_millis=said.at,
            )

    def _post(self, keys: set[str]) -> None:
        text = next(self._conversation)
        activity = {"id": str(uuid.uuid4()), "verb": "post", "object": {"displayName": text}}
        for key in keys:
            self._server.publish({"activity": activity}, event_type="conversation.activity", session=key)
        self.posted += 1

    def _plan_fault(self, key: str) -> None:
        self._until_fault[key] = self._chance.randrange(*_QUIET_STEPS)

    def _make_trouble(self, key: str, now: float) -> None:
        if self._chance.random() < 0.5:
            self.dropped += self._server.drop(key)
            return
        told = self._server.live(key)
        self._server.shutdown_frame(key)
        self._leaving += [_Leaving(one, now + _GRACE) for one in told]
        self.replaced += len(told)

    def _see_off(self, now: float) -> None:
        """Close connections whose clients have another one by now, or have had their time."""
        staying: list[_Leaving] = []
        for one in self._leaving:
            old = one.connection
            if not old.live:
                continue
            has_newer = any(other.number > old.number for other in self._server.live(old.session))
            if has_newer or now >= one.until:
                old.close(4001, "server shutdown")
            else:
                staying.append(one)
        self._leaving = staying
