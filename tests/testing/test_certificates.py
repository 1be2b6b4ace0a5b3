"""ThrowAwayCA: who accepts whom."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from llm_sessions.testing.certificates import ThrowAwayCA
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, run_together


@pytest.fixture
def authority() -> Iterator[ThrowAwayCA]:
    with ThrowAwayCA() as authority:
        yield authority


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "localhost") -> dict[str, Any]:
    """Do a TLS handshake in memory and return the client's certificate, as the server sees it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return dict(ends[1].getpeercert() or {})


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_a_client_trusts_a_server_of_the_loopback(authority: ThrowAwayCA, host: str) -> None:
    assert shake_hands(authority.server_context(), authority.client_context(), host) == {}


def test_a_server_has_the_hosts_it_was_given(authority: ThrowAwayCA) -> None:
    server = authority.server_context("a.example", "*.b.example")
    for host in ("a.example", "x.b.example"):
        shake_hands(server, authority.client_context(), host)
    with pytest.raises(ssl.SSLCertVerificationError, match="localhost"):
        shake_hands(server, authority.client_context())


def test_bad_certificates_are_refused_for_what_they_are(authority: ThrowAwayCA) -> None:
    for context, code in [
        (authority.wrong_host_context(), 62),  # X509_V_ERR_HOSTNAME_MISMATCH
        (authority.expired_context(), 10),  # X509_V_ERR_CERT_HAS_EXPIRED
        (authority.expired_context("a.example", "localhost"), 10),
    ]:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            shake_hands(context, authority.client_context())
        assert caught.value.verify_code == code


def test_nobody_else_trusts_it_and_it_trusts_nobody_else(authority: ThrowAwayCA) -> None:
    with ThrowAwayCA() as other:
        for client in (other.client_context(), ssl.create_default_context()):
            with pytest.raises(ssl.SSLCertVerificationError):
                shake_hands(authority.server_context(), client)
    assert len(authority.client_context().get_ca_certs()) == 1


def test_client_certificates(authority: ThrowAwayCA) -> None:
    server = authority.server_context(client_certificates=True)
    seen = shake_hands(server, authority.client_context("client.example"))
    assert seen["subjectAltName"] == (("DNS", "client.example"),)
    with pytest.raises(ssl.SSLError, match=r"(?i)peer.did.not.return.a.certificate"):
        shake_hands(server, authority.client_context())
    with ThrowAwayCA() as other:
        stranger = authority.client_context()
        stranger.load_cert_chain(other.client_file("client.example"))
        with pytest.raises(ssl.SSLError):
            shake_hands(server, stranger)


def test_files_are_for_options_that_want_files(authority: ThrowAwayCA) -> None:
    context = authority.server_context(client_certificates=True)
    with LocalServer(ssl_context=context) as server, requests.Session() as session:
        session.trust_env = False
        answer = session.get(
            f"{server.base_url}/wdm/api/v1/devices",
            headers={"Authorization": "Bearer good"},
            verify=authority.ca_file,
            cert=authority.client_file("client.example"),
            timeout=LONG,
        )
        assert answer.json() == {"devices": []}


def test_files_go_with_the_authority() -> None:
    with ThrowAwayCA() as authority:
        files = [authority.ca_file, authority.client_file("a"), authority.client_file("a")]
        assert len(set(files)) == 3 and authority.ca_file == files[0]
        assert all(Path(file).stat().st_size for file in files)
        context = authority.server_context()
    assert not any(Path(file).exists() or Path(file).parent.exists() for file in files)
    authority.close()
    with pytest.raises(ValueError):
        authority.ca_file  # noqa: B018
    shake_hands(context, authority.client_context())


def test_no_file_is_written_that_nobody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        pytest.fail("a folder was made")

    monkeypatch.setattr("llm_sessions.testing.certificates.tempfile.TemporaryDirectory", refuse)
    with LocalServer(tls=True) as server:
        server.client_context  # noqa: B018


def test_threads_share_one_folder(authority: ThrowAwayCA) -> None:
    files = run_together(8, lambda: authority.client_file("a"))
    assert len(set(files)) == 8 and len({Path(file).parent for file in files}) == 1


def test_a_server_closes_a_client_with_a_bad_certificate(authority: ThrowAwayCA) -> None:
    with (
        LocalServer(ssl_context=authority.expired_context()) as server,
        socket.create_connection((server.host, server.port), timeout=LONG) as sock,
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            authority.client_context().wrap_socket(sock, server_hostname="localhost")
        server.wait_for(lambda: server.connections()[0].closed_at is not None, LONG)
        assert isinstance(server.connections()[0].error, (ssl.SSLError, OSError))
