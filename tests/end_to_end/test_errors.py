"""What users read when it does not work, what they may not ask for, and what is never written down (T11)."""

from __future__ import annotations

import contextlib
import logging
import pickle
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme

from llm_sessions import (
    ConfigurationError,
    ConnectError,
    ConnectionPool,
    ConnectTimeout,
    LLMSessionsError,
    NotOnline,
    PoolConfig,
    SessionState,
)
from llm_sessions.testing.server import LocalServer, ServerConnection
from tests.support import LONG, Background, Recorder, eventually

MakePool = Callable[..., ConnectionPool]


def chain(error: BaseException) -> list[BaseException]:
    """Return the error and its causes, outermost first."""
    found = [error]
    while found[-1].__cause__ is not None:
        found.append(found[-1].__cause__)
        assert len(found) < 10
    return found


def refused(pool: ConnectionPool, url: str, *words: str) -> ConnectError:
    """Connect to something that will never do; return the error, which says so."""
    with pytest.raises(ConnectError) as caught:
        pool.connect(url)
    error = caught.value
    text = str(error)
    for word in words:
        assert word in text, text
    assert pool.session().state is SessionState.OFFLINE
    last = pool.session().last_error
    assert last is not None and str(last) == text
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), str(twin)) == (type(error), text)
    return error


@pytest.fixture
def once(make_pool: MakePool) -> ConnectionPool:
    """A pool that tries only once."""
    return make_pool(initial_max_retries=0)


@contextlib.contextmanager
def nobody_listens() -> Iterator[int]:
    """Yield a port that is taken, so that nobody else gets it, and refuses connections."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def says(data: bytes) -> Iterator[int]:
    """Yield the port of a server that sends this to whoever comes, and hangs up."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with peer:
                    peer.settimeout(LONG)
                    peer.recv(65536)
                    peer.sendall(data)
                    peer.shutdown(socket.SHUT_WR)
                    while peer.recv(65536):
                        pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, name="says")
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(LONG)


# -- what answers, or does not -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_nothing_listens_there(once: ConnectionPool, scheme: str) -> None:
    with nobody_listens() as port:
        error = refused(once, f"{scheme}://127.0.0.1:{port}/x", f"127.0.0.1:{port}", "nothing listens")
    assert any(isinstance(cause, ConnectionRefusedError) for cause in chain(error))
    assert error.attempts == 1


def test_nothing_listens_there_for_the_whole_wait(make_pool: MakePool) -> None:
    pool = make_pool()
    with nobody_listens() as port, pytest.raises(ConnectTimeout) as caught:
        pool.connect(f"ws://127.0.0.1:{port}/x", timeout=0.2)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert f"127.0.0.1:{port}" in str(error) and "nothing listens" in str(error)
    causes = chain(error)
    assert type(causes[1]) is ConnectError
    assert any(isinstance(cause, ConnectionRefusedError) for cause in causes)
    assert error.attempts >= 1


