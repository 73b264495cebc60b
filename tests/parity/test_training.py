"""Fifty steps from one checkpoint and one YAML: JAX, torch on the CPU and on a simulated NPU.

Float32; the noise is data, so all see the same masks. The simulated run needs .venv-npu. With
JAXLLADA_PARITY_DIR set, the curves are drawn into that folder.
"""

import dataclasses
import json
import os
import random
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxllada.__main__ import main as jax_main
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.convert import open_source, save
from jaxllada.models.mask_predictor import MaskPredictor
from npu_backend.__main__ import main as torch_main
from tests.parity.picture import draw

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
NPU_PYTHON = ROOT / ".venv-npu" / "bin" / "python"
STEPS, LIMIT = 50, 1e-4
WORDS = ["the", "mask", "hides", "one", "word", "and", "a", "model", "reads", "all", "others"]
SHARED = {
    "max_length": 32, "max_steps": STEPS, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "warmup_steps": 5,
    "logging_steps": 1, "save_steps": 0, "eval_steps": 25, "eval_mc": 2, "sample_length": 0,
    "compile_cache_dir": "none",
}  # fmt: skip
KINDS = {
    "pretraining": {"random_length_ratio": 0.2},
    "fine-tuning": {"random_length_ratio": 0, "loss_norm": "sequence"},
}
# Of a process in which torch finds the simulator below it.
ON_SIMULATED_NPU = """
import sys
import tests.ascend_sim.ascend_sim
from npu_backend.__main__ import main
for folder in sys.argv[1:]:
    words = [f"{folder.removesuffix('-npu')}.yaml", "--output_dir", folder, "--device", "npu"]
    assert main(["pretrain", *words]) == 0
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Text, prompt/answer rows, a tokenizer, and a checkpoint both packages start from."""
    folder = tmp_path_factory.mktemp("home")
    rng = random.Random(0)
    tokenizer = Tokenizer.train([" ".join(WORDS)], 262, folder / "model")
    for kind in KINDS:
        (folder / kind).mkdir()
        for name, count in (("train", 200), ("test", 20)):
            texts = [" ".join(rng.choices(WORDS, k=rng.randint(8, 20))) for _ in range(count)]
            rows = [{"text": text} for text in texts]
            if kind == "fine-tuning":
                ids = [[*tokenizer.encode(text)[:31], tokenizer.eos_id] for text in texts]
                rows = [{"input_ids": row, "prompt_len": len(row) // 3} for row in ids]
            lines = "\n".join(map(json.dumps, rows)) + "\n"
            (folder / kind / f"{name}.jsonl").write_text(lines)
    config = dataclasses.replace(
        PRESETS["tiny"], vocab_size=tokenizer.vocab_size, embedding_size=tokenizer.vocab_size,
        mask_token_id=tokenizer.mask_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    save(MaskPredictor(config, rngs=jax.random.key(0)), folder / "model")
    for kind, changes in KINDS.items():
        places = {"model_name_or_path": folder / "model", "dataset_args": folder / kind}
        settings = SHARED | changes | places
        text = "".join(f"{key}: {value}\n" for key, value in settings.items())
        (folder / f"{kind}.yaml").write_text(text)
    return folder


def pretrain(main, home, output, *words, kind="pretraining"):
    """Runs one of the packages' verbs in this process."""
    device = ["--device", "cpu"] if main is torch_main else []
    words = [home / f"{kind}.yaml", "--output_dir", output, *device, *words]
    assert main(["pretrain", *map(str, words)]) == 0
    return output


@pytest.fixture(scope="module")
def runs(home):
    """Run folders by (kind, backend)."""
    found = {}
    for kind in KINDS:
        for backend, main in (("jax", jax_main), ("torch", torch_main)):
            output = home / f"{kind}-{backend}"
            found[kind, backend] = pretrain(main, home, output, kind=kind)
    if NPU_PYTHON.is_file():
        found |= {(kind, "npu"): home / f"{kind}-npu" for kind in KINDS}
        variables = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "NPU_SIM": "1"}
        folders = [str(found[kind, "npu"]) for kind in KINDS]
        done = subprocess.run(
            [NPU_PYTHON, "-c", ON_SIMULATED_NPU, *folders], cwd=ROOT, capture_output=True,
            text=True, timeout=280, env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
    return found


def column(folder, key):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return np.array([row[key] for row in map(json.loads, lines) if key in row])


def weights(folder):
    """Every weight of a run or model folder, by module path and layer."""
    source = open_source(folder)
    layers = {e: range(source.config.n_layers if e.per_layer else 1) for e in source.entries}
    return {(e.path, i): np.array(source.read(e, i)) for e in layers for i in layers[e]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", ["torch", "npu"])
def test_the_backends_train_alike(runs, kind, other):
    if (kind, other) not in runs:
        pytest.skip("torch_npu is not installed here (.venv-npu)")
    first, second = runs[kind, "jax"], runs[kind, other]
    for key, count in (("loss", STEPS), ("masked_nll", STEPS), ("eval_bound", 3)):
        expected, got = column(first, key), column(second, key)
        assert len(expected) == count
        np.testing.assert_allclose(got, expected, rtol=LIMIT, err_msg=key)
    assert column(first, "loss")[-5:].mean() < 0.9 * column(first, "loss")[:5].mean()
    for key in ("learning_rate", "tokens"):
        np.testing.assert_array_equal(column(second, key), column(first, key))
    start = weights(first.parent / "model")
    expected, got = weights(first), weights(second)
    for path, value in expected.items():
        moved = np.linalg.norm(value - start[path])
        # The first Adam steps move by sign(gradient), so tiny gradients magnify rounding.
        assert np.linalg.norm(got[path] - value) < 0.01 * moved, path


@pytest.mark.parametrize("kind", KINDS)
def test_the_curves_are_drawn_over_each_other(runs, kind, tmp_path):
    titles = {"jax": "JAX", "torch": "torch, CPU", "npu": "torch_npu, simulated"}
    curves = {
        titles[backend]: column(folder, "loss")
        for (name, backend), folder in runs.items()
        if name == kind
    }
    target = Path(os.environ.get("JAXLLADA_PARITY_DIR", tmp_path)) / f"parity-{kind}.png"
    draw(curves, LIMIT, f"{STEPS} steps of {kind}", target)
    assert target.read_bytes().startswith(b"\x89PNG")


GOES_ON = ["--max_steps", "6", "--learning_rate", "2e-4", "--eval_steps", "3"]


def goes_on(before, after):
    """The second run starts with the bits, the bound and the losses the first ended with."""
    bounds = column(before, "eval_bound")[-1], column(after, "eval_bound")[0]
    np.testing.assert_allclose(bounds[1], bounds[0], rtol=1e-5)
    assert column(after, "loss").mean() < column(before, "loss")[:6].mean()


def same_bits(a, b):
    assert a.keys() == b.keys()
    for path, value in a.items():
        assert value.dtype == b[path].dtype
        np.testing.assert_array_equal(value, b[path], err_msg=str(path))


def test_a_run_is_handed_over_from_jax_to_torch(runs, home, tmp_path):
    begun = runs["pretraining", "jax"]
    assert jax_main(["convert", "flax-to-hf", str(begun), str(tmp_path / "export")]) == 0
    same_bits(weights(begun), weights(tmp_path / "export"))
    tokenizer = ["--tokenizer_name_or_path", home / "model"]
    words = ["--model_name_or_path", tmp_path / "export", *tokenizer]
    after = pretrain(torch_main, home, tmp_path / "torch", *words, *GOES_ON)
    goes_on(begun, after)
    still = pretrain(
        torch_main, home, tmp_path / "still", *words, "--max_steps=1", "--learning_rate=0"
    )
    same_bits(weights(begun), weights(still))


def test_a_run_is_handed_over_from_torch_to_jax(runs, home, tmp_path):
    begun = runs["pretraining", "torch"]
    words = ["--model_name_or_path", begun]
    goes_on(begun, pretrain(jax_main, home, tmp_path / "jax", *words, *GOES_ON))
    still = pretrain(
        jax_main, home, tmp_path / "still", *words, "--max_steps=1", "--learning_rate=0"
    )
    same_bits(weights(begun), weights(still))
