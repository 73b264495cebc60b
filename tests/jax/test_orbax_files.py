"""A converted folder is what orbax restores, on any mesh; what is missing or torn is refused."""

import dataclasses
import functools
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

from jaxllada import orbax_files
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.errors import UserError
from jaxllada.common.weights.opening import open_folder
from jaxllada.common.weights.pieces import pieces, rows_per_piece
from jaxllada.convert import save
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.orbax_arrays import DecodedArray, MappedArray, open_arrays
from jaxllada.orbax_files import Leaf, seal_params, write_params
from jaxllada.orbax_source import OrbaxSource, find_weights, is_checkpoint_folder
from jaxllada.restore import load_run_params, restore_params
from jaxllada.stream import to_flax
from tests.jax.test_mesh import on_eight_devices

TINY = PRESETS["tiny"]


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def leaves_of(tree, prefix=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves_of(value, (*prefix, key))
        else:
            yield (*prefix, key), np.asarray(value)


def assert_same_bits(a, b):
    a, b = dict(leaves_of(a)), dict(leaves_of(b))
    assert a.keys() == b.keys()
    for path, array in a.items():
        assert array.dtype == b[path].dtype, path
        assert array.tobytes() == b[path].tobytes(), path


@pytest.fixture
def many_chunks(monkeypatch):
    """Cuts even tiny weights into several chunks per layer."""
    monkeypatch.setattr(orbax_files, "_SMALL", 0)
    cut = lambda shape, itemsize: rows_per_piece(shape, itemsize, 600)  # noqa: E731
    monkeypatch.setattr(orbax_files, "rows_per_piece", cut)


@pytest.fixture(scope="module")
def model():
    return MaskPredictor(TINY, rngs=jax.random.key(0))


@pytest.fixture(scope="module")
def hf_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "hf"
    save(model, folder)
    return folder


@pytest.fixture
def flax_folder(hf_folder, tmp_path):
    to_flax(open_folder(hf_folder), tmp_path / "flax")
    return tmp_path / "flax"


def test_orbax_restores_the_very_names_and_bits(model, flax_folder):
    expected = params_of(model)
    shapes = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), expected)
    restored = ocp.load_checkpointables(str(flax_folder), {"params": shapes})["params"]
    assert_same_bits(restored, expected)
    assert_same_bits(restore_params(find_weights(flax_folder)), expected)


def test_orbax_restores_without_a_target_too(model, flax_folder):
    """On whatever machine: as NumPy arrays, not on the device that wrote them."""
    assert_same_bits(ocp.load_checkpointables(str(flax_folder))["params"], params_of(model))


@pytest.mark.usefixtures("many_chunks")
def test_several_chunks_per_layer_restore_alike(model, flax_folder):
    assert len(list((flax_folder / "params" / "wte").glob("c.*"))) > 8
    assert_same_bits(restore_params(find_weights(flax_folder)), params_of(model))


def test_the_meta_data_are_those_that_orbax_writes(tmp_path, flax_folder):
    """A later orbax that writes other fields shows here first."""
    own = {"wte": np.zeros((4, 2), np.float32), "blocks": {"w": np.zeros((2, 2), np.float32)}}
    context = ocp.Context()
    context.array.saving.use_ocdbt = False
    with context:
        ocp.save_checkpointables(str(tmp_path / "own"), {"params": own})

    def fields(value):
        return {k: fields(v) for k, v in value.items()} if isinstance(value, dict) else type(value)

    for name in ("_CHECKPOINT_METADATA", "params/_METADATA"):
        ours, theirs = (
            json.loads((folder / name).read_text()) for folder in (flax_folder, tmp_path / "own")
        )
        for about in (ours, theirs):
            if "tree_metadata" in about:
                about["tree_metadata"] = about["tree_metadata"]["('wte',)"]
        assert fields(ours) == fields(theirs)
    assert (tmp_path / "own" / "orbax.checkpoint").read_bytes() == b""


