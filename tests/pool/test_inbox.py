"""What waits for callers: order, the limit, the end."""

from __future__ import annotations

from llm_sessions import ConnectCancelled
from llm_sessions._sync import SESSION, make_lock
from llm_sessions.pool.inbox import Inbox


def batch(*numbers: int) -> list[dict[str, int]]:
    return [{"id": number} for number in numbers]


def inbox_of(limit: int) -> Inbox:
    return Inbox(make_lock("session", SESSION), limit)


def put(inbox: Inbox, messages: list[dict[str, int]]) -> None:
    with inbox.arrived:
        inbox.put(messages, 1.5)


def taken(inbox: Inbox) -> list[int]:
    found = []
    while (message := inbox.take()) is not None:
        found.append(message["id"])
    return found


def test_messages_keep_their_order_and_the_batch_stays_the_callers() -> None:
    inbox, first = inbox_of(10), batch(1, 2)
    put(inbox, first)
    put(inbox, batch(3))
    assert len(inbox) == 3 and taken(inbox) == [1, 2, 3]
    assert first == batch(1, 2) and inbox.take() is None


def test_t4_it_is_full_beyond_its_limit_and_until_half_is_taken() -> None:
    inbox = inbox_of(4)
    put(inbox, batch(1, 2, 3, 4))
    assert not inbox.full
    put(inbox, batch(5))
    assert inbox.full
    for left in (4, 3):
        inbox.take()
        assert inbox.full and len(inbox) == left
    inbox.take()
    assert not inbox.full and taken(inbox) == [4, 5]


def test_t4_making_room_drops_the_oldest_beyond_the_limit_and_counts_them() -> None:
    inbox = inbox_of(2)
    put(inbox, batch(1, 2, 3, 4, 5))
    assert inbox.make_room() == 3 and not inbox.full and inbox.dropped == 3
    assert inbox.make_room() == 0
    assert taken(inbox) == [4, 5]


def test_what_is_over_takes_nothing_more_and_holds_up_nobody() -> None:
    inbox, error = inbox_of(1), ConnectCancelled("s", "over")
    put(inbox, batch(1, 2))
    with inbox.arrived:
        inbox.end(error, ours=True)
        inbox.end(ConnectCancelled("s", "later"), ours=False)
    put(inbox, batch(3))
    assert (inbox.over, inbox.ours, inbox.error, inbox.full) == (True, True, error, False)
    assert taken(inbox) == [1, 2]


def test_what_is_discarded_is_empty() -> None:
    inbox = inbox_of(1)
    put(inbox, batch(1, 2))
    inbox.discard()
    assert inbox.over and not inbox.full and len(inbox) == 0 and inbox.error is None


def test_what_was_taken_can_be_put_back() -> None:
    inbox = inbox_of(5)
    put(inbox, batch(1, 2))
    message = inbox.take()
    assert message is not None
    inbox.put_back(message)
    assert taken(inbox) == [1, 2] and inbox.newest == 1.5
