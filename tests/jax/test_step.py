"""The training step: one global loss, however the batch is cut; no update from what is not finite.

The oracle is the loss of full logits differentiated by JAX over the whole batch at once.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.batches import Batch, BatchSource
from jaxllada.common.data.rows import RaggedRows, Row
from jaxllada.common.run.metrics import BINS
from jaxllada.diffusion.loss import loss_weights, masked_diffusion_loss
from jaxllada.models.mask_predictor import MaskPredictor
from jaxllada.train.optim import make_optimizer
from jaxllada.train.state import initial_state
from jaxllada.train.step import loss_and_gradient, token_losses, train_step

TRAIN = TrainConfig(max_grad_norm=0.3)
TINY = PRESETS["tiny"]
DROPPING = dataclasses.replace(TINY, residual_dropout=0.2, embedding_dropout=0.1)
ROWS = np.random.default_rng(0).integers(0, TINY.vocab_size - 2, (40, 16))


def source(accumulation=1, micro_batch=8, *, random_length_ratio=0.3, **settings):
    return BatchSource(
        ROWS, seed=1, micro_batch=micro_batch, accumulation=accumulation, max_length=16,
        mask_id=TINY.mask_token_id, pad_id=TINY.pad_token_id,
        random_length_ratio=random_length_ratio, **settings,
    )  # fmt: skip


@functools.cache
def split_model(config=TINY):
    graphdef, params = nnx.split(MaskPredictor(config, rngs=nnx.Rngs(0)), nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


@functools.cache
def make_step(config=TINY, *, ema_decay=0.9, donate=False):
    """Returns (compiled step, function that makes its first state)."""
    graphdef, params = split_model(config)
    optimizer = make_optimizer(TRAIN)
    step = functools.partial(
        train_step, graphdef=graphdef, optimizer=optimizer, loss_norm="token",
        ema_decay=ema_decay, dropout_seed=5 if config is DROPPING else None,
    )  # fmt: skip
    start = functools.partial(initial_state, optimizer=optimizer, with_ema=ema_decay > 0)
    return (
        jax.jit(step, donate_argnums=0 if donate else ()),
        lambda: start(jax.tree.map(jnp.array, params)),
    )


def assert_close(a, b, *, rtol=0.0, atol=0.0):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


@jax.jit
def weighted_rows(params, flat, row_weights):
    """Value and gradient of sum(row_weights * equation 3 of each row), on full logits."""

    def loss(params):
        logits = nnx.merge(split_model()[0], params)(flat.noisy, flat.visible)
        rows = jax.vmap(lambda *row: masked_diffusion_loss(*(x[None] for x in row)))(
            logits, flat.tokens, flat.is_masked, flat.mask_rate
        )
        return jnp.sum(rows * row_weights)

    return jax.value_and_grad(loss)(params)


def oracle(params, batch, norm="token"):
    """Loss and gradient of the whole batch at once, its denominators written out."""
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
    counted = flat.maskable.sum(axis=1)
    weights = {"token": 1 / counted.sum(), "sequence": 1 / counted / 8, "batch": 1 / 8}[norm]
    return weighted_rows(params, flat, np.broadcast_to(weights, 8).astype(np.float32))


CUTS = [("token", 1), ("token", 2), ("token", 8), ("sequence", 2), ("batch", 2)]


@pytest.mark.parametrize(("norm", "accumulation"), CUTS)
def test_loss_and_gradient_do_not_depend_on_the_cut(norm, accumulation):
    graphdef, params = split_model()
    whole = source().batch(0)
    expected = oracle(params, whole, norm)
    cut = source(accumulation, 8 // accumulation).batch(0)
    assert cut.visible is not None  # the batch has short rows
    compute = jax.jit(functools.partial(loss_and_gradient, graphdef=graphdef, loss_norm=norm))
    loss, _, grads = compute(params, cut, None)
    # Float32 sums in another order; gradients are of the order of 1e-2 to 1e-1.
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    assert_close(grads, expected[1], rtol=1e-4, atol=2e-6)


def test_counts_are_sums_over_masked_tokens_by_mask_rate():
    graphdef, params = split_model()
    batch = source(2, 4).batch(3)
    compute = jax.jit(functools.partial(loss_and_gradient, graphdef=graphdef, loss_norm="token"))
    _, counts, _ = compute(params, batch, None)
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)
    logits = np.asarray(nnx.merge(graphdef, params)(flat.noisy, flat.visible), np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nll, correct, masked = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)
    for r, rate in enumerate(flat.mask_rate):
        b = min(int(rate * BINS), BINS - 1)
        for i in np.flatnonzero(flat.is_masked[r]):
            nll[b] -= log_p[r, i, flat.tokens[r, i]]
            correct[b] += log_p[r, i].argmax() == flat.tokens[r, i]
            masked[b] += 1
    np.testing.assert_allclose(counts.nll, nll, rtol=1e-5)
    np.testing.assert_array_equal(counts.correct, correct)
    np.testing.assert_array_equal(counts.masked, masked)


def test_counts_tell_content_first_eos_and_padding_apart():
    """The end token is the model's own favourite here, so that it is guessed often."""
    graphdef, params = split_model()
    rows = RaggedRows([Row(row[: 5 + i], np.arange(5 + i) > 1) for i, row in enumerate(ROWS[:8])])
    model = nnx.merge(graphdef, params)
    favourite = int(np.argmax(model(np.full((1, 16), TINY.mask_token_id))[0, 0]))
    model.config = dataclasses.replace(TINY, pad_token_id=favourite)
    graphdef = nnx.split(model, nnx.Param)[0]
    batch = BatchSource(
        rows, seed=1, micro_batch=4, accumulation=2, max_length=16, pad_to_multiple=1,
        mask_id=TINY.mask_token_id, pad_id=favourite,
    ).batch(0)  # fmt: skip
    compute = jax.jit(functools.partial(loss_and_gradient, graphdef=graphdef, loss_norm="sequence"))
    _, counts, _ = compute(params, batch, None)
    found = np.zeros((4, 3))
    for a in range(2):
        logits = np.asarray(model(batch.noisy[a], None), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for b, i in zip(*np.nonzero(batch.is_masked[a]), strict=True):
            row, target = batch.tokens[a, b], batch.tokens[a, b, i]
            kind = 0 if (row[i:] != favourite).any() else 1 if row[i - 1] != favourite else 2
            guess = log_p[b, i].argmax()
            found[:, kind] += [-log_p[b, i, target], guess == target, 1, guess == favourite]
    assert (found[2] > 0).all()
    assert found[3, 0] > 0
    np.testing.assert_allclose(np.stack(counts.classes), found, rtol=1e-5)
    np.testing.assert_allclose(found[:3].sum(axis=1), np.sum(counts[:3], axis=1), rtol=1e-5)


@pytest.mark.parametrize("donate", [False, True])
def test_a_step_is_one_adamw_update_of_the_oracle_gradient(donate):
    step, start = make_step(donate=donate)
    _, params = split_model()
    batch = source().batch(0)
    adamw = optax.chain(
        optax.clip_by_global_norm(0.3), optax.adamw(0.01, b2=0.95, weight_decay=0.0)
    )
    loss, grads = oracle(params, batch)
    updates, _ = adamw.update(grads, adamw.init(params), params)
    plain = optax.apply_updates(params, updates)
    state, metrics = step(start(), batch, np.float32(0.01), np.int32(0))
    # Decay is tested with the optimiser; here it is the known factor on what moves by it.
    kernel = state.params["blocks"]["mlp"]["up_proj"]["kernel"]
    expected = (
        plain["blocks"]["mlp"]["up_proj"]["kernel"]
        - 0.01 * TRAIN.weight_decay * (params["blocks"]["mlp"]["up_proj"]["kernel"])
    )
    # The first Adam step is rate * sign(g) but for tiny g, where it magnifies rounding.
    assert np.mean(np.abs(kernel - expected) > 1e-5) < 0.01
    np.testing.assert_allclose(state.params["ln_f"]["weight"], plain["ln_f"]["weight"], atol=1e-5)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.grad_norm, optax.tree.norm(grads), rtol=1e-4)
    assert int(state.step) == 1
    assert float(metrics.maskable) == batch.maskable.sum()


