"""What entry points share: arguments on the host, and a model run for its outputs alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; the model's mode comes back afterwards.

    Not `torch.inference_mode`: weights that a sharded model gathers inside are trained later.
    """
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if was_training:
            model.train()


def on_host(values: Any) -> Any:
    """Tensors as NumPy arrays, anything else as it is."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def draw_seed(generator: torch.Generator) -> int:
    """Takes a number below 2**62 from a generator of any device."""
    drawn = torch.randint(2**31, (2,), generator=generator, device=generator.device)
    high, low = drawn.tolist()
    return high << 31 | low
