"""Every exception: its place, its text, and that it survives copying, pickling and many raises."""

from __future__ import annotations

import copy
import inspect
import pickle
import traceback
from typing import Any

import pytest

import llm_sessions
from llm_sessions import errors
from llm_sessions.errors import (
    AlreadyConnected,
    BadRequest,
    ConfigurationError,
    ConnectCancelled,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    Forbidden,
    LLMSessionsError,
    LocalProtocolError,
    NotAuthorized,
    NotOnline,
    OwnershipError,
    PoolClosed,
    ProtocolError,
    RegistrationError,
    RemoteProtocolError,
    Replaced,
    SessionError,
    TokenRefreshError,
    UnknownResponse,
    WaitTimeout,
    fresh_copy,
    named,
)

_FULL: dict[str, Any] = {
    "attempts": 3,
    "code": 4401,
    "reason": "why",
    "status": 401,
    "retry_after": 2.5,
}
_REST: dict[str, Any] = {"status": 503, "url": "https://h/p", "timing": 0.5, "retry_after": 7.0}

# One of each class with all that it can carry, and its text.
SAMPLES: list[tuple[Exception, str]] = [
    (LLMSessionsError("text"), "text"),
    (ConfigurationError("timeout", "must be positive"), "timeout: must be positive"),
    (PoolClosed(), "the pool is closed"),
    (PoolClosed("forked"), "forked"),
    (ProtocolError("text"), "text"),
    (LocalProtocolError("text"), "text"),
    (RemoteProtocolError("text"), "text"),
    (OwnershipError("text"), "text"),
    (SessionError("s", "text"), "session 's': text"),
    (NotOnline("s", "text"), "session 's': text"),
    (AlreadyConnected("s", "wss://h/p"), "session 's': already uses wss://h/p; disconnect it first"),
    *(
        (kind("s", "text", **_FULL), "session 's': text (after 3 attempts)")
        for kind in (
            ConnectError,
            ConnectTimeout,
            ConnectCancelled,
            BadRequest,
            NotAuthorized,
            Forbidden,
            UnknownResponse,
        )
    ),
    *((kind("s", "text", **_REST), "session 's': text") for kind in (RegistrationError, TokenRefreshError)),
    (TokenRefreshError("", "text", **_REST, final=True), "text"),
    (ConnectionLost("s", 4000, "replaced"), "session 's': connection lost (4000 replaced)"),
    (ConnectionLost("s"), "session 's': connection lost (1006)"),
    (Replaced("s", 4000, "replaced"), "session 's': connection lost (4000 replaced)"),
    (WaitTimeout("s", "text"), "session 's': text"),
]
each = pytest.mark.parametrize(("error", "text"), SAMPLES, ids=[type(error).__name__ for error, _ in SAMPLES])


def same(one: BaseException, other: BaseException) -> bool:
    return (
        type(one) is type(other)
        and one is not other
        and one.args == other.args
        and str(one) == str(other)
        and repr(one) == repr(other)
        and vars(one) == vars(other)
    )


def test_every_class_is_among_the_samples_and_is_public() -> None:
    classes = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert {type(error).__name__ for error, _ in SAMPLES} == classes == set(errors.__all__)
    assert classes <= set(llm_sessions.__all__)


@each
def test_the_text_is_made_from_the_data(error: Exception, text: str) -> None:
    assert str(error) == text
    assert isinstance(error, LLMSessionsError)


@each
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_pickle(error: Exception, text: str, protocol: int) -> None:
    assert same(pickle.loads(pickle.dumps(error, protocol)), error)


@each
def test_errors_copy(error: Exception, text: str) -> None:
    assert same(copy.copy(error), error)
    assert same(copy.deepcopy(error), error)


@each
def test_what_was_set_later_is_copied_too(error: Exception, text: str) -> None:
    error = copy.copy(error)
    error.__dict__["extra"] = 5
    assert copy.copy(error).__dict__["extra"] == 5
    assert pickle.loads(pickle.dumps(error)).__dict__["extra"] == 5


@each
def test_a_fresh_copy_is_equal_has_the_cause_and_no_traceback(error: Exception, text: str) -> None:
    cause = OSError("cause")
    try:
        raise error from cause
    except Exception as exc:
        raised = exc
    try:
        assert raised.__traceback__ is not None
        twin = fresh_copy(raised)
        assert same(twin, raised)
        assert twin.__cause__ is cause
        assert twin.__suppress_context__
        assert twin.__traceback__ is None
        assert raised.__traceback__ is not None
    finally:
        error.__traceback__ = error.__cause__ = None


