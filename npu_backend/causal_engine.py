"""The engine protocol (`common/engine.py`) for the autoregressive twin, in torch."""

import time
from collections.abc import Callable, Sequence

from jaxllada.common.autoregressive import Stops
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import (
    Engine,
    Generation,
    ShouldStop,
    Update,
    check_prompts,
    generations,
    row_numbers,
)
from jaxllada.common.errors import UserError
from jaxllada.common.scores import Question, QuestionScores
from jaxllada.common.scoring import check_exact, score_one_by_one
from npu_backend.engine import TorchEngine
from npu_backend.models.mask_predictor import MaskPredictor
from npu_backend.sampling.gumbel import RowSeed


class CausalEngine:
    """Answers token lists with a `CausalLM`, token by token."""

    def __init__(self, model: MaskPredictor):
        # Imported where such a model is there, and with it transformers.
        from npu_backend.models.causal_lm import CausalLM
        from npu_backend.sampling import autoregressive, causal_likelihood

        assert isinstance(model, CausalLM)
        self.model, self._sampler, self._likelihood = model, autoregressive, causal_likelihood

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
        """See `common.engine.Engine.generate`; what is not written yet is the end token."""
        check_prompts(prompts, config, self.config)
        begun = time.perf_counter()
        seeds = [RowSeed(seed, row) for row in row_numbers(first_row, len(prompts))]
        stops = Stops(should_stop, config, len(prompts))
        piece = None if should_stop is None else config.block_length
        piece = piece if on_update is None else 1
        trace = None
        pieces = self._sampler.generate(self.model, prompts, config, seeds, steps_per_piece=piece)
        for trace in pieces:
            trace = stops.cut(trace)
            if on_update is not None:
                on_update(Update(trace.tokens, trace.num_steps, config.gen_length))
            if stops.is_over:
                break
        assert trace is not None
        seconds = time.perf_counter() - begun
        ends = {self.config.eos_token_id, config.eot_token_id} - {None}
        return generations(trace, trace.num_steps, seconds, ends)

    def log_likelihood(
        self, prompt: Sequence[int], answer: Sequence[int], config: LikelihoodConfig
    ) -> float:
        """The exact log p(answer | prompt) in nats; nothing is drawn, so only the seed is free.

        Raises `UserError` under guidance, which this model was not trained for.
        """
        if config.cfg_scale:
            raise UserError(f"cfg_scale={config.cfg_scale}: is for diffusion models, use 0")
        return self._likelihood.log_likelihood(self.model, prompt, answer)

    def score(
        self, questions: Sequence[Question], config: LikelihoodConfig, *, first: int = 0
    ) -> list[QuestionScores]:
        """See `common.engine.Engine.score`; every value is exact."""
        check_exact(config)
        return score_one_by_one(
            questions, lambda prompt, answer: self.log_likelihood(prompt, answer, config)
        )


def engine_of(model: MaskPredictor, ops: str | None = None) -> Engine:
    """The engine that answers with this kind of model; `ops` as in `TorchEngine`."""
    return CausalEngine(model) if model.config.is_causal else TorchEngine(model, ops)
