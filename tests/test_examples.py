"""Every example runs by itself, ends, and shows what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import LONG

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

EXPECTED = {
    "mercury_bot.py": [
        "<Session 'mercury-default-session' online> by the device 'example-bot'",
        "heard 'hello', answer: You said 'hello'.",
        "heard 'bye', answer: You said 'bye'.",
    ],
    "test_my_bot.py": ["6 passed"],
    "token_refresh.py": [
        "[one: online, two: online, three: online]> with access-1",
        "the new tokens are kept in tokens.json",
        "[one: online, two: online, three: online]> after 1 refresh; kept for the next start: refresh-2",
    ],
    "register_and_connect.py": [
        "the token expired, here is another one",
        "llm-default-session is online",
        "both steps were timed: True True",
        "registrations: 1",
        "registrations after a reconnect: 2",
        "heard: relay.event a caption",
    ],
    "webinar_captions.py": [
        "main: captions in de, en, es, fr",
        "main: captions in German, too: True",
        "main: Welcome, everyone.",
        "practice: captions in de, en, es, fr",
        "practice: Only panelists hear this.",
        "demoted: <Session 'llm-practice-session' idle> - its token is kept: True",
        "left: <Meeting 'meeting-1' not joined> - tokens: None None",
        "lines that were not fetched: 0",
        "announced again: de, en, es, fr",
    ],
    "two_sessions.py": [
        "<Session 'llm-default-session' online>",
        "<Session 'llm-practice-session' online>",
        "main:     a caption of the main meeting",
        "practice: a caption of the practice session",
        "online:   ['llm-default-session']",
        "main:     and the main meeting goes on",
    ],
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WEBEX_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        capture_output=True,
        text=True,
        timeout=LONG,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line in EXPECTED[path.name]:
        assert line in done.stdout
