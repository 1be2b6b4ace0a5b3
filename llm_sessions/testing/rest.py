"""The REST side of `LocalServer` without I/O: the routes, what they remember, what a test asks of them."""

from __future__ import annotations

import base64
import copy
import dataclasses
import fnmatch
import ipaddress
import json
import re
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from llm_sessions.testing import server_checks as checks
from llm_sessions.testing.server_state import ServerState

__all__ = ["RestRequest", "make_token"]

DEVICES = "/wdm/api/v1/devices"
DEVICE_KEYS = (
    *("deviceName", "deviceType", "localizedModel", "model"),
    *("name", "systemName", "systemVersion"),
)
DEVICE_URLS = ("url", "webSocketUrl")


def make_token(expires_in: float | None = 3600, kind: str = "default", **claims: Any) -> str:
    """A data channel token: a JWT with a signature that nobody can verify. No two are equal.

    Args:
        expires_in: Seconds from now to its `exp`, negative for an expired one; `None` leaves `exp` out.
        kind: Its `kind` claim; `default` or `practice` in what the server hands out.
        **claims: Further claims; they win.
    """
    now = time.time()
    content: dict[str, Any] = {"jti": str(uuid.uuid4()), "kind": kind, "iat": int(now)}
    if expires_in is not None:
        content["exp"] = int(now + expires_in)
    parts = [{"alg": "HS256", "typ": "JWT"}, content | claims]
    encoded = [json.dumps(part, separators=(",", ":")).encode() for part in parts]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in [*encoded, bytes(32)])


@dataclasses.dataclass(eq=False, repr=False)
class RestRequest:
    """A request that is no WebSocket upgrade. Recorded once it was read whole, before it is answered.

    Attributes:
        method: As it was sent.
        path: Likewise, without the query.
        query: The query, parsed; a repeated key has more than one value.
        headers: Names in lower case; repeated ones are joined by commas.
        body: The JSON value; `None` if there was no body, and the bytes if they are not JSON.
        status: The status answered; `None` while it is held, and for good if the client left before.
        answer: The JSON value answered, or the bytes if it was none.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any = None
    status: int | None = None
    answer: Any = None

    def __repr__(self) -> str:  # without headers: tokens have no place in the output of a test
        return f"<{self.method} {self.path} {self.status or 'not answered'}>"


def parse_request(
    method: str, path: str, query: dict[str, list[str]], headers: Iterable[tuple[str, str]], body: bytes
) -> RestRequest:
    """Make the record of a request from what was read."""
    joined: dict[str, str] = {}
    for name, value in headers:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    content: Any = body or None
    if body:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            pass  # the route says what that means
    return RestRequest(method, path, query, joined, content)


@dataclasses.dataclass
class Answer:
    """What to answer, and what the client did wrong. A body is bytes, a JSON value, or `None` for none."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    close: bool = False  # whether the connection ends with it

    def payload(self) -> bytes:
        """The body's bytes."""
        if self.body is None or isinstance(self.body, bytes):
            return self.body or b""
        return json.dumps(self.body).encode()

    def all_headers(self) -> dict[str, str]:
        """The headers, with a content type if there is a body and none was given."""
        given = {name.lower() for name in self.headers}
        if self.body is None or "content-type" in given:
            return dict(self.headers)
        kind = "text/plain; charset=utf-8" if isinstance(self.body, bytes) else "application/json"
        return {**self.headers, "Content-Type": kind}


def refuse(status: int, text: str = "", *, problem: bool = False, **headers: str) -> Answer:
    """An answer that refuses; `problem` makes its text a violation too."""
    text = text or HTTPStatus(status).phrase
    return Answer(status, {"message": text}, headers, [text] if problem else [])


@dataclasses.dataclass
class RestRejection:
    """The next `times` requests on matching paths get this answer."""

    answer: Answer
    path: str
    times: int


