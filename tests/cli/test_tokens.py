"""Where the token comes from, and that it never comes from the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_sessions._logging import redact
from llm_sessions.cli.statuses import UsageError
from llm_sessions.cli.tokens import TokenFile, find_token, refuse_tokens

SECRET = "s3cret-of-somebody"


def test_from_the_environment() -> None:
    provider = find_token({"WEBEX_TOKEN": f" {SECRET}\n"}, None)
    assert provider.get() == SECRET == provider.refresh(SECRET)
    assert redact(f"<{SECRET}>") == "<***>"


def test_a_file_wins_and_is_read_every_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first-token\n")
    provider = find_token({"WEBEX_TOKEN": SECRET}, file)
    assert provider.get() == "first-token"
    file.write_text("Bearer second-token")
    assert provider.get() == provider.refresh("first-token") == "Bearer second-token"
    assert redact("<first-token> <second-token>") == "<***> <***>"


def test_a_file_that_is_gone_or_empty_for_a_moment_is_a_passing_failure(tmp_path: Path) -> None:
    file = tmp_path / "token"
    provider = TokenFile(file)
    with pytest.raises(FileNotFoundError):
        provider.get()
    file.touch()
    with pytest.raises(ValueError, match="empty"):
        provider.get()


def test_a_pipe_is_read_once() -> None:
    reads, writes = os.pipe()
    os.write(writes, f"{SECRET}\n".encode())
    os.close(writes)
    try:
        provider = find_token({}, Path(f"/dev/fd/{reads}"))
        assert provider.get() == provider.refresh(SECRET) == SECRET
    finally:
        os.close(reads)
    assert redact(f"<{SECRET}>") == "<***>"


@pytest.mark.parametrize("value", [None, "", "  "])
def test_without_one_it_says_how_to_give_one(value: str | None) -> None:
    variables = {} if value is None else {"WEBEX_TOKEN": value}
    with pytest.raises(UsageError, match="set WEBEX_TOKEN in the environment, or give --token-file"):
        find_token(variables, None)


def test_what_cannot_be_a_token_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="WEBEX_TOKEN: must be non-empty printable ASCII") as caught:
        find_token({"WEBEX_TOKEN": f"two {SECRET}"}, None)
    file = tmp_path / "token"
    file.write_bytes(b"\xff" + SECRET.encode())
    with pytest.raises(UsageError, match="the token file: must be") as also:
        find_token({}, file)
    assert SECRET not in f"{caught.value!r} {also.value!r}"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file or directory"):
        find_token({}, tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="the token file is empty"):
        find_token({}, tmp_path / "empty")
    with pytest.raises(UsageError, match="Is a directory"):
        find_token({}, tmp_path)


@pytest.mark.parametrize(
    "option",
    [
        "--token",
        "-token",
        "--access-token",
        "--access_token",
        "--bearer",
        "--auth-token",
        "--password",
        "--TOKEN",
    ],
)
def test_t11_an_option_for_a_token_is_refused_with_a_reason(option: str) -> None:
    for arguments in ([option, SECRET], [f"{option}={SECRET}"]):
        with pytest.raises(UsageError, match="revoke it") as caught:
            refuse_tokens(["listen", *arguments])
        assert str(caught.value).startswith(f"{option}: ") and SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "argument", ["--token-file", "--token-file=x", "token", "wss://h/?token=x", "--event", "tokens=wss://h/"]
)
def test_others_are_not(argument: str) -> None:
    refuse_tokens(["listen", argument, "--", "--token"])
