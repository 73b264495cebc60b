"""The torch implementation of the engine protocol (`common/engine.py`)."""

import os
import time
from collections.abc import Callable, Sequence

import numpy as np

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
from npu_backend import convert
from npu_backend.device import find_device
from npu_backend.diffusion.likelihood import log_likelihood, score
from npu_backend.models.mask_predictor import MaskPredictor
from npu_backend.probe import check_mode, choose_kernels
from npu_backend.sampling.generate import sample_progress
from npu_backend.sampling.gumbel import RowSeed


class TorchEngine:
    """Answers token lists with a `MaskPredictor`.

    `ops` chooses its kernels when the first call shows what shapes they will see; None leaves
    them as they are.
    """

    def __init__(self, model: MaskPredictor, ops: str | None = None):
        self.model, self._ops = model, ops

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        dtype: Dtype | None = None,
        *,
        device: str = "auto",
        ops: str = "auto",
        adapter: str | os.PathLike[str] | None = None,
    ) -> "TorchEngine":
        """Reads a model of any format `load` takes, or the newest sound checkpoint of a run.

        `dtype` is the type of weights and activations, by default the stored one; `device` is
        auto, npu, cuda or cpu, `ops` auto, fused or plain. Raises `UserError` where something is
        missing.
        """
        place = find_device(device)
        check_mode(ops, place)
        return cls(convert.load(path, dtype, device=place, adapter=adapter), ops)

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
        passes = 2 if config.cfg_scale > 0 else 1
        self._choose_kernels(passes * len(prompts), tokens.shape[1] + config.gen_length)
        begun = time.perf_counter()
        progress = None
        for progress in sample_progress(
            self.model,
            tokens,
            config,
            visible,
            [RowSeed(seed, row) for row in row_numbers(first_row, len(prompts))],
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
        passes = 2 if config.cfg_scale > 0 else 1
        self._choose_kernels(passes * config.batch_size, len(prompt) + len(answer))
        return log_likelihood(self.model, np.array(prompt, np.int32), np.array(answer), config)

    def score(
        self, questions: Sequence[Question], config: LikelihoodConfig, *, first: int = 0
    ) -> list[QuestionScores]:
        """See `common.engine.Engine.score`."""
        longest = max(
            (len(q.prompt) + max(map(len, q.options), default=0) for q in questions), default=1
        )
        passes = 2 if config.cfg_scale > 0 else 1
        self._choose_kernels(passes * config.rows, longest)
        return score(self.model, questions, config, first=first)

    def _choose_kernels(self, batch: int, length: int) -> None:
        """Before the first model call: settles which kernels it runs on."""
        if self._ops is None:
            return
        compute = self.model.compute
        self.model.use(
            choose_kernels(
                self._ops, self.model.device, self.config, compute, batch=batch, length=length
            )
        )
        self._ops = None
