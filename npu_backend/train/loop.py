"""Training in torch: the state on its devices and the step, for the loop of `common/run`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jaxllada.common.config.lora import drops_inputs
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.batches import Batch
from jaxllada.common.run import backend as shared
from jaxllada.common.run.backend import Outcome
from jaxllada.common.run.evaluation import Evaluation
from jaxllada.common.run.loop import run_loop
from jaxllada.common.run.run_folder import RunFolder
from jaxllada.common.run.samples import Samples
from npu_backend.sharding import Mesh, largest
from npu_backend.train.counts import StepMetrics
from npu_backend.train.evaluate import holding
from npu_backend.train.optim import make_optimizer
from npu_backend.train.state import TrainState, initial_state
from npu_backend.train.step import train_step

__all__ = ["Outcome", "Task", "train"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(shared.Task):
    """What is trained on what: all that `train` needs beside the settings.

    Attributes:
        network: the model whose weights are trained, split over `mesh`; they are not set yet.
        objective: the network with its loss, ready for the processes of `mesh`.
        set_weights: puts the initial weights into it; called by a run that starts anew.
        measure: measures the weights that are in `objective`; None without validation rows.
        write_sample: writes a page of texts with them; None for no samples.
        on_begin: called once the run folder is this run's.
        fused_optimizer: whether AdamW is one kernel.
    """

    network: nn.Module
    objective: nn.Module
    set_weights: Callable[[], None]
    mesh: Mesh
    measure: Callable[[], Evaluation] | None = None
    write_sample: Callable[[], Samples] | None = None
    on_begin: Callable[[], None] = lambda: None
    fused_optimizer: bool = True


def train(config: TrainConfig, folder: RunFolder, task: Task, resume_step: int | None) -> Outcome:
    """Trains from checkpoint `resume_step`, or from the start, to the end or to a signal.

    Raises:
        UserError: the checkpoint belongs to a run with other settings; nothing was written.
        TrainingDivergedError: the run stayed non-finite after all rollbacks.
    """
    backend = _Backend(config, folder, task)
    task = dataclasses.replace(
        task, evaluate=backend.held(task.measure), sample=backend.held(task.write_sample)
    )
    return run_loop(config, folder, task, backend, resume_step)


class _Backend:
    """The state of a run on its devices; see `common.run.backend.Backend`."""

    name = "torch"
    waited = 0.0

    def __init__(self, config: TrainConfig, folder: RunFolder, task: Task):
        self.config, self.task, self.checkpoints = config, task, folder.checkpoints
        self.processes, self.is_main = task.mesh.size, task.mesh.is_main
        self.optimizer = make_optimizer(config, fused=task.fused_optimizer)
        self.checkpoints.adapter = task.adapter
        rates = ("attention_dropout", "residual_dropout", "embedding_dropout")
        drops = any(getattr(task.model, rate) for rate in rates)
        self.drops = drops or drops_inputs(config)
        self.state: Any = None
        self.profiler: Any = None

    @property
    def skipped(self) -> int:
        return self.state.skipped

    def start(self) -> None:
        self.state = None
        self.task.set_weights()
        self.state = self._initial()

    def restore(self, step: int) -> None:
        if self.state is None and self.task.adapter is not None:
            self.task.set_weights()  # the frozen ones
        self.state = None  # a rollback must not hold two states
        self.state = self.checkpoints.restore(step, self._initial())

    def _initial(self) -> TrainState:
        return initial_state(self.task.network, with_ema=self.config.ema_decay > 0)

    def begin(self, tell: Callable[[str], None]) -> None:
        self.task.objective.train()
        self.task.on_begin()

    def step(self, batch: Batch, learning_rate: float, cursor: int) -> StepMetrics:
        metrics = train_step(
            self.state,
            batch,
            learning_rate,
            cursor,
            objective=self.task.objective,
            optimizer=self.optimizer,
            mesh=self.task.mesh,
            loss_norm=self.config.loss_norm,
            ema_decay=self.config.ema_decay,
            dropout_seed=self.config.seed if self.drops else None,
        )
        if self.profiler is not None:
            self.profiler.step()
        return metrics

    def fetch(self, metrics: list[StepMetrics]) -> list[StepMetrics]:
        return metrics

    def weights(self) -> dict[str, Tensor]:
        return self.state.params if self.state.ema is None else self.state.ema

    def held(self, call: Callable[[], Any] | None) -> Callable[[dict[str, Tensor]], Any] | None:
        """Returns a function of weights that calls `call` while they are in the model."""

        def with_weights(weights: dict[str, Tensor]) -> Any:
            with holding(self.task.objective, self.state.params, weights):
                return None if call is None else call()

        return None if call is None else with_weights

    def agree(self, number: int) -> int:
        return largest(number)

    def start_trace(self, folder: Path) -> None:
        self.profiler = start_profiler(folder, self.task.mesh.device)

    def stop_trace(self) -> None:
        self.profiler.stop()
        self.profiler = None


def start_profiler(folder: Path, device: torch.device) -> Any:
    """Starts to record operators of host and device; the trace is written when it stops."""
    if device.type == "npu":
        import torch_npu  # pyright: ignore[reportMissingImports]

        kind = torch_npu.profiler
        activities = [kind.ProfilerActivity.CPU, kind.ProfilerActivity.NPU]
    else:
        kind = torch.profiler
        activities = [kind.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(kind.ProfilerActivity.CUDA)
    handler = kind.tensorboard_trace_handler(str(folder))
    profiler = kind.profile(activities=activities, on_trace_ready=handler)
    profiler.start()
    return profiler
