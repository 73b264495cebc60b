"""Converts weights between Hugging Face and Flax folders, in bounded memory, bit for bit.

    jaxllada convert hf-to-flax GSAI-ML/LLaDA-8B-Base flax/llada-8b
    jaxllada convert flax-to-hf output/run hf/my-model
    jaxllada convert flax-to-hf hf/my-model hf/my-model-llama --layout llama

A Flax folder holds config.json, the tokenizer and an orbax checkpoint; training and `load` open it,
and orbax restores its item `params` into the shards of any mesh. Types change only with --dtype.
The result appears complete or not at all; an interrupted conversion goes on where it was.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxllada.apps import export as app
from jaxllada.common.config.compute import Dtype
from jaxllada.common.errors import UserError
from jaxllada.common.sizes import parse_bytes

if TYPE_CHECKING:
    from jaxllada.common.weights.source import Source


@dataclass(frozen=True, kw_only=True)
class Config:
    direction: Literal["hf-to-flax", "flax-to-hf"] = field(metadata={"positional": True})
    """Which way."""
    source: str = field(metadata={"positional": True})
    """Model folder, Hub id, Flax folder, or output_dir of a training run, whatever the direction:
    so a model folder can change its layout, type or number of files, and a run give its weights."""
    target: str = field(metadata={"positional": True})
    """New folder."""
    adapter: str = ""
    """LoRA adapter to add: a PEFT folder, a run that trained one, or an id."""
    dtype: Dtype | None = None
    """Type to store; that of the source by default."""
    layout: Literal["llada", "llama", "qwen2"] | None = None
    """flax-to-hf: names and config of the released LLaDA (default), or of Llama; qwen2 for its
    autoregressive twin."""
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
        parse_bytes(self.shard_size or app.SHARD_SIZE, "shard_size")


def run(config: Config) -> None:
    """Converts, and tells what was written."""
    if config.direction == "flax-to-hf":
        settings = app.Config(
            source=config.source,
            target=config.target,
            adapter=config.adapter,
            dtype=config.dtype,
            layout=config.layout,
            shard_size=config.shard_size or app.SHARD_SIZE,
            step=config.step,
            overwrite=config.overwrite,
        )
        export(settings, average=config.average)
        return
    from jaxllada.common.weights.adapter import MergedSource
    from jaxllada.stream import to_flax

    target = Path(config.target)
    begun = time.perf_counter()
    with _opened(config, config.average) as source:
        dtype = app.dtype_of(config.dtype)
        if dtype is None and isinstance(source, MergedSource):
            dtype = source.stored
        size = to_flax(source, target, dtype=dtype, overwrite=config.overwrite)
        about = app.described(source, dtype and dtype.name, _recipe(source))
    app.report(config.target, about, size, time.perf_counter() - begun)


def export(config: app.Config, *, average: bool | None = None) -> None:
    """Writes a model folder of a checkpoint of any format."""
    with _opened(config, average) as source:
        app.export(config, source, _recipe(source))


@contextlib.contextmanager
def _opened(config: Config | app.Config, average: bool | None) -> "Iterator[Source]":
    """Opens the source, once it is clear that the target can be written."""
    from jaxllada.common.partial import check_free_name
    from jaxllada.common.weights.hub import local_folder
    from jaxllada.orbax_source import open_source

    check_free_name(Path(config.target), overwrite=config.overwrite)
    adapter = config.adapter or None
    path = local_folder(config.source)
    source = open_source(path, config.step, average=average, adapter=adapter)
    try:
        yield source
    finally:
        source.close()


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
