"""A session of requests for one exchange, whose receives share one deadline: see `exchange`."""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import os
import ssl
from collections.abc import Iterator
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from .._sync import Deadline
from ..connection.proxies import ProxyAddress
from .hops import mark_tunnel

__all__ = ["TimedAdapter", "timed_session"]


@contextlib.contextmanager
def timed_session(
    deadline: Deadline, context: ssl.SSLContext | None = None, proxy: ProxyAddress | None = None
) -> Iterator[requests.Session]:
    """A session for one exchange; nothing of it is left afterwards, cookies neither."""
    with requests.Session() as session:
        for adapter in session.adapters.values():
            adapter.close()
        session.mount("https://", TimedAdapter(deadline, context, proxy))
        session.mount("http://", TimedAdapter(deadline, context, proxy))
        yield session


class TimedAdapter(HTTPAdapter):
    """Makes its connections of classes that know the deadline.

    Attributes:
        proxies: What requests is to go through: this, and nothing that it finds in the environment.
    """

    def __init__(
        self, deadline: Deadline, context: ssl.SSLContext | None, proxy: ProxyAddress | None
    ) -> None:
        self._deadline, self._proxy = deadline, proxy
        self.proxies: dict[str, str] = {}
        if proxy is not None:
            # PySocks wants the password in the URL. For the others it is a header, which no error quotes.
            self.proxies = dict.fromkeys(("http", "https"), proxy.full_url if proxy.socks else str(proxy))
        self._tls: dict[str, Any] = {} if context is None else {"ssl_context": _UnchangedContext(context)}
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self._time(self.poolmanager)

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        if self._proxy is not None and self._proxy.tls and self._tls:
            kwargs["proxy_ssl_context"] = self._tls["ssl_context"]
        manager = super().proxy_manager_for(proxy, **kwargs)
        self._time(manager)
        return manager

    def proxy_headers(self, proxy: Any) -> dict[str, str]:
        authorization = None if self._proxy is None else self._proxy.authorization
        return {} if authorization is None else {"Proxy-Authorization": authorization}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        if not self._tls:
            super().cert_verify(conn, url, verify, cert)  # type: ignore[no-untyped-call]
            return
        conn.cert_reqs = self._tls["ssl_context"].verify_mode
        conn.ca_certs = conn.ca_cert_dir = None

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, tls = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {**tls, "ca_certs": None, "ca_cert_dir": None, **self._tls} if self._tls else tls

    def _time(self, manager: Any) -> None:
        manager.connection_pool_kw.update(self._tls)
        manager.pool_classes_by_scheme = {
            scheme: _timed_pool(kind, self._deadline)
            for scheme, kind in manager.pool_classes_by_scheme.items()
        }


class _UnchangedContext:
    """A TLS context that urllib3 wraps sockets with and cannot change.

    It would set what protocols are offered, each time: in a context that other threads make connections with
    at the same moment, which OpenSSL does not allow. What it sets is kept here and has no effect.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_alpn_protocols(self, protocols: object) -> None:
        pass


def _timed_pool(pool_class: Any, deadline: Deadline) -> type:
    """Derive from a pool class of urllib3's, whichever it is: HTTP, HTTPS or SOCKS."""
    connection_class: Any = pool_class.ConnectionCls

    def connect(self: Any) -> None:
        connection_class.connect(self)
        if deadline.expired:  # by name lookup or an address that did not answer
            self.close()
            raise TimeoutError("connected too late to ask")

    def tunnel(self: Any) -> None:
        try:
            connection_class._tunnel(self)
        except (OSError, http.client.HTTPException) as exc:
            mark_tunnel(exc)
            raise

    def send(self: Any, data: Any) -> None:
        try:
            connection_class.send(self, data)
        except (ssl.SSLEOFError, ConnectionResetError) as exc:
            # For urllib3 this one is no end: what the peer said before it left is still to be read, such as
            # that it wants a client certificate, which in TLS 1.3 comes after the handshake.
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from exc

    def response_class(sock: Any, *args: Any, **kwargs: Any) -> Any:
        response = connection_class.response_class(sock, *args, **kwargs)
        response.fp = io.BufferedReader(_TimedReads(sock, response.fp.detach(), deadline))
        return response

    timed = {
        "connect": connect,
        "_tunnel": tunnel,
        "send": send,
        "response_class": staticmethod(response_class),
    }
    connection = type("TimedConnection", (connection_class,), timed)
    return type("TimedPool", (pool_class,), {"ConnectionCls": connection})


class _TimedReads(io.RawIOBase):
    """The raw file of a socket, each of whose reads ends with the deadline."""

    def __init__(self, sock: Any, raw: Any, deadline: Deadline) -> None:
        self._sock, self._raw, self._deadline = sock, raw, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline.left()
        if not left:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        size: int | None = self._raw.readinto(buffer)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()
