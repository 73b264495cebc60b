"""Writes the weights of an orbax checkpoint layer by layer, so that no whole array is ever held.

A checkpoint folder has one item, `params`, with the nested names of `nnx.to_pure_dict`; orbax
restores it into the shardings of any mesh. Its arrays are zarr 3 without compression: a chunk is
the memory of some rows of one layer, which makes writing it a copy and reading it a memory map.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.ahead import Ahead
from jaxllada.common.durable import DurableFiles, array_bytes
from jaxllada.common.manifest import write_atomically, write_manifest
from jaxllada.common.weights.index import write_json
from jaxllada.common.weights.pieces import rows_per_piece

ITEM = "params"
# An array up to this size is one chunk: thousands of tiny files would help nobody.
_SMALL = 1 << 20


@dataclass(frozen=True)
class Leaf:
    """One array of the checkpoint: `shape` with the layer axis first where `is_stacked`."""

    path: tuple[str, ...]
    dtype: np.dtype
    shape: tuple[int, ...]
    is_stacked: bool

    @property
    def name(self) -> str:
        """Name of the array's folder."""
        return ".".join(self.path)

    @property
    def layers(self) -> int:
        return self.shape[0] if self.is_stacked else 1

    @property
    def layer_shape(self) -> tuple[int, ...]:
        return self.shape[1:] if self.is_stacked else self.shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_small(self) -> bool:
        """Whether one chunk holds everything."""
        return self.nbytes <= _SMALL

    @property
    def rows(self) -> int:
        """Rows of a layer in one chunk."""
        if self.is_small:
            return self.layer_shape[0]
        return rows_per_piece(self.layer_shape, self.dtype.itemsize)

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        layer = (self.rows, *self.layer_shape[1:])
        return (self.layers if self.is_small else 1, *layer) if self.is_stacked else layer

    def chunk(self, layer: int, part: int) -> str:
        """File name of a chunk: part `part` of the rows of `layer`."""
        first = [layer] if self.is_stacked else []
        return ".".join(["c", *map(str, [*first, part]), *["0"] * (len(self.layer_shape) - 1)])

    def zarr(self) -> dict[str, Any]:
        """Meta data of the array, as in the zarr 3 specification."""
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": self.shape,
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.chunk_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "fill_value": 0.0,
            "attributes": {},
        }


# Yields one layer in blocks of `rows` rows, in order, C-contiguous and of the leaf's type.
ReadLayer = Callable[[Leaf, int, int], Iterable[np.ndarray]]


def write_params(
    folder: Path,
    leaves: Sequence[Leaf],
    read: ReadLayer,
    told: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes the chunks that are missing below `folder`; nothing can open them yet.

    `read(leaf, layer, rows)` gives the weights. `told` is called with numbers of bytes, written or
    found to be there.

    Raises:
        OSError: the disk is full or fails; finished chunks stay.
    """
    for leaf in leaves:
        place = folder / ITEM / leaf.name
        place.mkdir(parents=True, exist_ok=True)
        write_json(place / "zarr.json", leaf.zarr())
    chunks = (chunk for leaf in leaves for chunk in _missing(folder / ITEM, leaf, read, told))
    with DurableFiles(told) as files, Ahead(chunks) as prepared:
        for path, pieces in prepared:
            with files.create(path) as append:
                for piece in pieces:
                    append(piece)
            del pieces


def _missing(
    params: Path, leaf: Leaf, read: ReadLayer, told: Callable[[int], None]
) -> Iterator[tuple[Path, list[memoryview | bytes]]]:
    """Yields (file, content) of the chunks of a leaf that are not there yet."""
    place = params / leaf.name
    if leaf.is_small:
        path = place / leaf.chunk(0, 0)
        if path.is_file():
            return told(leaf.nbytes)
        blocks = (read(leaf, layer, leaf.rows) for layer in range(leaf.layers))
        yield path, [array_bytes(block) for layer in blocks for block in layer]
        return
    size = math.prod(leaf.chunk_shape) * leaf.dtype.itemsize
    parts = -(-leaf.layer_shape[0] // leaf.rows)
    for layer in range(leaf.layers):
        paths = [place / leaf.chunk(layer, part) for part in range(parts)]
        if all(path.is_file() for path in paths):
            told(leaf.nbytes // leaf.layers)
            continue
        for path, block in zip(paths, read(leaf, layer, leaf.rows), strict=True):
            # zarr stores the last chunk in full
            yield path, [array_bytes(block), bytes(size - block.nbytes)]


def seal_params(folder: Path, leaves: Sequence[Leaf], about: dict[str, Any]) -> None:
    """Writes what makes orbax open `folder`, and last the manifest that its readers ask for.

    The manifest lists names and sizes: hashing would cost more than the conversion.
    """
    write_json(folder / ITEM / "_METADATA", _tree_metadata(leaves))
    now = time.time_ns()
    handler = "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"
    write_json(
        folder / "_CHECKPOINT_METADATA",
        {
            "item_handlers": {ITEM: handler},
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": now,
            "commit_timestamp_nsecs": now,
            "custom_metadata": {},
        },
    )
    write_atomically(folder / "orbax.checkpoint", b"")
    write_manifest(folder, about, below=f"{ITEM}/", hashes=False)


def _tree_metadata(leaves: Sequence[Leaf]) -> dict[str, Any]:
    return {
        "tree_metadata": {
            str(leaf.path): {
                # key_type 2: the key of a dictionary
                "key_metadata": [{"key": key, "key_type": 2} for key in leaf.path],
                # So that restoring without a target gives NumPy arrays on any machine.
                "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
            }
            for leaf in leaves
        },
        "use_ocdbt": False,
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
