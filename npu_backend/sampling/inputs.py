"""The data a sampling run is carried out on.

Shape letters: B rows, L canvas length.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from jaxllada.common.canvas import Canvas
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.smoothing import call_bounds, call_weights
from jaxllada.common.unmasking import UnmaskingPlan, transfers, unmasking_plan
from npu_backend.sampling.gumbel import RowSeed, schedule_noise


@dataclass(frozen=True)
class Inputs:
    """What stays the same during a run."""

    visible: Bool[Tensor, "B L"] | None
    """Keys that may be attended to; None shows everything."""
    positions: Int[Tensor, "B L"]
    """Rotary positions."""
    known: Bool[Tensor, "B L"]
    """Prompt positions that guidance hides for the unconditional prediction."""
    seeds: list[RowSeed]
    """Where the random numbers of each row come from."""
    transfers: Int[Tensor, "B L"]
    """Tokens each call commits: `common.unmasking.transfers`."""
    planned: Int[np.ndarray, "B L"]
    """The same on the host, which steers by it."""
    plan: UnmaskingPlan
    prompt_length: int
    """First position of the first block."""
    end: int
    """First position behind the answer."""
    lead: int
    """Blocks before the end of the prompt: `common.canvas.Canvas.lead`."""
    temperature: float
    cfg_scale: float
    bound: float
    """What an adaptive selection compares with."""
    bounds: list[float]
    """The same for each call of a block where it changes; else empty."""
    weights: list[float]
    """Shares by which masks carry the predictions of a call; empty without smoothing."""
    low_bound: float
    """What the best of a run of masks is compared with."""
    credit: tuple[float, ...]
    """alpha, beta and gamma of `sampling/credit.py`; empty: there is no credit."""
    order_temperature: float
    top_p: float
    top_k: int
    answer_length: float
    """Positions that an answer may have."""
    end_think_boost: float
    end_think_power: float
    suppressed: tuple[int, ...]
    """Ids that are never predicted."""
    unsure: tuple[int, ...]
    """Ids that have no confidence."""

    @classmethod
    def of(
        cls, canvas: Canvas, config: SamplingConfig, seeds: list[RowSeed], device: torch.device
    ) -> "Inputs":
        """Puts a canvas and the numbers of a config on the device; one seed per row."""
        policy, rule, candidate = canvas.policy, config.selection_rule, config.candidate
        first, draws = canvas.prompt_length, None
        if rule.is_stochastic:
            draws = schedule_noise(seeds, canvas.tokens.shape[1] - first)
        counts = transfers(config, canvas.tokens, policy.mask_id, first, draws)
        known = canvas.known & ~np.isin(canvas.tokens, candidate.cfg_keep_tokens)
        visible = None
        if not canvas.visible.all():
            visible = torch.as_tensor(canvas.visible, device=device)
        return cls(
            visible=visible,
            positions=torch.as_tensor(canvas.positions, device=device),
            known=torch.as_tensor(known, device=device),
            seeds=seeds,
            transfers=torch.as_tensor(counts, device=device),
            planned=counts,
            plan=unmasking_plan(config),
            prompt_length=first,
            end=first + canvas.gen_length,
            answer_length=float(config.gen_length),
            end_think_boost=float(config.end_think_logit_boost),
            end_think_power=float(config.end_think_boost_power),
            lead=canvas.lead,
            temperature=float(config.temperature),
            cfg_scale=float(config.cfg_scale),
            bound=float(rule.bound),
            bounds=call_bounds(rule, config.block_length).tolist(),
            weights=call_weights(config.smoothing_rule, config.block_length).tolist(),
            low_bound=float(rule.low_bound),
            credit=rule.credit,
            order_temperature=float(rule.order_temperature),
            top_p=float(candidate.top_p or 1),
            top_k=int(candidate.top_k or 1),
            suppressed=candidate.suppress_tokens,
            unsure=candidate.begin_suppress_tokens,
        )
