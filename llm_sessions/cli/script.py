"""What is said in the meeting that `serve` plays: the same for the same seed, and without end."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator
from typing import Final

__all__ = ["Said", "conversation", "meeting"]

_SUBJECTS: Final = (
    "The lighthouse",
    "The new lamp",
    "The harbour crew",
    "Our budget",
    "The spiral staircase",
)
_VERBS: Final = ("will need", "has been waiting for", "could do without", "depends on", "deserves")
_OBJECTS: Final = (
    "a coat of paint",
    "the spring tide",
    "one more vote",
    "a second opinion",
    "better weather",
)
_TALK: Final = (
    "Is everybody ready to go on stage?",
    "Your slides look good from here.",
    "Please mute until we are live.",
    "Two minutes to go.",
    "Who takes the first question?",
    "The main room is filling up.",
)
_REACTIONS: Final = ("celebrate", "heart", "smile", "thumb_up")
_SPEAKERS: Final = 4
_MORE_THAN_WORDS: Final = 0.15  # of the messages, each of the two other kinds


@dataclasses.dataclass(frozen=True)
class Said:
    """One message of a meeting.

    Attributes:
        kind: `interim` or `final` of a caption, or `reaction`.
        text: The words, or the kind of reaction.
        transcript_id: Of a caption; an interim one has that of the final one that follows.
        speaker: Who, from 1.
        at: Milliseconds since the meeting began.
    """

    kind: str
    text: str
    transcript_id: str
    speaker: int
    at: int


def meeting(session: str, seed: int) -> Iterator[Said]:
    """Yield what is said in a session, for ever.

    Args:
        session: Its key. Backstage, in the practice session, they talk of other things.
        seed: Another one, another meeting.
    """
    chance = random.Random(f"{seed}/{session}")
    at = 0
    for number in itertools.count(1):
        at += chance.randrange(500, 4000)
        speaker = chance.randrange(_SPEAKERS) + 1
        what = chance.random()
        if what < _MORE_THAN_WORDS:
            yield Said("reaction", chance.choice(_REACTIONS), "", speaker, at)
            continue
        text = chance.choice(_TALK) if session == "practice" else _sentence(chance)
        name = f"{session}-{number}"
        if what < 2 * _MORE_THAN_WORDS:
            words = text.split()
            yield Said("interim", " ".join(words[: len(words) // 2]), name, speaker, at)
        yield Said("final", text, name, speaker, at)


def conversation(seed: int) -> Iterator[str]:
    """Yield what is said in a space that the user of a device is in, for ever."""
    chance = random.Random(f"{seed}//conversation")
    while True:
        yield _sentence(chance)


def _sentence(chance: random.Random) -> str:
    return f"{chance.choice(_SUBJECTS)} {chance.choice(_VERBS)} {chance.choice(_OBJECTS)}."
