"""How a forked child knows that the pools it inherited are not its own.

The child has none of the parent's threads, and its sockets are the parent's. The hook takes no lock: any
lock may have been held by a thread that the child does not have.
"""

from __future__ import annotations

import os

__all__ = ["generation"]

_generation = 0


def generation() -> int:
    """Return a number that differs between this process and those it was forked from."""
    return _generation


def _after_in_child() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
