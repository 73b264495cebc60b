"""Initial weights, by the schemes of the released class (`init_fn`).

The distributions are matched, not the random bits: another framework's generator cannot be
reproduced. Truncated normals end at three (or `init_cutoff_factor`) standard deviations.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.weights.names import Entry, entry_shape, llada_table
from npu_backend.models.names import layers_of, parameter_name

Role = Literal["embedding", "in", "attention_out", "mlp_out", "head"]


@torch.no_grad()
def initialize(model: nn.Module, config: ModelConfig, generator: torch.Generator) -> None:
    """Fills every weight of a model: matrices are drawn, norms are 1, biases 0."""
    for entry in llada_table(config):
        for layer in layers_of(config, entry):
            drawn = initial_tensor(config, entry, layer, generator)
            model.get_parameter(parameter_name(config, entry, layer)).copy_(drawn)


def initial_tensor(
    config: ModelConfig, entry: Entry, layer: int, generator: torch.Generator
) -> Tensor:
    """Draws one weight of the name table, on the generator's device, float32, as torch keeps it."""
    shape = entry_shape(config, entry)
    if len(shape) == 1:
        value = 0.0 if entry.path[-1] == "bias" else 1.0
        return torch.full(shape, value, device=generator.device)
    matrix = initial_weight(config, _role(entry), _in_out(entry, shape), layer, generator)
    return matrix if entry.path == ("wte",) else matrix.T


def initial_weight(
    config: ModelConfig, role: Role, shape: tuple[int, ...], layer: int, generator: torch.Generator
) -> Tensor:
    """Draws one weight matrix; `shape` is [in, out] ([rows, width] for the embedding).

    `layer` counts blocks from 0; only the projections back into the residual stream depend on it,
    and only under `mitchell`.

    Raises:
        UserError: `full_megatron` with llama blocks, which the released class refuses as well.
    """
    scheme, width = config.init_fn, config.d_model
    fan_in = width if role == "embedding" else shape[0]
    factor = 0.5 * math.sqrt(width) if role == "embedding" and config.scale_logits else 1.0
    if scheme == "mitchell":
        std = factor / math.sqrt(fan_in)
        if role in ("attention_out", "mlp_out"):
            std = std / math.sqrt(2.0 * (layer + 1))
        return _truncated(generator, shape, std, 3.0)
    if scheme == "normal":
        std = config.init_std * factor
        # The released class marks the feed-forward output as residual, not the attention output.
        # Qwen2's class draws all weights alike.
        is_scaled = role == "mlp_out" and not config.is_causal
        scale = 1 / math.sqrt(2 * config.n_layers) if is_scaled else 1.0
        if config.init_cutoff_factor is not None:
            return _truncated(generator, shape, std, config.init_cutoff_factor) * scale
        return _normal(generator, shape) * std * scale
    if scheme == "kaiming_normal":
        # Fan-in of a torch weight [out, in]; for an embedding [rows, width] that is the width.
        return _normal(generator, shape) * math.sqrt(2 / fan_in)
    if scheme == "fan_in":
        return _normal(generator, shape) * factor / math.sqrt(fan_in)
    if config.block_type == "llama":
        raise UserError(
            "init_fn='full_megatron' cannot initialise block_type='llama': "
            "use 'mitchell' or 'normal'"
        )
    std = {
        "embedding": config.init_std,
        "in": config.init_std,
        "attention_out": config.init_std / math.sqrt(2.0 * config.n_layers),
        "mlp_out": config.init_std / math.sqrt(2.0 * config.n_layers),
        "head": width**-0.5,
    }[role]
    return _truncated(generator, shape, std, config.init_cutoff_factor or 3.0)


def _role(entry: Entry) -> Role:
    if entry.path == ("wte",):
        return "embedding"
    if not entry.per_layer:
        return "head"
    roles: dict[str, Role] = {"attn_out": "attention_out", "ff_out": "mlp_out"}
    return roles.get(entry.path[-2], "in")


def _in_out(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if entry.transposed or entry.path == ("wte",) else shape[::-1]


def _normal(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _truncated(
    generator: torch.Generator, shape: tuple[int, ...], std: float, cutoff: float
) -> Tensor:
    drawn = torch.empty(shape, device=generator.device)
    nn.init.trunc_normal_(drawn, 0.0, 1.0, -cutoff, cutoff, generator=generator)
    return drawn * std
