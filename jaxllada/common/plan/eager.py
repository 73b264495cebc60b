"""Memory of the torch training step: what the caching allocator has handed out at the peak.

Counted along the step of `npu_backend`: what autograd keeps of each operator, what FSDP2 gathers
and reduces, what the memory-bounded loss holds. Six numbers of working sets were fitted to runs of
the step on torch_npu's allocator (`_BACKWARD`). Blocks the allocator holds but nobody uses are not
counted, nor workspaces of kernels and HCCL's buffers: a lower bound.

Shape letters: T tokens of a micro-batch, D model width, F inner width, K key/value width, V rows.
"""

from dataclasses import dataclass

from jaxllada.common.counting import BYTES
from jaxllada.common.plan.adapters import Adapters, adapters_of
from jaxllada.common.plan.footprint import Footprint, Phase, peak
from jaxllada.common.plan.setup import Setup

CHUNK = 1024
"""Rows whose logits exist at one time in the memory-bounded loss on a device."""
_STATISTICS = 64
"""Bytes that fused attention keeps for each token and head: maximum and sum, eight times each."""


@dataclass(frozen=True)
class _Backward:
    """Working set of a block's backward pass, beside what the block keeps."""

    inner: float = 2.0  # [T, F] tensors
    width: float = 3.0  # [T, D] tensors
    keys: float = 1.0  # [T, K] tensors
    after: float = 4.0  # [T, D] tensors when the gradients of a block are summed
    gathered: float = 2.0  # blocks whose split weights are whole at one time
    largest: float = 0.3  # largest weight of a block, in blocks


_BACKWARD = _Backward()


def eager_footprint(setup: Setup, *, fused: bool = True, communication: int = 0) -> Footprint:
    """Predicts the bytes allocated on one device.

    Args:
        fused: whether Ascend's kernels are used; without them attention holds all its scores.
        communication: bytes that collectives take beside the allocator.
    """
    work = _Work(setup, fused)
    kept, again = work.kept, work.again
    layers, head, done = setup.model.n_layers, work.head_gradient, work.finished_gradients
    inside = again + work.working
    phases = {
        "loss": {
            "activations": layers * kept + 4 * work.width,
            "gradients": work.head_sum + work.accumulated,
            "logits": work.logits,
            "buffers": work.root + work.head_cast,
        },
        "backward pass of the last block": work.phase(layers * kept + inside, head, work.middle),
        "end of the last block's backward pass": work.phase(
            layers * kept + work.after, head, work.end
        ),
        "backward pass of the first block": work.phase(kept + inside, head + done, work.middle),
        "end of the first block's backward pass": work.phase(work.after, head + done, work.end),
        "gradient of the embedding": work.embedding(),
        "update of the weights": {"gradients": work.weights},
    }
    return peak({**work.resident(), "communication": communication}, phases)


