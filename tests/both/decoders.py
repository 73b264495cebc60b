"""Hierarchical and credit decoding beyond their definitions, on either backend."""

import dataclasses

import numpy as np
import pytest

from jaxllada.common.answer_rows import lay_out
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.policy import Policy
from tests.plain_canvas import ending_table, sloping_table
from tests.plain_loop import TABLE_CONFIG
from tests.sampling_cases import CONFIG as PLAIN
from tests.sampling_cases import PROMPTS, SEEN, SHORT, VISIBLE, own_prompt
from tests.selection_oracle import DenseCredit, of_runs, one_row

CREDIT = "credit:0.9,alpha=3.0"
CONFIG = dataclasses.replace(PLAIN, selection=CREDIT)


@pytest.fixture(scope="module")
def model(backend, sharp):
    return backend.load(sharp)


@pytest.mark.parametrize("levels", [3, 10_000])  # few levels: many ties
@pytest.mark.parametrize("has_last", [False, True])
def test_the_best_of_every_run_is_kept(backend, levels, has_last):
    rng = np.random.default_rng(levels)
    shape = (64, 13)
    score = (rng.integers(0, levels, shape) / levels).astype(np.float32)
    eligible = rng.random(shape) < 0.7
    last = eligible & (rng.random(shape) < (0.4 if has_last else 0))
    count = rng.integers(0, 4, shape[0]).astype(np.int32)
    chosen = backend.most_confident(
        score, eligible, count, last if has_last else None, "hierarchy", 0.9, 0.3
    )
    for row in range(len(score)):
        # Held back tokens are in runs, but behind all others, and they never pass.
        left = {int(i): score[row, i] for i in np.flatnonzero(eligible[row])}
        ranked = sorted(left, key=lambda i: (last[row, i], -score[row, i], i))
        free = {i: -1.0 if last[row, i] else value for i, value in left.items()}
        expected = {*ranked[: count[row]], *of_runs("hierarchy:0.9,0.3", range(13), free)}
        assert set(np.flatnonzero(chosen[row])) == expected


def test_few_credits_are_the_whole_matrix(backend):
    """Winners come, go and come back; some ids are forbidden; the mask is the likeliest of all."""
    rng = np.random.default_rng(0)
    config = dataclasses.replace(
        CONFIG, selection="credit:0.9", logits_eos_inf=True, suppress_tokens=(3, 4)
    )
    canvas = lay_out(TABLE_CONFIG, SHORT[:1], config).canvas(np.array([0]), 1, 0, 0)
    positions, vocabulary, mask = 6, 32, canvas.policy.mask_id
    few = backend.few_credits(canvas, config, positions)
    whole = DenseCredit("credit:0.9", positions, vocabulary)
    for call in range(8):
        logits = rng.normal(0, 1, (positions, vocabulary)).astype(np.float32)
        logits[:, 5:8] += 4
        logits[:, mask] += 9
        exact = logits.astype(np.float64)
        exact[:, [3, 4, canvas.policy.eos_id]] = -np.inf
        raised, tokens, amounts = few(logits, call)
        whole.give(exact, range(positions), mask)
        # float32 sums of up to 32 terms, and their logarithms.
        np.testing.assert_allclose(raised, exact, rtol=1e-5, atol=1e-5)
        found = np.zeros((positions, vocabulary))
        np.add.at(found, (np.arange(positions)[:, None], tokens), amounts)
        np.testing.assert_allclose(found, whole.amounts, rtol=1e-5, atol=1e-6)
    assert (np.count_nonzero(amounts, axis=1) < 8).any(), "no winner came back"


def test_credit_takes_the_room_of_the_active_block_only(backend):
    def room(config):
        return backend.room(3, Policy.of(config, TABLE_CONFIG, config.block_length))

    assert room(CONFIG) == [(3, 8, 8)] * 2
    assert room(dataclasses.replace(CONFIG, selection="threshold:0.9")) == []


