"""What is read from a join response and from later loci, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_sessions import ConfigurationError
from llm_sessions.meetings.locus import Joined, JoinResponse, Locus, read_join, read_locus, tokens_in
from llm_sessions.meetings.rules import Role
from llm_sessions.session_ids import LLM_DEFAULT_SESSION, LLM_PRACTICE_SESSION

URL = "https://locus.example/meeting"
FULL: JoinResponse = {
    "locus": {
        "url": URL,
        "info": {
            "datachannelUrl": "https://dc.example/default",
            "practiceSessionDatachannelUrl": "https://dc.example/practice",
        },
        "self": {
            "id": "me",
            "datachannelToken": "secret-1",
            "practiceSessionDatachannelToken": "secret-2",
            "controls": {
                "role": {
                    "roles": [
                        {"type": "PANELIST", "hasRole": True},
                        {"type": "ATTENDEE", "hasRole": False},
                        {"type": "cohost", "hasRole": True},
                        {"type": "PRESENTER", "hasRole": True},
                    ]
                }
            },
        },
        "controls": {"practiceSession": {"enabled": True}},
    }
}
JOINED = Joined(
    locus_url=URL,
    datachannel_url="https://dc.example/default",
    practice_url="https://dc.example/practice",
    participant_id="me",
    practice_enabled=True,
    roles=frozenset({Role.PANELIST, Role.COHOST}),
)
# Each thing that a locus can say: how, and what comes of it.
SAYINGS: dict[str, tuple[Locus, object]] = {
    "datachannel_url": ({"info": {"datachannelUrl": "https://dc.example/new"}}, "https://dc.example/new"),
    "practice_url": (
        {"info": {"practiceSessionDatachannelUrl": "https://dc.example/p"}},
        "https://dc.example/p",
    ),
    "participant_id": ({"self": {"id": "other"}}, "other"),
    "practice_enabled": ({"controls": {"practiceSession": {"enabled": False}}}, False),
    "roles": (
        {"self": {"controls": {"role": {"roles": [{"type": "ATTENDEE", "hasRole": True}]}}}},
        frozenset({Role.ATTENDEE}),
    ),
}
PATHS = (
    *("locus", "locus.url", "locus.info", "locus.info.datachannelUrl"),
    *(
        "locus.info.practiceSessionDatachannelUrl",
        "locus.self",
        "locus.self.id",
        "locus.self.datachannelToken",
    ),
    *("locus.self.practiceSessionDatachannelToken", "locus.self.controls", "locus.self.controls.role"),
    *("locus.self.controls.role.roles", "locus.controls", "locus.controls.practiceSession"),
    "locus.controls.practiceSession.enabled",
)


def changed(path: str, value: object) -> dict[str, Any]:
    """The full join response with another value at a path."""
    response: dict[str, Any] = copy.deepcopy(dict(FULL))
    *above, last = path.split(".")
    place = response
    for name in above:
        place = place[name]
    place[last] = value
    return response


def test_everything_that_a_join_response_says_is_read() -> None:
    before = copy.deepcopy(FULL)
    assert read_join(FULL) == JOINED
    assert before == FULL


def test_in_the_lobby_there_is_only_the_url() -> None:
    assert read_join({"locus": {"url": URL, "self": {"id": "me"}}}) == Joined(URL, participant_id="me")


def test_t11_tokens_are_not_in_the_repr() -> None:
    assert "secret" not in repr(JOINED) and "dc.example" in repr(JOINED)


@pytest.mark.parametrize("name", SAYINGS)
def test_i57_a_locus_replaces_what_it_carries_and_nothing_else(name: str) -> None:
    locus, value = SAYINGS[name]
    assert set(SAYINGS) | {"locus_url"} == {field.name for field in dataclasses.fields(Joined)}
    assert read_locus(JOINED, locus) == dataclasses.replace(JOINED, **{name: value})
    assert read_locus(JOINED, {"url": URL, **locus}) == dataclasses.replace(JOINED, **{name: value})
    assert read_locus(Joined(URL), locus) == dataclasses.replace(Joined(URL), **{name: value})


@pytest.mark.invariant("I57")
@pytest.mark.invariant("I65")
@pytest.mark.parametrize("nothing", [None, "", "absent"])
@pytest.mark.parametrize("path", [path for path in PATHS if path not in ("locus", "locus.url")])
def test_i65_a_locus_that_lacks_something_changes_nothing(path: str, nothing: str | None) -> None:
    if nothing == "" and not path.endswith(("Url", "Token", "id")):
        nothing = None  # only a string can be an empty one
    locus = changed(path, nothing)["locus"]
    if nothing == "absent":
        *above, last = path.split(".")[1:]
        place = locus
        for name in above:
            place = place[name]
        del place[last]
    assert read_locus(JOINED, locus) == JOINED


def test_an_update_may_say_nothing_at_all() -> None:
    assert read_locus(JOINED, {}) == JOINED == read_locus(JOINED, {"url": URL})


def test_roles_are_those_one_has_and_none_is_not_unknown() -> None:
    for roles in ([], [{"type": "PANELIST", "hasRole": False}], [{"type": "PANELIST"}], [{"hasRole": True}]):
        locus = {"self": {"controls": {"role": {"roles": roles}}}}
        assert read_locus(JOINED, locus).roles == frozenset()
    assert read_locus(Joined(URL), {"self": {}}).roles is None


@pytest.mark.parametrize("other", [f"{URL}/", f"{URL}2", "x"])
def test_another_meetings_locus_is_refused(other: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^locus\.url: is another meeting's"):
        read_locus(JOINED, {**FULL["locus"], "url": other})


@pytest.mark.parametrize("response", [{}, {"locus": None}, {"locus": {}}, changed("locus.url", "")])
def test_a_join_response_needs_the_url_of_its_locus(response: Mapping[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="locus with its url"):
        read_join(response)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [3, 0, ["secret-9"], b"secret-9", 1.5], ids=repr)
def test_a_wrong_type_is_refused_by_its_path(path: str, value: object) -> None:
    if path.endswith("roles") and isinstance(value, list):
        value = {"x": "secret-9"}  # there a list is right
    with pytest.raises(ConfigurationError) as caught:
        read_join(changed(path, value))
    assert caught.value.argument == f"join_response.{path}"
    assert "secret" not in str(caught.value)
    if path != "locus":
        with pytest.raises(ConfigurationError) as caught:
            read_locus(JOINED, changed(path, value)["locus"])
        assert caught.value.argument == path
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "argument"),
    [
        ("PANELIST", "locus.self.controls.role.roles[1]"),
        ({"type": 3, "hasRole": True}, "locus.self.controls.role.roles[1].type"),
        ({"type": "PANELIST", "hasRole": "yes"}, "locus.self.controls.role.roles[1].hasRole"),
    ],
)
def test_a_wrong_role_is_refused_by_its_place(entry: object, argument: str) -> None:
    locus = {"self": {"controls": {"role": {"roles": [{"type": "COHOST", "hasRole": True}, entry]}}}}
    with pytest.raises(ConfigurationError) as caught:
        read_locus(JOINED, locus)
    assert caught.value.argument == argument


@pytest.mark.parametrize("value", [None, "x", 3, ["locus"]])
def test_what_is_no_object_is_refused(value: Any) -> None:
    for read in (read_join, lambda value: read_locus(JOINED, value), tokens_in):
        with pytest.raises(ConfigurationError, match="must be an object"):
            read(value)


def test_i57_the_tokens_of_a_locus_are_those_it_carries_itself() -> None:
    assert tokens_in(FULL["locus"]) == {LLM_DEFAULT_SESSION: "secret-1", LLM_PRACTICE_SESSION: "secret-2"}
    assert tokens_in({"self": {"practiceSessionDatachannelToken": "new"}}) == {LLM_PRACTICE_SESSION: "new"}
    assert tokens_in({"url": URL}) == tokens_in({"self": {"datachannelToken": ""}}) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*{name for path in PATHS for name in path.split(".")}, "type", "hasRole"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_anything_is_read_or_refused(value: Any) -> None:
    for read in (read_join, lambda value: read_locus(JOINED, value)):
        try:
            joined = read(value)
        except ConfigurationError:
            continue
        assert isinstance(joined, Joined) and joined.locus_url
        for text in (joined.datachannel_url, joined.practice_url):
            assert text is None or (isinstance(text, str) and text)
