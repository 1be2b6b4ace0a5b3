"""The seam between the pool and one socket.

The pool knows a `Link` (something that opens, becomes ready, carries messages and ends) and is its
`LinkOwner`. `connection.Connection` is the real one; tests of the pool bring their own.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Mapping, Sequence
from typing import Protocol

from ..protocol.closing import Failure
from ..protocol.mercury import Ended, Event, Timing
from ..protocol.url import Address
from .proxies import ProxyAddress

__all__ = ["AttemptFailed", "Link", "LinkBroken", "LinkOwner", "OpenRequest", "Traffic", "Transport"]


@dataclasses.dataclass(frozen=True)
class OpenRequest:
    """All that one attempt needs to know.

    Attributes:
        url: The URL of the opening handshake, query complete.
        address: Its host, port and scheme.
        token: Access token with its scheme; never shown by `repr`.
        headers: Extra headers of the opening handshake; checked.
        ssl_context: For `wss` and for a proxy that speaks TLS; None if neither is there.
        proxy: Through which to go; None for none.
        open_timeout: Seconds for TCP, proxy, TLS, upgrade and authorization together; None for no limit.
        send_timeout: Seconds that a message may wait to be written.
        max_message_bytes: Budget of one inbound message.
        timing: Keepalive and close times.
    """

    url: str
    address: Address
    token: str = dataclasses.field(repr=False)
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    ssl_context: ssl.SSLContext | None = None
    proxy: ProxyAddress | None = None
    open_timeout: float | None = 10.0
    send_timeout: float = 10.0
    max_message_bytes: int = 16 * 1024 * 1024
    timing: Timing = Timing()  # noqa: RUF009  # frozen


class AttemptFailed(Exception):
    """A link could not be opened. The pool makes one of the public errors of it.

    Attributes:
        failure: The row of the failure table.
        message: What happened, with host and port.
        status: HTTP status, if an HTTP answer ended the attempt.
        retry_after: The raw `Retry-After` header, or None.
        code: Close code, if a close ended the attempt.
        reason: Close reason.
    """

    def __init__(
        self,
        failure: Failure,
        message: str,
        *,
        status: int | None = None,
        retry_after: str | None = None,
        code: int | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message
        self.status = status
        self.retry_after = retry_after
        self.code = code
        self.reason = reason


class LinkBroken(Exception):
    """A message could not be sent, whole or at all: the link is closing or gone.

    Attributes:
        started: Whether the link was alive when the call began.
    """

    def __init__(self, message: str, *, started: bool) -> None:
        super().__init__(message)
        self.started = started


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a link has carried, from its first frame on.

    Attributes:
        bytes_in: Bytes of frames read.
        bytes_out: Bytes of frames written.
        acks: Messages acknowledged.
    """

    bytes_in: int = 0
    bytes_out: int = 0
    acks: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.bytes_in + other.bytes_in,
            self.bytes_out + other.bytes_out,
            self.acks + other.acks,
        )


class LinkOwner(Protocol):
    """What a link reports to, always from its reader thread, in the order in which things happened."""

    def link_reading(self, link: Link, *, lends: bool = False) -> None:
        """A reader begins. The first report: from now on its thread may not wait for the owner.

        Again if another one relieves it, which reads from here on.

        Args:
            link: What it reads.
            lends: Whether it heeds `Link.lend`.
        """

    def link_ready(self, link: Link) -> None:
        """The server authorized the link; it can send."""

    def link_received(self, link: Link, events: Sequence[Event]) -> bool:
        """Take what one read brought; return False to have reading paused until `Link.resume`.

        While it is paused it is asked again from time to time, with no events.
        """

    def link_lent(self, link: Link) -> bool:
        """The reader's thread is the owner's until this returns: `Link.lend` asked for it.

        Meanwhile nobody reads; `Link.relieve` changes that. It may come after `link_ended`.

        Returns:
            Whether to go on; False if this is another process by now.
        """

    def link_ended(self, link: Link, ended: Ended) -> None:
        """The link is over and its descriptor released. The last report, exactly once after `open`."""


class Link(Protocol):
    """One socket, from before its first packet until its descriptor is released."""

    @property
    def ready(self) -> bool:
        """Whether the server authorized it and it has not ended."""

    @property
    def time_offset(self) -> float | None:
        """Our wall clock minus the server's, in milliseconds; None if unknown."""

    @property
    def traffic(self) -> Traffic:
        """What it has carried so far. Takes no lock."""

    def open(self) -> None:
        """Connect and upgrade; call once. Blocks for at most the open timeout plus DNS.

        Raises:
            AttemptFailed: If that does not work or `abort` came first; nothing is left open then, and no
                report follows.
        """

    def read(self) -> None:
        """Authorize, read and report on the calling thread; call once, after `open`.

        Returns when the link is over and that is reported, or when another thread reads instead and what this
        one was lent for is done. A link that reports on threads of its own returns at once.
        """

    def send(self, payload: bytes, timeout: float | None) -> None:
        """Send a text message; return once it is written.

        Raises:
            LinkBroken: If the link is or gets closed first, or `timeout` seconds pass (which ends it).
        """

    def close(self, code: int | None, reason: str | None) -> None:
        """Start the close handshake, or abort if there is nothing to shake hands with. Never blocks."""

    def abort(self) -> None:
        """End it now, whatever it is doing. Never blocks."""

    def retire(self, seconds: float) -> None:
        """Close it if the server has not done so in this time. Never blocks."""

    def resume(self) -> None:
        """Go on reading. Never blocks."""

    def lend(self) -> None:
        """Have `LinkOwner.link_lent` called once all of the present read is reported. By the reader only."""

    def relieve(self) -> bool:
        """Have another thread read while the present reader is in `link_lent`. Never blocks.

        Returns:
            Whether that is under way; False if there is nothing to relieve it of.

        Raises:
            RuntimeError: If the system cannot start another thread.
        """


class Transport(Protocol):
    """Makes links."""

    def __call__(self, request: OpenRequest, owner: LinkOwner, name: str) -> Link:
        """Return a link that has done nothing yet.

        Args:
            request: What to open.
            owner: Whom to report to.
            name: For the reader's thread name: `<session>#<n>`.
        """
