"""Between saved weights of any format and `MaskPredictor`: the same bits, and no remote code."""

import dataclasses
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding

from jaxllada.common.config.compute import ComputeConfig, Dtype
from jaxllada.common.errors import UserError
from jaxllada.common.weights.hub import local_folder
from jaxllada.common.weights.index import write_json
from jaxllada.common.weights.layouts import StoredTensor, find_layout, own_layout
from jaxllada.common.weights.names import Entry, entry_shape, llada_table
from jaxllada.common.weights.pieces import pieces, rows_per_piece
from jaxllada.common.weights.shards import Tensor, plan_shards, write_shards
from jaxllada.common.weights.source import Source
from jaxllada.models.family import abstract_model
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.orbax_source import OrbaxSource, open_source
from jaxllada.restore import restore_params
from jaxllada.sharding import shardings

Index = tuple[tuple[int, int], ...]


def load(
    path_or_id: str | os.PathLike[str],
    dtype: str | None = None,
    *,
    step: int | None = None,
    average: bool | None = None,
    compute: ComputeConfig | None = None,
    mesh: Mesh | None = None,
    adapter: str | os.PathLike[str] | None = None,
    mask_token_id: int | None = None,
) -> MaskPredictor:
    """Reads a model from a model folder, a converted checkpoint, a training run, or the Hub.

    Args:
        path_or_id: a folder with `config.json` and safetensors weights of either layout, what
            `jaxllada convert` made, a run's `output_dir`, or an id such as `owner/name`; an
            adapter, or a run that trains one, is added to the base it names.
        dtype: type of weights and activations; the stored type of the embedding by default.
        step: checkpoint of a training run; the newest sound one by default.
        average: the exponential average of a run's weights; None takes it where the run kept one.
        compute: full compute policy; `dtype` overrides its two types.
        mesh: spreads the weights over its devices; each process reads only what these hold.
        adapter: folder, run or id of a LoRA adapter to add, computed in float32 and rounded once.
        mask_token_id: id of the mask token, for folders whose files do not tell it.

    Raises:
        UserError: missing, unexpected or misshaped tensors (all named together), damaged files.
    """
    path = local_folder(path_or_id)
    source = open_source(path, step, average=average, mask_token_id=mask_token_id, adapter=adapter)
    config = source.config
    kind = dtype or (compute.param_dtype if compute else source.dtype(source.entries[0]).name)
    if kind not in get_args(Dtype):
        raise UserError(f"dtype={kind!r} is unknown: use one of {', '.join(get_args(Dtype))}")
    if compute is None or dtype is not None:
        types: dict[str, Any] = {"param_dtype": kind, "dtype": kind}
        compute = dataclasses.replace(compute or ComputeConfig(), **types)
    model = abstract_model(config, compute)
    places = None if mesh is None else shardings(mesh, nnx.to_pure_dict(nnx.state(model)))
    if places is not None and isinstance(source, OrbaxSource):
        return _restored(model, places, source)
    param_dtype = jnp.dtype(compute.param_dtype)
    values = {
        entry.path: _whole(source, entry, param_dtype)
        if places is None
        else _sharded(source, entry, param_dtype, _at(places, entry.path))
        for entry in source.entries
    }
    source.close()
    return fill(model, values)


