"""Two sessions at once, their events told apart, one disconnected while the other goes on.

    python examples/two_sessions.py

runs against a server of its own. With WEBEX_TOKEN, WEBEX_URL and PRACTICE_URL in the environment it runs
against the real service instead.
"""

from __future__ import annotations

import contextlib
import os
import queue

from llm_sessions import ALL_SESSIONS, ConnectionPool, Envelope
from llm_sessions.testing.server import LocalServer


def main() -> None:
    heard: queue.SimpleQueue[Envelope] = queue.SimpleQueue()

    def show_next() -> None:
        envelope = heard.get(timeout=60)
        print(f"{envelope.session_id:>8}: {envelope.data.get('text')}")

    with contextlib.ExitStack() as stack:
        server = None
        if "WEBEX_URL" in os.environ:
            urls = {"main": os.environ["WEBEX_URL"], "practice": os.environ["PRACTICE_URL"]}
        else:
            server = stack.enter_context(LocalServer())
            urls = {"main": server.url("main"), "practice": server.url("practice")}

        pool = stack.enter_context(ConnectionPool(os.environ.get("WEBEX_TOKEN", "any-token")))
        pool.on("event:relay.event", heard.put, session_id=ALL_SESSIONS)
        for session_id, url in urls.items():
            print(pool.connect(url, session_id=session_id, timeout=30))

        if server is not None:
            server.publish({"text": "a caption of the main meeting"}, session="main")
            server.publish({"text": "a caption of the practice session"}, session="practice")
        show_next()
        show_next()

        pool.disconnect("practice", code=3050, reason="done (permanent)")
        print(pool)
        if server is not None:
            server.publish({"text": "and the main meeting goes on"}, session="main")
        show_next()


if __name__ == "__main__":
    main()
