"""Adapter files without any framework: what they may say, where their factors go."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.config.presets import preset
from jaxllada.common.errors import UserError
from jaxllada.common.weights.adapter import Adapter, MergedSource, target_paths
from jaxllada.common.weights.names import entry_shape, llada_table
from jaxllada.common.weights.opening import open_folder
from jaxllada.common.weights.peft import read_adapter, write_adapter
from tests.jax.golden import VARIANT_CONFIGS, write_variant
from tests.model_folders import write_model

TINY = preset("tiny")
SEQUENTIAL = ModelConfig.from_dict(VARIANT_CONFIGS["seq"])
QUERY = "base_model.model.model.transformer.blocks.{}.q_proj.lora_{}.weight"


def some_adapter(config, names="all-linear", r=2, seed=0, same_a=False):
    rng = np.random.default_rng(seed)
    shapes = {e.path[:-1]: entry_shape(config, e) for e in llada_table(config) if e.transposed}
    first = {}
    factors = {}
    for path in target_paths(config, names):
        width, out = shapes[path]
        a = rng.standard_normal((config.n_layers, r, width), np.float32)
        a = first.setdefault(path[-2], a) if same_a and path[-2] == "attention" else a
        factors[path] = (a, rng.standard_normal((config.n_layers, out, r), np.float32))
    return Adapter(factors, r=r, lora_alpha=8)


@pytest.fixture
def folder(tmp_path):
    write_adapter(tmp_path, some_adapter(TINY, "q_proj,ff_out"), TINY)
    return tmp_path


def edit(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change(folder, alter):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    alter(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("names", "leaves"),
    [
        ("all-linear", "q_proj k_proj v_proj attn_out ff_proj up_proj ff_out"),
        ("q_proj, o_proj", "q_proj attn_out"),
        ("gate_proj,down_proj,ff_out", "ff_proj ff_out"),
    ],
)
def test_names_of_both_layouts_mean_the_layers_of_blocks(names, leaves):
    paths = target_paths(TINY, names)
    assert [path[-1] for path in paths] == leaves.split()
    assert all(path[0] == "blocks" for path in paths)


def test_a_fused_layer_is_named_as_it_is_stored():
    assert [p[-1] for p in target_paths(SEQUENTIAL, "att_proj")] == ["q_proj", "k_proj", "v_proj"]
    with pytest.raises(UserError, match="target_modules=att_proj: expected all-linear or names of"):
        target_paths(TINY, "att_proj")
    with pytest.raises(UserError, match="target_modules=up_proj"):
        target_paths(SEQUENTIAL, "up_proj")


@pytest.mark.parametrize("use_rslora", [False, True])
def test_merging_is_w_plus_scaled_b_a_rounded_once(tmp_path, use_rslora):
    config = dataclasses.replace(TINY, n_layers=3)
    write_model(tmp_path / "model", config.to_dict(), "llada", "bfloat16", finite=True)
    adapter = dataclasses.replace(some_adapter(config, "v_proj", r=4), use_rslora=use_rslora)
    plain = open_folder(tmp_path / "model")
    merged = MergedSource(plain, adapter)
    scale = 8 / 2 if use_rslora else 8 / 4
    for entry in merged.entries:
        is_adapted = entry.path[-2:] == ("v_proj", "kernel")
        assert merged.dtype(entry) == (np.float32 if is_adapted else ml_dtypes.bfloat16)
        for layer in range(config.n_layers if entry.per_layer else 1):
            weight = plain.read(entry, layer).astype(np.float64)
            if is_adapted:
                a, b = (f[layer].astype(np.float64) for f in adapter.factors[entry.path[:-1]])
                weight = weight + scale * (b @ a).T
            found = merged.read(entry, layer)
            np.testing.assert_allclose(found.astype(np.float64), weight, atol=1e-5)
            np.testing.assert_array_equal(merged.read(entry, layer, (3, 9)), found[3:9])


def test_a_fused_layer_is_split_and_joined(tmp_path):
    adapter = some_adapter(SEQUENTIAL, same_a=True)
    write_adapter(tmp_path, adapter, SEQUENTIAL)
    width = SEQUENTIAL.d_model + 2 * SEQUENTIAL.kv_heads * SEQUENTIAL.head_dim
    stored = load_file(tmp_path / "adapter_model.safetensors")
    name = "base_model.model.model.transformer.blocks.0.att_proj.lora_B.weight"
    assert stored[name].shape == (width, 2)
    again = read_adapter(tmp_path, SEQUENTIAL)
    assert again.factors.keys() == adapter.factors.keys()
    for path, pair in adapter.factors.items():
        for a, b in zip(pair, again.factors[path], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_fused_layer_takes_one_a_for_all(tmp_path):
    with pytest.raises(UserError, match="att_proj is one layer, but its q, k and v differ in A"):
        write_adapter(tmp_path, some_adapter(SEQUENTIAL), SEQUENTIAL)
    with pytest.raises(UserError, match="att_proj is one layer: adapt q, k and v together"):
        write_adapter(tmp_path, some_adapter(SEQUENTIAL, "q_proj"), SEQUENTIAL)
    assert list(tmp_path.iterdir()) == []


def test_factors_keep_their_type_and_bits(tmp_path):
    adapter = some_adapter(TINY, "k_proj")
    path, (a, b) = next(iter(adapter.factors.items()))
    pair = a.astype(ml_dtypes.bfloat16), b.astype(ml_dtypes.bfloat16)
    write_adapter(tmp_path, dataclasses.replace(adapter, factors={path: pair}), TINY)
    for before, after in zip(pair, read_adapter(tmp_path, TINY).factors[path], strict=True):
        assert before.dtype == after.dtype
        assert before.tobytes() == after.tobytes()


def test_a_plain_ff_out_would_mean_the_head_too(folder):
    """PEFT takes a string as a pattern for whole names, so the head stays out."""
    import re

    said = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert re.fullmatch(said, "model.transformer.blocks.1.ff_out")
    assert re.fullmatch(said, "model.transformer.blocks.10.q_proj")
    assert not re.fullmatch(said, "model.transformer.ff_out")
    assert not re.fullmatch(said, "model.transformer.blocks.1.k_proj")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported: expected 'LORA'"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern=.* is not supported"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern=.* is not supported"),
        ({"modules_to_save": ["wte"]}, r"modules_to_save=\['wte'\] is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"layers_to_transform": [1]}, r"layers_to_transform=\[1\] is not supported"),
        ({"r": 0}, "r=0: expected a number above 0"),
        ({"lora_alpha": None}, "lora_alpha=None: expected a number above 0"),
        ({"r": 3}, "but r=3 and the model ask for"),
    ],
)
def test_other_kinds_of_adapters_are_refused(folder, values, message):
    edit(folder, **values)
    with pytest.raises(UserError, match=message):
        read_adapter(folder, TINY)


def head(tensors):
    for side, shape in (("A", (2, 32)), ("B", (128, 2))):
        name = f"base_model.model.model.transformer.ff_out.lora_{side}.weight"
        tensors[name] = np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (head, "adapts the output head model.transformer.ff_out, which is not supported"),
        (lambda t: t.pop(QUERY.format(1, "A")), "only one factor of .*blocks.1.q_proj"),
        (
            lambda t: [t.pop(QUERY.format(0, side)) for side in "AB"],
            "q_proj is not adapted in layers 0",
        ),
        (
            lambda t: t.update({QUERY.format(9, s): np.zeros((2, 2), np.float32) for s in "AB"}),
            "no linear layer of a block is called model.transformer.blocks.9.q_proj",
        ),
        (
            lambda t: t.update({QUERY.format(0, "A"): np.zeros((2, 31), np.float32)}),
            r"has factors \(2, 31\) and \(32, 2\), but r=2",
        ),
        (lambda t: t.update(x=np.zeros(1, np.float32)), "x is not a factor of a linear layer"),
        (lambda t: t.clear(), "holds no factors"),
    ],
)
def test_factors_that_do_not_fit_are_named(folder, alter, message):
    change(folder, alter)
    with pytest.raises(UserError, match=message):
        read_adapter(folder, TINY)


def test_a_folder_without_weights_is_told(folder):
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"has adapter_model.safetensors \(pickles are not opened\)"
    ):
        read_adapter(folder, TINY)
    with pytest.raises(UserError, match="adapter_config.json: no such file"):
        read_adapter(folder / "nowhere", TINY)


def test_an_adapter_without_the_name_of_its_base_is_no_model(folder):
    with pytest.raises(UserError, match="does not name its base; give the base as the model and"):
        open_folder(folder)


def test_an_adapter_of_a_model_without_head_is_understood(folder):
    """AutoModel leaves out the outer `model.`."""
    change(
        folder,
        lambda t: [
            t.update({k.replace("model.model.model.", "model.model."): t.pop(k)}) for k in list(t)
        ],
    )
    assert len(read_adapter(folder, TINY).factors) == 2


def test_a_layout_that_cannot_express_the_model_is_refused(tmp_path):
    write_variant("qknorm", tmp_path / "model")
    config = read_config(tmp_path / "model")
    with pytest.raises(UserError, match="layout=llama cannot express attention_layer_norm=True"):
        write_adapter(tmp_path / "x", some_adapter(config), config, layout="llama")
