"""The verb `bench` in torch, on a model small enough to be quick."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jaxllada.apps.bench_strategies import PUBLISHED
from jaxllada.apps.beside import serve
from jaxllada.common.config.presets import PRESETS
from npu_backend.__main__ import main
from npu_backend.commands.bench import Config
from npu_backend.commands.bench_cases import Bench, Trainer
from npu_backend.convert import save
from npu_backend.models.mask_predictor import MaskPredictor
from tests.npu.devices import DEVICE, IS_NPU

TINY = ["--model_name_or_path", "tiny", "--device", DEVICE.type]
SAMPLE = ["--prompt_length", "8", "--gen_length", "16", "--steps", "4", "--block_length", "8"]
TRAIN = ["--batch_size", "2", "--length", "32"]


@pytest.fixture
def bench(capsys):
    def bench(*arguments):
        assert main(["bench", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return bench


@pytest.fixture
def small_product(monkeypatch):
    """A matrix product that does not take seconds on a simulated device."""

    def few(product):
        product(64)()
        return 1e9

    monkeypatch.setattr("npu_backend.commands.bench_cases.best_gemm", few)


@pytest.mark.parametrize(("task", "keys"), [("train", TRAIN), ("sample", SAMPLE)])
def test_a_report_holds_what_was_measured(bench, small_product, task, keys):
    report = bench(task, *TINY, *keys, "--rounds", "2")
    assert (report["task"], report["parameters"]) == (task, 26784)
    speed = report["tokens_per_second"] * report["seconds_median"]
    assert speed == pytest.approx(64 if task == "train" else 16)
    assert report["fraction_of_gemm"] == pytest.approx(report["model_tflops_per_second"] * 1000)
    assert report["peak_resident_bytes"] > 2**26
    assert 0 < report["seconds_best"] <= report["seconds_median"]
    assert report["compile_seconds"] >= 0
    if task == "sample":
        assert report["nfe"] == 4
        assert report["seconds_per_call"] == report["seconds_median"] / 4
    else:
        assert 0.4 < report["masked_fraction"] < 0.6
    # The allocator of a device tells what the weights take at the least; a CPU has none.
    assert ("peak_device_bytes" in report) == IS_NPU
    assert report.get("peak_device_bytes", 4 * 26784) >= 4 * 26784


def test_getting_ready_to_train_changes_no_weight():
    options = Config(task="train", model_name_or_path="tiny", batch_size=2, length=16)
    trainer = Trainer(options, DEVICE, "plain")
    fresh = Bench(DEVICE.type, "plain").sampler(dataclasses.replace(options, sharpness=1.0)).model
    for name, weight in fresh.named_parameters():
        assert torch.equal(weight, trainer._network.get_parameter(name)), name
    assert all(not moment.any() for moment in trainer._state.mu.values())
    losses = [trainer.step() for _ in range(3)]
    assert losses[2] < losses[0]


def test_strategies_are_rows_beside_the_exact_decode(bench):
    report = bench("sample", *TINY, *SAMPLE, "--rounds", "1", "--strategies", "dual+threshold:0.9")
    rows = report["rows"]
    assert [row["strategy"] for row in rows] == ["exact", "dual+threshold:0.9"]
    assert {row["program"] for row in rows} == {"npu_backend"}
    assert rows[0]["equal_to_exact"] == 1.0
    assert all(row["peak_bytes"] > 0 for row in rows)
    assert rows[1]["seconds_per_call"] == rows[1]["seconds_median"] / rows[1]["nfe"]


@pytest.mark.skipif(not IS_NPU, reason="only torch_npu has an AiCpu")
def test_no_strategy_needs_the_slow_processor_of_the_card():
    """torch_npu warns, once a process, of operators that run on the AiCpu: sorting integers did."""
    code = """
import sys, tests.ascend_sim.ascend_sim
from npu_backend.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
    words = ["bench", "sample", *TINY, *SAMPLE, "--rounds", "1", "--strategies", *PUBLISHED]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "AiCpu" not in done.stderr


def test_growth_measures_both_sweeps(bench):
    report = bench(
        "growth", *TINY, "--rounds", "1", "--lengths", "8", "16", "--batches", "1", "2",
        "--steps_per_block", "2", "--prompt_length", "8", "--block_length", "8",
        "--strategies", "exact",
    )  # fmt: skip
    points = [(row["gen_length"], row["batch_size"], row["nfe"]) for row in report["rows"]]
    assert points == [(8, 1, 2), (16, 1, 4), (8, 2, 2)]


def test_a_model_folder_takes_turns_as_another_program_would(tmp_path):
    """The protocol of --beside, spoken to this package with weights of its own."""
    save(MaskPredictor(PRESETS["tiny"], generator=torch.Generator().manual_seed(3)), tmp_path)
    prompt = [[1, 2, 3, 4], [5, 6, 7, 8]]
    task = {
        "task": "sample", "folder": str(tmp_path), "prompt": prompt, "strategies": ["prefix"],
        "steps": 4, "gen_length": 8, "block_length": 8, "prompt_length": 4, "batch_size": 2,
        "beside": ["python this"], "unheard-of": 1,
    }  # fmt: skip
    answers = io.StringIO()
    requests = io.StringIO('{"strategy": "prefix"}\n{}\n')
    serve(Bench(DEVICE.type, "plain"), task, requests, answers)
    hello, prefix, exact = map(json.loads, answers.getvalue().splitlines())
    assert hello == {"name": "npu_backend", "strategies": ["exact", "prefix"]}
    assert prefix["nfe"] == exact["nfe"] == 4
    assert [row[:4] for row in exact["tokens"]] == prompt
    assert all(len(row) == 12 for row in exact["tokens"])
    assert exact["peak_bytes"] == exact["peak_resident_bytes"] > 2**26
    assert ("peak_device_bytes" in exact) == IS_NPU
    assert exact["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "task"),
        (["sample", "--size", "4GB"], "unknown key 'size'"),
        (["train", "--strategies", "exact"], "strategies=exact: is only for bench sample"),
        (["sample", "--strategies", "duel"], "strategies=duel"),
        (["sample", "--steps", "100", "--block_length", "48"], "gen_length=128"),
        (["sample", "--model_name_or_path", "llada9b"], "preset 'llada9b' is unknown"),
        (["train", "--device", "tpu"], "device"),
        (["sample", "--ops", "some"], "ops"),
        pytest.param(
            ["sample", "--ops", "fused"], "ops=fused: cpu has no fused kernels",
            marks=pytest.mark.skipif(IS_NPU, reason="an NPU has fused kernels"),
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line(capsys, arguments, message):
    assert main(["bench", *TINY, *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("error: ")
    assert message in told[-1]
