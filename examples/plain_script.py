"""The captions of one session on the terminal: a script, a token and a loop.

    python examples/plain_script.py

runs against a server of its own. With WEBEX_URL and WEBEX_TOKEN in the environment it shows what is said
there, until nothing was for ten minutes, or until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from llm_sessions import ConnectionLost, ConnectionPool, Envelope, LLMSessionsError


def final_captions(envelope: Envelope) -> list[str]:
    """Return the captions in a message that stay as they are; none if it is about something else."""
    payload = envelope.data.get("voiceaPayload", {})
    if payload.get("type") != "transcript_final_result":
        return []
    return [one["text"] for one in payload["transcripts"]]


def show_captions(url: str, token: str) -> None:
    with ConnectionPool(token) as pool:
        session = pool.session("captions")
        with session.messages(timeout=600) as messages:  # before the connect, so that nothing is missed
            pool.connect(url, session.id, timeout=30)
            print("connected")
            for envelope in messages:
                for text in final_captions(envelope):
                    print(text)


def main() -> None:
    try:
        if "WEBEX_URL" in os.environ:
            show_captions(os.environ["WEBEX_URL"], os.environ["WEBEX_TOKEN"])
        else:
            with rehearsal() as url:
                show_captions(url, "any-token")
    except ConnectionLost as exc:  # for good; what can be mended by a reconnect is not heard of here
        print("the server ended it:", exc.reason or exc.code)
    except LLMSessionsError as exc:  # refused, unreachable, no such URL
        sys.exit(f"no captions: {exc}")
    except KeyboardInterrupt:
        print("bye")


@contextlib.contextmanager
def rehearsal() -> Iterator[str]:
    """A server in the place of Webex, where two things are said before it closes; yields a session's URL."""
    from llm_sessions.testing.captions import CaptionService
    from llm_sessions.testing.server import LocalServer

    def speak(server: LocalServer) -> None:
        service = CaptionService(server)
        server.wait_live("captions")
        for text in ("Welcome, everyone.", "That was it, thank you."):
            service.transcript(text, session="captions")
        server.close_session("captions", code=1000, reason="the meeting is over")

    with LocalServer() as server:
        speaker = threading.Thread(target=speak, args=(server,))
        speaker.start()
        try:
            yield server.url("captions")
        finally:
            speaker.join()


if __name__ == "__main__":
    main()
