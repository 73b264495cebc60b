"""What a folder holds, told from headers alone: format, loader, tensors by kind, what is wrong."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.config.family import read_config_json
from jaxllada.common.config.llama import to_llama
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import fault, step_folders
from jaxllada.common.notices import warn
from jaxllada.common.run.checkpoints import CHECKPOINTS, is_run_folder
from jaxllada.common.weights.index import WeightFolder
from jaxllada.common.weights.layouts import LAYOUTS, Layout, layout_of
from jaxllada.common.weights.names import entry_shape, llada_table
from jaxllada.common.weights.source import compare

Report = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """One stored tensor: its kind (the same for all layers), type, shape and bytes."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def newest_checkpoint(run_folder: Path, step: int | None = None) -> Path:
    """Returns a checkpoint of a run whose files are all there; their contents are not read."""
    folders = step_folders(run_folder / CHECKPOINTS)
    if step is not None and step not in folders:
        listed = ", ".join(map(str, folders)) or "none"
        raise UserError(f"step={step}: no such checkpoint in {run_folder} (there: {listed})")
    for number in [step] if step is not None else sorted(folders, reverse=True):
        if why := fault(folders[number], hashes=False):
            warn(f"skipping checkpoint {folders[number]}: {why}")
            continue
        return folders[number]
    raise UserError(f"{run_folder}: holds no sound checkpoint")


def inspect_weights(path: Path, step: int | None = None) -> Report | None:
    """Describes a model folder, or a run whose checkpoints are model folders; None for others.

    Raises:
        UserError: weight files that are damaged, pickled, or of a family that is not supported.
    """
    folder = newest_checkpoint(path, step) if is_run_folder(path) else path
    names = ("*.safetensors", "*.safetensors.index.json", "*.bin")
    if not (folder / "config.json").is_file() or not any(any(folder.glob(n)) for n in names):
        return None
    layout = layout_of(read_config_json(folder / "config.json"))
    config = read_config(folder)
    files = WeightFolder(folder)
    differences = compare(config, layout, files)
    kinds = _kinds(config, layout)
    found = [
        Found(
            kinds.get(name, name),
            files.dtype(name).name if name in kinds else files.kind(name),
            files.shape(name),
            files.nbytes(name),
        )
        for name in files.names
        if not layout.is_ignored(name)
    ]
    is_run = folder != path
    notes = config_notes(config)
    if config.weight_tying and layout.head in files.names:
        notes.append(f"the head is tied but stored as well ({layout.head}); load compares them")
        found = [f for f in found if f.kind != layout.head]
    if differences.ignored:
        notes.append(f"{len(differences.ignored)} tensors are no part of the language model")
    return describe(
        found,
        format="run" if is_run else layout.name,
        loader=f"safetensors, {layout.name} names" + (f", checkpoint {folder.name}" * is_run),
        files=len(files.files),
        missing=differences.missing,
        unexpected=differences.unexpected,
        misshaped=differences.misshaped,
        notes=notes,
    )


def inspect_arrays(
    path: Path,
    step: int | None,
    open_arrays: Callable[[Path], Mapping[tuple[str, ...], Any]],
    items: Iterable[str],
) -> Report:
    """Describes orbax arrays: a converted folder, or a run whose checkpoints are such files.

    `open_arrays` returns what has `shape` and `dtype` by module path; `items` are the names the
    weights may have, the preferred one first.
    """
    is_run = is_run_folder(path)
    folder = newest_checkpoint(path, step) if is_run else path
    if not is_run and (why := fault(folder, hashes=False)):
        raise UserError(f"{folder}: {why}")
    item = next(name for name in items if (folder / name / "_METADATA").is_file())
    config = read_config(path)
    arrays = open_arrays(folder / item)
    shapes = expected_shapes(config)
    misshaped = [
        f"{'.'.join(name)} has shape {tuple(array.shape)}, but config.json asks for {shapes[name]}"
        for name, array in arrays.items()
        if name in shapes and tuple(array.shape) != shapes[name]
    ]
    found = [
        Found(
            ".".join(name),
            np.dtype(array.dtype).name,
            tuple(array.shape),
            math.prod(array.shape) * np.dtype(array.dtype).itemsize,
        )
        for name, array in arrays.items()
    ]
    return describe(
        found,
        format="run" if is_run else "orbax",
        loader=f"orbax, item {item}" + (f", checkpoint {folder.name}" if is_run else ""),
        files=sum(1 for file in (folder / item).rglob("*") if file.is_file()),
        missing=sorted(".".join(name) for name in shapes.keys() - arrays.keys()),
        unexpected=sorted(".".join(name) for name in arrays.keys() - shapes.keys()),
        misshaped=misshaped,
        notes=config_notes(config),
    )


def _kinds(config: ModelConfig, layout: Layout) -> dict[str, str]:
    """Stored name -> the name of its kind, with the number of the layer left open."""
    kinds: dict[str, str] = {}
    for entry in layout.table(config):
        leaf = entry.path[-2] if len(entry.path) > 1 else ""
        for layer in range(config.n_layers if entry.per_layer else 1):
            part = layout.part_of(config, entry, layer)
            fused = entry.released.replace(leaf, "att_proj")
            kinds[part.name] = entry.released if part.rows is None else fused
    return kinds


def expected_shapes(config: ModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shape of every leaf by module path, layers first where they are stacked."""
    return {
        entry.path: (config.n_layers, *entry_shape(config, entry))
        if entry.per_layer
        else entry_shape(config, entry)
        for entry in llada_table(config)
    }


def config_notes(config: ModelConfig) -> list[str]:
    """What a reader of this config.json may want to know before using the weights."""
    notes = []
    if config.is_causal:
        return ["autoregressive: positions see those before them; exported as qwen2"]
    if config.mask_token_id is None:
        notes.append("no file tells the id of the mask token: give mask_token_id")
    if not config.rope_full_precision:
        notes.append("rotary angles are rounded to the activation type before they are used")
    if config.rows != config.vocab_size:
        notes.append(f"{config.rows - config.vocab_size} embedding rows lie beyond the vocabulary")
    try:
        to_llama(config)
        notes.append(f"can be exported as {' or '.join(LAYOUTS)}")
    except UserError as error:
        notes.append(f"can be exported as llada only: {error}".split("; use")[0])
    return notes


def describe(found: list[Found], **about: Any) -> Report:
    """Joins tensors of one kind into rows and adds the sums."""
    kinds: dict[str, Report] = {}
    types: dict[str, int] = {}
    for tensor in found:
        types[tensor.dtype] = types.get(tensor.dtype, 0) + 1
        shapes = f"{tensor.dtype} {tensor.shape}"
        row = kinds.setdefault(
            f"{tensor.kind} {shapes}",
            {"name": tensor.kind, "count": 0, "dtype": tensor.dtype, "bytes": 0},
        )
        row |= {"shape": list(tensor.shape), "count": row["count"] + 1}
        row["bytes"] += tensor.nbytes
    wrong = ("missing", "unexpected", "misshaped")
    about |= {key: list(about[key]) for key in wrong}
    return {
        **about,
        "tensors": len(found),
        "types": types,
        "bytes": sum(tensor.nbytes for tensor in found),
        "elements": sum(math.prod(tensor.shape) for tensor in found),
        "kinds": list(kinds.values()),
        "complete": not any(about[key] for key in wrong),
    }
