"""The sessions of `listen`: what they tell the mailbox, and that nothing is lost at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_sessions import NotAuthorized, PoolConfig, RegistrationError, SessionState, StaticToken
from llm_sessions.cli.filters import Filter
from llm_sessions.cli.lines import Line
from llm_sessions.cli.mailbox import Mailbox
from llm_sessions.cli.sessions import Closed, Failed, Plan, SessionEnded, Sessions
from llm_sessions.cli.targets import OWN_DEVICE, Kind, Target
from llm_sessions.testing.server import LocalServer
from tests.support import LONG, QUICK, eventually

Make = Callable[..., tuple[Sessions, Mailbox]]


@pytest.fixture
def make(server: LocalServer) -> Iterator[Make]:
    """Make sessions of targets; all are closed in the end."""
    made: list[tuple[Sessions, Mailbox]] = []

    def make(*targets: Target, events: tuple[str, ...] = (), size: int = 1000, **more: Any) -> Any:
        mailbox = Mailbox(size)
        config = PoolConfig(**{**QUICK, **more.pop("config", {})})
        names = [one.session for one in targets]
        plan = Plan(targets, StaticToken("token"), config, Filter(events, names), **more)
        made.append((Sessions(plan, mailbox, wall=lambda: 5.0), mailbox))
        return made[-1]

    yield make
    for sessions, mailbox in made:
        if not sessions._closing:
            sessions.begin_close()
            drain(mailbox)


def drain(mailbox: Mailbox) -> list[object]:
    """Return all that is still to come, `Closed` included."""
    found: list[object] = []
    while not isinstance(found[-1] if found else None, Closed):
        news = mailbox.get(LONG)
        assert news is not None, f"nothing more came after {found[-3:]}"
        found.append(news)
    return found


def socket(server: LocalServer, name: str) -> Target:
    return Target(name, Kind.WEBSOCKET, server.url(name))


def test_lines_of_all_sessions_and_a_polite_end(server: LocalServer, make: Make) -> None:
    sessions, mailbox = make(socket(server, "main"), socket(server, "practice"))
    assert sessions.never_online == ["main", "practice"]
    sessions.start()
    for name in ("main", "practice"):
        server.wait_live(name)
        server.publish({"text": name}, session=name)
    eventually(lambda: not sessions.never_online)
    server.wait_for(lambda: all(len(one.acks) > 1 for one in server.live()))
    sessions.begin_close()
    sessions.begin_close()
    lines = drain(mailbox)
    for name in ("main", "practice"):
        mine = [one for one in lines if isinstance(one, Line) and one.session == name]
        assert [one.event for one in mine] == [
            "online",
            "event:relay.event",
            "offline.permanent",
            "disconnected",
        ]
        assert mine[1] == Line(name, "event:relay.event", 5.0, {"eventType": "relay.event", "text": name})
    assert not [one for one in lines if isinstance(one, SessionEnded)]
    assert [(one.close_code, one.close_reason) for one in server.connections()] == [(1000, "Done")] * 2
    assert [one.messages_in for one in sessions.stats()] == [2, 2]


def test_what_is_not_wanted_makes_no_line_and_is_heard_all_the_same(server: LocalServer, make: Make) -> None:
    sessions, mailbox = make(socket(server, "main"), events=("event:relay.event",))
    sessions.start()
    server.wait_live("main")
    server.publish(event_type="other.event", session="main")
    server.publish(session="main")
    server.close_session("main", 1000, "over")
    found = [mailbox.get(LONG), mailbox.get(LONG)]
    assert isinstance(found[0], Line) and found[0].event == "event:relay.event"
    assert found[1] == SessionEnded("main")
    assert sessions.never_online == []


def test_t4_with_a_full_mailbox_nothing_is_lost_at_the_end(server: LocalServer, make: Make) -> None:
    sessions, mailbox = make(socket(server, "main"), events=("event:relay.event",), size=2)
    sessions.start()
    server.wait_live("main")
    for number in range(300):
        server.publish({"n": number}, session="main")
    [stats] = sessions.stats()
    eventually(lambda: sessions.stats()[0].messages_in == 301)
    sessions.begin_close()
    lines = [one for one in drain(mailbox) if isinstance(one, Line)]
    assert [one.data["n"] for one in lines] == list(range(300))
    assert stats.dropped == 0


def test_t4_a_slow_reader_is_waited_for(
    server: LocalServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_sessions.cli.sessions._CLOSE_LIMIT", 0.02)  # runs out several times
    sessions, mailbox = make(socket(server, "main"), events=("event:relay.event",), size=1)
    sessions.start()
    server.wait_live("main")
    for number in range(40):
        server.publish({"n": number}, session="main")
    eventually(lambda: sessions.stats()[0].messages_in == 41)
    sessions.begin_close()
    eventually(lambda: sessions.all[0].state is SessionState.IDLE)
    assert not [one for one in drain(mailbox)[:-1] if not isinstance(one, Line)]
    assert sessions.stats()[0].queue_depth == 0


def test_a_replaced_socket_ends_nothing(server: LocalServer, make: Make) -> None:
    sessions, mailbox = make(socket(server, "main"), events=("offline.replaced", "online"))
    sessions.start()
    [old] = server.wait_live("main")
    server.shutdown_frame("main")
    server.wait_live("main", 2)
    old.close(4001, "shutdown")
    found = [mailbox.get(LONG), mailbox.get(LONG)]
    assert [one.event for one in found if isinstance(one, Line)] == ["online", "offline.replaced"]
    sessions.begin_close()
    assert [one for one in drain(mailbox) if isinstance(one, SessionEnded)] == []


def test_a_session_that_never_comes_online(server: LocalServer, make: Make) -> None:
    server.tokens = {"another"}
    sessions, mailbox = make(socket(server, "main"), events=("online",))
    sessions.start()
    news = mailbox.get(LONG)
    assert isinstance(news, Failed) and isinstance(news.error, NotAuthorized) and news.session == "main"
    assert sessions.get("main").last_error is not None


def test_an_end_before_the_beginning_is_no_failure(server: LocalServer, make: Make) -> None:
    server.hold_upgrades()
    sessions, mailbox = make(socket(server, "main"))
    sessions.start()
    server.wait_for(lambda: len(server.connections("main")) == 1)
    sessions.begin_close()
    assert [one for one in drain(mailbox) if isinstance(one, Failed)] == []
    assert sessions.never_online == ["main"]


def test_somebody_else_ends_it(server: LocalServer, make: Make) -> None:
    server.hold_upgrades()
    sessions, mailbox = make(socket(server, "main"))
    sessions.start()
    server.wait_for(lambda: len(server.connections("main")) == 1)
    sessions.get("main").disconnect()
    news = mailbox.get(LONG)
    while isinstance(news, Line):
        news = mailbox.get(LONG)
    assert isinstance(news, Failed) and "disconnect() came first" in str(news.error)


def test_by_registration(server: LocalServer, make: Make) -> None:
    target = Target("main", Kind.REGISTRATION, server.datachannel_url("main"))
    sessions, mailbox = make(target, device="https://wdm.example/devices/1", events=("event:relay.event",))
    sessions.start()
    [connection] = server.wait_live("main")
    server.publish({"text": "hello"}, session="main")
    line = mailbox.get(LONG)
    assert isinstance(line, Line) and line.data["text"] == "hello"
    [request] = server.requests
    assert (request.method, request.body) == ("POST", {"deviceUrl": "https://wdm.example/devices/1"})
    assert "subscriptionAwareSubchannels" not in connection.query  # captions come without a subscription


def test_a_registration_that_is_refused(server: LocalServer, make: Make) -> None:
    server.reject_rest(403)
    target = Target("main", Kind.REGISTRATION, server.datachannel_url("main"))
    sessions, mailbox = make(target, device="https://wdm.example/devices/1", events=("online",))
    sessions.start()
    news = mailbox.get(LONG)
    assert isinstance(news, Failed) and isinstance(news.error, RegistrationError)


def test_by_the_own_device_which_registers_others_too_and_is_deleted(server: LocalServer, make: Make) -> None:
    targets = [
        Target("main", Kind.REGISTRATION, server.datachannel_url("main")),
        Target(OWN_DEVICE, Kind.DEVICE),
    ]
    catalog = f"{server.base_url}/u2c/api/v1/catalog"
    sessions, mailbox = make(*targets, catalog=catalog, device_name="mine", events=("event:a",))
    sessions.start()
    server.wait_live(count=2)
    [key] = {one.session for one in server.live()} - {"main"}
    server.publish(session=key, event_type="a.b")
    line = mailbox.get(LONG)
    assert isinstance(line, Line) and (line.session, line.event) == (OWN_DEVICE, "event:a.b")
    [created] = [one for one in server.requests if one.method == "POST" and "devices" in one.path]
    assert created.body["name"] == "mine"
    [registered] = [one for one in server.requests if one.path == "/datachannel/main"]
    assert registered.body["deviceUrl"].endswith(key)
    sessions.begin_close()
    drain(mailbox)
    assert server.requests[-1].method == "DELETE" and server.requests[-1].path.endswith(key)
