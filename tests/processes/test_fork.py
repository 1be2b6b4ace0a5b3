"""T7, D22: a forked child is refused by everything that it inherited, and works with what it makes itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions.testing.captions import CaptionService
from llm_sessions.testing.server import LocalServer
from tests.processes.script import Script

Start = Callable[..., Script]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

IN_CHILD = """
import gc, warnings
from llm_sessions import _sync

warnings.simplefilter("ignore", DeprecationWarning)  # to fork with threads is what this is about
_sync.check_lock_order(True)  # locks that can be found

def fork(child):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, json.dumps(child()).encode())
        sys.exit(0)  # with its exit handlers
    os.close(writer)
    said = b""
    while piece := os.read(reader, 65536):
        said += piece
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [status, json.loads(said or b"null")]

def lose_every_lock():
    # As if threads that the child does not have held them.
    for lock in gc.get_objects():
        if type(lock) is _sync.RankedLock:
            lock._lock.acquire(blocking=False)

class Hung(BaseException):
    pass

def give_up(number, frame):
    raise Hung

def outcome(call):
    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        found = call()
    except BaseException as exc:
        return type(exc).__name__
    else:
        return "returned" if found is not None else "returned None"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)

def names(kind):
    return {name for name in dir(kind) if not name.startswith("_")}
"""

EVERYTHING = """
client = make_client()
pool, session, meeting = client.pool, client.session(), Meeting(client)
meeting.join(given["join"])
meeting.wait_online()
captions = meeting.captions
captions.turn_on()
captions.wait_languages()
messages, lines = session.messages(), captions.transcripts()
device = DeviceRegistration(
    "token", catalog_url=given["rest"] + "/u2c/api/v1/catalog", config=config()
)
device.url()
tokens = OAuthTokens("id", "s3cret", "r3fresh", url=given["rest"], access_token="token")
assert tokens.get() == "token"
session.on("event", lambda envelope: None)

EVERYTHING = {
    "pool": (pool, {
        "connect": lambda: pool.connect(url("b"), "b"),
        "begin_connect": lambda: pool.begin_connect(url("b"), "b"),
        "begin_disconnect": pool.begin_disconnect,
        "observe": lambda: pool.observe(session, print),
        "wait_online": pool.wait_online,
        "disconnect": pool.disconnect,
        "disconnect_all": pool.disconnect_all,
        "close": pool.close,
        "part": pool.part,
        "session": pool.session,
        "sessions": pool.sessions,
        "is_online": pool.is_online,
        "any_online": lambda: pool.any_online,
        "stats": pool.stats,
        "on": lambda: pool.on("online", print),
        "once": lambda: pool.once("online", print),
        "off": lambda: pool.off("online"),
        "name": lambda: pool.name,
    }),
    "session": (session, {
        "id": lambda: session.id,
        "state": lambda: session.state,
        "online": lambda: session.online,
        "url": lambda: session.url,
        "last_error": lambda: session.last_error,
        "time_offset": lambda: session.time_offset,
        "latency": lambda: session.latency,
        "send": lambda: session.send({"type": "from the child"}),
        "receive": session.receive,
        "messages": session.messages,
        "stats": session.stats,
        "wait_online": session.wait_online,
        "wait_closed": session.wait_closed,
        "disconnect": session.disconnect,
        "on": lambda: session.on("online", print),
        "once": lambda: session.once("online", print),
        "off": lambda: session.off("online"),
    }),
    "messages": (messages, {
        "next": lambda: next(messages),
        "close": messages.close,
        "dropped": lambda: messages.dropped,
    }),
    "client": (client, {
        "register_and_connect": lambda: client.register_and_connect(
            given["rest"] + "/locus/m", given["rest"] + "/datachannel/b", session_id="b"
        ),
        "begin_register_and_connect": lambda: client.begin_register_and_connect(
            given["rest"] + "/locus/m", given["rest"] + "/datachannel/b", "b"
        ),
        "disconnect": client.disconnect,
        "disconnect_all": client.disconnect_all,
        "close": client.close,
        "pool": lambda: client.pool,
        "session": client.session,
        "connections": client.connections,
        "is_connected": client.is_connected,
        "binding": client.binding,
        "web_socket_url": client.web_socket_url,
        "locus_url": client.locus_url,
        "datachannel_url": client.datachannel_url,
        "publish": lambda: client.publish({}),
        "send_to": lambda: client.send_to("llm-default-session", lambda target, number: {}),
        "update_subchannel_subscriptions": lambda: client.update_subchannel_subscriptions(["a"]),
        "get_token": client.get_token,
        "set_token": lambda: client.set_token("other"),
        "clear_token": client.clear_token,
        "set_refresh_handler": lambda: client.set_refresh_handler(None),
        "refresh_token": client.refresh_token,
        "on": lambda: client.on("online", print),
        "once": lambda: client.once("online", print),
        "off": lambda: client.off("online"),
    }),
    "meeting": (meeting, {
        "name": lambda: meeting.name,
        "captions": lambda: meeting.captions,
        "joined": lambda: meeting.joined,
        "last_error": lambda: meeting.last_error,
        "join": lambda: meeting.join(given["join"]),
        "leave": meeting.leave,
        "connect": meeting.connect,
        "update_locus": lambda: meeting.update_locus(given["join"]["locus"]),
        "update_roles": lambda: meeting.update_roles(["PANELIST"]),
        "update_practice_session": lambda: meeting.update_practice_session(True),
        "admit": meeting.admit,
        "unadmit": meeting.unadmit,
        "request_practice_session": lambda: meeting.request_practice_session(True),
        "wait_online": meeting.wait_online,
        "on": lambda: meeting.on("online", print),
        "once": lambda: meeting.once("online", print),
        "off": lambda: meeting.off("online"),
    }),
    "captions": (captions, {
        "announce": captions.announce,
        "announce_state": lambda: captions.announce_state,
        "wait_languages": captions.wait_languages,
        "languages": lambda: captions.languages,
        "state": lambda: captions.state,
        "turn_on": captions.turn_on,
        "turn_off": captions.turn_off,
        "subscribe": captions.subscribe,
        "transcripts": captions.transcripts,
        "language": lambda: captions.language,
        "request_language": lambda: captions.request_language("de"),
        "set_spoken_language": lambda: captions.set_spoken_language("de"),
        "set_transcribing": lambda: captions.set_transcribing(True),
        "set_manual": lambda: captions.set_manual(True),
    }),
    "transcripts": (lines, {
        "next": lambda: next(lines),
        "close": lines.close,
        "put": lambda: None,  # of the meeting's own thread, which the child does not have
        "end": lines.end,
        "dropped": lambda: lines.dropped,
    }),
    "device": (device, {
        "url": device.url,
        "device_url": lambda: device.device_url,
        "bind": lambda: device.bind(tokens),
        "resolve": device.url,  # what it does first
        "rejected": lambda: None,  # only its own pool calls it
        "distrust": lambda: device.distrust(device.device_url, RuntimeError()),
        "close": device.close,
    }),
    "tokens": (tokens, {
        "get": tokens.get,
        "refresh": lambda: tokens.refresh("token"),
        "set_refresh_token": lambda: tokens.set_refresh_token("next"),
        "close": tokens.close,
    }),
}

