"""The meeting: the same for the same seed, and like a meeting."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest

from llm_sessions.cli.script import Said, conversation, meeting


def first(session: str = "main", seed: int = 1, count: int = 300) -> list[Said]:
    return list(islice(meeting(session, seed), count))


def test_a_seed_is_a_meeting() -> None:
    assert first() == first()
    assert first(seed=2) != first() != first("practice")
    assert list(islice(conversation(1), 9)) == list(islice(conversation(1), 9))


@pytest.mark.parametrize("session", ["main", "practice", "anything else"])
def test_it_is_like_a_meeting(session: str) -> None:
    said = first(session)
    assert {one.kind for one in said} == {"interim", "final", "reaction"}
    assert all(one.text and 1 <= one.speaker <= 4 for one in said)
    assert all(later.at >= earlier.at for earlier, later in pairwise(said))
    finals = [one.transcript_id for one in said if one.kind == "final"]
    assert len(set(finals)) == len(finals)


def test_an_interim_caption_grows_into_the_one_that_follows() -> None:
    found = [(one, after) for one, after in pairwise(first()) if one.kind == "interim"]
    assert found
    for interim, final in found:
        assert final.kind == "final" and final.transcript_id == interim.transcript_id
        assert final.text.startswith(interim.text) and final.text != interim.text
