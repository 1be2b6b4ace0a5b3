"""What docs/cli.md shows is what the command says, and it leaves no option out."""

from __future__ import annotations

import re
import shlex

import pytest

from llm_sessions.cli.parser import make_parser
from llm_sessions.cli.statuses import MEANINGS
from tests.cli.command import Command
from tests.documents import blocks, languages, read, table_rows

PAGE = read("docs/cli.md")
BLOCKS = [block.partition("\n") for block in blocks(PAGE, "console")]
SERVE, *LISTENS, REFUSED = [(command.removeprefix("$ "), output) for command, _, output in BLOCKS]


def words(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables and the arguments of a command."""
    parts = shlex.split(command)
    at = parts.index("llm-sessions")
    return dict(part.split("=", 1) for part in parts[:at]), parts[at + 1 :]


def as_on_the_page(text: str, port: str) -> str:
    text = text.replace(f":{port}/", ":PORT/")
    text = re.sub(r"^\d\d:\d\d:\d\d\.\d{3}", "TIME", text, flags=re.MULTILINE)
    text = re.sub(r'"time": "[^"]+"', '"time": "TIME"', text)
    # How many came beyond those that were asked for is anybody's guess.
    return re.sub(r"^main  \d+ messages?, 0 re", "main  N messages, 0 re", text, flags=re.MULTILINE)


@pytest.mark.parametrize("listen", LISTENS, ids=lambda listen: words(listen[0])[1][1])
def test_what_is_shown_is_what_comes(listen: tuple[str, str]) -> None:
    with Command(*words(SERVE[0])[1]) as serve:
        printed = [serve.line() for _ in SERVE[1].splitlines()]
        [port] = set(re.findall(r"127\.0\.0\.1:(\d+)/", "\n".join(printed)))
        assert as_on_the_page("\n".join(printed), port) == SERVE[1].rstrip("\n")
        variables, arguments = words(listen[0].replace("PORT", port))
        with Command(*arguments, env=variables) as command:
            out, err = command.ends(0 if "--count" in arguments else 1)
        assert as_on_the_page(out + err, port) == as_on_the_page(listen[1], "PORT")


def test_a_token_is_refused_as_shown() -> None:
    with Command(*words(REFUSED[0])[1]) as command:
        assert command.ends(2) == ("", REFUSED[1])


def test_there_is_no_block_that_no_test_runs() -> None:
    assert languages(PAGE) == ["console"] * 4 and len(LISTENS) == 2


def test_every_option_is_described_and_every_described_one_exists() -> None:
    [commands] = [one for one in make_parser()._actions if one.dest == "command"]
    assert isinstance(commands.choices, dict)
    options = {
        name
        for parser in commands.choices.values()
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--")
    }
    assert set(re.findall(r"`(--[a-z-]+)`", PAGE)) == options


def test_the_commands_are_those_there_are() -> None:
    [commands] = [one for one in make_parser()._actions if one.dest == "command"]
    rows = table_rows(PAGE.partition("## Try it")[0])
    assert isinstance(commands.choices, dict)
    assert [row[0].strip("`") for row in rows] == [f"llm-sessions {name}" for name in commands.choices]


def test_the_exit_statuses_are_those_there_are() -> None:
    rows = table_rows(PAGE.partition("## Exit statuses")[2])
    said = {int(row[0]): row[1].replace("\\|", "|") for row in rows}
    assert said == {status.value: re.sub(r"\s+", " ", text) for status, text in MEANINGS.items()}
