"""Model folders: exact both ways, and refused by name when damaged."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada.common.errors import UserError
from jaxllada.common.weights.index import WeightFolder
from jaxllada.convert import load, save
from tests.jax.golden import DENSE, VARIANT_CONFIGS, write_variant


def tensors(folder):
    files = WeightFolder(folder)
    return {name: files.read(name) for name in files.names}


@pytest.mark.parametrize("name", VARIANT_CONFIGS)
def test_a_folder_comes_back_bit_for_bit(name, tmp_path):
    write_variant(name, tmp_path / "in")
    save(load(tmp_path / "in"), tmp_path / "out")
    before, after = tensors(tmp_path / "in"), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    read = [json.loads((tmp_path / f / "config.json").read_text()) for f in ("in", "out")]
    assert read[0] == read[1]


@pytest.mark.parametrize("shard_bytes", [100_000, 10**9])
def test_shards_hold_the_same_weights(shard_bytes, tmp_path):
    save(load(DENSE), tmp_path / "out", shard_bytes=shard_bytes)
    before, after = tensors(DENSE), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert index.is_file() == (shard_bytes == 100_000)
    if index.is_file():
        total = json.loads(index.read_text())["metadata"]["total_size"]
        assert total == sum(tensor.nbytes for tensor in after.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bit_weights_keep_their_bits(dtype, tmp_path):
    save(load(DENSE, dtype=dtype), tmp_path / "half")
    model = load(tmp_path / "half")
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(dtype)}
    assert model.compute.dtype == dtype
    save(model, tmp_path / "again")
    before, after = tensors(tmp_path / "half"), tensors(tmp_path / "again")
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)


def test_an_interrupted_save_leaves_no_folder(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("jaxllada.convert.write_shards", fail)
    with pytest.raises(OSError, match="No space"):
        save(load(DENSE), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(DENSE, tmp_path / "model")
    return tmp_path / "model"


def test_a_missing_shard_is_named(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors is missing"):
        load(folder)


def test_a_truncated_shard_is_named(folder):
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="00001.* is not a complete safetensors file"):
        load(folder)


def test_names_that_config_and_files_disagree_on_are_listed_together(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layers": 2, "include_bias": True}))
    with pytest.raises(UserError, match=r"\d+ weights missing .* and 9 unexpected"):
        load(folder)


def test_a_wrong_shape_is_named(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mlp_hidden_size": 100}))
    with pytest.raises(UserError, match=r"ff_proj.weight has shape \(96, 64\).* \(100, 64\)"):
        load(folder)


def test_an_index_that_points_nowhere_is_named(folder):
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["model.transformer.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"extra.weight should be in model-00001"):
        load(folder)


def test_pickled_weights_are_refused_with_the_reason(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="can run code when opened"):
        load(folder)


def test_a_folder_without_weights_says_what_is_expected(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(UserError, match="has no weights: expected model.safetensors or"):
        load(folder)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(UserError, match="dtype='int8' is unknown"):
        load(DENSE, dtype="int8")


def test_a_tied_model_accepts_a_stored_copy_of_its_head(tmp_path):
    golden = write_variant("tied", tmp_path)
    stored = tensors(tmp_path)
    stored["model.transformer.ff_out.weight"] = stored["model.transformer.wte.weight"].copy()
    from safetensors.numpy import save_file

    save_file(stored, tmp_path / "model.safetensors")
    np.testing.assert_allclose(load(tmp_path)(golden["ids"]), golden["logits"], atol=3e-5)
    stored["model.transformer.ff_out.weight"][0, 0] += 1
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="ff_out.weight differs from the embedding"):
        load(tmp_path)
