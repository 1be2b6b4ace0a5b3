"""The TLS engine of a stream: ciphertext in, plaintext out, and back, without a socket."""

from __future__ import annotations

import ssl
from typing import Final

__all__ = ["TLS"]

_BIO_STEP: Final = 16 * 1024  # a memory BIO never shrinks
_READ_SIZE: Final = 64 * 1024


class TLS:
    """The client's side of one TLS connection. Guarded by its stream's lock.

    Args:
        context: Whom it trusts.
        host: Whose certificate is wanted.
        within: The connection with a proxy that this one goes through, its handshake done; None if it goes
            over TCP itself.

    Attributes:
        failure: Why nothing more can be decrypted; None while all is well or after an orderly end.

    Raises:
        ssl.SSLError, ValueError: If no certificate could be checked against such a host.
    """

    def __init__(self, context: ssl.SSLContext, host: str, within: TLS | None = None) -> None:
        self._within = within
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self.failure: ssl.SSLError | None = None

    def shake_hands(self) -> bool:
        """Go on with the handshake; say whether it is complete."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def feed(self, data: bytes) -> None:
        """Take ciphertext during the handshake."""
        if self._within is not None:
            data, over = self._within.decrypt(data)
            self._incoming.write(data)
            if over:
                self._incoming.write_eof()  # the handshake will not be waited for
            return
        self._incoming.write(data)

    def decrypt(self, data: bytes) -> tuple[bytes, bool]:
        """Return the plaintext that `data` completes, and whether nothing can follow it.

        Does not raise: what came before a failure counts, it may hold the reason for it.
        """
        if self._within is None:
            return self._decrypt(data)
        inner, ended = self._within.decrypt(data)
        plain, over = self._decrypt(inner)
        if ended and not over:
            self.failure = self._within.failure
        return plain, over or ended

    def _decrypt(self, data: bytes) -> tuple[bytes, bool]:
        pieces: list[bytes] = []
        view = memoryview(data)
        start = 0
        while True:
            self._incoming.write(view[start : start + _BIO_STEP])
            start += _BIO_STEP
            try:
                while piece := self._object.read(_READ_SIZE):
                    pieces.append(piece)
                return b"".join(pieces), True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                return b"".join(pieces), True
            except ssl.SSLError as exc:
                self.failure = exc
                return b"".join(pieces), True
            if start >= len(data):
                return b"".join(pieces), False

    def encrypt(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._object.write(view) :]

    def ciphertext(self) -> bytes:
        """Return what is to be sent: records, handshake messages, alerts."""
        data = self._outgoing.read() if self._outgoing.pending else b""
        if self._within is None:
            return data
        self._within.encrypt(data)
        return self._within.ciphertext()
