"""Self-attention of the mask predictor (LLaDA, arXiv:2502.09992v3, section 2.1).

Shape letters: B batch, L positions, Q query positions, D model width, H head width.
"""

import functools

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.models.kernels import attend
from jaxllada.models.linear import Linear
from jaxllada.models.norm import Norm
from jaxllada.models.rope import Rotation, rotate

Window = tuple[Int[Array, ""] | int, int]
"""First row (may be traced) and number of rows (static) of a slice of positions."""


def take_window(x: Array, window: Window | None, axis: int = 1) -> Array:
    """Slices rows `window` out of `axis`; None takes all, as does an axis of length one."""
    if window is None or x.shape[axis] == 1:
        return x
    return jax.lax.dynamic_slice_in_dim(x, window[0], window[1], axis)


class Attention(nnx.Module):
    """Grouped-query attention without a causal mask; weights are named as in the release."""

    def __init__(
        self,
        config: ModelConfig,
        compute: ComputeConfig,
        *,
        layer: Int[Array, ""] | int,
        key: PRNGKeyArray,
    ):
        self.config, self.compute = config, compute
        width, kv_width = config.d_model, config.kv_heads * config.head_dim
        bias = config.include_bias or config.include_qkv_bias
        keys = jax.random.split(key, 4)
        self.q_proj = Linear(config, compute, (width, width), "in", bias=bias, key=keys[0])
        self.k_proj = Linear(config, compute, (width, kv_width), "in", bias=bias, key=keys[1])
        self.v_proj = Linear(config, compute, (width, kv_width), "in", bias=bias, key=keys[2])
        self.attn_out = Linear(
            config, compute, (width, width), "attention_out",
            bias=config.include_bias, key=keys[3], layer=layer,
        )  # fmt: skip
        affine = config.attention_layer_norm_with_affine
        has_norm = config.attention_layer_norm
        self.q_norm = Norm(config, compute, width, affine=affine) if has_norm else None
        self.k_norm = Norm(config, compute, kv_width, affine=affine) if has_norm else None

    def __call__(
        self,
        x: Float[Array, "B L D"],
        turn: Rotation,
        visible: Bool[Array, "#B #heads #L L"] | None = None,
        bias: Float[Array, "#B #heads #L L"] | None = None,
        *,
        window: Window | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "B Q D"]:
        """Mixes positions; with a window, only its rows ask and come out.

        `visible[b, h, q, k]` lets query q see key k, `bias` is added to the scores; None shows
        everything. `key` turns the dropout of attention weights on.
        """
        here: Rotation = (take_window(turn[0], window), take_window(turn[1], window))
        q, k, v = self.queries(take_window(x, window), here), self.keys(x, turn), self.values(x)
        visible = None if visible is None else take_window(visible, window, axis=2)
        bias = None if bias is None else take_window(bias, window, axis=2)
        mix = functools.partial(
            attend,
            implementation=self.compute.attention,
            dropout_rate=self.config.attention_dropout,
        )
        if self.compute.remat == "attention":
            mix = jax.checkpoint(mix)
        return self.output(mix(q, k, v, visible=visible, bias=bias, key=key))

    def queries(self, x: Float[Array, "B L D"], turn: Rotation) -> Float[Array, "B L heads H"]:
        """Returns the rotated queries of these rows."""
        q = self.q_proj(x)
        return self._turned(q if self.q_norm is None else self.q_norm(q), turn)

    def keys(self, x: Float[Array, "B L D"], turn: Rotation) -> Float[Array, "B L kv_heads H"]:
        """Returns the rotated keys of these rows: they depend on no other row."""
        k = self.k_proj(x)
        return self._turned(k if self.k_norm is None else self.k_norm(k), turn)

    def values(self, x: Float[Array, "B L D"]) -> Float[Array, "B L kv_heads H"]:
        """Returns the values of these rows."""
        return self._heads(self.v_proj(x))

    def look(
        self,
        q: Float[Array, "B Q heads H"],
        k: Float[Array, "B kv_heads K H"],
        v: Float[Array, "B kv_heads K H"],
        visible: Bool[Array, "#B #heads #Q K"] | None,
    ) -> Float[Array, "B Q D"]:
        """Attends to keys and values that are kept, heads before positions."""
        kernel = self.compute.attention
        out = attend(q, k, v, visible=visible, implementation=kernel, heads_first=True)
        return self.output(out)

    def output(self, mixed: Float[Array, "B Q heads H"]) -> Float[Array, "B Q D"]:
        """Joins the heads."""
        return self.attn_out(mixed.reshape(*mixed.shape[:2], -1))

    def _turned(self, y: Float[Array, "B L width"], turn: Rotation) -> Array:
        # Norms run over the whole width, before the heads are split.
        return rotate(self._heads(y), turn, full_precision=self.config.rope_full_precision)

    def _heads(self, y: Float[Array, "B L width"]) -> Float[Array, "B L some_heads H"]:
        return y.reshape(*y.shape[:2], -1, self.config.head_dim)
