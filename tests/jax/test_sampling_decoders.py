"""Hierarchical and credit decoding beyond their definitions: runs of masks, state, options."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada import convert
from jaxllada.common.answer_rows import lay_out
from jaxllada.common.config.adaptive import Credit, Hierarchy
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from jaxllada.common.policy import Policy
from jaxllada.sampling.credit import Credits, credited, no_credits
from jaxllada.sampling.generate import sample_stepwise, sample_trace
from jaxllada.sampling.inputs import Inputs
from jaxllada.sampling.loop import advance
from jaxllada.sampling.select import most_confident
from tests.jax.golden import DENSE
from tests.jax.sampling_oracle import TableModel
from tests.plain_canvas import ending_table, sloping_table
from tests.selection_oracle import DenseCredit, of_runs, one_row

PROMPTS = np.array([[17, 301, 44, 5, 9, 260, 8], [0, 0, 0, 77, 12, 400, 3]], np.int32)
VISIBLE = np.array([[1] * 7, [0, 0, 0, 1, 1, 1, 1]], np.int32)
CREDIT, HIERARCHY = "credit:0.5,alpha=3.0", "hierarchy:0.3,0.1"
CONFIG = SamplingConfig(steps=16, gen_length=16, block_length=8, selection=CREDIT)
SHORT = np.array([[4, 8, 15, 16, 23], [0, 0, 0, 5, 6], [0, 7, 8, 9, 10]], np.int32)
SEEN = np.array([[1] * 5, [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def model():
    return convert.load(DENSE)


def table_model(table):
    model = TableModel(seed=3)
    model.table[...] = table
    return model


@pytest.mark.parametrize("levels", [3, 10_000])  # few levels: many ties
@pytest.mark.parametrize("has_last", [False, True])
def test_the_best_of_every_run_is_kept(levels, has_last):
    rng = np.random.default_rng(levels)
    shape = (64, 13)
    score = (rng.integers(0, levels, shape) / levels).astype(np.float32)
    eligible = rng.random(shape) < 0.7
    last = eligible & (rng.random(shape) < (0.4 if has_last else 0))
    count = rng.integers(0, 4, shape[0]).astype(np.int32)
    chosen = most_confident(
        *map(jnp.asarray, (score, eligible, count)),
        jnp.asarray(last) if has_last else None, "hierarchy", 0.9, 0.3,
    )  # fmt: skip
    for row in range(len(score)):
        # Held back tokens are in runs, but behind all others, and they never pass.
        left = {int(i): score[row, i] for i in np.flatnonzero(eligible[row])}
        ranked = sorted(left, key=lambda i: (last[row, i], -score[row, i], i))
        free = {i: -1.0 if last[row, i] else value for i, value in left.items()}
        expected = {*ranked[: count[row]], *of_runs("hierarchy:0.9,0.3", range(13), free)}
        assert set(np.flatnonzero(chosen[row])) == expected


def test_few_credits_are_the_whole_matrix():
    """Winners come, go and come back; some ids are forbidden; the mask is the likeliest of all."""
    rng = np.random.default_rng(0)
    config = dataclasses.replace(
        CONFIG, selection="credit:0.9", logits_eos_inf=True, suppress_tokens=(3, 4)
    )
    canvas = lay_out(TableModel.config, SHORT[:1], config).canvas(np.array([0]), 1, 0, 0)
    inputs = Inputs.of(canvas, config, jax.random.key(0)[None])
    positions, vocabulary, mask = 6, 32, canvas.policy.mask_id
    few = Credits(jnp.zeros((positions, 8), int), jnp.full((positions, 8), jnp.nan))
    whole = DenseCredit("credit:0.9", positions, vocabulary)
    for call in range(8):
        logits = rng.normal(0, 1, (positions, vocabulary)).astype(np.float32)
        logits[:, 5:8] += 4
        logits[:, mask] += 9
        exact = logits.astype(np.float64)
        exact[:, [3, 4, canvas.policy.eos_id]] = -np.inf
        raised, few = credited(jnp.asarray(logits.T), few, jnp.int32(call), inputs, canvas.policy)
        whole.give(exact, range(positions), mask)
        # float32 sums of up to 20 terms, and their logarithms.
        np.testing.assert_allclose(np.asarray(raised).T, exact, rtol=1e-5, atol=1e-5)
        found = np.zeros((positions, vocabulary))
        np.add.at(found, (np.arange(positions)[:, None], few.tokens), few.amounts)
        np.testing.assert_allclose(found, whole.amounts, rtol=1e-5, atol=1e-6)
    assert (np.count_nonzero(few.amounts, axis=1) < 8).any(), "no winner came back"


def test_credit_takes_the_room_of_the_active_block_only(model):
    def room(config):
        policy = Policy.of(config, model.config, config.block_length)
        return jax.tree.leaves(jax.eval_shape(lambda: no_credits(3, policy)))

    assert [x.shape for x in room(CONFIG)] == [(3, 8, 8)] * 2
    assert room(dataclasses.replace(CONFIG, selection="threshold:0.9")) == []


def test_guided_logits_get_credit(model):
    forward = jax.jit(lambda canvas, visible: model(canvas, visible))
    mask = model.config.mask_token_id

    def guided(canvas, visible):
        hidden = np.concatenate([np.full_like(canvas[:, :7], mask), canvas[:, 7:]], axis=1)
        given, without = (np.array(forward(x, visible)) for x in (canvas, hidden))
        return without + np.float32(1.7) * (given - without)

    config = dataclasses.replace(CONFIG, cfg_scale=0.7)
    expected = list(one_row(guided, PROMPTS[0], config, model.config, CREDIT))
    frames = list(sample_trace(model, PROMPTS[:1], config).frames())[1:]
    np.testing.assert_array_equal(frames, [canvas[:, 7:] for canvas in expected])


def test_rows_of_a_batch_and_pieces_of_a_run_change_nothing(model):
    config = dataclasses.replace(CONFIG, temperature=0.6, top_p=0.9)
    key = jax.random.key(5)
    both = sample_trace(model, PROMPTS, config, VISIBLE, key=key)
    *_, pieces = sample_stepwise(model, PROMPTS, config, VISIBLE, key=key, steps_per_piece=3)
    np.testing.assert_array_equal(pieces.order, both.order)
    for row in range(2):
        own = PROMPTS[row : row + 1, VISIBLE[row] == 1]
        alone = sample_trace(model, own, config, key=jax.random.fold_in(key, row)[None])
        np.testing.assert_array_equal(alone.tokens[0], both.tokens[row])
        assert alone.num_steps <= both.num_steps < config.steps


@pytest.mark.parametrize("rule", ["credit:0.4,alpha=2.0", "hierarchy:0.3,0.15"])
@pytest.mark.parametrize("canvas", ["fixed", "grow", "adaptive:start=6,window=3,confidence=0.3"])
def test_rows_leave_and_blocks_come(rule, canvas):
    """A new block begins without credit, whether its batch is smaller or its canvas longer."""
    table = sloping_table(3, 10) if canvas.startswith("adaptive") else ending_table(3, 7)
    model = table_model(table)
    steps = 24 if canvas == "fixed" else 4
    config = SamplingConfig(
        steps=steps, gen_length=24, block_length=4, stop_at_eos=True, selection=rule, canvas=canvas
    )
    together = sample_trace(model, SHORT, config, SEEN)
    for row in range(3):
        alone = sample_trace(model, SHORT[row : row + 1, SEEN[row] == 1], config)
        length = alone.tokens.shape[1]
        np.testing.assert_array_equal(together.tokens[row, :length], alone.tokens[0])
        # What was left of a credit would raise a confidence.
        confidence = together.confidence[row, :length]
        np.testing.assert_allclose(confidence, alone.confidence[0], rtol=1e-6)


def test_a_refresh_in_every_call_gives_the_tokens_of_no_cache(model):
    plain, cached = (
        sample_trace(model, PROMPTS, dataclasses.replace(CONFIG, cache=cache), VISIBLE)
        for cache in ("none", "dual:1")
    )
    np.testing.assert_array_equal(cached.order, plain.order)
    np.testing.assert_array_equal(cached.tokens, plain.tokens)


def test_numbers_are_data_and_each_of_them_counts(model):
    def order(rule):
        return sample_trace(model, PROMPTS[:1], dataclasses.replace(CONFIG, selection=rule)).order

    base = order("credit:0.4,alpha=2.0")
    compiled = advance._cache_size()
    others = ("0.3,alpha=2.0", "0.4,alpha=1.0", "0.4,alpha=2.0,beta=0.1", "0.4,alpha=2.0,gamma=2.0")
    for numbers in others:
        assert (order(f"credit:{numbers}") != base).any(), numbers
    assert advance._cache_size() == compiled
    weightless = order("credit:0.15,alpha=1e-30")
    np.testing.assert_array_equal(weightless, order("threshold:0.15"))


@pytest.mark.parametrize("steps", [2, 6, 16])
def test_a_strict_hierarchy_is_the_fixed_number_and_a_bold_one_a_call(model, steps):
    def order(rule):
        config = dataclasses.replace(CONFIG, selection=rule, steps=steps)
        return sample_trace(model, PROMPTS, config, VISIBLE).order

    np.testing.assert_array_equal(order("hierarchy:1.5,1.5"), order("fixed"))
    one_shot = np.repeat([[0, 1]], 8, axis=1).repeat(2, axis=0)
    np.testing.assert_array_equal(order("hierarchy:0,0"), one_shot)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": "hierarchy:0.5,0.7"}, r"low=0.7 is above threshold=0.5"),
        ({"selection": "hierarchy:1.0,decay=0.1"}, "leaves decay=0.1 nothing to come down to"),
        ({"selection": "hierarchy:-1"}, "threshold=-1.0 must be a finite number"),
        ({"selection": "credit:0.9,alpha=0"}, "alpha=0 gives no credit: use selection=threshold"),
        ({"selection": "credit:0.9,beta=1.2"}, r"beta=1.2 must lie in \[0, 1\]"),
        ({"selection": "credit:0.9,gamma=-1"}, "gamma=-1.0 must be a finite number"),
        ({"selection": "credit:0.9,delta=1"}, "'delta=1' is unknown"),
        ({"selection": HIERARCHY, "remasking": "random"}, "two orders of positions"),
        ({"compat": "official-2025"}, "selection=credit:0.5,alpha=3.0 is younger than the sampler"),
        ({"compat": "official-2025", "selection": HIERARCHY}, "leave compat out"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_rules_are_given_as_values_or_text():
    for rule, text in [
        (Credit(0.8, gamma=0.5), "credit:0.8,gamma=0.5"),
        (Hierarchy(low=0.5), "hierarchy:0.92,0.5"),
    ]:
        config = dataclasses.replace(CONFIG, selection=rule)
        assert (config.selection, config.selection_rule) == (text, rule)
