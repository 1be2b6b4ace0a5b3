"""The story of the demo: the same every time, and complete."""

from __future__ import annotations

from llm_sessions import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION
from llm_sessions.cli.story import Line, Story, sequence_diagram


def test_it_goes_the_same_way_every_time() -> None:
    shown: list[Line] = []
    first, second = Story(shown.append), Story()
    for story in (first, second):
        story.tell(drop=False)
        assert story.complete and story.violations == []
    assert shown == first.lines
    assert sequence_diagram(first.lines) == sequence_diagram(second.lines)


def test_i53_the_token_of_the_join_is_still_there_after_a_demotion() -> None:
    story = Story()
    story.tell()
    posts = [line.text for line in story.lines if line.text.startswith("POST")]
    assert posts == [
        "POST /datachannel/default with token 1",
        "POST /datachannel/practice with token 2",
        "POST /datachannel/practice with token 2",
        "POST /datachannel/default with token 1",  # after the drop
        "POST /datachannel/default with token 3",  # of the second join
    ]
    assert story.onlines == {LLM_DEFAULT_SESSION: 3, LLM_PRACTICE_SESSION: 2}


def test_a_story_that_was_not_told_is_not_complete() -> None:
    assert not Story().complete


def test_the_picture() -> None:
    lines = [Line(0.0, None, None, "first"), Line(0.1, "program", "meeting", "join")]
    drawn = sequence_diagram(lines).splitlines()
    assert drawn[0] == "sequenceDiagram" and drawn[1] == "    participant program as your program"
    assert drawn[-2:] == ["    Note over program,practice: first", "    program->>meeting: join"]
