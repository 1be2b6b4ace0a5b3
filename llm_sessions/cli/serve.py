"""`llm-sessions serve`: a server with a fictional meeting, for trying things out against."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from ..testing.server import LocalServer, ServerTimeout
from .broadcast import Broadcast
from .mailbox import Mailbox
from .meter import plural
from .output import ClosedPipe, Unwritable, say, write_out
from .parser import ServeOptions
from .signals import Signal, Signals
from .statuses import Status, UsageError

__all__ = ["run_serve"]

_FAREWELL: Final = 1.0  # seconds that clients have to answer the close
_WRITE_LIMIT: Final = 1.0  # seconds that a client may take nothing; then it misses what is said
_SHOWN: Final = 20  # violations


def run_serve(options: ServeOptions) -> int:
    """Serve until something ends it, and say what happened.

    Returns:
        The exit status.

    Raises:
        UsageError: If the port cannot be had; nothing was started.
    """
    mailbox = Mailbox()
    try:
        server = LocalServer(port=options.port, tls=options.tls, write_timeout=_WRITE_LIMIT)
    except OSError as exc:
        # Of its errno: some Pythons add the address to the text.
        raise UsageError(f"cannot listen on port {options.port}: {os.strerror(exc.errno or 0)}") from exc
    with Signals(mailbox.tell), server:
        broadcast = Broadcast(
            server,
            options.sessions,
            rate=options.rate,
            seed=options.seed,
            count=options.count,
            faults=options.faults,
        )
        addresses = _addresses(server, options)
        try:
            write_out(
                sys.stdout, f"{json.dumps(addresses) if options.json else _shown(addresses, options)}\n"
            )
        except ClosedPipe:
            return Status.CLOSED_PIPE
        except Unwritable as exc:
            say(sys.stderr, f"llm-sessions serve: {exc}")
            return Status.UNWRITTEN
        status = _play(options, broadcast, mailbox)
        _say_goodbye(server, over=status is Status.DONE)
        say(sys.stderr, _summary(server, broadcast))
    return Status.FAILED if status is Status.DONE and server.violations else status


def _play(
    options: ServeOptions,
    broadcast: Broadcast,
    mailbox: Mailbox,
    clock: Callable[[], float] = time.monotonic,
) -> Status:
    ends_at = None if options.seconds is None else clock() + options.seconds
    while not broadcast.done:
        now = clock()
        if ends_at is not None and now >= ends_at:
            break
        wait = broadcast.step(now)
        news = mailbox.get(wait if ends_at is None else min(wait, ends_at - now))
        if isinstance(news, Signal):
            return Status(128 + news.number)
    return Status.DONE


def _say_goodbye(server: LocalServer, *, over: bool) -> None:
    """Close every connection: for good if the meeting is over, else so that clients try again."""
    server.close_session(code=1000 if over else 1001, reason="the meeting is over" if over else "going away")
    try:
        server.wait_for(lambda: all(one.closed_at is not None for one in server.connections()), _FAREWELL)
    except ServerTimeout:
        return  # whoever has not answered by now finds out otherwise


def _addresses(server: LocalServer, options: ServeOptions) -> dict[str, Any]:
    sessions = {
        key: {"websocket": server.url(key), "registration": server.datachannel_url(key)}
        for key in options.sessions
    }
    device, catalog = f"{server.base_url}/wdm/api/v1/devices/any", f"{server.base_url}/u2c/api/v1/catalog"
    ca_file = server.ca_file if options.tls else None
    trust = [] if ca_file is None else ["--ca-file", ca_file]
    commands = [
        [*trust, *(f"{key}={urls['websocket']}" for key, urls in sessions.items())],
        [*trust, "--device", device, *(f"{key}={urls['registration']}" for key, urls in sessions.items())],
        [*trust, "--own-device", "--catalog", catalog],
    ]
    return {
        "sessions": sessions,
        "device": device,
        "catalog": catalog,
        "ca_file": ca_file,
        "commands": [f"WEBEX_TOKEN=any-token llm-sessions listen {shlex.join(one)}" for one in commands],
    }


def _shown(addresses: dict[str, Any], options: ServeOptions) -> str:
    rows: list[tuple[str, str]] = []
    for key, urls in addresses["sessions"].items():
        rows += [(key, urls["websocket"]), ("", urls["registration"])]
    rows += [("device", addresses["device"]), ("catalog", addresses["catalog"])]
    if addresses["ca_file"] is not None:
        rows.append(("CA file", addresses["ca_file"]))
    width = max(len(name) for name, _ in rows)
    ends = [f"after {plural(options.count, 'message')} a session"] if options.count is not None else []
    ends += [f"after {options.seconds:g} s"] if options.seconds is not None else []
    return "\n".join(
        [
            f"A fictional meeting, {options.rate:g} messages/s on each session while somebody listens, "
            f"seed {options.seed}.",
            f"It ends {' or '.join([*ends, 'with Ctrl-C'])}.",
            "",
            *(f"  {name:<{width}}  {url}" for name, url in rows),
            "",
            "Listen to it, by WebSocket, by registration, or as a device (any token will do):",
            "",
            *(f"  {command}" for command in addresses["commands"]),
        ]
    )


def _summary(server: LocalServer, broadcast: Broadcast) -> str:
    counts = [*broadcast.published.items(), *([("devices", broadcast.posted)] if broadcast.posted else [])]
    published = ", ".join(f"{key} {count}" for key, count in counts)
    connections = sum(one.upgraded for one in server.connections())
    lines = [
        f"published    {published}",
        f"connections  {connections}, {broadcast.dropped} dropped, {broadcast.replaced} told to switch over",
        f"violations   {len(server.violations)}",
        *(f"  {one}" for one in server.violations[:_SHOWN]),
    ]
    return "\n".join(lines)
