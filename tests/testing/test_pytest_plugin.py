"""The fixtures for tests of programs that use this library, in test runs inside this one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import LONG

pytest_plugins = ["pytester"]

PLUGIN = ("-p", "llm_sessions.testing.pytest_plugin")  # the entry point may be installed or not
QUIET = ("-p", "no:randomly", "-p", "no:cacheprovider", "-W", "error")


def run(pytester: pytest.Pytester, source: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    return pytester.runpytest_inprocess(*PLUGIN, *QUIET)


def test_pools_connect_to_both_servers(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import threading

        def test_plain(llm_server, llm_pool):
            pool = llm_pool()
            pool.connect(session_id="a", url=llm_server.url("a"))
            assert llm_server.wait_live("a")[0].token == "token"

        def test_tls(llm_tls_server, llm_pool):
            pool = llm_pool("other", ssl_context=llm_tls_server.client_context)
            pool.connect(session_id="a", url=llm_tls_server.url("a"))
            assert llm_tls_server.wait_live("a")[0].token == "other"

        def test_that_nothing_is_left():
            assert [t.name for t in threading.enumerate() if t.name.startswith("llm-")] == []
        """,
    )
    result.assert_outcomes(passed=3)


def test_violations_fail_the_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import socket, pytest

        def violate(server):
            with socket.create_connection((server.host, server.port), timeout=20) as sock:
                sock.sendall(b"nonsense\\r\\n\\r\\n")
                server.wait_for(lambda: server.violations)

        def test_plain(llm_server):
            violate(llm_server)

        def test_on_purpose(llm_server):
            violate(llm_server)
            llm_server.violations.clear()
        """,
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*clients of the server did wrong:*", "*not HTTP*"])


def test_every_pool_is_closed_also_after_a_failure(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import pytest
        from llm_sessions import PoolClosed

        pools = []

        def test_fails(llm_server, llm_pool):
            pools.extend(llm_pool(backoff_max=1.0) for _ in range(2))
            for pool in pools:
                pool.connect(session_id="a", url=llm_server.url("a"))
            assert False

        def test_then():
            for pool in pools:
                with pytest.raises(PoolClosed):
                    pool.connect(session_id="a", url="ws://127.0.0.1:1")
        """,
    )
    result.assert_outcomes(passed=1, failed=1)


def test_a_pool_gives_up_waiting_in_any_order_of_the_fixtures(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def test_it(llm_pool, llm_server):  # the server goes first
            llm_pool().connect(session_id="a", url=llm_server.url("a"))
        """,
    )
    result.assert_outcomes(passed=1)


def test_a_module_that_is_missing_is_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs_more(**options: object) -> None:
        raise ModuleNotFoundError("No module named 'trustme'", name="trustme")

    monkeypatch.setattr("llm_sessions.testing.server.LocalServer", needs_more)
    result = run(pytester, "def test_it(llm_tls_server): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["LocalServer needs trustme, *: pip install 'llm-sessions[[]testing]'"])


def test_the_proxy_is_between(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        import threading

        def test_it(llm_server, llm_fault_proxy):
            first, second = llm_fault_proxy(llm_server), llm_fault_proxy(llm_server)
            assert len({llm_server.port, first.port, second.port}) == 3

        def test_that_nothing_is_left():
            assert [t.name for t in threading.enumerate() if t.name.startswith("llm-")] == []
        """,
    )
    result.assert_outcomes(passed=2)


def test_the_clock_stands_still(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
        def test_it(llm_clock):
            before = llm_clock()
            llm_clock.advance(5)
            assert llm_clock() - before == 5
        """,
    )
    result.assert_outcomes(passed=1)


def test_fixtures_are_listed_with_what_they_do(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess(*PLUGIN, *QUIET, "--fixtures")
    for name in ("llm_server", "llm_tls_server", "llm_pool", "llm_fault_proxy", "llm_clock"):
        result.stdout.fnmatch_lines([f"{name} --*", "    *"])


def test_who_does_not_use_it_does_not_pay_for_what_it_gives() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules)\n"
        "import llm_sessions.testing.pytest_plugin\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LONG * 3)
    assert done.stdout.split() == ["llm_sessions"]