class RestService:
    """Routes, devices, controls, tokens, gates and records of one server. Nothing here does I/O.

    Args:
        state: The server's; its condition guards everything in here, and its tokens are accepted.
        base_url: What every address handed out begins with, but for the host and port: they are those that
            the client used, if it used the loopback.
        websocket_url: Makes the WebSocket address of a session key. Called under the condition.
    """

    def __init__(self, state: ServerState, base_url: str, websocket_url: Callable[[str], str]) -> None:
        self._state = state
        self.base_url = base_url
        self._websocket_url = websocket_url
        self.requests: list[RestRequest] = []
        self.datachannel_tokens: set[str] | None = None
        self._controls: dict[str, dict[str, Any]] = {}
        self._devices: dict[str, dict[str, Any]] = {}
        self._stale: set[str] = set()
        self._gates: list[tuple[str, bool]] = []  # the last one that matches decides
        self._rejections: list[RestRejection] = []

    # --- for the connections

    def record(self, request: RestRequest) -> None:
        """Keep a request and wake those who wait for it."""
        with self._state.condition:
            self.requests.append(request)
            self._state.changed()

    def is_held(self, request: RestRequest) -> bool:
        """Say whether the answer has to wait."""
        with self._state.condition:
            held = [on for path, on in self._gates if fnmatch.fnmatchcase(request.path, path)]
        return bool(held) and held[-1]

    def is_stale(self, session: str) -> bool:
        """Say whether a session key is that of a device that was forgotten or deleted."""
        with self._state.condition:
            return session in self._stale

    def answer(self, request: RestRequest) -> Answer:
        """Do what a request asks for."""
        with self._state.condition:
            return self._take_rejection(request) or self._route(request)

    # --- for the test

    def reject(self, rejection: RestRejection) -> None:
        """Queue a refusal. Those that match are used up in the order they were made."""
        with self._state.condition:
            self._rejections.append(rejection)

    def set_gate(self, path: str | None, hold: bool) -> None:
        """Hold or release the requests on matching paths; `None` is every path."""
        with self._state.condition:
            if path is None:
                self._gates.clear()
            self._gates.append((path or "*", hold))

    def forget_devices(self) -> int:
        """Make every device stale and return how many that are."""
        with self._state.condition:
            count = len(self._devices)
            self._stale.update(self._devices)
            self._devices.clear()
        return count

    def controls(self, locus_id: str) -> dict[str, Any]:
        """A copy of a locus' controls."""
        with self._state.condition:
            return copy.deepcopy(self._controls.get(locus_id, {}))

    def issue_token(self, kind: str) -> str:
        """A token that registrations accept from now on."""
        with self._state.condition:
            return self._issue(kind)

    # --- routing; from here on the condition is held

    def _take_rejection(self, request: RestRequest) -> Answer | None:
        for rejection in self._rejections:
            if fnmatch.fnmatchcase(request.path, rejection.path):
                rejection.times -= 1
                if not rejection.times:
                    self._rejections.remove(rejection)
                return rejection.answer
        return None

    def _route(self, request: RestRequest) -> Answer:
        handlers, arguments = find_route(request.path)
        if not handlers:
            return dataclasses.replace(refuse(404, "no such route"), close=True)
        handler = handlers.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = ", ".join(sorted({*handlers} | ({"HEAD"} if "GET" in handlers else set())))
            return refuse(405, Allow=allowed)
        token, problems = check_bearer(request)
        if token is None or (self._state.tokens is not None and token not in self._state.tokens):
            answer = refuse(401)
        elif isinstance(request.body, bytes):
            answer = refuse(400, "the body is not JSON", problem=True)
        else:
            if request.body is not None:
                problems += check_content_type(request)
            answer = handler(self, request, *map(urllib.parse.unquote, arguments))
        answer.problems[:0] = problems
        return answer

    def _issue(self, kind: str) -> str:
        token = make_token(kind=kind)
        if self.datachannel_tokens is not None:
            self.datachannel_tokens.add(token)
        return token

    # --- the routes

    def register(self, request: RestRequest, session: str) -> Answer:
        token = request.headers.get("data-channel-auth-token")
        problems = [] if token != "" else ["Data-Channel-Auth-Token is empty"]
        if not isinstance(request.body, dict) or not is_text(request.body.get("deviceUrl")):
            answer = refuse(400, "the body has no deviceUrl", problem=True)
        elif not (token is None or self.datachannel_tokens is None or token in self.datachannel_tokens):
            answer = refuse(401, "the data channel token is not accepted")
        else:
            url = as_reached(request, self._websocket_url(session))
            answer = Answer(200, {"webSocketUrl": url, "binding": str(uuid.uuid4())})
        answer.problems += problems
        return answer

    def token(self, request: RestRequest, locus_id: str, participant_id: str) -> Answer:
        return Answer(200, {"datachannelToken": self._issue("default")})

    def practice_token(self, request: RestRequest, locus_id: str, participant_id: str) -> Answer:
        return Answer(200, {"datachannelToken": self._issue("practice")})

    def change_controls(self, request: RestRequest, locus_id: str) -> Answer:
        if not isinstance(request.body, dict):
            return refuse(400, "the controls are not a JSON object", problem=True)
        controls = self._controls.setdefault(locus_id, {})
        merge(controls, request.body)
        return Answer(200, copy.deepcopy(controls))

    def catalog(self, request: RestRequest) -> Answer:
        if request.query.get("format") != ["hostmap"]:
            return refuse(400, "the catalog needs format=hostmap", problem=True)
        url = as_reached(request, self.base_url + DEVICES.removesuffix("/devices"))
        return Answer(200, {"serviceLinks": {"wdm": url}})

    def list_devices(self, request: RestRequest) -> Answer:
        return Answer(200, {"devices": [show_device(request, one) for one in self._devices.values()]})

    def add_device(self, request: RestRequest) -> Answer:
        if not isinstance(request.body, dict):
            return refuse(400, "the device is not a JSON object", problem=True)
        missing = [key for key in DEVICE_KEYS if not is_text(request.body.get(key))]
        device_id = str(uuid.uuid4())
        self._devices[device_id] = {
            **copy.deepcopy(request.body),
            "url": f"{self.base_url}{DEVICES}/{device_id}",
            "webSocketUrl": self._websocket_url(device_id),
        }
        problems = [f"the device has no {', '.join(missing)}"] if missing else []
        return Answer(200, show_device(request, self._devices[device_id]), problems=problems)

    def refresh_device(self, request: RestRequest, device_id: str) -> Answer:
        device = self._devices.get(device_id)
        if device is None:
            return refuse(404, "no such device")
        if not isinstance(request.body, (dict, type(None))):
            return refuse(400, "the device is not a JSON object", problem=True)
        ours = {key: device[key] for key in DEVICE_URLS}
        device |= copy.deepcopy(request.body or {}) | ours
        return Answer(200, show_device(request, device))

    def delete_device(self, request: RestRequest, device_id: str) -> Answer:
        if self._devices.pop(device_id, None) is None:
            return refuse(404, "no such device")
        self._stale.add(device_id)
        return Answer(204)


