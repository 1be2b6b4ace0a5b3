"""Rules of the source tree: what may import what, what the library never does, how large things may grow.

Each rule is a function from source text to a list of complaints. It is first shown to fail on a small sample,
then applied to the tree. Folders that do not exist yet break no rule.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llm_sessions"

LEAVES = ("errors", "session_ids", "_sync", "_logging", "_json", "_version", "_fork")
# Upwards.
LAYERS = (
    "protocol",
    "connection",
    "pool",
    "datachannel",
    "meetings",
    "prometheus",
    "testing",
    "cli",
    "__main__",
)
IMPURE_LEAVES = ("_sync", "_logging", "_fork")
# Fixtures for the tests of our users make what a user would, so they import the package as a user does.
LIKE_A_USER = ("testing/pytest_plugin.py",)

# What only some files may import: (top-level names, pattern of the files that may).
ONLY_THERE = (
    (("websocket",), r"connection/upgrade\.py"),
    (("backoff",), r"pool/retry\.py"),
    (("requests", "jwt"), r"datachannel/.*"),
    (("python_socks",), r"connection/socks\.py"),
    (("h11", "wsproto", "trustme", "pytest"), r"testing/.*"),
    (("orjson",), r"_json\.py"),
    (("rich",), r"cli/.*"),
    (("prometheus_client",), r"prometheus\.py"),
)
WORLD = (
    *("socket", "select", "selectors", "ssl", "threading", "subprocess", "os", "logging"),
    *("time", "datetime", "random", "secrets", "uuid"),
)
FORBIDDEN_IMPORTS = ("asyncio", "gevent")
# What is forbidden to a library is the program's business.
THE_PROGRAMS = {"signal.signal": "cli/"}
FORBIDDEN_NAMES = {
    "concurrent.futures.ThreadPoolExecutor": "its workers are joined at exit",
    "concurrent.futures.thread.ThreadPoolExecutor": "its workers are joined at exit",
    "threading.stack_size": "it is process-wide",
    "signal.signal": "handlers belong to the program",
    "time.sleep": "nothing can wake it; wait on an Event or a Condition",
}
MAX_MODULE, MAX_FUNCTION = 450, 70  # lines


# Reading the tree


def sources(folder: str) -> dict[str, str]:
    """Return the text of each Python file under a folder of the project, by its path in that folder."""
    base = ROOT / folder
    return {
        path.relative_to(base).as_posix(): path.read_text(encoding="utf-8") for path in base.rglob("*.py")
    }


def library() -> dict[str, str]:
    return sources(PACKAGE)


def modules(files: dict[str, str]) -> set[str]:
    """Return the dotted names of the modules and packages among the files."""
    found = {PACKAGE}
    for path in files:
        parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
        if parts != ["__init__"]:
            found.update(".".join([PACKAGE, *parts[:end]]) for end in range(1, len(parts) + 1))
    return found


def imports(path: str, source: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """Yield line and full name of whatever a file of the package imports, wherever in the file.

    `from x import y` is an import of x.y if `known` has that module, otherwise of x.
    """
    folder = [PACKAGE, *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) + 1 - node.level] if node.level else []
            origin = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield node.lineno, inner if inner in known else origin
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0]
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)


def full_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and full name of each imported thing that is used or imported, aliases resolved."""
    tree = ast.parse(source)
    origin: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                origin[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                origin[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield node.lineno, f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            tail, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute):
                tail.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name) and inner.id in origin:
                yield node.lineno, ".".join([origin[inner.id], *reversed(tail)])


def report(complaints: list[str]) -> None:
    if complaints:
        pytest.fail("\n".join(["the tree breaks a rule:", *complaints]), pytrace=False)


# (a) Imports point down


def layer_of(parts: list[str], is_file: bool) -> str:
    """Return "leaf", a layer, "root" for the package itself, or "" for what has no place in the tree."""
    if not parts:
        return "root"
    if parts[0] in LAYERS:
        return parts[0]
    return "leaf" if parts[0] in LEAVES or is_file else ""


def may_import(importer: str, target: str) -> bool:
    if importer == target or target == "leaf":
        return True
    if importer == "root":
        return target not in ("prometheus", "testing", "cli")
    if importer == "cli":
        return True
    if "testing" in (importer, target) or target == "root" or importer == "leaf":
        return False
    return LAYERS.index(target) < LAYERS.index(importer)


