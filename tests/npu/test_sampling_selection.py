"""Selections and candidates of the torch sampler against slow loops and exact distributions."""

import dataclasses

import numpy as np
import pytest
import torch

from jaxllada.common.config.sampling import SamplingConfig
from npu_backend import convert
from npu_backend.sampling.filters import filtered
from npu_backend.sampling.generate import sample, sample_trace
from npu_backend.sampling.gumbel import RowSeed
from tests.npu.devices import DEVICE
from tests.npu.table_model import TableModel, logits_of
from tests.plain_loop import softmax
from tests.selection_oracle import RULES, one_row

PROMPTS = np.array([[17, 301, 44, 5, 9, 260, 8], [0, 0, 0, 77, 12, 400, 3]], np.int32)
VISIBLE = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]], np.int32)
CONFIG = SamplingConfig(steps=16, gen_length=16, block_length=8)
PROMPT = np.array([[4, 8, 15, 16, 23]], np.int32)


@pytest.fixture(scope="module")
def model():
    return convert.load("tests/golden/dense", device=DEVICE)


@pytest.mark.parametrize("steps", [16, 6])
@pytest.mark.parametrize("rule", RULES)
def test_every_call_equals_the_definition(model, rule, steps):
    config = dataclasses.replace(CONFIG, selection=rule, steps=steps)
    expected = list(one_row(logits_of(model), PROMPTS[0], config, model.config, rule))
    trace = sample_trace(model, PROMPTS[:1], config)
    assert trace.num_steps == len(expected)
    for frame, canvas in zip(list(trace.frames())[1:], expected, strict=True):
        np.testing.assert_array_equal(frame, canvas[:, PROMPTS.shape[1] :])


RANDOM = ["fixed:dllm,stochastic=true", "dream:origin", "dream:maskgit_plus,alg_temp=0.3"]


@pytest.mark.parametrize("rule", ["threshold:0.4", "entropy_bound:1", "dream:entropy", *RANDOM])
def test_each_row_of_a_ragged_batch_equals_its_solo_run(model, rule):
    """Rows finish a block at different calls; the batch goes on when the last one has."""
    config = dataclasses.replace(CONFIG, selection=rule, temperature=0.6, top_p=0.9)
    seeds = [RowSeed(5, 0), RowSeed(5, 1)]
    both = sample_trace(model, PROMPTS, config, VISIBLE, generator=seeds)
    longest = 0
    for row in range(2):
        own = PROMPTS[row : row + 1, VISIBLE[row] == 1]
        alone = sample_trace(model, own, config, generator=seeds[row : row + 1])
        np.testing.assert_array_equal(alone.tokens[0], both.tokens[row])
        longest = max(longest, alone.num_steps)
    assert longest <= both.num_steps <= config.steps


@pytest.mark.parametrize("steps", [2, 6, 16])
@pytest.mark.parametrize("rule", ["threshold:1.5", "factor:0", "entropy_bound:0"])
def test_a_strict_rule_leaves_the_fixed_number(model, rule, steps):
    config = dataclasses.replace(CONFIG, steps=steps)
    ranked = "entropy" if rule.startswith("entropy") else "fixed"
    fixed = sample_trace(model, PROMPTS, dataclasses.replace(config, selection=ranked), VISIBLE)
    strict = sample_trace(model, PROMPTS, dataclasses.replace(config, selection=rule), VISIBLE)
    np.testing.assert_array_equal(strict.order, fixed.order)
    np.testing.assert_array_equal(strict.tokens, fixed.tokens)


@pytest.mark.parametrize("rule", ["threshold:0", "factor:1000", "entropy_bound:10000"])
def test_a_bold_rule_takes_a_block_per_call(model, rule):
    trace = sample_trace(model, PROMPTS, dataclasses.replace(CONFIG, selection=rule), VISIBLE)
    np.testing.assert_array_equal(trace.order, np.repeat([[0, 1]], 8, axis=1).repeat(2, axis=0))


def test_the_head_runs_on_the_positions_that_are_left():
    """After an adaptive call the host knows how many are open; the head gets no other row."""
    model, sizes = TableModel(seed=3), []
    model.head = lambda hidden: sizes.append(len(hidden)) or hidden.clone()
    trace = sample_trace(model, PROMPT, dataclasses.replace(CONFIG, selection="threshold:0.4"))
    order = trace.order[0].reshape(2, 8)
    expected = [
        int((block >= call).sum())
        for block in order
        for call in range(block.min(), block.max() + 1)
    ]
    assert sizes == expected
    assert len(sizes) < CONFIG.steps


def test_end_tokens_that_are_held_back_are_never_added_by_an_adaptive_rule():
    model = TableModel(seed=3)
    with torch.no_grad():
        model.table[5 + 2, model.config.eos_token_id] = 40
    config = SamplingConfig(
        steps=8, gen_length=8, block_length=8, selection="threshold:0", confidence_eos_eot_inf=True
    )
    order = sample_trace(model, PROMPT, config).order[0]
    np.testing.assert_array_equal(order, [0, 0, 1, 0, 0, 0, 0, 0])


