"""The arguments of the command, and what `--help` says of them."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .._version import __version__
from ..errors import ConfigurationError
from ..session_ids import check_session_id
from .statuses import MEANINGS, Status
from .targets import can_be_said

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction["_Parser"]

__all__ = ["DemoOptions", "ListenOptions", "Options", "ServeOptions", "make_parser", "parse"]

_RATES: Final = 1000.0  # messages a second; more would measure the server

_DEMO: Final = """\
examples:
  llm-sessions demo
  llm-sessions demo --plain > demo.txt
"""
_SERVE: Final = """\
examples:
  llm-sessions serve
  llm-sessions serve --sessions captions --rate 5 --faults
  llm-sessions serve --tls --port 8443 --seconds 60
  llm-sessions serve --json --count 10 > addresses.json &

The server listens on 127.0.0.1 only and takes any token. It keeps what was said, to check what clients
answer: it is for trying out and for tests, not for weeks.
"""
_LISTEN: Final = """\
examples:
  export WEBEX_TOKEN    (or --token-file; a token is never an argument)
  llm-sessions listen wss://example.com/channel
  llm-sessions listen main=wss://example.com/a practice=wss://example.com/b --event event:relay.event
  llm-sessions listen --device https://example.com/devices/1 main=https://example.com/datachannel/1
  llm-sessions listen --own-device --json --count 10 | jq .data
  llm-sessions listen --token-file token.txt --save captions.jsonl --seconds 3600 wss://example.com/channel

