"""Models for the kernel of all blocks, and its oracle: the blocks in float64."""

import dataclasses
import functools

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.presets import preset
from jaxllada.models import packed
from jaxllada.models.family import abstract_model
from jaxllada.models.packed import pack
from jaxllada.native import blocks as native
from jaxllada.native import build, head


def forget():
    for cached in (build.library, native._kernel, head._kernel, head._has_tiles):
        cached.cache_clear()


def turned_on(monkeypatch):
    """Kernels for one test, which is skipped where there is no matrix unit."""
    monkeypatch.setenv("JAXLLADA_NATIVE", "1")
    forget()
    if not build.cpu_has(*native.UNIT):
        pytest.skip("this CPU has no matrix unit")
    assert build.library("body") is not None
    if not native.has_kernel("float32"):
        pytest.skip("the system does not let the matrix unit be used")
    yield
    forget()


PLAIN = dataclasses.replace(preset("tiny"), rope_theta=100.0)


def shapes(compute=None, **changes):
    return _shapes(dataclasses.replace(PLAIN, **changes), ComputeConfig(**compute or {}))


_shapes = functools.cache(abstract_model)


def make(seed=0, dtype="float32", **changes):
    """A model whose blocks change what goes in as much as it is."""
    empty = shapes({"dtype": dtype}, **changes)
    layers = empty.config.n_layers
    draw = np.random.default_rng(seed)

    def fill(leaf):
        is_norm = leaf.ndim == 1 or (leaf.ndim == 2 and len(leaf) == layers)
        weight = draw.normal(size=leaf.shape)
        weight = 1 + weight / 4 if is_norm else weight / np.sqrt(leaf.shape[-2])
        return jax.device_put(weight.astype(dtype))

    return jax.tree.map(fill, empty)


def inputs(model, rows, length, seed=1):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, length, model.config.d_model)).astype(model.compute.dtype)
    # Rows begin at places of their own, as behind padding.
    return jax.device_put(x), np.maximum(np.arange(length) - 3 * np.arange(rows)[:, None], 0)


def half(y):
    return y.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


class Blocks:
    """The blocks in float64, with the keys and values [N, B, kv_heads, L, H] they keep.

    `half` puts in the roundings of a model that computes in bfloat16.
    """

    def __init__(self, model, length=0, rows=0, round=lambda y: y):
        def wide(param):
            return np.asarray(param[...]).astype(np.float64)

        blocks, c = model.blocks, model.config
        self.config, self.round = c, round
        self.norms = wide(blocks.attn_norm.weight), wide(blocks.ff_norm.weight)
        self.weights = [wide(layer.kernel) for layer in packed._layers(blocks)]
        self.k, self.v = np.zeros((2, c.n_layers, rows, c.kv_heads, length, c.head_dim))

    def heads(self, y, positions=None):
        """Splits the heads [B, heads, R, H], turned to their positions."""
        width = self.config.head_dim
        y = y.reshape(*y.shape[:2], -1, width).swapaxes(1, 2)
        if positions is None:
            return y
        frequency = self.config.rope_theta ** -(np.arange(0, width, 2) / width)
        angle = positions[:, None, :, None] * frequency
        a, b = np.split(y, 2, axis=-1)
        cos, sin = np.cos(angle), np.sin(angle)
        return self.round(np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1))

    def normed(self, x, weight):
        factor = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self.config.rms_norm_eps)
        return self.round(self.round(x / factor) * weight)

    def run(self, x, positions, visible=None, *, start=0, span=None, window=None):
        """As `PackedBlocks.run`."""
        c, round, count = self.config, self.round, x.shape[1]
        x = np.asarray(x).astype(np.float64)
        first, last = span or (0, count)
        for layer in range(c.n_layers):
            q, k, v, out, gate, up, down = (weight[layer] for weight in self.weights)
            y = self.normed(x, self.norms[0][layer])
            place = np.s_[:, :, start + first : start + last]
            self.k[layer][place] = self.heads(round(y @ k), positions)[:, :, first:last]
            self.v[layer][place] = self.heads(round(y @ v))[:, :, first:last]
            groups = c.n_heads // c.kv_heads
            keys, values = (np.repeat(z[layer], groups, axis=1) for z in (self.k, self.v))
            queries = self.heads(round(y @ q), positions)
            scores = queries @ keys.swapaxes(-1, -2) / np.sqrt(c.head_dim)
            scores = scores if visible is None else np.where(visible, scores, -1e30)
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = round(round(weight) @ values / weight.sum(-1, keepdims=True))
            x = round(x + round(mixed.swapaxes(1, 2).reshape(x.shape) @ out))
            y = self.normed(x, self.norms[1][layer])
            inner = round(y @ gate)
            inner = round(round(inner / (1 + np.exp(-inner))) * round(y @ up))
            x = round(x + round(inner @ down))
        origin, size = window or (0, count)
        return x[:, origin : origin + size]


def oracle(model, x, positions, visible=None, **options):
    blocks = Blocks(model, x.shape[1], len(x))
    return blocks.run(x, positions, visible, **options)


@functools.partial(jax.jit, static_argnames="window")
def computed(model, x, positions, visible=None, window=None):
    return pack(model).run(x, model.rotation(positions), visible, window=window)[0]


def close(found, expected):
    """Compares with numbers of about one to ten."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def error(found, expected):
    found = np.asarray(found).astype(np.float64)
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
