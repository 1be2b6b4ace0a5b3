"""The seam: what a request shows of itself, and what its errors carry."""

from __future__ import annotations

import ssl

import pytest

from llm_sessions.connection.connection import Connection
from llm_sessions.connection.transport import AttemptFailed, Link, LinkBroken, OpenRequest
from llm_sessions.protocol.closing import Failure
from llm_sessions.protocol.url import Address
from tests.peers import Links, Owner
from tests.support import FakeTransport


def test_t11_a_request_does_not_show_its_secrets() -> None:
    request = OpenRequest(
        "wss://host/x", Address("host", 443, True), "Bearer secret", headers={"X-Token": "hidden"}
    )
    assert "secret" not in repr(request)
    assert "hidden" not in repr(request)
    assert "host" in repr(request)


def test_a_failure_carries_what_the_pool_asks_for() -> None:
    error = AttemptFailed(Failure.BUSY, "host:443 answered HTTP 503", status=503, retry_after="7")
    assert str(error) == error.message == "host:443 answered HTTP 503"
    assert (error.failure, error.status, error.retry_after) == (Failure.BUSY, 503, "7")
    assert (error.code, error.reason) == (None, "")


@pytest.mark.parametrize("started", [True, False])
def test_a_broken_link_says_whether_it_was_alive(started: bool) -> None:
    assert LinkBroken("gone", started=started).started is started


def test_the_real_link_and_the_tests_fake_have_what_the_seam_asks_for(
    client_context: ssl.SSLContext,
) -> None:
    owner = Owner()
    real = Links(client_context).make(1, owner, tls=False)
    fake = FakeTransport()(real._request, owner, "fake#1")
    wanted = {name for name in vars(Link) if not name.startswith("_")}
    assert {"open", "send", "close", "abort", "retire", "resume", "ready", "time_offset"} <= wanted
    for link in (real, fake):
        assert all(hasattr(link, name) for name in wanted), type(link)
    assert isinstance(real, Connection)
    assert (real.ready, real.time_offset) == (False, None)
