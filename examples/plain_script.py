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

from llm_sessions import ConnectionLost, ConnectionPool, LLMSessionsError


def show_captions(url: str, token: str) -> None:
    with ConnectionPool(token) as pool:
        session = pool.session("captions")
        with session.messages(timeout=600) as messages:  # before the connect, so that nothing is missed
            pool.connect(url, session.id, timeout=30)
            print("connected")
            for envelope in messages:
                if envelope.event_type == "relay.event":
                    print(envelope.data.get("text"))


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
    from llm_sessions.testing.server import LocalServer

    def speak(server: LocalServer) -> None:
        server.wait_live("captions")
        for text in ("Welcome, everyone.", "That was it, thank you."):
            server.publish({"text": text}, session="captions")
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
