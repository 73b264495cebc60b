"""The log of a run: metrics.jsonl, trackers and the terminal, with one clock for speed."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from jaxllada.common.config.train import TrainConfig
from jaxllada.common.run.alarm import EosAlarm
from jaxllada.common.run.backend import Backend
from jaxllada.common.run.evaluation import Evaluation
from jaxllada.common.run.metrics import StepMetrics, Window
from jaxllada.common.run.progress import Progress
from jaxllada.common.run.samples import Samples
from jaxllada.common.tracking import Tracking


class RunLog:
    """Collects the metrics of steps and writes them where they belong; `fetch` as in `Window`.

    Tokens per second count training alone: what happens under `pause` is taken off the clock.
    """

    EMPTY: ClassVar[dict[str, Any]] = {
        "tokens": 0.0,
        "window": Window().state(),
        "alarm": EosAlarm().state(),
    }
    """State before the first step."""

    def __init__(
        self,
        tracking: Tracking,
        progress: Progress,
        fetch: Callable[[list[StepMetrics]], list[StepMetrics]] = list,
        alarm: EosAlarm | None = None,
    ):
        self.tracking, self.progress = tracking, progress
        self.window, self.tokens = Window(fetch), 0.0
        self.alarm = alarm or EosAlarm()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Starts to measure speed from here."""
        self._begun, self._done_before = time.perf_counter(), self.window.tokens

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Stops the clock, once the steps under way are done."""
        self.window.settle()
        begun = time.perf_counter()
        yield
        self._begun += time.perf_counter() - begun

    def take_off(self, seconds: float) -> None:
        """Takes time off the clock that was not training, such as compiling."""
        self._begun += seconds

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Notes a step; its numbers stay on the device until they are needed."""
        self.window.add(metrics)
        self.progress.step(step)

    def line(self, step: int, learning_rate: float, epoch: float | None) -> None:
        """Writes the means since the last line. `tokens` counts those the loss was about."""
        self.window.settle()
        seconds = max(1e-9, time.perf_counter() - self._begun)
        tokens, fresh = self.window.tokens, self.window.tokens - self._done_before
        self.tokens += tokens
        line = self.window.close()
        line |= {"learning_rate": learning_rate, "tokens": self.tokens}
        line |= {} if epoch is None else {"epoch": round(epoch, 4)}
        line |= {"tokens_per_second": fresh / seconds}
        self.tracking.log(line, step)
        self.progress.line(step, line)
        self.warn("eos_flood", step, self.alarm.look(line))
        self.restart_clock()

    def samples(self, step: int, page: Samples) -> None:
        """Gives a page of samples to the trackers; the run folder has its own copy."""
        self.tracking.text("sample", page.text, step)
        self.warn("eos_flood", step, self.alarm.hear(page))

    def warn(self, event: str, step: int, message: str | None) -> None:
        """Notes and prints what to look after; nothing where there is no message."""
        if message is not None:
            self.tracking.log({"event": event, "message": message}, step)
            self.tell(f"warning: step {step}: {message}")

    def evaluation(self, step: int, found: Evaluation) -> None:
        """Writes the result of an evaluation."""
        line = {
            "eval_bound": found.bound,
            "eval_standard_error": found.standard_error,
            "eval_accuracy": found.accuracy,
            "eval_nll_by_rate": list(found.nll_by_rate),
        }
        if found.bound_per_byte is not None:
            line["eval_bound_per_byte"] = found.bound_per_byte
        self.tracking.log(line, step)
        what = ("validation, exact:", "next") if found.is_exact else ("validation bound", "masked")
        self.tell(
            f"step {step}: {what[0]} {found.bound:.3f} +- {found.standard_error:.3f} "
            f"nats/token, {100 * found.accuracy:.1f} % of {what[1]} tokens right"
        )

    def rollback(self, step: int, restored: int, **facts: Any) -> None:
        """Forgets the lines after `restored` and notes why."""
        self.tracking.rewind(restored)
        self.tracking.log({"event": "rollback", "from_step": step, **facts}, restored)
        self.progress.step(restored)
        self.restart_clock()

    def tell(self, message: str) -> None:
        """Prints a line about the run."""
        self.progress.tell(message)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to carry, so that a resumed run writes the same lines."""
        return {
            "tokens": self.tokens,
            "window": self.window.state(),
            "alarm": self.alarm.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up the state of a checkpoint."""
        self.tokens = float(state["tokens"])
        self.window.load(state["window"])
        self.alarm.load(state.get("alarm", {}))
        self.restart_clock()

    def finish(self, status: str) -> None:
        """Closes everything; `status` is finished, failed or interrupted."""
        self.progress.close()
        self.tracking.finish(status)


def open_log(
    config: TrainConfig,
    folder: Path,
    total_steps: int,
    backend: Backend,
    *,
    run_id: str,
    resume_step: int | None,
) -> RunLog:
    """Opens the log of a run in its folder, with the trackers and the alarm it asks for."""
    tracking = Tracking(
        folder,
        config.trackers,
        run_name=config.run_name,
        resume_step=resume_step,
        is_main=backend.is_main,
    )
    tracking.start(config.to_dict(), run_id)
    progress = Progress(total_steps, resume_step or 0, is_main=backend.is_main)
    alarm = EosAlarm(config.pad_policy, config.group_by_length)
    return RunLog(tracking, progress, backend.fetch, alarm)
