"""Headers of safetensors files, checked until every tensor is known to lie inside its file.

A file is 8 bytes (little endian: length of the header), the header (a JSON object: name to type,
shape and offsets) and the data, one tensor after the other.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllada.common.errors import UserError

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Every type of the format, in bytes: also tensors nobody will read have to fit their offsets.
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1} | {
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: type as the format names it, shape, first and last + 1 byte."""

    file: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> np.dtype:
        """NumPy's type; raises UserError for all but 16 and 32 bit floats."""
        if self.kind not in DTYPES:
            known = ", ".join(DTYPES)
            raise UserError(f"{self.file}: {self.name} is stored as {self.kind}, expected {known}")
        return DTYPES[self.kind]


def read_header(path: Path) -> dict[str, Stored]:
    """Returns the tensors of a file by name, in the order of its header.

    Raises:
        UserError: naming file and tensor, for a file that is cut off or no safetensors file, two
            tensors of one name, offsets that overlap, leave gaps, or do not fit type and shape.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise UserError(
                    f"{path} is not a complete safetensors file: {size} bytes, and its header "
                    f"would take {length}"
                )
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        table = json.loads(text, object_pairs_hook=lambda pairs: _unique(path, pairs))
    except ValueError as error:
        raise UserError(
            f"{path} is not a safetensors file: its header is no JSON: {error}"
        ) from None
    if not isinstance(table, dict):
        raise UserError(f"{path} is not a safetensors file: its header is no JSON object")
    table.pop("__metadata__", None)
    start = 8 + length
    tensors = {name: _stored(path, start, name, value) for name, value in table.items()}
    _check_order(path, start, size, sorted(tensors.values(), key=lambda t: (t.begin, t.end)))
    return tensors


def _unique(path: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: {twice} is there twice")
    return table


def _stored(path: Path, start: int, name: str, value: Any) -> Stored:
    try:
        kind, shape = str(value["dtype"]), tuple(value["shape"])
        begin, end = value["data_offsets"]
        numbers = (*shape, begin, end)
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("sizes and offsets have to be whole numbers from 0 on")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: the header entry of {name} is broken: {error}") from None
    if kind in _SIZES and end - begin != math.prod(shape) * _SIZES[kind]:
        raise UserError(
            f"{path}: {name} is {kind} of shape {shape}, "
            f"but its offsets {begin} to {end} hold {end - begin} bytes"
        )
    return Stored(path, name, kind, shape, start + begin, start + end)


def _check_order(path: Path, start: int, size: int, tensors: Sequence[Stored]) -> None:
    position, last = start, "the header"
    for tensor in tensors:
        if tensor.end > size:
            raise UserError(
                f"{path} is not a complete safetensors file: {tensor.name} ends at byte "
                f"{tensor.end} of {size}"
            )
        if tensor.begin != position:
            how = "overlaps" if tensor.begin < position else "leaves a gap after"
            raise UserError(f"{path}: {tensor.name} {how} {last}")
        position, last = tensor.end, tensor.name
    if position != size:
        raise UserError(f"{path}: {size - position} bytes follow the last tensor")
