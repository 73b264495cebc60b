"""Converts weights between Hugging Face and Flax folders, in bounded memory, bit for bit.

    jaxllada convert hf-to-flax GSAI-ML/LLaDA-8B-Base flax/llada-8b
    jaxllada convert flax-to-hf output/run hf/my-model
    jaxllada convert flax-to-hf hf/my-model hf/my-model-llama --layout llama

A Flax folder holds config.json, the tokenizer and an orbax checkpoint; training and `load` open it,
and orbax restores its item `params` into the shards of any mesh. Types change only with --dtype.
The result appears complete or not at all; an interrupted conversion goes on where it was.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxllada.common.config.compute import Dtype
from jaxllada.common.errors import UserError
from jaxllada.common.sizes import parse_bytes, show_bytes

if TYPE_CHECKING:
    import numpy as np

    from jaxllada.common.weights.source import Source

SHARD_SIZE = "5GB"


@dataclass(frozen=True, kw_only=True)
class Config:
    direction: Literal["hf-to-flax", "flax-to-hf"] = field(metadata={"positional": True})
    """Which way."""
    source: str = field(metadata={"positional": True})
    """Model folder, Hub id, Flax folder, or output_dir of a training run, whatever the direction:
    so a model folder can change its layout, type or number of files, and a run give its weights."""
    target: str = field(metadata={"positional": True})
    """New folder."""
    dtype: Dtype | None = None
    """Type to store; that of the source by default."""
    layout: Literal["llada", "llama"] | None = None
    """flax-to-hf: names and config of the released LLaDA (default), or of Llama."""
    shard_size: str = ""
    """flax-to-hf: most bytes of a weight file; 5GB by default."""
    step: int | None = None
    """Checkpoint of a training run; the newest sound one by default."""
    average: bool | None = None
    """Training run: its averaged weights, or not; averaged ones where there are any by default."""
    overwrite: bool = False
    """Replace the target, once the result is complete."""

    def __post_init__(self) -> None:
        for key in ("source", "target"):
            if not getattr(self, key).strip():
                raise UserError(f"{key}: is empty; expected a folder")
        if self.direction == "hf-to-flax":
            for key in ("layout", "shard_size"):
                if getattr(self, key):
                    raise UserError(f"{key}={getattr(self, key)}: is only for flax-to-hf")
        parse_bytes(self.shard_size or SHARD_SIZE, "shard_size")


def run(config: Config) -> None:
    """Converts, and tells what was written."""
    from jaxllada.common.partial import check_free_name

    target = Path(config.target)
    check_free_name(target, overwrite=config.overwrite)
    begun = time.perf_counter()
    source = _open(config)
    try:
        size, about = (_to_flax if config.direction == "hf-to-flax" else _to_hf)(
            config, source, target
        )
    finally:
        source.close()
    seconds = time.perf_counter() - begun
    print(f"wrote {target}: {about}, {show_bytes(size)} in {seconds:.1f} s")
    print(f"{show_bytes(size / seconds)}/s, on disk")


def _open(config: Config) -> "Source":
    from jaxllada.common.weights.hub import local_folder
    from jaxllada.orbax_source import open_source

    return open_source(local_folder(config.source), config.step, average=config.average)


def _to_flax(config: Config, source: "Source", target: Path) -> tuple[int, str]:
    from jaxllada.stream import to_flax

    size = to_flax(source, target, dtype=_dtype(config), overwrite=config.overwrite)
    return size, _described(config, source)


def _to_hf(config: Config, source: "Source", target: Path) -> tuple[int, str]:
    from jaxllada.common.weights.export import to_hugging_face
    from jaxllada.common.weights.layouts import find_layout

    shards = to_hugging_face(
        source,
        target,
        find_layout(config.layout or "llada"),
        shard_bytes=parse_bytes(config.shard_size or SHARD_SIZE, "shard_size"),
        dtype=_dtype(config),
        overwrite=config.overwrite,
        recipe=_recipe(source),
    )
    files = f"{len(shards)} file{'s' if len(shards) > 1 else ''}"
    return sum(shard.nbytes for shard in shards), f"{_described(config, source)} in {files}"


def _described(config: Config, source: "Source") -> str:
    layers = source.config.n_layers
    count = sum(layers if entry.per_layer else 1 for entry in source.entries)
    kinds = {source.dtype(entry).name for entry in source.entries}
    text = f"{count} tensors, {config.dtype or ' and '.join(sorted(kinds))}"
    recipe = _recipe(source)
    if recipe:
        text += f", step {recipe['checkpoint']}"
        text += " (averaged)" if recipe.get("averaged_weights") else ""
    return text


def _recipe(source: "Source") -> dict[str, int | bool]:
    """Which weights of a training run these are; empty for a model folder."""
    from jaxllada.orbax_source import AVERAGE, OrbaxSource

    if source.kind != "run":
        return {}
    if not isinstance(source, OrbaxSource):
        return {"checkpoint": int(source.path.name)}
    weights = source.weights
    step = int(weights.folder.name)
    return {"checkpoint": step, "averaged_weights": weights.item == AVERAGE}


def _dtype(config: Config) -> "np.dtype | None":
    if config.dtype is None:
        return None
    from jaxllada.common.weights.header import DTYPES

    return next(dtype for dtype in DTYPES.values() if dtype.name == config.dtype)
