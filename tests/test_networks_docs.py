"""The code of docs/networks.md runs as it stands, and its tables say what there is."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re

import pytest

from llm_sessions import PoolConfig
from llm_sessions.connection.proxies import parse_proxy
from llm_sessions.testing.certificates import ThrowAwayCA
from llm_sessions.testing.server import LocalServer
from tests.documents import blocks, languages, read, table_rows
from tests.proxies import VARIABLES, Proxy

PAGE = read("docs/networks.md")
BLOCKS = blocks(PAGE)


def run(block: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "networks.md", "exec"), {"__name__": "page"})
    return printed.getvalue().strip()


def test_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalServer() as server, Proxy(auth=True) as proxy:
        monkeypatch.setenv("PROXY_URL", proxy.url())
        monkeypatch.setenv("WEBEX_URL", server.url("s"))
        assert run(BLOCKS[0]) == "online"
        assert proxy.asked == [f"127.0.0.1:{server.port}"]


def test_with_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThrowAwayCA() as ca:
        context = ca.server_context(client_certificates=True)
        with LocalServer(ssl_context=context) as server:
            monkeypatch.setenv("CA_FILE", ca.ca_file)
            monkeypatch.setenv("CLIENT_CERT", ca.client_file("me.example"))
            monkeypatch.setenv("WEBEX_URL", server.url("s"))
            assert run(BLOCKS[1]) == "online"


def test_there_is_no_code_that_no_test_runs() -> None:
    assert languages(PAGE) == ["python"] * len(BLOCKS) and len(BLOCKS) == 2


def rows(title: str) -> list[list[str]]:
    [part] = [part for part in re.split(r"^##+ ", PAGE, flags=re.MULTILINE) if part.startswith(f"{title}\n")]
    return table_rows(part)


def test_the_values_of_proxy_are_taken_and_mean_what_is_said() -> None:
    found = [row[0].strip("`") for row in rows("Proxies")]
    assert found[:2] == ['"environment"', "None"] and PoolConfig().proxy == "environment"
    urls = [value.strip('"') for value in found[2:]]
    assert [str(parse_proxy(url)) for url in urls] == urls
    assert {url.partition(":")[0] for url in urls} == {"http", "https", "socks5", "socks5h"}
    for row in rows("Proxies"):
        if "without a port it is" in row[1]:
            bare = row[0].strip('`"').rpartition(":")[0]
            assert f"without a port it is {parse_proxy(bare).port}" in row[1]


def test_the_variables_are_those_that_tests_set() -> None:
    named = {row[0].strip("`") for row in rows("The environment") if row[0].endswith("_proxy`")}
    assert named == set(VARIABLES) - {"request_method"}


def test_the_settings_of_tls_are_fields() -> None:
    names = {row[0].strip("`=") for row in rows("TLS")}
    assert names == {"ca_file", "client_cert", "ssl_context"}
    assert names <= {field.name for field in dataclasses.fields(PoolConfig)}


def test_the_texts_are_those_of_the_page_on_failures() -> None:
    """What that page's tests make happen is what this one explains."""
    failures = [row for row in table_rows(read("docs/failures.md")) if len(row) == 7]
    patterns = [re.escape(row[6].strip("`")).replace("…", ".+") for row in failures]
    outcomes = {
        pattern: "tried again" if row[3] == "tries again" else "final"
        for pattern, row in zip(patterns, failures, strict=True)
    }
    for text, _, then in rows("What an error means"):
        said = text.strip("`").replace("…", "x")
        candidates = [said, f"{said} x", f"{said}: x"]
        about = [p for p in patterns if any(re.fullmatch(p, one) for one in candidates)]
        assert about, text
        assert then in {outcomes[pattern] for pattern in about}, text
