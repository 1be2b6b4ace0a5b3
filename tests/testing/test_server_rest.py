"""LocalServer over REST, driven by requests and by raw sockets, over plain TCP and TLS."""

from __future__ import annotations

import gc
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
import websocket

from llm_sessions import ConnectionPool
from llm_sessions.testing.proxy import FaultProxy
from llm_sessions.testing.rest import DEVICE_KEYS
from llm_sessions.testing.server import LocalServer, ServerTimeout, make_token
from llm_sessions.testing.server_rest import RestVerbs
from tests.support import LONG, SHORT, Background

DEVICE = dict.fromkeys(DEVICE_KEYS, "x")
DEVICES = "/wdm/api/v1/devices"
QUERY = "outboundWireFormat=text&bufferStates=true&aliasHttpStatus=true&clientTimestamp=1"


class Client(requests.Session):
    """A session with a bearer token that takes paths for addresses of its server."""

    def __init__(self, server: LocalServer, ca_file: str) -> None:
        super().__init__()
        self.trust_env = False
        self.headers["Authorization"] = "Bearer good"
        self._server, self._ca_file = server, ca_file

    def request(self, method: Any, url: Any, *args: Any, **options: Any) -> requests.Response:
        address = url if str(url).startswith("http") else self._server.base_url + url
        options = {"timeout": LONG, "verify": self._ca_file, **options}
        return super().request(method, address, *args, **options)


@pytest.fixture(scope="session")
def authority_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def client(server: LocalServer, authority_file: str) -> Iterator[Client]:
    with Client(server, authority_file) as client:
        yield client


def raw(server: LocalServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=LONG)


