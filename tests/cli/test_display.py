"""The live display, on a terminal that is a string."""

from __future__ import annotations

import io
import re

import pytest

from llm_sessions.cli.display import Display, is_fit
from llm_sessions.cli.lines import Line
from llm_sessions.cli.meter import Row
from llm_sessions.cli.output import Unwritable


class Terminal(io.StringIO):
    """What a terminal was sent."""

    full = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(5, "Input/output error")
        return super().write(text)

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue()).replace("\r", "\n")


@pytest.fixture(autouse=True)
def a_usual_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "90", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


ROWS = [Row("main", "online", 12, 1.5, 0.0312, 1), Row("practice", "reconnecting", 0, 0.0, None, 0)]


def line(text: str, event: str = "event:relay.event") -> Line:
    return Line("main", event, 0.0, {"text": text})


def test_events_go_by_and_below_is_how_the_sessions_stand() -> None:
    terminal, rows = Terminal(), list(ROWS)
    display = Display(lambda: rows, terminal)
    display.write(line("hello [bold]all"))
    rows[0] = Row("main", "offline", 13, 1.5, 0.0312, 1)
    display.refresh()
    display.note("a note\x1b[2J")
    display.close()
    shown = terminal.text.splitlines()
    assert next(one for one in shown if "hello" in one).endswith(
        "main      event:relay.event  hello [bold]all"
    )
    assert re.search(
        r"^main +online +12 messages +1\.5/s +latency 31\.2 ms +1 reconnect *$", terminal.text, re.M
    )
    assert re.search(r"^practice +reconnecting +0 messages +0\.0/s +latency - ", terminal.text, re.M)
    assert re.search(r"^main +offline +13 messages", terminal.text, re.M)
    assert "a note [2J" in terminal.text and "\x1b[2J" not in terminal.getvalue()


def test_a_long_event_takes_one_line_whatever_the_size_of_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    for columns in (70, 40):
        monkeypatch.setenv("COLUMNS", str(columns))
        display = Display(lambda: ROWS, terminal)
        display.write(line("x" * 200))
        display.close()
    cut = [one for one in terminal.text.splitlines() if "xxx" in one or one.endswith("…")]
    assert [len(one) for one in cut if one.startswith(tuple("012"))] == [70, 40]


def test_on_a_narrow_window_a_session_is_cut_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "20")
    display = Display(lambda: ROWS, terminal)
    display.close()
    assert terminal.text.splitlines()[:2] == ["main      online   …", "practice  reconnect…"]


def test_a_session_that_is_called_like_the_time_has_its_colour() -> None:
    terminal = Terminal()
    display = Display(lambda: [Row("0", "online", 0, 0.0, None, 0)], terminal)
    display.write(Line("0", "event:a.b", 0.0, {"text": "hello"}))
    display.close()
    assert re.search(r"\d\d:\d\d:00\.000  \x1b\[36m0\x1b\[0m  event:a\.b  hello", terminal.getvalue())


def test_the_cursor_is_there_all_the_time() -> None:
    terminal = Terminal()
    display = Display(lambda: ROWS, terminal)
    hidden, shown = terminal.getvalue().rfind("\x1b[?25l"), terminal.getvalue().rfind("\x1b[?25h")
    assert shown > hidden
    display.close()


def test_a_terminal_that_is_gone() -> None:
    terminal = Terminal()
    display = Display(lambda: ROWS, terminal)
    terminal.full = True
    display.refresh()
    display.note("nobody sees it")
    with pytest.raises(Unwritable, match="cannot write the output: Input/output error"):
        display.write(line("hello"))
    display.close()
    terminal.full = False


def test_what_it_is_fit_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_fit(Terminal())
    assert not is_fit(io.StringIO())
    monkeypatch.setattr(Terminal, "encoding", "latin-1")
    assert not is_fit(Terminal())
    monkeypatch.setattr(Terminal, "encoding", "utf-8")
    assert is_fit(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not is_fit(Terminal())
