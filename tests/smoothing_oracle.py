"""Iteration smoothing, falling thresholds and aligned blocks as one slow loop in NumPy.

One prompt at a time in float64, on the readers of `tests/cache_oracle.py`: what enters a call is a
list of embeddings that the loop itself keeps. dInfer (arXiv:2510.08666v2): masks get w times the
expected embedding, w = min(start + growth * call, weight); thresholds fall as 1 - decay * call.
"""

import numpy as np

from jaxllada.common.unmasking import transfer_counts
from tests.cache_oracle import PlainModel, none

PLAN = {"steps": 16, "gen_length": 16, "block_length": 8}
# Two prompts of different length, padded on the left.
PROMPTS = np.array([[17, 3, 29, 5, 9, 26, 8], [0, 0, 0, 7, 12, 4, 3]], np.int32)
VISIBLE = np.array([[1] * 7, [0, 0, 0, 1, 1, 1, 1]], np.int32)
# Shares that change what this model says; those of the published setting change little here.
STRONG = {"smoothing": "soft:4,1,0.5"}
AHEAD = {"smoothing": "soft:4,1,0.5,reach=canvas"}
ALIGNED = {"steps": 5, "start_block_align": True}
# Gaps in two blocks before the answer, of which only the first row has both; 511 is the mask.
GAPS = np.array(
    [
        [17, 3, 511, 5, 9, 26, 8, 511, 7, 12, 511, 3, 30],
        [0, 0, 0, 6, 40, 2, 9, 31, 511, 4, 511, 8, 5],
    ],
    np.int32,
)
GAPS_SEEN = np.array([[1] * 13, [0, 0, 0, *[1] * 10]], np.int32)
INFILL = {"steps": 5, "infill": True}


class SoftModel(PlainModel):
    """Takes rows that are embedded already."""

    def embed(self, tokens):
        return tokens if tokens.ndim == 2 else super().embed(tokens)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def decode(model, prompt, config, make_reader=none):
    """Yields the canvas after every call."""
    mask, size, table = model.config.mask_token_id, config.block_length, model.weights["wte.weight"]
    smoothing, rule = config.smoothing_rule, config.selection_rule
    tokens = np.concatenate([prompt, np.full(config.gen_length, mask)])
    is_known = tokens != mask
    rows = table[tokens]
    start = len(prompt) // size * size if config.start_block_align else len(prompt)
    if config.infill:  # blocks are counted from the end of the prompt, also to the left
        start = len(prompt) % size - size
    readers = [make_reader(model, len(prompt), config) for _ in range(2)]
    ahead = config.reads_ahead

    def read(rows, first, call, reader):
        """Logits of the block, or of all that follows."""
        return model.full(rows)[0][first:] if ahead else reader(rows, first, call)

    for end in range(start + size, len(tokens) + size, size):
        first, end = max(end - size, 0), min(end, len(tokens))
        block = np.arange(first, end)
        counts = transfer_counts(int((tokens[block] == mask).sum()), config.steps_per_block)
        for call, count in enumerate(counts[counts > 0]):
            logits = read(rows, first, call, readers[0])
            if config.cfg_scale:
                hidden = np.where(is_known[:, None], table[mask], rows)
                without = read(hidden, first, call, readers[1])
                logits = without + (config.cfg_scale + 1) * (logits - without)
            probabilities = softmax(logits)
            logits = logits.copy()
            logits[:, mask] = -np.inf
            choice = logits.argmax(axis=1)
            sure = probabilities[np.arange(len(choice)), choice]
            still = [i for i in block if tokens[i] == mask]
            ranked = sorted(still, key=lambda i: (-sure[i - first], i))
            if rule.extra:
                bound = max(1 - rule.decay * call, rule.bound) if rule.decay else rule.bound
                count = max(count, sum(sure[i - first] >= bound for i in ranked))
            for i in ranked[:count]:
                tokens[i], rows[i] = choice[i - first], table[choice[i - first]]
            if config.smoothing != "none":
                share = min(smoothing.start + smoothing.growth * call, smoothing.weight)
                for i in range(first, first + len(choice)):
                    if tokens[i] == mask:
                        rows[i] = table[mask] + share * probabilities[i - first] @ table
            yield tokens.copy()
            if (tokens[block] != mask).all():
                break
