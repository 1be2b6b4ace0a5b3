"""The verbs of `LocalServer` that are about REST."""

from __future__ import annotations

import abc
import urllib.parse
from collections.abc import Collection, Mapping
from typing import Any

from llm_sessions.testing.rest import Answer, RestRejection, RestRequest, RestService
from llm_sessions.testing.server_state import ServerState


class RestVerbs(abc.ABC):
    """What `LocalServer` answers over REST, on the port of its WebSockets, and what a test can do about it.

    Paths are given as globs: `*` stands for anything, slashes included, and `None` for every path. Addresses
    in answers have the host and port that the request was sent to, if they are the loopback's.
    """

    _state: ServerState
    _rest: RestService

    # --- addresses and answers

    @property
    def base_url(self) -> str:
        """What every REST address begins with; it has no slash at the end."""
        return self._rest.base_url

    def datachannel_url(self, session: str = "default") -> str:
        """Where the data channel of a session key is registered."""
        return f"{self.base_url}/datachannel/{urllib.parse.quote(session, safe='')}"

    def locus_url(self, locus_id: str = "meeting") -> str:
        """The address of a meeting."""
        return f"{self.base_url}/locus/{urllib.parse.quote(locus_id, safe='')}"

    def join_response(
        self,
        *,
        session: str = "default",
        practice: str | None = None,
        participant_id: str = "participant",
        tokens: bool = True,
        locus_id: str = "meeting",
    ) -> dict[str, Any]:
        """What a client gets when it joins a meeting, as far as data channels go.

        Args:
            session: Session key of the data channel.
            practice: Session key of the practice session's; `None` for a meeting that has none.
            participant_id: Own id in the meeting.
            tokens: Whether there are data channel tokens. Registrations accept them.
            locus_id: Last segment of the meeting's address.
        """
        info = {"datachannelUrl": self.datachannel_url(session)}
        own = {"id": participant_id}
        if practice is not None:
            info["practiceSessionDatachannelUrl"] = self.datachannel_url(practice)
        if tokens:
            own["datachannelToken"] = self._rest.issue_token("default")
        if tokens and practice is not None:
            own["practiceSessionDatachannelToken"] = self._rest.issue_token("practice")
        return {"locus": {"url": self.locus_url(locus_id), "info": info, "self": own}}

    @property
    def datachannel_tokens(self) -> frozenset[str] | None:
        """The data channel tokens that registrations accept; `None`, as at first, accepts any.

        Replace it to change it: an empty set expires all. Tokens that the server hands out afterwards are
        added. A registration without a token is accepted.
        """
        with self._state.condition:
            tokens = self._rest.datachannel_tokens
            return None if tokens is None else frozenset(tokens)

    @datachannel_tokens.setter
    def datachannel_tokens(self, tokens: Collection[str] | None) -> None:
        with self._state.condition:
            self._rest.datachannel_tokens = None if tokens is None else set(tokens)

    # --- looking

    @property
    def requests(self) -> list[RestRequest]:
        """Every request but WebSocket upgrades, in the order they were read; it only grows."""
        return self._rest.requests

    def controls(self, locus_id: str = "meeting") -> dict[str, Any]:
        """The controls of a meeting, as clients have set them so far."""
        return self._rest.controls(locus_id)

    # --- faults

    def reject_rest(
        self,
        status: int,
        *,
        path: str | None = None,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
        body: object = None,
    ) -> None:
        """Answer the next `times` requests with something else; nothing of what they ask for is done.

        Args:
            status: Any final one; with 200 it is the body that is wrong.
            path: Glob of their paths.
            times: How many, at least 1.
            headers: E.g. `{"Retry-After": "1"}`. With a Content-Length or Transfer-Encoding, which may lie,
                the connection ends after the answer.
            body: Bytes as they are; anything else as JSON.

        Raises:
            ValueError: `times` is below 1, or the status ends no exchange.
        """
        if times < 1 or not 200 <= status <= 999:
            raise ValueError(f"cannot reject with {status}, {times} times")
        framing = {name.lower() for name in headers or ()} & {
            "content-length",
            "transfer-encoding",
            "connection",
        }
        answer = Answer(status, body, dict(headers or {}), close=bool(framing))
        answer.payload()  # refuses now what it would refuse then
        self._rest.reject(RestRejection(answer, path or "*", times))

    def hold_rest(self, path: str | None = None) -> None:
        """Read requests but do not answer them, until `release_rest`; they are in `requests` meanwhile.

        The last call that matches a path decides; one for every path undoes those before it.
        """
        self._rest.set_gate(path, hold=True)

    def release_rest(self, path: str | None = None) -> None:
        """Answer the requests held back, and those to come."""
        self._rest.set_gate(path, hold=False)
        self._wake_all()

    def forget_devices(self) -> int:
        """Make every device stale, as a service does after a while, and return how many there were.

        Refreshing or deleting one gets 404, and so does the WebSocket upgrade on its address.
        """
        return self._rest.forget_devices()

    @abc.abstractmethod
    def _wake_all(self) -> None:
        """Make every connection's thread look at the gates."""
