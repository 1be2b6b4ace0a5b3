"""At exit: pools that were not closed say goodbye."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from llm_sessions import ConnectionPool, PoolClosed
from llm_sessions.pool import goodbye
from tests.pool.support import URL, nothing
from tests.support import LONG, SHORT, Background, FakeTransport, eventually

Make = Callable[..., tuple[ConnectionPool, FakeTransport]]


def test_t6_at_exit_all_close_frames_go_out_before_any_wait(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, transport = make()
    for name in "abc":
        pool.connect(URL, name)
    pool.session("idle")
    transport.on_close = nothing
    monkeypatch.setattr(goodbye, "_pools", [pool])
    leaving = Background(lambda: goodbye.say_goodbye(LONG))
    eventually(lambda: sum(len(link.closes) for link in transport.links) == 3)
    assert not leaving.done
    for link in transport.links:
        link.end(1000)
    leaving.result()
    goodbye.say_goodbye(LONG)  # what is closed is left alone
    assert [link.closes for link in transport.links] == [[(None, None)]] * 3
    with pytest.raises(PoolClosed):
        pool.connect(URL)


def test_t6_at_exit_a_mute_server_is_not_waited_for_beyond_the_limit(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, transport = make()
    pool.connect(URL)
    transport.on_close = nothing
    monkeypatch.setattr(goodbye, "_pools", [pool])
    Background(lambda: goodbye.say_goodbye(SHORT)).result()
    assert transport.links[0].closes == [(None, None)]


def test_a_pool_that_nobody_uses_any_more_is_not_kept_for_it() -> None:
    gc.collect()
    before = len(goodbye._pools)
    pool = ConnectionPool("token")
    assert len(goodbye._pools) == before + 1
    pool.close()
    del pool
    gc.collect()
    assert len(goodbye._pools) <= before
