"""Weights of a training run, read back from its folder onto the host or a mesh."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import fault, step_folders

CHECKPOINTS = "checkpoints"


def is_run_folder(path: str | Path) -> bool:
    """Whether `path` is the output_dir of a run that has saved something."""
    return bool(step_folders(Path(path) / CHECKPOINTS))


def load_run_params(
    run_folder: str | Path, step: int | None = None, *, average: bool = False
) -> tuple[dict[str, Any], ModelConfig]:
    """Returns (weights as a nested dict of NumPy arrays, model config) of a run.

    Without `step`, the newest sound checkpoint is read. `average` asks for the exponential average
    of the weights instead. The nested names are those of `nnx.to_pure_dict(nnx.state(model))`.
    """
    run_folder = Path(run_folder)
    folders = step_folders(run_folder / CHECKPOINTS)
    if step is not None and step not in folders:
        listed = ", ".join(map(str, folders)) or "none"
        raise UserError(f"step={step}: no such checkpoint in {run_folder} (there: {listed})")
    wanted = [step] if step is not None else sorted(folders, reverse=True)
    faults: dict[int, str] = {}
    for number in wanted:
        faults[number] = fault(folders[number])
        if not faults[number]:
            part = "ema" if average else "params"
            return read_part(folders[number], part), ModelConfig.from_folder(run_folder)
    told = "; ".join(f"{folders[number]} is {why}" for number, why in faults.items())
    raise UserError(f"no sound checkpoint in {run_folder}" + (f": {told}" if told else ""))


def read_part(folder: Path, part: str) -> dict[str, Any]:
    """Reads one part of a checkpoint (params, ema) as NumPy arrays, on any number of devices."""
    shapes = ocp.checkpointables_metadata(folder).metadata
    if part not in shapes:
        raise UserError(f"{folder}: holds no '{part}' (it has {', '.join(sorted(shapes))})")
    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes[part])
    return ocp.load_checkpointables(folder, {part: target})[part]
