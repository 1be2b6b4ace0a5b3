"""Runs a workload with its peers in turn: a server process, and a fresh client process for each figure."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _workloads import PEERS, POOL, REFERENCE, SLACK_BUILTIN, SLACK_WEBSOCKET, TLS, Workload

HERE = Path(__file__).resolve().parent
START_TIMEOUT, CONNECT_TIMEOUT, TRAFFIC_TIMEOUT, EXIT_TIMEOUT = 60.0, 180.0, 150.0, 15.0  # seconds
NPM_TIMEOUT = 120.0
REFERENCE_PACKAGES = ("@webex/internal-plugin-mercury@3.12.0", "@babel/runtime-corejs2")
Result = dict[str, float]
Process = subprocess.Popen[bytes]


class Failed(Exception):
    """A process ended, hung, or lost messages; the text says which."""


@contextlib.contextmanager
def spawn(arguments: Sequence[str], environment: dict[str, str]) -> Iterator[Process]:
    """A process with pipes, which is gone when the block is."""
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, bufsize=0, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: Process, timeout: float) -> dict[str, Any]:
    """The next line of a process, which is JSON."""
    assert process.stdout is not None and isinstance(process.args, list)
    name = Path(process.args[1]).name
    if not select.select([process.stdout], [], [], timeout)[0]:
        raise Failed(f"{name} said nothing within {timeout:g} s")
    line = process.stdout.readline()
    if not line:
        raise Failed(f"{name} ended without an answer")
    found: dict[str, Any] = json.loads(line)
    return found


def machine_cpu() -> float:
    """Seconds of CPU that all processes together, and the host, have taken from this machine (Linux)."""
    user, nice, system, _idle, _iowait, *interrupts = Path("/proc/stat").read_text().split(None, 9)[1:9]
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Bench:
    """What all measurements share.

    Attributes:
        folder: For certificates.
        modules: A folder with the reference's `node_modules`; None: it is not there.
        no_reference: Why not.
    """

    folder: Path
    modules: Path | None = None
    no_reference: str = ""

    def missing(self, peer: str, wire: str) -> str:
        """Why a peer cannot take part; empty if it can."""
        if peer == REFERENCE and self.modules is None:
            return self.no_reference or "not asked for"
        if peer == POOL and importlib.util.find_spec("orjson") is None:
            return "orjson is not installed"
        if peer in (SLACK_BUILTIN, SLACK_WEBSOCKET) and importlib.util.find_spec("slack_sdk") is None:
            return "slack_sdk is not installed"
        if peer == SLACK_BUILTIN and wire == TLS:
            return "it uses TLS on port 443 only"
        return ""

    def round(
        self, workload: Workload, wire: str, peers: Sequence[str], chunk: int | None = None
    ) -> dict[str, Result | Failed]:
        """Measure each peer once, in this order."""
        results: dict[str, Result | Failed] = {}
        with contextlib.ExitStack() as stack:
            start = functools.cache(lambda messages: self.server(stack, workload, wire, messages, chunk))
            for peer in peers:
                messages = workload.messages
                if workload.kind == "flood":  # of the others the pace says how long they take
                    messages = max(1, messages // PEERS[peer].slower)
                server, task = start(messages)
                try:
                    results[peer] = self.measure(peer, workload, server, task)
                except Failed as failure:
                    results[peer] = failure
                    start.cache_clear()  # that server may be in the middle of something
        return results

    def server(
        self, stack: contextlib.ExitStack, workload: Workload, wire: str, messages: int, chunk: int | None
    ) -> tuple[Process, dict[str, Any]]:
        """A server process, and the task of its clients."""
        ca_file = str(self.folder / f"ca-{messages}.pem") if wire == TLS else None
        task = {
            "kind": workload.kind,
            "messages": messages,
            "size": workload.size,
            "fragments": workload.fragments,
            "rate": workload.rate,
            "ca_file": ca_file,
            **({"chunk": chunk} if chunk else {}),
        }
        command = [sys.executable, str(HERE / "_server.py"), json.dumps(task)]
        server = stack.enter_context(spawn(command, environment()))
        return server, {
            "url": answer(server, START_TIMEOUT)["url"],
            "kind": workload.kind,
            "ca_file": ca_file,
            "sessions": workload.sessions,
            "messages": messages,
            "seconds": workload.seconds,
            "listen": workload.listen,
        }

    def command(self, peer: str, task: dict[str, Any]) -> list[str]:
        client = PEERS[peer].client
        if client == "reference":
            return ["node", str(HERE / "_reference.js"), str(self.modules), json.dumps(task)]
        return [sys.executable, str(HERE / "_clients.py"), client, json.dumps(task)]

    def measure(self, peer: str, workload: Workload, server: Process, task: dict[str, Any]) -> Result:
        """One client process from start to end."""
        assert server.stdin is not None
        environ = environment(**PEERS[peer].environment)
        if task["ca_file"]:
            environ["WEBSOCKET_CLIENT_CA_BUNDLE"] = task[
                "ca_file"
            ]  # how slack_sdk's websocket_client is told
        with spawn(self.command(peer, task), environ) as process:
            answer(process, CONNECT_TIMEOUT)
            busy, began = machine_cpu(), time.perf_counter()
            server.stdin.write(b"go\n")
            result: Result = answer(process, TRAFFIC_TIMEOUT + workload.seconds)
            busy, seconds = machine_cpu() - busy, time.perf_counter() - began
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(EXIT_TIMEOUT)
        counted = answer(server, EXIT_TIMEOUT)
        total = task["sessions"] * task["messages"]
        if counted["acks"] < total:
            raise Failed(f"{peer} acked {counted['acks']} of {total} messages")
        used = result["idle_cpu"] if workload.kind == "idle" else result["cpu"] * total / 1e6
        result["others"] = max(0.0, busy - used - counted["cpu"]) / seconds
        if total:
            result["server"] = counted["cpu"] * 1e6 / total
        return result


def environment(**more: str) -> dict[str, str]:
    """Ours without proxies, so that loopback is loopback, and with this tree's library first."""
    found = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    found.pop("LLM_SESSIONS_JSON", None)
    found["PYTHONPATH"] = f"{HERE.parent}{os.pathsep}{found.get('PYTHONPATH', '')}"
    return {**found, **more}


def install_reference(folder: Path) -> str:
    """Fetch the reference's Socket from the npm registry into a folder; return why not, or nothing."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        return "node and npm are not installed"
    options = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", "--prefix", str(folder))
    try:
        done = subprocess.run(
            [npm, "install", *options, *REFERENCE_PACKAGES],
            capture_output=True,
            text=True,
            timeout=NPM_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"npm install took more than {NPM_TIMEOUT:g} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        return f"npm install failed: {lines[0]}"
    return ""


@contextlib.contextmanager
def bench(reference: Path | None = None, fetch_reference: bool = False) -> Iterator[Bench]:
    """A `Bench` with folders of its own.

    Args:
        reference: A folder that has the reference's `node_modules` already.
        fetch_reference: Whether to ask the npm registry for them otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder, reason = Path(name), ""
        if reference is None and fetch_reference:
            reason = install_reference(folder)
            reference = None if reason else folder
        yield Bench(folder, reference, reason)
