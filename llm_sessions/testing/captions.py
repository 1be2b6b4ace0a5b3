"""The other side of a meeting, on a `LocalServer`: its caption service, and a webinar told step by step."""

from __future__ import annotations

import dataclasses
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from llm_sessions.testing.captions_checks import SUBCHANNELS, check_message, member
from llm_sessions.testing.server import LocalServer, ServerConnection

__all__ = ["CaptionRequest", "CaptionService", "Webinar"]


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionRequest:
    """Something that a client sent.

    Attributes:
        connection: On which.
        message: The JSON object.
    """

    connection: ServerConnection
    message: dict[str, Any]

    @property
    def session(self) -> str:
        """The session key of the connection."""
        return self.connection.session

    @property
    def relay_type(self) -> Any:
        """`data.relayType`, or `None`."""
        return member(self.message, "data", "relayType")

    @property
    def headers(self) -> Any:
        """The request's headers."""
        return self.message.get("headers")

    @property
    def payload(self) -> Any:
        """`data.clientPayload`, or `None`."""
        return member(self.message, "data", "clientPayload")


class CaptionService:
    """The caption service of the meetings on a server.

    It answers announcements with its languages, and requests for caption languages with 200 or an error, on
    the connection that they came on and while that is being read: a client whose send has just returned may
    have its answer already. It sends captions and whatever else travels with them, and adds to the server's
    `violations` what clients do wrong. It lives as long as the server.

    As with the real one, a socket whose query has `subscriptionAwareSubchannels=transcription` gets
    transcripts only while it is subscribed to them. Verbs that send return the number of connections they
    reached; `session=` names a session key, and `None` means all.

    Every method may be called from any thread. What clients sent is there when the server's `wait_for` asks.

    Args:
        server: Where it is at work.
        allowed_languages: Codes of the languages that captions may be asked for in; others are refused.
        max_languages: How many it says the meeting may use at once.
        spoken_languages: Codes of the languages that it says it understands.

    Attributes:
        service_id: Its id, which answers carry as `headers.from`; `restart` changes it.
    """

    def __init__(
        self,
        server: LocalServer,
        *,
        allowed_languages: Collection[str] = ("de", "en", "es", "fr"),
        max_languages: int = 5,
        spoken_languages: Collection[str] = ("en", "es"),
    ) -> None:
        self.service_id: str = str(uuid.uuid4())
        self._server = server
        self._allowed, self._spoken = list(allowed_languages), list(spoken_languages)
        self._max_languages = max_languages
        # Guards everything below. Nothing is sent or called under it.
        self._lock = threading.Lock()
        self._service_ids = [self.service_id]
        self._holding = self._ignoring = False
        self._held: list[CaptionRequest] = []
        self._refusals: list[dict[str, Any]] = []
        self._subscriptions: dict[ServerConnection, _Subscriptions] = {}
        server.on_message(self._take)

    # --- looking

    @property
    def published(self) -> list[CaptionRequest]:
        """All publish requests, by connection and on each in order."""
        return self._sent("publishRequest")

    @property
    def announcements(self) -> list[CaptionRequest]:
        """Those of them that are announcements."""
        return [request for request in self.published if request.relay_type == "client.annc"]

    @property
    def language_requests(self) -> list[CaptionRequest]:
        """Those that ask for a caption language."""
        return [request for request in self.published if request.relay_type == "voicea.transl.req"]

    @property
    def subscriptions(self) -> list[CaptionRequest]:
        """All requests that change subscriptions, in the same order."""
        return self._sent("subchannelSubscriptionRequest")

    def subscribed(self, session: str | None = None) -> list[ServerConnection]:
        """The live connections that get transcripts."""
        return [one for one in self._server.live(session) if self._gets(one, "transcription")]

    def bindings(self, session: str = "default") -> list[str]:
        """The bindings that registrations of a session key were given, the newest last."""
        path = self._server.datachannel_url(session).removeprefix(self._server.base_url)
        found = [member(one.answer, "binding") for one in list(self._server.requests) if one.path == path]
        return [binding for binding in found if isinstance(binding, str)]

    # --- speaking

    def transcript(
        self,
        text: str,
        *,
        session: str | None = None,
        final: bool = True,
        transcript_id: str | None = None,
        csis: Sequence[int] = (1,),
        language: str = "en",
        end_millis: int = 1000,
        **entry: Any,
    ) -> int:
        """Send what somebody said to those who are subscribed.

        Args:
            text: The words.
            session: Session key; `None` for all.
            final: Whether they stay; send the same `transcript_id` again otherwise.
            transcript_id: `None` makes one.
            csis: Who speaks.
            language: Code of the language.
            end_millis: When it ended; it began half a second earlier.
            **entry: Further members of the entry, such as `translations={…}`; they win.
        """
        kind = "transcript_final_result" if final else "transcript_interim_results"
        transcript = {**_entry(text, csis, end_millis), "transcript_language_code": language, **entry}
        payload = {
            "type": kind,
            "transcript_id": transcript_id or str(uuid.uuid4()),
            "transcripts": [transcript],
        }
        return self.voicea(payload, session=session)

    def manual_caption(
        self,
        text: str,
        *,
        session: str | None = None,
        final: bool = True,
        caption_id: str | None = None,
        csis: Sequence[int] = (1,),
        end_millis: int = 1000,
    ) -> int:
        """Send what a person typed as a caption. The arguments are those of `transcript`."""
        kind = "manual_caption_final_result" if final else "manual_caption_interim_result"
        payload = {
            "type": kind,
            "id": caption_id or str(uuid.uuid4()),
            "transcripts": [_entry(text, csis, end_millis)],
        }
        return self.relay("aibridge.manual_transcription", {"transcriptPayload": payload}, session=session)

    def highlight(self, text: str, *, session: str | None = None, label: str = "Highlight") -> int:
        """Send that something was marked, to those who are subscribed."""
        found = {
            "highlight_id": str(uuid.uuid4()),
            "transcript": text,
            "highlight_label": label,
            "highlight_source": "user",
            "csis": [1],
            "end_millis": 1000,
        }
        return self.voicea({"type": "highlight_created", "highlight": found}, session=session)

    def voicea(self, payload: Mapping[str, Any], *, session: str | None = None) -> int:
        """Send any `voicea.transcription`, such as `{"type": "eva_wake"}`, to those who are subscribed."""
        connections = self.subscribed(session)
        return self._relay(connections, "voicea.transcription", {"voiceaPayload": dict(payload)})

    def reaction(
        self, kind: str = "celebrate", *, session: str | None = None, sender: str = "participant"
    ) -> int:
        """Send a participant's reaction."""
        person = {"participantId": sender, "displayName": sender.title()}
        return self.relay("react", {"reaction": {"type": kind}, "sender": person}, session=session)

    def relay(
        self, relay_type: str, data: Mapping[str, Any] | None = None, *, session: str | None = None
    ) -> int:
        """Send any relay event; its `recipients` are the newest binding of each connection's key."""
        return self._relay(self._server.live(session), relay_type, data or {})

    def restart(self) -> int:
        """Become another service with another id, and tell everybody its languages."""
        new = str(uuid.uuid4())
        with self._lock:
            self._service_ids.append(new)
            self.service_id = new
        return self._relay(self._server.live(), "voicea.annc", self._languages())

    # --- answering

    def hold_answers(self) -> None:
        """Read announcements and language requests, but do not answer them until `release_answers`."""
        with self._lock:
            self._holding = True

    def release_answers(self) -> int:
        """Give the answers that were held back, and those to come at once."""
        with self._lock:
            held, self._held, self._holding = self._held, [], False
        return sum([self._answer(request) for request in held])

    def ignore_announcements(self, on: bool = True) -> None:
        """Answer announcements never, as if there were no service; off answers those to come."""
        with self._lock:
            self._ignoring = on

    def refuse_languages(self, error_code: int = 500, message: str = "refused", times: int = 1) -> None:
        """Refuse the next requests for a caption language.

        Raises:
            ValueError: `times` is below 1.
        """
        if times < 1:
            raise ValueError(f"cannot refuse {times} times")
        with self._lock:
            self._refusals += [{"errorCode": error_code, "message": message}] * times

    # --- inside

    def _gets(self, connection: ServerConnection, subchannel: str) -> bool:
        """Whether a connection gets what is sent on a subchannel: it need not subscribe, or it has."""
        aware = ",".join(connection.query.get(SUBCHANNELS, [])).split(",")
        with self._lock:
            found = self._subscriptions.setdefault(connection, _Subscriptions()).read(connection.received)
            return found.get(subchannel, subchannel not in aware)

    def _sent(self, kind: str) -> list[CaptionRequest]:
        return [
            CaptionRequest(connection, message)
            for connection in self._server.connections()
            for message in list(connection.received)
            if message.get("type") == kind
        ]

    def _take(self, connection: ServerConnection, message: dict[str, Any]) -> None:
        if message.get("type") not in ("publishRequest", "subchannelSubscriptionRequest"):
            return
        with self._lock:
            service_ids = list(self._service_ids)
        for problem in check_message(
            message,
            session=connection.session,
            bindings=self.bindings(connection.session),
            service_ids=service_ids,
            datachannel_url=self._server.datachannel_url(connection.session),
            subscribing=SUBCHANNELS in connection.query,
        ):
            self._server.report(problem)
        request = CaptionRequest(connection, message)
        # A list, because what a client sends need not be hashable.
        if message.get("type") != "publishRequest" or request.relay_type not in list(_ANSWERED):
            return
        with self._lock:
            if self._holding:
                self._held.append(request)
                return
        self._answer(request)

    def _answer(self, request: CaptionRequest) -> int:
        with self._lock:
            if request.relay_type == "client.annc":
                if self._ignoring:
                    return 0
                data = self._languages()
            else:
                data = {"voiceaPayload": self._judge(member(request.payload, "translationLanguage"))}
        return self._relay([request.connection], _ANSWERED[request.relay_type], data)

    def _judge(self, language: Any) -> dict[str, Any]:
        if self._refusals:
            return self._refusals.pop(0)
        if language not in self._allowed:
            return {"errorCode": 400, "message": f"{language!r} is not an allowed language"}
        return {"statusCode": 200}

    def _languages(self) -> dict[str, Any]:
        translation = {"allowed_languages": list(self._allowed), "max_languages": self._max_languages}
        payload = {"translation": translation, "ASR": {"spoken_languages": list(self._spoken)}}
        return {"voiceaPayload": payload}

    def _relay(
        self, connections: Iterable[ServerConnection], relay_type: str, data: Mapping[str, Any]
    ) -> int:
        envelope: dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "headers": {"from": self.service_id},
            "data": {"eventType": "relay.event", "relayType": relay_type, **data},
            "wsWriteTimestamp": int(time.time() * 1000),
        }
        reached = 0
        for connection in connections:
            bindings = self.bindings(connection.session)
            routed = {"recipients": {"route": bindings[-1]}} if bindings else {}
            reached += connection.send_json({**envelope, **routed})
        return reached


