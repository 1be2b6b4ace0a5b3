"""D22: nothing that holds a socket travels to another process; what a spawned one makes itself works."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from llm_sessions import ConnectionPool, DataChannelClient, DeviceRegistration, Meeting, OAuthTokens
from llm_sessions.testing.captions import CaptionService
from llm_sessions.testing.server import LocalServer
from tests.processes.script import Script
from tests.support import fake_pool

Start = Callable[..., Script]

SECRET = "s3cret-token-of-nobody-else"


def test_d22_what_has_threads_and_sockets_is_not_pickled_and_not_copied() -> None:
    pool = ConnectionPool(SECRET)
    client = DataChannelClient(SECRET, device="https://wdm.example/devices/1")
    meeting = Meeting(client)
    tokens = OAuthTokens("id", SECRET, SECRET)
    things = [pool, pool.session(), pool.session().messages(), client, meeting, meeting.captions]
    things += [DeviceRegistration(SECRET), tokens]
    for thing in things:
        for refused in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError) as caught:
                refused(thing)
            text = str(caught.value)
            assert text.startswith(f"{type(thing).__name__} objects cannot be pickled or copied")
            assert "make another one there" in text and SECRET not in text
    client.close()
    pool.close()


def test_d22_the_iterator_of_transcripts_is_not_pickled_either() -> None:
    from llm_sessions import Transcripts

    with pytest.raises(TypeError, match="Transcripts objects cannot be pickled"):
        pickle.dumps(Transcripts(1, None, lambda: None))


def test_d22_what_only_says_something_is_pickled() -> None:
    pool, _ = fake_pool()
    session = pool.connect("wss://example.org/x", "a")
    for thing in (session.stats(), session.state, pool._env.config):
        assert pickle.loads(pickle.dumps(thing)) == thing
    pool.close()


SPAWNER = """
import json, multiprocessing, os, sys

def work(ws, ca_file):
    import ssl
    from llm_sessions import ConnectionPool, PoolConfig
    context = ssl.create_default_context(cafile=ca_file) if ca_file else None
    with ConnectionPool("token", config=PoolConfig(ssl_context=context)) as pool:
        pool.connect(ws + "spawned", "spawned")
        return os.getpid()

if __name__ == "__main__":
    sys.path[:0] = [os.getcwd()]
    exec(sys.argv[2])
    context = multiprocessing.get_context("spawn")
    pool = make_pool()
    session = pool.connect(url("parent"), "parent")
    with context.Pool(1) as workers:
        refused = []
        for thing in (pool, session):
            try:
                workers.apply(print, [thing])
            except TypeError as exc:
                refused.append(str(exc))
        worker = workers.apply(work, [given["ws"], given["ca_file"]])
    session.send({"id": "1", "type": "from the parent"})
    say([refused, worker != os.getpid()])
    hear()
"""


def test_d22_a_spawned_process_works_with_a_pool_of_its_own(
    server: LocalServer, script: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    CaptionService(server)
    file = tmp_path_factory.mktemp("spawn") / "spawner.py"
    file.write_text(SPAWNER, encoding="utf-8")
    with script(server, "", file=file) as process:
        refused, elsewhere = process.says()
        assert elsewhere
        assert [text.partition(" ")[0] for text in refused] == ["ConnectionPool", "Session"]
        process.ends()
    [parent], [spawned] = server.connections("parent"), server.connections("spawned")
    server.wait_for(lambda: parent.closed_at is not None)
    assert any(one["type"] == "from the parent" for one in parent.received)
    assert (parent.close_code, spawned.close_code) == (1000, 1000)
