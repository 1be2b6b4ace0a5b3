"""The tables of PROTOCOL 1.5 and 2.2, written out here and held against the code."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_sessions import errors
from llm_sessions.errors import ConfigurationError
from llm_sessions.protocol.closing import (
    DEFAULT_CODE,
    DEFAULT_REASON,
    FAILURES,
    CloseMeaning,
    Failure,
    First,
    Retried,
    check_close,
    classify_close,
    classify_failed_open,
    classify_status,
    fixed_up,
    forced_close,
)

TRANSIENT, PERMANENT = CloseMeaning.TRANSIENT, CloseMeaning.PERMANENT
REPLACED, UNAUTHORIZED = CloseMeaning.REPLACED, CloseMeaning.UNAUTHORIZED


# -- PROTOCOL 1.5: what a caller may ask for, and what is reported ----------------------------------------


def test_the_defaults() -> None:
    assert (DEFAULT_CODE, DEFAULT_REASON) == (1000, "Done")


@pytest.mark.parametrize("code", [None, 1000, 3000, 3050, 4000, 4999])
def test_i5_good_close_codes_pass(code: int | None) -> None:
    check_close(code, None)
    check_close(code, "bye")


@pytest.mark.parametrize(
    "code",
    [1001, 2999, 5000, 0, -1, 999, 1002, 1005, 1006, 1011, 65536, True, False, 1000.0, "1000", b"", []],
)
def test_i5_a_bad_close_code_is_refused(code: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_close(code, None)
    assert caught.value.argument == "code"


@pytest.mark.parametrize("reason", ["", "x" * 123, "ü" * 61, "€" * 41, "\x00"])
def test_reasons_of_up_to_123_bytes_pass(reason: str) -> None:
    check_close(1000, reason)


@pytest.mark.parametrize("reason", ["x" * 124, "ü" * 62, "\ud800", 5, b"bytes", True, ["x"]])
def test_i5_a_reason_that_cannot_be_sent_is_refused(reason: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_close(1000, reason)
    assert caught.value.argument == "reason"


@pytest.mark.parametrize(
    ("code", "reason", "reported"),
    [
        (None, None, (1000, "Done (forced)")),  # nothing
        (None, "bye", (1000, "Done (forced)")),  # only a reason
        (None, "", (1000, "Done (forced)")),
        (3050, "done (permanent)", (3050, "done (permanent)")),  # code C, reason R
        (1000, "Done", (1000, "Done")),
        (4000, "", (4000, "")),
        (3050, None, (3050, "Done (unknown)")),  # code C only
        (1000, None, (1000, "Done (unknown)")),
    ],
)
def test_i3_a_forced_close_reports_the_table(
    code: int | None, reason: str | None, reported: tuple[int, str]
) -> None:
    assert forced_close(code, reason) == reported


LATE = "authentication did not happen within the timeout window of 30000 seconds."


@pytest.mark.parametrize(
    ("code", "reason", "meant"),
    [
        (1005, "replaced", 4000),
        (1005, "Replaced", 4000),
        (1005, "authentication failed", 1008),
        (1005, "AUTHENTICATION FAILED", 1008),
        (1005, LATE, 1008),
        (1005, LATE.title(), 1008),
        (1005, LATE[:-1], 1005),
        (1005, "", 1005),
        (1005, "replaced ", 1005),
        (1005, "other", 1005),
        (1000, "replaced", 1000),
        (1006, "authentication failed", 1006),
        (4001, "replaced", 4001),
        (1008, "replaced", 1008),
    ],
)
def test_only_1005_with_a_known_reason_is_fixed_up(code: int, reason: str, meant: int) -> None:
    assert fixed_up(code, reason) == (meant, reason)


# -- PROTOCOL 2.2: what the close of the active socket means ----------------------------------------------

IDLE = ["idle", "done (forced)", "pong not received", "pong mismatch"]
OTHER = ["", "done", "Done", "done (permanent)", "done (unknown)", "idle ", "xidle", "replaced", "anything"]


@pytest.mark.parametrize(
    ("code", "reason", "meaning"),
    [
        *[(code, reason, TRANSIENT) for code in (1001, 1005, 1006, 1011) for reason in IDLE + OTHER],
        *[(code, reason, TRANSIENT) for code in (1000, 3050) for reason in IDLE],
        *[(code, reason.upper(), TRANSIENT) for code in (1000, 3050) for reason in IDLE],
        *[(code, reason, PERMANENT) for code in (1000, 3050) for reason in OTHER],
        (4000, "replaced", REPLACED),
        (4000, "Replaced", REPLACED),
        *[(4000, reason, TRANSIENT) for reason in [*IDLE, "", "other", "replaced by another"]],
        *[(4001, reason, PERMANENT) for reason in IDLE + OTHER],
        *[(4401, reason, UNAUTHORIZED) for reason in IDLE + OTHER],
        *[(code, reason, PERMANENT) for code in (1003, 1008) for reason in IDLE + OTHER],
        *[
            (code, reason, PERMANENT)
            for code in (0, 999, 1002, 1004, 1007, 1009, 1010, 1012, 1013, 1014, 1015, 2999, 3000)
            for reason in ("", "idle")
        ],
        *[(code, "idle", PERMANENT) for code in (3049, 3051, 3999, 4002, 4400, 4403, 4404, 4410, 4999, 5000)],
    ],
)
def test_i30_d16_what_a_close_of_the_active_socket_means(
    code: int, reason: str, meaning: CloseMeaning
) -> None:
    assert classify_close(code, reason) is meaning


def test_i10_what_we_report_for_a_dead_keepalive_reconnects() -> None:
    for reason in ("Pong not received", "Pong mismatch"):
        assert classify_close(*forced_close(1000, reason)) is TRANSIENT
    assert classify_close(*forced_close(None, None)) is TRANSIENT


def test_i30_a_1005_that_said_replaced_stops() -> None:
    assert classify_close(*fixed_up(1005, "Replaced")) is REPLACED
    assert classify_close(*fixed_up(1005, "authentication failed")) is PERMANENT


@given(st.integers(0, 65535), st.text(max_size=123))
def test_every_close_has_a_meaning_and_only_these_codes_reconnect(code: int, reason: str) -> None:
    meaning = classify_close(code, reason)
    if meaning in (TRANSIENT, UNAUTHORIZED):
        assert code in (1000, 1001, 1005, 1006, 1011, 3050, 4000, 4401)


# -- PROTOCOL 1.5: a failed attempt ------------------------------------------------------------------------

NO, YES = Retried.NO, Retried.YES


@pytest.mark.parametrize(
    ("failure", "error", "first", "retried"),
    [
        (Failure.NETWORK, "ConnectError", First.NOTHING, YES),
        (Failure.BUSY, "ConnectError", First.HONOUR_RETRY_AFTER, YES),
        (Failure.STALE, "ConnectError", First.TELL_ENDPOINT, YES),
        (Failure.UNKNOWN_RESPONSE, "UnknownResponse", First.TELL_ENDPOINT, YES),
        (Failure.SHORT_LIVED, "ConnectionLost", First.TELL_ENDPOINT, YES),
        (Failure.UNAUTHORIZED, "NotAuthorized", First.REFRESH_TOKEN, Retried.IF_REFRESHED),
        (
            Failure.SOURCE,
            "ConnectError",
            First.HONOUR_RETRY_AFTER,
            YES,
        ),  # an endpoint's 429 comes by this row
        (Failure.BAD_REQUEST, "BadRequest", First.NOTHING, NO),
        (Failure.FORBIDDEN, "Forbidden", First.NOTHING, NO),
        (Failure.REFUSED, "RegistrationError", First.NOTHING, NO),
        (Failure.UNTRUSTED, "ConnectError", First.NOTHING, Retried.ONCE_ONLINE),
        (Failure.MISPLACED, "ConnectError", First.NOTHING, Retried.ONCE_ONLINE),
        (Failure.MISCONFIGURED, "ConfigurationError", First.NOTHING, NO),
        (Failure.CLOSED, "ConnectError", First.NOTHING, YES),
    ],
)
def test_i42_what_a_failure_asks_for(failure: Failure, error: str, first: First, retried: Retried) -> None:
    rule = FAILURES[failure]
    assert (rule.error, rule.first, rule.retried) == (error, first, retried)


def test_every_failure_has_a_row_with_an_error_of_ours() -> None:
    assert set(FAILURES) == set(Failure)
    for rule in FAILURES.values():
        assert issubclass(getattr(errors, rule.error), errors.LLMSessionsError)


def test_the_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        FAILURES[Failure.NETWORK] = FAILURES[Failure.BUSY]  # type: ignore[index]


@pytest.mark.parametrize(
    ("code", "reason", "failure"),
    [
        (4400, "", Failure.BAD_REQUEST),
        (4401, "", Failure.UNAUTHORIZED),
        (4403, "", Failure.FORBIDDEN),
        (4403, "idle", Failure.FORBIDDEN),
        (1005, "", Failure.UNKNOWN_RESPONSE),
        (1005, "why", Failure.CLOSED),
        (1000, "", Failure.CLOSED),
        (1006, "", Failure.CLOSED),
        (1008, "authentication failed", Failure.CLOSED),
        (4000, "replaced", Failure.CLOSED),
        (4402, "", Failure.CLOSED),
        (4404, "", Failure.CLOSED),
        (4410, "", Failure.CLOSED),
    ],
)
def test_i42_d16_what_a_close_before_ready_is(code: int, reason: str, failure: Failure) -> None:
    assert classify_failed_open(code, reason) is failure


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (408, Failure.BUSY),
        (429, Failure.BUSY),
        (500, Failure.BUSY),
        (503, Failure.BUSY),
        (599, Failure.BUSY),
        (404, Failure.STALE),
        (401, Failure.UNAUTHORIZED),
        *[(status, Failure.REFUSED) for status in (400, 402, 403, 405, 407, 409, 410, 428, 430, 499)],
        *[(status, Failure.MISPLACED) for status in (200, 204, 301, 302, 399)],
    ],
)
def test_what_an_http_status_is(status: int, failure: Failure) -> None:
    assert classify_status(status) is failure


def test_meanings_are_told_apart_by_value() -> None:
    kinds: list[Any] = [CloseMeaning, Failure, First, Retried]
    for kind in kinds:
        assert len({member.value for member in kind}) == len(kind.__members__)
