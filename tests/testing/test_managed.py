"""A `with` gives the thing itself and closes it, whatever happens in it."""

from __future__ import annotations

import pytest

from llm_sessions.testing._managed import Managed
from llm_sessions.testing.certificates import ThrowAwayCA
from llm_sessions.testing.proxy import FaultProxy
from llm_sessions.testing.server import LocalServer


class Door(Managed):
    closes = 0

    def close(self) -> None:
        self.closes += 1


def test_the_end_closes() -> None:
    door = Door()
    with door as entered:
        assert entered is door and door.closes == 0
    assert door.closes == 1


def test_an_error_closes_and_goes_on() -> None:
    door = Door()
    with pytest.raises(KeyError), door:
        raise KeyError
    assert door.closes == 1


def test_what_has_no_close_is_refused() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Managed()  # type: ignore[abstract]


@pytest.mark.parametrize("kind", [FaultProxy, LocalServer, ThrowAwayCA])
def test_who_is(kind: type[object]) -> None:
    assert issubclass(kind, Managed)