class _Work:
    """Bytes on one device that the phases are made of."""

    def __init__(self, setup: Setup, fused: bool):
        self.setup, self.fused = setup, fused
        model, count = setup.model, setup.count
        self.number = number = setup.number
        self.is_split = setup.fsdp > 1
        self.adapters: Adapters | None = adapters_of(setup) if setup.adapter_rank else None
        tokens = setup.tokens
        self.width = number * tokens * model.d_model
        self.inner = number * tokens * model.ffn_width / _halved(setup)
        self.keys = number * tokens * model.kv_heads * model.head_dim
        self.scores = tokens * model.n_heads * setup.length
        self.head = model.rows * model.d_model  # numbers
        self.roots = self.head * (1 if model.weight_tying else 2)
        trained = self.adapters.total if self.adapters else count.total
        self.weights = 4 * trained / setup.fsdp  # of float32 gradients, moments, ...
        # Gradients that are there through the whole pass: those of the micro-batch before, and the
        # buckets from which DistributedDataParallel sums.
        self.accumulated = self.weights if setup.accumulation > 1 else 0
        if setup.data > 1 and not self.is_split:
            self.accumulated += self.weights
        self.converts = setup.param_dtype != setup.dtype and not self.is_split
        self.casts = number * setup.layer if self.converts else 0
        self.head_cast = number * self.head if self.converts else 0
        self.root = number * self.roots if self.is_split else 0

    def resident(self) -> Phase:
        """What is there all the time."""
        setup = self.setup
        base = BYTES[setup.param_dtype] * setup.count.total / setup.fsdp
        own = self.weights if self.adapters else 0
        hidden = setup.tokens * setup.length * setup.is_masked * (1 if self.fused else 4)
        batch = setup.accumulation * setup.rows * (setup.length * 15 + 8)
        return {
            "parameters": base + own,
            "optimizer": 2 * self.weights,
            "average": self.weights if setup.has_average else 0,
            "buffers": hidden + batch,
        }

    @property
    def _kept_whole(self) -> tuple[float, float]:
        """What a block keeps when nothing is recomputed: (all but attention, attention)."""
        setup, wide = self.setup, 4 * self.setup.tokens * self.setup.model.d_model
        gates = 2 if setup.model.block_type == "llama" or _halved(setup) == 2 else 1
        inner = (gates + 1 if self.fused and gates == 2 else gates + 2) * self.inner
        widths = 8 * self.width + 2 * self.keys
        if setup.model.attention_layer_norm:
            widths += 2 * (self.width + self.keys)
        if not self.fused and setup.dtype != "float32":
            widths += 2 * (wide - self.width)  # norms keep their input in float32
        if self.adapters:
            widths += self.adapters.kept(setup)
            inner += self.adapters.kept_inner(setup)
        if self.fused:
            attention = _STATISTICS * setup.tokens * setup.model.n_heads
        elif setup.dtype == "float32":
            attention = 4 * self.scores + 2 * self.width
        else:
            attention = (4 + self.number) * self.scores + 3 * wide
        return widths + inner, attention

    @property
    def kept(self) -> float:
        """What a block keeps from the forward for the backward pass."""
        rest, attention = self._kept_whole
        gates = 2 if self.setup.model.block_type == "llama" else _halved(self.setup)
        products = 3 * self.width + 2 * self.keys + gates * self.inner
        products *= 2 if self.adapters else 1  # a product beside each product
        return {
            "none": rest + attention + self.casts,
            "attention": rest + self.casts,
            "dots": self.width + products,
            "full": self.width,
        }[self.setup.remat]

    @property
    def again(self) -> float:
        """What is made anew of a block before its backward pass."""
        rest, attention = self._kept_whole
        if self.setup.remat == "none":
            return 0
        return (
            attention
            if self.setup.remat == "attention"
            else (rest + attention + self.casts - self.kept)
        )

    @property
    def working(self) -> float:
        """Gradients of activations inside a block."""
        how = _BACKWARD
        scores = 0 if self.fused else 4 * self.scores
        return how.inner * self.inner + how.width * self.width + how.keys * self.keys + scores

    @property
    def after(self) -> float:
        return _BACKWARD.after * self.width

    @property
    def middle(self) -> float:
        """Whole weights, or the largest gradient, in the middle of a block."""
        layer = self.setup.layer
        if self.is_split:
            return _BACKWARD.gathered * self.number * layer
        return 0 if self.adapters else 4 * _BACKWARD.largest * layer

    @property
    def end(self) -> float:
        """The next block's whole weights, and gradients of this one on their way to float32."""
        if not self.is_split:
            return 0
        trained = self.adapters.layer if self.adapters else self.setup.layer
        return self.number * self.setup.layer + (self.number + 4) * trained

    @property
    def logits(self) -> float:
        """Logits of a chunk and what they are rounded to, or the head's gradient rounded."""
        setup = self.setup
        rows = min(CHUNK, max(1, setup.tokens // 2))  # half of the tokens are masked
        each = 4 if setup.dtype == "float32" else 4 + self.number
        rounded = 0 if setup.dtype == "float32" or self.adapters else self.number * self.head
        return max(each * rows * setup.model.rows, rounded)

    @property
    def head_sum(self) -> float:
        """Sum over chunks of the head's gradient, float32."""
        return 0 if self.adapters else 4 * self.head

    @property
    def head_gradient(self) -> float:
        """The head's gradient during the backward pass of the blocks."""
        if self.adapters:
            return 0
        if self.is_split:
            return self.number * self.head
        return 4 * self.head

    @property
    def finished_gradients(self) -> float:
        """Gradients of all blocks but the one under way."""
        if self.accumulated or self.adapters:
            return 0
        setup = self.setup
        blocks = self.weights - 4 * self.roots / setup.fsdp
        return blocks * (setup.model.n_layers - 1) / setup.model.n_layers

    def phase(self, activations: float, gradients: float, buffers: float) -> Phase:
        """A moment in the backward pass of the blocks."""
        whole = self.root + self.head_cast * (self.setup.model.n_layers > 0)
        return {
            "activations": activations,
            "gradients": gradients + self.accumulated,
            "buffers": buffers + whole,
        }

    def embedding(self) -> Phase:
        """The end of the backward pass: the roots' gradients, whole before they are split."""
        setup = self.setup
        if self.adapters:
            return {"gradients": self.weights, "buffers": self.root}
        if not self.is_split:
            twice = self.accumulated > 0 or setup.model.weight_tying
            fresh = 4 * self.head if twice else 0
            return {"gradients": self.weights + fresh, "activations": 2 * self.width}
        before = self.accumulated or self.weights - 4 * self.roots / setup.fsdp
        whole = self.number * self.roots
        sums = 4 * self.roots * (1 + 1 / setup.fsdp)
        return {
            "gradients": before + whole,
            "buffers": max(self.root, sums),
            "activations": 2 * self.width,
        }


def _halved(setup: Setup) -> int:
    return 2 if setup.model.activation_type == "swiglu" else 1
