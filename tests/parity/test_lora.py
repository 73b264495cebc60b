"""Adapters trained by both packages: one curve, PEFT files, exact resuming, and what opens them.

Float32 without dropout where curves are compared; the simulated NPU needs .venv-npu.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.distributed.checkpoint import FileSystemReader

from jaxllada.__main__ import main as jax_main
from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.convert import load, open_source, save
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.orbax_arrays import open_arrays
from npu_backend.__main__ import main as torch_main
from npu_backend.convert import load as torch_load

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
NPU_PYTHON = ROOT / ".venv-npu" / "bin" / "python"
MAINS = {"jax": jax_main, "torch": torch_main}
BOTH = pytest.mark.parametrize("backend", MAINS)
STEPS, LIMIT = 20, 1e-4
WORDS = ["the", "mask", "hides", "one", "word", "and", "a", "model", "reads", "all", "others"]
SHARED = {
    "max_length": 16, "max_steps": STEPS, "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "warmup_steps": 5,
    "logging_steps": 1, "save_steps": 8, "eval_steps": 10, "save_total_limit": 0,
    "sample_length": 0, "compile_cache_dir": "none", "lora": True, "r": 4, "lora_alpha": 8,
    "lora_dropout": 0, "save_best": False,
}  # fmt: skip
LONG = (
    "--max_steps", "12", "--save_steps", "4", "--lora_dropout", "0.2", "--ema_decay", "0.9"
)  # fmt: skip
KILLED = """
import os, signal, sys
from pathlib import Path
from jaxllada.common.run import checkpoints, metrics
backend, moment, *words = sys.argv[1:]
calls = []

