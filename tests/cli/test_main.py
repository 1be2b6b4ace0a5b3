"""The command's arguments, exit statuses and messages."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest

from llm_sessions import __version__
from llm_sessions.cli import main as cli
from llm_sessions.cli.main import main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"llm-sessions {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--nonsense"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: llm-sessions" in capsys.readouterr().err


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_import = builtins.__import__

    def without_rich(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("rich"):
            raise ImportError("no rich", name="rich")
        return real_import(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "llm_sessions.cli.demo", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_rich)
    assert main(["demo"]) == 2
    assert "needs rich: pip install 'llm-sessions[testing,cli]'" in capsys.readouterr().err


def test_ctrl_c_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from llm_sessions.cli import demo

    def interrupted(**options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert cli.__all__ == ["main"]
