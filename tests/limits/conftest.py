"""What the tests of limits share: pools and sockets on a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import ConnectionPool
from llm_sessions.pool.environment import Environment
from tests.connection.conftest import links as links
from tests.connection.conftest import owner as owner
from tests.limits.support import WatchedClock
from tests.pool.conftest import make as make


@pytest.fixture
def clock() -> WatchedClock:
    return WatchedClock()


@pytest.fixture
def clocked(make_pool: Callable[..., ConnectionPool], clock: WatchedClock) -> Callable[..., ConnectionPool]:
    """Make pools with real sockets whose deadlines come when the test says so."""

    def make_one(**config: Any) -> ConnectionPool:
        pool = make_pool(**{"ping_interval": 3600, "pong_timeout": 3600, **config})
        pool._env = Environment(pool._env.config, pool._env.provider, clock=clock)
        return pool

    return make_one
