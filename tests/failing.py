"""Ways to make an attempt fail: what hosts, servers, endpoints and token providers do to a client."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trustme

from llm_sessions import ConfigurationError, Endpoint, RegistrationError, Target
from llm_sessions.pool.sources import Unreachable
from llm_sessions.protocol.closing import Failure
from llm_sessions.testing.server import LocalServer, ServerConnection
from tests.peers import Peer, full_backlog, read_request, reset
from tests.proxies import HOST, Proxy, clean_environment, say
from tests.support import LONG, SHORT


class Place(Endpoint):
    """Good until it is told to be bad. Every attempt stops here until the test lets it go on."""

    def __init__(self, good: str) -> None:
        self._good = Target(good)
        self._arrivals, self._permits = threading.Semaphore(0), threading.Semaphore(0)
        self.bad: Callable[[], Any] | None = None
        self.told: list[Exception] = []

    def wait_arrived(self) -> None:
        assert self._arrivals.acquire(timeout=LONG), "no attempt came"

    def go_on(self, times: int = 1) -> None:
        self._permits.release(times)

    def resolve(self, attempt: Any) -> Target:
        self._arrivals.release()
        assert self._permits.acquire(timeout=LONG), "the test did not let it go on"
        return self._good if self.bad is None else self.bad()

    def rejected(self, target: Target, error: Exception) -> None:
        self.told.append(error)


class Tokens:
    """A provider that always has another token."""

    def __init__(self) -> None:
        self.refreshed: list[str] = []
        self.get: Callable[[], Any] = lambda: f"token-{len(self.refreshed)}"
        self.answer: Callable[[], str] = self.get

    def refresh(self, rejected: str) -> str:
        self.refreshed.append(rejected)
        return self.answer()


class World:
    """What a way to fail has to work with.

    Attributes:
        url: Where the server is that fails on request.
        place: Set its `bad`.
        tune: Applied to the request of every attempt.
        stack: For what has to be closed.
    """

    def __init__(self, server: LocalServer, stack: contextlib.ExitStack, authority: trustme.CA) -> None:
        self.server, self.stack, self.authority = server, stack, authority
        self.url = server.url("bad")
        self.place, self.tokens = Place(server.url("good")), Tokens()
        self.token: Any = self.tokens
        self.tune: Callable[[Any], Any] = lambda request: request

    def goes_to(self, url: str) -> None:
        self.place.bad = lambda: Target(url)

    def raises(self, error: Exception) -> None:
        def bad() -> Target:
            raise error

        self.place.bad = bad

    def is_impatient(self) -> None:
        self.tune = lambda request: dataclasses.replace(request, open_timeout=SHORT)

    def answers(self, react: Callable[[ServerConnection], object]) -> None:
        """Do something instead of saying that it is ready."""
        self.goes_to(self.url)
        self.server.withhold_ready("bad")

        @self.server.on_message
        def authorized(connection: ServerConnection, message: dict[str, Any]) -> None:
            if connection.session == "bad" and message.get("type") == "authorization":
                react(connection)

    def heal(self) -> None:
        self.place.bad = None
        self.tune = lambda request: request
        self.tokens.get = lambda: "healed"


Way = Callable[[World], object]


def rejects(status_or_code: int, **details: Any) -> Way:
    def way(world: World) -> None:
        world.goes_to(world.url)
        world.server.reject(status_or_code, session="bad", times=99, **details)

    return way


def unknown_host(world: World) -> None:
    found = socket.getaddrinfo

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "mercury.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found(host, *arguments, **options)

    world.stack.enter_context(pytest.MonkeyPatch.context()).setattr(socket, "getaddrinfo", resolve)
    world.goes_to("wss://mercury.invalid/x")


def nobody_listens(world: World) -> None:
    sock = world.stack.enter_context(socket.socket())
    sock.bind(("127.0.0.1", 0))
    world.goes_to(f"ws://127.0.0.1:{sock.getsockname()[1]}/")


def mute_tcp(world: World) -> None:
    address: Any = world.stack.enter_context(full_backlog())
    world.goes_to(f"ws://127.0.0.1:{address[4][1]}/")
    world.is_impatient()


def mute_tls(world: World) -> None:
    listener = world.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    world.goes_to(f"wss://127.0.0.1:{listener.getsockname()[1]}/")
    world.is_impatient()


def mute_http(world: World) -> None:
    world.server.hold_upgrades("bad")
    world.goes_to(world.url)
    world.is_impatient()


def raw_peer(script: Callable[[Any], object]) -> Way:
    """A peer that does this with each connection."""

    def way(world: World) -> None:
        peer = world.stack.enter_context(Peer(lambda peer, sock: script(sock)))
        world.goes_to(f"ws://127.0.0.1:{peer.port}/")

    return way


def hang_up(sock: Any) -> None:
    read_request(sock)
    sock.close()


def reset_at_once(sock: Any) -> None:
    reset(sock)


def reset_in_the_handshake(sock: Any) -> None:
    read_request(sock)
    reset(sock)


def greet(sock: Any) -> None:
    read_request(sock)
    sock.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


def never_ready(world: World) -> None:
    world.answers(lambda connection: None)
    world.is_impatient()


def reset_before_ready(world: World) -> None:
    world.answers(lambda connection: connection.drop())


def nonsense_before_ready(world: World) -> None:
    world.answers(lambda connection: connection.send_raw(b"\xff\xff\xff\xff"))


def registration_error(status: int | None, retry_after: float | None = None) -> Way:
    error = RegistrationError("s", "the REST service said no", status, retry_after=retry_after)
    return lambda world: world.raises(error)


def slow_down(error: Exception) -> Exception:
    error.retry_after = 7  # type: ignore[attr-defined]
    return error


def provider_gives(answer: Callable[[], Any]) -> Way:
    """Only while it is bad: the provider answers this."""

    def way(world: World) -> None:
        world.goes_to(world.url)
        good = world.tokens.get
        world.tokens.get = lambda: answer() if world.place.bad is not None else good()

    return way


def raising(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def refresh_raises(world: World) -> None:
    rejects(4401)(world)
    world.tokens.answer = raising(RuntimeError("the identity service is down"))


def plain_string(status_or_code: int) -> Way:
    def way(world: World) -> None:
        rejects(status_or_code)(world)
        world.token = "a-plain-string"

    return way


def same_again(status_or_code: int) -> Way:
    def way(world: World) -> None:
        rejects(status_or_code)(world)
        world.tokens.get = world.tokens.answer = lambda: "the-only-one"

    return way


def untrusted(world: World) -> None:
    server = world.stack.enter_context(LocalServer(tls=True, strict=False))
    world.goes_to(server.url())


def wrong_host(world: World) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    world.authority.issue_cert("mercury.example").configure_cert(context)
    server = world.stack.enter_context(LocalServer(ssl_context=context, strict=False))
    world.goes_to(server.url())


def tls_to_a_plain_port(world: World) -> None:
    plain = world.stack.enter_context(LocalServer(strict=False))
    world.goes_to(plain.url().replace("ws://", "wss://"))


def mutual_tls(known: bool) -> Way:
    """A server that lets nobody in without a certificate; the client has one of a stranger, or none."""

    def way(world: World) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        world.authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        world.authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        server = world.stack.enter_context(LocalServer(ssl_context=context, strict=False))
        world.goes_to(server.url())
        if known:
            client = ssl.create_default_context()
            world.authority.configure_trust(client)
            trustme.CA().issue_cert("stranger.example").configure_cert(client)
            world.tune = lambda request: dataclasses.replace(request, ssl_context=client)

    return way


def too_old(world: World) -> None:
    def script(peer: Peer, sock: Any) -> None:
        sock.recv(1 << 16)
        sock.sendall(b"\x15\x03\x01\x00\x02\x02\x46")  # alert: protocol version
        peer.hold()

    peer = world.stack.enter_context(Peer(script))
    world.goes_to(f"wss://127.0.0.1:{peer.port}/")


def rest_untrusted(world: World) -> None:
    error = Unreachable("s", "POST x failed: the certificate of h:1 is not valid: it has expired (1)")
    error.failure = Failure.UNTRUSTED
    world.raises(error)


def proxied(url: str) -> Way:
    """The environment names this proxy; what is on loopback goes without."""

    def way(world: World) -> None:
        patch = world.stack.enter_context(pytest.MonkeyPatch.context())
        clean_environment(patch, https_proxy=url)
        world.goes_to(f"wss://{HOST}/x")

    return way


def by_proxy(instead: Callable[[Peer, Any], object] | None, kind: str = "http", **options: Any) -> Way:
    """A proxy that does this."""

    def way(world: World) -> None:
        proxy = world.stack.enter_context(Proxy(kind, instead=instead, **options))
        url = proxy.url("socks5h" if kind == "socks5" else None, credentials="user:wrong")
        proxied(url)(world)

    return way


def proxy_answers(*statuses: bytes) -> list[Way]:
    head = b"\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"
    return [by_proxy(say(b"HTTP/1.1 " + status + head)) for status in statuses]


def no_proxy_there(world: World) -> None:
    sock = world.stack.enter_context(socket.socket())
    sock.bind(("127.0.0.1", 0))
    proxied(f"http://127.0.0.1:{sock.getsockname()[1]}")(world)


def mute_proxy(world: World) -> None:
    by_proxy(lambda peer, sock: peer.hold())(world)
    world.is_impatient()


def returns(what: Any) -> Way:
    def way(world: World) -> None:
        world.place.bad = lambda: what

    return way


UNUSABLE = [
    returns("a string"),
    returns(Target("http://localhost/")),
    returns(Target("ws://192.0.2.1/")),
    provider_gives(lambda: 7),
    provider_gives(lambda: "two words"),
]
RETRY_AFTER = {"headers": {"Retry-After": "7"}}

WAYS: dict[tuple[str, str], list[Way]] = {
    ("NETWORK", "the host's name is not found"): [unknown_host],
    ("NETWORK", "nothing listens there"): [nobody_listens],
    ("NETWORK", "no TCP, TLS or HTTP answer within `open_timeout`"): [mute_tcp, mute_tls, mute_http],
    ("NETWORK", "it hangs up or resets during the opening handshake"): [
        raw_peer(hang_up),
        raw_peer(reset_at_once),
        raw_peer(reset_in_the_handshake),
    ],
    ("NETWORK", "it hangs up or resets before it says that it is ready"): [rejects(1006), reset_before_ready],
    ("NETWORK", "a WebSocket, but not ready within `open_timeout`"): [never_ready],
    ("NETWORK", "nothing listens at the proxy"): [no_proxy_there],
    ("NETWORK", "the proxy does not answer within `open_timeout`"): [mute_proxy],
    ("NETWORK", "the proxy hangs up or resets"): [
        by_proxy(lambda peer, sock: sock.close()),
        by_proxy(lambda peer, sock: reset(sock)),
    ],
    ("NETWORK", "the proxy (SOCKS) cannot reach the server"): [
        by_proxy(say(b"\x05\x04\x00\x01" + bytes(6)), "socks5")
    ],
    ("BUSY", "the proxy answers 502, 503 or 504"): proxy_answers(b"502 Bad Gateway", b"503 No", b"504 No"),
    ("BUSY", "the proxy answers 408, 429 or another 5xx"): proxy_answers(b"408 No", b"429 No", b"500 No"),
    ("BUSY", "HTTP 408, 429 or 5xx at the upgrade"): [
        rejects(status, **RETRY_AFTER) for status in (408, 429, 500, 503)
    ],
    ("BUSY", "the endpoint raised `RegistrationError` with such a status"): [registration_error(503, 7)],
    ("STALE", "HTTP 404 at the upgrade: the URL is stale"): [rejects(404)],
    ("UNKNOWN_RESPONSE", "close 1005 without a reason before ready"): [rejects(1005)],
    ("UNAUTHORIZED", "close 4401 before ready, and the provider has another token"): [rejects(4401)],
    ("UNAUTHORIZED", "HTTP 401 at the upgrade, and the provider has another token"): [rejects(401)],
    ("UNAUTHORIZED", "close 4401, and the refresh raises"): [refresh_raises],
    ("UNAUTHORIZED", "close 4401 before ready, and there is no other token"): [
        plain_string(4401),
        same_again(4401),
    ],
    ("UNAUTHORIZED", "HTTP 401 at the upgrade, and there is no other token"): [
        plain_string(401),
        same_again(401),
    ],
    ("SOURCE", "the endpoint or the token provider raised"): [
        lambda world: world.raises(slow_down(ValueError("no"))),
        provider_gives(raising(slow_down(OSError("no")))),
    ],
    (
        "SOURCE",
        "the endpoint or the token provider returned what cannot be used, and the session was online",
    ): UNUSABLE,
    ("BAD_REQUEST", "close 4400 before ready"): [rejects(4400)],
    ("FORBIDDEN", "close 4403 before ready"): [rejects(4403, reason="no")],
    ("REFUSED", "another HTTP 4xx at the upgrade"): [rejects(400), rejects(403), rejects(410)],
    ("REFUSED", "the endpoint raised `RegistrationError` with another status or none"): [
        registration_error(403),
        registration_error(404),
        registration_error(None),
    ],
    ("UNTRUSTED", "the certificate or its host name is wrong"): [untrusted, wrong_host],
    ("UNTRUSTED", "it wants a client certificate, and there is none"): [mutual_tls(known=False)],
    ("UNTRUSTED", "it refuses the client certificate"): [mutual_tls(known=True)],
    (
        "UNTRUSTED",
        "one of these happens to a REST call of a `DataChannelClient` or a `DeviceRegistration`",
    ): [rest_untrusted],
    ("MISPLACED", "it speaks no version of TLS that is allowed here"): [too_old],
    (
        "MISPLACED",
        "the proxy answers 407 (user or password is wrong), or another status",
    ): [by_proxy(None, auth=True), *proxy_answers(b"403 Filtered", b"302 Found")],
    ("MISPLACED", "what is set as a proxy is none"): [
        by_proxy(say(b"SSH-2.0-x\r\n")),
    ],
    ("MISPLACED", "the proxy (SOCKS) refuses the user or the password"): [
        by_proxy(None, "socks5", auth=True)
    ],
    (
        "MISCONFIGURED",
        "the environment names a proxy that cannot be used",
    ): [proxied("socks4://p:1"), proxied("http://p:x")],
    ("MISPLACED", "a web page or a redirect answers"): [
        rejects(200, headers={"Content-Type": "text/html"}, body=b"<html>"),
        rejects(302, headers={"Location": "ws://127.0.0.1/elsewhere"}),
    ],
    ("MISPLACED", "`wss://`, and it does not speak TLS"): [tls_to_a_plain_port],
    ("MISPLACED", "it does not speak HTTP"): [raw_peer(greet)],
    ("MISCONFIGURED", "the endpoint or the token provider raised `ConfigurationError`"): [
        lambda world: world.raises(ConfigurationError("device", "is no URL")),
        provider_gives(raising(ConfigurationError("token", "is not there"))),
    ],
    ("MISCONFIGURED", "the endpoint or the token provider returned what cannot be used"): UNUSABLE,
    ("CLOSED", "another close before ready"): [rejects(4410, reason="x"), rejects(1000), rejects(4001)],
    ("CLOSED", "it broke the WebSocket protocol before ready"): [nonsense_before_ready],
}
"""How to make each row of the table of failures happen."""
