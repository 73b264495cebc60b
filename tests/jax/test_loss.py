"""Objectives: worked numbers, invariances, and the chunked loss against its oracle."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada.common.errors import UserError
from jaxllada.diffusion.chunked import chunked_cross_entropy
from jaxllada.diffusion.loss import cross_entropy, loss_weights, masked_diffusion_loss, sft_loss


def logits_costing(nll, vocab=5):
    """Logits whose cross-entropy against token 0 is `nll`, the rest being equally likely."""
    p = np.exp(-np.asarray(nll, np.float64))
    rest = np.repeat(((1 - p) / (vocab - 1))[..., None], vocab - 1, axis=-1)
    return jnp.asarray(np.log(np.concatenate([p[..., None], rest], axis=-1)), jnp.float32)


def test_pretraining_worked_example():
    """B=1, L=4, p=1/2, masked {0, 2} with cross-entropies 1 and 3: (1/.5 + 3/.5) / 4 = 2."""
    is_masked = jnp.array([[True, False, True, False]])
    logits = logits_costing([[1.0, 2.0, 3.0, 0.5]])
    targets, rate = jnp.zeros((1, 4), int), jnp.array([0.5])
    total = masked_diffusion_loss(logits, targets, is_masked, rate)
    np.testing.assert_allclose(total / 4, 2.0, rtol=1e-6)
    everything = jnp.ones((1, 4), bool)
    for norm, expected in {"token": 2.0, "sequence": 2.0, "batch": 8.0}.items():
        weights = loss_weights(is_masked, rate, everything, norm)
        loss = jnp.sum(weights * cross_entropy(logits, targets))
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_fine_tuning_worked_example():
    """Prompts of 2 and 4, p = .5 and .25, masked {2, 4} and {5}, cross-entropy 1 everywhere."""
    is_masked = np.zeros((2, 6), bool)
    is_masked[0, [2, 4]] = is_masked[1, 5] = True
    rate, lengths = jnp.array([0.5, 0.25]), jnp.array([2, 4])
    logits, targets = logits_costing(np.ones((2, 6))), jnp.zeros((2, 6), int)
    total = sft_loss(logits, targets, jnp.asarray(is_masked), rate, lengths)
    np.testing.assert_allclose(total / 2, 1.5, rtol=1e-6)
    maskable = jnp.arange(6) >= lengths[:, None]
    for norm, expected in {"sequence": 1.5, "token": 8 / 6, "batch": 4.0}.items():
        weights = loss_weights(jnp.asarray(is_masked), rate, maskable, norm)
        loss = jnp.sum(weights * cross_entropy(logits, targets))
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_prompt_positions_never_count():
    logits = jax.random.normal(jax.random.key(0), (2, 6, 5))
    targets, rate = jnp.zeros((2, 6), int), jnp.array([0.5, 0.25])
    lengths = jnp.array([2, 4])
    everywhere = jnp.ones((2, 6), bool)
    answers = jnp.arange(6) >= lengths[:, None]
    np.testing.assert_array_equal(
        sft_loss(logits, targets, everywhere, rate, lengths),
        sft_loss(logits, targets, answers, rate, lengths),
    )


@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_a_row_without_maskable_positions_counts_nowhere(norm):
    rng = np.random.default_rng(0)
    maskable = rng.random((4, 9)) < 0.7
    is_masked = maskable & (rng.random((4, 9)) < 0.5)
    rate = rng.uniform(0.1, 1, 4).astype(np.float32)
    alone = loss_weights(is_masked, rate, maskable, norm)
    nothing = np.zeros((1, 9), bool)
    padded = loss_weights(
        np.concatenate([is_masked, nothing]),
        np.append(rate, np.float32(0.5)),
        np.concatenate([maskable, nothing]),
        norm,
    )
    np.testing.assert_array_equal(padded[:4], alone)
    assert not padded[4].any()


@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_denominators_do_not_depend_on_the_cut(norm):
    rng = np.random.default_rng(1)
    maskable = rng.random((8, 9)) < 0.7
    is_masked = maskable & (rng.random((8, 9)) < 0.5)
    rate = rng.uniform(0.1, 1, 8).astype(np.float32)
    whole = loss_weights(is_masked, rate, maskable, norm)
    cut = loss_weights(
        is_masked.reshape(4, 2, 9), rate.reshape(4, 2), maskable.reshape(4, 2, 9), norm
    )
    np.testing.assert_array_equal(np.reshape(cut, (8, 9)), whole)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(UserError, match="loss_norm='tokens' is unknown"):
        loss_weights(np.ones((1, 2), bool), np.ones(1), np.ones((1, 2), bool), "tokens")


N, D, V = 50, 16, 37


def rows(dtype=jnp.float32, share=3):
    keys = jax.random.split(jax.random.key(0), 5)
    hidden = jax.random.normal(keys[0], (N, D)).astype(dtype)
    head = jax.random.normal(keys[1], (V, D))
    bias = jax.random.normal(keys[2], (V,))
    targets = jax.random.randint(keys[3], (N,), 0, V)
    weights = jax.random.uniform(keys[4], (N,)) * (jnp.arange(N) % share == 0)
    return hidden, head, bias, targets, weights


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
@pytest.mark.parametrize("share", [1, 3, 10**6])
@pytest.mark.parametrize("with_bias", [False, True])
def test_chunked_loss_and_gradients_equal_the_full_logits(chunk, share, with_bias):
    hidden, head, bias, targets, weights = rows(share=share)
    bias = bias if with_bias else None

    def full(hidden, head, bias):
        logits = hidden @ head.T + (0 if bias is None else bias)
        return 3 * jnp.sum(weights * cross_entropy(logits, targets))

    def chunked(hidden, head, bias):
        out = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias, chunk=chunk)
        return 3 * out.loss

    arguments = (0, 1, 2) if with_bias else (0, 1)
    expected = jax.value_and_grad(full, arguments)(hidden, head, bias)
    found = jax.jit(jax.value_and_grad(chunked, arguments))(hidden, head, bias)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_without_gradients_the_value_is_the_same():
    hidden, head, bias, targets, weights = rows()
    arguments = (hidden, head, targets, weights)
    value = chunked_cross_entropy(*arguments, head_bias=bias).loss
    graded, _ = jax.value_and_grad(
        lambda h: chunked_cross_entropy(h, *arguments[1:], head_bias=bias).loss
    )(hidden)
    np.testing.assert_allclose(value, graded, rtol=1e-6)


def test_row_losses_and_hits_are_those_of_the_full_logits():
    hidden, head, bias, targets, weights = rows()
    logits = hidden @ head.T + bias
    targets = jnp.where(jnp.arange(N) % 2 == 0, jnp.argmax(logits, axis=1), targets)
    out = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias, chunk=8)
    counts = np.asarray(weights != 0)
    nll = np.where(counts, cross_entropy(logits, targets), 0)
    np.testing.assert_allclose(out.nll, nll, rtol=1e-5, atol=1e-5)
    hits = counts & np.asarray(jnp.argmax(logits, axis=1) == targets)
    np.testing.assert_array_equal(out.is_correct, hits)


@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_watched_token_is_found_where_it_is_the_most_likely(with_gradients):
    hidden, head, bias, targets, weights = rows()
    guesses = np.asarray(jnp.argmax(hidden @ head.T + bias, axis=1))
    token = int(np.bincount(guesses[np.asarray(weights) != 0]).argmax())

    def losses(hidden):
        out = chunked_cross_entropy(
            hidden, head, targets, weights, head_bias=bias, chunk=8, watched=token
        )
        return out.loss, out

    compute = jax.grad(losses, has_aux=True) if with_gradients else losses
    out = compute(hidden)[1]
    expected = (guesses == token) & np.asarray(weights != 0)
    assert expected.any()
    np.testing.assert_array_equal(out.is_watched, expected)
    plain = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias, chunk=8)
    assert not plain.is_watched.any()


def test_bfloat16_rows_have_float32_losses():
    hidden, head, bias, targets, weights = rows(jnp.bfloat16, share=1)
    out = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias)
    logits = hidden.astype(jnp.float32) @ head.astype(jnp.bfloat16).astype(jnp.float32).T + bias
    expected = jnp.sum(weights * cross_entropy(logits, targets))
    assert out.loss.dtype == jnp.float32
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5)


MESH_PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxllada.diffusion.chunked import chunked_cross_entropy
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
keys = jax.random.split(jax.random.key(0), 4)
hidden, head = jax.random.normal(keys[0], (64, 16)), jax.random.normal(keys[1], (40, 16))
targets = jax.random.randint(keys[2], (64,), 0, 40)
weights = jax.random.uniform(keys[3], (64,)) * (jnp.arange(64) < 20)  # shards differ in work
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
loss = lambda h, w, m: chunked_cross_entropy(h, w, targets, weights, chunk=8, mesh=m).loss
run = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
one = run(hidden, head, None)
many = run(put(hidden, ("data", "fsdp")), put(head, "tensor"), mesh)
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
"""


def test_a_mesh_of_eight_devices_gives_the_same_loss_and_gradients():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    changes = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", MESH_PROGRAM], check=True, env=os.environ | changes)
