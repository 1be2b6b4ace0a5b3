"""The TLS engine alone: records in, plaintext out, whatever way they are cut."""

from __future__ import annotations

import contextlib
import ssl

import pytest

from llm_sessions.connection.tls import TLS


class Ends:
    """Our engine and a server's, with the test as the network between them."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext) -> None:
        self.ours = TLS(client, "localhost")
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.theirs = server.wrap_bio(self.incoming, self.outgoing, server_side=True)
        assert not self.ours.shake_hands()
        for _ in range(4):
            self.incoming.write(self.ours.ciphertext())
            with contextlib.suppress(ssl.SSLWantReadError):
                self.theirs.do_handshake()
            self.ours.feed(self.outgoing.read())
            with contextlib.suppress(ssl.SSLWantReadError):
                self.ours.shake_hands()
        assert self.ours.shake_hands()
        assert self.ours.decrypt(b"") == (b"", False)


@pytest.fixture
def ends(client_context: ssl.SSLContext, server_context: ssl.SSLContext) -> Ends:
    return Ends(client_context, server_context)


def test_records_are_put_together_byte_by_byte(ends: Ends) -> None:
    ends.theirs.write(b"one")
    ends.theirs.write(b"two")
    data = ends.outgoing.read()
    pieces = [ends.ours.decrypt(data[at : at + 1]) for at in range(len(data))]
    assert b"".join(piece for piece, _ in pieces) == b"onetwo"
    assert not any(over for _, over in pieces)


def test_a_flood_is_decrypted_without_growing_the_buffer(ends: Ends) -> None:
    text = bytes(300_000)
    view = memoryview(text)
    while view:
        view = view[ends.theirs.write(view) :]
    assert ends.ours.decrypt(ends.outgoing.read()) == (text, False)
    assert ends.ours._incoming.pending == 0


def test_large_frames_are_encrypted_whole(ends: Ends) -> None:
    ends.ours.encrypt(memoryview(bytes(100_000)))
    ends.incoming.write(ends.ours.ciphertext())
    received = bytearray()
    with contextlib.suppress(ssl.SSLWantReadError):
        while piece := ends.theirs.read(65536):
            received += piece
    assert received == bytes(100_000)
    assert ends.ours.ciphertext() == b""


@pytest.mark.parametrize("goodbye", [True, False], ids=["close_notify", "garbage"])
def test_what_comes_before_the_end_is_returned_with_it(goodbye: bool, ends: Ends) -> None:
    ends.theirs.write(b"last words")
    if goodbye:
        with contextlib.suppress(ssl.SSLWantReadError):
            ends.theirs.unwrap()
    data = ends.outgoing.read() + (b"" if goodbye else b"\x17\x03\x03\x00\x20" + bytes(32))
    assert ends.ours.decrypt(data) == (b"last words", True)
    assert (ends.ours.failure is None) is goodbye
    if not goodbye:
        assert ends.ours.ciphertext(), "the peer is owed an alert"


def test_the_zero_return_error_is_an_end_too(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions of Python raise where newer ones return nothing."""

    class Raises:
        def read(self, size: int) -> bytes:
            raise ssl.SSLZeroReturnError

    monkeypatch.setattr(ends.ours, "_object", Raises())
    assert ends.ours.decrypt(b"") == (b"", True)
    assert ends.ours.failure is None
