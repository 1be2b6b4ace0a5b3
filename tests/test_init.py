"""The package itself: its names are there when they are asked for, and cost nothing before."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llm_sessions
from llm_sessions import Offline, WaitTimeout
from tests.support import LONG


def fresh(code: str) -> str:
    """Run code in an interpreter that has not imported anything yet; return what it printed."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG * 3)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def imported(body: list[ast.stmt]) -> dict[str, str]:
    """The names that statements import from modules of the package, and from which."""
    return {
        alias.asname or alias.name: str(node.module)
        for node in body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }


def test_type_checkers_and_the_interpreter_see_the_same_names() -> None:
    tree = ast.parse(Path(llm_sessions.__file__).read_text(encoding="utf-8"))
    [typed] = [node.body for node in tree.body if isinstance(node, ast.If) and is_typing(node.test)]
    assert imported(typed) == llm_sessions._HOMES
    at_once = imported(tree.body)
    assert not set(at_once) & set(llm_sessions._HOMES)
    assert {*at_once, *llm_sessions._HOMES} == set(llm_sessions.__all__)


def is_typing(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def test_every_name_is_the_one_of_its_module() -> None:
    for name, module in llm_sessions._HOMES.items():
        value: Any = getattr(llm_sessions, name)
        home = sys.modules[f"llm_sessions.{module}"]
        assert value is getattr(home, name)
        assert vars(llm_sessions)[name] is value, "the second look costs nothing"
        if isinstance(value, type):
            assert value.__module__ == home.__name__, "the table names where it is defined"


def test_the_import_alone_is_cheap() -> None:
    code = "import sys, llm_sessions; print(*sorted(n for n in sys.modules if n.startswith('llm_sessions')))"
    assert fresh(code).split() == ["llm_sessions", "llm_sessions._version", "llm_sessions.errors"]
    heavy = "{'asyncio', 'backoff', 'requests', 'socket', 'ssl', 'websocket'}"
    assert fresh(f"import sys, llm_sessions; print({heavy} & set(sys.modules))") == "set()\n"


def test_a_star_import_has_every_name() -> None:
    code = (
        "from llm_sessions import *\n"
        "names = set(dir())\n"
        "import llm_sessions\n"
        "print(set(llm_sessions.__all__) - names, ConnectionPool is llm_sessions.ConnectionPool)"
    )
    assert fresh(code) == "set() True\n"


def test_dir_has_every_name_before_anything_is_imported() -> None:
    assert dir(llm_sessions) == sorted(set(vars(llm_sessions)) | set(llm_sessions.__all__))
    code = (
        "import llm_sessions as l; print({*l.__all__, '__name__'} <= set(dir(l)), dir(l) == sorted(dir(l)))"
    )
    assert fresh(code) == "True True\n"


def test_errors_and_events_arrive_in_other_processes() -> None:
    for thing in (WaitTimeout("captions", "too slow"), Offline("captions", 4000, "replaced")):
        code = f"import pickle; print(repr(pickle.loads({pickle.dumps(thing)!r})))"
        assert fresh(code) == f"{thing!r}\n" and "captions" in repr(thing)


def test_submodules_are_not_hidden() -> None:
    code = (
        "from llm_sessions import session_ids, testing\n"
        "import llm_sessions.pool.pool as pool, llm_sessions\n"
        "print(pool.ConnectionPool is llm_sessions.ConnectionPool, session_ids.__name__, testing.__name__)"
    )
    assert fresh(code) == "True llm_sessions.session_ids llm_sessions.testing\n"


def test_what_does_not_exist_is_said_to() -> None:
    with pytest.raises(AttributeError, match=r"^module 'llm_sessions' has no attribute 'Pool'$"):
        llm_sessions.Pool  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Pool' from 'llm_sessions'"):
        from llm_sessions import Pool  # type: ignore[attr-defined]  # noqa: F401


@pytest.mark.stress
@pytest.mark.parametrize("switch", ["1e-6", "5e-3"])
def test_threads_that_ask_for_every_name_at_once_get_the_same_things(switch: str) -> None:
    code = f"""
import sys, threading, llm_sessions
sys.setswitchinterval({switch})
names, count = sorted(llm_sessions._HOMES), 2 * len(llm_sessions._HOMES)
barrier, got = threading.Barrier(count), []

def ask(first):
    barrier.wait(60)
    order = names[first:] + names[:first]
    if first % 2:
        got.append({{name: getattr(llm_sessions, name) for name in order}})
    else:
        space = {{}}
        for name in order:
            exec(f"from llm_sessions import {{name}}", space)
        got.append({{name: space[name] for name in names}})

threads = [threading.Thread(target=ask, args=(n % len(names),), daemon=True) for n in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
print(len(got) == count, all(one[name] is got[0][name] for one in got for name in names))
"""
    assert fresh(code) == "True True\n"
