"""`tools/check_dist.py` finds what a distribution lacks and what it should not have. `make dist` runs it."""

from __future__ import annotations

import runpy
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "check_dist.py"
TOOL: dict[str, Any] = runpy.run_path(str(SCRIPT))
TRACKED = ["llm_sessions/__init__.py", "llm_sessions/py.typed", "tests/test_a.py", "setup.py"]
WHEEL = [
    "llm_sessions/__init__.py",
    "llm_sessions/py.typed",
    *(f"llm_sessions-1.dist-info/{name}" for name in TOOL["WHEEL_INFO"]),
]
SDIST = [
    "a-1/PKG-INFO",
    "a-1/setup.cfg",
    "a-1/llm_sessions.egg-info/SOURCES.txt",
    *(f"a-1/{n}" for n in TRACKED),
]


def test_a_whole_wheel_passes() -> None:
    assert TOOL["wheel_problems"](WHEEL, TRACKED) == []


@pytest.mark.parametrize("name", ["llm_sessions/py.typed", "llm_sessions-1.dist-info/licenses/LICENSE"])
def test_what_a_wheel_lacks_is_named(name: str) -> None:
    [problem] = TOOL["wheel_problems"]([one for one in WHEEL if one != name], TRACKED)
    assert problem == f"the wheel lacks {name.removeprefix('llm_sessions-1.dist-info/')}"


@pytest.mark.parametrize("name", ["tests/test_a.py", "tests/__init__.py", "llm_sessions/_old.py", "setup.py"])
def test_what_a_wheel_should_not_have_is_named(name: str) -> None:
    assert TOOL["wheel_problems"]([*WHEEL, name], TRACKED) == [f"the wheel should not have {name}"]


def test_an_sdist_has_what_git_knows_and_no_more() -> None:
    assert TOOL["sdist_problems"](SDIST, TRACKED) == []
    assert TOOL["sdist_problems"](SDIST[:-1], TRACKED) == ["the sdist lacks setup.py"]
    assert TOOL["sdist_problems"]([*SDIST, "a-1/tests/x.pyc"], TRACKED) == [
        "the sdist should not have tests/x.pyc"
    ]


def test_the_command_fails_before_it_tries_a_wrong_wheel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = TOOL["main"]
    monkeypatch.setitem(main.__globals__, "tracked_files", lambda: TRACKED)
    monkeypatch.setitem(main.__globals__, "try_wheel", lambda wheel: pytest.fail("tried"))
    with zipfile.ZipFile(tmp_path / "a-1.whl", "w") as wheel:
        for name in [*WHEEL, "tests/test_a.py"]:
            wheel.writestr(name, "")
    with tarfile.open(tmp_path / "a-1.tar.gz", "w:gz") as sdist:
        for name in SDIST:
            sdist.addfile(tarfile.TarInfo(name))
    assert main(tmp_path) == 1
    assert capsys.readouterr().err == "the wheel should not have tests/test_a.py\n"


def test_the_wheel_is_tried_once_both_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, tried = TOOL["main"], []
    monkeypatch.setitem(main.__globals__, "tracked_files", lambda: TRACKED)
    monkeypatch.setitem(main.__globals__, "try_wheel", tried.append)
    with zipfile.ZipFile(tmp_path / "a-1.whl", "w") as wheel:
        for name in WHEEL:
            wheel.writestr(name, "")
    with tarfile.open(tmp_path / "a-1.tar.gz", "w:gz") as sdist:
        for name in SDIST:
            sdist.addfile(tarfile.TarInfo(name))
    assert (main(tmp_path), tried) == (0, [tmp_path / "a-1.whl"])


def test_two_builds_in_one_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a-1.whl").touch()
    (tmp_path / "a-2.whl").touch()
    with pytest.raises(SystemExit, match=r"has 2 files \*\.whl"):
        TOOL["main"](tmp_path)
