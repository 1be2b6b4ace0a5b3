"""What the sessions of a pool share."""

from __future__ import annotations

import pytest

from llm_sessions import PoolClosed, PoolConfig, _fork
from llm_sessions.pool.environment import Environment


def test_a_closed_environment_refuses() -> None:
    env = Environment(PoolConfig())
    env.check_open()
    env.closed = True
    env.check_process()
    with pytest.raises(PoolClosed):
        env.check_open()


def test_t7_a_forked_child_is_refused_before_any_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Environment(PoolConfig())
    assert not env.forked
    monkeypatch.setattr(_fork, "_generation", _fork.generation() + 1)
    assert env.forked
    for check in (env.check_process, env.check_open):
        with pytest.raises(PoolClosed, match="fork"):
            check()
