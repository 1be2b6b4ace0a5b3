"""INVARIANTS, Pool: retry and close policy, and switchover, against a LocalServer, plain and TLS."""

from __future__ import annotations

import itertools
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from llm_sessions import (
    BadRequest,
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    ConnectionLost,
    ConnectionPool,
    Endpoint,
    Forbidden,
    NotAuthorized,
    NotOnline,
    Offline,
    PoolConfig,
    Replaced,
    Session,
    SessionState,
    SwitchoverLoss,
    Target,
    UnknownResponse,
)
from llm_sessions.testing.server import LocalServer, ServerConnection
from tests.support import LONG, Background, Recorder, eventually, library_threads

MakePool = Callable[..., ConnectionPool]


def threads(*kinds: str) -> list[str]:
    """Return the names of the library's own threads of these kinds, of all kinds by default."""
    wanted = tuple(f"llm-{kind}" for kind in kinds or ("connector", "reader", "dispatcher"))
    return sorted(thread.name for thread in library_threads() if thread.name.startswith(wanted))


def ends(recorder: Recorder) -> list[str]:
    return [name for name in recorder.names if name.startswith(("offline", "disconnected"))]


# -- what a close means --------------------------------------------------------------------------------------

TRANSIENT = [
    (1001, ""),
    (1005, ""),
    (1006, ""),
    (1011, "oops"),
    (1000, "idle"),
    (1000, "Done (forced)"),
    (3050, "Pong not received"),
    (3050, "PONG MISMATCH"),
    (4000, ""),
    (4000, "other"),
]
PERMANENT = [
    (1000, ""),
    (1000, "done"),
    (3050, "done (permanent)"),
    (1003, ""),
    (1008, ""),
    (4001, ""),
    (4001, "replaced"),
    (4400, ""),
    (4403, ""),
    (4999, ""),
]


@pytest.mark.parametrize(("code", "reason"), TRANSIENT)
def test_d1_d16_a_transient_close_reconnects(
    server: LocalServer, pool: ConnectionPool, code: int, reason: str
) -> None:
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    connection.close(code, reason)
    recorder.wait("online", 2)
    offline = Offline(session.id, code, reason)
    assert recorder.payloads("offline") == recorder.payloads("offline.transient") == [offline]
    states = [name for name in recorder.names if name in ("online", "offline", "offline.transient")]
    assert states == ["online", "offline", "offline.transient", "online"]
    assert ends(recorder) == ["offline", "offline.transient"]


def test_d1_a_reset_reconnects(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    server.wait_live()
    server.drop()
    recorder.wait("online", 2)
    assert recorder.payloads("offline.transient") == [Offline(session.id, 1006, "")]
    assert isinstance(session.last_error, ConnectionLost) and session.last_error.code == 1006


@pytest.mark.parametrize(("code", "reason"), PERMANENT)
def test_d16_a_permanent_close_ends_the_session(
    server: LocalServer, pool: ConnectionPool, code: int, reason: str
) -> None:
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    [connection] = server.wait_live()
    connection.close(code, reason)
    offline = Offline(session.id, code, reason)
    assert recorder.wait("offline.permanent") == [offline]
    assert recorder.payloads("offline") == [offline]
    assert session.state is SessionState.OFFLINE
    with pytest.raises(ConnectionLost) as caught:
        session.wait_online()
    assert (caught.value.code, caught.value.reason) == (code, reason)
    with pytest.raises(NotOnline):
        session.send({})
    eventually(lambda: not threads())
    assert len(server.connections()) == 1
    assert ends(recorder) == ["offline", "offline.permanent"]
    assert pool.connect().online


# -- I29: retired sockets ------------------------------------------------------------------------------------


def switch_over(server: LocalServer, recorder: Recorder, key: str = "default") -> ServerConnection:
    """Have a session replace its socket; return the old one."""
    [old] = server.wait_live(key)
    done = len(recorder.payloads("event:mercury_shutdown_switchover_complete"))
    old.send_json({"type": "shutdown"})
    recorder.wait("event:mercury_shutdown_switchover_complete", done + 1)
    return old


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        *[
            (code, "")
            for code in (1000, 1001, 1003, 1005, 1006, 1008, 1011, 3050, 4000, 4001, 4400, 4401, 4403)
        ],
        (1000, "idle"),
        (4000, "replaced"),
        (4001, "replaced"),
        (4999, "whatever"),
    ],
)
def test_i29_d16_a_retired_sockets_close(
    server: LocalServer, pool: ConnectionPool, code: int, reason: str
) -> None:
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    old = switch_over(server, recorder)
    old.close(code, reason)
    eventually(lambda: len(threads("reader")) == 1)
    marker = server.publish()  # reaches the dispatcher behind whatever the close caused
    server.wait_for(lambda: len(server.live()) == 1)
    eventually(lambda: marker["id"] in [envelope.id for envelope in recorder.payloads("event")])
    wanted = [("offline.replaced", Offline(session.id, code, reason))] if code == 4001 else []
    assert [call for call in recorder.calls if call[0].startswith("offline")] == wanted
    assert session.state is SessionState.ONLINE
    eventually(lambda: not threads("connector"))
    assert len(server.connections()) == 2