def dying(call, is_time):
    def wrapped(*arguments):
        calls.append(arguments)
        if is_time(arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    return wrapped

if moment == "writing":
    is_time = lambda arguments: Path(arguments[0]).name == "8"
    checkpoints.write_manifest = dying(checkpoints.write_manifest, is_time)
else:
    metrics.Window.add = dying(metrics.Window.add, lambda _: len(calls) == 10)
if backend == "jax":
    from jaxllada.__main__ import main
    sys.exit(main(words))
from npu_backend.__main__ import main
sys.exit(main([*words, "--device", "cpu"]))
"""
ON_SIMULATED_NPU = """
import sys
import tests.ascend_sim.ascend_sim
from npu_backend.__main__ import main
config, output = sys.argv[1:]
assert main(["pretrain", config, "--output_dir", output, "--device", "npu"]) == 0
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Text, a base in float32 and in bfloat16, and the settings of a run on the first."""
    folder = tmp_path_factory.mktemp("home")
    rng = random.Random(0)
    tokenizer = Tokenizer.train([" ".join(WORDS)], 262, folder / "base")
    tokenizer.save(folder / "narrow")
    (folder / "data").mkdir()
    for name, count in (("train", 100), ("test", 10)):
        rows = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(8, 20)))} for _ in range(count)]
        lines = "\n".join(map(json.dumps, rows)) + "\n"
        (folder / "data" / f"{name}.jsonl").write_text(lines)
    config = dataclasses.replace(
        PRESETS["tiny"], vocab_size=tokenizer.vocab_size, embedding_size=tokenizer.vocab_size,
        mask_token_id=tokenizer.mask_id, eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    for name, kind in (("base", "float32"), ("narrow", "bfloat16")):
        compute = ComputeConfig(param_dtype=kind)
        save(MaskPredictor(config, rngs=jax.random.key(0), compute=compute), folder / name)
    settings = SHARED | {
        "model_name_or_path": folder / "base", "dataset_args": folder / "data",
    }  # fmt: skip
    text = "".join(f"{key}: {value}\n" for key, value in settings.items())
    (folder / "lora.yaml").write_text(text)
    return folder


def call(backend, *words):
    device = ["--device", "cpu"] if backend == "torch" and words[0] != "export" else []
    return MAINS[backend]([*map(str, words), *device])


def train(backend, home, output, *words):
    assert call(backend, "pretrain", home / "lora.yaml", "--output_dir", output, *words) == 0
    return output


@pytest.fixture(scope="module")
def runs(home):
    """Run folders by backend."""
    return {backend: train(backend, home, home / backend) for backend in MAINS}


@pytest.fixture(scope="module")
def simulated(home):
    """The same run on a simulated NPU."""
    if not NPU_PYTHON.is_file():
        pytest.skip("torch_npu is not installed here (.venv-npu)")
    variables = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "NPU_SIM": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [NPU_PYTHON, "-c", ON_SIMULATED_NPU, home / "lora.yaml", home / "npu"],
        cwd=ROOT, capture_output=True, text=True, timeout=280, env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return home / "npu"


def column(folder, key):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return np.array([row[key] for row in map(json.loads, lines) if key in row])


def factors(run, step=STEPS):
    return load_file(run / "checkpoints" / str(step) / "adapter_model.safetensors")


@pytest.mark.parametrize("other", ["torch", "npu"])
def test_the_backends_train_the_same_adapters(runs, other, request):
    first = runs["jax"]
    second = runs["torch"] if other == "torch" else request.getfixturevalue("simulated")
    for key, count in (("loss", STEPS), ("grad_norm", STEPS), ("eval_bound", 3)):
        expected, got = column(first, key), column(second, key)
        assert len(expected) == count
        np.testing.assert_allclose(got, expected, rtol=10 * LIMIT if key == "grad_norm" else LIMIT)
    assert column(first, "eval_bound")[-1] < column(first, "eval_bound")[0] - 0.5
    ours, theirs = factors(first), factors(second)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2 * 7 * PRESETS["tiny"].n_layers
    for name, value in ours.items():
        # The first Adam steps move by sign(gradient), so tiny gradients magnify rounding.
        assert np.linalg.norm(theirs[name] - value) < 0.01 * np.linalg.norm(value), name


IDS = np.arange(48, dtype=np.int32).reshape(2, 24) * 5


def logits(model):
    return np.asarray(model(IDS))


def test_a_run_is_opened_with_its_base_by_either_package(runs, home):
    base = logits(load(home / "base"))
    for run in runs.values():
        ours = logits(load(run))
        assert np.abs(ours - base).max() > 0.1
        np.testing.assert_array_equal(logits(load(home / "base", adapter=run)), ours)
        np.testing.assert_array_equal(logits(load(run / "checkpoints" / str(STEPS))), ours)
        theirs = torch_load(run)(torch.as_tensor(IDS)).detach().numpy()
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
    with pytest.raises(UserError, match="has an adapter already; merge that one first"):
        load(runs["jax"], adapter=runs["torch"])


@pytest.fixture(scope="module")
def whole(home):
    """Runs of 12 steps that nothing stopped, by backend."""
    return {backend: train(backend, home, home / f"whole-{backend}", *LONG) for backend in MAINS}


@BOTH
@pytest.mark.parametrize("moment", ["writing", "step"])
def test_a_killed_run_goes_on_to_the_same_bits(whole, home, tmp_path, backend, moment):
    """With dropout and an average: they, the moments and the data go on as if nothing was.

    SIGKILL comes with the arrays of step 8 written and its manifest not, or within step 10.
    """
    broken, words = tmp_path / "broken", ("pretrain", home / "lora.yaml", *LONG)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, backend, moment, *words, "--output_dir", broken],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-4000:]
    folders = {path.parent.name for path in (broken / "checkpoints").glob("*/manifest.json")}
    assert folders == ({"4"} if moment == "writing" else {"4", "8"})
    train(backend, home, broken, *LONG, "--resume", "auto")
    expected, got = factors(whole[backend], 12), factors(broken, 12)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value)
    assert np.abs(factors(whole[backend], 8)[name] - expected[name]).max() > 0
    assert column(broken, "loss").tolist() == column(whole[backend], "loss").tolist()
    assert call(backend, *words, "--output_dir", broken, "--resume", "auto", "--r", 8) == 2


@BOTH
def test_a_narrow_base_stays_so_and_the_checkpoint_holds_adapters_alone(
    home, tmp_path, backend, capsys
):
    words = ("--model_name_or_path", home / "narrow", "--max_steps", 4)
    run = train(backend, home, tmp_path / "run", *words)
    told = capsys.readouterr().err
    assert "frozen weights kept in bfloat16, computing in bfloat16" in told
    assert "4,096 numbers are trained" in told
    assert all(value.dtype == np.float32 for value in factors(run, 4).values())
    checkpoint = run / "checkpoints" / "4"
    if backend == "jax":
        names = [".".join(path) for path in open_arrays(checkpoint / "params")]
    else:
        stored = FileSystemReader(checkpoint / "state").read_metadata().state_dict_metadata
        names = [name for name in stored if name.startswith(("params", "mu", "nu"))]
    assert names
    assert all(name.endswith(("lora_a", "lora_b")) for name in names)
    assert not (checkpoint / "model.safetensors").exists()
    assert open_source(run).stored == np.dtype("bfloat16")
    told = json.loads((run / "checkpoints" / "4" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == str(home / "narrow")
    kept = train(backend, home, tmp_path / "wide", *words, "--bf16", "false")
    assert "computing in float32" in capsys.readouterr().err
    assert np.isfinite(column(kept, "loss")).all()


@BOTH
def test_merging_tells_what_it_changed_and_refuses_half_precision(
    runs, home, tmp_path, backend, capsys
):
    run, merged = runs[backend], tmp_path / "merged"
    assert call(backend, "merge", "--adapter", run, "--output_dir", merged) == 0
    assert "the best token is the same at 100.0 %" in capsys.readouterr().out
    np.testing.assert_array_equal(logits(load(merged)), logits(load(run)))
    again = tmp_path / "again"
    aliases = ("--base_model_path", home / "base", "--lora_path", run, "--merge_path", again)
    assert call(backend, "merge", *aliases, "--check_logits", "false") == 0
    assert (again / "tokenizer.json").is_file()
    np.testing.assert_array_equal(logits(load(again)), logits(load(run)))
    half = ("--model_name_or_path", home / "narrow", "--adapter", run, "--dtype", "float16")
    assert call(backend, "merge", *half, "--output_dir", tmp_path / "half") == 2
    assert "dtype=float16: the base is stored in bfloat16" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()
    assert call(backend, "merge", *half[:4], "--output_dir", tmp_path / "narrow") == 0
    kind = load_file(tmp_path / "narrow" / "model.safetensors").popitem()[1].dtype
    assert kind.name == "bfloat16"


@BOTH
def test_a_merged_and_exported_model_answers_as_the_run_does(runs, home, tmp_path, backend, capsys):
    run = runs[backend]
    assert call(backend, "merge", "--adapter", run, "--output_dir", tmp_path / "merged") == 0
    assert call(backend, "export", tmp_path / "merged", tmp_path / "out") == 0
    asked = ("--prompt", "the mask", "--gen_length", 8, "--steps", 8, "--block_length", 8)
    answers = []
    for words in (
        (run,), (home / "base", "--adapter", run), (tmp_path / "merged",), (tmp_path / "out",),
        (home / "base",),
    ):  # fmt: skip
        capsys.readouterr()
        assert call(backend, "sample", *words, *asked) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] == answers[2] == answers[3] != answers[4]
    bounds = []
    for words in ((run,), (home / "base", "--adapter", run), (home / "base",)):
        capsys.readouterr()
        data = ("--dataset_args", home / "data", "--max_length", 16, "--json", "--seed", 1)
        assert call(backend, "evaluate", *words, *data) == 0
        bounds.append(json.loads(capsys.readouterr().out)["bound"])
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)
    assert bounds[0] < bounds[2]


def refused(capsys, backend, *words):
    assert call(backend, *words) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@BOTH
def test_what_cannot_be_adapted_is_refused_by_name(runs, home, tmp_path, backend, capsys):
    output = ("--output_dir", tmp_path / "out")
    yaml = ("pretrain", home / "lora.yaml", *output)
    assert "is an adapter itself; merge it first" in refused(
        capsys, backend, *yaml, "--model_name_or_path", runs[backend]
    )
    shape = tmp_path / "shape"
    shutil.copytree(home / "base", shape, ignore=shutil.ignore_patterns("*.safetensors"))
    assert "has no weights to adapt" in refused(
        capsys, backend, *yaml, "--model_name_or_path", shape
    )
    assert "target_modules=head: expected all-linear or names of" in refused(
        capsys, backend, *yaml, "--target_modules", "head"
    )
    assert not (tmp_path / "out").exists()
    lost = tmp_path / "lost"
    shutil.copytree(runs[backend] / "checkpoints" / str(STEPS), lost)
    about = json.loads((lost / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = "/nowhere/base"
    (lost / "adapter_config.json").write_text(json.dumps(about))
    assert "its base is not here" in refused(capsys, backend, "merge", "--adapter", lost, *output)
    assert call(backend, "merge", "--adapter", lost, "--model_name_or_path", home / "base",
                "--check_logits", "false", *output) == 0  # fmt: skip
    assert "neither a PEFT folder nor a run" in refused(
        capsys, backend, "merge", "--adapter", home / "base", "--output_dir", tmp_path / "x"
    )
