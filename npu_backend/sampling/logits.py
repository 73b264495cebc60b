"""From logits to a token and its confidence.

Shape letters: N positions, V vocabulary rows, K draws per position.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jaxllada.common.policy import Policy
from npu_backend.sampling.gumbel import draw_tokens


def read_logits(
    logits: Float[Tensor, "N V"],
    noise: Float[Tensor, "N K"] | None,
    temperature: float,
    policy: Policy,
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Returns the predicted token of each position, and its probability in float32.

    Noise takes part in the choice of the token and not in its probability. `logits` are float32
    and are written over.
    """
    if policy.never_eos:
        logits[:, policy.eos_id] = -math.inf
    of_mask = logits[:, policy.mask_id].clone()
    if policy.never_mask:
        logits[:, policy.mask_id] = -math.inf
    peak, chosen = logits.max(dim=1)
    if noise is not None:
        chosen = draw_tokens(logits, noise, temperature)
    if policy.never_mask:
        logits[:, policy.mask_id] = of_mask
    if noise is None and not policy.zeroed_ids:
        return chosen, 1 / (logits - peak[:, None]).exp_().sum(dim=1)
    for dropped in policy.zeroed_ids:
        logits[:, dropped] = -math.inf
    peak = logits.amax(dim=1)
    value = logits.gather(1, chosen[:, None])[:, 0]
    return chosen, torch.exp(value - peak) / (logits - peak[:, None]).exp_().sum(dim=1)