@pytest.mark.usefixtures("many_chunks")
@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(0, 3), rows=st.integers(1, 40), columns=st.integers(0, 30),
    dtype=st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]), data=st.data(),
)  # fmt: skip
def test_tensorstore_and_the_map_read_what_was_written(
    tmp_path_factory, layers, rows, columns, dtype, data
):
    """Any shape, with and without layers; rows that do not fill their last chunk included."""
    folder = tmp_path_factory.mktemp("leaf")
    dtype = np.dtype(dtype)
    shape = tuple(n for n in (layers, rows, columns) if n)
    size = math.prod(shape) * dtype.itemsize
    array = np.frombuffer(np.random.default_rng(size).bytes(size), dtype).reshape(shape)
    leaf = Leaf(("a", "b"), dtype, shape, layers > 0)

    def read(leaf, layer, step):
        return pieces(array[layer] if layers else array, dtype, rows=step)

    write_params(folder, [leaf], read)
    seal_params(folder, [leaf], {})
    mapped = MappedArray.open(folder / "params" / "a.b")
    assert mapped is not None
    import tensorstore as ts

    kvstore = {"driver": "file", "path": f"{folder}/params/a.b/"}
    store = ts.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result()
    assert store.read().result().tobytes() == array.tobytes()
    first = data.draw(st.integers(0, rows - 1))
    last = data.draw(st.integers(first + 1, rows))
    for opened in (mapped, DecodedArray(store, folder)):
        assert (opened.shape, opened.dtype) == (shape, dtype)
        for layer in range(layers or 1):
            got = opened.read(layer if layers else None, first, last)
            expected = (array[layer] if layers else array)[first:last]
            assert got.tobytes() == expected.tobytes()


STORAGES = {
    "as orbax does": {},
    "zarr folders": {"use_ocdbt": False},
    "zarr 2": {"use_ocdbt": False, "use_zarr3": False},
    "a chunk per layer": {"storage_options.shard_axes": (0,)},
    "small chunks": {"storage_options.chunk_byte_size": 600},
}


@pytest.mark.parametrize("how", STORAGES)
def test_every_way_orbax_writes_is_read_by_layer(model, tmp_path, how):
    context = ocp.Context()
    for key, value in STORAGES[how].items():
        *parts, last = key.split(".")
        setattr(functools.reduce(getattr, parts, context.array.saving), last, value)
    expected = params_of(model)
    with context:
        ocp.save_checkpointables(str(tmp_path / "own"), {"params": expected})
    TINY.save(tmp_path / "own")
    assert is_checkpoint_folder(tmp_path / "own")
    source = OrbaxSource(tmp_path / "own")
    flat = dict(leaves_of(expected))
    for entry in source.entries:
        for layer in range(TINY.n_layers if entry.per_layer else 1):
            array = flat[entry.path][layer] if entry.per_layer else flat[entry.path]
            assert source.shape(entry) == array.shape
            assert source.dtype(entry) == array.dtype
            np.testing.assert_array_equal(source.read(entry, layer), array)
            np.testing.assert_array_equal(source.read(entry, layer, (1, 3)), array[1:3])
    source.close()


def test_a_checkpoint_of_one_device_restores_on_eight_and_back(model, flax_folder, tmp_path):
    on_eight_devices(
        """
        import sys
        import jax, numpy as np
        from flax import nnx
        from jaxllada.common.config.presets import PRESETS
        from jaxllada.models.family import abstract_model
        from jaxllada.orbax_source import find_weights
        from jaxllada.restore import restore_params
        from jaxllada.sharding import make_mesh, shardings
        from orbax.checkpoint import v1 as ocp
        source, target = sys.argv[1:]
        mesh = make_mesh(1, 4, 2)
        shapes = nnx.to_pure_dict(nnx.state(abstract_model(PRESETS["tiny"]), nnx.Param))
        like = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes, shardings(mesh, shapes))
        params = restore_params(find_weights(source), like)
        assert len(params["wte"].addressable_shards) == 8
        assert params["wte"].addressable_shards[0].data.shape == (64, 8)
        ocp.save_checkpointables(target, {"params": params})
        PRESETS["tiny"].save(target)
        """,
        flax_folder,
        tmp_path / "eight",
    )
    expected = params_of(model)
    assert_same_bits(restore_params(find_weights(tmp_path / "eight")), expected)
    source, flat = OrbaxSource(tmp_path / "eight"), dict(leaves_of(expected))
    for entry in source.entries:
        array = flat[entry.path][1] if entry.per_layer else flat[entry.path]
        np.testing.assert_array_equal(source.read(entry, 1 if entry.per_layer else 0), array)


def test_weights_can_be_cast_while_they_are_restored(model, flax_folder):
    expected = params_of(model)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=one), expected
    )
    cast = restore_params(find_weights(flax_folder), like)
    assert_same_bits(cast, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), expected))


def without_manifest(folder):
    (folder / "manifest.json").unlink()


def chunk_of(folder, name="wte"):
    return next((folder / "params" / name).glob("c.*"))


def cut_chunk(folder):
    chunk_of(folder).write_bytes(chunk_of(folder).read_bytes()[:-1])


def lose_chunk(folder):
    chunk_of(folder).unlink()


def lose_array(folder):
    shutil.rmtree(folder / "params" / "wte")


def other_shape(folder):
    dataclasses.replace(TINY, d_model=16, n_heads=2).save(folder)


def other_depth(folder):
    dataclasses.replace(TINY, n_layers=3).save(folder)


