"""Writes the weights of any checkpoint as a complete Hugging Face model folder.

    jaxllada export output/run hf/my-model
    jaxllada export hf/my-model hf/my-model-llama --layout llama

The folder holds config.json, tokenizer and chat template, generation settings, safetensors shards
and a model card; the layout `llada` also the code that transformers runs it with. It appears
complete or not at all, and an interrupted export goes on where it was.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxllada.common.config.compute import Dtype
from jaxllada.common.errors import UserError
from jaxllada.common.sizes import parse_bytes, show_bytes

if TYPE_CHECKING:
    import numpy as np

    from jaxllada.common.weights.source import Source

SHARD_SIZE = "5GB"


@dataclass(frozen=True, kw_only=True)
class Config:
    source: str = field(metadata={"positional": True})
    """Model folder, Hub id, or output_dir of a training run."""
    target: str = field(metadata={"positional": True})
    """New folder."""
    adapter: str = ""
    """LoRA adapter to add: a PEFT folder, a run that trained one, or an id."""
    dtype: Dtype | None = None
    """Type to store; that of the source by default."""
    layout: Literal["llada", "llama", "qwen2"] | None = None
    """Names and config of the released LLaDA (default), or of Llama; qwen2 for its twin."""
    shard_size: str = SHARD_SIZE
    """Most bytes of a weight file."""
    step: int | None = None
    """Checkpoint of a training run; the newest sound one by default."""
    overwrite: bool = False
    """Replace the target, once the result is complete."""

    def __post_init__(self) -> None:
        for key in ("source", "target"):
            if not getattr(self, key).strip():
                raise UserError(f"{key}: is empty; expected a folder")
        parse_bytes(self.shard_size, "shard_size")


def export(config: Config, source: "Source", recipe: Mapping[str, Any]) -> None:
    """Writes the folder and tells what it holds; `recipe` goes into the model card."""
    from jaxllada.common.weights.adapter import MergedSource
    from jaxllada.common.weights.export import to_hugging_face
    from jaxllada.common.weights.layouts import find_layout, own_layout

    begun, dtype = time.perf_counter(), dtype_of(config.dtype)
    if dtype is None and isinstance(source, MergedSource):
        dtype = source.stored
    shards = to_hugging_face(
        source,
        Path(config.target),
        find_layout(config.layout) if config.layout else own_layout(source.config),
        shard_bytes=parse_bytes(config.shard_size, "shard_size"),
        dtype=dtype,
        overwrite=config.overwrite,
        recipe=recipe,
    )
    size = sum(shard.nbytes for shard in shards)
    files = f"{len(shards)} file{'s' if len(shards) > 1 else ''}"
    about = f"{described(source, dtype and dtype.name, recipe)} in {files}"
    report(config.target, about, size, time.perf_counter() - begun)


def report(target: str, about: str, size: int, seconds: float) -> None:
    """Prints what was written, how much and how fast."""
    print(f"wrote {target}: {about}, {show_bytes(size)} in {seconds:.1f} s")
    print(f"{show_bytes(size / seconds)}/s, on disk")


def described(source: "Source", dtype: str | None, recipe: Mapping[str, Any]) -> str:
    """Says in a few words which weights these are."""
    layers = source.config.n_layers
    count = sum(layers if entry.per_layer else 1 for entry in source.entries)
    kinds = {source.dtype(entry).name for entry in source.entries}
    text = f"{count} tensors, {dtype or ' and '.join(sorted(kinds))}"
    if recipe:
        text += f", step {recipe['checkpoint']}"
        text += " (averaged)" if recipe.get("averaged_weights") else ""
    return text


def dtype_of(name: str | None) -> "np.dtype | None":
    """The NumPy type of a name of `Dtype`."""
    if name is None:
        return None
    from jaxllada.common.weights.header import DTYPES

    return next(dtype for dtype in DTYPES.values() if dtype.name == name)
