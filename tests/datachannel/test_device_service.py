"""The calls that register a device: what is sent, and what each answer means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import responses

from llm_sessions import ConfigurationError, RegistrationError
from llm_sessions.datachannel.device_service import Device, DeviceService
from llm_sessions.datachannel.rest import RestClient
from llm_sessions.pool.sources import StaticToken, TokenProvider

CATALOG = "https://catalog.example/catalog"
WDM = "https://wdm.example/wdm/api/v1"
OURS = {"name": "bot", "url": f"{WDM}/devices/1", "webSocketUrl": "wss://mercury.example/1"}
DEVICE = Device(OURS["url"], OURS["webSocketUrl"])
OTHERS = {"name": "phone", "url": f"{WDM}/devices/2", "webSocketUrl": "wss://mercury.example/2"}


@pytest.fixture
def mock() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock() as mock:
        yield mock


def service(provider: TokenProvider | None = None) -> DeviceService:
    rest = RestClient(None, allowed_hosts=["*.example"])
    return DeviceService(rest, "bot", lambda: provider or StaticToken("Bearer a-token"))


def test_the_catalog_names_the_service(mock: responses.RequestsMock) -> None:
    mock.get(f"{CATALOG}?format=hostmap", json={"serviceLinks": {"wdm": f"{WDM}/"}})
    assert service().look_up(CATALOG) == WDM


@pytest.mark.parametrize(
    "catalog",
    [
        {},
        {"serviceLinks": None},
        {"serviceLinks": {}},
        {"serviceLinks": {"wdm": "http://a.example"}},
        {"serviceLinks": None, "wdm": WDM},
    ],
)
def test_t12_a_catalog_without_a_service_that_may_get_the_token(
    mock: responses.RequestsMock, catalog: Any
) -> None:
    mock.get(CATALOG, json=catalog)
    with pytest.raises(RegistrationError, match="a wdm") as caught:
        service().look_up(CATALOG)
    assert (caught.value.status, caught.value.url) == (200, CATALOG)


@pytest.mark.parametrize(
    ("devices", "found"),
    [
        ([], ("", None)),
        ([OTHERS], ("", None)),
        ([OTHERS, OURS], (DEVICE.url, DEVICE)),
        ([{**OURS, "webSocketUrl": None}], (DEVICE.url, None)),
        ([{"name": "bot"}, "junk", None, OURS], (DEVICE.url, DEVICE)),
    ],
    ids=["none", "others", "ours", "not whole", "junk"],
)
def test_a_device_is_found_by_its_name(
    mock: responses.RequestsMock, devices: list[Any], found: tuple[str, Device | None]
) -> None:
    mock.get(f"{WDM}/devices", json={"devices": devices})
    assert service().find(WDM) == found


def test_an_account_without_devices_may_be_not_found(mock: responses.RequestsMock) -> None:
    mock.get(f"{WDM}/devices", status=404)
    assert service().find(WDM) == ("", None)


@pytest.mark.parametrize("body", [{}, {"devices": {}}])
def test_what_is_no_list_of_devices_is_no_answer(mock: responses.RequestsMock, body: Any) -> None:
    mock.get(f"{WDM}/devices", json=body)
    with pytest.raises(RegistrationError, match="without a list of devices"):
        service().find(WDM)


def test_a_device_is_made_with_seven_fields(mock: responses.RequestsMock) -> None:
    mock.post(f"{WDM}/devices", json=OURS)
    created: list[str] = []
    assert service().create(WDM, created.append) == DEVICE
    assert created == [DEVICE.url]
    fields = ("deviceName", "deviceType", "localizedModel", "model", "name", "systemName", "systemVersion")
    sent = mock.calls[0].request.body
    assert sent is not None and [name for name in fields if f'"{name}":"'.encode() not in sent] == []


def test_what_was_made_is_known_even_if_the_rest_of_the_answer_is_bad(mock: responses.RequestsMock) -> None:
    mock.post(f"{WDM}/devices", json={"url": DEVICE.url})
    created: list[str] = []
    with pytest.raises(RegistrationError, match="without a webSocketUrl"):
        service().create(WDM, created.append)
    assert created == [DEVICE.url]


@pytest.mark.parametrize(
    "url", ["ws://mercury.example/1", "wss://mercury.invalid/1", "https://mercury.example/1"]
)
def test_t12_an_address_that_may_not_get_the_token_is_refused(mock: responses.RequestsMock, url: str) -> None:
    mock.put(DEVICE.url, json={**OURS, "webSocketUrl": url})
    with pytest.raises(RegistrationError, match="webSocketUrl that cannot be used"):
        service().refresh(DEVICE.url)


def test_a_device_is_refreshed(mock: responses.RequestsMock) -> None:
    mock.put(DEVICE.url, json={**OURS, "webSocketUrl": "wss://mercury.example/3"})
    assert service().refresh(DEVICE.url) == Device(DEVICE.url, "wss://mercury.example/3")


def test_a_device_that_is_not_known_any_more(mock: responses.RequestsMock) -> None:
    mock.put(DEVICE.url, status=404)
    mock.delete(DEVICE.url, status=404)
    assert service().refresh(DEVICE.url) is None
    service().delete(DEVICE.url, 1.0)


@pytest.mark.parametrize("status", [400, 403, 429, 500])
def test_other_refusals_come_out(mock: responses.RequestsMock, status: int) -> None:
    for method in ("GET", "PUT", "DELETE"):
        mock.add(method, f"{WDM}/devices" if method == "GET" else DEVICE.url, status=status)
    calls = service()
    for call in (
        lambda: calls.find(WDM),
        lambda: calls.refresh(DEVICE.url),
        lambda: calls.delete(DEVICE.url, 1.0),
    ):
        with pytest.raises(RegistrationError) as caught:
            call()
        assert caught.value.status == status


def test_a_device_is_deleted(mock: responses.RequestsMock) -> None:
    mock.delete(DEVICE.url, status=204)
    service().delete(DEVICE.url, 1.0)
    assert len(mock.calls) == 1


class Tokens:
    """Hands out `old` until it is refused, then what `refresh` returns."""

    def __init__(self, fresh: Any) -> None:
        self.fresh, self.refused = fresh, list[str]()

    def get(self) -> str:
        return "Bearer old"

    def refresh(self, rejected: str) -> str:
        self.refused.append(rejected)
        return str(self.fresh) if isinstance(self.fresh, str) else self.fresh


def refusing_old_tokens(request: Any) -> tuple[int, dict[str, str], str]:
    return (401 if request.headers["Authorization"] == "Bearer old" else 204), {}, ""


@pytest.mark.parametrize("fresh", ["new", "Bearer new"])
def test_a_refused_token_is_refreshed_once(mock: responses.RequestsMock, fresh: str) -> None:
    mock.add_callback("DELETE", DEVICE.url, refusing_old_tokens)
    tokens = Tokens(fresh)
    service(tokens).delete(DEVICE.url, 1.0)
    assert tokens.refused == ["old"]
    assert [call.request.headers["Authorization"] for call in mock.calls] == ["Bearer old", "Bearer new"]


@pytest.mark.parametrize("fresh", ["old", "Bearer old"])
def test_a_provider_without_another_token_is_the_end(mock: responses.RequestsMock, fresh: str) -> None:
    mock.add_callback("DELETE", DEVICE.url, refusing_old_tokens)
    with pytest.raises(RegistrationError) as caught:
        service(Tokens(fresh)).delete(DEVICE.url, 1.0)
    assert (caught.value.status, len(mock.calls)) == (401, 1)


def test_a_provider_that_refreshes_to_nonsense_is_told_so(mock: responses.RequestsMock) -> None:
    mock.add_callback("DELETE", DEVICE.url, refusing_old_tokens)
    with pytest.raises(ConfigurationError, match="token: its source returned int"):
        service(Tokens(7)).delete(DEVICE.url, 1.0)