for kind, (thing, calls) in EVERYTHING.items():
    assert names(thing) <= set(calls), (kind, names(thing) - set(calls))
"""

# What need not raise: it looks at what was, or has nothing to do in a child.
LOOKS = {
    "pool": "name",
    "session": "id state online url last_error time_offset latency",
    "messages": "dropped",
    "client": "pool",
    "meeting": "name captions joined last_error",
    "captions": "announce_state languages state language",
    "transcripts": "dropped",
    "device": "device_url",
}
NOTHING_TO_DO = {
    "pool": "close part",
    "messages": "close",
    "client": "close",
    "meeting": "leave",
    "transcripts": "close end put",
    "device": "close rejected",
    "tokens": "close",
}
REFUSAL = {"device": "ConfigurationError", "tokens": "ConfigurationError"}  # of others: PoolClosed

EVERY_CALL = """
def child():
    lose_every_lock()
    for thing, _ in EVERYTHING.values():
        assert repr(thing)
    return {
        f"{kind}.{name}": outcome(call)
        for kind, (_, calls) in EVERYTHING.items()
        for name, call in calls.items()
    }

before = {name: one.state.value for name, one in pool.sessions().items()}
say(fork(child))
hear()
assert {name: one.state.value for name, one in pool.sessions().items()} == before
session.send({"id": "1", "type": "from the parent"})
meeting.leave()
client.close()
device.close()
"""


PLAIN = pytest.mark.parametrize("tls", [False], ids=["plain"])


def expected(call: str) -> set[str]:
    kind, _, name = call.partition(".")
    if name in LOOKS.get(kind, "").split():
        return {"returned", "returned None"}
    if name in NOTHING_TO_DO.get(kind, "").split():
        return {"returned", "returned None"}
    return {REFUSAL.get(kind, "PoolClosed")}


@pytest.fixture
def outcomes(server: LocalServer, script: Start) -> dict[str, str]:
    """What each call in a child ended with, while the parent looks on."""
    CaptionService(server)
    with script(server, IN_CHILD + EVERYTHING + EVERY_CALL) as process:
        status, found = process.says()
        assert status == 0
        # The child is gone, and the server has not heard of it.
        live = server.live()
        assert [one.session for one in live] == ["default"]
        assert not any(one["type"] == "from the child" for one in live[0].received)
        process.ends()
    server.wait_for(lambda: live[0].closed_at is not None)
    assert any(one["type"] == "from the parent" for one in live[0].received)
    assert (live[0].close_code, live[0].close_reason) == (3050, "done (permanent)")
    assert len(server.connections()) == 1
    return dict(found)


@PLAIN
def test_t7_d22_a_child_is_refused_by_every_call_whatever_was_locked(outcomes: dict[str, str]) -> None:
    wrong = {call: found for call, found in outcomes.items() if found not in expected(call)}
    assert wrong == {}
    assert len(outcomes) > 100


PRELOADED = """
pool = make_pool()
session = pool.connect(url("parent"), "parent")
heard = []
session.on("event:relay.event", lambda envelope: heard.append(envelope.data["text"]))

