"""docs/logging.md names every logger, level and field that there is, and its recipes do what they say."""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_sessions import DataChannelClient, Meeting
from llm_sessions.testing.captions import CaptionService, Webinar
from llm_sessions.testing.server import LocalServer
from tests.documents import ROOT, blocks, languages, read, table_rows
from tests.support import LONG, Recorder

PAGE = read("docs/logging.md")
BLOCKS = blocks(PAGE)
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
METHODS = {"exception": "ERROR", **{level.lower(): level for level in LEVELS}}
ROWS = table_rows(PAGE)
TOLD = {row[0].strip("`"): {lv for lv, cell in zip(LEVELS, row[1:], strict=True) if cell} for row in ROWS[:6]}
FIELDS = {row[0].strip("`"): set(re.findall(r"`(llm_sessions\.\w+)`", row[1])) for row in ROWS[6:]}


# What the code says


def is_logger(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name.lstrip("_") in ("logger", "log")


def levels_in(tree: ast.Module) -> set[str]:
    """The levels at which a module logs. What is thinned out comes at DEBUG, too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_logger(node.value) and node.attr in METHODS:
            found.add(METHODS[node.attr])
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", "")
            if called in ("thinned", "complain"):
                names = {getattr(one, "attr", getattr(one, "id", "")) for one in node.args}
                found |= {"DEBUG", *(names & set(LEVELS))}
    return found


def loggers_in(tree: ast.Module) -> set[str]:
    """The loggers that a module makes."""
    made = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called == "get_logger":
                made.add(f"llm_sessions.{node.args[0].value}")
            elif called == "getLogger" and str(node.args[0].value) != "llm_sessions":
                made.add(str(node.args[0].value))
    return made


def fields_in(tree: ast.Module) -> set[str]:
    """The keys of what is given as `extra`: a dict literal, or the name or the function of one."""
    dicts: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            dicts.update((one.id, keys_of(node.value)) for one in node.targets if isinstance(one, ast.Name))
        elif isinstance(node, ast.FunctionDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and isinstance(inner.value, ast.Dict):
                    dicts[node.name] = keys_of(inner.value)

    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        extras = [keyword.value for keyword in node.keywords if keyword.arg == "extra"]
        if getattr(node.func, "id", "") == "SessionLogger":
            extras += node.args[1:]
        for extra in extras:
            if isinstance(extra, ast.Dict):
                found |= keys_of(extra)
            else:
                source = extra.func if isinstance(extra, ast.Call) else extra
                found |= dicts[getattr(source, "attr", getattr(source, "id", ""))]
    return found


def keys_of(literal: ast.Dict) -> set[str]:
    return {str(key.value) for key in literal.keys if isinstance(key, ast.Constant)}


def code() -> Iterator[tuple[set[str], ast.Module]]:
    """Each module that logs, with the loggers it does it by."""
    folders: dict[Path, set[str]] = {}
    trees = {}
    for path in (ROOT / "llm_sessions").rglob("*.py"):
        # The CLI listens to a logger, and _logging is what makes them.
        if path.name == "_logging.py" or path.parent.name == "cli":
            continue
        trees[path] = ast.parse(path.read_text(encoding="utf-8"))
        folders.setdefault(path.parent, set()).update(loggers_in(trees[path]) - {"llm_sessions.dispatch"})
    for path, tree in trees.items():
        if levels_in(tree) or loggers_in(tree):
            # Parts of a class that another module of the folder makes log by its logger.
            yield loggers_in(tree) or folders[path.parent], tree


SAMPLE = """
logger = get_logger("pool")
class A:
    def f(self):
        about = {"session_id": 1}
        logger.warning("x", extra=about)
        effects.append(partial(self._log.info, "x", extra={"state": 2}))
        self._log.thinned(repeats, kind, logging.ERROR, "x")
        logger.debug("x", extra=self._about())
    def _about(self):
        return {"other": 3}
"""


def test_what_the_code_says_is_found() -> None:
    tree = ast.parse(SAMPLE)
    assert loggers_in(tree) == {"llm_sessions.pool"}
    assert levels_in(tree) == {"DEBUG", "INFO", "WARNING", "ERROR"}
    assert fields_in(tree) == {"session_id", "state", "other"}
    assert levels_in(ast.parse("logger.critical('x')\nmath.log.debug")) == {"DEBUG"}


def test_the_loggers_and_their_levels_are_those_of_the_code() -> None:
    real: dict[str, set[str]] = {}
    for loggers, tree in code():
        [name] = loggers
        real.setdefault(name, set()).update(levels_in(tree))
    assert real == TOLD


def test_the_fields_are_those_of_the_code() -> None:
    real: dict[str, set[str]] = {}
    for loggers, tree in code():
        for field in fields_in(tree):
            real.setdefault(field, set()).update(loggers)
    assert real == FIELDS


def test_nothing_is_critical() -> None:
    """Or the recipe for silence would not be true."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "llm_sessions").rglob("*.py")]
    assert not any("CRITICAL" in text or ".critical(" in text for text in texts)


# What records say


STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


def test_records_have_the_fields_that_the_page_says(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llm_sessions")
    with (
        LocalServer() as server,
        DataChannelClient("token", device="https://wdm.example/devices/1") as client,
    ):
        CaptionService(server)
        webinar, meeting = Webinar(server), Meeting(client)
        heard = Recorder().listen(client.pool, "event", session_id="llm-default-session")
        client.on("event", lambda _: 1 / 0)
        meeting.join(webinar.join_response())
        meeting.wait_online()
        heard.wait("event")
        server.drop()
        client.session().wait_online()
        meeting.leave()
    ours = [record for record in caplog.records if record.name.startswith("llm_sessions.")]
    assert {one.name.partition(".")[2] for one in ours} >= {"pool", "dispatch", "connection", "datachannel"}
    for record in ours:
        assert record.levelname in TOLD[record.name], record
        extra = {name: value for name, value in vars(record).items() if name not in STANDARD}
        assert all(record.name in FIELDS[name] for name in extra), (record, extra)
        about = re.match(r"\[([^\]#]+)(#\d+\.\d+)?\] ", record.getMessage())
        assert extra.get("session_id") == (about[1] if about else None), record
        assert (about is not None and about[2] is not None) == (record.name == "llm_sessions.connection")
        change = re.match(r"\[.+?\] \w+ -> (\w+)", record.getMessage())
        assert extra.get("state") == (change[1] if change else None), record


# Recipes


def run(recipe: str, folder: Path, after: str = "") -> str:
    """Run a recipe in a process of its own, and then a session; return what was written to stderr."""
    script = recipe + (
        "\nfrom llm_sessions import ConnectionPool\n"
        "from llm_sessions.testing.server import LocalServer\n"
        "with LocalServer() as server, ConnectionPool('a-secret-token') as pool:\n"
        "    pool.connect(server.url('x'), 'a/b')\n"
        "    pool.on('event', lambda _: 1 / 0, session_id='a/b')\n"
        "    with pool.session('a/b').messages(timeout=20) as messages:\n"
        "        server.publish({'text': 'a-secret-token'})\n"
        "        next(messages)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script + after],
        capture_output=True,
        text=True,
        timeout=2 * LONG,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "secret" not in done.stderr
    return done.stderr


def recipe(title: str) -> str:
    [part] = [part for part in PAGE.split("\n### ") if part.startswith(f"{title}\n")]
    [block] = blocks(part)
    return block


def test_states_at_info(tmp_path: Path) -> None:
    said = run(recipe("States at INFO, the rest at WARNING"), tmp_path)
    assert re.search(r"INFO +llm_sessions\.pool \[a/b\] connecting -> online$", said, re.MULTILINE)
    assert "ZeroDivisionError" in said and "DEBUG" not in said


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run(recipe("JSON lines"), tmp_path).splitlines()]
    assert {(one["level"], one.get("session_id"), one.get("state")) for one in lines} >= {
        ("INFO", "a/b", "connecting"),
        ("INFO", "a/b", "online"),
        ("ERROR", "a/b", None),
    }
    [error] = [one["error"] for one in lines if one["level"] == "ERROR"]
    assert error.startswith("Traceback") and error.endswith("ZeroDivisionError: division by zero")


def test_a_file_for_each_session(tmp_path: Path) -> None:
    assert run(recipe("A file for each session"), tmp_path) == ""
    [file] = (tmp_path / "logs").iterdir()
    text = file.read_text(encoding="utf-8")
    assert file.name == "a%2Fb.log"
    assert "connecting -> online" in text and "DEBUG" in text and "ZeroDivisionError" in text
    assert "secret" not in text


def test_slow_handlers(tmp_path: Path) -> None:
    shown = "\nslow.setFormatter(logging.Formatter('%(session_id)s: %(message)s'))\n"
    said = run(recipe("Slow handlers") + shown, tmp_path, "listener.stop()\n")
    assert said.startswith("a/b: [a/b] a listener of 'event' raised\nTraceback")


def test_silence(tmp_path: Path) -> None:
    plain = "import logging\nlogging.basicConfig(level=logging.DEBUG)\n"
    assert run(plain, tmp_path) != ""
    assert run(plain + recipe("Silence"), tmp_path) == ""
    assert run("", tmp_path) == "", "without any configuration it is silent, too"


def test_there_is_no_code_that_no_test_runs() -> None:
    assert languages(PAGE) == ["python"] * len(BLOCKS) and len(BLOCKS) == 5
