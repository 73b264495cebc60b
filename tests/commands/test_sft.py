"""The verb sft: from Alpaca rows to a folder that answers, and the tutorial's own settings."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from jaxllada import save
from jaxllada.__main__ import main
from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.load import load_file
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.classes import NAMES
from jaxllada.models.mask_predictor import MaskPredictor
from tests import sft_home

SEEDS = Path(__file__).parents[1] / "seed_configs"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return sft_home.make_home(tmp_path_factory.mktemp("sft"))


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "caches"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "hf")
    monkeypatch.setenv("JAXLLADA_CACHE", str(folder))


def arguments(home, output, **changes):
    return sft_home.arguments(home, output, **({"compile_cache_dir": "none"} | changes))


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run_folder(home, tmp_path_factory):
    output = home / "run"
    questions = '["Say red 2 times", "Say blue 1 times"]'
    words = arguments(home, output, sample_steps=2, sample_prompts=questions)
    words += ["group_by_length=true", "report_to=swanlab,tensorboard"]
    assert main(["sft", *words]) == 0
    return output


def test_a_run_leaves_curves_of_its_classes_of_tokens(run_folder):
    lines = [line for line in log_of(run_folder) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert {f"{name}_nll" for name in NAMES} <= line.keys()
        assert 0 <= line["content_as_eos"] <= 1
    known = [line["padding_eos_nll"] for line in lines if line["padding_eos_nll"] is not None]
    assert known
    assert all(math.isfinite(value) for value in known)
    assert load_file(TrainConfig, run_folder / "config.yaml").loss_norm == "sequence"


def test_probe_questions_are_answered_before_during_and_after(run_folder):
    pages = {path.name: path.read_text() for path in (run_folder / "samples").iterdir()}
    assert set(pages) == {f"step-{step}.txt" for step in (0, 2, 4, 6)}
    for page in pages.values():
        first, second = page.split("\n\n----\n\n")
        assert first.startswith("> Say red 2 times\n")
        assert second.startswith("> Say blue 1 times\n")


def test_a_run_stopped_in_an_epoch_goes_on_with_the_same_batches(home, run_folder, tmp_path):
    """Grouped by length; 57 rows make 14.25 steps, so that six end within the first epoch."""
    output = tmp_path / "resumed"
    shutil.copytree(run_folder, output)
    shutil.rmtree(output / "checkpoints" / "6")
    assert main(["sft", str(output / "config.yaml"), f"output_dir={output}", "--resume=auto"]) == 0
    whole, resumed = ([row for row in log_of(f) if "loss" in row] for f in (run_folder, output))
    names = ("step", "loss", "grad_norm", "content_nll", "padding_eos_nll", "learning_rate")
    for a, b in zip(whole, resumed, strict=True):
        assert [a[name] for name in names] == [b[name] for name in names]
    texts = [(folder / "samples" / "step-6.txt").read_text() for folder in (run_folder, output)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"random_length_ratio": 0.1}, "random_length_ratio=0.1: expected 0"),
        ({"pad_policy": "eos_caped:3"}, "pad_policy=eos_caped:3: expected eos_supervised"),
        ({"group_by_length": True, "streaming": True}, "group_by_length=True: expected false"),
    ],
)
def test_wrong_settings_are_told_in_one_line(home, tmp_path, capsys, change, message):
    assert main(["sft", *arguments(home, tmp_path / "run", **change)]) == 2
    assert f"error: {message}" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_text_has_no_answers_to_pad(home, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"text": "red green blue"}\n' * 200)
    words = arguments(home, tmp_path / "run", dataset_args=tmp_path / "a.jsonl")
    assert main(["pretrain", *words, "pad_policy=ignore"]) == 2
    assert "pad_policy=ignore: is for prompt/answer rows" in capsys.readouterr().err
    assert main(["sft", *words]) == 2
    assert "has the columns text; expected input_ids, messages" in capsys.readouterr().err


def save_weights(config, folder):
    compute = ComputeConfig(param_dtype="bfloat16", dtype="bfloat16")
    save(MaskPredictor(config, compute=compute, rngs=nnx.Rngs(0)), folder)


@pytest.mark.slow
def test_the_settings_of_the_tutorial_run_as_they_are(tmp_path, monkeypatch, capsys):
    """Its SFT file with its paths: a model folder, rows of save_to_disk, LoRA, SwanLab missing."""
    sft_home.make_tutorial(tmp_path, save_weights)
    monkeypatch.chdir(tmp_path)
    assert main(["sft", str(SEEDS / "llada-8b-sft-npu.yaml")]) == 0
    output = tmp_path / "output" / "llada-gpu1-epoch-test"
    lines = [line for line in log_of(output) if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert "tracker swanlab dropped" in capsys.readouterr().err
    assert list(output.glob("checkpoints/10/**/adapter_model.safetensors"))


@pytest.mark.slow
def test_the_pretraining_settings_of_the_tutorial_run_as_they_are(tmp_path, monkeypatch):
    sft_home.make_tutorial(tmp_path, save_weights)
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", str(SEEDS / "llada-100M-pt-npu.yaml")]) == 0
    lines = log_of(tmp_path / "output" / "llada-pt-c4-500Mtokens-epoch-1")
    assert [line["step"] for line in lines if "eval_bound" in line] == [0, 10]
