"""The command's arguments, exit statuses and messages."""

from __future__ import annotations

import builtins
import re
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


def test_t11_a_token_on_the_command_line_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["listen", "wss://h/", "--token", "s3cret"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("llm-sessions: --token: secrets are not taken from the command line")
    assert "s3cret" not in err


@pytest.mark.parametrize(
    ("command", "library", "extra"),
    [("demo", "rich", "testing,cli"), ("demo", "h11", "testing,cli"), ("serve", "h11", "testing")],
)
def test_a_missing_extra_is_named(
    command: str,
    library: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real_import = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == library:
            raise ModuleNotFoundError(f"no {library}", name=library)
        return real_import(name, *rest, **more)

    ours = [one for one in sys.modules if re.match(r"llm_sessions\.(testing|cli\.[bds])", one)]
    for module in ours:
        package, _, name = module.rpartition(".")
        # The import below makes another module and gives it to the package: the old one comes back.
        monkeypatch.setattr(sys.modules[package], name, sys.modules[module], raising=False)
    for module in ours:
        monkeypatch.delitem(sys.modules, module)
    for module in [one for one in sys.modules if one.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    assert main([command]) == 2
    assert f"{command} needs {library}: pip install 'llm-sessions[{extra}]'" in capsys.readouterr().err


def test_ctrl_c_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from llm_sessions.cli import demo

    def interrupted(**options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert cli.__all__ == ["main"]
