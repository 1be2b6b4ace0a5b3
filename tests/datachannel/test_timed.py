"""A session of requests whose receives share one deadline."""

from __future__ import annotations

import pytest
import requests

from llm_sessions._sync import Deadline
from llm_sessions.datachannel import timed
from llm_sessions.datachannel.timed import timed_session
from tests.datachannel.service import TokenService, drip
from tests.support import LONG, SHORT


@pytest.mark.parametrize(
    "start",
    [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"HT"],
    ids=["header", "body", "status"],
)
def test_every_receive_has_what_is_left_of_the_time(service: TokenService, start: bytes) -> None:
    service.answers.append(drip(start))
    with timed_session(Deadline(SHORT)) as session, pytest.raises(requests.RequestException):
        session.post(service.url, data={"a": "b"}, timeout=LONG)
    assert service.forms == [{"a": "b"}]


def test_after_the_deadline_nothing_is_sent(service: TokenService) -> None:
    past = Deadline(1.0, now=iter([0.0, 2.0, 2.0, 2.0]).__next__)
    with timed_session(past) as session, pytest.raises(requests.ConnectionError):
        session.post(service.url, data={"a": "b"}, timeout=LONG)
    assert service.heads == []


def test_the_sessions_own_adapters_are_not_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[object] = []
    close = timed.HTTPAdapter.close
    monkeypatch.setattr(timed.HTTPAdapter, "close", lambda self: (closed.append(self), close(self))[1])
    with timed_session(Deadline(LONG)) as session:
        assert len(closed) == 2
        assert not set(closed) & set(session.adapters.values())
    assert len(closed) == 4
