"""The published sampler, transcribed as a slow loop, and a model whose logits can be dictated.

`plain_loop` follows `generate` of the LLaDA release line by line in NumPy; the source of the
random numbers and the tie rule (lowest index) are ours, and the rules without `compat`: no mask is
predicted, end tokens that are held back come last.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxllada.common.config.model import ModelConfig
from jaxllada.sampling.gumbel import gumbel


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


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def plain_loop(logits_of, prompt, config, model, attention_mask=None, row_keys=None):
    """Yields the canvas after every step.

    `logits_of(canvas, attention_mask)` returns NumPy logits [rows, length, vocabulary].
    """
    rows, prompt_length = prompt.shape
    length = prompt_length + config.gen_length
    mask_id, eos_id, eot_id = model.mask_token_id, model.eos_token_id, config.eot_token_id
    official = config.compat == "official-2025"
    x = np.full((rows, length), mask_id, np.int32)
    x[:, :prompt_length] = prompt
    visible = np.ones((rows, length), np.int32)
    if attention_mask is not None:
        visible[:, :prompt_length] = attention_mask
    known = x != mask_id
    steps_per_block = config.steps // config.num_blocks
    step = -1
    for block in range(config.num_blocks):
        start = prompt_length + block * config.block_length
        end = start + config.block_length
        masks = (x[:, start:end] == mask_id).sum(axis=1)
        for j in range(steps_per_block):
            counts = masks // steps_per_block + (j < masks % steps_per_block)
            if (counts == 0).all():
                continue
            step += 1
            is_mask = x == mask_id
            logits = logits_of(x, visible).astype(np.float32)
            if config.cfg_scale > 0:
                without = logits_of(np.where(known, mask_id, x), visible).astype(np.float32)
                logits = without + np.float32(config.cfg_scale + 1) * (logits - without)
            if config.logits_eos_inf:
                logits[..., eos_id] = -np.inf
            noisy = logits.copy()
            if config.temperature > 0:
                noisy += np.float32(config.temperature) * noise_like(
                    logits, row_keys, step, prompt_length
                )
            if not official:
                noisy[..., mask_id] = -np.inf
            x0 = noisy.argmax(axis=-1)
            ends = [eos_id] if eot_id is None else [eos_id, eot_id]
            late = np.zeros(x.shape, bool)
            if config.confidence_eos_eot_inf and official:
                logits[..., eot_id] = -np.inf
                if config.temperature == 0:
                    logits[..., eos_id] = -np.inf
            elif config.confidence_eos_eot_inf:
                late = np.isin(x0, ends)
            if config.remasking == "random":
                confidence = uniform_like(x, row_keys, step, prompt_length)
            else:
                confidence = np.take_along_axis(softmax(logits), x0[..., None], axis=-1)[..., 0]
            for row in range(rows):
                candidates = [i for i in range(end) if is_mask[row, i]]
                ranked = sorted(candidates, key=lambda i: (late[row, i], -confidence[row, i], i))
                chosen = ranked[: counts[row]]
                x[row, chosen] = x0[row, chosen]
            yield x.copy()


def noise_like(logits, row_keys, step, prompt_length):
    rows, length, vocabulary = logits.shape
    return np.array(
        [
            [
                draw_noise(slot_key(row_keys[row], step, i - prompt_length), vocabulary)
                for i in range(length)
            ]
            for row in range(rows)
        ]
    )


def uniform_like(x, row_keys, step, prompt_length):
    return np.array(
        [
            [
                draw_uniform(slot_key(row_keys[row], step, i - prompt_length))
                for i in range(x.shape[1])
            ]
            for row in range(x.shape[0])
        ]
    )


class TableModel(nnx.Module):
    """Logits from a table by position, plus a term per visible token of the canvas.

    All numbers are multiples of 1/8, so that sums do not depend on their order.
    """

    config = ModelConfig(
        d_model=32, n_heads=4, n_layers=1, vocab_size=32, embedding_size=32, rope=True,
        activation_type="silu", block_type="llama", max_sequence_length=128,
        mask_token_id=31, eos_token_id=30, pad_token_id=30,
    )  # fmt: skip
    compute = SimpleNamespace(dtype=jnp.float32)
    head_bias, logit_scale = None, 1.0

    def __init__(self, seed=0, favourite=None):
        rng = np.random.default_rng(seed)
        vocabulary = self.config.vocab_size
        table = rng.integers(-16, 16, (128, vocabulary)) / 8
        table[:, self.config.mask_token_id] = -64
        if favourite is not None:
            table[:, favourite] = 8
        self.table = nnx.Param(jnp.asarray(table, jnp.float32))
        effect = rng.integers(-8, 8, (vocabulary, vocabulary)) / 8
        effect[self.config.mask_token_id] = 0
        effect[:, self.config.mask_token_id] = 0
        self.effect = nnx.Param(jnp.asarray(effect, jnp.float32))
        self.head_weight = nnx.Param(jnp.eye(vocabulary))

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
