"""Selections and candidates of the compiled sampler against slow loops and exact distributions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada import convert
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.sampling.filters import filtered
from jaxllada.sampling.generate import sample, sample_trace
from jaxllada.sampling.loop import advance
from tests.jax.golden import DENSE
from tests.jax.sampling_oracle import TableModel
from tests.plain_loop import softmax
from tests.selection_oracle import RULES, one_row

PROMPTS = np.array([[17, 301, 44, 5, 9, 260, 8], [0, 0, 0, 77, 12, 400, 3]], np.int32)
VISIBLE = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]], np.int32)
CONFIG = SamplingConfig(steps=16, gen_length=16, block_length=8)
TABLE = TableModel(seed=3)
PROMPT = np.array([[4, 8, 15, 16, 23]], np.int32)


@pytest.fixture(scope="module")
def model():
    return convert.load(DENSE)


@pytest.fixture(scope="module")
def logits_of(model):
    forward = jax.jit(lambda canvas, visible: model(canvas, visible))
    return lambda canvas, visible: np.array(forward(canvas, visible))


@pytest.mark.parametrize("steps", [16, 6])
@pytest.mark.parametrize("rule", RULES)
def test_every_call_equals_the_definition(model, logits_of, rule, steps):
    config = dataclasses.replace(CONFIG, selection=rule, steps=steps)
    expected = list(one_row(logits_of, PROMPTS[0], config, model.config, rule))
    trace = sample_trace(model, PROMPTS[:1], config)
    assert trace.num_steps == len(expected)
    for frame, canvas in zip(list(trace.frames())[1:], expected, strict=True):
        np.testing.assert_array_equal(frame, canvas[:, PROMPTS.shape[1] :])


RANDOM = ["fixed:dllm,stochastic=true", "dream:origin", "dream:maskgit_plus,alg_temp=0.3"]


@pytest.mark.parametrize(
    "rule", ["threshold:0.4", "entropy_bound:1.0", "dream:topk_margin", *RANDOM]
)
def test_each_row_of_a_ragged_batch_equals_its_solo_run(model, rule):
    """Rows finish a block at different calls; the batch goes on when the last one has."""
    config = dataclasses.replace(CONFIG, selection=rule, temperature=0.6, top_p=0.9)
    key = jax.random.key(5)
    both = sample_trace(model, PROMPTS, config, VISIBLE, key=key)
    longest = 0
    for row in range(2):
        own = PROMPTS[row : row + 1, VISIBLE[row] == 1]
        alone = sample_trace(model, own, config, key=jax.random.fold_in(key, row)[None])
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


def test_adaptive_rules_save_calls_and_a_bolder_bound_saves_more():
    config = dataclasses.replace(CONFIG, selection="threshold:0.6")
    calls = []
    for threshold in (0.6, 0.4, 0.2, 0.1):
        config = dataclasses.replace(config, selection=f"threshold:{threshold}")
        calls.append(sample_trace(TABLE, PROMPT, config).num_steps)
    assert calls == sorted(calls, reverse=True)
    assert calls[0] > calls[-1]


def test_numbers_of_selections_and_candidates_are_data():
    config = dataclasses.replace(
        CONFIG, selection="threshold:0.5", temperature=0.5, top_p=0.5, top_k=4,
        suppress_tokens=(1, 2), begin_suppress_tokens=(5,),
    )  # fmt: skip
    key = jax.random.key(0)
    sample(TABLE, PROMPT, config, key=key)
    compiled = advance._cache_size()
    for changes in [
        {"selection": "threshold:0.1"},
        {"top_p": 0.9},
        {"top_k": 9},
        {"suppress_tokens": (7, 8)},
        {"begin_suppress_tokens": (3,)},
        {"steps": 4},
    ]:
        sample(TABLE, PROMPT, dataclasses.replace(config, **changes), key=key)
    assert advance._cache_size() == compiled


def test_end_tokens_that_are_held_back_are_never_added_by_an_adaptive_rule():
    model = TableModel(seed=3)
    table = np.array(model.table[...])
    table[5 + 2, model.config.eos_token_id] = 40
    model.table[...] = table
    config = SamplingConfig(
        steps=8, gen_length=8, block_length=8, selection="threshold:0", confidence_eos_eot_inf=True
    )
    order = sample_trace(model, PROMPT, config).order[0]
    np.testing.assert_array_equal(order, [0, 0, 1, 0, 0, 0, 0, 0])


def test_suppressed_tokens_are_never_predicted():
    plain = np.unique(sample_trace(TABLE, PROMPT, CONFIG).tokens)
    config = dataclasses.replace(CONFIG, suppress_tokens=plain.tolist())
    tokens = sample_trace(TABLE, PROMPT, config).tokens
    assert not np.isin(tokens, plain).any()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_tokens_without_confidence_come_last(temperature):
    model = TableModel(seed=3, favourite=9)
    table = np.array(model.table[...])
    table[[6, 8], 9] = -60
    model.table[...] = table
    config = SamplingConfig(
        steps=4, gen_length=4, block_length=4, begin_suppress_tokens=(9,), temperature=temperature
    )
    trace = sample_trace(model, PROMPT, config, key=jax.random.key(0))
    is_nine = trace.tokens[0] == 9
    np.testing.assert_array_equal(is_nine, [True, False, True, False])
    assert trace.order[0][is_nine].min() > trace.order[0][~is_nine].max()
    np.testing.assert_array_equal(trace.confidence[0][is_nine], 0)


def test_guidance_keeps_the_tokens_it_is_told_to():
    config = dataclasses.replace(CONFIG, cfg_scale=1.0)
    kept = dataclasses.replace(config, cfg_keep_tokens=tuple(PROMPT[0].tolist()))
    # Nothing is hidden, so both passes agree and guidance has no effect.
    unguided = sample(TABLE, PROMPT, CONFIG)
    np.testing.assert_array_equal(sample(TABLE, PROMPT, kept), unguided)
    assert not np.array_equal(sample(TABLE, PROMPT, config), unguided)
    some = dataclasses.replace(config, cfg_keep_tokens=(8, 16))
    forward = lambda canvas: np.array(TABLE(jnp.asarray(canvas)))[:, 5:]  # noqa: E731
    canvas = np.concatenate([PROMPT, np.full((1, 1), 31)], axis=1)
    hidden = np.where(np.isin(canvas, (8, 16)), canvas, 31)
    given, without = forward(canvas), forward(hidden)
    expected = (without + 2 * (given - without))[..., :31].argmax(axis=-1)
    one = dataclasses.replace(some, steps=1, gen_length=1, block_length=1)
    np.testing.assert_array_equal(sample(TABLE, PROMPT, one)[:, 5:], expected)


def sorted_filter(p, top_p, top_k):
    """Tokens kept by sorting: the first whose sum passes top_p, of those the first top_k.

    Those as likely as the last of them are kept too.
    """
    order = np.argsort(-p, kind="stable")
    before = np.concatenate([[0], np.cumsum(p[order])[:-1]])
    kept = [i for rank, i in enumerate(order) if before[rank] <= top_p and rank < top_k]
    return p >= p[kept].min()


@pytest.mark.parametrize(("top_p", "top_k"), [(0.3, None), (0.9, None), (None, 5), (0.7, 3)])
def test_filters_keep_what_sorting_keeps(top_p, top_k):
    config = dataclasses.replace(CONFIG, top_p=top_p, top_k=top_k)
    policy = Namespace(has_top_p=top_p is not None, has_top_k=top_k is not None)
    inputs = Namespace(top_p=jnp.float32(top_p or 1), top_k=jnp.int32(top_k or 1))
    logits = np.random.default_rng(0).normal(0, 3, (200, 50)).astype(np.float32)
    logits[:, 7] = -np.inf
    kept = -np.inf < np.array(filtered.__wrapped__(jnp.asarray(logits.T), inputs, policy)).T
    exact = (softmax(row.astype(np.float64)) for row in logits)
    expected = [sorted_filter(p, top_p or 1, top_k or 50) for p in exact]
    expected = np.array(expected) & (logits > -np.inf)
    np.testing.assert_array_equal(kept, expected)
    assert config.candidate.top_k == top_k


class Namespace:
    def __init__(self, **values):
        self.__dict__.update(values)


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    return float(((counts - expected)[possible] ** 2 / expected[possible]).sum())


@pytest.mark.parametrize(("top_p", "top_k"), [(None, None), (0.8, None), (None, 4), (0.9, 6)])
def test_sampled_tokens_follow_the_filtered_distribution(top_p, top_k):
    """One open position, 4000 rows; the exact distribution is known from the table."""
    config = SamplingConfig(
        steps=1, gen_length=1, block_length=1, temperature=1.5, top_p=top_p, top_k=top_k
    )
    rows = 4000
    tokens = sample(TABLE, np.repeat(PROMPT, rows, axis=0), config, key=jax.random.key(1))
    canvas = np.concatenate([PROMPT, np.full((1, 1), 31)], axis=1)
    logits = np.array(TABLE(jnp.asarray(canvas)))[0, 5].astype(np.float64)
    logits[31] = -np.inf
    p = softmax(logits / 1.5)
    p = np.where(sorted_filter(p, top_p or 1, top_k or 32), p, 0)
    p /= p.sum()
    counts = np.bincount(np.array(tokens)[:, -1], minlength=32)
    often = p * rows >= 5
    counts, p = (np.append(x[often], x[~often].sum()) for x in (counts, p))
    degrees = max(1, np.count_nonzero(p) - 1)
    # Mean and spread of chi-square; five standard deviations.
    assert chi_square(counts, p) < degrees + 5 * np.sqrt(2 * degrees)


def test_orders_are_drawn_in_proportion_to_the_softmax_of_their_scores():
    """The first position of Dream's alg_temp, and the uniform order of `origin`."""
    rows = 4000
    prompts = np.repeat(PROMPT, rows, axis=0)
    config = SamplingConfig(
        steps=4, gen_length=4, block_length=4, selection="dream:maskgit_plus,alg_temp=0.2"
    )
    canvas = np.concatenate([PROMPT, np.full((1, 4), 31)], axis=1)
    logits = np.array(TABLE(jnp.asarray(canvas)))[0, 5:].astype(np.float64)
    logits[:, 31] = -np.inf
    p = softmax(softmax(logits).max(axis=-1) / 0.2)
    order = sample_trace(TABLE, prompts, config, key=jax.random.key(1)).order
    assert ((order == 0).sum(axis=1) == 1).all()
    first = np.argmin(order, axis=1)
    # 99.9 % quantile of chi-square with 3 degrees of freedom.
    assert chi_square(np.bincount(first, minlength=4), p) < 16.3
    origin = dataclasses.replace(config, selection="dream:origin")
    order = sample_trace(TABLE, prompts, origin, key=jax.random.key(1)).order
    # Every mask goes at each of the four steps with probability 1/4 (times are linear), so that a
    # row whose masks all go at once, in one call, is seen once in 64; calls without masks are left
    # out.
    counts = (order.max(axis=1) == 0).sum()
    assert abs(counts - rows / 64) < 5 * np.sqrt(rows / 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "thresh:0.9"}, "selection=thresh:0.9 is unknown; did you mean 'threshold'"),
        ({"selection": "threshold:high"}, "threshold=high must be a number"),
        ({"selection": "threshold:-1"}, "threshold=-1.0 must be a finite number"),
        ({"selection": "factor:1,rule=own"}, "rule=own is unknown; choose from intended"),
        ({"selection": "fixed:stochastic=true"}, "stochastic=true is for counts=dllm"),
        ({"selection": "dream:origin,alg_temp=1"}, "alg_temp=1.0 orders by confidence"),
        ({"selection": "dream:eps=0"}, "eps=0.0 must lie between 0 and 1"),
        ({"selection": "margin:dllm,dllm"}, "selection=margin:dllm,dllm"),
        ({"selection": "margin", "remasking": "random"}, "remasking=random and selection=margin"),
        ({"selection": "threshold:1", "remasking": "random"}, "two orders of positions"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_k": 0}, "top_k=0 must be a whole number, at least 1"),
        ({"suppress_tokens": [-3]}, r"suppress_tokens=\[-3\] must hold token ids"),
        ({"cfg_keep_tokens": [3]}, r"cfg_keep_tokens=\[3\] is for guidance"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_ids_outside_the_vocabulary_are_refused():
    config = dataclasses.replace(CONFIG, suppress_tokens=(40,))
    with pytest.raises(UserError, match="suppress_tokens holds 40, outside the 32 rows"):
        sample(TABLE, PROMPT, config)


@pytest.mark.parametrize("rule", RANDOM)
def test_rules_that_draw_need_a_key(rule):
    with pytest.raises(UserError, match=r"pass key=jax\.random\.key"):
        sample(TABLE, PROMPT, dataclasses.replace(CONFIG, selection=rule))
