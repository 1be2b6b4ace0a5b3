"""The errors of a stream pass through websocket-client, which takes every OSError for its own."""

from __future__ import annotations

import pytest

from llm_sessions.connection import stream_errors
from llm_sessions.connection.stream_errors import StreamError


@pytest.mark.parametrize("name", stream_errors.__all__)
def test_none_is_an_oserror(name: str) -> None:
    error = getattr(stream_errors, name)
    assert issubclass(error, StreamError)
    assert not issubclass(error, OSError)
