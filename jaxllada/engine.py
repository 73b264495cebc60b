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
from jaxllada.common.engine import Generation, Update, check_prompts
from jaxllada.common.scores import Question, QuestionScores
from jaxllada.common.unmasking import unmasking_plan
from jaxllada.diffusion.likelihood import log_likelihood, score
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.sampling.generate import sample_stepwise


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
    ) -> "JaxEngine":
        """Reads a model of any format `load` takes, or the newest sound checkpoint of a run.

        `dtype` is the type of weights and activations, by default the stored one. `average` takes
        the exponential average of a run's weights, by default where the run kept one. Raises
        `UserError` where something is missing.
        """
        return cls(convert.load(path, dtype, average=average))

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
        first_row: int = 0,
    ) -> list[Generation]:
        """See `common.engine.Engine.generate`."""
        check_prompts(prompts, config, self.config)
        longest = max(len(prompt) for prompt in prompts)
        tokens = np.full((len(prompts), longest), self.config.pad_token_id, np.int32)
        visible = np.zeros(tokens.shape, np.int32)
        for row, prompt in enumerate(prompts):
            start = longest - len(prompt)
            tokens[row, start:] = prompt
            visible[row, start:] = 1
        begun = time.perf_counter()
        total_steps = unmasking_plan(config).total_calls
        pieces = sample_stepwise(
            self.model,
            tokens,
            config,
            visible,
            _row_keys(seed, first_row, len(prompts)),
            steps_per_piece=None if on_update is None else 1,
        )
        for trace in pieces:
            if on_update is not None:
                on_update(Update(trace.tokens, trace.num_steps, total_steps))
        seconds = time.perf_counter() - begun
        return [
            Generation(trace.tokens[row].tolist(), trace[row], trace.num_steps, seconds)
            for row in range(len(prompts))
        ]

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


def _row_keys(seed: int, first: int, count: int) -> jax.Array:
    key = jax.random.key(seed)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(first + jnp.arange(count))
