"""Weights opened for reading from what a path names: a model folder, a run, either with an adapter.

Checkpoints in orbax files are opened by `jaxllada.convert.open_source`, which builds on this.
"""

import os
from pathlib import Path

from jaxllada.common.errors import UserError
from jaxllada.common.manifest import step_folders
from jaxllada.common.run.checkpoints import CHECKPOINTS, is_run_folder, sound_checkpoint
from jaxllada.common.weights.adapted import open_adapted
from jaxllada.common.weights.source import FolderSource, Source


def open_folder(
    path: str | os.PathLike[str],
    step: int | None = None,
    *,
    mask_token_id: int | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Source:
    """Opens a model folder of either layout, or a run whose checkpoints are such folders.

    Reads headers only. `step` chooses the checkpoint of a run, by default the newest sound one.
    `adapter` is the folder or id of an adapter to add; adapters, and runs that train them, are
    opened with the base they name.

    Raises:
        UserError: as `FolderSource`; the checkpoints of a run are orbax files.
    """
    return open_adapted(
        Path(path), step, adapter, lambda path, step: _open_plain(path, step, mask_token_id)
    )


def _open_plain(path: Path, step: int | None, mask_token_id: int | None) -> FolderSource:
    if not is_run_folder(path):
        if step is not None:
            raise UserError(f"step={step}: {path} is not the folder of a training run")
        return FolderSource(path, mask_token_id=mask_token_id)
    if not holds_model_folders(path):
        raise UserError(
            f"{path}: its checkpoints are orbax files; "
            "`jaxllada convert flax-to-hf` makes a model folder of one"
        )
    source = FolderSource(sound_checkpoint(path, step), mask_token_id=mask_token_id)
    source.kind = "run"
    return source


def holds_model_folders(run_folder: Path) -> bool:
    """Whether the checkpoints of a run are model folders, as the torch backend writes them."""
    folders = step_folders(run_folder / CHECKPOINTS).values()
    return any((folder / "config.json").is_file() for folder in folders)
