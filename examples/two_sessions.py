"""The two channels of a webinar at once: main meeting and practice session, each with its listeners.

    python examples/two_sessions.py

runs against a server of its own. With WEBEX_TOKEN, DEVICE_URL, LOCUS_URL, DATACHANNEL_URL and
PRACTICE_DATACHANNEL_URL in the environment it runs against the real service instead.
"""

from __future__ import annotations

import contextlib
import os
import queue

from llm_sessions import LLM_PRACTICE_SESSION, DataChannelClient, Envelope
from llm_sessions.testing.server import LocalServer


def main() -> None:
    main_heard: queue.SimpleQueue[Envelope] = queue.SimpleQueue()
    practice_heard: queue.SimpleQueue[Envelope] = queue.SimpleQueue()

    with contextlib.ExitStack() as stack:
        server = None
        if "DATACHANNEL_URL" in os.environ:
            access_token, device = os.environ["WEBEX_TOKEN"], os.environ["DEVICE_URL"]
            locus = os.environ["LOCUS_URL"]
            main_url, practice_url = os.environ["DATACHANNEL_URL"], os.environ["PRACTICE_DATACHANNEL_URL"]
        else:
            server = stack.enter_context(LocalServer())
            access_token, device, locus = "any-token", "https://wdm.example/devices/1", server.locus_url()
            main_url, practice_url = server.datachannel_url("main"), server.datachannel_url("practice")

        client = stack.enter_context(DataChannelClient(access_token, device=device))
        # Who names no session means the default one.
        client.on("event:relay.event", main_heard.put)
        client.on("event:relay.event", practice_heard.put, session_id=LLM_PRACTICE_SESSION)
        print(client.register_and_connect(locus, main_url))
        print(client.register_and_connect(locus, practice_url, session_id=LLM_PRACTICE_SESSION))

        if server is not None:
            server.publish({"relayType": "react", "reaction": {"type": "heart"}}, session="main")
            server.publish({"relayType": "react", "reaction": {"type": "smile"}}, session="practice")
        print("main:    ", main_heard.get(timeout=60).data)
        print("practice:", practice_heard.get(timeout=60).data)

        # It goes out on the practice session while that is online, and on the default one after that.
        client.publish({"relayType": "client.annc", "clientPayload": {"version": "v2"}})
        client.disconnect(LLM_PRACTICE_SESSION, code=3050, reason="done (permanent)")
        client.publish({"relayType": "client.annc", "clientPayload": {"version": "v2"}})
        print("online:  ", [name for name, channel in client.connections().items() if channel.online])
        if server is not None:
            server.publish({"relayType": "react", "reaction": {"type": "applause"}}, session="main")
        print("main:    ", main_heard.get(timeout=60).data)


if __name__ == "__main__":
    main()
