"""What a package brings to `bench`: a model that samples, one that trains, times and memory."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.data.cutting import Batch
from jaxllada.common.driver import Progress
from jaxllada.common.engine import ShouldStop
from jaxllada.common.scores import Question, QuestionScores
from jaxllada.common.trace import Trace


class Sampler(Protocol):
    """A model on its device, ready to sample."""

    @property
    def config(self) -> ModelConfig: ...

    def sample(self, prompt: np.ndarray, settings: SamplingConfig) -> Trace:
        """Fills the answers of a prompt [B, P], greedily; returns when the device is done."""
        ...

    def sample_rows(
        self,
        prompt: np.ndarray,
        settings: SamplingConfig,
        should_stop: ShouldStop | None,
        *,
        drops_rows: bool,
    ) -> Progress:
        """Like `sample`, with a rule that ends rows, which then leave the batch or stay."""
        ...

    def score(
        self, questions: Sequence[Question], settings: LikelihoodConfig
    ) -> list[QuestionScores]:
        """Scores the options of questions."""
        ...

    def save(self, folder: str) -> None:
        """Writes a model folder."""
        ...


class Trainer(Protocol):
    """A model and its optimiser, ready to be trained on one batch again and again."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def batch(self) -> Batch: ...
    @property
    def compile_seconds(self) -> float: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...

    def step(self) -> float:
        """One update; returns the loss when the device is done."""
        ...

    def save(self, folder: str) -> None:
        """Writes a model folder; asked for before the first step."""
        ...


class Backend(Protocol):
    """What a package brings to `bench`; `options` are its keys (`BenchConfig`)."""

    program: str
    """The name its results stand under."""

    @property
    def device(self) -> str:
        """Such as `1 x cpu`."""
        ...

    def sampler(self, options: Any) -> Sampler: ...
    def trainer(self, options: Any) -> Trainer: ...

    def gemm_flops(self, dtype: str) -> float:
        """Measures a large matrix product, in FLOPs per second."""
        ...

    def forget_peaks(self) -> None:
        """Starts `peaks` anew, as far as the platform allows."""
        ...

    def peaks(self) -> dict[str, int]:
        """Largest memory in bytes: `peak_resident_bytes`, on a device also `peak_device_bytes`."""
        ...
