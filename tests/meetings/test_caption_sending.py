"""Who sends what is due about captions, and what Ctrl-C leaves of it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions.meetings.caption_sending import CaptionSending
from tests.meetings.world import (
    DEFAULT,
    MeetingWorld,
    captioning,
    free,
    interrupted_at,
    said,
    world,
)
from tests.support import Background, Gate, eventually

__all__ = ["world"]  # a fixture


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("name", ["_send_one", "_has_more", "_due"])
def test_t5_an_interrupted_sender_leaves_nothing_marked(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, name: str, after: bool
) -> None:
    world.join()
    with monkeypatch.context() as patch:
        interrupted_at(patch, captioning(world)._sending, name, after=after)
        with pytest.raises(KeyboardInterrupt):
            world.captions.subscribe()
        free(world)
    world.captions.subscribe()
    eventually(lambda: "subscribe" in said(world.link()))
    free(world)


@pytest.mark.parametrize("on", [True, False])
def test_t5_what_an_interrupted_send_may_not_have_sent_is_due_again(world: MeetingWorld, on: bool) -> None:
    world.join()
    link = world.link()
    if not on:
        world.captions.subscribe()
    send, strikes = link.send, iter([True])

    def strike(payload: bytes, timeout: float | None) -> None:
        if next(strikes, False):
            raise KeyboardInterrupt
        send(payload, timeout)

    link.send = strike  # type: ignore[method-assign]
    call: Callable[[], None] = world.captions.subscribe if on else world.captions.turn_off
    with pytest.raises(KeyboardInterrupt):
        call()
    call()
    assert said(link)[-1] == ("subscribe" if on else "unsubscribe")
    free(world)


@pytest.mark.parametrize(("name", "strike_at"), [("_send_one", 2), ("_send_one", 3), ("_has_more", 1)])
def test_t5_what_another_thread_left_to_an_interrupted_sender_goes_out(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch, name: str, strike_at: int
) -> None:
    world.join()
    link, gate, me = world.link(), Gate(), threading.current_thread()
    send, first, calls = link.send, iter([True]), itertools.count(1)

    def stop(payload: bytes, timeout: float | None) -> None:
        send(payload, timeout)
        if next(first, False):
            gate.pass_through()

    def strike(self: CaptionSending, session_id: str, *args: Any) -> Any:
        if threading.current_thread() is me and session_id == DEFAULT and next(calls) == strike_at:
            raise KeyboardInterrupt
        return method(self, session_id, *args)

    def other() -> None:
        gate.wait_arrived()
        world.captions.turn_off()  # leaves it to the first one
        gate.open()

    link.send = stop  # type: ignore[method-assign]
    method = getattr(CaptionSending, name)
    monkeypatch.setattr(CaptionSending, name, strike)
    helper = Background(other)
    with pytest.raises(KeyboardInterrupt):
        world.captions.subscribe()
    helper.result()
    assert said(link) == ["subscribe", "unsubscribe"]
    free(world)


def test_t5_what_was_left_to_a_sender_that_had_already_taken_it_over_goes_out(
    world: MeetingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.join()
    link, me, strikes = world.link(), threading.current_thread(), iter([True])
    taken: list[bool] = []
    has_more, send_one = CaptionSending._has_more, CaptionSending._send_one

    def late(self: CaptionSending, session_id: str, *args: Any) -> bool:
        if threading.current_thread() is me and session_id == DEFAULT and next(strikes, False):
            Background(world.captions.turn_off).result()  # leaves it to this thread
            taken.append(has_more(self, session_id, *args))
            return taken[-1]
        return has_more(self, session_id, *args)

    def strike(self: CaptionSending, session_id: str) -> bool:
        if taken == [True] and threading.current_thread() is me:
            taken.clear()
            raise KeyboardInterrupt
        return send_one(self, session_id)

    monkeypatch.setattr(CaptionSending, "_has_more", late)
    monkeypatch.setattr(CaptionSending, "_send_one", strike)
    with pytest.raises(KeyboardInterrupt):
        world.captions.subscribe()
    assert said(link) == ["subscribe", "unsubscribe"]
    free(world)


def test_t14_who_sends_on_a_stalled_socket_holds_up_nobody_else(world: MeetingWorld) -> None:
    world.join()
    link, gate = world.link(), Gate()
    send, first = link.send, iter([True])

    def stall(payload: bytes, timeout: float | None) -> None:
        if next(first, False):
            gate.pass_through()
        send(payload, timeout)

    link.send = stall  # type: ignore[method-assign]
    stalled = Background(world.captions.subscribe)
    gate.wait_arrived()
    world.captions.turn_off()  # returns
    assert world.captions.languages is None and said(link) == []
    gate.open()
    stalled.result()
    assert said(link) == ["subscribe", "unsubscribe"]
