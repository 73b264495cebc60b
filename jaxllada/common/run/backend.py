"""What the training loop is given and gives back: a task, a framework, and how the run ended."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.data.batches import Batch, BatchSource, StreamSource
from jaxllada.common.run.evaluation import Evaluation
from jaxllada.common.run.metrics import StepMetrics
from jaxllada.common.run.samples import Samples
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.common.weights.peft import AdapterFiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on what; a backend's own `Task` adds how.

    Attributes:
        tokenizer: saved in the run folder, so that the folder is a model for every verb.
        evaluate: measures weights on the validation rows; None without any.
        sample: writes a page of texts with given weights; None for no samples.
        adapter: what is trained where the model's own weights are not.
        baselines: `uniform_bound` and `unigram_bound` in nats per token, for the log.
    """

    model: ModelConfig
    source: BatchSource | StreamSource
    total_steps: int
    tokenizer: Tokenizer | None = None
    evaluate: Callable[[Any], Evaluation] | None = None
    sample: Callable[[Any], Samples] | None = None
    adapter: AdapterFiles | None = None
    baselines: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: finished steps, weights to use, and the signal that stopped it (or 0)."""

    step: int
    params: Any
    signal: int
    first: Evaluation | None
    last: Evaluation | None


class Backend(Protocol):
    """What a framework does in a run: it holds the state that steps change.

    Attributes:
        name: kept in checkpoints; those of another backend are not gone on from.
        processes: of the run; with several, all call every method alike.
        state: what a checkpoint saves.
        skipped: steps skipped in a row up to now.
        waited: seconds so far that steps spent on other things than training, such as compiling.
    """

    name: str
    processes: int

    @property
    def is_main(self) -> bool: ...
    @property
    def state(self) -> Any: ...
    @property
    def skipped(self) -> int: ...
    @property
    def waited(self) -> float: ...

    def start(self) -> None:
        """Makes the state before the first step."""
        ...

    def restore(self, step: int) -> None:
        """Reads the state of a checkpoint."""
        ...

    def begin(self, tell: Callable[[str], None]) -> None:
        """Gets ready for steps; `tell` prints a line about the run."""
        ...

    def step(self, batch: Batch, learning_rate: float, cursor: int) -> StepMetrics:
        """Makes a step from batch number `cursor` of the data."""
        ...

    def fetch(self, metrics: list[StepMetrics]) -> list[StepMetrics]:
        """Brings the metrics of steps to the host."""
        ...

    def weights(self) -> Any:
        """The weights that are measured and sampled from: the average, where one is kept."""
        ...

    def agree(self, number: int) -> int:
        """Returns the largest number any process gives."""
        ...

    def start_trace(self, folder: Path) -> None:
        """Starts to record a profile."""
        ...

    def stop_trace(self) -> None:
        """Waits for the steps under way and writes the profile."""
        ...
