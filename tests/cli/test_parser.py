"""The arguments: what they become, what is refused, and what the help says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from llm_sessions.cli.parser import DemoOptions, ListenOptions, ServeOptions, make_parser, parse
from llm_sessions.cli.statuses import Status

Captured = pytest.CaptureFixture[str]
COMMANDS = {"demo": DemoOptions, "serve": ServeOptions, "listen": ListenOptions}


@pytest.mark.parametrize("command", COMMANDS)
def test_without_arguments_everything_is_as_the_class_says(command: str) -> None:
    assert parse([command]) == COMMANDS[command]()


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("demo --plain", DemoOptions(plain=True)),
        (
            "serve --sessions a,b --rate 0.5 --seed -3 --count 1 --seconds 2.5 --tls --faults --json",
            ServeOptions(
                sessions=("a", "b"),
                rate=0.5,
                seed=-3,
                count=1,
                seconds=2.5,
                tls=True,
                faults=True,
                json=True,
            ),
        ),
        (
            "listen a=wss://h/ --event online --json b=wss://g/ --event event:a.b --count 5 wss://i/",
            ListenOptions(
                urls=("a=wss://h/", "b=wss://g/", "wss://i/"),
                event=("online", "event:a.b"),
                json=True,
                count=5,
            ),
        ),
        (
            "listen --own-device --device-name d --catalog c --device u --token-file t --raw --plain "
            "--save s --verbose --seconds 1 --timeout 2 --ca-file f --proxy none --allow-insecure",
            ListenOptions(
                own_device=True,
                device_name="d",
                catalog="c",
                device="u",
                token_file=Path("t"),
                raw=True,
                plain=True,
                save=Path("s"),
                verbose=True,
                seconds=1,
                timeout=2,
                ca_file=Path("f"),
                proxy="none",
                allow_insecure=True,
            ),
        ),
    ],
)
def test_what_arguments_become(arguments: str, options: Any) -> None:
    assert parse(arguments.split()) == options


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("serve --sessions a,,b", "a name must be non-empty"),
        ("serve --sessions a,a", "each name may be there once"),
        ("serve --sessions=-a", "a name must not begin with - or have / ? # or = in it"),
        ("serve --sessions a,b=c", "a name must not begin with - or have / ? # or = in it"),
        ("serve --sessions a/b", "a name must not begin with - or have / ? # or = in it"),
        ("serve --rate 0", "must be at least 0.001"),
        ("serve --rate 1001", "at most 1000"),
        ("serve --rate nan", "must be a number"),
        ("serve --count 0", "must be at least 1"),
        ("serve --count 1.5", "must be a whole number"),
        ("serve --seconds 0", "must be more than 0"),
        ("serve --seconds inf", "must be a number"),
        ("serve --port 65536", "at most 65535"),
        ("listen --seconds 20000000", "at most 10000000"),
        ("demo more", "too many arguments"),
        ("serve more", "too many arguments"),
        ("listen --tok wss://h/", "unknown options: --tok"),
        ("listen --token-fil x", "unknown options: --token-fil"),
        ("listen wss://h/ --tokn=s3cret s3cret", "unknown options: --tokn"),
        ("listen --tokn s3cret", "unknown options: --tokn"),
    ],
)
def test_t11_mistakes_are_named_and_what_is_not_known_is_not_repeated(
    arguments: str, problem: str, capsys: Captured
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(arguments.split())
    assert stopped.value.code == Status.USAGE
    err = capsys.readouterr().err
    assert problem in err and "s3cret" not in err


def test_a_count_beyond_all_floats() -> None:
    assert parse(["listen", "--count", "1" + "0" * 400]) == ListenOptions(count=10**400)


def help_of(command: str, capsys: Captured) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse([command, "--help"] if command else ["--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_tells_every_exit_status(command: str, capsys: Captured) -> None:
    told = re.findall(r"^  (\d+) +\S", help_of(command, capsys).partition("exit statuses:")[2], re.MULTILINE)
    assert [int(one) for one in told] == [status.value for status in Status]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_can_be_parsed(command: str, capsys: Captured) -> None:
    text = help_of(command, capsys)
    examples = re.findall(rf"^  llm-sessions ({command}.*)$", text, re.MULTILINE)
    assert examples
    for example in examples:
        parse(re.split(r" [|>&]", example)[0].split())


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_the_help_fits_every_width(columns: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert "usage: llm-sessions listen" in help_of("listen", capsys)


def test_every_option_is_explained_and_has_its_place() -> None:
    actions = make_parser()._subparsers._group_actions[0]  # type: ignore[union-attr]
    for name, parser in dict(actions.choices).items():  # type: ignore[arg-type]
        own = [one for one in parser._actions if one.dest != "help"]
        assert all(one.help for one in own)
        assert {one.dest for one in own} == {field.name for field in dataclasses.fields(COMMANDS[name])}
