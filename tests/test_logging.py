"""Records say which session they are about; whatever looks like a credential is gone."""

from __future__ import annotations

import gc
import itertools
import logging
import string
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_sessions import _logging
from llm_sessions._logging import (
    Repeats,
    SessionLogger,
    get_logger,
    guarded,
    know_secret,
    one_line,
    redact,
    without_secrets,
)
from tests.support import Background, Gate, run_together

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s1g_-nature"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        # JSON.
        ('{"token": "Bearer abc"}', '{"token": "***"}'),
        ('{"token":"abc","x":1}', '{"token":"***","x":1}'),
        ('{"access_token" : "a b c"}', '{"access_token" : "***"}'),
        ('{"datachannelToken":"abc", "x": "abc"}', '{"datachannelToken":"***", "x": "abc"}'),
        ('{"practiceSessionDatachannelToken": "abc"}', '{"practiceSessionDatachannelToken": "***"}'),
        ("Bearer%20abc&x=1", "Bearer%20***&x=1"),
        ('{"token": "a\\"b c"}', '{"token": "***"}'),
        ('"{\\"token\\": \\"Bearer abc\\"}"', '"{\\"token\\": \\"***\\"}"'),
        ('{"password": "a b", "secret": "c"}', '{"password": "***", "secret": "***"}'),
        ('{"token": 12345}', '{"token": ***}'),
        # Python.
        ("{'token': 'Bearer abc'}", "{'token': '***'}"),
        ("{b'token': b'abc'}", "{b'token': b'***'}"),
        ("Client(token='abc', x=1)", "Client(token='***', x=1)"),
        ("Client(access_token=abc, x=1)", "Client(access_token=***, x=1)"),
        ("{'Authorization': 'Bearer abc'}", "{'Authorization': '***'}"),
        # Headers.
        ("Authorization: Bearer abc", "Authorization: ***"),
        ("authorization:bearer abc\r\nHost: h", "authorization:***\r\nHost: h"),
        ("Authorization: abc", "Authorization: ***"),
        ("Proxy-Authorization: Basic dTpw", "Proxy-Authorization: ***"),
        ("Data-Channel-Auth-Token: x", "Data-Channel-Auth-Token: ***"),
        ("data-channel-auth-token:x, y", "data-channel-auth-token:***, y"),
        # Queries and URLs.
        ("?access_token=abc&x=1", "?access_token=***&x=1"),
        ("wss://h/p?x=1&token=abc", "wss://h/p?x=1&token=***"),
        ("wss://h/p?client_secret=abc#f", "wss://h/p?client_secret=***"),
        ("https://user:pw@h/p", "https://***@h/p"),
        ("https://user@h:1/p", "https://***@h:1/p"),
        # By themselves.
        (f"got {JWT}, fine", "got ***, fine"),
        (f"<{JWT}>", "<***>"),
        (f"token: {JWT}", "token: ***"),
        (f"Bearer%20{JWT}&x=1", "Bearer%20***&x=1"),
        (f"x%3D{JWT}", "x%3D***"),
        ("eyJa.eyJb.", "***"),
        ("eyJa.b.c.d.e rest", "*** rest"),
        ("sent Bearer abc, refused", "sent Bearer ***, refused"),
        ("BEARER\tabc", "BEARER\t***"),
        ("token: ZGVhZGJlZWYtZGVhZA_P0A1", "token: ***"),
        ("accessToken: abc", "accessToken: ***"),
    ],
)
def test_t11_credentials_are_replaced(text: str, redacted: str) -> None:
    assert redact(text) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the token was refreshed",
        "token: must be a string, not int",
        "token: neither the pool nor connect() was given one",
        "no token; tokens=3; tokenizer: on",
        "refreshing the token failed: timed out",
        "the bearer of bad news",
        "Bearer token was refused; Bearer authentication is needed",
        "NotAuthorized: session 'a': the server refused the access token (4401)",
        "authorized, authorizing, authorization",
        '{"type":"authorization","trackingId":"x_1"}',
        '{"token": null, "token": ""}',
        "Client(token=None)",
        "token == other, token != other",
        "wss://example.org:443/path/a@b?x=y@z",
        "user@example.org",
        "mercury.buffer_state eyJ eyJa eyJa.b heyJa.b.c",
        "[llm-default-session] message 7 came, 5 was due",
        "a secret meeting and its password policy",
        "line\nbreak\ttab ünï 😀 \\ \" '",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


