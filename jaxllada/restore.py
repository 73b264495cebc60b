"""Weights in orbax files, restored whole: as host arrays, or straight into the shards of a mesh."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.run.checkpoints import is_run_folder
from jaxllada.orbax_source import Weights, find_weights, is_checkpoint_folder

__all__ = ["is_checkpoint_folder", "is_run_folder", "load_run_params", "restore_params"]


def load_run_params(
    run_folder: str | Path, step: int | None = None, *, average: bool | None = None
) -> tuple[dict[str, Any], ModelConfig]:
    """Returns (weights as a nested dict of NumPy arrays, model config) of a run.

    Which weights: see `find_weights`. The nested names are those of `nnx.to_pure_dict`.
    """
    found = find_weights(run_folder, step, average=average)
    return restore_params(found), found.config


def restore_params(found: Weights, like: Any = None) -> Any:
    """Reads weights into the types and shardings of `like`, on any mesh.

    `like` is a nested dict of arrays or `jax.ShapeDtypeStruct`s with shardings, named as
    `nnx.to_pure_dict` does; each process reads only what its devices hold. Without it the result
    are NumPy arrays of the stored types.

    Raises:
        UserError: names or shapes differ from those of the checkpoint, or its files are damaged.
    """
    folder = str(found.folder)
    if like is None:
        shapes = ocp.checkpointables_metadata(folder).metadata[found.item]
        target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    else:
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like
        )
    try:
        return ocp.load_checkpointables(folder, {found.item: target})[found.item]
    except (ValueError, KeyError) as error:
        cause = error.__cause__ or error.__context__ or error
        lines = str(cause).strip().splitlines() or [repr(cause)]
        raise UserError(f"{found.folder / found.item}: cannot be restored: {lines[0]}") from error
