"""What connectors and readers report, and what a session makes of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import (
    ConnectCancelled,
    ConnectError,
    ConnectionLost,
    ConnectionPool,
    Envelope,
    Forbidden,
    LocalProtocolError,
    NotOnline,
    Offline,
    Replaced,
    Session,
    SwitchoverLoss,
    _fork,
)
from llm_sessions.connection.transport import Link
from llm_sessions.pool.served import read_by_this_thread, served_by_this_thread
from llm_sessions.protocol.mercury import (
    Dropped,
    EndCause,
    LatencyMeasured,
    SequenceGap,
)
from tests.pool.support import (
    COMPLETE,
    FAILED,
    GOODBYE,
    IMMINENT,
    PERMANENT,
    REPLACED,
    SHUTDOWN,
    TRANSIENT,
    URL,
    FakeWatch,
    Make,
    S,
    announce_shutdown,
    begin,
    held,
    hold,
    machine_of,
    no_connectors,
    nothing,
    read,
    refuse,
    switching,
    threads_but_dispatchers,
    waiting,
    watched,
)
from tests.support import (
    LONG,
    Background,
    FakeLink,
    Gate,
    Recorder,
    eventually,
    library_threads,
)

# -- PROTOCOL 2.2: what a close means ----------------------------------------------------------------------

CLOSES = [
    *[(code, "", TRANSIENT) for code in (1001, 1005, 1006, 1011)],
    *[
        (code, reason, TRANSIENT)
        for code in (1000, 3050)
        for reason in ("Idle", "done (forced)", "Pong not received", "pong mismatch")
    ],
    *[(code, reason, PERMANENT) for code in (1000, 3050) for reason in ("", "Done", "done (permanent)")],
    (4000, "Replaced", REPLACED),
    (4000, "", TRANSIENT),
    (4000, "other", TRANSIENT),
    (4001, "", PERMANENT),
    *[(code, "x", PERMANENT) for code in (1002, 1003, 1008, 1012, 3000, 4400, 4403, 4999)],
]


@pytest.mark.parametrize(("code", "reason", "event"), CLOSES)
def test_i30_d16_the_close_of_the_active_socket(make: Make, code: int, reason: str, event: str) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    transport.on_open = hold
    transport.links[0].end(code, reason)
    recorder.wait(event)
    assert recorder.names == ["offline", event]
    assert {payload for _, payload in recorder.calls} == {Offline(session.id, code, reason)}
    assert type(session.last_error) is (Replaced if event == REPLACED else ConnectionLost)
    if event == TRANSIENT:
        assert session.state is S.RECONNECTING
        held(transport, 2)[1].become_ready()
        recorder.wait("online")
        assert recorder.names == ["offline", event, "online"]
    else:
        no_connectors()  # the first run's may still be ending
        assert session.state is S.OFFLINE and not threads_but_dispatchers()
        assert len(transport.links) == 1
        with pytest.raises(NotOnline):
            session.send({})


@pytest.mark.parametrize(("code", "reason", "event"), [*CLOSES, (4401, "", TRANSIENT)])
def test_i29_d16_the_close_of_a_retired_socket(make: Make, code: int, reason: str, event: str) -> None:
    pool, transport = make(retire_timeout=7)
    session = pool.connect(URL)
    old = transport.links[0]
    announce_shutdown(old)
    eventually(lambda: old.retired is not None)
    assert old.retired == 7 and len(transport.links) == 2
    assert session.state is S.ONLINE
    recorder = Recorder().listen(session)
    old.end(code, reason)
    old.owner.link_received(transport.links[1], [{"id": "after"}])
    recorder.wait("event")
    assert recorder.names == ([REPLACED] if code == 4001 else []) + ["event"]
    assert session.state is S.ONLINE and session.last_error is None and len(transport.links) == 2
    session.send("x")
    assert transport.links[1].sent == [b"x"]


def test_what_a_retired_socket_may_not_have_brought_is_announced(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    old = transport.links[0]
    announce_shutdown(old)
    eventually(lambda: old.retired is not None)
    recorder = Recorder().listen(session)
    old.end(1006, "gone", EndCause.LOST, missed=True)
    recorder.wait("switchover-loss")
    assert recorder.calls == [("switchover-loss", SwitchoverLoss(session.id, 1006, "gone"))]
    assert session.state is S.ONLINE and session.last_error is None
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.getMessage().endswith(
        "a replaced socket ended with 1006 gone, and may have had more to bring"
    )


def test_i32_one_sessions_end_is_not_anothers(make: Make) -> None:
    pool, transport = make()
    pool.connect(URL)
    other = pool.connect(URL, "practice")
    transport.links[0].end(1003)
    assert not pool.is_online() and pool.is_online("practice") and pool.any_online
    other.send("x")
    transport.links[1].end(1003)
    assert not pool.any_online


# -- switchover --------------------------------------------------------------------------------------------


def test_i19_i20_i21_the_candidate_takes_over_when_ready(make: Make) -> None:
    _, transport, session, recorder = switching(make)
    old, new = transport.links
    session.send("to the old one")
    old.owner.link_received(old, [{"id": "1"}])
    new.owner.link_received(new, [{"id": "2"}])  # before ready: tolerated and delivered
    assert session.online and session.latency is None
    new.become_ready()
    assert session.state is S.ONLINE
    session.send("to the new one")
    assert old.sent == [b"to the old one"] and new.sent == [b"to the new one"]
    old.owner.link_received(old, [{"id": "3"}])
    recorder.wait("event", 3)
    assert recorder.names == [IMMINENT, "event", "event", COMPLETE, "event"]
    assert recorder.payloads(IMMINENT)[0].envelope.raw == {"type": "shutdown"}
    assert recorder.payloads(COMPLETE)[0].url == URL
    old.end(4001)
    new.end(1006)
    recorder.wait("offline.transient")
    assert recorder.names[5:] == ["offline.replaced", "offline", "offline.transient"]


def test_i23_a_second_shutdown_is_ignored_and_sessions_switch_alone(make: Make) -> None:
    pool, transport, _, recorder = switching(make)
    announce_shutdown(transport.links[0])
    transport.on_open = FakeLink.become_ready
    other = pool.connect(URL, "other")
    announce_shutdown(transport.links[2])
    eventually(lambda: other.state is S.ONLINE and len(transport.links) == 4)
    transport.links[1].become_ready()
    announce_shutdown(transport.links[0])  # on the retired one
    recorder.wait(COMPLETE)
    assert recorder.names == [IMMINENT, COMPLETE] and len(transport.links) == 4


def test_i24_the_candidate_uses_the_sessions_own_url(make: Make) -> None:
    pool, transport = make()
    pool.connect(f"{URL}?subscriptionAwareSubchannels=transcription")
    announce_shutdown(transport.links[0])
    assert "subscriptionAwareSubchannels=transcription" in transport.wait_links(2)[1].request.url


@pytest.mark.parametrize(("code", "state"), [(1006, S.RECONNECTING), (4001, S.OFFLINE)])
def test_i22_d17_after_a_failed_switchover_the_old_socket_is_active_again(
    make: Make, code: int, state: S
) -> None:
    _, transport, session, recorder = switching(make, max_retries=0)
    transport.links[1].end(1006)
    (payload,) = recorder.wait(FAILED)
    assert session.state is S.ONLINE and isinstance(payload.reason, ConnectError)
    session.send("x")
    assert transport.links[0].sent == [b"x"] and transport.links[0].retired is None
    transport.links[0].end(code)
    assert session.state is state
    recorder.wait("offline.transient" if code == 1006 else "offline.permanent")
    if code == 1006:
        held(transport, 3)[2].become_ready()
        recorder.wait("online")


def test_i98_4001_of_the_old_one_is_kept_until_the_candidate_is_ready(make: Make) -> None:
    _, transport, session, recorder = switching(make)
    transport.links[0].end(4001, "moved")
    assert session.state is S.SWITCHING
    with pytest.raises(NotOnline):
        session.send("x")
    transport.links[1].become_ready()
    recorder.wait("offline.replaced")
    assert recorder.names == [IMMINENT, COMPLETE, "offline.replaced"]
    assert recorder.payloads("offline.replaced") == [Offline(session.id, 4001, "moved")]
    assert session.state is S.ONLINE


def test_i98_4001_of_the_old_one_is_judged_when_the_candidate_fails(make: Make) -> None:
    _, transport, session, recorder = switching(make, max_retries=0)
    transport.links[0].end(4001)
    transport.links[1].end(1006)
    recorder.wait("offline.permanent")
    assert recorder.names == [IMMINENT, FAILED, "offline", "offline.permanent"]
    assert session.state is S.OFFLINE and session.last_error.code == 4001  # type: ignore[union-attr]


@pytest.mark.parametrize("code", [1006, 4401])
def test_i98_a_transient_loss_turns_the_candidate_into_the_reconnect(make: Make, code: int) -> None:
    pool, transport, session, recorder = switching(make)
    transport.links[0].end(code)
    assert session.state is S.RECONNECTING
    call = Background(lambda: pool.connect(URL))
    waiting(session, 1)
    transport.links[1].become_ready()
    assert call.result() is session
    recorder.wait("online")
    assert recorder.names == [IMMINENT, "offline", "offline.transient", "online"]
    assert len(transport.links) == 2


def test_i98_a_candidate_that_became_the_reconnect_may_fail_for_good(make: Make) -> None:
    _, transport, session, recorder = switching(make)
    transport.links[0].end(1006)
    transport.links[1].end(4403)
    recorder.wait("offline.permanent")
    assert recorder.names == [IMMINENT, "offline", "offline.transient", "offline.permanent"]
    assert isinstance(session.last_error, Forbidden) and session.state is S.OFFLINE


@pytest.mark.parametrize(("code", "reason", "event"), [(1003, "", PERMANENT), (4000, "replaced", REPLACED)])
def test_i98_another_close_of_the_old_one_cancels_the_candidate(
    make: Make, code: int, reason: str, event: str
) -> None:
    _, transport, session, recorder = switching(make)
    transport.links[0].end(code, reason)
    assert session.state is S.OFFLINE and transport.links[1].aborted.is_set()
    transport.links[1].become_ready()  # too late: never published
    recorder.wait(event)
    assert recorder.names == [IMMINENT, "offline", event] and session.state is S.OFFLINE
    no_connectors()


def test_i25_disconnect_ends_candidate_and_old(make: Make) -> None:
    pool, transport, session, recorder = switching(make)
    pool.disconnect(code=3050, reason="bye")
    old, new = transport.links
    assert old.closes == [(3050, "bye")] and new.aborted.is_set() and new.closes == []
    new.become_ready()
    recorder.wait("disconnected")
    assert recorder.names == [IMMINENT, *GOODBYE] and session.state is S.IDLE
    no_connectors()
    assert len(transport.links) == 2


def test_a_message_of_a_link_that_was_let_go_is_dropped_and_aborts_it_before_it_is_acknowledged(
    make: Make,
) -> None:
    """The disconnect has let go of it; its abort may still be to come when the reader reports."""
    pool, transport = make()
    transport.on_open = hold
    pool.begin_connect(URL)
    link = held(transport, 1)[0]
    recorder = Recorder().listen(pool.session(), "event")
    pool.disconnect()
    assert link.aborted.is_set()
    link.aborted.clear()
    assert messages(link, "unheard")() is True
    assert link.aborted.is_set() and recorder.calls == []


def test_i25_disconnect_waits_for_a_retired_socket_too(make: Make) -> None:
    pool, transport, session, _ = switching(make)
    transport.links[1].become_ready()
    transport.on_close = nothing
    call = Background(pool.disconnect)
    eventually(lambda: all(link.closes for link in transport.links))
    transport.links[1].end(1000)
    assert session.state is S.DISCONNECTING
    transport.links[0].end(4001)
    call.result()
    assert session.state is S.IDLE


@pytest.mark.parametrize(
    ("end", "first"),
    [("never", 0), ("never", 1), ("after ready", 0), ("after ready", 1), ("before ready", 0)],
)
def test_i99_what_both_sockets_bring_is_delivered_once(make: Make, end: str, first: int) -> None:
    """Two readers have no order: the second copy may be read after the old socket's close was."""
    _, transport, session, recorder = switching(make)
    old, new = transport.links
    if end != "before ready":
        new.become_ready()
    one, other = (old, new) if first == 0 else (new, old)
    one.owner.link_received(one, [{"id": "a"}, {"id": "b"}, {"id": "b"}, {"id": 5}, {}])
    if first == 1:
        other.owner.link_received(other, [{"id": "b"}, {"id": "c"}])
    if end != "never":
        old.end(4001)
    if end == "before ready":
        new.become_ready()
    if first == 0:
        other.owner.link_received(other, [{"id": "b"}, {"id": "c"}])
    new.owner.link_received(new, [{"id": "c"}, {"id": 5}, {}, {"id": "last"}])
    eventually(lambda: recorder.payloads("event") and recorder.payloads("event")[-1].id == "last")
    ids = [envelope.id for envelope in recorder.payloads("event")]
    # A repeat on one socket is the server's business, and so is what has no id to know it by.
    again: list[object] = ["c", None] if first == 0 else [5, None]
    assert ids == ["a", "b", "b", 5, None, "c", *again, "last"]
    assert session.online


