"""The `llm-sessions` command."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from .parser import DemoOptions, Options, ServeOptions, parse
from .statuses import Status, UsageError
from .tokens import refuse_tokens

__all__ = ["main"]

_EXTRAS = {"demo": "testing,cli", "serve": "testing"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; None for `sys.argv`.

    Returns:
        The exit status; see `statuses`.
    """
    _open_missing_streams()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        refuse_tokens(given)
        return int(_run(parse(given)))
    except UsageError as exc:
        print(f"llm-sessions: {exc}", file=sys.stderr)
        return Status.USAGE
    except KeyboardInterrupt:  # before a command has its own way with it
        print("interrupted", file=sys.stderr)
        return Status.INTERRUPTED


def _open_missing_streams() -> None:
    """Have what is written to a stream that was closed before we began (`>&-`) go nowhere.

    Python has None for it then. Its descriptor is taken as well, or the next socket would get it.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            raw = io.FileIO(os.open(os.devnull, os.O_RDWR), "r+", closefd=False)  # never closed, as Python's
            setattr(sys, name, io.TextIOWrapper(io.BufferedRandom(raw), encoding="utf-8"))


def _run(options: Options) -> int:
    """Run a command. Each is imported here, for it may need an extra that the others do not."""
    if isinstance(options, DemoOptions):
        try:
            from .demo import run_demo
        except ModuleNotFoundError as exc:
            raise _missing("demo", exc) from exc
        return run_demo(plain=options.plain)
    if isinstance(options, ServeOptions):
        try:
            from .serve import run_serve

            return run_serve(options)  # --tls needs one more
        except ModuleNotFoundError as exc:
            raise _missing("serve", exc) from exc
    from .listen import run_listen

    return run_listen(options)


def _missing(command: str, error: ModuleNotFoundError) -> UsageError:
    package = (error.name or "").partition(".")[0]
    return UsageError(f"{command} needs {package}: pip install 'llm-sessions[{_EXTRAS[command]}]'")


if __name__ == "__main__":
    sys.exit(main())
