"""Reads and writes the weight files of a model folder: safetensors shards and their index."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.errors import UserError
from jaxllada.common.weights.header import Stored, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class WeightFolder:
    """The tensors of a Hugging Face model folder, as views of its mapped files.

    Opening reads headers only and checks that the index, the files and their contents agree.

    Raises:
        UserError: naming the file and the tensor, for missing or damaged shards, names that are in
            two shards or not where the index says, or pickled weights.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        index = self.folder / INDEX
        table = _weight_map(index) if index.is_file() else None
        self.files = sorted(set(table.values())) if table is not None else [self._single()]
        self._tensors: dict[str, Stored] = {}
        for file in self.files:
            if not (self.folder / file).is_file():
                raise UserError(f"{self.folder / file} is missing, but {INDEX} names it")
            for name, tensor in read_header(self.folder / file).items():
                if name in self._tensors:
                    other = self._tensors[name].file.name
                    raise UserError(f"{self.folder}: {name} is in both {other} and {file}")
                self._tensors[name] = tensor
        for name, file in (table or {}).items():
            if name not in self._tensors or self._tensors[name].file.name != file:
                raise UserError(f"{index}: {name} should be in {file}, but is not")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all stored tensors."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor, from the header."""
        return self._tensors[name].shape

    def kind(self, name: str) -> str:
        """Type of a stored tensor as safetensors spells it, of any that the format knows."""
        return self._tensors[name].kind

    def dtype(self, name: str) -> np.dtype:
        """Type of a stored tensor; raises UserError for other than 16 and 32 bit floats."""
        return self._tensors[name].dtype

    def nbytes(self, name: str) -> int:
        """Bytes of a stored tensor."""
        return self._tensors[name].end - self._tensors[name].begin

    def file(self, name: str) -> Path:
        """The file a tensor is in."""
        return self._tensors[name].file

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """Returns a tensor, or rows first to last (exclusive) of its first axis.

        A read-only view of the mapped file: pages are read when touched, and the mapping ends with
        the last view of it, so nothing stays in memory.
        """
        return map_tensor(self._tensors[name], rows)

    def _single(self) -> str:
        if (self.folder / SINGLE).is_file():
            return SINGLE
        if any(self.folder.glob("*.bin")):
            raise UserError(
                f"{self.folder} holds pickled weights (*.bin), which can run code when opened: "
                "convert them to safetensors first"
            )
        if (self.folder / "params" / "_METADATA").is_file():
            raise UserError(
                f"{self.folder} holds an orbax checkpoint: "
                "`jaxllada convert flax-to-hf` makes a model folder of it"
            )
        raise UserError(f"{self.folder} has no weights: expected {SINGLE} or {INDEX}")


def map_tensor(tensor: Stored, rows: tuple[int, int] | None = None) -> np.ndarray:
    """Returns a read-only view of a tensor in its mapped file, see `WeightFolder.read`."""
    shape, begin, count = tensor.shape, tensor.begin, tensor.end - tensor.begin
    if rows is not None:
        first, last = rows
        assert 0 <= first <= last <= shape[0], f"rows {rows} of {tensor.name} {shape}"
        row = count // max(1, shape[0])
        shape, begin, count = (last - first, *shape[1:]), begin + first * row, row * (last - first)
    if not count:
        return np.empty(shape, tensor.dtype)
    try:
        mapped = np.memmap(tensor.file, np.uint8, "r", offset=begin, shape=(count,))
    except (OSError, ValueError) as error:
        raise UserError(f"{tensor.file} cannot be read: {error}") from None
    return np.asarray(mapped).view(tensor.dtype).reshape(shape)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        items = {str(name): str(file) for name, file in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} has no readable weight_map") from None
    except OSError as error:
        raise UserError(f"{index} cannot be read: {error.strerror}") from None
    for name, file in items.items():
        if Path(file).name != file:
            raise UserError(f"{index}: {name} points to {file!r}, expected a file of this folder")
    return items


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file in one step: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
