"""The verbs pretrain and evaluate in torch, from text files to a folder both packages can use."""

import dataclasses
import json
import random

import pytest

from jaxllada.common.config.opening import read_config
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.tokenizer import Tokenizer
from npu_backend.__main__ import main
from npu_backend.commands.launched import EXIT_FILE
from npu_backend.commands.pretrain import Config
from tests.npu.tiny_run import DEVICE, losses, read_log

WORDS = ["the", "mask", "hides", "one", "word", "and", "a", "model", "reads", "all", "others"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Text files, a tokenizer and a model config that fit each other."""
    folder = tmp_path_factory.mktemp("home")
    rng = random.Random(0)
    (folder / "text").mkdir()
    for name, count in (("train", 300), ("test", 30)):
        lines = [json.dumps({"text": " ".join(rng.choices(WORDS, k=20))}) for _ in range(count)]
        (folder / "text" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "model").mkdir()
    tokenizer = Tokenizer.train([" ".join(WORDS)], 262, folder / "tokenizer")
    dataclasses.replace(
        PRESETS["tiny"], vocab_size=tokenizer.vocab_size, embedding_size=tokenizer.vocab_size,
        mask_token_id=tokenizer.mask_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    ).save(folder / "model")  # fmt: skip
    return folder


def arguments(home, output, **changes):
    values = {
        "model_name_or_path": home / "model", "tokenizer_name_or_path": home / "tokenizer",
        "dataset_args": home / "text", "output_dir": output, "max_length": 32, "max_steps": 6,
        "per_device_train_batch_size": 4, "save_steps": 3, "eval_steps": 3, "logging_steps": 2,
        "sample_length": 8, "random_length_ratio": 0, "device": DEVICE.type,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in (values | changes).items()]


@pytest.fixture(scope="module")
def run_folder(home):
    assert main(["pretrain", *arguments(home, home / "run")]) == 0
    return home / "run"


def test_a_run_leaves_what_a_run_in_jax_leaves(run_folder, home):
    names = {path.name for path in run_folder.iterdir()}
    assert names >= {"config.yaml", "config.json", "metrics.jsonl", "tokenizer.json"}
    assert {path.name for path in (run_folder / "checkpoints").iterdir()} == {"3", "6"}
    samples = {path.name for path in (run_folder / "samples").iterdir()}
    assert samples == {"step-3.txt", "step-6.txt"}
    rows = read_log(run_folder)
    assert {"uniform_bound", "unigram_bound"} <= rows[0].keys()
    assert [row["step"] for row in rows if "eval_bound" in row] == [0, 3, 6]
    assert list(losses(run_folder)) == [2, 4, 6]
    checkpoint = run_folder / "checkpoints" / "6"
    assert read_config(checkpoint) == read_config(home / "model")
    assert (checkpoint / "tokenizer.json").read_bytes() == (
        run_folder / "tokenizer.json"
    ).read_bytes()


def test_the_saved_settings_are_those_of_both_packages(run_folder, tmp_path):
    from jaxllada.common.config.load import load_file

    kept = load_file(TrainConfig, run_folder / "config.yaml")
    assert kept.max_steps == 6
    changes = [f"output_dir={tmp_path / 'again'}", "max_steps=2", "sample_length=0"]
    words = ["pretrain", str(run_folder / "config.yaml"), *changes, f"device={DEVICE.type}"]
    assert main(words) == 0


def test_evaluate_repeats_the_number_of_the_run(run_folder, capsys):
    device = f"device={DEVICE.type}"
    assert main(["evaluate", str(run_folder), "--eval_mc", "1", "--json", device]) == 0
    found = json.loads(capsys.readouterr().out)
    last = [row for row in read_log(run_folder) if "eval_bound" in row][-1]
    assert found["bound"] == pytest.approx(last["eval_bound"], rel=1e-6)
    assert main(["evaluate", str(run_folder), device]) == 0
    assert "validation bound" in capsys.readouterr().out


def test_a_run_folder_is_a_model_to_start_from(run_folder, home, tmp_path):
    changes = {"model_name_or_path": run_folder, "tokenizer_name_or_path": "", "max_steps": 1,
               "learning_rate": 0, "sample_length": 0, "eval_steps": 1}  # fmt: skip
    assert main(["pretrain", *arguments(home, tmp_path, **changes)]) == 0
    before = [row["eval_bound"] for row in read_log(run_folder) if "eval_bound" in row]
    after = [row["eval_bound"] for row in read_log(tmp_path) if "eval_bound" in row]
    assert after[0] == pytest.approx(before[-1], rel=1e-6)


MISTAKES = [
    ({"dataset_args": ""}, "dataset_args: not set"),
    ({"lora": True}, "lora=true"),
    ({"model_name_or_path": "llada-101m"}, "did you mean 'llada-100m'"),
    ({"max_length": 65}, "max_length=65: the model's max_sequence_length is 64"),
    ({"mesh_fsdp": 2}, "mesh_fsdp=2"),
    ({"mesh_tensor": 2}, "mesh_tensor=2: expected 1"),
    ({"compile_cache_dir": "somewhere"}, "compile_cache_dir='somewhere': expected none"),
    ({"attn_implementation": "flash"}, "attention='flash'"),
    ({"num_processes": 2}, "num_processes=2"),
    ({"device": "tpu"}, "device"),
    ({"ops": "some"}, "ops"),
]


@pytest.mark.parametrize(("changes", "told"), MISTAKES)
def test_a_mistake_costs_one_line_and_leaves_nothing(home, tmp_path, capsys, changes, told):
    output = tmp_path / "run"
    assert main(["pretrain", *arguments(home, output, **changes)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert told in message
    assert not output.exists()


def test_a_process_that_is_started_again_goes_on(home, tmp_path, monkeypatch):
    """Whatever the first start was told; but not before that has made the folder its own."""
    monkeypatch.setenv(EXIT_FILE, str(tmp_path / "code"))
    output = tmp_path / "run"
    words = arguments(home, output, sample_length=0, lr_scheduler_type="constant")
    assert main(["pretrain", *words, "max_steps=3"]) == 0
    (tmp_path / "code").unlink()
    assert main(["pretrain", *words, "overwrite_output_dir=True"]) == 0
    assert (output / "checkpoints" / "3").is_dir()
    assert max(losses(output)) == 6
    (tmp_path / "code").unlink()
    (tmp_path / "code.begun").unlink()
    assert main(["pretrain", *words]) == 2


def test_a_process_that_ended_for_good_does_not_start_again(home, tmp_path, monkeypatch):
    monkeypatch.setenv(EXIT_FILE, str(tmp_path / "code"))
    assert main(["pretrain", *arguments(home, tmp_path / "run", max_length=65)]) == 2
    assert (tmp_path / "code").read_text() == "2"
    assert main(["pretrain", *arguments(home, tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()


def test_device_settings_are_left_out_of_what_is_kept():
    assert Config(device="cpu", max_length=7).shared() == TrainConfig(max_length=7)
