"""Sizes of low-rank adapters and of what their layers keep for the backward pass."""

from dataclasses import dataclass

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.plan.setup import Setup
from jaxllada.common.weights.adapter import target_paths


@dataclass(frozen=True)
class Adapters:
    """Adapters of rank r on some dense layers of every block: numbers of trained weights.

    `inputs` lists the width of the input of every adapted layer.
    """

    layer: int
    total: int
    rank: int
    inputs: tuple[int, ...]
    width: int

    def kept(self, setup: Setup) -> float:
        """Bytes kept beyond those of trained dense layers, apart from the inner width.

        The normalised activations are not kept, as the weights of norms are frozen. With dropout
        every adapted layer keeps its own copy of its input, and which numbers were dropped.
        """
        wide = sum(width for width in self.inputs if width == self.width)
        copies = (setup.number + 1) * wide if setup.adapter_drops else 0
        narrow = setup.number * len(self.inputs) * self.rank
        return setup.tokens * (copies + narrow - 2 * setup.number * self.width)

    def kept_inner(self, setup: Setup) -> float:
        """The same for inputs of the inner width."""
        inner = sum(width for width in self.inputs if width != self.width)
        return setup.tokens * (setup.number + 1) * inner if setup.adapter_drops else 0


def adapters_of(setup: Setup) -> Adapters:
    """Returns the adapters of a run; raises UserError for a layer no block has."""
    model, rank = setup.model, setup.adapter_rank
    shapes = [_shape(model, path[-1]) for path in target_paths(model, setup.adapter_targets)]
    layer = sum(rank * (inner + outer) for inner, outer in shapes)
    inputs = tuple(inner for inner, _ in shapes)
    return Adapters(layer, layer * model.n_layers, rank, inputs, model.d_model)


def adapter_numbers(setup: Setup) -> float:
    """Numbers on one device of a mesh of JAX, which splits the sides as wide as the model."""
    model, rank, split = setup.model, setup.adapter_rank, 0.0
    for path in target_paths(model, setup.adapter_targets):
        inner, outer = _shape(model, path[-1])
        wide, other = (outer, inner) if path[-1] in ("attn_out", "ff_out") else (inner, outer)
        split += rank * (wide / setup.fsdp + other)
    return split * model.n_layers


def _shape(model: ModelConfig, name: str) -> tuple[int, int]:
    """(input, output) width of a dense layer of a block."""
    width, keys, ffn = model.d_model, model.kv_heads * model.head_dim, model.ffn_width
    inner = ffn // 2 if model.activation_type == "swiglu" else ffn
    return {
        "q_proj": (width, width),
        "k_proj": (width, keys),
        "v_proj": (width, keys),
        "attn_out": (width, width),
        "ff_proj": (width, ffn),
        "up_proj": (width, ffn),
        "ff_out": (inner, width),
    }[name]
