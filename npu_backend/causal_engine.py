"""The engine protocol (`common/engine.py`) for the autoregressive twin, in torch."""

import time
from collections.abc import Callable, Sequence

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import Engine, Generation, Update, check_prompts
from jaxllada.common.errors import UserError
from npu_backend.engine import TorchEngine
from npu_backend.models.mask_predictor import MaskPredictor
from npu_backend.sampling.gumbel import RowSeed


class CausalEngine:
    """Answers token lists with a `CausalLM`, token by token."""

    def __init__(self, model: MaskPredictor):
        # Imported where such a model is there, and with it transformers.
        from npu_backend.models.causal_lm import CausalLM
        from npu_backend.sampling import autoregressive

        assert isinstance(model, CausalLM)
        self.model, self._sampler = model, autoregressive

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
        """See `common.engine.Engine.generate`; what is not written yet is the end token."""
        check_prompts(prompts, config, self.config)
        begun = time.perf_counter()
        seeds = [RowSeed(seed, first_row + row) for row in range(len(prompts))]
        piece = None if on_update is None else 1
        trace = None
        pieces = self._sampler.generate(self.model, prompts, config, seeds, steps_per_piece=piece)
        for trace in pieces:
            if on_update is not None:
                on_update(Update(trace.tokens, trace.num_steps, config.gen_length))
        assert trace is not None
        seconds = time.perf_counter() - begun
        return [
            Generation(trace.tokens[row].tolist(), trace[row], trace.num_steps, seconds)
            for row in range(len(prompts))
        ]

    def log_likelihood(
        self, prompt: Sequence[int], answer: Sequence[int], config: LikelihoodConfig
    ) -> float:
        """The exact log p(answer | prompt) in nats; nothing is drawn, so only the seed is free.

        Raises `UserError` under guidance, which this model was not trained for.
        """
        if config.cfg_scale:
            raise UserError(f"cfg_scale={config.cfg_scale}: is for diffusion models, use 0")
        return self._sampler.log_likelihood(self.model, prompt, answer)


def engine_of(model: MaskPredictor, ops: str | None = None) -> Engine:
    """The engine that answers with this kind of model; `ops` as in `TorchEngine`."""
    return CausalEngine(model) if model.config.is_causal else TorchEngine(model, ops)
