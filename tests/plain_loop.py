"""The published sampler, transcribed as a slow loop in NumPy, and tables to dictate logits with.

`plain_loop` follows `generate` of the LLaDA release line by line; where the random numbers come
from is the caller's affair, the tie rule (lowest index) is ours, and so are the rules without
`compat`: no mask is predicted, end tokens that are held back come last.
"""

import functools

import numpy as np

from jaxllada.common.config.model import ModelConfig

TABLE_CONFIG = ModelConfig(
    d_model=32, n_heads=4, n_layers=1, vocab_size=32, embedding_size=32, rope=True,
    activation_type="silu", block_type="llama", max_sequence_length=128,
    mask_token_id=31, eos_token_id=30, pad_token_id=30,
)  # fmt: skip


def tables(seed=0, favourite=None):
    """Logits by position [128, V], and what each visible token adds to all of them [V, V].

    All numbers are multiples of 1/8, so that sums do not depend on their order.
    """
    rng = np.random.default_rng(seed)
    vocabulary = TABLE_CONFIG.vocab_size
    table = rng.integers(-16, 16, (128, vocabulary)) / 8
    table[:, TABLE_CONFIG.mask_token_id] = -64
    if favourite is not None:
        table[:, favourite] = 8
    effect = rng.integers(-8, 8, (vocabulary, vocabulary)) / 8
    effect[TABLE_CONFIG.mask_token_id] = 0
    effect[:, TABLE_CONFIG.mask_token_id] = 0
    return table.astype(np.float32), effect.astype(np.float32)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def plain_loop(logits_of, prompt, config, model, attention_mask=None, choose=None, rank=None):
    """Yields the canvas after every step.

    `logits_of(canvas, attention_mask)` returns NumPy logits [rows, length, vocabulary].
    `choose(row, slot, logits, step=)` draws a token at the config's temperature, and
    `rank(row, slot, step=)` the number that decides a random order; slots count from the start of
    the answer.
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
            choice = logits.copy()
            if not official:
                choice[..., mask_id] = -np.inf
            x0 = choice.argmax(axis=-1)
            if config.temperature > 0:
                draw = functools.partial(choose, step=step)
                x0 = per_place(draw, x.shape, prompt_length, choice).astype(np.int64)
            ends = [eos_id] if eot_id is None else [eos_id, eot_id]
            late = np.zeros(x.shape, bool)
            if config.confidence_eos_eot_inf and official:
                logits[..., eot_id] = -np.inf
                if config.temperature == 0:
                    logits[..., eos_id] = -np.inf
            elif config.confidence_eos_eot_inf:
                late = np.isin(x0, ends)
            if config.remasking == "random":
                confidence = per_place(functools.partial(rank, step=step), x.shape, prompt_length)
            else:
                confidence = np.take_along_axis(softmax(logits), x0[..., None], axis=-1)[..., 0]
            for row in range(rows):
                candidates = [i for i in range(end) if is_mask[row, i]]
                ranked = sorted(candidates, key=lambda i: (late[row, i], -confidence[row, i], i))
                chosen = ranked[: counts[row]]
                x[row, chosen] = x0[row, chosen]
            yield x.copy()


def per_place(value, shape, prompt_length, logits=None):
    """Calls `value(row, slot[, logits])` for every position of a canvas."""

    def call(row, i):
        given = () if logits is None else (logits[row, i],)
        return value(row, i - prompt_length, *given)

    return np.array([[call(row, i) for i in range(shape[1])] for row in range(shape[0])])