def child(number):
    try:
        session.send({"type": "from the child"})
    except PoolClosed as exc:
        said = str(exc)
    own = make_pool()
    messages = own.session("own").messages()
    own.connect(url(f"child-{number}"), "own")
    for envelope in messages:
        if envelope.event_type == "relay.event":
            break
    own.close()
    return said

children = [fork(lambda number=number: child(number)) for number in range(2)]
say(children)
hear()
"""


def test_t7_d22_workers_forked_after_a_preload_work_with_pools_of_their_own(
    server: LocalServer, script: Start
) -> None:
    """The shape of a server that loads the application, with its pool, before it forks its workers."""

    @server.on_message
    def publish(connection: Any, message: dict[str, Any]) -> None:
        if message["type"] == "ping" and connection.session.startswith("child"):
            connection.send_json({"id": "e", "data": {"eventType": "relay.event", "text": "hello"}})

    with script(server, IN_CHILD + PRELOADED) as process:
        for status, said in process.says():
            assert status == 0
            assert "forked" in said and "make a new one" in said
        [parent] = server.connections("parent")
        assert parent.open
        for number in range(2):
            [child] = server.connections(f"child-{number}")
            assert (child.close_code, child.close_reason) == (1000, "Done")
        process.ends()
    server.wait_for(lambda: parent.closed_at is not None)
    assert parent.close_code == 1000
    assert not any(one["type"] == "from the child" for one in parent.received)


LEFT_ALONE = """
pool = make_pool()
pool.connect(url("parent"), "parent")
say(fork(lambda: "did nothing"))
hear()
"""


def test_t7_d22_a_child_that_does_nothing_exits_cleanly_and_closes_nothing(
    server: LocalServer, script: Start
) -> None:
    with script(server, IN_CHILD + LEFT_ALONE) as process:
        assert process.says() == [0, "did nothing"]
        [parent] = server.connections("parent")
        assert parent.open  # also after the child's exit handlers
        process.ends()
    server.wait_for(lambda: parent.closed_at is not None)
    assert parent.close_code == 1000


IN_A_CALLBACK = """
pool = make_pool()
session = pool.connect(url("parent"), "parent")
heard, again, children = [], threading.Event(), []

def callback(envelope):
    heard.append(envelope.data["n"])
    if envelope.data["n"] == 0:
        if given["blocks"]:
            again.wait()  # until the socket has got another reader
        children.append(os.fork())
        if children[-1] == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)  # it hangs
    if envelope.data["n"] == 2:
        say(os.getpid())

session.on("event:relay.event", callback)
say("online")
if given["blocks"]:
    hear()
    again.set()
hear()
status = os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1])
session.send({"type": "from the parent"})
say([status, heard])
hear()
"""


@pytest.mark.parametrize("blocks", [False, True])
def test_t7_a_child_that_comes_back_from_the_callback_ends_and_touches_nothing(
    server: LocalServer, script: Start, blocks: bool
) -> None:
    """Its only thread is the reader that was lent. What is queued is the parent's, as is the socket."""
    code = IN_CHILD + f"given['blocks'] = {blocks}\n" + IN_A_CALLBACK
    with script(server, code) as process:
        assert process.says() == "online"
        [connection] = server.wait_live("parent")
        sent = [server.publish({"n": number})["id"] for number in range(3)]
        if blocks:
            server.wait_for(lambda: set(sent) <= set(connection.acks))
            process.tell()
        assert process.says() == process.pid, "the child delivers what is the parent's"
        process.tell()
        assert process.says() == [0, [0, 1, 2]]
        server.wait_for(lambda: {"type": "from the parent"} in connection.received)
        assert connection.open
        process.ends()
    server.wait_for(lambda: connection.closed_at is not None)
    assert connection.close_code == 1000


LOCKED = """
pool = make_pool()
session = pool.connect(url("parent"), "parent")
locked, forked = threading.Event(), threading.Event()

def hold():
    with session._machine._lock:
        locked.set()
        forked.wait()

def callback(envelope):
    threading.Thread(target=hold).start()
    locked.wait()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(5)  # it hangs
        return
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    forked.set()
    say(status)

session.on("event:relay.event", callback)
say("online")
hear()
"""


@PLAIN
def test_t7_a_child_that_comes_back_from_the_callback_takes_no_lock(
    server: LocalServer, script: Start
) -> None:
    """Nor the session's, with which a connector says that it has ended: its thread is the reader by now."""
    with script(server, IN_CHILD + LOCKED) as process:
        assert process.says() == "online"
        server.wait_live("parent")
        server.publish()
        assert process.says() == 0, "it waits for a thread of the parent"
        process.ends()
