"""Writes the weights of any source as a Hugging Face model folder, tensor by tensor."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.errors import UserError
from jaxllada.common.notices import byte_progress
from jaxllada.common.partial import partial_folder
from jaxllada.common.weights.card_run import checkpoint_of
from jaxllada.common.weights.folder import complete_folder
from jaxllada.common.weights.layouts import Layout, StoredTensor
from jaxllada.common.weights.shards import Shard, Tensor, plan_shards, write_shards
from jaxllada.common.weights.source import Source
from jaxllada.common.weights.streaming import (
    check_apart,
    check_tokenizer,
    home_of,
    source_fingerprint,
    stored_blocks,
)


def to_hugging_face(
    source: Source,
    target: Path,
    layout: Layout,
    *,
    shard_bytes: int = 5 * 10**9,
    dtype: np.dtype | None = None,
    overwrite: bool = False,
    recipe: Mapping[str, Any] | None = None,
) -> list[Shard]:
    """Writes a complete model folder of `layout`; returns its shards.

    The folder appears complete or not at all; an interrupted conversion goes on with the first
    shard that is not finished. In memory are pieces of 64 MB, one kernel to transpose, and what the
    system maps of it. `dtype` casts; None keeps the stored types. `recipe` goes into the card.

    Raises:
        UserError: the layout cannot express the model, `target` exists, its disk is full, or the
            weights do not fit `dtype`.
    """
    check_apart(source, target)
    layout.write_config(source.config)
    check_tokenizer(source)
    shards = plan_shards(export_tensors(source, layout, dtype), shard_bytes)
    total = sum(shard.nbytes for shard in shards)
    about = {
        "writes": "safetensors, format 1",
        "source": str(Path(source.path).resolve()),
        "files": source_fingerprint(source),
        "layout": layout.name,
        "dtype": dtype.name if dtype is not None else None,
        "shard_bytes": shard_bytes,
    }
    with partial_folder(target, about, needed=total, overwrite=overwrite) as work:
        with byte_progress(total, "flax-to-hf") as told:
            write_shards(work, shards, told)
        # A config names a type; it is changed where the type is, and after training.
        is_new = dtype is not None or source.kind == "run"
        complete_folder(
            work,
            source_folder=home_of(source),
            config=source.config,
            layout=layout,
            dtype=shards[0].tensors[0].dtype if is_new else None,
            recipe=recipe or checkpoint_of(Path(getattr(source, "folder", source.path))),
            name=target.name,
        )
    return shards


def export_tensors(source: Source, layout: Layout, dtype: np.dtype | None = None) -> list[Tensor]:
    """Returns the tensors of a folder of `layout`, layer by layer; nothing is read yet."""
    places = {entry.path: place for place, entry in enumerate(source.entries)}
    return [
        _tensor(source, stored, dtype, places[stored.parts[0][0].path])
        for stored in layout.tensors(source.config)
    ]


def _tensor(source: Source, stored: StoredTensor, dtype: np.dtype | None, place: int) -> Tensor:
    kinds = {dtype or source.dtype(entry) for entry, _ in stored.parts}
    if len(kinds) > 1:
        listed = " and ".join(sorted(kind.name for kind in kinds))
        raise UserError(f"{stored.name}: its parts are stored as {listed}; choose one with --dtype")
    kind = kinds.pop()

    def read() -> Iterator[np.ndarray]:
        for entry, layer in stored.parts:
            yield from stored_blocks(source, entry, layer, kind)

    return Tensor(stored.name, kind, stored.shape, read, place)
