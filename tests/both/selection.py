"""Selections and candidates against slow loops and exact distributions, on either backend."""

import dataclasses

import numpy as np
import pytest

from jaxllada.common.config.sampling import SamplingConfig
from tests.plain_loop import softmax, tables
from tests.sampling_cases import (
    CONFIG,
    PROMPT,
    PROMPTS,
    VISIBLE,
    chi_square,
    own_prompt,
    sorted_filter,
    weakened,
)
from tests.selection_oracle import RULES, SILENT, one_row

STEPS = (16, 6)
RANDOM = ["fixed:dllm,stochastic=true", "dream:origin", "dream:maskgit_plus,alg_temp=0.3"]


@pytest.fixture(scope="module")
def model(backend, sharp):
    return backend.load(sharp)


@pytest.fixture(scope="module")
def frames_of(backend, model):
    """Canvases of the first prompt after every call, by the definition of a rule."""
    logits_of, known = backend.logits_of(model), {}

    def frames(rule, steps):
        if (rule, steps) not in known:
            config = dataclasses.replace(CONFIG, selection=rule, steps=steps)
            known[rule, steps] = list(one_row(logits_of, PROMPTS[0], config, model.config, rule))
        return known[rule, steps]

    return frames


def first_logits(backend, model, masks, prompt=PROMPT):
    """Logits of the answer's positions while all of them are masks, float64."""
    canvas = np.concatenate([prompt, np.full((1, masks), 31, np.int32)], axis=1)
    found = backend.logits_of(model)(canvas, np.ones(canvas.shape, np.int32))
    return found[0, prompt.shape[1] :].astype(np.float64)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("rule", RULES + SILENT)
def test_every_call_equals_the_definition(backend, model, frames_of, rule, steps):
    config = dataclasses.replace(CONFIG, selection=rule, steps=steps)
    expected = frames_of(rule, steps)
    trace = backend.trace(model, PROMPTS[:1], config)
    assert trace.num_steps == len(expected)
    for frame, canvas in zip(list(trace.frames())[1:], expected, strict=True):
        np.testing.assert_array_equal(frame, canvas[:, PROMPTS.shape[1] :])


@pytest.mark.parametrize("rule", RULES[1:])
def test_every_number_of_these_rules_shows_in_their_definitions(frames_of, rule):
    """Otherwise a sampler that ignores it would pass."""
    for other in weakened(rule):
        assert any(
            not np.array_equal(frames_of(rule, steps), frames_of(other, steps)) for steps in STEPS
        ), other


def test_what_is_as_sure_as_the_best_is_kept_with_it(backend):
    """`relative`, below any threshold; without it the second of two equals waits."""
    table, _ = tables(3)
    best = softmax(first_logits(backend, backend.table_model(), 8)[:, :31]).max(axis=1).argmax()
    twin = (best + 3) % 8
    table[5 + twin] = table[5 + best]
    model = backend.table_model(table)
    first, second = sorted([int(best), int(twin)])
    for rule, others in (("threshold:0.999,relative=true", [second]), ("threshold:0.999", [])):
        config = dataclasses.replace(CONFIG, selection=rule)
        order = backend.trace(model, PROMPT, config).order[0]
        assert np.flatnonzero(order == 0).tolist() == [first, *others]


def test_a_tie_is_within_1e_5(backend):
    score = np.array([[0.5, 0.5 - 9e-6, 0.5 - 1.2e-5, 0.1]], np.float32)
    every, one = np.ones(score.shape, bool), np.array([1], np.int32)
    chosen = backend.most_confident(score, every, one, None, "relative", 0.9)
    assert np.flatnonzero(chosen[0]).tolist() == [0, 1]


@pytest.mark.parametrize("rule", ["threshold:0.6", "entropy_bound:2", "dream:topk_margin", *RANDOM])
def test_each_row_of_a_ragged_batch_equals_its_solo_run(backend, model, rule):
    """Rows finish a block at different calls; the batch goes on when the last one has."""
    config = dataclasses.replace(CONFIG, selection=rule, temperature=0.6, top_p=0.9)
    both = backend.trace(model, PROMPTS, config, VISIBLE)
    alone = [backend.trace(model, own_prompt(row), config, rows=[row]) for row in range(2)]
    for row, trace in enumerate(alone):
        np.testing.assert_array_equal(trace.tokens[0], both.tokens[row])
    # With a step per token the fixed rule takes all of them.
    assert max(trace.num_steps for trace in alone) <= both.num_steps < config.steps


@pytest.mark.parametrize("steps", [2, 6, 16])
@pytest.mark.parametrize("rule", ["threshold:1.5", "factor:0", "entropy_bound:0"])
def test_a_strict_rule_leaves_the_fixed_number(backend, model, rule, steps):
    config = dataclasses.replace(CONFIG, steps=steps)
    ranked = "entropy" if rule.startswith("entropy") else "fixed"
    fixed, strict = (
        backend.trace(model, PROMPTS, dataclasses.replace(config, selection=selection), VISIBLE)
        for selection in (ranked, rule)
    )
    np.testing.assert_array_equal(strict.order, fixed.order)
    np.testing.assert_array_equal(strict.tokens, fixed.tokens)


@pytest.mark.parametrize("rule", ["threshold:0", "factor:1000", "entropy_bound:10000"])
def test_a_bold_rule_takes_a_block_per_call(backend, model, rule):
    trace = backend.trace(model, PROMPTS, dataclasses.replace(CONFIG, selection=rule), VISIBLE)
    np.testing.assert_array_equal(trace.order, np.repeat([[0, 1]], 8, axis=1).repeat(2, axis=0))


