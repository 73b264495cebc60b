"""The verbs sample, chat and tune in torch: presets, traces, sweeps."""

import dataclasses
import io
import sys

import numpy as np
import pytest
import torch

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.sampling_presets import sampling_preset
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.trace import Trace
from jaxllada.common.trace_text import told
from npu_backend.__main__ import main
from npu_backend.convert import save
from npu_backend.models.mask_predictor import MaskPredictor
from tests.npu.devices import DEVICE

TEXT = "the cat sat on the mat and the dog sat on the log"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train([TEXT] * 20, 280, path)
    rows = tokenizer.vocab_size
    config = dataclasses.replace(
        PRESETS["tiny"], vocab_size=rows, embedding_size=rows, mask_token_id=tokenizer.mask_id,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    save(MaskPredictor(config, generator=torch.Generator().manual_seed(0)), path)
    return path


@pytest.fixture
def run(folder, capsys):
    def run(verb, *arguments):
        code = main([verb, str(folder), "--device", DEVICE.type, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_a_preset_of_ones_own_is_sampled_and_the_record_told(run, tmp_path):
    preset, file = tmp_path / "mine.yaml", tmp_path / "t.npz"
    preset.write_text("gen_length: 8\nblock_length: 4\nsteps: 8\nstop_at_eos: false\n")
    code, out, _ = run("sample", "--prompt", TEXT[:11], "--preset", preset, "--steps", 4,
                       "--trace", file)  # fmt: skip
    assert code == 0
    trace = Trace.load(file)
    assert trace.about["settings"]["steps"] == 4
    assert trace.about["settings"]["block_length"] == 4
    assert (trace.num_steps, trace.about["nfe"]) == (4, 4)
    assert told(trace).prompt == TEXT[:11]
    assert out.startswith(TEXT[:11])


def test_chat_leaves_a_record_of_every_turn(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n/reset\nthe dog\n"))
    code, _, _ = run("chat", "--max_length", 8, "--steps", 4, "--trace", tmp_path / "turn.npz")
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"turn-1.npz", "turn-2.npz"}


def test_a_sweep_finds_settings_and_the_reference_agrees_with_itself(run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\nthe dog sat\n")
    code, out, err = run(
        "tune", "--prompts_file", prompts, "--output_dir", tmp_path / "out", "--gen_length", 8,
        "--block_length", 8, "--sweep_steps", 2, 8, "--sweep_cache", "none", "dual",
        "--min_agreement", 1.0, "--stop_at_eos", "false",
    )  # fmt: skip
    assert code == 0
    assert "reference: agreement 100.0%, 1.00 tokens per call" in err
    assert len([line for line in out.splitlines() if line.startswith("|")]) == 2 + 4
    kept = sampling_preset(str(tmp_path / "out" / "preset.yaml"))
    assert kept["gen_length"] == 8
    reference = Trace.load(tmp_path / "out" / "reference.npz")
    np.testing.assert_array_equal(np.sort(reference.order[0]), np.arange(8))
