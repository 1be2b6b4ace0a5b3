"""The books of the service say what was on the wire."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from llm_sessions import ConnectionPool
from tests.chaos.client import Ear, Tokens
from tests.chaos.ledger import Copy, Entry
from tests.chaos.service import RANGE, SERVERS, Service, event_number
from tests.support import Recorder, eventually


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service(None)
    yield service
    service.close()
    assert service.violations == []


def test_each_socket_has_numbers_of_its_own(
    service: Service, make_pool: Callable[..., ConnectionPool]
) -> None:
    assert service.publish("a") == 1, "nobody is there, and the event counts"
    pools = [make_pool(), make_pool()]
    for number, pool in enumerate(pools):
        pool.connect(service.server.url("a"))
        service.server.wait_for(lambda number=number: len(service.server.live("a")) == number + 1)  # type: ignore[misc]
    service.look()
    assert [service.publish("a"), service.publish("a"), service.publish("b")] == [2, 3, 1]
    copies = {number: [(one, one * RANGE + number - 1, "sent") for one in (1, 2)] for number in (2, 3)}
    assert service.published("a") == {1: (), 2: tuple(copies[2]), 3: tuple(copies[3])}
    assert service.published("b") == {1: ()}
    eventually(lambda: service.acked("a") == {(1, 2), (1, 3), (2, 2), (2, 3)})


def test_what_is_left_out_has_its_number_and_the_session_says_so(
    service: Service, make_pool: Callable[..., ConnectionPool]
) -> None:
    pool = make_pool(max_message_bytes=30_000)
    ear = Ear(pool.session("a"), "a", 0.0)
    told = Recorder().listen(pool.session("a"), "sequence-mismatch")
    pool.connect(service.server.url("a"), "a")
    service.server.wait_live("a")
    service.look()
    service.fate("a", "skipped")
    service.publish("a")  # the first of a socket is sent: nobody could miss what came before it
    service.fate("a", "skipped")
    for how in ("{", "binary", "large"):
        service.publish("a")
        service.publish("a")
        service.fate("a", "spoiled", how=how)
    service.publish("a")
    service.publish("a")
    told.wait("sequence-mismatch", 4)
    eventually(lambda: ear.has(9))
    fates = [copies[0].fate for copies in service.published("a").values()]
    assert fates == ["sent", "skipped", *["sent", "spoiled"] * 3, "sent"]
    missing = [number for number, fate in enumerate(fates, 1) if fate != "sent"]
    heard = [entry.number for entry in ear.journal if entry.kind == "event"]
    assert sorted(heard + missing) == list(range(1, len(fates) + 1))
    assert [entry.sequence - RANGE for entry in ear.journal if entry.kind == "sequence-mismatch"] == missing


def test_numbers_go_on_over_a_restart(service: Service, make_pool: Callable[..., ConnectionPool]) -> None:
    pool, address = make_pool(), service.server.port
    told = Recorder().listen(pool, "online")
    pool.connect(service.server.url("a"))
    service.server.wait_live("a")
    service.look()
    service.publish("a")
    eventually(lambda: service.acked("a") == {(1, 1)})
    service.stop()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", address))  # nor does the system give it to a connection meanwhile
    assert service.publish("a") == 2
    service.start()
    assert service.server.port == address
    told.wait("online", 2)
    service.server.wait_live("a")
    service.look()
    assert service.publish("a") == 3
    later = SERVERS + 1
    assert service.published("a") == {
        1: (Copy(1, RANGE + 1),),
        2: (),
        3: (Copy(later, later * RANGE + 1),),
    }
    eventually(lambda: service.acked("a") == {(1, 1), (later, 3)})
    assert event_number("a/17") == 17


def test_an_ear_writes_down_what_it_is_told(
    service: Service, make_pool: Callable[..., ConnectionPool]
) -> None:
    pool = make_pool()
    ear = Ear(pool.session("a"), "a", 0.0)
    ear.be_slow(1000.0)
    pool.connect(service.server.url("a"), "a")
    service.server.wait_live("a")
    service.look()
    service.publish("a")
    try:
        eventually(lambda: pool.session("a").stats().messages_in == 2, "the ready event and another")
        assert not ear.caught_up and not ear.has(1)
    finally:
        ear.wake()
    eventually(lambda: ear.caught_up and ear.has(1))
    pool.disconnect("a")
    eventually(lambda: len(ear.journal) == 5)
    assert [entry._replace(at=0.0) for entry in ear.journal] == [
        Entry("online", 1),
        Entry("event", 1, RANGE + 1, ("a", "a")),
        Entry("offline", 1000),
        Entry("offline.permanent", 1000),
        Entry("disconnected"),
    ]


def test_tokens_are_renewed_once_for_all_who_were_refused() -> None:
    good: list[set[str]] = []
    tokens = Tokens(good.append)
    assert tokens.get() == "token-1"
    assert [tokens.refresh("token-1"), tokens.refresh("token-1")] == ["token-2", "token-2"]
    assert good == [{"token-2"}]
    tokens.failing = True
    with pytest.raises(OSError, match="down"):
        tokens.get()
