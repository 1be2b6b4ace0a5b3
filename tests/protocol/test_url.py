"""Which URLs and headers are taken, and the query that a connect puts on one."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_sessions.errors import ConfigurationError
from llm_sessions.protocol.url import Address, check_headers, connection_url, is_loopback, parse_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("wss://example.org", Address("example.org", 443, True)),
        ("wss://example.org/", Address("example.org", 443, True)),
        ("WSS://Example.ORG/Path?Q=1", Address("example.org", 443, True)),
        ("wss://example.org:8443/a", Address("example.org", 8443, True)),
        ("wss://example.org:/a", Address("example.org", 443, True)),
        ("wss://[2001:db8::1]:99/a", Address("2001:db8::1", 99, True)),
        ("wss://192.0.2.1/?x", Address("192.0.2.1", 443, True)),
        ("wss://example.org:65535", Address("example.org", 65535, True)),
        ("ws://localhost/a", Address("localhost", 80, False)),
        ("ws://127.0.0.1:8080", Address("127.0.0.1", 8080, False)),
        ("ws://[::1]", Address("::1", 80, False)),
        ("wss://example.org/#", Address("example.org", 443, True)),
    ],
)
def test_good_urls_give_their_address(url: str, address: Address) -> None:
    assert parse_url(url, allow_insecure=False) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "//example.org/",
        "http://example.org",
        "https://example.org",
        "wsss://example.org",
        "wss:example.org",
        "wss://",
        "wss:///path",
        "wss://:443/",
        "wss://user@example.org",
        "wss://user:pw@example.org",
        "wss://@example.org",
        "wss://evil.org\\@example.org/",
        "wss://example.org/#part",
        "wss://example.org:0",
        "wss://example.org:65536",
        "wss://example.org:-1",
        "wss://example.org:x",
        "wss://[::1",
        "wss://example.org/a b",
        " wss://example.org",
        "wss://example.org/\r\nHost: evil",
        "wss://exam\nple.org",
        "wss://example.org/\t",
        "wss://example.org/\x00",
        "wss://example.org/\x7f",
        "wss://münchen.de",
        "wss://example.org/ü",
    ],
)
def test_bad_urls_are_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url(url, allow_insecure=True, argument="endpoint")
    assert caught.value.argument == "endpoint"


@pytest.mark.parametrize("url", [None, 5, b"wss://example.org", ["wss://example.org"]])
def test_only_strings_are_urls(url: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url(url, allow_insecure=True)
    assert caught.value.argument == "url"


def test_a_refused_url_is_not_quoted_with_its_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url("wss://user:hunter2@example.org/?token=abc", allow_insecure=True)
    assert "hunter2" not in str(caught.value) and "abc" not in str(caught.value)


NOT_LOOPBACK = [
    "example.org",
    "localhost.example.org",
    "notlocalhost",
    "127.0.0.1.example.org",
    "127.0.0.1.",  # a name: a resolver is asked
    "128.0.0.1",
    "0.0.0.0",
    "10.0.0.1",
    "[::2]",
    "[::]",
    "0x7f.1",
    "2130706433",
]


@pytest.mark.parametrize("host", NOT_LOOPBACK)
def test_t12_plain_ws_goes_to_loopback_only_unless_allowed(host: str) -> None:
    with pytest.raises(ConfigurationError, match="unencrypted"):
        parse_url(f"ws://{host}/", allow_insecure=False)
    assert not parse_url(f"ws://{host}/", allow_insecure=True).tls
    assert parse_url(f"wss://{host}/", allow_insecure=False).tls


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "a.b.LocalHost.",
        "127.0.0.1",
        "127.255.0.9",
        "::1",
    ],
)
def test_loopback_is_known_by_name_and_number(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", [*(host.strip("[]") for host in NOT_LOOPBACK), "", ".", "local.host", "localhost.x"]
)
def test_t12_nothing_else_is_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("address", "text"),
    [(Address("a.org", 443, True), "a.org:443"), (Address("::1", 80, False), "[::1]:80")],
)
def test_an_address_reads_like_one(address: Address, text: str) -> None:
    assert str(address) == text


# -- the query ------------------------------------------------------------------------------------------

ALWAYS = "outboundWireFormat=text&bufferStates=true&aliasHttpStatus=true&clientTimestamp=1700000000000"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("wss://h/p", f"wss://h/p?{ALWAYS}"),
        ("wss://h", f"wss://h/?{ALWAYS}"),
        ("wss://h/p?", f"wss://h/p?{ALWAYS}"),
        ("wss://h/p?a=1&b", f"wss://h/p?a=1&b&{ALWAYS}"),
        ("wss://h/p?a=1&&b=", f"wss://h/p?a=1&b=&{ALWAYS}"),
        ("wss://h/p?x=%2F+%20&x=2&e=%C3%BC", f"wss://h/p?x=%2F+%20&x=2&e=%C3%BC&{ALWAYS}"),
        ("wss://h/p?clientTimestamp=1&a=1", f"wss://h/p?a=1&{ALWAYS}"),
        ("wss://h/p?client%54imestamp=1&a=1", f"wss://h/p?a=1&{ALWAYS}"),
        ("wss://h/p?outboundWireFormat=binary&bufferStates=false&aliasHttpStatus", f"wss://h/p?{ALWAYS}"),
        ("wss://h/p?ClientTimestamp=1", f"wss://h/p?ClientTimestamp=1&{ALWAYS}"),
        (
            "wss://h/p?subscriptionAwareSubchannels=transcription",
            f"wss://h/p?subscriptionAwareSubchannels=transcription&{ALWAYS}",
        ),
        (
            "wss://h/p?mercuryRegistrationStatus=true&bufferStates=true&isRegistrationRefreshEnabled=true",
            "wss://h/p?mercuryRegistrationStatus=true&isRegistrationRefreshEnabled=true&"
            + ALWAYS.replace("bufferStates=true&", ""),
        ),
        (
            "wss://[::1]:80/p;v=1?multipleConnections=true",
            f"wss://[::1]:80/p;v=1?multipleConnections=true&{ALWAYS}",
        ),
        ("wss://h/p#", f"wss://h/p?{ALWAYS}"),
    ],
)
def test_the_query_of_a_connect(url: str, expected: str) -> None:
    assert connection_url(url, now_ms=1_700_000_000_000) == expected


def test_i31_a_reconnect_duplicates_no_key_and_has_a_fresh_timestamp() -> None:
    url = "wss://h/p?a=1&subscriptionAwareSubchannels=transcription"
    first = connection_url(url, now_ms=1)
    assert connection_url(url, now_ms=2) == first.replace("clientTimestamp=1", "clientTimestamp=2")
    assert connection_url(first, now_ms=2) == first.replace("clientTimestamp=1", "clientTimestamp=2")


KEYS = [
    "outboundWireFormat",
    "bufferStates",
    "aliasHttpStatus",
    "clientTimestamp",
    "mercuryRegistrationStatus",
]


@given(st.lists(st.tuples(st.sampled_from([*KEYS, "a", "b%20c", "é"]), st.text("ab%&=+", max_size=4))))
def test_i31_each_key_of_ours_is_there_once_and_others_stay(pairs: list[tuple[str, str]]) -> None:
    query = "&".join(f"{key}={value}" for key, value in pairs)
    made = urlsplit(connection_url(f"wss://h/p?{query}", now_ms=5)).query
    before = parse_qsl(query, keep_blank_values=True)
    after = parse_qsl(made, keep_blank_values=True)
    shared = any(key == "mercuryRegistrationStatus" for key, _ in before)
    ours = {"outboundWireFormat": "text", "aliasHttpStatus": "true", "clientTimestamp": "5"}
    if not shared:
        ours["bufferStates"] = "true"
    assert [pair for pair in after if pair[0] in KEYS[:4]] == [
        (key, ours[key]) for key in KEYS[:4] if key in ours
    ]
    assert [pair for pair in after if pair[0] not in KEYS[:4]] == [
        pair for pair in before if pair[0] not in KEYS[:4]
    ]


# -- headers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer x", "X-Thing_1.2": "", "Origin": "https://example.org", "a": "~!@ b"},
        {"Hostess": "x", "X-Sec-WebSocket-Key": "x"},
    ],
)
def test_ordinary_headers_pass(headers: dict[str, str]) -> None:
    check_headers(headers)


BAD_HEADERS: list[dict[Any, Any]] = [
    {"": "x"},
    {"-": "x"},
    {"a b": "x"},
    {"a:": "x"},
    {"a\r\nb": "x"},
    {"ü": "x"},
    {"a\n": "x"},
    {1: "x"},
    {"a": 1},
    {"a": None},
    {"a": b"x"},
    {"a": "x\r\nEvil: 1"},
    {"a": "x\n"},
    {"a": "x\x00"},
    {"a": "x\x7f"},
    {"a": "ü"},
    *({name: "x"} for name in ("Host", "UPGRADE", "connection", "Content-Length", "Transfer-Encoding")),
    *({name: "x"} for name in ("Sec-WebSocket-Key", "sec-websocket-extensions", "SEC-WEBSOCKET-X")),
]


@pytest.mark.parametrize("headers", BAD_HEADERS, ids=repr)
def test_headers_that_break_out_or_take_over_are_refused(headers: dict[Any, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_headers({"Good": "x", **headers}, "extra_headers")
    assert caught.value.argument == "extra_headers"


def test_a_refused_header_does_not_quote_its_value() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_headers({"Authorization": "Bearer hunter2\n"})
    assert "hunter2" not in str(caught.value)
