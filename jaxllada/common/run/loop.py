"""The training loop: get a batch, make a step, and every so often look, evaluate and save.

It owns files, clocks and logging; everything numeric happens in a backend's `step.py`. The host
may run a few steps ahead of the device and looks at results only when a line of the log is due, so
the device does not wait for it.
"""

import collections
import signal
import time
from typing import Any

from jaxllada.common.config.train import TrainConfig, interval
from jaxllada.common.data.batches import Batch, prefetch
from jaxllada.common.notices import warn
from jaxllada.common.run.backend import Backend, Outcome, Task
from jaxllada.common.run.evaluation import Evaluation
from jaxllada.common.run.guard import Guard, is_sound
from jaxllada.common.run.metrics import StepMetrics
from jaxllada.common.run.profiler import Profiler
from jaxllada.common.run.run_folder import RunFolder, check_same, identity
from jaxllada.common.run.run_log import RunLog, open_log
from jaxllada.common.run.signals import StopSignal
from jaxllada.common.run.spikes import SpikeWatch
from jaxllada.common.schedule import learning_rate_schedule

STEPS_AHEAD = 2
"""Steps the host may start before it looks whether the first of them was finite."""


def run_loop(
    config: TrainConfig, folder: RunFolder, task: Task, backend: Backend, resume_step: int | None
) -> Outcome:
    """Trains from checkpoint `resume_step`, or from the start, to the end or to a signal.

    Raises:
        UserError: the checkpoint belongs to a run with other settings; nothing was written.
        TrainingDivergedError: the run stayed non-finite after all rollbacks.
    """
    run = _Run(config, folder, task, backend, resume_step)
    status = "failed"
    try:
        with StopSignal(backend.agree) as stop:
            outcome = run.until_done(stop)
        status = "interrupted" if outcome.signal else "finished"
    finally:
        folder.checkpoints.close()
        run.log.finish(status)
    return outcome


