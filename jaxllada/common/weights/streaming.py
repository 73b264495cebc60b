"""What a conversion asks of a source: which files it reads, and its weights in bounded blocks."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.partial import fingerprint
from jaxllada.common.run.checkpoints import CHECKPOINTS
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.weights.adapter import MergedSource
from jaxllada.common.weights.layouts import FOLDERS
from jaxllada.common.weights.names import Entry
from jaxllada.common.weights.pieces import cast, copy_transposed, pieces, rows_per_piece
from jaxllada.common.weights.source import Source


def check_apart(source: Source, target: Path) -> None:
    """Raises `UserError` where writing `target` would replace what is being read."""
    read, written = Path(source.path).resolve(), Path(target).resolve()
    if written in (read, *read.parents):
        raise UserError(f"{target}: holds the weights that are to be converted; choose another")


def home_of(source: Source) -> Path:
    """The folder with the tokenizer: that of the weights, or that of the run they come from."""
    path = Path(source.path)
    is_inside = source.kind == "run" and path.parent.name == CHECKPOINTS
    return path.parent.parent if is_inside else path


def check_tokenizer(source: Source) -> None:
    """Raises `UserError` where there is a tokenizer that does not fit the weights."""
    if (home_of(source) / "tokenizer.json").is_file():
        Tokenizer.from_folder(home_of(source)).agree_with(source.config)


def named_dtype(config: ModelConfig, dtype: np.dtype) -> ModelConfig:
    """Returns `config` with the stored type it names, if it names one, replaced."""

    def changed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: changed(value)
            if isinstance(value, Mapping)
            else dtype.name
            if key in ("torch_dtype", "dtype") and isinstance(value, str)
            else value
            for key, value in values.items()
        }

    return dataclasses.replace(config, extra=changed(config.extra))


def source_fingerprint(source: Source) -> str:
    """Digest of the files that hold the weights and config of a source."""
    if isinstance(source, MergedSource):
        own = source.files.glob("adapter_*") if source.files else ()
        files = {path.name: path for path in own}
        return f"{source_fingerprint(source.source)}+{fingerprint(files)}"
    folder = Path(getattr(source, "folder", source.path))
    names = folder.glob("*.safetensors*") if source.kind in FOLDERS else folder.rglob("*")
    files = {str(path.relative_to(folder)): path for path in names if path.is_file()}
    return fingerprint(files | {"config.json": Path(source.path) / "config.json"})


def module_blocks(
    source: Source, entry: Entry, layer: int, dtype: np.dtype, rows: int
) -> Iterator[np.ndarray]:
    """Yields one layer in module orientation in contiguous blocks of `rows` rows."""
    what, count = ".".join(entry.path), source.shape(entry)[0]
    if entry.transposed and source.rows(entry) >= count:  # stored by columns
        yield from pieces(source.read(entry, layer), dtype, rows=rows, what=what)
        return
    for first in range(0, count, rows):
        block = source.read(entry, layer, (first, min(first + rows, count)))
        yield from pieces(block, dtype, rows=rows, what=what)


def stored_blocks(
    source: Source, entry: Entry, layer: int, dtype: np.dtype
) -> Iterator[np.ndarray]:
    """Yields one layer as it is stored ([out, in] for kernels) in contiguous blocks of rows."""
    what, shape, step = ".".join(entry.path), source.shape(entry), source.rows(entry)
    if not entry.transposed:
        step = min(step, rows_per_piece(shape, source.dtype(entry).itemsize))
        yield from module_blocks(source, entry, layer, dtype, step)
        return
    if step >= shape[0]:
        yield from pieces(source.read(entry, layer).T, dtype, what=what)
        return
    out = np.empty(shape[::-1], dtype)
    for first in range(0, shape[0], step):
        cut = (first, min(first + step, shape[0]))
        copy_transposed(out[:, slice(*cut)], cast(source.read(entry, layer, cut), dtype, what).T)
    yield out
