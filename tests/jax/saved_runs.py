"""Folders of training runs without the training: checkpoints of drawn weights."""

import dataclasses
from pathlib import Path

import jax
from flax import nnx

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.train import TrainConfig
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.train.checkpoint import Checkpoints
from jaxllada.train.optim import make_optimizer
from jaxllada.train.state import initial_state

TINY = PRESETS["tiny"]


def drawn_params(seed: int):
    model = MaskPredictor(TINY, rngs=jax.random.key(seed))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def write_run(folder: Path, *, steps=(1, 2), averaged=()) -> Path:
    """Saves weights drawn with seed `step` at each step; those of `averaged` have an average."""
    checkpoints = Checkpoints(folder / "checkpoints")
    for step in steps:
        state = initial_state(drawn_params(step), make_optimizer(TrainConfig()), with_ema=False)
        ema = drawn_params(step + 100) if step in averaged else None
        checkpoints.save(step, dataclasses.replace(state, ema=ema), {})
    checkpoints.close()
    TINY.save(folder)
    return folder
