"""The `llm-sessions` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .._version import __version__

__all__ = ["main"]

_MISSING = 2  # exit status, as for a wrong argument


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; None for `sys.argv`.

    Returns:
        The exit status: 0 if all went well, 1 if it did not, 2 for wrong arguments or a missing extra, 130
        after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="llm-sessions",
        description="Webex data channels (LLM: Low Latency Mercury) from the command line.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="show a webinar from join to leave, on a server in this process",
        description="Join a webinar, be promoted to panelist and demoted again while captions come on both "
        "channels, survive a dropped connection, leave, and join again. Needs no network. Ends by itself.",
    )
    demo.add_argument("--plain", action="store_true", help="no colours, also on a terminal")
    options = parser.parse_args(arguments)
    try:
        from .demo import run_demo
    except ImportError as exc:
        print(f"llm-sessions demo needs {exc.name}: pip install 'llm-sessions[testing,cli]'", file=sys.stderr)
        return _MISSING
    try:
        return run_demo(plain=options.plain)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
