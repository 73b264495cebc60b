"""Model folders: exact both ways, and refused by name when damaged."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.errors import UserError
from jaxllada.common.weights.adapter import Adapter
from jaxllada.common.weights.layouts import LAYOUTS
from jaxllada.common.weights.peft import write_adapter
from jaxllada.convert import load, open_source, save
from jaxllada.sharding import make_mesh
from jaxllada.stream import to_flax
from tests.jax.golden import DENSE, VARIANT_CONFIGS, dense_values, write_variant
from tests.jax.saved_runs import drawn_params, write_run
from tests.jax.test_mesh import on_eight_devices
from tests.model_folders import (
    DTYPES,
    ILLADA,
    assert_same_bits,
    configs,
    read_weights,
    write_model,
    write_shards,
)

tensors = read_weights


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.own_kernels
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_folder_comes_back_bit_for_bit(tmp_path_factory, data):
    """HF -> Flax -> HF, through the other layout and back where both can express the model."""
    folder = tmp_path_factory.mktemp("models")
    layout = data.draw(st.sampled_from(list(LAYOUTS)))
    both = layout == "llama" or data.draw(st.booleans())
    config = data.draw(configs(for_llama=both))
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    config_json = LAYOUTS[layout].write_config(config)
    shards = data.draw(st.integers(1, 4))
    stored = write_model(folder / "in", config_json, layout, dtype, shards)
    shard_bytes = data.draw(st.sampled_from([1, 300, 10**9]))
    model = load(folder / "in")
    save(model, folder / "out", layout=layout, shard_bytes=shard_bytes)
    assert_same_bits(stored, tensors(folder / "out"))
    assert config_of(folder / "out") == config_of(folder / "in")
    if both:
        other = "llama" if layout == "llada" else "llada"
        save(model, folder / "other", layout=other, shard_bytes=shard_bytes)
        again = load(folder / "other")
        assert again.config == model.config
        save(again, folder / "back", layout=layout)
        assert_same_bits(stored, tensors(folder / "back"))
        assert config_of(folder / "back") == config_of(folder / "in")


@pytest.mark.own_kernels
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_any_model_comes_back_bit_for_bit(tmp_path_factory, data):
    """Flax -> HF -> Flax."""
    folder = tmp_path_factory.mktemp("models")
    config = data.draw(configs(for_llama=True))
    dtype = data.draw(st.sampled_from(list(DTYPES)))
    write_model(folder / "in", config.to_dict(), "llada", dtype)
    model = load(folder / "in")
    for layout in LAYOUTS:
        save(model, folder / layout, layout=layout)
        again = load(folder / layout)
        assert again.config == model.config
        assert again.config.to_dict() == model.config.to_dict()
        same = jax.tree.map(
            lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), model, again
        )
        assert all(jax.tree.leaves(same))


@pytest.mark.own_kernels
def test_illada_comes_back_bit_for_bit_with_its_stored_head(tmp_path):
    stored = write_model(tmp_path / "in", ILLADA, "llama", "bfloat16", shards=3)
    model = load(tmp_path / "in")
    assert model.ff_out is None
    save(model, tmp_path / "released")
    assert "model.transformer.ff_out.weight" not in tensors(tmp_path / "released")
    save(load(tmp_path / "released"), tmp_path / "out", layout="llama")
    assert_same_bits(stored, tensors(tmp_path / "out"))
    assert config_of(tmp_path / "out") == ILLADA


def test_the_golden_logits_come_out_of_the_llama_layout(tmp_path):
    golden = dense_values()
    save(load(DENSE), tmp_path / "llama", layout="llama")
    assert "lm_head.weight" in tensors(tmp_path / "llama")
    expected = load(DENSE)(golden["fwd_ids"])
    np.testing.assert_array_equal(load(tmp_path / "llama")(golden["fwd_ids"]), expected)
    # As a stranger's file: in float32 the rounding of the angles makes no difference.
    shutil.copytree(tmp_path / "llama", tmp_path / "plain")
    plain = {k: v for k, v in config_of(tmp_path / "llama").items() if k != "llada_config"}
    (tmp_path / "plain" / "config.json").write_text(json.dumps(plain))
    model = load(tmp_path / "plain")
    assert not model.config.rope_full_precision
    np.testing.assert_array_equal(model(golden["fwd_ids"]), expected)
    save(load(tmp_path / "llama"), tmp_path / "back")
    assert_same_bits(tensors(DENSE), tensors(tmp_path / "back"))
    assert config_of(tmp_path / "back") == config_of(DENSE)


def test_a_layout_that_cannot_express_the_model_writes_nothing(tmp_path):
    write_variant("scale", tmp_path / "in")
    with pytest.raises(UserError, match="layout=llama cannot express scale_logits=True"):
        save(load(tmp_path / "in"), tmp_path / "out", layout="llama")
    with pytest.raises(UserError, match="layout=olmo: expected llada or llama"):
        save(load(tmp_path / "in"), tmp_path / "out", layout="olmo")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    """The same weights as a folder of each layout, an orbax checkpoint and a training run."""
    folder = tmp_path_factory.mktemp("formats")
    write_run(folder / "run", averaged=(1,))
    model = load(folder / "run")
    for layout in LAYOUTS:
        save(model, folder / layout, layout=layout)
    to_flax(open_source(folder / "llada"), folder / "orbax")
    return folder


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_every_format_gives_the_same_model(formats, dtype):
    expected = load(formats / "llada", dtype)
    kinds = {"run": "run", "orbax": "orbax", "llama": "llama", "llada": "llada"}
    for name, kind in kinds.items():
        assert open_source(formats / name).kind == kind
        model = load(formats / name, dtype)
        assert model.config == expected.config
        assert model.compute == expected.compute
        assert jax.tree.all(jax.tree.map(np.array_equal, model, expected)), name


def test_a_step_of_a_run_is_loaded(formats):
    first, last = load(formats / "run", step=1), load(formats / "run", step=2)
    assert not np.array_equal(first.wte[...], last.wte[...])
    np.testing.assert_array_equal(last.wte[...], load(formats / "run").wte[...])
    for name in ("llada", "orbax"):
        with pytest.raises(UserError, match="step=1: .* is not the folder of a training run"):
            load(formats / name, step=1)
        with pytest.raises(UserError, match="average=true"):
            load(formats / name, average=True)
    with pytest.raises(UserError, match="step=9: no such checkpoint"):
        load(formats / "run", step=9)


def test_the_average_of_a_run_is_taken_where_it_is_kept(formats):
    average, weights = load(formats / "run", step=1), load(formats / "run", step=1, average=False)
    assert not np.array_equal(average.wte[...], weights.wte[...])
    np.testing.assert_array_equal(average.wte[...], drawn_params(101)["wte"])
    np.testing.assert_array_equal(weights.wte[...], drawn_params(1)["wte"])
    with pytest.raises(UserError, match="holds no average"):
        load(formats / "run", step=2, average=True)


def test_an_adapter_is_added_to_every_format_and_rounded_once(formats, tmp_path):
    rng = np.random.default_rng(0)
    layers, width = 2, 32
    factors = {
        ("blocks", "attention", "q_proj"): (
            rng.standard_normal((layers, 4, width), np.float32),
            rng.standard_normal((layers, width, 4), np.float32),
        )
    }
    write_adapter(tmp_path, Adapter(factors, r=4, lora_alpha=2), PRESETS["tiny"])
    plain = load(formats / "llada")
    merged = load(formats / "llada", adapter=tmp_path)
    a, b = factors["blocks", "attention", "q_proj"]
    kernel = plain.blocks.attention.q_proj.kernel[...] + 0.5 * np.swapaxes(b @ a, 1, 2)
    # Sums of four products in another order.
    np.testing.assert_allclose(merged.blocks.attention.q_proj.kernel[...], kernel, atol=1e-5)
    np.testing.assert_array_equal(merged.wte[...], plain.wte[...])
    for dtype in ("float32", "bfloat16"):
        expected = [np.asarray(leaf).astype(dtype) for leaf in jax.tree.leaves(merged)]
        for name in ("llada", "llama", "orbax", "run"):
            for mesh in (None, make_mesh(devices=jax.devices()[:1])):
                model = load(formats / name, dtype, adapter=tmp_path, mesh=mesh)
                assert all(map(np.array_equal, jax.tree.leaves(model), expected)), name


def test_every_format_loads_onto_a_mesh_of_eight(formats):
    """Same bits on every device, and only the rows a device holds are read."""
    program = """
        import sys
        import jax, numpy as np
        from jaxllada import convert
        from jaxllada.convert import load
        from jaxllada.common.weights.source import FolderSource
        from jaxllada.sharding import make_mesh, spec_of
        folder = sys.argv[1]
        mesh = make_mesh(2, 2, 2)
        whole = {dtype: load(folder + "/llada", dtype) for dtype in (None, "bfloat16")}
        asked = []
        read = FolderSource.read
        def watched(self, entry, layer=0, rows=None):
            asked.append((entry.path, layer, rows))
            return read(self, entry, layer, rows)
        FolderSource.read = watched
        for name in ("llada", "llama", "orbax", "run"):
            for dtype in (None, "bfloat16"):
                model = load(folder + "/" + name, dtype, mesh=mesh)
                for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(whole[dtype]), strict=True):
                    assert len(a.sharding.device_set) == 8 and a.dtype == b.dtype
                    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
                assert model.wte[...].sharding.spec == spec_of(("wte",), 2)
                assert not model.wte[...].sharding.is_fully_replicated
        rows = whole[None].wte[...].shape[0]
        cuts = {r for path, _, r in asked if path == ("wte",) and r is not None}
        assert cuts == {(0, rows // 2), (rows // 2, rows)}, cuts
        print("same")
    """
    assert on_eight_devices(program, formats).strip() == "same"


def test_a_value_too_large_for_the_type_is_named(tmp_path):
    stored = write_model(tmp_path, ILLADA, "llama", finite=True)
    stored["model.norm.weight"][3] = 1e6
    write_shards(tmp_path, stored)
    with pytest.raises(UserError, match=r"dtype=float16: ln_f.weight holds 1e\+06"):
        load(tmp_path, "float16")


def test_the_type_of_the_weights_may_differ_from_that_of_the_embedding(tmp_path):
    stored = write_model(tmp_path, ILLADA, "llama", "bfloat16", finite=True)
    name = "model.norm.weight"
    stored[name] = stored[name].astype(np.float32) + np.float32(1e-6)
    write_shards(tmp_path, stored)
    assert load(tmp_path).ln_f.weight[...].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(load(tmp_path, "float32").ln_f.weight[...], stored[name])


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


def test_loading_holds_one_extra_copy_of_one_leaf(tmp_path):
    """Of a model whose embedding dwarfs the rest, in a process of its own, both ways."""
    config = dataclasses.replace(PRESETS["llada-100m"], vocab_size=126464, n_layers=2)
    write_model(tmp_path, config.to_dict(), "llada", "bfloat16")
    program = """
        import sys, jax
        from jaxllada.convert import load
        from jaxllada.sharding import make_mesh
        def memory(key):
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))
        first = jax.devices()[:1]
        mesh = make_mesh(devices=first) if sys.argv[2] == "mesh" else None
        before = memory("VmRSS")
        sizes = [leaf.nbytes for leaf in jax.tree.leaves(load(sys.argv[1], mesh=mesh))]
        print(memory("VmHWM") - before, sum(sizes), max(sizes))
    """
    for way in ("whole", "mesh"):
        peak, total, largest = map(int, on_eight_devices(program, tmp_path, way).split())
        assert largest > 110e6
        # Beside weights and copy: what JAX needs to run at all, and a block in the making.
        assert peak < total + largest + 64e6
