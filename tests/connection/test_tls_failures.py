"""What OpenSSL says, in words: every text is one that a real handshake leads to."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable

import pytest
import trustme

from llm_sessions.connection.tls import TLS
from llm_sessions.connection.tls_failures import explain_tls
from llm_sessions.protocol.closing import Failure
from llm_sessions.testing.certificates import ThrowAwayCA

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
Versions = ssl.TLSVersion


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> BaseException | None:
    """Return what a client's handshake and first read raise, with the test as the network."""
    ours = TLS(client, "localhost")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(incoming, outgoing, server_side=True)
    done = False
    for _ in range(6):
        try:
            done = done or ours.shake_hands()
        except ssl.SSLError as exc:
            return exc
        incoming.write(ours.ciphertext())
        with contextlib.suppress(ssl.SSLError):  # its alert is on its way
            theirs.do_handshake()
        data = outgoing.read()
        if done:
            ours.decrypt(data)
        else:
            ours.feed(data)
    return ours.failure


def only(context: ssl.SSLContext, version: Versions) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = version
    return context


def other_authority(ca: ThrowAwayCA) -> Contexts:
    client = ca.client_context()
    trustme.CA().issue_cert("me.example").configure_cert(client)
    return client, ca.server_context(client_certificates=True)


CASES: dict[str, tuple[Callable[[ThrowAwayCA], Contexts], Failure, str]] = {
    "not trusted": (
        lambda ca: (ssl.create_default_context(), ca.server_context()),
        Failure.UNTRUSTED,
        "the certificate of h:1 is not valid: unable to get local issuer certificate",
    ),
    "expired": (
        lambda ca: (ca.client_context(), ca.expired_context()),
        Failure.UNTRUSTED,
        "the certificate of h:1 is not valid: certificate has expired",
    ),
    "another host": (
        lambda ca: (ca.client_context(), ca.wrong_host_context()),
        Failure.UNTRUSTED,
        "the certificate of h:1 is not valid: Hostname mismatch",
    ),
    "no client certificate": (
        lambda ca: (ca.client_context(), ca.server_context(client_certificates=True)),
        Failure.UNTRUSTED,
        "h:1 wants a client certificate, and there is none: ",
    ),
    "no client certificate, TLS 1.2": (
        lambda ca: (only(ca.client_context(), Versions.TLSv1_2), ca.server_context(client_certificates=True)),
        Failure.UNTRUSTED,
        "h:1 refused the TLS handshake; it may want a client certificate: ",
    ),
    "client certificate of another authority": (
        other_authority,
        Failure.UNTRUSTED,
        "h:1 refused the client certificate: TLSV1_ALERT_UNKNOWN_CA",
    ),
    "no version in common": (
        lambda ca: (
            only(ca.client_context(), Versions.TLSv1_3),
            only(ca.server_context(), Versions.TLSv1_2),
        ),
        Failure.MISPLACED,
        "h:1 speaks no version of TLS that is allowed here: ",
    ),
}


@pytest.mark.parametrize(("make", "failure", "text"), CASES.values(), ids=CASES)
def test_each_failure_is_named(make: Callable[[ThrowAwayCA], Contexts], failure: Failure, text: str) -> None:
    with ThrowAwayCA() as ca:
        error = shake_hands(*make(ca))
    explained = explain_tls(error, "h:1")
    assert explained is not None and explained[0] is failure, error
    assert explained[1].startswith(text), explained


def test_a_client_certificate_is_let_in() -> None:
    with ThrowAwayCA() as ca:
        for version in (Versions.TLSv1_2, Versions.TLSv1_3):
            client = only(ca.client_context("me.example"), version)
            assert shake_hands(client, ca.server_context(client_certificates=True)) is None


def test_a_server_without_tls_is_named(client_context: ssl.SSLContext) -> None:
    ours = TLS(client_context, "localhost")
    ours.shake_hands()
    ours.feed(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ssl.SSLError) as caught:
        ours.shake_hands()
    explained = explain_tls(caught.value, "h:1")
    assert explained is not None and explained[0] is Failure.MISPLACED
    assert explained[1].startswith("h:1 does not speak TLS: ")


@pytest.mark.parametrize(
    "error", [None, OSError(1, "x"), ssl.SSLError("x"), ssl.SSLEOFError(8, "EOF")], ids=repr
)
def test_what_has_no_name_is_left_to_others(error: BaseException | None) -> None:
    assert explain_tls(error, "h:1") is None
