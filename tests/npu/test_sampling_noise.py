"""Random numbers of the torch sampler: their distribution, their tails, what they depend on."""

import numpy as np
import pytest
import torch

from npu_backend.sampling.gumbel import (
    RowSeed,
    draw_tokens,
    groups_of,
    gumbel_from_words,
    order_noise,
    token_noise,
)
from tests.npu.devices import DEVICE

TOP = 2**64 - 1


def test_noise_agrees_with_long_double_on_both_tails():
    rng = np.random.default_rng(0)
    small = (2.0 ** rng.uniform(0, 63, 4000)).astype(np.uint64)
    edge = np.array([0, 1, TOP, TOP - 1, 2**63, 2**63 - 1], np.uint64)
    words = np.concatenate([small, ~small, edge])
    wide = words.astype(np.longdouble)
    u = (wide + 0.5) / np.longdouble(2) ** 64
    rest = ((~words).astype(np.longdouble) + 0.5) / np.longdouble(2) ** 64
    exponential = np.where(u < 0.5, -np.log(u), -np.log1p(-np.minimum(rest, 0.5)))
    expected = (-np.log(exponential)).astype(np.float64)
    assert expected.min() < -3.8
    assert expected.max() > 45
    found = gumbel_from_words(words)
    assert found.dtype == np.float32
    # One rounding to float32.
    np.testing.assert_allclose(found, expected, rtol=6e-8, atol=6e-8)


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 32, 512, 1000, 126464, 157184])
def test_groups_cover_the_vocabulary(vocabulary):
    groups, width = groups_of(vocabulary)
    assert (groups - 1) * width < vocabulary <= groups * width
    assert groups + width < 2.2 * np.sqrt(vocabulary) + 2


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("vocabulary", [6, 11])
def test_sampled_frequencies_follow_the_softmax(temperature, vocabulary):
    logits = np.array([0.0, -1.0, 0.5, -4.0, -6.0, 1.5, 0.2, -2.0, 1.0, -np.inf, 0.7])[:vocabulary]
    exact = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    trials = 200_000
    noise = token_noise([RowSeed(2)], 0, 0, trials, vocabulary)[0]
    rows = torch.from_numpy(np.tile(logits.astype(np.float32), (trials, 1))).to(DEVICE)
    picked = draw_tokens(rows, torch.from_numpy(noise).to(DEVICE), temperature).cpu().numpy()
    counts = np.bincount(picked, minlength=vocabulary)
    possible = exact > 0
    assert (counts[~possible] == 0).all()
    # 99.9 % quantile of chi-square with 9 degrees of freedom; the small case has fewer.
    assert chi_square(counts[possible], exact[possible]) < 27.9


@pytest.mark.parametrize("gap", [21.0, 23.0, 26.0])
def test_a_group_far_behind_wins_as_often_as_it_should(gap):
    """Among draws that begin with 32 one-bits, a chance of 2**-32, so that the event is seen often.

    Given that, its noise is beyond 22.18 = -log(2**-32), where one 32-bit word has a single value.
    """
    trials = 200_000
    rng = np.random.default_rng(3)
    rare = np.uint64(TOP << 32 & TOP) | rng.integers(0, 2**32, trials, dtype=np.uint64)
    noise = np.zeros((trials, sum(groups_of(4))), np.float32)
    noise[:, 0] = gumbel_from_words(rng.integers(0, TOP, trials, dtype=np.uint64))
    noise[:, 1] = gumbel_from_words(rare)
    logits = torch.tensor([0.0, -np.inf, -gap, -np.inf], device=DEVICE).repeat(trials, 1)
    wins = int((draw_tokens(logits, torch.from_numpy(noise).to(DEVICE), 1.0) == 2).sum())
    # P(g0 < g - gap) = E[exp(-exp(gap) * v)], v = -log(u) uniform in (0, 2**-32).
    rate = np.exp(gap) * 2.0**-32
    chance = -np.expm1(-rate) / rate
    spread = np.sqrt(trials * chance * (1 - chance))
    assert abs(wins - trials * chance) < 4 * spread


@pytest.mark.parametrize("temperature", [1e-45, 1e-6])
def test_the_coldest_temperatures_take_the_largest_logit(temperature):
    logits = torch.tensor([[0.0, 5.0, 4.999, -np.inf]], device=DEVICE).repeat(100, 1)
    noise = torch.from_numpy(token_noise([RowSeed(0)], 0, 0, 100, 4)[0]).to(DEVICE)
    assert (draw_tokens(logits, noise, temperature) == 1).all()


def test_draws_depend_on_seed_row_step_and_place_alone():
    seeds = [RowSeed(7, 0), RowSeed(7, 1), RowSeed(8, 0)]
    together = token_noise(seeds, 3, 0, 5, 32)
    for row, seed in enumerate(seeds):
        np.testing.assert_array_equal(token_noise([seed], 3, 8, 3, 32)[0], together[row, :3])
    assert len(np.unique(together)) == together.size
    assert not np.isin(token_noise(seeds, 4, 0, 5, 32), together).any()
    # Positions before the answer have draws of their own, counted backwards.
    longer, shorter = token_noise(seeds, 3, -4, 9, 32), token_noise(seeds, 3, -2, 7, 32)
    np.testing.assert_array_equal(longer[:, 2:], shorter)
    np.testing.assert_array_equal(longer[:, 4:], together)
    assert len(np.unique(longer)) == longer.size


def test_the_random_order_is_uniform_and_repeats():
    draws = order_noise([RowSeed(1)], 0, 0, 100_000)
    np.testing.assert_array_equal(draws, order_noise([RowSeed(1)], 0, 0, 100_000))
    assert 0 <= draws.min() < draws.max() < 1
    counts = np.bincount((draws[0] * 10).astype(int), minlength=10)
    assert chi_square(counts, np.full(10, 0.1)) < 27.9


def test_draws_are_pinned():
    """Part of the definition: a seed must mean the same after an upgrade and on every device."""
    noise = token_noise([RowSeed(5, 2)], 1, 0, 1, 4)[0, 0]
    np.testing.assert_allclose(noise, [0.8306063, 0.326795, -0.8218837, 0.8672494], rtol=1e-6)
