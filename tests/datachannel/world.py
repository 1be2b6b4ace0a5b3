"""A client whose REST service and sockets are stand-ins: the test says what each POST and socket does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import responses

from llm_sessions import DataChannelClient
from llm_sessions.datachannel.auth import HEADER
from tests.support import fake_pool

LOCUS = "https://locus.example/locus/1"
CHANNEL = "https://llm.example/datachannel/1"
OTHER = "https://llm.example/datachannel/2"
PRACTICE = "https://llm.example/datachannel/practice"
DEVICE = "https://wdm.example/devices/1"


class World:
    """A pool over fakes, clients on it, and the service that they register at.

    Attributes:
        answers: What to answer: a status and a body each, or a call that returns them; when there are none,
            every POST gets an address and a binding of its own, b1, b2, …
        posts: The URL of each POST, and its data channel token.
    """

    def __init__(self) -> None:
        self.pool, self.transport = fake_pool()
        self.answers: list[tuple[int, Any] | Callable[[], tuple[int, Any]]] = []
        self.posts: list[tuple[str, str | None]] = []
        self.clients: list[DataChannelClient] = []
        self._lock = threading.Lock()
        self.service = responses.RequestsMock(assert_all_requests_are_fired=False)
        for url in (CHANNEL, OTHER, PRACTICE):
            self.service.add_callback(responses.POST, url, self._answer)

    def client(self, **options: Any) -> DataChannelClient:
        settings: dict[str, Any] = {"device": DEVICE, "pool": self.pool} | options
        self.clients.append(DataChannelClient("token", **settings))
        return self.clients[-1]

    @property
    def tokens(self) -> list[str | None]:
        return [token for _, token in self.posts]

    def _answer(self, request: Any) -> tuple[int, dict[str, str], str]:
        with self._lock:
            self.posts.append((request.url, request.headers.get(HEADER)))
            answer = self.answers.pop(0) if self.answers else good(len(self.posts))
        status, body = answer() if callable(answer) else answer
        return status, {}, json.dumps(body)


def good(number: int) -> tuple[int, Any]:
    """The answer that has the binding b<number>."""
    return 200, {"webSocketUrl": f"wss://socket.example/{number}", "binding": f"b{number}"}


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    with world.service:
        yield world
        for client in world.clients:
            client.close()
        world.pool.close()


@pytest.fixture
def client(world: World) -> DataChannelClient:
    return world.client()


__all__ = ["CHANNEL", "DEVICE", "LOCUS", "OTHER", "PRACTICE", "World", "client", "good", "world"]
