"""What a type checker has to refuse: each line with `# wrong`, and no other. Checked, never run.

`# wrong: deprecated` is refused where a type checker reports what is deprecated: pyright in its strict mode,
mypy with `enable_error_code = ["deprecated"]`. Elsewhere, and by pyright for `once`, a callback for envelopes
is taken for any event in a call on a pool or a session.
"""

from __future__ import annotations

import queue

from llm_sessions import ConnectionPool, DataChannelClient, Envelope, Meeting, Offline, Online, Transcript

pool = ConnectionPool("token")
client = DataChannelClient("token", device="https://wdm.example/devices/1", pool=pool)
meeting = Meeting(client)
session = pool.session()


def online(event: Online) -> None: ...
def offline(event: Offline) -> None: ...
def envelope(event: Envelope) -> None: ...
def transcript(event: Transcript) -> None: ...
def nothing() -> None: ...
def two(first: Online, second: Online) -> None: ...


offlines: queue.Queue[Offline] = queue.Queue()

# Another event's payload

pool.on("online", offline)  # wrong
pool.on("offline.transient", online)  # wrong
pool.on("event", online)  # wrong
pool.on("event:relay.event", offline)  # wrong
pool.on("event:mercury_shutdown_imminent", online)  # wrong
pool.once("connection_failed", offline)  # wrong
pool.on("online", offlines.put)  # wrong
pool.on("offline", lambda e: e.nonsense)  # wrong
session.on("online", offline)  # wrong
session.once("ping-pong-latency", online)  # wrong
session.on("event:relay.event", online)  # wrong
client.on("disconnected", offline)  # wrong
client.once("online", offline, session_id=None)  # wrong
meeting.on("online", transcript)  # wrong
meeting.on("transcript", online)  # wrong
meeting.on("relay", transcript)  # wrong
meeting.once("failed", online)  # wrong
meeting.on("online", envelope)  # wrong

# In a decorator


@pool.on("online")  # wrong
def first(event: Offline) -> None: ...


@session.once("sequence-mismatch")  # wrong
def second(event: Envelope) -> None: ...


@client.on("event:relay.event")  # wrong
def third(event: Online) -> None: ...


@meeting.on("transcript")  # wrong
def fourth(event: Online) -> None: ...


# Envelopes where there are none

pool.on("online", envelope)  # wrong: deprecated
client.on("offline", envelope)  # wrong: deprecated
session.on("sequence-mismatch", envelope)  # wrong: deprecated
pool.on("event:mercury_shutdown_imminent", envelope)  # wrong: deprecated

# No callback of one argument, no name, no such session

pool.on("online", nothing)  # wrong
pool.on("online", two)  # wrong
pool.on("online", 5)  # wrong
pool.on(5, print)  # wrong
pool.on("online", online, session_id=5)  # wrong
pool.on("online", online, session_id=None)  # wrong
session.on("online", online, session_id="captions")  # wrong
meeting.on("transcripts", transcript)  # wrong
