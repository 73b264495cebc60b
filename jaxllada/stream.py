"""Turns released weights into an orbax checkpoint, tensor by tensor, whatever the model's size."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxllada.common.notices import byte_progress
from jaxllada.common.partial import partial_folder
from jaxllada.common.weights.side_files import copy_side_files
from jaxllada.common.weights.source import Source
from jaxllada.common.weights.streaming import (
    check_apart,
    home_of,
    module_blocks,
    named_dtype,
    source_fingerprint,
)
from jaxllada.orbax_files import Leaf, seal_params, write_params


def to_flax(
    source: Source, target: Path, *, dtype: np.dtype | None = None, overwrite: bool = False
) -> int:
    """Writes the weights of `source` as a folder that `load` and training open.

    The folder holds config.json, the tokenizer of `source` and an orbax checkpoint with the item
    `params`. It appears complete or not at all; an interrupted conversion is resumed. In memory are
    pieces of 64 MB and what the system maps of one kernel. Returns the number of bytes of weights.

    Raises:
        UserError: `target` exists, its disk is full, or the weights do not fit `dtype`.
    """
    check_apart(source, target)
    entries = {entry.path: entry for entry in source.entries}
    leaves = [
        Leaf(
            path,
            dtype or source.dtype(entry),
            (source.config.n_layers, *source.shape(entry))
            if entry.per_layer
            else source.shape(entry),
            entry.per_layer,
        )
        for path, entry in entries.items()
    ]

    def read(leaf: Leaf, layer: int, rows: int) -> Iterator[np.ndarray]:
        return module_blocks(source, entries[leaf.path], layer, leaf.dtype, rows)

    total = sum(leaf.nbytes for leaf in leaves)
    about = {
        "writes": "orbax params, format 1",
        "source": str(Path(source.path).resolve()),
        "files": source_fingerprint(source),
        "dtype": dtype.name if dtype is not None else None,
    }
    with partial_folder(target, about, needed=total, overwrite=overwrite) as work:
        with byte_progress(total, "hf-to-flax") as told:
            write_params(work, leaves, read, told)
        copy_side_files(home_of(source), work)
        seal_params(work, leaves, {"converted_from": source.kind})
        config = source.config if dtype is None else named_dtype(source.config, dtype)
        config.save(work)  # last: without it no loader accepts the folder
    return total
