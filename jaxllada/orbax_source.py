"""Weights in orbax files as a `Source`: a converted folder, or a checkpoint of a training run."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.opening import read_config
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import MANIFEST, fault, step_folders
from jaxllada.common.notices import warn
from jaxllada.common.run.checkpoints import CHECKPOINTS, is_run_folder
from jaxllada.common.weights.adapted import adapter_folder, open_adapted
from jaxllada.common.weights.header import DTYPES
from jaxllada.common.weights.names import Entry, entry_shape, llada_table
from jaxllada.common.weights.opening import holds_model_folders, open_folder
from jaxllada.common.weights.source import Source
from jaxllada.orbax_arrays import StoredArray, open_arrays
from jaxllada.orbax_files import ITEM

AVERAGE = "ema"
# Arrays that keep their last block decoded: q, k and v of a layer are asked for in turn.
_KEPT_BLOCKS = 3


class Weights(NamedTuple):
    """Where the weights of a folder lie: `folder / item` holds the arrays."""

    folder: Path
    item: str
    config: ModelConfig
    kind: Literal["orbax", "run"]


def is_checkpoint_folder(path: str | Path) -> bool:
    """Whether `path` is a model folder whose weights are an orbax checkpoint."""
    path = Path(path)
    return (path / ITEM / "_METADATA").is_file() and (path / "config.json").is_file()


def find_weights(
    path: str | Path, step: int | None = None, *, average: bool | None = None
) -> Weights:
    """Finds the weights of a training run or of a folder that `jaxllada convert` made.

    Without `step`, the newest sound checkpoint of a run is taken. `average` asks for the
    exponential average of the weights or for the weights themselves; None takes the average where
    the run kept one, as its evaluations and samples did.

    Raises:
        UserError: there is no such checkpoint, none is sound, or it holds no average.
    """
    path = Path(path).absolute()  # orbax refuses relative paths
    if is_run_folder(path):
        return _find_in_run(path, step, average)
    if step is not None:
        raise UserError(f"step={step}: {path} is not the folder of a training run")
    if average:
        raise UserError(f"average=true: {path} is not the folder of a training run")
    if (path / MANIFEST).is_file() and (why := fault(path, hashes=False)):
        raise UserError(f"{path}: {why}")
    return Weights(path, ITEM, read_config(path), "orbax")


def _find_in_run(path: Path, step: int | None, average: bool | None) -> Weights:
    folders = step_folders(path / CHECKPOINTS)
    if step is not None and step not in folders:
        listed = ", ".join(map(str, folders)) or "none"
        raise UserError(f"step={step}: no such checkpoint in {path} (there: {listed})")
    for number in [step] if step is not None else sorted(folders, reverse=True):
        folder = folders[number]
        has_average = (folder / AVERAGE / "_METADATA").is_file()
        item = AVERAGE if has_average and average is not False else ITEM
        if why := fault(folder, below=f"{item}/"):
            warn(f"skipping checkpoint {folder}: {why}")
            continue
        if average and not has_average:
            raise UserError(f"{folder}: holds no average of the weights (ema_decay was 0)")
        return Weights(folder, item, read_config(path), "run")
    raise UserError(f"{path}: holds no sound checkpoint")


class OrbaxSource:
    """Weights in orbax files, one layer at a time, in module orientation.

    Raises:
        UserError: names or shapes that are not those of the configuration (all named together),
            damaged or missing files.
    """

    def __init__(self, path: str | Path, step: int | None = None, *, average: bool | None = None):
        self.weights = found = find_weights(path, step, average=average)
        self.path, self.kind, self.config = Path(path), found.kind, found.config
        self.folder = found.folder / found.item
        self._arrays = open_arrays(self.folder)
        self._recent: list[StoredArray] = []
        check_arrays(self.folder, self.config, self._arrays)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every weight of the configuration."""
        return llada_table(self.config)

    def dtype(self, entry: Entry) -> np.dtype:
        """Stored type."""
        return self._arrays[entry.path].dtype

    def shape(self, entry: Entry) -> tuple[int, ...]:
        """Shape of one layer."""
        return entry_shape(self.config, entry)

    def rows(self, entry: Entry) -> int:
        """Rows of a layer that are best read at a time: those of one chunk."""
        return min(self._arrays[entry.path].step(entry.per_layer), self.shape(entry)[0])

    def read(self, entry: Entry, layer: int = 0, rows: tuple[int, int] | None = None) -> np.ndarray:
        """Reads a layer, or rows first to last (exclusive); a view of a mapped file if possible."""
        array = self._arrays[entry.path]
        if array not in self._recent:
            self._recent.append(array)
            if len(self._recent) > _KEPT_BLOCKS:
                self._recent.pop(0).forget()
        first, last = rows or (0, self.shape(entry)[0])
        return array.read(layer if entry.per_layer else None, first, last)

    def close(self) -> None:
        """Frees what is kept in memory."""
        for array in self._recent:
            array.forget()
        self._recent.clear()


def open_source(
    path: str | os.PathLike[str],
    step: int | None = None,
    *,
    average: bool | None = None,
    mask_token_id: int | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Source:
    """Opens a checkpoint of any format without reading weights; arguments as in `load`.

    A tied head that is stored as well is compared with the embedding when that is first read.
    """
    path = Path(path)
    if average is not None and adapter_folder(path) is not None:
        raise UserError(
            f"average={str(average).lower()}: {path} keeps one adapter, averaged where ema_decay "
            "was set; leave the key out"
        )

    def plain(path: Path, step: int | None) -> Source:
        return _open_plain(path, step, average, mask_token_id)

    return open_adapted(path, step, adapter, plain)


def _open_plain(
    path: Path, step: int | None, average: bool | None, mask_token_id: int | None
) -> Source:
    is_run = is_run_folder(path)
    if is_run and not holds_model_folders(path):
        return OrbaxSource(path, step, average=average)
    if not is_run and is_checkpoint_folder(path):
        return OrbaxSource(path, step, average=average)
    if average:
        raise UserError(f"average=true: {path} holds no average beside its weights")
    return open_folder(path, step, mask_token_id=mask_token_id)


def check_arrays(
    folder: Path, config: ModelConfig, arrays: dict[tuple[str, ...], StoredArray]
) -> None:
    """Raises `UserError` unless the arrays are exactly those of this configuration."""
    entries = {entry.path: entry for entry in llada_table(config)}
    missing = [".".join(path) for path in entries if path not in arrays]
    unexpected = [".".join(path) for path in arrays if path not in entries]
    if missing or unexpected:
        raise UserError(
            f"{folder}: {len(missing)} weights missing{_some(missing)} "
            f"and {len(unexpected)} unexpected{_some(unexpected)}"
        )
    for path, entry in entries.items():
        layers = (config.n_layers,) if entry.per_layer else ()
        expected = (*layers, *entry_shape(config, entry))
        if arrays[path].dtype not in DTYPES.values():
            raise UserError(
                f"{folder}: {'.'.join(path)} is stored as {arrays[path].dtype}, "
                f"expected {', '.join(kind.name for kind in DTYPES.values())}"
            )
        if arrays[path].shape != expected:
            raise UserError(
                f"{folder}: {'.'.join(path)} has shape {arrays[path].shape}, "
                f"but config.json asks for {expected}"
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f" ({shown})" if names else ""