def test_suppressed_tokens_are_never_predicted():
    model = TableModel(seed=3)
    plain = np.unique(sample_trace(model, PROMPT, CONFIG).tokens)
    config = dataclasses.replace(CONFIG, suppress_tokens=plain.tolist())
    assert not np.isin(sample_trace(model, PROMPT, config).tokens, plain).any()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_tokens_without_confidence_come_last(temperature):
    model = TableModel(seed=3, favourite=9)
    with torch.no_grad():
        model.table[[6, 8], 9] = -60
    config = SamplingConfig(
        steps=4, gen_length=4, block_length=4, begin_suppress_tokens=(9,), temperature=temperature
    )
    trace = sample_trace(model, PROMPT, config, generator=[RowSeed(0)])
    is_nine = trace.tokens[0] == 9
    np.testing.assert_array_equal(is_nine, [True, False, True, False])
    assert trace.order[0][is_nine].min() > trace.order[0][~is_nine].max()
    np.testing.assert_array_equal(trace.confidence[0][is_nine], 0)


def test_guidance_keeps_the_tokens_it_is_told_to():
    model = TableModel(seed=3)
    config = dataclasses.replace(CONFIG, cfg_scale=1.0)
    kept = dataclasses.replace(config, cfg_keep_tokens=tuple(PROMPT[0].tolist()))
    # Nothing is hidden, so both passes agree and guidance has no effect.
    unguided = sample(model, PROMPT, CONFIG)
    assert torch.equal(sample(model, PROMPT, kept), unguided)
    assert not torch.equal(sample(model, PROMPT, config), unguided)


def sorted_filter(p, top_p, top_k):
    """Tokens kept by sorting: the first whose sum passes top_p, of those the first top_k.

    Those as likely as the last of them are kept too.
    """
    order = np.argsort(-p, kind="stable")
    before = np.concatenate([[0], np.cumsum(p[order])[:-1]])
    kept = [i for rank, i in enumerate(order) if before[rank] <= top_p and rank < top_k]
    return p >= p[kept].min()


class Namespace:
    def __init__(self, **values):
        self.__dict__.update(values)


@pytest.mark.parametrize(("top_p", "top_k"), [(0.3, None), (0.9, None), (None, 5), (0.7, 3)])
def test_filters_keep_what_sorting_keeps(top_p, top_k):
    policy = Namespace(has_top_p=top_p is not None, has_top_k=top_k is not None)
    inputs = Namespace(top_p=top_p, top_k=top_k)
    logits = np.random.default_rng(0).normal(0, 3, (200, 50)).astype(np.float32)
    logits[:, 7] = -np.inf
    kept = filtered.__wrapped__(torch.from_numpy(logits).to(DEVICE), inputs, policy) > -np.inf
    exact = (softmax(row.astype(np.float64)) for row in logits)
    expected = [sorted_filter(p, top_p or 1, top_k or 50) for p in exact]
    np.testing.assert_array_equal(kept.cpu(), np.array(expected) & (logits > -np.inf))


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    return float(((counts - expected)[possible] ** 2 / expected[possible]).sum())


@pytest.mark.parametrize(("top_p", "top_k"), [(None, None), (0.8, None), (None, 4), (0.9, 6)])
def test_sampled_tokens_follow_the_filtered_distribution(top_p, top_k):
    """One open position, 4000 rows; the exact distribution is known from the table."""
    model, rows = TableModel(seed=3), 4000
    config = SamplingConfig(
        steps=1, gen_length=1, block_length=1, temperature=1.5, top_p=top_p, top_k=top_k
    )
    seeds = [RowSeed(1, row) for row in range(rows)]
    tokens = sample(model, np.repeat(PROMPT, rows, axis=0), config, generator=seeds)
    canvas = np.concatenate([PROMPT, np.full((1, 1), 31, np.int32)], axis=1)
    logits = logits_of(model)(canvas, np.ones(canvas.shape, np.int32))[0, 5].astype(np.float64)
    logits[31] = -np.inf
    p = softmax(logits / 1.5)
    p = np.where(sorted_filter(p, top_p or 1, top_k or 32), p, 0)
    p /= p.sum()
    counts = np.bincount(tokens[:, -1].cpu().numpy(), minlength=32)
    often = p * rows >= 5
    counts, p = (np.append(x[often], x[~often].sum()) for x in (counts, p))
    degrees = max(1, np.count_nonzero(p) - 1)
    # Mean and spread of chi-square; five standard deviations.
    assert chi_square(counts, p) < degrees + 5 * np.sqrt(2 * degrees)


def test_orders_are_drawn_in_proportion_to_the_softmax_of_their_scores():
    """The first position of Dream's alg_temp, and the steps that masks draw by `origin`."""
    model, rows = TableModel(seed=3), 4000
    prompts = np.repeat(PROMPT, rows, axis=0)
    seeds = [RowSeed(1, row) for row in range(rows)]
    config = SamplingConfig(
        steps=4, gen_length=4, block_length=4, selection="dream:maskgit_plus,alg_temp=0.2"
    )
    canvas = np.concatenate([PROMPT, np.full((1, 4), 31, np.int32)], axis=1)
    logits = logits_of(model)(canvas, np.ones(canvas.shape, np.int32))[0, 5:].astype(np.float64)
    logits[:, 31] = -np.inf
    p = softmax(softmax(logits).max(axis=-1) / 0.2)
    order = sample_trace(model, prompts, config, generator=seeds).order
    assert ((order == 0).sum(axis=1) == 1).all()
    first = np.argmin(order, axis=1)
    # 99.9 % quantile of chi-square with 3 degrees of freedom.
    assert chi_square(np.bincount(first, minlength=4), p) < 16.3
    origin = dataclasses.replace(config, selection="dream:origin")
    order = sample_trace(model, prompts, origin, generator=seeds).order
    # Every mask goes at each of the four steps with probability 1/4, so that all go in one call in
    # one row of 64; calls without masks are left out.
    counts = (order.max(axis=1) == 0).sum()
    assert abs(counts - rows / 64) < 5 * np.sqrt(rows / 64)
