"""A thread knows whom it serves and what it reads, and no other thread does."""

from __future__ import annotations

from typing import Any

from llm_sessions.pool.served import read_by_this_thread, reads, serve, served_by_this_thread
from tests.support import Background


def test_a_thread_serves_one_session_at_a_time_and_alone() -> None:
    one, other = object(), object()
    assert served_by_this_thread() is None
    assert serve(one) is None
    assert serve(other) is one and served_by_this_thread() is other
    assert Background(served_by_this_thread).result() is None
    assert serve(None) is other and served_by_this_thread() is None


def test_a_thread_reads_one_socket_and_alone() -> None:
    link: Any = object()
    assert read_by_this_thread() is None
    reads(link)
    assert read_by_this_thread() is link
    assert Background(read_by_this_thread).result() is None
    reads(None)
    assert read_by_this_thread() is None
