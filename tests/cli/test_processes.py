"""The command as a process: signals, pipes, terminals, and the end of each."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_sessions.testing.server import LocalServer
from tests.cli.command import TOKEN, Command
from tests.support import LONG, Background, eventually


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_listen_politely_with_a_summary(
    server: LocalServer, number: int, status: int, tmp_path: Path
) -> None:
    path = tmp_path / "lines.jsonl"
    with Command(
        "listen", "--json", "--save", str(path), server.url("main"), server.url("practice")
    ) as command:
        for key in ("main", "practice"):
            server.wait_live(key)
            server.publish({"n": key}, session=key)
        found = [command.object() for _ in range(4)]
        command.signal(number)
        out, err = command.ends(status)
    found += [json.loads(line) for line in out.splitlines()]
    for key in ("main", "practice"):
        assert [one["event"] for one in found if one["session"] == key] == [
            "online",
            "event:relay.event",
            "offline.permanent",
            "disconnected",
        ]
    assert re.fullmatch(r"main +2 messages, .* no error\npractice +2 messages, .* no error\n", err)
    assert [one.close_code for one in server.connections()] == [1000, 1000]
    assert [json.loads(line) for line in path.read_text().splitlines()] == found


def test_a_signal_while_it_connects(server: LocalServer) -> None:
    server.hold_upgrades()
    with Command("listen", "--json", server.url("main")) as command:
        server.wait_for(lambda: len(server.connections()) == 1)
        command.signal(signal.SIGINT)
        _, err = command.ends(130)
    assert err.startswith("main  0 messages")


def test_t4_a_burst_before_ctrl_c_is_written_to_the_last_line(server: LocalServer) -> None:
    with Command("listen", "--json", "--event", "event:relay.event", server.url("main")) as command:
        server.wait_live("main")
        for number in range(3000):
            server.publish({"n": number, "text": "x" * 100}, session="main")
        # It has taken all of them off the socket when it has acknowledged them; the ready event is one more.
        server.wait_for(lambda: len(server.connections()[0].acks) >= 3001, 60)
        command.signal(signal.SIGINT)
        out, err = command.ends(130)
    assert [json.loads(line)["data"]["n"] for line in out.splitlines()] == list(range(3000))
    assert err.startswith("main  3001 messages")


def handles(command: Command, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{command.process.pid}/status").read_text()
    [mask] = re.findall(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_second_ctrl_c_ends_it_at_once_also_when_nobody_reads_its_output(server: LocalServer) -> None:
    with Command("listen", "--json", server.url("main")) as command:
        server.wait_live("main")
        for _ in range(60):  # more than fits into the pipe: the main thread is stuck in a write
            server.publish({"text": "x" * 4000}, session="main")
        server.wait_for(lambda: len(server.connections()[0].acks) >= 61)
        assert handles(command, signal.SIGINT)
        command.signal(signal.SIGINT)
        eventually(lambda: not handles(command, signal.SIGINT))
        assert command.process.poll() is None
        command.signal(signal.SIGINT)
        assert command.process.wait(20) == -signal.SIGINT


def test_a_reader_that_has_enough_ends_it_quietly(server: LocalServer, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with Command("listen", "--json", "--save", str(path), server.url("main")) as command:
        assert command.object()["event"] == "online"
        assert command.process.stdout is not None
        command.process.stdout.close()
        server.publish({"n": 1}, session="main")
        assert command.process.wait(20) == 141
        assert command.process.stderr is not None
        assert re.fullmatch(r"main  2 messages, .*\n", command.process.stderr.read())
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert events == ["online", "event:relay.event", "offline.permanent", "disconnected"]


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_streams_that_were_closed_before_it_began(
    server: LocalServer, closed: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / "lines.jsonl"
    arguments = ("listen", "--json", "--count", "1", "--save", str(path), server.url("main"))
    with Command(*arguments, closed=closed) as command:
        out, err = command.ends(0)
    saved = path.read_text()
    assert json.loads(saved)["event"] == "online"
    assert out == ("" if 1 in closed else saved)
    assert err == ("" if 2 in closed else "main  1 message, 0 reconnects, 0 gaps, no error\n")
    with Command("serve", "--seconds", "0.01", closed=closed) as command:
        command.ends(0)


def test_a_file_that_is_a_pipe_whose_reader_is_gone(server: LocalServer, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = Background(lambda: os.open(path, os.O_RDONLY))  # waits for the writer
    with Command("listen", "--plain", "--save", str(path), server.url("main")) as command:
        assert "online" in command.line()
        os.close(reader.result())
        server.publish({"text": "x" * 100_000}, session="main")  # more than the pipe takes
        _, err = command.ends(3)
    assert f"llm-sessions listen: cannot save to {path}: Broken pipe\n" in err


def test_a_token_from_a_pipe_is_there_for_every_attempt(server: LocalServer) -> None:
    reads, writes = os.pipe()
    os.write(writes, b"of-a-pipe-0815\n")
    os.close(writes)
    arguments = ("listen", "--json", "--token-file", "/dev/stdin", "--event", "online", "--count", "2")
    try:
        with Command(*arguments, server.url("main"), stdin=reads) as command:
            assert command.object()["event"] == "online"
            server.drop("main")
            command.ends(0)
    finally:
        os.close(reads)
    assert [one.token for one in server.connections()] == ["of-a-pipe-0815"] * 2


def test_the_demo_ends_when_nobody_reads_it() -> None:
    with Command("demo") as command:
        command.line()
        assert command.process.stdout is not None
        command.process.stdout.close()
        assert command.process.wait(LONG) == 141
        assert command.process.stderr is not None and command.process.stderr.read() == ""


def test_the_demo_on_a_full_disk() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with Command("demo", stdout=full) as command:
            _, err = command.ends(3)
    finally:
        os.close(full)
    assert err == "llm-sessions demo: cannot write the output: No space left on device\n"


def test_the_demo_in_ascii() -> None:
    with Command("demo", env={"PYTHONIOENCODING": "ascii"}) as command:
        out, _ = command.ends(0)
    assert r"main \u2192 program" in out and out.isascii()


def test_an_output_on_a_full_disk(server: LocalServer) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with Command("listen", "--json", server.url("main"), stdout=full) as command:
            _, err = command.ends(3)
    finally:
        os.close(full)
    assert "llm-sessions listen: cannot write the output: No space left on device" in err


def test_it_runs_where_rich_is_not(server: LocalServer) -> None:
    code = "import sys\nsys.modules['rich'] = None"
    with Command("listen", "--json", "--count", "1", server.url("main"), code=code) as command:
        command.ends(0)
    with Command("demo", code=code) as command:
        assert "demo needs rich" in command.ends(2)[1]
    with Command("serve", "--seconds", "0.01", code=code) as command:
        command.ends(0)


def test_listen_needs_nothing_of_the_testing_extra(server: LocalServer) -> None:
    code = "import sys\nfor name in ('h11', 'wsproto', 'trustme', 'rich'): sys.modules[name] = None"
    with Command("listen", "--json", "--count", "1", server.url("main"), code=code) as command:
        command.ends(0)
    with Command("serve", code=code) as command:
        assert "serve needs " in command.ends(2)[1]
    with Command("serve", "--tls", code="import sys\nsys.modules['trustme'] = None") as command:
        assert "serve needs trustme: pip install 'llm-sessions[testing]'" in command.ends(2)[1]


# serve


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_serve_and_listen_in_two_processes(number: int, status: int) -> None:
    with Command("serve", "--json", "--rate", "50") as serve:
        urls = serve.object()["sessions"]
        arguments = [f"{name}={one['websocket']}" for name, one in urls.items()]
        with Command("listen", "--json", *arguments) as listen:
            heard = {"main": 0, "practice": 0}
            while min(heard.values()) < 3:
                one = listen.object()
                heard[one["session"]] += one["event"] == "event:relay.event"
            serve.signal(number)
            _, err = serve.ends(status)
            assert "violations   0" in err
            assert [
                one for one in listen.until("offline.transient") if one["event"] == "offline.permanent"
            ] == []
            listen.signal(signal.SIGINT)
            listen.ends(130)


def test_the_faults_of_serve_are_seen_as_reconnects_and_switchovers() -> None:
    with Command("serve", "--json", "--rate", "200", "--faults", "--sessions", "main") as serve:
        url = serve.object()["sessions"]["main"]["websocket"]
        with Command("listen", "--json", f"main={url}") as listen:
            listen.until("event:mercury_shutdown_switchover_complete")
            listen.until("offline.transient")
            listen.until("online")
            listen.signal(signal.SIGTERM)
            _, err = listen.ends(143)
        assert re.match(r"main  \d+ messages, [1-9]\d* reconnects?, ", err)
        serve.signal(signal.SIGINT)
        assert "violations   0" in serve.ends(130)[1]


# a terminal


class Terminal:
    """A pseudoterminal, and what it was sent. One end is the command's standard output and input."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.sent = b""
        self._reader = Background(self._read)

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self.ours, 65536)
            except OSError:  # EIO: nobody has the other end any more
                return
            self.sent += chunk

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.sent.decode()).replace("\r", "\n")

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def close(self) -> None:
        os.close(self.theirs)
        self._reader.result()
        os.close(self.ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_live_lines_on_a_terminal_of_any_size(server: LocalServer, terminal: Terminal) -> None:
    env = {"TERM": "xterm-256color"}
    terminal.resize(100)
    with Command("listen", server.url("main"), stdout=terminal.theirs, env=env) as command:
        server.wait_live("main")
        server.publish({"text": "hello there"}, session="main")
        eventually(lambda: re.search(r"^main +online +2 messages +[\d.]+/s +latency", terminal.text, re.M))
        assert "event:relay.event  hello there" in terminal.text
        terminal.resize(60)
        command.signal(signal.SIGWINCH)
        server.publish({"text": "y" * 200}, session="main")
        eventually(lambda: re.search(r"^.{46}y+…$|^[^\n]{59}…$", terminal.text, re.M))
        server.drop("main")
        eventually(lambda: re.search(r"^main +online +.* 1 reconnect *$", terminal.text, re.M))
        command.signal(signal.SIGINT)
        _, err = command.ends(130)
    assert re.match(r"main  \d+ messages, 1 reconnect, 0 gaps, last error: connection lost \(1006\)", err)
    assert terminal.sent.rfind(b"\x1b[?25h") > terminal.sent.rfind(b"\x1b[?25l"), "the cursor is hidden"


def test_a_terminal_that_is_not_utf8(server: LocalServer, terminal: Terminal) -> None:
    env = {"TERM": "xterm", "PYTHONIOENCODING": "ascii"}
    arguments: Any = ("listen", "--event", "event:relay.event", "--count", "1", server.url("main"))
    with Command(*arguments, stdout=terminal.theirs, env=env) as command:
        server.wait_live("main")
        server.publish({"text": "gr\u00fcn " * 100}, session="main")
        command.ends(0)
    eventually(lambda: rb"gr\xfcn gr\xfcn" in terminal.sent)
    assert b"\x1b" not in terminal.sent


def test_plain_on_a_terminal_sends_no_codes(server: LocalServer, terminal: Terminal) -> None:
    arguments: Any = ("listen", "--plain", "--count", "1", server.url("main"))
    with Command(*arguments, stdout=terminal.theirs, env={"TERM": "xterm"}) as command:
        command.ends(0)
    eventually(lambda: b"online" in terminal.sent)
    assert b"\x1b" not in terminal.sent


def test_t11_no_token_in_the_arguments_of_any_process(server: LocalServer) -> None:
    with Command("listen", "--json", server.url("main")) as command:
        command.object()
        arguments = Path(f"/proc/{command.process.pid}/cmdline").read_bytes()
        assert TOKEN.encode() not in arguments and server.url("main").encode() in arguments
        command.signal(signal.SIGTERM)
        out, err = command.ends(143)
        assert TOKEN not in out + err
