"""Every time and limit of a pool."""

from __future__ import annotations

import dataclasses
import math
import ssl
from collections.abc import Collection
from typing import Final, Literal

from ..connection.proxies import ENVIRONMENT, check_setting
from ..connection.socks import check_installed
from ..connection.trust import ClientCert, File, make_context
from ..errors import ConfigurationError

__all__ = ["WEBEX_HOSTS", "PoolConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The times and limits of a `ConnectionPool`. Frozen; times in seconds, sizes in bytes.

    Attributes:
        ping_interval: From a pong to the next ping.
        pong_timeout: From a ping until its pong is overdue and the socket is given up.
        backoff_initial: First wait between attempts; it doubles from there.
        backoff_max: Longest wait between attempts. Also how long a session must stay online before
            its waits start from the beginning again.
        jitter: Whether each wait is drawn from between almost nothing and its full length, so that many
            clients do not come back in the same instant.
        max_retries: Failed attempts that are retried once a session has been online; None for no limit.
        initial_max_retries: The same until it has been online for the first time.
        wait_timeout: Default of a caller's wait in `connect` and `wait_online`; None for no limit.
        open_timeout: One attempt: TCP, TLS, upgrade and authorization together.
        send_timeout: How long a message may wait to be written; then the socket is ended.
        force_close_delay: How long a close waits for the server's answer.
        retire_timeout: How long a replaced socket is kept for the server to close it.
        max_message_bytes: Larger messages are dropped.
        queue_size: Messages, not bytes, that may wait for a session's listeners, for its `receive` and for
            each of its `messages`. Of how many bytes, `max_message_bytes` bounds.
        when_full: `block` stops reading until there is room; `drop_oldest` makes room.
        allow_insecure: Let `ws://` go to other hosts than loopback.
        allowed_hosts: Hosts that may get the token, each a name or `*.domain`; None for any. `WEBEX_HOSTS`
            are those of Webex.
        ssl_context: For `wss://` and `https://`; None to have one made of the next two.
        ca_file: PEM file of the authorities to trust, and no others; None for those that the system trusts.
            Read at once.
        client_cert: PEM file with the client's certificate chain and key, or a pair of files. Read at once.
            A key with a password needs an `ssl_context`.
        proxy: `environment` for the proxies of the environment's variables, None for none, or the URL of
            one: `http://user:password@host:port`, or with `https`, `socks5` or `socks5h` (the proxy looks
            names up). Chosen anew for every attempt. Never shown by `repr`.

    Raises:
        ConfigurationError: If a value is out of range; it says which one and what is allowed.
    """

    ping_interval: float = 15.0
    pong_timeout: float = 14.0
    backoff_initial: float = 1.0
    backoff_max: float = 32.0
    jitter: bool = True
    max_retries: int | None = None
    initial_max_retries: int | None = None
    wait_timeout: float | None = 30.0
    open_timeout: float = 10.0
    send_timeout: float = 10.0
    force_close_delay: float = 2.0
    retire_timeout: float = 60.0
    max_message_bytes: int = 16 * 1024 * 1024
    queue_size: int = 10_000
    when_full: Literal["block", "drop_oldest"] = "block"
    allow_insecure: bool = False
    allowed_hosts: Collection[str] | None = None
    ssl_context: ssl.SSLContext | None = None
    ca_file: File | None = None
    client_cert: ClientCert | None = None
    proxy: str | None = dataclasses.field(default=ENVIRONMENT, repr=False)

    def __post_init__(self) -> None:
        for name in ("ping_interval", "pong_timeout", "backoff_initial", "backoff_max", "open_timeout"):
            check_seconds(name, getattr(self, name))
        for name in ("send_timeout", "force_close_delay", "retire_timeout"):
            check_seconds(name, getattr(self, name))
        if self.wait_timeout is not None:
            check_seconds("wait_timeout", self.wait_timeout)
        if self.backoff_max < self.backoff_initial:
            raise ConfigurationError("backoff_max", "must not be less than backoff_initial")
        for name in ("max_retries", "initial_max_retries"):
            check_count(name, getattr(self, name), least=0, none=True)
        for name in ("max_message_bytes", "queue_size"):
            check_count(name, getattr(self, name), least=1)
        for name in ("jitter", "allow_insecure"):
            check_flag(name, getattr(self, name))
        if self.when_full not in ("block", "drop_oldest"):
            raise ConfigurationError("when_full", f"must be 'block' or 'drop_oldest', not {self.when_full!r}")
        if self.ssl_context is not None and not isinstance(self.ssl_context, ssl.SSLContext):
            raise ConfigurationError("ssl_context", "must be an ssl.SSLContext or None")
        hosts = self.allowed_hosts
        if hosts is not None and not _is_host_names(hosts):
            raise ConfigurationError(
                "allowed_hosts", "must be a collection of host names or *.domain, or None"
            )
        proxy = check_setting(self.proxy)
        if proxy is not None and proxy.socks:
            check_installed("python_socks")
        if self.ca_file is not None or self.client_cert is not None:
            if self.ssl_context is not None:
                both = "ca_file" if self.ca_file is not None else "client_cert"
                raise ConfigurationError(both, "must not be given beside ssl_context; load it into that")
            self.tls_context()  # files that cannot be used are told of now

    def tls_context(self) -> ssl.SSLContext:
        """Return the one context for WebSocket and REST; made at the first call, if none was given."""
        if self.ssl_context is not None:
            return self.ssl_context
        made = self.__dict__.get("_made")
        if made is None:
            # Reads files. Of two threads that come at once, one keeps what it made.
            made = self.__dict__.setdefault("_made", make_context(self.ca_file, self.client_cert))
        context: ssl.SSLContext = made
        return context

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles read the files again: a context is not to be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "_made"}


def check_seconds(name: str, value: object, *, zero: bool = False) -> None:
    """Refuse what is no time span.

    Raises:
        ConfigurationError: If it is not a finite positive number (or 0, if `zero`).
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or (isinstance(value, float) and not math.isfinite(value))  # a huge int has no float to ask about
    ):
        raise ConfigurationError(name, f"must be a finite number of seconds, not {value!r}")
    if value < 0 or (value == 0 and not zero):
        raise ConfigurationError(
            name, f"must be {'at least' if zero else 'more than'} 0 seconds, not {value!r}"
        )
    if value > 10**7:
        raise ConfigurationError(name, f"must be at most {10**7} seconds, not {value!r}")


