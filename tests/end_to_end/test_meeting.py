"""A webinar on real sockets: promoted, demoted, left, joined again."""

from __future__ import annotations

from llm_sessions import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION, DataChannelClient, Meeting, SessionState
from llm_sessions.testing.captions import CaptionService, Webinar
from llm_sessions.testing.server import LocalServer
from tests.support import Recorder, eventually

DEVICE = "https://wdm.example/devices/1"
DONE = (3050, "done (permanent)")


def test_a_webinar_from_join_to_leave_and_again() -> None:
    heard = Recorder()
    with (
        LocalServer() as server,
        DataChannelClient("token", device=DEVICE) as client,
        Meeting(client) as meeting,
    ):
        service, webinar = CaptionService(server), Webinar(server)
        meeting.on("reaction", heard.named("reaction"))
        meeting.join(webinar.join_response())
        meeting.wait_online()
        token = client.get_token(LLM_PRACTICE_SESSION)
        meeting.update_locus(webinar.start_practice())
        for _ in range(2):
            meeting.update_locus(webinar.promote())
            meeting.wait_online(LLM_PRACTICE_SESSION)
            service.reaction("celebrate")
            meeting.update_locus(webinar.demote())
            practice = client.session(LLM_PRACTICE_SESSION)
            eventually(lambda one=practice: one.state is SessionState.IDLE)  # type: ignore[misc]
        assert client.get_token(LLM_PRACTICE_SESSION) == token
        assert len(heard.wait("reaction", 2)) == 2  # each came on both channels, and counts once
        meeting.request_practice_session(False)
        assert server.controls()["practiceSession"] == {"enabled": False}
        meeting.leave()
        assert client.get_token() is None
        server.wait_for(lambda: all(one.close_code for one in server.connections()))
        assert {(one.close_code, one.close_reason) for one in server.connections()} == {DONE}
        meeting.join(webinar.join_response(tokens=False))
        assert meeting.wait_online().id == LLM_DEFAULT_SESSION
        assert [one.path for one in server.requests if one.method == "GET"] == [
            "/locus/meeting/participant/participant/datachannel/token"
        ]
        assert server.violations == []
