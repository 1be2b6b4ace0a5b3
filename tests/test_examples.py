"""Every example runs by itself, ends, and shows what it says; programs do what they promise."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import math
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llm_sessions import Envelope
from llm_sessions.testing.server import LocalServer
from tests.documents import ROOT, read, table_rows
from tests.processes.script import Script
from tests.support import LONG, Background, eventually, run_together

FOLDER = ROOT / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))

EXPECTED = {
    "mercury_bot.py": [
        "<Session 'mercury-default-session' online> by the device 'example-bot'",
        "heard 'hello', answer: You said 'hello'.",
        "heard 'bye', answer: You said 'bye'.",
    ],
    "test_my_bot.py": ["6 passed"],
    "token_refresh.py": [
        "[one: online, two: online, three: online]> with access-1",
        "the new tokens are kept in tokens.json",
        "[one: online, two: online, three: online]> after 1 refresh; kept for the next start: refresh-2",
    ],
    "register_and_connect.py": [
        "the token expired, here is another one",
        "llm-default-session is online",
        "both steps were timed: True True",
        "registrations: 1",
        "registrations after a reconnect: 2",
        "heard: relay.event react",
    ],
    "webinar_captions.py": [
        "main: captions in de, en, es, fr",
        "main: captions in German, too: True",
        "main: Welcome, everyone.",
        "practice: captions in de, en, es, fr",
        "practice: Only panelists hear this.",
        "demoted: <Session 'llm-practice-session' idle> - its token is kept: True",
        "left: <Meeting 'meeting-1' not joined> - tokens: None None",
        "lines that were not fetched: 0",
        "announced again: de, en, es, fr",
    ],
    "two_sessions.py": [
        "<Session 'llm-default-session' online>",
        "<Session 'llm-practice-session' online>",
        "main:     {'eventType': 'relay.event', 'relayType': 'react', 'reaction': {'type': 'heart'}}",
        "practice: {'eventType': 'relay.event', 'relayType': 'react', 'reaction': {'type': 'smile'}}",
        "online:   ['llm-default-session']",
        "main:     {'eventType': 'relay.event', 'relayType': 'react', 'reaction': {'type': 'applause'}}",
    ],
    "plain_script.py": ["connected", "Welcome, everyone.", "the server ended it: the meeting is over"],
    "service.py": [
        "INFO llm_sessions.pool session=captions state=online [captions] connecting -> online",
        "INFO captions session=captions state=- caption: Welcome, everyone.",
        "INFO llm_sessions.pool session=captions state=reconnecting [captions] online -> reconnecting: 1006",
        "INFO captions session=captions state=- caption: And we are back.",
        "INFO captions session=- state=- stopped: 4 messages, 1 reconnects",
    ],
    "flask_captions.py": [
        "captions at first: []",
        "captions: ['Welcome, everyone.', 'Can everybody hear me?']",
        "state: online - messages: 3",
    ],
    "cron_job.py": ["collected: one, two"],
    "sqlite_recorder.py": [
        "6 new events in events.db",
        "4 new events in events.db",
        "main: one, two, three",
        "practice: one, two, three",
    ],
}


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what would send an example to the real service."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("WEBEX_")}
    return {**ours, "PYTHONPATH": str(ROOT), **variables}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        capture_output=True,
        text=True,
        timeout=2 * LONG,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line in EXPECTED[path.name]:
        assert line in done.stdout


def test_the_list_names_each_example_and_nothing_else() -> None:
    rows = table_rows(read("examples/README.md"))
    named = [re.fullmatch(r"\[(\w+\.py)\]\((\w+\.py)\)", row[0]) for row in rows]
    assert all(found is not None and found[1] == found[2] for found in named)
    names = [found[1] for found in named if found is not None]
    assert sorted(names) == [path.name for path in EXAMPLES] and all(row[1] for row in rows)


# As they are used in earnest: against a server that is not theirs


def example(name: str) -> ModuleType:
    """Import an example."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Running:
    """An example that runs as a program of its own, with a server in this process."""

    def __init__(self, name: str, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(FOLDER / name), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(PYTHONUNBUFFERED="1", **variables),
        )

    def ends(self) -> tuple[int, str, str]:
        """Wait for its end; return its exit status, and what it wrote to stdout and stderr."""
        said, complaints = self.process.communicate(timeout=2 * LONG)
        return self.process.returncode, said, complaints

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=LONG)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(tokens={"good"}) as server:
        yield server
    assert server.violations == []


