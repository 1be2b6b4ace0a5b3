"""`listen` in this process: what it writes, and how it ends."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import re
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from llm_sessions import ConnectError
from llm_sessions.cli import listen
from llm_sessions.cli.lines import Line
from llm_sessions.cli.listen import Listening
from llm_sessions.cli.mailbox import Mailbox
from llm_sessions.cli.main import main
from llm_sessions.cli.output import ClosedPipe, Unwritable
from llm_sessions.cli.parser import ListenOptions
from llm_sessions.cli.sessions import Closed, Failed, SessionEnded
from llm_sessions.cli.signals import Signal
from llm_sessions.testing.clock import ManualClock
from llm_sessions.testing.server import LocalServer
from tests.cli.command import TOKEN
from tests.support import Background, eventually

Captured = pytest.CaptureFixture[str]


def running(*arguments: str) -> Background:
    return Background(lambda: main(["listen", *arguments]))


def objects(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


# the whole of it


def test_json_lines_and_nothing_else_on_standard_output(server: LocalServer, capsys: Captured) -> None:
    run = running("--json", "--count", "3", server.url("main"))
    server.wait_live("main")
    server.publish({"text": "grün"}, session="main", id="1")
    server.publish({"text": "more"}, session="main")
    server.publish({"text": "beyond the count"}, session="main")
    assert run.result() == 0
    out, err = capsys.readouterr()
    assert [(one["session"], one["event"]) for one in objects(out)] == [
        ("main", "online"),
        ("main", "event:relay.event"),
        ("main", "event:relay.event"),
    ]
    assert objects(out)[1]["data"] == {"eventType": "relay.event", "text": "grün"}
    # The last one may have been read before the end, or not.
    assert re.fullmatch("main  [34] messages, 0 reconnects, 0 gaps, no error\n", err)
    assert [one.token for one in server.connections()] == [TOKEN]


def test_plain_lines_of_several_sessions_and_a_filter(server: LocalServer, capsys: Captured) -> None:
    run = running(
        *("--event", "event:relay.event", "--count", "2"),
        *(server.url("main"), f"second={server.url('practice')}"),
    )
    for key in ("main", "practice"):
        server.wait_live(key)
        server.publish({"text": f"in {key}"}, session=key)
    assert run.result() == 0
    lines = sorted(line[14:] for line in capsys.readouterr().out.splitlines())
    assert lines == ["main    event:relay.event  in main", "second  event:relay.event  in practice"]


def test_raw_messages(server: LocalServer, capsys: Captured) -> None:
    run = running("--json", "--raw", "--event", "event:relay", "--count", "1", server.url("main"))
    server.wait_live("main")
    envelope = server.publish({"text": "hello"}, session="main", sequence=7)
    assert run.result() == 0
    assert objects(capsys.readouterr().out)[0]["data"] == envelope


def test_what_is_shown_is_saved(server: LocalServer, tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "lines.jsonl"
    for _ in range(2):
        assert running("--save", str(path), "--count", "1", "--json", server.url("main")).result() == 0
    assert path.read_text() == capsys.readouterr().out
    assert [one["event"] for one in objects(path.read_text())] == ["online", "online"]


def test_it_ends_after_a_time(server: LocalServer, capsys: Captured) -> None:
    assert main(["listen", "--seconds", "0.3", "--event", "online", server.url("main")]) == 0
    out, err = capsys.readouterr()
    assert out.count("online") == 1 and err.startswith("main  1 message, ")
    assert [one.close_code for one in server.connections()] == [1000]


def test_after_a_time_without_a_connection_it_has_failed(server: LocalServer, capsys: Captured) -> None:
    server.hold_upgrades("b")
    assert main(["listen", "--seconds", "0.3", server.url("a"), server.url("b")]) == 1
    assert "session 'b' did not come online in time: nothing failed so far\n" in capsys.readouterr().err


def test_a_server_that_ends_it_for_good(server: LocalServer, capsys: Captured) -> None:
    run = running(server.url("main"))
    server.wait_live("main")
    server.close_session("main", 1000, "over")
    assert run.result() == 1
    out, err = capsys.readouterr()
    assert '{"code": 1000, "reason": "over"}' in out
    assert err.splitlines()[0] == "session 'main' has ended: connection lost (1000 over)"


def test_one_that_fails_leaves_the_others_and_is_told_at_once(server: LocalServer, capsys: Captured) -> None:
    server.reject(4403, session="bad")
    notes = io.StringIO()
    with contextlib.redirect_stderr(notes):
        run = running("--event", "event:relay.event", "--count", "1", server.url("bad"), server.url("good"))
        server.wait_live("good")
        eventually(lambda: "session 'bad' failed: " in notes.getvalue())
        server.publish({"text": "hello"}, session="good")
        assert run.result() == 1
    assert "hello" in capsys.readouterr().out


def test_a_session_that_is_not_online_in_time(server: LocalServer, capsys: Captured) -> None:
    server.hold_upgrades()
    assert main(["listen", "--timeout", "0.05", server.url("main")]) == 1
    assert "session 'main' failed: not online within 0.05 s" in capsys.readouterr().err


def test_t11_no_token_anywhere(server: LocalServer, capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    other = "another-s3cret-0815"
    run = running("--json", "--verbose", "--count", "3", "--save", str(path), server.url("main"))
    server.wait_live("main")
    server.publish({"text": f"is it {TOKEN}?", "datachannelToken": other}, session="main")
    server.close_session("main", 1011, f"bad token {TOKEN}")
    assert run.result() == 0
    written = "".join(capsys.readouterr()) + path.read_text()
    assert "is it ***?" in written and "INFO llm_sessions.pool [main]" in written
    assert TOKEN not in written and other not in written


def test_a_token_file_is_read_for_every_attempt(
    server: LocalServer, tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "token"
    file.write_text("first-token")
    run = running(
        *("--token-file", str(file), "--event", "online", "--event", "event:done", "--count", "3"),
        server.url("main"),
    )
    server.wait_live("main")
    server.tokens = {"second-token"}
    file.write_text("second-token\n")
    server.close_session("main", 4401)
    server.wait_for(lambda: [one.token for one in server.live("main")] == ["second-token"])
    server.publish(session="main", event_type="done.it")
    assert run.result() == 0
    assert "first-token" not in "".join(capsys.readouterr())


def test_tls_with_a_file_of_authorities(capsys: Captured) -> None:
    with LocalServer(tls=True) as server:
        urls = (server.url("main"), f"rest={server.datachannel_url('rest')}")
        arguments = (
            "--ca-file",
            server.ca_file,
            "--device",
            "https://wdm.example/1",
            "--event",
            "online",
            *urls,
        )
        assert running("--count", "2", *arguments).result() == 0
        assert {one.session for one in server.connections()} == {"main", "rest"}
        assert main(["listen", server.url("main")]) == 1
    assert "the certificate of" in capsys.readouterr().err


# what cannot be


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "name at least one URL"),
        (["wss://h/", "--event", "nonsense"], "'nonsense' does not exist"),
        (["wss://h/", "--ca-file", "/none"], "ca_file: "),
        (["wss://h/", "--proxy", "ftp://h"], "proxy: "),
        (["wss://h/", "--proxy", "http://me:s3cret@h:1"], "--proxy: a user and a password are not taken"),
        (["wss://h/", "--device", "nonsense", "a=https://h/"], "device: "),
        (["--own-device", "--catalog", "nonsense"], "catalog_url: "),
        (["wss://h/", "--save", "/none/lines"], "cannot save to /none/lines: No such file"),
        (["wss://h/", "--token-file", "/none"], "the token file cannot be read"),
    ],
)
def test_wrong_arguments_start_nothing(arguments: list[str], problem: str, capsys: Captured) -> None:
    assert main(["listen", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("llm-sessions: ") and problem in err and "s3cret" not in err


def test_no_token(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.delenv("WEBEX_TOKEN")
    assert main(["listen", "wss://h/"]) == 2
    assert "set WEBEX_TOKEN" in capsys.readouterr().err


# on a terminal


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(*arguments: str) -> str:
    """What a terminal is sent until the first event."""
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal):
        assert running("--count", "1", *arguments).result() == 0
    return terminal.getvalue()


@pytest.fixture(autouse=True)
def a_usual_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


def test_live_lines_on_a_terminal(server: LocalServer) -> None:
    shown = on_a_terminal(server.url("main"))
    assert "\x1b[" in shown and "0.0/s" in shown and "online" in shown


@pytest.mark.parametrize("option", ["--plain", "--json"])
def test_none_of_them_if_that_is_asked_for(server: LocalServer, option: str) -> None:
    shown = on_a_terminal(option, server.url("main"))
    assert "\x1b" not in shown and shown.count("\n") == 1 and "online" in shown


def test_none_on_a_dumb_terminal(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    shown = on_a_terminal(server.url("main"))
    assert "\x1b" not in shown and "online" in shown


def test_without_rich_it_is_plain_and_a_bug_is_a_bug(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import, missing = builtins.__import__, "rich.live"

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "display":
            raise ImportError("no such module", name=missing)
        return real_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    shown = on_a_terminal(server.url("main"))
    assert "\x1b" not in shown and "online" in shown
    missing = "llm_sessions.nothing"
    with contextlib.redirect_stdout(Terminal()):
        assert isinstance(running(server.url("main")).error(), ImportError)


# the loop, step by step


class FakeSession:
    def __init__(self, name: str) -> None:
        self.id = name
        self.last_error = ConnectError(name, "it broke")


class FakeSessions:
    """Sessions that do nothing; closing them is up to the test."""

    def __init__(self, *names: str) -> None:
        self.all = [FakeSession(name) for name in names]
        self.never_online: list[str] = []
        self.started = False
        self.closes = 0

    def get(self, name: str) -> FakeSession:
        return next(one for one in self.all if one.id == name)

    def start(self) -> None:
        self.started = True

    def begin_close(self) -> None:
        self.closes += 1

    def join(self) -> None:
        assert self.closes


class FakePrinter:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.shown: list[str] = []
        self.notes: list[str] = []
        self.refreshed = 0

    def write(self, line: Line) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.shown.append(line.event)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def refresh(self) -> None:
        self.refreshed += 1

    def close(self) -> None:
        pass


class FakeSave(FakePrinter):
    closed = 0

    def close(self) -> None:
        self.closed += 1
        if self.errors:
            raise self.errors.pop(0)


def play(
    news: Iterable[object],
    *,
    names: tuple[str, ...] = ("a",),
    printer: FakePrinter | None = None,
    save: FakeSave | None = None,
    clock: Callable[[], float] | None = None,
    **options: Any,
) -> tuple[int, Listening, FakePrinter]:
    mailbox, printer = Mailbox(), printer or FakePrinter()
    for one in (*news, Closed()):
        mailbox.tell(one)
    sessions: Any = FakeSessions(*names)
    sessions.never_online = options.pop("never_online", [])
    ended_by: Any = (mailbox, sessions, printer, save, clock or ManualClock())
    loop = Listening(ListenOptions(**options), *ended_by)
    status = loop.run()
    assert sessions.started and sessions.closes
    return status, loop, printer


def lines(*events: str) -> list[Line]:
    return [Line("a", event, 0.0, {}) for event in events]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_after_a_signal_what_came_is_still_written(number: int, status: int) -> None:
    first, later = lines("first", "later")
    found, _, printer = play([first, Signal(number), later, SessionEnded("a"), Failed("a", OSError("x"))])
    assert found == status
    assert printer.shown == ["first", "later"] and printer.notes == []


def test_what_comes_behind_the_count_is_not_written() -> None:
    status, _, printer = play(lines("1", "2", "3"), count=2)
    assert (status, printer.shown) == (0, ["1", "2"])


def test_all_have_to_be_gone_before_it_ends_by_itself() -> None:
    news = [SessionEnded("a"), SessionEnded("a"), *lines("still"), Failed("b", ConnectError("b", "no"))]
    status, _, printer = play(news, names=("a", "b"))
    assert status == 1
    assert printer.notes == ["session 'a' has ended: it broke", "session 'b' failed: no"]


def test_one_that_is_gone_is_a_failure_in_the_end() -> None:
    assert play([SessionEnded("a"), *lines("1")], names=("a", "b"), count=1)[0] == 1


def test_a_closed_pipe_ends_it_and_what_came_is_saved() -> None:
    save = FakeSave()
    status, loop, printer = play(lines("1", "2", "3"), printer=FakePrinter(ClosedPipe()), save=save)
    assert (status, printer.shown, save.shown) == (141, [], ["1", "2", "3"])
    assert loop.complaints == [] and save.closed == 1


def test_a_full_disk_ends_it_and_what_came_is_shown() -> None:
    save = FakeSave(Unwritable("the disk is full"))
    status, loop, printer = play(lines("1", "2"), save=save)
    assert (status, printer.shown, loop.complaints) == (3, ["1", "2"], ["the disk is full"])


def test_lost_lines_outweigh_any_other_end() -> None:
    news = [Signal(signal.SIGINT), *lines("1")]
    assert play(news, printer=FakePrinter(Unwritable("full")))[0] == 3
    status, loop, _ = play(news, save=FakeSave(Unwritable("full")))
    assert (status, loop.complaints) == (3, ["full"])


def test_a_file_that_cannot_be_closed() -> None:
    save = FakeSave()
    save.errors = [Unwritable("quota")]
    status, loop, _ = play([Signal(signal.SIGTERM)], save=save)
    assert (status, loop.complaints) == (3, ["quota"])


def test_what_cannot_be_shown_is_said_in_the_end() -> None:
    news = [*lines("1"), listen.Note("a record"), SessionEnded("b")]
    status, loop, printer = play(news, names=("a", "b", "c"), printer=FakePrinter(ClosedPipe()))
    assert (status, printer.notes) == (141, [])
    assert loop.complaints == []  # it has ended by then


def test_the_log_is_shown_and_the_lines_are_drawn_anew() -> None:
    clock = ManualClock()
    status, _, printer = play([listen.Note("a record"), Signal(signal.SIGINT)], clock=clock)
    assert (status, printer.notes) == (130, ["a record"])
    assert printer.refreshed == 1


def test_the_logger_is_as_it_was(server: LocalServer, capsys: Captured) -> None:
    import logging

    logger = logging.getLogger("llm_sessions")
    before = (logger.level, list(logger.handlers))
    assert running("--verbose", "--count", "1", "--event", "online", server.url("main")).result() == 0
    assert (logger.level, list(logger.handlers)) == before
    assert "connecting -> online" in capsys.readouterr().err


def test_a_disk_that_fills_up(server: LocalServer, capsys: Captured) -> None:
    assert running("--save", "/dev/full", server.url("main")).result() == 3
    out, err = capsys.readouterr()
    assert "online" in out
    assert "llm-sessions listen: cannot save to /dev/full: No space left on device" in err


def test_threads_end_with_it(server: LocalServer) -> None:
    assert running("--count", "1", server.url("main")).result() == 0
    assert not [one for one in threading.enumerate() if one.name.startswith("llm-sessions-")]
