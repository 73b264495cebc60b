"""Gumbel noise against a float64 oracle, and sampled frequencies against exact probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada.sampling.gumbel import gumbel, gumbel_from_words

TOP = 2**32 - 1


def oracle(high, low):
    """-log(-log(u)) of u = (bits + 1/2) / 2**64 in long double, each tail from its own side."""
    high, low = (np.asarray(word).astype(np.longdouble) for word in (high, low))
    u = (high * 2**32 + low + 0.5) / np.longdouble(2) ** 64
    rest = ((TOP - high) * 2**32 + (TOP - low) + 0.5) / np.longdouble(2) ** 64
    exponential = np.where(u < 0.5, -np.log(u), -np.log1p(-np.minimum(rest, 0.5)))
    return (-np.log(exponential)).astype(np.float64)


def noise(high, low):
    return np.asarray(gumbel_from_words(jnp.uint32(high), jnp.uint32(low)))


def words():
    """Bit patterns of every size, from both ends, and around one half."""
    rng = np.random.default_rng(0)
    small = (2.0 ** rng.uniform(0, 32, 4000)).astype(np.uint64).clip(0, TOP).astype(np.uint32)
    low = rng.integers(0, 2**32, 4000, dtype=np.uint32)
    edge = np.array([0, 0, TOP, TOP, 2**31, 2**31 - 1, 2**31, 2**31 - 1], np.uint32)
    edge_low = np.array([0, TOP, 0, TOP, 0, TOP, TOP, 0], np.uint32)
    zeros = np.zeros(4000, np.uint32)
    return (
        np.concatenate([small, ~small, zeros, ~zeros, low, edge]),
        np.concatenate([low, low, small, ~small, small, edge_low]),
    )


def test_noise_agrees_with_float64_on_both_tails():
    high, low = words()
    expected = oracle(high, low)
    assert expected.min() < -3.8
    assert expected.max() > 45
    # Four roundings of float32, each relative to a value near one or to the result.
    np.testing.assert_allclose(noise(high, low), expected, rtol=3e-7, atol=3e-7)


def test_noise_grows_with_its_bits():
    high, low = words()
    order = np.lexsort([low, high])
    assert (np.diff(noise(high[order], low[order])) >= -3e-6).all()


def test_noise_has_the_moments_of_the_gumbel_distribution():
    draws = np.asarray(gumbel(jax.random.key(1), 1_000_000), np.float64)
    # Five standard errors: the standard deviation is pi / sqrt(6), kurtosis 5.4.
    assert abs(draws.mean() - np.euler_gamma) < 5 * 1.2826 / 1000
    assert abs(draws.var() - np.pi**2 / 6) < 5 * 1.645 * np.sqrt(4.4) / 1000


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_frequencies_follow_the_softmax(temperature):
    logits = np.array([0.0, -1.0, 0.5, -4.0, -6.0, 1.5], np.float64)
    exact = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    draws = np.asarray(gumbel(jax.random.key(2), 400_000 * 6)).reshape(-1, 6)
    picked = np.argmax(logits.astype(np.float32) + np.float32(temperature) * draws, axis=1)
    # 99.9 % quantile of chi-square with 5 degrees of freedom.
    assert chi_square(np.bincount(picked, minlength=6), exact) < 20.5


@pytest.mark.parametrize("gap", [21.0, 23.0, 26.0])
def test_a_token_far_behind_wins_as_often_as_it_should(gap):
    """Among draws that begin with 32 one-bits, a chance of 2**-32, so that the event is seen often.

    Given that, its noise is beyond 22.18 = -log(2**-32), where one 32-bit word has a single value.
    """
    trials = 200_000
    rng = np.random.default_rng(3)
    low = rng.integers(0, 2**32, trials, dtype=np.uint32)
    tail = noise(np.full(trials, TOP, np.uint32), low)
    front = noise(*rng.integers(0, 2**32, (2, trials), dtype=np.uint32))
    wins = np.count_nonzero(tail - np.float32(gap) > front)
    # P(g0 < g - gap) = E[exp(-exp(gap) * v)], v = -log(u) uniform in (0, 2**-32).
    rate = np.exp(gap) * 2.0**-32
    chance = -np.expm1(-rate) / rate
    spread = np.sqrt(trials * chance * (1 - chance))
    assert abs(wins - trials * chance) < 4 * spread
