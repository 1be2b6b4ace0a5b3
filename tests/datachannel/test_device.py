"""A registered device: one registration for all who ask, renewed when refused, and deleted in the end."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from llm_sessions import (
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    LocalProtocolError,
    NotAuthorized,
    PoolConfig,
    RegistrationError,
    Target,
    TokenProvider,
    UnknownResponse,
)
from llm_sessions.datachannel import device as device_module
from llm_sessions.datachannel.device import DeviceRegistration
from llm_sessions.datachannel.device_service import DeviceService
from llm_sessions.testing.server import LocalServer
from tests.datachannel.service import everything_in
from tests.support import LONG, SHORT, Background, Gate, ctrl_c, eventually, run_together

TOKEN, FRESH = "s3cret-access-token", "s3cret-access-fresh"
CATALOG, DEVICES = "/u2c/api/v1/catalog", "/wdm/api/v1/devices"
STALE = ConnectError("", "the upgrade was refused", status=404)

Make = Callable[..., DeviceRegistration]


class Attempt:
    """What the pool tells an endpoint."""

    number = 1

    def __init__(self, session_id: str = "here") -> None:
        self.session_id, self.cancelled = session_id, False

    def wait_cancelled(self, seconds: float) -> bool:
        raise AssertionError("a device waits for nothing but answers")


class Tokens:
    def __init__(self, *fresh: str) -> None:
        self.token, self.fresh = TOKEN, list(fresh)
        self.refused: list[str] = []

    def get(self) -> str:
        return self.token

    def refresh(self, rejected: str) -> str:
        self.refused.append(rejected)
        if self.fresh:
            self.token = self.fresh.pop(0)
        return self.token


@pytest.fixture
def make(server: LocalServer, client_context: ssl.SSLContext) -> Iterator[Make]:
    """Make registrations at `server`; all are closed in the end."""
    made: list[DeviceRegistration] = []

    def make(token: Any = TOKEN, **options: Any) -> DeviceRegistration:
        settings: dict[str, Any] = {
            "catalog_url": f"{server.base_url}{CATALOG}",
            "config": PoolConfig(ssl_context=client_context),
            "timeout": LONG,
            "device_name": "bot",
            **options,
        }
        made.append(DeviceRegistration(token, **settings))
        return made[-1]

    yield make
    server.release_rest()
    for device in made:
        device.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Where a registration stops before it looks the service up."""
    gate = Gate()
    look_up = DeviceService.look_up

    def stop(service: DeviceService, url: str) -> str:
        gate.pass_through()
        return look_up(service, url)

    monkeypatch.setattr(DeviceService, "look_up", stop)
    yield gate
    gate.open()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Where a registration stops once it has created a device."""
    gate = Gate()
    create = DeviceService.create

    def stop(service: DeviceService, wdm: str, created: Callable[[str], None]) -> Any:
        device = create(service, wdm, created)
        gate.pass_through()
        return device

    monkeypatch.setattr(DeviceService, "create", stop)
    yield gate
    gate.open()


def asked(server: LocalServer) -> list[str]:
    """Return what was asked so far, without the ids of devices."""
    shown = {CATALOG: "catalog", DEVICES: "devices"}
    return [f"{one.method} {shown.get(one.path, 'device')}" for one in server.requests]


REGISTERED = ["GET catalog", "GET devices", "POST devices"]


# -- registering ---------------------------------------------------------------------------------------------


def test_a_device_is_registered_when_it_is_needed(server: LocalServer, make: Make) -> None:
    device = make()
    assert (device.device_url, server.requests) == (None, [])
    target = device.resolve(Attempt())
    assert asked(server) == REGISTERED
    assert target.token == TOKEN
    assert target.url == server.requests[-1].answer["webSocketUrl"]
    assert device.url() == device.device_url == server.requests[-1].answer["url"]
    assert device.resolve(Attempt("other")) == target
    assert asked(server) == REGISTERED


def test_a_device_of_this_name_is_used_again(server: LocalServer, make: Make) -> None:
    first = make(delete_on_close=False)
    url = first.url()
    make(device_name="another").url()
    first.close()
    again = make()
    assert again.url() == url
    assert asked(server)[len(REGISTERED) * 2 :] == ["GET catalog", "GET devices"]


def test_a_listed_device_without_an_address_is_refreshed(server: LocalServer, make: Make) -> None:
    url = make().url()
    server.reject_rest(200, path=DEVICES, body={"devices": [{"name": "bot", "url": url}]})
    assert make().url() == url
    assert asked(server)[-3:] == ["GET catalog", "GET devices", "PUT device"]


def test_threads_share_one_registration(server: LocalServer, make: Make, gate: Gate) -> None:
    device = make()
    calls = [Background(lambda n=n: device.resolve(Attempt(f"session-{n}"))) for n in range(8)]
    gate.wait_arrived()
    eventually(lambda: device._flight is not None and len(device._flight.askers) == 8)
    gate.open()
    assert len({call.result().url for call in calls}) == 1
    assert asked(server) == REGISTERED


def test_each_who_waits_gets_an_error_of_its_own(server: LocalServer, make: Make, gate: Gate) -> None:
    server.reject_rest(429, headers={"Retry-After": "7"})
    device = make()
    calls = [Background(lambda n=n: device.resolve(Attempt(f"session-{n}"))) for n in range(4)]
    eventually(lambda: device._flight is not None and len(device._flight.askers) == 4)
    gate.open()
    errors = [call.error() for call in calls]
    assert len({id(error) for error in errors}) == 4
    assert {error.session_id for error in errors} == {f"session-{n}" for n in range(4)}
    assert {(type(error), error.status, error.retry_after) for error in errors} == {
        (RegistrationError, 429, 7)
    }
    assert not [text for error in errors for text in everything_in(error) if TOKEN in text]
    assert asked(server) == ["GET catalog"]
    assert device.url()  # nothing was left behind


def test_an_error_for_nobody_in_particular_names_no_session(server: LocalServer, make: Make) -> None:
    server.reject_rest(403)
    with pytest.raises(RegistrationError) as caught:
        make().url()
    assert (caught.value.session_id, caught.value.status) == ("", 403)


@pytest.mark.parametrize("path", [CATALOG, DEVICES])
@pytest.mark.parametrize("body", [{}, [], b"<html>", {"devices": None, "serviceLinks": None}], ids=repr)
def test_a_bad_answer_leaves_nothing_behind(server: LocalServer, make: Make, path: str, body: object) -> None:
    server.reject_rest(200, path=path, body=body)
    device = make()
    with pytest.raises(RegistrationError) as caught:
        device.resolve(Attempt())
    assert (caught.value.status, caught.value.session_id) == (200, "here")
    assert caught.value.timing is not None
    assert device.device_url is None
    assert device.resolve(Attempt())


def test_a_refused_token_is_refreshed(server: LocalServer, make: Make) -> None:
    server.tokens = {FRESH}
    tokens = Tokens(FRESH)
    assert make(tokens).resolve(Attempt()).token == FRESH
    assert tokens.refused == [TOKEN]
    assert asked(server) == ["GET catalog", *REGISTERED]


def test_a_token_may_come_later(make: Make) -> None:
    device = make(None)
    with pytest.raises(ConfigurationError, match="was given none"):
        device.url()
    device.bind(Tokens())
    device.bind(Tokens("never"))
    assert device.resolve(Attempt()).token == TOKEN


def test_what_the_source_of_tokens_raises_comes_out(server: LocalServer, make: Make) -> None:
    def no_token() -> str:
        raise KeyError("no token")

    with pytest.raises(KeyError):
        make(no_token).url()
    assert server.requests == []


def test_a_source_of_tokens_cannot_ask_for_the_device(make: Make) -> None:
    device: DeviceRegistration

    def of_the_device() -> str:
        return device.url()

    device = make(of_the_device)
    with pytest.raises(LocalProtocolError, match="would wait for itself"):
        device.url()


def test_a_source_of_tokens_that_ends_its_thread_strands_nobody(make: Make, gate: Gate) -> None:
    tries = iter([SystemExit()])

    def token() -> str:
        for error in tries:
            raise error
        return TOKEN

    device = make(token)
    leader = Background(device.url)
    gate.wait_arrived()
    follower = Background(device.url)
    eventually(lambda: device._flight is not None and len(device._flight.askers) == 2)
    gate.open()
    outcomes = [leader, follower]
    assert isinstance(leader.error(), SystemExit)
    assert outcomes[1].result() == device.device_url


def test_whoever_waits_for_another_is_patient_but_not_for_ever(
    make: Make, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = make()
    leader = Background(device.url)
    gate.wait_arrived()
    monkeypatch.setattr(device_module, "_PATIENCE", SHORT / LONG)
    with pytest.raises(ConnectError, match="was not registered within"):
        device.resolve(Attempt())
    gate.open()
    leader.result()


@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
def test_t5_ctrl_c_strands_nobody(plain_locks: None, server: LocalServer, make: Make, leads: bool) -> None:
    device = make()
    server.hold_rest()
    others: list[Background] = []

    def flight(askers: int) -> bool:
        return device._flight is not None and len(device._flight.askers) == askers

    def interruptible() -> bool:
        if leads:
            eventually(lambda: flight(1))
            others.append(Background(device.url))
        eventually(lambda: flight(2))
        server.wait_for(lambda: len(server.requests) == 1)
        return True

    if not leads:
        others.append(Background(device.url))
        eventually(lambda: flight(1))
    with ctrl_c(interruptible):
        device.url()
    server.release_rest()
    assert others[0].result() == device.device_url
    assert asked(server)[-3:] == REGISTERED


# -- cancelled -----------------------------------------------------------------------------------------------


def test_a_registration_that_nobody_wants_any_more_ends(server: LocalServer, make: Make, gate: Gate) -> None:
    device, attempt = make(), Attempt()
    call = Background(lambda: device.resolve(attempt))
    gate.wait_arrived()
    attempt.cancelled = True
    gate.open()
    assert isinstance(call.error(), ConnectCancelled)
    assert (asked(server), device.device_url) == (["GET catalog"], None)


def test_a_registration_that_somebody_else_wants_goes_on(server: LocalServer, make: Make, gate: Gate) -> None:
    device, attempt = make(), Attempt()
    leader = Background(lambda: device.resolve(attempt))
    gate.wait_arrived()
    follower = Background(lambda: device.resolve(Attempt()))
    eventually(lambda: device._flight is not None and len(device._flight.askers) == 2)
    attempt.cancelled = True
    gate.open()
    assert follower.result() == leader.result()
    assert asked(server) == REGISTERED


def test_what_was_made_for_nobody_is_found_again_and_deleted(
    server: LocalServer, make: Make, made: Gate
) -> None:
    device, attempt = make(), Attempt()
    call = Background(lambda: device.resolve(attempt))
    made.wait_arrived()
    attempt.cancelled = True
    made.open()
    assert isinstance(call.error(), ConnectCancelled)
    assert device.device_url is None
    assert device.url() == server.requests[2].answer["url"]
    device.close()
    assert asked(server) == [*REGISTERED, "GET catalog", "GET devices", "DELETE device"]


# -- rejected ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [STALE, UnknownResponse("", "closed"), ValueError("short-lived")])
def test_a_rejected_address_is_refreshed_when_it_is_needed_next(
    server: LocalServer, make: Make, error: Exception
) -> None:
    device = make()
    target = device.resolve(Attempt())
    for _ in range(3):
        device.rejected(target, error)
    assert asked(server) == REGISTERED
    assert device.resolve(Attempt()).url == target.url
    assert asked(server) == [*REGISTERED, "PUT device"]


def test_a_device_that_was_forgotten_is_made_anew_once(server: LocalServer, make: Make) -> None:
    device = make()
    target = device.resolve(Attempt())
    server.forget_devices()
    device.rejected(target, STALE)
    fresh = run_together(6, lambda: device.resolve(Attempt()))
    assert len({one.url for one in fresh}) == 1 and fresh[0].url != target.url
    assert asked(server) == [*REGISTERED, "PUT device", "POST devices"]


def test_an_older_address_does_not_spoil_a_newer_one(server: LocalServer, make: Make) -> None:
    device = make()
    old = device.resolve(Attempt())
    device.rejected(old, STALE)
    new = device.resolve(Attempt())
    assert new.url == old.url
    device.rejected(old, STALE)  # a slower session, which says it of the same address
    device.rejected(Target("wss://service.example/"), STALE)
    device.resolve(Attempt())
    assert asked(server) == [*REGISTERED, "PUT device"]


def test_if_refreshing_does_not_help_it_begins_with_the_catalog(server: LocalServer, make: Make) -> None:
    device = make()
    for _ in range(4):
        device.rejected(device.resolve(Attempt()), STALE)
    device.resolve(Attempt())
    again = ["GET catalog", "GET devices", "PUT device"]
    assert asked(server) == [*REGISTERED, "PUT device", *again, "PUT device", *again]


def test_d24_a_refresh_that_fails_is_followed_by_the_catalog(server: LocalServer, make: Make) -> None:
    device = make()
    device.rejected(device.resolve(Attempt()), STALE)
    server.reject_rest(500, path=f"{DEVICES}/*")
    with pytest.raises(RegistrationError) as caught:
        device.resolve(Attempt())
    assert caught.value.status == 500
    assert device.resolve(Attempt())
    assert asked(server)[3:] == ["PUT device", "GET catalog", "GET devices", "PUT device"]


@pytest.mark.parametrize(
    "error", [NotAuthorized("", "4401", code=4401), RegistrationError("", "401", 401)], ids=["4401", "401"]
)
def test_a_refused_token_is_replaced_and_the_device_is_not(
    server: LocalServer, make: Make, error: Exception
) -> None:
    tokens = Tokens(FRESH)
    device = make(tokens)
    device.rejected(device.resolve(Attempt()), error)
    assert device.resolve(Attempt()).token == FRESH
    assert (tokens.refused, asked(server)) == ([TOKEN], REGISTERED)


# -- the end -------------------------------------------------------------------------------------------------


def test_what_was_made_is_deleted(server: LocalServer, make: Make) -> None:
    with make() as device:
        url = device.url()
    assert asked(server) == [*REGISTERED, "DELETE device"]
    assert url.endswith(server.requests[-1].path)
    device.close()
    assert len(server.requests) == 4
    for call in (device.url, lambda: device.resolve(Attempt())):
        with pytest.raises(ConfigurationError, match="is closed"):
            call()


def test_what_was_found_is_not_deleted(server: LocalServer, make: Make) -> None:
    maker = make()
    maker.url()
    with make() as device:
        device.url()
    assert asked(server) == [*REGISTERED, "GET catalog", "GET devices"]


def test_nothing_is_deleted_if_it_is_to_stay(server: LocalServer, make: Make) -> None:
    with make(delete_on_close=False) as device:
        device.url()
    assert asked(server) == REGISTERED


@pytest.mark.parametrize("status", [403, 500])
def test_a_device_that_cannot_be_deleted_is_logged(
    server: LocalServer, make: Make, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    device = make()
    url = device.url()
    server.reject_rest(status, path=f"{DEVICES}/*")
    device.close()
    assert f"the device {url} was not deleted: DELETE {url} answered {status}" in caplog.text


def test_a_device_that_is_gone_already_is_fine(
    server: LocalServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with make() as device:
        device.url()
        server.forget_devices()
    assert asked(server)[-1] == "DELETE device"
    assert "not deleted" not in caplog.text


def test_close_does_not_wait_for_a_service_that_does_not_answer(
    server: LocalServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    device = make()
    device.url()
    server.hold_rest()
    device.close(timeout=SHORT)
    assert f"was not deleted: DELETE {server.base_url}" in caplog.text


def test_close_without_any_time_says_what_is_left(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    device = make()
    device.url()
    device.close(timeout=0)
    assert "was not deleted: no time was left" in caplog.text


def test_close_ends_a_registration_and_what_it_made(server: LocalServer, make: Make) -> None:
    device = make()
    server.hold_rest(DEVICES)
    leader = Background(device.url)
    server.wait_for(lambda: len(server.requests) == 2)
    follower = Background(device.url)
    eventually(lambda: device._flight is not None and len(device._flight.askers) == 2)
    closing = Background(device.close)
    assert isinstance(follower.error(), ConfigurationError)  # at once
    server.release_rest()
    assert isinstance(leader.error(), ConfigurationError)
    closing.result()
    assert asked(server) == ["GET catalog", "GET devices"]


def test_what_was_made_while_it_was_closed_is_deleted_by_who_made_it(
    server: LocalServer, make: Make, made: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    device = make()
    call = Background(device.url)
    made.wait_arrived()
    device.close(timeout=SHORT)
    assert "still runs; it deletes what it creates" in caplog.text
    assert asked(server) == REGISTERED
    made.open()
    assert isinstance(call.error(), ConfigurationError)
    assert asked(server) == [*REGISTERED, "DELETE device"]
    assert device.device_url is None


# -- where it may go, and what it is given -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"token": "two words"}, "token"),
        ({"token": 7}, "token"),
        ({"device_name": ""}, "device_name"),
        ({"device_name": " "}, "device_name"),
        ({"device_name": "a\nb"}, "device_name"),
        ({"device_name": None}, "device_name"),
        ({"config": {}}, "config"),
        ({"delete_on_close": "yes"}, "delete_on_close"),
        ({"timeout": 0}, "timeout"),
        ({"http": "session"}, "http"),
        ({"catalog_url": "http://catalog.example/"}, "catalog_url"),
        ({"catalog_url": None}, "catalog_url"),
        ({"config": PoolConfig(allowed_hosts=["other.example"])}, "catalog_url"),
    ],
)
def test_t12_bad_settings_are_refused(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        DeviceRegistration(**{"token": TOKEN, **options})
    assert caught.value.argument == argument


@pytest.mark.parametrize("bad", [-1, None, float("nan")])
def test_a_bad_timeout_of_close_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        DeviceRegistration(TOKEN).close(bad)


def test_a_given_session_is_used(server: LocalServer, client_context: ssl.SSLContext, make: Make) -> None:
    if server.base_url.startswith("https"):
        with requests.Session() as session, pytest.raises(ConnectError, match="certificate"):
            make(http=session).url()  # it has its own idea of whom to trust
        return
    with requests.Session() as session:
        session.headers["X-Ours"] = "yes"
        device = make(http=session)
        device.url()
        device.close()
    assert {request.headers["x-ours"] for request in server.requests} == {"yes"}


def test_it_says_what_it_is(make: Make) -> None:
    device = make()
    assert (str(device), repr(device)) == ("the device 'bot'", "<DeviceRegistration 'bot' not registered>")
    device.url()
    assert repr(device) == "<DeviceRegistration 'bot' registered>"
    device.close()
    assert repr(device) == "<DeviceRegistration 'bot' closed>"
    assert isinstance(Tokens(), TokenProvider)


def test_t11_neither_records_nor_targets_show_the_token(
    server: LocalServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    device = make()
    target = device.resolve(Attempt())
    server.forget_devices()
    device.rejected(target, STALE)
    device.resolve(Attempt())
    device.close()
    assert TOKEN not in caplog.text + repr(target) + repr(device)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_t7_a_fork_is_told_so_and_leaves_the_device_alone(server: LocalServer, make: Make) -> None:
    device = make()
    device.url()
    before = len(server.requests)
    child = os.fork()
    if not child:
        failed = 1
        try:
            device.close()
            for call in (device.url, lambda: device.resolve(Attempt()), lambda: device.bind(Tokens())):
                with pytest.raises(ConfigurationError, match="forked"):
                    call()
            failed = 0
        finally:
            os._exit(failed)
    deadline = time.monotonic() + LONG
    done, status = 0, 0
    pause = threading.Event()
    while not done:
        assert time.monotonic() < deadline, "the child did not end"
        done, status = os.waitpid(child, os.WNOHANG)
        pause.wait(0.005)
    assert status == 0
    assert len(server.requests) == before
    assert device.url() == device.device_url
