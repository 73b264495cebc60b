"""From logits to a token and its confidence.

Shape letters: N positions, V vocabulary rows, K draws per position.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jaxllada.common.policy import Policy
from npu_backend.sampling.filters import filtered
from npu_backend.sampling.gumbel import COLDEST, draw_tokens
from npu_backend.sampling.inputs import Inputs


class Reading(NamedTuple):
    """What the logits of each position say."""

    tokens: Int[Tensor, " N"]
    confidence: Float[Tensor, " N"]
    """In [0, 1], float32: what a trace shows, and what thresholds are compared with."""
    score: Float[Tensor, " N"]
    """What puts positions in order; the confidence itself unless they are ranked by entropy."""


def read_logits(
    logits: Float[Tensor, "N V"],
    noise: Float[Tensor, "N K"] | None,
    inputs: Inputs,
    policy: Policy,
) -> Reading:
    """Returns the predicted token of each position, and how sure the model is.

    Noise takes part in the choice of the token and not in its confidence. `logits` are float32
    and are written over.
    """
    logits = without_forbidden(logits, inputs, policy)
    of_mask = logits[:, policy.mask_id].clone()
    if policy.never_mask:
        logits[:, policy.mask_id] = -math.inf
    temperature = inputs.temperature
    if policy.ranks_draws:
        if policy.is_noisy:
            logits.div_(max(temperature, COLDEST))
            temperature = 1.0
        logits = filtered(logits, inputs, policy)
    peak, chosen = logits.max(dim=1)
    if noise is not None:
        chosen = draw_tokens(logits, noise, temperature)
    if policy.never_mask and not policy.ranks_draws and policy.rank not in ("margin", "entropy"):
        logits[:, policy.mask_id] = of_mask
    is_own = not policy.zeroed_ids and not inputs.unsure
    if noise is None and is_own and policy.rank in ("probability", "random"):
        confidence = 1 / (logits - peak[:, None]).exp_().sum(dim=1)
        return Reading(chosen, confidence, confidence)
    for dropped in (*policy.zeroed_ids, *inputs.unsure):
        logits[:, dropped] = -math.inf
    return Reading(chosen, *_sureness(logits, chosen, policy))


def without_forbidden(
    logits: Float[Tensor, "N V"], inputs: Inputs, policy: Policy
) -> Float[Tensor, "N V"]:
    """Puts minus infinity where a token is never to be predicted, but for the mask.

    `logits` are written over.
    """
    if policy.never_eos:
        logits[:, policy.eos_id] = -math.inf
    for token in inputs.suppressed:
        logits[:, token] = -math.inf
    return logits


def _sureness(
    logits: Float[Tensor, "N V"], chosen: Int[Tensor, " N"], policy: Policy
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    peak, best = logits.max(dim=1)
    value = logits.gather(1, chosen[:, None])[:, 0]
    shifted = logits - peak[:, None]
    weight = shifted.exp()
    total = weight.sum(dim=1)
    match policy.rank:
        case "margin":
            second = weight.scatter_(1, best[:, None], 0).amax(dim=1)
            lead = (1 - second) / total
            return lead, lead
        case "entropy":
            # Weights of 0 stand for logits of minus infinity.
            energy = torch.where(weight > 0, weight * shifted, 0).sum(dim=1)
            entropy = (total.log() - energy / total).clamp_min(0)
            return torch.exp(-entropy), -entropy
        case _:
            confidence = torch.exp(value - peak) / total
            return confidence, confidence
