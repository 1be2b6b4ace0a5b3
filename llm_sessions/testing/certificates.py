"""A certificate authority that lives as long as a test."""

from __future__ import annotations

import datetime
import ssl
import tempfile
import threading
from pathlib import Path

import trustme

from llm_sessions.testing._managed import Managed

__all__ = ["ThrowAwayCA"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
WRONG_HOST = "wrong-host.invalid"
LONG_AGO = datetime.datetime(2001, 1, 1)  # naive, in UTC, as trustme has it


class ThrowAwayCA(Managed):
    """Certificates for servers and clients of tests, good and bad ones, by an authority nobody else trusts.

    Keys and certificates are in memory. Only `ca_file` and `client_file` write files, into a temporary folder
    that `close` removes; use it in a `with`. Every method may be called from any thread and makes something
    new at each call.
    """

    def __init__(self) -> None:
        self._authority = trustme.CA()
        # Guards the folder: made when the first file is asked for.
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0
        self._closed = False

    def close(self) -> None:
        """Remove the files. Contexts made before go on working. May be called any number of times."""
        with self._lock:
            self._closed = True
            folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    # --- for servers

    def server_context(self, *hosts: str, client_certificates: bool = False) -> ssl.SSLContext:
        """A server's context.

        Args:
            *hosts: Names and addresses it has a certificate for; none means the loopback's.
            client_certificates: Let only clients in that have a certificate of this authority.
        """
        context = self._serve(self._authority.issue_cert(*(hosts or LOOPBACK)))
        if client_certificates:
            self._authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def wrong_host_context(self) -> ssl.SSLContext:
        """A server's context whose certificate is good, but for another host."""
        return self._serve(self._authority.issue_cert(WRONG_HOST))

    def expired_context(self, *hosts: str) -> ssl.SSLContext:
        """A server's context whose certificate has expired."""
        return self._serve(self._authority.issue_cert(*(hosts or LOOPBACK), not_after=LONG_AGO))

    # --- for clients

    def client_context(self, identity: str | None = None) -> ssl.SSLContext:
        """A client's context that trusts this authority and no other.

        Args:
            identity: Name in the client's own certificate; `None` for a client that has none.
        """
        context = ssl.create_default_context(cadata=self._authority.cert_pem.bytes().decode())
        if identity is not None:
            self._authority.issue_cert(identity).configure_cert(context)
        return context

    @property
    def ca_file(self) -> str:
        """Path of a PEM file with the authority's certificate, for options that want a file.

        Raises:
            ValueError: The authority is closed.
        """
        return self._write("ca.pem", self._authority.cert_pem.bytes())

    def client_file(self, identity: str) -> str:
        """Path of a PEM file with a client's key and certificate, for options that want a file.

        Raises:
            ValueError: The authority is closed.
        """
        return self._write("", self._authority.issue_cert(identity).private_key_and_cert_chain_pem.bytes())

    # --- inside

    def _serve(self, certificate: trustme.LeafCert) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        return context

    def _write(self, name: str, data: bytes) -> str:
        with self._lock:
            if self._closed:
                raise ValueError("the authority is closed and its files are gone")
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="llm-sessions-ca-")
            self._files += not name
            path = Path(self._folder.name, name or f"client-{self._files}.pem")
            if not path.exists():
                path.write_bytes(data)
        return str(path)
