"""Folders of both layouts, read one layer at a time: the right numbers, or an error with names."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import write_manifest
from jaxllada.common.weights.layouts import LAYOUTS
from jaxllada.common.weights.opening import open_folder
from tests.jax.golden import DENSE, write_variant
from tests.model_folders import (
    DTYPES,
    ILLADA,
    assert_same_bits,
    configs,
    read_weights,
    write_model,
    write_shards,
)

LLAVA = {
    **{key: value for key, value in ILLADA.items() if key not in ("auto_map", "layer_norm_eps")},
    "model_type": "llava_llada",
    "architectures": ["LlavaLLaDAModelLM"],
    "tie_word_embeddings": False,
    "mask_token_id": 5,
    "mm_vision_tower": "siglip2",
}
IMAGE = {
    "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.bias": 3,
    "model.mm_projector.0.weight": 4,
    "model.image_newline": 5,
}


def entry_of(source, *path):
    return next(entry for entry in source.entries if entry.path == path)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_layer_comes_from_its_place(tmp_path_factory, data):
    """The oracle joins what was read back into stored tensors and compares their bytes."""
    layout = data.draw(st.sampled_from(list(LAYOUTS)))
    config = data.draw(configs(for_llama=layout == "llama"))
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    folder = tmp_path_factory.mktemp("model")
    config_json = LAYOUTS[layout].write_config(config)
    shards = data.draw(st.integers(1, 5))
    stored = write_model(folder, config_json, layout, dtype, shards)
    source = open_folder(folder)
    assert (source.config, source.kind) == (config, layout)
    joined = {}
    for tensor in LAYOUTS[layout].tensors(config):
        parts = []
        for entry, layer in tensor.parts:
            array = source.read(entry, layer)
            assert array.shape == source.shape(entry)
            assert array.dtype == source.dtype(entry) == DTYPES[dtype]
            first = data.draw(st.integers(0, len(array) - 1))
            rows = source.read(entry, layer, (first, len(array)))
            assert rows.tobytes() == array[first:].tobytes()
            parts.append(array.T if entry.transposed else array)
        joined[tensor.name] = np.ascontiguousarray(np.concatenate(parts))
    assert_same_bits(stored, joined)


def test_reading_copies_nothing():
    source = open_folder(DENSE)
    for entry in source.entries:
        view = source.read(entry)
        assert not view.flags.owndata
        assert not view.flags.writeable
        assert view.flags.f_contiguous if entry.transposed else view.flags.c_contiguous


def test_layers_of_different_types_are_read_as_one_that_holds_both(tmp_path):
    stored = write_model(tmp_path, ILLADA, "llama", "bfloat16", finite=True)
    name = "model.layers.1.mlp.up_proj.weight"
    stored[name] = stored[name].astype(np.float16)
    write_shards(tmp_path, stored)
    source = open_folder(tmp_path)
    entry = entry_of(source, "blocks", "mlp", "up_proj", "kernel")
    assert source.dtype(entry) == np.float32
    for layer in range(2):
        read = source.read(entry, layer)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(
            read, stored[f"model.layers.{layer}.mlp.up_proj.weight"].T.astype(np.float32)
        )


def test_a_tied_head_that_is_stored_has_to_be_the_embedding(tmp_path):
    stored = write_model(tmp_path, ILLADA, "llama", "bfloat16", shards=3)
    source = open_folder(tmp_path)
    embedding = source.read(entry_of(source, "wte"))
    assert embedding.tobytes() == stored["lm_head.weight"].tobytes()
    head = stored["lm_head.weight"].view(np.uint16)
    head[-1, -1] ^= 1
    write_shards(tmp_path, stored)
    source = open_folder(tmp_path)  # headers alone cannot tell
    source.read(entry_of(source, "ln_f", "weight"))
    with pytest.raises(UserError, match=r"lm_head.weight differs from the embedding, but"):
        source.read(entry_of(source, "wte"))


def test_a_tied_head_may_be_missing_but_not_of_another_shape(tmp_path):
    stored = write_model(tmp_path, ILLADA, "llama")
    head = stored.pop("lm_head.weight")
    write_shards(tmp_path, stored)
    assert open_folder(tmp_path).config.weight_tying
    write_shards(tmp_path, stored | {"lm_head.weight": head[:-1].copy()})
    with pytest.raises(UserError, match=r"1 of another shape \(lm_head.weight has shape \(39, 16"):
        open_folder(tmp_path)


def test_the_image_part_of_llada_v_is_left_aside(tmp_path, capsys):
    stored = write_model(tmp_path, LLAVA, "llama", "bfloat16")
    image = {name: np.ones(n, ml_dtypes.bfloat16) for name, n in IMAGE.items()}
    write_shards(tmp_path, stored | image, 2)
    source = open_folder(tmp_path)
    assert (
        "3 tensors are left aside (image_newline, mm_projector, vision" in capsys.readouterr().err
    )
    assert source.config.extra["llama_config"]["mm_vision_tower"] == "siglip2"
    exported = LAYOUTS["llama"].write_config(source.config)
    changed = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "is_causal": False}
    assert exported == LLAVA | changed
    write_shards(tmp_path, stored | image | {"model.vision.weight": image["model.image_newline"]})
    with pytest.raises(UserError, match=r"1 unexpected \(model.vision.weight\)"):
        open_folder(tmp_path)


def test_everything_wrong_is_told_at_once(tmp_path):
    stored = write_model(tmp_path, ILLADA, "llama")
    stored["extra"] = stored.pop("model.norm.weight")
    name = "model.layers.0.input_layernorm.weight"
    stored[name] = stored[name][:3].copy()
    write_shards(tmp_path, stored)
    message = (
        r"1 weights missing \(model.norm.weight\) and 1 unexpected \(extra\) and 1 of another "
        r"shape \(model.layers.0.input_layernorm.weight has shape \(3,\), but config.json asks "
        r"for \(16,\)\)"
    )
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path)


def test_weights_of_integers_are_refused(tmp_path):
    stored = write_model(tmp_path, ILLADA, "llama")
    stored["model.norm.weight"] = np.ones(16, np.int8)
    write_shards(tmp_path, stored)
    with pytest.raises(UserError, match=r"model.norm.weight is stored as I8, expected F32, F16"):
        open_folder(tmp_path)


def write_tokenizer(folder, tokens, mask=None):
    vocabulary = {"a": 0, "b": 1}
    added = [{"id": number, "content": name, "special": True} for name, number in tokens.items()]
    text = json.dumps({"model": {"type": "BPE", "vocab": vocabulary}, "added_tokens": added})
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": mask}))


@pytest.mark.parametrize("mask", [None, "<[MASK]>", {"content": "<[MASK]>"}])
def test_the_tokenizer_tells_the_mask_id_that_the_config_lacks(tmp_path, mask):
    write_model(tmp_path, ILLADA, "llama")
    assert open_folder(tmp_path).config.mask_token_id is None
    write_tokenizer(tmp_path, {"<[MASK]>": 5}, mask)
    config = open_folder(tmp_path).config
    assert config.mask_id == 5
    assert LAYOUTS["llama"].write_config(config) == ILLADA  # whose tokenizer goes with it
    assert LAYOUTS["llama"].write_config(ModelConfig.from_dict(config.to_dict())) == ILLADA


def test_the_mask_id_may_be_given_where_nothing_tells_it(tmp_path):
    write_model(tmp_path, ILLADA, "llama")
    assert open_folder(tmp_path, mask_token_id=7).config.mask_id == 7
    write_tokenizer(tmp_path, {"<[MASK]>": 5})
    with pytest.raises(UserError, match=r"<\[MASK\]> = 5, mask_token_id as given = 7"):
        open_folder(tmp_path, mask_token_id=7)


def test_a_released_config_without_a_mask_id_takes_the_given_one(tmp_path):
    write_variant("base", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"mask_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="mask_token_id is null"):
        _ = open_folder(tmp_path).config.mask_id
    assert open_folder(tmp_path, mask_token_id=7).config.mask_id == 7
    (tmp_path / "config.json").write_text(json.dumps(values | {"mask_token_id": 8}))
    with pytest.raises(UserError, match="mask_token_id = 8, mask_token_id as given = 7"):
        open_folder(tmp_path, mask_token_id=7)


def test_a_config_that_disagrees_with_the_tokenizer_is_refused(tmp_path):
    write_model(tmp_path, ILLADA | {"mask_token_id": 6}, "llama")
    write_tokenizer(tmp_path, {"<|mask|>": 5}, "<|mask|>")
    message = r"disagree: config.json mask_token_id = 6, tokenizer_config.json mask_token = 5"
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path)


def test_a_mask_token_without_an_id_is_refused(tmp_path):
    write_model(tmp_path, ILLADA, "llama")
    write_tokenizer(tmp_path, {"<[MASK]>": 5}, "<mask>")
    with pytest.raises(UserError, match="mask_token='<mask>' is not in the vocabulary"):
        open_folder(tmp_path)


def test_runs_whose_checkpoints_are_model_folders_open_at_a_step(tmp_path):
    for step in (3, 7):
        write_model(tmp_path / "checkpoints" / str(step), ILLADA, "llama", seed=step)
        write_manifest(tmp_path / "checkpoints" / str(step), {"step": step, "metric": None})
    for step, expected in ((None, 7), (3, 3)):
        source = open_folder(tmp_path, step)
        assert source.kind == "run"
        stored = read_weights(tmp_path / "checkpoints" / str(expected))["model.norm.weight"]
        read = source.read(entry_of(source, "ln_f", "weight"))
        assert read.tobytes() == stored.tobytes()
    with pytest.raises(UserError, match=r"step=4: no such checkpoint .* \(there: 3, 7\)"):
        open_folder(tmp_path, 4)
    with pytest.raises(UserError, match="step=4: .* is not the folder of a training run"):
        open_folder(tmp_path / "checkpoints" / "7", 4)


def test_a_fused_tensor_is_read_in_parts(tmp_path):
    write_variant("seq", tmp_path)
    source = open_folder(tmp_path)
    fused = read_weights(tmp_path)["model.transformer.blocks.1.att_proj.weight"]
    parts = [
        source.read(entry_of(source, "blocks", "attention", name, "kernel"), 1).T
        for name in ("q_proj", "k_proj", "v_proj")
    ]
    np.testing.assert_array_equal(np.concatenate(parts), fused)