TOKEN = st.text(string.ascii_letters + string.digits + "-_.", min_size=8).filter(
    lambda token: any(c.isdigit() for c in token)
)


@given(TOKEN, st.text(max_size=20), st.text(max_size=20))
def test_t11_a_token_in_any_of_these_places_is_gone(token: str, before: str, after: str) -> None:
    secret = f"S3CRET{token}"
    part = secret.replace(".", "_")
    for carried in (
        f'"token": "{secret}"',
        f'"token":"Bearer {secret}"',
        f"'token': 'Bearer {secret}'",
        f"Authorization: Bearer {secret}",
        f"Data-Channel-Auth-Token: {secret}",
        f"?access_token={secret}&x=1",
        f"eyJ{part}.{part}.{part}",
        f" token: {secret}-0123456789",
    ):
        assert "S3CRET" not in redact(f"{before} {carried} {after}")


@given(
    st.lists(
        st.sampled_from([*"\"'\\:=&;, {}%@/.-", "token", "Bearer ", "eyJ", "a", "b1", "://", "null", "\n"])
    )
)
def test_redacting_twice_changes_nothing_more(parts: list[str]) -> None:
    once = redact("".join(parts))
    assert redact(once) == once


@pytest.mark.parametrize(
    "part",
    [
        *[
            "token",
            "token:",
            'token"',
            'token="',
            "token=\\",
            "token ",
            " ",
            "\\",
            "a-",
            "a",
            "a.",
            "-token: ",
        ],
        *[
            "eyJ",
            "eyJa.",
            "eyJ-",
            "%20eyJ",
            "://",
            "://a",
            "bearer ",
            "bearer",
            "secret : ",
            "authorization\\\\",
        ],
    ],
)
@pytest.mark.timeout(30)
def test_redacting_takes_linear_time(part: str) -> None:
    # A quadratic match would take many minutes on this.
    size = 80_000
    for text in ("", "token", 'token"', "eyJa.", "bearer", "://"):
        redact(text + part * (size // len(part)) + "!")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("wss://user:pw@Example.org:8443/p?token=abc#frag", "wss://example.org:8443/p"),
        ("wss://h", "wss://h"),
        ("wss://h:0/", "wss://h:0/"),
        ("wss://[::1]:80/p?x", "wss://[::1]:80/p"),
        ("https://h/p;x=1", "https://h/p;x=1"),
        ("wss://h:port/p?token=abc", "<not a URL>"),
        ("wss://[::1/p?token=abc", "<not a URL>"),
        ("", "://"),
    ],
)
def test_t11_a_url_in_a_log_has_no_query_and_no_user(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


@pytest.mark.parametrize(
    ("text", "line"), [("", ""), ("two\r\nlines\x1b[2J\u2028", "two  lines [2J "), ("Ünï 😀 %s", "Ünï 😀 %s")]
)
def test_what_somebody_else_said_is_one_line(text: str, line: str) -> None:
    assert one_line(text) == line


# -- known secrets, and what every record goes through -----------------------------------------------------


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Return the secrets that are known, none to begin with."""
    monkeypatch.setattr(_logging, "_known", ({}, {}))
    monkeypatch.setattr(_logging, "_said", itertools.count(1))
    return lambda: [*_logging._known[0], *_logging._known[1]]


Known = Callable[[], list[str]]


def test_t11_a_known_secret_is_gone_wherever_it_is(known: Known) -> None:
    know_secret("ZDI3MGEyYzQtNmFl")
    assert redact("he said ZDI3MGEyYzQtNmFl, twice: ZDI3MGEyYzQtNmFl") == "he said ***, twice: ***"
    know_secret("short")
    assert redact("in short") == "in short" and known() == ["ZDI3MGEyYzQtNmFl"]


def test_the_newest_thousand_secrets_are_known(known: Known) -> None:
    for number in range(5000):
        know_secret(f"secret-number-{number}")
        know_secret("used again and again")
        assert any(f"secret-number-{max(0, number - 1000)}" in some for some in _logging._known)
        assert any("used again and again" in some for some in _logging._known)
        assert len(known()) <= 2 * 1024
    assert "secret-number-2000" not in known()


def test_secrets_may_come_from_many_threads_while_records_are_written(known: Known) -> None:
    numbers = iter(range(10**6))

    def work() -> None:
        for _ in range(300):
            know_secret(f"secret-{next(numbers)}")
            assert redact("secret-0 and others").endswith("and others")

    assert run_together(8, work) == [None] * 8
    assert len(known()) <= 2 * (1024 + 8)


@pytest.mark.parametrize("moment", range(10))
@pytest.mark.parametrize("before", [2047, 2048])  # the limit comes with the next one, or has just come
def test_t11_a_finalizer_may_say_a_secret_and_log_at_any_moment(
    moment: int, before: int, known: Known, caplog: pytest.LogCaptureFixture
) -> None:
    """A garbage collection may come wherever an object is made."""
    log, collections, threshold = get_logger("test"), itertools.count(), gc.get_threshold()
    ran: list[str] = []

    def finalize(phase: str, info: object) -> None:
        if phase == "start" and next(collections) == moment:
            know_secret("of-the-finalizer")
            log.warning("of-the-finalizer")
            ran.append(redact("of-the-finalizer"))

    for number in range(before):
        know_secret(f"secret-number-{number}")
    # Python keeps some tuples for later: with these gone, new ones are really made.
    pairs = [(number, number) for number in range(5000)]
    gc.callbacks.append(finalize)
    gc.set_threshold(1)
    try:
        know_secret("said-meanwhile")
        shown = redact("said-meanwhile secret-number-1500")
        while not ran:  # the interpreter chooses the moments
            pairs.append((len(pairs), 0))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(finalize)
    assert (shown, ran, caplog.messages) == ("*** ***", ["***"], ["***"])
    assert redact("said-meanwhile of-the-finalizer secret-number-1500") == "*** *** ***"


class Stops(dict[str, None]):
    """Stops at a gate before the first secret is written down."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gates = [gate]

    def __setitem__(self, secret: str, value: None) -> None:
        if self._gates:
            self._gates.pop().pass_through()
        super().__setitem__(secret, value)


@pytest.mark.parametrize("others", [1024, 3 * 1024])
def test_t11_a_secret_that_others_overtake_is_known(
    others: int, known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    monkeypatch.setattr(_logging, "_known", (Stops(gate), {}))
    call = Background(lambda: know_secret("overtaken"))
    gate.wait_arrived()
    for number in range(others):
        know_secret(f"secret-number-{number}")
    gate.open()
    call.result()
    for number in range(others, others + 1000):
        know_secret(f"secret-number-{number}")
        assert redact(f"overtaken secret-number-{number}") == "*** ***"


class Numbers:
    """Counts; whoever is told one of these numbers stops at a gate."""

    def __init__(self, gate: Gate, number: int) -> None:
        self._numbers, self._gate, self._number = itertools.count(1), gate, number

    def __next__(self) -> int:
        number = next(self._numbers)
        if number == self._number:
            self._gate.pass_through()
        return number


def test_t11_who_makes_room_late_takes_nothing_away(known: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    monkeypatch.setattr(_logging, "_said", Numbers(gate, 1024))
    for number in range(1023):
        know_secret(f"secret-number-{number}")
    call = Background(lambda: know_secret("of-the-late-thread"))
    gate.wait_arrived()
    for number in range(1023, 1500):
        know_secret(f"secret-number-{number}")
    gate.open()
    call.result()
    assert len(known()) == 1501


def test_t11_a_secret_of_a_class_that_compares_in_its_own_way(known: Known) -> None:
    class Odd(str):
        __slots__ = ()

        def __hash__(self) -> int:
            return id(self)

        def __eq__(self, other: object) -> bool:
            return False

    know_secret(Odd("0123456789abcdef"))
    assert [type(one) for one in known()] == [str] and redact("0123456789abcdef") == "***"


def record_of(caplog: pytest.LogCaptureFixture, log: Callable[[logging.Logger], object]) -> logging.LogRecord:
    caplog.set_level(logging.DEBUG)
    log(get_logger("test"))
    (record,) = caplog.records
    return record


def test_t11_a_secret_is_known_at_every_moment(known: Known) -> None:
    """Every attempt says again that its token is a secret."""
    know_secret("0123456789abcdef")
    done = threading.Event()

    def again() -> None:
        while not done.is_set():
            know_secret("0123456789abcdef")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        others = [Background(again) for _ in range(2)]
        shown = {redact("-0123456789abcdef-") for _ in range(3000)}
    finally:
        done.set()
        sys.setswitchinterval(interval)
    for other in others:
        other.result()
    assert shown == {"-***-"}


def test_t11_a_secret_within_another_and_one_in_a_url_are_gone(known: Known) -> None:
    for secret in ("0123456789", "0123456789abcdef", "p@ss/word+1234"):
        know_secret(secret)
    assert redact("0123456789abcdef 0123456789 x=p%40ss%2Fword%2B1234") == "*** *** x=***"


def test_what_cannot_be_formatted_does_not_end_who_logs(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    record = record_of(caplog, lambda log: log.info("failed: %s", Broken()))
    assert record.getMessage() == "'failed: %s' cannot be formatted: RuntimeError"


def test_t11_every_record_of_our_loggers_is_redacted(caplog: pytest.LogCaptureFixture, known: Known) -> None:
    know_secret("0123456789abcdef")
    record = record_of(caplog, lambda log: log.info("got %s from %s", "0123456789abcdef", {"token": "abc"}))
    assert record.getMessage() == "got *** from {'token': '***'}"
    assert "0123456789abcdef" not in repr(vars(record))


def test_a_record_without_secrets_keeps_its_parts(caplog: pytest.LogCaptureFixture) -> None:
    record = record_of(caplog, lambda log: log.info("%d of %s", 1, "x"))
    assert (record.msg, record.args) == ("%d of %s", (1, "x"))


def test_t11_a_secret_in_a_traceback_is_gone_and_other_exceptions_stay(
    caplog: pytest.LogCaptureFixture, known: Known
) -> None:
    know_secret("0123456789abcdef")
    log = get_logger("test")
    caplog.set_level(logging.DEBUG)
    error = ValueError("harmless")
    try:
        try:
            raise KeyError("0123456789abcdef")
        except KeyError as cause:
            raise ValueError("could not") from cause
    except ValueError:
        log.exception("one")
    try:
        raise error
    except ValueError:
        log.exception("two")
    one, two = caplog.records
    text = logging.Formatter().format(one)
    assert "KeyError: '***'" in text and "ValueError: could not" in text and one.exc_info is None
    assert "0123456789abcdef" not in text
    assert two.exc_info is not None and two.exc_info[1] is error
    log.info("three", exc_info=True)  # noqa: LOG014  # it must not fail where there is nothing to tell
    assert "three" in caplog.text


def test_every_logger_of_the_library_redacts() -> None:
    """Also those that a later layer adds: there is no other way to get one."""
    package = Path(_logging.__file__).parent
    for path in package.rglob("*.py"):
        relative = path.relative_to(package)
        if relative.parts[0] in ("testing", "cli") or relative.name in ("_logging.py", "__init__.py"):
            continue
        assert "logging.getLogger" not in path.read_text(encoding="utf-8"), relative


# -- records that are alike ---------------------------------------------------------------------------------


def test_of_records_that_are_alike_one_a_minute_makes_a_line() -> None:
    now = [0.0]
    repeats = Repeats(lambda: now[0])
    assert [repeats.due("a"), repeats.due("a"), repeats.due("b"), repeats.due("a")] == [0, None, 0, None]
    now[0] = 59.9
    assert repeats.due("a") is None
    now[0] = 60.0
    assert [repeats.due("a"), repeats.due("a"), repeats.due("b")] == [3, None, 0]
    repeats.forget()
    assert [repeats.due("a"), repeats.due("b")] == [0, 0]


def test_kinds_of_records_are_not_remembered_without_end() -> None:
    repeats = Repeats(lambda: 0.0)
    for number in range(10_000):
        assert repeats.due(f"kind {number}") == 0
    assert len(repeats._seen) <= 257


def test_what_is_left_out_is_counted_and_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    repeats, log = Repeats(lambda: now[0]), logged(caplog)
    for at in (0.0, 1.0, 2.0, 61.0):
        now[0] = at
        log.thinned(repeats, "x", logging.WARNING, "%s again", at)()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "[captions] 0.0 again"),
        ("DEBUG", "[captions] 1.0 again"),
        ("DEBUG", "[captions] 2.0 again"),
        ("WARNING", "[captions] 61.0 again (and 2 more like it since the last line)"),
    ]


# -- the adapter ----------------------------------------------------------------------------------------


def logged(caplog: pytest.LogCaptureFixture, session_id: str = "captions", **extra: object) -> SessionLogger:
    caplog.set_level(logging.DEBUG)
    return SessionLogger(logging.getLogger("llm_sessions.test"), {"session_id": session_id, **extra})


def test_records_begin_with_the_session_and_carry_it(caplog: pytest.LogCaptureFixture) -> None:
    logged(caplog).warning("%d came, %d was due", 7, 5)
    (record,) = caplog.records
    assert record.getMessage() == "[captions] 7 came, 5 was due"
    assert record.__dict__["session_id"] == "captions"
    assert record.name == "llm_sessions.test"
    assert record.filename == "test_logging.py"


def test_extra_of_the_call_is_added(caplog: pytest.LogCaptureFixture) -> None:
    log = logged(caplog, generation=3)
    log.info("one", extra={"url": "u", "generation": 4})
    log.info("two", extra=None)
    one, two = caplog.records
    assert (one.__dict__["url"], one.__dict__["generation"], one.__dict__["session_id"]) == (
        "u",
        4,
        "captions",
    )
    assert two.__dict__["generation"] == 3


def test_a_session_named_with_a_percent_sign_breaks_no_record(caplog: pytest.LogCaptureFixture) -> None:
    log = logged(caplog, "100%d sure %s")
    log.info("latency %.1f ms", 2.5)
    log.info("%s", "x%dy")
    log.info("closed")
    assert [record.getMessage() for record in caplog.records] == [
        "[100%d sure %s] latency 2.5 ms",
        "[100%d sure %s] x%dy",
        "[100%d sure %s] closed",
    ]


def test_an_adapter_without_extra_works(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    SessionLogger(logging.getLogger("llm_sessions.test"), None).info("text")
    assert caplog.records[0].getMessage() == "[None] text"


def test_the_library_sets_no_level_and_no_handler() -> None:
    for name in ("llm_sessions", "llm_sessions.pool", "llm_sessions.connection", "llm_sessions.dispatch"):
        log = logging.getLogger(name)
        assert log.level == logging.NOTSET
        assert [handler for handler in log.handlers if not isinstance(handler, logging.NullHandler)] == []


def test_nothing_is_printed_for_programs_without_logging() -> None:
    script = (
        "import logging\n"
        "from llm_sessions import *\n"
        "pool = ConnectionPool('t', config=PoolConfig(initial_max_retries=0))\n"
        "try:\n"
        "    pool.connect('ws://127.0.0.1:1/x')\n"
        "except ConnectError as error:\n"
        "    print(type(error).__name__)\n"
        "pool.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("ConnectError\n", "")


@pytest.mark.parametrize("error", [ValueError, SystemExit])
@pytest.mark.parametrize("raises", [True, False])
def test_a_log_handler_that_raises_does_not_end_a_guarded_thread(
    error: type[BaseException], raises: bool, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", raises)

    def fail() -> None:
        raise error("the log handler's")

    guarded(fail)
    assert ("the log handler's" in capsys.readouterr().err) is raises, "as logging itself tells of it"
