"""Does to the sessions of the pools what the plan says."""

from __future__ import annotations

import collections
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from llm_sessions.testing.proxy import FaultProxy
from llm_sessions.testing.server import ServerConnection
from tests.chaos.client import Ear, Tokens
from tests.chaos.plan import Action
from tests.chaos.service import Service

__all__ = ["Director", "Script", "ServerScript"]


class Script:
    """Carries out actions at their times, and undoes those that last.

    Args:
        actions: What to do; a method `do_<kind>` of the class that inherits from this does it, and returns
            how to undo it, or None.
        began: When the round did, in monotonic seconds.

    Attributes:
        log: What was done, and when.
        counts: How often, by kind.
    """

    def __init__(self, actions: Sequence[Action], began: float) -> None:
        self._order = itertools.count()
        self._began = began
        self._due: list[tuple[float, int, str, Callable[[], Any]]] = []
        self.log: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()
        for action in actions:
            self._push(action.at, str(action), partial(self._do, action))

    def _push(self, at: float, text: str, call: Callable[[], Any]) -> None:
        heapq.heappush(self._due, (at, next(self._order), text, call))

    def _do(self, action: Action) -> None:
        self.counts[action.kind] += 1
        undo = getattr(self, f"do_{action.kind}")(action)
        if undo is not None:
            self._push(action.at + action.seconds, f"        end of {action.kind} {action.session}", undo)

    def run(self, stop: threading.Event) -> None:
        """Do it all; when stopped, undo the rest at once."""
        while self._due:
            at, _, text, call = heapq.heappop(self._due)
            if stop.wait(max(0.0, self._began + at - time.monotonic())) and not text.startswith(" "):
                continue
            self.log.append(f"{time.monotonic() - self._began:7.3f} did {text.strip()}")
            call()


class ServerScript(Script):
    """What the server of any sessions does to them.

    Args:
        actions: See `Script`.
        began: See `Script`.
        service: The server, and what was published on it.
    """

    def __init__(self, actions: Sequence[Action], began: float, service: Service) -> None:
        super().__init__(actions, began)
        self._service = service

    def do_drop(self, action: Action) -> None:
        self._service.server.drop(action.session)

    def do_close(self, action: Action) -> None:
        self._service.server.close_session(action.session, *action.value)

    def do_shutdown(self, action: Action) -> Callable[[], Any]:
        return announce(self._service, action)

    def do_reject(self, action: Action) -> None:
        reject(self._service, action)

    def do_skip(self, action: Action) -> None:
        self._service.fate(str(action.session), "skipped", action.value)

    def do_burst(self, action: Action) -> None:
        for _ in range(action.value):
            self._service.publish(str(action.session))

    def do_mute(self, action: Action) -> Callable[[], Any]:
        self._service.server.mute(action.session)
        return lambda: self._service.server.unmute(action.session)


