"""The benchmarks run at a tiny size, count what they say they count, and report what was measured."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.documents import ROOT, table_rows
from tests.support import LONG, SHORT

FOLDER = ROOT / "benchmarks"
MODULES = ("_workloads", "_server", "_clients", "_driver", "_report", "_plots", "bench", "flood")
REFERENCE = os.environ.get("REFERENCE_MODULES")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def loaded() -> Iterator[SimpleNamespace]:
    """The modules of the folder, imported as its scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        try:
            yield SimpleNamespace(**{name.lstrip("_"): importlib.import_module(name) for name in MODULES})
        finally:
            for name in MODULES:
                sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def pictures(loaded: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib is there, and has opened the fonts that it keeps open."""
    pytest.importorskip("matplotlib", reason="the extra bench is not installed")
    for given in (results_of(*PLOTTED), results_of()):
        for plot in (loaded.plots.plot_floods, loaded.plots.plot_growth):
            plot(given, tmp_path_factory.mktemp("pictures") / "warm-up.png")


def named(loaded: SimpleNamespace, name: str) -> Any:
    return next(workload for workload in loaded.workloads.WORKLOADS if workload.name == name)


def tiny(workload: Any) -> Any:
    """The same with hardly anything to do."""
    return dataclasses.replace(
        workload,
        sessions=min(2, workload.sessions),
        messages=min(3 if workload.fragments > 1 else 20, workload.messages),
        rate=50.0,
        seconds=SHORT,
    )


def measured(
    loaded: SimpleNamespace, workload: Any, wire: str, *peers: str, reference: str | None = None
) -> Any:
    with loaded.driver.bench(Path(reference) if reference else None) as shared:
        results = shared.round(tiny(workload), wire, peers)
    assert list(results) == list(peers)
    failures = [result for result in results.values() if isinstance(result, loaded.driver.Failed)]
    assert not failures
    return results


FIGURES = {
    "flood": {"cpu", "system", "wall", "voluntary", "involuntary", "server", "others"},
    "paced": {"cpu", "system", "wall", "voluntary", "involuntary", "server", "others", "p50", "p99"},
    "idle": {"rss", "wakeups", "connect", "connect_cpu", "idle_cpu", "disconnect", "others"},
}


def check(workload: Any, results: dict[str, Any]) -> None:
    for peer, result in results.items():
        assert set(result) == FIGURES[workload.kind], peer
        if workload.kind == "idle":
            assert result["connect"] > 0
        else:
            assert (
                result["wall"] > 0 and result["cpu"] + 1e-6 >= result["system"] >= 0
            )  # a difference of floats
        if workload.kind == "paced":
            assert 0 < result["p50"] <= result["p99"] < LONG * 1e6


# The workloads


@pytest.mark.parametrize(
    "name",
    [
        "flood-1x100",
        "flood-1x10240",
        "flood-500x1024",
        "paced-100x300",
        "idle-1000-listener",
        "idle-1000",
        "growth-sessions-1000",
        "growth-size-65536",
        "growth-fragments-1000",
    ],
)
def test_a_workload_runs_with_raw_and_ours(loaded: SimpleNamespace, name: str) -> None:
    workload = named(loaded, name)
    peers = [peer for peer in workload.peers if peer in ("raw", "raw-ahead", "pool", "pool-json")]
    check(workload, measured(loaded, workload, "plain", *peers))


@pytest.mark.parametrize("name", ["flood-100x1024", "paced-100x300", "idle-1000-listener"])
def test_a_workload_runs_on_tls(loaded: SimpleNamespace, name: str) -> None:
    check(named(loaded, name), measured(loaded, named(loaded, name), "TLS", "raw", "pool"))


@pytest.mark.parametrize("name", ["flood-100x1024", "paced-100x300"])
def test_slack_sdk_takes_part(loaded: SimpleNamespace, name: str) -> None:
    pytest.importorskip("slack_sdk", reason="the extra bench is not installed")
    workload = named(loaded, name)
    check(workload, measured(loaded, workload, "plain", "slack-builtin", "slack-websocket"))
    check(workload, measured(loaded, workload, "TLS", "slack-websocket"))


def test_a_flood_in_windows_is_complete(loaded: SimpleNamespace) -> None:
    pytest.importorskip("slack_sdk", reason="the extra bench is not installed")
    workload = loaded.workloads.flood(1, 1024, 1000)  # a tenth of them for slack_sdk: three windows and a bit
    with loaded.driver.bench() as shared:
        check(workload, shared.round(workload, "plain", ["slack-builtin"]))


@pytest.mark.skipif(
    REFERENCE is None, reason="REFERENCE_MODULES names no folder with the reference's node_modules"
)
@pytest.mark.parametrize("wire", ["plain", "TLS"])
@pytest.mark.parametrize("name", ["flood-100x1024", "paced-100x300"])
def test_the_reference_takes_part(loaded: SimpleNamespace, name: str, wire: str) -> None:
    check(named(loaded, name), measured(loaded, named(loaded, name), wire, "reference", reference=REFERENCE))


def test_names_are_unique_and_targets_are_about_what_is_measured(loaded: SimpleNamespace) -> None:
    workloads = {workload.name: workload for workload in loaded.workloads.WORKLOADS}
    assert len(workloads) == len(loaded.workloads.WORKLOADS)
    for target in loaded.workloads.TARGETS:
        workload = workloads[target.workload]
        assert target.peer in workload.peers and (not target.against or target.against in workload.peers)
        assert target.measure in FIGURES[workload.kind]


# The server


@pytest.mark.parametrize("size", [100, 300, 499, 500, 1024, 10_240, 65_536])
def test_messages_have_their_size(loaded: SimpleNamespace, size: int) -> None:
    server = loaded.server
    first, second = (server.numbered(server.template(size), number) for number in (1, 2))
    assert len(first) == len(second) == size
    assert json.loads(first)["id"] != json.loads(second)["id"]
    assert json.loads(first)["data"]["eventType"] == "relay.event"


def test_an_envelope_of_slack_has_its_size_and_the_message(loaded: SimpleNamespace) -> None:
    envelope = loaded.server.numbered(loaded.server.slack_template(1024, stamped=True), 7)
    found = json.loads(envelope)
    assert len(envelope) == 1024
    assert found["type"] == "events_api" and len(found["envelope_id"]) == 36
    assert found["payload"]["data"]["sentAt"] == "0" * 20


def test_a_message_that_cannot_be_so_small_is_refused(loaded: SimpleNamespace) -> None:
    with pytest.raises(SystemExit, match="at least"):
        loaded.server.template(50)


def unframed(data: bytes) -> list[tuple[int, bytes]]:
    """First byte and payload of each unmasked frame."""
    found, at = [], 0
    while at < len(data):
        length, body = data[at + 1], at + 2
        if length >= 126:
            width = 2 if length == 126 else 8
            length, body = int.from_bytes(data[body : body + width], "big"), body + width
        found.append((data[at], data[body : body + length]))
        at = body + length
    return found


@pytest.mark.parametrize(
    ("size", "fragments"), [(1024, 1), (1024, 3), (10, 10), (5, 8), (65_536, 1), (300, 2)]
)
def test_fragments_make_the_message(loaded: SimpleNamespace, size: int, fragments: int) -> None:
    payload = bytes(n % 251 for n in range(size))
    frames = unframed(loaded.server.frames(payload, fragments))
    assert b"".join(part for _, part in frames) == payload
    heads = [0x01, *[0x00] * (fragments - 1)]
    heads[-1] |= 0x80
    assert [head for head, _ in frames] == heads


def test_a_flood_in_pieces_has_every_message_once(loaded: SimpleNamespace) -> None:
    for window, chunk, pieces in ((0, 250, 4), (4, 1, 3), (0, 1, 10)):
        task = loaded.server.Task(messages=10, size=100, chunk=chunk)
        found = loaded.server.encode(task, False, window)
        assert len(found) == pieces
        ids = [json.loads(part)["id"] for _, part in unframed(b"".join(found))]
        assert len(ids) == len(set(ids)) == 10


# The driver


def test_a_client_that_acks_too_little_fails(
    loaded: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = "print('{\"ready\": true}', flush=True); print('{\"cpu\": 1.0}', flush=True)"
    monkeypatch.setattr(loaded.driver.Bench, "command", lambda *_: [sys.executable, "-c", liar])
    with loaded.driver.bench() as shared:
        results = shared.round(tiny(named(loaded, "flood-1x1024")), "plain", ["raw"])
    assert isinstance(results["raw"], loaded.driver.Failed)
    assert str(results["raw"]) == "raw acked 0 of 20 messages"


def test_a_client_that_dies_fails_and_the_next_one_is_measured(
    loaded: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = loaded.driver.Bench.command

    def killed(self: Any, peer: str, task: dict[str, Any]) -> Any:
        return [sys.executable, "-c", "pass"] if peer == "raw" else command(self, peer, task)

    monkeypatch.setattr(loaded.driver.Bench, "command", killed)
    workload = named(loaded, "flood-1x1024")
    with loaded.driver.bench() as shared:
        results = shared.round(tiny(workload), "plain", ["raw", "pool"])
    assert str(results.pop("raw")) == "-c ended without an answer"
    check(workload, results)


def test_a_process_that_says_nothing_fails(loaded: SimpleNamespace) -> None:
    command = [sys.executable, "-c", "input()"]
    with loaded.driver.spawn(command, dict(os.environ)) as process:
        with pytest.raises(loaded.driver.Failed, match="said nothing within"):
            loaded.driver.answer(process, SHORT)


def test_without_npm_the_reference_is_left_out(
    loaded: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert loaded.driver.install_reference(tmp_path / "modules") == "node and npm are not installed"
    with loaded.driver.bench(fetch_reference=True) as shared:
        assert shared.missing("reference", "plain") == "node and npm are not installed"
        assert shared.missing("raw", "plain") == ""


def test_without_the_registry_the_reference_is_left_out(
    loaded: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("node", "npm"):
        script = tmp_path / name
        script.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n", encoding="utf-8")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    reason = loaded.driver.install_reference(tmp_path / "modules")
    assert reason == "npm install failed: npm error code ENOTFOUND"


def test_why_a_peer_is_missing(loaded: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.driver.importlib.util, "find_spec", lambda _name: None)
    shared = loaded.driver.Bench(Path())
    assert shared.missing("pool", "plain") == "orjson is not installed"
    assert shared.missing("slack-websocket", "TLS") == "slack_sdk is not installed"
    assert shared.missing("reference", "plain") == "not asked for"
    monkeypatch.setattr(loaded.driver.importlib.util, "find_spec", lambda _name: object())
    assert shared.missing("slack-builtin", "TLS") == "it uses TLS on port 443 only"
    assert [shared.missing(peer, "TLS") for peer in ("raw", "pool", "pool-json", "slack-websocket")] == [
        ""
    ] * 4


# Rounds


def fake_cell(loaded: SimpleNamespace, name: str = "flood-1x1024") -> Any:
    workload = named(loaded, name)
    return loaded.bench.Cell(workload, "plain", list(workload.peers), {})


class FakeBench:
    """Answers a round with the figures it was given, and remembers in which order the peers came."""

    def __init__(self, **failures: Exception) -> None:
        self.failures = failures
        self.orders: list[list[str]] = []

    def round(self, workload: Any, wire: str, peers: list[str]) -> dict[str, Any]:
        self.orders.append(list(peers))
        return {peer: self.failures.get(peer, {"cpu": 1.0, "others": 0.0}) for peer in peers}


def test_peers_take_turns_at_being_first(loaded: SimpleNamespace) -> None:
    cell, shared = fake_cell(loaded, "growth-sessions-1"), FakeBench()
    for _ in range(3):
        cell.run(shared)
    assert shared.orders == [["raw", "pool"], ["pool", "raw"], ["raw", "pool"]]
    assert [list(one) for one in cell.rounds] == [["raw", "pool"]] * 3


def test_a_peer_that_fails_is_left_out_with_its_reason(loaded: SimpleNamespace) -> None:
    cell, shared = fake_cell(loaded), FakeBench(reference=loaded.driver.Failed("it fell over"))
    cell.run(shared)
    cell.run(shared)
    assert cell.left_out == {"reference": "it fell over"}
    assert "reference" in shared.orders[0] and "reference" not in shared.orders[1]


@pytest.mark.parametrize("peer", ["raw", "pool"])
def test_raw_or_ours_failing_ends_it(loaded: SimpleNamespace, peer: str) -> None:
    with pytest.raises(loaded.driver.Failed, match="it fell over"):
        fake_cell(loaded).run(FakeBench(**{peer: loaded.driver.Failed("it fell over")}))


def test_rounds_end_with_the_time_or_with_enough_of_them(
    loaded: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    many, few = fake_cell(loaded), fake_cell(loaded, "growth-sessions-1")
    loaded.bench.run(FakeBench(), [many, few], 5, time.monotonic() + LONG)
    assert (len(many.rounds), len(few.rounds)) == (5, few.workload.rounds) == (5, 3)
    late, long = fake_cell(loaded), fake_cell(loaded)
    loaded.bench.run(FakeBench(), [late], 5, time.monotonic())
    long.seconds = 2 * LONG
    loaded.bench.run(FakeBench(), [long], 5, time.monotonic() + LONG)
    assert late.rounds == long.rounds == []
    assert capsys.readouterr().out.count("round ") == 8


# The report


def cell_of(workload: str, *rounds: dict[str, Any], wire: str = "plain") -> dict[str, Any]:
    return {
        "workload": workload,
        "wire": wire,
        "amount": "10 messages in all",
        "left_out": {},
        "rounds": list(rounds),
    }


def cpu(**figures: float) -> dict[str, Any]:
    rest = {"system": 1.0, "voluntary": 0.5, "server": 2.0, "others": 0.1}
    return {peer.replace("_", "-"): {"cpu": figure, **rest} for peer, figure in figures.items()}


def results_of(*cells: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": {"CPU": "abacus", "cores": "2"},
        "versions": {"CPython": "3.14.0"},
        "cells": list(cells),
    }


PLOTTED = (
    cell_of("flood-1x1024", cpu(raw=10, pool=4), cpu(raw=12, pool=8)),
    *(cell_of(f"growth-sessions-{n}", cpu(raw=n, pool=5)) for n in (1, 10, 100)),
)


def test_a_ratio_is_that_of_neighbours(loaded: SimpleNamespace) -> None:
    # The machine slowed down in the second round; the ratio of the medians would be another one.
    cell = cell_of(
        "flood-1x1024", cpu(raw=10, pool=2), cpu(raw=40, pool=16), cpu(raw=12, pool=3), cpu(pool=99)
    )
    assert loaded.report.spread(cell, "pool", "cpu", "raw") == (0.25, 0.2, 0.4)
    assert loaded.report.spread(cell, "raw", "cpu") == (12, 10, 40)
    assert loaded.report.spread(cell, "reference", "cpu") is None
    assert loaded.report.spread(cell_of("x", cpu(raw=0, pool=1)), "pool", "cpu", "raw") is None


def test_targets_are_met_missed_or_not_measured(loaded: SimpleNamespace) -> None:
    plain = cell_of("flood-1x1024", cpu(raw=10, pool=4, pool_json=5.1))
    words = {
        (one.target.peer, one.target.against): (one.limit, one.word) for one in loaded.report.verdicts(plain)
    }
    assert words == {
        ("pool", "raw"): (0.4, "met"),
        ("pool-json", "raw"): (0.5, "missed"),
        ("pool", "reference"): (0.6, "not measured"),
        ("pool-json", "reference"): (0.8, "not measured"),
    }
    tls = cell_of("flood-1x1024", cpu(raw=10, pool=4.9, pool_json=6), wire="TLS")
    words = {
        (one.target.peer, one.target.against): (one.limit, one.word) for one in loaded.report.verdicts(tls)
    }
    assert words == {("pool", "raw"): (0.48, "missed"), ("pool-json", "raw"): (0.6, "met")}


def test_the_page(loaded: SimpleNamespace) -> None:
    flood = cell_of("flood-1x1024", cpu(raw=10, pool=4, pool_json=6), cpu(raw=20, pool=6, pool_json=12))
    flood["left_out"] = {"reference": "node and npm are not installed"}
    growth = [
        cell_of(f"growth-sessions-{n}", cpu(raw=10 * n, pool=value))
        for n, value in ((1, 5), (10, 5), (100, 50))
    ]
    page = loaded.report.markdown(results_of(flood, *growth))
    assert "Machine: CPU abacus, cores 2.\n" in page and "Versions: CPython 3.14.0.\n" in page
    assert "## Targets: 1 of 4 met\n" in page
    assert "### Flood, 1 session, 1 KB: plain\n\n2 rounds, 10 messages in all.\n" in page
    assert "Left out: reference Socket on node (node and npm are not installed).\n" in page
    rows = {(row[0], len(row)): row for row in table_rows(page)}
    assert rows["llm_sessions, orjson", 8] == [
        "llm_sessions, orjson",
        "5.0 (4.0–6.0)",
        "0.35 (0.30–0.40)",
        "1.0",
        "0.50",
        "2.0",
        "0.1",
        "CPU ≤ 0.4 × raw: met; CPU ≤ 0.6 × reference: not measured",
    ]
    assert rows["raw websocket-client loop", 8][2] == ""
    assert rows["llm_sessions, orjson", 6][-2:] == ["1.00", "≤ 0.2: missed"]
    assert [row[-1] for row in table_rows(page) if len(row) == 7 and row[-1].strip("-")] == [
        "met",
        "**missed**",
        "**not measured**",
        "**not measured**",
    ]


def test_the_page_of_idle_and_paced_sessions(loaded: SimpleNamespace) -> None:
    common = {"wakeups": 0, "connect_cpu": 1.0, "idle_cpu": 0.0, "others": 0.0}
    idle = {
        "raw": {"rss": 20.0, "connect": 1.0, "disconnect": 0.0, **common},
        "pool": {"rss": 50.0, "connect": 1.5, "disconnect": 0.7, **common},
    }
    paced = cpu(raw=100, pool=110)
    paced["raw"].update(p50=100.0, p99=400.0)
    paced["pool"].update(p50=120.0, p99=800.0)
    page = loaded.report.markdown(
        results_of(cell_of("idle-1000-listener", idle), cell_of("paced-100x300", paced))
    )
    [ours] = [row for row in table_rows(page) if len(row) == 10 and row[0] == "llm_sessions, orjson"]
    assert ours[1:3] == ["50.0 (50.0–50.0)", "0"] and ours[4] == "1.50 (1.50–1.50)" and ours[7] == "0.70"
    assert ours[9].startswith("memory ≤ 45 KiB: missed; wake-ups ≤ 0: met; connects ≤ 1.5 × raw: met;")
    assert "p99 ≤ 1.5 × raw: missed" in page
    assert "## Growth" not in page


def test_how_a_curve_grows(loaded: SimpleNamespace) -> None:
    spread = loaded.report.Spread
    points = [(1, spread(7, 7, 7)), (100, spread(10, 9, 11)), (1000, spread(100, 90, 110))]
    assert loaded.report.exponent(points) == pytest.approx(1)
    assert loaded.report.exponent(points[:1]) is None


# The pictures, and all of it together


def test_bars_are_of_plain_floods(loaded: SimpleNamespace) -> None:
    floods = [
        cell_of("flood-1x1024", cpu(raw=10, pool=4), cpu(raw=12, pool=8)),
        cell_of("flood-1x1024", cpu(raw=99), wire="TLS"),
        cell_of("growth-size-100", cpu(raw=99)),
        cell_of("paced-100x300", cpu(raw=99)),
    ]
    assert loaded.plots.bars(floods) == [("1 session\n1 KB", {"raw": (11, 1, 1), "pool": (6, 2, 2)})]


@pytest.mark.usefixtures("pictures")
def test_pictures_are_drawn(loaded: SimpleNamespace, tmp_path: Path) -> None:
    for name, given in (("full", results_of(*PLOTTED)), ("empty", results_of())):
        for plot in (loaded.plots.plot_floods, loaded.plots.plot_growth):
            plot(given, tmp_path / f"{name}-{plot.__name__}.png")
    sizes = {path.stem: len(path.read_bytes()) for path in tmp_path.iterdir() if path.read_bytes()[:8] == PNG}
    assert sizes["full-plot_floods"] > sizes["empty-plot_floods"] > 0
    assert sizes["full-plot_growth"] > sizes["empty-plot_growth"] > 0


@pytest.mark.usefixtures("pictures")
def test_a_benchmark_from_start_to_end(
    loaded: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(loaded.bench, "WORKLOADS", tuple(map(tiny, loaded.workloads.WORKLOADS)))
    chosen = ["--only", "flood-1x", "paced", "--peers", "raw", "pool", "--wires", "plain"]
    assert loaded.bench.main([*chosen, "--quick", "--rounds", "1", "--output", str(tmp_path / "a")]) == 0
    names = {"results.json", "results.md", "flood.png", "growth.png"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    results = json.loads((tmp_path / "a" / "results.json").read_text(encoding="utf-8"))
    assert [cell["workload"] for cell in results["cells"]] == [
        "flood-1x100",
        "flood-1x1024",
        "flood-1x10240",
        "paced-100x300",
    ]
    assert all(set(one) == {"raw", "pool"} for cell in results["cells"] for one in cell["rounds"])
    assert {"CPU", "cores"} < set(results["machine"]) and {"OpenSSL", "websocket-client"} < set(
        results["versions"]
    )
    page = (tmp_path / "a" / "results.md").read_text(encoding="utf-8")
    assert "### Flood, 1 session, 10 KB: plain\n" in page
    source = str(tmp_path / "a" / "results.json")
    assert loaded.bench.main(["--from", source, "--output", str(tmp_path / "b")]) == 0
    assert (tmp_path / "b" / "results.md").read_text(encoding="utf-8") == page
    assert "round 1  flood-1x100 " in capsys.readouterr().out


def test_a_failure_is_said(
    loaded: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(_options: Any) -> Any:
        raise loaded.driver.Failed("raw acked 3 of 4 messages")

    monkeypatch.setattr(loaded.bench, "measure", fail)
    assert loaded.bench.main(["--output", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == "failed: raw acked 3 of 4 messages\n"
    assert not (tmp_path / "none").exists()


def test_the_short_flood(loaded: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--sessions", "2", "--size", "100", "--messages", "40", "--repeat", "2", "--no-orjson"]
    assert loaded.flood.main(small) == 0
    *_, raw, ours = capsys.readouterr().out.splitlines()
    assert raw.split()[:3] == ["2", "100", "raw"] and ours.split()[:3] == ["2", "100", "pool-json"]
    assert len(ours.split()) == len(raw.split()) + 2
