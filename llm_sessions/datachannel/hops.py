"""The hops of a REST call: which there are, which one failed, and why.

The words are those of `connection/opening.py`, for what requests raises.
"""

from __future__ import annotations

import http.client
import re
import ssl
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import requests

from ..connection.proxies import ProxyAddress, choose
from ..connection.socks import check_installed
from ..connection.tls_failures import explain_tls
from ..connection.tunnel import refusal
from ..protocol.closing import Failure
from ..protocol.url import Address

__all__ = ["chain_of", "explain", "mark_tunnel", "way_to"]

_TUNNEL: Final = re.compile(r"Tunnel connection failed: (\d{3}) ?(.*)")
_SOCKS_REPLY: Final = re.compile(r"0x0([13456]): ")  # the proxy's network failed it; others are a refusal


def way_to(url: str, setting: str | None) -> tuple[ProxyAddress | None, str]:
    """Return the proxy to go through, and the host and port for messages.

    Args:
        url: Of the request.
        setting: What `proxies.choose` takes.

    Raises:
        ConfigurationError: If the proxy that is set cannot be used.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    via = choose(setting, parts.scheme, host, port)
    if via is not None and via.socks:
        check_installed("socks")
    return via, str(Address(host, port, parts.scheme == "https"))


def mark_tunnel(exc: BaseException) -> None:
    """Say of an exception that it comes from the way through an HTTP proxy: from CONNECT or its answer."""
    exc.__dict__["of_the_tunnel"] = True


def chain_of(exc: BaseException) -> list[BaseException]:
    """Return an exception and what it came from."""
    chain: list[BaseException] = []
    step: BaseException | None = exc
    while step is not None and step not in chain:
        chain.append(step)
        held = step.args[0] if step.args and isinstance(step.args[0], BaseException) else None
        step = step.__cause__ or step.__context__ or held  # urllib3 wraps some that it has not raised from
    return chain


def explain(
    chain: Sequence[BaseException], proxy: ProxyAddress | None, where: str
) -> tuple[Failure, str] | None:
    """Return the row of the failure table and a text; None for what has no better text than its own.

    Args:
        chain: What was raised, each with its cause behind it.
        proxy: What it went through.
        where: Host and port of the service.
    """
    at_proxy = proxy is not None and any(isinstance(one, requests.exceptions.ProxyError) for one in chain)
    hop = f"the proxy {proxy}" if at_proxy else where
    if proxy is not None and not at_proxy:
        hop += f" (through the proxy {proxy})"
    for one in chain:
        tls = explain_tls(one, hop) if isinstance(one, ssl.SSLError) else None
        if tls is not None:
            return tls
    if proxy is None:
        return None
    for one in reversed(chain):
        if type(one).__module__ == "socks":
            return _socks(one, proxy, where)
        if "of_the_tunnel" in vars(one):
            return _tunnel(one, proxy, where)
    if not at_proxy:
        return None
    system = [one.strerror for one in chain if isinstance(one, OSError) and one.strerror]
    why = system[-1] if system else f"{type(chain[-1]).__name__}: {chain[-1]}"
    return Failure.NETWORK, f"the proxy {proxy} cannot be reached: {why}"


def _tunnel(error: BaseException, proxy: ProxyAddress, where: str) -> tuple[Failure, str]:
    """The same for what http.client raises of CONNECT."""
    found = _TUNNEL.match(str(error))
    if found is not None:
        refused = refusal(proxy, where, int(found[1]), found[2])
        return refused.failure, refused.message
    if isinstance(error, TimeoutError):
        return Failure.NETWORK, f"the proxy {proxy} did not answer"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        what = f"does not speak HTTP, so it is no HTTP proxy: {type(error).__name__}"
        return Failure.MISPLACED, f"the proxy {proxy} {what}"
    why = "it closed the connection"
    if isinstance(error, OSError) and error.strerror:
        why = error.strerror
    return Failure.NETWORK, f"the proxy {proxy} broke off before it had reached {where}: {why}"


def _socks(error: BaseException, proxy: ProxyAddress, where: str) -> tuple[Failure, str]:
    """The same for PySocks, which is not imported for it: it may not be there."""
    text, kind = str(getattr(error, "msg", error)), type(error).__name__
    if kind == "SOCKS5AuthError":
        return Failure.MISPLACED, f"the proxy {proxy} refused the user or the password: {text}"
    if kind == "SOCKS5Error" and not _SOCKS_REPLY.match(text):
        return Failure.MISPLACED, f"the proxy {proxy} refused: {text}"
    if kind == "SOCKS5Error":
        return Failure.NETWORK, f"the proxy {proxy} cannot reach {where}: {text}"
    if "invalid data" in text:
        return Failure.MISPLACED, f"the proxy {proxy} does not speak SOCKS5: {text}"
    return Failure.NETWORK, f"the proxy {proxy} cannot be reached: {text}"
