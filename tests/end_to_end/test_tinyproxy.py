"""A proxy that others wrote: tinyproxy, with and without a password, for sockets and REST."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_sessions import ConnectError, ConnectionPool, DataChannelClient, PoolConfig
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, QUICK, Recorder, eventually

TINYPROXY = shutil.which("tinyproxy")
pytestmark = pytest.mark.skipif(
    TINYPROXY is None, reason="tinyproxy is not installed (apt install tinyproxy)"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), LONG).close()
    except ConnectionRefusedError:
        return False
    return True


class Tinyproxy:
    def __init__(self, port: int, log: Path) -> None:
        self.port, self._log = port, log

    def url(self, credentials: str = "") -> str:
        return f"http://{credentials}{'@' if credentials else ''}127.0.0.1:{self.port}"

    @property
    def connects(self) -> int:
        return self._log.read_text(errors="replace").count("): CONNECT ")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Tinyproxy]]:
    running: list[subprocess.Popen[bytes]] = []

    def run(*lines: str) -> Tinyproxy:
        port, log = free_port(), tmp_path / "tinyproxy.log"
        settings = [f"Port {port}", "Listen 127.0.0.1", "Timeout 60", f'LogFile "{log}"', "LogLevel Connect"]
        if getpass.getuser() == "root":
            settings += ["User root", "Group root"]
        file = tmp_path / "tinyproxy.conf"
        file.write_text("\n".join([*settings, *lines, ""]))
        assert TINYPROXY is not None
        command = [TINYPROXY, "-d", "-c", str(file)]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        eventually(lambda: answers(port), "tinyproxy does not listen")
        return Tinyproxy(port, log)

    yield run
    for process in running:
        process.terminate()
        process.wait(LONG)


@pytest.mark.parametrize("auth", [False, True], ids=["open", "password"])
def test_a_session_reconnects_through_it(
    auth: bool, start: Callable[..., Tinyproxy], server: LocalServer, make_pool: Callable[..., ConnectionPool]
) -> None:
    proxy = start(*(["BasicAuth user pass-word"] if auth else []))
    pool = make_pool(proxy=proxy.url("user:pass%2Dword" if auth else ""))
    session = pool.connect(server.url("s"), timeout=LONG)
    seen = Recorder().listen(session, "online", "event:relay.event")
    for number in range(2):
        server.publish({"text": "x" * 100_000}, session="s")
        seen.wait("event:relay.event", number + 1)
        session.send({"id": str(number), "type": "publishRequest"})
        server.drop(session="s")
        seen.wait("online", number + 1)
    pool.close()
    assert proxy.connects >= 3


def test_a_wrong_password_is_named_and_final(start: Callable[..., Tinyproxy], make_pool: Any) -> None:
    proxy = start("BasicAuth user pass-word")
    for credentials in ("", "user:other"):
        with pytest.raises(ConnectError, match=r"refused: 40[17] ") as caught:
            make_pool(proxy=proxy.url(credentials)).connect("wss://127.0.0.1:1/", timeout=LONG)
        assert caught.value.status in (401, 407)  # it says 401 itself if there is none


def test_a_server_that_it_cannot_reach_is_named_and_tried_again(
    start: Callable[..., Tinyproxy], make_pool: Any
) -> None:
    proxy, nobody = start(), free_port()
    with pytest.raises(ConnectError, match="refused: 500 Unable to connect") as caught:
        make_pool(proxy=proxy.url(), initial_max_retries=1).connect(
            f"wss://127.0.0.1:{nobody}/", timeout=LONG
        )
    assert caught.value.attempts == 2


def test_ports_that_it_forbids_are_named(start: Callable[..., Tinyproxy], make_pool: Any) -> None:
    with pytest.raises(ConnectError, match="refused: 403 "):
        make_pool(proxy=start("ConnectPort 443").url()).connect("wss://127.0.0.1:1/", timeout=LONG)


@pytest.mark.parametrize("tls", ["tls"], indirect=True)
def test_rest_goes_through_it_too(
    start: Callable[..., Tinyproxy], server: LocalServer, client_context: Any
) -> None:
    proxy = start("BasicAuth user pass-word")
    config = PoolConfig(**{**QUICK, "ssl_context": client_context, "proxy": proxy.url("user:pass%2Dword")})
    with DataChannelClient("token", device="https://wdm.example/devices/1", config=config) as client:
        client.register_and_connect(server.locus_url(), server.datachannel_url("main"), timeout=LONG)
    assert proxy.connects == 2
