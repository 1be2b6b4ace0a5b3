"""Devices on real sockets: events from an access token alone, through all that happens to registrations."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import (
    ConfigurationError,
    ConnectionPool,
    ConnectTimeout,
    NotAuthorized,
    PoolConfig,
    RegistrationError,
)
from llm_sessions.datachannel.device import DeviceRegistration
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, Background, Recorder, eventually, library_threads, run_together

TOKEN, FRESH = "s3cret-access-token", "s3cret-access-fresh"
ACTIVITY = "event:conversation.activity"
DEVICES = "/wdm/api/v1/devices"
LIVE_REGISTRATION = ["GET", "GET", "POST"]

MakePool = Callable[..., ConnectionPool]
Make = Callable[..., DeviceRegistration]


class Tokens:
    """A provider with one more token."""

    def __init__(self, fresh: str = FRESH) -> None:
        self.token, self.fresh = TOKEN, fresh
        self.refused: list[str] = []

    def get(self) -> str:
        return self.token

    def refresh(self, rejected: str) -> str:
        self.refused.append(rejected)
        self.token = self.fresh
        return self.token


@pytest.fixture
def make_device(server: LocalServer, client_context: ssl.SSLContext, make_pool: MakePool) -> Iterator[Make]:
    # make_pool is named so that its pools are closed after the devices: sessions are online when these go.
    made: list[DeviceRegistration] = []

    def make(token: Any = TOKEN, **options: Any) -> DeviceRegistration:
        settings: dict[str, Any] = {
            "catalog_url": f"{server.base_url}/u2c/api/v1/catalog",
            "config": PoolConfig(ssl_context=client_context),
            "timeout": LONG,
            **options,
        }
        made.append(DeviceRegistration(token, **settings))
        return made[-1]

    yield make
    server.release_rest()
    for device in made:
        device.close()


def methods(server: LocalServer) -> list[str]:
    return [request.method for request in server.requests]


def key_of(device: DeviceRegistration) -> str:
    """Return the session key of a device's socket."""
    assert device.device_url is not None
    return device.device_url.rpartition("/")[2]


def test_a_pool_without_a_token_hears_what_a_device_is_told(
    server: LocalServer, make_pool: MakePool, make_device: Make
) -> None:
    server.tokens = {TOKEN}
    device = make_device()
    pool = make_pool(None)
    recorder = Recorder().listen(pool, ACTIVITY)
    assert pool.connect(device).online
    server.publish({"activity": {"verb": "post"}}, event_type="conversation.activity", session=key_of(device))
    [envelope] = recorder.wait(ACTIVITY)
    assert envelope.data["activity"] == {"verb": "post"}
    assert methods(server) == LIVE_REGISTRATION


def test_a_drop_needs_no_new_registration(
    server: LocalServer, make_pool: MakePool, make_device: Make
) -> None:
    recorder = Recorder()
    pool = make_pool(None)
    recorder.listen(pool)
    pool.connect(make_device())
    server.drop()
    recorder.wait("online", 2)
    assert methods(server) == LIVE_REGISTRATION


def test_a_forgotten_device_is_registered_again(
    server: LocalServer, make_pool: MakePool, make_device: Make
) -> None:
    device = make_device()
    pool = make_pool(None)
    recorder = Recorder().listen(pool)
    pool.connect(device)
    before = device.device_url
    server.forget_devices()
    server.drop()
    recorder.wait("online", 2)
    assert device.device_url != before
    assert methods(server) == [*LIVE_REGISTRATION, "PUT", "POST"]
    server.publish({"text": "new"}, event_type="conversation.activity", session=key_of(device))
    recorder.wait("event")


def test_a_first_connect_outlives_a_stale_device_of_an_earlier_run(
    server: LocalServer, make_pool: MakePool, make_device: Make
) -> None:
    with make_device(delete_on_close=False) as earlier:
        url = earlier.url()
    server.reject(404)  # its address is not accepted, but the service lists it
    device = make_device()
    assert make_pool(None).connect(device).online
    assert device.device_url == url
    assert methods(server) == [*LIVE_REGISTRATION, "GET", "GET", "PUT"]


