"""The data channel tokens of a client: those of its `TokenStore`, with the client's own default session."""

from __future__ import annotations

from collections.abc import Callable

from ..pool.session import DEFAULT_TIMEOUT, Timeout, check_timeout
from ..session_ids import LLM_DEFAULT_SESSION, check_session_id
from .tokens import RefreshHandler, TokenStore

__all__ = ["ClientTokens"]


class ClientTokens:
    """`get_token`, `set_token`, `clear_token` and what refreshes tokens, of a `DataChannelClient`.

    Args:
        tokens: Where they are.
        check_open: Raises if the client is closed.
        wait_timeout: Seconds that `refresh_token` waits by default; None for no limit.
    """

    def __init__(
        self, tokens: TokenStore, check_open: Callable[[], None], wait_timeout: float | None
    ) -> None:
        self._tokens, self._check, self._wait_timeout = tokens, check_open, wait_timeout

    def get_token(self, session_id: str = LLM_DEFAULT_SESSION) -> str | None:
        """Return a session's data channel token, None if it has none."""
        self._check()
        return self._tokens.get(check_session_id(session_id))

    def set_token(self, token: str, session_id: str = LLM_DEFAULT_SESSION) -> None:
        """Have a data channel token used from the session's next registration on.

        Raises:
            ConfigurationError: If it cannot be sent in a header; the text never quotes it.
            PoolClosed
        """
        self._check()
        self._tokens.set(check_session_id(session_id), token)

    def clear_token(self, session_id: str = LLM_DEFAULT_SESSION) -> None:
        """Forget a session's data channel token. One that is being fetched is not stored either."""
        self._check()
        self._tokens.clear(check_session_id(session_id))

    def set_refresh_handler(self, handler: RefreshHandler | None, session_id: str | None = None) -> None:
        """Say where new data channel tokens come from; see `TokenStore.set_refresh_handler`.

        Args:
            handler: Returns a new token. Called on the thread that needs one, which is a session's connector
                most of the time, when a token expires within 30 seconds, when it was refused, and when a
                session has none. None takes the handler back.
            session_id: Whose tokens it returns; None for sessions that have no handler of their own.

        Raises:
            ConfigurationError: If it is not callable.
            PoolClosed
        """
        self._check()
        if session_id is not None:
            check_session_id(session_id)
        self._tokens.set_refresh_handler(handler, session_id)

    def refresh_token(
        self, session_id: str = LLM_DEFAULT_SESSION, *, timeout: Timeout = DEFAULT_TIMEOUT
    ) -> str:
        """Have a session's data channel token replaced; return the new one.

        Args:
            session_id: Whose.
            timeout: Seconds to wait for a refresh that another thread began; None for no limit; by default
                the pool's `wait_timeout`.

        Raises:
            TokenRefreshError: If there is no handler, it failed, or the token was cleared meanwhile.
            LocalProtocolError: If a refresh handler calls this.
            PoolClosed
        """
        self._check()
        seconds = check_timeout(timeout, self._wait_timeout)
        return self._tokens.refresh(check_session_id(session_id), timeout=seconds)