Events go to standard output, everything else to standard error. A second Ctrl-C ends at once.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The arguments of `demo`."""

    plain: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """The arguments of `serve`; see its `--help`."""

    sessions: tuple[str, ...] = ("main", "practice")
    rate: float = 1.0
    seed: int = 1
    count: int | None = None
    seconds: float | None = None
    port: int = 0
    tls: bool = False
    faults: bool = False
    json: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """The arguments of `listen`; see its `--help`."""

    urls: tuple[str, ...] = ()
    own_device: bool = False
    device: str | None = None
    device_name: str = "llm-sessions-listen"
    catalog: str | None = None
    event: tuple[str, ...] = ()
    json: bool = False
    raw: bool = False
    plain: bool = False
    save: Path | None = None
    seconds: float | None = None
    count: int | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    proxy: str = "environment"
    allow_insecure: bool = False
    timeout: float = 30.0
    verbose: bool = False


Options = DemoOptions | ServeOptions | ListenOptions


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        # Without abbreviations, or --token would be taken for --token-file.
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"allow_abbrev": False, "formatter_class": layout, **options})


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; what it makes has the command's name as `command`."""
    statuses = "\n".join(f"  {status.value:<4} {MEANINGS[status]}" for status in Status)
    parser = _Parser(
        prog="llm-sessions",
        description="Webex data channels (LLM: Low Latency Mercury) from the command line.",
        epilog=f"llm-sessions COMMAND --help says more, with examples.\n\nexit statuses:\n{statuses}",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_demo(commands, statuses)
    _add_serve(commands, statuses)
    _add_listen(commands, statuses)
    return parser


def parse(arguments: Sequence[str] | None) -> Options:
    """Return the options that arguments mean; mistakes end the process with status 2.

    Args:
        arguments: Without the program's name; None for `sys.argv`.
    """
    parser = make_parser()
    parsed, left = parser.parse_known_args(arguments)
    found = vars(parsed)
    unknown = [one.partition("=")[0] for one in left if one.startswith("-")]
    if unknown:  # without what follows: it may be a token
        parser.error(f"unknown options: {' '.join(unknown)}")
    if left and "urls" not in found:
        parser.error("too many arguments")
    if left:  # argparse takes only those before the next option
        found["urls"] += left
    kinds: dict[str, Any] = {"demo": DemoOptions, "serve": ServeOptions, "listen": ListenOptions}
    made: Options = kinds[found.pop("command")](
        **{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    )
    return made


def _add_demo(commands: Commands, statuses: str) -> None:
    demo = commands.add_parser(
        "demo",
        help="show a webinar from join to leave, on a server in this process",
        description="Join a webinar, be promoted to panelist and demoted again while captions come on both "
        "channels,\nsurvive a dropped connection, leave, and join again. Needs no network. Ends by itself.",
        epilog=f"{_DEMO}\nexit statuses:\n{statuses}",
    )
    demo.add_argument("--plain", action="store_true", help="no colours, also on a terminal")


def _add_serve(commands: Commands, statuses: str) -> None:
    serve = commands.add_parser(
        "serve",
        help="run a local server on which a fictional meeting is held",
        description="Run a server on this machine on which a fictional meeting is held, and print its "
        "addresses with\ncommands to listen to it. What is said is the same for the same seed.",
        epilog=f"{_SERVE}\nexit statuses:\n{statuses}",
    )
    add, defaults = serve.add_argument, ServeOptions()
    add(
        "--sessions",
        type=_names,
        default=defaults.sessions,
        metavar="NAMES",
        help=f"the sessions, with commas between them (default: {','.join(defaults.sessions)})",
    )
    add(
        "--rate",
        type=_rate,
        default=defaults.rate,
        metavar="N",
        help="messages a second on each (default: 1)",
    )
    add("--seed", type=int, default=defaults.seed, metavar="N", help="which meeting (default: 1)")
    add("--count", type=_count, metavar="N", help="end after so many messages on each session")
    add("--seconds", type=_seconds, metavar="S", help="end after so long (default: with Ctrl-C)")
    add("--port", type=_port, default=defaults.port, metavar="N", help="port (default: 0, any)")
    add("--tls", action="store_true", help="wss:// and https://, with an authority made for this run")
    add("--faults", action="store_true", help="drop and replace connections now and then")
    add("--json", action="store_true", help="print addresses and commands as one JSON object on one line")


def _add_listen(commands: Commands, statuses: str) -> None:
    listen = commands.add_parser(
        "listen",
        help="show what comes on one or several sessions",
        description="Connect one or several sessions, keep them connected, and show what comes: on a "
        "terminal with a\nlive line for each session, in a pipe as plain lines, with --json as JSON.",
        epilog=f"{_LISTEN}\nexit statuses:\n{statuses}",
    )
    add, defaults = listen.add_argument, ListenOptions()
    add(
        "urls",
        nargs="*",
        metavar="URL",  # with brackets in it some Pythons cannot wrap the usage
        help="a WebSocket (wss://), or where a data channel is registered (https://); NAME=URL names the "
        "session, which else is called as the URL's path ends",
    )
    group = listen.add_argument_group("whose events")
    add = group.add_argument
    add("--own-device", action="store_true", help="also the events of the token's user, by a device")
    add("--device", metavar="URL", help="the device that data channels are registered with")
    add(
        "--device-name",
        default=defaults.device_name,
        metavar="NAME",
        help="of the own device (default: %(default)s)",
    )
    add("--catalog", metavar="URL", help="where services are listed, for the own device (default: Webex)")
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the access token; read again for every attempt, a pipe once",
    )
    group = listen.add_argument_group("what is shown")
    add = group.add_argument
    add(
        "--event",
        action="append",
        default=[],
        metavar="NAME",
        help="only this event, such as online or event:relay.event; may be repeated",
    )
    add("--json", action="store_true", help="one JSON object a line: session, event, time, data")
    add("--raw", action="store_true", help="messages whole, not only their data")
    add("--plain", action="store_true", help="no live lines, also on a terminal")
    add("--save", type=Path, metavar="FILE", help="append all that is shown as JSON lines")
    add("--verbose", action="store_true", help="the library's log as well")
    group = listen.add_argument_group("when it ends")
    add = group.add_argument
    add("--count", type=_count, metavar="N", help="after so many lines")
    add("--seconds", type=_seconds, metavar="S", help="after so long")
    add(
        "--timeout",
        type=_seconds,
        default=defaults.timeout,
        metavar="S",
        help="a session must be online within this (default: 30)",
    )
    group = listen.add_argument_group("network")
    add = group.add_argument
    add("--ca-file", type=Path, metavar="FILE", help="authorities to trust, and no others (PEM)")
    add(
        "--proxy",
        default=defaults.proxy,
        metavar="URL",
        help="http://, https:// or socks5:// and a host; none for none (default: by the environment)",
    )
    add("--allow-insecure", action="store_true", help="let ws:// and http:// go to other hosts than this")


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    try:
        for name in names:
            check_session_id(name)
    except ConfigurationError as exc:
        raise argparse.ArgumentTypeError(f"a name {exc.problem}") from None
    if not all(map(can_be_said, names)):
        raise argparse.ArgumentTypeError("a name must not begin with - or have / ? # or = in it")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError("each name may be there once")
    return names


def _count(text: str) -> int:
    value = _number(int, text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(value)


def _seconds(text: str) -> float:
    value = _number(float, text)
    if not 0 < value <= 10**7:
        raise argparse.ArgumentTypeError(f"must be more than 0 and at most {10**7}")
    return value


def _rate(text: str) -> float:
    value = _number(float, text)
    if not 0.001 <= value <= _RATES:
        raise argparse.ArgumentTypeError(f"must be at least 0.001 and at most {_RATES:g}")
    return value


def _port(text: str) -> int:
    value = _number(int, text)
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError("must be at least 0 and at most 65535")
    return int(value)


def _number(kind: type[int] | type[float], text: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if value != value or abs(value) == math.inf:  # math.isfinite raises for an int beyond all floats
        raise argparse.ArgumentTypeError("must be a number" if kind is float else "must be a whole number")
    return value
