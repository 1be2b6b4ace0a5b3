"""A job for cron: it collects captions for a while, and says by its exit status how that went.

    python examples/cron_job.py

runs against a server of its own. With WEBEX_URL and WEBEX_TOKEN in the environment, which the file named here
exports, it is a line of a crontab:

    */10 * * * *  . $HOME/.webex.env; python3 cron_job.py --seconds 60 --count 100 --output captions.jsonl

It prints nothing when all went well, so that cron sends no mail. It takes --connect and --seconds, and five
seconds to close at most; a run that finds another one at work leaves at once. A kill leaves whole lines, and
what a full disk has left of one does not spoil the next.

Exit status: 0 if all went well, 1 if the session could not be connected or ended too soon (what was
collected is kept), 2 for a wrong argument or setting, 74 if a file cannot be written, 75 if another run is at
work.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from llm_sessions import ConfigurationError, ConnectionPool, Envelope, Offline, SessionError


class Busy(Exception):
    """Another run is at work."""


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Keep other runs out. The lock is the kernel's: it is gone when the process is, however that ended.

    Raises:
        Busy: If another run holds it.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None
        yield


def final_captions(envelope: Envelope) -> list[str]:
    """Return the captions in a message that stay as they are; none if it is about something else."""
    payload = envelope.data.get("voiceaPayload", {})
    if payload.get("type") != "transcript_final_result":
        return []
    return [one["text"] for one in payload["transcripts"]]


@contextlib.contextmanager
def lines(path: Path) -> Iterator[TextIO]:
    """Open a file to append lines to it. What a full disk has left of a line stays a line of its own."""
    torn = False
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            torn = file.read() != b"\n"
    # Buffered by lines, so that a kill loses none.
    with path.open("a", buffering=1, encoding="utf-8") as output:
        output.write("\n" * torn)
        yield output


def collect(url: str, token: str, output: TextIO, options: argparse.Namespace) -> int:
    """Write captions to `output`, one a line; return how many.

    Raises:
        SessionError: If the session could not be connected, or ended for good before time or count were up.
        OSError: If they cannot be written.
    """
    arrived: queue.SimpleQueue[Envelope | Offline] = queue.SimpleQueue()
    written = 0

    def write(envelope: Envelope) -> None:
        nonlocal written
        for text in final_captions(envelope):
            line = {"id": envelope.id, "at": time.time(), "text": text}
            output.write(json.dumps(line, ensure_ascii=False) + "\n")
            written += 1

    with ConnectionPool(token) as pool:
        session = pool.session("captions")
        session.on("event:relay.event", arrived.put)
        for ending in ("offline.permanent", "offline.replaced"):  # it reconnects by itself after any other
            session.on(ending, arrived.put)
        pool.connect(url, session.id, timeout=options.connect)
        deadline = time.monotonic() + options.seconds
        # Also where captions come faster than they are written, the time is up at its end.
        while written < options.count and (left := deadline - time.monotonic()) > 0:
            try:
                found = arrived.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(found, Offline):
                raise session.last_error or SessionError(session.id, "it ended")
            write(found)
    while written < options.count and not arrived.empty():  # came in time
        found = arrived.get()
        if isinstance(found, Envelope):
            write(found)
    return written


def run(url: str, token: str, options: argparse.Namespace) -> int:
    lock = options.output.with_name(f"{options.output.name}.lock")
    try:
        with only_one(lock), lines(options.output) as output:
            collect(url, token, output, options)
    except Busy:
        print("another run is at work", file=sys.stderr)
        return os.EX_TEMPFAIL
    except ConfigurationError as exc:
        print(exc, file=sys.stderr)
        return 2
    except SessionError as exc:
        print(exc, file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"{exc.filename or options.output}: {exc.strerror}", file=sys.stderr)
        return os.EX_IOERR
    return 0


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1_000_000:
        raise ValueError(text)
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Collect the captions of a session.")
    parser.add_argument("--connect", type=seconds, default=30.0, help="how long to try to (%(default)s)")
    parser.add_argument("--seconds", type=seconds, default=60.0, help="how long to collect (%(default)s)")
    parser.add_argument("--count", type=int, default=math.inf, help="how many captions are enough")
    parser.add_argument("--output", type=Path, help="the file that captions are appended to")
    options = parser.parse_args(arguments)
    url, token = os.environ.get("WEBEX_URL"), os.environ.get("WEBEX_TOKEN")
    if url is None and token is None and options.output is None:
        return rehearse(options)
    # Not a rehearsal: a crontab whose environment is missing should hear of it.
    if not url or not token or options.output is None:
        parser.error("WEBEX_URL, WEBEX_TOKEN and --output are needed")
    return run(url, token, options)


def rehearse(options: argparse.Namespace) -> int:
    """Run against a server of our own that says three things, of which two are wanted."""
    from llm_sessions.testing.captions import CaptionService
    from llm_sessions.testing.server import LocalServer

    def speak() -> None:
        service = CaptionService(server)
        server.wait_live("captions")
        for text in ("one", "two", "three"):
            service.transcript(text, session="captions")

    with tempfile.TemporaryDirectory() as folder, LocalServer() as server:
        options.output, options.count = Path(folder) / "captions.jsonl", 2
        speaker = threading.Thread(target=speak)
        speaker.start()
        status = run(server.url("captions"), "any-token", options)
        speaker.join()
        texts = [json.loads(line)["text"] for line in options.output.read_text(encoding="utf-8").splitlines()]
        print("collected:", ", ".join(texts))
    return status


if __name__ == "__main__":
    sys.exit(main())
