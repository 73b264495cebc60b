"""launch/npu_*.sh as a user runs them: arguments, machines, signals, crashes, wrong input.

Real text (the quickstart's corpus), one and two ranks; on simulated NPUs or, without, on the CPU.
"""

import dataclasses
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.data.pystdlib import documents
from jaxllada.common.tokenizer import Tokenizer
from npu_backend.__main__ import main
from tests.npu.processes import IS_SIMULATED, ROOT, environment
from tests.npu.tiny_run import losses

DEVICE = "npu" if IS_SIMULATED else "cpu"
SCRIPT = ROOT / "launch" / "npu_train.sh"
EVAL = ROOT / "launch" / "npu_eval.sh"
# torchrun itself runs without the simulator: only ranks load it.
SIMULATE_RANKS = """
import os
if "LOCAL_RANK" in os.environ:
    import tests.ascend_sim.ascend_sim
"""


def run_script(*arguments, script=SCRIPT, **variables):
    return subprocess.run(
        ["bash", script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env=environment(PYTHON=sys.executable, **variables), timeout=120,
    )  # fmt: skip


def planned(*arguments, script=SCRIPT, **variables):
    """The command that would be run, as a list of words."""
    done = run_script(*arguments, "--dry_run", "--skip_checks", script=script, **variables)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def option(words, name):
    return words[words.index(name) + 1]


@pytest.mark.parametrize("words", [["sft", "run.yaml"], ["run.yaml", "--verb", "sft"]])
def test_the_first_word_may_be_the_verb(words):
    found = planned(*words, "--nproc", 1, "--max_steps", 3)
    verb = found.index("sft")
    assert found[verb - 3 : verb] == ["-m", "--", "npu_backend"]
    assert found[verb + 1 :] == ["run.yaml", "--max_steps", "3"]


def test_one_machine_needs_no_address():
    words = planned("run.yaml", "--nproc", 8, "--learning_rate", "1e-4", "--output_dir=out")
    assert "--standalone" in words
    assert option(words, "--nproc-per-node") == "8"
    assert option(words, "--log-dir") == "out/logs"
    verb = words.index("pretrain")
    assert words[verb - 3 : verb] == ["-m", "--", "npu_backend"]
    assert words[verb + 1 :] == ["run.yaml", "--learning_rate", "1e-4", "--output_dir=out"]


def test_the_log_folder_lies_in_the_run_folder_of_the_settings(tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 1\noutput_dir: output/a run  # here\n")
    assert option(planned(tmp_path / "run.yaml", "--nproc=1"), "--log-dir") == "output/a run/logs"


def test_an_evaluation_keeps_the_words_that_training_takes_for_itself():
    """Its model is a bare first word, and `--preset` names sampling settings."""
    given = ["models/my model", "--preset", "mine.yaml", "--verb=x", "--output", "results/a b"]
    words = planned(*given, "--nproc", 8, "--limit=3", script=EVAL)
    assert words[words.index("npu_backend") :] == ["npu_backend", "eval", *given, "--limit=3"]
    assert option(words, "--log-dir") == "results/a b/logs"
    assert option(words, "--nproc-per-node") == "8"


CLUSTERS = {
    "arguments": (["--nnodes", 4, "--node_rank=2", "--master_addr", "boss", "--nproc", 8], {}),
    "variables": (
        [],
        {"NNODES": "4", "NODE_RANK": "2", "MASTER_ADDR": "boss", "NPROC_PER_NODE": "8"},
    ),
    "ModelArts": (
        [],
        {"MA_NUM_HOSTS": "4", "VC_TASK_INDEX": "2", "VC_WORKER_HOSTS": "boss,b,c,d",
         "MA_NUM_GPUS": "8"},
    ),
    "SLURM": (
        ["--nproc", 8],
        {"SLURM_NNODES": "4", "SLURM_NODEID": "2", "SLURM_JOB_NODELIST": "boss,n[2-4]"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("script", [SCRIPT, EVAL], ids=["train", "eval"])
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_machines_come_from_arguments_or_the_cluster(tmp_path, cluster, script):
    arguments, variables = CLUSTERS[cluster]
    scontrol = tmp_path / "scontrol"  # SLURM's own tool, which spells its host lists out
    scontrol.write_text("#!/bin/sh\nprintf '%s\\n' boss n2 n3 n4\n")
    scontrol.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    words = planned("run.yaml", *arguments, script=script, PATH=path, **variables)
    assert option(words, "--rdzv-endpoint") == "boss:29500"
    assert (option(words, "--nnodes"), option(words, "--node-rank")) == ("4", "2")
    assert option(words, "--nproc-per-node") == "8"
    assert option(words, "--rdzv-conf") == "is_host=false"


MISTAKES = [
    (["--nproc", "many"], "nproc=many: expected a whole number"),
    (["--nproc", 1, "--preset", "quick"], "preset=quick: expected fast, debug or deterministic"),
    (["--nproc", 1, "--nnodes", 2], "nnodes=2: give --master_addr"),
    (["--nproc", 1, "--nnodes", 2, "--node_rank", 2], "node_rank=2: expected a number below"),
    (["--preset"], "--preset: a value is missing"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES)
def test_a_mistake_costs_one_line(arguments, told):
    done = run_script("run.yaml", *arguments)
    assert done.returncode == 2
    assert told in done.stderr


@pytest.mark.skipif(Path("/dev/davinci0").exists(), reason="this machine has an NPU")
@pytest.mark.parametrize(
    "name", ["npu_train.sh", "npu_eval.sh", "npu_sample.sh", "npu_chat.sh", "npu_bench.sh"]
)
def test_a_machine_without_npus_is_told_how_to_go_on(name):
    done = run_script("something", script=ROOT / "launch" / name, NPU_SIM="0")
    assert done.returncode == 2
    assert "no Ascend NPU" in done.stderr
    assert f"{name} something --device cpu" in done.stderr


def exported(preset, **variables):
    code = f". {ROOT}/launch/ascend_env.sh; ascend_preset {preset}; env"
    clean = {"PATH": os.environ["PATH"], "HOME": "/", **variables}
    done = subprocess.run(["bash", "-c", code], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def test_presets_set_what_they_are_for_and_leave_what_the_user_set():
    fast, debug, exact = (exported(name) for name in ("fast", "debug", "deterministic"))
    assert fast["TASK_QUEUE_ENABLE"] == "2"
    assert debug["ASCEND_LAUNCH_BLOCKING"] == "1"
    assert (exact["HCCL_DETERMINISTIC"], exact["JAXLLADA_DETERMINISTIC"]) == ("true", "1")
    for preset in (fast, debug, exact):
        assert preset["TORCH_NPU_FALLBACK_CPU_DISABLE"] == "1"
    assert exported("fast", TASK_QUEUE_ENABLE="1")["TASK_QUEUE_ENABLE"] == "1"
    # Both allocator variables at once are an error of torch_npu.
    assert "PYTORCH_NPU_ALLOC_CONF" not in exported("fast", PYTORCH_ALLOC_CONF="x:1")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Real text, a tokenizer, a model config and settings that fit each other."""
    folder = tmp_path_factory.mktemp("home")
    texts = [document.text for document in documents("test")]
    (folder / "text").mkdir()
    for name, part in (("train", texts[:-5]), ("test", texts[-5:])):
        lines = [json.dumps({"text": text}) for text in part]
        (folder / "text" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = Tokenizer.train(texts[:10], 300, folder / "tokenizer")
    (folder / "model").mkdir()
    dataclasses.replace(
        PRESETS["tiny"], vocab_size=tokenizer.vocab_size, embedding_size=tokenizer.vocab_size,
        mask_token_id=tokenizer.mask_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    ).save(folder / "model")  # fmt: skip
    settings = {
        "model_name_or_path": folder / "model", "tokenizer_name_or_path": folder / "tokenizer",
        "dataset_args": folder / "text", "max_length": 32, "max_steps": 40, "save_steps": 4,
        "eval_strategy": "no", "logging_steps": 1, "sample_length": 0, "learning_rate": 1e-3,
        # Steps have to take long enough for a signal to come between them.
        "gradient_accumulation_steps": 2 if IS_SIMULATED else 10, "device": DEVICE,
    }  # fmt: skip
    (folder / "run.yaml").write_text(
        "".join(f"{key}: {value}\n" for key, value in settings.items())
    )
    (folder / "site").mkdir()
    if IS_SIMULATED:
        (folder / "site" / "sitecustomize.py").write_text(SIMULATE_RANKS)
    return folder


@pytest.fixture(scope="module")
def whole(home):
    """The losses of the same run, neither launched nor stopped, in this process."""
    words = [home / "run.yaml", "--per_device_train_batch_size=8", "--output_dir", home / "whole"]
    assert main(["pretrain", *map(str, words)]) == 0
    return losses(home / "whole")


def start(home, output, ranks, *arguments, **variables):
    site = f"{home / 'site'}{os.pathsep}{ROOT}"
    variables |= {"PYTHON": sys.executable, "JAXLLADA_CACHE": str(home / "cache")}
    batch = 8 // ranks  # the same global batch however many ranks there are
    return subprocess.Popen(
        ["bash", SCRIPT, home / "run.yaml", "--skip_checks", "--nproc", str(ranks),
         "--output_dir", output, "--per_device_train_batch_size", str(batch), *arguments],
        cwd=ROOT, env=environment(**variables) | {"PYTHONPATH": site}, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process, code=0):
    out, told = process.communicate(timeout=240)
    assert process.returncode == code, out[-3000:] + told[-6000:]
    return out + told


def steps_of(output):
    """Steps logged so far; the last line may just be being written."""
    try:
        return max(losses(output), default=0)
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def wait_for_step(output, step, process):
    deadline = time.monotonic() + 120
    while steps_of(output) < step:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1][-6000:]
        time.sleep(0.02)


def ranks_of(output):
    """Process ids of the ranks that train into `output`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            variables = (folder / "environ").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if str(output) in words and any(v.startswith("LOCAL_RANK=") for v in variables):
            found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_survives_a_request_to_stop_and_a_crash(home, whole, tmp_path, ranks):
    """SIGTERM saves and ends; after SIGKILL of one rank the script itself goes on."""
    output = tmp_path / "run"
    process = start(home, output, ranks)
    wait_for_step(output, 6, process)
    process.send_signal(signal.SIGTERM)
    told = finished(process, 128 + signal.SIGTERM)
    assert "--resume auto" in told
    assert "continuing after step" not in told
    stopped = max(losses(output))
    assert 6 <= stopped < 36
    process = start(home, output, ranks, "--resume", "auto")
    wait_for_step(output, stopped + 1, process)
    os.kill(ranks_of(output)[-1], signal.SIGKILL)
    assert finished(process).count("continuing after step") == 2
    got = losses(output)
    assert list(got) == list(whole)
    # Float32 sums over two ranks, carried through 40 updates.
    np.testing.assert_allclose(list(got.values()), list(whole.values()), rtol=1e-4)
    logs = list((output / "logs").rglob("stderr.log"))
    assert {path.parent.name for path in logs} == {str(rank) for rank in range(ranks)}


@pytest.mark.slow
def test_two_machines_go_on_together_after_one_loses_its_rank(home, whole, tmp_path):
    """Two launchers that meet over the network, each with one rank."""
    output = tmp_path / "run"
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    machines = [
        start(
            home, output, 1, "--nnodes=2", "--node_rank", str(n), "--master_addr=127.0.0.1",
            "--master_port", port, "--log_dir", str(tmp_path / f"logs{n}"),
            "--per_device_train_batch_size=4",
        )
        for n in range(2)
    ]  # fmt: skip
    try:
        wait_for_step(output, 6, machines[0])
        os.kill(ranks_of(output)[-1], signal.SIGKILL)
        told = "".join(finished(machine) for machine in machines)
    finally:
        for machine in machines:
            machine.kill()
    assert told.count("continuing after step") == 1
    got = losses(output)
    assert list(got) == list(whole)
    np.testing.assert_allclose(list(got.values()), list(whole.values()), rtol=1e-4)


@pytest.mark.slow
def test_wrong_input_is_told_once_and_not_tried_again(home, tmp_path):
    process = start(home, tmp_path / "run", 1, "--max_length", "65", RESTARTS="1")
    told = finished(process, 2)
    assert told.count("max_length=65: the model's max_sequence_length is 64") == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
