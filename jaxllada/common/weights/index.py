"""Reads and writes the weight files of a model folder: safetensors shards and their index."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxllada.common.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class WeightFolder:
    """The tensors of a Hugging Face model folder, read one at a time.

    Opening reads headers only and checks that the index, the files and their contents agree.

    Raises:
        UserError: naming the file and the tensor, for missing or truncated shards, names that the
            index and the files disagree on, pickled weights, or types other than 16/32-bit floats.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self._file_of = self._locate()
        self._open: dict[str, Any] = {}
        for file in sorted(set(self._file_of.values())):
            self._open[file] = self._open_shard(file)
        for name, file in self._file_of.items():
            if name not in self._open[file].keys():  # noqa: SIM118 (not a mapping)
                raise UserError(f"{self.folder / INDEX}: {name} should be in {file}, but is not")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all stored tensors."""
        return tuple(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor, from the header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> np.dtype:
        """Type of a stored tensor, from the header."""
        kind = self._slice(name).get_dtype()
        if kind not in _DTYPES:
            known = ", ".join(_DTYPES)
            raise UserError(f"{self._file_of[name]}: {name} is stored as {kind}, expected {known}")
        return np.dtype(_DTYPES[kind])

    def read(self, name: str, rows: tuple[int, int] | None = None) -> np.ndarray:
        """Reads a tensor, or rows first to last (exclusive) of its first axis."""
        self.dtype(name)
        return self._slice(name)[slice(*rows) if rows else slice(None)]

    def _slice(self, name: str) -> Any:
        return self._open[self._file_of[name]].get_slice(name)

    def _locate(self) -> dict[str, str]:
        index = self.folder / INDEX
        if index.is_file():
            try:
                table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise UserError(f"{index} has no readable weight_map") from None
            return {str(name): str(file) for name, file in table.items()}
        if (self.folder / SINGLE).is_file():
            return dict.fromkeys(self._open_shard(SINGLE).keys(), SINGLE)
        if any(self.folder.glob("*.bin")):
            raise UserError(
                f"{self.folder} holds pickled weights (*.bin), which can run code when opened: "
                "convert them to safetensors first"
            )
        raise UserError(f"{self.folder} has no weights: expected {SINGLE} or {INDEX}")

    def _open_shard(self, file: str) -> Any:
        path = self.folder / file
        if not path.is_file():
            raise UserError(f"{path} is missing, but {INDEX} names it")
        try:
            return safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a complete safetensors file: {error}") from None


def write_weights(
    folder: str | os.PathLike[str],
    tensors: Iterable[tuple[str, np.ndarray]],
    *,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes tensors into shards of at most `shard_bytes` and, if more than one, an index.

    Files get their names only when complete; the index is written last.
    """
    folder = Path(folder)
    shards: list[tuple[Path, list[str], int]] = []
    pending: dict[str, np.ndarray] = {}
    size = 0
    for name, tensor in tensors:
        if pending and size + tensor.nbytes > shard_bytes:
            shards.append(_write_shard(folder, len(shards), pending))
            pending, size = {}, 0
        pending[name] = np.ascontiguousarray(tensor)
        size += tensor.nbytes
    shards.append(_write_shard(folder, len(shards), pending))
    if len(shards) == 1:
        os.replace(shards[0][0], folder / SINGLE)
        return
    table: dict[str, str] = {}
    for number, (temporary, names, _) in enumerate(shards, 1):
        final = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        os.replace(temporary, folder / final)
        table |= dict.fromkeys(names, final)
    total = sum(size for _, _, size in shards)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": table})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file in one step: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _write_shard(
    folder: Path, number: int, tensors: dict[str, np.ndarray]
) -> tuple[Path, list[str], int]:
    temporary = folder / f".model-{number:05d}.{os.getpid()}"
    save_file(tensors, temporary, metadata={"format": "pt"})
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    return temporary, list(tensors), sum(tensor.nbytes for tensor in tensors.values())
