"""Who is trusted, and who we are: the one place that makes a TLS context, for WebSocket and REST alike."""

from __future__ import annotations

import os
import ssl
from typing import TypeAlias

from ..errors import ConfigurationError

__all__ = ["ClientCert", "File", "make_context"]

File: TypeAlias = "str | os.PathLike[str]"
ClientCert: TypeAlias = "File | tuple[File, File]"


class _Locked(Exception):
    """The key has a password."""


def make_context(ca_file: File | None = None, client_cert: ClientCert | None = None) -> ssl.SSLContext:
    """Return a client's context that checks certificates and host names.

    Args:
        ca_file: PEM file of the authorities that are trusted, and no others are; None for the system's.
        client_cert: PEM file with our certificate chain and key, or one file of each; None for none.

    Raises:
        ConfigurationError: If a file is missing, cannot be read, or holds something else.
    """
    try:
        context = ssl.create_default_context(cafile=_path(ca_file, "ca_file"))
    except OSError as exc:  # ssl.SSLError is one
        raise ConfigurationError("ca_file", _what(exc, ca_file, "certificate authorities")) from exc
    if client_cert is None:
        return context
    pair = client_cert if isinstance(client_cert, tuple) else (client_cert, None)
    if len(pair) != 2:
        raise ConfigurationError("client_cert", "must be a file, or a pair of files: certificate and key")
    cert, key = _path(pair[0], "client_cert"), _path(pair[1], "client_cert")
    if cert is None or (key is None and isinstance(client_cert, tuple)):
        raise ConfigurationError("client_cert", "must be a file, or a pair of files: certificate and key")
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except _Locked:
        raise ConfigurationError(
            "client_cert", "its key has a password; load it into an ssl_context, which can be given one"
        ) from None
    except OSError as exc:
        # Which of two files is missing, OpenSSL does not say.
        missing = [one for one in (cert, key) if one is not None and not os.path.exists(one)]
        raise ConfigurationError(
            "client_cert", _what(exc, (missing or [cert])[0], "its chain and key")
        ) from exc
    return context


def _path(file: object, argument: str) -> str | None:
    if file is None:
        return None
    if (
        not isinstance(file, (str, os.PathLike))
        or not isinstance(os.fspath(file), str)
        or not os.fspath(file)
    ):
        raise ConfigurationError(argument, f"must be the path of a PEM file, not {type(file).__name__}")
    return str(os.fspath(file))


def _no_password() -> str:
    """Called by OpenSSL for a key that needs one; without it, it would ask on the terminal."""
    raise _Locked


def _what(exc: OSError, file: object, meant: str) -> str:
    if isinstance(exc, ssl.SSLError):
        return f"{os.fspath(file)!r} does not hold {meant} in PEM: {exc.reason}"  # type: ignore[call-overload]
    return f"{os.fspath(file)!r} cannot be read: {exc.strerror}"  # type: ignore[call-overload]
