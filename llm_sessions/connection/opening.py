"""From a request to an upgraded stream: hop by hop, each with its own words for what fails.

======================  ==================================  ==========================================
hop                     what is done                        what ends the wait
======================  ==================================  ==========================================
the first host          its name is looked up               the resolver; it cannot be interrupted
the first host          TCP, each address in turn           the deadline, `abort`
a proxy                 TLS to it (https), CONNECT, SOCKS5  the deadline, `abort`
the server              TLS, the WebSocket upgrade          the deadline, `abort`
======================  ==================================  ==========================================

The first host is the proxy if there is one, else the server. One deadline covers all but the lookup.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from .._sync import Deadline
from ..protocol.closing import Failure
from .proxies import ProxyAddress
from .stream import AddressInfo, Stream
from .stream_errors import StreamAborted, StreamClosed, StreamError, StreamTimeout
from .tls_failures import explain_tls
from .transport import AttemptFailed, OpenRequest
from .tunnel import open_tunnel
from .upgrade import upgrade

__all__ = ["open_stream"]

Resolver = Callable[[str, int], list[AddressInfo]]


def open_stream(
    stream: Stream, request: OpenRequest, resolver: Resolver, clock: Callable[[], float]
) -> tuple[bytes, Deadline]:
    """Open a stream and make a WebSocket of it.

    Args:
        stream: New.
        request: What to open.
        resolver: Returns a host's addresses; blocks.
        clock: Monotonic seconds.

    Returns:
        The first frames, as far as they came with the answer, and the deadline of the attempt.

    Raises:
        AttemptFailed: It says which hop failed, and why. `Stream.release` must follow.
    """
    address, proxy = request.address, request.proxy
    tls = request.ssl_context if address.tls else None
    if proxy is None:
        found = _resolved(resolver, address.host, address.port, str(address))
        deadline = Deadline(request.open_timeout, clock)
        with _at_server(request):
            stream.open(found, deadline, tls=tls, host=address.host)
    else:
        found = _resolved(resolver, proxy.host, proxy.port, f"the proxy {proxy}")
        host = address.host
        if proxy.scheme == "socks5":
            host = str(_resolved(resolver, host, address.port, str(address))[0][4][0])
        deadline = Deadline(request.open_timeout, clock)
        with _at_proxy(request, proxy, "cannot be reached"):
            stream.open(found, deadline, tls=request.ssl_context if proxy.tls else None, host=proxy.host)
        with _at_proxy(request, proxy, f"broke off before it had reached {address}"):
            open_tunnel(stream, proxy, host, address, deadline)
        if tls is not None:
            with _at_server(request):
                stream.start_tls(tls, address.host, deadline)
    with _at_server(request):
        return upgrade(stream, request.url, address, request.headers, deadline), deadline


def _resolved(resolver: Resolver, host: str, port: int, where: str) -> list[AddressInfo]:
    try:
        return resolver(host, port)
    except (OSError, UnicodeError) as exc:
        raise AttemptFailed(Failure.NETWORK, f"cannot resolve {where}: {exc}") from exc


@contextlib.contextmanager
def _at_proxy(request: OpenRequest, proxy: ProxyAddress, what: str) -> Iterator[None]:
    """Say in words what kept the stream from getting past the proxy."""
    try:
        yield
    except StreamError as exc:
        cause, where = exc.__cause__, f"the proxy {proxy}"
        if (failed := _common(exc, request, where)) is None:
            why = "it closed the connection" if isinstance(exc, StreamClosed) else str(exc)
            if isinstance(cause, OSError) and cause.strerror:
                why = cause.strerror
            failed = AttemptFailed(Failure.NETWORK, f"{where} {what}: {why}")
        raise failed from cause


@contextlib.contextmanager
def _at_server(request: OpenRequest) -> Iterator[None]:
    """The same for the server, be it behind a proxy or not."""
    try:
        yield
    except StreamError as exc:
        cause, where = exc.__cause__, str(request.address)
        if request.proxy is not None:
            where += f" (through the proxy {request.proxy})"
        if (failed := _common(exc, request, where)) is None:
            if isinstance(cause, ConnectionRefusedError):
                what = f"nothing listens at {where}: {cause.strerror}"
            else:
                hung_up = cause is None or isinstance(cause, StreamError)
                hint = " (servers that want wss:// do this)" if hung_up and not request.address.tls else ""
                what = f"cannot connect to {where}: {exc}{hint}"
            failed = AttemptFailed(Failure.NETWORK, what)
        raise failed from cause


def _common(error: StreamError, request: OpenRequest, where: str) -> AttemptFailed | None:
    if isinstance(error, StreamTimeout):
        return AttemptFailed(Failure.NETWORK, f"{where} did not answer within {request.open_timeout} s")
    if isinstance(error, StreamAborted):
        return AttemptFailed(Failure.NETWORK, f"the attempt to reach {request.address} was ended")
    tls = explain_tls(error.__cause__, where)
    return None if tls is None else AttemptFailed(*tls)
