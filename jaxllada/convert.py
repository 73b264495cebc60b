"""Between released model folders and `MaskPredictor`: same weights, same bits, no remote code."""

import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllada.common.config.compute import ComputeConfig, Dtype
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.weights.index import WeightFolder, write_weights
from jaxllada.common.weights.names import Entry, Part, llada_table, released_part, stored_names
from jaxllada.models.mask_predictor import MaskPredictor, abstract_model
from jaxllada.restore import is_run_folder, load_run_params

EMBEDDING = "model.transformer.wte.weight"
HEAD = "model.transformer.ff_out.weight"


def load(
    path: str | os.PathLike[str],
    dtype: str | None = None,
    *,
    step: int | None = None,
    compute: ComputeConfig | None = None,
) -> MaskPredictor:
    """Reads a model from a released folder or from the folder of a training run.

    Args:
        path: a folder with `config.json` and safetensors weights, or a run's `output_dir`.
        dtype: type of weights and activations; the stored type of the embedding by default.
        step: checkpoint of a training run; the newest sound one by default.
        compute: full compute policy; `dtype` overrides its two types.

    Raises:
        UserError: missing, unexpected or misshaped tensors (all named together), damaged files.
    """
    config, stored, read = _open(Path(path), step)
    kind = dtype or stored
    if kind not in get_args(Dtype):
        raise UserError(f"dtype={kind!r} is unknown: use one of {', '.join(get_args(Dtype))}")
    if compute is None or dtype is not None:
        types = {"param_dtype": kind, "dtype": kind}
        compute = dataclasses.replace(compute or ComputeConfig(), **types)
    values = {e.path: jnp.asarray(read(e), compute.param_dtype) for e in llada_table(config)}
    return fill(abstract_model(config, compute), values)


def _open(folder: Path, step: int | None) -> tuple[ModelConfig, str, Callable[[Entry], np.ndarray]]:
    """Returns a folder's config, the type of its weights, and a function that reads a tensor."""
    if is_run_folder(folder):
        nested, config = load_run_params(folder, step)
        return config, nested["wte"].dtype.name, lambda entry: _nested(nested, entry.path)
    if step is not None:
        raise UserError(f"step={step}: {folder} is not the folder of a training run")
    config = ModelConfig.from_folder(folder)
    files = WeightFolder(folder)
    check_names(config, files)
    return config, files.dtype(EMBEDDING).name, functools.partial(_stored_value, files, config)


def fill(model: MaskPredictor, values: dict[tuple[str, ...], jax.Array]) -> MaskPredictor:
    """Returns `model` with its leaves replaced by path; paths are those of the name table."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(model)
    # A leaf's path ends in `.value` of its nnx.Param, which the table does not spell out.
    paths = [tuple(key.name for key in path[:-1]) for path, _ in leaves]
    return jax.tree.unflatten(structure, [values[path] for path in paths])


def save(model: MaskPredictor, path: str | os.PathLike[str], *, shard_bytes: int = 5 * 10**9):
    """Writes `config.json` and the weights under their released names.

    The folder appears complete or not at all; files that are already there are kept.
    """
    folder = Path(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        write_weights(temporary, released_tensors(model), shard_bytes=shard_bytes)
        model.config.save(temporary)
        folder.mkdir(exist_ok=True)
        for old in [*folder.glob("model*.safetensors"), *folder.glob("model*.index.json")]:
            old.unlink()
        # config.json last: without it no loader accepts the folder.
        for file in sorted(Path(temporary).iterdir(), key=lambda f: f.name == "config.json"):
            os.replace(file, folder / file.name)


def released_tensors(model: MaskPredictor) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (released name, array as stored), block by block."""
    config = model.config
    fused: dict[str, list[np.ndarray]] = {}
    for entry in llada_table(config):
        value = _leaf(model, entry.path)[...]
        for layer in range(config.n_layers if entry.per_layer else 1):
            part = released_part(config, entry, layer)
            array = np.asarray(value[layer] if entry.per_layer else value)
            array = array.T if entry.transposed else array
            if part.rows is None:
                yield part.name, array
                continue
            pieces = fused.setdefault(part.name, [])
            pieces.append(array)
            if len(pieces) == 3:  # q, k and v come in this order
                yield part.name, np.concatenate(fused.pop(part.name))


def check_names(config: ModelConfig, files: WeightFolder) -> None:
    """Raises `UserError` unless the files hold exactly the tensors of this configuration."""
    expected, found = set(stored_names(config)), set(files.names)
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if config.weight_tying and HEAD in unexpected:
        unexpected.remove(HEAD)
        if not np.array_equal(files.read(HEAD), files.read(EMBEDDING)):
            raise UserError(
                f"{files.folder}: {HEAD} differs from the embedding, but weight_tying is true"
            )
    if missing or unexpected:
        raise UserError(
            f"{files.folder}: {len(missing)} weights missing{_some(missing)} "
            f"and {len(unexpected)} unexpected{_some(unexpected)}"
        )


def _stored_value(files: WeightFolder, config: ModelConfig, entry: Entry) -> np.ndarray:
    layers = range(config.n_layers if entry.per_layer else 1)
    arrays = [_read(files, config, entry, released_part(config, entry, i)) for i in layers]
    return np.stack(arrays) if entry.per_layer else arrays[0]


def _read(files: WeightFolder, config: ModelConfig, entry: Entry, part: Part) -> np.ndarray:
    expected = _stored_shape(config, entry, part)
    if files.shape(part.name) != expected:
        raise UserError(
            f"{files.folder}: {part.name} has shape {files.shape(part.name)}, "
            f"but config.json asks for {expected}"
        )
    array = files.read(part.name, part.rows)
    return array.T if entry.transposed else array


def _stored_shape(config: ModelConfig, entry: Entry, part: Part) -> tuple[int, ...]:
    shape = _leaf(_shapes(config), entry.path).shape
    shape = shape[1:] if entry.per_layer else shape
    shape = shape[::-1] if entry.transposed else shape
    if part.rows is None:
        return shape
    fused = config.d_model + 2 * config.kv_heads * config.head_dim
    return (fused, *shape[1:])


@functools.lru_cache(maxsize=8)
def _shapes(config: ModelConfig) -> MaskPredictor:
    return abstract_model(config)


def _leaf(model: MaskPredictor, path: tuple[str, ...]) -> nnx.Param:
    node: Any = model
    for name in path:
        node = getattr(node, name)
    return node


def _nested(tree: dict[str, Any], path: tuple[str, ...]) -> np.ndarray:
    for name in path:
        tree = tree[name]
    return np.asarray(tree)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f" ({shown})" if names else ""
