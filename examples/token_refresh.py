"""Access tokens that refresh themselves: a server refuses the one in use, and three sessions get a new one.

    python examples/token_refresh.py

runs against a server of its own. With WEBEX_CLIENT_ID, WEBEX_CLIENT_SECRET and WEBEX_REFRESH_TOKEN of an
integration in the environment it refreshes on the real service and connects one session with what it got.
TOKEN_FILE says where the tokens are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import tempfile
from pathlib import Path
from typing import Any

from llm_sessions import (
    ALL_SESSIONS,
    ConnectionPool,
    DeviceRegistration,
    OAuthTokens,
    Online,
    RefreshedTokens,
)
from llm_sessions.testing.server import LocalServer


class TokenFile:
    """Where the tokens are kept: whoever loses the newest refresh token has to log in again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, tokens: RefreshedTokens) -> None:
        content = {"refresh_token": tokens.refresh_token, "access_token": tokens.access_token}
        new = self._path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(json.dumps(content), encoding="utf-8")
        new.replace(self._path)  # a crash leaves the old ones or the new ones, and never a half
        print(f"the new tokens are kept in {self._path.name}")

    def load(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            return dict(json.loads(self._path.read_text(encoding="utf-8")))
        return {}


def on_the_real_service(kept: TokenFile) -> None:
    first = {"refresh_token": os.environ["WEBEX_REFRESH_TOKEN"]}
    with (
        OAuthTokens(
            os.environ["WEBEX_CLIENT_ID"],
            os.environ["WEBEX_CLIENT_SECRET"],
            **(kept.load() or first),
            on_refresh=kept.save,
        ) as tokens,
        DeviceRegistration(tokens, device_name="example-token-refresh") as device,
        ConnectionPool() as pool,
    ):
        tokens.refresh(tokens.get())  # as the pool does it when the service refuses a token
        print(pool.connect(device, timeout=30))


def on_a_server_of_its_own(kept: TokenFile) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(LocalServer(tokens={"access-1"}))
        grant = {"access_token": "access-2", "refresh_token": "refresh-2", "expires_in": 3600}
        server.reject_rest(200, path="/v1/access_token", body=grant)  # for one request and no more
        tokens = stack.enter_context(
            OAuthTokens(
                "client-id",
                "client-secret",
                refresh_token="refresh-1",
                access_token="access-1",
                on_refresh=kept.save,
                url=f"{server.base_url}/v1/access_token",
            )
        )
        pool = stack.enter_context(ConnectionPool(tokens))
        online: queue.SimpleQueue[Online] = queue.SimpleQueue()
        pool.on("online", online.put, session_id=ALL_SESSIONS)
        rooms = ("one", "two", "three")
        for room in rooms:
            pool.connect(server.url(room), session_id=room, timeout=30)
        for _ in rooms:
            online.get(timeout=30)

        print(f"{pool} with access-1; now the server takes nothing but access-2")
        server.tokens = {"access-2"}
        server.close_session(code=4401)
        for _ in rooms:
            online.get(timeout=30)

        asked = sum(request.path == "/v1/access_token" for request in server.requests)
        print(f"{pool} after {asked} refresh; kept for the next start: {kept.load()['refresh_token']}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        kept = TokenFile(Path(os.environ.get("TOKEN_FILE", Path(folder) / "tokens.json")))
        if "WEBEX_REFRESH_TOKEN" in os.environ:
            on_the_real_service(kept)
        else:
            on_a_server_of_its_own(kept)


if __name__ == "__main__":
    main()
