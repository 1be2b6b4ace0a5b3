"""The sessions of `listen`, in one pool: begun together, and ended so that nothing that came is lost.

Which thread does what:

- **connectors**, one a session, wait in `connect`, and tell the mailbox when it failed;
- **the pool's threads** (readers, or a session's dispatcher) call `_hear`, which makes a line of each wanted
  event and puts it into the mailbox. That waits when the mailbox is full; then the session's queue fills, and
  then its socket is not read;
- **the closer** disconnects, waits until they have delivered what there was, and tells the mailbox
  that nothing more will come;
- **the main thread** reads the mailbox, also while the closer is at work, or neither would ever end.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from .._sync import Deadline
from ..datachannel.client import DataChannelClient
from ..datachannel.device import DeviceRegistration
from ..errors import ConnectCancelled, LLMSessionsError, PoolClosed
from ..pool.config import PoolConfig
from ..pool.pool import ALL_SESSIONS, ConnectionPool
from ..pool.session import Session
from ..pool.sources import TokenProvider
from ..pool.stats import SessionStats
from ..protocol.envelope import Envelope
from ..protocol.state import SessionState
from .filters import Filter
from .lines import line_of
from .mailbox import Mailbox
from .targets import Kind, Target

__all__ = ["Closed", "Failed", "Plan", "Sessions", "SessionEnded"]

_CLOSE_LIMIT: Final = 3.0  # seconds for sockets and threads; `force_close_delay` is 2
_ENDS: Final = ("offline.permanent", "offline.replaced")
_DEVICE_LIMIT: Final = 3.0  # seconds to delete the device


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to listen to.

    Attributes:
        targets: The sessions.
        provider: Of the access token.
        config: Of the pool.
        wanted: Which events make a line.
        raw: Whether messages are shown whole.
        device: URL of the device that data channels are registered with; None for the user's own.
        device_name: Of the user's own device.
        catalog: Where Webex lists its services; None for the real place.
    """

    targets: Sequence[Target]
    provider: TokenProvider
    config: PoolConfig
    wanted: Filter
    raw: bool = False
    device: str | None = None
    device_name: str = "llm-sessions-listen"
    catalog: str | None = None


@dataclasses.dataclass(frozen=True)
class Failed:
    """A session never came online.

    Attributes:
        session: Its id.
        error: Why.
    """

    session: str
    error: Exception


@dataclasses.dataclass(frozen=True)
class SessionEnded:
    """A session that was online has ended for good.

    Attributes:
        session: Its id.
    """

    session: str


@dataclasses.dataclass(frozen=True)
class Closed:
    """Everything is closed, and all that came is in the mailbox."""


