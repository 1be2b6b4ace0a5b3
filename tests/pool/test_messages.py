"""Messages fetched by callers: `receive` and `messages`."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import (
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    ConnectionLost,
    ConnectionPool,
    Endpoint,
    LocalProtocolError,
    Messages,
    NotOnline,
    PoolClosed,
    Session,
    Target,
    WaitTimeout,
    _fork,
)
from llm_sessions.pool.inbox import Inbox
from tests.pool.support import URL, machine_of, nothing, refuse
from tests.support import LONG, SHORT, Background, FakeLink, FakeTransport, Recorder, eventually, run_together

Make = Callable[..., tuple[ConnectionPool, FakeTransport]]


def bring(link: FakeLink, *numbers: int) -> bool:
    return link.owner.link_received(link, [{"id": number} for number in numbers])


def online(make: Make, **config: Any) -> tuple[ConnectionPool, FakeLink, Session]:
    pool, transport = make(**config)
    session = pool.connect(URL)
    return pool, transport.links[0], session


def fetching(session: Session, *calls: Background) -> None:
    """Wait until so many callers wait for a message."""
    delivery = machine_of(session)._delivery
    eventually(lambda: sum(one.takers for one in delivery._inboxes()) >= len(calls), "they do not wait")


# -- receive ------------------------------------------------------------------------------------------------


def test_receive_returns_the_next_message_and_keeps_what_comes_between_calls(make: Make) -> None:
    _, link, session = online(make)
    bring(link, 0)  # nobody has asked for messages yet
    call = Background(session.receive)
    fetching(session, call)
    bring(link, 1, 2)
    first = call.result()
    assert (first.id, first.session_id) == (1, session.id)
    bring(link, 3)
    assert [session.receive(0).id, session.receive(0).id] == [2, 3]
    with pytest.raises(WaitTimeout, match="no message within 0 s"):
        session.receive(0)


def test_receive_shares_messages_among_threads_each_to_one(make: Make) -> None:
    _, link, session = online(make)
    with pytest.raises(WaitTimeout):
        session.receive(0)
    bring(link, *range(200))
    got = run_together(8, lambda: [session.receive(0).id for _ in range(25)])
    assert sorted(number for some in got for number in some) == list(range(200))


def test_listeners_and_every_iterator_get_what_receive_gets(make: Make) -> None:
    _, link, session = online(make)
    recorder = Recorder().listen(session, "event")
    with session.messages() as one, session.messages() as other:
        call = Background(session.receive)
        fetching(session, call)
        bring(link, 1)
        assert call.result().id == next(one).id == next(other).id == 1
        assert recorder.wait("event")[0].id == 1


def test_receive_precedes_the_connect(make: Make) -> None:
    pool, transport = make()
    session = pool.session()
    call = Background(session.receive)
    fetching(session, call)
    pool.connect(URL)
    bring(transport.links[0], 1)
    assert call.result().id == 1


def test_d3_receive_is_ended_by_a_disconnect_after_what_came_before(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    with pytest.raises(WaitTimeout):
        session.receive(0)
    bring(transport.links[0], 1, 2)
    pool.disconnect()
    assert [session.receive().id, session.receive().id] == [1, 2]
    for _ in range(2):  # also for the thread that was busy when it happened
        with pytest.raises(ConnectCancelled, match="disconnected"):
            session.receive()
    waiting = Background(session.receive)
    assert isinstance(waiting.error(), ConnectCancelled)


def test_receive_begins_anew_with_the_next_connect(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    with pytest.raises(WaitTimeout):
        session.receive(0)
    bring(transport.links[0], 1)
    pool.disconnect()
    pool.connect(URL)
    bring(transport.links[1], 2)
    assert session.receive(0).id == 2


def test_receive_hears_of_a_disconnect_also_if_a_connect_follows_at_once(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    calls = [Background(session.receive) for _ in range(3)]
    fetching(session, *calls)
    for number in range(3):
        pool.disconnect()
        pool.connect(URL)
        bring(transport.links[1 + number], 7)
    assert all(isinstance(call.error(), ConnectCancelled) for call in calls)


def test_receive_goes_on_over_a_reconnect(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    call = Background(session.receive)
    fetching(session, call)
    transport.links[0].end(1006)
    transport.wait_links(2)
    session.wait_online()
    bring(transport.links[1], 5)
    assert call.result().id == 5


@pytest.mark.parametrize("code", [1003, 4000])
def test_receive_raises_the_error_of_a_session_that_has_ended(make: Make, code: int) -> None:
    _, link, session = online(make)
    calls = [Background(session.receive) for _ in range(2)]
    fetching(session, *calls)
    link.end(code, "replaced" if code == 4000 else "no")
    errors = [call.error() for call in calls]
    assert all(isinstance(error, ConnectionLost) and error.code == code for error in errors)
    assert errors[0] is not errors[1]
    with pytest.raises(ConnectionLost):
        session.receive()
    session.disconnect()
    with pytest.raises(ConnectCancelled):
        session.receive()


def test_receive_raises_why_the_first_run_gave_up(make: Make) -> None:
    pool, transport = make(initial_max_retries=0)
    transport.on_open = refuse
    call = Background(pool.session().receive)
    fetching(pool.session(), call)
    with pytest.raises(ConnectError, match="nobody home"):
        pool.connect(URL)
    assert isinstance(call.error(), ConnectError) and "nobody home" in str(call.error())


def test_t1_closing_the_pool_ends_receive_in_every_state(make: Make) -> None:
    pool, transport = make()
    sessions = [pool.connect(URL, "online"), pool.session("idle"), pool.connect(URL, "offline")]
    transport.links[1].end(1003)
    calls = [Background(one.receive) for one in sessions[:2]]
    for one, call in zip(sessions, calls, strict=False):
        fetching(one, call)
    pool.close()
    assert all(isinstance(call.error(), PoolClosed) for call in calls)
    for one in sessions:
        with pytest.raises(PoolClosed):
            one.receive()
        with pytest.raises(PoolClosed):
            one.messages()


def test_a_session_whose_made_up_id_is_gone_has_no_messages_any_more(make: Make) -> None:
    pool, _ = make()
    session = pool.connect(URL, None)
    with session.messages() as messages:
        session.disconnect()
        assert list(messages) == []
    for call in (session.receive, session.messages):
        with pytest.raises(ConnectCancelled):
            call()


# -- messages -----------------------------------------------------------------------------------------------


def test_messages_start_at_the_call_and_end_when_none_comes(make: Make) -> None:
    _, link, session = online(make)
    bring(link, 0)
    messages = session.messages(SHORT)
    assert isinstance(messages, Messages) and iter(messages) is messages
    bring(link, 1, 2)
    assert [envelope.id for envelope in messages] == [1, 2]
    bring(link, 3)
    assert list(messages) == [], "what has ended stays ended"
    assert "ended" in repr(messages)


def test_messages_wait_for_the_connect(make: Make) -> None:
    pool, transport = make()
    with pool.session().messages() as messages:
        pool.connect(URL)
        bring(transport.links[0], 1)
        assert next(messages).id == 1
        pool.disconnect()
        assert list(messages) == []
    with pool.session().messages() as messages:  # and for the next one
        pool.connect()
        bring(transport.links[1], 2)
        assert next(messages).id == 2


def test_messages_go_on_over_reconnects_and_end_quietly_with_our_disconnect(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    messages = session.messages()
    call = Background(lambda: [envelope.id for envelope in messages])
    bring(transport.links[0], 1)
    transport.links[0].end(1006)
    transport.wait_links(2)
    session.wait_online()
    bring(transport.links[1], 2)
    pool.disconnect()
    assert call.result() == [1, 2]
    pool.connect(URL)
    bring(transport.links[2], 3)
    assert list(messages) == []


def test_messages_end_quietly_when_the_pool_closes(make: Make) -> None:
    pool, link, session = online(make)
    calls = [
        Background(lambda one=one: [envelope.id for envelope in one.messages()])
        for one in (session, pool.session("idle"))
    ]
    eventually(lambda: all(machine_of(one)._delivery._streams for one in (session, pool.session("idle"))))
    bring(link, 1)
    pool.close()
    assert [call.result() for call in calls] == [[1], []]


def test_messages_raise_the_error_of_a_session_that_has_ended_after_what_came_before(make: Make) -> None:
    _, link, session = online(make)
    messages = session.messages()
    bring(link, 1)
    link.end(1003, "no")
    assert next(messages).id == 1
    for iterator in (messages, session.messages()):
        with pytest.raises(ConnectionLost, match="1003"):
            next(iterator)


def test_closing_the_iterator_wakes_whoever_waits_on_it(make: Make) -> None:
    _, link, session = online(make)
    messages = session.messages()
    call = Background(lambda: list(messages))
    fetching(session, call)
    messages.close()
    assert call.result() == []
    bring(link, 1)
    assert list(messages) == [] and not machine_of(session)._delivery._streams


def test_an_iterator_ends_once_nothing_came_for_its_timeout_however_many_share_it(make: Make) -> None:
    """The one who gets nothing, because others do, must not end it for them."""
    pool, transport = make()
    session = pool.connect(URL)
    (link,), now = transport.links, [0.0]
    delivery = machine_of(session)._delivery
    delivery._clock = lambda: now[0]
    messages = session.messages(timeout=10)
    inbox = messages._inbox
    waited: list[float | None] = []
    wait = inbox.arrived.wait

    def counted(timeout: float | None) -> bool:
        waited.append(timeout)
        return wait(LONG)

    inbox.arrived.wait = counted  # type: ignore[method-assign]
    calls = [Background(lambda: next(messages).id) for _ in range(2)]
    fetching(session, *calls)
    now[0] = 9.0
    bring(link, 1)
    eventually(lambda: any(call.done for call in calls))
    now[0] = 18.9
    with machine_of(session)._lock:
        inbox.arrived.notify_all()
    eventually(lambda: len(waited) == 3)
    assert waited[:2] == [10.0, 10.0] and waited[2] == pytest.approx(0.1)
    now[0] = 19.0
    with machine_of(session)._lock:
        inbox.arrived.notify_all()
    eventually(lambda: all(call.done for call in calls))
    assert sorted(str(call._error or call._outcome) for call in calls) == ["", "1"]
    assert "ended" in repr(messages)


def test_a_message_that_came_before_the_end_is_handed_out_before_it(make: Make) -> None:
    """Both come between a timeout and the look at what came of it."""
    _, link, session = online(make)
    messages = session.messages(0)
    with pytest.raises(WaitTimeout):
        session.receive(0)
    delivery = machine_of(session)._delivery
    wait = delivery._await

    def too_late(inbox: Inbox, timeout: float | None, ends: bool) -> None:
        wait(inbox, timeout, ends)
        if not strikes:
            strikes.append(1)
            delivery.put(link, [{"id": 1}])
            delivery.rest(ConnectionLost("s", 1003, "no"), ours=False)

    strikes: list[int] = []
    delivery._await = too_late  # type: ignore[method-assign]
    assert session.receive(0).id == 1
    with pytest.raises(ConnectionLost):
        session.receive(0)
    assert next(messages).id == 1
    with pytest.raises(ConnectionLost):
        next(messages)


def test_a_generator_around_an_iterator_may_be_collected_under_the_sessions_lock(make: Make) -> None:
    _, link, session = online(make)

    def stream() -> Any:
        with session.messages(maxsize=1) as messages:
            yield from messages

    generator = stream()
    bring(link, 0)
    call = Background(lambda: next(generator))
    eventually(lambda: machine_of(session)._delivery._streams)
    assert bring(link, 1, 2, 3) is False
    assert call.result().id == 1
    with machine_of(session)._lock:
        generator.close()  # what the garbage collector does, wherever it runs
    eventually(lambda: link.resumed == 1)
    assert session.stats().queue_depth == 0


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "many"])
def test_maxsize_is_a_count(make: Make, bad: Any) -> None:
    _, _, session = online(make)
    with pytest.raises(ConfigurationError, match="maxsize"):
        session.messages(maxsize=bad)


@pytest.mark.parametrize("bad", [-1, "soon", float("nan"), True])
def test_timeouts_are_seconds(make: Make, bad: Any) -> None:
    _, _, session = online(make)
    for call in (session.receive, session.messages):
        with pytest.raises(ConfigurationError, match="timeout"):
            call(bad)


# -- where they must not be called --------------------------------------------------------------------------


def test_fetching_on_the_sessions_own_dispatcher_is_refused(make: Make) -> None:
    pool, link, session = online(make)
    other = pool.connect(URL, "other")
    messages, errors = session.messages(), []

    def callback(envelope: Any) -> None:
        for call in (lambda: session.receive(0), session.messages, lambda: next(messages)):
            try:
                call()
            except Exception as exc:
                errors.append(exc)
        try:
            other.receive(0)
        except Exception as exc:
            errors.append(exc)

    session.on("event", callback)
    bring(link, 1)
    eventually(lambda: len(errors) == 4)
    assert [type(error) for error in errors] == [*[LocalProtocolError] * 3, WaitTimeout]
    assert next(messages).id == 1, "the refusal must not end it"


def test_fetching_in_the_sessions_own_endpoint_is_refused(make: Make) -> None:
    pool, _ = make(initial_max_retries=0)

    class Asking(Endpoint):
        def resolve(self, attempt: Any) -> Target:
            pool.session().receive()
            raise AssertionError

    with pytest.raises(ConnectError) as caught:
        pool.connect(Asking())
    assert isinstance(caught.value.__cause__, LocalProtocolError)


def test_t7_a_forked_child_is_refused_before_any_lock(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, _, session = online(make)
    messages = session.messages()
    with monkeypatch.context() as fork, pool._lock, machine_of(session)._lock:
        fork.setattr(_fork, "_generation", _fork.generation() + 1)
        for call in (session.receive, session.messages, session.stats, pool.stats, lambda: next(messages)):
            with pytest.raises(PoolClosed, match="fork"):
                Background(call).result()
        Background(messages.close).result()
        assert "Messages" in repr(messages)


# -- back-pressure ------------------------------------------------------------------------------------------


def test_t4_a_full_iterator_holds_the_reader_until_half_is_taken(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    _, link, session = online(make)
    messages = session.messages(timeout=0, maxsize=4)
    assert bring(link, 1, 2, 3, 4) is True
    assert bring(link, 5) is False
    assert session.stats().paused and session.stats().queue_depth == 5
    assert bring(link) is False, "asked again: still full"
    assert [next(messages).id for _ in range(2)] == [1, 2] and link.resumed == 0
    assert next(messages).id == 3 and link.resumed == 1
    assert not session.stats().paused and bring(link, 6) is True
    assert [envelope.id for envelope in messages] == [4, 5, 6] and messages.dropped == 0
    assert [record.levelname for record in caplog.records if "is full" in record.message] == ["WARNING"]


def test_t4_reading_goes_on_only_once_every_queue_has_room(make: Make) -> None:
    _, link, session = online(make)
    one, other = session.messages(maxsize=2), session.messages(maxsize=2)
    assert bring(link, 1, 2, 3) is False
    assert [next(one).id for _ in range(3)] == [1, 2, 3] and link.resumed == 0
    assert next(other).id == 1 and link.resumed == 0
    assert next(other).id == 2 and link.resumed == 1


def test_t4_drop_oldest_drops_in_each_iterator_by_its_own_limit(make: Make) -> None:
    _, link, session = online(make, when_full="drop_oldest", queue_size=5)
    small, large = session.messages(0, maxsize=2), session.messages(0)
    for number in range(7):
        assert bring(link, number) is True
    assert [envelope.id for envelope in small] == [5, 6] and small.dropped == 5
    assert [envelope.id for envelope in large] == [2, 3, 4, 5, 6] and large.dropped == 2
    assert session.stats().dropped == 7


@pytest.mark.parametrize("end", ["close", "with", "forgotten", "timeout", "disconnect"])
def test_t4_a_full_iterator_that_is_done_with_lets_reading_go_on(make: Make, end: str) -> None:
    pool, link, session = online(make)
    messages: Messages | None = session.messages(maxsize=1)
    seen = weakref.ref(messages)
    assert bring(link, 1, 2, 3) is False
    assert messages is not None
    if end == "close":
        messages.close()
    elif end == "with":
        with messages:
            pass
    elif end == "forgotten":
        messages = None
        gc.collect()
        assert seen() is None and link.resumed == 0
        assert bring(link) is True, "the reader asks again"
        return
    elif end == "timeout":
        messages._timeout = 0
        assert len(list(messages)) == 3
    else:
        link.transport.on_close = nothing
        call = Background(pool.disconnect)
        eventually(lambda: link.closes)
        link.end(1000)
        call.result()
        assert not session.stats().paused
        return
    eventually(lambda: link.resumed == 1)
    assert bring(link, 4) is True


def test_t4_receive_holds_the_reader_while_it_is_the_only_one(make: Make) -> None:
    _, link, session = online(make, queue_size=2)
    with pytest.raises(WaitTimeout):
        session.receive(0)
    assert bring(link, 1, 2, 3) is False
    assert [session.receive(0).id for _ in range(2)] == [1, 2] and link.resumed == 1
    assert bring(link, 4, 5, 6) is False
    session.on("online", print)  # listens to no messages
    assert bring(link) is False
    session.on("event", lambda envelope: None)
    assert bring(link) is True, "it must not starve the listener, who came later"
    assert [session.receive(0).id for _ in range(2)] == [5, 6]
    assert session.stats().dropped == 2


def test_t4_receive_once_then_iterate_does_not_stall(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A program that fetched its first message with `receive` and goes on with `messages`, for ever."""
    _, link, session = online(make, queue_size=3)
    call = Background(session.receive)
    fetching(session, call)
    bring(link, 0)
    assert call.result().id == 0
    with session.messages(0) as messages:
        for number in range(1, 20):
            assert bring(link, number) is True
            assert next(messages).id == number
    assert session.stats().dropped == 16 and session.stats().queue_depth == 3
    assert session.receive(0).id == 17
    assert [record.levelname for record in caplog.records if "dropped" in record.message] == ["WARNING"]


def test_t4_both_readers_of_a_switchover_are_held_and_resumed(make: Make) -> None:
    pool, transport = make()
    session = pool.connect(URL)
    old = transport.links[0]
    messages = session.messages(maxsize=1)
    transport.on_open = nothing
    from tests.pool.support import announce_shutdown

    announce_shutdown(old)
    new = transport.wait_links(2)[1]
    eventually(lambda: new in machine_of(session)._links)
    assert bring(old, 1, 2) is False and bring(new, 3) is False
    assert next(messages).id == 1 and old.resumed == new.resumed == 0
    assert [next(messages).id for _ in range(2)] == [2, 3]
    assert old.resumed == new.resumed == 1


def test_send_is_not_held_up_by_a_full_queue(make: Make) -> None:
    _, link, session = online(make)
    with session.messages(maxsize=1):
        assert bring(link, 1, 2) is False
        session.send("x")
        assert link.sent == [b"x"]
    session.disconnect()
    with pytest.raises(NotOnline):
        session.send("y")