def test_no_such_host(once: ConnectionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def resolve(*arguments: Any, **options: Any) -> Any:
        raise problem

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    error = refused(once, "wss://mercury.invalid:8443/x", "mercury.invalid", "Name or service not known")
    assert problem in chain(error)


def test_it_never_answers(make_pool: MakePool) -> None:
    pool = make_pool(open_timeout=0.1, initial_max_retries=0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        for scheme in ("ws", "wss"):
            refused(pool, f"{scheme}://127.0.0.1:{port}/", f"127.0.0.1:{port}", "0.1 s")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_it_hangs_up(once: ConnectionPool, scheme: str) -> None:
    with says(b"") as port:
        refused(once, f"{scheme}://127.0.0.1:{port}/", f"127.0.0.1:{port}")


def test_wss_to_a_plain_port(pool: ConnectionPool) -> None:
    with LocalServer(strict=False) as plain:
        where = f"127.0.0.1:{plain.port}"
        error = refused(pool, f"wss://{where}/x", where, "does not speak TLS")
        assert any(isinstance(cause, ssl.SSLError) for cause in chain(error))
        assert len(plain.connections()) == 1


def test_ws_to_a_tls_port(once: ConnectionPool, server_context: ssl.SSLContext) -> None:
    """OpenSSL servers hang up without an alert, so this is all that can be known."""
    with LocalServer(ssl_context=server_context) as secure:
        where = f"127.0.0.1:{secure.port}"
        refused(once, f"ws://{where}/x", where, "closed during the opening handshake", "wss://")
        assert len(secure.connections()) == 1
        assert secure.connections()[0].authorization is None


def test_not_a_websocket_404(server: LocalServer, once: ConnectionPool) -> None:
    server.reject(404)
    error = refused(once, server.url(), f"127.0.0.1:{server.port}", "HTTP 404", "WebSocket")
    assert error.status == 404 and len(chain(error)) > 1


def test_not_a_websocket_200_html(server: LocalServer, pool: ConnectionPool) -> None:
    server.reject(
        200, headers={"Content-Type": "text/html; charset=utf-8"}, body=b"<html>Please log in</html>"
    )
    error = refused(pool, server.url(), f"127.0.0.1:{server.port}", "HTTP 200", "text/html", "WebSocket")
    assert error.attempts == 1 and len(chain(error)) > 1
    assert len(server.connections()) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(server: LocalServer, pool: ConnectionPool, status: int) -> None:
    server.reject(status, headers={"Location": server.url("elsewhere")})
    refused(pool, server.url(), f"127.0.0.1:{server.port}", str(status))
    assert [connection.session for connection in server.connections()] == ["default"]


NOT_HTTP = {
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "smtp": b"220 mail ESMTP\r\n",
    "binary": b"\0\1\2\3\4\5\6\7\r\n",
    "tls-alert": b"\x15\x03\x03\x00\x02\x02\x46",
}


@pytest.mark.parametrize("greeting", NOT_HTTP.values(), ids=NOT_HTTP)
def test_not_http_at_all(pool: ConnectionPool, greeting: bytes) -> None:
    with says(greeting) as port:
        error = refused(pool, f"ws://127.0.0.1:{port}/", f"127.0.0.1:{port}", "HTTP")
    assert len(chain(error)) > 1


def test_a_websocket_that_is_not_signed_with_our_key(pool: ConnectionPool) -> None:
    answer = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    with says(answer) as port:
        error = refused(pool, f"ws://127.0.0.1:{port}/", f"127.0.0.1:{port}", "WebSocket")
    assert len(chain(error)) > 1


def test_not_mercury(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(open_timeout=0.7, initial_max_retries=0)
    server.withhold_ready()
    refused(pool, server.url(), f"127.0.0.1:{server.port}", "ready", "Mercury")


def test_it_talks_nonsense_before_ready(server: LocalServer, once: ConnectionPool) -> None:
    @server.on_message
    def babble(connection: ServerConnection, message: dict[str, Any]) -> None:
        connection.send_raw(b"\xff\xff\xff\xff")

    server.withhold_ready()
    error = refused(once, server.url(), f"127.0.0.1:{server.port}", "broke the WebSocket protocol")
    assert error.code == 1006


# -- certificates --------------------------------------------------------------------------------------------


def test_an_untrusted_certificate(make_pool: MakePool, server_context: ssl.SSLContext) -> None:
    pool = make_pool(ssl_context=ssl.create_default_context())
    with LocalServer(ssl_context=server_context, strict=False) as server:
        where = f"127.0.0.1:{server.port}"
        error = refused(pool, server.url(), where, "certificate", "local issuer certificate")
        assert any(isinstance(cause, ssl.SSLCertVerificationError) for cause in chain(error))
        assert error.attempts == 1 and len(server.connections()) == 1


def test_the_wrong_host(make_pool: MakePool, authority: trustme.CA) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("mercury.example").configure_cert(context)
    with LocalServer(ssl_context=context, strict=False) as server:
        for host, problem in (("127.0.0.1", "IP address mismatch"), ("localhost", "Hostname mismatch")):
            url = server.url().replace("127.0.0.1", host)
            error = refused(make_pool(), url, f"{host}:{server.port}", "certificate", problem)
            assert any(isinstance(cause, ssl.SSLCertVerificationError) for cause in chain(error))
            assert error.attempts == 1


def test_a_certificate_that_goes_bad_later_is_retried(
    make_pool: MakePool, server_context: ssl.SSLContext, authority: trustme.CA
) -> None:
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("mercury.example").configure_cert(other)
    pool = make_pool()
    with LocalServer(ssl_context=server_context) as good:
        session = pool.connect(good.url())
        port = good.port
    recorder = Recorder().listen(session, "online")
    with LocalServer(ssl_context=other, port=port, strict=False) as bad:
        bad.wait_for(lambda: len(bad.connections()) >= 2)
        assert session.state is SessionState.RECONNECTING
    with LocalServer(ssl_context=server_context, port=port):
        recorder.wait("online")
        pool.close()


# -- what may not be asked for -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "mercury.example",
        "192.0.2.1",
        "10.0.0.1",
        "[2001:db8::1]",
        "localhost.example",
        "127.0.0.1.example",
        "0.0.0.0",
    ],
)
def test_plain_ws_to_another_machine_is_refused(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    touched: list[object] = []
    for name in ("getaddrinfo", "socket"):
        monkeypatch.setattr(socket, name, lambda *arguments, **options: touched.append(arguments))
    with pytest.raises(ConfigurationError, match="unencrypted"):
        pool.connect(f"ws://{host}/x")
    with pytest.raises(ConfigurationError, match="unencrypted"):
        pool.connect(lambda: f"ws://{host}/x", "from a source")
    assert touched == []


def test_plain_ws_to_another_machine_if_allowed(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    refused(
        make_pool(allow_insecure=True, initial_max_retries=0), "ws://mercury.example/x", "mercury.example"
    )
    assert asked == ["mercury.example"]


def test_other_hosts_than_the_allowed_are_refused(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(allowed_hosts=["*.example", "mercury.test"])
    for url in (server.url(), "wss://mercury.test.evil.invalid/"):
        with pytest.raises(ConfigurationError, match="allowed_hosts"):
            pool.connect(url)
    with pytest.raises(ConfigurationError, match="allowed_hosts"):
        pool.connect(lambda: server.url(), "from a source")
    assert server.connections() == []
    assert make_pool(allowed_hosts=["127.0.0.1"]).connect(server.url()).online


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/", "ws://", "127.0.0.1:80", "ws://u:p@127.0.0.1/", "ws://127.0.0.1/#x", 7]
)
def test_bad_urls_are_refused_at_once(pool: ConnectionPool, url: Any) -> None:
    with pytest.raises(ConfigurationError):
        pool.connect(url)
    assert pool.sessions() == {}


def test_connect_without_a_url_or_a_token(server: LocalServer) -> None:
    with ConnectionPool(config=PoolConfig()) as pool:
        with pytest.raises(ConfigurationError, match="url"):
            pool.connect()
        with pytest.raises(ConfigurationError, match="token"):
            pool.connect(server.url())
    assert server.connections() == []


# -- T11: secrets --------------------------------------------------------------------------------------------


def test_t11_no_token_in_any_record_repr_or_text(
    server: LocalServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = [f"s3cret-{name}-ZmFrZQ.aGVhZGVy" for name in ("first", "second", "third")]
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []

    def note(*objects: object) -> None:
        for thing in objects:
            texts.extend([repr(thing), str(thing)])
            if isinstance(thing, BaseException):
                texts.extend(traceback.format_exception(type(thing), thing, thing.__traceback__))
                texts.extend([repr(thing.args), repr(vars(thing))])

    class Tokens:
        def __init__(self) -> None:
            self.left = list(secrets)

        def get(self) -> str:
            return f"Bearer {self.left[0]}"

        def refresh(self, rejected: str) -> str:
            self.left.pop(0)
            if len(self.left) == 1:
                raise RuntimeError("no more today")
            return self.left[0]

    tokens = Tokens()
    pool = make_pool(secrets[0], max_retries=3, initial_max_retries=3)
    recorder = Recorder().listen(pool)
    server.tokens = set(secrets[1:])
    session = pool.connect(server.url("default", access_token=secrets[2]), token=tokens)  # 4401, refreshed
    note(pool, session, pool._env.config, session.last_error)
    [connection] = server.wait_live()
    session.on("event:relay.event", lambda envelope: note(envelope) or 1 / 0)
    server.publish({"token": "not one of ours"})
    recorder.wait("event")
    server.send_text("null")
    connection.send_json({"type": "shutdown"})
    recorder.wait("event:mercury_shutdown_switchover_complete")
    connection.close(4001)
    recorder.wait("offline.replaced")
    server.tokens = {secrets[2]}
    server.live()[0].close(4401, "Authentication Failed")  # a refresh that raises, then the third token
    recorder.wait("online", 2)
    note(session.last_error)
    server.wait_live()
    server.drop()
    recorder.wait("online", 3)
    for status in (401, 403, 404, 500):
        for name, url in (
            ("q", server.url("refused", access_token=secrets[1])),
            ("s", lambda: server.url("refused")),
        ):
            server.reject(status, session="refused", times=9)
            with pytest.raises(ConnectError) as caught:
                pool.connect(url, name, token=secrets[0])
            note(caught.value, *chain(caught.value))
            pool.disconnect(name)
    with pytest.raises(LLMSessionsError) as caught_too:
        pool.connect(server.url("other", access_token=secrets[1]))
    note(caught_too.value)
    for bad in (f"{secrets[0]} {secrets[1]}", f"{secrets[0]}\n", f"{secrets[0]}ä"):
        with pytest.raises(ConfigurationError) as refused_token:
            pool.connect(server.url("bad"), "bad", token=bad)
        note(refused_token.value)
        with pytest.raises(ConfigurationError) as refused_source:
            pool.connect(server.url("bad"), "bad", token=lambda bad=bad: bad)
        note(refused_source.value, *chain(refused_source.value))
    with pytest.raises(ConfigurationError) as refused_url:
        pool.connect(f"ws://{secrets[0]}@127.0.0.1/", "bad")
    note(refused_url.value)
    server.hold_upgrades()
    call = Background(
        lambda: pool.connect(server.url("held", access_token=secrets[1]), "held", token=secrets[0])
    )
    server.wait_for(lambda: bool(server.connections("held")))
    pool.disconnect_all()
    note(call.error())
    recorder.wait("disconnected")
    with pytest.raises(NotOnline) as not_online:
        session.send({"token": secrets[0]})
    note(not_online.value, pool, session)
    note(*[payload for _, payload in recorder.calls if not hasattr(payload, "raw")])
    pool.close()
    eventually(lambda: caplog.records)
    formatter = logging.Formatter("%(name)s %(threadName)s %(message)s")
    texts.extend(formatter.format(record) for record in caplog.records)
    texts.extend(repr(vars(record)) for record in caplog.records)
    assert len(caplog.records) > 20
    leaks = [text for text in texts if any(secret in text for secret in secrets)]
    assert leaks == []
