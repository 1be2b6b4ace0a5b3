"""Every promise has a test, tests name no others, and the README's table says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import rows
from tests.rows import BEGIN, END, README, ROWS, keepers, named, replaced, sources, table

SAMPLE = """
def test_i12_t3_d5_something(): ...
@pytest.mark.invariant("I7")
@pytest.mark.parametrize("x", ["I9"])
def test_i7_once(): ...
@pytest.mark.invariant("T1")
class TestThings: ...
def test_of_i8_in_the_middle(): ...
def helper_i5_x(): ...
def test_i6(): ...
"""


def test_a_test_names_promises_in_its_name_or_by_a_mark() -> None:
    assert list(named(SAMPLE)) == [
        ("I12", "test_i12_t3_d5_something"),
        ("T3", "test_i12_t3_d5_something"),
        ("I7", "test_i7_once"),
        ("T1", "TestThings"),
    ]


def test_the_table_counts_the_tests_of_each_file() -> None:
    tests = keepers({"b.py": SAMPLE, "a.py": "def test_i7_x(): ...\ndef test_i7_y(): ..."})
    assert tests["I7"] == {"a.py": ["test_i7_x", "test_i7_y"], "b.py": ["test_i7_once"]}
    assert table({"I7": "Seven", "I8": "Eight"}, tests).splitlines()[2:] == [
        "| I7 | Seven | `a.py` 2, `b.py` |",
        "| I8 | Eight |  |",
    ]


def test_the_table_has_its_place() -> None:
    assert replaced(f"a\n{BEGIN}\nold\n{END}\nz\n", "new") == f"a\n{BEGIN}\n\nnew\n\n{END}\nz\n"
    for document in ("a", BEGIN, END):
        with pytest.raises(ValueError, match="no place"):
            replaced(document, "new")


def test_the_script_writes_the_table_and_fails_without_a_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}{END}")
    monkeypatch.setattr(rows, "README", readme)
    assert rows.main() == 0
    written = readme.read_text()
    assert written.startswith(BEGIN) and written.endswith(END)
    assert all(f"| {promise} | {text} | `" in written for promise, text in ROWS.items())
    monkeypatch.setattr(rows, "ROWS", {**ROWS, "I999": "Nobody keeps this"})
    assert rows.main() == 1
    assert capsys.readouterr().err == "no test keeps I999\n"


def test_every_promise_is_kept_by_a_test() -> None:
    assert ROWS.keys() - keepers(sources()).keys() == set()


def test_no_test_names_a_promise_that_does_not_exist() -> None:
    found = keepers(sources())
    assert {promise: found[promise] for promise in found.keys() - ROWS.keys()} == {}


def test_the_table_in_the_readme_is_the_one_the_script_writes() -> None:
    document = README.read_text(encoding="utf-8")
    new = replaced(document, table(ROWS, keepers(sources())))
    if document != new:  # pytest would take a minute to show how two such texts differ
        pytest.fail("run `python -m tests.rows`", pytrace=False)