class Director(ServerScript):
    """The director of the pools' sessions.

    Args:
        actions: The plan's.
        began: See `Script`.
        service: What the sessions are connected to.
        proxies: What is in between, by key.
        ears: Their listeners, by key.
        tokens: Where their tokens come from.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        began: float,
        service: Service,
        proxies: Mapping[str, FaultProxy],
        ears: Mapping[str, Ear],
        tokens: Tokens,
    ) -> None:
        super().__init__(actions, began, service)
        self._proxies, self._ears, self._tokens = proxies, ears, tokens

    # --- by the server

    def do_garbage(self, action: Action) -> None:
        send_garbage(self._service, action.session, action.value)

    def do_spoil(self, action: Action) -> None:
        self._service.fate(str(action.session), "spoiled", how=action.value)

    def do_restart(self, action: Action) -> Callable[[], Any]:
        self._service.stop()
        return self._service.start

    def do_new_token(self, action: Action) -> None:
        self._tokens.renew()

    def do_wrong_pong(self, action: Action) -> Callable[[], Any]:
        self._service.server.wrong_pong(action.session)
        return lambda: self._service.server.wrong_pong(action.session, on=False)

    def do_withhold_ready(self, action: Action) -> Callable[[], Any]:
        self._service.server.withhold_ready(action.session)
        return lambda: self._service.server.release_ready(action.session)

    def do_hold_upgrades(self, action: Action) -> Callable[[], Any]:
        self._service.server.hold_upgrades(action.session)
        return lambda: self._service.server.release_upgrades(action.session)

    def do_stall_reads(self, action: Action) -> Callable[[], Any]:
        self._service.server.stall_reads(action.session)
        return lambda: self._service.server.resume_reads(action.session)

    def do_ignore_close(self, action: Action) -> Callable[[], Any]:
        self._service.server.ignore_close(action.session)
        return lambda: self._service.server.ignore_close(action.session, on=False)

    # --- by the network

    def _proxy(self, action: Action) -> FaultProxy:
        return self._proxies[str(action.session)]

    def do_reset(self, action: Action) -> None:
        proxy = self._proxy(action)
        proxy.reset(on=proxy.live())

    def do_cut(self, action: Action) -> None:
        proxy = self._proxy(action)
        proxy.cut(on=proxy.live(), direction=action.value)

    def do_black_hole(self, action: Action) -> Callable[[], Any]:
        proxy = self._proxy(action)
        proxy.black_hole(on=proxy.live(), direction=action.value)
        return proxy.heal

    def do_freeze(self, action: Action) -> Callable[[], Any]:
        proxy = self._proxy(action)
        proxy.black_hole(stop_reading=True, direction=action.value)
        return proxy.heal

    def do_drip(self, action: Action) -> Callable[[], Any]:
        proxy = self._proxy(action)
        proxy.drip((1, action.value), (0.0, 0.002))
        return proxy.heal

    def do_delay(self, action: Action) -> Callable[[], Any]:
        proxy = self._proxy(action)
        proxy.delay((0.0, action.value))
        return proxy.heal

    def do_refuse(self, action: Action) -> Callable[[], Any]:
        proxy = self._proxy(action)
        proxy.refuse()
        return proxy.heal

    def do_hold_connects(self, action: Action) -> Callable[[], Any]:
        proxy = self._proxy(action)
        proxy.hold_connects()
        return proxy.heal

    def do_early_reset(self, action: Action) -> None:
        self._proxy(action).reset(after=(0, 6000), times=action.value)

    # --- by the program

    def do_slow_listener(self, action: Action) -> None:
        self._ears[str(action.session)].be_slow(action.seconds)

    def do_blocked_token(self, action: Action) -> Callable[[], Any]:
        self._tokens.block()
        return self._tokens.unblock

    def do_failing_token(self, action: Action) -> Callable[[], Any]:
        self._tokens.failing = True

        def heal() -> None:
            self._tokens.failing = False

        return heal


def announce(service: Service, action: Action) -> Callable[[], Any]:
    """Announce a shutdown; return how the old sockets go in the end."""
    key = str(action.session)
    old = service.server.live(key)
    service.server.shutdown_frame(key)

    def go(connection: ServerConnection) -> None:
        if action.value == "drop":
            connection.drop()
        elif action.value in ("4001", "1006", "1000"):
            connection.close(int(action.value), "" if action.value == "1006" else "gone")

    def farewell() -> None:
        if action.value == "again":
            service.server.shutdown_frame(key)
        for connection in old:
            go(connection)

    return farewell


def reject(service: Service, action: Action) -> None:
    code, times = action.value
    headers = {"Retry-After": "1"} if code in (429, 503) else None
    service.server.reject(code, session=action.session, times=times, headers=headers)


_GOOD = b'{"id":"good","data":{"eventType":"chaos.other"}}'
_FRAMES: Mapping[str, bytes] = {
    "null": b"\x81\x04null",
    "[]": b"\x81\x02[]",
    "{": b"\x81\x01{",
    "binary": b"\x82\x03\0\1\2",
    "utf-8": b"\x81\x04\xff\xfe\xfd\xfc",
    "deep": b"\x81\x7e\x27\x10" + b"[" * 10_000,
    "empty": b"\x81\x00",
    "ping": b"\x89\x04ping",
    "strange": b'\x81\x2e{"id":[1],"data":"no","type":7,"headers":null}',
    # A ping between the parts of a message.
    "fragments": b"\x01\x05" + _GOOD[:5] + b"\x89\x00" + bytes([0x80, len(_GOOD) - 5]) + _GOOD[5:],
}


def send_garbage(service: Service, key: str | None, what: str) -> None:
    """Send what has its place between messages, and what has none."""
    service.server.send_raw(_FRAMES[what], session=key, ids=["good"])
