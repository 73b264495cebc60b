"""Model folders in torch: exact both ways, and refused by name when damaged."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.errors import UserError
from jaxllada.common.weights.layouts import LAYOUTS
from npu_backend.convert import load, save
from tests.jax.golden import DENSE, VARIANT_CONFIGS, dense_values, write_variant
from tests.model_folders import DTYPES, assert_same_bits, configs, read_weights, write_model
from tests.npu.devices import DEVICE, get, put


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_folder_comes_back_bit_for_bit(tmp_path_factory, data):
    """HF -> torch -> HF on the device, and through the other layout where both can express it."""
    folder = tmp_path_factory.mktemp("models")
    layout = data.draw(st.sampled_from(list(LAYOUTS)))
    both = layout == "llama" or data.draw(st.booleans())
    config = data.draw(configs(for_llama=both))
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    config_json = LAYOUTS[layout].write_config(config)
    stored = write_model(folder / "in", config_json, layout, dtype, data.draw(st.integers(1, 4)))
    shard_bytes = data.draw(st.sampled_from([1, 300, 10**9]))
    model = load(folder / "in", device=DEVICE)
    assert all(str(p.dtype) == f"torch.{dtype}" for p in model.parameters())
    save(model, folder / "out", layout=layout, shard_bytes=shard_bytes)
    assert_same_bits(stored, read_weights(folder / "out"))
    assert config_of(folder / "out") == config_of(folder / "in")
    if both:
        other = "llama" if layout == "llada" else "llada"
        save(model, folder / "other", layout=other, shard_bytes=shard_bytes)
        again = load(folder / "other", device=DEVICE)
        save(again, folder / "back", layout=layout)
        assert_same_bits(stored, read_weights(folder / "back"))


@pytest.mark.parametrize("name", VARIANT_CONFIGS)
def test_every_variant_comes_back_bit_for_bit(name, tmp_path):
    write_variant(name, tmp_path / "in")
    save(load(tmp_path / "in", device=DEVICE), tmp_path / "out")
    assert_same_bits(read_weights(tmp_path / "in"), read_weights(tmp_path / "out"))
    assert config_of(tmp_path / "in") == config_of(tmp_path / "out")


def test_the_golden_logits_come_out_of_the_llama_layout(tmp_path):
    save(load(DENSE), tmp_path / "llama", layout="llama")
    assert config_of(tmp_path / "llama")["model_type"] == "llama"
    golden = dense_values()
    with torch.no_grad():
        logits = load(tmp_path / "llama", device=DEVICE)(put(golden["fwd_ids"]))
    np.testing.assert_allclose(get(logits), golden["fwd_logits"], atol=2e-4, rtol=0)


def test_types_follow_what_is_stored_or_asked_for():
    assert load(DENSE).compute == ComputeConfig()
    half = load(DENSE, dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.compute == ComputeConfig(param_dtype="bfloat16", dtype="bfloat16")
    mixed = load(DENSE, compute=ComputeConfig(dtype="bfloat16", remat="full"))
    assert {p.dtype for p in mixed.parameters()} == {torch.float32}
    assert mixed.compute.remat == "full"
    again = load(DENSE, dtype="float16", compute=mixed.compute)
    assert {p.dtype for p in again.parameters()} == {torch.float16}
    with pytest.raises(UserError, match="dtype='int8' is unknown"):
        load(DENSE, dtype="int8")


def test_weights_are_copies_that_training_may_change(tmp_path):
    shutil.copytree(DENSE, tmp_path / "model")
    before = read_weights(tmp_path / "model")
    model = load(tmp_path / "model")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert_same_bits(before, read_weights(tmp_path / "model"))


def test_saving_again_replaces_the_weights_and_keeps_other_files(tmp_path):
    model = load(DENSE)
    save(model, tmp_path / "out", shard_bytes=100_000)
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    save(model, tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert_same_bits(read_weights(DENSE), read_weights(tmp_path / "out"))


def test_an_interrupted_save_leaves_no_folder(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("npu_backend.convert.write_shards", fail)
    with pytest.raises(OSError, match="No space"):
        save(load(DENSE), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_layout_that_cannot_express_the_model_writes_nothing(tmp_path):
    write_variant("qknorm", tmp_path / "in")
    with pytest.raises(UserError, match="attention_layer_norm"):
        save(load(tmp_path / "in"), tmp_path / "out", layout="llama")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(DENSE, tmp_path / "model")
    return tmp_path / "model"


def test_damaged_folders_are_refused_by_name(folder):
    shard = folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="model-00002-of-00002"):
        load(folder)
    shard.unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors is missing"):
        load(folder)
    shard.write_bytes(whole)
    config = config_of(folder)
    (folder / "config.json").write_text(json.dumps(config | {"include_bias": True}))
    with pytest.raises(UserError, match=r"\d+ weights missing"):
        load(folder)


def test_a_value_too_large_for_the_type_is_named(tmp_path):
    write_variant("base", tmp_path)
    stored = read_weights(tmp_path)
    stored["model.transformer.ln_f.weight"] = np.full_like(
        stored["model.transformer.ln_f.weight"], 1e6
    )
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"dtype=float16: ln_f.weight holds 1e\+06"):
        load(tmp_path, dtype="float16")


def test_a_step_asked_of_a_plain_folder_is_refused():
    with pytest.raises(UserError, match="step=3"):
        load(DENSE, step=3)
