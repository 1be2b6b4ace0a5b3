"""D19: a peer that takes nothing. (Whole messages of many threads are with T8.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_sessions import ConnectionLost, ConnectionPool, NotOnline
from llm_sessions.testing.proxy import FaultProxy
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, Background, Recorder, eventually

MakePool = Callable[..., ConnectionPool]

HUGE = "x" * (16 << 20)  # more than the kernels' buffers take on the way


def waiting_senders(pool: ConnectionPool, name: str) -> int:
    """Return how many threads wait for the session's socket to take their message; nothing public does."""
    link: Any = pool._get(name)[1].active
    return 0 if link is None else len(link._stream._pollers)


def talks(server: LocalServer, pool: ConnectionPool, key: str, recorder: Recorder, text: str) -> None:
    """Send and receive one message on a session, and see the ack of it."""
    pool.session(key).send({"type": "note", "text": text})
    [connection] = server.live(key)
    published = server.publish({"text": text}, session=key)
    server.wait_for(
        lambda: {"type": "note", "text": text} in connection.received and published["id"] in connection.acks
    )
    eventually(lambda: published["id"] in [one.id for one in recorder.payloads("event:relay.event")])


def test_t9_d19_a_send_that_times_out_costs_its_socket_and_no_other(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool(send_timeout=0.5)
    recorders = {}
    with FaultProxy(server) as proxy:
        for name in ("blocked", "other"):
            recorders[name] = Recorder()
            url = server.url(name)
            session = pool.connect(proxy.url(url) if name == "blocked" else url, name)
            recorders[name].listen(session, "online", "offline", "offline.transient", "event:relay.event")
        [first] = server.wait_live("blocked")
        talks(server, pool, "blocked", recorders["blocked"], "before")
        proxy.black_hole(stop_reading=True, direction="to_server", on=proxy.live())
        server.hold_upgrades("blocked")  # or a late sender would find the next socket
        blocked = pool.session("blocked")
        senders = [Background(lambda: blocked.send({"type": "huge", "text": HUGE}))]
        eventually(lambda: waiting_senders(pool, "blocked") == 1 or senders[0].done)
        senders += [Background(lambda n=n: blocked.send({"type": "behind", "n": n})) for n in range(3)]  # type: ignore[misc]
        talks(server, pool, "other", recorders["other"], "meanwhile")
        errors = [sender.error() for sender in senders]
        assert isinstance(errors[0], ConnectionLost), errors
        assert all(isinstance(error, (ConnectionLost, NotOnline)) for error in errors), errors

        server.release_upgrades("blocked")
        recorders["blocked"].wait("online")
        server.wait_live("blocked")
        proxy.heal()
        server.wait_for(lambda: first.closed_at is not None)
        # After half a frame there was nothing more, neither a message nor a close frame.
        assert {message["type"] for message in first.received}.isdisjoint({"huge", "behind"})
        assert first.close_code == 1006
        talks(server, pool, "blocked", recorders["blocked"], "after")
        talks(server, pool, "other", recorders["other"], "after")
        names = [name for name in recorders["blocked"].names if name != "event:relay.event"]
        assert names == ["offline", "offline.transient", "online"]
        assert recorders["blocked"].payloads("offline")[0].code == 1006
        assert set(recorders["other"].names) == {"event:relay.event"}
        assert (len(server.connections("blocked")), len(server.connections("other"))) == (2, 1)
        pool.close()


def test_t14_d19_a_stalled_sender_holds_up_nobody(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(send_timeout=LONG)
    stalled = pool.connect(server.url("stalled"), "stalled")
    recorders = {
        name: Recorder().listen(pool, "event:relay.event", "offline", session_id=name)
        for name in ("stalled", "other", "later")
    }
    pool.connect(server.url("other"), "other")
    [connection] = server.wait_live("stalled")
    server.stall_reads("stalled")
    sending = Background(lambda: stalled.send({"type": "huge", "text": HUGE}))
    eventually(lambda: waiting_senders(pool, "stalled") == 1, "the sender did not get stuck")

    sent = [server.publish({"n": n}, session="stalled")["id"] for n in range(100)]
    received = recorders["stalled"].wait("event:relay.event", 100)
    assert [envelope.id for envelope in received] == sent
    talks(server, pool, "other", recorders["other"], "meanwhile")
    pool.connect(server.url("later"), "later")
    server.wait_live("later")
    talks(server, pool, "later", recorders["later"], "meanwhile")
    pool.disconnect("later")
    assert not sending.done
    assert set(sent).isdisjoint(connection.acks)

    server.resume_reads("stalled")
    sending.result()
    server.wait_for(lambda: set(sent) <= set(connection.acks))
    assert [ack for ack in connection.acks if ack in sent] == sent
    types = [message["type"] for message in connection.received]
    assert types.index("huge") < types.index("ack", types.index("huge"))
    assert recorders["stalled"].payloads("offline") == recorders["other"].payloads("offline") == []
    assert stalled.online and len(server.connections("stalled")) == 1
