"""Every page's code runs, and the commands and names on pages are there.

A page with a test module of its own (one that reads it, and counts its blocks) is run by that. All others are
run here, each in a process of its own, by `pages.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llm_sessions
from llm_sessions.cli.main import main
from llm_sessions.protocol.events import STATE_EVENTS
from llm_sessions.testing.server import LocalServer
from tests import pages
from tests.documents import ROOT, blocks, languages, read, table_rows
from tests.support import LONG, Background

# Others are not run, so they are no languages that a page may have code in.
KNOWN = {"python", "console", "text", "mermaid", "promql", ""}  # promql: `test_monitoring_docs.py`


def markdown() -> list[str]:
    """Return the pages, by their paths in the project."""
    found = (path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *sorted(path for path in found if "/_build/" not in path)]


def claims(page: str, modules: dict[str, str]) -> list[str]:
    """Return the test modules that read a page and count its blocks, so that none is left out."""
    return [
        name
        for name, source in modules.items()
        if f'read("{page}")' in source and re.search(r"languages\(|len\(BLOCKS\)", source)
    ]


OTHERS = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "tests").glob("test_*.py")
    if path.name != Path(__file__).name
}
FRONT = "docs/index.md"  # it waits for a real meeting's end: it has a test of its own below
OURS = [page for page in markdown() if page != FRONT and blocks(read(page)) and not claims(page, OTHERS)]


# How a page is run


def test_a_page_whose_code_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    page = tmp_path / "page.md"
    page.write_text(
        "```python\n# own_module.py\nprint(6 * 7)\n```\n"
        "```console\n$ pip install something\n$ python own_module.py  # and a comment\n42\n```\n"
        "```python\nanswer = 6 * 7\nprint('a number:', answer)\n```\n```text\na number: …\n```\n"
        "```python\nassert answer == 42\n```\n"
    )
    assert pages.complaints(page) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```python\nprint(1)\n```\n```text\n2\n```\n", "page.md:5: it prints\n1\nand not\n2\n"),
        ("```python\nprint(1)\n```\n```python\n```\n", "page.md:5: the block before prints\n1\n"),
        ("```python\nprint(1)\n```\n", "page.md: its last block prints\n1\n"),
        ("```text\n1\n```\n", "page.md:2: it prints\nand not\n1\n"),
        (
            "```python\n# own_one.py\nprint(1)\n```\n```console\n$ python own_one.py\n2\n```\n",
            "with 0\n1",
        ),
        ("```python\n# own_two.py\nexit(3)\n```\n```console\n$ python own_two.py\n```\n", "ends with 3"),
    ],
)
def test_a_page_that_says_what_is_not_so(
    text: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    page = tmp_path / "page.md"
    page.write_text(text)
    [found] = pages.complaints(page)
    assert complaint in found


def test_an_ellipsis_stays_within_its_line() -> None:
    assert pages.matches("a … c\nd", "a b c\nd\n")
    assert not pages.matches("a …", "a b\nc")
    assert not pages.matches("a.c", "abc")


def test_a_module_that_reads_a_page_and_counts_its_blocks_claims_it() -> None:
    counting = 'PAGE = read("docs/a.md")\nassert languages(PAGE) == []'
    modules = {"test_a.py": counting, "test_b.py": 'read("docs/a.md")'}
    assert claims("docs/a.md", modules) == ["test_a.py"]
    assert claims("docs/b.md", modules) == []


# The pages


@pytest.mark.parametrize("page", OURS)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WEBEX_")}
    environment["PYTHONPATH"] = str(ROOT)
    # From 3.12 on a fork with threads is warned of; that the library can be forked is what the page shows.
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *warnings, str(ROOT / "tests" / "pages.py"), str(ROOT / page)],
        capture_output=True,
        text=True,
        timeout=3 * LONG,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_there_are_pages_to_run() -> None:
    assert {"docs/tutorial.md", "docs/how-to/tokens.md", "docs/explanation/delivery.md"} <= set(OURS)


@pytest.mark.parametrize("page", markdown())
def test_a_page_has_no_code_that_nobody_would_run(page: str) -> None:
    directives = {language for language in languages(read(page)) if language.startswith("{")}
    assert set(languages(read(page))) - directives <= KNOWN
    assert not {name for name in directives if name.startswith(("{code", "{literal"))}


def test_the_front_page() -> None:
    index = read(FRONT)
    code = [language for language in languages(index) if not language.startswith("{")]
    assert code == ["python", "console"]
    printed = io.StringIO()

    def run() -> None:
        with contextlib.redirect_stdout(printed):
            exec(compile(blocks(index)[0], "index.md", "exec"), {"__name__": "page"})

    with LocalServer() as server, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("WEBEX_TOKEN", "token")
        monkeypatch.setenv("WEBEX_URL", server.url("main"))
        running = Background(run)
        [connection] = server.wait_live("main")
        server.wait_for(lambda: len(connection.acks) >= 2)  # ready, pong: by then it listens, or soon
        while not printed.getvalue():
            count = len(connection.acks)
            server.publish({"text": "hello"}, session="main")
            server.wait_for(lambda: len(connection.acks) > count)  # noqa: B023  # waited for at once
        server.close_session("main", code=1000, reason="the meeting is over")
        running.result()
    assert set(printed.getvalue().splitlines()) == {"{'eventType': 'relay.event', 'text': 'hello'}"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_the_files_for_gunicorn_in_workers_forked_after_a_preload(tmp_path: Path) -> None:
    """What gunicorn does with `preload_app`: import in the master, fork, call the hooks in each worker."""
    for block in blocks(read("docs/how-to/processes.md")):
        file = pages.FILE.match(block)
        if file is not None:
            (tmp_path / file[1]).write_text(block)
    master = """
        import importlib.util, os, sys
        sys.path.insert(0, "")
        spec = importlib.util.spec_from_file_location("settings", "gunicorn.conf.py")
        settings = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(settings)
        import captions
        assert settings.preload_app and settings.post_fork and settings.worker_exit
        if sys.argv[1] == "connected":  # by mistake
            captions.start()
            captions._pool.wait_online(timeout=20)
        workers = []
        for _ in range(settings.workers):
            pid = os.fork()
            if pid == 0:
                settings.post_fork(None, None)
                captions._pool.wait_online(timeout=20)
                settings.worker_exit(None, None)
                os._exit(0 if captions._pool is None else 1)
            workers.append(pid)
        print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers])
        captions.stop()
    """
    script = tmp_path / "master.py"
    script.write_text("\n".join(line.removeprefix(" " * 8) for line in master.splitlines()))
    for master_is, sockets in (("idle", 2), ("connected", 3)):
        with LocalServer() as server:
            done = subprocess.run(
                [sys.executable, "-W", "ignore::DeprecationWarning", script.name, master_is],
                capture_output=True,
                text=True,
                timeout=3 * LONG,
                cwd=tmp_path,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "WEBEX_TOKEN": "token",
                    "WEBEX_URL": server.url("main"),
                },
                check=False,
            )
            assert (done.stdout, done.stderr) == ("[0, 0]\n", "")
            server.wait_for(lambda server=server: not server.live())  # type: ignore[misc]
            assert [one.close_code for one in server.connections("main")] == [1000] * sockets


# Commands and names


def all_commands() -> list[tuple[str, str]]:
    return [
        (page, command)
        for page in markdown()
        for block in blocks(read(page), "console")
        for command, _ in pages.commands(block)
    ]


def test_the_commands_on_pages_are_there() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)
    assert targets is not None
    extras = re.search(r"extras_require=\{(.*?)\n    \}", read("setup.py"), re.DOTALL)
    assert extras is not None
    found = all_commands()
    assert len(found) > 10
    for page, command in found:
        for target in re.findall(r"(?:^|&& )make (\w+)", command):
            assert target in targets[1].split(), (page, command)
        for names in re.findall(r"llm-sessions\[([\w,]+)\]", command):
            assert set(names.split(",")) <= set(re.findall(r'"(\w+)": ', extras[1])), (page, command)
        for name in re.findall(r"(?:^|\s)llm-sessions (\w+)", command):
            with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
                main([name, "--help"])
            assert ended.value.code == 0, (page, command)
        for name in re.findall(r"^python ([\w/]+\.py)", command):
            made = [file[1] for block in blocks(read(page)) if (file := pages.FILE.match(block))]
            assert name in made or (ROOT / name).exists(), (page, command)


def there_is(name: str) -> bool:
    """Say whether a public name exists: a class's attribute may be a field, or told of in its docstring."""
    first, _, attribute = name.partition(".")
    if first not in llm_sessions.__all__:
        return False
    owner = getattr(llm_sessions, first)
    fields = getattr(owner, "__dataclass_fields__", {})
    said = re.search(rf"^ +{attribute}: ", owner.__doc__ or "", re.MULTILINE)
    return not attribute or hasattr(owner, attribute) or attribute in fields or said is not None


