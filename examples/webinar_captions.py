"""Captions of a webinar: of the main meeting, and of the practice session while one is a panelist.

    python examples/webinar_captions.py

runs against a webinar of its own, on a server in this process. In a real program the join response and every
later locus come from where it joins the meeting and hears of its changes; the rest is the same.
"""

from __future__ import annotations

import queue

from llm_sessions import (
    LLM_DEFAULT_SESSION,
    LLM_PRACTICE_SESSION,
    CaptionLanguages,
    DataChannelClient,
    Meeting,
    Session,
)
from llm_sessions.testing.captions import CaptionService, Webinar
from llm_sessions.testing.server import LocalServer

CHANNELS = {LLM_DEFAULT_SESSION: "main", LLM_PRACTICE_SESSION: "practice"}


def main() -> None:
    with (
        LocalServer() as server,
        DataChannelClient("any-token", device="https://wdm.example/devices/1") as client,
        Meeting(client) as meeting,
    ):
        service, webinar = CaptionService(server), Webinar(server)
        webinar.start_practice()
        captions = meeting.captions

        offers: queue.SimpleQueue[CaptionLanguages] = queue.SimpleQueue()
        meeting.on("languages", offers.put)

        meeting.join(webinar.join_response())  # as an attendee, while the practice session runs
        meeting.wait_online()
        captions.turn_on()
        print("main: captions in", ", ".join(offers.get(timeout=10).allowed_languages))
        print("main: captions in German, too:", captions.request_language("de").ok)

        lines = captions.transcripts(timeout=10)  # from here on, of all channels

        def hear(text: str, session: str) -> None:
            """Have somebody say something, and print the caption that comes of it."""
            service.transcript(text, session=session)
            line = next(lines)
            print(f"{CHANNELS[line.session_id]}: {line.text}")

        hear("Welcome, everyone.", "default")
        for _ in range(2):
            meeting.update_locus(webinar.promote())
            practice: Session = meeting.wait_online(LLM_PRACTICE_SESSION)
            # The service is told of each new channel, and which captions it should send there.
            print("practice: captions in", ", ".join(offers.get(timeout=10).allowed_languages))
            hear("Can everybody hear me?", "default")
            hear("Only panelists hear this.", "practice")
            kept = client.get_token(LLM_PRACTICE_SESSION)
            meeting.update_locus(webinar.demote())
            practice.wait_closed(timeout=10)
            print(
                "demoted:", practice, "- its token is kept:", client.get_token(LLM_PRACTICE_SESSION) == kept
            )

        meeting.leave()
        print("left:", meeting, "- tokens:", client.get_token(), client.get_token(LLM_PRACTICE_SESSION))
        print("lines that were not fetched:", len(list(lines)))

        meeting.join(webinar.join_response())
        meeting.wait_online()
        captions.turn_on()  # what was asked for before belongs to the meeting that was left
        print("announced again:", ", ".join(captions.wait_languages().allowed_languages))
        assert server.violations == []


if __name__ == "__main__":
    main()