def fill(model: MaskPredictor, values: dict[tuple[str, ...], jax.Array]) -> MaskPredictor:
    """Returns `model` with its leaves replaced by path; paths are those of the name table."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(model)
    # A leaf's path ends in `.value` of its nnx.Param, which the table does not spell out.
    paths = [tuple(key.name for key in path[:-1]) for path, _ in leaves]
    return jax.tree.unflatten(structure, [values[path] for path in paths])


def save(
    model: MaskPredictor,
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes `config.json` and the weights: `llada` has the released names, `llama` Llama's.

    The default is `llada`, and `qwen2` for the autoregressive twin.

    The folder appears complete or not at all; files that are already there are kept.

    Raises:
        UserError: the layout cannot express the model, naming the fields.
    """
    chosen = own_layout(model.config) if layout is None else find_layout(layout)
    config_json = chosen.write_config(model.config)
    source = _ModelSource(model)
    tensors = [_tensor(source, stored) for stored in chosen.tensors(model.config)]
    folder = Path(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        write_shards(Path(temporary), plan_shards(tensors, shard_bytes))
        write_json(Path(temporary) / "config.json", config_json)
        folder.mkdir(exist_ok=True)
        for old in [*folder.glob("model*.safetensors"), *folder.glob("model*.index.json")]:
            old.unlink()
        # config.json last: without it no loader accepts the folder.
        for file in sorted(Path(temporary).iterdir(), key=lambda f: f.name == "config.json"):
            os.replace(file, folder / file.name)


class _ModelSource:
    """The weights of a model in memory, a layer at a time."""

    kind = "model"

    def __init__(self, model: MaskPredictor):
        self.path, self.config, self._model = Path(), model.config, model
        self.entries = llada_table(model.config)

    def dtype(self, entry: Entry) -> np.dtype:
        return np.dtype(_leaf(self._model, entry.path).dtype)

    def shape(self, entry: Entry) -> tuple[int, ...]:
        return entry_shape(self.config, entry)

    def read(self, entry: Entry, layer: int = 0) -> np.ndarray:
        value = _leaf(self._model, entry.path)[...]
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            raise UserError(
                "save: the weights are spread over several processes; "
                "`jaxllada convert flax-to-hf` makes a model folder of a checkpoint"
            )
        return np.asarray(value[layer] if entry.per_layer else value)


def _tensor(source: _ModelSource, stored: StoredTensor) -> Tensor:
    kind = source.dtype(stored.parts[0][0])

    def read() -> Iterator[np.ndarray]:
        for entry, layer in stored.parts:
            array = source.read(entry, layer)
            yield from pieces(array.T if entry.transposed else array, kind)

    return Tensor(stored.name, kind, stored.shape, read)


def _whole(source: Source, entry: Entry, dtype: np.dtype) -> jax.Array:
    """One leaf on the default device; beside it the host holds one copy and a block."""
    shape = source.shape(entry)
    layers = source.config.n_layers if entry.per_layer else 1
    out = np.empty((layers, *shape), dtype)
    for layer in range(layers):
        _copy(out[layer], source, entry, layer, (0, shape[0]))
    # Waiting gives the host's copy back before the next one is made.
    return jax.block_until_ready(jax.device_put(out if entry.per_layer else out[0]))


def _sharded(source: Source, entry: Entry, dtype: np.dtype, place: Sharding) -> jax.Array:
    """One leaf over a mesh: every process reads the slices its devices hold, each slice once."""
    shape = source.shape(entry)
    shape = (source.config.n_layers, *shape) if entry.per_layer else shape

    @functools.cache
    def read(index: Index) -> np.ndarray:
        layers = range(*index[0]) if entry.per_layer else range(1)
        rows, *columns = index[1:] if entry.per_layer else index
        out = np.empty([len(layers), *(last - first for first, last in (rows, *columns))], dtype)
        for place, layer in enumerate(layers):
            _copy(out[place], source, entry, layer, rows, *columns)
        return out if entry.per_layer else out[0]

    def callback(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(shape)
        return read(tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True)))

    return jax.block_until_ready(jax.make_array_from_callback(shape, place, callback))


def _copy(
    out: np.ndarray,
    source: Source,
    entry: Entry,
    layer: int,
    rows: tuple[int, int],
    *columns: tuple[int, int],
) -> None:
    """Fills `out` with rows and columns of a layer, block by block, transposed and cast."""
    step = source.rows(entry)
    if not entry.transposed:
        # What is mapped counts as memory: of an embedding of gigabytes, map a block at a time.
        step = min(step, rows_per_piece(source.shape(entry), source.dtype(entry).itemsize))
    for first in range(*rows, step):
        array = source.read(entry, layer, (first, min(first + step, rows[1])))
        for cut in columns:
            array = array[:, slice(*cut)]
        place = first - rows[0]
        for block in pieces(array, out.dtype, what=".".join(entry.path)):
            out[place : place + len(block)] = block
            place += len(block)


def _restored(model: MaskPredictor, places: Any, source: OrbaxSource) -> MaskPredictor:
    graphdef, state = nnx.split(model, nnx.Param)
    like = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        nnx.to_pure_dict(state),
        places,
    )
    return nnx.merge(graphdef, restore_params(source.weights, like))


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _leaf(model: MaskPredictor, path: tuple[str, ...]) -> nnx.Param:
    node: Any = model
    for name in path:
        node = getattr(node, name)
    return node