def test_end_tokens_that_are_held_back_are_never_added_by_an_adaptive_rule(backend):
    table, _ = tables(3)
    model = backend.table_model()
    table[5 + 2, model.config.eos_token_id] = 40
    model = backend.table_model(table)
    config = SamplingConfig(
        steps=8, gen_length=8, block_length=8, selection="threshold:0", confidence_eos_eot_inf=True
    )
    order = backend.trace(model, PROMPT, config).order[0]
    np.testing.assert_array_equal(order, [0, 0, 1, 0, 0, 0, 0, 0])


def test_suppressed_tokens_are_never_predicted(backend):
    model = backend.table_model()
    plain = np.unique(backend.trace(model, PROMPT, CONFIG).tokens)
    config = dataclasses.replace(CONFIG, suppress_tokens=plain.tolist())
    assert not np.isin(backend.trace(model, PROMPT, config).tokens, plain).any()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_tokens_without_confidence_come_last(backend, temperature):
    table, _ = tables(3, favourite=9)
    table[[6, 8], 9] = -60
    config = SamplingConfig(
        steps=4, gen_length=4, block_length=4, begin_suppress_tokens=(9,), temperature=temperature
    )
    trace = backend.trace(backend.table_model(table), PROMPT, config)
    is_nine = trace.tokens[0] == 9
    np.testing.assert_array_equal(is_nine, [True, False, True, False])
    assert trace.order[0][is_nine].min() > trace.order[0][~is_nine].max()
    np.testing.assert_array_equal(trace.confidence[0][is_nine], 0)


def test_guidance_keeps_the_tokens_it_is_told_to(backend):
    model = backend.table_model()
    config = dataclasses.replace(CONFIG, cfg_scale=1.0)
    kept = dataclasses.replace(config, cfg_keep_tokens=tuple(PROMPT[0].tolist()))
    unguided, guided, same = (
        backend.trace(model, PROMPT, c).tokens for c in (CONFIG, config, kept)
    )
    # Nothing is hidden, so both passes agree and guidance has no effect.
    np.testing.assert_array_equal(same, unguided)
    assert not np.array_equal(guided, unguided)
    one = SamplingConfig(
        steps=1, gen_length=1, block_length=1, cfg_scale=1.0, cfg_keep_tokens=(8, 16)
    )
    hidden = np.where(np.isin(PROMPT, (8, 16)), PROMPT, 31).astype(np.int32)
    given, without = (first_logits(backend, model, 1, prompt) for prompt in (PROMPT, hidden))
    expected = (without + 2 * (given - without))[..., :31].argmax(axis=-1)
    np.testing.assert_array_equal(backend.trace(model, PROMPT, one).tokens[0], expected)


@pytest.mark.parametrize(("top_p", "top_k"), [(None, None), (0.8, None), (None, 4), (0.9, 6)])
def test_sampled_tokens_follow_the_filtered_distribution(backend, top_p, top_k):
    """One open position, 4000 rows; the exact distribution is known from the table."""
    model, rows = backend.table_model(), 4000
    config = SamplingConfig(
        steps=1, gen_length=1, block_length=1, temperature=1.5, top_p=top_p, top_k=top_k
    )
    tokens = backend.trace(model, np.repeat(PROMPT, rows, axis=0), config).tokens
    logits = first_logits(backend, model, 1)[0]
    logits[31] = -np.inf
    p = softmax(logits / 1.5)
    p = np.where(sorted_filter(p, top_p or 1, top_k or 32), p, 0)
    p /= p.sum()
    counts = np.bincount(tokens[:, -1], minlength=32)
    often = p * rows >= 5
    counts, p = (np.append(x[often], x[~often].sum()) for x in (counts, p))
    degrees = max(1, np.count_nonzero(p) - 1)
    # Mean and spread of chi-square; five standard deviations.
    assert chi_square(counts, p) < degrees + 5 * np.sqrt(2 * degrees)


def test_orders_are_drawn_in_proportion_to_the_softmax_of_their_scores(backend):
    """The first position of Dream's alg_temp, and the steps that masks draw by `origin`."""
    model, rows = backend.table_model(), 4000
    prompts = np.repeat(PROMPT, rows, axis=0)
    config = SamplingConfig(
        steps=4, gen_length=4, block_length=4, selection="dream:maskgit_plus,alg_temp=0.2"
    )
    logits = first_logits(backend, model, 4)
    logits[:, 31] = -np.inf
    p = softmax(softmax(logits).max(axis=-1) / 0.2)
    order = backend.trace(model, prompts, config).order
    assert ((order == 0).sum(axis=1) == 1).all()
    first = np.argmin(order, axis=1)
    # 99.9 % quantile of chi-square with 3 degrees of freedom.
    assert chi_square(np.bincount(first, minlength=4), p) < 16.3
    origin = dataclasses.replace(config, selection="dream:origin")
    order = backend.trace(model, prompts, origin).order
    # Every mask goes at each of the four steps with probability 1/4 (times are linear), so that a
    # row whose masks all go at once, in one call, is seen once in 64; calls without masks are left
    # out.
    counts = (order.max(axis=1) == 0).sum()
    assert abs(counts - rows / 64) < 5 * np.sqrt(rows / 64)
