"""Tokenised rows in pieces, so that preparing a large data set goes on where it was stopped.

Each piece is a file, written whole or not at all, in a folder beside the cache entry it is for;
the folder is removed when the entry is complete.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllada.common.manifest import write_atomically

SHARD = 4096
"""Rows of the source in one piece."""


class Piece(NamedTuple):
    """Arrays made of some rows of a source, and facts (JSON) with `rows_read`."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def pieces(
    folder: Path | None, name: str, make: Callable[[int, int], Piece], *, size: int = SHARD
) -> Iterator[Piece]:
    """Yields `make(start, stop)` for every `size` rows until one reads fewer.

    Pieces found in `folder` are not made again; without a folder nothing is kept.
    """
    number = 0
    while True:
        start = number * size
        file = None if folder is None else folder / f"{name}-{number:06d}.npz"
        piece = None if file is None else _read(file)
        if piece is None:
            piece = make(start, start + size)
            if file is not None:
                _write(file, piece)
        yield piece
        if piece.facts["rows_read"] < size:
            return
        number += 1


def _read(file: Path) -> Piece | None:
    try:
        with np.load(file) as found:
            arrays = {key: found[key] for key in found.files if key != "facts"}
            return Piece(arrays, json.loads(str(found["facts"])))
    except (OSError, ValueError, KeyError):
        return None


def _write(file: Path, piece: Piece) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.array(json.dumps(piece.facts)), **piece.arrays)  # pyright: ignore
    write_atomically(file, buffer.getvalue())
