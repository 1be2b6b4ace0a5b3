"""The data channel tokens of a client's sessions."""

from __future__ import annotations

from llm_sessions import LLM_PRACTICE_SESSION, DataChannelClient
from llm_sessions.testing.server import make_token
from tests.datachannel.world import CHANNEL, LOCUS, OTHER, PRACTICE, World, client, world

__all__ = ["client", "world"]  # fixtures

GOOD = make_token()


def test_i53_a_token_survives_its_sessions_disconnect(world: World, client: DataChannelClient) -> None:
    """Demoted and promoted again, a panelist has it still."""
    client.register_and_connect(LOCUS, PRACTICE, GOOD, LLM_PRACTICE_SESSION)
    client.disconnect(LLM_PRACTICE_SESSION, code=3050, reason="done (permanent)")
    client.register_and_connect(LOCUS, PRACTICE, session_id=LLM_PRACTICE_SESSION)
    client.register_and_connect(LOCUS, CHANNEL)
    assert world.tokens == [GOOD, GOOD, None]


def test_i53_no_client_sends_another_ones_token(world: World, client: DataChannelClient) -> None:
    other = world.client()
    client.register_and_connect(LOCUS, CHANNEL, GOOD)
    other.register_and_connect(LOCUS, PRACTICE, session_id=LLM_PRACTICE_SESSION)
    client.close()
    other.register_and_connect(LOCUS, CHANNEL)
    assert world.tokens == [GOOD, None, None]


def test_i53_a_cleared_token_is_sent_no_more(world: World, client: DataChannelClient) -> None:
    client.set_token(GOOD)
    client.clear_token()
    client.register_and_connect(LOCUS, CHANNEL)
    assert world.tokens == [None] and client.get_token() is None


def test_i57_a_token_that_is_given_replaces_the_one_before_and_none_changes_nothing(
    world: World, client: DataChannelClient
) -> None:
    newer = make_token()
    client.set_token(GOOD)
    for number, token in enumerate((None, newer, None)):
        client.register_and_connect(LOCUS, CHANNEL if number % 2 else OTHER, token)
    assert world.tokens == [GOOD, newer, newer]


def test_i63_a_refreshed_token_is_its_sessions(client: DataChannelClient) -> None:
    client.set_refresh_handler(lambda: "new")
    assert client.refresh_token(LLM_PRACTICE_SESSION) == "new"
    assert (client.get_token(LLM_PRACTICE_SESSION), client.get_token()) == ("new", None)