class Sessions:
    """The sessions of a plan. Nothing is connected before `start`.

    Args:
        plan: What to listen to.
        mailbox: Gets a `Line` for each wanted event, and `Failed`, `SessionEnded` and `Closed`.
        wall: The time of day in seconds since the epoch.

    Raises:
        ConfigurationError: If the plan cannot be.
    """

    def __init__(self, plan: Plan, mailbox: Mailbox, wall: Callable[[], float] = time.time) -> None:
        self._plan, self._mailbox, self._wall = plan, mailbox, wall
        self._pool = ConnectionPool(plan.provider, config=plan.config, name="listen")
        self._device: DeviceRegistration | None = None
        if any(one.kind is Kind.DEVICE for one in plan.targets):
            options: dict[str, Any] = {} if plan.catalog is None else {"catalog_url": plan.catalog}
            self._device = DeviceRegistration(
                plan.provider, device_name=plan.device_name, config=plan.config, **options
            )
        self._client: DataChannelClient | None = None
        device = plan.device if plan.device is not None else self._device
        if device is not None and any(one.kind is Kind.REGISTRATION for one in plan.targets):
            # Without data channel tokens a channel gets everything that there is, subscribed to or not.
            self._client = DataChannelClient(
                plan.provider, device=device, data_channel_tokens=False, pool=self._pool
            )
        self._by_id = {one.session: self._pool.session(one.session) for one in plan.targets}
        self._came_online: set[str] = set()  # only grows, and its single operations are atomic
        self._closing = False
        self._threads: list[threading.Thread] = []  # the main thread's
        self._listen()

    @property
    def all(self) -> list[Session]:
        """The sessions in the order of the plan; readable also when everything is closed."""
        return list(self._by_id.values())

    def get(self, session_id: str) -> Session:
        """Return a session of the plan."""
        return self._by_id[session_id]

    @property
    def never_online(self) -> list[str]:
        """The ids of sessions that have not been online yet."""
        return [name for name in self._by_id if name not in self._came_online]

    def stats(self) -> list[SessionStats]:
        """What the sessions did, in the order of the plan."""
        return [one.stats() for one in self._by_id.values()]

    def start(self) -> None:
        """Begin to connect, all at the same time; return at once."""
        for target in self._plan.targets:
            self._spawn(functools.partial(self._connect, target), f"connect[{target.session}]")

    def begin_close(self) -> None:
        """Begin to end everything, once; return at once. `Closed` comes when it is done."""
        if not self._closing:
            self._closing = True
            self._spawn(self._close, "close")

    def join(self) -> None:
        """Wait for the threads, which have nothing more to do once `Closed` has come."""
        deadline = Deadline(_CLOSE_LIMIT)
        for thread in self._threads:
            thread.join(deadline.left())

    def _spawn(self, call: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=call, name=f"llm-sessions-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    # -- the pool's threads ------------------------------------------------------------------------------

    def _listen(self) -> None:
        self._pool.on(
            "online", lambda event: self._came_online.add(event.session_id), session_id=ALL_SESSIONS
        )
        for name in sorted({*self._plan.wanted.state_events, *_ENDS}):
            self._pool.on(name, self._hear_state(name), session_id=ALL_SESSIONS)
        self._pool.on("event", self._hear, session_id=ALL_SESSIONS)

    def _hear(self, envelope: Envelope) -> None:
        if self._plan.wanted.wants_message(envelope.session_id, envelope.event_type):
            self._mailbox.put(line_of("event", envelope, self._wall(), raw=self._plan.raw))

    def _hear_state(self, name: str) -> Callable[[Any], None]:
        def hear(payload: Any) -> None:
            if self._plan.wanted.wants_state(payload.session_id, name):
                self._mailbox.put(line_of(name, payload, self._wall(), raw=self._plan.raw))
            # A replaced socket of a session that is online ends nothing.
            if name in _ENDS and self.get(payload.session_id).state is SessionState.OFFLINE:
                self._mailbox.tell(SessionEnded(payload.session_id))

        return hear

    # -- connectors ---------------------------------------------------------------------------------------

    def _connect(self, target: Target) -> None:
        try:
            if target.kind is Kind.REGISTRATION and self._client is not None:
                # The meeting's own URL would tell whose data channel tokens these are; there are none.
                self._client.register_and_connect(target.url, target.url, session_id=target.session)
            else:
                device = self._device if target.kind is Kind.DEVICE else None
                self._pool.connect(device or target.url, target.session)
        except (ConnectCancelled, PoolClosed) as exc:
            if not self._closing:
                self._mailbox.tell(Failed(target.session, exc))
        except LLMSessionsError as exc:
            self._mailbox.tell(Failed(target.session, exc))

    # -- the closer ---------------------------------------------------------------------------------------

    def _close(self) -> None:
        try:
            self._pool.disconnect_all()  # from here on nothing more comes
            while True:
                waiting = self._pool.stats().queue_depth
                # Joins the pool's threads. With a slow reader of the output it runs out of time; what came is
                # delivered all the same, so it is waited for again.
                self._pool.close(_CLOSE_LIMIT)
                if not waiting:
                    break
            if self._client is not None:
                self._client.close()
            if self._device is not None:
                self._device.close(_DEVICE_LIMIT)
        finally:
            self._mailbox.tell(Closed())
