"""Everything a training run changes from step to step."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from npu_backend.train.optim import Tensors, initial_moments


@dataclasses.dataclass
class TrainState:
    """Weights, optimiser and counters; the train step changes one in place.

    Tensors are named as the model names its parameters, and split over processes as those are.

    Attributes:
        step: finished steps, skipped ones included.
        params: the trained parameters of the model.
        mu: first moments of AdamW, float32.
        nu: second moments, float32.
        count: updates made.
        ema: exponential average of the weights, float32, or None.
        skipped: steps skipped in a row up to now because something was not finite.
        skipped_total: the same over the whole run.
    """

    params: Mapping[str, nn.Parameter]
    mu: Tensors
    nu: Tensors
    ema: Tensors | None
    step: int = 0
    count: int = 0
    skipped: int = 0
    skipped_total: int = 0


def initial_state(model: nn.Module, *, with_ema: bool) -> TrainState:
    """State before the first step: what of `model` wants gradients, and zeros beside it."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ema = None
    if with_ema:
        with torch.no_grad():
            ema = {name: p.detach().to(torch.float32, copy=True) for name, p in params.items()}
    return TrainState(params, initial_moments(params), initial_moments(params), ema)
