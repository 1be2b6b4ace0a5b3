"""CPU of a client process per message when the server sends as fast as the sockets take it.

    python benchmarks/flood.py                  # 1 and 100 sessions, 1 KB messages, plain
    python benchmarks/flood.py --tls --size 100 1024 10240 --repeat 9 --no-orjson
    python benchmarks/flood.py --clients raw pool pool-json slack-websocket

`raw` is what one writes by hand: a thread for each socket that loops over websocket-client's `recv`,
`json.loads`, an ack and the listener. `pool` is a `ConnectionPool` with a listener for each session. Every
figure comes from a fresh process: it connects all sessions, then counts its own CPU from the start of the
flood until the last message is with its listener. The server is another process, and counts the acks. The
clients take turns, and a ratio is that of two neighbours: a machine that slows down meanwhile slows both.

Look at `others` before you believe a figure of many sessions. Threads fight for the GIL only where a second
core is free to wake them: on two idle cores raw takes some 115 µs a message with 100 sessions, 30 to 40 when
other programs keep a core busy (`others` near 1) or under `taskset -c 0`.

`bench.py` measures this and more, and writes it down.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from _driver import Bench, Failed, Result, bench
from _workloads import PEERS, PLAIN, POOL, POOL_JSON, RAW, TLS, Workload

COLUMNS = ("cpu", "system", "wall", "voluntary", "involuntary", "server", "others")
HEADER = (
    "sessions  bytes  client               cpu (min-max)   system     wall   switch preempted   server"
    "   others       x raw (min-max)"
)


def spread(values: Sequence[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def cell(bench: Bench, sessions: int, size: int, options: argparse.Namespace) -> None:
    """Measure all clients in turn and print a line for each."""
    total = options.messages or min(60_000, 120_000_000 // size)
    wire = TLS if options.tls else PLAIN
    messages = max(1, total // sessions)
    workload = Workload("", "", "flood", tuple(options.clients), sessions, size, messages, options.fragments)
    rounds: list[dict[str, Result]] = []
    for _ in range(options.repeat):
        results = bench.round(workload, wire, workload.peers, options.chunk)
        failures = [f"{peer}: {result}" for peer, result in results.items() if isinstance(result, Failed)]
        if failures:
            raise SystemExit("\n".join(failures))
        rounds.append({peer: result for peer, result in results.items() if not isinstance(result, Failed)})
    for client in options.clients:
        cpu, *others = ([row[client][key] for row in rounds] for key in COLUMNS)
        line = f"{sessions:>8} {size:>6}  {client:<15}{spread(cpu, 1):>20}"
        line += "".join(f"{median(values):>9.2f}" for values in others)
        if client != RAW and RAW in options.clients:
            ratios = [ours / row[RAW]["cpu"] for ours, row in zip(cpu, rounds, strict=True)]
            line += f"  {spread(ratios, 2):>20}"
        print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--size", type=int, nargs="+", default=[1024], help="bytes, from 100")
    parser.add_argument("--fragments", type=int, default=1, help="frames of a message")
    parser.add_argument("--messages", type=int, help="of all sessions (default 60000, fewer if large)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--clients", nargs="+", choices=PEERS, default=[RAW, POOL])
    parser.add_argument("--chunk", type=int, default=65_536, help="bytes a write; 1: a TLS record a message")
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--no-orjson", action="store_true", help="pool-json in place of pool")
    parser.add_argument("--reference", type=Path, help="a folder with the reference's node_modules")
    options = parser.parse_args(arguments)
    if options.no_orjson:
        options.clients = [POOL_JSON if client == POOL else client for client in options.clients]
    with bench(options.reference) as shared:
        wire = TLS if options.tls else PLAIN
        for client in options.clients:
            if reason := shared.missing(client, wire):
                parser.error(f"{client}: {reason}")
        print(f"{wire}, {options.repeat} runs each")
        print("cpu, system, wall, server: µs a message; switch, preempted: context switches a message;")
        print("others: cores that other programs kept busy meanwhile")
        print(HEADER)
        for size in options.size:
            for sessions in options.sessions:
                cell(shared, sessions, size, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