def test_names_that_are_not_there_are_found() -> None:
    assert there_is("Meeting") and there_is("Session.send") and there_is("SessionStats.latency")
    assert there_is("Meeting.captions") and not there_is("Meeting.caption")
    assert not there_is("Session.emit") and not there_is("Mercury") and not there_is("CaptionService")


# What somebody who comes from the JavaScript SDK 3.12 knows: public names of its plugins, and events.
JS_NAMES = """
connect disconnect disconnectAll listen stopListening logout connected connecting listening
hasEverConnected socket sockets getSocket getSockets hasConnectedSockets hasConnectingSockets
getLastError lastError mercuryTimeOffset localClusterServiceUrls registerAndConnect isConnected
getBinding getLocusUrl getDatachannelUrl getAllConnections getDatachannelToken setDatachannelToken
setRefreshHandler refreshDataChannelToken disconnectLLM disconnectAllLLM isDataChannelTokenEnabled
buildUrlWithAwareSubchannels dataChannelTokenType announce turnOnCaptions requestLanguage
setSpokenLanguage toggleTranscribing toggleManualCaption sendManualClosedCaption getCaptionStatus
getAnnounceStatus getIsCaptionBoxOn updateSubchannelSubscriptions
updateSubchannelSubscriptionsAndSyncCaptionState deregisterEvents onSpokenLanguageUpdate
onCaptionServiceIdUpdate updateLLMConnection startTranscription stopTranscription setCaptionLanguage
getDataChannelTokenType sendReaction toggleReactions updatePSDataChannel cleanupPSDataChannel
isJoinPracticeSessionDataChannel setPracticeSessionState updateRoleChanged
updatePracticeSessionStatus enableAutomaticLLM pingInterval pongTimeout backoffTimeMax
backoffTimeReset forceCloseDelay maxRetries initialConnectionMaxRetries
beforeLogoutOptionsCloseReason defaultMercuryOptions BadRequest ConnectionError Forbidden
NotAuthorized UnknownResponse voicea:announcement voicea:captionLanguageUpdate
voicea:spokenLanguageUpdate voicea:captionOn voicea:transcribingOn voicea:transcribingOff
voicea:newCaption voicea:wxa voicea:highlightCreated voicea:languageDetected
aibridge:newManualCaption meeting:caption-received meeting:receiveTranscription:started
meeting:receiveTranscription:stopped meeting:transcription:connected
meeting:transcription:spokenLanguageUpdate meeting:manualCaptionControl:updated
meeting:receiveReactions meeting:self:lobbyWaiting meeting:self:guestAdmitted
meeting:controls:practice-session-status:updated event:relay.event event:locus.state_message
event:breakout.message
"""


