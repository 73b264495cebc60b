"""Opens the arrays of an orbax checkpoint, to read them by layers and rows.

Chunks that hold plain memory (as `orbax_files` writes them) are mapped; everything else orbax may
have written (OCDBT, zarr 2 and 3, any compression) goes through tensorstore.
"""

import json
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from jaxllada.common.errors import UserError


class StoredArray(Protocol):
    """One array of a checkpoint."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, index: int | None, first: int, last: int) -> np.ndarray:
        """Rows `first` to `last` (exclusive) of layer `index`, or of an array without layers."""
        ...

    def step(self, is_stacked: bool) -> int:
        """Rows that lie in one chunk: what is best read at a time."""
        ...

    def forget(self) -> None:
        """Frees what is kept for the next read."""
        ...


def open_arrays(folder: Path) -> dict[tuple[str, ...], StoredArray]:
    """Opens all arrays of one item of a checkpoint by path; reads meta data only.

    Raises:
        UserError: the meta data is missing or damaged, naming the file.
    """
    file = folder / "_METADATA"
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        paths = [
            tuple(str(key["key"]) for key in leaf["key_metadata"])
            for leaf in about["tree_metadata"].values()
        ]
        is_ocdbt, is_zarr3 = about["use_ocdbt"], about.get("use_zarr3", False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or f"unreadable ({error!r})"
        raise UserError(
            f"{file}: {reason}; expected the meta data of an orbax checkpoint"
        ) from None
    return {path: _open_array(folder, ".".join(path), is_ocdbt, is_zarr3) for path in paths}


def _open_array(folder: Path, name: str, is_ocdbt: bool, is_zarr3: bool) -> StoredArray:
    if not is_ocdbt and is_zarr3:
        mapped = MappedArray.open(folder / name)
        if mapped is not None:
            return mapped
    kvstore: dict[str, Any] = {"driver": "file", "path": f"{folder / name}/"}
    if is_ocdbt:
        kvstore = {"driver": "ocdbt", "base": f"file://{folder}/", "path": f"{name}/"}
    spec = {"driver": "zarr3" if is_zarr3 else "zarr", "kvstore": kvstore}
    try:
        return DecodedArray(ts.open(spec, open=True, read=True).result(), folder / name)
    except ValueError as error:
        raise UserError(f"{folder / name}: cannot be opened: {_first_line(error)}") from None


class MappedArray:
    """An array whose chunks are plain memory: whole rows, uncompressed."""

    def __init__(self, folder: Path, meta: dict[str, Any]):
        self._folder = folder
        self.shape = tuple(meta["shape"])
        self.dtype = np.dtype(meta["data_type"])
        self._chunk = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
        self._separator = meta["chunk_key_encoding"]["configuration"]["separator"]

    @classmethod
    def open(cls, folder: Path) -> "MappedArray | None":
        """Opens an array, or returns None where its chunks have to be decoded."""
        try:
            meta = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
            codecs = meta["codecs"]
            plain = len(codecs) == 1 and codecs[0]["name"] == "bytes"
            little = plain and codecs[0]["configuration"]["endian"] == "little"
            array = cls(folder, meta)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole_rows = array._chunk[2:] == array.shape[2:]
        return array if little and whole_rows else None

    def step(self, is_stacked: bool) -> int:
        return self._chunk[1 if is_stacked else 0]

    def read(self, index: int | None, first: int, last: int) -> np.ndarray:
        step = self.step(index is not None)
        found = []
        for part in range(first // step, -(-last // step)):
            begin = part * step
            rows = self._map(index, part)
            found.append(rows[max(first - begin, 0) : last - begin])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _map(self, index: int | None, part: int) -> np.ndarray:
        keys, layer = [part], 0
        if index is not None:
            chunk, layer = divmod(index, self._chunk[0])
            keys = [chunk, part]
        keys += [0] * (len(self.shape) - len(keys))
        path = self._folder / self._separator.join(["c", *map(str, keys)])
        try:
            size = path.stat().st_size
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        expected = math.prod(self._chunk) * self.dtype.itemsize
        if size != expected:
            raise UserError(f"{path}: has {size} bytes, expected {expected}")
        array = np.memmap(path, self.dtype, "r", shape=self._chunk).view(np.ndarray)
        return array if index is None else array[layer]

    def forget(self) -> None:
        pass


class DecodedArray:
    """An array that tensorstore decodes; the block read last is kept, because chunks are large."""

    def __init__(self, store: Any, path: Path):
        self._store, self._path = store, path
        self.shape = tuple(store.shape)
        self.dtype = np.dtype(store.dtype.numpy_dtype)
        self._chunk = tuple(store.chunk_layout.read_chunk.shape)
        self._kept: tuple[tuple[tuple[int, int], ...], np.ndarray] | None = None

    def step(self, is_stacked: bool) -> int:
        if not is_stacked:
            return self._chunk[0]
        # What is decoded for one layer should serve the others of its chunk.
        return self._chunk[1] if self._chunk[0] == 1 else self.shape[1]

    def read(self, index: int | None, first: int, last: int) -> np.ndarray:
        asked = [(first, last)] if index is None else [(index, index + 1), (first, last)]
        window = tuple(
            (low // step * step, min(-(-high // step) * step, size))
            for (low, high), step, size in zip(asked, self._chunk, self.shape, strict=False)
        )
        if self._kept is None or self._kept[0] != window:
            self._kept = None
            self._kept = window, self._decode(window)
        block = self._kept[1]
        if index is not None:
            block = block[index - window[0][0]]
        begin = window[-1][0]
        return block[first - begin : last - begin]

    def forget(self) -> None:
        self._kept = None

    def _decode(self, window: tuple[tuple[int, int], ...]) -> np.ndarray:
        try:
            return self._store[tuple(slice(*part) for part in window)].read().result()
        except ValueError as error:
            raise UserError(f"{self._path}: cannot be read: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
