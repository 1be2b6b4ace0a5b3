"""The tables and pictures of the docs are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from llm_sessions import _sync
from llm_sessions.protocol.state import TRANSITIONS

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
