"""Memory of the JAX training step: what XLA's buffer assignment makes of it, as a formula.

The numbers of tensors kept for the backward pass are those of `jax.vjp` of a block. The sizes of
the working sets were fitted to compiled steps of random shapes, types and meshes (`COMPILERS`): for
CPUs 168 in float32, which come out within 10 %, 2 % on average; for TPUs (v5p) 73, most in
bfloat16, of which 63 come out within 10 %, 5 % on average, the worst at 22 %. `plan --compile` asks
XLA itself.

Shape letters: T tokens of a micro-batch, D model width, F inner width, K key/value width, V rows.
"""

from dataclasses import dataclass

from jaxllada.common.counting import BYTES
from jaxllada.common.plan.adapters import adapter_numbers, adapters_of
from jaxllada.common.plan.footprint import Footprint, Phase, peak
from jaxllada.common.plan.setup import CHUNK, Setup


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """How one compiler arranges buffers, in units of the tensor that each name says.

    `mlp` and `attention` are the working sets of a block's backward pass as multiples of
    ([T, F], [T, D], scores); the recomputed ones hold the block's own activations as well.
    """

    update: float
    """Gradients and directions of the update, in sizes of all weights."""
    mlp: tuple[float, float, float]
    attention: tuple[float, float, float]
    mlp_again: tuple[float, float, float]
    attention_again: tuple[float, float, float]
    head: float
    """Gradients of the head during the backward pass, in heads."""
    gathered_head: float
    """Copies of the head gathered from its shards, or converted, while the loss runs."""
    layer: float
    """Whole gradient and gathered weights of one block, in blocks."""
    loss: float
    """[T, D] tensors around the loss."""
    hiding: tuple[float, float]
    """Scores that hiding keys adds to the backward pass, kept ones and ones computed anew."""


COMPILERS = {
    "cpu": Compiler(
        update=2.0, mlp=(4, 9, 1.25), attention=(1, 8.5, 0.75), mlp_again=(6, 12, 1.25),
        attention_again=(1, 9.5, 1.75), head=1.25, gathered_head=1.25, layer=1.0, loss=8,
        hiding=(0.25, 1.25),
    ),
    "tpu": Compiler(
        update=1.75, mlp=(0, 0, 1.25), attention=(0, 1.5, 0.5), mlp_again=(6.5, 10, 0.75),
        attention_again=(0, 1.25, 1.75), head=0.75, gathered_head=0, layer=1.5, loss=0,
        hiding=(0, 0),
    ),
}  # fmt: skip


def xla_footprint(setup: Setup, compiler: str = "cpu") -> Footprint:
    """Predicts the peak of one device: arguments and temporaries of the compiled step.

    `compiler` is a key of COMPILERS. CPUs convert bfloat16 to float32, which is not predicted.
    Nothing the runtime itself takes is counted.
    """
    how = COMPILERS[compiler]
    sizes = _Sizes(setup)
    again = setup.remat in ("full", "dots")
    model, wide = setup.model, 4 * setup.tokens * setup.model.d_model
    kept = model.n_layers * kept_of_a_block(setup)
    if setup.adapter_rank:
        made = kept_of_adapters(setup)
        kept += made if again else model.n_layers * made
    is_whole = not setup.adapter_rank  # all weights are trained
    scores = 4 * sizes.scores
    converts = setup.dtype != "float32"
    gathered = (setup.fsdp > 1 or converts) * sizes.head * setup.number
    # A batch of one row copies the recomputed scores once more to hide keys in them.
    alone = setup.rows == 1 and setup.remat != "none" and how.hiding[1] > 0
    blocks = {
        "gradients": sizes.blocks
        + sizes.accumulated
        + is_whole * (how.head * 4 * sizes.head + how.layer * 4 * setup.layer / setup.tensor)
    }

    def backward(parts: tuple[float, float, float], hiding: float = 0) -> Phase:
        inner, width, attention = parts
        number = setup.number
        working = inner * sizes.inner * number + width * setup.tokens * model.d_model * number
        keys = 1.5 * sizes.keys * number if again else 0
        return blocks | {"activations": kept + working + (attention + hiding) * scores + keys}

    phases = {
        "update of the weights": {
            "gradients": sizes.trained,
            "buffers": (how.update - 1) * sizes.trained,
        },
        "loss": {
            "activations": kept + how.loss * setup.tokens * model.d_model * setup.number,
            "gradients": is_whole * 4 * sizes.head + sizes.accumulated,
            # The product of a chunk is added to the sum of the head's gradients.
            "logits": 2 * 4 * sizes.chunk + is_whole * 4 * sizes.head,
            "buffers": how.gathered_head * gathered,
        },
        "backward pass of a feed-forward part": backward(how.mlp_again if again else how.mlp),
        "backward pass of an attention": backward(
            how.attention_again if again else how.attention,
            setup.is_masked * (how.hiding[setup.remat != "none"] + alone),
        ),
        "gradient of the embedding": {
            "gradients": sizes.blocks
            + sizes.accumulated
            + is_whole * 4 * sizes.head * (1 + 0.75 / setup.fsdp),
            "activations": 3 * wide,
        },
    }
    return peak(sizes.resident, phases)


