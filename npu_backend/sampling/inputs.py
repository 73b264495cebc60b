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
from jaxllada.common.unmasking import UnmaskingPlan, transfers, unmasking_plan
from npu_backend.sampling.gumbel import RowSeed


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
    temperature: float
    cfg_scale: float

    @classmethod
    def of(
        cls, canvas: Canvas, config: SamplingConfig, seeds: list[RowSeed], device: torch.device
    ) -> "Inputs":
        """Puts a canvas and the numbers of a config on the device; one seed per row."""
        plan, policy = unmasking_plan(config), canvas.policy
        counts = transfers(plan, canvas.tokens, policy.mask_id, canvas.prompt_length)
        visible = None
        if not canvas.visible.all():
            visible = torch.as_tensor(canvas.visible, device=device)
        return cls(
            visible=visible,
            positions=torch.as_tensor(canvas.positions, device=device),
            known=torch.as_tensor(canvas.known, device=device),
            seeds=seeds,
            transfers=torch.as_tensor(counts, device=device),
            planned=counts,
            plan=plan,
            prompt_length=canvas.prompt_length,
            end=canvas.prompt_length + canvas.gen_length,
            temperature=float(config.temperature),
            cfg_scale=float(config.cfg_scale),
        )