def test_a_fresh_copy_of_an_error_without_a_cause_has_none() -> None:
    twin = fresh_copy(ConnectError("s", "text"))
    assert twin.__cause__ is None and not twin.__suppress_context__


def test_raising_copies_does_not_let_a_traceback_grow() -> None:
    outcome = ConnectCancelled("s", "text")
    depths = []
    for _ in range(5):
        try:
            raise fresh_copy(outcome)
        except ConnectCancelled as exc:
            depths.append(len(traceback.extract_tb(exc.__traceback__)))
    assert depths == [1] * 5
    assert outcome.__traceback__ is None


class Awkward(ConnectError):
    """A class of a user's endpoint that cannot be made from its args."""

    def __init__(self, only: int) -> None:
        super().__init__("s", f"number {only}")


def test_an_error_that_cannot_be_copied_is_returned_itself() -> None:
    error = Awkward(5)
    with pytest.raises(TypeError):
        copy.copy(error)
    assert fresh_copy(error) is error


@pytest.mark.parametrize("kind", [ConnectError, RegistrationError, TokenRefreshError])
def test_a_sources_error_gets_the_name_of_the_session(kind: type[ConnectError]) -> None:
    error = kind("", "text")
    error.__cause__ = cause = OSError("cause")
    twin = named(error, "s", 3)
    assert type(twin) is kind and twin.args == ("s", *error.args[1:]) and twin.__cause__ is cause
    assert (twin.session_id, twin.message, twin.attempts) == ("s", "text", 3)
    again = pickle.loads(pickle.dumps(twin))
    assert (again.session_id, again.attempts, again.args) == ("s", 3, twin.args)
    assert (error.session_id, error.attempts) == ("", 0), "it may be an outcome that others wait for"


def test_an_error_that_names_a_session_is_left_as_it_is() -> None:
    error = TokenRefreshError("other", "text", final=True)
    assert named(error, "s", 3) is error
    assert (error.session_id, error.attempts) == ("other", 0)


def test_what_users_may_catch_instead() -> None:
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(ConnectTimeout, TimeoutError)
    assert issubclass(WaitTimeout, TimeoutError)
    assert not issubclass(ConnectError, OSError)
    assert not issubclass(ConnectionLost, OSError)


@pytest.mark.parametrize("kind", [ConnectTimeout, WaitTimeout])
def test_timeouts_keep_their_data_although_an_oserror_reads_two_arguments_itself(kind: Any) -> None:
    error = kind("s", "text")
    assert (error.session_id, error.message) == ("s", "text")
    assert str(error) == "session 's': text"


def test_connect_errors_carry_the_last_attempt() -> None:
    error = ConnectError("s", "text", 3, 4401, "why", 401, 2.5)
    assert (error.session_id, error.message, error.attempts) == ("s", "text", 3)
    assert (error.code, error.reason, error.status, error.retry_after) == (4401, "why", 401, 2.5)
    bare = ConnectError("s")
    assert (bare.message, bare.attempts, bare.code) == ("", 0, None)
    assert (bare.reason, bare.status, bare.retry_after) == ("", None, None)


def test_registration_errors_carry_the_answer() -> None:
    error = RegistrationError("s", "text", 503, "https://h/p", 0.5, 7.0)
    assert (error.status, error.url, error.timing, error.retry_after) == (503, "https://h/p", 0.5, 7.0)
    assert (error.attempts, error.code, error.reason) == (0, None, "")


@pytest.mark.parametrize(("attempts", "counted"), [(0, False), (1, False), (2, True)])
def test_attempts_are_told_once_there_were_several(attempts: int, counted: bool) -> None:
    error = ConnectError("s", "text")
    error.attempts = attempts
    assert ("attempts" in str(error)) is counted


def test_a_lost_connection_says_its_code_and_what_it_knows() -> None:
    error = ConnectionLost("s", 1011, "broken")
    assert (error.code, error.reason) == (1011, "broken")
    assert (ConnectionLost("s").code, ConnectionLost("s").reason) == (1006, "")
    assert isinstance(Replaced("s"), ConnectionLost)
