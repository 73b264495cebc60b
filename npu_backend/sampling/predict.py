"""One model call of the sampler: the predicted token and its confidence for every open position.

The head is most of the work of a small model, so it runs on the open positions only. How many they
are follows from the plan: nothing is asked of the device.

Shape letters: B rows, S positions of the window, R gathered positions, K draws per position.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jaxllada.common.policy import Policy
from npu_backend.models.mask_predictor import take_rows
from npu_backend.sampling.credit import Credits, credited
from npu_backend.sampling.end_think import end_think_pull
from npu_backend.sampling.inputs import Inputs
from npu_backend.sampling.logits import read_logits
from npu_backend.sampling.reader import Body, Call, Reader
from npu_backend.sampling.smoothing import Table, expected_embedding

Head = Callable[[Any], Any]
"""The head alone: [N, D] -> float32 logits [N, V]."""

ROWS_AT_ONCE = 512
"""Positions whose logits exist at the same time: 260 MB of the released vocabulary."""


class Prediction(NamedTuple):
    """Tokens and confidences of the window; positions that are not open hold anything."""

    tokens: Int[Tensor, "B S"]
    confidence: Float[Tensor, "B S"]
    """What the trace shows: in [0, 1]."""
    score: Float[Tensor, "B S"]
    """What puts the positions in order."""
    expected: Float[Tensor, "B S D"] | None = None
    """The embedding that the model expects, if masks carry it into the next call."""


def predict(
    reader: Reader,
    body: Body,
    head: Head,
    table: Table | None,
    call: Call,
    memory: Any,
    credits: Credits | None,
    is_open: Bool[Tensor, "B S"],
    noise: Float[Tensor, "B S K"] | None,
    ranking: Float[Tensor, "B S"] | None,
    inputs: Inputs,
    policy: Policy,
    most_open: int,
) -> tuple[Prediction, Any, Credits | None]:
    """Calls the model once and reads the open positions of the window.

    No row has more than `most_open` of them. `noise` chooses tokens where there is a temperature,
    `ranking` is what chance adds to the order. Returns the memory and the credits after the call,
    too.
    """
    pulled = None
    if policy.end_think_ids:
        pulled = end_think_pull(call.canvas, is_open, call.start, inputs, policy)
    if policy.is_guided:
        without_prompt = torch.where(inputs.known, policy.mask_id, call.canvas)
        call = call._replace(canvas=torch.cat([call.canvas, without_prompt]))
        if call.soft is not None:
            call = call._replace(soft=call.soft.repeat(2, 1, 1))
    states, memory = reader.read(body, memory, call, policy)
    index = None
    if most_open < policy.window:
        # Open positions first, both kinds in order; an NPU sorts integers on its slow AiCpu.
        index = (~is_open).float().argsort(dim=1, stable=True)[:, :most_open]
        states = take_rows(states, index.repeat(2 if policy.is_guided else 1, 1))
    shape = (len(is_open), most_open)
    states = states.flatten(0, 1)
    if noise is not None:
        noise = noise.flatten(0, 1) if index is None else take_rows(noise, index).flatten(0, 1)
    own = None
    if credits is not None:
        own = [x if index is None else x.gather(1, _over(x, index)) for x in credits]
        own = [x.flatten(0, 1) for x in own]
    parts = []
    count = shape[0] * shape[1]
    if pulled is not None:
        pulled = [
            _at_first_open(value, is_open, shape, gathered=index is not None) for value in pulled
        ]
    for first in range(0, count, ROWS_AT_ONCE):
        rows = slice(first, min(count, first + ROWS_AT_ONCE))
        logits = head(states[rows])
        if policy.is_guided:
            unconditional = head(states[rows.start + count : rows.stop + count])
            logits = unconditional + (inputs.cfg_scale + 1) * (logits - unconditional)
        expected = () if table is None else (expected_embedding(logits, table),)
        if pulled is not None:
            token, pull = (value[rows, None] for value in pulled)
            logits = logits.scatter_add(1, token, pull)
        gained = ()
        if own is not None:
            before = Credits(*(value[rows] for value in own))
            logits, gained = credited(logits, before, call.number, inputs, policy)
        draws = None if noise is None else noise[rows]
        parts.append((*read_logits(logits, draws, inputs, policy), *gained, *expected))
    values = [torch.cat(value).unflatten(0, shape) for value in zip(*parts, strict=True)]
    if index is not None:
        # What is not open keeps nothing: it will not be predicted again.
        values = [_scatter(value, index, policy) for value in values]
    prediction = Prediction(*values[:3])
    if own is not None:
        credits = Credits(*values[3:5])
    if table is not None:
        prediction = prediction._replace(expected=values[-1])
    if ranking is not None and policy.rank == "random":
        prediction = prediction._replace(confidence=ranking, score=ranking)
    elif ranking is not None:
        # The largest of scores with Gumbel noise are draws without putting back.
        noisy = prediction.score / inputs.order_temperature + ranking
        prediction = prediction._replace(score=noisy)
    return prediction, memory, credits


def _at_first_open(
    values: Tensor, is_open: Bool[Tensor, "B S"], shape: tuple[int, int], *, gathered: bool
) -> Tensor:
    """Puts a value per row at its first open position, among all rows that the head reads."""
    place = torch.zeros_like(values, dtype=torch.long)
    if not gathered:
        place = (is_open.int().cumsum(dim=1) == 0).sum(dim=1).clamp(max=shape[1] - 1)
    return values.new_zeros(shape).scatter_(1, place[:, None], values[:, None]).flatten()


def _scatter(values: Tensor, index: Int[Tensor, "B R"], policy: Policy) -> Tensor:
    blank = values.new_zeros(len(index), policy.window, *values.shape[2:])
    return blank.scatter_(1, _over(values, index), values)


def _over(values: Tensor, index: Int[Tensor, "B R"]) -> Tensor:
    """The index repeated over what a position has of the values."""
    rest = values.shape[2:]
    return index.view(*index.shape, *[1] * len(rest)).expand(-1, -1, *rest)
