"""Every limit has tests at its edge: which ones, and that they are there.

A limit without a row fails the suite, and so does a row whose test is gone. Where a test of the module itself
is exact, it is named here; the others are in this folder.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

import pytest

from llm_sessions import PoolConfig

ROOT = Path(__file__).resolve().parents[2]

Rows = Mapping[str, tuple[str, ...]]

TIMES = "tests/limits/test_times.py"
WAITS = "tests/limits/test_waits.py"
SIZES = "tests/limits/test_sizes.py"
REAL = "tests/limits/test_real_time.py"
MERCURY = "tests/protocol/test_mercury.py"
FRAMES = "tests/protocol/test_frames.py"
CLOSING = "tests/protocol/test_closing.py"
CONFIG = "tests/pool/test_config.py"
CONNECTOR = "tests/pool/test_connector.py"
DISPATCH = "tests/pool/test_dispatch.py"
REPORTS = "tests/pool/test_reports.py"
RETRY = "tests/pool/test_retry.py"

EDGES: Rows = {
    "ping_interval": (
        f"{TIMES}::test_limit_ping_interval_is_from_the_pong_to_the_next_ping",
        f"{MERCURY}::test_a_pong_in_time_measures_the_latency_and_schedules_the_next_ping",
        f"{MERCURY}::test_t4_while_paused_pings_go_on_and_no_pong_is_missed",
    ),
    "pong_timeout": (
        f"{TIMES}::test_limit_pong_timeout_is_from_the_ping",
        f"{TIMES}::test_limit_pong_timeout_a_pong_just_before_it_is_in_time",
        f"{MERCURY}::test_i10_a_missing_pong_closes_and_is_a_transient_loss",
        f"{MERCURY}::test_t4_after_a_pause_each_pong_gives_the_next_its_whole_time",
    ),
    "backoff_initial": (
        f"{CONNECTOR}::test_i40_the_waits_of_a_run",
        f"{RETRY}::test_i40_waits_double_up_to_the_longest",
        f"{RETRY}::test_t15_only_the_first_loss_is_for_free",
        f"{CONFIG}::test_i40_the_longest_wait_is_not_shorter_than_the_first",
    ),
    "backoff_max": (
        # the longest wait
        f"{CONNECTOR}::test_i40_the_waits_of_a_run",
        f"{RETRY}::test_i40_waits_double_up_to_the_longest",
        # how long a session has to be online
        f"{WAITS}::test_limit_backoff_max_online_starts_the_waits_from_the_beginning",
        f"{CONNECTOR}::test_waits_and_counts_start_anew_after_backoff_max_online",
        f"{REPORTS}::test_a_switchover_of_a_long_lived_session_counts_and_waits_anew",
        # the longest Retry-After
        f"{WAITS}::test_limit_backoff_max_times_ten_caps_retry_after",
        f"{WAITS}::test_limit_backoff_max_times_ten_caps_a_sources_retry_after",
        f"{CONNECTOR}::test_retry_after_is_honoured_and_capped",
    ),
    "jitter": (
        f"{RETRY}::test_t15_jitter_draws_from_the_whole_wait_but_never_almost_nothing",
        f"{RETRY}::test_i40_failures_are_counted_and_reset",  # off: exact
        f"{CONNECTOR}::test_jitter_draws_between_almost_nothing_and_the_wait",
    ),
    "max_retries": (
        f"{WAITS}::test_limit_max_retries_n_are_n_plus_1_attempts",
        f"{WAITS}::test_limit_max_retries_the_last_of_them_may_succeed",
        f"{CONNECTOR}::test_i33_limits_are_per_session_and_by_whether_it_was_online",
        f"{CONFIG}::test_retries_are_counted_in_whole_numbers",
    ),
    "initial_max_retries": (
        f"{CONNECTOR}::test_i40_n_retries_are_n_plus_1_attempts",
        f"{CONNECTOR}::test_i33_limits_are_per_session_and_by_whether_it_was_online",
        f"{REPORTS}::test_i33_failures_before_the_first_online_are_not_charged_to_max_retries",
    ),
    "wait_timeout": (
        f"{WAITS}::test_limit_wait_timeout_of_connect_is_for_all_that_it_waits_for",
        f"{WAITS}::test_limit_wait_timeout_reaches_the_wait_as_it_is",
        f"{REAL}::test_limit_wait_timeout_in_real_time_of_connect",
        f"{REAL}::test_limit_wait_timeout_in_real_time_of_wait_online",
        f"{REAL}::test_limit_wait_timeout_none_waits_without_end",
    ),
    "open_timeout": (
        f"{TIMES}::test_limit_open_timeout_in_the_tcp_connect",
        f"{TIMES}::test_limit_open_timeout_in_the_handshakes",
        f"{TIMES}::test_limit_open_timeout_in_the_authorization",
        f"{TIMES}::test_limit_open_timeout_is_of_the_sum_of_all_phases",
        f"{TIMES}::test_limit_open_timeout_is_shared_by_addresses_a_quarter_of_a_second_at_least",
        f"{REAL}::test_limit_open_timeout_in_real_time_of_a_tcp_connect",
        f"{REAL}::test_limit_open_timeout_in_real_time_of_a_mute_peer",
        f"{REAL}::test_limit_open_timeout_in_real_time_of_an_upgrade",
        f"{REAL}::test_limit_open_timeout_in_real_time_of_the_authorization",
        f"{MERCURY}::test_i1_the_wait_for_ready_is_bounded",
    ),
    "send_timeout": (
        f"{TIMES}::test_limit_send_timeout_of_a_message",
        f"{TIMES}::test_limit_send_timeout_of_what_the_reader_has_to_say",
        f"{REAL}::test_limit_send_timeout_in_real_time",
    ),
    "force_close_delay": (
        f"{TIMES}::test_limit_force_close_delay_is_from_the_close",
        f"{REAL}::test_limit_force_close_delay_in_real_time",
        f"{MERCURY}::test_i3_a_forced_close_reports_the_table",
    ),
    "retire_timeout": (
        f"{TIMES}::test_limit_retire_timeout_is_from_the_switch",
        f"{REAL}::test_limit_retire_timeout_in_real_time",
        f"{MERCURY}::test_a_retired_socket_goes_on_until_its_time_and_is_closed_then",
    ),
    "max_message_bytes": (
        f"{SIZES}::test_limit_max_message_bytes_is_what_arrives_and_one_more_is_dropped",
        f"{SIZES}::test_limit_max_message_bytes_four_times_over_ends_the_socket_at_the_header",
        f"{FRAMES}::test_t13_budget_edges_of_a_text_in_one_frame",
        f"{FRAMES}::test_t13_budget_edges_of_binary",
        f"{FRAMES}::test_t13_budget_counts_the_headers_of_fragments",
        f"{FRAMES}::test_t13_budget_counts_long_headers_as_they_are",
        f"{FRAMES}::test_t13_endless_empty_fragments_end",
    ),
    "queue_size": (
        f"{DISPATCH}::test_t4_block_pauses_beyond_queue_size_and_resumes_at_half",
        f"{DISPATCH}::test_t4_drop_oldest_keeps_the_newest_and_counts_the_rest",
        f"{DISPATCH}::test_t4_drop_oldest_while_a_full_batch_is_being_delivered",
        f"{REPORTS}::test_t4_a_full_queue_pauses_the_reader_and_resumes_it",
        f"{SIZES}::test_limit_queue_size_messages_wait_and_one_more_does_not",
        "tests/pool/test_inbox.py::test_t4_it_is_full_beyond_its_limit_and_until_half_is_taken",
        "tests/pool/test_messages.py::test_t4_a_full_iterator_holds_the_reader_until_half_is_taken",
    ),
    "when_full": (
        f"{SIZES}::test_limit_queue_size_messages_wait_and_one_more_does_not",
        f"{DISPATCH}::test_t4_block_pauses_beyond_queue_size_and_resumes_at_half",
        f"{DISPATCH}::test_t4_drop_oldest_keeps_the_newest_and_counts_the_rest",
        f"{CONFIG}::test_when_full_is_one_of_two",
    ),
    "allow_insecure": (
        "tests/protocol/test_url.py::test_t12_plain_ws_goes_to_loopback_only_unless_allowed",
        "tests/protocol/test_url.py::test_loopback_is_known_by_name_and_number",
        "tests/protocol/test_url.py::test_t12_nothing_else_is_loopback",
        f"{CONNECTOR}::test_t12_plain_ws_to_other_hosts_must_be_allowed",
    ),
    "allowed_hosts": (
        f"{SIZES}::test_limit_allowed_hosts_are_names_and_subdomains",
        f"{SIZES}::test_limit_allowed_hosts_none_is_any_and_empty_is_no_host",
        f"{CONNECTOR}::test_t12_only_allowed_hosts_get_the_token",
        f"{CONNECTOR}::test_t12_allowed_hosts_compare_in_lower_case",
    ),
    "ssl_context": (
        f"{CONFIG}::test_the_tls_context_is_one",
        f"{CONNECTOR}::test_wss_gets_the_tls_context",
    ),
    "ca_file": (
        f"{CONFIG}::test_tls_files_are_read_at_once",
        "tests/connection/test_trust.py::test_a_ca_file_is_trusted_and_no_other",
    ),
    "client_cert": (
        f"{CONFIG}::test_tls_files_are_read_at_once",
        "tests/connection/test_trust.py::test_a_client_certificate_is_one_file_or_two",
    ),
    "proxy": (
        f"{CONFIG}::test_a_proxy_is_a_url_the_environment_or_none",
        "tests/connection/test_proxies.py::test_what_is_no_proxy_is_refused_and_not_quoted",
    ),
}
"""The tests at the edge of each field of `PoolConfig`."""

FIXED: Rows = {
    "_json.py::MAX_DEPTH": (
        "tests/test_json.py::test_i8_nesting_ends_at_256_levels",
        "tests/test_json.py::test_i8_the_depth_of_what_is_taken_is_at_most_256",
    ),
    "_json.py::_MAX_INT": ("tests/test_json.py::test_both_take",),
    "_json.py::_MAX_WRITTEN": (
        "tests/test_json.py::test_i8_orjson_writes_what_is_shallow_and_brackets_are_looked_at_for_the_rest",
    ),
    "_json.py::_MIN_INT": ("tests/test_json.py::test_both_take",),
    "connection/connection.py::_MAX_OVERDUE_BYTES": (f"{SIZES}::test_limit_overdue_bytes_are_8_mib",),
    "connection/connection.py::_MAX_OWN_UNSENT": (f"{SIZES}::test_limit_own_unsent_bytes_are_256_kib",),
    "connection/poll.py::_LONGEST": ("tests/connection/test_poll.py::test_timeouts_fit_the_system",),
    "connection/stream.py::_MIN_ADDRESS_SHARE": (
        f"{TIMES}::test_limit_open_timeout_is_shared_by_addresses_a_quarter_of_a_second_at_least",
    ),
    "connection/head.py::_MAX_HEAD": (
        "tests/connection/test_head.py::test_a_head_has_64_kib_at_most",
        f"{SIZES}::test_limit_upgrade_head_is_64_kib_wherever_it_is_cut",
        "tests/connection/test_upgrade.py::test_a_head_has_64_kib_at_most",
    ),
    "connection/proxies.py::_MAX_CREDENTIAL": (
        "tests/connection/test_proxies.py::test_limit_a_credential_has_255_bytes_at_most",
    ),
    "connection/tunnel.py::_MAX_PHRASE": (
        "tests/connection/test_tunnel.py::test_limit_a_phrase_is_cut_and_made_printable",
    ),
    "pool/listeners.py::_MAX_ROUTES": (f"{SIZES}::test_limit_remembered_routes_are_1024",),
    "pool/reports.py::_MAX_REMEMBERED": (
        f"{SIZES}::test_limit_remembered_ids_of_a_switchover_are_ten_thousand",
    ),
    "pool/reports.py::_SHORT_LIFE": (f"{WAITS}::test_limit_short_life_is_less_than_a_second",),
    "pool/reports.py::_SHORT_LIVES": (
        f"{CONNECTOR}::test_d7_three_short_lives_in_a_row_are_told_to_the_endpoint",
    ),
    "pool/retry.py::_FLOOR": (
        f"{RETRY}::test_t15_jitter_draws_from_the_whole_wait_but_never_almost_nothing",
    ),
    "protocol/closing.py::_MAX_REASON_BYTES": (
        f"{CLOSING}::test_reasons_of_up_to_123_bytes_pass",
        f"{CLOSING}::test_i5_a_reason_that_cannot_be_sent_is_refused",
        f"{FRAMES}::test_d18_close_reason_is_cut_between_characters",
        f"{FRAMES}::test_close_reason_of_123_bytes",
    ),
    "protocol/envelope.py::_MAX_PATH": (
        "tests/protocol/test_envelope.py::test_i37_a_path_may_have_32_components_and_not_more",
    ),
    "protocol/frames.py::_MAX_CONTROL_PAYLOAD": (
        f"{FRAMES}::test_ping_and_pong_carry_up_to_125_bytes",
        f"{FRAMES}::test_long_control_frames_are_refused_before_their_length_arrives",
        f"{FRAMES}::test_pong_returns_the_payload",
        f"{FRAMES}::test_pong_over_125_bytes_is_refused",
    ),
    "protocol/frames.py::_SKIP_FACTOR": (f"{FRAMES}::test_t13_budget_edges_of_a_text_in_one_frame",),
    "_logging.py::_MAX_KINDS": (
        "tests/test_logging.py::test_kinds_of_records_are_not_remembered_without_end",
    ),
    "_logging.py::_MIN_SECRET": ("tests/test_logging.py::test_t11_a_known_secret_is_gone_wherever_it_is",),
    "_logging.py::_MAX_SECRETS": ("tests/test_logging.py::test_the_newest_thousand_secrets_are_known",),
    "connection/connection.py::_MAX_LOOKED_AT": (
        "tests/connection/test_connection.py::"
        "test_t11_a_token_that_the_cut_would_leave_the_beginning_of_is_not_shown",
    ),
    "connection/connection.py::_MAX_SHOWN": (
        "tests/connection/test_connection.py::test_every_message_is_logged_at_debug_cut_and_without_secrets",
    ),
    "datachannel/exchange.py::MAX_ANSWER_BYTES": (
        "tests/datachannel/test_exchange.py::test_an_answer_is_read_up_to_its_limit",
    ),
    "datachannel/exchange.py::_MAX_TEXT": (
        "tests/datachannel/test_exchange.py::test_t11_foreign_text_is_cleaned",
    ),
    "meetings/hearing.py::MAX_BINDINGS": (
        "tests/meetings/test_hearing.py::test_only_the_newest_bindings_are_remembered",
    ),
    "meetings/hearing.py::MAX_REMEMBERED": (
        "tests/meetings/test_hearing.py::test_only_the_newest_ids_are_remembered",
    ),
    "meetings/worker.py::WARN_AFTER": (
        "tests/meetings/test_meeting.py::test_one_warning_when_the_main_channel_stays_down",
    ),
    "close codes": (
        f"{CLOSING}::test_i5_good_close_codes_pass",
        f"{CLOSING}::test_i5_a_bad_close_code_is_refused",
        f"{FRAMES}::test_close_code_allowed_on_the_wire",
        f"{FRAMES}::test_close_code_not_allowed_on_the_wire",
    ),
    "seconds of any setting": (
        f"{SIZES}::test_limit_seconds_are_ten_million_at_most",
        f"{CONFIG}::test_a_time_is_a_finite_positive_number",
        f"{CONFIG}::test_zero_is_allowed_where_asked_for",
    ),
    "session ids": (
        "tests/test_session_ids.py::test_good_ids_are_returned_and_can_be_a_suffix",
        "tests/test_session_ids.py::test_ids_that_break_names_or_logs_are_refused",
        "tests/test_session_ids.py::test_only_strings_are_ids",
    ),
}
"""The same for limits that nobody can change; those in the code by file and name."""


@cache
def names_of_tests(path: str) -> frozenset[str]:
    """Return the names of the tests in a file of the project; none if there is no such file."""
    file = ROOT / path
    body = ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
    return frozenset(
        node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


@cache
def constants_of(path: str) -> frozenset[str]:
    """Return the names in capitals that a module of the library assigns at its top."""
    names: set[str] = set()
    for node in ast.parse((ROOT / "llm_sessions" / path).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        names.update(target.id for target in targets if isinstance(target, ast.Name) and target.id.isupper())
    return frozenset(names)


def limits_in_the_code() -> set[str]:
    """Return the constants of the library that are limits by their name."""
    base = ROOT / "llm_sessions"
    paths = [path.relative_to(base).as_posix() for path in base.rglob("*.py")]
    return {
        f"{path}::{name}"
        for path in paths
        if not path.startswith(("testing/", "cli/"))
        for name in constants_of(path)
        if re.match(r"_?(MAX|MIN)_", name)
    }


def complaints(
    limits: Iterable[str], rows: Rows, tests_in: Callable[[str], Iterable[str]] = names_of_tests
) -> list[str]:
    """Say which limits have no row or an empty one, which rows no limit, and which tests are not there."""
    limits = set(limits)
    found = [f"{limit} has no test at its edge" for limit in sorted(limits) if not rows.get(limit)]
    found += [f"{limit} is no limit (any more)" for limit in sorted(rows.keys() - limits)]
    for limit, tests in rows.items():
        for test in tests:
            path, _, name = test.partition("::")
            if name not in tests_in(path):
                found.append(f"{limit}: there is no {test}")
    return found


def test_limit_table_gaps_are_found() -> None:
    rows = {"a": ("t.py::test_x", "t.py::test_y"), "b": (), "d": ("u.py::test_x", "test_x")}
    assert complaints("abc", rows, lambda path: ["test_x"] if path == "t.py" else []) == [
        "b has no test at its edge",
        "c has no test at its edge",
        "d is no limit (any more)",
        "a: there is no t.py::test_y",
        "d: there is no u.py::test_x",
        "d: there is no test_x",
    ]
    assert complaints("a", {"a": ("t.py::test_x",)}, lambda path: ["test_x"]) == []


def test_limit_table_tests_and_constants_are_read_from_the_source() -> None:
    own = "tests/limits/test_table.py"
    assert "test_limit_table_gaps_are_found" in names_of_tests(own)
    assert "complaints" not in names_of_tests(own) and not names_of_tests("tests/no_such_file.py")
    assert {"_MAX_PATH"} <= constants_of("protocol/envelope.py")
    assert "Envelope" not in constants_of("protocol/envelope.py")
    assert {"_json.py::MAX_DEPTH", "pool/listeners.py::_MAX_ROUTES"} <= limits_in_the_code()


def test_limit_table_every_field_of_the_configuration_has_its_row() -> None:
    found = complaints((field.name for field in dataclasses.fields(PoolConfig)), EDGES)
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_limit_table_every_limit_of_the_code_has_its_row() -> None:
    rows_of_constants = {limit for limit in FIXED if "::" in limit}
    gone = [
        limit
        for limit in rows_of_constants
        if limit.partition("::")[2] not in constants_of(limit.partition("::")[0])
    ]
    found = [f"there is no {limit}" for limit in gone] + complaints(limits_in_the_code() | set(FIXED), FIXED)
    if found:
        pytest.fail("\n".join(found), pytrace=False)
