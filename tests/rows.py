"""The promises that tests name, and which tests keep each: the table in `tests/README.md`.

    python -m tests.rows            # write the table anew

A test keeps a promise that its name begins with (`test_i12_…`, `test_t0_t1_…`) or that its
`@pytest.mark.invariant("I12")` names. `test_rows.py` fails when a promise has no test, when a test names one
that does not exist, and when the table is not what this script writes.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

__all__ = ["ROWS", "keepers", "main", "named", "replaced", "table"]

FOLDER: Final = Path(__file__).resolve().parent
README: Final = FOLDER / "README.md"
BEGIN: Final = "<!-- rows: written by `python -m tests.rows` -->"
END: Final = "<!-- end of rows -->"

ROWS: Final[Mapping[str, str]] = {
    # one socket
    "I1": "What comes before ready is taken; the wait for ready has an end",
    "I2": "A close ends an opening at once",
    "I3": "A close that nobody answers is reported by a table",
    "I4": "Options of a caller are never changed, and every session is treated alike",
    "I5": "A close code that may not be sent is refused before anything happens",
    "I6": "A message without an id is delivered and not acknowledged",
    "I7": "Only numbered messages count in the sequence",
    "I8": "What cannot be used is dropped, and the socket lives",
    "I9": "Nothing happens after a close, and nothing is left of it",
    "I10": "A wrong or missing pong ends the socket, and the session reconnects",
    "I11": "Reconnects add no handlers",
    # the pool: cancelling and keeping the books
    "I12": "disconnect_all also ends what has no socket yet",
    "I13": "Disconnecting one session leaves the others alone",
    "I14": "A cancelled attempt opens no socket",
    "I15": "A run that is over takes nothing from the one after it",
    "I16": "Callers of one session share one socket, and hold up nobody else",
    "I17": "All who wait for a run get its outcome, and it is over then",
    "I18": "A failed connect leaves nothing behind but its error",
    "I26": "Nothing reconnects after an explicit disconnect",
    "I27": "Nor whatever the server answers to it",
    "I28": "disconnect returns when all is gone and cleared, and leaks nothing",
    "I33": "Retry limits are each session's own",
    "I38": "So is the last error",
    "I39": "close is for good",
    "I97": "Callbacks run without a lock; they may connect, disconnect and close",
    # the pool: closes and retries
    "I29": "The close of a replaced socket never reconnects; 4001 is told as replaced",
    "I30": "4000 `replaced` ends a session, another 4000 does not",
    "I31": "Each attempt has a fresh URL of the session's own source",
    "I32": "Sessions stand for themselves; `any_online` speaks of all",
    "I40": "Waits double up to their limit; N retries are N + 1 attempts",
    "I41": "A refused token is refreshed once an attempt, and the next sends the new one",
    "I42": "4400 and 4403 are not tried again",
    "I43": "`connection_failed` comes from the second failure on, and not for 1006",
    # the pool: switchover
    "I19": "A new socket takes over only when it is ready",
    "I20": "A session that is switched over is online throughout",
    "I21": "Only the close of the socket in use concerns the session",
    "I22": "After a failed switchover the old socket is in use again",
    "I23": "A second announcement changes nothing; sessions switch by themselves",
    "I24": "The new socket goes where its session goes",
    "I25": "disconnect ends the old socket and the new one",
    "I98": "The old socket may close before the new one is ready",
    "I99": "What both sockets bring is delivered once",
    # the pool: events
    "I34": "Another session's events carry its id exactly once",
    "I35": "A message without a type is announced as `event` only",
    "I36": "A listener that raises stops nobody",
    "I37": "Headers are applied before listeners see a message",
    # data channels and their tokens
    "I45": "The token's header is sent if it is wanted and there is a token",
    "I46": "The binding is that of the socket in use",
    "I47": "Registered and online means no second registration",
    "I48": "A registration that lands after a disconnect stores and opens nothing",
    "I49": "A superseded run does not end the one after it",
    "I50": "Without an address nothing is registered",
    "I51": "An answer without a socket's URL is a clear error",
    "I52": "One registration asks once whether it sends tokens",
    "I53": "A token belongs to one meeting and session, and goes with the meeting",
    "I54": "A token comes from the cache, then the locus, then the service",
    "I55": "A refresh goes to the source of its own session",
    "I56": "Which address refreshes a token depends on the session, not on the role",
    "I57": "A locus with a token replaces it, one without leaves it",
    "I58": "A refresh that fails is a clear error, and no header is ever empty",
    "I59": "Every request has its own second try",
    "I60": "Which is one, two seconds later",
    "I61": "A token that was fetched for a meeting that was left is not stored",
    "I62": "The addresses are known before the request that may need a refresh",
    "I63": "A refreshed token is its session's, whatever the answer calls it",
    # meeting and practice session
    "I64": "A client is in one meeting; two clients never touch one another's sessions",
    "I65": "A locus without an address leaves a working channel alone",
    "I66": "The lobby and the leave disconnect",
    "I67": "Leaving closes with 3050, and nothing reconnects",
    "I72": "After each wait everything is looked at again",
    "I73": "Many updates make one wait",
    "I74": "A session that comes online in between is not missed",
    "I75": "Leaving ends the wait",
    "I76": "The main channel may drop while the practice session's is prepared",
    "I77": "A promotion that is taken back ends the connect under way",
    "I78": "Listeners go, also when the disconnect fails",
    "I79": "A channel that another takes the place of is closed as replaced",
    "I80": "A failure leaves nothing, and the next update works",
    "I81": "An event is delivered once, however many reconnects there were",
    "I82": "State messages are heard on the practice session's channel",
    "I94": "No handler runs once the leave has begun",
    "I95": "Who is admitted without a token gets one first",
    # captions
    "I83": "A reaction is judged by the channel that it came on",
    "I84": "Each new socket is subscribed once, if captions are wanted",
    "I85": "Leaving forgets all of captions",
    "I86": "Listening comes before asking",
    "I87": "An announcement that fails does not fail the connect",
    "I88": "A message goes to the socket, binding and address of one session",
    "I89": "Whether there is a channel is looked at when something is sent",
    "I90": "What listens to captions outlives reconnects",
    "I93": "Captions asked for before any channel begin on the first",
    # threads and processes
    "T0": "A cancelled attempt is given up within a second, wherever it is",
    "T1": "Every wait ends",
    "T2": "close leaves no thread and no descriptor",
    "T3": "A listener that blocks does not cost the connection",
    "T4": "A full queue does what it was told, and keepalive goes on",
    "T5": "Ctrl-C ends every wait, and strands nobody else",
    "T6": "The interpreter exits with sessions open, and says goodbye",
    "T7": "A forked child gets an error, and the parent loses nothing",
    "T8": "Messages of many threads are sent whole",
    "T9": "A send that runs out of time in a message ends the socket",
    "T10": "No two threads are inside one TLS object",
    "T11": "No token is ever shown",
    "T12": "Nor sent where it does not belong",
    "T13": "A huge message costs no memory",
    "T14": "A sender that is stuck holds up neither reading nor other sessions",
    "T15": "Reconnects are spread out, and a server that closes at once makes no storm",
    "T16": "The last caller to leave and the next to come agree on one run",
    "T17": "Online for an instant counts",
}


def named(source: str) -> Iterator[tuple[str, str]]:
    """Yield promise and test, for each promise that a test of a file names."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or not node.name.lower().startswith("test"):
            continue
        numbers = re.match(r"test_((?:[itd]\d+_)+)", node.name)
        found = re.findall(r"[it]\d+", numbers[1]) if numbers else []
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.invariant":
                found += [str(one.value) for one in mark.args if isinstance(one, ast.Constant)]
        for promise in dict.fromkeys(one.upper() for one in found):
            yield promise, node.name