def other_names(folder):
    dataclasses.replace(TINY, weight_tying=True, attention_layer_norm=True).save(folder)


def other_type(folder):
    without_manifest(folder)
    file = folder / "params" / "wte" / "zarr.json"
    file.write_text(file.read_text().replace("float32", "int32"))


def torn_meta(folder):
    without_manifest(folder)
    file = folder / "params" / "_METADATA"
    file.write_text(file.read_text()[:-10])


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (cut_chunk, "wte/c.0.0 has 16383 bytes instead of 16384"),
        (lose_chunk, "wte/c.0.0 is missing"),
        (lose_array, "is missing"),
        (other_shape, r"wte has shape \(128, 32\), but config.json asks for \(128, 16\)"),
        (other_depth, r"has shape \(2, 32\), but config.json asks for \(3, 32\)"),
        (other_names, r"2 weights missing \(blocks.*\) and 1 unexpected \(ff_out.weight\)"),
        (other_type, "wte is stored as int32, expected float32, float16, bfloat16"),
        (torn_meta, "_METADATA: unreadable"),
    ],
)  # fmt: skip
def test_every_kind_of_damage_is_named_when_it_is_opened(flax_folder, harm, told):
    harm(flax_folder)
    with pytest.raises(UserError, match=told):
        OrbaxSource(flax_folder)


@pytest.mark.parametrize("harm", [cut_chunk, lose_chunk])
def test_without_a_manifest_nothing_is_read_as_zeros(flax_folder, harm):
    """A copy that lost files: orbax and the layer reader both refuse it."""
    without_manifest(flax_folder)
    harm(flax_folder)
    with pytest.raises(UserError, match="wte"):
        restore_params(find_weights(flax_folder))
    source = OrbaxSource(flax_folder)
    with pytest.raises(UserError, match=r"wte/c.0.0: (No such file|has 16383 bytes, expected)"):
        source.read(source.entries[0])


def test_a_folder_that_is_not_a_run_has_neither_steps_nor_an_average(flax_folder):
    for settings_ in ({"step": 3}, {"average": True}):
        with pytest.raises(UserError, match="is not the folder of a training run"):
            load_run_params(flax_folder, **settings_)


def test_a_run_gives_its_average_unless_told_otherwise(tmp_path):
    from tests.jax.test_checkpoint import Checkpoints, some_state

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        state = dataclasses.replace(some_state(step), ema=some_state(step + 10).params)
        checkpoints.save(step, state, {})
    checkpoints.save(3, some_state(3, with_ema=False), {})
    checkpoints.close()
    TINY.save(tmp_path)
    wanted = {
        (1, None): some_state(11).params, (2, True): some_state(12).params,
        (2, False): some_state(2).params, (3, None): some_state(3).params,
    }  # fmt: skip
    for (step, average), params in wanted.items():
        assert_same_bits(load_run_params(tmp_path, step, average=average)[0], params)
    with pytest.raises(UserError, match="holds no average"):
        load_run_params(tmp_path, 3, average=True)
    with pytest.raises(UserError, match=r"step=4: no such checkpoint in .* \(there: 1, 2, 3\)"):
        load_run_params(tmp_path, 4)


def test_one_flipped_bit_in_a_run_is_found_before_it_is_read(tmp_path, capsys):
    from tests.jax.test_checkpoint import Checkpoints, some_state

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, some_state(step, with_ema=False), {})
    checkpoints.close()
    TINY.save(tmp_path)
    below = (tmp_path / "checkpoints" / "2" / "params").rglob("*")
    file = max(filter(Path.is_file, below), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert_same_bits(load_run_params(tmp_path)[0], some_state(1).params)
    assert "2: damaged" in capsys.readouterr().err


def test_a_run_stores_large_weights_so_that_a_layer_is_read_alone(tmp_path, monkeypatch):
    from tests.jax.test_checkpoint import Checkpoints, some_state

    monkeypatch.setattr("jaxllada.train.checkpoint._CHUNK_BYTES", 30)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, some_state(1), {})
    checkpoints.close()
    for item in ("params", "ema"):
        stacked = open_arrays(tmp_path / "checkpoints" / "1" / item)["blocks", "ln", "weight"]
        assert isinstance(stacked, DecodedArray)
        assert stacked.shape == (2, 8)
        assert stacked._chunk == (1, 4)
    TINY.save(tmp_path)
    assert_same_bits(load_run_params(tmp_path, average=False)[0], some_state(1).params)


def test_an_array_without_plain_chunks_is_not_mapped(tmp_path, model):
    ocp.save_checkpointables(str(tmp_path / "own"), {"params": params_of(model)})
    arrays = open_arrays(Path(tmp_path / "own" / "params"))
    assert all(isinstance(array, DecodedArray) for array in arrays.values())
