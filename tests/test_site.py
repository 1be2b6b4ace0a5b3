"""The documentation builds without a warning, and what comes out is whole: links, names, pictures."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import types
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import pytest

import llm_sessions
from llm_sessions.protocol.state import SessionState
from tests.documents import ROOT, blocks, read

pytestmark = pytest.mark.timeout(300)  # a build takes ten seconds on a machine that has nothing else to do

NEEDED = ("sphinx", "myst_parser", "furo")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_sphinx = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} missing: pip install 'llm-sessions[docs]'"
)


class Page(HTMLParser):
    """What a built page links to, loads, and can be linked to by."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link":
            self.loads.append(found.get("href", ""))
        self.loads += [found[name] for name in ("src", "srcset", "poster", "data") if name in found]


def is_elsewhere(address: str) -> bool:
    return bool(urllib.parse.urlsplit(address).netloc)


def loaded_by_styles(style: str) -> list[str]:
    """Return what a style sheet loads."""
    named = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", style)
    return [one or other for one, other in named]


def dead_links(pages: dict[str, Page], site: Path) -> list[str]:
    """Return the links to files and places of the site that are not there."""
    found = []
    for name, page in pages.items():
        for link in page.links:
            path, fragment = urllib.parse.urldefrag(link)
            if is_elsewhere(link) or link.startswith("mailto:"):
                continue
            target = (site / name).parent / urllib.parse.unquote(path) if path else site / name
            key = os.path.relpath(target, site)
            if not target.exists() or (fragment and key in pages and fragment not in pages[key].ids):
                found.append(f"{name}: {link}")
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does."""
    out = tmp_path_factory.mktemp("site")
    recipe = re.search(r"-m (sphinx .*) docs docs/_build/html", read("Makefile"))
    assert recipe is not None
    done = subprocess.run(
        [sys.executable, "-m", *recipe[1].split(), "-d", str(out / "trees"), "docs", str(out / "html")],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return out / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_dead_links_and_loads_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#gone">2</a><a href="c.html">3</a><a href="#top">4</a>'
        '<a href="https://example.com/x">5</a><p id="top"></p>'
        '<script src="https://cdn.example/x.js"></script><link href="a.css"><img src="//cdn.example/i.png">'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    found = {name: Page(tmp_path / name) for name in ("a.html", "b.html")}
    assert dead_links(found, tmp_path) == ["a.html: b.html#gone", "a.html: c.html"]
    assert [one for one in found["a.html"].loads if is_elsewhere(one)] == [
        "https://cdn.example/x.js",
        "//cdn.example/i.png",
    ]
    assert loaded_by_styles("a{b:url('https://x/y')} @import \"z.css\"; c{d:url(e)}") == [
        "https://x/y",
        "z.css",
        "e",
    ]


@needs_sphinx
def test_every_link_within_the_site_leads_somewhere(site: Path, pages: dict[str, Page]) -> None:
    assert len(pages) > 25
    assert dead_links(pages, site) == []


@needs_sphinx
def test_a_page_loads_nothing_from_elsewhere(site: Path, pages: dict[str, Page]) -> None:
    assert [(name, one) for name, page in pages.items() for one in page.loads if is_elsewhere(one)] == []
    styles = list(site.rglob("*.css"))
    assert styles
    for path in styles:
        loaded = loaded_by_styles(path.read_text(encoding="utf-8"))
        assert [one for one in loaded if is_elsewhere(one)] == [], path.name


def documented(pages: dict[str, Page]) -> list[str]:
    """Return the names that the reference describes; a name that has two places is there twice."""
    return [
        name
        for path, page in pages.items()
        if path.startswith("reference/")
        for name in page.ids
        if name.startswith("llm_sessions.")
    ]


@needs_sphinx
def test_every_public_name_is_described_once(pages: dict[str, Page]) -> None:
    names = documented(pages)
    assert len(names) == len(set(names))
    package = {name for name in names if re.fullmatch(r"llm_sessions\.\w+", name)}
    assert package == {f"llm_sessions.{name}" for name in llm_sessions.__all__}


@needs_sphinx
def test_members_of_private_bases_are_with_their_public_class(pages: dict[str, Page]) -> None:
    names = set(documented(pages))
    wanted = {"DataChannelClient.on", "DataChannelClient.get_token", "Meeting.once", "ConnectionPool.connect"}
    assert {f"llm_sessions.{name}" for name in wanted} <= names
    assert "llm_sessions.testing.server.LocalServer.reject_rest" in names


@needs_sphinx
def test_what_is_internal_is_not_described(pages: dict[str, Page]) -> None:
    internal = {
        f"llm_sessions.{kind}.{name}"
        for kind in llm_sessions.__all__
        if isinstance(getattr(llm_sessions, kind), type)
        for name, member in vars(getattr(llm_sessions, kind)).items()
        if (getattr(member, "__doc__", None) or "").partition("\n\n")[0].endswith("Internal.")
    }
    assert "llm_sessions.ConnectionPool.begin_connect" in internal
    assert internal & set(documented(pages)) == set()


@needs_sphinx
def test_pictures_are_drawn(site: Path) -> None:
    for page in ("architecture", "meetings"):
        html = (site / f"{page}.html").read_text(encoding="utf-8")
        assert (
            len(re.findall('<svg class="(?:states|sequence)"', html))
            == len(blocks(read(f"docs/{page}.md"), "mermaid"))
            == 1
        )
        assert "-->>" not in html and "-&gt;&gt;" not in html


@needs_sphinx
def test_long_names_in_tables_may_break_and_are_copied_whole(site: Path) -> None:
    html = (site / "how-to" / "reconnects.html").read_text(encoding="utf-8")
    [cell] = re.findall(r"<td><p><code[^>]*>((?:(?!</code>).)*imminent.*?)</code>", html)
    assert re.sub(r"<(?!wbr)[^>]*>", "", cell) == "event:<wbr>mercury_<wbr>shutdown_<wbr>imminent"


def test_where_a_long_name_may_break() -> None:
    pieces = extension("tables").pieces
    assert pieces("event:mercury_shutdown_imminent") == ["event:", "mercury_", "shutdown_", "imminent"]
    assert pieces("mercury.hasConnectedSockets(id)") == ["mercury.", "has", "Connected", "Sockets(id)"]
    assert pieces("offline.transient") == ["offline.transient"]
    assert pieces("close_session(session, code=1000)") == ["close_", "session(session, code=1000)"]
    for text in ("", "two words", "__all__"):
        assert pieces(text) == [text]


# The pictures themselves


def extension(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_ext" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


def texts(svg: str, kind: str) -> list[str]:
    return re.findall(rf'<text class="{kind}"[^>]*>([^<]*)</text>', svg)


def test_the_picture_of_the_states_has_every_state_and_every_step() -> None:
    states = extension("states")
    [block] = blocks(read("docs/architecture.md"), "mermaid")
    svg = states.draw(block)
    assert sorted(texts(svg, "head")) == sorted(state.value for state in SessionState)
    steps = re.findall(r"--> (\w+) : (\w+)", block)
    drawn = [step for label in texts(svg, "label") for step in label.split(", ")]
    # A disconnect leads from each of the four busy states to one and the same: that is one arrow.
    assert len(drawn) == len(steps) - 3
    assert sorted(set(drawn)) == sorted({trigger for _, trigger in steps})


def test_a_step_that_not_all_busy_states_have_is_drawn_for_each() -> None:
    states = extension("states")
    [block] = blocks(read("docs/architecture.md"), "mermaid")
    fewer = block.replace("    switching --> disconnecting : disconnect\n", "")
    assert texts(states.draw(fewer), "label").count("disconnect") == 4  # three, and that of `offline`


def test_nothing_is_drawn_over_the_border() -> None:
    states = extension("states")
    [block] = blocks(read("docs/architecture.md"), "mermaid")
    svg = states.draw(block)
    width, height = states.SIZE
    for x, y in re.findall(r'<text class="\w+" x="([\d.-]+)" y="([\d.-]+)"', svg):
        assert 30 < float(x) < width - 30 and 10 < float(y) < height - 10


def test_the_sequence_has_every_line() -> None:
    sequence = extension("sequence")
    [block] = blocks(read("docs/meetings.md"), "mermaid")
    svg = sequence.draw(block)
    assert texts(svg, "head") != [] and svg.count('class="tip"') == block.count("->>")
    assert svg.count('class="note"') == block.count("Note over")
    assert len(texts(svg, "label")) == block.count("->>")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("states", "stateDiagram-v2\n    idle --> elsewhere : connect"),
        ("states", "stateDiagram-v2\n    idle => connecting"),
        ("states", "sequenceDiagram"),
        ("sequence", "sequenceDiagram\n    a->>b: hello"),
        ("sequence", "sequenceDiagram\n    participant a as A\n    loop a"),
        ("sequence", "stateDiagram-v2"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(name: str, text: str) -> None:
    with pytest.raises(ValueError):
        extension(name).draw(text)
