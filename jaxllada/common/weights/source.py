"""A checkpoint opened for reading, one layer of one weight at a time, whatever its format.

Everything that reads weights (load, convert, verify, the torch side) asks a `Source`. This file has
the one for model folders; `jaxllada.convert.open_source` knows the others too.
"""

import os
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from jaxllada.common.config.family import read_config_json
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.errors import UserError
from jaxllada.common.notices import notice
from jaxllada.common.weights.index import WeightFolder
from jaxllada.common.weights.layouts import Layout, layout_of
from jaxllada.common.weights.names import Entry, entry_shape, llada_table

_COMPARED_BYTES = 32 << 20


class Source(Protocol):
    """Weights in module orientation: kernels [in, out], embedding and head [rows, width]."""

    path: Path
    kind: str
    """"llada" or "llama" for a model folder, "orbax" for a converted one, "run" for training."""
    config: ModelConfig

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every weight of the configuration: `llada_table(config)`."""
        ...

    def dtype(self, entry: Entry) -> np.dtype:
        """Stored type."""
        ...

    def shape(self, entry: Entry) -> tuple[int, ...]:
        """Shape of one layer."""
        ...

    def read(self, entry: Entry, layer: int = 0, rows: tuple[int, int] | None = None) -> np.ndarray:
        """Reads a layer, or rows first to last (exclusive); a view of a mapped file if possible."""
        ...

    def rows(self, entry: Entry) -> int:
        """Rows that are best read at a time: what one mapping or one chunk holds."""
        ...

    def close(self) -> None:
        """Lets go of the files."""
        ...


class Differences(NamedTuple):
    """What the headers of a folder and its config.json disagree on."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def message(self) -> str:
        """One line with all of them; empty where there are none."""
        told = [
            f"{len(names)} {word}{_some(names)}"
            for word, names in (
                ("weights missing", self.missing),
                ("unexpected", self.unexpected),
                ("of another shape", self.misshaped),
            )
            if names
        ]
        return " and ".join(told)


def compare(config: ModelConfig, layout: Layout, files: WeightFolder) -> Differences:
    """Compares names and shapes of the stored tensors with what a configuration asks for."""
    expected = {tensor.name: tensor.shape for tensor in layout.tensors(config)}
    if config.weight_tying:  # accepted where it is stored and where it is not
        expected[layout.head] = expected[layout.embedding]
    found = {name for name in files.names if not layout.is_ignored(name)}
    optional = {layout.head} if config.weight_tying else set()
    misshaped = [
        f"{name} has shape {files.shape(name)}, but config.json asks for {shape}"
        for name, shape in expected.items()
        if name in found and files.shape(name) != shape
    ]
    return Differences(
        tuple(sorted(expected.keys() - found - optional)),
        tuple(sorted(found - expected.keys())),
        tuple(misshaped),
        tuple(name for name in files.names if layout.is_ignored(name)),
    )


class FolderSource:
    """A Hugging Face model folder of either layout; reads are views of its mapped files.

    Raises:
        UserError: missing, unexpected and misshaped tensors (all named together), damaged files;
            on the first read of a tied embedding: the head is stored too and differs.
    """

    def __init__(self, path: str | os.PathLike[str], *, mask_token_id: int | None = None):
        self.path = Path(path)
        self.layout = layout_of(read_config_json(self.path / "config.json"))
        self.kind = self.layout.name
        self.config = read_config(self.path, mask_token_id=mask_token_id)
        self.files = WeightFolder(self.path)
        differences = compare(self.config, self.layout, self.files)
        if differences.message:
            raise UserError(f"{self.path}: {differences.message}")
        if differences.ignored:
            told = ", ".join(sorted({_owner(name) for name in differences.ignored}))
            notice(f"{self.path}: {len(differences.ignored)} tensors are left aside ({told})")
        self._parts = self.layout.parts(self.config)
        self._dtypes: dict[tuple[str, ...], np.dtype] = {}
        for (module, _), part in self._parts.items():
            kind = self.files.dtype(part.name)
            self._dtypes[module] = _common(self._dtypes.get(module, kind), kind)
        self._has_untested_head = self.config.weight_tying and self.layout.head in self.files.names

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every weight of the configuration."""
        return llada_table(self.config)

    def dtype(self, entry: Entry) -> np.dtype:
        """Stored type; where layers differ, one that holds all of them exactly."""
        return self._dtypes[entry.path]

    def shape(self, entry: Entry) -> tuple[int, ...]:
        """Shape of one layer."""
        return entry_shape(self.config, entry)

    def read(self, entry: Entry, layer: int = 0, rows: tuple[int, int] | None = None) -> np.ndarray:
        """Returns a read-only view of a layer, or of rows first to last (exclusive) of it."""
        if entry.path == ("wte",) and self._has_untested_head:
            self._compare_head()
        part = self._parts[entry.path, layer]
        if entry.transposed:
            first, last = rows or (0, self.shape(entry)[0])
            array = self.files.read(part.name, part.rows).T[first:last]
        else:
            if rows is not None and part.rows is not None:
                rows = (part.rows[0] + rows[0], part.rows[0] + rows[1])
            array = self.files.read(part.name, rows or part.rows)
        return array.astype(self._dtypes[entry.path], copy=False)

    def rows(self, entry: Entry) -> int:
        """All rows: a mapping holds a whole tensor."""
        return self.shape(entry)[0]

    def close(self) -> None:
        """Nothing is held: mappings end with the last view of them."""

    def _compare_head(self) -> None:
        self._has_untested_head = False
        names = self.layout.embedding, self.layout.head
        count = self.files.shape(names[0])[0]
        step = max(1, _COMPARED_BYTES * count // max(1, self.files.nbytes(names[0])))
        for first in range(0, count, step):
            a, b = (self.files.read(n, (first, min(first + step, count))) for n in names)
            if a.dtype != b.dtype or not np.array_equal(a.view(np.uint8), b.view(np.uint8)):
                raise UserError(
                    f"{self.path}: {names[1]} differs from the embedding, but the head is tied"
                )


def _common(a: np.dtype, b: np.dtype) -> np.dtype:
    return a if a == b else np.dtype(np.float32)


def _owner(name: str) -> str:
    return name.removeprefix("model.").split(".")[0]


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f" ({shown})"
