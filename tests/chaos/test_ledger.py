"""The account adds up where it should, and every kind of lie is found."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.chaos.ledger import Account, Copy, Entry, Record, reconcile

KEY = ("key", "id")
ONLINE, OFFLINE, TRANSIENT = Entry("online", 1), Entry("offline", 1006), Entry("offline.transient", 1006)
LOST = [OFFLINE, TRANSIENT]
AGAIN = Entry("online", 2)
IMMINENT = Entry("event:mercury_shutdown_imminent")
COMPLETE = Entry("event:mercury_shutdown_switchover_complete")
REPLACED = Entry("offline.replaced", 4001)


def at(number: int, connection: int = 1, fate: Any = "sent") -> Copy:
    """The copy of an event whose number is its place on the socket, too."""
    return Copy(connection, connection * 100 + number, fate)


def came(number: int, connection: int = 1, key: tuple[str, str] = KEY) -> Entry:
    return Entry("event", number, connection * 100 + number, key)


def gap(actual: int, expected: int, connection: int = 1) -> Entry:
    return Entry("sequence-mismatch", connection * 100 + actual, connection * 100 + expected)


def make(published: list[list[Copy]], journal: list[Entry], **more: Any) -> Record:
    heard = sum(entry.kind == "event" for entry in journal)
    settings = {"heard": heard, "messages_in": heard, **more}
    return Record(
        "key", "id", published=dict(enumerate(map(tuple, published), 1)), journal=journal, **settings
    )


def states(account: Account) -> tuple[int, ...]:
    return dataclasses.astuple(account)[:6]


def test_all_is_well() -> None:
    account = reconcile(make([[at(1)], [at(2)]], [ONLINE, came(1), came(2)], acked={(1, 1)}, onlines=1))
    assert states(account) == (2, 2, 0, 0, 0, 0)
    assert account.complaints == []
    assert reconcile(Record("key", "id")) == Account()


def test_accounts_add_up() -> None:
    one = Account(6, 1, 1, 1, 1, 2, ["a"])
    assert one + one == Account(12, 2, 2, 2, 2, 4, ["a", "a"])


# What excuses a gap


@pytest.mark.parametrize(
    ("published", "journal"),
    [
        # not on any socket, and the session was offline meanwhile
        ([[at(1)], [], [at(3, 2)]], [ONLINE, came(1), *LOST, AGAIN, came(3, 2)]),
        # on a socket that broke off
        ([[at(1)], [at(2)], [at(3, 2)]], [ONLINE, came(1), *LOST, AGAIN, came(3, 2)]),
        # before the session was online
        ([[], [at(2)]], [ONLINE, came(2)]),
        # offline all the time between two events that a replaced socket brought
        ([[at(1)], [], [at(3)]], [ONLINE, *LOST, came(1), came(3), AGAIN]),
        # the old socket went before there was a new one, and listeners were told
        ([[at(1)], [], [at(3, 2)]], [ONLINE, came(1), IMMINENT, COMPLETE, REPLACED, came(3, 2)]),
        # left out by the server
        ([[at(1)], [at(2, fate="skipped")], [at(3)]], [ONLINE, came(1), gap(3, 2), came(3)]),
        ([[at(1)], [at(2, fate="spoiled")], [at(3)]], [ONLINE, came(1), gap(3, 2), came(3)]),
    ],
)
@pytest.mark.parametrize("drops", [False, True])
def test_a_reported_loss(published: list[list[Copy]], journal: list[Entry], drops: bool) -> None:
    account = reconcile(make(published, journal, drops=drops))
    assert account.complaints == []
    assert states(account) == (len(published), len(published) - 1, 0, 1, 0, 0)


LOSS = Entry("switchover-loss", 1006)


def test_a_loss_with_a_replaced_socket() -> None:
    published = [[at(1)], [at(2)], [at(3), at(3, 2)]]
    journal = [ONLINE, came(1), IMMINENT, COMPLETE, came(3, 2)]
    for drops in (False, True):
        assert states(reconcile(make(published, journal, drops=drops))) == (3, 2, 0, 0, 0, 1)
        # its end is announced whenever it comes, but not before the last event that came
        assert states(reconcile(make(published, [*journal, LOSS], drops=drops))) == (3, 2, 0, 1, 0, 0)
        early = [ONLINE, LOSS, *journal[1:]]
        assert states(reconcile(make(published, early, drops=drops))) == (3, 2, 0, 0, 0, 1)
    without = [ONLINE, came(1), came(3, 2), LOSS]
    assert states(reconcile(make(published, without))) == (3, 2, 0, 0, 0, 1)
    # what the old socket brought was heard after the new one had taken over
    late = [ONLINE, came(1), IMMINENT, COMPLETE, came(2), came(4, 2)]
    after = [[at(1)], [at(2)], [at(3)], [at(4, 2)]]
    assert states(reconcile(make(after, [*late, LOSS]))) == (4, 3, 0, 1, 0, 0)
    one_socket = [ONLINE, came(1), IMMINENT, COMPLETE, came(2), came(4), LOSS]
    assert states(reconcile(make([*after[:3], [at(4)]], one_socket))) == (4, 3, 0, 0, 0, 1)
    earlier = [ONLINE, IMMINENT, COMPLETE, came(1), came(3, 2), LOSS]
    assert states(reconcile(make(published, earlier))) == (3, 2, 0, 0, 0, 1)
    published[1] = [at(2), at(2, 2)]  # the new socket had it, too
    assert states(reconcile(make(published, [*journal, LOSS]))) == (3, 2, 0, 0, 0, 1)


def test_what_was_published_to_nobody_is_counted_apart() -> None:
    published = [[at(1)], [], [at(3), at(3, 2)]]
    journal = [ONLINE, came(1), IMMINENT, COMPLETE, came(3, 2)]
    assert states(reconcile(make(published, journal))) == (3, 2, 0, 0, 1, 0)
    assert states(reconcile(make(published, [*journal, LOSS]))) == (3, 2, 0, 1, 0, 0)
    without = [ONLINE, came(1), came(3, 2)]
    assert states(reconcile(make(published, without))) == (3, 2, 0, 0, 0, 1)


@pytest.mark.parametrize("ends", [[], [LOSS]])
def test_between_two_sockets_that_mixed_nobody_was_there(ends: list[Entry]) -> None:
    """3 was published to nobody; 2 came on the old socket, but behind 4, which came on the new one."""
    journal = [ONLINE, came(1), IMMINENT, COMPLETE, came(4, 2), came(2), *ends, came(5, 2)]
    account = reconcile(make([[at(1)], [at(2)], [], [at(4, 2)], [at(5, 2)]], journal))
    assert states(account) == ((5, 4, 0, 1, 0, 0) if ends else (5, 4, 0, 0, 1, 0))
    assert account.complaints == []


def test_a_drop_by_a_full_queue_is_reported_by_the_stats() -> None:
    published = [[at(1)], [at(2)], [at(3)]]
    record = make(published, [ONLINE, came(1), came(3)], drops=True, dropped=1, messages_in=3, acked={(1, 2)})
    assert reconcile(record).complaints == []
    assert states(reconcile(record)) == (3, 2, 1, 0, 0, 0)
    silent = reconcile(dataclasses.replace(record, dropped=0))
    assert silent.unreported == 1
    assert any("stats say 0" in text for text in silent.complaints)


# Lies


@pytest.mark.parametrize(
    ("published", "journal", "more", "complaint"),
    [
        ([[at(1)], [at(2)], [at(3)]], [ONLINE, came(1), came(3)], {}, "lost in the middle of a socket"),
        # an offline in between does not excuse what the socket must have brought
        (
            [[at(1)], [at(2)], [at(3)]],
            [ONLINE, came(1), *LOST, came(3), AGAIN],
            {},
            "lost in the middle of a socket",
        ),
        ([[at(1)], [at(2)], [at(3, 2)]], [ONLINE, came(1), came(3, 2)], {}, "nothing said so"),
        ([[at(1)], [], [at(3)]], [ONLINE, came(1), came(3)], {}, "nothing said so"),
        (
            [[at(1)], [at(2)], [at(3)], [at(4, 2)]],
            [ONLINE, came(1), came(3), *LOST, AGAIN, came(4, 2)],
            {},
            "lost in the middle of a socket",
        ),
        # an offline elsewhere does not help
        ([[at(1)], [], [at(3)]], [ONLINE, came(1), came(3), *LOST], {}, "nothing said so"),
        (
            [[at(1)], [at(2)], [at(3, 2)]],
            [ONLINE, came(1), *LOST, AGAIN, came(3, 2)],
            {"acked": {(1, 2)}},
            "was acknowledged and not delivered",
        ),
        ([[at(1)], [at(2, fate="skipped")], [at(3)]], [ONLINE, came(1), came(3)], {}, "no sequence-mismatch"),
        (
            [[at(1)], [at(2, fate="skipped")], [at(3)]],
            [ONLINE, came(1), came(3)],
            {"drops": True},
            "no sequence-mismatch",
        ),
    ],
)
def test_a_silent_loss_is_found(
    published: list[list[Copy]], journal: list[Entry], more: dict[str, Any], complaint: str
) -> None:
    account = reconcile(make(published, journal, **more))
    assert account.unreported == 1
    assert [text for text in account.complaints if complaint in text and "event 2" in text]


@pytest.mark.parametrize(
    ("published", "journal", "more", "complaint"),
    [
        ([[at(1)]], [ONLINE, came(1), came(1)], {}, "delivered 2 times"),
        ([[at(1), at(1, 2)]], [ONLINE, came(1), came(1, 2)], {}, "delivered 2 times"),
        ([[at(1)], [at(2)]], [ONLINE, came(2), came(1)], {}, "out of order on its socket"),
        ([[at(1)], [at(2, 2)]], [ONLINE, came(2, 2), came(1)], {}, "came after event 2"),
        ([[at(1)]], [ONLINE, came(1, key=("other", "id"))], {}, "of other came on id"),
        ([[at(1)]], [ONLINE, came(1, key=("key", "other"))], {}, "of key came on other"),
        ([[at(1)]], [ONLINE, came(1), came(2)], {}, "never published"),
        ([[at(1)]], [ONLINE, came(1, 2)], {}, "not its own"),
        ([[at(1)], [at(2)]], [ONLINE, came(1), *LOST], {}, "the last event, 2, did not arrive"),
        # a mismatch that is none
        ([[at(1)], [at(2)]], [ONLINE, came(1), gap(3, 2), came(2)], {}, "nothing was left out"),
        ([[at(1)], [at(2)]], [ONLINE, came(1), gap(2, 2), came(2)], {}, "nothing was left out"),
        ([[at(1)]], [ONLINE, came(1), gap(9, 5)], {}, "nothing was left out"),
        # what was counted
        ([[at(1)]], [ONLINE, came(1)], {"messages_in": 2}, "2 messages came in, listeners heard 1"),
        ([[at(1)]], [ONLINE, came(1)], {"dropped": 1, "drops": True}, "heard 1 and 1 dropped"),
        ([[at(1)]], [ONLINE, came(1)], {"onlines": 2}, "came online 2 times, and said so 1 times"),
        # what the session said
        ([[at(1)]], [ONLINE, came(1), AGAIN], {}, "online #2 came while it was online"),
        ([[at(1)]], [ONLINE, came(1), *LOST, Entry("online", 3)], {}, "online #3 is the 2. of them"),
        ([[at(1)]], [ONLINE, came(1), *LOST, *LOST], {}, "came while it was offline"),
        ([[at(1)]], [ONLINE, came(1), OFFLINE, AGAIN], {}, "followed by online"),
        ([[at(1)]], [ONLINE, came(1), OFFLINE], {}, "followed by end"),
        ([[at(1)]], [ONLINE, came(1), Entry("disconnected")], {}, "disconnected came while it was online"),
    ],
)
def test_a_lie_is_found(
    published: list[list[Copy]], journal: list[Entry], more: dict[str, Any], complaint: str
) -> None:
    complaints = reconcile(make(published, journal, **more)).complaints
    assert any(complaint in text and text.startswith("id: ") for text in complaints), complaints


def test_two_sockets_of_a_switchover_may_mix() -> None:
    published = [[at(1)], [at(2), at(2, 2)], [at(3), at(3, 2)]]
    journal = [ONLINE, came(1), IMMINENT, COMPLETE, came(3, 2), came(2)]
    assert reconcile(make(published, journal)).complaints == []


def test_a_disconnect_may_say_offline_of_a_session_that_was_not_online() -> None:
    goodbye = [Entry("offline", 1000), Entry("offline.permanent", 1000), Entry("disconnected")]
    assert reconcile(make([], [*goodbye, ONLINE, *goodbye])).complaints == []
    assert reconcile(make([], goodbye[:2])).complaints == ["id: offline 1000 came while it was offline"]
