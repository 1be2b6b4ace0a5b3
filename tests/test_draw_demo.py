"""`docs/demo.svg` is a picture of the demo as it is. `make picture` has `tools/draw_demo.py` draw it."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from llm_sessions.cli import demo
from tests.documents import ROOT, read

PICTURE = "docs/demo.svg"
TOOL: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "draw_demo.py"))
TEXT = "{http://www.w3.org/2000/svg}text"
TOLD = (
    "\nfirst\n a\n\nsecond\nb \x1b[2mc\x1b[0m\n\nthird\n"
    "\nfourth\n\x1b[36m<d>\x1b[0m   e\n\x1b[1;32mgood\x1b[0m\n"
)


def lines_of(svg: str) -> list[str]:
    """Return what is written in a picture, line by line, each word in its column."""
    rows: dict[float, str] = {}
    for text in ElementTree.fromstring(svg).iter(TEXT):
        column = round((float(text.attrib["x"]) - TOOL["MARGIN"]) / TOOL["COLUMN"])
        y = float(text.attrib["y"])
        rows[y] = rows.get(y, "").ljust(column) + (text.text or "")
    return [rows[y] for y in sorted(rows)]


def told_and_logged(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the lines without times: those of the story, and those of the log (changes of state)."""
    lines = [re.sub(r"^ *\d+\.\d{3} s", "TIME", line) for line in lines]
    logged = [line for line in lines if " -> " in line]
    return [line for line in lines if line not in logged], logged


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOOL["excerpt"].__globals__, "SHOWN", ("second", "fourth"))


@pytest.mark.usefixtures("few")
def test_what_is_not_shown_is_marked() -> None:
    lines = [line.plain for line in TOOL["excerpt"](TOLD)]
    prompt = "$ llm-sessions demo"
    assert lines == [prompt, "", "…", "", "second", "b c", "", "…", "", "fourth", "<d>   e", "good"]
    # The whole scenes, and `…` once for several that follow one another.
    more = TOLD.replace("first\n a\n", "first\n a\n\nnext\n")
    assert [line.plain for line in TOOL["excerpt"](more)] == lines


def test_a_scene_that_is_gone_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no scene Channels, promoted.*, the network drops"):
        TOOL["excerpt"](TOLD)


@pytest.mark.usefixtures("few")
def test_words_are_drawn_in_their_columns_and_styles() -> None:
    svg = TOOL["draw"](TOOL["excerpt"](TOLD))
    assert lines_of(svg) == ["$ llm-sessions demo", "…", "second", "b c", "…", "fourth", "<d>   e", "good"]
    drawn = {text.text: text.attrib for text in ElementTree.fromstring(svg).iter(TEXT)}
    assert drawn["<d>"]["fill"] == TOOL["COLOURS"][6] and "fill" not in drawn["e"]
    assert (drawn["good"]["fill"], drawn["good"]["font-weight"]) == (TOOL["COLOURS"][2], "bold")
    assert "fill-opacity" in drawn["c"] and "fill-opacity" not in drawn["b"]


@pytest.mark.usefixtures("few")
def test_a_colour_that_has_none_here_is_an_error() -> None:
    with pytest.raises(KeyError):
        TOOL["draw"](TOOL["excerpt"](TOLD.replace("[36m", "[34m")))


def test_the_picture_is_of_the_demo_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_PACE", 0)
    assert demo.run_demo(plain=True) == 0
    now = [line.plain for line in TOOL["excerpt"](capsys.readouterr().out) if line.plain]
    # Log and story are of different threads, so each is compared in its own order.
    drawn = told_and_logged(lines_of(read(PICTURE)))
    assert drawn == told_and_logged(now), "make picture"
    assert len(drawn[0]) > 20 and len(drawn[1]) > 3


def test_the_command_that_is_drawn_is_run_with_its_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "demo.svg"
    assert TOOL["main"](path) == 0
    svg, picture = path.read_text(encoding="utf-8"), read(PICTURE)
    assert told_and_logged(lines_of(svg)) == told_and_logged(lines_of(picture))
    assert set(re.findall(r'fill="(#\w+)"', svg)) >= set(TOOL["COLOURS"].values())
    assert set(re.findall(r'fill="(#\w+)"', picture)) >= set(TOOL["COLOURS"].values())


def test_a_demo_that_fails_is_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(subprocess.CalledProcessError):
        TOOL["main"](tmp_path / "demo.svg")
    assert not (tmp_path / "demo.svg").exists()


def test_the_picture_loads_nothing_and_is_on_the_pages() -> None:
    picture = read(PICTURE)
    assert not re.search(r"url\(|href|@import|<script|<image", picture)
    assert re.findall(r"https?://\S+?(?=[\"'\s])", picture) == ["http://www.w3.org/2000/svg"]
    assert "](docs/demo.svg)" in read("README.md") and "](demo.svg)" in read("docs/index.md")
