"""The validation bound: a weighted sum written out, the same for every cut, with honest errors."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from flax import nnx

from jaxllada.common.data.batches import evaluation_batches
from jaxllada.common.errors import UserError
from jaxllada.common.run.evaluation import baselines, summarize, uniform_bound, unigram_bound
from jaxllada.common.run.metrics import BINS
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.sharding import make_mesh
from jaxllada.train.counts import Counts
from jaxllada.train.evaluate import RowSums, make_evaluator
from jaxllada.train.inputs import make_validation
from tests.jax.tiny_run import TINY, make_config, make_rows

ROWS = make_rows(7, length=12, seed=3)


@pytest.fixture(scope="module")
def model():
    return MaskPredictor(TINY, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def split(model):
    graphdef, params = nnx.split(model, nnx.Param)
    return make_evaluator(graphdef, make_mesh()), nnx.to_pure_dict(params)


def batches(batch_size, mc=3, rows=ROWS):
    return list(
        evaluation_batches(
            rows, seed=5, batch_size=batch_size, mask_id=TINY.mask_id, pad_id=TINY.pad_token_id,
            max_length=16, mc=mc,
        )
    )  # fmt: skip


def test_the_bound_is_the_mean_of_weighted_losses(model, split):
    evaluate, params = split
    found = evaluate(params, batches(4), 3)
    nats, hits, masked = np.zeros((7, 3)), 0, 0
    for number in range(21):
        batch = batches(1)[number]
        logits = np.asarray(model(batch.noisy[0], batch.visible), np.float64)[0]
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for i in np.flatnonzero(batch.is_masked[0, 0]):
            target = batch.tokens[0, 0, i]
            nats[number // 3, number % 3] -= log_p[i, target] / batch.mask_rate[0, 0]
            hits += log_p[i].argmax() == target
            masked += 1
    rows = nats.mean(axis=1) / 12  # all rows have 12 tokens
    assert found.bound == pytest.approx(rows.mean(), rel=1e-5)
    assert found.standard_error == pytest.approx(rows.std(ddof=1) / math.sqrt(7), rel=1e-4)
    assert found.accuracy == pytest.approx(hits / masked)
    assert (found.rows, found.tokens, found.draws) == (7, 84, 3)


def test_the_bound_does_not_depend_on_the_batch_size(split):
    evaluate, params = split
    one, other = (evaluate(params, batches(size), 3) for size in (2, 21))
    assert other.bound == pytest.approx(one.bound, rel=1e-6)
    assert other.standard_error == pytest.approx(one.standard_error, rel=1e-5)
    assert (one.rows, one.tokens) == (other.rows, other.tokens)


def test_two_evaluations_of_the_same_weights_are_identical(split):
    evaluate, params = split
    assert evaluate(params, batches(4), 3) == evaluate(params, batches(4), 3)


def test_a_model_that_knows_nothing_costs_log_v(split):
    """Zero weights predict uniformly over the V rows: ln V per token, up to the noise of 1/t."""
    evaluate, params = split
    nothing = jax.tree.map(lambda leaf: leaf * 0, params)
    rows = make_rows(200, length=12)
    found = evaluate(nothing, batches(50, mc=4, rows=rows), 4)
    assert abs(found.bound - math.log(TINY.rows)) < 4 * found.standard_error + 1e-3
    assert all(nll == pytest.approx(math.log(TINY.rows), rel=1e-5) for nll in found.nll_by_rate)


def test_the_standard_error_covers_the_spread_of_the_bound():
    """Rows of different lengths: the error of a ratio, against its spread over many samples."""
    rng = np.random.default_rng(0)
    zeros = Counts(*np.zeros((3, BINS)))

    def measured(rows):
        tokens = rng.integers(5, 30, rows).astype(np.float64)
        nats = tokens * 3 + rng.normal(size=rows) * tokens
        return summarize([RowSums(nats, tokens, zeros)], 1)

    many = [measured(100) for _ in range(400)]
    spread = np.std([found.bound for found in many])
    claimed = np.mean([found.standard_error for found in many])
    assert claimed == pytest.approx(spread, rel=0.1)  # the spread of 400 is known to 3.5 %


def test_padding_rows_are_not_counted():
    zeros = Counts(*np.zeros((3, BINS)))
    part = RowSums(np.array([6.0, 2.0, 0.0]), np.array([2.0, 2.0, 0.0]), zeros)
    found = summarize([part], 1)
    assert (found.bound, found.rows, found.tokens) == (2.0, 2, 4)
    assert found.nll_by_rate == (None,) * BINS


def test_baselines_are_their_formulas():
    train, validation = np.array([3, 0, 1]), np.array([1, 1, 2])
    expected = -(math.log(4 / 7) + math.log(1 / 7) + 2 * math.log(2 / 7)) / 4
    assert unigram_bound(train, validation) == pytest.approx(expected)
    assert uniform_bound(8) == pytest.approx(math.log(8))
    with pytest.raises(UserError, match="no tokens"):
        unigram_bound(train, validation * 0)


def test_baselines_are_measured_on_the_rows_that_are_used(tmp_path):
    from jaxllada.common.data.rows import PackedRows

    rows = PackedRows(np.array([[1, 1], [2, 2], [1, 1], [2, 2]], np.int32))
    train = PackedRows(np.array([[1, 1, 1, 2]], np.int32))
    found = baselines(train, rows, TINY, max_rows=2)  # rows 0 and 2
    total = 4 + TINY.vocab_size
    assert found["unigram_bound"] == pytest.approx(-math.log(4 / total))
    assert baselines(iter(()), None, TINY, 0) == {"uniform_bound": math.log(TINY.vocab_size)}


def test_validation_uses_the_rows_and_draws_of_the_settings(tmp_path, split):
    config = make_config(tmp_path, eval_max_rows=3, eval_mc=2, per_device_eval_batch_size=4)
    graphdef = nnx.split(MaskPredictor(TINY, rngs=nnx.Rngs(0)), nnx.Param)[0]
    found = make_validation(config, graphdef, TINY, ROWS, make_mesh())(split[1])
    assert (found.rows, found.draws, found.tokens) == (3, 2, 36)
    names = {field.name for field in dataclasses.fields(found)}
    assert set(found.to_dict()) == names | {"bound_per_byte"}
