"""A thread knows whom it serves, and no other thread does."""

from __future__ import annotations

from llm_sessions.pool.served import serve, served_by_this_thread
from tests.support import Background


def test_a_thread_serves_one_session_at_a_time_and_alone() -> None:
    one, other = object(), object()
    assert served_by_this_thread() is None
    assert serve(one) is None
    assert serve(other) is one and served_by_this_thread() is other
    assert Background(served_by_this_thread).result() is None
    assert serve(None) is other and served_by_this_thread() is None
