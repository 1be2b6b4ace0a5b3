"""From the reader to the callbacks: order, backpressure, and a thread that comes and goes."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import ConfigurationError, _fork
from llm_sessions._sync import Deadline, ThreadGroup
from llm_sessions.pool.dispatch import Dispatcher
from llm_sessions.pool.listeners import _MAX_ROUTES, ListenerTable
from tests.support import LONG, Background, Gate, Recorder, eventually, run_together


class Desk:
    """A dispatcher with its tables, and what resumes its reader."""

    def __init__(self, queue_size: int = 100, drop_oldest: bool = False) -> None:
        self.own, self.shared, self.threads = ListenerTable(), ListenerTable(), ThreadGroup()
        self.resumed = threading.Semaphore(0)
        self.on_room: Callable[[], object] = self.resumed.release
        self.dispatcher = Dispatcher(
            "s",
            self.own,
            self.shared,
            threads=self.threads,
            queue_size=queue_size,
            drop_oldest=drop_oldest,
            has_room=lambda: self.on_room(),
        )

    def put(self, *messages: dict[str, Any]) -> bool:
        start = self.dispatcher.put_batch(list(messages))
        room = not self.dispatcher.full
        if start:
            self.dispatcher.start()
        return room

    def state(self, name: str, payload: object = None) -> None:
        if self.dispatcher.put_state(name, payload):
            self.dispatcher.start()

    def drain(self) -> None:
        """Wait until all is delivered and the thread has ended."""
        self.dispatcher.set_lingering(False)
        assert self.threads.join(Deadline(LONG)) == []

    def block(self, gate: Gate, name: str = "event") -> list[Any]:
        """Listen with a callback that stops at a gate once, and return what it got."""
        got: list[Any] = []

        def callback(payload: Any) -> None:
            got.append(payload)
            if len(got) == 1:
                gate.pass_through()

        self.own.add(name, callback)
        return got


@pytest.fixture
def desk() -> Iterator[Callable[..., Desk]]:
    made: list[Desk] = []

    def make(**settings: Any) -> Desk:
        made.append(Desk(**settings))
        return made[-1]

    yield make
    for one in made:
        one.dispatcher.stop()
        one.drain()


def message(number: int, event_type: object = "a.b") -> dict[str, Any]:
    return {"id": number, "data": {"eventType": event_type}}


def ids(envelopes: list[Any]) -> list[int]:
    return [envelope.id for envelope in envelopes]


# -- routes -----------------------------------------------------------------------------------------------


def test_i35_one_message_is_event_then_its_namespace_then_its_name(desk: Callable[..., Desk]) -> None:
    one, recorder = desk(), Recorder()
    for name in ("event:a.b", "event:a", "event", "event:b", "online"):
        one.own.add(name, recorder.named(name))
        one.shared.add(name, recorder.named(f"all {name}"))
    one.put(message(1))
    one.drain()
    order = ["event", "event:a", "event:a.b"]
    assert recorder.names == [name for plain in order for name in (plain, f"all {plain}")]
    assert len({id(payload) for _, payload in recorder.calls}) == 1
    assert recorder.calls[0][1].session_id == "s"


@pytest.mark.parametrize(
    "odd",
    [{"id": "1"}, {"data": {}}, {"data": 5}, {"data": None}, message(1, 5), message(1, ""), message(1, [])],
)
def test_i35_without_a_name_it_is_only_event(desk: Callable[..., Desk], odd: dict[str, Any]) -> None:
    one, recorder = desk(), Recorder()
    one.own.add("event", recorder.named("event"))
    one.put(odd, message(2))
    one.drain()
    assert recorder.names == ["event", "event"] and recorder.calls[0][1].raw is odd


def test_a_server_may_invent_event_types_without_end(desk: Callable[..., Desk]) -> None:
    one, recorder = desk(queue_size=10_000), Recorder()
    one.own.add("event:x.5", recorder.named("x"))
    one.put(*(message(n, f"x.{n}") for n in range(2 * _MAX_ROUTES)), message(-1, "x.5"))
    one.drain()
    assert ids(recorder.payloads("x")) == [5, -1]


def test_nothing_is_queued_that_nobody_wants(desk: Callable[..., Desk]) -> None:
    one = desk()
    assert one.put(message(1)) is True
    assert one.dispatcher.put_state("online", None) is False
    assert not one.dispatcher._queue and not one.dispatcher.wanted
    one.shared.add("online", print)  # state events are not messages
    one.own.add("event:mercury_shutdown_imminent", print)
    assert not one.dispatcher.wanted and one.put(message(2)) and not one.dispatcher._queue
    one.shared.add("event:a", print)
    assert one.dispatcher.wanted
    one.shared.remove("event:a", None)
    assert not one.dispatcher.wanted


# -- listeners that change and raise -------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_i36_a_raising_listener_stops_neither_others_nor_the_thread(
    desk: Callable[..., Desk], error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    one, recorder = desk(), Recorder()
    caplog.set_level(logging.DEBUG, "llm_sessions")

    def fail(payload: object) -> None:
        raise error("mine")

    for name in ("event", "online"):
        one.own.add(name, fail)
        one.own.add(name, recorder.named(name))
    one.put(message(1), message(2))
    one.state("online")
    one.drain()
    assert recorder.names == ["event", "event", "online"]
    assert [record.name for record in caplog.records] == ["llm_sessions.dispatch"] * 3
    assert all(record.exc_info for record in caplog.records)
    assert [record.levelname for record in caplog.records] == ["ERROR", "DEBUG", "ERROR"], "of each event"


def test_i36_each_listener_that_raises_makes_a_line(
    desk: Callable[..., Desk], caplog: pytest.LogCaptureFixture
) -> None:
    class Callable_:
        def __call__(self, payload: object) -> None:
            raise ValueError("three")

    def one_of_two(payload: object) -> None:
        raise ValueError("one")

    def other_of_two(payload: object) -> None:
        raise ValueError("two")

    one = desk()
    for callback in (one_of_two, other_of_two, Callable_()):
        one.own.add("event", callback)
    one.put(message(1), message(2))
    one.drain()
    said = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert said == ["one", "two", "three"]


@pytest.mark.parametrize("name", ["event", "online"])
def test_off_inside_a_callback_holds_at_once(desk: Callable[..., Desk], name: str) -> None:
    one, recorder = desk(), Recorder()
    later = recorder.named("later")

    def first(payload: object) -> None:
        one.own.remove(name, later)
        one.shared.remove(name, later)

    one.own.add(name, first)
    one.own.add(name, later)
    one.shared.add(name, later)
    one.put(message(1), message(2))
    one.state("online")
    one.drain()
    assert recorder.names == []


def test_off_of_another_event_inside_a_callback_leaves_this_one(desk: Callable[..., Desk]) -> None:
    one, recorder = desk(), Recorder()
    one.own.add("event", lambda envelope: one.own.remove("online", None))
    one.own.add("event", recorder.named("kept"))
    one.own.add("online", print)
    one.put(message(1))
    one.drain()
    assert recorder.names == ["kept"]


def test_on_inside_a_callback_holds_from_the_next_message_of_the_batch(desk: Callable[..., Desk]) -> None:
    one, recorder = desk(), Recorder()

    def first(envelope: Any) -> None:
        if envelope.id == 1:
            one.own.add("event", recorder.named("new"))

    one.own.add("event", first)
    one.put(message(1), message(2), message(3))
    one.drain()
    assert ids(recorder.payloads("new")) == [2, 3]


def test_once_is_called_once_within_a_batch_and_over_dispatchers(desk: Callable[..., Desk]) -> None:
    one, two, recorder = desk(), desk(), Recorder()
    two.dispatcher._tables = (two.own, one.shared)
    one.own.add("event", recorder.named("own"), once=True)
    one.shared.add("event", recorder.named("shared"), once=True)
    run_together(2, lambda: (one.put(message(1), message(2)), two.put(message(3), message(4))))
    one.drain()
    two.drain()
    assert sorted(recorder.names) == ["own", "shared"]


def test_once_that_was_taken_back_before_its_turn_is_not_called(desk: Callable[..., Desk]) -> None:
    one, recorder, gate = desk(), Recorder(), Gate()
    one.block(gate, "online")
    one.own.add("offline", recorder.named("offline"), once=True)
    one.state("online")
    gate.wait_arrived()
    one.state("offline")
    one.own.remove("offline", None)
    gate.open()
    one.drain()
    assert recorder.names == []


# -- full ----------------------------------------------------------------------------------------------------


def test_t4_block_pauses_beyond_queue_size_and_resumes_at_half(desk: Callable[..., Desk]) -> None:
    one, gate = desk(queue_size=2), Gate()
    got = one.block(gate)
    left_at_resume: list[int] = []
    one.put(message(1))
    gate.wait_arrived()
    assert one.put(message(2)) is True  # two wait, one of them in the callback's hands
    one.on_room = lambda: left_at_resume.append(one.dispatcher.waiting)
    assert one.put(message(3)) is False
    assert not left_at_resume
    gate.open()
    one.drain()
    assert ids(got) == [1, 2, 3]
    assert left_at_resume == [1]
    assert not one.dispatcher.full and one.dispatcher.waiting == 0


def test_t4_room_is_announced_once_however_much_was_put_into_a_full_queue(desk: Callable[..., Desk]) -> None:
    one, gate = desk(queue_size=1), Gate()
    one.block(gate)
    one.put(message(1))
    gate.wait_arrived()
    assert not one.put(message(2)) and not one.put(message(3))
    gate.open()
    assert one.resumed.acquire(timeout=LONG)
    one.drain()
    assert not one.resumed.acquire(blocking=False)


def test_t4_a_batch_larger_than_the_queue_is_taken_whole(desk: Callable[..., Desk]) -> None:
    one = desk(queue_size=2)
    got: list[Any] = []
    one.own.add("event", got.append)
    assert one.put(*(message(n) for n in range(10))) is False
    assert one.resumed.acquire(timeout=LONG)
    one.drain()
    assert ids(got) == list(range(10)) and one.dispatcher.dropped == 0


def test_t4_a_paused_reader_is_resumed_even_if_nobody_listens_any_more(desk: Callable[..., Desk]) -> None:
    one, gate = desk(queue_size=1), Gate()
    one.block(gate)
    one.put(message(1))
    gate.wait_arrived()
    assert not one.put(message(2))
    one.own.remove("event", None)
    gate.open()
    assert one.resumed.acquire(timeout=LONG)
    assert one.put(message(3)) is True


def test_t4_a_paused_reader_is_resumed_after_stop(desk: Callable[..., Desk]) -> None:
    one, gate = desk(queue_size=1), Gate()
    got = one.block(gate)
    one.put(message(1))
    gate.wait_arrived()
    assert not one.put(message(2))
    one.dispatcher.stop()
    gate.open()
    assert one.resumed.acquire(timeout=LONG)
    one.drain()
    assert ids(got) == [1, 2]


def test_t4_drop_oldest_keeps_the_newest_and_counts_the_rest(desk: Callable[..., Desk]) -> None:
    one, gate = desk(queue_size=3, drop_oldest=True), Gate()
    got = one.block(gate)
    one.put(message(1))
    gate.wait_arrived()
    for number in range(2, 8):
        assert one.put(message(number)) is True
    assert one.dispatcher.dropped == 3
    one.put(message(8), message(9))
    assert one.dispatcher.dropped == 5
    gate.open()
    one.drain()
    assert ids(got) == [1, 7, 8, 9]
    assert one.dispatcher.waiting == 0 and not one.resumed.acquire(blocking=False)


def test_t4_drop_oldest_while_a_full_batch_is_being_delivered(desk: Callable[..., Desk]) -> None:
    """What the thread has in its hands cannot be dropped, so it must not cost the new ones their place."""
    one, gate = desk(queue_size=3, drop_oldest=True), Gate()
    got = one.block(gate)
    one.put(message(1), message(2), message(3))
    gate.wait_arrived()
    one.put(message(4), message(5), message(6))
    assert one.dispatcher.dropped == 0
    gate.open()
    one.drain()
    assert ids(got) == [1, 2, 3, 4, 5, 6]


def test_t4_drop_oldest_of_a_batch_that_is_larger_than_the_queue(desk: Callable[..., Desk]) -> None:
    one = desk(queue_size=3, drop_oldest=True)
    got: list[Any] = []
    one.own.add("event", got.append)
    one.put(*(message(n) for n in range(10)))
    one.drain()
    assert ids(got) == [7, 8, 9] and one.dispatcher.dropped == 7


def test_t4_state_events_are_never_dropped_and_keep_their_place(desk: Callable[..., Desk]) -> None:
    one, gate, recorder = desk(queue_size=2, drop_oldest=True), Gate(), Recorder()
    one.block(gate, "ping-pong-latency")
    one.own.add("event", lambda envelope: recorder.named(str(envelope.id))(envelope))
    for name in ("online", "offline"):
        one.own.add(name, recorder.named(name))
    one.state("ping-pong-latency")
    gate.wait_arrived()
    one.put(message(1))
    one.state("online")
    one.put(message(2))
    one.state("offline")
    one.put(message(3))
    one.put(message(4))
    gate.open()
    one.drain()
    assert recorder.names == ["online", "offline", "3", "4"] and one.dispatcher.dropped == 2


def test_a_stuck_listener_costs_no_memory_with_drop_oldest(desk: Callable[..., Desk]) -> None:
    one, gate = desk(queue_size=4, drop_oldest=True), Gate()
    one.block(gate)
    one.put(message(0))
    gate.wait_arrived()
    for number in range(1000):
        one.put(message(number))
    assert one.dispatcher._queue and len(one.dispatcher._queue) < 30 and one.dispatcher.dropped == 996
    gate.open()


# -- the thread ----------------------------------------------------------------------------------------------


def test_the_thread_ends_when_idle_and_another_starts(desk: Callable[..., Desk]) -> None:
    one = desk()
    seen: list[threading.Thread] = []
    one.own.add("online", lambda payload: seen.append(threading.current_thread()))
    for _ in range(3):
        one.state("online")
        one.drain()
    assert len({id(thread) for thread in seen}) == 3
    assert {thread.name for thread in seen} == {"llm-dispatcher[s]"}
    assert all(thread.daemon for thread in seen)


def test_the_thread_stays_while_the_session_is_busy(desk: Callable[..., Desk]) -> None:
    one, recorder = desk(), Recorder()
    seen: set[int] = set()
    one.own.add("online", lambda payload: seen.add(threading.get_ident()))
    one.own.add("online", recorder.named("online"))
    one.dispatcher.set_lingering(True)
    for number in range(1, 6):
        one.state("online")
        recorder.wait("online", number)
    assert len(seen) == 1 and len(one.threads.alive()) == 1
    assert one.dispatcher.thread is one.threads.alive()[0]
    one.drain()


def test_stop_takes_nothing_more_but_delivers_what_is_queued(desk: Callable[..., Desk]) -> None:
    one, gate = desk(), Gate()
    got = one.block(gate)
    one.put(message(1))
    gate.wait_arrived()
    one.put(message(2))
    one.dispatcher.stop()
    assert one.dispatcher.put_batch([message(3)]) is False
    assert one.dispatcher.put_state("online", None) is False
    gate.open()
    one.drain()
    assert ids(got) == [1, 2]


def test_a_thread_that_cannot_start_strands_no_reader(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = desk(queue_size=1)
    got: list[Any] = []
    one.own.add("event", got.append)

    def spawn(target: object, name: str, **options: bool) -> threading.Thread:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as broken:
        broken.setattr(one.threads, "spawn", spawn)
        assert one.put(message(1), message(2)) is False
    assert one.resumed.acquire(timeout=LONG), "it would wait for a thread that does not exist"
    assert "cannot start" in caplog.text
    one.put(message(3))
    one.drain()
    assert ids(got) == [1, 2, 3]


def test_no_wake_up_is_lost_while_the_thread_comes_and_goes(desk: Callable[..., Desk]) -> None:
    one = desk(queue_size=7)
    got: list[Any] = []
    one.own.add("event", got.append)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        changed = threading.Condition()

        def on_room() -> None:
            with changed:
                changed.notify_all()

        one.on_room = on_room

        def feed() -> None:
            for number in range(300):
                if not one.put(message(number)):
                    with changed:
                        room = changed.wait_for(lambda: not one.dispatcher.full, LONG)
                    assert room, "a held reader was not resumed"

        assert run_together(4, feed) == [None] * 4
    finally:
        sys.setswitchinterval(interval)
    one.drain()
    assert len(got) == 1200 and one.dispatcher.waiting == 0 and not one.dispatcher.full


def test_put_never_blocks_on_a_callback(desk: Callable[..., Desk]) -> None:
    one, gate = desk(queue_size=1), Gate()
    one.block(gate)
    one.put(message(1))
    gate.wait_arrived()
    assert Background(lambda: [one.put(message(n)) for n in range(50)]).result()[-1] is False
    Background(lambda: one.state("online")).result()
    assert one.own.remove("event", None)
    gate.open()
    eventually(lambda: one.dispatcher.waiting == 0)


def test_t4_dropping_looks_only_at_what_it_drops_however_many_state_events_wait(
    desk: Callable[..., Desk],
) -> None:
    one, gate = desk(queue_size=4, drop_oldest=True), Gate()
    one.block(gate)
    one.own.add("sequence-mismatch", lambda payload: None)
    one.put(message(0))
    gate.wait_arrived()
    for number in range(3000):
        one.state("sequence-mismatch")
        one.put(message(number))
    assert one.dispatcher._queue and len(one.dispatcher._queue) < 2 * 3000 + 20
    assert len(one.dispatcher._batches) == 4
    gate.open()
    one.drain()


def test_messages_that_no_listener_is_for_start_no_thread(desk: Callable[..., Desk]) -> None:
    one, recorder = desk(), Recorder()
    one.own.add("event:relay.event", recorder.named("relay"))
    one.shared.add("event:locus", recorder.named("locus"))
    for event_type in ("mercury.buffer_state", "relay.other", "locust.a", 5, None):
        assert one.dispatcher.put_batch([message(0, event_type)]) is False
    assert (one.dispatcher.thread, one.dispatcher.waiting, one.dispatcher._queue) == (None, 0, None)
    one.put(message(1, "mercury.buffer_state"), message(2, "relay.event"))
    one.put(message(3, "locus.state_message"))
    one.drain()
    assert [(name, envelope.id) for name, envelope in recorder.calls] == [("relay", 2), ("locus", 3)]


def test_messages_behind_a_running_listener_wait_for_listeners_to_come(desk: Callable[..., Desk]) -> None:
    one, gate, recorder = desk(), Gate(), Recorder()
    one.block(gate, "event:a.b")
    one.put(message(0))
    gate.wait_arrived()
    one.put(message(1, "later.on"))
    one.own.add("event:later", recorder.named("later"))
    gate.open()
    one.drain()
    assert [envelope.id for envelope in recorder.payloads("later")] == [1]


def test_state_events_that_nobody_listens_to_are_not_queued(desk: Callable[..., Desk]) -> None:
    one = desk()
    one.own.add("online", lambda payload: None)
    assert one.dispatcher.put_state("ping-pong-latency", 1) is False
    assert one.dispatcher._queue is None


@pytest.mark.parametrize("runs_all_the_same", [True, False])
def test_t5_ctrl_c_while_the_thread_starts_leaves_nobody_deaf(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch, runs_all_the_same: bool
) -> None:
    one = desk()
    got: list[Any] = []
    one.own.add("online", got.append)
    spawn = one.threads.spawn

    def interrupted(target: Callable[[], None], name: str, **options: bool) -> threading.Thread:
        if runs_all_the_same:
            spawn(target, name)
        raise KeyboardInterrupt

    one.dispatcher.set_lingering(True)
    monkeypatch.setattr(one.threads, "spawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.state("online", 1)
    monkeypatch.setattr(one.threads, "spawn", spawn)
    one.state("online", 2)
    eventually(lambda: got == [1, 2])
    one.drain()


def test_comparing_callbacks_is_user_code_and_runs_without_a_lock() -> None:
    table = ListenerTable()

    class Odd:
        def __call__(self, payload: object) -> None: ...

        def __eq__(self, other: object) -> bool:
            table.add("online", print)  # would wait for itself under the lock
            return True

        __hash__ = None  # type: ignore[assignment]

    table.add("online", Odd())
    assert table.remove("online", Odd()) is True
    assert [one.callback for one in table.named("online")] == [print]
    with pytest.raises(ConfigurationError):
        table.remove("online", 5)  # type: ignore[arg-type]


# -- lent readers --------------------------------------------------------------------------------------------


def lent(desk: Callable[..., Desk], **settings: Any) -> Desk:
    """A dispatcher of a busy session that is online: readers deliver."""
    one = desk(**settings)
    one.dispatcher.set_lingering(True)
    one.dispatcher.lend_readers()
    return one


def test_a_session_has_a_thread_of_its_own_until_readers_can_be_lent(desk: Callable[..., Desk]) -> None:
    one, recorder = desk(), Recorder()
    one.own.add("online", recorder.named("online"))
    one.dispatcher.set_lingering(True)
    assert one.dispatcher.stays
    one.state("online")
    recorder.wait("online")
    eventually(lambda: one.dispatcher._changed._condition, "it does not wait for more")
    assert one.dispatcher.thread is not None
    one.dispatcher.lend_readers()
    assert one.threads.join(Deadline(LONG)) == [], "the waiting thread does not end"
    assert not one.dispatcher.stays and one.dispatcher.thread is None
    assert one.dispatcher.put_state("online", None) is True
    one.dispatcher.run(lent=True)
    assert len(recorder.payloads("online")) == 2 and one.dispatcher.thread is None


def test_a_lent_reader_delivers_in_order_and_comes_back(desk: Callable[..., Desk]) -> None:
    one = lent(desk)
    got: list[Any] = []
    seen: set[tuple[str, bool, bool]] = set()

    def callback(payload: Any) -> None:
        me = threading.current_thread()
        seen.add((me.name, one.dispatcher.thread is me, me in one.threads._lent))
        got.append(getattr(payload, "id", payload))
        if payload == "online":
            assert one.dispatcher.put_batch([message(4)]) is False, "this thread delivers it, too"

    one.own.add("event", callback)
    one.own.add("online", callback)
    assert one.dispatcher.put_batch([message(1), message(2)])
    assert not one.dispatcher.put_state("online", "online")
    assert not one.dispatcher.put_batch([message(3)])
    me = threading.current_thread()
    name = me.name
    one.dispatcher.run(lent=True)
    assert got == [1, 2, "online", 3, 4]
    assert seen == {(name, True, True)} and me.name == name
    assert one.dispatcher.thread is None and one.threads._lent == set()
    assert one.threads.alive() == []


def test_a_reader_that_was_relieved_stays_as_the_dispatcher(desk: Callable[..., Desk]) -> None:
    one, gate = lent(desk), Gate()
    got = one.block(gate)
    one.dispatcher.put_batch([message(1)])
    reader = Background(lambda: one.dispatcher.run(lent=True))
    gate.wait_arrived()
    one.dispatcher.keep_thread()
    assert one.dispatcher.stays and reader.thread.name == "llm-dispatcher[s]"
    gate.open()
    eventually(lambda: one.dispatcher._changed._condition, "it does not wait for more")
    assert one.dispatcher.put_batch([message(2)]) is False
    eventually(lambda: ids(got) == [1, 2])
    one.dispatcher.lend_readers()
    reader.result()
    assert one.dispatcher.put_batch([message(3)]) is True
    one.dispatcher.run(lent=True)
    assert ids(got) == [1, 2, 3]


@pytest.mark.parametrize("end", ["rest", "stop"])
def test_t2_a_thread_that_was_kept_ends_with_the_session(desk: Callable[..., Desk], end: str) -> None:
    one, gate = lent(desk), Gate()
    one.block(gate)
    one.dispatcher.put_batch([message(1)])
    reader = Background(lambda: one.dispatcher.run(lent=True))
    gate.wait_arrived()
    one.dispatcher.keep_thread()
    gate.open()
    eventually(lambda: one.dispatcher._changed._condition)
    one.dispatcher.stop() if end == "stop" else one.dispatcher.set_lingering(False)
    reader.result()


def test_to_keep_the_thread_when_it_is_through_keeps_nobody(desk: Callable[..., Desk]) -> None:
    one = lent(desk)
    got: list[Any] = []
    one.own.add("event", got.append)
    one.dispatcher.put_batch([message(1)])
    one.dispatcher.run(lent=True)
    one.dispatcher.keep_thread()
    assert one.dispatcher.stays and one.dispatcher.thread is None
    one.put(message(2))
    one.drain()
    assert ids(got) == [1, 2]


def test_one_thread_at_a_time_delivers(desk: Callable[..., Desk]) -> None:
    one, gate = lent(desk), Gate()
    got = one.block(gate)
    one.dispatcher.put_batch([message(1)])
    reader = Background(lambda: one.dispatcher.run(lent=True))
    gate.wait_arrived()
    one.dispatcher.put_batch([message(2)])
    one.dispatcher.run(lent=True)  # finds the place taken
    assert one.dispatcher.thread is reader.thread and ids(got) == [1]
    gate.open()
    reader.result()
    assert ids(got) == [1, 2]


def test_a_thread_that_has_ended_as_a_reader_takes_the_dispatchers_name(desk: Callable[..., Desk]) -> None:
    one = lent(desk)
    names: list[str] = []
    one.own.add("event", lambda envelope: names.append(threading.current_thread().name))
    one.dispatcher.put_batch([message(1)])
    Background(one.dispatcher.run).result()
    assert names == ["llm-dispatcher[s]"]


def test_a_delivery_that_fails_leaves_its_place_to_the_next(desk: Callable[..., Desk]) -> None:
    one = lent(desk, queue_size=1)
    got: list[Any] = []
    one.own.add("event", got.append)

    def fail() -> None:
        raise ValueError("a bug")

    one.on_room = fail
    assert one.dispatcher.put_batch([message(1), message(2)])
    with pytest.raises(ValueError, match="a bug"):
        one.dispatcher.run(lent=True)
    assert one.dispatcher.thread is None and one.threads._lent == set()
    one.on_room = one.resumed.release
    assert one.dispatcher.put_batch([message(3)]) is True
    one.dispatcher.run(lent=True)
    assert ids(got) == [1, 2, 3]


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_i36_a_log_handler_that_raises_costs_no_event(
    desk: Callable[..., Desk], error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise error("the log handler's")

    one, recorder, handler = lent(desk, queue_size=1), Recorder(), Handler()

    def fail(payload: object) -> None:
        raise KeyError("the listener's")

    one.own.add("event", fail)
    one.own.add("event", recorder.named("event"))
    logger = logging.getLogger("llm_sessions.dispatch")
    logger.addHandler(handler)
    try:
        one.dispatcher.put_batch([message(1), message(2)])
        one.dispatcher.put_batch([message(3)])
        one.dispatcher.run(lent=True)
    finally:
        logger.removeHandler(handler)
    assert ids(recorder.payloads("event")) == [1, 2, 3]
    assert one.dispatcher.waiting == 0 and not one.dispatcher.full, "the socket would not be read again"
    assert "the log handler's" in capsys.readouterr().err


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("event", ["event", "online"])
def test_t7_a_callback_that_comes_back_in_another_process_is_the_last(
    desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch, event: str, raises: bool
) -> None:
    one = lent(desk)
    got: list[Any] = []
    later: list[Any] = []

    def fork(payload: object) -> None:
        got.append(payload)
        # As in the child: some other thread held the lock, which the child does not have.
        monkeypatch.setattr(_fork, "_generation", _fork.generation() + 1)
        one.dispatcher._lock.acquire()
        if raises:
            sys.exit()

    for name in ("event", "online"):
        one.own.add(name, fork)
        one.own.add(name, later.append)
    if event == "event":
        one.dispatcher.put_batch([message(1), message(2)])
    one.dispatcher.put_state("online", "online")
    one.dispatcher.put_batch([message(3)])
    one.dispatcher.run(lent=True)
    assert len(got) == 1 and later == [] and one.threads._lent == set()
    one.dispatcher._lock.release()