def test_an_address_that_is_never_accepted_makes_no_storm_of_devices(
    server: LocalServer, make_pool: MakePool, make_device: Make
) -> None:
    server.reject(404, times=7)
    pool = make_pool(None)
    assert pool.connect(make_device()).online
    assert methods(server).count("POST") == 1
    assert methods(server)[3:] == ["PUT", "GET", "GET", "PUT", *["PUT", "GET", "GET", "PUT"] * 2, "PUT"]


def test_sessions_share_a_device(server: LocalServer, make_pool: MakePool, make_device: Make) -> None:
    device = make_device()
    pool = make_pool(None)
    names = iter([f"s{n}" for n in range(6)])
    sessions = run_together(6, lambda: pool.connect(device, session_id=next(names)))
    assert [session.online for session in sessions] == [True] * 6
    assert methods(server) == LIVE_REGISTRATION
    assert len(server.live(key_of(device))) == 6


def test_sessions_that_lose_a_device_together_make_one(
    server: LocalServer, make_pool: MakePool, make_device: Make
) -> None:
    device = make_device()
    pool = make_pool(None)
    sessions = [pool.connect(device, session_id=f"s{n}") for n in range(4)]
    server.forget_devices()
    server.drop()
    eventually(lambda: device.device_url is not None and len(server.live(key_of(device))) == 4)
    assert all(session.wait_online(LONG) is None or session.online for session in sessions)
    assert methods(server).count("POST") == 2


@pytest.mark.parametrize("code", [4401, 401])
def test_a_refused_token_is_refreshed_by_its_own_source(
    server: LocalServer, make_pool: MakePool, make_device: Make, code: int
) -> None:
    tokens = Tokens()
    device = make_device(tokens)
    server.reject(code)
    assert make_pool(None).connect(device).online
    assert tokens.refused == [TOKEN]
    assert methods(server) == LIVE_REGISTRATION


def test_a_token_that_is_refused_for_good_ends_the_run(
    server: LocalServer, make_pool: MakePool, make_device: Make
) -> None:
    server.reject(4401, times=9)
    with pytest.raises(NotAuthorized):
        make_pool(None).connect(make_device(Tokens(fresh=TOKEN)))
    server.tokens = set()
    with pytest.raises(RegistrationError) as caught:
        make_pool(None).connect(make_device(Tokens()))
    assert caught.value.status == 401


@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("path", ["/u2c/*", DEVICES])
def test_d24_a_busy_service_is_asked_again(
    server: LocalServer, make_pool: MakePool, make_device: Make, status: int, path: str
) -> None:
    server.reject_rest(status, path=path, times=2, headers={"Retry-After": "0"})
    session = make_pool(None).connect(make_device())
    assert session.online
    assert isinstance(session.last_error, RegistrationError) and session.last_error.status == status
    assert methods(server).count("POST") == 1


def test_t0_a_service_that_does_not_answer_does_not_hold_a_disconnect(
    server: LocalServer, make_pool: MakePool, make_device: Make
) -> None:
    server.hold_rest()
    device, pool = make_device(), make_pool(None)
    with pytest.raises(ConnectTimeout):
        pool.connect(device, timeout=0.05)
    server.wait_for(lambda: len(server.requests) == 1)
    call = Background(lambda: pool.connect(device))
    eventually(lambda: device._flight is not None and len(device._flight.askers) == 2)
    began = time.monotonic()
    pool.disconnect()
    assert time.monotonic() - began < 1
    call.error()
    server.release_rest()
    eventually(lambda: not any("connector" in thread.name for thread in library_threads()))
    assert (server.connections(), device.device_url) == ([], None)
    assert pool.connect(device).online


def test_a_closed_device_connects_nothing_more(
    server: LocalServer, make_pool: MakePool, make_device: Make
) -> None:
    device, pool = make_device(), make_pool(None)
    recorder = Recorder().listen(pool)
    pool.connect(device)
    device.close()
    assert methods(server) == [*LIVE_REGISTRATION, "DELETE"]
    server.drop()
    recorder.wait("offline.permanent")
    with pytest.raises(ConfigurationError, match="is closed"):
        pool.connect(device)
