"""Ctrl-C and its relatives, for a command that says goodbye before it ends."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final

__all__ = ["Signal", "Signals"]

_HANDLED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Signal:
    """A signal came.

    Attributes:
        number: Which.
    """

    number: int


class Signals:
    """Has the first signal told, and lets the second one end the process at once.

    The second one is the system's own doing, without any of our code: it works whatever the main thread is
    stuck in, such as a pipe that nobody reads. A signal that is ignored stays so: `nohup`, and shells that
    start something in the background, mean it. In another thread than the main one, none can be told. The
    handlers from before are back at the end of the block.

    Args:
        tell: Called in the signal handler, so it must be reentrant and must not wait.
    """

    def __init__(self, tell: Callable[[Signal], object]) -> None:
        self._tell = tell
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in _HANDLED:
            # None: a handler that was not installed from Python.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        for one in self._before:
            signal.signal(one, signal.SIG_DFL)
        self._tell(Signal(number))
