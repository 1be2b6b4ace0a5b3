"""Who sends what is due about captions: one thread at a time for each session.

What is due goes out on the thread that changed something: a caller's, or the dispatcher of a session that
came online. While one thread sends for a session, another one that has something for it leaves that to the
first. So what was sent last is what was wanted last, and nobody waits for a send that is not his own.

- **Lock:** that of the captions; nothing is sent under it.
- **Quiet:** a channel that is lost while something is sent is no error: it comes back, and `sync` is called.
- **Ctrl-C** in a send: the note of the message is undone, and what others have left to this thread is sent
  all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from .._sync import Lock
from ..errors import ConnectionLost, NotOnline, PoolClosed
from ..session_ids import LLM_PRACTICE_SESSION
from .worker import SESSIONS

if TYPE_CHECKING:
    from ..datachannel.client import DataChannelClient
    from ..datachannel.registration import RegisteredTarget

__all__ = ["CaptionSending", "Steps"]

Steps: TypeAlias = list[Callable[[], None]]
"""What undoes something; each is called with the lock held."""

Due: TypeAlias = Callable[[str, bool, Steps, "RegisteredTarget", str], Mapping[str, Any] | None]
"""Returns the next message for a session, if it has one. Its arguments: the session's id, whether it is the
one to use, what gets the steps that undo the note of having sent it, the socket's target, and the id."""


@dataclasses.dataclass(eq=False)
class _Sender:
    """Who sends for a session. Guarded by the lock."""

    owes: bool = False  # whether another thread has left something to it that may not be done


class CaptionSending:
    """Sends for the sessions of a join. Safe from any thread.

    Args:
        client: Whose sessions.
        lock: That of the captions.
        due: Says what is to be sent. Called without the lock.
    """

    def __init__(self, client: DataChannelClient, lock: Lock, due: Due) -> None:
        self._client, self._lock, self._due = client, lock, due
        self._sending: dict[str, _Sender] = {}
        self._again: set[str] = set()  # sessions for which that one has to look again

    def sync(self) -> None:
        """Send on each session that is online all that is due."""
        for session_id in reversed(SESSIONS):  # the practice session's first: it is the one to use
            self._send_all(session_id, _Sender())

    def _send_all(self, session_id: str, me: _Sender) -> None:
        try:
            with self._lock:
                if self._sending.setdefault(session_id, me) is not me:
                    self._again.add(session_id)
                    return
            while self._send_one(session_id) or self._has_more(session_id, me):
                pass
        except BaseException:  # Ctrl-C: what others have left to this thread is done all the same
            if self._give_up(session_id, me):
                self._send_all(session_id, _Sender())
            raise

    def _send_one(self, session_id: str) -> bool:
        undo: Steps = []
        try:
            in_use = session_id == LLM_PRACTICE_SESSION or not self._client._sessions.is_online(
                LLM_PRACTICE_SESSION
            )
            return self._client.send_to(session_id, partial(self._due, session_id, in_use, undo)) is not None
        except (NotOnline, ConnectionLost, PoolClosed):
            return False  # its next socket is told
        except BaseException:  # the socket may go on, and the message may not have gone out
            with self._lock:
                for step in undo:
                    step()
            raise

    def _has_more(self, session_id: str, me: _Sender) -> bool:
        """Whether another thread had something for the session; otherwise nobody sends for it any more."""
        with self._lock:
            me.owes = session_id in self._again
            self._again.discard(session_id)
            if not me.owes:
                self._sending.pop(session_id, None)
            return me.owes

    def _give_up(self, session_id: str, me: _Sender) -> bool:
        """Send no more for the session; say whether another thread relies on that being done."""
        with self._lock:
            if self._sending.get(session_id) is not me:
                return False
            del self._sending[session_id]
            owes = me.owes or session_id in self._again
            self._again.discard(session_id)
            return owes