class _Run:
    """One run under way."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        task: Task,
        backend: Backend,
        resume: int | None,
    ):
        self.config, self.folder, self.task, self.backend = config, folder, task, backend
        self.checkpoints = folder.checkpoints
        self.identity = identity(config, task.model, task.source.global_batch, backend.name)
        if resume is not None:
            check_same(self.checkpoints.meta(resume)["identity"], self.identity)
        tokens_per_step = task.source.global_batch * config.max_length
        self.schedule = learning_rate_schedule(
            config, total_steps=task.total_steps, tokens_per_step=tokens_per_step
        )
        self.guard = Guard(
            config.max_skipped_steps, config.rollback_lr_factor, config.max_rollbacks
        )
        watches = config.loss_spike != "ignore"
        limits = (config.spike_sigma, config.max_spiking_steps)
        self.spikes = SpikeWatch(*limits, backend.fetch, is_on=watches)
        self.step = resume or 0
        self._go_to(resume)

        self.checkpoints.meet()  # every process has seen the folder as it was
        if backend.is_main:
            folder.begin(config, task.model, task.tokenizer, resume)
        meta = {} if resume is None else self.checkpoints.meta(resume)
        # Trackers continue a run by its id; a new run in an old folder is not the old run.
        self.run_id = meta.get("run_id") or f"{folder.path.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.log = open_log(
            config, folder.path, task.total_steps, backend, run_id=self.run_id, resume_step=resume
        )
        if resume is not None:
            self.guard.load(meta["guard"])
            self.spikes.load(meta.get("spikes", {}))
            self.log.load(meta["log"])
            self.log.tell(f"continuing after step {resume}")
        backend.begin(self.log.tell)
        self.profiler = Profiler(
            config.profile_window, folder.path / "profile", backend.start_trace, backend.stop_trace
        )
        self.first: Evaluation | None = None
        self.last: Evaluation | None = None

    def until_done(self, stop: StopSignal) -> Outcome:
        """The story of a run."""
        total, log_every = self.task.total_steps, self.config.logging_steps
        eval_every = self.config.eval_interval(total, self.task.source.steps_per_epoch)
        save_every = interval(self.config.save_steps, total)
        sample_every = interval(self.config.sample_steps, total)
        if self.step == 0:
            self.log.tracking.log(self.task.baselines, 0)
            self.first = self._evaluate()
            if sample_every:
                self._sample()
        unseen: collections.deque[StepMetrics] = collections.deque()
        batches, stopped = self._batches(), 0
        self.log.restart_clock()

        while self.step < total and not stopped:
            self.profiler.before(self.step)
            unseen.append(self._make_step(*next(batches)))
            if trouble := self._trouble(unseen):
                batches.close()
                unseen.clear()
                self._roll_back(trouble)
                batches = self._batches()
                continue
            is_last = self.step == total
            is_due = self.step % log_every == 0 or is_last
            if is_due:
                self.log.line(self.step, self._rate(self.step - 1), self._epoch())
            if is_due or self.backend.processes == 1:
                stopped = 0 if is_last else stop.agreed()
            is_measured = is_last or (eval_every > 0 and self.step % eval_every == 0)
            if is_measured:
                self._evaluate()
            is_saved = is_last or stopped or (save_every > 0 and self.step % save_every == 0)
            if is_saved:
                self._save(is_measured)
            if is_last or (self.step % sample_every == 0 if sample_every else is_saved):
                self._sample()

        batches.close()
        self.profiler.stop()
        self.checkpoints.wait()
        if stopped:
            name, where = signal.Signals(stopped).name, self.checkpoints.folder / str(self.step)
            self.log.tell(f"stopped by {name} after step {self.step}; state saved in {where}")
            self.log.tell("run the same command with --resume auto to go on")
        return Outcome(self.step, self.backend.weights(), stopped, self.first, self.last)

    def _make_step(self, cursor: int, batch: Batch) -> StepMetrics:
        before = self.backend.waited
        metrics = self.backend.step(batch, self._rate(self.step), cursor)
        self.log.take_off(self.backend.waited - before)
        self.step += 1
        self.log.add(self.step, metrics)
        self.spikes.add(metrics)
        return metrics

    def _trouble(self, unseen: collections.deque[StepMetrics]) -> str:
        """Why the run has to go back, judged by all but the last steps; empty where it has not."""
        if len(unseen) > STEPS_AHEAD and self.guard.is_broken(int(unseen.popleft().skipped)):
            return f"{self.config.max_skipped_steps} steps in a row were not finite"
        if not self.spikes.is_up(STEPS_AHEAD):
            return ""
        if self.config.loss_spike == "rollback" and not self.guard.is_spent:
            return self.spikes.message()
        self.log.warn("loss_spike", self.step, self.spikes.message())
        self.spikes.forget()
        return ""

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

    def _evaluate(self) -> Evaluation | None:
        if self.task.evaluate is None or self.config.eval_strategy == "no":
            return None
        with self.log.pause():
            self.last = self.task.evaluate(self.backend.weights())
        self.log.evaluation(self.step, self.last)
        return self.last

    def _save(self, is_measured: bool) -> None:
        """Saves the state and the picture of the losses so far."""
        with self.log.pause():
            meta = {
                "identity": self.identity,
                "guard": self.guard.state(),
                "spikes": self.spikes.state(),
                "log": self.log.state(),
                "run_id": self.run_id,
                "skipped_in_a_row": self.backend.skipped,
            }
            metric = self.last.bound if is_measured and self.last is not None else None
            self.checkpoints.save(self.step, self.backend.state, meta, metric)
            if self.backend.is_main:
                self.folder.draw_losses()

    def _sample(self) -> None:
        """Writes a page of texts with the weights there are now."""
        if self.task.sample is None:
            return
        with self.log.pause():
            page = self.task.sample(self.backend.weights())
            if self.backend.is_main:
                self.folder.save_sample(self.step, page.text)
            self.log.samples(self.step, page)

    def _roll_back(self, trouble: str) -> None:
        """Returns to the last checkpoint before the trouble, or to the start.

        The learning rate is lower from there on, and the data goes on behind the bad batches.
        """
        self.checkpoints.wait()
        broken = self.step
        target = self.checkpoints.latest(is_sound)
        self.guard.roll_back(broken, target or 0)
        self.step = target or 0
        self.log.rollback(broken, self.step, reason=trouble, **self.guard.state())
        self._go_to(target)
        if target is None:
            self.log.load(RunLog.EMPTY)
            self.spikes.forget()
        else:
            meta = self.checkpoints.meta(target)
            self.log.load(meta["log"])
            self.spikes.load(meta.get("spikes", {}))
            # A crash before the next checkpoint must not forget the lower rate.
            self.checkpoints.update_meta(target, {"guard": self.guard.state()})
        self.checkpoints.set_aside_after(self.step)
        warn(
            f"step {broken}: {trouble}; back to step {self.step}, learning rate times "
            f"{self.guard.lr_scale:g}"
        )

    def _go_to(self, step: int | None) -> None:
        if step is None:
            self.backend.start()
        else:
            self.backend.restore(step)