def read_answers(sock: socket.socket, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers (names in lower case) and body of answers with a Content-Length."""
    answers = []
    with sock.makefile("rb") as stream:
        for _ in range(count):
            status = int(stream.readline().split()[1])
            headers = {}
            while line := stream.readline().strip().decode():
                name, _, value = line.partition(": ")
                headers[name.lower()] = value
            answers.append((status, headers, stream.read(int(headers.get("content-length", 0)))))
    return answers


def request_bytes(method: str, path: str, body: bytes = b"", *headers: str, version: str = "1.1") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: h", "Authorization: Bearer good", *headers]
    if body and not any("chunked" in line for line in lines):
        lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
    return "\r\n".join([*lines, "", ""]).encode() + body


# --- addresses and answers


def test_one_port_for_rest_and_websocket(server: LocalServer, client: Client, tls: bool) -> None:
    scheme = "https" if tls else "http"
    assert server.base_url == f"{scheme}://127.0.0.1:{server.port}"
    assert server.datachannel_url("a/b") == f"{server.base_url}/datachannel/a%2Fb"
    answer = client.post(server.datachannel_url("a/b"), json={"deviceUrl": "d"})
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "application/json"
    assert answer.json()["webSocketUrl"] == server.url("a/b")


def test_register_then_connect(server: LocalServer, client: Client, pool: ConnectionPool) -> None:
    registered = client.post(server.datachannel_url("a"), json={"deviceUrl": "d"}).json()
    pool.connect(session_id="a", url=registered["webSocketUrl"])
    assert [c.session for c in server.live()] == ["a"]
    assert [c.session for c in server.connections()] == ["a"], "the REST connection is not listed"
    assert server.requests[0].answer == registered


def test_requests_are_recorded(server: LocalServer, client: Client) -> None:
    client.patch(server.locus_url() + "/controls?a=1&a=2", json={"x": {"y": 1}}, headers={"X-Thing": "1"})
    client.get("/u2c/api/v1/catalog", params={"format": "hostmap"})
    first, second = server.requests
    assert (first.method, first.path, first.query) == (
        "PATCH",
        "/locus/meeting/controls",
        {"a": ["1", "2"]},
    )
    assert (first.body, first.status, first.answer) == ({"x": {"y": 1}}, 200, {"x": {"y": 1}})
    assert first.headers["authorization"] == "Bearer good" and first.headers["x-thing"] == "1"
    assert (second.method, second.body, second.status) == ("GET", None, 200)
    assert server.controls() == {"x": {"y": 1}}


def test_join_response(server: LocalServer, client: Client) -> None:
    plain = server.join_response(tokens=False)["locus"]
    assert plain == {
        "url": server.locus_url(),
        "info": {"datachannelUrl": server.datachannel_url()},
        "self": {"id": "participant"},
    }
    server.datachannel_tokens = set()
    locus = server.join_response(session="a", practice="b", participant_id="p", locus_id="l")["locus"]
    assert locus["url"] == server.locus_url("l") == f"{server.base_url}/locus/l"
    for url, token, path, session in [
        ("datachannelUrl", "datachannelToken", "datachannel/token", "a"),
        (
            "practiceSessionDatachannelUrl",
            "practiceSessionDatachannelToken",
            "practiceSession/datachannel/token",
            "b",
        ),
    ]:
        fetched = client.get(f"{locus['url']}/participant/{locus['self']['id']}/{path}").json()
        for accepted in (locus["self"][token], fetched["datachannelToken"]):
            answer = client.post(
                locus["info"][url],
                json={"deviceUrl": "d"},
                headers={"Data-Channel-Auth-Token": accepted},
            )
            assert answer.json()["webSocketUrl"] == server.url(session)
    assert len(server.datachannel_tokens or ()) == 4


def test_data_channel_tokens_can_be_replaced(server: LocalServer, client: Client) -> None:
    def register(token: str) -> int:
        headers = {"Data-Channel-Auth-Token": token}
        return client.post(server.datachannel_url(), json={"deviceUrl": "d"}, headers=headers).status_code

    token = make_token()
    assert server.datachannel_tokens is None and register(token) == 200
    server.datachannel_tokens = set()
    assert register(token) == 401
    server.datachannel_tokens = [token]
    assert server.datachannel_tokens == frozenset([token]) and register(token) == 200


def test_bearer_tokens_are_those_of_the_websocket(server: LocalServer, client: Client) -> None:
    server.tokens = {"better"}
    assert client.get(DEVICES).status_code == 401
    assert client.get(DEVICES, headers={"Authorization": "Bearer better"}).json() == {"devices": []}


def test_a_forgotten_device_is_gone_for_rest_and_for_the_websocket(
    server: LocalServer, client: Client, client_context: ssl.SSLContext, pool: ConnectionPool
) -> None:
    device = client.post(DEVICES, json=DEVICE).json()
    pool.connect(session_id="device", url=device["webSocketUrl"])
    assert client.put(device["url"], json=device).json() == device
    assert server.forget_devices() == 1
    assert len(server.live()) == 1, "what is connected stays so"
    assert client.put(device["url"], json=device).status_code == 404
    url = f"{device['webSocketUrl']}?{QUERY}"
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        websocket.create_connection(url, timeout=LONG, sslopt={"context": client_context})
    assert caught.value.status_code == 404
    again = client.post(DEVICES, json=DEVICE).json()
    assert again["url"] != device["url"]
    assert client.delete(again["url"]).status_code == 204


def test_shutdown_frame(server: LocalServer, pool: ConnectionPool) -> None:
    pool.connect(session_id="a", url=server.url("a"))
    (connection,) = server.live("a")
    assert server.shutdown_frame("b") == 0 and server.shutdown_frame("a") == 1
    assert connection.sent[-1] == {"type": "shutdown"}
    server.wait_live("a", count=1)


# --- through a proxy


def test_who_registers_through_a_proxy_stays_on_it(
    server: LocalServer, client: Client, pool: ConnectionPool
) -> None:
    with FaultProxy(server) as proxy:
        registered = client.post(proxy.url(server.datachannel_url("a")), json={"deviceUrl": "d"}).json()
        assert registered["webSocketUrl"] == proxy.url(server.url("a"))
        session = pool.connect(registered["webSocketUrl"], "a")
        [_, link] = proxy.live()  # the first is REST's
        proxy.reset(on=[link])
        server.wait_for(lambda: len(server.connections("a")) == 2, LONG)
        session.wait_online()
        assert len(proxy.connections) == 3, "the session reconnects through the proxy as well"
        client.close()
        pool.close()


def test_devices_and_services_are_where_each_client_found_them(server: LocalServer, client: Client) -> None:
    with FaultProxy(server) as proxy:
        here, there = server.base_url, proxy.url(server.base_url)
        made = client.post(there + DEVICES, json=DEVICE).json()
        assert made["url"].startswith(f"{there}{DEVICES}/")
        [direct] = client.get(here + DEVICES).json()["devices"]
        assert made["url"] == proxy.url(direct["url"]) != direct["url"]
        assert made["webSocketUrl"] == proxy.url(direct["webSocketUrl"]) != direct["webSocketUrl"]
        assert client.put(made["url"], json=made).json() == made
        for base in (here, there):
            catalog = client.get(f"{base}/u2c/api/v1/catalog?format=hostmap").json()
            assert catalog["serviceLinks"]["wdm"] == f"{base}/wdm/api/v1"
        assert client.delete(made["url"]).status_code == 204
        client.close()


def test_a_host_that_is_not_this_machine_is_not_believed(server: LocalServer, client: Client) -> None:
    for host in ("evil.example:80", "localhost", "127.0.0.1"):
        answer = client.post(server.datachannel_url("a"), json={"deviceUrl": "d"}, headers={"Host": host})
        assert answer.json()["webSocketUrl"] == server.url("a")


# --- faults


def test_reject_rest(server: LocalServer, client: Client) -> None:
    server.reject_rest(429, path="/datachannel/*", times=2, headers={"Retry-After": "7"})
    server.reject_rest(200, body=b"<html>", headers={"content-type": "text/html"})
    assert client.get("/u2c/api/v1/catalog?format=hostmap").text == "<html>"
    for _ in range(2):
        answer = client.post(server.datachannel_url(), json={"deviceUrl": "d"})
        assert (answer.status_code, answer.headers["Retry-After"], answer.content) == (429, "7", b"")
    assert client.post(server.datachannel_url(), json={"deviceUrl": "d"}).status_code == 200
    server.reject_rest(599, body={"message": "x"})
    odd = client.get(DEVICES)
    assert (odd.status_code, odd.json()) == (599, {"message": "x"})
    assert [request.status for request in server.requests] == [200, 429, 429, 200, 599]


def test_an_answer_may_lie_about_its_length(server: LocalServer, client: Client) -> None:
    server.reject_rest(200, headers={"Content-Length": "100"}, body=b"short")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        client.get(DEVICES)
    assert client.get(DEVICES).status_code == 200
    gc.collect()  # urllib3 keeps the broken answer's socket in a cycle with its exception


def test_what_no_request_can_be_rejected_with() -> None:
    with LocalServer() as server:
        for status, times in [(199, 1), (1000, 1), (404, 0)]:
            with pytest.raises(ValueError):
                server.reject_rest(status, times=times)
        with pytest.raises(TypeError):
            server.reject_rest(400, body=object())


def test_hold_rest(server: LocalServer, client: Client) -> None:
    server.hold_rest("/datachannel/*")
    held = Background(lambda: client.post(server.datachannel_url(), json={"deviceUrl": "d"}))
    server.wait_for(lambda: len(server.requests) == 1, LONG)
    assert server.requests[0].status is None and not held.done
    server.release_rest("/other")
    assert server.requests[0].status is None
    server.release_rest()
    assert held.result().status_code == 200 == server.requests[0].status


def test_a_rejection_waits_behind_a_gate(server: LocalServer, client: Client) -> None:
    server.hold_rest()
    held = Background(lambda: client.get(DEVICES).status_code)
    server.wait_for(lambda: bool(server.requests), LONG)
    server.reject_rest(503)
    server.release_rest()
    assert held.result() == 503


@pytest.mark.parametrize("end", ["drop", "close"])
def test_a_held_request_can_be_dropped(server: LocalServer, client: Client, end: str) -> None:
    server.hold_rest()
    held = Background(lambda: client.get(DEVICES))
    server.wait_for(lambda: bool(server.requests), LONG)
    if end == "drop":
        assert server.drop() == 1
    else:
        server.close()
    assert isinstance(held.error(), requests.ConnectionError)
    assert server.requests[0].status is None


def test_a_client_may_leave_while_it_is_held(
    server: LocalServer, client: Client, tls: bool, client_context: ssl.SSLContext
) -> None:
    server.hold_rest()
    # Not requests: after a timeout its socket stays open until the garbage collector finds it.
    sock = raw(server)
    if tls:
        sock = client_context.wrap_socket(sock, server_hostname="localhost")
    with sock:
        sock.sendall(request_bytes("GET", DEVICES))
        server.wait_for(lambda: bool(server.requests), LONG)
    server.wait_for(lambda: "ended" in repr(server._accepted()), LONG)
    server.release_rest()
    assert client.get(DEVICES).status_code == 200
    assert [request.status for request in server.requests] == [None, 200]


def test_faults_of_the_websocket_leave_rest_alone(server: LocalServer, client: Client) -> None:
    for fault in (server.stall_reads, server.hold_upgrades, server.mute):
        fault()
    server.reject(503)
    for _ in range(2):
        assert client.get(DEVICES).status_code == 200
    assert server.connections() == [] and server.close_session() == 0


def test_verbs_are_those_of_a_server() -> None:
    with pytest.raises(TypeError, match="abstract"):
        RestVerbs()  # type: ignore[abstract]


def test_connections_are_kept(server: LocalServer, client: Client) -> None:
    for _ in range(3):
        assert client.get(DEVICES).status_code == 200
        assert client.put(DEVICES).status_code == 405
        assert client.post(DEVICES, json=DEVICE).status_code == 200
    assert len(server._accepted()) == 1
    assert client.get(DEVICES, headers={"Connection": "close"}).status_code == 200
    assert client.get(DEVICES).status_code == 200
    assert len(server._accepted()) == 2
    assert client.get("/nowhere").headers["Connection"] == "close"


def test_an_idle_connection_is_kept_longer_than_a_silent_one() -> None:
    with LocalServer(open_timeout=SHORT) as server, raw(server) as idle, raw(server) as silent:
        idle.sendall(request_bytes("GET", DEVICES))
        assert read_answers(idle, 1)[0][0] == 200
        assert silent.recv(1) == b""
        idle.sendall(request_bytes("GET", DEVICES))
        assert read_answers(idle, 1)[0][0] == 200


@pytest.mark.parametrize("held", [False, True])
def test_pipelined_requests_are_answered_in_order(held: bool) -> None:
    with LocalServer() as server, raw(server) as sock:
        if held:
            server.hold_rest()
        count = 200
        for number in range(count):
            body = json.dumps({"n": number}).encode()
            sock.sendall(request_bytes("PUT", "/locus/l/controls", body))
        server.wait_for(lambda: bool(server.requests), LONG)
        if held:
            assert len(server.requests) == 1 and server.requests[0].status is None
            server.release_rest()
        answers = read_answers(sock, count)
        assert [json.loads(body)["n"] for _, _, body in answers] == list(range(count))
        assert all(status == 200 and "connection" not in headers for status, headers, _ in answers)
        assert [request.body["n"] for request in server.requests] == list(range(count))


def test_bytes_one_at_a_time() -> None:
    with LocalServer() as server, raw(server) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for byte in request_bytes("PUT", "/locus/l/controls", b'{"a": 1}'):
                sock.sendall(bytes([byte]))
            assert read_answers(sock, 1)[0][2] == b'{"a": 1}'


def test_chunked_bodies(server: LocalServer, client: Client) -> None:
    parts = [b'{"devi', b'ceUrl": ', b'"d"}']
    headers = {"Content-Type": "application/json"}
    for _ in range(2):
        answer = client.post(server.datachannel_url(), data=iter(parts), headers=headers)
        assert answer.status_code == 200
    assert server.requests[0].headers["transfer-encoding"] == "chunked"
    assert server.requests[0].body == {"deviceUrl": "d"} and len(server._accepted()) == 1


def test_head_is_get_without_a_body(server: LocalServer, client: Client) -> None:
    full, head = client.get(DEVICES), client.head(DEVICES)
    assert head.status_code == 200 and head.content == b""
    assert head.headers["Content-Length"] == full.headers["Content-Length"] == str(len(full.content))
    assert client.head("/locus/l/controls").status_code == 405
    server.reject_rest(503, body=b"busy")
    assert client.head(DEVICES).status_code == 503
    assert client.get(DEVICES).json() == {"devices": []}, "nothing was left on the wire"
    assert len(server._accepted()) == 1


def test_a_mebibyte_is_the_limit_of_a_body() -> None:
    with LocalServer() as server:
        filler = (1 << 20) - len('{"a":""}')
        body = b'{"a":"' + b"x" * filler + b'"}'
        with raw(server) as sock:
            sock.sendall(request_bytes("PUT", "/locus/l/controls", body))
            assert read_answers(sock, 1)[0][0] == 200
        assert server.violations == []
        chunk = b"%x\r\n%s\r\n" % (len(body), body)
        chunks = chunk + b"1\r\nx\r\n"
        for data in (
            request_bytes("PUT", "/locus/l/controls", body + b" "),
            request_bytes("PUT", "/locus/l/controls", chunks, "Transfer-Encoding: chunked"),
            request_bytes("PUT", "/locus/l/controls", b"", f"Content-Length: {10**15}"),
        ):
            with raw(server) as sock:
                sock.sendall(data)
                status, headers, _ = read_answers(sock, 1)[0]
                assert (status, headers["connection"]) == (413, "close") and sock.recv(1) == b""
        assert len(server.requests) == 1
        assert [text.partition(": ")[2] for text in server.violations] == [
            "body of more than 1048576 bytes"
        ] * 3


def test_expect_100_continue() -> None:
    with LocalServer() as server, raw(server) as sock:
        head, body = b'{"a"', b": 1}"
        lines = ("Expect: 100-continue", "Content-Length: 8", "Content-Type: application/json")
        sock.sendall(request_bytes("PUT", "/locus/l/controls", b"", *lines))
        assert sock.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(head)
        sock.sendall(body)
        ((status, _, answer),) = read_answers(sock, 1)
        assert (status, answer) == (200, b'{"a": 1}')


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_old_clients_get_one_answer_and_the_end(version: str) -> None:
    with LocalServer() as server, raw(server) as sock:
        close = ["Connection: close"] if version == "1.1" else []
        sock.sendall(request_bytes("GET", DEVICES, b"", *close, version=version))
        ((status, headers, _),) = read_answers(sock, 1)
        assert (status, headers["connection"]) == (200, "close") and sock.recv(1) == b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
        (b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400),
        (b"PUT /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
def test_what_is_not_http_after_a_good_request(data: bytes, status: int) -> None:
    with LocalServer() as server, raw(server) as sock:
        sock.sendall(request_bytes("GET", DEVICES))
        assert read_answers(sock, 1)[0][0] == 200
        sock.sendall(data)
        assert read_answers(sock, 1)[0][0] == status and sock.recv(1) == b""
        assert len(server.violations) == 1 and "not HTTP" in server.violations[0]


def test_an_upgrade_on_a_connection_that_was_rests() -> None:
    upgrade = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]
    with LocalServer() as server, raw(server) as sock:
        sock.sendall(request_bytes("GET", DEVICES) + request_bytes("GET", f"/a?{QUERY}", b"", *upgrade))
        with sock.makefile("rb") as stream:
            assert b" 200 " in stream.readline()
            while b" 101 " not in stream.readline():
                pass
        (connection,) = server.connections("a")
        assert connection.upgraded and not connection.rest
        assert [request.path for request in server.requests] == [DEVICES] and server.violations == []


def test_violations_name_the_request_and_no_token() -> None:
    with LocalServer() as server, requests.Session() as client:
        client.trust_env = False
        secret = {"Authorization": "Basic secret", "Data-Channel-Auth-Token": "secret"}
        client.post(server.datachannel_url(), json={}, headers=secret, timeout=LONG)
        good = {"Authorization": "Bearer secret"}
        client.post(server.datachannel_url(), data="{", headers=good, timeout=LONG)
        assert server.violations == [
            "#1: POST /datachannel/default: the Authorization header is no bearer token",
            "#1: POST /datachannel/default: the body is not JSON",
        ]
        with pytest.raises(ServerTimeout) as caught:
            server.wait_for(lambda: False, 0)
        assert "<POST /datachannel/default 401>" in str(caught.value)
        assert "secret" not in str(caught.value)
    with LocalServer(strict=False) as lenient, requests.Session() as client:
        client.trust_env = False
        assert client.get(lenient.base_url + DEVICES, timeout=LONG).status_code == 401
        assert lenient.violations == []


# --- TLS of its own


def test_a_server_with_certificates_of_its_own() -> None:
    with LocalServer(tls=True) as server, requests.Session() as client:
        client.trust_env = False
        good = {"Authorization": "Bearer good"}
        ca_file = server.ca_file
        assert client.get(server.base_url + DEVICES, headers=good, verify=ca_file, timeout=LONG).ok
        for host in ("127.0.0.1", "localhost"):
            with raw(server) as sock, server.client_context.wrap_socket(sock, server_hostname=host) as secure:
                secure.sendall(request_bytes("GET", DEVICES))
                assert secure.recv(12) == b"HTTP/1.1 200"
        assert server.url().startswith("wss://") and server.base_url.startswith("https://")
    assert not Path(ca_file).exists()


def test_pools_connect_to_it(make_pool: Callable[..., ConnectionPool]) -> None:
    with LocalServer(tls=True) as server:
        make_pool(ssl_context=server.client_context).connect(session_id="a", url=server.url("a"))
        server.wait_live("a")
        assert server.violations == []


def test_only_tls_of_its_own_has_certificates_to_show(server_context: ssl.SSLContext) -> None:
    with pytest.raises(ValueError):
        LocalServer(tls=True, ssl_context=server_context)
    with LocalServer() as server:
        for name in ("client_context", "ca_file"):
            with pytest.raises(ValueError, match="tls=True"):
                getattr(server, name)
