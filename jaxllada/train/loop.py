"""The training loop: get a batch, make a step, and every so often look, evaluate and save.

It owns files, clocks and logging; everything numeric happens in `step.py`. The host runs a few
steps ahead of the device and looks at results only when a line of the log is due, so the device
does not wait for it.
"""

import collections
import dataclasses
import functools
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.train import TrainConfig, interval
from jaxllada.common.data.batches import Batch, BatchSource, StreamSource, prefetch
from jaxllada.common.notices import warn
from jaxllada.common.schedule import learning_rate_schedule
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.tracking import Tracking
from jaxllada.sharding import global_batch, replicated, shardings
from jaxllada.train.compiled import Compiled
from jaxllada.train.evaluate import Evaluation
from jaxllada.train.guard import Guard
from jaxllada.train.optim import make_optimizer
from jaxllada.train.profiler import Profiler
from jaxllada.train.progress import Progress
from jaxllada.train.run_folder import RunFolder, check_same, identity
from jaxllada.train.run_log import RunLog
from jaxllada.train.signals import StopSignal
from jaxllada.train.state import TrainState, initial_state
from jaxllada.train.step import StepMetrics, train_step

Tree = Any
STEPS_AHEAD = 2
"""Steps the host may start before it looks whether the first of them was finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on what: all that `train` needs beside the settings.

    Attributes:
        shapes: nested dict of the weights' `jax.ShapeDtypeStruct`s.
        make_params: returns the initial weights; called by a run that starts anew.
        tokenizer: saved in the run folder, so that the folder is a model for every verb.
        evaluate: measures weights on the validation rows; None without any.
        sample: writes a text with given weights; None for no samples.
        baselines: `uniform_bound` and `unigram_bound` in nats per token, for the log.
    """

    model: ModelConfig
    graphdef: Any
    shapes: Tree
    make_params: Callable[[], Tree]
    mesh: Mesh
    source: BatchSource | StreamSource
    total_steps: int
    tokenizer: Tokenizer | None = None
    evaluate: Callable[[Tree], Evaluation] | None = None
    sample: Callable[[Tree], str] | None = None
    baselines: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: finished steps, weights to use, and the signal that stopped it (or 0)."""

    step: int
    params: Tree
    signal: int
    first: Evaluation | None
    last: Evaluation | None


def train(config: TrainConfig, folder: RunFolder, task: Task, resume_step: int | None) -> Outcome:
    """Trains from checkpoint `resume_step`, or from the start, to the end or to a signal.

    Raises:
        UserError: the checkpoint belongs to a run with other settings; nothing was written.
        TrainingDivergedError: the run stayed non-finite after all rollbacks.
    """
    run = _Run(config, folder, task, resume_step)
    status = "failed"
    try:
        with StopSignal() as stop:
            outcome = run.until_done(stop)
        status = "interrupted" if outcome.signal else "finished"
    finally:
        folder.checkpoints.close()
        run.log.finish(status)
    return outcome


class _Run:
    """One run under way."""

    def __init__(self, config: TrainConfig, folder: RunFolder, task: Task, resume: int | None):
        self.config, self.folder, self.task = config, folder, task
        self.checkpoints = folder.checkpoints
        self.identity = identity(config, task.model, task.source.global_batch)
        if resume is not None:
            check_same(self.checkpoints.meta(resume)["identity"], self.identity)
        tokens_per_step = task.source.global_batch * config.max_length
        self.schedule = learning_rate_schedule(
            config, total_steps=task.total_steps, tokens_per_step=tokens_per_step
        )
        self.guard = Guard(
            config.max_skipped_steps, config.rollback_lr_factor, config.max_rollbacks
        )
        self.optimizer = make_optimizer(config)
        self.shape = self._state_shape()
        self.step = resume or 0
        self.state = self._fresh() if resume is None else self._restored(resume)

        self.is_main = jax.process_index() == 0
        if self.is_main:
            folder.begin(config, task.model, task.tokenizer, resume)
        meta = {} if resume is None else self.checkpoints.meta(resume)
        # Trackers continue a run by its id; a new run in an old folder is not the old run.
        self.run_id = meta.get("run_id") or f"{folder.path.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.log = self._open_log(resume)
        if resume is not None:
            self.guard.load(meta["guard"])
            self.log.load(meta["log"])
            self.log.tell(f"continuing after step {resume}")
        self.compiled = Compiled(self._jitted_step(), "training step", self.log.tell)
        self.profiler = Profiler(config.profile_window, folder.path / "profile")
        self.first: Evaluation | None = None
        self.last: Evaluation | None = None

    def until_done(self, stop: StopSignal) -> Outcome:
        """The story of a run."""
        total, log_every = self.task.total_steps, self.config.logging_steps
        eval_every, save_every = self._eval_interval(), interval(self.config.save_steps, total)
        if self.step == 0:
            self.log.tracking.log(self.task.baselines, 0)
            self.first = self._evaluate()
        unseen: collections.deque[StepMetrics] = collections.deque()
        batches, stopped = self._batches(), 0
        self.log.restart_clock()

        while self.step < total and not stopped:
            self.profiler.before(self.step, self.state)
            unseen.append(self._make_step(*next(batches)))
            if len(unseen) > STEPS_AHEAD and self.guard.is_broken(int(unseen.popleft().skipped)):
                batches.close()
                unseen.clear()
                self._roll_back()
                batches = self._batches()
                continue
            is_last = self.step == total
            is_due = self.step % log_every == 0 or is_last
            if is_due:
                self.log.line(self.step, self._rate(self.step - 1), self._epoch())
            if is_due or jax.process_count() == 1:
                stopped = 0 if is_last else stop.agreed()
            is_measured = is_last or (eval_every > 0 and self.step % eval_every == 0)
            if is_measured:
                self._evaluate()
            if is_last or stopped or (save_every > 0 and self.step % save_every == 0):
                self._save(is_measured)

        batches.close()
        self.profiler.stop(self.state)
        self.checkpoints.wait()
        if stopped:
            name, where = signal.Signals(stopped).name, self.checkpoints.folder / str(self.step)
            self.log.tell(f"stopped by {name} after step {self.step}; state saved in {where}")
            self.log.tell("run the same command with --resume auto to go on")
        return Outcome(self.step, self._weights(), stopped, self.first, self.last)

    def _make_step(self, cursor: int, batch: Batch) -> StepMetrics:
        placed = global_batch(self.task.mesh, batch, axis=1)
        rate = np.float32(self._rate(self.step))
        before = self.compiled.seconds
        self.state, metrics = self.compiled(self.state, placed, rate, np.int32(cursor))
        self.log.take_off(self.compiled.seconds - before)
        self.step += 1
        self.log.add(self.step, metrics)
        return metrics

    def _rate(self, step: int) -> float:
        return self.schedule(step) * self.guard.lr_scale

    def _epoch(self) -> float | None:
        per_epoch = self.task.source.steps_per_epoch
        return None if per_epoch is None else (self.step + self.guard.data_offset) / per_epoch

    def _batches(self) -> Any:
        """Batches from here on: the data is ahead of the step by what rollbacks left behind."""
        offset = self.guard.data_offset
        return prefetch(
            self.task.source, self.step + offset, stop_step=self.task.total_steps + offset
        )

    def _weights(self) -> Tree:
        """The weights that are measured and sampled from: the average, where one is kept."""
        return self.state.params if self.state.ema is None else self.state.ema

    def _eval_interval(self) -> int:
        """Steps between evaluations; 0: only at the ends."""
        if self.config.eval_strategy == "no":
            return 0
        if self.config.eval_strategy == "epoch":
            return max(1, round(self.task.source.steps_per_epoch or 0))
        return interval(self.config.eval_steps, self.task.total_steps)

    def _evaluate(self) -> Evaluation | None:
        if self.task.evaluate is None or self.config.eval_strategy == "no":
            return None
        with self.log.pause():
            self.last = self.task.evaluate(self._weights())
        self.log.evaluation(self.step, self.last)
        return self.last

    def _save(self, is_measured: bool) -> None:
        """Saves the state, a text sample and the picture of the losses so far."""
        with self.log.pause():
            meta = {
                "identity": self.identity,
                "guard": self.guard.state(),
                "log": self.log.state(),
                "run_id": self.run_id,
                "skipped_in_a_row": int(self.state.skipped),
            }
            metric = self.last.bound if is_measured and self.last is not None else None
            self.checkpoints.save(self.step, self.state, meta, metric)
            if self.task.sample is not None:
                text = self.task.sample(self._weights())
                self.log.tracking.text("sample", text, self.step)
                if self.is_main:
                    self.folder.save_sample(self.step, text)
            if self.is_main:
                self.folder.draw_losses()

    def _roll_back(self) -> None:
        """Returns to the last checkpoint before the trouble, or to the start.

        The learning rate is lower from there on, and the data goes on behind the bad batches.
        """
        self.checkpoints.wait()
        broken = self.step
        target = self.checkpoints.latest(lambda meta: meta["skipped_in_a_row"] == 0)
        self.guard.roll_back(broken, target or 0)
        self.step = target or 0
        self.log.rollback(broken, self.step, **self.guard.state())
        if target is None:
            self.state = self._fresh()
            self.log.load(RunLog.EMPTY)
        else:
            self.state = self._restored(target)
            self.log.load(self.checkpoints.meta(target)["log"])
            # A crash before the next checkpoint must not forget the lower rate.
            self.checkpoints.update_meta(target, {"guard": self.guard.state()})
        self.checkpoints.set_aside_after(self.step)
        warn(
            f"step {broken}: {self.config.max_skipped_steps} steps in a row were not finite; back "
            f"to step {self.step}, learning rate times {self.guard.lr_scale:g}"
        )

    def _state_shape(self) -> TrainState:
        """Shapes, types and shardings of the state, without its memory."""
        shapes = jax.eval_shape(self._initial, self.task.shapes)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            shapes,
            shardings(self.task.mesh, shapes),
        )

    def _places(self) -> TrainState:
        return jax.tree.map(lambda leaf: leaf.sharding, self.shape)

    def _initial(self, params: Tree) -> TrainState:
        return initial_state(params, self.optimizer, with_ema=self.config.ema_decay > 0)

    def _fresh(self) -> TrainState:
        return jax.jit(self._initial, out_shardings=self._places())(self.task.make_params())

    def _restored(self, step: int) -> TrainState:
        return self.checkpoints.restore(step, self.shape)

    def _jitted_step(self) -> Any:
        model, config, mesh = self.task.model, self.config, self.task.mesh
        rates = (model.attention_dropout, model.residual_dropout, model.embedding_dropout)
        step = functools.partial(
            train_step,
            graphdef=self.task.graphdef,
            optimizer=self.optimizer,
            loss_norm=config.loss_norm,
            ema_decay=config.ema_decay,
            dropout_seed=config.seed if any(rates) else None,
            mesh=mesh,
        )
        return jax.jit(step, donate_argnums=0, out_shardings=(self._places(), replicated(mesh)))

    def _open_log(self, resume: int | None) -> RunLog:
        config = self.config
        tracking = Tracking(
            self.folder.path,
            config.trackers,
            run_name=config.run_name,
            resume_step=resume,
            is_main=self.is_main,
        )
        tracking.start(config.to_dict(), self.run_id)
        total = self.task.total_steps
        return RunLog(tracking, Progress(total, resume or 0, is_main=self.is_main))
