"""The sampling loop: a plan made on the host, and tensors that stay on the device.

Semi-autoregressive low-confidence remasking (LLaDA, arXiv:2502.09992v3, section 2.4 and Algorithm
5). A run is a state that `advance` carries to a given step; running it in pieces gives the same
tokens as running it in one go. The host waits for the device between blocks only, and only where
rows may stop early.

Shape letters: B rows, L canvas length.
"""

import functools
import sys
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jaxllada.common.policy import Policy
from jaxllada.common.trace import NOT_COMMITTED
from npu_backend.calls import inference
from npu_backend.sampling.credit import Credits, no_credits
from npu_backend.sampling.gumbel import order_gumbel, order_noise, token_noise
from npu_backend.sampling.inputs import Inputs
from npu_backend.sampling.predict import predict
from npu_backend.sampling.reader import Body, Call
from npu_backend.sampling.readers import reader_of
from npu_backend.sampling.select import most_confident
from npu_backend.sampling.smoothing import Soft, Table, no_soft, of_masks, remembered


@dataclass
class State:
    """The canvas and the record of how it came to be; `advance` writes into it."""

    canvas: Int[Tensor, "B L"]
    order: Int[Tensor, "B L"]
    """Step after which a token was there, from 0; `NOT_COMMITTED` elsewhere."""
    confidence: Float[Tensor, "B L"]
    has_ended: Bool[Tensor, " B"]
    """Rows that stopped at an end token."""
    memory: Any
    """What the reader keeps of earlier calls."""
    credits: Credits | None
    """What the positions of the active block predicted in its calls, if that counts."""
    soft: Soft
    """What masks carry of earlier predictions, if they do."""
    open_blocks: list[int]
    """Blocks with masks that are left to do; the first one is active, the same for all rows."""
    step: int = 0
    """Model calls so far."""
    call: int = 0
    """Calls of the active block so far."""
    age: int = 0
    """Calls that the memory has seen."""
    most_open: int | None = None
    """Masks of the active block in the row with most of them, where a call may take any number."""

    @property
    def block(self) -> int:
        """The active block; beyond all others when nothing is left to do."""
        return self.open_blocks[0] if self.open_blocks else sys.maxsize

    @property
    def is_finished(self) -> bool:
        """Whether no block is left to work on."""
        return not self.open_blocks


def advance(
    model: Any, inputs: Inputs, state: State, end_step: int, end_block: int, policy: Policy
) -> State:
    """Runs until `end_step` calls were made, `end_block` is active, or nothing is left to fill."""
    with inference(model):
        return _advance(model, inputs, state, end_step, end_block, policy)


def _advance(
    model: Any, inputs: Inputs, state: State, end_step: int, end_block: int, policy: Policy
) -> State:
    body, reader = Body.of(model, inputs, policy), reader_of(policy)
    table = Table.of(model) if policy.is_smooth else None
    while state.step < end_step and state.block < end_block:
        first = state.open_blocks[0] * policy.block_length
        block_start = inputs.prompt_length + first
        block_end = block_start + policy.block_length
        start = 0 if policy.is_wide else block_start
        window = slice(start, start + policy.window)
        tokens = state.canvas[:, window]
        is_open = (tokens == policy.mask_id) & ~state.has_ended[:, None]
        planned = inputs.planned[:, first : first + policy.block_length]
        most_open = int(planned[:, state.call :].sum(axis=1).max())
        is_read = is_open.clone() if policy.reads_ahead else is_open
        if policy.is_wide:
            is_open[:, block_end:] = False
        if state.most_open is not None:
            most_open = state.most_open
        if policy.reads_ahead:
            # A row that waits for others is left as it is: it must not depend on them.
            is_read &= is_open.any(dim=1, keepdim=True)
            later = inputs.planned[:, first + policy.block_length :]
            most_open += int(later.sum(axis=1).max(initial=0))
        elif policy.is_wide or not policy.never_mask:
            most_open = policy.window
        moment = (state.block - inputs.lead) * inputs.plan.calls_per_block + state.call
        moment %= 2**32  # blocks before the end of a prompt count backwards
        noise, ranking = _noise(model, inputs, moment, start, policy)
        call = Call(
            state.canvas, start, block_start, state.call, state.age,
            of_masks(state.soft, state.canvas, policy),
        )  # fmt: skip
        prediction, state.memory, state.credits = predict(
            reader, body, model.head, table, call, state.memory, state.credits, is_read, noise,
            ranking, inputs, policy, most_open,
        )  # fmt: skip
        count = inputs.transfers[:, first + state.call]
        last = _is_any(prediction.tokens, policy.end_ids)
        bound = inputs.bounds[state.call] if policy.has_decay else inputs.bound
        bounds = (bound, inputs.low_bound)
        chosen = most_confident(prediction.score, is_open, count, last, policy.extra, *bounds)
        _write(tokens, chosen, prediction.tokens)
        if state.soft is not None and prediction.expected is not None:
            carried = state.soft[:, window]
            carried.copy_(remembered(carried, prediction.expected, is_read, state.call, inputs))
        _write(state.order[:, window], chosen, state.step)
        _write(state.confidence[:, window], chosen, prediction.confidence)
        state.step += 1
        state.call += 1
        state.age += 1
        state.most_open = None
        if policy.extra:
            # The host waits: only the device knows how much was sure.
            is_left = is_open & (tokens == policy.mask_id)
            state.most_open = int(is_left.int().sum(dim=1).amax())
        if state.most_open == 0 or not planned[:, state.call :].any():
            state.most_open = None
            state.open_blocks.pop(0)
            state.call = 0
            if policy.stop_at_eos:
                _end_rows(state, inputs.prompt_length, block_end, policy)
    return state


