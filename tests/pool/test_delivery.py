"""Where messages go, without a session around it: what `test_messages` cannot see."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from llm_sessions import ConnectCancelled, ConnectionLost, PoolConfig
from llm_sessions._sync import SESSION, Deadline, make_lock
from llm_sessions.pool.delivery import Delivery
from llm_sessions.pool.environment import Environment
from llm_sessions.pool.inbox import Inbox
from llm_sessions.pool.listeners import ListenerTable
from tests.support import Background, eventually


class Link:
    """As much of a link as `Delivery` uses."""

    def __init__(self) -> None:
        self.resumed = 0

    def resume(self) -> None:
        self.resumed += 1


class Desk:
    """A delivery with its lock."""

    def __init__(self, **config: Any) -> None:
        self.lock = make_lock("session", SESSION)
        self.env = Environment(PoolConfig(**config))
        self.listeners = ListenerTable()
        self.delivery = Delivery("s", self.lock, self.listeners, self.env)

    def put(self, link: Any, *numbers: int) -> bool:
        with self.lock:
            room, start = self.delivery.put(link, [{"id": number} for number in numbers])
        if start:
            self.delivery.dispatcher.start()
        return room

    def subscribe(self, limit: int = 100) -> Inbox:
        with self.lock:
            return self.delivery.subscribe(limit)

    def take(self, inbox: Inbox) -> int | None:
        message, _ = self.delivery.take(inbox, 0, ends=False)
        return None if message is None else message["id"]


def test_inboxes_get_a_batch_before_the_dispatcher_may_drop_of_it() -> None:
    desk = Desk(queue_size=2, when_full="drop_oldest")
    desk.listeners.add("event", lambda envelope: None)
    inbox = desk.subscribe()
    assert desk.put(Link(), 1, 2, 3, 4)
    assert [desk.take(inbox) for _ in range(5)] == [1, 2, 3, 4, None]
    assert desk.delivery.dropped == 2
    assert desk.env.threads.join(Deadline(20)) == []


@pytest.mark.parametrize("by", ["a message", "another one"])
def test_an_inbox_that_nobody_has_any_more_is_swept_out(by: str) -> None:
    desk = Desk()
    inboxes = [desk.subscribe() for _ in range(50)]
    kept = inboxes[7]
    desk.delivery.close(inboxes[3])
    del inboxes
    gc.collect()
    if by == "a message":
        assert desk.put(Link(), 1)
        assert [one() for one in desk.delivery._streams] == [kept]
    else:
        later = desk.subscribe()
        assert [one() for one in desk.delivery._streams] == [kept, later]


def test_a_link_that_ended_is_not_resumed() -> None:
    desk, gone, here = Desk(), Link(), Link()
    inbox = desk.subscribe(1)
    for link in (gone, here):
        assert not desk.put(link, 1, 2)
    with desk.lock:
        desk.delivery.forget(gone)  # type: ignore[arg-type]
    while desk.take(inbox) is not None:
        pass
    assert (gone.resumed, here.resumed) == (0, 1) and not desk.delivery.held


def test_a_message_wakes_one_who_waits() -> None:
    desk = Desk()
    with desk.lock:
        inbox = desk.delivery.kept()
    calls = [Background(lambda: desk.delivery.take(inbox, None, ends=False)) for _ in range(4)]
    eventually(lambda: inbox.takers == 4)
    desk.put(Link(), 1)
    eventually(lambda: any(call.done for call in calls))
    assert inbox.takers == 3
    desk.put(Link(), 2, 3, 4)
    assert sorted(call.result()[0]["id"] for call in calls) == [1, 2, 3, 4]


def test_t5_who_is_interrupted_leaves_message_and_turn_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    with desk.lock:
        inbox = desk.delivery.kept()
    calls = [Background(lambda: desk.delivery.take(inbox, None, ends=False)) for _ in range(2)]
    eventually(lambda: inbox.takers == 2)
    strikes = iter([True])

    def resumable() -> tuple[()]:
        if next(strikes, False):
            raise KeyboardInterrupt
        return ()

    monkeypatch.setattr(desk.delivery, "_resumable", resumable)
    inbox.limit = 0  # full, and not any more once it is taken: `take` goes on to `_resumable`
    desk.put(Link(), 1)
    eventually(lambda: all(call.done for call in calls))
    outcomes = sorted(repr(call._error or call._outcome) for call in calls)
    assert outcomes == ["({'id': 1}, None)", "KeyboardInterrupt()"]


def test_t5_a_close_that_is_interrupted_wakes_who_shares_the_inbox_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk()
    inbox = desk.subscribe()
    call = Background(lambda: desk.delivery.take(inbox, None, ends=True))
    eventually(lambda: inbox.takers == 1)
    close, strikes = desk.delivery._close, iter([True])

    def interrupted(closed: Inbox) -> None:
        if next(strikes, False):
            closed.discard()
            raise KeyboardInterrupt
        close(closed)

    monkeypatch.setattr(desk.delivery, "_close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        desk.delivery.close(inbox)
    assert call.result() == (None, None)


def test_closing_takes_no_lock_for_it_may_come_out_of_the_garbage_collector() -> None:
    desk, link = Desk(), Link()
    inbox = desk.subscribe(1)
    assert not desk.put(link, 1, 2)
    with desk.lock:
        desk.delivery.close(inbox)
        assert link.resumed == 0
    eventually(lambda: link.resumed == 1)


def test_without_a_thread_to_be_had_a_close_is_noticed_when_the_reader_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    desk, link = Desk(), Link()
    inbox = desk.subscribe(1)
    assert not desk.put(link, 1, 2)
    monkeypatch.setattr("_thread.start_new_thread", none_left)
    desk.delivery.close(inbox)
    assert desk.put(link) is True


@pytest.mark.parametrize("ours", [True, False])
def test_the_end_concerns_whoever_waited_and_not_the_next_connect(ours: bool) -> None:
    desk, error = Desk(), ConnectCancelled("s", "over") if ours else ConnectionLost("s", 1003, "no")
    with desk.lock:
        kept, stream = desk.delivery.kept(), desk.delivery.subscribe(5)
        desk.delivery.rest(error, ours)
        late, late_kept = desk.delivery.subscribe(5), desk.delivery.kept()
        desk.delivery.revive()
    assert kept.error is stream.error is error and (stream.ours, kept.over) == (ours, True)
    assert late_kept is kept and late.over is not ours
    desk.put(Link(), 1)
    with desk.lock:
        assert len(desk.delivery.kept()) == 1 and desk.delivery.kept() is not kept
    assert (len(kept), len(stream), len(late)) == (0, 0, 1 if ours else 0)
