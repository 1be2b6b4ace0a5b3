"""The REST side of LocalServer without its I/O: by plain calls."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest

from llm_sessions.testing.rest import (
    DEVICE_KEYS,
    ROUTES,
    Answer,
    RestRejection,
    RestRequest,
    RestService,
    as_reached,
    find_route,
    make_token,
    merge,
    parse_request,
    refuse,
)
from llm_sessions.testing.server_state import Options, ServerState

BASE = "http://h:1"
JSON = {"authorization": "Bearer good", "content-type": "application/json"}
DEVICE = dict.fromkeys(DEVICE_KEYS, "x")


@pytest.fixture
def state() -> ServerState:
    return ServerState(Options("mercury.buffer_state", strict=True, open_timeout=1), None)


@pytest.fixture
def service(state: ServerState) -> RestService:
    return RestService(state, BASE, lambda session: f"ws://h:1/{session}")


def ask(service: RestService, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """A good request but for what is given."""
    path, _, query = path.partition("?")
    parsed = {"format": [query.removeprefix("format=")]} if query else {}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return service.answer(RestRequest(method, path, parsed, {**JSON, **named}, body))


def good(answer: Answer) -> Any:
    assert answer.status == 200 and answer.problems == []
    return answer.body


# --- tokens


def decode(token: str) -> dict[str, Any]:
    claims = jwt.decode(token, options={"verify_signature": False})
    assert isinstance(claims, dict)
    return claims


def test_a_token_is_a_jwt_that_pyjwt_reads() -> None:
    claims = decode(make_token(60))
    assert time.time() < claims["exp"] <= time.time() + 60 and claims["kind"] == "default"
    assert decode(make_token(-60, "practice", user="u"))["exp"] < time.time()
    assert "exp" not in decode(make_token(None)) and decode(make_token(user="u"))["user"] == "u"
    assert jwt.get_unverified_header(make_token())["alg"] == "HS256"
    assert make_token() != make_token()


# --- requests and answers


def test_a_request_is_parsed_for_its_record() -> None:
    headers = [("a", "1"), ("b", "2"), ("a", "3")]
    request = parse_request("POST", "/p", {"q": ["1"]}, headers, b'{"x": [1]}')
    assert (request.method, request.path, request.query) == ("POST", "/p", {"q": ["1"]})
    assert request.headers == {"a": "1, 3", "b": "2"} and request.body == {"x": [1]}
    assert repr(request) == "<POST /p not answered>"
    request.status = 200
    assert repr(request) == "<POST /p 200>"
    for body, parsed in [(b"", None), (b"null", None), (b"{", b"{"), (b"\xff", b"\xff")]:
        assert parse_request("POST", "/p", {}, [], body).body == parsed
    deep = b"[" * 200_000
    assert parse_request("POST", "/p", {}, [], deep).body == deep


def test_answers_have_a_content_type_if_they_have_content() -> None:
    assert Answer(204).payload() == b"" and Answer(204).all_headers() == {}
    assert Answer(200, {}).payload() == b"{}"
    assert Answer(200, {}).all_headers() == {"Content-Type": "application/json"}
    assert Answer(200, b"x").payload() == b"x" and "text/plain" in str(Answer(200, b"x").all_headers())
    assert Answer(200, b"x", {"content-type": "text/html"}).all_headers() == {"content-type": "text/html"}
    assert refuse(404).body == {"message": "Not Found"} and refuse(404).problems == []
    assert refuse(400, "why", problem=True).problems == ["why"]


# --- routing


@pytest.mark.parametrize(
    ("path", "methods", "arguments"),
    [
        ("/datachannel/a", "POST", ("a",)),
        ("/locus/l/participant/p/datachannel/token", "GET", ("l", "p")),
        ("/locus/l/participant/p/practiceSession/datachannel/token", "GET", ("l", "p")),
        ("/locus/l/controls", "PATCH PUT", ("l",)),
        ("/locus/l/controls/", "PATCH PUT", ("l",)),
        ("/u2c/api/v1/catalog", "GET", ()),
        ("/wdm/api/v1/devices", "GET POST", ()),
        ("/wdm/api/v1/devices/d", "DELETE POST PUT", ("d",)),
        ("/", "", ()),
        ("/datachannel/", "", ()),
        ("/datachannel/a/b", "", ()),
        ("/x/datachannel/a", "", ()),
    ],
)
def test_routes(path: str, methods: str, arguments: tuple[str, ...]) -> None:
    handlers, found = find_route(path)
    assert sorted(handlers) == methods.split() and found == arguments


def test_no_route_ends_the_connection_and_a_wrong_method_names_the_right_ones(service: RestService) -> None:
    nowhere = ask(service, "GET", "/nowhere")
    assert (nowhere.status, nowhere.close, nowhere.problems) == (404, True, [])
    for path, allowed in [("/locus/l/controls", "PATCH, PUT"), ("/wdm/api/v1/devices", "GET, HEAD, POST")]:
        answer = ask(service, "OPTIONS", path)
        assert (answer.status, answer.close, answer.headers) == (405, False, {"Allow": allowed})


@pytest.mark.parametrize(
    ("header", "problem"),
    [(None, "no Authorization header"), ("Basic x", "no bearer token"), ("Bearer ", "no bearer token")],
)
@pytest.mark.parametrize("route", range(len(ROUTES)))
def test_every_route_needs_a_bearer_token(
    service: RestService, route: int, header: str | None, problem: str
) -> None:
    pattern, handlers = ROUTES[route]
    path = pattern.replace("([^/]+)", "x").rstrip("?/")
    for method in handlers:
        request = RestRequest(method, path, {}, {} if header is None else {"authorization": header}, {})
        answer = service.answer(request)
        assert answer.status == 401 and problem in answer.problems[0] and len(answer.problems) == 1


def test_a_token_that_is_not_accepted_is_no_violation(state: ServerState, service: RestService) -> None:
    state.tokens = {"better"}
    answer = ask(service, "GET", "/wdm/api/v1/devices")
    assert (answer.status, answer.problems) == (401, [])
    good(ask(service, "GET", "/wdm/api/v1/devices", authorization="Bearer better"))


def test_bodies_are_json_and_say_so(service: RestService) -> None:
    broken = ask(service, "PUT", "/locus/l/controls", b"{")
    assert (broken.status, broken.problems) == (400, ["the body is not JSON"])
    for kind in ("text/plain", ""):
        answer = ask(service, "PUT", "/locus/l/controls", {}, content_type=kind)
        assert (answer.status, answer.problems) == (200, [f"Content-Type of a JSON body is {kind!r}"])
    good(ask(service, "PUT", "/locus/l/controls", {}, content_type="Application/JSON; charset=utf-8"))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/datachannel/a", None),
        ("POST", "/datachannel/a", []),
        ("POST", "/datachannel/a", {"deviceUrl": ""}),
        ("POST", "/datachannel/a", {"deviceUrl": 1}),
        ("PATCH", "/locus/l/controls", None),
        ("PATCH", "/locus/l/controls", [1]),
        ("GET", "/u2c/api/v1/catalog", None),
        ("GET", "/u2c/api/v1/catalog?format=list", None),
        ("POST", "/wdm/api/v1/devices", None),
        ("POST", "/wdm/api/v1/devices", "device"),
    ],
)
def test_what_a_service_could_not_use_is_400_and_a_violation(
    service: RestService, method: str, path: str, body: Any
) -> None:
    answer = ask(service, method, path, body)
    assert answer.status == 400 and len(answer.problems) == 1


# --- the routes


def test_registrations_have_bindings_of_their_own(service: RestService) -> None:
    first, second = (good(ask(service, "POST", "/datachannel/a%2Fb", {"deviceUrl": "d"})) for _ in range(2))
    assert first["webSocketUrl"] == second["webSocketUrl"] == "ws://h:1/a/b"
    assert first["binding"] and first["binding"] != second["binding"]


def test_data_channel_tokens(service: RestService) -> None:
    def register(**headers: str) -> Answer:
        return ask(service, "POST", "/datachannel/a", {"deviceUrl": "d"}, **headers)

    assert register(data_channel_auth_token="any").status == 200
    service.datachannel_tokens = {"one"}
    assert register().status == register(data_channel_auth_token="one").status == 200
    other = register(data_channel_auth_token="two")
    assert (other.status, other.problems) == (401, [])
    empty = register(data_channel_auth_token="")
    assert (empty.status, empty.problems) == (401, ["Data-Channel-Auth-Token is empty"])
    fresh = good(ask(service, "GET", "/locus/l/participant/p/datachannel/token"))["datachannelToken"]
    assert register(data_channel_auth_token=fresh).status == 200
    assert service.datachannel_tokens == {"one", fresh}


def test_tokens_are_fresh_and_of_their_kind(service: RestService) -> None:
    for path, kind in [("", "default"), ("practiceSession/", "practice")]:
        path = f"/locus/l/participant/p/{path}datachannel/token"
        first, second = (good(ask(service, "GET", path))["datachannelToken"] for _ in range(2))
        assert first != second and decode(first)["kind"] == kind and decode(first)["exp"] > time.time()


def test_controls_are_merged_per_locus(service: RestService) -> None:
    assert service.controls("l") == {}
    good(ask(service, "PATCH", "/locus/l/controls", {"practiceSession": {"enabled": True}}))
    good(ask(service, "PUT", "/locus/l/controls/", {"transcribe": {"caption": True}, "languageCode": "en"}))
    answer = good(ask(service, "PUT", "/locus/l/controls/", {"transcribe": {"spokenLanguage": "de"}}))
    assert answer == {
        "practiceSession": {"enabled": True},
        "transcribe": {"caption": True, "spokenLanguage": "de"},
        "languageCode": "en",
    }
    answer["transcribe"].clear()
    service.controls("l")["transcribe"].clear()
    assert service.controls("l")["transcribe"] == {"caption": True, "spokenLanguage": "de"}
    assert service.controls("m") == {}


def test_merge_replaces_what_is_not_an_object() -> None:
    into: dict[str, Any] = {"a": 1, "b": {"c": 1}, "d": {"e": 1}}
    merge(into, {"a": {"x": 1}, "b": 2, "d": {"f": None}})
    assert into == {"a": {"x": 1}, "b": 2, "d": {"e": 1, "f": None}}


def test_the_catalog_leads_to_the_devices(service: RestService) -> None:
    links = good(ask(service, "GET", "/u2c/api/v1/catalog?format=hostmap"))["serviceLinks"]
    assert links == {"wdm": "http://h:1/wdm/api/v1"}
    assert find_route(links["wdm"].removeprefix(BASE) + "/devices")[0]


def test_a_device_from_its_creation_to_its_end(service: RestService) -> None:
    devices = "/wdm/api/v1/devices"
    device = good(ask(service, "POST", devices, DEVICE | {"url": "mine"}))
    path = device["url"].removeprefix(BASE)
    key = path.rpartition("/")[2]
    assert path.startswith(devices + "/") and device["webSocketUrl"] == f"ws://h:1/{key}"
    assert DEVICE.items() <= device.items()
    other = good(ask(service, "POST", devices, DEVICE))
    assert other["url"] != device["url"]
    assert good(ask(service, "GET", devices)) == {"devices": [device, other]}

    assert good(ask(service, "POST", path)) == device
    changed = good(ask(service, "PUT", path, {**device, "name": "new", "webSocketUrl": "mine"}))
    assert changed == device | {"name": "new"}
    assert ask(service, "PUT", path, []).status == 400

    assert not service.is_stale(key)
    assert ask(service, "DELETE", path).status == 204
    assert service.is_stale(key)
    for method in ("PUT", "POST", "DELETE"):
        answer = ask(service, method, path)
        assert (answer.status, answer.close, answer.problems) == (404, False, [])
    assert good(ask(service, "GET", devices)) == {"devices": [other]}


def test_a_device_lacks_nothing_that_a_service_wants_to_know(service: RestService) -> None:
    answer = ask(service, "POST", "/wdm/api/v1/devices", {**DEVICE, "name": "", "model": 1})
    assert (answer.status, answer.problems) == (200, ["the device has no model, name"])


def test_forgotten_devices_are_stale(service: RestService) -> None:
    assert service.forget_devices() == 0
    device = good(ask(service, "POST", "/wdm/api/v1/devices", DEVICE))
    assert service.forget_devices() == 1 and service.forget_devices() == 0
    assert ask(service, "PUT", device["url"].removeprefix(BASE)).status == 404
    assert service.is_stale(device["url"].rpartition("/")[2]) and not service.is_stale("other")


# --- faults


def test_rejections_are_used_up_in_order_and_do_nothing(service: RestService) -> None:
    service.reject(RestRejection(Answer(503), "/wdm/*", 2))
    service.reject(RestRejection(Answer(418), "*", 1))
    got = [ask(service, "POST", "/wdm/api/v1/devices", DEVICE).status for _ in range(4)]
    assert got == [503, 503, 418, 200]
    assert len(good(ask(service, "GET", "/wdm/api/v1/devices"))["devices"]) == 1
    service.reject(RestRejection(Answer(503), "/wdm/*", 1))
    assert ask(service, "PUT", "/locus/l/controls", {}).status == 200


def test_the_last_gate_that_matches_decides(service: RestService) -> None:
    def held(path: str) -> bool:
        return service.is_held(RestRequest("GET", path, {}, {}))

    assert not held("/a")
    service.set_gate("/a*", hold=True)
    service.set_gate("/ab", hold=False)
    assert held("/a") and held("/abc") and not held("/ab") and not held("/b")
    service.set_gate(None, hold=True)
    assert held("/ab") and held("/b")
    service.set_gate("/b", hold=False)
    assert held("/ab") and not held("/b")
    service.set_gate(None, hold=False)
    assert not held("/ab")


# --- addresses


@pytest.mark.parametrize(
    "host",
    ["localhost:1", "LOCALHOST:80", "127.0.0.1:65535", "127.9.9.9:8080", "[::1]:8080", "[0:0::1]:8080"],
)
def test_addresses_are_those_that_the_client_used(host: str) -> None:
    request = RestRequest("GET", "/", {}, {"host": host})
    assert as_reached(request, "https://127.0.0.1:9/a%2Fb?c=d") == f"https://{host}/a%2Fb?c=d"
    assert as_reached(request, "ws://[::1]:9/a") == f"ws://{host}/a"


@pytest.mark.parametrize(
    "host",
    [
        *("", ":", ":80", "localhost", "127.0.0.1", "[::1]", "localhost:", "localhost:0", "localhost:65536"),
        *(
            "localhost:-1",
            "localhost:+1",
            "localhost:1_0",
            "localhost:8 ",
            "localhost:\u0661",
            "localhost:1:2",
        ),
        *("localhost.evil.example:80", "evil.example:80", "user@localhost:80", "localhost/x:80", "h:1"),
        *("10.0.0.1:80", "0.0.0.0:80", "127.1:80", "0127.0.0.1:80", "::1:80", "[::]:80", "[::1%lo]:80"),
        *("[fe80::1]:80", "[127.0.0.1]:80", "[::1:80", "localhost:80, localhost:81", "localhost\r\n:80"),
    ],
)
def test_no_other_host_is_believed(host: str) -> None:
    assert as_reached(RestRequest("GET", "/", {}, {"host": host}), "ws://h:1/a") == "ws://h:1/a"


def test_a_request_may_have_no_host() -> None:
    assert as_reached(RestRequest("GET", "/", {}, {}), "ws://h:1/a") == "ws://h:1/a"


def test_every_address_in_an_answer_is_the_one_the_client_used(service: RestService) -> None:
    near, far = {"host": "localhost:5"}, {"host": "elsewhere:5"}
    for headers, own in ((near, "localhost:5"), (far, "h:1")):
        registered = good(ask(service, "POST", "/datachannel/a", {"deviceUrl": "d"}, **headers))
        assert registered["webSocketUrl"] == f"ws://{own}/a"
        catalog = good(ask(service, "GET", "/u2c/api/v1/catalog?format=hostmap", **headers))
        assert catalog["serviceLinks"]["wdm"] == f"http://{own}/wdm/api/v1"
    device = good(ask(service, "POST", "/wdm/api/v1/devices", DEVICE, **near))
    key = device["url"].rpartition("/")[2]
    path = f"/wdm/api/v1/devices/{key}"
    assert (device["url"], device["webSocketUrl"]) == (f"http://localhost:5{path}", f"ws://localhost:5/{key}")
    there = {**device, "url": f"http://h:1{path}", "webSocketUrl": f"ws://h:1/{key}"}
    assert good(ask(service, "GET", "/wdm/api/v1/devices", **far)) == {"devices": [there]}
    assert good(ask(service, "GET", "/wdm/api/v1/devices", **near)) == {"devices": [device]}
    assert good(ask(service, "PUT", path, device, **far)) == there
    assert good(ask(service, "PUT", path, there, **near)) == device
