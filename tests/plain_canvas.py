"""Growing and adaptive canvases as slow loops around the plain sampler, one row at a time.

`plain_grow` calls the sampler once per block on all that is there, as `var_generate` does;
`plain_adaptive` finds the length first and changes it between blocks.
"""

import dataclasses
import itertools
import math

import numpy as np

from tests.plain_loop import TABLE_CONFIG, plain_loop, softmax, tables


def plain_grow(logits_of, prompt, config, model, stop_ids):
    """Returns the canvas [1, P + n blocks] and the number of calls."""
    once = dataclasses.replace(config, canvas="fixed", gen_length=config.block_length)
    x, calls = prompt, 0
    for _ in range(config.num_blocks):
        steps = list(plain_loop(logits_of, x, once, model))
        x, calls = steps[-1], calls + len(steps)
        if np.isin(x[:, prompt.shape[1] :], stop_ids).any():
            break
    return x, calls


def plain_adaptive(logits_of, prompt, config, model, stop_ids):
    """Returns the canvas [1, P + length], and what happened to the length."""
    policy, unit, start = config.canvas_rule, config.block_length, prompt.shape[1]
    eos, mask = model.eos_token_id, model.mask_token_id

    def look(x):
        logits = logits_of(x, np.ones_like(x))[0, start:].astype(np.float32)
        ends = softmax(logits)[:, eos]
        logits[:, mask] = -np.inf
        is_open = x[0, start:] == mask
        return is_open, is_open & (logits.argmax(axis=-1) == eos), ends

    def grown(x, count):
        return np.concatenate([x, np.full((1, count), mask, np.int32)], axis=1)

    length = min(math.ceil(policy.start / unit) * unit, config.gen_length)
    x, lengths = grown(prompt, length), []
    while True:
        _, is_end, ends = look(x)
        last = [ends[i] for i in reversed(range(length)) if is_end[i]][: policy.window]
        if sum(last) / policy.window >= policy.confidence or length == config.gen_length:
            break
        x, length = grown(x, unit), length + unit
    lengths.append(length)
    block = 0
    while block * unit < length:
        left = length - block * unit
        rest = dataclasses.replace(
            config, canvas="fixed", gen_length=left, steps=config.steps * left // unit
        )
        calls = min(config.steps, unit)
        done = next(
            itertools.islice(
                plain_loop(logits_of, x[:, : start + block * unit], rest, model), calls - 1, None
            )
        )
        x, block = done, block + 1
        if np.isin(x[0, start : start + block * unit], stop_ids).any():
            break
        is_open, is_end, _ = look(x)
        if is_open.any():
            density = is_end.sum() / is_open.sum()
            gap = max(policy.low - density, density - policy.high, 0.0)
            count = 0 if not gap else min(8, 2 ** max(0, math.ceil((gap + 1e-12) / 0.1) - 1))
            new = length + (count if density < policy.low else -count) * unit
            new = min(max(new, block * unit), config.gen_length)
            x = grown(x, new - length) if new > length else x[:, : start + new]
            length = new
            lengths.append(length)
    return x, lengths


def ending_table(seed, slot):
    """A table of the model in which the end token is likely at one place, for a prompt of five."""
    table, _ = tables(seed)
    table[:, TABLE_CONFIG.eos_token_id] = -64
    table[5 + slot, TABLE_CONFIG.eos_token_id] = 64
    return table


def sloping_table(seed, place):
    """A table in which the end token becomes likelier from position to position."""
    table, _ = tables(seed)
    table[:, TABLE_CONFIG.eos_token_id] = (np.arange(len(table)) - place) / 2
    return table


def plain_infill(logits_of, prompt, config, model):
    """Returns the filled canvas [1, P + N]: blocks count from the end of the prompt."""
    unit, steps, mask = config.block_length, config.steps, model.mask_token_id
    x = np.concatenate([prompt, np.full((1, config.gen_length), mask, np.int32)], axis=1)
    first = prompt.shape[1] % unit - unit
    for start in range(first, x.shape[1], unit):
        block = [i for i in range(max(start, 0), start + unit) if x[0, i] == mask]
        for j in range(steps):
            count = len(block) // steps + (j < len(block) % steps)
            still = [i for i in block if x[0, i] == mask]
            logits = logits_of(x, np.ones_like(x))[0].astype(np.float32)
            probabilities = softmax(logits)
            logits[:, mask] = -np.inf
            x0 = logits.argmax(axis=-1)
            for i in sorted(still, key=lambda i: (-probabilities[i, x0[i]], i))[:count]:
                x[0, i] = x0[i]
    return x


def pulled_logits(logits_of, config, start, seen):
    """Raises the logit of the next token of the closing sequence, as `generate` does.

    `seen` collects (position, token) of every raised logit.
    """
    wanted = list(config.end_think_token_ids)

    def call(canvas, visible):
        logits = logits_of(canvas, visible).astype(np.float32)
        for row, tokens in enumerate(canvas[:, start:].tolist()):
            spans = [tokens[i : i + len(wanted)] for i in range(len(tokens))]
            if wanted in spans or TABLE_CONFIG.mask_token_id not in tokens:
                continue
            first = tokens.index(TABLE_CONFIG.mask_token_id)
            sizes = [
                n
                for n in range(len(wanted))
                if n <= first and tokens[first - n : first] == wanted[:n]
            ]
            token = wanted[max(sizes)]
            share = np.clip((first + 1) / config.gen_length, 0, 1)
            boost = config.end_think_logit_boost * share**config.end_think_boost_power
            logits[row, start + first, token] += np.float32(boost)
            seen.append((first, token))
        return logits

    return call
