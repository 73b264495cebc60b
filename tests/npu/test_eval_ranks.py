"""An evaluation shared out over processes: the same results, also when one of them is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jaxllada.apps.evaluation.presence import Presence
from npu_backend.__main__ import main
from npu_backend.commands import eval as verb
from npu_backend.commands.launched import EXIT_FILE
from tests.npu.devices import DEVICE
from tests.npu.processes import IS_SIMULATED, ROOT, environment
from tests.npu.test_launch import SIMULATE_RANKS
from tests.npu.test_sample_verbs import TEXT, folder  # noqa: F401  (a fixture)

SCRIPT = ROOT / "launch" / "npu_eval.sh"
WORDS = TEXT.split()
# A rank that stands still when its first answers are on the disk.
PAUSE = """
import os, time
is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
if is_first and os.environ.get("PAUSED_RANK") == os.environ.get("RANK"):
    sync = os.fsync
    os.fsync = lambda handle: (sync(handle), time.sleep(120))
"""
ECHO = """
task: echo
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["zz"], max_gen_toks: 16}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As ranks have it: sums come in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def home(one_thread, folder, tmp_path_factory):  # noqa: F811
    """A model, a task that compares options, one that generates, and what one process finds."""
    home = tmp_path_factory.mktemp("home")
    asked = [f"the {WORDS[i % 13]} {WORDS[i % 11]} {i}" for i in range(66)]
    rows = [{"prompt": text, "options": [" sat", " on the mat"], "answer": i % 2}
            for i, text in enumerate(asked)]  # fmt: skip
    (home / "choose.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    rows = [{"question": text, "answer": "the"} for text in asked[:12]]
    (home / "asked.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (home / "echo.yaml").write_text(ECHO.format(file=home / "asked.jsonl"))
    (home / "site").mkdir()
    simulated = SIMULATE_RANKS if IS_SIMULATED else ""
    (home / "site" / "sitecustomize.py").write_text(simulated + PAUSE)
    home.joinpath("words").write_text(json.dumps([
        str(folder), "--device", DEVICE.type, "--tasks", f"{home}/choose.jsonl,{home}/echo.yaml",
        "--mc_num", "1", "--gen_length", "16", "--steps", "8", "--batch_size", "1",
        "--temperature", "0.7",
    ]))  # fmt: skip
    assert main(["eval", *words_of(home), "--output", str(home / "whole")]) == 0
    return home


def words_of(home):
    return json.loads((home / "words").read_text())


def found(output):
    """Metrics of every task, and every answer."""
    (run,) = json.loads((output / "results.json").read_text())["runs"]
    metrics = {task: entry["metrics"] for task, entry in run["results"].items()}
    files = sorted((output / "samples").rglob("*.jsonl"))
    return metrics, [path.read_text() for path in files]


def answers(output):
    """Keys of all answers, once for every time that they were given."""
    lines = [line for path in (output / "answers").glob("*.jsonl") for line in path.open("rb")]
    return [json.loads(line)["key"] for line in lines if line.endswith(b"\n")]


def test_parts_leave_nothing_to_answer_for_the_run_that_scores(home, tmp_path, monkeypatch, capsys):
    words = ["eval", *words_of(home), "--output", str(tmp_path)]
    for part in ("1/2", "0/2"):
        assert main([*words, "--part", part]) == 0
        assert not (tmp_path / "results.json").exists()
        assert f"part {part} is answered" in capsys.readouterr().err
    assert sorted(answers(tmp_path)) == sorted(answers(home / "whole"))
    sizes = [sum(1 for _ in path.open()) for path in (tmp_path / "answers").iterdir()]
    assert min(sizes) > 5  # some of both tasks

    def refused(*_):
        raise AssertionError("the model is not needed any more")

    monkeypatch.setattr(verb, "open_engine", refused)
    assert main(words) == 0
    assert found(tmp_path) == found(home / "whole")


def test_the_rank_that_scores_answers_what_no_other_did(home, tmp_path, monkeypatch):
    monkeypatch.setattr(Presence, "wait", lambda *_: False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shutil.copytree(home / "whole" / "answers", tmp_path / "answers")
    kept = tmp_path / "answers" / "answers.jsonl"
    kept.write_bytes(b"".join(kept.open("rb").readlines()[:-4]))  # two of either part are gone
    assert main(["eval", *words_of(home), "--output", str(tmp_path)]) == 0
    assert len((tmp_path / "answers" / "part-0-of-2.jsonl").open().readlines()) == 4
    assert found(tmp_path) == found(home / "whole")


def test_ranks_that_end_for_good_are_not_started_again_and_others_are(
    home, tmp_path, monkeypatch, capsys
):
    code = tmp_path / "code"
    monkeypatch.setenv(EXIT_FILE, str(code))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shutil.copytree(home / "whole", tmp_path / "out")
    words = ["eval", *words_of(home), "--output", str(tmp_path / "out")]
    assert main(words) == 0  # a part that is done may have to come back with the others
    assert not code.exists()
    assert main([*words, "--tasks", "gsm9k"]) == 2
    assert code.read_text() == "2"
    assert "gsm9k" in capsys.readouterr().err
    assert main(words) == 2


def test_ranks_need_a_folder_in_common(home, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["eval", *words_of(home)]) == 2
    assert "part=0/2 needs output" in capsys.readouterr().err


def test_a_process_that_is_alone_says_that_devices_are_idle(monkeypatch, capsys):
    monkeypatch.setattr(verb, "open_engine", lambda *_: "engine")
    monkeypatch.setattr("npu_backend.device.count_devices", lambda _: 8)
    for part, told in (("", True), ("1/8", False)):
        config = verb.Config(
            model_name_or_path="model", tasks=("echo",), output="out", part=part,
            device=DEVICE.type,
        )  # fmt: skip
        assert verb.opened(config, Path()) == "engine"
        assert ("one of 8 devices; ./launch/npu_eval.sh" in capsys.readouterr().err) == told


def start(home, output, ranks, *arguments, **variables):
    path = f"{home / 'site'}{os.pathsep}{ROOT}"
    return subprocess.Popen(
        ["bash", SCRIPT, *words_of(home), "--skip_checks", "--nproc", str(ranks), "--output",
         output, *arguments],
        cwd=ROOT, env=environment(PYTHON=sys.executable, RESTARTS="1", **variables)
        | {"PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_ranks_give_the_results_of_one_though_one_was_killed(home, tmp_path):
    output = tmp_path / "out"
    process = start(home, output, 2, PAUSED_RANK="1")
    deadline = time.monotonic() + 120
    mine = output / "answers" / "part-1-of-2.jsonl"
    while not (mine.exists() and mine.stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1][-6000:]
        time.sleep(0.02)
    kept = mine.read_text()
    victim = json.loads((output / "parts" / "1-of-2.json").read_text())["process"]
    os.kill(victim, signal.SIGKILL)
    out, told = process.communicate(timeout=240)
    assert process.returncode == 0, out[-3000:] + told[-6000:]
    assert f"failed (exitcode: -9) local_rank: 1 (pid: {victim})" in told
    (log,) = (output / "logs").glob("*/attempt_1/1/stderr.log")
    assert "answers were kept by an earlier run" in log.read_text()
    assert mine.read_text().startswith(kept)
    assert sorted(answers(output)) == sorted(answers(home / "whole"))  # and nothing asked twice
    assert found(output) == found(home / "whole")
    (run,) = json.loads((output / "results.json").read_text())["runs"]
    assert run["environment"]["hardware"].startswith("2 processes, each on ")
