"""pytest finds the fixtures by itself. Each test is a pytest run in a process of its own.

A distribution made up for it has the entry point of setup.py, so that it does not matter whether this library
is installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_sessions.testing import _entry_point, pytest_plugin
from tests.support import LONG

pytest_plugins = ["pytester"]

SETUP = (Path(__file__).parent.parent.parent / "setup.py").read_text(encoding="utf-8")
[ENTRY_POINT] = re.findall(r'"pytest11": \["(.+?)"\]', SETUP)
PLUGIN = pytest_plugin.__name__

USES_A_FIXTURE = """
def test_it(llm_server, llm_pool):
    llm_pool().connect(llm_server.url("a"), "a")
    assert llm_server.wait_live("a")
"""


@pytest.fixture
def installed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project whose environment has this library, and warnings as errors."""
    site = pytester.mkdir("site")
    info = site / "made_up-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pytest11]\n{ENTRY_POINT}\n")
    library = Path(__file__).parent.parent.parent
    paths = [str(site), str(library), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("[pytest]\nfilterwarnings = error\ntestpaths = .")
    return pytester


def run(project: pytest.Pytester, *args: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", *args)


def test_its_names_are_those_of_modules() -> None:
    assert f"llm_sessions = {_entry_point.__name__}" == ENTRY_POINT
    assert _entry_point.pytest_plugins == [PLUGIN]


def test_it_is_found(installed: pytest.Pytester) -> None:
    installed.makepyfile(USES_A_FIXTURE)
    run(installed).assert_outcomes(passed=1)


@pytest.mark.parametrize("named", ["module", "entry point", "conftest", "test module", "everywhere"])
def test_it_may_be_named_as_well(installed: pytest.Pytester, named: str) -> None:
    line = f'pytest_plugins = ["{PLUGIN}"]\n'
    everywhere = named == "everywhere"
    installed.makepyfile(line * (everywhere or named == "test module") + USES_A_FIXTURE)
    if everywhere or named == "conftest":
        installed.makeconftest(line)
    args = ["-p", PLUGIN] * (everywhere or named == "module")
    args += ["-p", "llm_sessions"] * (everywhere or named == "entry point")
    run(installed, *args).assert_outcomes(passed=1)


def test_it_can_be_switched_off_and_named_all_the_same(installed: pytest.Pytester) -> None:
    installed.makepyfile(USES_A_FIXTURE)
    off = run(installed, "-p", "no:llm_sessions")
    off.assert_outcomes(errors=1)
    off.stdout.fnmatch_lines(["*fixture 'llm_server' not found*"])
    run(installed, "-p", "no:llm_sessions", "-p", PLUGIN).assert_outcomes(passed=1)


def test_who_uses_no_fixture_does_not_pay(installed: pytest.Pytester) -> None:
    installed.makepyfile(
        """
        import sys

        def test_it():
            assert sys.modules["llm_sessions.testing.pytest_plugin"]
            assert not {"h11", "wsproto", "trustme", "websocket", "backoff", "requests"} & set(sys.modules)
            ours = {name for name in sys.modules if name.startswith("llm_sessions.")}
            assert ours - {"llm_sessions._version", "llm_sessions.errors"} == {
                "llm_sessions.testing",
                "llm_sessions.testing._entry_point",
                "llm_sessions.testing.pytest_plugin",
            }
        """
    )
    run(installed, "-p", "no:hypothesispytest", "-p", "no:randomly").assert_outcomes(passed=1)


@pytest.mark.parametrize("missing", ["h11", "trustme"])
def test_without_the_extra_only_those_who_need_it_fail(installed: pytest.Pytester, missing: str) -> None:
    installed.makeconftest(
        f"""
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name == {missing!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, Missing())
        """
    )
    installed.makepyfile(
        """
        def test_plain(llm_server): pass
        def test_tls(llm_tls_server): pass
        def test_proxy(llm_fault_proxy): llm_fault_proxy(("127.0.0.1", 1))
        def test_pool(llm_pool): llm_pool()
        def test_clock(llm_clock): llm_clock()
        def test_other(): pass
        """
    )
    result = run(installed)
    errors = 1 if missing == "trustme" else 2
    result.assert_outcomes(passed=6 - errors, errors=errors)
    text = f"LocalServer needs {missing}, which is not installed: pip install 'llm-sessions[[]testing]'"
    result.stdout.fnmatch_lines([text] * errors)
    result.stdout.no_fnmatch_line("*No module named*")


def test_without_the_extra_the_server_says_what_to_install() -> None:
    code = """
import sys
sys.modules["wsproto"] = None
try:
    import llm_sessions.testing.server
except ModuleNotFoundError as exc:
    print(exc.name, exc)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=LONG, check=False
    )
    said = "LocalServer needs wsproto, which is not installed: pip install 'llm-sessions[testing]'"
    assert (done.stdout, done.stderr) == (f"wsproto {said}\n", "")
