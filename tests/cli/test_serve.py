"""`serve` in this process: what it prints, and that what it prints works."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest

from llm_sessions import ConnectionPool, PoolConfig
from llm_sessions.cli.mailbox import Mailbox
from llm_sessions.cli.main import main
from llm_sessions.cli.parser import ServeOptions
from llm_sessions.cli.script import meeting
from llm_sessions.cli.serve import _play
from llm_sessions.cli.signals import Signal
from llm_sessions.testing.clock import ManualClock
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, QUICK, SHORT, Background, Recorder, eventually

Captured = pytest.CaptureFixture[str]


class Output(io.StringIO):
    """Standard output, from which lines can be waited for."""

    def wait(self, text: str) -> str:
        eventually(lambda: text in self.getvalue())
        return self.getvalue()

    def object(self) -> Any:
        return json.loads(self.wait("\n"))


@contextlib.contextmanager
def serving(*arguments: str) -> Any:
    """Yield the output, and what the command returns in the end."""
    output = Output()
    with contextlib.redirect_stdout(output):
        run = Background(lambda: main(["serve", *arguments]))
        yield output, run
        run.result()


def test_what_it_prints_can_be_pasted(capsys: Captured) -> None:
    with serving("--count", "20", "--rate", "50") as (output, run):
        commands = [
            shlex.split(line) for line in output.wait("--own-device").splitlines() if "WEBEX_TOKEN=" in line
        ]
        assert [one[:3] for one in commands] == [["WEBEX_TOKEN=any-token", "llm-sessions", "listen"]] * 3
        by_socket, by_registration, by_device = [one[3:] for one in commands]
        assert main(["listen", "--count", "2", "--event", "event:conversation", *by_device]) == 0
        assert main(["listen", "--count", "1", "--event", "online", *by_registration]) == 0
        assert main(["listen", "--event", "event:relay", *by_socket]) == 1  # until the meeting is over
        assert run.result() == 0
    shown = output.getvalue()
    assert shown.startswith(
        "A fictional meeting, 50 messages/s on each session while somebody listens, seed 1."
    )
    assert "It ends after 20 messages a session or with Ctrl-C." in shown
    err = capsys.readouterr().err
    assert "published    main 20, practice 20, devices " in err and "violations   0" in err


def test_the_addresses_as_one_json_line_and_the_meeting_of_its_seed(capsys: Captured) -> None:
    heard, recorder = [], Recorder()
    with serving("--json", "--sessions", "one,two words", "--seed", "9", "--count", "4", "--rate", "100") as (
        output,
        run,
    ):
        found = output.object()
        assert list(found["sessions"]) == ["one", "two words"]
        assert found["sessions"]["one"]["websocket"].startswith("ws://127.0.0.1:")
        assert found["sessions"]["two words"]["registration"].endswith("/datachannel/two%20words")
        assert found["ca_file"] is None and len(found["commands"]) == 3
        with ConnectionPool("any", config=PoolConfig(**QUICK)) as pool:
            recorder.listen(pool, "event:relay.event", "offline.permanent", session_id="one")
            for name, urls in found["sessions"].items():
                pool.connect(urls["websocket"], name)
            for envelope in recorder.wait("event:relay.event", 4):
                data = envelope.data
                heard.append(
                    data["reaction"]["type"]
                    if data["relayType"] == "react"
                    else data["voiceaPayload"]["transcripts"][0]["text"]
                )
            [end] = recorder.wait("offline.permanent")
            assert (end.code, end.reason) == (1000, "the meeting is over")
        assert run.result() == 0
    assert heard == [one.text for one, _ in zip(meeting("one", 9), range(4), strict=False)]
    assert output.getvalue().count("\n") == 1
    assert "connections  2, 0 dropped" in capsys.readouterr().err


def test_tls(capsys: Captured) -> None:
    with serving("--json", "--tls", "--seconds", "0.5") as (output, run):
        found = output.object()
        assert found["sessions"]["main"]["websocket"].startswith("wss://127.0.0.1:")
        assert found["catalog"].startswith("https://")
        assert all(f"--ca-file {found['ca_file']}" in one for one in found["commands"])
        with ConnectionPool("any", config=PoolConfig(**QUICK, ca_file=found["ca_file"])) as pool:
            assert pool.connect(found["sessions"]["main"]["websocket"]).online
        assert run.result() == 0
    assert not Path(found["ca_file"]).exists()
    with serving("--tls", "--seconds", "0.01") as (output, run):
        assert run.result() == 0
    assert "  CA file   /" in output.getvalue()


def test_a_client_that_breaks_the_protocol_is_a_failure(capsys: Captured) -> None:
    with serving("--json", "--count", "1", "--sessions", "main", "--rate", "2") as (output, run):
        with ConnectionPool("any", config=PoolConfig(**QUICK)) as pool:
            session = pool.connect(output.object()["sessions"]["main"]["websocket"], "main")
            session.send("no JSON")
            session.wait_closed(LONG)
        assert run.result() == 1
    assert "violations   1\n  " in capsys.readouterr().err


def test_a_client_that_does_not_say_goodbye_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr("llm_sessions.cli.serve._FAREWELL", SHORT)
    with serving("--json", "--seconds", "0.2") as (output, run):
        port = int(output.object()["device"].split("/")[2].split(":")[1])
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(b"GET /main HTTP/1.1\r\n")
            assert run.result() == 0


def test_a_port_in_use(server: LocalServer, capsys: Captured) -> None:
    assert main(["serve", "--port", str(server.port)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"llm-sessions: cannot listen on port {server.port}: Address already in use\n")


def test_an_output_that_is_full(capsys: Captured) -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        assert main(["serve"]) == 3
    err = capsys.readouterr().err
    assert err == "llm-sessions serve: cannot write the output: No space left on device\n"


def test_an_output_that_nobody_reads(capsys: Captured) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        assert main(["serve", "--json"]) == 141
    assert capsys.readouterr().err == ""


# the loop, step by step


class FakeBroadcast:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    @property
    def done(self) -> bool:
        return not self.steps

    def step(self, now: float) -> float:
        self.steps -= 1
        return 0.0


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143), (1, 129)])
def test_a_signal_ends_it(number: int, status: int) -> None:
    mailbox, broadcast = Mailbox(), FakeBroadcast(5)
    mailbox.tell(Signal(number))
    assert _play(ServeOptions(), broadcast, mailbox) == status  # type: ignore[arg-type]
    assert broadcast.steps == 4


def test_its_time_ends_it() -> None:
    clock = ManualClock()
    broadcast: Any = FakeBroadcast(100)
    step = broadcast.step

    def later(now: float) -> float:
        clock.advance(1)
        return float(step(now))

    broadcast.step = later
    assert _play(ServeOptions(seconds=3), broadcast, Mailbox(), clock) == 0
    assert broadcast.steps == 97