def upward_imports(files: dict[str, str]) -> list[str]:
    known, complaints = modules(files), []
    for path, source in files.items():
        parts = path.removesuffix(".py").removesuffix("__init__").strip("/").split("/")
        importer = layer_of([part for part in parts if part], is_file="/" not in path)
        if not importer or (importer == "leaf" and parts[0] not in LEAVES):
            complaints.append(
                f"{path}: no place in the tree; add it to LEAVES or LAYERS of tests/test_tree.py"
            )
            continue
        for line, name in imports(path, source, known):
            if name.split(".")[0] != PACKAGE:
                continue
            target = layer_of(name.split(".")[1:], is_file=False)
            if target == "root" and path in LIKE_A_USER:
                continue
            if not may_import(importer, target):
                complaints.append(
                    f"{path}:{line}: {importer} imports {name}, which is {target or 'no layer'}"
                )
            elif importer == "protocol" and name.split(".")[1] in IMPURE_LEAVES:
                complaints.append(f"{path}:{line}: protocol is pure and imports {name}")
    return complaints


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("protocol/frames.py", "from ..pool.pool import ConnectionPool"),
        ("protocol/frames.py", "from .. import pool"),
        ("protocol/frames.py", "from llm_sessions import ConnectionPool"),
        ("protocol/frames.py", "from .._sync import Deadline"),
        ("connection/stream.py", "import llm_sessions.pool.pool as p"),
        ("connection/stream.py", "def late():\n    from ..meetings.meeting import Meeting"),
        ("connection/stream.py", "importlib.import_module('llm_sessions.pool')"),
        ("errors.py", "from .protocol import frames"),
        ("testing/server.py", "from ..protocol.frames import Frame"),
        ("testing/server.py", "def late():\n    from llm_sessions import ConnectionPool"),
        ("testing/pytest_plugin.py", "from ..pool.pool import ConnectionPool"),
        ("meetings/meeting.py", "from ..testing.server import LocalServer"),
        ("__init__.py", "from .testing import LocalServer"),
        ("__init__.py", "from .prometheus import PoolCollector"),
        ("meetings/meeting.py", "def late():\n    from ..prometheus import PoolCollector"),
        ("meetings/deep/er.py", "from ...cli import main"),
        ("helpers.py", ""),
        ("extras/thing.py", ""),
    ],
)
def test_upward_imports_are_found(path: str, source: str) -> None:
    assert len(upward_imports({path: source, "pool/__init__.py": "", "pool/pool.py": ""})) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("protocol/frames.py", "from .. import _json\nfrom ..errors import PoolClosed\nfrom . import state"),
        ("pool/pool.py", "from llm_sessions.connection.stream import Stream\nimport socket"),
        ("__init__.py", "from .meetings.meeting import Meeting\nfrom ._version import __version__"),
        ("cli/main.py", "from llm_sessions import Meeting\nfrom ..testing.server import LocalServer"),
        ("testing/server.py", "from ..session_ids import DEFAULT_SESSION_ID\nfrom . import clock"),
        ("testing/pytest_plugin.py", "def late():\n    from llm_sessions import ConnectionPool"),
    ],
)
def test_downward_imports_pass(path: str, source: str) -> None:
    assert upward_imports({path: source, "_json.py": ""}) == []


def test_imports_point_down() -> None:
    report(upward_imports(library()))


# (b) Each foreign library has one door, and protocol/ none


def misplaced_imports(files: dict[str, str]) -> list[str]:
    complaints = []
    for path, source in files.items():
        for line, name in imports(path, source, set()):
            top = name.split(".")[0]
            for names, place in ONLY_THERE:
                if top in names and re.fullmatch(place, path) is None:
                    complaints.append(f"{path}:{line}: {top} is imported in {place} only")
            if path.startswith("protocol/") and top in WORLD:
                complaints.append(f"{path}:{line}: protocol is pure and imports {top}")
    return complaints


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("connection/stream.py", "import websocket"),
        ("connection/stream.py", "from websocket._handshake import CookieJar"),
        ("pool/pool.py", "import backoff"),
        ("pool/retry.py", "import requests.auth"),
        ("meetings/meeting.py", "def f():\n    import jwt"),
        ("protocol/mercury.py", "from time import monotonic"),
        ("protocol/mercury.py", "import os.path"),
        ("connection/stream.py", "import h11"),
        ("pool/stats.py", "from prometheus_client import Counter"),
    ],
)
def test_misplaced_imports_are_found(path: str, source: str) -> None:
    assert len(misplaced_imports({path: source})) == 1


