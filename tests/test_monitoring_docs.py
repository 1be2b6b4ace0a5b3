"""docs/monitoring.md: its code runs and is scraped over HTTP, its metrics are those that there are."""

from __future__ import annotations

import re
import urllib.request
from typing import Any

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from llm_sessions import ConnectionPool, SessionState
from llm_sessions.prometheus import PoolCollector
from llm_sessions.protocol.state import ONLINE
from llm_sessions.testing.server import LocalServer
from tests.documents import blocks, languages, read, table_rows
from tests.support import eventually

PAGE = read("docs/monitoring.md")
ROWS = table_rows(PAGE)


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        return str(answer.read().decode())


def test_the_code_is_scraped_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry := CollectorRegistry(auto_describe=True))
    # Its default was bound when it was defined.
    monkeypatch.setattr(
        prometheus_client,
        "start_http_server",
        lambda port, addr, start=prometheus_client.start_http_server: start(port, addr, registry),
    )
    monkeypatch.setenv("NO_PROXY", "*")
    with LocalServer() as server:
        monkeypatch.setenv("WEBEX_TOKEN", "token")
        monkeypatch.setenv("WEBEX_URL", server.url("main"))
        monkeypatch.setenv("METRICS_PORT", "0")
        page: dict[str, Any] = {}
        exec(compile(blocks(PAGE)[0], "monitoring.md", "exec"), page)
        try:
            port = page["web"].server_port
            shown = blocks(PAGE, "console")[1].splitlines()[1:]
            eventually(
                lambda: [one for one in fetch(port).splitlines() if "messages_received" in one] == shown
            )
            server.publish({"text": "hello"}, session="main")
            main = 'llm_sessions_messages_received_total{pool="captions",session="main"} 2.0'
            eventually(lambda: main in fetch(port))  # ready, hello
            assert 'llm_sessions_session_state{pool="captions",session="main",state="online"} 1.0' in fetch(
                port
            )
            page["pool"].close()
            assert 'llm_sessions_session_state{pool="captions",session="main",state="idle"} 1.0' in fetch(
                port
            )
        finally:
            page["pool"].close()
            page["web"].shutdown()
            page["web"].server_close()
            page["thread"].join()


def test_the_metrics_are_those_that_are_scraped() -> None:
    with LocalServer() as server, ConnectionPool("token", name="p") as pool:
        registry = CollectorRegistry()
        registry.register(PoolCollector(pool))
        session = pool.connect(server.url("main"), "main")
        eventually(lambda: session.latency is not None)
        text = prometheus_client.generate_latest(registry).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        [name] = {sample.name for sample in family.samples}
        labels = {f"`{label}`" for label in family.samples[0].labels}
        found[name] = [f"`{name}`", family.type, labels, family.documentation]
    assert [[row[0], row[1], set(row[2].split(", ")), row[3]] for row in ROWS] == list(found.values())
    of_main = [line for line in text.splitlines() if 'session="main"' in line]
    assert len(of_main) == 23 and sum("latency" in line for line in of_main) == 1
    assert "22 of them, and one more once there is a latency" in PAGE


def test_queries_name_metrics_labels_and_states_that_exist() -> None:
    [queries] = blocks(PAGE, "promql")
    known = {row[0].strip("`") for row in ROWS}
    named = re.findall(r"llm_sessions_\w+", queries)
    assert len(named) >= 5 and set(named) <= known
    [states] = re.findall(r'state=~"(.+?)"', queries)
    assert {SessionState(one) for one in states.split("|")} == set(ONLINE)


def test_there_is_no_code_that_no_test_runs() -> None:
    assert languages(PAGE) == ["console", "python", "console", "promql"]
    install, scrape = blocks(PAGE, "console")
    assert install == "$ pip install 'llm-sessions[prometheus]'\n"
    assert scrape.startswith("$ curl -s http://127.0.0.1:$METRICS_PORT/metrics | grep messages_received\n")
