"""A child knows that it is one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap

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
