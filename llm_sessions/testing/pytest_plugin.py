"""Fixtures for tests of programs that use this library. pytest finds them by itself, as a plugin.

A fixture imports what it needs when a test asks for it, so that others neither pay for it nor need the extra
`testing`.

PYTEST_DONT_REWRITE: nothing here asserts, and pytest would warn if a program had imported it before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llm_sessions import ConnectionPool
    from llm_sessions.testing.clock import ManualClock
    from llm_sessions.testing.proxy import FaultProxy
    from llm_sessions.testing.server import LocalServer

POOL_SETTINGS: dict[str, Any] = {
    "backoff_initial": 0.01,
    "backoff_max": 0.05,
    "jitter": False,
    "force_close_delay": 0.3,
    "wait_timeout": 20.0,
}
"""`PoolConfig` settings of `llm_pool`: little time between attempts, and an end to every wait."""


@pytest.fixture
def llm_server() -> Iterator[LocalServer]:
    """A LocalServer. The test fails if a client did something wrong; see `LocalServer.violations`, which a
    test may clear."""
    yield from _serve(tls=False)


@pytest.fixture
def llm_tls_server() -> Iterator[LocalServer]:
    """A LocalServer with TLS: clients need its `client_context` or `ca_file`. Otherwise like `llm_server`."""
    yield from _serve(tls=True)


@pytest.fixture
def llm_pool() -> Iterator[Callable[..., ConnectionPool]]:
    """Make ConnectionPools with short waits: `llm_pool(token="token", **settings)`, where the settings are
    those of PoolConfig. All are closed after the test."""
    from llm_sessions import ConnectionPool, PoolConfig

    with contextlib.ExitStack() as stack:

        def make(token: Any = "token", **settings: Any) -> ConnectionPool:
            pool = ConnectionPool(token, config=PoolConfig(**{**POOL_SETTINGS, **settings}))
            stack.callback(pool.close)
            return pool

        yield make


@pytest.fixture
def llm_fault_proxy() -> Iterator[Callable[..., FaultProxy]]:
    """Make FaultProxies, with the arguments of the class. All are closed after the test."""
    from llm_sessions.testing.proxy import FaultProxy

    with contextlib.ExitStack() as stack:

        def make(*args: Any, **options: Any) -> FaultProxy:
            return stack.enter_context(FaultProxy(*args, **options))

        yield make


@pytest.fixture
def llm_clock() -> ManualClock:
    """A clock that stands still until it is told to go on."""
    from llm_sessions.testing.clock import ManualClock

    return ManualClock()


def _serve(*, tls: bool) -> Iterator[LocalServer]:
    missing = None
    try:
        from llm_sessions.testing.server import LocalServer

        server = LocalServer(tls=tls)  # imports as well
    except ModuleNotFoundError as exc:
        missing = exc.name or str(exc)
    if missing is not None:  # outside the except, which would show its traceback too
        pytest.fail(
            f"LocalServer needs {missing}, which is not installed: pip install 'llm-sessions[testing]'",
            pytrace=False,
        )
    with server:
        yield server
    if server.violations:
        pytest.fail("\n".join(["clients of the server did wrong:", *server.violations]), pytrace=False)