def _is_host_names(hosts: object) -> bool:
    # A Collection, not just something to go over: an iterator would be empty after the first look.
    return (
        isinstance(hosts, Collection)
        and not isinstance(hosts, str)
        and all(isinstance(host, str) and _is_host_name(host) for host in hosts)
    )


def _is_host_name(host: str) -> bool:
    name = host.removeprefix("*.")
    return bool(name) and "*" not in name


def check_flag(name: str, value: object) -> bool:
    """Return a flag; refuse what is none.

    Raises:
        ConfigurationError: If it is not True or False.
    """
    if not isinstance(value, bool):
        raise ConfigurationError(name, f"must be True or False, not {type(value).__name__}")
    return value


def check_count(name: str, value: object, *, least: int, none: bool = False) -> None:
    """Refuse what is no count.

    Raises:
        ConfigurationError: If it is not a whole number of at least `least` (or None, if `none`).
    """
    if none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        allowed = f"a whole number of at least {least}" + (" or None" if none else "")
        raise ConfigurationError(name, f"must be {allowed}, not {value!r}")


WEBEX_HOSTS: Final = frozenset(
    {
        *("webexapis.com", "*.webexapis.com"),
        *("webex.com", "*.webex.com"),
        *("wbx2.com", "*.wbx2.com"),
        *("ciscospark.com", "*.ciscospark.com"),
    }
)
"""For `PoolConfig(allowed_hosts=WEBEX_HOSTS)`: the hosts of Webex, beyond which no token goes.

Add your own with `WEBEX_HOSTS | {"gateway.example"}`.
"""
