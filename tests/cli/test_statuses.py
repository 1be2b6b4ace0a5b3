"""Every exit status has a meaning, and those of signals are a shell's."""

from __future__ import annotations

import signal

from llm_sessions.cli.statuses import MEANINGS, Status


def test_every_status_is_explained() -> None:
    assert list(MEANINGS) == list(Status)
    assert all(MEANINGS.values())


def test_from_128_on_they_are_those_of_a_shell() -> None:
    signals = {status: status.value - 128 for status in Status if status.value >= 128}
    assert signals == {
        Status.HUNG_UP: signal.SIGHUP,
        Status.INTERRUPTED: signal.SIGINT,
        Status.CLOSED_PIPE: signal.SIGPIPE,
        Status.TERMINATED: signal.SIGTERM,
    }
