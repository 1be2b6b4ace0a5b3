"""One context for WebSocket and REST: from which files, and what is said of those that are none."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from llm_sessions.connection.trust import make_context
from llm_sessions.errors import ConfigurationError
from llm_sessions.testing.certificates import ThrowAwayCA


@pytest.fixture
def files() -> Iterator[ThrowAwayCA]:
    with ThrowAwayCA() as authority:
        yield authority


def refused(**settings: Any) -> str:
    [name] = settings.keys() & {"ca_file", "client_cert"}
    with pytest.raises(ConfigurationError) as caught:
        make_context(**settings)
    assert caught.value.argument == name
    return str(caught.value)


def test_the_systems_authorities_are_trusted_by_default() -> None:
    context = make_context()
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname
    assert context.cert_store_stats() == ssl.create_default_context().cert_store_stats()


@pytest.mark.parametrize("kind", [str, Path])
def test_a_ca_file_is_trusted_and_no_other(kind: Any, files: ThrowAwayCA) -> None:
    context = make_context(kind(files.ca_file))
    assert context.cert_store_stats()["x509_ca"] == 1
    assert context.verify_mode is ssl.CERT_REQUIRED and context.check_hostname


def test_a_client_certificate_is_one_file_or_two(authority: trustme.CA, tmp_path: Path) -> None:
    made = authority.issue_cert("client.example")
    both, cert, key = tmp_path / "both.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    made.private_key_and_cert_chain_pem.write_to_path(str(both))
    made.cert_chain_pems[0].write_to_path(str(cert))
    made.private_key_pem.write_to_path(str(key))
    make_context(client_cert=str(both))
    make_context(client_cert=(cert, str(key)))
    assert "cert.pem' does not hold its chain and key" in refused(client_cert=cert)
    assert "its chain and key" in refused(client_cert=(str(key), str(cert)))
    other = tmp_path / "other.pem"
    authority.issue_cert("x.example").private_key_pem.write_to_path(str(other))
    assert "its chain and key" in refused(client_cert=(cert, other))


def test_files_that_are_missing_or_something_else(tmp_path: Path, files: ThrowAwayCA) -> None:
    gone, text = tmp_path / "gone.pem", tmp_path / "text.pem"
    text.write_text("hello")
    assert "gone.pem' cannot be read: No such file" in refused(ca_file=gone)
    assert "text.pem' does not hold certificate authorities" in refused(ca_file=text)
    assert "gone.pem' cannot be read: No such file" in refused(client_cert=gone)
    assert "gone.pem' cannot be read" in refused(client_cert=(files.client_file("x.example"), gone))
    assert "text.pem' does not hold its chain and key" in refused(client_cert=str(text))


@pytest.mark.parametrize("value", [5, b"x", "", ["a", "b"]])
def test_what_is_no_path_is_refused(value: Any) -> None:
    assert "PEM file" in refused(ca_file=value) and "PEM file" in refused(client_cert=value)


@pytest.mark.parametrize("value", [(), ("a",), ("a", "b", "c"), (None, "a"), ("a", None)])
def test_a_pair_is_two_files(value: Any) -> None:
    assert "a pair of files" in refused(client_cert=value)


def test_a_key_with_a_password_is_not_asked_for_on_the_terminal(
    authority: trustme.CA, tmp_path: Path
) -> None:
    made = authority.issue_cert("client.example")
    key = serialization.load_pem_private_key(made.private_key_pem.bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    file = tmp_path / "locked.pem"
    file.write_bytes(locked + made.cert_chain_pems[0].bytes())
    assert "its key has a password; load it into an ssl_context" in refused(client_cert=file)
