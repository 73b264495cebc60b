import dataclasses
import itertools

import numpy as np
import pytest

from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.selection import Dream, Fixed
from jaxllada.common.errors import UserError
from jaxllada.common.unmasking import (
    dllm_counts,
    drawn_counts,
    dream_counts,
    transfer_counts,
    transfers,
    unmasking_plan,
)
from tests.selection_oracle import schedule


@pytest.mark.parametrize(
    ("num_masks", "steps", "counts"),
    [
        (10, 4, [3, 3, 2, 2]),
        (3, 5, [1, 1, 1, 0, 0]),
        (8, 2, [4, 4]),
        (0, 3, [0, 0, 0]),
        (7, 1, [7]),
    ],
)
def test_counts_follow_the_official_rule(num_masks, steps, counts):
    np.testing.assert_array_equal(transfer_counts(num_masks, steps), counts)


@pytest.mark.parametrize("num_masks", [0, 1, 5, 31, 32, 33])
@pytest.mark.parametrize("steps", [1, 2, 7, 32, 40])
def test_counts_cover_every_mask_and_never_grow(num_masks, steps):
    counts = transfer_counts(num_masks, steps)
    assert counts.sum() == num_masks
    assert len(counts) == steps
    assert (np.diff(counts) <= 0).all()
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("steps", "gen_length", "block_length"), [(128, 128, 32), (6, 24, 8), (40, 16, 8), (3, 24, 8)]
)
def test_plan_makes_every_call_that_commits_something_and_no_other(steps, gen_length, block_length):
    config = SamplingConfig(steps=steps, gen_length=gen_length, block_length=block_length)
    plan = unmasking_plan(config)
    counts = transfer_counts(block_length, plan.steps_per_block)
    assert plan.total_calls == plan.num_blocks * np.count_nonzero(counts)
    assert plan.num_blocks * plan.steps_per_block == steps


def test_defaults_are_the_published_ones():
    config = SamplingConfig()
    assert (config.steps, config.gen_length, config.block_length) == (128, 128, 128)
    assert (config.temperature, config.cfg_scale, config.remasking) == (0, 0, "low_confidence")
    assert not any([config.logits_eos_inf, config.confidence_eos_eot_inf, config.stop_at_eos])
    assert config.compat is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"steps": 100, "gen_length": 96, "block_length": 32},
            "steps=100 cannot be shared equally by 3 blocks; 99 or 102 can",
        ),
        ({"steps": 1, "gen_length": 4, "block_length": 2}, "by 2 blocks; 2 can"),
        ({"gen_length": 100}, "gen_length=100 is not a whole number of blocks of block_length=128"),
        ({"gen_length": 100, "block_length": 30}, "100 or 50 or 25 or 20 would be"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"gen_length": -1}, "gen_length=-1"),
        ({"block_length": 2.5}, "block_length=2.5 must be a whole number"),
        ({"steps": True}, "steps=True"),
        ({"temperature": -0.1}, "temperature=-0.1 must be a finite number"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"cfg_scale": float("inf")}, "cfg_scale=inf"),
        ({"cfg_scale": "much"}, "cfg_scale='much'"),
        ({"remasking": "low_confidense"}, "did you mean 'low_confidence'"),
        ({"compat": "dllm"}, "compat='dllm' is unknown; choose from official-2025"),
        ({"eot_token_id": -2}, "eot_token_id=-2"),
    ],
)
def test_impossible_settings_are_refused_with_key_value_and_cure(values, message):
    with pytest.raises(UserError) as error:
        SamplingConfig(**values)
    assert message in str(error.value)


def test_settings_are_checked_again_when_one_is_replaced():
    with pytest.raises(UserError):
        dataclasses.replace(SamplingConfig(), block_length=100)


@pytest.mark.parametrize(
    ("num_masks", "steps", "counts"),
    [(10, 4, [2, 3, 2, 3]), (3, 5, [1, 0, 1, 0, 1]), (0, 2, [0, 0]), (8, 1, [8])],
)
def test_dllm_rounds_half_to_even(num_masks, steps, counts):
    np.testing.assert_array_equal(dllm_counts(num_masks, steps), counts)


@pytest.mark.parametrize(("rule", "eps"), [("fixed:dllm", None), ("dream:entropy", 1e-3)])
def test_halves_round_as_in_the_releases_whose_times_are_float32(rule, eps):
    """Step by step; with exact times about half of these divisions would be others."""
    for masks, steps in itertools.product(range(1, 24), range(2, 13)):
        counts = dllm_counts(masks, steps) if eps is None else dream_counts(masks, steps, eps)
        assert counts[counts > 0].tolist() == schedule(rule, masks, steps), (masks, steps)


def test_dream_rounds_down_and_leaves_the_rest_to_the_last_step():
    np.testing.assert_array_equal(dream_counts(10, 4, 1e-3), [2, 2, 2, 4])
    assert dream_counts(512, 100, 1e-3).sum() == 512


@pytest.mark.parametrize("selection", ["fixed", "fixed:dllm", "margin", "threshold:0.5", "dream"])
def test_transfers_of_a_block_add_up_to_its_masks_without_gaps(selection):
    config = SamplingConfig(steps=12, gen_length=24, block_length=8, selection=selection)
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random((5, 30)) < 0.7, 9, 1)
    blocks = transfers(config, tokens, 9, 6)[:, :24].reshape(5, 3, 8)
    masks = (tokens[:, 6:] == 9).reshape(5, 3, 8).sum(axis=2)
    np.testing.assert_array_equal(blocks.sum(axis=2), masks)
    assert ((blocks > 0).sum(axis=2) <= 4).all()
    # Once a row has nothing to commit, it is done with the block.
    assert (np.diff((blocks > 0).astype(int), axis=2) <= 0).all()


def test_every_block_of_a_row_takes_the_draws_of_its_own_places():
    """A draw of 0.4998 is behind Dream's middle time of 1 - 0.5005, and before the linear one."""
    tokens = np.array([[1, 1, 9, 9, 9, 9, 9, 1]])  # a prompt of two, five masks in two blocks
    draws = np.array([[0.9, 0.1, 0.9, 0.2, 0.4998, 0.1]])
    for selection, expected in (
        ("fixed:dllm,stochastic=true", [1, 2, 0, 2, 0, 0]),
        ("dream:origin", [1, 2, 0, 1, 1, 0]),
    ):
        config = SamplingConfig(steps=4, gen_length=6, block_length=3, selection=selection)
        assert transfers(config, tokens, 9, 2, draws)[0, :6].tolist() == expected


@pytest.mark.parametrize(("rule", "eps"), [(Fixed("dllm", True), 0.0), (Dream("origin"), 1e-3)])
def test_drawn_counts_are_those_of_the_binomials(rule, eps):
    """Chance that 6 masks go in exactly k calls of 3 steps, enumerated over independent steps."""
    steps, masks, trials = 3, 6, 20_000
    times = np.linspace(1, eps, steps + 1)
    leave = -np.diff(np.append(times[:-1], 0))
    exact = np.zeros(4)
    for choice in itertools.product(range(steps), repeat=masks):
        exact[len(set(choice))] += np.prod(leave[list(choice)])
    draws = np.random.default_rng(1).random((trials, masks))
    counts = np.bincount([len(drawn_counts(row, rule, steps)) for row in draws], minlength=4)
    spread = np.sqrt(trials * exact * (1 - exact))
    assert (np.abs(counts - trials * exact) <= 4 * spread + 1e-9).all()
    assert all(drawn_counts(row, rule, steps).sum() == masks for row in draws[:100])