def in_earnest(server: LocalServer, token: str = "good") -> dict[str, str]:
    return {"WEBEX_URL": server.url("captions"), "WEBEX_TOKEN": token}


def caption(text: str, *, final: bool = True) -> dict[str, Any]:
    """The relay event of a caption, as the service sends it."""
    kind = "transcript_final_result" if final else "transcript_interim_results"
    payload = {"type": kind, "transcript_id": "1", "transcripts": [{"text": text}]}
    return {"relayType": "voicea.transcription", "voiceaPayload": payload}


def say(server: LocalServer, *texts: str, session: str = "captions") -> None:
    """Publish, and wait until the client has acknowledged it.

    Its first acknowledgement says that it has heard of being authorized. What comes with that in one read is
    lost if the client is told to disconnect before it knows that it is online.
    """
    server.wait_for(lambda: any(one.acks for one in server.live(session)), LONG)
    for text in texts:
        server.publish(caption(text), session=session, id=f"{session}-{text}")
    last = f"{session}-{texts[-1]}"
    server.wait_for(lambda: any(last in one.acks for one in server.connections(session)), LONG)


def wait_idle(pid: int) -> None:
    """Wait until a process's main thread waits: a signal that comes just before it does is heard after."""
    looks, before, status = 0, "", Path(f"/proc/{pid}/status")

    def idle() -> bool:
        nonlocal looks, before
        now = "".join(re.findall(r"(?m)^(?:State|.*ctxt_switches):.*", status.read_text()))
        looks, before = (looks + 1 if now == before and "sleeping" in now else 0), now
        return looks >= 50

    eventually(idle)


