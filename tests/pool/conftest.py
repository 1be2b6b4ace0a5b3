"""What the tests of the pool share: pools over fakes, closed in the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import ConnectionPool
from llm_sessions.protocol.mercury import EndCause
from tests.support import FakeLink, FakeTransport, fake_pool

Make = Callable[..., tuple[ConnectionPool, FakeTransport]]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make pools over fake sockets; in the end the sockets answer every close, and the pools are closed."""
    made: list[tuple[ConnectionPool, FakeTransport]] = []

    def make_one(
        transport: FakeTransport | None = None, **config: Any
    ) -> tuple[ConnectionPool, FakeTransport]:
        made.append(fake_pool(transport, **config))
        return made[-1]

    yield make_one
    for pool, transport in made:
        transport.on_close = lambda link: link.end(1000, "Done", EndCause.LOCAL)
        for link in transport.links:
            if link.closes:
                link.end(1000, "Done", EndCause.LOCAL)
        pool.close()


@pytest.fixture
def silent() -> Callable[[FakeLink], None]:
    """An `on_open` or `on_close` after which nothing is reported until the test says so."""
    return lambda link: None
