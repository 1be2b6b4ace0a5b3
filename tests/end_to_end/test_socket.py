"""INVARIANTS, Socket: what one session's socket does on the wire, against a LocalServer, plain and TLS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import (
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    ConnectionPool,
    Offline,
    SequenceMismatch,
    SessionState,
)
from llm_sessions.testing.server import LocalServer
from tests.support import Background, Recorder, descriptors, eventually, library_threads

MakePool = Callable[..., ConnectionPool]


def client_threads() -> list[str]:
    """Return the kinds of the library's own threads, the server's left out."""
    return sorted(t.name.partition("[")[0] for t in library_threads() if not t.name.startswith("llm-server"))


# -- I1, I2: until ready -------------------------------------------------------------------------------------


def test_i1_frames_before_ready_are_delivered_before_online(
    server: LocalServer, pool: ConnectionPool
) -> None:
    server.withhold_ready()
    recorder = Recorder().listen(pool, "online", "event")
    call = Background(lambda: pool.connect(server.url()))
    [connection] = server.wait_live()
    early = server.publish({"n": 1})
    assert recorder.wait("event")[0].id == early["id"]
    assert not call.done
    server.release_ready()
    session = call.result()
    assert session.online
    ready = recorder.wait("event", 2)[1]
    assert ready.event_type == "mercury.buffer_state"
    assert recorder.names == ["event", "online", "event"]
    server.wait_for(lambda: {early["id"], ready.id} <= set(connection.acks))


def test_i1_the_wait_for_ready_is_bounded(server: LocalServer, make_pool: MakePool) -> None:
    server.withhold_ready()
    pool = make_pool(open_timeout=0.7, initial_max_retries=0)
    with pytest.raises(ConnectError, match=f"127.0.0.1:{server.port}"):
        pool.connect(server.url())
    assert pool.session().state is SessionState.OFFLINE
    assert len(server.connections()) == 1


def test_i1_the_first_frame_authorizes_and_the_first_ping_follows_ready(
    server: LocalServer, make_pool: MakePool
) -> None:
    make_pool("a-token").connect(server.url())
    [connection] = server.wait_live()
    server.wait_for(lambda: bool(connection.pings))
    assert connection.token == "a-token"
    assert [message["type"] for message in connection.received[:3]] in (
        ["authorization", "ack", "ping"],
        ["authorization", "ping", "ack"],
    )


def test_i2_a_disconnect_settles_a_pending_open(server: LocalServer, pool: ConnectionPool) -> None:
    server.withhold_ready()
    call = Background(lambda: pool.connect(server.url()))
    server.wait_live()
    pool.disconnect()
    assert isinstance(call.error(), ConnectCancelled)
    assert pool.session().state is SessionState.IDLE
    server.release_ready()
    server.wait_for(lambda: not server.live())
    assert pool.session().state is SessionState.IDLE


# -- I3, I4, I5: closing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "sent", "reported"),
    [
        ({}, (1000, "Done"), (1000, "Done (forced)")),
        ({"reason": "bye"}, (1000, "bye"), (1000, "Done (forced)")),
        ({"code": 3050, "reason": "bye"}, (3050, "bye"), (3050, "bye")),
        ({"code": 3050}, (3050, "Done"), (3050, "Done (unknown)")),
    ],
    ids=["nothing", "reason", "code+reason", "code"],
)
def test_i3_a_forced_close_is_reported_as_asked(
    server: LocalServer,
    make_pool: MakePool,
    asked: dict[str, Any],
    sent: tuple[int, str],
    reported: tuple[int, str],
) -> None:
    server.ignore_close()
    pool = make_pool(force_close_delay=0.1)
    recorder = Recorder().listen(pool)
    pool.connect(server.url())
    pool.disconnect(**asked)
    recorder.wait("disconnected")
    names = [name for name in recorder.names if name.startswith("offline")]
    assert names == ["offline", "offline.permanent"]
    offline = Offline(pool.session().id, *reported)
    assert recorder.payloads("offline") == recorder.payloads("offline.permanent") == [offline]
    [connection] = server.connections()
    assert (connection.close_code, connection.close_reason) == sent


def test_i4_disconnect_all_treats_sessions_alike_and_keeps_the_options(
    server: LocalServer, make_pool: MakePool
) -> None:
    server.ignore_close()
    pool = make_pool(force_close_delay=0.1)
    options: dict[str, Any] = {"reason": "bye"}
    recorders = {name: Recorder().listen(pool, "offline", session_id=name) for name in ("a", "b")}
    for cycle in (1, 2):
        for name in recorders:
            pool.connect(server.url(name), name)
        pool.disconnect_all(**options)
        for name, recorder in recorders.items():
            assert recorder.wait("offline", cycle) == [Offline(name, 1000, "Done (forced)")] * cycle
        assert [(c.close_code, c.close_reason) for c in server.connections()] == [(1000, "bye")] * 2 * cycle
    assert options == {"reason": "bye"}


@pytest.mark.parametrize(
    "asked",
    [{"code": code} for code in (0, 999, 1001, 1005, 1006, 1011, 2999, 5000, -1, True, "1000")]
    + [{"reason": "r" * 124}, {"reason": "ä" * 62}, {"reason": b"bye"}, {"code": 3050, "reason": "\ud800"}],
    ids=str,
)
def test_i5_a_bad_close_is_refused_before_anything_changes(
    server: LocalServer, pool: ConnectionPool, asked: dict[str, Any]
) -> None:
    session = pool.connect(server.url())
    recorder = Recorder().listen(session)
    for call in (pool.disconnect, pool.disconnect_all, session.disconnect):
        with pytest.raises(ConfigurationError):
            call(**asked)
        assert session.online
    session.send({"type": "still here"})
    [connection] = server.wait_live()
    server.wait_for(lambda: {"type": "still here"} in connection.received)
    assert not [name for name in recorder.names if name.startswith(("offline", "disconnected"))]


# -- I6, I7, I8: what comes in -------------------------------------------------------------------------------


def test_i6_d18_no_id_means_no_ack_and_no_error(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder().listen(pool, "event:a.b")
    pool.connect(server.url())
    [connection] = server.wait_live()
    server.send_json({"data": {"eventType": "a.b"}})
    assert recorder.wait("event:a.b")[0].id is None
    marker = server.publish(event_type="a.b")
    server.wait_for(lambda: marker["id"] in connection.acks)
    sent_ids = {message["id"] for message in connection.sent if "id" in message}
    assert set(connection.acks) <= sent_ids
    acks = [message for message in connection.received if message.get("type") == "ack"]
    assert all(set(ack) == {"messageId", "type"} for ack in acks)


def test_i7_d18_unnumbered_frames_do_not_touch_sequence_tracking(
    server: LocalServer, pool: ConnectionPool
) -> None:
    recorder = Recorder().listen(pool, "sequence-mismatch", "event:relay.event")
    session = pool.connect(server.url())
    for number in (1, False, 2):
        server.publish({"n": number}, sequence=number)
    recorder.wait("event:relay.event", 3)
    assert recorder.payloads("sequence-mismatch") == []
    server.publish(sequence=4)
    assert recorder.wait("sequence-mismatch") == [SequenceMismatch(session.id, 4, 3)]
    assert len(recorder.wait("event:relay.event", 4)) == 4
    server.publish(sequence=5)
    recorder.wait("event:relay.event", 5)
    assert len(recorder.payloads("sequence-mismatch")) == 1


def test_i7_tracking_is_per_socket(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder().listen(pool, "sequence-mismatch", "online", "event:relay.event")
    session = pool.connect(server.url())
    for number in (1, 3):
        server.publish(sequence=number)
    assert recorder.wait("sequence-mismatch") == [SequenceMismatch(session.id, 3, 2)]
    server.close_session(code=1001)
    recorder.wait("online", 2)
    server.wait_live()
    server.publish(sequence=1)
    recorder.wait("event:relay.event", 3)
    assert len(recorder.payloads("sequence-mismatch")) == 1


BAD_FRAMES: dict[str, Callable[[LocalServer], object]] = {
    "null": lambda server: server.send_text("null"),
    "list": lambda server: server.send_text("[]"),
    "number": lambda server: server.send_text("1"),
    "string": lambda server: server.send_text('"text"'),
    "empty": lambda server: server.send_text(""),
    "broken": lambda server: server.send_text("{"),
    "binary": lambda server: server.send_binary(b'{"data":{"eventType":"relay.event"}}'),
    "not-utf-8": lambda server: server.send_text(b'{"data":{"eventType":"relay.event","t":"\xff"}}'),
    "deep-list": lambda server: server.send_text('{"data":' + "[" * 10_000 + "]" * 10_000 + "}"),
    "deep-object": lambda server: server.send_text('{"a":' * 10_000 + "1" + "}" * 10_000),
    "unclosed-depth": lambda server: server.send_text("[" * 10_000),
    "too-large": lambda server: server.publish({"text": "x" * 65_000}),
}


@pytest.mark.parametrize("bad", BAD_FRAMES.values(), ids=BAD_FRAMES)
def test_i8_d18_a_bad_frame_is_dropped_and_the_socket_lives(
    server: LocalServer,
    make_pool: MakePool,
    caplog: pytest.LogCaptureFixture,
    bad: Callable[[LocalServer], object],
) -> None:
    pool = make_pool(max_message_bytes=64_000)
    recorder = Recorder().listen(pool, "event:relay.event")
    session = pool.connect(server.url())
    server.wait_live()
    bad(server)
    good = server.publish({"n": 1})
    [envelope] = recorder.wait("event:relay.event")
    assert envelope.id == good["id"]
    assert session.online and len(server.connections()) == 1
    assert [r.levelname for r in caplog.records if "dropped a message" in r.getMessage()] == ["WARNING"]


# -- I9: after the close -------------------------------------------------------------------------------------


def test_i9_nothing_happens_after_a_close(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(force_close_delay=0.2, ping_interval=0.02)
    recorder = Recorder()
    handles = descriptors()
    session = pool.connect(server.url())
    recorder.listen(session)
    [connection] = server.wait_live()
    server.ignore_close()
    server.mute()

    def unanswered() -> bool:
        answered = {message["id"] for message in list(connection.sent) if message.get("type") == "pong"}
        return bool(connection.pings) and connection.pings[-1] not in answered

    server.wait_for(unanswered)

    call = Background(pool.disconnect)
    server.wait_for(lambda: connection.close_code is not None)
    received = len(connection.received)
    connection.send_json({"type": "pong", "id": connection.pings[-1]})
    connection.send_json({"id": "late", "data": {"eventType": "a.b"}})
    connection.send_json({"type": "shutdown"})
    call.result()
    names = recorder.wait("disconnected") and recorder.names

    server.wait_for(lambda: connection.closed_at is not None)
    eventually(lambda: not client_threads(), "threads outlive the close")
    eventually(lambda: descriptors() <= handles, "descriptors outlive the close")
    assert recorder.names == names
    assert names[-3:] == ["offline", "offline.permanent", "disconnected"]
    assert "late" not in [envelope.id for envelope in recorder.payloads("event")]
    assert len(connection.received) == received
    assert len(server.connections()) == 1


# -- I10: keepalive ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mute_to_closes", [False, True], ids=["answers-close", "ignores-close"])
@pytest.mark.parametrize("fault", ["wrong_pong", "mute"])
def test_i10_d2_a_bad_pong_ends_in_offline_transient_and_a_reconnect(
    server: LocalServer, make_pool: MakePool, fault: str, mute_to_closes: bool
) -> None:
    pool = make_pool(ping_interval=0.1, pong_timeout=0.2, force_close_delay=0.1)
    recorder = Recorder().listen(pool)
    server.ignore_close(on=mute_to_closes)
    getattr(server, fault)()
    session = pool.connect(server.url())
    first = recorder.wait("offline.transient")[0]
    server.unmute()
    server.wrong_pong(on=False)
    reason = "Pong mismatch" if fault == "wrong_pong" else "Pong not received"
    assert first == Offline(session.id, 1000, reason)
    assert recorder.payloads("offline")[0] == first
    recorder.wait("online", 2)
    assert server.connections()[0].close_code == 1000
    assert server.connections()[0].close_reason == reason
    assert recorder.payloads("offline.permanent") == []
    recorder.wait("ping-pong-latency")


def test_i10_pings_go_on_while_the_server_answers(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(ping_interval=0.02)
    recorder = Recorder().listen(pool, "ping-pong-latency", "offline")
    session = pool.connect(server.url())
    latencies = recorder.wait("ping-pong-latency", 5)
    assert all(latency.seconds >= 0 for latency in latencies)
    assert session.latency is not None and session.latency >= 0
    assert session.time_offset is not None
    [connection] = server.live()
    assert len(set(connection.pings)) == len(connection.pings)
    assert recorder.payloads("offline") == []


def test_i10_a_pong_that_nobody_asked_for_is_ignored(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder().listen(pool, "ping-pong-latency", "event:relay.event", "offline")
    pool.connect(server.url())
    [connection] = server.wait_live()
    recorder.wait("ping-pong-latency")  # nothing is outstanding until ping_interval has passed
    connection.send_json({"type": "pong", "id": "stray"})
    server.publish()
    recorder.wait("event:relay.event")
    server.wait_for(lambda: "stray" in connection.acks)
    assert recorder.names == ["ping-pong-latency", "event:relay.event"]


# -- I11: reconnects add nothing -----------------------------------------------------------------------------


def test_i11_50_reconnects_add_no_handler_thread_or_descriptor(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool(backoff_initial=0.001, backoff_max=0.002)
    session = pool.connect(server.url())
    recorder = Recorder().listen(session, "online", "event:relay.event")
    server.wait_live()
    server.publish()
    recorder.wait("event:relay.event")
    eventually(lambda: client_threads() == ["llm-reader", "llm-watch"])
    handles = descriptors()
    for count in range(1, 51):
        server.close_session(code=1001)
        recorder.wait("online", count)
        server.wait_live()
    eventually(lambda: client_threads() == ["llm-reader", "llm-watch"], "threads grew")
    eventually(lambda: descriptors() <= handles, "descriptors grew")
    assert len(server.connections()) == 51
    server.publish()
    recorder.wait("event:relay.event", 2)
    marker = server.publish(event_type="relay.event")
    assert recorder.wait("event:relay.event", 3)[-1].id == marker["id"]
    assert len(recorder.payloads("event:relay.event")) == 3
    assert len(recorder.payloads("online")) == 50
