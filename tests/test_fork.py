"""A child knows that it is one, and what belongs to one process stays in it."""

from __future__ import annotations

import copy
import importlib.util
import os
import pickle
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from llm_sessions import _fork
from tests.support import LONG


def test_the_generation_stays_within_a_process() -> None:
    assert _fork.generation() == _fork.generation()


def test_each_fork_is_another_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    born_in = _fork.generation()
    monkeypatch.setattr(_fork, "_generation", born_in)  # put back after the test
    _fork._after_in_child()
    assert _fork.generation() == born_in + 1


def test_a_system_without_fork_has_one_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "register_at_fork", raising=False)
    spec = importlib.util.spec_from_file_location("llm_sessions._fork_without_fork", _fork.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.generation() == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.timeout(60)
def test_t7_children_and_grandchildren_differ_and_the_parent_does_not_change() -> None:
    # In a process of its own: to fork one that has threads is deprecated.
    script = """
        import os
        from llm_sessions import _fork

        def in_child(check):
            pid = os.fork()
            if pid == 0:
                os._exit(0 if check() else 1)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

        born_in = _fork.generation()

        def child():
            own = _fork.generation()
            return own != born_in and in_child(lambda: _fork.generation() not in (own, born_in))

        assert in_child(child)
        assert _fork.generation() == born_in
        print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.timeout(60)
def test_t7_a_meeting_whose_locks_are_held_at_the_fork_tells_the_child_so() -> None:
    # The thread that holds them is not in the child: whoever takes one there waits for good.
    script = """
        import os, signal, threading

        from llm_sessions import DataChannelClient, Meeting, PoolClosed
        from llm_sessions.testing.captions import Webinar
        from llm_sessions.testing.server import LocalServer

        def outcome(call):
            try:
                found = call()
            except PoolClosed:
                return "PoolClosed"
            return found if found is None or isinstance(found, (bool, str)) else type(found).__name__

        def meeting_calls(meeting, response):
            return {
                "join": lambda: meeting.join(response),
                "connect": meeting.connect,
                "update_locus": lambda: meeting.update_locus(response["locus"]),
                "update_roles": lambda: meeting.update_roles([]),
                "update_practice_session": lambda: meeting.update_practice_session(True),
                "admit": meeting.admit,
                "unadmit": meeting.unadmit,
                "request_practice_session": lambda: meeting.request_practice_session(True),
                "wait_online": meeting.wait_online,
                "on": lambda: meeting.on("online", print),
                "once": lambda: meeting.once("online", print),
                "off": lambda: meeting.off("online", print),
                "joined": lambda: meeting.joined,
                "last_error": lambda: meeting.last_error,
                "name": lambda: meeting.name == "",
                "captions": lambda: meeting.captions is None,
                "leave": meeting.leave,
            }

        def captions_calls(captions):
            return {
                "announce": captions.announce,
                "announce_state": lambda: captions.announce_state.value,
                "wait_languages": captions.wait_languages,
                "languages": lambda: captions.languages,
                "state": lambda: captions.state.value,
                "turn_on": captions.turn_on,
                "turn_off": captions.turn_off,
                "subscribe": captions.subscribe,
                "transcripts": captions.transcripts,
                "language": lambda: captions.language,
                "request_language": lambda: captions.request_language("de"),
                "set_spoken_language": lambda: captions.set_spoken_language("en"),
                "set_transcribing": lambda: captions.set_transcribing(True),
                "set_manual": lambda: captions.set_manual(True),
            }

        def public(one):
            return {name for name in dir(one) if not name.startswith("_")}

        def hold(locks, held, let_go):
            if locks:
                with locks[0]:
                    hold(locks[1:], held, let_go)
            else:
                held.set()
                let_go.wait()

        device = "https://wdm.example/devices/1"
        with LocalServer() as server, DataChannelClient("token", device=device) as client:
            response = Webinar(server).join_response()
            with Meeting(client) as meeting:
                meeting.join(response)
                meeting.wait_online()
                join, captions = meeting._join, meeting.captions
                lines = captions.transcripts()
                locks = [
                    meeting._lock,
                    join.captioning._lock,
                    join.hearing._lock,
                    meeting._delivery._lock,
                    client._holding._lock,
                    client._tokens._lock,
                ]
                held, let_go = threading.Event(), threading.Event()
                holder = threading.Thread(target=hold, args=(locks, held, let_go))
                holder.start()
                held.wait()
                child = os.fork()
                if child == 0:
                    signal.alarm(15)  # it ends a child that hangs
                    calls = meeting_calls(meeting, response)
                    assert set(calls) == public(meeting), public(meeting) ^ set(calls)
                    calls_2 = captions_calls(captions)
                    assert set(calls_2) == public(captions), public(captions) ^ set(calls_2)
                    for name, call in [*calls.items(), *calls_2.items()]:
                        print(name, outcome(call), flush=True)
                    print("next", outcome(lambda: next(lines)), flush=True)
                    print("exit", outcome(lambda: meeting.__exit__(None, None, None)), flush=True)
                    assert "joined" in repr(meeting) and "idle" in repr(captions)
                    os._exit(0)
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                let_go.set()
                holder.join()
                assert status == 0, status
                meeting.update_practice_session(True)
                assert meeting.wait_online().online
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=2 * LONG,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    told = dict(line.split() for line in done.stdout.splitlines())
    looks = {
        "joined": "True",
        "last_error": "None",
        "name": "False",
        "captions": "False",
        "leave": "None",
        "announce_state": "idle",
        "languages": "None",
        "state": "idle",
        "language": "None",
        "exit": "None",
    }
    assert told == {name: looks.get(name, "PoolClosed") for name in told} and looks.keys() < told.keys()


class Slotted(_fork.OneProcess):
    __slots__ = ("value",)


@pytest.mark.parametrize("refused", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_belongs_to_one_process_is_not_pickled_and_not_copied(refused: Any) -> None:
    with pytest.raises(TypeError, match=r"^Slotted objects cannot be pickled or copied: "):
        refused(Slotted())
    assert not hasattr(Slotted(), "__dict__")
