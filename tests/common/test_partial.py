"""A folder is there whole or not at all, whatever stops its writing, and writing it goes on."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jaxllada.common import partial
from jaxllada.common.durable import DurableFiles
from jaxllada.common.errors import UserError
from jaxllada.common.partial import JOURNAL, fingerprint, partial_folder

ROOT = Path(__file__).parents[2]
ABOUT = {"source": "a", "dtype": None}


def fill(path, *, about=ABOUT, name="one", error=None, **settings):
    with partial_folder(path, about, needed=10, **settings) as work:
        there = sorted(file.name for file in work.iterdir() if file.name != JOURNAL)
        (work / name).write_text(name)
        if error:
            raise error
    return there


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_with_the_end_of_the_block(tmp_path):
    with partial_folder(tmp_path / "new" / "out", ABOUT, needed=1) as work:
        (work / "file").write_text("x")
        assert names(tmp_path / "new") == [".out.partial"]
    assert names(tmp_path / "new") == ["out"]
    assert names(tmp_path / "new" / "out") == ["file"]


@pytest.mark.parametrize("error", [OSError(28, os.strerror(28)), KeyboardInterrupt()])
def test_what_was_finished_is_there_at_the_next_attempt(tmp_path, capsys, error):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
        fill(out, error=error)
    assert "kept in" in capsys.readouterr().err or isinstance(error, OSError)
    assert names(tmp_path) == [".out.partial"]
    assert fill(out, name="two") == ["one"]
    assert "resuming" in capsys.readouterr().err
    assert names(out) == ["one", "two"]


def test_another_source_starts_anew(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError):
        fill(out, error=OSError(5, "Input/output error"))
    assert fill(out, about={**ABOUT, "dtype": "float16"}, name="two") == []
    assert names(out) == ["two"]


def test_wrong_input_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="shape"):
        fill(tmp_path / "out", error=UserError("w has another shape"))
    assert names(tmp_path) == []


def test_what_is_there_is_replaced_only_on_request_and_at_the_end(tmp_path):
    out = tmp_path / "out"
    fill(out)
    with pytest.raises(UserError, match="exists and is not empty; choose another name or add"):
        fill(out, name="two")
    with pytest.raises(UserError, match="the disk is full.*the same command goes on from there"):
        fill(out, name="two", overwrite=True, error=OSError(28, os.strerror(28)))
    assert names(out) == ["one"]
    fill(out, name="two", overwrite=True)
    assert names(out) == ["two"]
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_may_be_filled_and_a_file_may_not(tmp_path):
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert names(tmp_path / "out") == ["one"]
    with pytest.raises(UserError, match="is a file"):
        fill(tmp_path / "out" / "one")


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fill(tmp_path / "link")
    assert names(tmp_path / "real") == ["one"]
    assert (tmp_path / "link").is_symlink()


def test_too_little_room_is_told_before_anything_is_written(tmp_path):
    told = r"needs .* GB more, but its disk has .* GB free"
    with pytest.raises(UserError, match=told), partial_folder(tmp_path / "out", {}, needed=10**18):
        raise AssertionError("must not be entered")
    assert names(tmp_path) == []


def test_one_process_writes_at_a_time(tmp_path):
    with partial_folder(tmp_path / "out", ABOUT, needed=1) as work:
        with pytest.raises(UserError, match="another process is writing it"):
            fill(tmp_path / "out")
        assert work.is_dir()
    fill(tmp_path / "out", overwrite=True)


def test_no_permission_is_one_clear_error(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may write everywhere
        with pytest.raises(UserError, match="permission denied"):
            fill(tmp_path / "closed" / "out")
    finally:
        os.seteuid(user)
    assert names(tmp_path / "closed") == []


def test_a_refused_write_is_one_clear_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(partial, "write_atomically", refuse)
    with pytest.raises(UserError, match=f"permission denied .{tmp_path}.$"):
        fill(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    out = tmp_path / "out"
    fill(out)
    rename = os.rename

    def killed(a, b):
        if Path(b) == out:
            raise KeyboardInterrupt
        rename(a, b)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(out, name="two", overwrite=True)
    monkeypatch.undo()
    assert not out.exists()
    with pytest.raises(UserError, match="exists and is not empty"):
        fill(out, name="two")
    assert names(out) == ["one"]
    assert fill(out, name="three", overwrite=True) == ["two"]
    assert names(out) == ["three", "two"]
    assert names(tmp_path) == ["out"]


def test_a_killed_process_leaves_no_folder(tmp_path):
    program = """
        import os, sys
        from pathlib import Path
        from jaxllada.common.partial import partial_folder
        with partial_folder(Path(sys.argv[1]), {"source": "a", "dtype": None}, needed=1) as work:
            (work / "one").write_text("one")
            os.kill(os.getpid(), 9)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path / "out"], cwd=ROOT
    )
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".out.partial"]
    assert fill(tmp_path / "out", name="two") == ["one"]


def test_a_fingerprint_changes_with_every_file(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    files = {name: tmp_path / name for name in "ab"}
    first = fingerprint(files)
    assert fingerprint(dict(reversed(files.items()))) == first
    (tmp_path / "a").write_text("aa")
    assert fingerprint(files) != first
    assert fingerprint({"c": tmp_path / "b"}) != fingerprint({"b": tmp_path / "b"})


def write(folder, *names):
    with DurableFiles() as files:
        for name in names:
            with files.create(folder / name) as append:
                append(b"abc")
                if name == "torn":
                    raise RuntimeError


def test_a_file_has_its_name_only_when_it_is_complete(tmp_path):
    with pytest.raises(RuntimeError):
        write(tmp_path, "whole", "torn")
    assert names(tmp_path) == ["whole"]
    told = []
    with DurableFiles(told.append) as files:
        for number in range(20):
            with files.create(tmp_path / str(number)) as append:
                append(bytes([number]) * 1000)
                append(memoryview(b"end"))
    assert sum(told) == 20 * 1003
    assert (tmp_path / "7").read_bytes() == bytes([7]) * 1000 + b"end"


def test_nothing_gets_its_name_once_the_disk_has_failed(tmp_path, monkeypatch):
    """The system tells of a failed write only once, so later syncs prove nothing."""
    failures = [OSError(5, "Input/output error")]

    def fail_once(_):
        if failures:
            raise failures.pop()

    monkeypatch.setattr(os, "fsync", fail_once)
    monkeypatch.setattr("jaxllada.common.durable._SYNC", 2)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path, "first", "second")
    assert not {"first", "second"} & set(names(tmp_path))
