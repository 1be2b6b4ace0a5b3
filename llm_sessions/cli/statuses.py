"""How the command ends: its exit statuses, and what is wrong with how it was called."""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["MEANINGS", "Status", "UsageError"]


class Status(enum.IntEnum):
    """Exit statuses. From 128 on they are those of a shell: 128 and the number of a signal."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNWRITTEN = 3
    HUNG_UP = 129
    INTERRUPTED = 130
    CLOSED_PIPE = 141
    TERMINATED = 143


MEANINGS: Final = {
    Status.DONE: "ended as asked",
    Status.FAILED: "listen: a session ended for good or never came online; serve: a client broke the "
    "protocol;\n       demo: a caption was lost",
    Status.USAGE: "nothing was started: wrong arguments, no token, a port in use, a missing extra",
    Status.UNWRITTEN: "the output or the file of --save could not be written, such as to a full disk",
    Status.HUNG_UP: "ended by SIGHUP: the terminal is gone",
    Status.INTERRUPTED: "ended by Ctrl-C",
    Status.CLOSED_PIPE: "the reader of the output is gone, as in `| head -1`",
    Status.TERMINATED: "ended by SIGTERM",
}
"""What each status means, for `--help` and docs/cli.md."""


class UsageError(Exception):
    """The command cannot do what its arguments say. The text never quotes what may be a secret."""
