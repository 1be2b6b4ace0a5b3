"""Registration: what the pool asks for a data channel's address, afresh for every attempt.

The POST is the first half of an attempt and the socket its second, so what holds for attempts holds for
registrations: one run a session, shared by all who ask, cancelled wherever it is, and only the newest one
counts. For that, nothing is stored here. The URLs are the endpoint's, which the session has taken before the
first POST; what the answer says is the target's, which the session has only because its socket is ready.

What a cancelled attempt finds out is dropped: after every step that may take time the attempt is asked
whether anybody wants the answer, and nothing more is sent if not. The one thing that stays is a refreshed
token: it replaces one that is used up, for its session, whichever attempt asked for it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote_plus, urlsplit, urlunsplit

from .._logging import get_logger, without_secrets
from ..errors import ConfigurationError, ConnectCancelled, PoolClosed, RegistrationError, TokenRefreshError
from ..pool.sources import AttemptInfo, Endpoint, Target
from .auth import DataChannelAuth
from .rest import RestClient
from .tokens import TokenStore

__all__ = ["RegisteredTarget", "Registrar", "Registration", "subscribing_url"]

logger: Final = get_logger("datachannel")

_SUBCHANNELS: Final = "subscriptionAwareSubchannels=transcription"


@dataclasses.dataclass(frozen=True)
class RegisteredTarget(Target):
    """Where one attempt connects to, and what the service said of it.

    Attributes:
        registration: Whose answer it is.
        device_url: The device that it was registered with.
        binding: The channel's route: what goes out on its socket names it.
        web_socket_url: As the service gave it.
        subscribing: Whether subchannels are subscribed to on this socket, which was decided together with
            the header.
        register_seconds: From the POST until its answer was read, second try included.
        registered_at: When that was; monotonic.
    """

    registration: Registration | None = None
    device_url: str = ""
    binding: str = ""
    web_socket_url: str = ""
    subscribing: bool = False
    register_seconds: float = 0.0
    registered_at: float = 0.0


@dataclasses.dataclass(eq=False)
class Registrar:
    """What the registrations of one client share, and how they know that they are the same client's.

    Attributes:
        rest: Makes the POST.
        tokens: The client's data channel tokens.
        device_url: Returns the device URL, for an attempt that needs it; may register a device first.
        wants_tokens: The toggle; called once for each registration.
        distrust: Told a device URL that was refused, and why.
        refresh_timeout: Seconds to wait for a token refresh that another session began; None for no limit.
        closed: Set once, before the client disconnects its sessions.
    """

    rest: RestClient
    tokens: TokenStore
    device_url: Callable[[AttemptInfo], str]
    wants_tokens: Callable[[], bool]
    distrust: Callable[[str, Exception], None] = lambda url, error: None
    refresh_timeout: float | None = None
    closed: bool = False


@dataclasses.dataclass(frozen=True, repr=False)
class Registration(Endpoint):
    """One session's data channel. Equal ones are the same client's, session's, and URLs'.

    Attributes:
        registrar: The client's.
        session_id: Whose channel, and whose token.
        locus_url: The meeting's.
        datachannel_url: Where the channel is registered.
    """

    registrar: Registrar
    session_id: str
    locus_url: str
    datachannel_url: str

    def __str__(self) -> str:
        return without_secrets(self.datachannel_url)

    def __repr__(self) -> str:
        return f"<Registration of {self.session_id!r} at {self}>"

    def resolve(self, attempt: AttemptInfo) -> RegisteredTarget:
        """Register, and return where to connect to.

        Raises:
            RegistrationError: If the answer cannot be used; nothing of it is kept.
            TokenRefreshError: If the data channel token was refused and could not be refreshed.
            ConnectError: If there was no answer.
            ConfigurationError: If the client is closed, or an address may not get the access token.
            ConnectCancelled: If nobody wants the answer any more.
        """
        try:
            return self._register(attempt)
        except PoolClosed:  # that is what the tokens of a closed client say
            self._check(attempt)
            raise

    def rejected(self, target: Target, error: Exception) -> None:
        """Have the device looked after before the next registration: the service may have forgotten it."""
        if isinstance(target, RegisteredTarget):
            self.registrar.distrust(target.device_url, error)

    def _register(self, attempt: AttemptInfo) -> RegisteredTarget:
        self._check(attempt)
        subscribing = bool(self.registrar.wants_tokens())  # once: it decides the header and the query
        self._check(attempt)
        device_url = self.registrar.device_url(attempt)
        self._check(attempt)
        auth = self._auth(attempt) if subscribing else None
        self._check(attempt)
        try:
            reply = self.registrar.rest.call(
                "POST",
                self.datachannel_url,
                session_id=self.session_id,
                json={"deviceUrl": device_url},
                auth=auth,
            )
        except RegistrationError as exc:
            if exc.status == HTTPStatus.NOT_FOUND:
                self.registrar.distrust(device_url, exc)
            if auth is None or not auth.resent or isinstance(exc, TokenRefreshError):
                raise
            what = f"{exc.message}; refused again with a new data channel token"
            raise RegistrationError(
                self.session_id, what, exc.status, exc.url, exc.timing, exc.retry_after
            ) from exc
        self._check(attempt)
        web_socket_url = self.registrar.rest.link(reply, "webSocketUrl", self.session_id)
        binding = reply.body.get("binding")
        if not isinstance(binding, str) or not binding:
            raise reply.unusable(self.session_id, "without a binding")
        about = {"session_id": self.session_id}
        logger.info("[%s] registered at %s in %.3f s", self.session_id, self, reply.timing, extra=about)
        return RegisteredTarget(
            subscribing_url(web_socket_url) if subscribing else web_socket_url,
            registration=self,
            device_url=device_url,
            binding=binding,
            web_socket_url=web_socket_url,
            subscribing=subscribing,
            register_seconds=reply.timing,
            registered_at=time.monotonic(),
        )

    def _auth(self, attempt: AttemptInfo) -> DataChannelAuth | None:
        """Return what authorizes the POST; None if the session has no token and nothing to get one from."""
        registrar, session_id = self.registrar, self.session_id
        found = registrar.tokens.read(session_id, self.locus_url)
        if found is None:  # the meeting was left, or another registration is about to take this one's place
            raise ConnectCancelled(session_id, "its meeting was left meanwhile")
        token, epoch = found
        fetched = False
        if token is None and registrar.tokens.has_handler(session_id):
            try:
                token = registrar.tokens.refresh(session_id, epoch=epoch, timeout=registrar.refresh_timeout)
                fetched = True
            except TokenRefreshError as exc:
                text = "[%s] registers without a data channel token: %s"
                logger.warning(text, session_id, exc, extra={"session_id": session_id})
        if token is None:
            return None
        return DataChannelAuth(
            registrar.tokens,
            session_id,
            token,
            epoch,
            wait=lambda seconds: attempt.wait_cancelled(seconds) or attempt.cancelled or registrar.closed,
            timeout=registrar.refresh_timeout,
            fresh=fetched,
        )

    def _check(self, attempt: AttemptInfo) -> None:
        if self.registrar.closed:
            raise ConfigurationError("client", "this DataChannelClient is closed")
        if attempt.cancelled:
            raise ConnectCancelled(self.session_id, "nobody wants this registration any more")


def subscribing_url(url: str) -> str:
    """Return a WebSocket URL that says that its client subscribes to subchannels; it says so once.

    Other keys stay as they are, to the letter.
    """
    parts = urlsplit(url)
    name = _SUBCHANNELS.partition("=")[0]
    pairs = [pair for pair in parts.query.split("&") if pair]
    kept = [pair for pair in pairs if unquote_plus(pair.partition("=")[0]) != name]
    return urlunsplit(parts._replace(query="&".join([*kept, _SUBCHANNELS])))
