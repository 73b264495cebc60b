"""The JAX implementation of the engine protocol (`common/engine.py`)."""

import os
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxllada import convert
from jaxllada.common.config.compute import Dtype
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import (
    Generation,
    ShouldStop,
    Update,
    batch_of,
    check_prompts,
    generations,
    row_numbers,
)
from jaxllada.common.scores import Question, QuestionScores
from jaxllada.diffusion.likelihood import log_likelihood, score
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.sampling.generate import sample_progress


class JaxEngine:
    """Answers token lists with a `MaskPredictor`."""

    def __init__(self, model: MaskPredictor):
        self.model = model

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        dtype: Dtype | None = None,
        *,
        average: bool | None = None,
        adapter: str | os.PathLike[str] | None = None,
    ) -> "JaxEngine":
        """Reads a model of any format `load` takes, or the newest sound checkpoint of a run.

        `dtype` is the type of weights and activations, by default the stored one. `average` takes
        the exponential average of a run's weights, by default where the run kept one. Raises
        `UserError` where something is missing.
        """
        return cls(convert.load(path, dtype, average=average, adapter=adapter))

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        seed: int = 0,
        on_update: Callable[[Update], None] | None = None,
        *,
        first_row: int | Sequence[int] = 0,
        should_stop: ShouldStop | None = None,
    ) -> list[Generation]:
        """See `common.engine.Engine.generate`."""
        check_prompts(prompts, config, self.config)
        tokens, visible = batch_of(prompts, self.config)
        begun = time.perf_counter()
        progress = None
        for progress in sample_progress(
            self.model,
            tokens,
            config,
            visible,
            row_keys(seed, row_numbers(first_row, len(prompts))),
            steps_per_piece=None if on_update is None else 1,
            should_stop=should_stop,
        ):
            if on_update is not None:
                trace = progress.trace
                shown = trace.tokens[:, : progress.columns]
                on_update(Update(shown, trace.num_steps, progress.total_calls))
        assert progress is not None
        seconds = time.perf_counter() - begun
        ends = (self.config.eos_token_id, *config.stop_token_ids)
        return generations(progress.trace, progress.nfe, seconds, ends)

    def log_likelihood(
        self, prompt: Sequence[int], answer: Sequence[int], config: LikelihoodConfig
    ) -> float:
        """See `common.engine.Engine.log_likelihood`."""
        return log_likelihood(self.model, np.array(prompt, np.int32), np.array(answer), config)

    def score(
        self, questions: Sequence[Question], config: LikelihoodConfig, *, first: int = 0
    ) -> list[QuestionScores]:
        """See `common.engine.Engine.score`."""
        return score(self.model, questions, config, first=first)


def row_keys(seed: int, rows: Sequence[int]) -> jax.Array:
    """Keys [len(rows)] of the rows of a request, by their numbers."""
    key = jax.random.key(seed)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.array(rows, jnp.uint32))