def _noise(
    model: Any, inputs: Inputs, moment: int, start: int, policy: Policy
) -> tuple[Tensor | None, Tensor | None]:
    """Draws what a step needs on the host: noise on logits, and a random ranking."""
    draws: list[Tensor | None] = [None, None]
    where = (inputs.seeds, moment, start - inputs.prompt_length, policy.window)
    if policy.is_noisy:
        draws[0] = torch.from_numpy(token_noise(*where, model.config.rows))
    if policy.draws_order:
        draw = order_noise if policy.rank == "random" else order_gumbel
        draws[1] = torch.from_numpy(draw(*where))
    device = inputs.known.device
    noise, ranking = (None if x is None else x.to(device, non_blocking=True) for x in draws)
    return noise, ranking


def _write(target: Tensor, where: Tensor, values: Tensor | int) -> None:
    target.copy_(torch.where(where, values, target))


def _end_rows(state: State, prompt_length: int, block_end: int, policy: Policy) -> None:
    """Ends rows that hold an end token: masks behind become end tokens that nobody predicted."""
    answer = state.canvas[:, prompt_length:]
    ended = (answer[:, : block_end - prompt_length] == policy.eos_id).any(dim=1)
    where = ended[:, None] & (answer == policy.mask_id)
    _write(answer, where, policy.eos_id)
    _write(state.order[:, prompt_length:], where, state.step - 1)
    state.has_ended |= ended
    if bool(state.has_ended.all()):
        state.open_blocks.clear()


def _is_any(tokens: Tensor, ids: tuple[int, ...]) -> Tensor | None:
    if not ids:
        return None
    # Not torch.isin: older versions of torch_npu run it on the CPU.
    return functools.reduce(torch.logical_or, (tokens == i for i in ids))


def initial_state(model: Any, inputs: Inputs, canvas: Int[Tensor, "B L"], policy: Policy) -> State:
    """The state before the first step; its memory is empty."""
    with inference(model):
        memory = reader_of(policy).start(Body.of(model, inputs, policy), policy)
    return State(
        canvas=canvas.long(),
        order=torch.full_like(canvas, NOT_COMMITTED, dtype=torch.int32),
        confidence=torch.zeros_like(canvas, dtype=torch.float32),
        has_ended=torch.zeros(len(canvas), dtype=torch.bool, device=canvas.device),
        memory=memory,
        credits=no_credits(len(canvas), policy, canvas.device),
        soft=no_soft(model, canvas, policy),
        open_blocks=open_blocks(inputs, policy, 0),
    )


def open_blocks(inputs: Inputs, policy: Policy, first: int) -> list[int]:
    """Blocks with masks, from the block `first` on."""
    size = policy.block_length
    blocks = range(first, inputs.planned.shape[1] // size)
    return [b for b in blocks if inputs.planned[:, b * size : (b + 1) * size].any()]
