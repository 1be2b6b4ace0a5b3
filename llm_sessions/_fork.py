"""What keeps pools in the process that made them: a forked child knows, and nothing is pickled.

The child has none of the parent's threads, and its sockets are the parent's. The hook takes no lock: any
lock may have been held by a thread that the child does not have.
"""

from __future__ import annotations

import os
from typing import NoReturn

__all__ = ["OneProcess", "generation"]

_generation = 0


def generation() -> int:
    """Return a number that differs between this process and those it was forked from."""
    return _generation


class OneProcess:
    """What belongs to one process, with its threads and sockets: it cannot be pickled, nor copied."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        # TypeError is what pickle raises itself, and so what its users expect of what they cannot pickle.
        raise TypeError(
            f"{type(self).__name__} objects cannot be pickled or copied: threads and sockets belong to their "
            "process; make another one there"
        )


def _after_in_child() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