def keepers(files: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """Return the tests of each promise, by file.

    Args:
        files: Source of each test file, by its path in `tests`.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(files):
        for promise, test in named(files[path]):
            found.setdefault(promise, {}).setdefault(path, []).append(test)
    return found


def table(rows: Mapping[str, str], tests: Mapping[str, Mapping[str, list[str]]]) -> str:
    """Return the table of the promises and of those who keep them."""
    lines = ["| | promise | kept by |", "|---|---|---|"]
    for promise, text in rows.items():
        files = tests.get(promise, {})
        lines.append(f"| {promise} | {text} | {', '.join(_counted(*one) for one in files.items())} |")
    return "\n".join(lines)


def _counted(path: str, tests: list[str]) -> str:
    return f"`{path}`" + (f" {len(tests)}" if len(tests) > 1 else "")


def replaced(document: str, new: str) -> str:
    """Return a document with another table in it.

    Raises:
        ValueError: It has no place for one.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("there is no place for the table")
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{after}"


def sources() -> dict[str, str]:
    return {
        path.relative_to(FOLDER).as_posix(): path.read_text(encoding="utf-8")
        for path in FOLDER.rglob("test_*.py")
    }


def main() -> int:
    """Write the table; return the exit status, 1 if a promise has no test."""
    tests = keepers(sources())
    README.write_text(replaced(README.read_text(encoding="utf-8"), table(ROWS, tests)), encoding="utf-8")
    missing = [promise for promise in ROWS if promise not in tests]
    if missing:
        print("no test keeps", ", ".join(missing), file=sys.stderr)  # noqa: T201  # it is a script
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