Handlers = Mapping[str, Callable[..., Answer]]

_LOCUS = r"/locus/([^/]+)"
_TOKEN = "datachannel/token"
ROUTES: tuple[tuple[str, Handlers], ...] = (
    (r"/datachannel/([^/]+)", {"POST": RestService.register}),
    (rf"{_LOCUS}/participant/([^/]+)/{_TOKEN}", {"GET": RestService.token}),
    (rf"{_LOCUS}/participant/([^/]+)/practiceSession/{_TOKEN}", {"GET": RestService.practice_token}),
    (rf"{_LOCUS}/controls/?", dict.fromkeys(("PATCH", "PUT"), RestService.change_controls)),
    (r"/u2c/api/v1/catalog", {"GET": RestService.catalog}),
    (DEVICES, {"GET": RestService.list_devices, "POST": RestService.add_device}),
    (
        rf"{DEVICES}/([^/]+)",
        {
            "PUT": RestService.refresh_device,
            "POST": RestService.refresh_device,
            "DELETE": RestService.delete_device,
        },
    ),
)


def find_route(path: str) -> tuple[Handlers, tuple[str, ...]]:
    """The handlers of a path by method, and its variable segments; no handlers if there is no such route."""
    for pattern, handlers in ROUTES:
        found = re.fullmatch(pattern, path)
        if found is not None:
            return handlers, found.groups()
    return {}, ()


def check_bearer(request: RestRequest) -> tuple[str | None, list[str]]:
    """The bearer token of a request, and violations. Never quotes the token."""
    value = request.headers.get("authorization")
    if value is None:
        return None, ["no Authorization header"]
    token = value.removeprefix(checks.BEARER)
    if token == value or not token:
        return None, ["the Authorization header is no bearer token"]
    return token, []


def check_content_type(request: RestRequest) -> list[str]:
    """Violations in the Content-Type of a request that has a body."""
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() == "application/json":
        return []
    return [f"Content-Type of a JSON body is {kind!r}"]


def as_reached(request: RestRequest, url: str) -> str:
    """An address of the server with the host and port that the client reached it by, so that a client which
    came through a proxy does not leave it.

    They are believed only if they are a loopback host and a port; otherwise the address is as it was.
    """
    host = request.headers.get("host", "")
    name, _, port = host.rpartition(":")
    if not (is_loopback(name) and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 1 << 16):
        return url
    return urllib.parse.urlsplit(url)._replace(netloc=host).geturl()


def is_loopback(host: str) -> bool:
    """Say whether a host, as it is written in a URL, is this machine and no other."""
    if host.lower() == "localhost":
        return True
    try:
        if host.startswith("[") and host.endswith("]"):
            return "%" not in host and ipaddress.IPv6Address(host[1:-1]).is_loopback
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def show_device(request: RestRequest, device: Mapping[str, Any]) -> dict[str, Any]:
    """A device as the client that asks may reach it."""
    urls = {key: as_reached(request, device[key]) for key in DEVICE_URLS}
    return {**copy.deepcopy(dict(device)), **urls}


def is_text(value: object) -> bool:
    """Say whether a value is a string with something in it."""
    return isinstance(value, str) and bool(value)


def merge(into: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Apply changes to nested objects; what they do not name stays."""
    for key, value in changes.items():
        known = into.get(key)
        if isinstance(known, dict) and isinstance(value, Mapping):
            merge(known, value)
        else:
            into[key] = copy.deepcopy(value)
