"""`DataChannelClient`: data channels by the URLs of a meeting instead of by addresses of sockets.

A client keeps no state of a session. A session is busy with one of its registrations or is not, and the pool
knows which, under the session's own lock; so a registration that was superseded has nothing to take back, and
what the client says of a session is what the session's live socket was registered as.

- **Who owns what:** the pool owns sessions and sockets, `TokenStore` the data channel tokens, and the client
  the flag that says that it is closed. It has no thread, and no lock of its own: the flag is set once.
- **Other URLs for a busy session** supersede what is there: that is disconnected, if it is still the one that
  was seen, and the new registration is connected. Whoever waited for the old one gets `ConnectCancelled`.
- **What ends each wait:** those of `ConnectionPool.connect` and `disconnect`, which these calls wait in.
- **After `close`** nothing is registered any more: the flag is set before the sessions are looked through,
  and a run looks at the flag after the session has taken it, so one of the two sees the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from .._fork import OneProcess
from .._logging import without_secrets
from .._sync import Deadline
from ..errors import AlreadyConnected, ConfigurationError, ConnectCancelled, PoolClosed
from ..pool.config import PoolConfig
from ..pool.owned import OwnedSessions
from ..pool.pool import ConnectionPool
from ..pool.session import DEFAULT_TIMEOUT, Session, Timeout, check_timeout
from ..pool.sources import Endpoint, Target, TokenSource, as_provider
from ..session_ids import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION, check_session_id
from .channels import DataChannel, describe, names, publish_request, subscription_request
from .client_events import ClientEvents
from .client_tokens import ClientTokens
from .device import DeviceRegistration
from .exchange import check_url
from .holding import Holding
from .registration import RegisteredTarget, Registrar, Registration
from .rest import RestClient
from .tokens import TokenStore, check_token

if TYPE_CHECKING:
    import requests

__all__ = ["DataChannel", "DataChannelClient"]

_SUPERSEDED: Final = (3050, "replaced")


class DataChannelClient(ClientEvents, ClientTokens, OneProcess):
    """Registers data channels over REST and keeps them online. Safe from any thread and any callback.

    Methods that take a `session_id` mean `LLM_DEFAULT_SESSION` if it is not given. Use it as a context
    manager, or call `close`.

    Args:
        access_token: Of the sockets and of REST: a string, a callable that returns one, or a `TokenProvider`.
        device: A device URL, or a `DeviceRegistration`, which stays the caller's to close.
        data_channel_tokens: Whether registrations send data channel tokens and subscribe to subchannels: a
            bool, or a callable that is asked once for each registration.
        pool: Where the sessions live; it stays the caller's to close. None for one of the client's own.
        config: Times and limits of the client's own pool; None for the defaults.
        http: A `requests.Session` for REST; see `RestClient`. None for one made for each call.

    Raises:
        ConfigurationError: If an argument cannot be used.
    """

    def __init__(
        self,
        access_token: TokenSource,
        *,
        device: str | DeviceRegistration,
        data_channel_tokens: bool | Callable[[], bool] = True,
        pool: ConnectionPool | None = None,
        config: PoolConfig | None = None,
        http: requests.Session | None = None,
    ) -> None:
        self._provider = as_provider(access_token, "access_token")
        if not isinstance(device, (str, DeviceRegistration)):
            kind = type(device).__name__
            raise ConfigurationError("device", f"must be a URL or a DeviceRegistration, not {kind}")
        if isinstance(device, str):
            check_url(device, allow_insecure=True, argument="device")
        toggle = data_channel_tokens
        if not isinstance(toggle, bool) and not callable(toggle):
            raise ConfigurationError("data_channel_tokens", "must be True, False, or a callable")
        if pool is not None and config is not None:
            raise ConfigurationError("config", "is that of the client's own pool; the given pool has one")
        if pool is not None and not isinstance(pool, ConnectionPool):
            raise ConfigurationError("pool", f"must be a ConnectionPool, not {type(pool).__name__}")
        self._pool = pool or ConnectionPool(
            self._provider, config=config, default_session_id=LLM_DEFAULT_SESSION
        )
        ClientEvents.__init__(self, OwnedSessions(self._pool, self._is_ours), self._check_open)
        settings = self._sessions.config
        ClientTokens.__init__(self, TokenStore(), self._check_open, settings.wait_timeout)
        self._owns_pool = pool is None
        self._rest = RestClient(
            self._provider,
            http=http,
            config=settings,
        )
        self._registrar = Registrar(
            self._rest,
            self._tokens,
            device.url if isinstance(device, DeviceRegistration) else lambda attempt: device,
            toggle if callable(toggle) else lambda: toggle,
            device.distrust if isinstance(device, DeviceRegistration) else lambda url, error: None,
            refresh_timeout=settings.wait_timeout,
        )
        self._numbers = itertools.count(1)
        self._holding = Holding()
        if isinstance(device, DeviceRegistration):
            device.bind(self._provider)

    # -- connecting ---------------------------------------------------------------------------------------

    def register_and_connect(
        self,
        locus_url: str,
        datachannel_url: str,
        datachannel_token: str | None = None,
        session_id: str = LLM_DEFAULT_SESSION,
        *,
        timeout: Timeout = DEFAULT_TIMEOUT,
    ) -> Session:
        """Register a session's data channel, bring it online, and return it.

        Callers that ask for the same session and URLs share one registration and its outcome; if it is
        online already nothing is asked. Other URLs than those that the session is busy with supersede them.
        The session reconnects by itself, with a new registration each time.

        Args:
            locus_url: The meeting's.
            datachannel_url: Where to register.
            datachannel_token: The session's token from now on; None to keep the one it has. It is kept until
                `clear_token` or `close`, whatever becomes of the session; but it is one meeting's: with
                another `locus_url` and no token, the session has none.
            session_id: The session's key.
            timeout: Seconds to wait; None for no limit; by default the pool's `wait_timeout`.

        Raises:
            ConfigurationError: If an argument is missing or cannot be used; nothing was asked.
            RegistrationError: If the answer cannot be used, or the session's token was refused
                (`TokenRefreshError`, if it could not be refreshed).
            AlreadyConnected: If the session is busy with an endpoint that is not this client's.
            ConnectCancelled: If a disconnect or another registration of the session came first.
            ConnectTimeout, ConnectError, LocalProtocolError, PoolClosed: See `ConnectionPool.connect`.
        """
        registration = self._registration(locus_url, datachannel_url, session_id)
        deadline = Deadline(check_timeout(timeout, self._sessions.config.wait_timeout))
        if datachannel_token is not None:
            check_token(datachannel_token, "datachannel_token")
        self._check_open()
        self._sessions.refuse_own_thread(session_id, "register_and_connect()")
        try:
            return self._supersede(registration, datachannel_token, deadline)
        except (ConfigurationError, ConnectCancelled):
            self._check_open()  # if that is why, it is what the caller is told
            raise

    def _supersede(self, wanted: Registration, token: str | None, deadline: Deadline) -> Session:
        session_id, locus_url = wanted.session_id, wanted.locus_url
        while True:
            # First, or the runs of the old URLs would send the new token there.
            self._sessions.make_way(session_id, wanted, deadline, _SUPERSEDED)
            before = self._tokens.enter(session_id, locus_url, token)
            try:
                return self._sessions.connect(session_id, wanted, self._provider, deadline)
            except AlreadyConnected:
                if self._sessions.is_taken(session_id):
                    self._tokens.put_back(session_id, locus_url, token, before)
                    raise

    def disconnect(
        self, session_id: str = LLM_DEFAULT_SESSION, *, code: int | None = None, reason: str | None = None
    ) -> None:
        """Disconnect a session; return when its sockets are gone. See `ConnectionPool.disconnect`.

        Its token is kept. A session of the pool that is not this client's is left alone. A closed client has
        nothing to disconnect.
        """
        if self._registrar.closed:
            return
        self._check_open()
        self._sessions.disconnect(check_session_id(session_id), code=code, reason=reason)

    def disconnect_all(self, *, code: int | None = None, reason: str | None = None) -> None:
        """Disconnect every session of this client; return when all their sockets are gone."""
        if self._registrar.closed:
            return
        self._check_open()
        self._sessions.disconnect(code=code, reason=reason)

    def close(self, timeout: float = 5.0) -> None:
        """Close for good: leave the meeting, disconnect every session and forget every token.

        Later calls raise `PoolClosed`, but for those that have nothing to do: further closes, disconnects,
        and `is_connected`. So do registrations that are under way. A pool that was given is left open,
        without the callbacks that this client was given.

        Args:
            timeout: Seconds to wait for the meeting and the client's own pool, together.

        Raises:
            ConfigurationError: If the timeout is not a number of seconds.
        """
        deadline = Deadline(check_timeout(timeout, None))
        if self._sessions.forked:
            return
        self._holding.close(deadline)
        self._registrar.closed = True
        self._tokens.close()
        if self._owns_pool:
            self._pool.close(deadline.left() or 0.0)
        else:
            self._sessions.leave()
        self._sessions.unlisten_all()

    def __enter__(self) -> DataChannelClient:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- looking ------------------------------------------------------------------------------------------

    @property
    def pool(self) -> ConnectionPool:
        """Where the sessions live."""
        return self._pool

    def session(self, session_id: str = LLM_DEFAULT_SESSION) -> Session:
        """Return the handle of a session, idle if it was never connected."""
        self._check_open()
        return self._pool.session(session_id)

    def connections(self) -> dict[str, DataChannel]:
        """Return what is registered, being registered, or has ended for good, by session id."""
        self._check_open()
        return {name: describe(name, standing) for name, standing in self._sessions.standings().items()}

    def is_connected(self, session_id: str = LLM_DEFAULT_SESSION) -> bool:
        """Say whether a session of this client is online at this moment."""
        if self._registrar.closed:
            return False
        self._check_open()
        return self._sessions.is_online(session_id)

    def binding(self, session_id: str = LLM_DEFAULT_SESSION) -> str | None:
        """Return the route of a session's active socket; see `DataChannel`. None if it has none."""
        channel = self._channel(session_id)
        return channel.binding if channel is not None else None

    def web_socket_url(self, session_id: str = LLM_DEFAULT_SESSION) -> str | None:
        """Return what a session's active socket was registered as; see `DataChannel`. None if it has none."""
        channel = self._channel(session_id)
        return channel.web_socket_url if channel is not None else None

    def locus_url(self, session_id: str = LLM_DEFAULT_SESSION) -> str | None:
        """Return the meeting of a session, from before its first registration until a disconnect."""
        channel = self._channel(session_id)
        return channel.locus_url if channel is not None else None

    def datachannel_url(self, session_id: str = LLM_DEFAULT_SESSION) -> str | None:
        """Return where a session registers, from before its first registration until a disconnect."""
        channel = self._channel(session_id)
        return channel.datachannel_url if channel is not None else None

    def _channel(self, session_id: str) -> DataChannel | None:
        self._check_open()
        standing = self._sessions.standing(session_id)
        return describe(session_id, standing) if standing is not None else None

    # -- publishing ---------------------------------------------------------------------------------------

    def publish(
        self,
        data: Mapping[str, Any],
        *,
        headers: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        event_type: str = "relay.event",
    ) -> str:
        """Publish on a channel; return the id of the request.

        The socket and the route are of one registration, also if the session reconnects at this moment.

        Args:
            data: Goes into `data` beside `eventType`; `relayType` says what it is.
            headers: Of the request, such as `{"to": …}`.
            session_id: Where; None for the practice session if it is online, else for the default one.
            event_type: `data.eventType`, unless `data` has one.

        Raises:
            ConfigurationError: If it cannot be written as JSON.
            NotOnline, ConnectionLost, PoolClosed: See `Session.send`.
        """
        if not isinstance(data, Mapping):
            raise ConfigurationError("data", f"must be a mapping, not {type(data).__name__}")
        if headers is not None and not isinstance(headers, Mapping):
            raise ConfigurationError("headers", f"must be a mapping or None, not {type(headers).__name__}")
        return self._send(
            lambda target, number: publish_request(target, number, data, headers, event_type), session_id
        )

    def update_subchannel_subscriptions(
        self,
        subscribe: Iterable[str] = (),
        unsubscribe: Iterable[str] = (),
        *,
        session_id: str | None = None,
    ) -> str:
        """Subscribe to subchannels of a channel, or end that; return the id of the request.

        It holds for the session's active socket: do it again whenever the session is `online`.

        Args:
            subscribe: Names, such as `transcription`.
            unsubscribe: Names.
            session_id: See `publish`.

        Raises:
            ConfigurationError: If no name is given, or the session was registered without
                `data_channel_tokens`.
            NotOnline, ConnectionLost, PoolClosed: See `Session.send`.
        """
        begun, ended = names(subscribe, "subscribe"), names(unsubscribe, "unsubscribe")
        if not begun and not ended:
            raise ConfigurationError("subscribe", "name at least one subchannel, here or in unsubscribe")
        return self._send(
            lambda target, number: subscription_request(target, number, begun, ended), session_id
        )

    def _send(
        self, build: Callable[[RegisteredTarget, str], Mapping[str, Any]], session_id: str | None
    ) -> str:
        self._check_open()
        if session_id is None:
            practice = self._sessions.is_online(LLM_PRACTICE_SESSION)
            session_id = LLM_PRACTICE_SESSION if practice else LLM_DEFAULT_SESSION
        number = self.send_to(check_session_id(session_id), build)
        assert number is not None
        return number

    # -- inside -------------------------------------------------------------------------------------------

    def send_to(
        self, session_id: str, build: Callable[[RegisteredTarget, str], Mapping[str, Any] | None]
    ) -> str | None:
        """Send what `build` makes, if anything, of the target of a session's socket and an id. Internal.

        Returns:
            The id, if something was sent.

        Raises:
            NotOnline, ConnectionLost, PoolClosed: See `Session.send`.
        """
        number = str(next(self._numbers))

        def message(target: Target) -> Mapping[str, Any] | None:
            assert isinstance(target, RegisteredTarget)  # what is online was registered by this client
            return build(target, number)

        return number if self._sessions.send(session_id, message) else None

    def _registration(self, locus_url: str, datachannel_url: str, session_id: str) -> Registration:
        return Registration(
            self._registrar,
            check_session_id(session_id),
            self._checked_url(locus_url, "locus_url"),
            self._rest.check_url(self._checked_url(datachannel_url, "datachannel_url"), "datachannel_url"),
        )

    def begin_register_and_connect(self, locus_url: str, datachannel_url: str, session_id: str) -> bool:
        """Start what `register_and_connect` starts without waiting and without superseding. Internal.

        Returns:
            False if a disconnect is under way; `OwnedSessions.observe` says when to try again.
        """
        registration = self._registration(locus_url, datachannel_url, session_id)
        self._check_open()
        return self._pool.begin_connect(registration, session_id, token=self._provider)

    def _check_open(self) -> None:
        if self._registrar.closed:
            raise PoolClosed("the client is closed")
        self._sessions.check_open()

    def _is_ours(self, endpoint: Endpoint) -> bool:
        return isinstance(endpoint, Registration) and endpoint.registrar is self._registrar

    def _checked_url(self, url: object, argument: str) -> str:
        if not url:
            raise ConfigurationError(argument, "is missing")
        return check_url(url, allow_insecure=self._sessions.config.allow_insecure, argument=argument)

    def __repr__(self) -> str:
        try:
            connections = self.connections()
        except PoolClosed:
            return "<DataChannelClient closed>"
        what = ", ".join(
            f"{name}: {channel.state.value} at {without_secrets(channel.datachannel_url)}"
            for name, channel in connections.items()
        )
        return f"<DataChannelClient [{what}]>"
