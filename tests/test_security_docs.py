"""The threat model names tests that exist, a test for every threat, and the code on it runs."""

from __future__ import annotations

import ast
import re

import pytest

from llm_sessions import WEBEX_HOSTS
from tests.documents import ROOT, blocks, languages, read, table_rows

PAGE = read("docs/security.md")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def absent(named: list[tuple[str, str]]) -> list[str]:
    """Return those tests that there are not."""
    return [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).exists() or not name.startswith("test_") or name not in names_in(path)
    ]


def test_a_test_that_is_gone_is_found() -> None:
    own = "tests/test_security_docs.py"
    there = (own, "test_a_test_that_is_gone_is_found")
    gone = [(own, "test_gone"), ("tests/test_gone.py", "test_gone"), (own, "absent")]
    assert absent([there, *gone]) == [f"{path}::{name}" for path, name in gone]


def test_the_tests_that_the_page_names_exist() -> None:
    assert len(NAMED) > 40
    assert absent(NAMED) == []


def test_every_threat_has_what_stops_it_and_a_test() -> None:
    rows = table_rows(PAGE)
    assert len(rows) > 25
    for row in rows:
        assert len(row) == 3 and all(row), row
        assert re.fullmatch(r"`tests/[\w/]+\.py::\w+`(, `tests/[\w/]+\.py::\w+`)*", row[2]), row


@pytest.mark.parametrize(
    "who",
    ["network", "server", "proxy", "join response", "logs", "Other code", "Forked children", "not stopped"],
)
def test_everybody_has_a_section(who: str) -> None:
    assert sum(who in title for title in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)) == 1


def test_the_code_on_the_page_runs() -> None:
    assert languages(PAGE) == ["python"]
    space: dict[str, object] = {}
    exec(compile(blocks(PAGE)[0], "security.md", "exec"), space)
    pool = space["pool"]
    assert pool._env.config.allowed_hosts is WEBEX_HOSTS  # type: ignore[attr-defined]
    pool.close()  # type: ignore[attr-defined]
