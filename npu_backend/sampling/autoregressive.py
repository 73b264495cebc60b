"""Answering left to right with kept keys and values: the sampler of the autoregressive twin.

The prompt is read once; then every call reads one token beside the keys and values of all before
it, which a cache of transformers holds.

Shape letters: B rows, P prompt length, N answer length, K positions so far, D model width.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from jaxllada.common.autoregressive import check_options, end_ids, padded, record
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.trace import Trace
from npu_backend.calls import inference
from npu_backend.models.causal_lm import CausalLM
from npu_backend.sampling.gumbel import RowSeed, draw_tokens, token_noise


def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    seeds: Sequence[RowSeed],
    *,
    steps_per_piece: int | None = None,
) -> Iterator[Trace]:
    """Answers prompts of any lengths; yields the record after every `steps_per_piece` steps.

    Each row is what it would be alone. A row ends with the end token (or the end of the turn) if
    `stop_at_eos` is set. `seeds` names the noise of each row. `steps_per_piece` None is one piece.

    Raises:
        UserError: an option that only diffusion has.
    """
    check_options(config)
    laid = padded(prompts, model.config)
    run = _Run(model, laid.tokens, laid.visible, config, seeds)
    total, eos = config.gen_length, model.config.eos_token_id
    piece = steps_per_piece or total
    for end in range(piece, total + piece, piece):
        with inference(model):
            run.advance(min(end, total))
        yield record(laid, *run.found(), run.step, eos)
        if run.is_over:
            return


class _Run:
    """A batch under way: what has been written, and what the next token is predicted from."""

    def __init__(
        self,
        model: CausalLM,
        prompt: Int[np.ndarray, "B P"],
        visible: Bool[np.ndarray, "B P"],
        config: SamplingConfig,
        seeds: Sequence[RowSeed],
    ):
        self.model, self.config, self.seeds = model, config, seeds
        self.total, eos = config.gen_length, model.config.eos_token_id
        self.end_ids = end_ids(config, model.config)
        device = model.device
        self.prompt = torch.from_numpy(prompt).to(device)
        self.visible = torch.from_numpy(visible).to(device)
        self.counted = self.visible.sum(dim=1)
        shape = (len(prompt), self.total)
        self.tokens = torch.full(shape, eos, dtype=torch.int64, device=device)
        self.confidence = torch.zeros(shape, device=device)
        self.lengths = torch.full((len(prompt),), self.total, device=device)
        self.kept, self.step = DynamicCache(), 0

    @property
    def is_over(self) -> bool:
        """Whether every row has ended; asks the device only where rows can."""
        if self.step == self.total:
            return True
        return bool(self.end_ids) and bool((self.lengths <= self.step).all())

    def advance(self, end: int) -> None:
        """Writes tokens up to step `end`, or until all rows have ended."""
        while self.step < end and not self.is_over:
            last = self.tokens[:, self.step - 1]
            token, chance = self._choose(self._read(last) if self.step else self._read_prompt())
            has_ended = self.lengths <= self.step
            eos = self.model.config.eos_token_id
            self.tokens[:, self.step] = torch.where(has_ended, eos, token)
            self.confidence[:, self.step] = torch.where(has_ended, 0.0, chance)
            for end_id in self.end_ids:
                ends = (token == end_id) & ~has_ended
                self.lengths = torch.where(ends, self.step + 1, self.lengths)
                has_ended = has_ended | ends
            self.step += 1

    def found(
        self,
    ) -> tuple[Int[np.ndarray, "B N"], Float[np.ndarray, "B N"], Int[np.ndarray, " B"]]:
        """Tokens, their probabilities and the length of each row, on the host."""
        parts = (self.tokens, self.confidence, self.lengths)
        tokens, confidence, lengths = (part.cpu().numpy() for part in parts)
        return tokens, confidence, lengths

    def _read_prompt(self) -> Float[Tensor, "B D"]:
        length = self.prompt.shape[1]
        ones = torch.ones(length, length, dtype=torch.bool, device=self.prompt.device)
        sees = ones.tril() & self.visible[:, None]
        # A row that sees nothing would be NaN.
        sees = sees | torch.eye(length, dtype=torch.bool, device=self.prompt.device)
        places = (self.visible.cumsum(dim=1) - 1).clamp(min=0)
        return self.model.run(self.prompt, sees[:, None], places, self.kept)[:, -1]

    def _read(self, token: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        grown = torch.ones_like(self.visible[:, :1])
        self.visible = torch.cat([self.visible, grown], dim=1)
        places = (self.counted + self.step - 1)[:, None]
        sees = self.visible[:, None, None]
        return self.model.run(token[:, None], sees, places, self.kept)[:, 0]

    def _choose(
        self, hidden: Float[Tensor, "B D"]
    ) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
        """Returns a token for each row and the model's probability of it."""
        logits = self.model.head(hidden)
        if self.config.logits_eos_inf:
            logits[:, self.model.config.eos_token_id] = -torch.inf
        if self.config.temperature > 0:
            noise = token_noise(self.seeds, self.step, 0, 1, logits.shape[1])[:, 0]
            given = torch.from_numpy(np.ascontiguousarray(noise)).to(logits.device)
            token = draw_tokens(logits, given, self.config.temperature)
        else:
            token = logits.argmax(dim=1)
        chosen = logits.gather(1, token[:, None])[:, 0]
        return token, torch.exp(chosen - torch.logsumexp(logits, dim=1))
