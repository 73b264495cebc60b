"""Every selection as a slow loop over one row in NumPy, by the definition it was published with.

Nothing is shared with the samplers: numbers are float64, orders are lists, counts are made step by
step. Greedy decoding; the lowest position wins a tie.
"""

import math

import numpy as np

from tests.plain_loop import softmax


def one_row(logits_of, prompt, config, model, rule):
    """Yields the canvas [1, P + N] after every model call; `rule` is the text of the selection."""
    size = config.block_length
    mask_id = model.mask_token_id
    x = np.concatenate([prompt, np.full(config.gen_length, mask_id)]).astype(np.int32)[None]
    steps = config.steps // config.num_blocks
    for block in range(config.num_blocks):
        start = len(prompt) + block * size
        places = range(start, start + size)
        planned = schedule(rule, size, steps)
        credit = DenseCredit(rule, x.shape[1], model.rows)
        for call in range(size):
            left = [i for i in places if x[0, i] == mask_id]
            if not left:
                break
            logits = logits_of(x, np.ones(x.shape, np.int32))[0].astype(np.float64)
            logits[:, mask_id] = -np.inf if ranked_without_mask(rule) else logits[:, mask_id]
            if rule.startswith("credit"):
                credit.give(logits, left, mask_id)
            best, score = {}, {}
            for i in left:
                choice = logits[i].copy()
                choice[mask_id] = -np.inf
                best[i] = int(np.argmax(choice))
                score[i] = sureness(rule, softmax(logits[i]), best[i])
            ranked = sorted(score, key=lambda i: (-score[i], i))
            count = max(planned.pop(0), adaptive(rule, [score[i] for i in ranked], call))
            for i in {*ranked[:count], *of_runs(rule, places, score, call)}:
                x[0, i] = best[i]
            yield x.copy()


def name_and_values(rule):
    name, _, rest = rule.partition(":")
    return name, dict(part.split("=") if "=" in part else (part, "") for part in rest.split(","))


def ranked_without_mask(rule):
    return rule.startswith(("margin", "entropy", "dream"))


def sureness(rule, p, token):
    """What positions are put in order by."""
    name, values = name_and_values(rule)
    if name == "margin" or "topk_margin" in values:
        second, first = np.sort(p)[-2:]
        return first - second
    if name in ("entropy", "entropy_bound") or (name == "dream" and "maskgit_plus" not in values):
        return float(sum(x * math.log(x) for x in p if x > 0))
    return float(p[token])


class DenseCredit:
    """Trace credit as it was published: a number per position and token."""

    def __init__(self, rule, positions, vocabulary):
        self.amounts = np.zeros((positions, vocabulary))
        self.numbers = {"alpha": 0.7, "beta": 0.8, "gamma": 0.2}
        given = name_and_values(rule)[1].items()
        self.numbers |= {name: float(text) for name, text in given if name in self.numbers}

    def give(self, logits, places, mask_id):
        """One call: everything shrinks, winners gain, and the logits are raised."""
        self.amounts *= self.numbers["beta"]
        for i in places:
            choice = logits[i].copy()
            choice[mask_id] = -np.inf
            winner = int(np.argmax(choice))
            self.amounts[i, winner] += softmax(logits[i])[winner] ** self.numbers["gamma"]
            logits[i] += self.numbers["alpha"] * np.log(self.amounts[i] + 1)


def bound(rule, call):
    """The first number of a rule, or what it has come down to by a call of the block."""
    values = name_and_values(rule)[1]
    number, decay = float(next(iter(values), None) or 0), float(values.get("decay", 0))
    return max(1 - decay * call, number) if decay else number


def of_runs(rule, places, score, call=0):
    """What hierarchical decoding takes besides the best: `score` holds the places with a mask."""
    name, values = name_and_values(rule)
    if name != "hierarchy":
        return []
    threshold, low = bound(rule, call), float(list(values)[1])
    runs = [[]]
    for i in places:
        if i in score:
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    tops = [max(run, key=lambda i: score[i]) for run in runs if run]  # the first of equals
    return [i for i in tops if score[i] > low] + [i for i in score if score[i] > threshold]


def schedule(rule, masks, steps):
    """Tokens per step of a block of masks; steps without any are left out."""
    name, values = name_and_values(rule)
    counts, left = [], masks
    for j in range(steps):
        if "dllm" in values and name in ("fixed", "margin", "entropy"):
            t, s = ((steps - j - k) / steps for k in (0, 1))
            noise = [1 - float(np.float32(1) - np.float32(time)) for time in (t, s)]
            count = round(left * (1 - noise[1] / noise[0]))
        elif name == "dream":
            times = np.linspace(1, 1e-3, steps + 1).astype(np.float32)
            share = np.float32(1) - times[j + 1] / times[j]
            count = int(np.float32(left) * share) if j + 1 < steps else left
        else:
            count = masks // steps + (j < masks % steps)
        counts.append(min(count, left))
        left -= counts[-1]
    return [count for count in counts if count]


def adaptive(rule, q, call=0):
    """How many of the sorted scores an adaptive rule takes; 0 for a fixed one."""
    name, values = name_and_values(rule)
    number = bound(rule, call) if name in ADAPTIVE else 0.0
    m = len(q)
    if name in ("threshold", "credit") and values.get("relative") == "true":
        # dInfer: what reaches the threshold, or nearly the best where nothing does.
        return sum(x >= min(number, q[0] - 1e-5) for x in q)
    if name in ("threshold", "credit"):
        return 1 + sum(x >= number for x in q[1:])
    if name == "factor":
        limits = [-1.0] + [1 - number / (r + 1) for r in range(2, m + 1)]
        if "dllm" in values or values.get("rule") == "dllm":
            return sum(x >= limit for x, limit in zip(q, limits, strict=True))
        fails = [i for i in range(m) if q[i] < limits[i]]
        if values.get("rule") == "fast_dllm":
            i = fails[0] if fails else m - 1
            return i + 1 if i in (0, m - 1) else i
        return fails[0] if fails else m
    if name == "entropy_bound":
        entropies = [-x for x in q]
        return max(n for n in range(1, m + 1) if sum(entropies[:n]) - entropies[n - 1] <= number)
    return 0


ADAPTIVE = ("threshold", "credit", "factor", "entropy_bound")

RULES = [
    "fixed",
    "fixed:dllm",
    "margin",
    "margin:dllm",
    "entropy",
    "threshold:0.5",
    "threshold:0.85",
    "threshold:0.6,decay=0.15",
    "credit:0.9,alpha=3.0",
    "credit:0.8,decay=0.1,alpha=1.5,beta=0.5,gamma=0.6",
    "hierarchy:0.8,0.4",
    "hierarchy:0.6,0.3,decay=0.2",
    "factor:1.0",
    "factor:1.4",
    "factor:1.4,rule=fast_dllm",
    "entropy_bound:0.5",
    "entropy_bound:3.0",
    "dream:maskgit_plus",
    "dream:topk_margin",
    "dream:entropy",
]
"""Deterministic selections, with numbers that each show on `tests/sharp_model.py`."""
# These show nowhere: `relative` only in ties, and rule=dllm nowhere, as sorted confidences fall
# while its bounds rise.
SILENT = ["threshold:0.6,relative=true", "credit:0.6,relative=true", "factor:1.4,rule=dllm"]
