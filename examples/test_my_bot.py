"""A small bot, and its tests with the fixtures that this library ships for the tests of its users.

    python examples/test_my_bot.py
    pytest examples/test_my_bot.py

run the tests. They need no network and no account, and none of them sleeps.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import threading
import uuid
from collections.abc import Callable

import pytest

from llm_sessions import ConnectionLost, ConnectionPool, Envelope, NotAuthorized, NotOnline, Online
from llm_sessions.testing.server import LocalServer

# Not needed where llm-sessions[testing] is installed, and does no harm there.
pytest_plugins = ["llm_sessions.testing.pytest_plugin"]


class CaptionBot:
    """Keeps the last captions of a meeting, and repeats them when somebody says `bot, repeat`.

    Args:
        pool: Where its session lives.
        session_id: The session's key in the pool.
        keep: How many captions to keep.
    """

    def __init__(self, pool: ConnectionPool, session_id: str = "captions", keep: int = 3) -> None:
        self._pool = pool
        self.session = pool.session(session_id)
        # Listeners run on a thread of the session's, everything else on the program's.
        self._lock = threading.Lock()
        self._captions: collections.deque[str] = collections.deque(maxlen=keep)
        self._times_online = 0
        # Before the connect, so that nothing is missed. A reconnect keeps them.
        self.session.on("online", self._count)
        self.session.on("event:relay.event", self._hear)

    def start(self, url: str) -> None:
        """Return online.

        Raises:
            ConnectError: If that cannot be; `NotAuthorized` if the token was refused.
        """
        self._pool.connect(url, self.session.id)

    @property
    def captions(self) -> list[str]:
        """The last captions, oldest first."""
        with self._lock:
            return list(self._captions)

    @property
    def reconnects(self) -> int:
        """How often the session came back by itself."""
        with self._lock:
            return max(0, self._times_online - 1)

    def _count(self, event: Online) -> None:
        with self._lock:
            self._times_online += 1

    def _hear(self, envelope: Envelope) -> None:
        text = str(envelope.data.get("text", ""))
        if text == "bot, repeat":
            self._say(" / ".join(self.captions) or "I heard nothing")
        else:
            with self._lock:
                self._captions.append(text)

    def _say(self, text: str) -> None:
        message = {
            "id": str(uuid.uuid4()),
            "type": "publishRequest",
            "data": {"eventType": "relay.event", "text": text},
        }
        # Who asked in the moment of a reconnect will ask again.
        with contextlib.suppress(NotOnline, ConnectionLost):
            self.session.send(message)


# --- the tests


def ask(server: LocalServer) -> str:
    """Have the bot repeat what it heard.

    A session's listeners are called in the order of arrival, so the bot has dealt with whatever was published
    before. That is why no test has to wait for anything else.
    """
    answered = len(answers(server))
    server.publish({"text": "bot, repeat"}, session="captions")
    server.wait_for(lambda: len(answers(server)) > answered)
    return answers(server)[-1]


def answers(server: LocalServer) -> list[str]:
    return [
        message["data"]["text"]
        for connection in server.connections("captions")
        for message in connection.received
        if message.get("type") == "publishRequest"
    ]


@pytest.fixture
def bot(llm_server: LocalServer, llm_pool: Callable[..., ConnectionPool]) -> CaptionBot:
    bot = CaptionBot(llm_pool())
    bot.start(llm_server.url("captions"))
    return bot


def test_it_keeps_the_last_captions(llm_server: LocalServer, bot: CaptionBot) -> None:
    for text in ("one", "two", "three", "four"):
        llm_server.publish({"text": text}, session="captions")
    ask(llm_server)
    assert bot.captions == ["two", "three", "four"]


def test_it_answers(llm_server: LocalServer, bot: CaptionBot) -> None:
    assert ask(llm_server) == "I heard nothing"
    llm_server.publish({"text": "hello"}, session="captions")
    llm_server.publish({"text": "world"}, session="captions")
    assert ask(llm_server) == "hello / world"


def test_it_comes_back_and_still_listens(llm_server: LocalServer, bot: CaptionBot) -> None:
    llm_server.publish({"text": "before"}, session="captions")
    assert ask(llm_server) == "before"
    for number in (1, 2):
        llm_server.drop("captions")
        llm_server.wait_live("captions")
        llm_server.publish({"text": f"after {number}"}, session="captions")
        assert ask(llm_server) == " / ".join(bot.captions)
        assert bot.reconnects == number
    assert bot.captions == ["before", "after 1", "after 2"], "each was heard, and only once"


def test_it_says_that_its_token_is_refused(
    llm_server: LocalServer, llm_pool: Callable[..., ConnectionPool]
) -> None:
    llm_server.tokens = {"good"}
    bot = CaptionBot(llm_pool("bad"))
    with pytest.raises(NotAuthorized):
        bot.start(llm_server.url("captions"))
    assert not bot.session.online and llm_server.live() == []


def test_it_ends_when_its_token_is_revoked(llm_server: LocalServer, bot: CaptionBot) -> None:
    llm_server.tokens = set()
    llm_server.close_session("captions", code=4401)
    bot.session.wait_closed(timeout=10)
    assert isinstance(bot.session.last_error, NotAuthorized)


def test_it_speaks_tls(llm_tls_server: LocalServer, llm_pool: Callable[..., ConnectionPool]) -> None:
    bot = CaptionBot(llm_pool(ssl_context=llm_tls_server.client_context))
    bot.start(llm_tls_server.url("captions"))
    llm_tls_server.publish({"text": "secret"}, session="captions")
    assert ask(llm_tls_server) == "secret"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "-p", "no:cacheprovider"]))
