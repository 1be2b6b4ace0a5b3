"""What each socket is told of captions, whatever becomes of sockets, channels and callers meanwhile."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from llm_sessions import ConnectCancelled, NotOnline, PoolClosed, WaitTimeout
from llm_sessions.connection.transport import LinkBroken
from llm_sessions.meetings.caption_protocol import AnnounceState, CaptionState
from llm_sessions.meetings.meeting import Meeting
from llm_sessions.meetings.worker import SESSIONS
from llm_sessions.protocol.mercury import EndCause, ShutdownAnnounced
from tests.datachannel.world import CHANNEL, OTHER, good
from tests.meetings.world import (
    DEFAULT,
    PRACTICE_SESSION,
    MeetingWorld,
    Voicea,
    answer,
    are_said,
    captioning,
    free,
    give,
    interrupted_at,
    languages,
    locus,
    panelist,
    said,
    transcript,
    world,
)
from tests.support import LONG, SHORT, Background, FakeLink, Gate, eventually, run_together

__all__ = ["world"]  # a fixture

SHUTDOWN = ShutdownAnnounced({"type": "shutdown"})
DEMOTED = ["ATTENDEE"]


def break_at_send(link: FakeLink) -> None:
    """Have the socket break when something is sent on it."""

    def send(payload: bytes, timeout: float | None) -> None:
        link.end()
        raise LinkBroken("gone", started=True)

    link.send = send  # type: ignore[method-assign]


# -- subscriptions -------------------------------------------------------------------------------------------


def test_i84_each_online_socket_gets_exactly_one_subscription(world: MeetingWorld) -> None:
    world.join()
    world.captions.subscribe()
    for number in range(1, 4):
        link = world.link(number=number)
        are_said(link, "subscribe")
        world.calm()
        assert said(link) == ["subscribe"]
        link.end()
    are_said(world.link(number=4), "subscribe")


def test_i84_a_switchover_subscribes_the_new_socket_without_an_online(world: MeetingWorld) -> None:
    world.join()
    world.captions.subscribe()
    first = world.link()
    give(first, SHUTDOWN)
    second = world.link(number=2)
    are_said(second, "subscribe")
    first.end(4001, "replaced by a switchover", EndCause.PEER)
    world.calm()
    assert (said(first), said(second)) == (["subscribe"], ["subscribe"])
    assert len(world.heard.payloads("online")) == 1


def test_i84_both_sessions_are_subscribed_and_a_later_practice_too(world: MeetingWorld) -> None:
    world.join()
    world.captions.subscribe()
    world.meeting.update_locus(locus(roles=["PANELIST"], practice=True))
    world.meeting.wait_online(PRACTICE_SESSION)
    main, practice = world.link(), world.link(PRACTICE_SESSION)
    are_said(practice, "subscribe")
    world.captions.turn_off()
    world.calm()
    assert said(main) == said(practice) == ["subscribe", "unsubscribe"]


def test_i84_none_is_sent_when_captions_are_off(world: MeetingWorld) -> None:
    world.join(both=True)
    world.captions.turn_off()
    world.link().end()
    world.link(number=2)
    world.calm()
    assert [link.sent for link in world.transport.links] == [[], [], []]


def test_i84_after_turn_off_later_sockets_get_none(world: MeetingWorld) -> None:
    world.join()
    world.captions.subscribe()
    world.captions.turn_off()
    world.captions.turn_off()
    assert said(world.link()) == ["subscribe", "unsubscribe"]
    world.link().end()
    second = world.link(number=2)
    world.calm()
    assert said(second) == []


def test_i84_without_data_channel_tokens_there_is_nothing_to_subscribe_to(world: MeetingWorld) -> None:
    meeting = Meeting(world.client(data_channel_tokens=False))
    meeting.join({"locus": locus()})
    meeting.wait_online()
    meeting.captions.turn_on()
    meeting.captions.turn_off()
    assert said(world.link()) == ["announce"]
    meeting.leave()


def test_a_subscription_names_the_channel_of_its_own_socket(world: MeetingWorld) -> None:
    world.join()
    world.captions.subscribe()
    world.meeting.update_locus(locus(channel=OTHER))
    second = world.link(number=2)
    are_said(second, "subscribe")
    uris = [json.loads(link.sent[0])["data"]["datachannelUri"] for link in world.links(DEFAULT)]
    assert uris == [CHANNEL, OTHER]


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(6))
def test_i84_whatever_the_threads_do_the_last_word_on_each_socket_is_what_is_wanted(
    world: MeetingWorld, seed: int
) -> None:
    world.join(both=True)
    chances = [random.Random(seed * 100 + number) for number in range(4)]
    mine = iter(chances)

    def change() -> None:
        chance = next(mine)
        for _ in range(30):
            match chance.randrange(6):
                case 0 | 1:
                    world.captions.subscribe()
                case 2 | 3:
                    world.captions.turn_off()
                case 4:
                    world.captions.turn_on()
                case _:
                    for link in world.links(chance.choice(SESSIONS))[-1:]:
                        if link.ready:
                            link.end()

    outcomes = run_together(4, change)
    assert outcomes == [None] * 4
    world.meeting.wait_online(DEFAULT)
    world.meeting.wait_online(PRACTICE_SESSION)
    found = captioning(world)
    for session_id in SESSIONS:
        link = world.links(session_id)[-1]
        eventually(lambda one=link: _subscribed(one) == found._subscribe)  # type: ignore[misc]
    world.calm()
    for session_id in SESSIONS:
        for link in world.links(session_id):
            words = [word for word in said(link) if word.endswith("subscribe")]
            assert words == (["subscribe", "unsubscribe"] * len(words))[: len(words)]
        assert _subscribed(world.links(session_id)[-1]) == found._subscribe
    free(world)


def _subscribed(link: FakeLink) -> bool:
    return [word for word in said(link) if word.endswith("subscribe")][-1:] == ["subscribe"]


# -- the announcement ----------------------------------------------------------------------------------------


def test_i86_an_answer_before_the_send_returns_is_received(world: MeetingWorld) -> None:
    Voicea(world)
    world.join()
    assert world.captions.languages is None
    world.captions.announce()
    found = world.captions.wait_languages(LONG)
    assert found.allowed_languages == ("de", "en") and found.service_id == "voicea-1"
    assert world.captions.announce_state is AnnounceState.JOINED and world.captions.languages is found


def test_announce_does_nothing_once_answered_and_asks_again_before(world: MeetingWorld) -> None:
    world.join()
    world.captions.announce()
    assert world.captions.announce_state is AnnounceState.JOINING
    world.captions.announce()
    assert said(world.link()) == ["announce", "announce"]
    give(world.link(), languages())
    world.captions.wait_languages()
    world.captions.announce()
    world.calm()
    assert said(world.link()) == ["announce", "announce"]


def test_announce_needs_a_channel(world: MeetingWorld) -> None:
    gate = Gate()
    world.answers = [lambda: (gate.pass_through(), good(1))[1]]
    world.meeting.join({"locus": locus()})
    gate.wait_arrived()
    with pytest.raises(NotOnline):
        world.captions.announce()
    gate.open()
    world.meeting.wait_online()
    world.calm()
    assert world.captions.announce_state is AnnounceState.IDLE and said(world.link()) == []


def test_i87_an_announcement_that_fails_does_not_fail_the_practice_connect(world: MeetingWorld) -> None:
    world.join()
    world.captions.announce()

    def open_broken(link: FakeLink) -> None:
        send = link.send

        def fail(payload: bytes, timeout: float | None) -> None:
            link.send = send  # type: ignore[method-assign]
            raise LinkBroken("no room", started=False)

        link.send = fail  # type: ignore[method-assign]
        link.become_ready()

    world.transport.on_open = open_broken
    world.meeting.update_locus(locus(roles=["PANELIST"], practice=True))
    world.meeting.wait_online(PRACTICE_SESSION)
    world.calm()
    assert world.one.is_connected(PRACTICE_SESSION) and world.heard.payloads("failed") == []
    free(world)


def test_i88_socket_route_and_address_are_of_one_session(world: MeetingWorld) -> None:
    world.join(both=True)
    world.captions.turn_on()
    main, practice = world.link(), world.link(PRACTICE_SESSION)
    are_said(practice, "subscribe", "announce")
    are_said(main, "subscribe")
    subscription, announcement = (json.loads(one) for one in practice.sent)
    assert subscription["data"]["datachannelUri"] == world.one.datachannel_url(PRACTICE_SESSION)
    assert announcement["recipients"] == {"route": world.one.binding(PRACTICE_SESSION)}
    assert announcement["data"]["clientPayload"] == {"version": "v2"}


def test_i89_a_socket_that_breaks_at_the_announcement_is_no_error_and_the_next_one_gets_it(
    world: MeetingWorld,
) -> None:
    world.join()
    break_at_send(world.link())
    world.captions.announce()
    second = world.link(number=2)
    are_said(second, "announce")
    give(second, languages())
    world.captions.wait_languages()


def test_an_announcement_is_made_again_on_each_practice_socket(world: MeetingWorld) -> None:
    Voicea(world)
    world.join()
    world.captions.announce()
    world.captions.wait_languages()
    world.meeting.update_locus(locus(roles=["PANELIST"], practice=True))
    for number in (1, 2):
        link = world.link(PRACTICE_SESSION, number)
        are_said(link, "announce")
        assert json.loads(link.sent[0])["headers"] == {"to": "voicea-1"}
        world.calm()
        link.end()
    assert said(world.link()) == ["announce"]


@pytest.mark.parametrize("answered", [True, False])
def test_a_new_default_socket_is_announced_only_if_there_was_no_answer(
    world: MeetingWorld, answered: bool
) -> None:
    world.join()
    world.captions.announce()
    if answered:
        give(world.link(), languages())
        world.captions.wait_languages()
    world.link().end()
    second = world.link(number=2)
    world.heard.wait("online", 2)
    world.calm()
    assert said(second) == ([] if answered else ["announce"])


def test_demoted_while_unanswered_the_default_socket_is_used(world: MeetingWorld) -> None:
    world.join(both=True)
    world.captions.announce()
    assert said(world.link(PRACTICE_SESSION)) == ["announce"] and said(world.link()) == []
    world.meeting.update_roles(DEMOTED)
    are_said(world.link(), "announce")


def test_somebody_elses_answer_is_nobodys(world: MeetingWorld) -> None:
    world.join()
    give(world.link(), languages())
    world.calm()
    assert world.captions.languages is None and world.captions.announce_state is AnnounceState.IDLE


# -- captions on and off -------------------------------------------------------------------------------------


def test_i93_captions_asked_for_before_any_channel_is_up_start_on_the_first(world: MeetingWorld) -> None:
    gate = Gate()
    world.answers = [lambda: (gate.pass_through(), good(1))[1]]
    world.meeting.join({"locus": locus()})
    gate.wait_arrived()
    world.captions.turn_on("en")
    assert world.captions.state is CaptionState.ENABLED
    gate.open()
    are_said(world.link(), "subscribe", "announce")


def test_i93_while_the_default_channel_is_lost_the_practice_one_is_used(world: MeetingWorld) -> None:
    world.join(both=True)
    world.transport.on_open = lambda link: None
    world.link().end()
    world.captions.turn_on()
    are_said(world.link(PRACTICE_SESSION), "subscribe", "announce")


def test_i90_another_address_keeps_languages_intent_and_listeners(world: MeetingWorld) -> None:
    Voicea(world)
    world.join()
    world.captions.turn_on()
    before = world.captions.wait_languages()
    world.captions.request_language("de")
    with world.captions.transcripts(LONG) as lines:
        world.meeting.update_locus(locus(channel=OTHER))
        second = world.link(number=2)
        are_said(second, "subscribe")
        give(second, transcript("here"))
        assert next(lines).text == "here"
    assert world.captions.languages is before and world.captions.language == "de"


def refused() -> tuple[int, Any]:
    return 403, {"message": "not you"}


def test_overlapping_calls_the_newest_counts(world: MeetingWorld) -> None:
    gate = Gate()
    world.join()
    world.grants = [lambda: (gate.pass_through(), (200, {}))[1]]
    slow = Background(lambda: world.captions.turn_on())
    gate.wait_arrived()
    assert world.captions.state is CaptionState.SENDING
    world.captions.turn_off()
    gate.open()
    slow.result()
    assert world.captions.state is CaptionState.IDLE and said(world.link()) == []


@pytest.mark.parametrize("first", ["refusal", "grant"])
def test_overlapping_a_refusal_takes_nothing_from_what_another_call_was_granted(
    world: MeetingWorld, first: str
) -> None:
    old, new = Gate(), Gate()
    world.join()
    world.grants = [
        lambda: (old.pass_through(), (200, {}))[1],
        lambda: (new.pass_through(), refused())[1],
    ]
    granted = Background(lambda: world.captions.turn_on("en"))
    old.wait_arrived()
    denied = Background(lambda: world.captions.turn_on("es"))
    new.wait_arrived()
    for gate, call in ((new, denied.error), (old, granted.result))[:: 1 if first == "refusal" else -1]:
        gate.open()
        call()
    assert world.captions.state is CaptionState.ENABLED
    assert said(world.link()) == ["subscribe", "announce"]


# -- the caption language ------------------------------------------------------------------------------------


def ready(world: MeetingWorld) -> Voicea:
    """Both sides know each other."""
    service = Voicea(world)
    world.join()
    world.captions.announce()
    world.captions.wait_languages()
    return service


def restart(service: Voicea, link: FakeLink) -> None:
    """The service is another one from now on, and says so."""
    number = int(service.service_id.removeprefix("voicea-")) + 1
    service.service_id = f"voicea-{number}"
    give(link, languages(service.service_id))


def test_a_new_service_is_asked_for_the_language_once(world: MeetingWorld) -> None:
    service = ready(world)
    world.captions.request_language("de")
    restart(service, world.link())
    eventually(lambda: len(service.asked) == 2)
    give(world.link(), languages(service.service_id))
    world.calm()
    assert service.asked == [("de", "voicea-1"), ("de", "voicea-2")] and world.captions.language == "de"


def test_a_new_service_that_refuses_leaves_no_language(world: MeetingWorld) -> None:
    service = ready(world)
    world.captions.request_language("de")
    service.refuses = {"de"}
    restart(service, world.link())
    eventually(lambda: world.captions.language is None)
    assert len(service.asked) == 2


def test_without_a_language_a_new_service_is_asked_for_none(world: MeetingWorld) -> None:
    service = ready(world)
    restart(service, world.link())
    world.calm()
    assert service.asked == []


def test_a_second_new_service_is_asked_though_the_first_has_not_answered(world: MeetingWorld) -> None:
    service = ready(world)
    world.captions.request_language("de")
    service.quiet = True
    restart(service, world.link())
    eventually(lambda: len(service.asked) == 2)
    service.quiet = False
    restart(service, world.link())
    world.calm()
    assert service.asked[1:] == [("de", "voicea-2"), ("de", "voicea-3")]
    assert world.captions.language == "de"


def test_a_request_that_is_under_way_goes_to_the_new_service_as_well(world: MeetingWorld) -> None:
    service = ready(world)
    service.quiet = True
    asking = Background(lambda: world.captions.request_language("de", LONG))
    eventually(lambda: len(service.asked) == 1)
    service.quiet = False
    restart(service, world.link())
    assert asking.result().ok and service.asked[1:] == [("de", "voicea-2")]


@pytest.mark.parametrize("ok", [True, False])
def test_a_late_answer_of_the_service_before_settles_no_request(world: MeetingWorld, ok: bool) -> None:
    service = ready(world)
    service.quiet = True
    asking = Background(lambda: world.captions.request_language("de", LONG))
    eventually(lambda: len(service.asked) == 1)
    restart(service, world.link())
    eventually(lambda: len(service.asked) == 2)
    give(world.link(), answer(ok, "voicea-1"))
    world.calm()
    assert not asking.done and world.captions.language is None
    give(world.link(), answer(not ok, "voicea-2"))
    found = asking.result()
    assert (found.ok, found.service_id) == (not ok, "voicea-2")
    assert world.captions.language == (None if ok else "de")


@pytest.mark.parametrize("how", ["refused", "unanswered"])
def test_a_request_that_fails_leaves_the_language_to_the_new_service(world: MeetingWorld, how: str) -> None:
    service = ready(world)
    world.captions.request_language("de")
    service.quiet, service.refuses = True, {"en"}
    asking = Background(lambda: world.captions.request_language("en", LONG))
    eventually(lambda: len(service.asked) == 2)
    restart(service, world.link())
    eventually(lambda: ("en", "voicea-2") in service.asked)
    service.quiet = False
    if how == "refused":
        give(world.link(), answer(ok=False))
        assert not asking.result().ok
    else:
        ask = captioning(world)._ask
        assert ask is not None
        ask.over.set()  # as when its time is up
        assert isinstance(asking.error(), WaitTimeout)
    eventually(lambda: service.asked[-1] == ("de", "voicea-2"))
    world.calm()
    assert world.captions.language == "de" and len(service.asked) == 4


# -- the end -------------------------------------------------------------------------------------------------


def test_what_is_over_says_so_and_is_idle(world: MeetingWorld) -> None:
    service = ready(world)
    world.captions.turn_on()
    world.captions.request_language("de")
    found = captioning(world)
    found.end(ConnectCancelled(DEFAULT, "left"))
    found.end(PoolClosed())
    sent = len(world.link().sent)
    for call in (
        found.announce,
        found.turn_off,
        found.subscribe,
        lambda: found.wait_languages(LONG),
        lambda: found.request_language("de", LONG),
        lambda: found.turn_on({}),
        lambda: found.transcripts(1, None, nullcontext),
    ):
        with pytest.raises(ConnectCancelled, match="left"):
            call()
    found.sync()
    give(world.link(), languages("voicea-9"))
    world.calm()
    assert len(world.link().sent) == sent and len(service.asked) == 1
    assert (found.announce_state, found.caption_state) == (AnnounceState.IDLE, CaptionState.IDLE)
    assert found.languages is None and found.chosen is None


# -- Ctrl-C --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["wait_languages", "request_language"])
def test_t5_ctrl_c_in_a_wait_strands_nobody(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    world.join()
    world.captions.announce()
    calls: dict[str, Callable[[], Any]] = {
        "wait_languages": lambda: world.captions.wait_languages(LONG),
        "request_language": lambda: world.captions.request_language("de", LONG),
    }
    wait, me = captioning(world)._news.__class__.wait, threading.current_thread()

    def strike(self: Any, timeout: float | None = None) -> bool:
        if threading.current_thread() is me:
            raise KeyboardInterrupt
        return bool(wait(self, timeout))

    waiting = Background(calls[call])
    if call == "request_language":
        are_said(world.link(), "announce", "ask de")
    with monkeypatch.context() as patch:
        patch.setattr(captioning(world)._news.__class__, "wait", strike)
        with pytest.raises(KeyboardInterrupt):
            calls[call]()
    free(world)
    give(world.link(), languages(), answer())
    assert waiting.result() is not None


def test_t5_ctrl_c_during_a_request_leaves_the_place_to_the_next(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.join()
    latch = captioning(world)._news.__class__
    wait, me = latch.wait, threading.current_thread()
    second: list[Background] = []

    def strike(self: Any, timeout: float | None = None) -> bool:
        if threading.current_thread() is me:
            second.append(Background(lambda: world.captions.request_language("en", LONG)))
            raise KeyboardInterrupt
        return bool(wait(self, timeout))

    with monkeypatch.context() as patch:
        patch.setattr(latch, "wait", strike)
        with pytest.raises(KeyboardInterrupt):
            world.captions.request_language("de", LONG)
    are_said(world.link(), "ask de", "ask en")
    give(world.link(), answer())
    assert second[0].result().ok and world.captions.language == "en"


@pytest.mark.parametrize("after", [True, False])
def test_t5_ctrl_c_in_the_put_of_turn_on_keeps_what_was_before(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    world.join()
    with monkeypatch.context() as patch:
        interrupted_at(patch, type(world.one._rest), "call", after=after)
        with pytest.raises(KeyboardInterrupt):
            world.captions.turn_on()
    assert world.captions.state is CaptionState.IDLE and said(world.link()) == []
    free(world)
    world.captions.turn_on()
    assert world.captions.state is CaptionState.ENABLED


def test_a_request_waits_for_a_channel(world: MeetingWorld) -> None:
    service = Voicea(world)
    gate = Gate()
    world.answers = [lambda: (gate.pass_through(), good(1))[1]]
    world.meeting.join(panelist())
    gate.wait_arrived()
    asking = Background(lambda: world.captions.request_language("de", LONG))
    eventually(lambda: captioning(world)._ask is not None)
    gate.open()
    assert asking.result().ok and service.asked[0] == ("de", None)


def test_a_request_that_is_lost_with_its_socket_goes_out_on_the_next(world: MeetingWorld) -> None:
    world.join()
    asking = Background(lambda: world.captions.request_language("de", LONG))
    are_said(world.link(), "ask de")
    world.link().end()
    second = world.link(number=2)
    are_said(second, "ask de")
    give(second, answer())
    assert asking.result().ok and world.captions.language == "de"


def test_a_late_answer_is_nobodys(world: MeetingWorld) -> None:
    world.join()
    with pytest.raises(WaitTimeout, match="'de'"):
        world.captions.request_language("de", SHORT)
    give(world.link(), answer())
    world.calm()
    assert world.captions.language is None


def test_an_answer_that_names_another_request_is_nobodys(world: MeetingWorld) -> None:
    world.join()
    asking = Background(lambda: world.captions.request_language("de", LONG))
    are_said(world.link(), "ask de")
    own = json.loads(world.link().sent[0])["data"]["clientPayload"]["id"]
    give(world.link(), answer(ok=False, id="another"))
    world.calm()
    assert not asking.done
    give(world.link(), answer(id=own))
    assert asking.result().ok


def test_one_request_at_a_time(world: MeetingWorld) -> None:
    world.join()
    first = Background(lambda: world.captions.request_language("de", LONG))
    are_said(world.link(), "ask de")
    with pytest.raises(WaitTimeout, match="another request"):
        world.captions.request_language("en", SHORT)
    second = Background(lambda: world.captions.request_language("en", LONG))
    world.calm()
    assert said(world.link()) == ["ask de"]
    give(world.link(), answer())
    assert first.result().ok
    eventually(lambda: said(world.link()) == ["ask de", "ask en"])
    give(world.link(), answer(ok=False))
    assert not second.result().ok and world.captions.language == "de"
