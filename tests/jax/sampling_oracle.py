"""The slow loop of `tests/plain_loop.py` on JAX's random numbers, and a JAX model of tables."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllada.sampling.gumbel import gumbel
from tests import plain_loop as slow
from tests.plain_loop import TABLE_CONFIG, softmax, tables

__all__ = ["TableModel", "plain_loop", "softmax"]


@jax.jit
def slot_key(row_key, step, slot):
    """Key of one position in one step; slots count from the start of the answer."""
    return jax.random.fold_in(jax.random.fold_in(row_key, step), slot)


@functools.partial(jax.jit, static_argnames="size")
def draw_noise(key, size):
    return gumbel(jax.random.fold_in(key, 0), size)


@jax.jit
def draw_uniform(key):
    return jax.random.uniform(jax.random.fold_in(key, 1))


def plain_loop(logits_of, prompt, config, model, attention_mask=None, row_keys=None):
    """Yields the canvas after every step; row i draws from `row_keys[i]`."""

    def choose(row, slot, logits, step):
        noise = draw_noise(slot_key(row_keys[row], step, slot), len(logits))
        return np.argmax(logits + np.float32(config.temperature) * np.asarray(noise))

    def rank(row, slot, step):
        return draw_uniform(slot_key(row_keys[row], step, slot))

    return slow.plain_loop(logits_of, prompt, config, model, attention_mask, choose, rank)


class TableModel(nnx.Module):
    """Logits from a table by position, plus a term per visible token of the canvas."""

    config = TABLE_CONFIG
    compute = SimpleNamespace(dtype=jnp.float32)
    head_bias, logit_scale = None, 1.0

    def __init__(self, seed=0, favourite=None):
        table, effect = tables(seed, favourite)
        self.table, self.effect = nnx.Param(jnp.asarray(table)), nnx.Param(jnp.asarray(effect))
        self.head_weight = nnx.Param(jnp.eye(len(effect)))

    def unstacked(self):
        return None

    def rotation(self, position_ids):
        return position_ids

    def hidden(self, tokens, attention_mask=None, *, turn=None, window=None, blocks=None):
        position_ids = jnp.arange(tokens.shape[1])[None] if turn is None else turn
        effect = self.effect[...][tokens]
        if attention_mask is not None:
            effect = effect * (attention_mask != 0)[..., None]
        rows = self.table[...][position_ids] + jnp.sum(effect, axis=1, keepdims=True)
        return rows if window is None else jax.lax.dynamic_slice_in_dim(rows, *window, axis=1)

    def __call__(self, tokens, attention_mask=None):
        return self.hidden(tokens, attention_mask)
