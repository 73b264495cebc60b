"""The sampling loop: a plan made on the host, and tensors that stay on the device.

Semi-autoregressive low-confidence remasking (LLaDA, arXiv:2502.09992v3, section 2.4 and Algorithm
5). A run is a state that `advance` carries to a given step; running it in pieces gives the same
tokens as running it in one go. The host waits for the device between blocks only, and only where
rows may stop early.

Shape letters: B rows, L canvas length.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jaxllada.common.policy import Policy
from jaxllada.common.trace import NOT_COMMITTED
from jaxllada.common.unmasking import transfer_counts
from npu_backend.calls import inference
from npu_backend.sampling.gumbel import order_noise, token_noise
from npu_backend.sampling.inputs import Inputs
from npu_backend.sampling.predict import predict
from npu_backend.sampling.select import most_confident


@dataclass
class State:
    """The canvas and the record of how it came to be; `advance` writes into it."""

    canvas: Int[Tensor, "B L"]
    order: Int[Tensor, "B L"]
    """Step after which a token was there, from 0; `NOT_COMMITTED` elsewhere."""
    confidence: Float[Tensor, "B L"]
    has_ended: Bool[Tensor, " B"]
    """Rows that stopped at an end token."""
    step: int = 0
    is_finished: bool = False
    """Whether every row has ended."""


def advance(model: Any, inputs: Inputs, state: State, end_step: int, policy: Policy) -> State:
    """Runs steps until `end_step`, or until nothing is left to fill."""
    with inference(model):
        return _advance(model, inputs, state, end_step, policy)


def _advance(model: Any, inputs: Inputs, state: State, end_step: int, policy: Policy) -> State:
    hidden = functools.partial(model.hidden, turn=inputs.turn)
    counts = transfer_counts(policy.block_length, inputs.plan.steps_per_block).tolist()
    calls = inputs.plan.calls_per_block
    while state.step < end_step and not state.is_finished:
        block, call = divmod(state.step, calls)
        block_start = inputs.prompt_length + block * policy.block_length
        block_end = block_start + policy.block_length
        start = 0 if policy.fills_prompt else block_start
        window = slice(start, start + policy.window)
        tokens = state.canvas[:, window]
        is_open = (tokens == policy.mask_id) & ~state.has_ended[:, None]
        most_open = policy.window
        if policy.fills_prompt:
            is_open[:, block_end:] = False
        elif policy.never_mask:
            most_open -= sum(counts[:call])
        noise, ranking = _noise(model, inputs, state.step, start, policy)
        prediction = predict(
            hidden, model.head, state.canvas, is_open, start, noise, inputs, policy, most_open
        )
        confidence = prediction.confidence if ranking is None else ranking
        chosen = most_confident(
            confidence, is_open, counts[call], _is_any(prediction.tokens, policy.end_ids)
        )
        _write(tokens, chosen, prediction.tokens)
        _write(state.order[:, window], chosen, state.step)
        _write(state.confidence[:, window], chosen, confidence)
        state.step += 1
        if policy.stop_at_eos and call == calls - 1:
            _end_rows(state, inputs.prompt_length, block_end, policy)
    return state


def _noise(
    model: Any, inputs: Inputs, step: int, start: int, policy: Policy
) -> tuple[Tensor | None, Tensor | None]:
    """Draws what a step needs on the host: noise on logits, and a random ranking."""
    draws: list[Tensor | None] = [None, None]
    where = (inputs.seeds, step, start - inputs.prompt_length, policy.window)
    if policy.is_noisy:
        draws[0] = torch.from_numpy(token_noise(*where, model.config.rows))
    if policy.random_order:
        draws[1] = torch.from_numpy(order_noise(*where))
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
    state.is_finished = bool(state.has_ended.all())


def _is_any(tokens: Tensor, ids: tuple[int, ...]) -> Tensor | None:
    if not ids:
        return None
    # Not torch.isin: older versions of torch_npu run it on the CPU.
    return functools.reduce(torch.logical_or, (tokens == i for i in ids))


def initial_state(canvas: Int[Tensor, "B L"]) -> State:
    """The state before the first step."""
    return State(
        canvas=canvas.long(),
        order=torch.full_like(canvas, NOT_COMMITTED, dtype=torch.int32),
        confidence=torch.zeros_like(canvas, dtype=torch.float32),
        has_ended=torch.zeros(len(canvas), dtype=torch.bool, device=canvas.device),
    )
