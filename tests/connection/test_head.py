"""The head of an HTTP answer: where it ends, and what is none."""

from __future__ import annotations

from typing import Any

import pytest

from llm_sessions._logging import know_secret
from llm_sessions._sync import Deadline
from llm_sessions.connection import head as head_module
from llm_sessions.connection.head import NotHTTP, read_head
from tests.support import LONG

HEAD = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"


class Pieces:
    """A stream that has these to read."""

    def __init__(self, *pieces: bytes) -> None:
        self.left = list(pieces)

    def read_within(self, deadline: Deadline) -> bytes:
        return self.left.pop(0)


def read(*pieces: bytes) -> tuple[bytes, bytes]:
    stream: Any = Pieces(*pieces)
    return read_head(stream, Deadline(LONG))


@pytest.mark.parametrize("step", [1, 3, len(HEAD)])
def test_a_head_ends_with_its_empty_line_wherever_it_is_cut(step: int) -> None:
    pieces = [HEAD[at : at + step] for at in range(0, len(HEAD), step)]
    assert read(*pieces) == (HEAD, b"")


def test_what_comes_behind_it_is_kept() -> None:
    assert read(HEAD[:9], HEAD[9:] + b"rest") == (HEAD, b"rest")


@pytest.mark.parametrize(
    "pieces", [(b"SSH-2.0-x\r\n",), (b"H", b"ELLO"), (b"\x15\x03\x01\x00\x02",)], ids=repr
)
def test_what_is_no_http_is_told_as_soon_as_it_shows(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(NotHTTP, match="it sent"):
        read(*pieces)


def test_t11_a_cut_leaves_nothing_of_a_secret() -> None:
    know_secret("s3cret-of-more-than-16-bytes")
    with pytest.raises(NotHTTP) as caught:
        read(b"s3cret-of-more-than-16-bytes?\xff\r\n")
    assert str(caught.value) == r"it sent b'***?\xff\r\n'"


def test_a_head_has_64_kib_at_most() -> None:
    line = b"HTTP/1.1 200 OK\r\nA: "
    most = head_module._MAX_HEAD - len(line)
    assert read(line + b"x" * most + b"\r\n\r\n")[1] == b""
    with pytest.raises(NotHTTP, match="longer than 65536 bytes"):
        read(line + b"x" * (most + 1) + b"\r\n\r\n")
