"""Training in JAX: the state on its mesh and the compiled step, for the loop of `common/run`."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxllada.common.config.lora import drops_inputs
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.batches import Batch
from jaxllada.common.run import backend as shared
from jaxllada.common.run.backend import Outcome
from jaxllada.common.run.loop import run_loop
from jaxllada.common.run.run_folder import RunFolder
from jaxllada.models.lora import divide, joined
from jaxllada.sharding import global_batch, replicated, shardings
from jaxllada.train.compiled import Compiled
from jaxllada.train.counts import StepMetrics
from jaxllada.train.optim import make_optimizer
from jaxllada.train.state import TrainState, initial_state
from jaxllada.train.step import train_step

__all__ = ["Outcome", "Task", "train"]

Tree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(shared.Task):
    """What is trained on what: all that `train` needs beside the settings.

    Attributes:
        shapes: nested dict of the weights' `jax.ShapeDtypeStruct`s, adapters among them.
        make_params: returns the initial weights; called by a run that starts anew or has adapters.
    """

    graphdef: Any
    shapes: Tree
    make_params: Callable[[], Tree]
    mesh: Mesh


def train(config: TrainConfig, folder: RunFolder, task: Task, resume_step: int | None) -> Outcome:
    """Trains from checkpoint `resume_step`, or from the start, to the end or to a signal.

    Raises:
        UserError: the checkpoint belongs to a run with other settings; nothing was written.
        TrainingDivergedError: the run stayed non-finite after all rollbacks.
    """
    return run_loop(config, folder, task, _Backend(config, folder, task), resume_step)


class _Backend:
    """The state of a run on its devices; see `common.run.backend.Backend`."""

    name = "jax"

    def __init__(self, config: TrainConfig, folder: RunFolder, task: Task):
        self.config, self.task = config, task
        self.checkpoints = folder.checkpoints
        self.processes, self.is_main = jax.process_count(), jax.process_index() == 0
        self.checkpoints.adapter = task.adapter
        self.optimizer = make_optimizer(config)
        self.shape = self._state_shape()
        self.frozen: Tree | None = None
        self.state: Any = None
        self.compiled: Compiled | None = None

    @property
    def skipped(self) -> int:
        return int(self.state.skipped)

    @property
    def waited(self) -> float:
        return 0.0 if self.compiled is None else self.compiled.seconds

    def start(self) -> None:
        make = jax.jit(self._initial, out_shardings=self._places())
        trained, self.frozen = divide(self.task.make_params(), self.task.model)
        self.state = make(trained)

    def restore(self, step: int) -> None:
        if self.task.adapter is not None and self.frozen is None:
            _, self.frozen = divide(self.task.make_params(), self.task.model)
        self.state = self.checkpoints.restore(step, self.shape)

    def begin(self, tell: Callable[[str], None]) -> None:
        self.compiled = Compiled(self._jitted_step(), "training step", tell)

    def step(self, batch: Batch, learning_rate: float, cursor: int) -> StepMetrics:
        assert self.compiled is not None
        placed = global_batch(self.task.mesh, batch, axis=1)
        rate = np.float32(learning_rate)
        self.state, metrics = self.compiled(self.state, placed, rate, np.int32(cursor), self.frozen)
        return metrics

    def fetch(self, metrics: list[StepMetrics]) -> list[StepMetrics]:
        return jax.device_get(metrics)

    def weights(self) -> Tree:
        served = self.state.params if self.state.ema is None else self.state.ema
        return joined(served, self.frozen)

    def agree(self, number: int) -> int:
        if self.processes > 1:
            return int(np.max(multihost_utils.process_allgather(np.int32(number))))
        return number

    def start_trace(self, folder: Path) -> None:
        jax.profiler.start_trace(str(folder))

    def stop_trace(self) -> None:
        jax.block_until_ready(self.state)
        jax.profiler.stop_trace()

    def _state_shape(self) -> TrainState:
        """Shapes, types and shardings of the state, without its memory."""
        trained, _ = divide(self.task.shapes, self.task.model)
        shapes = jax.eval_shape(self._initial, trained)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            shardings(self.task.mesh, shapes),
        )

    def _places(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.shape)

    def _initial(self, params: Tree) -> TrainState:
        return initial_state(params, self.optimizer, with_ema=self.config.ema_decay > 0)

    def _jitted_step(self) -> Any:
        model, config, mesh = self.task.model, self.config, self.task.mesh
        rates = (model.attention_dropout, model.residual_dropout, model.embedding_dropout)
        step = functools.partial(
            train_step,
            graphdef=self.task.graphdef,
            optimizer=self.optimizer,
            loss_norm=config.loss_norm,
            ema_decay=config.ema_decay,
            dropout_seed=config.seed if any(rates) or drops_inputs(config) else None,
            mesh=mesh,
        )
        return jax.jit(step, donate_argnums=0, out_shardings=(self._places(), replicated(mesh)))
