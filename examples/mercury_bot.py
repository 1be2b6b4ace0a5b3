"""A bot without a public address: it hears of messages over a WebSocket and answers them.

    python examples/mercury_bot.py

runs against a server of its own, where somebody says two things. With WEBEX_TOKEN in the environment, the
token of a bot, it answers people on Webex until one of them says "bye", or its session has ended for good.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import requests

from llm_sessions import ConnectionPool, DeviceRegistration, Envelope, SessionState
from llm_sessions.testing.server import LocalServer

API = "https://webexapis.com/v1"


class Webex:
    """Reads and writes messages; what comes over the WebSocket is encrypted, but says which one to read."""

    def __init__(self, token: str) -> None:
        self._http = requests.Session()
        self._http.headers["Authorization"] = f"Bearer {token}"
        self._me = self._call("GET", "people/me")["id"]

    def read(self, activity: dict[str, Any]) -> dict[str, Any] | None:
        public_id = base64.b64encode(f"ciscospark://us/MESSAGE/{activity['id']}".encode()).decode()
        message = self._call("GET", f"messages/{public_id}")
        return None if message["personId"] == self._me else message

    def write(self, room_id: str, text: str) -> None:
        self._call("POST", "messages", {"roomId": room_id, "text": text})

    def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> Any:
        answer = self._http.request(method, f"{API}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()


class Rehearsal:
    """The same without Webex: the text is in the activity, and answers are only shown."""

    def read(self, activity: dict[str, Any]) -> dict[str, Any] | None:
        return {"roomId": "room", "text": activity["object"]["displayName"]}

    def write(self, room_id: str, text: str) -> None:
        pass


def bot(rooms: Webex | Rehearsal, over: threading.Event) -> Callable[[Envelope], None]:
    def answer(envelope: Envelope) -> None:
        activity = envelope.data["activity"]
        if activity["verb"] != "post":
            return
        message = rooms.read(activity)
        if message is None:
            return
        text = message.get("text", "")  # there is none if it is only a file
        answer = f"You said {text!r}."
        print(f"heard {text!r}, answer: {answer}")
        rooms.write(message["roomId"], answer)
        if text.lower().endswith("bye"):
            over.set()

    return answer


def main() -> int:
    logging.basicConfig(
        level=logging.WARNING
    )  # among others what `answer` raises: Webex may refuse to be asked
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        token = os.environ.get("WEBEX_TOKEN")
        server = None if token else stack.enter_context(LocalServer())
        options: dict[str, Any] = {}
        if server is not None:
            options["catalog_url"] = f"{server.base_url}/u2c/api/v1/catalog"
        rooms = Webex(token) if token else Rehearsal()
        # Left in this order: the pool is closed, and then the device deleted.
        device = stack.enter_context(
            DeviceRegistration(token or "any-token", device_name="example-bot", **options)
        )
        pool = stack.enter_context(ConnectionPool())
        pool.on("event:conversation.activity", bot(rooms, over))
        session = pool.connect(device, timeout=30)
        print(session, "by", device)
        if server is not None:
            for text in ("hello", "bye"):
                activity = {"id": text, "verb": "post", "object": {"displayName": text}}
                server.publish({"activity": activity}, event_type="conversation.activity")
        while not over.wait(1):  # it reconnects by itself meanwhile
            if session.state is SessionState.OFFLINE:
                print("it ended for good:", session.last_error, file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