def test_imports_in_their_place_pass() -> None:
    files = {"connection/upgrade.py": "import websocket", "pool/retry.py": "from backoff import expo"}
    assert misplaced_imports(files | {"datachannel/auth.py": "import jwt, requests"}) == []


def test_each_library_has_one_door() -> None:
    report(misplaced_imports(library()))


# (c) What the library never does


def forbidden_things(files: dict[str, str]) -> list[str]:
    complaints = []
    for path, source in files.items():
        for line, name in imports(path, source, set()):
            if name.split(".")[0] in FORBIDDEN_IMPORTS:
                complaints.append(f"{path}:{line}: {name}: this library is threads only")
        for line, name in full_names(source):
            if path.startswith(THE_PROGRAMS.get(name, "?")):
                continue
            if name in FORBIDDEN_NAMES:
                complaints.append(f"{path}:{line}: {name}: {FORBIDDEN_NAMES[name]}")
            elif name.endswith(".*"):
                complaints.append(f"{path}:{line}: a star import hides what is used")
        complaints += [
            f"{path}:{line}: swallows any exception: name it, or log" for line in swallowed(source)
        ]
    return complaints


def swallowed(source: str) -> Iterator[int]:
    """Yield the lines where any exception whatever disappears without a trace."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            body_is_empty = all(
                isinstance(inner, ast.Pass)
                or (isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant))
                for inner in node.body
            )
            if body_is_empty and is_catch_all(node.type):
                yield node.lineno
        elif isinstance(node, ast.Call) and any(is_catch_all(argument) for argument in node.args):
            yield from [node.lineno] if ast.unparse(node.func).endswith("suppress") else []


def is_catch_all(kind: ast.expr | None) -> bool:
    if kind is None:
        return True
    if isinstance(kind, ast.Tuple):
        return any(is_catch_all(element) for element in kind.elts)
    return ast.unparse(kind).removeprefix("builtins.") in ("Exception", "BaseException")


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio",
        "from asyncio.events import get_event_loop",
        "import gevent.monkey",
        "from concurrent.futures import ThreadPoolExecutor",
        "import concurrent.futures as futures\nfutures.ThreadPoolExecutor()",
        "import concurrent.futures\nconcurrent.futures.ThreadPoolExecutor()",
        "import threading\nthreading.stack_size(65536)",
        "import signal\nsignal.signal(2, print)",
        "import time as clock\nclock.sleep(1)",
        "from time import sleep as nap",
        "from time import *",
        "try: f()\nexcept Exception: pass",
        "try: f()\nexcept (OSError, BaseException): ...",
        "try: f()\nexcept:\n    'never mind'",
        "import contextlib\nwith contextlib.suppress(Exception): f()",
    ],
)
def test_forbidden_things_are_found(source: str) -> None:
    assert len(forbidden_things({"pool/pool.py": source})) == 1


def test_their_harmless_relatives_pass() -> None:
    source = """
