"""Writes safetensors shards of any size in bounded memory: header first, then tensor by tensor.

The sizes of all tensors are known beforehand, so every byte goes straight to its place. A shard has
its name only when it is on the disk; one that is there already is not written again.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.ahead import Ahead
from jaxllada.common.durable import DurableFiles, array_bytes
from jaxllada.common.weights.header import DTYPES
from jaxllada.common.weights.index import INDEX, SINGLE, write_json

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: `read` yields C-contiguous arrays that make it up, in order.

    Within a shard, tensors lie in the order of `place`: equal ones are read from the same array.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], Iterable[np.ndarray]]
    place: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One file and its tensors, in the order in which they are written."""

    file: str
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def plan_shards(tensors: Iterable[Tensor], shard_bytes: int) -> list[Shard]:
    """Fills shards of at most `shard_bytes` in the given order; a larger tensor has its own."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.nbytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    if len(groups) == 1:
        return [Shard(SINGLE, _aligned(groups[0]))]
    return [
        Shard(f"model-{i:05d}-of-{len(groups):05d}.safetensors", _aligned(group))
        for i, group in enumerate(groups, 1)
    ]


def write_shards(
    folder: Path, shards: Sequence[Shard], told: Callable[[int], None] = lambda _: None
) -> None:
    """Writes the shards that are missing in `folder` and, for more than one, the index.

    `told` is called with numbers of bytes as they are written or found to be there.

    Raises:
        OSError: the disk is full or fails; finished shards stay.
    """
    with DurableFiles(told) as files:
        for shard in shards:
            if (folder / shard.file).is_file():
                told(shard.nbytes)
                continue
            arrays = (array for tensor in shard.tensors for array in _checked(tensor))
            with Ahead(arrays) as prepared, files.create(folder / shard.file) as append:
                append(header(shard.tensors))
                for array in prepared:
                    append(array_bytes(array))
    if len(shards) > 1:
        table = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
        total = sum(shard.nbytes for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
        write_json(folder / INDEX, index)


def header(tensors: Sequence[Tensor]) -> bytes:
    """The first bytes of a safetensors file, up to the data, which starts at a multiple of 8."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in tensors:
        table[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin := begin + tensor.nbytes],
        }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _aligned(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Wide types first: then every tensor starts at a multiple of its own item size."""
    return tuple(sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.place)))


def _checked(tensor: Tensor) -> Iterator[np.ndarray]:
    written = 0
    for array in tensor.read():
        assert array.dtype == tensor.dtype, f"{tensor.name}: {array.dtype} is not {tensor.dtype}"
        written += array.nbytes
        yield array
    assert written == tensor.nbytes, f"{tensor.name}: {written} of {tensor.nbytes} bytes"
