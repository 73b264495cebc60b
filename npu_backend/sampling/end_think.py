"""A pull towards the end of thinking that grows as an answer gets longer.

Reasoning models write their thoughts before a closing sequence such as `</think>`; one that does
not come is what makes them run out of room. In every step, one logit is raised: at the first open
position of the active block, that of the token which continues the sequence, as long as the answer
does not hold it. `generate` of the release that came with iLLaDA (`end_think_logit_boost`).

Shape letters: B rows, L canvas length, S positions of the window.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jaxllada.common.policy import Policy
from npu_backend.sampling.inputs import Inputs


def end_think_pull(
    canvas: Int[Tensor, "B L"],
    is_open: Bool[Tensor, "B S"],
    start: int,
    inputs: Inputs,
    policy: Policy,
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Returns the id that each row's first open position is pulled to, and by how much (float32).

    0 where nothing is open or the sequence is there. `start` is the window's first position.
    """
    wanted = policy.end_think_ids
    # The first of equal values: no argmax of booleans, which some devices lack.
    first = start + (is_open.int().cumsum(dim=1) == 0).sum(dim=1)
    first = torch.where(is_open.any(dim=1), first, start)
    token = torch.full_like(first, wanted[0])
    for size in range(1, len(wanted)):  # the longest beginning of the sequence wins
        begun = first - size >= inputs.prompt_length
        for offset in range(size):
            place = (first - size + offset).clamp(min=0)
            begun &= canvas.gather(1, place[:, None])[:, 0] == wanted[offset]
        token = torch.where(begun, wanted[size], token)
    spans = canvas.shape[1] - len(wanted) + 1
    is_there = torch.arange(spans, device=canvas.device) >= inputs.prompt_length
    for offset, one in enumerate(wanted):
        is_there = is_there & (canvas[:, offset : offset + spans] == one)
    progress = ((first - inputs.prompt_length + 1) / inputs.answer_length).clamp(0, 1)
    pull = inputs.end_think_boost * progress**inputs.end_think_power
    return token, torch.where(is_open.any(dim=1) & ~is_there.any(dim=1), pull, 0.0)
