"""The REST calls that register a device: the catalog, the devices of an account, and one of them.

No state is kept here, and nothing is decided but what an answer means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from .._version import __version__
from ..errors import RegistrationError
from ..pool.sources import TokenProvider, answered
from .rest import Reply, RestClient

__all__ = ["Device", "DeviceService"]


@dataclasses.dataclass(frozen=True)
class Device:
    """What the service says of a device.

    Attributes:
        url: Its address, which data channels are registered with.
        web_socket_url: Where its events are.
    """

    url: str
    web_socket_url: str


class DeviceService:
    """Calls about the device of one name. Safe from any thread.

    A refused token is refreshed once for each call. What the token's source raises comes out as it is; the
    rest is what `RestClient.call` and `RestClient.link` raise.

    Args:
        rest: Makes the calls.
        name: The device's.
        tokens: Returns where the token comes from.
    """

    def __init__(self, rest: RestClient, name: str, tokens: Callable[[], TokenProvider]) -> None:
        self._rest, self._name, self._tokens = rest, name, tokens

    def look_up(self, catalog_url: str) -> str:
        """Return the address of the service for devices, from the catalog of all services."""
        reply = self._call("GET", catalog_url, params={"format": "hostmap"})
        return self._rest.link(reply, "wdm", within=reply.body.get("serviceLinks") or {}).rstrip("/")

    def find(self, wdm: str) -> tuple[str, Device | None]:
        """Look for a device of this name.

        Returns:
            Its address, empty if there is none; and all of it, None if that has to be asked for.
        """
        try:
            reply = self._call("GET", f"{wdm}/devices")
        except RegistrationError as exc:
            if exc.status != HTTPStatus.NOT_FOUND:
                raise
            return "", None
        devices = reply.body.get("devices")
        if not isinstance(devices, list):
            raise reply.unusable("", "without a list of devices")
        for one in devices:
            if isinstance(one, dict) and one.get("name") == self._name and one.get("url"):
                whole = bool(one.get("webSocketUrl"))
                return self._rest.link(reply, "url", within=one), self._read(reply, one) if whole else None
        return "", None

    def refresh(self, url: str) -> Device | None:
        """Renew a device; return None if the service does not know it any more."""
        try:
            reply = self._call("PUT", url, json=self._description())
        except RegistrationError as exc:
            if exc.status != HTTPStatus.NOT_FOUND:
                raise
            return None
        return self._read(reply, reply.body)

    def create(self, wdm: str, created: Callable[[str], None]) -> Device:
        """Make a device.

        Args:
            wdm: The service.
            created: Called with its address as soon as that is known, whatever is wrong with the rest.
        """
        reply = self._call("POST", f"{wdm}/devices", json=self._description())
        created(self._rest.link(reply, "url"))
        return self._read(reply, reply.body)

    def delete(self, url: str, timeout: float) -> None:
        """Delete a device; one that is not there any more is fine.

        Args:
            url: Its address.
            timeout: Seconds for each call.
        """
        try:
            self._call("DELETE", url, empty_ok=True, timeout=timeout)
        except RegistrationError as exc:
            if exc.status != HTTPStatus.NOT_FOUND:
                raise

    def _read(self, reply: Reply, device: object) -> Device:
        links = [self._rest.link(reply, name, within=device) for name in ("url", "webSocketUrl")]
        return Device(*links)

    def _description(self) -> dict[str, str]:
        return {
            "deviceName": self._name,
            "deviceType": "DESKTOP",
            "localizedModel": "python",
            "model": "python",
            "name": self._name,
            "systemName": "llm-sessions",
            "systemVersion": __version__,
        }

    def _call(self, method: str, url: str, **options: Any) -> Reply:
        tokens = self._tokens()
        token = answered(tokens.get())
        try:
            return self._rest.call(method, url, token=token, **options)
        except RegistrationError as exc:
            if exc.status != HTTPStatus.UNAUTHORIZED:
                raise
            bare = token.removeprefix("Bearer ")
            fresh = answered(tokens.refresh(bare))
            if fresh.removeprefix("Bearer ") == bare:
                raise
        return self._rest.call(method, url, token=fresh, **options)
