"""T6, D20: a program that ends with everything open ends at once, politely, and says nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from llm_sessions.testing.captions import CaptionService
from llm_sessions.testing.server import LocalServer
from tests.processes.script import Script

Start = Callable[..., Script]

OPEN = """
client = make_client()
meeting = Meeting(client)
meeting.join(given["join"])
meeting.wait_online()
meeting.captions.turn_on()
meeting.captions.wait_languages()

pool = make_pool()
stuck, told = threading.Event(), threading.Event()

def block(payload):
    told.set()
    stuck.wait()

pool.on("online", block, session_id="blocked")
for key in ("idle", "blocked"):
    pool.connect(url(key), key)
told.wait()
threading.Thread(target=lambda: list(pool.session("idle").messages()), daemon=True).start()
threading.Thread(target=lambda: list(meeting.captions.transcripts()), daemon=True).start()
say("open")
hear()
"""

# How it ends, its exit status, and the last line on stderr.
ENDINGS = {
    "the end of the script": ("", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "an exception": ("raise KeyError('of the script')", 1, "KeyError: 'of the script'"),
    "Ctrl-C": ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_t6_d20_everything_open_at_exit_is_closed(server: LocalServer, script: Start, ending: str) -> None:
    last, code, stderr = ENDINGS[ending]
    CaptionService(server)
    with script(server, OPEN + last) as process:
        assert process.says() == "open"
        process.ends(code, stderr=stderr)
    server.wait_for(lambda: all(one.closed_at is not None for one in server.connections()))
    closes = {one.session: (one.close_code, one.close_reason) for one in server.connections()}
    assert closes == dict.fromkeys(("default", "idle", "blocked"), (1000, "Done"))


def test_t6_d20_an_exception_out_of_the_with_blocks_is_the_only_thing_said(
    server: LocalServer, script: Start
) -> None:
    code = """
    with make_pool() as pool, make_client() as client, Meeting(client) as meeting:
        pool.connect(url("a"), "a")
        meeting.join(given["join"])
        meeting.wait_online()
        say("open")
        hear()
        raise ValueError("of the script")
    """
    with script(server, code) as process:
        assert process.says() == "open"
        process.ends(1, stderr="ValueError: of the script")
    closes = {one.session: (one.close_code, one.close_reason) for one in server.connections()}
    assert closes == {"a": (1000, "Done"), "default": (3050, "done (permanent)")}


def test_t6_d20_an_exit_in_the_middle_of_a_join_says_nothing(server: LocalServer, script: Start) -> None:
    server.hold_rest()
    code = """
    client = make_client()
    meeting = Meeting(client)
    meeting.join(given["join"])
    say("joined")
    hear()
    """
    with script(server, code) as process:
        assert process.says() == "joined"
        server.wait_for(lambda: bool(server.requests))
        process.ends()
    assert server.connections() == []


def test_d21_sigterm_is_the_programs(server: LocalServer, script: Start) -> None:
    """The library has no handler: by default it ends the process at once, and nobody can be told."""
    CaptionService(server)
    with script(server, OPEN) as process:
        assert process.says() == "open"
        process.signal(signal.SIGTERM)
        process.ends(-signal.SIGTERM)
    server.wait_for(lambda: all(one.closed_at is not None for one in server.connections()))
    assert {one.close_code for one in server.connections()} == {1006}  # no close frame came


def test_d21_a_sigterm_that_the_program_turns_into_an_exit_closes_everything(
    server: LocalServer, script: Start
) -> None:
    code = "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))\n" + OPEN
    CaptionService(server)
    with script(server, code) as process:
        assert process.says() == "open"
        process.signal(signal.SIGTERM)
        process.ends()
    server.wait_for(lambda: all(one.closed_at is not None for one in server.connections()))
    assert {one.close_code for one in server.connections()} == {1000}


JUST_BLOCKED = """
pool = make_pool()
told = threading.Event()

def block(envelope):
    told.set()
    threading.Event().wait()

pool.connect(url("blocked"), "blocked").on("event:relay.event", block)
say("open")
told.wait()
"""

# As from Python 3.12 on, on every version: at exit no thread starts any more.
NO_THREADS = """
import atexit

def refuse(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")

atexit.register(lambda: setattr(threading.Thread, "start", refuse))
"""


@pytest.mark.parametrize("last", ["", NO_THREADS], ids=["", "without threads"])
def test_t6_a_callback_that_blocks_since_a_moment_does_not_hold_up_the_exit(
    server: LocalServer, script: Start, last: str
) -> None:
    """Its reader is lent, and nobody has seen yet that it will not come back."""
    with script(server, JUST_BLOCKED + last) as process:
        assert process.says() == "open"
        [connection] = server.wait_live("blocked")
        server.publish()
        process.ends()
    server.wait_for(lambda: connection.closed_at is not None)
    assert (connection.close_code, connection.close_reason) == (1000, "Done")
