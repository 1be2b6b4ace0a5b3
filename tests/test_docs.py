"""The tables and pictures of the docs are those of the code."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from llm_sessions import PoolConfig, _sync
from llm_sessions.pool.retry import delays
from llm_sessions.protocol.closing import FAILURES, classify_close
from llm_sessions.protocol.events import STATE_EVENTS
from llm_sessions.protocol.state import TRANSITIONS
from llm_sessions.protocol.url import connection_url

ARCHITECTURE = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_picture_of_the_states_is_the_table() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+) : (\w+)$", ARCHITECTURE, re.MULTILINE))
    real = {
        (before.value, after.value, trigger.value)
        for before, steps in TRANSITIONS.items()
        for trigger, after in steps.items()
    }
    assert drawn == real


def test_the_ranks_are_those_of_the_locks() -> None:
    ranks = [int(rank) for rank in re.findall(r"^\| (\d+) \|", ARCHITECTURE, re.MULTILINE)]
    assert ranks == [_sync.POOL, _sync.SESSION, _sync.CONNECTION, _sync.STREAM, _sync.LEAF]


PROTOCOL = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_the_failure_table_is_the_codes() -> None:
    written = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \| `(\w+)` \|$", PROTOCOL, re.MULTILINE)
    real = [
        (failure.name, rule.error, rule.first.name, rule.retried.name) for failure, rule in FAILURES.items()
    ]
    assert written == real


def test_the_close_table_is_the_codes() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (.*?) \| `([A-Z]+)` \|$", PROTOCOL, re.MULTILINE)
    assert len(rows) == 7
    for codes, reasons, meaning in rows:
        named = re.findall(r"`(.*?)`", reasons)
        for code in map(int, codes.split(", ")):
            for reason in named or ["", "something else"]:
                assert classify_close(code, reason).name == meaning, (code, reason)
                assert classify_close(code, reason.upper()).name == meaning


def test_every_event_is_described() -> None:
    described = set(re.findall(r"`([\w:.-]+)`", PROTOCOL.partition("### 2.4")[2]))
    assert described >= STATE_EVENTS


def test_the_url_and_the_times_are_those_of_the_code() -> None:
    query = connection_url("wss://h/", now_ms=1).partition("?")[2].replace("clientTimestamp=1", "")
    assert all(f"`{pair}`" in PROTOCOL for pair in query.split("&") if pair)
    config = PoolConfig()
    assert (config.open_timeout, config.ping_interval, config.pong_timeout) == (10, 15, 14)
    assert (config.force_close_delay, config.retire_timeout) == (2, 60)
    assert list(itertools.islice(delays(config.backoff_initial, config.backoff_max), 7)) == [
        1,
        2,
        4,
        8,
        16,
        32,
        32,
    ]
