"""What an error of TLS means, in words, and what the failure table makes of it. For WebSocket and REST.

OpenSSL names its errors after what went wrong inside of it. What people need to know is whether the
certificate is not trusted, theirs is missing or refused, or there is no TLS at all at the other end.
"""

from __future__ import annotations

import ssl
from typing import Final

from ..protocol.closing import Failure

__all__ = ["explain_tls"]

_NO_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}
)
_NO_VERSION: Final = frozenset(
    {
        *("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"),
        *("VERSION_TOO_LOW", "WRONG_SSL_VERSION"),
    }
)
_WANTED: Final = frozenset({"TLSV13_ALERT_CERTIFICATE_REQUIRED"})
_REFUSED: Final = frozenset(
    {
        *("TLSV1_ALERT_UNKNOWN_CA", "TLSV1_ALERT_ACCESS_DENIED", "SSLV3_ALERT_BAD_CERTIFICATE"),
        *("SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
        *("SSLV3_ALERT_CERTIFICATE_REVOKED", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"),
    }
)
_HANDSHAKE: Final = frozenset({"SSLV3_ALERT_HANDSHAKE_FAILURE"})


def explain_tls(error: BaseException | None, where: str) -> tuple[Failure, str] | None:
    """Return the row of the failure table and a text, None for what is no error that TLS has a name for.

    Args:
        error: What was raised. With TLS 1.3 a refused client certificate shows at the first read.
        where: Whom TLS was spoken with, for the text.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failure.UNTRUSTED, f"the certificate of {where} is not valid: {error.verify_message}"
    # One that Python itself made has no reason.
    reason = getattr(error, "reason", None) if isinstance(error, ssl.SSLError) else None
    if reason in _NO_TLS:
        return Failure.MISPLACED, f"{where} does not speak TLS: {reason}"
    if reason in _NO_VERSION:
        return Failure.MISPLACED, f"{where} speaks no version of TLS that is allowed here: {reason}"
    if reason in _WANTED:
        return Failure.UNTRUSTED, f"{where} wants a client certificate, and there is none: {reason}"
    if reason in _REFUSED:
        return Failure.UNTRUSTED, f"{where} refused the client certificate: {reason}"
    if reason in _HANDSHAKE:  # a TLS 1.2 server that misses a certificate says no more than this
        return (
            Failure.UNTRUSTED,
            f"{where} refused the TLS handshake; it may want a client certificate: {reason}",
        )
    return None