def test_guided_logits_get_credit(backend, model):
    forward, mask = backend.logits_of(model), model.config.mask_token_id

    def guided(canvas, visible):
        hidden = np.concatenate([np.full_like(canvas[:, :7], mask), canvas[:, 7:]], axis=1)
        given, without = (forward(x, visible) for x in (canvas, hidden))
        return without + np.float32(1.7) * (given - without)

    config = dataclasses.replace(CONFIG, cfg_scale=0.7)
    expected = list(one_row(guided, PROMPTS[0], config, model.config, CREDIT))
    frames = list(backend.trace(model, PROMPTS[:1], config).frames())[1:]
    np.testing.assert_array_equal(frames, [canvas[:, 7:] for canvas in expected])


def test_rows_of_a_batch_and_pieces_of_a_run_change_nothing(backend, model):
    config = dataclasses.replace(CONFIG, temperature=0.6, top_p=0.9)
    both = backend.trace(model, PROMPTS, config, VISIBLE)
    pieces = backend.trace(model, PROMPTS, config, VISIBLE, piece=3)
    np.testing.assert_array_equal(pieces.order, both.order)
    for row in range(2):
        alone = backend.trace(model, own_prompt(row), config, rows=[row])
        np.testing.assert_array_equal(alone.tokens[0], both.tokens[row])
        assert alone.num_steps <= both.num_steps < config.steps


@pytest.mark.parametrize("rule", ["credit:0.4,alpha=2.0", "hierarchy:0.3,0.15"])
@pytest.mark.parametrize("canvas", ["fixed", "grow", "adaptive:start=6,window=3,confidence=0.3"])
def test_rows_leave_and_blocks_come(backend, rule, canvas):
    """A new block begins without credit, whether its batch is smaller or its canvas longer."""
    table = sloping_table(3, 10) if canvas.startswith("adaptive") else ending_table(3, 7)
    model = backend.table_model(table)
    steps = 24 if canvas == "fixed" else 4
    config = SamplingConfig(
        steps=steps, gen_length=24, block_length=4, stop_at_eos=True, selection=rule, canvas=canvas
    )
    together = backend.trace(model, SHORT, config, SEEN)
    for row in range(3):
        alone = backend.trace(model, SHORT[row : row + 1, SEEN[row] == 1], config)
        length = alone.tokens.shape[1]
        np.testing.assert_array_equal(together.tokens[row, :length], alone.tokens[0])
        # What was left of a credit would raise a confidence.
        confidence = together.confidence[row, :length]
        np.testing.assert_allclose(confidence, alone.confidence[0], rtol=1e-6)
    # The fixed rule takes four calls for each block that anything was predicted in.
    blocks = (together.confidence > 0).any(axis=0).reshape(-1, 4).any(axis=1).sum()
    assert together.num_steps < 4 * blocks


def test_a_refresh_in_every_call_gives_the_tokens_of_no_cache(backend, model):
    plain, cached = (
        backend.trace(model, PROMPTS, dataclasses.replace(CONFIG, cache=cache), VISIBLE)
        for cache in ("none", "dual:1")
    )
    np.testing.assert_array_equal(cached.order, plain.order)
    np.testing.assert_array_equal(cached.tokens, plain.tokens)


def test_no_weight_of_the_credit_is_no_credit(backend, model):
    weightless, threshold = (
        backend.trace(model, PROMPTS[:1], dataclasses.replace(CONFIG, selection=rule)).order
        for rule in ("credit:0.5,alpha=1e-30", "threshold:0.5")
    )
    np.testing.assert_array_equal(weightless, threshold)


@pytest.mark.parametrize("steps", [2, 6, 16])
def test_a_strict_hierarchy_is_the_fixed_number_and_a_bold_one_a_call(backend, model, steps):
    def order(rule):
        config = dataclasses.replace(CONFIG, selection=rule, steps=steps)
        return backend.trace(model, PROMPTS, config, VISIBLE).order

    np.testing.assert_array_equal(order("hierarchy:1.5,1.5"), order("fixed"))
    one_shot = np.repeat([[0, 1]], 8, axis=1).repeat(2, axis=0)
    np.testing.assert_array_equal(order("hierarchy:0,0"), one_shot)
