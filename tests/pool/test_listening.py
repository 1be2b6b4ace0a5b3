"""`on` and `once` are plain methods with docstrings; what type checkers see of them is in `tests/types`."""

from __future__ import annotations

import inspect
import sys
import typing

import pytest

from llm_sessions import ALL_SESSIONS, ConnectionPool, DataChannelClient, Meeting, Session
from llm_sessions.pool import listening
from llm_sessions.pool.listening import DEFAULT_SESSION, PoolEvents, SessionEvents
from tests.test_init import fresh

CLASSES = (ConnectionPool, DataChannelClient, Session, Meeting)


@pytest.mark.parametrize("owner", CLASSES)
def test_help_tells_what_they_do(owner: type) -> None:
    on, once = owner.on, owner.once
    assert "Raises:\n    ConfigurationError: If there is no such event" in (inspect.getdoc(on) or "")
    assert inspect.getdoc(once) == "Like `on`, for the next such event only."
    assert inspect.isfunction(on) and inspect.isfunction(once)


@pytest.mark.parametrize("owner", CLASSES)
def test_both_have_the_same_parameters(owner: type) -> None:
    on, once = inspect.signature(owner.on), inspect.signature(owner.once)
    one = [(p.name, p.kind, p.default) for p in on.parameters.values()]
    assert one == [(p.name, p.kind, p.default) for p in once.parameters.values()]
    whose = [] if owner in (Session, Meeting) else ["session_id"]
    assert [name for name, _, _ in one] == ["self", "event", "callback", *whose]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python keeps overloads since 3.11")
def test_overloads_cost_nothing_at_run_time() -> None:
    for owner in CLASSES:
        assert typing.get_overloads(owner.on) == []  # type: ignore[attr-defined]
    assert not hasattr(listening, "deprecated")
    code = "import sys, llm_sessions; llm_sessions.ConnectionPool; print('typing_extensions' in sys.modules)"
    assert fresh(code) == "False\n"


def test_sessions_have_no_dict() -> None:
    with ConnectionPool("token") as pool:
        assert not hasattr(pool.session("a"), "__dict__")
    assert SessionEvents.__slots__ == PoolEvents.__slots__ == ()


def test_markers_say_what_they_stand_for() -> None:
    assert (repr(ALL_SESSIONS), repr(DEFAULT_SESSION)) == ("<all sessions>", "<the pool's default session>")
