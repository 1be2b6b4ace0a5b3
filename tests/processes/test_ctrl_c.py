"""T5, D21: Ctrl-C ends every blocking call of the main thread, and leaves a pool that works and closes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llm_sessions.testing.captions import CaptionService
from llm_sessions.testing.server import LocalServer
from tests.processes.script import Script

Start = Callable[..., Script]

INTERRUPT = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have us started deaf
calling, interrupted_at = threading.Event(), []

def where_main_is():
    frame, places = sys._current_frames()[threading.main_thread().ident], []
    while frame is not None:
        places.append((id(frame), frame.f_lasti))
        frame = frame.f_back
    return places

def interrupt():
    # What stays at one instruction for so many looks is blocked there. And in the library, not before it.
    calling.wait()
    pause, same, before = threading.Event(), 0, []
    while same < 25:
        pause.wait(0.004)
        now = where_main_is()
        same, before = (same + 1 if now == before and len(now) > 1 else 0), now
    interrupted_at.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()

def blocks(call):
    try:
        calling.set()
        found = call()
    except KeyboardInterrupt:
        say({"took": time.monotonic() - interrupted_at[0]})
    else:
        say({"returned": repr(found)})
    hear()

def after(pool, closed=False):
    # The pool is usable, or was closed by the call; either way it closes, and nothing of it is left.
    if not closed:
        assert pool.connect(url("after"), "after", token="token").online
    pool.close(30)
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("llm-")]
    say(left)
    hear()
"""

SETTINGS = "force_close_delay=60.0, send_timeout=60.0"
POOL = f"pool = make_pool({SETTINGS}); "
ONLINE = f"{POOL} session = pool.connect(url('a'), 'a'); "
CLIENT = f"client = make_client({SETTINGS}); pool = client.pool; "
REGISTER = "client.register_and_connect(given['rest'] + '/locus/m', given['rest'] + '/datachannel/a')"
MEETING = f"{CLIENT} meeting = Meeting(client); captions = meeting.captions; meeting.join(given['join']); "
IN_MEETING = f"{MEETING} meeting.wait_online(); "
DEVICE = (
    "pool = make_pool(); device = DeviceRegistration('token', "
    "catalog_url=given['rest'] + '/u2c/api/v1/catalog', timeout=60.0, config=config()); "
)
OAUTH = (
    "pool = make_pool(); tokens = OAuthTokens('id', 's3cret', 'r3fresh', url=given['rest'], timeout=60.0); "
)

# What comes before, what blocks, and the fault of the server that has it block.
CALLS: dict[str, tuple[str, str, str]] = {
    "connect": (POOL, "pool.connect(url('a'), 'a')", "upgrades"),
    "pool.wait_online": (POOL, "pool.wait_online('a')", ""),
    "session.wait_online": (POOL, "pool.session('a').wait_online()", ""),
    "wait_closed": (ONLINE, "session.wait_closed()", ""),
    "disconnect": (ONLINE, "pool.disconnect('a')", "closes"),
    "session.disconnect": (ONLINE, "session.disconnect()", "closes"),
    "disconnect_all": (ONLINE, "pool.disconnect_all()", "closes"),
    "close": (ONLINE, "pool.close(60)", "closes"),
    "with": (ONLINE, "pool.__exit__(None, None, None)", "closes"),
    "send": (ONLINE, "session.send({'text': 'x' * (16 << 20)})", "reads"),
    "receive": (ONLINE + "session.messages().close(); ", "[session.receive() for _ in range(99)]", ""),
    "messages": (ONLINE, "list(session.messages())", ""),
    "register_and_connect": (CLIENT, REGISTER, "rest"),
    "client.disconnect": (f"{CLIENT} {REGISTER}; ", "client.disconnect()", "closes"),
    "client.disconnect_all": (f"{CLIENT} {REGISTER}; ", "client.disconnect_all()", "closes"),
    "client.close": (f"{CLIENT} {REGISTER}; ", "client.close(60)", "closes"),
    "refresh_token": (IN_MEETING, "client.refresh_token()", "rest"),
    "refresh_token of another": (
        f"{IN_MEETING} asking = threading.Event(); never = threading.Event(); "
        "client.set_refresh_handler(lambda: asking.set() or never.wait() or 'x', 'llm-default-session'); "
        "threading.Thread(target=client.refresh_token, daemon=True).start(); asking.wait(); ",
        "client.refresh_token()",
        "",
    ),
    "device.url": (DEVICE, "device.url()", "rest"),
    "tokens.get": (OAUTH, "tokens.get()", "rest"),
    "meeting.wait_online": (IN_MEETING, "meeting.wait_online('llm-practice-session')", ""),
    "meeting.leave": (IN_MEETING, "meeting.leave(60)", "closes"),
    "request_practice_session": (IN_MEETING, "meeting.request_practice_session(True)", "rest"),
    "wait_languages": (IN_MEETING, "captions.wait_languages()", ""),
    "request_language": (IN_MEETING, "captions.request_language('de')", "answers"),
    "turn_on": (IN_MEETING, "captions.turn_on()", "rest"),
    "transcripts": (IN_MEETING, "next(captions.transcripts())", ""),
}
BY_TLS = ("connect", "disconnect", "send", "receive", "register_and_connect", "meeting.leave")
CASES = [*((name, False) for name in CALLS), *((name, True) for name in BY_TLS)]


@pytest.mark.parametrize(("name", "tls"), CASES, ids=[f"{'tls' if tls else 'plain'}-{n}" for n, tls in CASES])
def test_t5_d21_ctrl_c_ends_every_blocking_call(
    server: LocalServer, script: Start, name: str, tls: bool
) -> None:
    before, call, fault = CALLS[name]
    service = CaptionService(server)
    faults: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "upgrades": (lambda: server.hold_upgrades("a"), lambda: server.release_upgrades("a")),
        "closes": (server.ignore_close, lambda: server.ignore_close(on=False)),
        "reads": (lambda: server.stall_reads("a"), lambda: server.resume_reads("a")),
        "rest": (server.hold_rest, server.release_rest),
        "answers": (service.hold_answers, service.release_answers),
        "": (lambda: None, lambda: None),
    }
    begin, end = faults[fault]
    closed = any(word in call for word in ("close(", "exit"))
    code = f"{before}\nsay('begun')\nhear()\nblocks(lambda: {call})\nafter(pool, {closed})"
    with script(server, INTERRUPT + code) as process:
        assert process.says() == "begun"
        begin()
        process.tell()
        assert process.says().get("took", 99) < 1
        end()
        process.tell()
        assert process.says() == []
        process.ends()
