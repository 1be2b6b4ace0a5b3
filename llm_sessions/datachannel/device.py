"""A registered device: how a program with nothing but an access token gets events from Webex.

::

    unknown ── catalog, devices, a new one if ours is not among them ──► known ── rejected ──► stale
       ▲                                                                   ▲                     │
       └──────────────── a call failed, or refreshing did not help ◄───────┴─────── PUT ─────────┘

- **Who owns what:** one lock (rank 40) guards the device, the flight under way and what was created; nothing
  is called under it. A flight is the one series of REST calls that all who need the device wait for. It runs
  on the thread of the caller that began it, which alone ends it.
- **No loops:** a device is created only if the service says that it knows none of this name, at most once in
  a flight; a flight begins only when somebody needs the device. Who asks again, and when, is up to the pool.
- **What ends each wait:** the flight's end, `close`, or the patience of the one who waits.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Protocol

import requests

from .. import _fork
from .._logging import get_logger, without_secrets
from .._sync import LEAF, Deadline, Latch, make_lock
from ..errors import (
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    LocalProtocolError,
    NotAuthorized,
    fresh_copy,
    named,
)
from ..pool.config import PoolConfig, check_flag, check_seconds
from ..pool.sources import AttemptInfo, Endpoint, Target, TokenProvider, TokenSource, as_provider
from .device_service import Device, DeviceService
from .rest import RestClient

__all__ = ["DeviceRegistration"]

logger: Final = get_logger("datachannel")

_PATIENCE: Final = 10
"""How many times as long as one call the others wait for a flight: it has four, each twice if refused."""


@dataclasses.dataclass(frozen=True)
class _Known:
    """The device as it was said to be at some time.

    Attributes:
        device: It.
        serial: Tells this answer from those before, which may say the same.
        refreshed: Whether it was renewed because it had been rejected.
    """

    device: Device
    serial: int = 0
    refreshed: bool = False


@dataclasses.dataclass(frozen=True)
class _DeviceTarget(Target):
    serial: int = 0  # of its device


class _Asker(Protocol):
    """Who needs the device: an attempt, or somebody else."""

    @property
    def session_id(self) -> str: ...

    @property
    def cancelled(self) -> bool: ...


@dataclasses.dataclass(frozen=True)
class _Somebody:
    session_id: str = ""
    cancelled: bool = False


class _Unwanted(Exception):
    """Nobody waits for the flight any more."""


class _Flight:
    """One series of calls, shared by those who wait for it. Guarded by the lock of its device."""

    def __init__(self, leader: _Asker) -> None:
        self.thread = threading.get_ident()
        self.askers: list[_Asker] = [leader]
        self.known: _Known | None = None
        self.error: Exception | None = None
        self.over = Latch()  # there is an outcome, or no hope of one
        self.ended = Latch()  # its thread has nothing more to do


class DeviceRegistration(Endpoint, _fork.OneProcess):
    """A device at Webex, registered when it is needed. Safe from any thread.

    `ConnectionPool().connect(DeviceRegistration(token))` gives the events of an account, such as
    `event:conversation.activity`: without a public address, and with nothing but an access token. Several
    sessions and clients may share one.

    A device of this name that is registered already is used; else one is made. When the service refuses its
    address, it is refreshed for the next attempt, or registered anew if the service has forgotten it.

    Args:
        token: The access token; None if `bind` gives it later.
        device_name: Tells the programs of one account apart, so give the program's own. Two that use the
            same one take the connection over from each other.
        catalog_url: Where the services of Webex are listed.
        http: See `RestClient`: a session to use for proxies or certificates of your own.
        timeout: Seconds for one REST call; there may be four.
        config: For `allow_insecure`, `allowed_hosts`, the proxy and what TLS trusts; give it the pool's.
        delete_on_close: Whether `close` deletes the device if this object has created it.

    Raises:
        ConfigurationError: If an argument cannot be used.
    """

    def __init__(
        self,
        token: TokenSource | None = None,
        *,
        device_name: str = "llm-sessions",
        catalog_url: str = "https://u2c.wbx2.com/u2c/api/v1/catalog",
        http: requests.Session | None = None,
        timeout: float = 10.0,
        config: PoolConfig | None = None,
        delete_on_close: bool = True,
    ) -> None:
        if not isinstance(device_name, str) or not device_name.strip() or not device_name.isprintable():
            raise ConfigurationError("device_name", "must be a printable string with something in it")
        if config is not None and not isinstance(config, PoolConfig):
            raise ConfigurationError("config", "must be a PoolConfig or None")
        check_flag("delete_on_close", delete_on_close)
        config = PoolConfig() if config is None else config
        rest = RestClient(
            None,
            http=http,
            timeout=timeout,
            config=config,
        )
        self._catalog_url = rest.check_url(catalog_url, "catalog_url")
        self._service = DeviceService(rest, device_name, self._tokens)
        self._provider = None if token is None else as_provider(token)
        self._name, self._timeout, self._delete = device_name, timeout, delete_on_close
        self._born_in = _fork.generation()
        # Guards all below, and flights. Rank 40.
        self._lock = make_lock("device", LEAF)
        self._known: _Known | None = None
        self._stale = False  # it was rejected
        self._lost = True  # what is known of it is not to be relied on: begin with the catalog
        self._wdm = ""
        self._serial = 0
        self._created: list[str] = []
        self._flight: _Flight | None = None
        self._closed = False

    @property
    def device_url(self) -> str | None:
        """The device's address, or None if it is not registered. Makes no request."""
        known = self._known
        return None if known is None else known.device.url

    def bind(self, provider: TokenProvider) -> None:
        """Take access tokens from there, unless this object was given some source of them already."""
        self._check_process()
        with self._lock:
            if self._provider is None:
                self._provider = provider

    def url(self, attempt: AttemptInfo | None = None) -> str:
        """Return the device's address, registered if need be.

        Args:
            attempt: Who needs it; None if it is for no attempt.

        Raises:
            ConfigurationError: If this is closed, has no token, or the process is a fork.
            RegistrationError: If an answer cannot be used.
            ConnectError: If a call was not answered.
            Exception: Whatever the token's source raises.
        """
        return self._need(_Somebody() if attempt is None else attempt).device.url

    def resolve(self, attempt: AttemptInfo) -> Target:
        """Return where its events are. What is raised is what `url` raises."""
        known = self._need(attempt)
        return _DeviceTarget(known.device.web_socket_url, token=self._tokens().get(), serial=known.serial)

    def rejected(self, target: Target, error: Exception) -> None:
        """Refresh the token if it was refused; otherwise the device, when it is needed next."""
        self._check_process()
        if isinstance(error, NotAuthorized) or getattr(error, "status", None) == 401:
            if target.token is not None:
                self._tokens().refresh(target.token.removeprefix("Bearer "))
            return
        self._distrust(lambda known: getattr(target, "serial", None) == known.serial, error)

    def distrust(self, url: str, error: Exception) -> None:
        """Refresh the device when it is needed next, if that is its address. Internal: for clients."""
        self._check_process()
        self._distrust(lambda known: known.device.url == url, error)

    def _distrust(self, is_meant: Callable[[_Known], bool], error: Exception) -> None:
        with self._lock:
            known = self._known
            if known is None or self._stale or not is_meant(known):
                return  # there is a newer answer by now
            self._stale, self._lost = True, known.refreshed
        logger.info("the address of the device %r was rejected: %s", self._name, error)

    def close(self, timeout: float = 5.0) -> None:
        """End the registration: delete the device if this object has created it. It cannot be used again.

        Failures are logged. Sessions that are connected by it stay so until they are disconnected, or the
        service ends them.

        Args:
            timeout: Seconds for all of it.
        """
        check_seconds("timeout", timeout, zero=True)
        if _fork.generation() != self._born_in:
            return  # the device is the other process'
        deadline = Deadline(timeout)
        with self._lock:
            self._closed = True
            flight = self._flight
        if flight is not None:
            flight.over.set()
            if flight.thread == threading.get_ident() or not flight.ended.wait(deadline.left()):
                logger.warning("the registration of %r still runs; it deletes what it creates", self._name)
                return
        self._clean_up(deadline)

    def __enter__(self) -> DeviceRegistration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return f"the device {self._name!r}"

    def __repr__(self) -> str:
        state = "registered" if self._known is not None else "not registered"
        state = "closed" if self._closed else state
        return f"<DeviceRegistration {self._name!r} {state}>"

    # -- callers ----------------------------------------------------------------------------------------

    def _need(self, asker: _Asker) -> _Known:
        """Return the device, by a flight of this thread's or another's if need be."""
        self._check_process()
        patience = Deadline(_PATIENCE * self._timeout)
        while True:
            mine: _Flight | None = None
            try:
                with self._lock:
                    self._check_open()
                    if self._known is not None and not self._stale:
                        return self._known
                    flight = self._flight
                    if flight is None:
                        flight = mine = self._flight = _Flight(asker)
                    elif flight.thread == threading.get_ident():
                        raise LocalProtocolError("the registration under way would wait for itself")
                    else:
                        flight.askers.append(asker)
                if mine is not None:
                    self._fly(mine)
            finally:  # KeyboardInterrupt may come before it began
                if mine is not None:
                    self._land(mine)
            if not flight.over.wait(patience.left()):
                what = f"the device {self._name!r} was not registered within {patience.timeout} s"
                raise ConnectError(asker.session_id, what)
            if flight.known is not None:
                return flight.known
            if flight.error is not None:
                error = fresh_copy(flight.error)
                raise named(error, asker.session_id) if isinstance(error, ConnectError) else error
            if asker.cancelled:
                raise ConnectCancelled(asker.session_id, "nobody needs the device any more")

    def _check_process(self) -> None:
        # Before the lock: its holder may be a thread of the other process.
        if _fork.generation() != self._born_in:
            raise ConfigurationError(
                "device",
                "this DeviceRegistration belongs to the process that this one was forked from; make one "
                "here, with another device_name",
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigurationError("device", "this DeviceRegistration is closed")

    def _tokens(self) -> TokenProvider:
        if self._provider is None:
            raise ConfigurationError("token", "this DeviceRegistration was given none")
        return self._provider

    # -- the flight -------------------------------------------------------------------------------------

    def _fly(self, flight: _Flight) -> None:
        try:
            known = self._register(flight)
        except _Unwanted:
            return
        except Exception as exc:  # noqa: BLE001  # each who waits raises a copy of it
            with self._lock:
                # Its frames know the token.
                flight.error, self._lost = exc.with_traceback(None), True
            return
        with self._lock:
            self._serial += 1
            flight.known = dataclasses.replace(known, serial=self._serial)
            self._known, self._stale, self._lost = flight.known, False, False

    def _land(self, flight: _Flight) -> None:
        """Tell the others, and delete what nobody else will."""
        with self._lock:
            if self._flight is flight:
                self._flight = None
            closed = self._closed
            if closed:
                flight.known = None
        flight.over.set()
        try:
            if closed:
                self._clean_up(Deadline(self._timeout))
        finally:
            flight.ended.set()

    def _register(self, flight: _Flight) -> _Known:
        with self._lock:
            known, lost, stale, wdm = self._known, self._lost, self._stale, self._wdm
        device: Device | None = None
        if lost or known is None:
            wdm = self._service.look_up(self._catalog_url)
            self._check_wanted(flight)
            url, device = self._service.find(wdm)
            self._check_wanted(flight)
            with self._lock:
                self._wdm = wdm
            if device is not None and not stale:
                logger.info("the device %r is registered already", self._name)
                return _Known(device)
        else:
            url = known.device.url
        device = self._service.refresh(url) if url else None
        self._check_wanted(flight)
        if device is None:
            with self._lock:  # the service has forgotten it: there is nothing to delete
                self._created = [one for one in self._created if one != url]
            device = self._service.create(wdm, self._has_created)
            self._check_wanted(flight)
        return _Known(device, refreshed=stale and not lost)

    def _has_created(self, url: str) -> None:
        with self._lock:
            self._created.append(url)
        logger.info("the device %r was registered: %s", self._name, without_secrets(url))

    def _check_wanted(self, flight: _Flight) -> None:
        with self._lock:
            self._check_open()
            askers = list(flight.askers)
        if all(one.cancelled for one in askers):
            raise _Unwanted

    # -- the end ----------------------------------------------------------------------------------------

    def _clean_up(self, deadline: Deadline) -> None:
        """Delete what was created; say what could not be deleted."""
        with self._lock:
            self._known = None
            created, self._created = self._created, []
        for url in created if self._delete else ():
            left = deadline.left()
            try:
                if not left:
                    raise TimeoutError("no time was left")
                self._service.delete(url, min(left, self._timeout))
            except Exception as exc:  # noqa: BLE001  # whatever the token's source raises
                logger.warning("the device %s was not deleted: %s", without_secrets(url), exc)
