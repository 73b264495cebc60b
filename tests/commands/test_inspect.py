"""`inspect` counts what a model is, checks what a folder holds, and makes no weights."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllada.commands import inspect
from jaxllada.common.config.load import load_config
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.presets import preset
from jaxllada.common.errors import UserError
from tests.jax.golden import write_variant
from tests.model_folders import ILLADA, write_model

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "dense"


def report(capsys, *argv) -> tuple[int, dict]:
    code = inspect.run(load_config(inspect.Config, [*argv, "--json"]))
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "total"), [("llada-100m", 124_327_616), ("LLaDA-8B", 8_015_581_184)]
)
def test_presets_count_as_published(capsys, name, total):
    code, found = report(capsys, name)
    parts = found["parameters"]
    assert code == 0
    assert parts["total"] == total
    names = ("embedding", "attention", "mlp", "norms", "head")
    assert sum(parts[part] for part in names) == total
    assert parts["body"] == total - parts["embedding"] - parts["head"]
    assert found["bytes"]["checkpoint_bfloat16"] == 2 * total
    # 8 B parameters in float32: weights and two moments are 12 bytes each, gradients 4 more.
    assert found["bytes"]["training_state"] + found["bytes"]["gradient"] == 16 * total


def test_flops_are_two_per_weight_and_token_at_length_zero_limit(capsys):
    """Without attention scores a forward pass is one multiply-add per matrix weight."""
    _, short = report(capsys, "llada-100m", "--length", "1")
    config, parts = preset("llada-100m"), short["parameters"]
    matrices = parts["attention"] + parts["mlp"] + parts["head"]
    scores = 2 * 2 * config.n_layers * config.d_model
    flops = short["flops_per_token"]
    assert flops["forward"] == 2 * matrices + scores
    assert flops["training"] == 3 * flops["forward"]
    assert flops["training_masked_only"] == flops["training"] - 3 * parts["head"]


def test_a_folder_shows_its_stored_weights(capsys):
    code, found = report(capsys, str(GOLDEN))
    weights = found["weights"]
    assert code == 0
    assert weights["elements"] == found["parameters"]["total"]
    assert weights["types"] == {"float32": weights["tensors"]}
    assert (weights["missing"], weights["unexpected"], weights["complete"]) == ([], [], True)
    assert found["config"] == json.loads((GOLDEN / "config.json").read_text())


@pytest.fixture
def damaged(tmp_path):
    """Copies the golden folder into one file with its tensors changed."""

    def make(change):
        tensors = {}
        for shard in GOLDEN.glob("*.safetensors"):
            tensors |= load_file(shard)
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text())
        return str(tmp_path)

    return make


def test_missing_and_left_over_weights_are_named(capsys, damaged):
    def change(tensors):
        tensors.pop("model.transformer.ln_f.weight")
        tensors["model.transformer.extra.weight"] = np.zeros(3, np.float32)

    folder = damaged(change)
    code, found = report(capsys, folder)
    assert code == 1
    assert found["weights"]["missing"] == ["model.transformer.ln_f.weight"]
    assert found["weights"]["unexpected"] == ["model.transformer.extra.weight"]
    inspect.run(inspect.Config(model=folder))
    out = capsys.readouterr().out
    assert "1 missing: model.transformer.ln_f.weight" in out
    assert "1 unexpected: model.transformer.extra.weight" in out


def test_tensors_of_another_size_are_named(capsys, damaged):
    def change(tensors):
        tensors["model.transformer.ln_f.weight"] = np.zeros(63, np.float32)

    folder = damaged(change)
    code, found = report(capsys, folder)
    name = "model.transformer.ln_f.weight has shape (63,), but config.json asks for (64,)"
    assert (code, found["weights"]["misshaped"]) == (1, [name])
    inspect.run(inspect.Config(model=folder))
    assert f"1 misshaped: {name}" in capsys.readouterr().out


def test_a_fused_tensor_is_one_kind(capsys, tmp_path):
    write_variant("seq", tmp_path)
    code, found = report(capsys, str(tmp_path))
    kinds = {row["name"]: row for row in found["weights"]["kinds"]}
    fused = kinds["model.transformer.blocks.{layer}.att_proj.weight"]
    assert code == 0
    assert fused["count"] == found["config"]["n_layers"]
    assert sum(row["bytes"] for row in kinds.values()) == found["weights"]["bytes"]


def test_the_llama_layout_of_illada_is_described(capsys, tmp_path):
    write_model(tmp_path, ILLADA, "llama", "bfloat16", shards=3)
    code, found = report(capsys, str(tmp_path))
    weights = found["weights"]
    assert (code, weights["format"], weights["files"]) == (0, "llama", 3)
    assert weights["loader"] == "safetensors, llama names"
    assert weights["types"] == {"bfloat16": 20}  # the second copy of the tied head is not counted
    assert weights["elements"] == found["parameters"]["total"]
    notes = " / ".join(weights["notes"])
    assert "no file tells the id of the mask token" in notes
    assert "the head is tied but stored as well (lm_head.weight)" in notes
    assert "rotary angles are rounded" in notes
    assert "can be exported as llada or llama" in notes


def test_a_model_that_llama_cannot_express_says_so(capsys, tmp_path):
    write_variant("scale", tmp_path)
    _, found = report(capsys, str(tmp_path))
    assert any(
        "llada only: layout=llama cannot express scale_logits" in n
        for n in found["weights"]["notes"]
    )


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A training run with two checkpoints, the second with an average of the weights."""
    from tests.jax.saved_runs import write_run

    return write_run(tmp_path_factory.mktemp("run"), averaged=(2,))


