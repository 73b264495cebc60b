"""`verify` finds every difference between two checkpoints, and none where there is none."""

import hashlib
import itertools
import json
import tempfile
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxllada.__main__ import main
from jaxllada.apps import verify as app
from jaxllada.commands import verify
from jaxllada.common.config.load import load_config
from jaxllada.common.config.opening import read_config
from jaxllada.common.errors import UserError
from jaxllada.common.weights.compare import _aligned, compare_weights
from jaxllada.common.weights.opening import open_folder

GOLDEN = Path(__file__).parents[1] / "golden" / "dense"
NORM = "model.transformer.ln_f.weight"


def weights() -> dict[str, np.ndarray]:
    tensors = {}
    for shard in GOLDEN.glob("*.safetensors"):
        tensors |= load_file(shard)
    return tensors


@pytest.fixture
def other(tmp_path):
    """Writes the golden folder again with changed tensors and config fields."""

    def make(change=lambda tensors: None, name="other", **fields):
        folder = tmp_path / name
        folder.mkdir()
        tensors = weights()
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        config = json.loads((GOLDEN / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return make


def report(a, b, *argv) -> tuple[int, dict]:
    """Runs the verb and reads its report as strict JSON."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        argv = (str(a), str(b), "--report", str(file), *argv)
        code = verify.run(load_config(verify.Config, argv))
        return code, json.loads(file.read_text(), parse_constant=refuse)


def differences(found: dict) -> dict[str, dict]:
    return {t["name"]: t for t in found["tensors"] if t["status"] != "equal"}


def test_every_format_of_one_model_is_equal(tmp_path, capsys, other):
    assert main(["convert", "hf-to-flax", str(GOLDEN), str(tmp_path / "flax")]) == 0
    for layout in ("llada", "llama"):
        target = str(tmp_path / layout)
        argv = ["convert", "flax-to-hf", str(tmp_path / "flax"), target, "--layout", layout]
        assert main([*argv, "--shard_size", "200kB"]) == 0
    for path, kind in (("flax", "orbax"), ("llada", "llada"), ("llama", "llama")):
        code, found = report(GOLDEN, tmp_path / path, "--logits")
        assert (code, found["equal"], found["b"]["format"]) == (0, True, kind)
        assert len(found["tensors"]) == 30
        assert found["logits"]["equal"]
        assert "equal: 30 tensors, 1.36 MB compared, the same bits" in capsys.readouterr().out
    code, found = report(tmp_path / "flax", tmp_path / "llama")
    assert code == 0


def test_hashes_are_those_of_the_released_bytes(other):
    _, found = report(GOLDEN, other())
    hashes = {t["name"]: t["a"]["sha256"] for t in found["tensors"]}
    with safe_open(next(iter(GOLDEN.glob("*1-of-*.safetensors"))), "np") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in stored if name.endswith("0.q_proj.weight"))
    digest = hashlib.sha256(np.ascontiguousarray(stored[name]).tobytes()).hexdigest()
    assert hashes["blocks.0.attention.q_proj.kernel"] == digest


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (1.0, 1.5, 0.5),
        (0.0, -0.0, 0.0),  # equal as numbers, not as bits
        (1.0, np.nan, None),
        (1.0, np.inf, None),
        (3.0, np.float32(3) + np.float32(2**-22), 2**-22),
    ],
)
def test_one_changed_value_is_found(capsys, other, before, after, expected):
    paths = []
    for name, value in (("a", before), ("b", after)):

        def change(tensors, value=value):
            tensors[NORM][7] = value

        paths.append(other(change, name))
    code, found = report(*paths)
    assert code == 1
    (one,) = differences(found).values()
    assert (one["name"], one["status"], one["differing"]) == ("ln_f.weight", "values", 1)
    assert one["max_difference"] == expected
    assert one["a"]["sha256"] != one["b"]["sha256"]
    assert "different: 1 of 30 tensors" in capsys.readouterr().out


def test_equal_nans_and_infinities_are_no_difference(other):
    def change(tensors):
        tensors[NORM][:2] = np.nan, np.inf

    def again(tensors):
        change(tensors)
        tensors[NORM][5] += 1

    code, found = report(other(change, "a"), other(again, "b"))
    (one,) = differences(found).values()
    assert (code, one["differing"], one["max_difference"]) == (1, 1, 1.0)


def test_another_type_is_a_difference_even_of_equal_values(other, capsys):
    def change(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)

    def back(tensors):
        change(tensors)
        for name in tensors:
            tensors[name] = tensors[name].astype(np.float32)

    rounded, wide = other(change, "rounded"), other(back, "wide")
    code, found = report(rounded, wide)
    assert code == 1
    assert {t["status"] for t in found["tensors"]} == {"dtype"}
    assert {(t["differing"], t["max_difference"]) for t in found["tensors"]} == {(0, 0.0)}
    code, found = report(rounded, GOLDEN)
    embedding = weights()["model.transformer.wte.weight"]
    gap = np.abs(embedding - embedding.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert found["tensors"][0]["max_difference"] == gap.max()
    assert found["tensors"][0]["differing"] == (gap > 0).sum()
    assert "... and 10 more" in capsys.readouterr().out


def test_tensors_that_are_missing_added_or_of_another_shape_are_named(other, capsys):
    def shorten(tensors):
        for name in list(tensors):
            if ".blocks.2." in name:
                del tensors[name]
        for name in ("wte", "ff_out"):
            key = f"model.transformer.{name}.weight"
            tensors[key] = np.concatenate([tensors[key], tensors[key][:8]])

    short = other(shorten, "short", n_layers=2, embedding_size=520)
    code, found = report(GOLDEN, short)
    differs = differences(found)
    assert code == 1
    assert {t["status"] for name, t in differs.items() if "blocks.2" in name} == {"missing"}
    assert sum("blocks.2" in name for name in differs) == 9
    assert differs["wte"]["status"] == differs["ff_out.weight"]["status"] == "shape"
    assert (differs["wte"]["a"]["shape"], differs["wte"]["b"]["shape"]) == ([512, 64], [520, 64])
    assert found["config"] == {"n_layers": [3, 2], "rows": [512, 520]}
    assert "only in a" in capsys.readouterr().out
    code, found = report(short, GOLDEN)
    assert {t["status"] for t in differences(found).values()} == {"unexpected", "shape"}


def test_the_same_weights_under_another_config_are_another_model(other, capsys):
    code, found = report(GOLDEN, other(rms_norm_eps=1e-6, init_std=0.5), "--logits")
    assert code == 1
    assert not differences(found)
    assert found["config"] == {"rms_norm_eps": [1e-5, 1e-6]}
    assert 0 < found["logits"]["max_difference"] < 0.01
    out = capsys.readouterr().out
    assert "config: rms_norm_eps is 1e-05 in a and 1e-06 in b" in out
    assert "the best token is the same at" in out


def test_logits_show_what_a_changed_weight_does(other):
    def change(tensors):
        tensors["model.transformer.blocks.1.ff_out.weight"] += 0.01

    path = other(change)
    code, found = report(GOLDEN, path, "--logits", "--dtype", "bfloat16")
    assert code == 1
    assert found["logits"]["dtype"] == "bfloat16"
    assert found["logits"]["max_difference"] > 0.01
    ids, mask = app.fixed_prompts(read_config(GOLDEN))
    assert found["logits"]["positions"] == mask.sum() == 48 + 43 + 31 + 8
    assert 0.4 < (ids == 511)[mask == 1].mean() < 0.6


def test_the_command_line_gives_0_1_and_2(other, capsys):
    def change(tensors):
        tensors[NORM][0] += 1

    assert main(["verify", str(GOLDEN), str(GOLDEN)]) == 0
    assert main(["verify", str(GOLDEN), other(change)]) == 1
    assert main(["verify", str(GOLDEN), "no/such/folder/here"]) == 2
    assert capsys.readouterr().err.startswith("error: no/such/folder/here")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["", "b"], "a: is empty"),
        (["a", "b", "--dtype", "bfloat16"], "only --logits runs anything"),
        (["a", "b", "--report", "no/such/file.json"], "its folder does not exist"),
        ([str(GOLDEN), str(GOLDEN), "--a_step", "3"], "step=3: .* is not the folder"),
    ],
)
def test_wrong_requests_are_told(argv, message):
    with pytest.raises(UserError, match=message):
        verify.run(load_config(verify.Config, argv))


def test_damaged_files_are_told_by_name(other):
    path = Path(other())
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-5])
    with pytest.raises(UserError, match="model.safetensors is not a complete safetensors file"):
        verify.run(load_config(verify.Config, [str(GOLDEN), str(path)]))


def test_memory_stays_small_beside_the_weights(tmp_path):
    """Two folders of 160 MB, their values all different: a few pieces of 4 MB at a time."""
    for name, seed in (("a", 0), ("b", 1)):
        config = json.loads((GOLDEN / "config.json").read_text())
        config |= {"vocab_size": 20_000, "embedding_size": 20_000, "d_model": 1024, "n_layers": 1}
        config |= {"mlp_hidden_size": 8}
        rng = np.random.default_rng(seed)
        tensors = {
            f"model.transformer.{key}.weight": rng.random(shape, np.float32)
            for key, shape in (
                ("wte", (20_000, 1024)),
                ("ff_out", (20_000, 1024)),
                ("ln_f", (1024,)),
                *((f"blocks.0.{norm}", (1024,)) for norm in ("attn_norm", "ff_norm")),
                *((f"blocks.0.{x}", (1024, 1024)) for x in ("q_proj", "k_proj", "v_proj")),
                ("blocks.0.attn_out", (1024, 1024)),
                *((f"blocks.0.{x}", (8, 1024)) for x in ("ff_proj", "up_proj")),
                ("blocks.0.ff_out", (1024, 8)),
            )
        }
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    del tensors
    sources = [open_folder(tmp_path / name) for name in ("a", "b")]
    tracemalloc.start()
    found = list(compare_weights(*sources))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(c.status == "values" for c in found)
    assert peak < 40e6


@given(st.lists(st.integers(1, 9)), st.lists(st.integers(1, 9)))
def test_streams_cut_otherwise_come_aligned(a, b):
    total = min(sum(a), sum(b))

    def cut(sizes):
        ends = [end for end in np.cumsum([0, *sizes]) if end < total] + [total]
        return [np.arange(i, j) for i, j in itertools.pairwise(ends)]

    pairs = list(_aligned(cut(a), cut(b)))
    for x, y in pairs:
        np.testing.assert_array_equal(x, y)
    joined = np.concatenate([np.empty(0), *(x for x, _ in pairs)])
    np.testing.assert_array_equal(joined, np.arange(total))
