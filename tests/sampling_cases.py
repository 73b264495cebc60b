"""Prompts and options of the sampler tests, and the arithmetic their oracles share."""

import numpy as np

from jaxllada.common.config.sampling import SamplingConfig

# Two prompts of different length, padded on the left.
PROMPTS = np.array([[17, 301, 44, 5, 9, 260, 8], [0, 0, 0, 77, 12, 400, 3]], np.int32)
VISIBLE = np.array([[1] * 7, [0, 0, 0, 1, 1, 1, 1]], np.int32)
CONFIG = SamplingConfig(steps=16, gen_length=16, block_length=8)
PROMPT = np.array([[4, 8, 15, 16, 23]], np.int32)
"""For models of tables."""
# Three of them, for models of tables.
SHORT = np.array([[4, 8, 15, 16, 23], [0, 0, 0, 5, 6], [0, 7, 8, 9, 10]], np.int32)
SEEN = np.array([[1] * 5, [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]])


def own_prompt(row):
    """A prompt of the batch without its padding."""
    return PROMPTS[row : row + 1, VISIBLE[row] == 1]


FIRST = {"threshold": "0.9", "credit": "0.9", "hierarchy": "0.92", "factor": "1.0"}
"""Defaults of the first number of a rule."""


def weakened(rule):
    """The fixed rule, and this one with each of its values left out or put back to the default."""
    name, _, rest = rule.partition(":")
    parts, others = rest.split(",") if rest else [], {"fixed"}
    for i in range(len(parts) if name != "dream" else 0):
        instead = [FIRST[name]] if i == 0 and name in FIRST else []
        if name == "hierarchy" and i == 1:
            instead = [parts[0] + "0"]  # no lower bound for the best of a run
        left = ",".join([*parts[:i], *instead, *parts[i + 1 :]])
        others.add(f"{name}:{left}" if left else name)
    return others - {rule}


def sorted_filter(p, top_p, top_k):
    """Tokens kept by sorting: the first whose sum passes top_p, of those the first top_k.

    Those as likely as the last of them are kept too.
    """
    order = np.argsort(-p, kind="stable")
    before = np.concatenate([[0], np.cumsum(p[order])[:-1]])
    kept = [i for rank, i in enumerate(order) if before[rank] <= top_p and rank < top_k]
    return p >= p[kept].min()


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    return float(((counts - expected)[possible] ** 2 / expected[possible]).sum())