def test_the_loss_falls_when_steps_repeat_one_batch():
    step, start = make_step(donate=True)
    batch, losses, state = source().batch(0), [], start()
    for _ in range(30):
        state, metrics = step(state, batch, np.float32(3e-3), np.int32(0))
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.7 * losses[0]


def poisoned(batch, where):
    """A batch whose loss is infinite (a mask rate of zero), or whose weights are NaN."""
    rates = batch.mask_rate.copy()
    rates[0, 0] = {"inf": 0.0, "nan": np.nan}[where]
    masked = batch.is_masked.copy()
    masked[0, 0, 0] = True
    return batch._replace(mask_rate=rates, is_masked=masked)


@pytest.mark.parametrize("where", ["inf", "nan"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing_but_its_counters(where, accumulation):
    step, start = make_step()
    good = source(accumulation, 8 // accumulation).batch(0)
    state, _ = step(start(), good, np.float32(1e-3), np.int32(0))
    after, metrics = step(state, poisoned(good, where), np.float32(1e-3), np.int32(1))
    assert not np.isfinite(float(metrics.loss))
    for name in ("params", "opt_state", "ema"):
        assert_close(getattr(after, name), getattr(state, name))
    counters = [int(after.step), int(after.skipped), int(after.skipped_total)]
    assert counters == [2, 1, 1]
    after, _ = step(after, poisoned(good, where), np.float32(1e-3), np.int32(2))
    after, _ = step(after, good, np.float32(1e-3), np.int32(3))
    assert [int(after.step), int(after.skipped), int(after.skipped_total)] == [4, 0, 2]


def test_dropout_is_a_function_of_seed_and_batch_number():
    step, start = make_step(DROPPING)
    state = start()
    batch = source(2, 4).batch(0)
    same = [float(step(state, batch, np.float32(0), np.int32(7))[1].loss) for _ in range(2)]
    other = float(step(state, batch, np.float32(0), np.int32(8))[1].loss)
    assert same[0] == same[1] != other


@jax.jit
def jitted_losses(params, batch, key):
    """Loss of one micro-batch, normalised by its rows, with a given dropout key."""
    piece = jax.tree.map(lambda leaf: leaf[0], batch)
    weights = loss_weights(piece.is_masked, piece.mask_rate, piece.maskable, "batch")
    return token_losses(nnx.merge(split_model(DROPPING)[0], params), piece, weights, key)[0]


def test_micro_batches_drop_different_units():
    """With one key for all, two equal micro-batches would give exactly twice one of them."""
    graphdef, params = split_model(DROPPING)
    one = source(1, 4).batch(0)
    two = Batch(*(None if x is None else np.concatenate([x, x]) for x in one))
    compute = jax.jit(functools.partial(loss_and_gradient, graphdef=graphdef, loss_norm="batch"))
    loss = float(compute(params, two, jax.random.key(0))[0])
    # A batch of one micro-batch splits its key into one, so the two keys are made by hand here.
    halves = [
        float(jitted_losses(params, one, key)) for key in jax.random.split(jax.random.key(0), 2)
    ]
    assert halves[0] != halves[1]
    np.testing.assert_allclose(loss, np.mean(halves), rtol=1e-6)


def test_the_average_follows_the_weights():
    step, start = make_step()
    batch = source().batch(0)
    state, _ = step(start(), batch, np.float32(1e-2), np.int32(0))
    # The decay of the first step is min(0.9, 1/10).
    expected = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start().params, state.params)
    assert_close(state.ema, expected, atol=1e-6)


def test_no_average_is_kept_unasked():
    step, start = make_step(ema_decay=0.0)
    state, _ = step(start(), source().batch(0), np.float32(1e-2), np.int32(0))
    assert state.ema is None