_ANSWERED = {"client.annc": "voicea.annc", "voicea.transl.req": "voicea.transl.rsp"}


def _entry(text: str, csis: Sequence[int], end_millis: int) -> dict[str, Any]:
    start = max(0, end_millis - 500)
    return {"text": text, "csis": list(csis), "start_millis": start, "end_millis": end_millis}


class _Subscriptions:
    """What one connection has said about subchannels; each message is looked at once."""

    def __init__(self) -> None:
        self._looked_at = 0
        self._last: dict[str, bool] = {}

    def read(self, received: Sequence[Mapping[str, Any]]) -> Mapping[str, bool]:
        """Look at what is new; return for each subchannel whether the last word was to subscribe."""
        new = received[self._looked_at :]
        self._looked_at += len(new)
        for message in new:
            if message.get("type") == "subchannelSubscriptionRequest":
                for key, on in (("subscribe", True), ("unsubscribe", False)):
                    names = member(message, "data", key)
                    if isinstance(names, list):
                        self._last.update({name: on for name in names if isinstance(name, str)})
        return self._last


class Webinar:
    """A webinar on a server as one participant is told of it: a join response, then one locus after another.

    Each verb changes the webinar and returns the locus to hand to the client. As with the real service,
    tokens come with the join response only, or when they are asked for here. Nothing is sent.

    Args:
        server: Whose addresses and tokens it has.
        session: Session key of the main meeting's data channel.
        practice: Session key of the practice session's.
        locus_id: Last segment of the meeting's address.
        participant_id: The participant's id in the meeting.
        roles: The participant's at first.
        practice_enabled: Whether the practice session is on at first.
    """

    def __init__(
        self,
        server: LocalServer,
        *,
        session: str = "default",
        practice: str = "practice",
        locus_id: str = "meeting",
        participant_id: str = "participant",
        roles: Collection[str] = ("ATTENDEE",),
        practice_enabled: bool = False,
    ) -> None:
        self._server = server
        self._keys = {"session": session, "practice": practice}
        self._ids = {"locus_id": locus_id, "participant_id": participant_id}
        self._roles, self._practice_enabled = frozenset(roles), practice_enabled

    def join_response(self, *, tokens: bool = True) -> dict[str, Any]:
        """What the participant gets for joining; `tokens` says whether tokens are in it."""
        response = self._server.join_response(**self._keys, **self._ids, tokens=tokens)
        locus = response["locus"]
        roles = [{"type": role, "hasRole": role in self._roles} for role in sorted(_ROLES | self._roles)]
        locus["self"]["controls"] = {"role": {"roles": roles}}
        locus["controls"] = {"practiceSession": {"enabled": self._practice_enabled}}
        return response

    def locus(self, *, tokens: bool = False, urls: bool = True) -> dict[str, Any]:
        """The locus as it is now.

        Args:
            tokens: With new tokens.
            urls: With the addresses of the data channels.
        """
        locus: dict[str, Any] = self.join_response(tokens=tokens)["locus"]
        if not urls:
            del locus["info"]
        return locus

    def promote(self) -> dict[str, Any]:
        """Make the participant a panelist."""
        self._roles = self._roles - {"ATTENDEE"} | {"PANELIST"}
        return self.locus()

    def demote(self) -> dict[str, Any]:
        """Make the participant an attendee."""
        self._roles = self._roles - {"PANELIST"} | {"ATTENDEE"}
        return self.locus()

    def start_practice(self) -> dict[str, Any]:
        """Turn the practice session on."""
        self._practice_enabled = True
        return self.locus()

    def stop_practice(self) -> dict[str, Any]:
        """Turn it off."""
        self._practice_enabled = False
        return self.locus()

    def move(self, *, session: str | None = None, practice: str | None = None) -> dict[str, Any]:
        """Give a data channel another address: that of another session key."""
        moved = {"session": session, "practice": practice}
        self._keys |= {name: key for name, key in moved.items() if key is not None}
        return self.locus()


_ROLES = frozenset({"MODERATOR", "COHOST", "PANELIST", "ATTENDEE"})
