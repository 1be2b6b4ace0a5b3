"""What has to be closed, and is by the end of a `with`."""

from __future__ import annotations

import abc
from types import TracebackType
from typing import TypeVar

__all__ = ["Managed"]

M = TypeVar("M", bound="Managed")


class Managed(abc.ABC):
    """A context manager that is itself what `with` gives, and whose end is its `close`."""

    def __enter__(self: M) -> M:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """End it. May be called any number of times."""
