"""What is said of the distribution in several places is the same."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
# What contributors install. Everything else is for users, and has to work with its lowest versions.
OURS = {"bench", "compat", "dev", "docs", "examples", "release", "suite"}


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py gives to setuptools, which an environment need not have."""
    given: dict[str, Any] = {}
    setuptools = ModuleType("setuptools")
    setuptools.__dict__.update(setup=given.update, find_packages=lambda **_: [])
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def lowest(requirements: list[str]) -> dict[str, Version]:
    """Return the lowest version that is allowed of each."""
    found = {}
    for text in requirements:
        one = Requirement(text)
        [bound] = [spec.version for spec in one.specifier if spec.operator == ">="]
        found[one.name] = Version(bound)
    return found


def pinned() -> dict[str, Version]:
    lines = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    return {
        name: Version(version)
        for name, _, version in (line.partition("==") for line in lines if not line.startswith("#"))
    }


def test_lowest_versions_are_read() -> None:
    assert lowest(["a>=1.8,!=1.9.1", "b>=2,<3"]) == {"a": Version("1.8"), "b": Version("2")}
    with pytest.raises(ValueError, match="unpack"):
        lowest(["c"])


def test_the_lowest_versions_are_those_that_compat_tests(metadata: dict[str, Any]) -> None:
    extras = metadata["extras_require"]
    assert set(extras) > OURS
    texts = [*metadata["install_requires"]]
    for name, more in extras.items():
        texts += [] if name in OURS else more
    assert len(texts) > 8
    assert pinned() == lowest(texts)


def test_compat_runs_on_every_python_that_the_classifiers_name(metadata: dict[str, Any]) -> None:
    prefix = "Programming Language :: Python :: 3."
    minors = [one.removeprefix(prefix) for one in metadata["classifiers"] if one.startswith(prefix)]
    listed = f"env_list = py3{{{','.join(minors)}}}-{{lowest,newest}}"
    assert listed in (ROOT / "tox.ini").read_text(encoding="utf-8").splitlines()
    assert SpecifierSet(metadata["python_requires"]) == SpecifierSet(f">=3.{minors[0]}")


def test_what_the_suite_needs_is_in_dev(metadata: dict[str, Any]) -> None:
    extras = metadata["extras_require"]
    assert set(extras["suite"]) < set(extras["dev"])
    # pip resolves them together: what users get has to fit what we test with.
    for name in set(extras) - OURS:
        assert set(extras[name]) <= set(extras["dev"]), name


def test_what_an_index_shows_has_no_address_that_it_cannot_resolve(metadata: dict[str, Any]) -> None:
    shown = metadata["long_description"]
    addresses = re.findall(r"\]\(([^)\s]+)\)", shown)
    assert len(addresses) >= 5  # of other clients
    assert [one for one in addresses if not one.startswith("https:")] == []
    assert "![" not in shown and "docs/demo.svg" not in shown
    assert "\n- Tutorial: from zero to captions" in shown  # a link that became its text


def test_an_index_shows_the_code_of_the_readme_as_it_is(metadata: dict[str, Any]) -> None:
    code = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(code.findall(readme)) > 5
    assert code.findall(metadata["long_description"]) == code.findall(readme)
