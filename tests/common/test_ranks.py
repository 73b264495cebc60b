"""Who answers which part of an evaluation, and what the one that scores hears of the others."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from jaxllada.apps.evaluation.presence import PartFailed, Presence
from jaxllada.apps.evaluation.ranks import Part, part_of
from jaxllada.common.errors import UserError

ROOT = Path(__file__).parents[2]
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}
SRUN = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("", {}, Part()),
        ("", TORCHRUN, Part(2, 4, is_together=True)),
        ("auto", TORCHRUN, Part(2, 4, is_together=True)),
        ("auto", SRUN, Part(3, 8, is_together=True)),
        # A shell inside an allocation has SLURM's variables without being one of several.
        ("", SRUN, Part()),
        ("auto", TORCHRUN | SRUN, Part(2, 4, is_together=True)),
        ("1/3", SRUN, Part(1, 3)),
        ("0/2", {"RANK": "0", "WORLD_SIZE": "1"}, Part(0, 2)),
        ("", {"RANK": "0", "WORLD_SIZE": "1"}, Part(0, 1, is_together=True)),
    ],
)
def test_a_part_is_what_the_key_or_the_launcher_says(text, environment, expected):
    assert part_of(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "told"),
    [
        ("4/4", {}, "part=4/4: expected i/n, i from 0 to n-1"),
        ("1", {}, "part=1: expected i/n"),
        ("-1/4", {}, "part=-1/4: expected i/n"),
        ("auto", {}, "part=auto: this process was started by none of torchrun, srun and mpirun"),
        ("1/4", TORCHRUN, "part=1/4: torchrun numbers this process RANK=2 of WORLD_SIZE=4"),
        ("", {"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 WORLD_SIZE=4: expected whole numbers"),
    ],
)
def test_a_part_that_does_not_exist_is_refused(text, environment, told):
    with pytest.raises(UserError, match=told):
        part_of(text, environment)


def test_every_group_belongs_to_one_part_and_one_process_scores():
    for count in range(1, 6):
        parts = [Part(i, count, is_together=True) for i in range(count)]
        owners = Counter(part.index for n in range(17) for part in parts if part.owns(n))
        assert sum(owners.values()) == 17
        assert max(owners.values()) - min(owners.values()) <= 1
        assert [part.scores for part in parts].count(True) == 1
    assert not any(Part(i, 2).scores for i in range(2))


def waits(tmp_path, missing, **keys):
    with Presence(tmp_path, Part(0, 3, is_together=True), beat=0.01) as presence:
        return presence.wait(missing, **{"poll": 0.01, "patience": 20, **keys})


def test_the_wait_ends_with_the_last_answer_whatever_earlier_runs_left_behind(tmp_path):
    with pytest.raises(ZeroDivisionError), Presence(tmp_path, Part(1, 3)):
        _ = 1 / 0
    left = [{1: 2, 2: 1}, {1: 2}, {}]
    assert waits(tmp_path, lambda: left.pop(0))
    assert left == []


def test_a_part_that_fails_is_named_with_its_reason(tmp_path):
    left = iter([{1: 4, 2: 1}] * 2)

    def missing():
        open_answers = next(left, None)
        if open_answers is None:  # fails while the other one waits
            with pytest.raises(UserError), Presence(tmp_path, Part(2, 3)):
                raise UserError("no room")
        return {1: 4, 2: 1}

    with pytest.raises(PartFailed, match=rf"part 2/3 \(process {os.getpid()} on .*failed: no room"):
        waits(tmp_path, missing)


def test_a_folder_that_cannot_be_made_is_wrong_input(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"output=.*file: Not a directory"):
        Presence(tmp_path / "file", Part(0, 2)).__enter__()


def test_signs_of_life_that_cannot_be_written_stop_nothing(tmp_path, capsys):
    with Presence(tmp_path, Part(0, 2), beat=0.01):
        shutil.rmtree(tmp_path / "parts")
        time.sleep(0.1)
    assert "warning: " in capsys.readouterr().err


def test_what_a_part_that_is_done_still_owes_is_left_to_the_one_that_scores(tmp_path, capsys):
    asked = 0

    def missing():
        nonlocal asked
        asked += 1
        if asked == 2:
            with Presence(tmp_path, Part(1, 3)):
                pass
        return {1: 5, 2: 1} if asked < 20 else {1: 5}

    assert not waits(tmp_path, missing, settle=0.05)
    assert asked >= 20  # part 2 was given its time
    assert "5 answers are missing though their parts are done" in capsys.readouterr().err


def test_a_part_that_was_killed_or_never_came_is_named(tmp_path):
    with pytest.raises(PartFailed, match=r"part 1/3 \(no sign of it in .*owes 5 answers"):
        waits(tmp_path, lambda: {1: 5}, patience=0.05)
    program = (
        "import sys, time; from pathlib import Path\n"
        "from jaxllada.apps.evaluation.presence import Presence\n"
        "from jaxllada.apps.evaluation.ranks import Part\n"
        "with Presence(Path(sys.argv[1]), Part(1, 3), beat=0.01):\n"
        "    print('alive', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "alive\n"
    begun = time.monotonic()

    def missing():
        if time.monotonic() > begun + 0.5 and child.poll() is None:
            child.send_signal(signal.SIGKILL)  # after having outlived the patience below
            child.wait()
        return {1: 5}

    with pytest.raises(PartFailed, match=rf"part 1/3 \(process {child.pid} on .*no sign of life"):
        waits(tmp_path, missing, patience=0.3)
    assert child.returncode == -signal.SIGKILL
    kept = json.loads((tmp_path / "parts" / "1-of-3.json").read_text())
    assert kept["state"] == "answering"
    assert kept["beat"] > 5