def test_i99_ids_are_remembered_while_it_can_matter_and_not_without_end(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_sessions.pool.reports._MAX_REMEMBERED", 10)
    _, transport, session, recorder = switching(make, max_retries=0)
    machine = machine_of(session)
    old, new = transport.links
    old.owner.link_received(old, [{"id": str(number)} for number in range(25)])
    assert list(machine._brought_by or ()) == [str(number) for number in range(15, 25)]
    new.end(1006)
    recorder.wait(FAILED)
    assert machine._brought_by is None, "there was no second socket after all"
    announce_shutdown(old)
    held(transport, 3)[2].become_ready()
    old.end(4001)
    new = transport.links[2]
    new.owner.link_received(new, [{"id": "x"}])
    assert "x" not in (machine._brought_by or ())
    new.end(1006)
    held(transport, 4)[3].become_ready()
    assert machine._brought_by is None


def bring(link: FakeLink, *ids: str) -> None:
    link.owner.link_received(link, [{"id": identity} for identity in ids])


@pytest.mark.parametrize("outcome", ["under way", "failed"])
def test_i99_a_second_announcement_forgets_nothing_of_a_socket_that_is_gone(make: Make, outcome: str) -> None:
    """The old socket ended, the new one is to be replaced, too, and its copies are still unread."""
    _, transport, session, recorder = switching(make, max_retries=0)
    old, new = transport.links
    new.become_ready()
    bring(old, "a", "b")
    old.end(1006)
    announce_shutdown(new)
    third = held(transport, 3)[2]
    if outcome == "failed":
        third.end(1006)
        recorder.wait(FAILED)
    bring(new, "a", "b", "c")
    if outcome == "under way":
        third.become_ready()
        bring(third, "a", "c")  # it cannot be the same one: when it came, this socket was not there yet
    bring(new, "last")
    eventually(lambda: recorder.payloads("event") and recorder.payloads("event")[-1].id == "last")
    ids = [envelope.id for envelope in recorder.payloads("event")]
    assert ids == (["a", "b", "c", "a", "last"] if outcome == "under way" else ["a", "b", "c", "last"])
    assert session.online


def test_i99_a_replaced_socket_repeats_nothing_after_a_reconnect(make: Make) -> None:
    """The reconnect forgot what the replaced socket had brought, while that lived on beside the new one."""
    _, transport, session, recorder = switching(make)
    old, new = transport.links
    new.become_ready()
    bring(new, "a")
    transport.on_open = FakeLink.become_ready
    new.end(1006)
    recorder.wait("online")
    third = transport.wait_links(3)[2]
    bring(third, "b")
    bring(old, "a", "b", "c")
    bring(third, "c", "last")
    eventually(lambda: recorder.payloads("event") and recorder.payloads("event")[-1].id == "last")
    assert [envelope.id for envelope in recorder.payloads("event")] == ["a", "b", "c", "last"]
    assert session.stats().repeated == 3


def test_i99_a_candidate_that_became_the_reconnect_repeats_nothing(make: Make) -> None:
    """Its copy of what the lost socket had brought may be read right behind its ready event."""
    _, transport, session, recorder = switching(make)
    old, new = transport.links
    bring(old, "a")
    old.end(1006)
    assert session.state is S.RECONNECTING
    new.become_ready()
    bring(new, "a", "last")
    eventually(lambda: recorder.payloads("event") and recorder.payloads("event")[-1].id == "last")
    assert [envelope.id for envelope in recorder.payloads("event")] == ["a", "last"]


@pytest.mark.parametrize("outcome", ["failed", "switched"])
def test_i99_a_second_switchover_forgets_nothing_of_the_first(make: Make, outcome: str) -> None:
    """While the socket that the first one replaced still brings its copies."""
    _, transport, session, recorder = switching(make, max_retries=0)
    old, new = transport.links
    new.become_ready()
    bring(new, "a")
    announce_shutdown(new)
    third = held(transport, 3)[2]
    bring(old, "a")
    if outcome == "failed":
        third.end(1006)
        recorder.wait(FAILED)
    else:
        third.become_ready()
        recorder.wait(COMPLETE, 2)
    bring(new, "b")
    bring(old, "b")  # closed by now, if the second one succeeded
    bring(new, "last")
    eventually(lambda: recorder.payloads("event") and recorder.payloads("event")[-1].id == "last")
    assert [envelope.id for envelope in recorder.payloads("event")] == ["a", "b", "last"]
    assert session.online


@pytest.mark.parametrize("how", ["ended", "gave up"])
def test_i25_a_session_that_ended_keeps_no_retired_socket(make: Make, how: str) -> None:
    """OFFLINE kept it: disconnect and close had nothing to wait for, and its reader stayed."""
    pool, transport, session, _ = switching(make)
    old, new = transport.links
    new.become_ready()
    if how == "ended":
        new.end(1003)
    else:
        transport.on_open = lambda link: link.end(4403)
        new.end(1006)
        eventually(lambda: session.state is S.OFFLINE)
    assert session.state is S.OFFLINE and machine_of(session)._links == {}
    assert old.aborted.wait(LONG)  # an effect of the connector's thread, after the state has changed
    recorder = Recorder().listen(session, REPLACED)
    old.end(4001)
    pool.disconnect()
    assert recorder.names == []


def test_a_switchover_of_a_long_lived_session_counts_and_waits_anew(make: Make, waits: list[float]) -> None:
    """Failures before a session came online were counted against its switchover hours later."""
    pool, transport = make(backoff_initial=1, backoff_max=8, max_retries=2)
    now = [0.0]
    pool._env.clock = lambda: now[0]
    left = [refuse] * 4
    transport.on_open = lambda link: (left.pop() if left else FakeLink.become_ready)(link)
    session = pool.connect(URL)
    assert waits == [1, 2, 4, 8]
    now[0] += 8
    recorder = Recorder().listen(session)
    left.extend([refuse] * 2)
    announce_shutdown(transport.links[-1])
    recorder.wait(COMPLETE)
    assert waits[4:] == [1, 2]


# -- stale and odd reports ---------------------------------------------------------------------------------


def test_reports_of_a_socket_that_was_given_up_change_nothing(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    (old,) = transport.links
    pool.disconnect()
    pool.connect(URL)
    recorder.wait("online")
    before = list(recorder.names)
    old.owner.link_ready(old)
    assert old.owner.link_received(old, [{"id": "1"}]) is True
    assert old.owner.link_received(old, [SHUTDOWN, LatencyMeasured(1.0)]) is True
    old.ended = False
    old.end(4000, "replaced")
    assert session.state is S.ONLINE and session.latency is None and old.aborted.is_set()
    transport.links[1].owner.link_received(transport.links[1], [{"id": "2"}])
    recorder.wait("event")
    assert recorder.names == [*before, "event"]


def test_a_run_is_settled_once(make: Make) -> None:
    pool, transport = make()
    transport.on_open = hold
    pool.begin_connect(URL)
    machine = machine_of(pool.session())
    (link,) = held(transport, 1)
    attempt = machine._attempt
    assert attempt is not None
    link.become_ready()
    machine.give_up(attempt, ConnectError("s", "late"))
    assert machine.attempt_failed(attempt, ConnectError("s", "late")) is not None
    pool.disconnect()
    machine.give_up(attempt, ConnectError("s", "later"))
    assert attempt.settled and attempt.error is None and pool.session().state is S.IDLE


def test_a_cancelled_run_counts_no_failure(make: Make) -> None:
    pool, transport = make()
    transport.on_open = hold
    pool.begin_connect(URL)
    machine = machine_of(pool.session())
    attempt = machine._attempt
    assert attempt is not None
    (link,) = held(transport, 1)  # before the cancel: a link that was never adopted is never opened
    pool.disconnect()
    assert machine.attempt_failed(attempt, ValueError("late")) == (0.0, False)
    assert not machine.adopt(attempt, link)
    assert machine.last_error is None and attempt.failures == 0


def test_what_readers_report_becomes_events(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llm_sessions")
    pool, transport = make()
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    (link,) = transport.links
    assert link.owner.link_received(
        link,
        [{"id": 1}, LatencyMeasured(0.25), {"id": 2}, SequenceGap(5, 3), Dropped("not JSON"), {"id": 3}],
    )
    recorder.wait("event", 3)
    assert recorder.names == ["event", "ping-pong-latency", "event", "sequence-mismatch", "event"]
    assert session.latency == recorder.payloads("ping-pong-latency")[0].seconds == 0.25
    gap = recorder.payloads("sequence-mismatch")[0]
    assert (gap.actual, gap.expected) == (5, 3)
    assert "not JSON" in caplog.text and "message 5 came, 3 was due" in caplog.text


def test_t4_a_full_queue_pauses_the_reader_and_resumes_it(make: Make) -> None:
    pool, transport = make(queue_size=2)
    session = pool.connect(URL)
    gate = Gate()
    session.on("event:stop", lambda envelope: gate.pass_through())
    (link,) = transport.links
    assert link.owner.link_received(link, [{"id": 1, "data": {"eventType": "stop"}}])
    gate.wait_arrived()
    assert link.owner.link_received(link, [{"id": 2}]) is True
    assert link.owner.link_received(link, [LatencyMeasured(1), {"id": 3}, LatencyMeasured(2)]) is False
    assert link.resumed == 0
    gate.open()
    eventually(lambda: link.resumed == 1)


def test_t4_disconnect_returns_while_a_reader_is_paused(make: Make) -> None:
    pool, transport = make(queue_size=1)
    session = pool.connect(URL)
    gate, recorder = Gate(), Recorder().listen(session)
    session.on("event", lambda envelope: gate.pass_through() if envelope.id == 1 else None)
    (link,) = transport.links
    assert not link.owner.link_received(link, [{"id": 1}, {"id": 2}])
    gate.wait_arrived()
    Background(pool.disconnect).result()
    assert session.state is S.IDLE and "offline" not in recorder.names
    gate.open()
    recorder.wait("disconnected")
    assert recorder.names == ["event", "event", *GOODBYE], "what came before the close is delivered before it"


def test_t4_a_read_that_brought_more_than_messages_is_not_paused_for_nothing(make: Make) -> None:
    """Room comes back in the middle of it: what counts is whether there is room at its end."""
    pool, transport = make(queue_size=2)
    session = pool.connect(URL)
    (link,) = transport.links
    gate = Gate()  # the dispatcher stays where the test says it is
    session.on("event", lambda envelope: gate.pass_through() if envelope.id == 1 else None)
    recorder = Recorder().listen(session, "event")
    delivery, fulls = machine_of(session)._delivery, iter([True])
    put = delivery.put

    def put_and_drain(link: Link, batch: list[dict[str, object]]) -> tuple[bool, bool]:
        room, start = put(link, batch)
        if not room and next(fulls, False):
            delivery.dispatcher._full = False  # its thread has come that far, and not yet to `has_room`
        return room, start

    delivery.put = put_and_drain  # type: ignore[method-assign]
    events = [{"id": 1}, {"id": 2}, {"id": 3}, SequenceGap(9, 4), {"id": 9}]
    room = link.owner.link_received(link, events)
    assert next(fulls, False) is False
    assert room is (link not in delivery._held), "who is told to pause must be resumed"
    gate.open()
    assert [envelope.id for envelope in recorder.wait("event", 4)] == [1, 2, 3, 9]


def test_t4_dropping_is_warned_of_at_most_once_a_minute(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    pool, transport = make(queue_size=1, when_full="drop_oldest")
    session = pool.connect(URL)
    gate, now = Gate(), [0.0]
    machine_of(session)._repeats._clock = lambda: now[0]
    session.on("event", lambda envelope: gate.pass_through() if envelope.id == 1 else None)
    (link,) = transport.links
    link.owner.link_received(link, [{"id": 1}])
    gate.wait_arrived()
    for number in range(5):
        assert link.owner.link_received(link, [{"id": 2 + number}])
    now[0] = 60.0
    assert link.owner.link_received(link, [{"id": 7}])
    gate.open()
    text = f"[{session.id}] a queue is full: its oldest messages are dropped"
    assert [record.message for record in caplog.records if "dropped" in record.message] == [
        f"{text}, 1 so far",
        f"{text}, 5 so far (and 3 more like it since the last line)",
    ]


def test_t15_servers_that_announce_their_shutdown_at_once_make_no_storm(
    make: Make, waits: list[float]
) -> None:
    """A balancer that hands out one draining node after another."""
    pool, transport = make(backoff_initial=1, backoff_max=32)
    session = pool.connect(URL)
    for count in range(1, 6):
        announce_shutdown(transport.links[-1])
        eventually(lambda count=count: len(transport.links) == count + 1 and session.state is S.ONLINE)
        eventually(lambda count=count: transport.links[count - 1].retired is not None)
    assert waits == [1, 2, 4, 8]  # the first switchover waits for nothing
    # One retired socket is kept beside the active one; those before it were closed.
    eventually(lambda: sum(link.ended for link in transport.links) == 4)
    assert [link.ended for link in transport.links] == [True] * 4 + [False] * 2


def test_i98_a_session_without_a_socket_does_not_stay_online(make: Make, waits: list[float]) -> None:
    """4001 on the old one, and a candidate that fails and fails: a reconnect, and it is said to be one."""
    _, transport, session, recorder = switching(make)
    transport.links[0].end(4001)
    assert session.online and recorder.names == [IMMINENT]
    transport.on_open = refuse
    transport.links[1].end(1006)
    recorder.wait(TRANSIENT)
    assert session.state is S.RECONNECTING and not session.online
    transport.on_open = FakeLink.become_ready
    recorder.wait("online")
    assert [name for name in recorder.names if name != "connection_failed"] == [
        IMMINENT,
        "offline",
        TRANSIENT,
        "online",
    ]


def test_i33_failures_before_the_first_online_are_not_charged_to_max_retries(
    make: Make, waits: list[float]
) -> None:
    pool, transport = make(max_retries=1)
    steps = [refuse, refuse, refuse, FakeLink.become_ready, refuse, FakeLink.become_ready]
    transport.on_open = lambda link: steps.pop(0)(link)
    session = pool.connect(URL)
    recorder = Recorder().listen(session)
    transport.links[-1].end(1006)
    recorder.wait("online")
    assert session.state is S.ONLINE and steps == []


# -- lent readers --------------------------------------------------------------------------------------------


def messages(link: FakeLink, *ids: str) -> Callable[[], object]:
    """A read that brought these messages."""
    batch = [{"id": identity, "data": {"eventType": "a.b"}} for identity in ids]
    return lambda: link.owner.link_received(link, batch)


def reading(make: Make, **config: Any) -> tuple[ConnectionPool, FakeLink, Session, FakeWatch]:
    """A session whose socket is ready, on a thread that reads it."""
    pool, transport = make(**config)
    watch = watched(pool)
    transport.on_open = hold
    connecting = Background(lambda: pool.connect(URL))
    [link] = held(transport, 1)
    Background(lambda: read(link, begin(link), link.become_ready)).result()
    return pool, link, connecting.result(), watch


def test_a_reader_delivers_what_it_has_read(make: Make) -> None:
    _, link, session, watch = reading(make)
    seen: list[tuple[str, object, object, bool]] = []

    def callback(envelope: Envelope) -> None:
        serves, reads = served_by_this_thread(), read_by_this_thread()
        seen.append((str(envelope.id), serves, reads, len(watch.lent) == 1))

    session.on("event", callback)
    afterwards: list[object] = []
    reader = Background(
        lambda: (
            read(link, messages(link, "1", "2"), messages(link, "3")),
            afterwards.extend([served_by_this_thread(), read_by_this_thread()]),
        )
    )
    assert reader.result()[0] == [True, True]
    assert seen == [(number, None, None, True) for number in "123"]
    assert afterwards == [machine_of(session), link], "it goes on as the reader"
    assert (watch.times, watch.lent) == (2, {})
    assert not any("dispatcher" in thread.name for thread in library_threads())


def test_whoever_reads_nothing_has_a_thread_started(make: Make) -> None:
    _, link, session, watch = reading(make)
    names: list[str] = []
    done = threading.Event()
    session.on("event", lambda envelope: (names.append(threading.current_thread().name), done.set()))
    messages(link, "1")()  # on this thread, which reads nothing
    assert done.wait(LONG)
    assert (names, watch.times) == (["llm-dispatcher[mercury-default-session]"], 0)


def test_what_a_callback_does_to_another_session_is_not_its_readers_to_deliver(make: Make) -> None:
    pool, link, session, _ = reading(make)
    names: list[str] = []
    done = threading.Event()
    other = pool.session("other")
    other.on("online", lambda payload: (names.append(threading.current_thread().name), done.set()))
    pool._env.transport.on_open = FakeLink.become_ready  # type: ignore[attr-defined]
    session.on("event", lambda envelope: pool.connect(URL, "other"))
    Background(lambda: read(link, messages(link, "1"))).result()
    assert done.wait(LONG)
    assert names == ["llm-dispatcher[other]"]


def test_an_observer_on_a_reader_does_not_have_it_lent_for_another_session(make: Make) -> None:
    pool, link, session, _ = reading(make)
    other = pool.session("other")
    recorder = Recorder().listen(other, "disconnected")
    connecting = Background(lambda: pool.connect(URL, "other"))
    held(link.transport, 2)
    machine_of(other).dispatcher.lend_readers()  # as after an earlier socket
    machine_of(session).observe(lambda: machine_of(other).begin_disconnect(None, None))
    answers = Background(lambda: read(link, lambda: announce_shutdown(link))).result()
    recorder.wait("disconnected")
    assert answers == [] and isinstance(connecting.error(), ConnectCancelled)


def test_a_reader_that_nobody_can_watch_is_not_lent(make: Make) -> None:
    _, link, session, watch = reading(make)
    gate = Gate()
    recorder = Recorder().listen(session, "event")
    session.on("event", lambda envelope: gate.pass_through())
    watch.able = False
    assert Background(lambda: read(link, messages(link, "1"))).result() == [True]
    gate.wait_arrived()
    gate.open()
    assert [envelope.id for envelope in recorder.wait("event")] == ["1"]


def test_t0_a_reader_whose_socket_has_ended_delivers_unwatched(make: Make) -> None:
    _, link, session, watch = reading(make, backoff_initial=3600, backoff_max=3600)
    names: list[str] = []
    session.on("offline", lambda payload: names.append(threading.current_thread().name))
    assert Background(lambda: read(link, link.end)).result() == [True]
    assert (names, watch.times, watch.readers) == (["llm-dispatcher[mercury-default-session]"], 0, set())


@pytest.mark.parametrize("call", ["receive", "messages"])
def test_i97_a_lent_reader_may_not_fetch_what_it_has_to_deliver(make: Make, call: str) -> None:
    _, link, session, _ = reading(make)
    errors: list[Exception] = []

    def fetch(envelope: object) -> None:
        try:
            getattr(session, call)(timeout=0)
        except LocalProtocolError as exc:
            errors.append(exc)

    session.on("event", fetch)
    Background(lambda: read(link, messages(link, "1"))).result()
    assert len(errors) == 1 and "dispatcher" in str(errors[0])


def test_t3_the_reader_that_was_relieved_is_kept_as_the_dispatcher(make: Make) -> None:
    _, link, session, watch = reading(make)
    gate, recorder = Gate(), Recorder()
    session.on("event", lambda envelope: gate.pass_through())
    recorder.listen(session, "event")
    dispatcher = machine_of(session).dispatcher
    away = Background(lambda: read(link, messages(link, "1")))
    gate.wait_arrived()
    link.relieve = lambda: True  # type: ignore[method-assign]
    [relieve] = watch.lent.values()
    assert relieve() is True and not dispatcher.stays, "it may still come back first"
    assert (
        Background(lambda: read(link, begin(link), messages(link, "2"))).result() == []
    )  # the one that relieves it
    assert dispatcher.stays and away.thread.name == "llm-dispatcher[mercury-default-session]"
    gate.open()
    assert [envelope.id for envelope in recorder.wait("event", 2)] == ["1", "2"]
    eventually(lambda: dispatcher._changed._condition, "it does not wait for more")
    session.disconnect()
    away.result()


def test_a_socket_that_becomes_ready_has_its_readers_lent_again(make: Make) -> None:
    _, link, session, _ = reading(make)
    dispatcher = machine_of(session).dispatcher
    dispatcher.keep_thread()
    link.transport.on_open = hold
    Background(lambda: read(link, lambda: link.end(1001))).result()
    new = held(link.transport, 2)[1]
    assert dispatcher.stays
    recorder = Recorder().listen(session, "online")
    assert Background(lambda: read(new, begin(new), new.become_ready)).result() == [True]
    assert not dispatcher.stays and len(recorder.payloads("online")) == 1


def test_a_link_that_is_ready_without_a_reader_keeps_the_dispatcher(make: Make) -> None:
    pool, _ = make()
    assert machine_of(pool.connect(URL)).dispatcher.stays


def test_nobody_to_relieve_is_settled(make: Make) -> None:
    """Somebody else has done it, with a close or an abort: there is nothing left to watch."""
    _, link, session, _ = reading(make)
    assert link.relieve() is False
    assert machine_of(session)._relieve(link) is True


@pytest.mark.parametrize("handler_raises", [False, True])
def test_t3_a_reader_that_cannot_be_relieved_is_told_of_and_tried_again(
    make: Make, caplog: pytest.LogCaptureFixture, capsys: Any, handler_raises: bool
) -> None:
    _, link, session, _ = reading(make)

    def relieve() -> bool:
        raise RuntimeError("can't start new thread")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("the log handler's")

    link.relieve = relieve  # type: ignore[method-assign]
    handler, logger = Handler(), logging.getLogger("llm_sessions.pool")
    if handler_raises:
        logger.addHandler(handler)
    try:
        assert [machine_of(session)._relieve(link) for _ in range(3)] == [False] * 3
    finally:
        logger.removeHandler(handler)
    if handler_raises:
        assert "the log handler's" in capsys.readouterr().err, "the watch goes on"
    else:
        [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
        text = "a listener takes long, and no thread can be started to read meanwhile: can't start new thread"
        assert text in record.getMessage()


def test_t7_a_reader_that_was_lent_hears_that_it_is_in_another_process(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, link, session, _ = reading(make)
    generation = _fork.generation()
    session.on("event", lambda envelope: monkeypatch.setattr(_fork, "_generation", generation + 1))
    assert Background(lambda: read(link, messages(link, "1"))).result() == [False]
    monkeypatch.setattr(_fork, "_generation", generation)
    machine_of(session).dispatcher._done()  # as it is in the parent, whose callback has returned, too
