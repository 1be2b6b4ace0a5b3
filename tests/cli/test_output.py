"""Writing: standard output that may break, and a file that holds whole lines only."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from llm_sessions.cli.lines import Line
from llm_sessions.cli.output import ClosedPipe, Plain, SaveFile, Unwritable, say, write_out
from llm_sessions.cli.statuses import UsageError

LINE = Line("main", "event:relay.event", 1_700_000_000.0, {"text": "grün"})


def saved(path: Path) -> list[Any]:
    return [json.loads(line)["data"] for line in path.read_text(encoding="utf-8").splitlines()]


# standard output


@pytest.fixture
def broken() -> Iterator[TextIO]:
    """A pipe that nobody reads."""
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w", encoding="utf-8") as stream:
        yield stream


def test_lines_are_flushed_and_notes_go_elsewhere() -> None:
    reads, writes = os.pipe()
    notes = io.StringIO()
    with open(reads, encoding="utf-8") as there, open(writes, "w", encoding="utf-8") as stream:
        plain = Plain(stream, notes, json=True)
        plain.write(LINE)
        assert "grün" in there.readline()
        plain.note("something")
        plain.refresh()
        plain.close()
        plain.write(LINE)
        assert json.loads(there.readline())["data"] == {"text": "grün"}
    assert notes.getvalue() == "something\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_can_write_every_line(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    data = {"text": "grün 日本 😀 \ud800"}
    Plain(stream, stream, json=True).write(Line("main", "event", 0.0, data))
    Plain(stream, stream).write(Line("main", "event", 0.0, data))
    first, second = raw.getvalue().decode(encoding).splitlines()
    assert json.loads(first)["data"] == data
    assert ("grün" in second) is (encoding != "ascii")


def test_a_reader_that_is_gone_is_told_once_and_leaves_nothing_to_complain_of(broken: TextIO) -> None:
    with pytest.raises(ClosedPipe):
        write_out(broken, "hello\n")
    write_out(broken, "into nothing\n")
    broken.flush()


def test_an_output_that_is_full() -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream:
        with pytest.raises(Unwritable, match="cannot write the output: No space left on device"):
            write_out(stream, "hello\n")
        stream.flush()


def test_what_is_only_said_never_fails(broken: TextIO) -> None:
    say(broken, "hello")
    Plain(broken, broken).note("hello")


# the file


def test_what_is_saved_is_appended_at_once_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for _ in range(2):
        with SaveFile(path) as file:
            file.write(LINE)
            assert saved(path)[-1] == {"text": "grün"}
    assert len(saved(path)) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_there_keeps_its_mode_and_its_last_line_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"data": "half a line"}')
    path.chmod(0o640)
    with SaveFile(path) as file:
        file.write(LINE)
    assert saved(path) == ["half a line", {"text": "grün"}]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with SaveFile(path), pytest.raises(UsageError, match="another process does"):
        SaveFile(path)
    SaveFile(path).close()


@pytest.mark.parametrize("where", ["none/lines.jsonl", "."])
def test_a_file_that_cannot_be_opened(tmp_path: Path, where: str) -> None:
    with pytest.raises(UsageError, match=r"cannot save to .*: (No such file|Is a directory)"):
        SaveFile(tmp_path / where)


def test_a_file_that_cannot_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "lines.jsonl"
    path.write_text("x")
    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(UsageError, match="Input/output error"):
        SaveFile(path)


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SaveFile(path) as file:
        file.write(LINE)
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, most))  # 10 bytes of the next line fit
        try:
            with pytest.raises(Unwritable, match=r"cannot save to .*lines.jsonl: File too large"):
                file.write(LINE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert path.stat().st_size == size
        file.write(LINE)
    assert saved(path) == [{"text": "grün"}] * 2


def test_a_full_device() -> None:
    with SaveFile(Path("/dev/full")) as file, pytest.raises(Unwritable, match="No space left on device"):
        file.write(LINE)


def test_what_is_said_only_at_the_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SaveFile(tmp_path / "lines.jsonl")
    close = os.close

    def fails(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fails)
        with pytest.raises(Unwritable, match="cannot save to"):
            file.close()