def test_a_run_and_a_converted_folder_are_described(capsys, tmp_path, run_folder):
    from jaxllada.convert import open_source
    from jaxllada.stream import to_flax

    to_flax(open_source(run_folder), tmp_path / "flax")
    cases = [
        ([run_folder], "run", "orbax, item ema, checkpoint 2"),
        ([run_folder, "--step", "1"], "run", "orbax, item params, checkpoint 1"),
        ([tmp_path / "flax"], "orbax", "orbax, item params"),
    ]
    for argv, kind, loader in cases:
        code, found = report(capsys, *map(str, argv))
        weights = found["weights"]
        assert (code, weights["format"], weights["loader"]) == (0, kind, loader)
        assert weights["elements"] == found["parameters"]["total"]
        assert weights["bytes"] == 4 * weights["elements"]
    with pytest.raises(UserError, match=r"step=7: no such checkpoint in .* \(there: 1, 2\)"):
        report(capsys, str(run_folder), "--step", "7")
    with pytest.raises(UserError, match="step=7: .* is not the folder of a training run"):
        report(capsys, "tiny", "--step", "7")


def test_arrays_that_are_not_those_of_the_config_are_named(capsys, tmp_path, run_folder):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    changed = config | {"include_qkv_bias": True, "embedding_size": 130}
    (folder / "config.json").write_text(json.dumps(changed))
    code, found = report(capsys, str(folder))
    assert code == 1
    assert "blocks.attention.q_proj.bias" in found["weights"]["missing"]
    assert found["weights"]["misshaped"][0].startswith(("ff_out.weight has shape", "wte has shape"))
    assert not found["weights"]["complete"]


def test_a_cut_off_file_is_an_error_of_one_line(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "model")
    shard = tmp_path / "model" / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="00001-of-00002.safetensors is not a complete") as caught:
        inspect.run(inspect.Config(model=str(tmp_path / "model")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("budget", "vocab", "count"),
    [("100M", 32000, 100e6), ("1.5B", 0, 1.5e9), ("30_000k", 4096, 3e7)],
)
def test_fit_comes_near_its_budget(capsys, budget, vocab, count):
    _, found = report(capsys, "--fit", budget, "--vocab", str(vocab))
    assert found["parameters"]["total"] == pytest.approx(count, rel=0.05)
    assert found["config"]["vocab_size"] == (vocab or 126464)


def test_a_fitted_config_is_saved_and_counts_the_same(tmp_path, capsys):
    folder = tmp_path / "models" / "mine"
    inspect.run(inspect.Config(fit="20M", vocab=8000, save=str(folder)))
    assert f"wrote {folder / 'config.json'}" in capsys.readouterr().out
    _, found = report(capsys, str(folder))
    assert found["parameters"]["total"] == pytest.approx(20e6, rel=0.05)
    assert read_config(folder).vocab_size == 8000


def test_the_table_says_the_same_as_the_json(capsys):
    inspect.run(inspect.Config(model="llada-100m"))
    out = capsys.readouterr().out
    assert re.search(r"total +124,327,616", out)
    assert re.search(r"embedding +56,655,872 +45.6 %", out)
    assert re.search(r"checkpoint, bfloat16 +249 MB", out)
    assert all(len(line) <= 120 for line in out.splitlines())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected either a model or --fit"),
        (["tiny", "--fit", "1M"], "expected either a model or --fit"),
        (["tiny", "--vocab", "3"], "vocab=3: only --fit"),
        (["--fit", "1M", "--vocab", "-1"], "vocab=-1: expected 0 or more"),
        (["--fit", "big"], "fit=big: expected a number of parameters"),
        (["--fit", "0M"], "fit=0M: expected a number of parameters"),
        (["--fit", "1M"], "cannot be met"),
        (["lada-8b"], "model=lada-8b: no such file or folder.*did you mean 'llada-8b'"),
    ],
)
def test_wrong_requests_are_told(argv, message):
    with pytest.raises(UserError, match=message):
        inspect.run(load_config(inspect.Config, argv))


def test_eight_billion_weights_are_counted_without_a_framework_or_memory():
    code = (
        "import sys; from jaxllada.__main__ import main; main(['inspect', 'llada-8b']);"
        "assert not {'jax', 'torch'} & sys.modules.keys();"
        # Of this process alone: getrusage would count the pytest process it was started from.
        "from jaxllada.common.timing import peak_memory; print(peak_memory() >> 20)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "8,015,581,184" in done.stdout
    assert int(done.stdout.splitlines()[-1]) < 500  # MiB
