"""What the tests of REST share: a service on a raw socket, and both kinds of sessions of requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from tests.datachannel.service import TokenService


@pytest.fixture
def service() -> Iterator[TokenService]:
    """Answers what a test says, also where it is not asked for tokens."""
    with TokenService() as service:
        yield service


@pytest.fixture(params=["own session", "given session"])
def http(request: pytest.FixtureRequest) -> Iterator[requests.Session | None]:
    """Run the test with the exchange's own session, and with one that it is given."""
    if request.param == "own session":
        yield None
    else:
        with requests.Session() as session:
            yield session
