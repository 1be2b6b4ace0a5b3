"""Where `listen` takes its access token from: the environment or a file, and never the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .._logging import know_secret
from ..errors import ConfigurationError
from ..pool.sources import StaticToken, TokenProvider, bearer
from .statuses import UsageError

__all__ = ["VARIABLE", "TokenFile", "find_token", "refuse_tokens"]

VARIABLE = "WEBEX_TOKEN"
"""The variable of the environment."""

_TOKEN_OPTION = re.compile(r"-{1,2}(?:[\w-]*[-_])?(?:token|bearer|passw(?:or)?d|secret)(?:=.*)?", re.I | re.S)


class TokenFile:
    """A token provider that reads a file for every attempt, so that whoever rotates the token can replace it.

    Args:
        path: Of a file with the token and nothing else but white space around it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self) -> str:
        """Return what is in the file now.

        Raises:
            OSError: If it cannot be read. An attempt that fails of it is tried again.
            ValueError: Likewise, if it is empty: somebody may be about to write it.
        """
        token = self._path.read_bytes().decode("latin-1").strip()
        if not token:
            raise ValueError("the token file is empty")
        know_secret(token.removeprefix("Bearer "))
        return token

    def refresh(self, rejected: str) -> str:
        """Return what is in the file now; the rejected one again says that there is no other."""
        return self.get()


def find_token(environment: Mapping[str, str], file: Path | None) -> TokenProvider:
    """Return where the token comes from.

    Args:
        environment: Variables.
        file: Of `--token-file`, which wins; None for the variable. A pipe is read once, now: there is
            nothing in it for the next attempt.

    Raises:
        UsageError: If there is no token that could be sent. The text never quotes it.
    """
    source: TokenProvider
    source = TokenFile(file) if file is not None else StaticToken(environment.get(VARIABLE, "").strip())
    where = "the token file" if file is not None else VARIABLE
    try:
        token = source.get()
    except OSError as exc:
        raise UsageError(f"the token file cannot be read: {exc.strerror}: {file}") from exc
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    if not token:
        raise UsageError(f"no access token: set {VARIABLE} in the environment, or give --token-file FILE")
    know_secret(token.removeprefix("Bearer "))
    try:
        bearer(token, where)
    except ConfigurationError as exc:
        raise UsageError(str(exc)) from None
    return source if file is None or file.is_file() else StaticToken(token)


def refuse_tokens(arguments: Sequence[str]) -> None:
    """Refuse arguments that look like a secret's option, before anything repeats them.

    Raises:
        UsageError: It says why and what to do instead.
    """
    for argument in arguments:
        if argument == "--":
            return
        if _TOKEN_OPTION.fullmatch(argument):
            option = argument.partition("=")[0]
            raise UsageError(
                f"{option}: secrets are not taken from the command line, where every user of this machine "
                f"can read them and the shell keeps them; set {VARIABLE} in the environment, or give "
                "--token-file FILE. If this one was real, revoke it"
            )
