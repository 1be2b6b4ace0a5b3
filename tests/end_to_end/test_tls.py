"""TLS as users set it: files given once, for sockets and REST; both versions; what each failure is called."""

from __future__ import annotations

import dataclasses
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import ConnectError, ConnectionPool, DataChannelClient, PoolConfig
from llm_sessions.testing.certificates import ThrowAwayCA
from llm_sessions.testing.server import LocalServer
from tests.peers import Peer
from tests.support import LONG, QUICK, Recorder

MakePool = Callable[..., ConnectionPool]
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def ca() -> Iterator[ThrowAwayCA]:
    with ThrowAwayCA() as ca:
        yield ca


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_files_are_given_once_for_sockets_and_rest(version: ssl.TLSVersion, ca: ThrowAwayCA) -> None:
    context = only(ca.server_context(client_certificates=True), version)
    config = PoolConfig(**QUICK, ca_file=ca.ca_file, client_cert=ca.client_file("me.example"))
    with LocalServer(ssl_context=context) as server:
        with DataChannelClient("token", device="https://wdm.example/devices/1", config=config) as client:
            channel = client.register_and_connect(
                server.locus_url(), server.datachannel_url("main"), timeout=LONG
            )
            seen = Recorder().listen(channel, "online")
            server.drop()
            seen.wait("online")
        assert len(server.requests) == 2 and server.violations == []


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("rest", [False, True], ids=["socket", "REST"])
def test_a_missing_client_certificate_is_final_and_named(
    version: ssl.TLSVersion, rest: bool, ca: ThrowAwayCA
) -> None:
    context = only(ca.server_context(client_certificates=True), version)
    with LocalServer(ssl_context=context, strict=False) as server:
        error = fails(server, rest, PoolConfig(**QUICK, ca_file=ca.ca_file))
    wanted = version is ssl.TLSVersion.TLSv1_3
    text = "wants a client certificate" if wanted else "it may want a client certificate"
    assert text in error.message and f":{server.port}" in error.message


def fails(server: LocalServer, rest: bool, config: PoolConfig) -> ConnectError:
    device = "https://wdm.example/devices/1"
    with (
        DataChannelClient("token", device=device, config=config) as client,
        ConnectionPool("t", config=config) as pool,
    ):

        def connect() -> object:
            if rest:
                return client.register_and_connect(
                    server.locus_url(), server.datachannel_url("main"), timeout=LONG
                )
            return pool.connect(server.url("s"), timeout=LONG)

        with pytest.raises(ConnectError) as caught:
            connect()
    assert type(caught.value) is ConnectError and caught.value.attempts <= 1
    return caught.value


@pytest.mark.parametrize("rest", [False, True], ids=["socket", "REST"])
@pytest.mark.parametrize(
    ("context", "text"),
    [
        (ThrowAwayCA.expired_context, "is not valid: certificate has expired"),
        (ThrowAwayCA.wrong_host_context, "is not valid: IP address mismatch"),
        (lambda ca: ThrowAwayCA().server_context(), "is not valid: unable to get local issuer certificate"),
    ],
    ids=["expired", "wrong host", "unknown authority"],
)
def test_a_certificate_that_is_not_valid_is_final_and_named(
    context: Any, text: str, rest: bool, ca: ThrowAwayCA
) -> None:
    with LocalServer(ssl_context=context(ca), strict=False) as server:
        assert text in fails(server, rest, PoolConfig(**QUICK, ca_file=ca.ca_file)).message


def test_a_certificate_that_was_good_once_is_tried_again(ca: ThrowAwayCA, make_pool: MakePool) -> None:
    """An authority that is being replaced, or a portal of a network, is no reason to end what was online."""
    with LocalServer(ssl_context=ca.server_context()) as server:
        pool = make_pool(ssl_context=None, ca_file=ca.ca_file)
        session = pool.connect(server.url("s"), timeout=LONG)
        seen = Recorder().listen(session)
        environment = pool._env
        real = environment.transport
        failed: list[int] = []

        def transport(request: Any, owner: Any, name: str) -> Any:
            if len(failed) < 2:
                failed.append(1)
                request = dataclasses.replace(request, ssl_context=ssl.create_default_context())
            return real(request, owner, name)

        environment.transport = transport
        server.drop()
        seen.wait("online")
        [why] = seen.payloads("connection_failed")
        assert "is not valid: unable to get local issuer certificate" in str(why)
        pool.close()


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_tcp_that_ends_without_the_goodbye_of_tls_is_a_loss(
    version: ssl.TLSVersion, ca: ThrowAwayCA, make_pool: MakePool
) -> None:
    def script(peer: Peer, sock: Any) -> None:
        peer.open_session(sock)
        if len(peer.requests) == 1:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of TCP: no close_notify
        else:
            peer.hold()

    with Peer(script, only(ca.server_context(), version)) as peer:
        pool = make_pool(ssl_context=None, ca_file=ca.ca_file)
        seen = Recorder().listen(pool, "online", "offline")
        pool.connect(f"wss://localhost:{peer.port}/", timeout=LONG)
        seen.wait("online", 2)
        [lost] = seen.payloads("offline")
        assert lost.code == 1006
        pool.close()