import time, threading, signal
from concurrent.futures import Future
time.monotonic(); threading.Thread(); signal.SIGINT; self.sleep(1)
try: f()
except OSError: pass
try: f()
except Exception: logger.exception("f")
"""
    assert forbidden_things({"pool/pool.py": source}) == []


def test_the_command_has_signal_handlers_and_does_not_sleep() -> None:
    source = "import signal, time\nsignal.signal(2, print)"
    assert forbidden_things({"cli/signals.py": source}) == []
    assert len(forbidden_things({"testing/server.py": source})) == 1
    assert len(forbidden_things({"cli/serve.py": "import time\ntime.sleep(1)"})) == 1


def test_the_library_does_nothing_forbidden() -> None:
    report(forbidden_things(library()))


# (d) The exception tree that is drawn is the real one


def drawn_tree(text: str, root: str) -> dict[str, str]:
    """Return the parent of each class in a drawing that starts with a line of the root's name.

    A line is `│   ├── Name  comment`, or `├── Name ── Child · Child`. What is in parentheses is ignored, and
    so is what follows two spaces. A line that is only indented goes on with children of the line above it.
    """
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []  # column and name of the ancestors
    for line in inspect.cleandoc(text).splitlines():
        column = len(line) - len(line.lstrip(" │├└─"))
        entry = re.sub(r"\s*\([^)]*\)", "", re.split(r"\s{2,}", line[column:].strip())[0])
        if not path:
            path = [(column, root)] if entry == root else []
            continue
        if not entry:
            break
        while path[-1][0] >= column:
            path.pop()
        for depth, siblings in enumerate(re.split(r"\s*──\s*", entry)):
            parent = path[-1][1]
            for name in re.split(r"\s*·\s*", siblings):
                if name in parents:
                    raise ValueError(f"{name} is drawn twice")
                parents[name] = parent
            path.append((column + depth, name))
    return parents


def real_tree(module: ModuleType, root: type) -> dict[str, str]:
    """Return the parent of each class below the root that a module defines."""
    return {
        name: next(base.__name__ for base in cls.__bases__ if issubclass(base, root))
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, root) and cls is not root
        if cls.__module__ == module.__name__
    }


def test_drawings_are_read() -> None:
    one_a_line = """Errors::

        Root
        ├── Bad (ValueError)  a bad argument (really)
        ├── Middle
        │   ├── Left  of the two
        │   └── Right
        │       └── Deep
        └── Last

    Root
    └── NotPartOfIt
    """
    tree = {
        "Bad": "Root",
        "Middle": "Root",
        "Left": "Middle",
        "Right": "Middle",
        "Deep": "Right",
        "Last": "Root",
    }
    assert drawn_tree(one_a_line, "Root") == tree
    packed = """
    Root
    ├── Bad (ValueError)           a bad argument
    ├── Middle(code, reason)
    │     Left (TimeoutError) · Other
    │     Right(status, url) ── Deep     a bad answer
    └── Last ── One · Two
    """
    more = {"Other": "Middle", "One": "Last", "Two": "Last"}
    assert drawn_tree(packed, "Root") == tree | more


def test_a_wrong_drawing_is_found() -> None:
    module = ModuleType("sample")
    exec("class Root(Exception): ...\nclass A(Root): ...\nclass B(A, ValueError): ...", vars(module))
    assert (
        real_tree(module, module.Root) == {"A": "Root", "B": "A"} != drawn_tree("Root\n├── A\n└── B", "Root")
    )
    with pytest.raises(ValueError, match="A is drawn twice"):
        drawn_tree("Root\n├── A\n└── A", "Root")


def test_the_drawn_exceptions_are_the_real_ones() -> None:
    errors = importlib.import_module(f"{PACKAGE}.errors")
    assert drawn_tree(errors.__doc__ or "", "LLMSessionsError") == real_tree(errors, errors.LLMSessionsError)


# (e) Every module has its test file


def untested_modules(files: dict[str, str], tests: dict[str, str]) -> list[str]:
    complaints = []
    for path in sorted(files):
        folder, _, name = path.removesuffix(".py").rpartition("/")
        if name in ("__init__", "_version"):
            continue
        test = "/".join(filter(None, [folder, f"test_{name.strip('_')}.py"]))
        # server_stream.py is a part of server.py, and may be tested with it.
        whole = name.partition("_")[0]
        of_whole = "/".join(filter(None, [folder, f"test_{whole}.py"]))
        is_part = bool(whole) and "/".join(filter(None, [folder, f"{whole}.py"])) in files
        if test not in tests and not (is_part and of_whole in tests):
            complaints.append(f"{PACKAGE}/{path} has no tests/{test}")
    return complaints


def test_untested_modules_are_found() -> None:
    files = dict.fromkeys(["_json.py", "pool/pool.py", "pool/__init__.py", "_version.py"], "")
    assert untested_modules(files, {"pool/test_pool.py": ""}) == [
        "llm_sessions/_json.py has no tests/test_json.py"
    ]
    assert untested_modules(files, {"pool/test_pool.py": "", "test_json.py": ""}) == []
    parts = dict.fromkeys(["pool/pool.py", "pool/pool_size.py", "pool/retry_after.py"], "")
    assert untested_modules(parts, {"pool/test_pool.py": ""}) == [
        "llm_sessions/pool/retry_after.py has no tests/pool/test_retry_after.py"
    ]


def test_every_module_has_its_test_file() -> None:
    report(untested_modules(library(), sources("tests")))


# (f) The public names


def bad_exports(package: ModuleType, files: dict[str, str]) -> list[str]:
    names: list[str] = list(package.__all__)
    complaints = []
    if names != sorted(set(names)):
        complaints.append(f"__all__ is not sorted(set(__all__)): {', '.join(sorted(set(names)))}")
    documented = {name for source in files.values() for name in documented_constants(source)}
    for name in names:
        if not hasattr(package, name):
            complaints.append(f"{name} is in __all__ and cannot be imported")
        elif name not in documented and name != "__version__" and not has_docstring(getattr(package, name)):
            complaints.append(f"{name} has no docstring (for a constant: a string under its assignment)")
    return complaints


def has_docstring(thing: object) -> bool:
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return False
    own = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
    # A dataclass without a docstring gets its signature as one.
    return bool(own and own.strip()) and not str(own).startswith(f"{thing.__name__}(")


def documented_constants(source: str) -> Iterator[str]:
    body = ast.parse(source).body
    for statement, below in pairwise(body):
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_bad_exports_are_found() -> None:
    module = ModuleType("sample")
    source = '''
import dataclasses
@dataclasses.dataclass
class Bare: ...
class Good: "Says what it is."
def quiet(): ...
LIMIT = 3
"""Said below."""
OTHER: int = 4
'''
    exec(source, vars(module))
    for names, wrong in (
        (["Good", "LIMIT"], []),
        (["LIMIT", "Good"], ["__all__"]),
        (["Good", "Good"], ["__all__"]),
        (["Absent", "Bare", "OTHER", "quiet"], ["Absent", "Bare", "OTHER", "quiet"]),
    ):
        module.__dict__["__all__"] = names
        assert [complaint.split()[0] for complaint in bad_exports(module, {"sample.py": source})] == wrong


@pytest.mark.skipif(
    not (ROOT / PACKAGE / "__init__.py").exists(), reason="the package has no __init__.py yet"
)
def test_public_names_are_sorted_importable_and_documented() -> None:
    report(bad_exports(importlib.import_module(PACKAGE), library()))


# (g) Sizes


def too_large(files: dict[str, str]) -> list[str]:
    complaints = []
    for path, source in files.items():
        if (lines := len(source.splitlines())) > MAX_MODULE:
            complaints.append(f"{path}: {lines} lines, {MAX_MODULE} at most")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    complaints.append(
                        f"{path}:{node.lineno}: {node.name} has {lines} lines, {MAX_FUNCTION} at most"
                    )
    return complaints


def test_large_things_are_found() -> None:
    function = "def f():\n" + "    pass\n" * (MAX_FUNCTION - 1)
    assert too_large({"a.py": function, "b.py": "x = 1\n" * MAX_MODULE}) == []
    assert too_large({"a.py": function + "    pass\n"}) == ["a.py:1: f has 71 lines, 70 at most"]
    assert too_large({"b.py": "x = 1\n" * (MAX_MODULE + 1)}) == ["b.py: 451 lines, 450 at most"]


def test_modules_and_functions_are_small() -> None:
    report(too_large(library()))


# (h) Texts that others read name no place of the machine they were written on


def workplace_paths(texts: dict[str, str]) -> list[str]:
    return [
        f"{path}:{number}: {found[0]}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if (found := re.search(r"(?<![\w.~:/})-])/(?:work|tmp|root)/\S*", line))
    ]


def test_workplace_paths_are_found() -> None:
    texts = {"a.md": "see `/work/x.md`", "b.md": "cd /tmp/y", "c.md": "fine\n(/root/z)"}
    assert workplace_paths(texts) == ["a.md:1: /work/x.md`", "b.md:1: /tmp/y", "c.md:2: /root/z)"]
    assert workplace_paths({"d.md": "https://example.com/work/x and docs/tmp/x"}) == []


def test_documents_name_no_workplace_paths() -> None:
    kinds = (".md", ".rst", ".txt", ".html", ".py", ".toml", ".cfg", ".yml", ".yaml", ".svg")
    paths = [path for path in ROOT.iterdir() if path.is_file() and path.name != "LICENSE"]
    for folder in ("docs", "examples", "benchmarks", "tools", ".ci"):
        paths += (ROOT / folder).rglob("*")
    paths = [p for p in paths if "_build" not in p.parts]
    chosen = [
        path
        for path in paths
        if path.is_file() and (path.suffix in kinds or path.name in ("Makefile", "run"))
    ]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in chosen}
    report(workplace_paths(texts))


# (i) Tests wait for something, never for some time


def sleeping_tests(files: dict[str, str]) -> list[str]:
    return [
        f"tests/{path}:{line}: {name}; wait for what should happen, with a deadline"
        for path, source in files.items()
        for line, name in full_names(source)
        if name == "time.sleep"
    ]


def test_sleeping_tests_are_found() -> None:
    for source in ("import time\ntime.sleep(1)", "from time import sleep", "import time as t\nt.sleep(0)"):
        assert len(sleeping_tests({"test_x.py": source})) == 1
    assert sleeping_tests({"test_x.py": "import time\ntime.monotonic()\n'time.sleep'"}) == []


def test_no_test_sleeps() -> None:
    report(sleeping_tests(sources("tests")))