@pytest.fixture
def nowhere() -> Iterator[str]:
    """The URL of a port that is taken, and that nothing listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"ws://127.0.0.1:{bound.getsockname()[1]}/captions"


CAPTIONS = ["plain_script", "service", "flask_captions", "cron_job"]


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_are_what_the_service_calls_so_and_nothing_else(name: str) -> None:
    read_one = example(name).final_captions
    others: list[dict[str, Any]] = [
        {"relayType": "react", "reaction": {"type": "heart"}},
        {"relayType": "voicea.transcription", "voiceaPayload": {"type": "eva_wake"}},
        caption("hel", final=False),
        {},
    ]
    assert read_one(Envelope("captions", {"data": caption("hello")})) == ["hello"]
    assert [read_one(Envelope("captions", {"data": data})) for data in others] == [[]] * len(others)


def test_the_bot_is_tested_as_its_text_says() -> None:
    """The settings above it, of our own tests, ask for plugins that the extra `examples` does not bring."""
    without = ["-p", "no:cacheprovider", "-p", "no:timeout"]
    command = [sys.executable, "-m", "pytest", "-q", *without, "examples/test_my_bot.py"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * LONG, env=environment(), cwd=ROOT, check=False
    )
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout
    settings = read("examples/pytest.ini").splitlines()
    assert [line for line in settings if not line.startswith("#")] == ["[pytest]"]


def test_the_script_is_refused(server: LocalServer) -> None:
    with Running("plain_script.py", **in_earnest(server, "bad")) as script:
        status, said, complaints = script.ends()
    assert (status, said) == (1, "") and complaints.startswith("no captions: ")
    assert "Traceback" not in complaints


def test_ctrl_c_ends_the_script(server: LocalServer) -> None:
    with Running("plain_script.py", **in_earnest(server)) as script:
        assert script.process.stdout is not None
        assert script.process.stdout.readline() == "connected\n"
        say(server, "hello")
        assert script.process.stdout.readline() == "hello\n"
        wait_idle(script.process.pid)
        script.process.send_signal(signal.SIGINT)
        assert script.ends() == (0, "bye\n", "")
    assert server.connections("captions")[0].close_code == 1000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_service_stops_cleanly(server: LocalServer, number: int) -> None:
    with Running("service.py", **in_earnest(server)) as service:
        say(server, "one", "two")
        service.process.send_signal(number)
        status, said, complaints = service.ends()
    assert (status, complaints) == (0, "")
    assert "caption: one" in said and "caption: two" in said, "what was received is delivered first"
    assert said.splitlines()[-1].startswith("INFO captions session=- state=- stopped: ")
    assert [one.close_code for one in server.connections()] == [1000]


def heard_until(program: Running, text: str) -> None:
    assert program.process.stdout is not None
    while text not in (line := program.process.stdout.readline()):
        assert line, "it ended"


def test_the_service_stops_while_nothing_is_there(nowhere: str) -> None:
    with Running("service.py", WEBEX_URL=nowhere, WEBEX_TOKEN="good") as service:
        heard_until(service, "attempt 1 failed")
        service.process.send_signal(signal.SIGTERM)
        status, said, complaints = service.ends()
    assert (status, complaints) == (0, "") and "stopped: 0 messages" in said


def in_a_file(server: LocalServer, file: Path, token: str) -> dict[str, str]:
    file.write_text(f"{token}\n")
    return {"WEBEX_URL": server.url("captions"), "WEBEX_TOKEN_FILE": str(file)}


def renew(file: Path, token: str) -> None:
    file.with_suffix(".new").write_text(f"{token}\n")
    file.with_suffix(".new").replace(file)


def test_the_service_connects_anew_with_the_token_of_now_at_sighup(
    server: LocalServer, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    server.tokens = {"good", "better"}
    with Running("service.py", **in_a_file(server, file, "good")) as service:
        say(server, "one")
        renew(file, "better")
        service.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: len(server.connections()) == 2, LONG)
        say(server, "two")
        service.process.send_signal(signal.SIGTERM)
        status, said, complaints = service.ends()
    assert (status, complaints) == (0, "")
    assert "caption: one" in said and "INFO captions session=- state=- connecting anew" in said
    assert "caption: two" in said, "the listeners stay"
    assert [(one.token, one.close_code) for one in server.connections()] == [("good", 1000), ("better", 1000)]


def test_the_service_is_told_to_connect_anew_while_it_connects(nowhere: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("good")
    variables = {"WEBEX_URL": nowhere, "WEBEX_TOKEN_FILE": str(tmp_path / "token")}
    with Running("service.py", **variables) as service:
        for _ in range(2):
            heard_until(service, "attempt 1 failed")
            service.process.send_signal(signal.SIGHUP)
            heard_until(service, "connecting anew")
        heard_until(service, "attempt 1 failed")
        service.process.send_signal(signal.SIGTERM)
        status, _, complaints = service.ends()
    assert (status, complaints) == (0, "")


def test_the_service_goes_on_with_a_token_that_was_renewed(server: LocalServer, tmp_path: Path) -> None:
    file = tmp_path / "token"
    with Running("service.py", **in_a_file(server, file, "good")) as service:
        say(server, "one")
        renew(file, "better")
        server.tokens = {"better"}
        server.close_session(code=4401, reason="expired")
        server.wait_for(lambda: any(one.token == "better" for one in server.live()), LONG)
        say(server, "two")
        server.tokens = {"best"}
        server.close_session(code=4401, reason="expired")
        status, said, complaints = service.ends()
    assert (status, complaints) == (77, ""), "nobody renewed it"
    assert "caption: two" in said


def test_without_a_file_sighup_stops_the_service(server: LocalServer) -> None:
    with Running("service.py", **in_earnest(server)) as service:
        say(server, "one")
        service.process.send_signal(signal.SIGHUP)
        status, said, complaints = service.ends()
    assert (status, complaints) == (0, "") and "caption: one" in said and "stopped: " in said
    assert [one.close_code for one in server.connections()] == [1000]


def test_the_service_says_why_it_cannot_go_on(server: LocalServer) -> None:
    wrong = {"WEBEX_URL": "http://example.com", "WEBEX_TOKEN": "good"}
    settings = [{"WEBEX_URL": "ws://x"}, {"WEBEX_TOKEN": "good"}, in_earnest(server, "not a token")]
    for variables, expected in (
        (in_earnest(server, "bad"), 77),
        (wrong, 78),
        *((variables, 78) for variables in settings),
    ):
        with Running("service.py", **variables) as service:
            status, said, complaints = service.ends()
        assert (status, complaints) == (expected, "")
        assert said.splitlines()[-1].startswith("ERROR captions "), said
    with Running("service.py", **in_earnest(server)) as service:
        say(server, "one")
        server.close_session(code=4001, reason="gone")
        status, said, complaints = service.ends()
    assert (status, complaints) == (69, "") and "the session ended for good: " in said


def test_the_job_collects_for_its_time(server: LocalServer, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    for count in (1, 2):
        arguments = ("--seconds", "0.5", "--output", str(output))
        with Running("cron_job.py", *arguments, **in_earnest(server)) as job:
            say(server, "hello")
            assert job.ends() == (0, "", "")
        texts = [json.loads(line)["text"] for line in output.read_text().splitlines()]
        assert texts == ["hello"] * count, "later runs append"
        assert server.connections("captions")[-1].close_code == 1000


def test_the_job_says_what_went_wrong(server: LocalServer, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    arguments = ("--seconds", "60", "--output", str(output))
    with Running("cron_job.py", *arguments, **in_earnest(server)) as first:
        say(server, "hello")
        with Running("cron_job.py", *arguments, **in_earnest(server)) as second:
            assert second.ends() == (75, "", "another run is at work\n")
        server.close_session(code=4001, reason="gone")
        status, said, complaints = first.ends()
    assert (status, said) == (1, "") and "4001 gone" in complaints and "Traceback" not in complaints
    assert json.loads(output.read_text())["text"] == "hello", "what came before is kept"

    with Running("cron_job.py", *arguments, **in_earnest(server, "bad")) as refused:
        status, said, complaints = refused.ends()
    assert (status, said) == (1, "") and "4401" in complaints and "Traceback" not in complaints
    half = {"WEBEX_URL": server.url("captions")}
    for given, variables in (
        ((), in_earnest(server)),
        (arguments, half),
        (arguments, {}),  # and no rehearsal, which would end with 0
        ((*arguments, "--seconds", "0"), in_earnest(server)),
        ((*arguments, "--seconds", "inf"), in_earnest(server)),
    ):
        with Running("cron_job.py", *given, **variables) as wrong:
            status, said, complaints = wrong.ends()
        assert (status, said) == (2, "") and complaints.startswith("usage: "), given
    with Running("cron_job.py", *arguments, WEBEX_URL="http://example.com", WEBEX_TOKEN="x") as wrong:
        assert wrong.ends()[0] == 2


def test_a_job_that_was_killed_leaves_no_lock_and_no_half_line(server: LocalServer, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    arguments = ("--output", str(output), "--seconds", "60", "--count", "2")
    with Running("cron_job.py", *arguments, **in_earnest(server)) as job:
        say(server, "one")
        eventually(lambda: output.read_text().endswith("\n"))
        job.process.kill()
        job.process.wait(LONG)
    server.wait_for(lambda: not server.live(), LONG)
    with Running("cron_job.py", *arguments, **in_earnest(server)) as job:
        say(server, "two", "three")
        assert job.ends() == (0, "", "")
    assert [json.loads(line)["text"] for line in output.read_text().splitlines()] == ["one", "two", "three"]


def test_the_job_gives_up_when_nothing_is_there(nowhere: str, tmp_path: Path) -> None:
    arguments = ("--connect", "0.5", "--output", str(tmp_path / "captions.jsonl"))
    with Running("cron_job.py", *arguments, WEBEX_URL=nowhere, WEBEX_TOKEN="good") as job:
        status, said, complaints = job.ends()
    assert (status, said) == (1, "") and "not online within 0.5 s" in complaints
    assert "Traceback" not in complaints


def test_the_job_says_that_it_cannot_write(server: LocalServer, tmp_path: Path) -> None:
    full = tmp_path / "captions.jsonl"
    full.symlink_to("/dev/full")
    with Running("cron_job.py", "--output", str(full), **in_earnest(server)) as job:
        server.wait_for(lambda: any(one.acks for one in server.live()), LONG)
        server.publish(caption("hello"), session="captions")
        assert job.ends() == (74, "", f"{full}: No space left on device\n")
    assert server.connections("captions")[0].close_code == 1000
    nowhere = tmp_path / "nowhere" / "captions.jsonl"
    with Running("cron_job.py", "--output", str(nowhere), **in_earnest(server)) as job:
        assert job.ends() == (74, "", f"{nowhere}.lock: No such file or directory\n")


def test_what_a_full_disk_left_of_a_line_does_not_spoil_the_next(server: LocalServer, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    output.write_text('{"text": "whole"}\n{"text": "to')
    with Running("cron_job.py", "--output", str(output), "--count", "1", **in_earnest(server)) as job:
        say(server, "hello")
        assert job.ends() == (0, "", "")
    first, second, third = output.read_text().splitlines()
    assert (first, second, json.loads(third)["text"]) == ('{"text": "whole"}', '{"text": "to', "hello")


class Echo(io.StringIO):
    """A file for which the next caption comes before a line is written."""

    def __init__(self, server: LocalServer) -> None:
        super().__init__()
        self._server, self._count = server, 0

    def write(self, text: str) -> int:
        self._count += 1
        name = f"echo-{self._count}"
        self._server.publish(caption(name), session="captions", id=name)
        self._server.wait_for(
            lambda: not self._server.live() or name in self._server.connections()[0].acks, LONG
        )
        return super().write(text)


def test_the_job_ends_in_time_however_much_is_said(server: LocalServer) -> None:
    options = argparse.Namespace(connect=LONG, seconds=0.2, count=math.inf)
    output = Echo(server)
    job = Background(lambda: example("cron_job").collect(server.url("captions"), "good", output, options))
    say(server, "first")
    assert job.result() == len(output.getvalue().splitlines()) > 2
    assert server.connections()[0].close_code == 1000


def recorded(file: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(file)) as database:
        query = "SELECT session, raw FROM events WHERE event_type = 'relay.event' ORDER BY rowid"
        rows = [(session, json.loads(raw)["data"]) for session, raw in database.execute(query)]
    return [(session, data["voiceaPayload"]["transcripts"][0]["text"]) for session, data in rows]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_recorder_loses_nothing_when_it_is_stopped(
    server: LocalServer, tmp_path: Path, number: int
) -> None:
    file = tmp_path / "events.db"
    texts = [str(n) for n in range(2000)]
    variables = {**in_earnest(server), "PRACTICE_URL": server.url("practice")}
    with Running("sqlite_recorder.py", str(file), **variables) as recorder:
        for session in ("captions", "practice"):
            say(server, *texts, session=session)
        recorder.process.send_signal(number)
        status, said, complaints = recorder.ends()
    assert (status, said, complaints) == (0, "4002 new events in events.db\n", ""), "and two that say ready"
    for session in ("main", "practice"):
        assert [text for name, text in recorded(file) if name == session] == texts


@pytest.mark.parametrize("name", ["service.py", "sqlite_recorder.py"])
def test_nohup_is_meant(server: LocalServer, tmp_path: Path, name: str) -> None:
    arguments = [str(tmp_path / "events.db")] if "recorder" in name else []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        running = Running(name, *arguments, **in_earnest(server))  # it inherits that
    finally:
        signal.signal(signal.SIGHUP, before)
    with running as program:
        say(server, "one")
        program.process.send_signal(signal.SIGHUP)
        say(server, "two")
        program.process.send_signal(signal.SIGTERM)
        assert program.ends()[0] == 0
    assert len(server.connections()) == 1


def test_the_recorder_goes_on_with_its_file_and_keeps_each_event_once(
    server: LocalServer, tmp_path: Path
) -> None:
    file = tmp_path / "events.db"
    for texts in (("one", "two"), ("two", "three")):
        with Running("sqlite_recorder.py", str(file), **in_earnest(server)) as recorder:
            say(server, *texts)
            server.close_session(code=4001, reason="gone")
            status, _, complaints = recorder.ends()
            assert status == 1 and "4001 gone" in complaints and "Traceback" not in complaints
    assert recorded(file) == [("main", "one"), ("main", "two"), ("main", "three")]


def test_one_session_that_ends_does_not_end_the_recording_of_the_other(
    server: LocalServer, tmp_path: Path
) -> None:
    file = tmp_path / "events.db"
    variables = {**in_earnest(server), "PRACTICE_URL": server.url("practice")}
    with Running("sqlite_recorder.py", str(file), **variables) as recorder:
        say(server, "bye", session="practice")
        server.close_session("practice", code=4001, reason="gone")
        assert recorder.process.stderr is not None
        assert recorder.process.stderr.readline() == "session 'practice': connection lost (4001 gone)\n"
        say(server, "still here")
        recorder.process.send_signal(signal.SIGTERM)
        assert recorder.ends()[0] == 0
    assert sorted(recorded(file)) == [("main", "still here"), ("practice", "bye")]


def test_the_recorder_says_how_it_is_used_and_what_a_file_is_not(server: LocalServer, tmp_path: Path) -> None:
    with Running("sqlite_recorder.py", **in_earnest(server)) as recorder:
        status, said, complaints = recorder.ends()
    assert (status, said) == (2, "") and complaints.startswith("usage: ")
    file = tmp_path / "text.db"
    with Running("sqlite_recorder.py", str(file), WEBEX_TOKEN="good") as recorder:
        assert recorder.ends()[0] == 2, "and no rehearsal"
    with Running("sqlite_recorder.py", str(file)) as recorder:
        assert recorder.ends()[0] == 2
    file.write_text("not a database, but a text that is long enough to be told from one")
    with Running("sqlite_recorder.py", str(file), **in_earnest(server)) as recorder:
        assert recorder.ends() == (74, "", f"{file}: file is not a database\n")


def test_the_recorder_says_what_is_wrong_with_its_sessions(server: LocalServer, tmp_path: Path) -> None:
    file = tmp_path / "events.db"
    for variables, expected, text in (
        (in_earnest(server, "bad"), 1, "4401"),
        (in_earnest(server, "not a token"), 2, "token"),
        ({"WEBEX_URL": "http://example.com", "WEBEX_TOKEN": "good"}, 2, "url"),
    ):
        with Running("sqlite_recorder.py", str(file), **variables) as recorder:
            status, _, complaints = recorder.ends()
        assert status == expected and text in complaints and "Traceback" not in complaints


def test_the_recorder_stops_while_nothing_is_there(nowhere: str, tmp_path: Path) -> None:
    file = tmp_path / "events.db"
    with Running("sqlite_recorder.py", str(file), WEBEX_URL=nowhere, WEBEX_TOKEN="good") as recorder:
        eventually(lambda: file.exists() and tables(file) == ["events"])
        recorder.process.send_signal(signal.SIGTERM)
        assert recorder.ends() == (0, "0 new events in events.db\n", "")


def tables(file: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(file)) as database:
        return [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


def test_the_recorder_ends_when_it_cannot_write(server: LocalServer, tmp_path: Path) -> None:
    file = tmp_path / "events.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        columns = "session TEXT, id TEXT, received_at REAL, event_type TEXT, raw TEXT"
        database.execute(f"CREATE TABLE events ({columns}, UNIQUE (session, id))")
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON events WHEN NEW.id = 'captions-last' "
            "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
    with Running("sqlite_recorder.py", str(file), **in_earnest(server)) as recorder:
        say(server, "first")
        eventually(lambda: recorded(file) == [("main", "first")])
        for name in ("last", *map(str, range(7000))):  # more than the queue takes
            server.publish(caption(name), session="captions", id=f"captions-{name}")
        status, said, complaints = recorder.ends()
    assert (status, said, complaints) == (74, "", f"{file}: the disk is full\n")
    assert recorded(file) == [("main", "first")], "a transaction is written whole or not at all"


# The bot


def test_the_bot_answers_people_and_a_file_without_a_word() -> None:
    module, over = example("mercury_bot"), threading.Event()

    class Rooms(module.Rehearsal):  # type: ignore[misc,name-defined]  # a module of run time
        def __init__(self, *messages: dict[str, str] | None) -> None:
            self.messages, self.said = list(messages), list[str]()

        def read(self, activity: dict[str, Any]) -> Any:
            return self.messages.pop(0)

        def write(self, room_id: str, text: str) -> None:
            self.said.append(text)

    rooms = Rooms(None, {"roomId": "r"}, {"roomId": "r", "text": "Good bye"})
    answer = module.bot(rooms, over)
    for verb in ("share", "post", "post", "post"):
        assert not over.is_set()
        answer(Envelope("s", {"data": {"activity": {"verb": verb}}}))
    assert over.is_set() and rooms.said == ["You said ''.", "You said 'Good bye'."]


def test_the_bot_ends_when_its_session_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("mercury_bot")

    class Replacing(LocalServer):
        def publish(self, *args: Any, **options: Any) -> dict[str, Any]:
            self.close_session(code=4001, reason="gone")
            return {}

    monkeypatch.setattr(module, "LocalServer", Replacing)
    monkeypatch.delenv("WEBEX_TOKEN", raising=False)
    assert Background(module.main).result() == 1
    assert "it ended for good: " in capsys.readouterr().err


# The web application


@pytest.fixture
def flask_captions() -> ModuleType:
    return example("flask_captions")


def test_the_application_with_the_test_client(server: LocalServer, flask_captions: ModuleType) -> None:
    captions = flask_captions.Captions(server.url("captions"), "good", keep=2)
    app = flask_captions.create_app(captions)
    assert captions.stats() is None and server.connections() == [], "nothing happens before a request"
    client = app.test_client()
    try:
        assert client.get("/captions").json == {"captions": []}
        say(server, "one", "two", "three")
        eventually(lambda: client.get("/captions").json == {"captions": ["two", "three"]})
        answer = client.get("/stats")
        assert answer.status_code == 200
        assert (answer.json["name"], answer.json["messages_in"]) == ("captions", 4)
        assert answer.json["sessions"]["captions"]["state"] == "online"
        assert len(server.connections()) == 1, "one pool for all requests"
    finally:
        captions.close()
    captions.close()


def test_requests_do_not_wait_for_a_network_that_is_not_there(
    flask_captions: ModuleType, nowhere: str
) -> None:
    captions = flask_captions.Captions(nowhere, "good")
    client = flask_captions.create_app(captions).test_client()
    try:
        assert run_together(8, lambda: client.get("/captions").status_code) == [200] * 8
        assert captions.stats().sessions["captions"].messages_in == 0
        assert len([one for one in threading.enumerate() if one.name == "connect"]) == 1
    finally:
        captions.close()
    eventually(lambda: not any(one.name == "connect" for one in threading.enumerate()))


def test_the_application_says_that_there_are_no_captions_any_more(
    server: LocalServer, flask_captions: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    def complaints() -> list[str]:
        return [one.getMessage() for one in caplog.records if one.name == "flask_captions"]

    for token, expected in (("good", "there are no captions any more: "), ("bad", "there are no captions: ")):
        captions = flask_captions.Captions(server.url("captions"), token)
        try:
            captions.start()
            if token == "good":
                server.wait_for(lambda: any(one.acks for one in server.live()), LONG)
                server.close_session(code=4001, reason="gone")
            eventually(complaints)
            [complaint] = complaints()
            assert complaint.startswith(expected)
        finally:
            captions.close()
        caplog.clear()
    captions = flask_captions.Captions(server.url("captions"), "good")
    captions.start()
    server.wait_for(lambda: any(one.acks for one in server.live()), LONG)
    captions.close()
    eventually(lambda: not any(one.name == "connect" for one in threading.enumerate()))
    assert complaints() == [], "that was us"


def test_the_application_on_the_development_server(server: LocalServer) -> None:
    command = ["-m", "flask", "--app", str(FOLDER / "flask_captions.py"), "run", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**in_earnest(server)),
    )
    assert process.stderr is not None
    try:
        while not (found := re.search(r"Running on (http://\S+)", line := process.stderr.readline())):
            assert line, "it ended"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

        def ask(path: str) -> Any:
            with opener.open(f"{found[1]}/{path}", timeout=LONG) as answer:
                return json.load(answer)

        assert ask("captions") == {"captions": []}
        say(server, "hello")
        eventually(lambda: ask("captions") == {"captions": ["hello"]})
        assert ask("stats")["sessions"]["captions"]["messages_in"] == 2
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=LONG)
        assert process.returncode == 0 and "Traceback" not in complaints
    finally:
        process.kill()
        process.communicate(timeout=LONG)
    assert server.connections()[0].close_code == 1000, "a goodbye at exit"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_each_worker_that_is_forked_after_the_application_was_made_has_a_pool(server: LocalServer) -> None:
    code = """
    import sys
    sys.path.insert(0, "examples")
    from flask_captions import create_app

    client = create_app().test_client()
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            assert client.get("/captions").status_code == 200
            hear()
            sys.exit(0)
        children.append(pid)
    say("forked")
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert statuses == [0, 0], statuses
    """
    with Script(server, code, env=in_earnest(server)) as script:
        assert script.says() == "forked"
        server.wait_for(lambda: len([one for one in server.live() if one.acks]) == 2, LONG)
        server.publish(caption("to all"), id="to all")
        server.wait_for(lambda: all("to all" in one.acks for one in server.connections()), LONG)
        script.ends(within=LONG)
    assert [one.close_code for one in server.connections()] == [1000, 1000]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_worker_forgets_what_its_parent_had(server: LocalServer) -> None:
    """gunicorn with --preload, where a request was answered in the master, and a lock held at the fork."""
    code = """
    import sys
    sys.path.insert(0, "examples")
    from flask_captions import Captions, create_app
    from tests.support import eventually

    captions = Captions(os.environ["WEBEX_URL"], os.environ["WEBEX_TOKEN"])
    client = create_app(captions).test_client()
    assert client.get("/captions").status_code == 200
    say("started")
    hear()
    eventually(lambda: client.get("/captions").json == {"captions": ["to the parent"]})
    with captions._lock:
        pid = os.fork()
    if pid == 0:
        assert client.get("/captions").json == {"captions": []}
        assert client.get("/stats").status_code == 200
        say("a child")
        hear()
        eventually(lambda: client.get("/captions").json == {"captions": ["to all"]})
        sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    eventually(lambda: client.get("/captions").json == {"captions": ["to the parent", "to all"]})
    """
    with Script(server, code, env=in_earnest(server)) as script:
        assert script.says() == "started"
        say(server, "to the parent")
        script.tell()
        assert script.says() == "a child"
        server.wait_for(lambda: len([one for one in server.live() if one.acks]) == 2, LONG)
        server.publish(caption("to all"), id="to all")
        server.wait_for(lambda: all("to all" in one.acks for one in server.connections()), LONG)
        script.tell()
        script.ends(within=LONG)
    assert [one.close_code for one in server.connections()] == [1000, 1000]