def test_a_retired_socket_that_breaks_off_is_announced(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    old = switch_over(server, recorder)
    old.drop()
    assert recorder.wait("switchover-loss") == [SwitchoverLoss(session.id, 1006, "")]
    assert session.state is SessionState.ONLINE
    assert "offline" not in recorder.names


# -- I30, I31 ------------------------------------------------------------------------------------------------


def test_i30_d16_two_clients_on_one_registration_settle_with_one(
    server: LocalServer, make_pool: MakePool
) -> None:
    @server.on_message
    def replace(connection: ServerConnection, message: dict[str, Any]) -> None:
        if message.get("type") == "authorization":
            for other in server.live(connection.session):
                if other is not connection:
                    other.close(4000, "replaced")

    first, second = make_pool(), make_pool()
    recorder = Recorder().listen(first)
    loser = first.connect(server.url())
    winner = second.connect(server.url())
    assert recorder.wait("offline.replaced") == [Offline(loser.id, 4000, "replaced")]
    assert ends(recorder) == ["offline", "offline.replaced"]
    assert loser.state is SessionState.OFFLINE
    with pytest.raises(Replaced):
        loser.wait_online()
    assert winner.online
    eventually(lambda: not threads("connector"))
    assert len(server.connections()) == 2


def test_i31_a_reconnect_uses_the_sessions_own_url(server: LocalServer, pool: ConnectionPool) -> None:
    url = server.url() + "?a=1&x=%2F+%C3%A9&outboundWireFormat=binary&clientTimestamp=5&empty=&a%62=2"
    session = pool.connect(url)
    recorder = Recorder().listen(session, "online")
    [first] = server.wait_live()
    stamp = int(first.query["clientTimestamp"][0])
    eventually(lambda: time.time() * 1000 > stamp + 1)
    first.close(1001)
    recorder.wait("online")
    [second] = server.wait_live()
    expected = {
        "a": ["1"],
        "x": ["/ é"],
        "empty": [""],
        "ab": ["2"],
        "outboundWireFormat": ["text"],
        "bufferStates": ["true"],
        "aliasHttpStatus": ["true"],
    }
    stamps = []
    for connection in (first, second):
        stamps += connection.query["clientTimestamp"]
        assert {key: value for key, value in connection.query.items() if key != "clientTimestamp"} == expected
    assert len(stamps) == 2 and int(stamps[1]) > int(stamps[0])
    assert session.url == url


def test_i31_a_source_is_asked_again_for_every_attempt(server: LocalServer, pool: ConnectionPool) -> None:
    asked: list[str] = []

    def source() -> str:
        asked.append(server.url("default", attempt=str(len(asked))))
        return asked[-1]

    server.reject(500)
    session = pool.connect(source)
    recorder = Recorder().listen(session, "online")
    server.wait_live()
    server.close_session(code=1001)
    recorder.wait("online")
    attempts = [connection.query["attempt"] for connection in server.connections()]
    assert attempts == [["0"], ["1"], ["2"]] and len(asked) == 3
    assert session.url == asked[-1]


# -- I32, I33, I38: state is per session ---------------------------------------------------------------------


def test_i32_one_session_ends_and_the_other_goes_on(server: LocalServer, pool: ConnectionPool) -> None:
    default = pool.connect(server.url())
    practice = pool.connect(server.url("practice"), "practice")
    recorder = Recorder().listen(default)
    server.wait_live("default")
    server.close_session("default", 1003)
    recorder.wait("offline.permanent")
    assert not pool.is_online() and not default.online
    assert pool.is_online("practice") and practice.online and pool.any_online
    practice.send({"type": "hello"})
    [connection] = server.live("practice")
    server.wait_for(lambda: {"type": "hello"} in connection.received)
    assert not pool.is_online("unknown") and "unknown" not in pool.sessions()
    pool.disconnect("practice")
    assert not pool.any_online


def test_i33_retry_limits_are_per_session(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(initial_max_retries=1, max_retries=4)
    veteran = pool.connect(server.url("veteran"), "veteran")
    server.reject(500, session="novice", times=10)
    with pytest.raises(ConnectError) as caught:
        pool.connect(server.url("novice"), "novice")
    assert caught.value.attempts == 2
    assert len(server.connections("novice")) == 2
    # Once online, max_retries counts, also after the novice's failure.
    recorder = Recorder().listen(veteran, "online", "offline.permanent")
    server.reject(500, session="veteran", times=4)
    server.close_session("veteran", 1001)
    recorder.wait("online")
    assert len(server.connections("veteran")) == 6
    assert recorder.payloads("offline.permanent") == []


def test_i33_max_retries_used_up_end_the_session(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(max_retries=2)
    session = pool.connect(server.url())
    recorder = Recorder().listen(session)
    server.wait_live()
    server.reject(500, times=10)
    server.close_session(code=1001)
    recorder.wait("offline.permanent")
    assert session.state is SessionState.OFFLINE
    assert len(server.connections()) == 1 + 3
    assert ends(recorder) == ["offline", "offline.transient", "offline.permanent"]


def test_i33_a_disconnect_forgets_that_it_was_online(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(initial_max_retries=0)
    pool.connect(server.url())
    pool.disconnect()
    server.reject(500)
    with pytest.raises(ConnectError):
        pool.connect(server.url())
    assert len(server.connections()) == 2


def test_i38_the_last_error_is_kept_per_session(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(initial_max_retries=0)
    server.reject(4401, session="a", reason="Authentication Failed")
    server.reject(1006, session="b")
    server.reject(1005, session="c")
    outcomes = {}
    for name in ("a", "b", "c"):
        with pytest.raises(ConnectError) as caught:
            pool.connect(server.url(name), name)
        outcomes[name] = caught.value
    good = pool.connect(server.url("d"), "d")
    assert good.last_error is None
    kinds = {"a": NotAuthorized, "b": ConnectError, "c": UnknownResponse}
    for name, code in {"a": 4401, "b": 1006, "c": 1005}.items():
        error = pool.session(name).last_error
        assert type(error) is type(outcomes[name]) is kinds[name]
        assert isinstance(error, ConnectError)
        assert (error.session_id, error.code) == (name, code)
        assert str(error) == str(outcomes[name])


# -- I41, I42, I43: failures ---------------------------------------------------------------------------------


class Tokens:
    """A provider that goes on to its next token with every refresh; an exception in their place is raised."""

    def __init__(self, *tokens: str | Exception) -> None:
        self._tokens = list(tokens)
        self.refreshed: list[str] = []
        first = self._tokens.pop(0)
        assert isinstance(first, str)
        self._current = first

    def get(self) -> str:
        return self._current

    def refresh(self, rejected: str) -> str:
        self.refreshed.append(rejected)
        fresh = self._tokens.pop(0)
        if isinstance(fresh, Exception):
            raise fresh
        self._current = fresh
        return fresh


def test_i41_4401_refreshes_once_and_sends_the_new_token(server: LocalServer, pool: ConnectionPool) -> None:
    server.tokens = {"new"}
    tokens = Tokens("old", "newer", "new", "never")
    assert pool.connect(server.url(), token=tokens).online
    assert tokens.refreshed == ["old", "newer"]
    assert [connection.token for connection in server.connections()] == ["old", "newer", "new"]


def test_i41_http_401_refreshes_too(server: LocalServer, pool: ConnectionPool) -> None:
    server.reject(401)
    tokens = Tokens("old", "new")
    assert pool.connect(server.url(), token=tokens).online
    assert tokens.refreshed == ["old"]
    assert server.live()[0].token == "new"


def test_i41_a_failing_refresh_still_retries(server: LocalServer, pool: ConnectionPool) -> None:
    server.tokens = {"new"}
    tokens = Tokens("old", RuntimeError("the identity service is down"), "new")
    assert pool.connect(server.url(), token=tokens).online
    assert tokens.refreshed == ["old", "old"]
    assert [connection.token for connection in server.connections()] == ["old", "old", "new"]


def test_i41_a_refresh_without_another_token_ends_the_run(server: LocalServer, pool: ConnectionPool) -> None:
    server.tokens = {"new"}
    tokens = Tokens("old", "old", "never")
    with pytest.raises(NotAuthorized):
        pool.connect(server.url(), token=tokens)
    assert tokens.refreshed == ["old"]
    assert len(server.connections()) == 1


def test_i41_d16_4401_online_refreshes_once_and_reconnects(server: LocalServer, pool: ConnectionPool) -> None:
    tokens = Tokens("old", "new", "never")
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url(), token=tokens)
    [connection] = server.wait_live()
    server.tokens = {"new"}
    connection.close(4401, "Authentication Failed")
    recorder.wait("online", 2)
    assert recorder.payloads("offline.transient") == [Offline(session.id, 4401, "Authentication Failed")]
    assert tokens.refreshed == ["old"]
    assert [connection.token for connection in server.connections()] == ["old", "new"]


def test_i41_an_endpoints_own_token_is_refreshed_by_the_endpoint(
    server: LocalServer, pool: ConnectionPool
) -> None:
    class Registration(Endpoint):
        told: list[type[Exception]] = []  # noqa: RUF012

        def resolve(self, attempt: Any) -> Target:
            return Target(server.url(), token="new" if self.told else "old")

        def rejected(self, target: Target, error: Exception) -> None:
            assert target.token == "old"
            self.told.append(type(error))

    server.tokens = {"new"}
    endpoint = Registration()
    assert pool.connect(endpoint).online
    assert endpoint.told == [NotAuthorized]


@pytest.mark.parametrize(("code", "kind"), [(4400, BadRequest), (4403, Forbidden)])
def test_i42_d16_a_refusal_is_final(
    server: LocalServer, pool: ConnectionPool, code: int, kind: type[ConnectError]
) -> None:
    server.reject(code, reason="no")
    with pytest.raises(kind) as caught:
        pool.connect(server.url())
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason, error.attempts) == (code, "no", 1)
    assert pool.session().state is SessionState.OFFLINE
    eventually(lambda: not threads())
    assert len(server.connections()) == 1


@pytest.mark.parametrize("status", [400, 403, 410])
def test_i42_so_is_an_http_refusal(server: LocalServer, pool: ConnectionPool, status: int) -> None:
    server.reject(status)
    with pytest.raises(ConnectError) as caught:
        pool.connect(server.url())
    assert caught.value.status == status
    assert len(server.connections()) == 1


def test_i43_connection_failed_from_the_second_failure_on(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder().listen(pool, "connection_failed")
    server.reject(4410, times=3)
    session = pool.connect(server.url())
    failures = recorder.wait("connection_failed", 2)
    assert [failure.retries for failure in failures] == [1, 2]
    assert [failure.error.code for failure in failures] == [4410, 4410]
    assert all(failure.session_id == session.id for failure in failures)
    marker = server.publish()  # nothing more behind it
    Recorder().listen(session, "event")
    server.wait_for(lambda: marker["id"] in server.live()[0].acks)
    assert len(recorder.calls) == 2


def test_i43_never_for_1006(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder().listen(pool, "connection_failed", "online")
    server.reject(1006, times=3)
    pool.connect(server.url())
    recorder.wait("online")
    assert recorder.names == ["online"]
    assert len(server.connections()) == 4


def test_i43_counts_within_a_run(server: LocalServer, pool: ConnectionPool) -> None:
    """Each run's first failure is silent, however the runs before it went."""
    recorder = Recorder().listen(pool, "connection_failed", "online")
    for runs in range(1, 4):
        server.reject(4410)
        if runs == 1:
            pool.connect(server.url())
        else:
            server.wait_live()
            server.close_session(code=1001)
        recorder.wait("online", runs)
    assert recorder.payloads("connection_failed") == []
    server.wait_live()
    server.reject(4410, times=2)
    server.close_session(code=1001)
    recorder.wait("online", 4)
    assert [failure.retries for failure in recorder.payloads("connection_failed")] == [1]


def test_whole_numbers_of_seconds_are_fine(server: LocalServer, make_pool: MakePool) -> None:
    """The waits are computed from the configuration, and an int is a number of seconds like any other."""
    pool = make_pool(backoff_initial=3600, backoff_max=3600, jitter=False)
    server.reject(500)
    call = Background(lambda: pool.connect(server.url()))
    eventually(lambda: pool.session().last_error)
    assert isinstance(pool.session().last_error, ConnectError)
    assert pool.session().state is SessionState.CONNECTING
    pool.disconnect()
    assert isinstance(call.error(), ConnectCancelled)


# -- T15: no storm -------------------------------------------------------------------------------------------


def test_t15_a_server_that_accepts_and_closes_makes_no_storm(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool(backoff_initial=0.02, backoff_max=10.0, jitter=False)
    recorder = Recorder().listen(pool, "online", "offline.transient")

    @server.on_message
    def close(connection: ServerConnection, message: dict[str, Any]) -> None:
        if message.get("type") == "authorization":
            connection.close(1001)

    Background(lambda: pool.connect(server.url())).result()
    recorder.wait("offline.transient", 6)
    accepted = [connection.accepted_at for connection in server.connections()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(accepted)]
    # The first reconnect is at once; from then on the waits grow: 0.02, 0.04, 0.08, …
    for number, gap in enumerate(gaps[1:]):
        assert gap >= 0.02 * 2**number * 0.9, gaps
    pool.disconnect()


def test_t15_a_server_that_closes_before_ready_makes_no_storm(
    server: LocalServer, make_pool: MakePool
) -> None:
    pool = make_pool(backoff_initial=0.02, backoff_max=0.08, jitter=False, initial_max_retries=5)
    server.reject(1001, times=10)
    with pytest.raises(ConnectError):
        pool.connect(server.url())
    accepted = [connection.accepted_at for connection in server.connections()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(accepted)]
    assert len(accepted) == 6
    for gap, wait in zip(gaps, (0.02, 0.04, 0.08, 0.08, 0.08), strict=True):
        assert gap >= wait * 0.9, gaps


def test_t15_d7_three_short_lives_tell_the_endpoint(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(backoff_initial=0.001, backoff_max=0.002)
    told: list[Exception] = []

    class Place(Endpoint):
        def resolve(self, attempt: Any) -> Target:
            return Target(server.url())

        def rejected(self, target: Target, error: Exception) -> None:
            told.append(error)

    recorder = Recorder().listen(pool, "online")
    pool.connect(Place())
    for count in (1, 2, 3):
        assert told == []
        server.wait_live()
        server.close_session(code=1001)
        recorder.wait("online", count + 1)
    assert [type(error) for error in told] == [ConnectionLost]


def test_t15_d8_30_sessions_come_back_after_a_restart(
    tls: bool, server_context: ssl.SSLContext, make_pool: MakePool
) -> None:
    context = server_context if tls else None
    pool = make_pool(jitter=True)
    names = [f"s{number}" for number in range(30)]
    with LocalServer(ssl_context=context) as first:
        calls = [Background(lambda name=name: pool.connect(first.url(name), name)) for name in names]
        for call in calls:
            assert call.result().online
        recorders = [Recorder().listen(pool.session(name), "offline.transient", "online") for name in names]
        port = first.port
    with LocalServer(ssl_context=context, port=port) as second:
        for recorder in recorders:
            recorder.wait("online")
        assert {connection.session for connection in second.wait_live(count=30)} == set(names)
        for name in names:
            pool.session(name).send({"type": "back"})
        for connection in second.live():
            second.wait_for(lambda connection=connection: {"type": "back"} in connection.received)
        assert first.violations == second.violations == []
        pool.close()


# -- I19...I25, I98, I99: switchover -------------------------------------------------------------------------


def shut_down(server: LocalServer, key: str = "default") -> tuple[ServerConnection, ServerConnection]:
    """Announce the shutdown of a key's only socket; return it and its candidate, which is held back."""
    [old] = server.wait_live(key)
    seen = len(server.connections(key))
    server.withhold_ready(key)
    old.send_json({"type": "shutdown"})
    server.wait_for(lambda: len(server.connections(key)) > seen and server.connections(key)[-1].authorized)
    return old, server.connections(key)[-1]


def test_i19_i20_i24_d17_the_candidate_takes_over_when_it_is_ready_and_the_session_stays_online(
    server: LocalServer, pool: ConnectionPool
) -> None:
    session = pool.connect(server.url("default", subscriptionAwareSubchannels="transcription"))
    recorder = Recorder().listen(session)
    stop, samples = threading.Event(), set()

    def sample() -> None:
        while not stop.wait(0.0005):
            samples.add((session.online, pool.is_online(), pool.any_online))

    sampler = Background(sample)
    try:
        old, candidate = shut_down(server)
        assert session.state is SessionState.SWITCHING
        session.send({"type": "while switching"})
        server.wait_for(lambda: {"type": "while switching"} in old.received)
        marker = server.publish(id="on the old one")
        eventually(lambda: marker["id"] in [envelope.id for envelope in recorder.payloads("event")])
        assert session.state is SessionState.SWITCHING
        server.release_ready()
        complete = recorder.wait("event:mercury_shutdown_switchover_complete")
        session.send({"type": "afterwards"})
        server.wait_for(lambda: {"type": "afterwards"} in candidate.received)
        assert {"type": "while switching"} not in candidate.received
        old.close(4001)
        recorder.wait("offline.replaced")
    finally:
        stop.set()
        sampler.result()
    assert samples == {(True, True, True)}
    assert [event.url for event in complete] == [server.url()]
    [started] = recorder.payloads("event:mercury_shutdown_imminent")
    assert started.envelope.type == "shutdown"
    states = [name for name in recorder.names if name not in ("event", "ping-pong-latency")]
    assert states == [
        "event:mercury_shutdown_imminent",
        "event:mercury_shutdown_switchover_complete",
        "offline.replaced",
    ]
    # I24: the session's own URL.
    assert candidate.query["subscriptionAwareSubchannels"] == ["transcription"]
    assert len(server.connections()) == 2


def test_i21_d17_only_the_active_sockets_close_touches_the_session(
    server: LocalServer, pool: ConnectionPool
) -> None:
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    old = switch_over(server, recorder)
    old.close(4001)
    recorder.wait("offline.replaced")
    assert session.state is SessionState.ONLINE
    [new] = server.wait_live()
    new.drop()
    recorder.wait("online", 2)
    assert ends(recorder) == ["offline.replaced", "offline", "offline.transient"]
    assert len(server.connections()) == 3


@pytest.mark.parametrize("code", [1006, 4001])
def test_i22_d17_after_a_failed_switchover_the_old_socket_is_active_again(
    server: LocalServer, make_pool: MakePool, code: int
) -> None:
    pool = make_pool(max_retries=1)
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    [old] = server.wait_live()
    server.reject(4410, times=2)
    old.send_json({"type": "shutdown"})
    [failed] = recorder.wait("event:mercury_shutdown_switchover_failed")
    assert isinstance(failed.reason, ConnectError) and failed.reason.code == 4410
    assert session.state is SessionState.ONLINE
    session.send({"type": "still here"})
    server.wait_for(lambda: {"type": "still here"} in old.received)
    assert ends(recorder) == []
    old.close(code)
    if code == 4001:
        recorder.wait("offline.permanent")
        assert session.state is SessionState.OFFLINE
    else:
        recorder.wait("online", 2)
        assert ends(recorder) == ["offline", "offline.transient"]


def test_i23_a_second_shutdown_is_ignored_and_sessions_switch_on_their_own(
    server: LocalServer, pool: ConnectionPool
) -> None:
    x, y = pool.connect(server.url("x"), "x"), pool.connect(server.url("y"), "y")
    recorders = {"x": Recorder().listen(x), "y": Recorder().listen(y)}
    old, _ = shut_down(server, "x")
    old.send_json({"type": "shutdown"})
    shut_down(server, "y")
    marker = server.publish(session="x")
    eventually(lambda: marker["id"] in [envelope.id for envelope in recorders["x"].payloads("event")])
    server.release_ready("y")
    recorders["y"].wait("event:mercury_shutdown_switchover_complete")
    assert x.state is SessionState.SWITCHING and y.state is SessionState.ONLINE
    server.release_ready("x")
    recorders["x"].wait("event:mercury_shutdown_switchover_complete")
    assert len(server.connections("x")) == len(server.connections("y")) == 2
    assert len(recorders["x"].payloads("event:mercury_shutdown_imminent")) == 1
    old.send_json({"type": "shutdown"})  # on a socket that is not in use any more
    server.wait_for(lambda: len(server.live("x")) == 2)
    assert len(server.connections("x")) == 2


@pytest.mark.parametrize("hold", ["hold_upgrades", "withhold_ready"])
@pytest.mark.parametrize("everything", [False, True], ids=["disconnect", "disconnect_all"])
def test_i25_disconnect_ends_candidate_and_old(
    server: LocalServer, pool: ConnectionPool, hold: str, everything: bool
) -> None:
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    [old] = server.wait_live()
    getattr(server, hold)()
    old.send_json({"type": "shutdown"})
    server.wait_for(lambda: len(server.connections()) == 2)
    candidate = server.connections()[1]
    server.wait_for(lambda: bool(candidate.path))
    (pool.disconnect_all if everything else pool.disconnect)(code=3050, reason="bye")
    assert session.state is SessionState.IDLE
    server.release_upgrades()
    server.release_ready()
    server.wait_for(lambda: candidate.closed_at is not None and old.closed_at is not None)
    eventually(lambda: not threads())
    assert (old.close_code, old.close_reason) == (3050, "bye")
    assert len(server.connections()) == 2
    assert ends(recorder) == ["offline", "offline.permanent", "disconnected"]
    assert not recorder.payloads("event:mercury_shutdown_switchover_complete")
    assert not recorder.payloads("event:mercury_shutdown_switchover_failed")


def test_i25_disconnect_ends_a_retired_socket_too(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder().listen(pool)
    pool.connect(server.url())
    old = switch_over(server, recorder)
    assert len(server.wait_live(count=2)) == 2
    pool.disconnect()
    server.wait_for(lambda: old.closed_at is not None and not server.live())
    assert {connection.close_code for connection in server.connections()} == {1000}
    assert recorder.wait("disconnected")
    assert ends(recorder) == ["offline", "offline.permanent", "disconnected"]


def test_a_retired_socket_that_the_server_keeps_is_dropped(server: LocalServer, make_pool: MakePool) -> None:
    pool = make_pool(retire_timeout=0.1)
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    old = switch_over(server, recorder)
    server.wait_for(lambda: old.close_code == 1000)
    server.wait_for(lambda: old.closed_at is not None)
    assert session.state is SessionState.ONLINE and ends(recorder) == []


@pytest.mark.parametrize("succeeds", [True, False], ids=["switched", "failed"])
def test_i98_d17_4001_before_the_candidate_is_ready_waits_for_its_outcome(
    server: LocalServer, make_pool: MakePool, succeeds: bool
) -> None:
    pool = make_pool(max_retries=0)
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    old, candidate = shut_down(server)
    old.close(4001)
    eventually(lambda: len(threads("reader")) == 1)
    assert ends(recorder) == [] and session.state is SessionState.SWITCHING
    if succeeds:
        server.release_ready()
        assert recorder.wait("offline.replaced") == [Offline(session.id, 4001, "")]
        assert session.state is SessionState.ONLINE and ends(recorder) == ["offline.replaced"]
    else:
        candidate.drop()
        recorder.wait("offline.permanent")
        recorder.wait("event:mercury_shutdown_switchover_failed")
        assert ends(recorder) == ["offline", "offline.permanent"]
        assert session.state is SessionState.OFFLINE
    assert recorder.payloads("online") == recorder.payloads("online")[:1]


def test_i98_d17_a_loss_turns_the_candidate_into_the_reconnect(
    server: LocalServer, pool: ConnectionPool
) -> None:
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    old, candidate = shut_down(server)
    old.drop()
    recorder.wait("offline.transient")
    assert session.state is SessionState.RECONNECTING
    server.release_ready()
    recorder.wait("online", 2)
    assert server.live() == [candidate] and len(server.connections()) == 2
    states = [name for name in recorder.names if name not in ("event", "ping-pong-latency")]
    assert states == ["online", "event:mercury_shutdown_imminent", "offline", "offline.transient", "online"]


def test_i98_d17_a_permanent_close_cancels_the_candidate(server: LocalServer, pool: ConnectionPool) -> None:
    recorder = Recorder().listen(pool)
    session = pool.connect(server.url())
    old, candidate = shut_down(server)
    old.close(1003, "bye")
    recorder.wait("offline.permanent")
    server.release_ready()
    server.wait_for(lambda: candidate.closed_at is not None)
    eventually(lambda: not threads())
    assert session.state is SessionState.OFFLINE
    assert len(server.connections()) == 2
    assert ends(recorder) == ["offline", "offline.permanent"]


def test_i99_d17_an_envelope_on_both_sockets_is_delivered_once(
    server: LocalServer, pool: ConnectionPool
) -> None:
    recorder = Recorder().listen(pool)
    pool.connect(server.url())
    old, candidate = shut_down(server)
    envelope = {"id": "twice", "data": {"eventType": "relay.event"}}
    old.send_json(envelope)
    eventually(lambda: "twice" in [one.id for one in recorder.payloads("event")])
    server.release_ready()
    recorder.wait("event:mercury_shutdown_switchover_complete")
    candidate.send_json(envelope)
    server.publish(id="both")
    old.send_json({"id": "end of old"})
    candidate.send_json({"id": "end of new"})
    ids: list[str] = []

    def over() -> bool:
        ids[:] = [one.id for one in recorder.payloads("event")]
        return {"end of old", "end of new"} <= set(ids)

    eventually(over)
    assert (ids.count("twice"), ids.count("both")) == (1, 1)


# -- configuration -------------------------------------------------------------------------------------------


def test_i40_max_less_than_initial_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        PoolConfig(backoff_initial=2.0, backoff_max=1.0)


def test_a_cancelled_switchover_tells_waiters_of_connect(server: LocalServer, pool: ConnectionPool) -> None:
    session = pool.connect(server.url())
    shut_down(server)
    assert pool.connect(server.url()) is session  # online all the while
    server.drop()
    eventually(lambda: session.state is SessionState.RECONNECTING)
    calls = [Background(lambda: pool.connect(server.url())) for _ in range(3)]
    machine = pool._get(session.id)[1]
    eventually(lambda: machine._waiters == 3)
    pool.disconnect()
    outcomes = [call.error(LONG) for call in calls]
    assert all(isinstance(outcome, ConnectCancelled) for outcome in outcomes), outcomes
    assert isinstance(session, Session)
