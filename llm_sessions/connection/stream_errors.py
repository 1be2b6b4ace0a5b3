"""How a stream ends, or fails to open."""

from __future__ import annotations

__all__ = ["StreamAborted", "StreamBroken", "StreamClosed", "StreamError", "StreamTimeout"]


class StreamError(Exception):
    """Base of these errors; none is an OSError, so that websocket-client lets them pass."""


class StreamTimeout(StreamError):
    """The deadline passed."""


class StreamAborted(StreamError):
    """`abort` was called."""


class StreamClosed(StreamError):
    """The peer ended the stream."""


class StreamBroken(StreamError):
    """The network or TLS failed; `__cause__` says how."""
