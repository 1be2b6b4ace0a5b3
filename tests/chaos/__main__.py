"""Chaos: an account of every message, whatever the network, the server and other threads do.

    python -m tests.chaos --minutes 8           # a new seed; it is printed
    python -m tests.chaos --seed 17             # the round of that seed again

**The claim.** Every event that the server publishes is delivered exactly once to its session's listeners,
or its loss is reported.

**The world of a round** (`world`, `meeting_world`). A server that is closed and started again on its port;
a `FaultProxy` before it for each session; two pools, one that blocks and one that drops when a queue is
full; and a meeting whose roles flap, on a server of its own. A service numbers the events of each session
and publishes them on every socket that the server has for it. A director does to all of them what the plan
says (`plan`), and threads call everything there is to call (`actors`). After some seconds all faults are
undone, every session is brought online, and events are published until the last one arrives; then the
account is closed.

**The states of an event** (`ledger`):

- *published*: handed to every socket of its session that the server knew, perhaps to none. Each socket's
  copy has a sequence number of its own, from a range of its own. A copy may be *skipped*: it has its
  number, but is never sent, as by a server that loses one; or *spoiled*: what is sent cannot be used.
- *delivered*: the listener got it, once. On one socket in the order of its numbers.
- *dropped and reported*: a full queue dropped it, as was asked for, and `stats().dropped` says so.
- *lost and reported*: there is evidence, see below.
- *published to nobody*: amid a switchover the service had closed the old socket, with another code than 4001,
  and not authorized the new one. The client may read these two in the other order, and then has nothing to
  tell. Counted only where no socket was to bring the event.
- *unreported*: none of these. There must be none.

**What excuses a gap.** Between the delivered events before and after it the session's listeners heard of

- a `sequence-mismatch` that names its number. This is the only excuse for a copy that is followed by
  another one of its socket, since TCP loses nothing in the middle; and a mismatch that names an event which
  was sent is a lie itself; or
- an `offline`, or the session was not online at all; or an `offline.replaced`, by which the server took
  away the socket that a switchover had replaced; or, if the event was on no socket but replaced ones, a later
  `switchover-loss`.

An event that the client has acknowledged has arrived: none of these excuse it, but the dropping queue. And
whatever the session counts as received (`stats().messages_in`) its listeners have been called with.

**What else has to hold.** A session takes only steps that the table of states has, and its events tell the
same story: `online` and `offline` in turn, each `offline` with one detail. No call takes longer than its
timeout and a second, and what the process stood still meanwhile (`watch`). Nothing is logged as an error,
no thread dies, the server has nothing to complain of, and in the end threads, descriptors and objects are
back to what they were.

**What ends each wait** here: actors and the publisher wait on the event that stops them, a blocked listener
on its time or the end of the round, the settling on a deadline; a world is closed in any case.

**Replay.** A round is made from its seed alone: the world's shape, every fault with its time, and what each
thread calls. How threads interleave is not in it. A run is a row of rounds, with seeds that follow one
another; one that fails is printed with its seed, with what was done and when, and with what
listeners were told.
"""

from __future__ import annotations

import sys

from tests.chaos.command import main

if __name__ == "__main__":
    sys.exit(main())
