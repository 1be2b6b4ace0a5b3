"""The tables and pictures of the docs are those of the code."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from typing import Any

import pytest

from llm_sessions import PoolConfig, _sync
from llm_sessions.meetings import caption_reader
from llm_sessions.meetings.caption_protocol import announcement, language_request
from llm_sessions.pool.retry import delays
from llm_sessions.protocol.closing import FAILURES, classify_close
from llm_sessions.protocol.events import STATE_EVENTS
from llm_sessions.protocol.state import TRANSITIONS
from llm_sessions.protocol.url import connection_url
from llm_sessions.testing import pytest_plugin
from llm_sessions.testing.captions import CaptionService, Webinar
from llm_sessions.testing.clock import ManualClock
from llm_sessions.testing.proxy import FaultProxy
from llm_sessions.testing.server import LocalServer, ServerConnection
from tests.documents import blocks, languages, read, table_rows

pytest_plugins = ["pytester"]

ARCHITECTURE = read("docs/architecture.md")


def test_the_picture_of_the_states_is_the_table() -> None:
    drawn = set(re.findall(r"^    (\w+) --> (\w+) : (\w+)$", ARCHITECTURE, re.MULTILINE))
    real = {
        (before.value, after.value, trigger.value)
        for before, steps in TRANSITIONS.items()
        for trigger, after in steps.items()
    }
    assert drawn == real


def test_the_ranks_are_those_of_the_locks() -> None:
    ranks = [int(rank) for rank in re.findall(r"^\| (\d+) \|", ARCHITECTURE, re.MULTILINE)]
    assert ranks == [_sync.MEETING, _sync.POOL, _sync.SESSION, _sync.CONNECTION, _sync.STREAM, _sync.LEAF]


PROTOCOL = read("docs/protocol.md")


def test_the_failure_table_is_the_codes() -> None:
    written = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \| `(\w+)` \|$", PROTOCOL, re.MULTILINE)
    real = [
        (failure.name, rule.error, rule.first.name, rule.retried.name) for failure, rule in FAILURES.items()
    ]
    assert written == real


def test_the_close_table_is_the_codes() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (.*?) \| `([A-Z]+)` \|$", PROTOCOL, re.MULTILINE)
    assert len(rows) == 7
    for codes, reasons, meaning in rows:
        named = re.findall(r"`(.*?)`", reasons)
        for code in map(int, codes.split(", ")):
            for reason in named or ["", "something else"]:
                assert classify_close(code, reason).name == meaning, (code, reason)
                assert classify_close(code, reason.upper()).name == meaning


def test_every_event_is_described() -> None:
    described = set(re.findall(r"`([\w:.-]+)`", PROTOCOL.partition("### 2.4")[2]))
    assert described >= STATE_EVENTS


def test_the_relay_types_are_those_of_the_code() -> None:
    section = PROTOCOL.partition("### 4.3")[2]
    rows = {row[0]: (row[1], row[2]) for row in table_rows(section)}
    types = {name: sender for cell, (sender, _) in rows.items() for name in code_in(cell)}
    sent = {announcement().data["relayType"], language_request("en", "1").data["relayType"]}
    assert set(types) == set(caption_reader.READERS) | sent
    assert {name for name, sender in types.items() if sender == "client"} == sent
    kinds = code_in(rows["`voicea.transcription`"][1])[1:]
    assert kinds == list(caption_reader.TRANSCRIPTION_TYPES)


def test_the_url_and_the_times_are_those_of_the_code() -> None:
    query = connection_url("wss://h/", now_ms=1).partition("?")[2].replace("clientTimestamp=1", "")
    assert all(f"`{pair}`" in PROTOCOL for pair in query.split("&") if pair)
    config = PoolConfig()
    assert (config.open_timeout, config.ping_interval, config.pong_timeout) == (10, 15, 14)
    assert (config.force_close_delay, config.retire_timeout) == (2, 60)
    assert list(itertools.islice(delays(config.backoff_initial, config.backoff_max), 7)) == [
        1,
        2,
        4,
        8,
        16,
        32,
        32,
    ]


TESTING = read("docs/testing.md")
BLOCKS = blocks(TESTING)
TESTS = [re.findall(r"^ *def (test_\w+)\(", block, re.MULTILINE) for block in BLOCKS]


@pytest.mark.parametrize("number", range(len(BLOCKS)), ids=lambda number: TESTS[number][0])
def test_the_tests_of_the_page_on_testing_pass(
    number: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(BLOCKS[number])
    run = pytester.runpytest_inprocess
    if "import requests" in BLOCKS[number]:
        # It keeps the socket of a bad answer as long as there is its exception, and log records have that.
        run = pytester.runpytest_subprocess
        monkeypatch.setenv("NO_PROXY", "*")
    plugins = ("-p", pytest_plugin.__name__, "-p", "no:randomly", "-p", "no:cacheprovider")
    run(*plugins, "-W", "error").assert_outcomes(passed=len(TESTS[number]))


def test_there_is_no_code_on_testing_that_no_test_runs() -> None:
    assert BLOCKS and all(TESTS)
    assert sorted(languages(TESTING)) == ["console"] + ["python"] * len(BLOCKS)
    assert blocks(TESTING, "console") == ["$ pip install pytest 'llm-sessions[testing]'\n"]


def section(title: str) -> str:
    """The part of the page on testing from a heading to the next of its kind or a higher one."""
    level = title.partition(" ")[0]
    found = re.search(
        rf"^{re.escape(title)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", TESTING, re.DOTALL | re.MULTILINE
    )
    assert found is not None, title
    return found[1]


def code_in(cell: str) -> list[str]:
    return re.findall(r"`(.+?)`", cell)


def name_of(code: str) -> str:
    return re.split(r"\W", code)[0]


def check_call(code: str, function: Any, *, defaults: bool = True) -> None:
    """Hold a call in the text against the signature: its arguments exist, and values are the defaults."""
    call = ast.parse(code.replace("…", "..."), mode="eval").body
    assert isinstance(call, ast.Call)
    known = inspect.signature(function).parameters
    for argument in call.args:
        assert ast.unparse(argument) in known, code
    for keyword in call.keywords:
        assert keyword.arg in known, code
        value = ast.literal_eval(keyword.value)
        assert not defaults or value in (..., known[str(keyword.arg)].default), code


@pytest.mark.parametrize(
    ("title", "kind", "others"),
    [
        ("## What `LocalServer` can do", LocalServer, {"violations"}),  # an attribute
        ("## What `FaultProxy` can do", FaultProxy, set()),
        ("### `CaptionService`", CaptionService, {"service_id"}),  # an attribute
        ("### `Webinar`", Webinar, set()),
        ("### `llm_clock`", ManualClock, {"llm_clock"}),  # a call of the clock itself
    ],
)
def test_every_verb_is_described_as_it_is(title: str, kind: type[object], others: set[str]) -> None:
    rows = table_rows(section(title))
    verbs = [code for row in rows for code in code_in(row[0])]
    undo = [code for row in rows if len(row) == 3 for code in code_in(row[1])]
    public = {name for name in dir(kind) if not name.startswith("_")}
    assert {name_of(code) for code in verbs + undo} == public | others
    for code in verbs + undo:
        if "(" in code and name_of(code) in public:
            check_call(code, getattr(kind, name_of(code)), defaults=code in verbs)


def test_every_fixture_is_described_as_it_is() -> None:
    rows = table_rows(section("## The fixtures").partition("###")[0])
    fixtures = [name for name in vars(pytest_plugin) if name.startswith("llm_")]
    assert [name_of(row[0].strip("`")) for row in rows] == fixtures
    assert re.findall(r"^### `(llm_\w+)`$", TESTING, re.MULTILINE) == fixtures
    [proxy] = [row[2] for row in rows if "llm_fault_proxy" in row[0]]
    check_call(code_in(proxy)[0], FaultProxy)
    assert f"{pytest_plugin.POOL_SETTINGS['wait_timeout']:.0f} seconds" in section("### `llm_pool`")


def test_what_a_connection_has_is_what_it_has() -> None:
    documented = inspect.getdoc(ServerConnection) or ""
    for name in re.findall(r"`(\w+)`", section("### `llm_server`").partition("What a client sent")[2]):
        if name != "ServerConnection":
            assert f"{name}:" in documented, name
