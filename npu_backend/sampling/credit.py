"""What a position predicted in the earlier calls of its block, and how it counts in the next.

Trace credit (CreditDecoding, arXiv:2510.06133v2). The published matrix has an entry per position
and vocabulary row; a call adds to one of them, so a position has as many credits as its block has
had calls, and only those are kept.

Shape letters: B rows, S positions of the window, N gathered positions, K credits of a position,
V vocabulary rows.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jaxllada.common.policy import Policy
from npu_backend.sampling.inputs import Inputs
from npu_backend.sampling.logits import without_forbidden


class Credits(NamedTuple):
    """Tokens that were predicted, and how much they have; entries with nothing hold any token."""

    tokens: Int[Tensor, "*at K"]
    amounts: Float[Tensor, "*at K"]


def no_credits(rows: int, policy: Policy, device: torch.device) -> Credits | None:
    """Room for the active block of so many rows; None where the selection knows no credit."""
    if not policy.has_credit:
        return None
    shape = (rows, policy.window, policy.block_length)
    tokens = torch.zeros(shape, dtype=torch.long, device=device)
    return Credits(tokens, torch.zeros(shape, dtype=torch.float32, device=device))


def credited(
    logits: Float[Tensor, "N V"],
    credits: Credits,
    call: int,
    inputs: Inputs,
    policy: Policy,
) -> tuple[Float[Tensor, "N V"], Credits]:
    """Gives the likeliest token of each position its credit, and adds all credits to the logits.

    `credits` are those [N, K] of the same positions after the calls of this block before, of which
    there are `call`: at 0 they are nothing. `logits` are written over.
    """
    alpha, beta, gamma = inputs.credit
    logits = without_forbidden(logits, inputs, policy)
    of_mask = logits[:, policy.mask_id].clone()
    logits[:, policy.mask_id] = -math.inf
    peak, likeliest = logits.max(dim=1)
    logits[:, policy.mask_id] = of_mask
    probability = 1 / (logits - peak[:, None]).exp_().sum(dim=1)
    tokens, amounts = credits.tokens, credits.amounts * (beta if call else 0)
    is_known = (tokens == likeliest[:, None]) & (amounts > 0)
    is_next = (torch.arange(tokens.shape[1], device=tokens.device) == call).expand_as(tokens)
    place = torch.where(is_known.any(dim=1, keepdim=True), is_known, is_next)
    tokens = torch.where(place, likeliest[:, None], tokens)
    amounts = amounts + torch.where(place, probability.pow(gamma)[:, None], 0)
    return logits.scatter_add_(1, tokens, alpha * amounts.log1p()), Credits(tokens, amounts)