def keeps_scores(setup: Setup, kernel: str, accelerator: str) -> bool:
    """Whether attention scores exist in memory; see `models/kernels.py` for the choice."""
    if kernel == "auto" and accelerator == "gpu":
        has_cudnn = setup.dtype != "float32" and setup.model.head_dim % 8 == 0
        return not has_cudnn or setup.model.attention_dropout > 0
    return kernel not in ("cudnn", "splash")


def kept_of_a_block(setup: Setup) -> float:
    """Bytes that one block keeps from the forward for the backward pass, on one device."""
    model, tokens, number = setup.model, setup.tokens, setup.number
    sizes = _Sizes(setup)
    width = tokens * model.d_model
    if setup.remat == "full":
        return width * number
    if setup.remat == "dots":
        gates = 2 if model.block_type == "llama" else 1
        inner = gates * tokens * model.ffn_width / setup.tensor
        return number * (2 * width + width / setup.tensor + 2 * sizes.keys + inner)
    kept = sizes.inner * _kept_inner(setup)
    qk_norms = model.attention_layer_norm
    plain = 2 if not model.layer_norm_with_affine else 0
    if setup.dtype == "float32":
        split = 4 * width / setup.tensor  # queries and mixed values follow the heads
        kept += 4 * width * (9 - plain + 3 * qk_norms) + 2 * split
        kept += 4 * sizes.keys * (2 + 3 * qk_norms)
    else:
        split = width / setup.tensor
        wider = 2 if model.layer_norm_type in ("default", "low_precision") else 0
        kept += width * (number * (5 - plain - wider + qk_norms) + 4 * (4 + wider + 2 * qk_norms))
        kept += (number + 4) * split
        kept += sizes.keys * (number * (2 + qk_norms) + 4 * 2 * qk_norms)
        # Weights in the activation type are made inside the loop over blocks, and kept by it.
        kept += number * setup.layer / (setup.fsdp * setup.tensor)
    if setup.remat == "attention":
        return kept - 4 * width / setup.tensor
    kept += sizes.scores * setup.is_masked  # which of them were hidden
    return kept + sizes.scores * (4 if setup.dtype == "float32" else 4 + number)


def kept_of_adapters(setup: Setup) -> float:
    """Bytes that the adapters of a block keep beside it, or make anew with it.

    The narrow products, and with dropout a copy of every input and which numbers were dropped;
    where these are made anew, also the draws that decide it.
    """
    adapters = adapters_of(setup)
    narrow = setup.number * adapters.rank * len(adapters.inputs)
    draws = 4 if setup.remat in ("full", "dots") else 0
    copies = (setup.number + 1 + draws) * sum(adapters.inputs) if setup.adapter_drops else 0
    return setup.tokens * (narrow + copies / setup.tensor)


def _kept_inner(setup: Setup) -> float:
    """Bytes kept for each inner number of a feed-forward part."""
    is_gated = setup.model.block_type == "llama" or setup.model.activation_type == "swiglu"
    if setup.model.activation_type == "relu":  # keeps which numbers were positive
        return setup.number * (4 if is_gated else 2) + 1
    return setup.number * (6 if is_gated else 4)


class _Sizes:
    """Sizes on one device that several terms share; bytes of float32 unless named otherwise."""

    def __init__(self, setup: Setup):
        model, count = setup.model, setup.count
        shards = setup.fsdp * setup.tensor
        split, whole = count.total - count.norms, count.norms  # norms are copied everywhere
        weights = 4 * (split / shards + whole)
        self.trained, self.blocks = weights, 4 * (count.attention + count.mlp) / shards
        stored = BYTES[setup.param_dtype] / 4 * weights
        if setup.adapter_rank:
            self.trained = self.blocks = 4 * adapter_numbers(setup)
            stored += self.trained
        self.accumulated = self.trained if setup.accumulation > 1 else 0
        self.head = model.rows * model.d_model / setup.tensor  # numbers, not bytes
        self.chunk = min(CHUNK, setup.tokens) * model.rows / setup.tensor
        halved = 2 if model.activation_type == "swiglu" else 1
        self.inner = setup.tokens * model.ffn_width / halved / setup.tensor
        self.keys = setup.tokens * model.kv_heads * model.head_dim / setup.tensor
        heads = model.n_heads / setup.tensor
        self.scores = setup.tokens * heads * (setup.length if setup.scores_exist else 1)
        batch = setup.accumulation * setup.rows * (setup.length * (10 + setup.is_masked) + 4)
        self.resident = {
            "parameters": stored,
            "optimizer": 2 * self.trained,
            "average": self.trained if setup.has_average else 0,
            "buffers": batch,
        }
