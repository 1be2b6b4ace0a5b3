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
        message = self.delivery.take(inbox, Deadline(0))
        return None if message is None else message["id"]


def test_inboxes_get_a_batch_before_the_dispatcher_may_drop_of_it() -> None:
    desk = Desk(queue_size=2, when_full="drop_oldest")
    desk.listeners.add("event", lambda envelope: None)
    inbox = desk.subscribe()
    assert desk.put(Link(), 1, 2, 3, 4)
    assert [desk.take(inbox) for _ in range(5)] == [1, 2, 3, 4, None]
    assert desk.delivery.dropped == 2
    assert desk.env.threads.join(Deadline(20)) == []


def test_an_inbox_that_nobody_has_any_more_is_swept_out_with_the_next_message() -> None:
    desk = Desk()
    inboxes = [desk.subscribe() for _ in range(50)]
    kept = inboxes[7]
    del inboxes
    gc.collect()
    assert desk.put(Link(), 1)
    assert [one() for one in desk.delivery._streams] == [kept]


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


def test_one_message_wakes_all_who_wait_and_one_gets_it() -> None:
    desk = Desk()
    with desk.lock:
        inbox = desk.delivery.kept()
    calls = [Background(lambda: desk.delivery.take(inbox, Deadline(None))) for _ in range(4)]
    eventually(lambda: len(desk.delivery._arrived._waiters) == 4)  # type: ignore[attr-defined]
    desk.put(Link(), 1)
    eventually(lambda: any(call.done for call in calls))
    desk.put(Link(), 2, 3, 4)
    assert sorted(call.result()["id"] for call in calls) == [1, 2, 3, 4]


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