def test_the_page_on_the_js_sdk_has_what_its_users_look_for() -> None:
    text = re.sub(r"(?s)```.*?```", "", read("docs/how-to/from-js.md"))
    code = " ".join(found for _, found in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", text))
    words = set(re.findall(r"[\w:.-]+", code)) | set(re.findall(r"\w+", code))
    assert [name for name in [*JS_NAMES.split(), *STATE_EVENTS] if name not in words] == []


def test_the_python_names_of_the_page_on_the_js_sdk_are_there() -> None:
    rows = table_rows(read("docs/how-to/from-js.md"))
    assert len(rows) > 110
    for row in rows:
        theirs, ours, _ = row
        names = re.findall(r"`([^`]+)`", ours)
        assert theirs and names, row
        assert [name for name in names if not there_is(name)] == [], row


def test_the_events_of_the_page_on_reconnects_are_all_of_them() -> None:
    rows = table_rows(read("docs/how-to/reconnects.md"))
    assert {row[0].strip("`") for row in rows} == STATE_EVENTS
    assert all(there_is(row[1].strip("`")) for row in rows)


def test_what_the_new_pages_say_of_settings() -> None:
    config = llm_sessions.PoolConfig()
    assert (config.backoff_initial, config.backoff_max, config.max_retries) == (1.0, 32.0, None)
    assert "waits of 1, 2, 4 … 32, 32 … seconds" in read("docs/how-to/reconnects.md")
    assert config.when_full == "block" and "**`block`**, the default" in read("docs/explanation/delivery.md")


def test_the_changelog_has_what_users_can_see() -> None:
    """Until there is a release: after that, what was new in one is in its section."""
    text = read("CHANGELOG.md")
    for name in (*llm_sessions.__all__, *llm_sessions.PoolConfig.__dataclass_fields__):
        assert re.search(rf"(?<!\w){name}(?!\w)", text), name
    for extra in ("speed", "socks", "cli", "prometheus", "testing", "examples", "docs"):
        assert f'"{extra}": ' in read("setup.py") and f"`{extra}`" in text
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+) ", said.getvalue(), re.MULTILINE)
    assert len(commands) >= 3
    assert [name for name in commands if f"`llm-sessions {name}`" not in text] == []
