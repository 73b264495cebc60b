"""The verb sft in torch: the run of `jaxllada sft`, and the tutorial's own settings."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.load import load_config
from npu_backend import save
from npu_backend.__main__ import main
from npu_backend.commands.sft import Config
from npu_backend.models.mask_predictor import MaskPredictor
from tests import sft_home
from tests.npu.tiny_run import DEVICE, read_log

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
    return sft_home.arguments(home, output, **({"device": DEVICE.type} | changes))


@pytest.fixture(scope="module")
def run_folder(home):
    words = arguments(home, home / "run", sample_steps=3, sample_prompts='["Say red 2 times"]')
    assert main(["sft", *words, "group_by_length=true", "pad_policy=eos_capped:2"]) == 0
    return home / "run"


def test_settings_are_those_of_jaxllada_sft():
    config = load_config(Config, ["--device", "cpu"])
    assert (config.kind, config.loss_norm, config.lr_scheduler_type) == (
        "sft",
        "sequence",
        "llada-sft",
    )
    assert config.shared().loss_norm == "sequence"


def test_a_run_leaves_curves_of_its_classes_and_answers(run_folder):
    lines = [line for line in read_log(run_folder) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["content_nll"]) for line in lines if line["content_nll"])
    assert any(line["padding_eos_nll"] is not None for line in lines)
    names = {path.name for path in (run_folder / "samples").iterdir()}
    assert names == {"step-0.txt", "step-3.txt", "step-6.txt"}
    assert (run_folder / "samples" / "step-6.txt").read_text().startswith("> Say red 2 times\n")


def test_a_run_stopped_in_an_epoch_goes_on_with_the_same_batches(run_folder, tmp_path):
    output = tmp_path / "resumed"
    shutil.copytree(run_folder, output)
    shutil.rmtree(output / "checkpoints" / "6")
    words = [str(output / "config.yaml"), f"output_dir={output}", f"device={DEVICE.type}"]
    assert main(["sft", *words, "--resume=auto"]) == 0
    whole, resumed = ([row for row in read_log(f) if "loss" in row] for f in (run_folder, output))
    for name in ("step", "loss", "grad_norm", "content_nll", "padding_eos_nll"):
        assert [row[name] for row in whole] == [row[name] for row in resumed]


def save_weights(config, folder):
    compute = ComputeConfig(param_dtype="bfloat16", dtype="bfloat16")
    generator = torch.Generator().manual_seed(0)
    save(MaskPredictor(config, compute=compute, generator=generator), folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "file", "output"),
    [
        ("sft", "llada-8b-sft-npu.yaml", "llada-gpu1-epoch-test"),
        ("pretrain", "llada-100M-pt-npu.yaml", "llada-pt-c4-500Mtokens-epoch-1"),
    ],
)
def test_the_settings_of_the_tutorial_run_as_they_are(
    tmp_path, monkeypatch, capsys, verb, file, output
):
    sft_home.make_tutorial(tmp_path, save_weights)
    monkeypatch.chdir(tmp_path)
    assert main([verb, str(SEEDS / file)]) == 0
    rows = read_log(tmp_path / "output" / output)
    assert [row["step"] for row in rows if "eval_bound" in row] == [0, 10]
    dropped = "tracker swanlab dropped" in capsys.readouterr().err
    assert dropped == (verb == "sft")
