"""Weights of a training run, read back from its folder as host arrays."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import fault, step_folders
from jaxllada.common.notices import warn

CHECKPOINTS = "checkpoints"


def is_run_folder(path: str | Path) -> bool:
    """Whether `path` is the output_dir of a run that has saved something."""
    return bool(step_folders(Path(path) / CHECKPOINTS))


def load_run_params(
    run_folder: str | Path, step: int | None = None, *, average: bool | None = None
) -> tuple[dict[str, Any], ModelConfig]:
    """Returns (weights as a nested dict of NumPy arrays, model config) of a run.

    Without `step`, the newest sound checkpoint is read. `average` asks for the exponential average
    of the weights or for the weights themselves; None takes the average where the run kept one, as
    its evaluations and samples did. The nested names are those of `nnx.to_pure_dict`.
    """
    run_folder = Path(run_folder).absolute()  # orbax refuses relative paths
    folders = step_folders(run_folder / CHECKPOINTS)
    if step is not None and step not in folders:
        listed = ", ".join(map(str, folders)) or "none"
        raise UserError(f"step={step}: no such checkpoint in {run_folder} (there: {listed})")
    for number in [step] if step is not None else sorted(folders, reverse=True):
        if why := fault(folders[number]):
            warn(f"skipping checkpoint {folders[number]}: {why}")
            continue
        return _read_weights(folders[number], average), ModelConfig.from_folder(run_folder)
    raise UserError(f"{run_folder}: holds no sound checkpoint")


def _read_weights(folder: Path, average: bool | None) -> dict[str, Any]:
    shapes = ocp.checkpointables_metadata(str(folder)).metadata
    if average and "ema" not in shapes:
        raise UserError(f"{folder}: holds no average of the weights (ema_decay was 0)")
    part = "ema" if average or (average is None and "ema" in shapes) else "params"
    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes[part])
    return ocp.load_checkpointables(str(folder), {part: target})[part]
