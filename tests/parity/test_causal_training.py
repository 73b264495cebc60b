"""Training the autoregressive twin: JAX and transformers in torch take the same steps."""

import dataclasses
import json
import random

import jax
import numpy as np
import pytest

from jaxllada.__main__ import main as jax_main
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.qwen2 import twin_of
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.convert import save
from jaxllada.models.family import make_model
from npu_backend.__main__ import main as torch_main

pytestmark = pytest.mark.slow
STEPS, LIMIT = 16, 1e-4
WORDS = ["the", "mask", "hides", "one", "word", "and", "a", "model", "reads", "all", "others"]
SETTINGS = {
    "max_length": 24, "max_steps": STEPS, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "warmup_steps": 2,
    "logging_steps": 1, "save_steps": 8, "eval_steps": 8, "sample_length": 4,
    "random_length_ratio": 0.2, "compile_cache_dir": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Text, a tokenizer, and weights both packages start from."""
    folder = tmp_path_factory.mktemp("home")
    rng = random.Random(0)
    (folder / "text").mkdir()
    for name, count in (("train", 100), ("test", 12)):
        lines = [json.dumps({"text": " ".join(rng.choices(WORDS, k=16))}) for _ in range(count)]
        (folder / "text" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = Tokenizer.train([" ".join(WORDS)], 262, folder / "model")
    rows, eos = tokenizer.vocab_size, tokenizer.eos_id
    config = dataclasses.replace(
        twin_of(PRESETS["tiny"]), vocab_size=rows, embedding_size=rows, eos_token_id=eos,
        pad_token_id=eos,
    )  # fmt: skip
    save(make_model(config, rngs=jax.random.key(0)), folder / "model")
    return folder


def arguments(home, output, **changes):
    values = {
        "model_name_or_path": home / "model", "dataset_args": home / "text",
        "output_dir": home / output, **SETTINGS, **changes,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in values.items()]


def lines_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        key: [line[key] for line in lines if key in line] for key in ("loss", "eval_bound_per_byte")
    }


@pytest.fixture(scope="module")
def runs(home):
    assert jax_main(["pretrain", *arguments(home, "jax")]) == 0
    assert torch_main(["pretrain", *arguments(home, "torch", device="cpu")]) == 0
    return lines_of(home / "jax"), lines_of(home / "torch")


def test_losses_and_validation_agree_step_by_step(runs):
    a, b = runs
    assert len(a["loss"]) == len(b["loss"]) == STEPS
    np.testing.assert_allclose(a["loss"], b["loss"], atol=LIMIT)
    np.testing.assert_allclose(a["eval_bound_per_byte"], b["eval_bound_per_byte"], atol=LIMIT)
    assert a["eval_bound_per_byte"][-1] < a["eval_bound_per_byte"][0]


def test_checkpoints_of_one_go_through_the_verbs_of_the_other(runs, home, capsys):
    folder = str(home / "torch")
    assert jax_main(["evaluate", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_exact"]
    assert found["bound_per_byte"] == pytest.approx(runs[1]["eval_bound_per_byte"][-1], abs=LIMIT)
    words = ["--prompt", "the mask", "--gen_length", "6"]
    assert jax_main(["sample", folder, *words]) == 0
    greedy = capsys.readouterr().out
    assert torch_main(["sample", folder, *words, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == greedy


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_resumed_run_is_the_uninterrupted_one(runs, home, backend):
    main, device = (jax_main, {}) if backend == "jax" else (torch_main, {"device": "cpu"})
    output = f"{backend}-again"
    assert main(["pretrain", *arguments(home, output, **device)]) == 0
    for step in (home / output / "checkpoints").iterdir():
        if step.name == str(STEPS):
            import shutil

            shutil.rmtree(step)
    assert main(["pretrain", *arguments(home, output, resume="auto", **device)]) == 0
    assert lines_of(home / output) == lines_of(home / backend)


def test_options_of_diffusion_are_refused_by_the_verbs(runs, home, capsys):
    for main, device in ((jax_main, []), (torch_main, ["--device", "cpu"])):
        words = ["sample", str(home / "torch"), "--steps", "4", "--gen_length", "8", *device]
        assert main(words) == 2
        assert "steps=4" in capsys.readouterr().err
