"""The verb `convert` stopped anywhere: nothing half done appears, nothing finished is lost."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jaxllada.__main__ import main
from tests.commands.converted import TINY, convert, names, tensors, write_model

ROOT = Path(__file__).parents[2]


# Runs a conversion in a forked process that is killed at its n-th write, for every n; then checks
# that nothing is there, and goes on. Prints how many writes there were.
KILLED = """
    import os, signal, sys
    from pathlib import Path
    from jaxllada.__main__ import main
    from jaxllada import orbax_files, orbax_source, stream
    from jaxllada.common.weights import export
    from jaxllada.common.errors import UserError
    from jaxllada.common.weights.opening import open_folder

    source, target, *arguments = sys.argv[1:]
    orbax_files._SMALL = 0
    target = Path(target)
    work = target.with_name(f".{target.name}.partial")

    def accepted(folder):
        for opened in (open_folder, orbax_source.OrbaxSource):
            try:
                return opened(folder)
            except UserError:
                pass

    def attempt(kill_at):
        child = os.fork()
        if child == 0:
            write, replace, count = os.write, os.replace, 0
            def dying(call):
                def wrapped(*arguments):
                    nonlocal count
                    count += 1
                    if count == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*arguments)
                return wrapped
            os.write, os.replace = dying(os.write), dying(os.replace)
            sys.stdout = sys.stderr = open(os.devnull, "w")
            os._exit(main(["convert", *arguments, source, str(target)]))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def weights(folder):
        # A name that appears is final: its inode must survive the next attempt.
        files = (*folder.rglob("c.*"), *folder.glob("*.safetensors"))
        return {file: file.stat().st_ino for file in files}

    number, kills, kept = 1, 0, {}
    while True:
        code = attempt(number)
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        kills += 1
        assert not target.exists()
        assert accepted(work) is None, sorted(work.rglob("*"))
        now = weights(work)
        assert kept.items() <= now.items()
        kept = now
        number += 1
    assert not work.exists()
    assert accepted(target)
    print(kills)
"""


@pytest.mark.parametrize("direction", ["hf-to-flax", "flax-to-hf"])
def test_a_kill_at_any_write_leaves_nothing_and_loses_nothing(hf, tmp_path, direction):
    convert("hf-to-flax", hf, tmp_path / "flax")
    source = hf if direction == "hf-to-flax" else tmp_path / "flax"
    flags = [] if direction == "hf-to-flax" else ["--shard_size", "20KB"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), source, tmp_path / "out", direction,
         *flags],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 6  # it was killed, and went on, that often
    if direction == "flax-to-hf":
        assert tensors(tmp_path / "out") == tensors(hf)
    else:
        convert("flax-to-hf", tmp_path / "out", tmp_path / "back")
        assert tensors(tmp_path / "back") == tensors(hf)


def fail_after(monkeypatch, count):
    write, calls = os.write, []

    def limited(handle, data):
        calls.append(handle)
        if len(calls) > count:
            raise OSError(28, os.strerror(28))
        return write(handle, data)

    monkeypatch.setattr(os, "write", limited)


@pytest.mark.parametrize("direction", ["hf-to-flax", "flax-to-hf"])
def test_a_full_disk_is_one_clear_error_and_the_rest_is_resumed(
    hf, tmp_path, capsys, monkeypatch, direction
):
    convert("hf-to-flax", hf, tmp_path / "flax")
    source = hf if direction == "hf-to-flax" else tmp_path / "flax"
    arguments = ["convert", direction, str(source), str(tmp_path / "out")]
    flags = [] if direction == "hf-to-flax" else ["--shard_size", "20KB"]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        fail_after(patch, 8)
        assert main([*arguments, *flags]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "out: the disk is full; what is finished is kept in" in told[0]
    assert not (tmp_path / "out").exists()
    assert main([*arguments, *flags]) == 0
    assert "resuming from" in capsys.readouterr().err
    assert names(tmp_path) == ["flax", "hf", "out"]


def test_another_source_or_setting_is_not_mixed_into_what_was_begun(
    hf, tmp_path, capsys, monkeypatch
):
    for change in ("touched", "dtype"):
        with monkeypatch.context() as patch:
            fail_after(patch, 6)
            assert main(["convert", "hf-to-flax", str(hf), str(tmp_path / "out")]) == 2
        if change == "touched":
            os.utime(next(hf.glob("*.safetensors")))
        flags = ["--dtype", "float16"] if change == "dtype" else []
        capsys.readouterr()
        convert("hf-to-flax", hf, tmp_path / "out", *flags)
        assert "resuming" not in capsys.readouterr().err
        shutil.rmtree(tmp_path / "out")


MEASURED = """
    import sys
    from jaxllada.commands.bench_convert import work
    work(*sys.argv[1:])
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """200 MB of weights pass through a process that never holds more than a few pieces."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is known on Linux only")
    width = 1024
    config = dataclasses.replace(
        TINY, d_model=width, n_heads=8, n_kv_heads=8, n_layers=10, mlp_hidden_size=2 * width
    )
    source = write_model(tmp_path / "hf", config, dtype="bfloat16", shard_bytes=10**8)
    assert sum(file.stat().st_size for file in source.glob("*.safetensors")) > 200e6
    for direction, begin, end in (
        ("hf-to-flax", source, tmp_path / "flax"), ("flax-to-hf", tmp_path / "flax", tmp_path / "b")
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(MEASURED), direction, begin, end],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peak = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]
        # Two of the largest tensors (4 MB) and what Python and tensorstore need beside.
        assert peak < 48e6, direction
    assert tensors(tmp_path / "b") == tensors(source)
