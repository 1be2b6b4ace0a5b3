"""`Captions`: what a program says and hears about the captions of its meeting."""

from __future__ import annotations

from collections.abc import Callable

from .._fork import OneProcess
from ..pool.config import check_count, check_flag
from ..pool.session import DEFAULT_TIMEOUT, Timeout, check_timeout
from .caption_events import CaptionLanguageAnswer, CaptionLanguages
from .caption_protocol import (
    AnnounceState,
    CaptionState,
    captions_body,
    manual_captions_body,
    spoken_language_body,
    transcribing_body,
)
from .captioning import Captioning
from .transcripts import Aside, Transcripts

__all__ = ["Captions"]


class Captions(OneProcess):
    """The captions of a `Meeting`, as its `captions`. Safe from any thread and any callback.

    Captions come on the channels that are online, in the meeting's events `transcript` and `languages` among
    others, and in `transcripts`. What is asked for here holds for all channels of the join, present and
    future, and through every reconnect; leaving the meeting, or its lobby, resets everything.

    Args:
        find: Returns what the join has of captions; None if no meeting is joined.
        joined: The same, but raises what a call has to raise that needs a joined meeting.
        aside: A context for what a handler of the meeting may wait in; see `MeetingDelivery.aside`.
        wait_timeout: Seconds that calls wait by default; None for no limit.
        maxsize: Lines that wait in an iterator by default.
    """

    def __init__(
        self,
        find: Callable[[], Captioning | None],
        joined: Callable[[], Captioning],
        aside: Aside,
        wait_timeout: float | None,
        maxsize: int,
    ) -> None:
        self._find, self._joined, self._aside = find, joined, aside
        self._wait_timeout, self._maxsize = wait_timeout, maxsize

    # -- the caption service ------------------------------------------------------------------------------

    def announce(self) -> None:
        """Tell the caption service that there is this client; it answers with its languages.

        Does nothing once it has answered; before that, another call asks again. Nobody has to listen
        beforehand: an answer in the same instant is heard, too. It is repeated by itself when the practice
        session's channel comes online, and on the next socket when the one it went to is lost unanswered.

        Raises:
            NotOnline: If no channel of the meeting is online.
            LocalProtocolError: If no meeting is joined.
            ConnectCancelled: If the meeting was left meanwhile.
            PoolClosed
        """
        self._joined().announce()

    @property
    def announce_state(self) -> AnnounceState:
        """How far the announcement is; IDLE if no meeting is joined."""
        found = self._find()
        return found.announce_state if found is not None else AnnounceState.IDLE

    def wait_languages(self, timeout: Timeout = DEFAULT_TIMEOUT) -> CaptionLanguages:
        """Wait until the caption service has told its languages; return them.

        Args:
            timeout: Seconds; None for no limit; by default the pool's `wait_timeout`.

        Raises:
            WaitTimeout: If the time ran out: `announce` may be called again.
            ConnectCancelled: If the meeting was left, or its lobby entered.
            LocalProtocolError: If no meeting is joined, or the call would wait for its own thread: in a
                callback of a session. In those of the meeting it may be called.
            PoolClosed
        """
        seconds = check_timeout(timeout, self._wait_timeout)
        with self._aside():
            return self._joined().wait_languages(seconds)

    @property
    def languages(self) -> CaptionLanguages | None:
        """What the caption service told last; None before its first answer to an announcement."""
        found = self._find()
        return found.languages if found is not None else None

    # -- captions -----------------------------------------------------------------------------------------

    @property
    def state(self) -> CaptionState:
        """Whether captions were turned on here; IDLE if no meeting is joined."""
        found = self._find()
        return found.caption_state if found is not None else CaptionState.IDLE

    def turn_on(self, language: str | None = None) -> None:
        """Turn the meeting's captions on, and have them sent to this client; return when that was granted.

        Where no channel is online yet, they come as soon as one is. The service is told of this client, as by
        `announce`. If several calls overlap, the newest one counts.

        Args:
            language: Code of the spoken language; None leaves it as it is.

        Raises:
            ConfigurationError: If the language is no code.
            RegistrationError: If the service refused; what was on before stays on.
            ConnectError: If it did not answer.
            ConnectCancelled: If the meeting was left meanwhile.
            LocalProtocolError: If no meeting is joined.
            PoolClosed
        """
        body = captions_body(language)
        self._joined().turn_on(body)

    def turn_off(self) -> None:
        """Have no more captions sent to this client. Other participants keep theirs.

        Raises:
            LocalProtocolError: If no meeting is joined.
            ConnectCancelled: If the meeting was left meanwhile.
            PoolClosed
        """
        self._joined().turn_off()

    def subscribe(self) -> None:
        """Have captions sent to this client that somebody else turns on; `turn_off` ends it.

        Raises:
            LocalProtocolError: If no meeting is joined.
            ConnectCancelled: If the meeting was left meanwhile.
            PoolClosed
        """
        self._joined().subscribe()

    def transcripts(self, timeout: float | None = None, *, maxsize: int | None = None) -> Transcripts:
        """Return an iterator over final captions that come from now on, of all channels.

        Captions have to be turned on, or subscribed to, for some to come. It ends quietly when none came for
        `timeout` seconds, and when the meeting is left.

        Args:
            timeout: Seconds; None for no limit.
            maxsize: Lines that may wait to be fetched; beyond that the oldest are dropped, and counted in
                `dropped`. None for the pool's `queue_size`.

        Raises:
            ConfigurationError: If an argument cannot be used.
            LocalProtocolError: If no meeting is joined.
            ConnectCancelled: If the meeting was left meanwhile.
            PoolClosed
        """
        if maxsize is not None:
            check_count("maxsize", maxsize, least=1)
        seconds = check_timeout(timeout, None)
        return self._joined().transcripts(maxsize or self._maxsize, seconds, self._aside)

    # -- languages ----------------------------------------------------------------------------------------

    @property
    def language(self) -> str | None:
        """Code of the language that captions are translated to, as granted last; None for none."""
        found = self._find()
        return found.chosen if found is not None else None

    def request_language(self, language: str, timeout: Timeout = DEFAULT_TIMEOUT) -> CaptionLanguageAnswer:
        """Ask for captions in a language; return the service's answer, which may be a refusal.

        One request at a time is under way; others wait for it. Where no channel is online, it goes out as
        soon as one is. Should another caption service take over, it is asked for the language again.

        Args:
            language: Its code, one of `CaptionLanguages.allowed_languages`.
            timeout: Seconds; None for no limit; by default the pool's `wait_timeout`.

        Raises:
            ConfigurationError: If the language is no code.
            WaitTimeout: If no answer came in time.
            ConnectCancelled: If the meeting was left, or its lobby entered.
            LocalProtocolError: See `wait_languages`.
            PoolClosed
        """
        seconds = check_timeout(timeout, self._wait_timeout)
        with self._aside():
            return self._joined().request_language(language, seconds)

    def set_spoken_language(self, language: str) -> None:
        """Say which language is spoken in the meeting; return when that was granted.

        Raises:
            ConfigurationError: If the language is no code.
            RegistrationError, ConnectError, LocalProtocolError, PoolClosed: See `turn_on`.
        """
        self._joined().put(spoken_language_body(language))

    def set_transcribing(self, on: bool) -> None:
        """Start or stop the meeting's transcript; return when that was granted.

        Raises:
            ConfigurationError: If it is not True or False.
            RegistrationError, ConnectError, LocalProtocolError, PoolClosed: See `turn_on`.
        """
        self._joined().put(transcribing_body(check_flag("on", on)))

    def set_manual(self, on: bool) -> None:
        """Allow or end captions that a person types; return when that was granted.

        They come like others, with `Transcript.manual`.

        Raises:
            ConfigurationError: If it is not True or False.
            RegistrationError, ConnectError, LocalProtocolError, PoolClosed: See `turn_on`.
        """
        self._joined().put(manual_captions_body(check_flag("on", on)))

    def __repr__(self) -> str:
        return f"<Captions {self.state.value}, announcement {self.announce_state.value}>"
