"""A data channel by the URLs of its meeting: registered over REST, with a token that is refreshed in time.

    python examples/register_and_connect.py

runs against a server of its own. With WEBEX_TOKEN, DEVICE_URL, LOCUS_URL, DATACHANNEL_URL and, if there is
one, DATACHANNEL_TOKEN in the environment it runs against the real service instead, and shows what comes until
nothing did for ten seconds.
"""

from __future__ import annotations

import contextlib
import os

from llm_sessions import DataChannelClient
from llm_sessions.testing.server import LocalServer, make_token


def main() -> None:
    with contextlib.ExitStack() as stack:
        server = None
        if "DATACHANNEL_URL" in os.environ:
            access_token, device = os.environ["WEBEX_TOKEN"], os.environ["DEVICE_URL"]
            locus_url, datachannel_url = os.environ["LOCUS_URL"], os.environ["DATACHANNEL_URL"]
            token = os.environ.get("DATACHANNEL_TOKEN")
        else:
            server = stack.enter_context(LocalServer())
            access_token, device = "any-token", "https://wdm.example/devices/1"
            locus_url, datachannel_url = server.locus_url(), server.datachannel_url("main")
            token = make_token(expires_in=-60)

        client = stack.enter_context(DataChannelClient(access_token, device=device))

        def refresh() -> str:
            # A real program asks whoever gave it the first one.
            print("the token expired, here is another one")
            return make_token()

        if server is not None:
            client.set_refresh_handler(refresh)

        session = client.register_and_connect(locus_url, datachannel_url, token, timeout=30)
        channel = client.connections()[session.id]
        print(f"{session.id} is {channel.state.value}, its route has {len(channel.binding or '')} characters")
        print(
            "both steps were timed:", channel.register_seconds is not None, channel.online_seconds is not None
        )

        # The same again asks nothing: it is online. Other URLs would take its place.
        client.register_and_connect(locus_url, datachannel_url)
        if server is not None:
            print("registrations:", len(server.requests))
            server.drop("main")
            session.wait_online(timeout=10)
            server.wait_live("main")
            print("registrations after a reconnect:", len(server.requests))

        with session.messages(timeout=10) as messages:
            if server is not None:
                server.publish({"relayType": "react", "reaction": {"type": "heart"}}, session="main")
            for envelope in messages:
                print("heard:", envelope.event_type, envelope.data.get("relayType", "-"))
                if server is not None and envelope.event_type == "relay.event":
                    break


if __name__ == "__main__":
    main()
