"""A service: it runs until SIGTERM or Ctrl-C, and says in its log what its session does.

    python examples/service.py

runs against a server of its own and stops itself. With WEBEX_URL and WEBEX_TOKEN in the environment it
runs until somebody stops it, for instance systemd:

    [Service]
    ExecStart=/opt/captions/bin/python /opt/captions/service.py
    ExecReload=/bin/kill -HUP $MAINPID
    EnvironmentFile=/etc/captions.env
    Restart=on-failure
    RestartSec=30
    RestartPreventExitStatus=77 78
    TimeoutStopSec=10

Tokens end, services do not: with WEBEX_TOKEN_FILE instead of WEBEX_TOKEN the token is read from that file
for each attempt, and once more when it was refused. Whoever renews it writes a new file and renames it.
SIGHUP has the session connected anew with what is in the file then; with WEBEX_TOKEN there is nothing to read
again, and SIGHUP, which is also what a terminal sends when it is closed, stops the service.
(`token_refresh.py` has tokens that renew themselves.)

Exit status: 0 after SIGTERM or Ctrl-C, 69 if the session ended for good (a new start may help), 77 if the
token was refused and 78 if a setting is wrong (it will not).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from llm_sessions import (
    ConfigurationError,
    ConnectionPool,
    Envelope,
    Forbidden,
    NotAuthorized,
    PoolClosed,
    SessionError,
)

logger = logging.getLogger("captions")

Token = str | Callable[[], str]


def configure_logging() -> None:
    # systemd's journal adds the time. Records that are about no session have no such fields.
    text = "%(levelname)s %(name)s session=%(session_id)s state=%(state)s %(message)s"
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter(text, defaults={"session_id": "-", "state": "-"}))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("llm_sessions.pool").setLevel(logging.INFO)  # each change of state, with its reason
    logging.getLogger("llm_sessions.connection").setLevel(logging.WARNING)  # at DEBUG: each message


def final_captions(envelope: Envelope) -> list[str]:
    """Return the captions in a message that stay as they are; none if it is about something else."""
    payload = envelope.data.get("voiceaPayload", {})
    if payload.get("type") != "transcript_final_result":
        return []
    return [one["text"] for one in payload["transcripts"]]


def hear(envelope: Envelope) -> None:
    about = {"session_id": envelope.session_id}
    for text in final_captions(envelope):
        logger.info("caption: %s", text, extra=about)


def serve(url: str, token: Token, stop: threading.Event, renew: threading.Event) -> int:
    """Follow the session until `stop` is set or it has ended for good; return the exit status.

    Args:
        url: The session's WebSocket URL.
        token: The access token, or what returns it.
        stop: Has all come to an end.
        renew: Has the session connected anew.
    """
    error: Exception | None = None

    def follow() -> None:
        nonlocal error
        try:
            session = pool.connect(url, "captions", timeout=None)  # tries until the network is there
            session.wait_closed()  # it reconnects by itself meanwhile
            error = session.last_error
        except (SessionError, PoolClosed, ConfigurationError) as exc:
            error = exc

    # Leaving it closes the pool: `follow` ends wherever it is, and what was received is delivered first.
    with ConnectionPool(token) as pool:
        pool.on("event:relay.event", hear, session_id="captions")
        while True:
            follower = threading.Thread(target=follow, name="follower")
            follower.start()
            # Python calls signal handlers in this thread. One that comes when it is just about to wait is
            # called when the wait ends, so it ends every second.
            while follower.is_alive() and not stop.is_set() and not renew.is_set():
                follower.join(1)
            if stop.is_set() or not renew.is_set():
                break
            renew.clear()
            logger.info("connecting anew")
            while follower.is_alive():  # again, for it may have been just about to connect
                pool.disconnect("captions")
                follower.join(1)
        stopped = stop.is_set()
    follower.join()
    if stopped:
        logger.info("stopped: %d messages, %d reconnects", pool.stats().messages_in, pool.stats().reconnects)
        return 0
    logger.error("the session ended for good: %s", error)
    if isinstance(error, (NotAuthorized, Forbidden)):
        return os.EX_NOPERM
    return os.EX_CONFIG if isinstance(error, ConfigurationError) else os.EX_UNAVAILABLE


def token_source() -> Token | None:
    """Return the token of the environment, or what reads it from a file; None if neither is named."""
    if "WEBEX_TOKEN_FILE" in os.environ:
        file = Path(os.environ["WEBEX_TOKEN_FILE"])
        return lambda: file.read_text(encoding="utf-8").strip()
    return os.environ.get("WEBEX_TOKEN")


def main() -> int:
    configure_logging()
    stop, renew = threading.Event(), threading.Event()
    # A handler runs in the main thread, in the middle of whatever that does. So it only sets an Event, which
    # the main thread looks at but never waits for: set() in the middle of its own wait() may wait for itself.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    url, token = os.environ.get("WEBEX_URL"), token_source()
    if callable(token):
        signal.signal(signal.SIGHUP, lambda *_: renew.set())
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup means
        signal.signal(signal.SIGHUP, lambda *_: stop.set())
    if url is None and token is None:
        with rehearsal() as ours:
            return serve(ours, "any-token", stop, renew)
    if not url or not token:
        logger.error("WEBEX_URL, and WEBEX_TOKEN or WEBEX_TOKEN_FILE are needed")
        return os.EX_CONFIG
    try:
        return serve(url, token, stop, renew)
    except ConfigurationError as exc:
        logger.error("%s", exc)
        return os.EX_CONFIG


@contextlib.contextmanager
def rehearsal() -> Iterator[str]:
    """A server in the place of Webex: it drops the connection once, and then somebody stops the service."""
    from llm_sessions.testing.server import LocalServer

    def say(server: LocalServer, text: str) -> None:
        # Its first acknowledgement is that of having heard that it is online.
        server.wait_for(lambda: any(one.acks for one in server.live("captions")))
        caption = {"type": "transcript_final_result", "transcripts": [{"text": text}]}
        event = {"relayType": "voicea.transcription", "voiceaPayload": caption}
        server.publish(event, session="captions", id=text)
        server.wait_for(lambda: any(text in one.acks for one in server.connections("captions")))

    def play(server: LocalServer) -> None:
        try:
            say(server, "Welcome, everyone.")
            server.drop("captions")
            say(server, "And we are back.")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with LocalServer() as server:
        player = threading.Thread(target=play, args=(server,))
        player.start()
        try:
            yield server.url("captions")
        finally:
            player.join()


if __name__ == "__main__":
    sys.exit(main())
