"""What was published to a session, what its listeners were told, and whether that adds up. Pure.

`tests/chaos/__main__.py` says in words what is checked here.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

__all__ = ["Account", "Copy", "Entry", "Record", "grammar", "reconcile"]

Fate = Literal["sent", "skipped", "spoiled"]


class Copy(NamedTuple):
    """What one socket was to bring of an event.

    Attributes:
        connection: Counts the sockets of the session's server; later ones are larger.
        sequence: The number on that socket. No two sockets share one.
        fate: What the service did with it.
    """

    connection: int
    sequence: int
    fate: Fate = "sent"


class Entry(NamedTuple):
    """Something that the session's listeners were told.

    Attributes:
        kind: `event`, or the name of a state event.
        number: Of the event; of an `online`; what a mismatch calls `actual`; a close code.
        sequence: Of the event; what a mismatch calls `expected`.
        key: The session that the event was published to, and the session that it came on.
        at: When, in seconds of the round.
    """

    kind: str
    number: int = 0
    sequence: int = 0
    key: tuple[str, str] = ("", "")
    at: float = 0.0

    def __str__(self) -> str:
        about = f" {self.number}/{self.sequence}" if self.kind in ("event", "sequence-mismatch") else ""
        about = f" {self.number}" if self.kind.startswith(("online", "offline")) else about
        return f"{self.at:7.3f} {self.kind}{about}"


@dataclasses.dataclass
class Record:
    """All that is known of one session.

    Attributes:
        key: Its key at the server.
        session_id: Its id in its pool.
        drops: Whether its pool drops messages when a queue is full.
        published: The copies of each event, by number, from 1.
        journal: What its listeners were told, in order.
        acked: Connection and number of each event that the client acknowledged.
        heard: Calls of a listener of all messages.
        messages_in: What the session counted as received.
        dropped: What it counted as dropped.
        onlines: Steps to online that it took; None if nobody counted.
    """

    key: str
    session_id: str
    drops: bool = False
    published: dict[int, tuple[Copy, ...]] = dataclasses.field(default_factory=dict)
    journal: list[Entry] = dataclasses.field(default_factory=list)
    acked: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    heard: int = 0
    messages_in: int = 0
    dropped: int = 0
    onlines: int | None = None

    def copies(self) -> dict[int, Copy]:
        """Return what every socket was to bring, by sequence number."""
        return {copy.sequence: copy for copies in self.published.values() for copy in copies}


@dataclasses.dataclass
class Account:
    """What became of the events of one session, or of several.

    Attributes:
        published: How many there were.
        delivered: Of them, once.
        dropped: By a full queue, as was asked for.
        reported: Lost, and reported.
        unconnected: Published while the service had no socket of the session, between those of a switchover.
        unreported: Lost, and nobody said so.
        complaints: Whatever must not be.
    """

    published: int = 0
    delivered: int = 0
    dropped: int = 0
    reported: int = 0
    unconnected: int = 0
    unreported: int = 0
    complaints: list[str] = dataclasses.field(default_factory=list)

    def __add__(self, other: Account) -> Account:
        return Account(
            *(getattr(self, one.name) + getattr(other, one.name) for one in dataclasses.fields(self))
        )


def reconcile(record: Record) -> Account:
    """Close the account of one session."""
    account = Account(published=len(record.published))
    say = account.complaints.append
    places: dict[int, list[int]] = collections.defaultdict(list)
    for place, entry in enumerate(record.journal):
        if entry.kind == "event":
            places[entry.number].append(place)
    for number, found in places.items():
        if len(found) > 1:
            say(f"event {number} was delivered {len(found)} times")
        if number not in record.published:
            say(f"event {number} was delivered and never published to {record.key}")
    for text in (*_foreign(record), *_disorder(record), *_lies(record), *grammar(record.journal)):
        say(text)
    first = {number: found[0] for number, found in places.items() if number in record.published}
    account.delivered = len(first)
    if record.published and max(record.published) not in first:
        say(f"the last event, {max(record.published)}, did not arrive")
    judge = _Judge(record, first)
    for number in sorted(record.published.keys() - first.keys()):
        verdict = judge.verdict(number)
        setattr(account, verdict.state, getattr(account, verdict.state) + 1)
        if verdict.complaint:
            say(f"event {number} {verdict.complaint}: {list(record.published[number])}")
    if account.dropped > record.dropped:
        account.unreported += account.dropped - record.dropped
        say(f"{account.dropped} events are missing from a full queue, and stats say {record.dropped}")
    counted = record.heard + (record.dropped if record.drops else 0)
    if counted != record.messages_in:
        dropped = f" and {record.dropped} dropped" if record.drops else ""
        say(f"{record.messages_in} messages came in, listeners heard {record.heard}{dropped}")
    onlines = sum(entry.kind == "online" for entry in record.journal)
    if record.onlines not in (None, onlines):
        say(f"the session came online {record.onlines} times, and said so {onlines} times")
    account.complaints = [f"{record.session_id}: {text}" for text in account.complaints]
    return account


class _Verdict(NamedTuple):
    state: Literal["dropped", "reported", "unconnected", "unreported"]
    complaint: str = ""


class _Judge:
    """Says what became of an event that was not delivered.

    Args:
        record: The session's.
        first: Where in its journal each delivered event is.
    """

    def __init__(self, record: Record, first: Mapping[int, int]) -> None:
        self._record = record
        self._first = first
        self._copies = record.copies()
        self._numbers = sorted(first)
        # Whether the session was not online after each entry; the last one is for before the first.
        _, *away = itertools.accumulate(record.journal, _away, initial=True)
        self._away = [*away, True]
        self._ends = [
            place
            for place, entry in enumerate(record.journal)
            if entry.kind in ("offline", "offline.replaced")
        ]
        self._losses = [
            place
            for place, entry in enumerate(record.journal)
            if entry.kind in ("offline", "offline.replaced", "switchover-loss")
        ]
        self._switched = [
            place for place, entry in enumerate(record.journal) if entry.kind.endswith("switchover_complete")
        ]
        sockets = [self._owner(entry.sequence) if entry.kind == "event" else 0 for entry in record.journal]
        # The newest socket that had brought something after each entry; the last one is for before the first.
        self._newest = [*itertools.accumulate(sockets, max), 0]
        self._last: dict[int, int] = {}  # the highest sequence that each socket brought
        self._began: dict[int, int] = {}  # where each socket brought something first
        for place, (socket, entry) in enumerate(zip(sockets, record.journal, strict=True)):
            self._began.setdefault(socket, place)
            self._last[socket] = max(self._last.get(socket, 0), entry.sequence if socket else 0)
        self._gaps = [
            (entry.sequence, entry.number) for entry in record.journal if entry.kind == "sequence-mismatch"
        ]

    def _socket(self, place: int) -> int:
        return self._owner(self._record.journal[place].sequence)

    def _owner(self, sequence: int) -> int:
        return self._copies[sequence].connection if sequence in self._copies else 0

    def verdict(self, number: int) -> _Verdict:
        copies = self._record.published[number]
        acked = any((copy.connection, number) in self._record.acked for copy in copies)
        passed = [copy for copy in copies if copy.sequence < self._last.get(copy.connection, 0)]
        if acked or any(copy.fate == "sent" for copy in passed):
            if self._record.drops:
                return _Verdict("dropped")
            how = "was acknowledged and not delivered" if acked else "was lost in the middle of a socket"
            return _Verdict("unreported", how)
        if any(low <= copy.sequence < high for copy in copies for low, high in self._gaps):
            return _Verdict("reported")
        if passed and not any(copy.fate == "sent" for copy in copies):
            return _Verdict("unreported", "was lost by the server, and no sequence-mismatch said so")
        low, high = self._between(number)
        if self._away[low] or any(low < place < high for place in self._ends):
            return _Verdict("reported")
        # The last socket that may have been there for it: its own, or that of the event before. That may have
        # come behind the event after it, which the other socket of a switchover brought.
        before, after = self._socket_before(number), self._newest[min(high, len(self._newest) - 2)]
        last = max((copy.connection for copy in copies), default=before)
        since = self._began.get(last, low)
        if last < after and any(since < place < high for place in self._switched):
            # The end of the socket that was replaced comes whenever it comes.
            if any(place > low for place in self._losses):
                return _Verdict("reported")
            if not copies:
                return _Verdict("unconnected")
            return _Verdict("unreported", "was lost with a replaced socket, and nothing said so")
        if self._record.drops:
            return _Verdict("dropped")
        return _Verdict("unreported", "was lost, and nothing said so")

    def _socket_before(self, number: int) -> int:
        place = bisect.bisect(self._numbers, number)
        return self._socket(self._first[self._numbers[place - 1]]) if place else 0

    def _between(self, number: int) -> tuple[int, int]:
        """Return the places in the journal of the delivered events around one; -1 is before the first."""
        place = bisect.bisect(self._numbers, number)
        before, after = self._numbers[:place][-1:], self._numbers[place : place + 1]
        low = self._first[before[0]] if before else -1
        high = self._first[after[0]] if after else len(self._record.journal)
        return min(low, high), max(low, high)


def _away(before: bool, entry: Entry) -> bool:
    return {"online": False, "offline": True}.get(entry.kind, before)


def _foreign(record: Record) -> Iterable[str]:
    for entry in record.journal:
        if entry.kind == "event" and entry.key != (record.key, record.session_id):
            yield f"event {entry.number} of {entry.key[0]} came on {entry.key[1]}"


def _disorder(record: Record) -> Iterable[str]:
    """Events of one socket come in order; those of two may mix, but only where there were two."""
    copies = record.copies()
    last: dict[int, int] = {}
    highest, announced = 0, False
    for entry in record.journal:
        announced = announced or entry.kind.endswith("shutdown_imminent")
        if entry.kind != "event":
            continue
        if entry.sequence not in copies or copies[entry.sequence] not in record.published.get(
            entry.number, ()
        ):
            yield f"event {entry.number} came with sequence {entry.sequence}, which is not its own"
            continue
        connection = copies[entry.sequence].connection
        if entry.sequence <= last.get(connection, 0):
            yield f"event {entry.number} came out of order on its socket"
        elif entry.number < highest and not announced:
            yield f"event {entry.number} came after event {highest}"
        last[connection] = max(last.get(connection, 0), entry.sequence)
        highest = max(highest, entry.number)


def _lies(record: Record) -> Iterable[str]:
    """A mismatch speaks of numbers that were never sent, and of nothing else."""
    fates = {sequence: copy.fate for sequence, copy in record.copies().items()}
    for entry in record.journal:
        if entry.kind != "sequence-mismatch":
            continue
        missing = range(entry.sequence, entry.number)
        if not missing or any(fates.get(number, "sent") == "sent" for number in missing):
            yield f"a mismatch says {entry.number} instead of {entry.sequence}, and nothing was left out"


_DETAILS: Final = ("offline.transient", "offline.permanent", "offline.replaced")
_STATE: Final = ("online", "offline", *_DETAILS, "disconnected")


def grammar(journal: Sequence[Entry]) -> Iterable[str]:
    """The order in which a session may say how it stands."""
    told = [entry for entry in journal if entry.kind in _STATE]
    away, onlines = True, 0
    padded = [*told, Entry("end"), Entry("end")]
    for place, entry in enumerate(told):
        after, then = padded[place + 1].kind, padded[place + 2].kind
        if entry.kind == "online":
            onlines += 1
            if not away:
                yield f"online #{entry.number} came while it was online"
            if entry.number != onlines:
                yield f"online #{entry.number} is the {onlines}. of them"
            away = False
        elif entry.kind == "offline":
            if after not in _DETAILS:
                yield f"offline {entry.number} was followed by {after}"
            # To disconnect a session that is still connecting says offline, too.
            if away and (after, then) != ("offline.permanent", "disconnected"):
                yield f"offline {entry.number} came while it was offline"
            away = True
        elif entry.kind == "disconnected" and not away:
            yield "disconnected came while it was online"
