"""Masks of the likelihood estimator: how many, which, and what is refused."""

import itertools

import numpy as np
import pytest

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.likelihood import (
    checked_tokens,
    every_round,
    mask_round,
    mask_rounds,
    stratified_counts,
)

MODEL = ModelConfig(
    rope=True, activation_type="silu", block_type="llama", max_sequence_length=12,
    vocab_size=100, embedding_size=100, mask_token_id=99, eos_token_id=98, pad_token_id=98,
)  # fmt: skip


def test_counts_are_steps_of_length_over_batch_rounded_half_to_even():
    """From 3 on in steps of 18/4: 3, 7.5, 12, 16.5; from 17 on they wrap behind 18."""
    np.testing.assert_array_equal(stratified_counts(3, 18, 4), [3, 8, 12, 16])
    np.testing.assert_array_equal(stratified_counts(17, 18, 4), [17, 4, 8, 12])
    np.testing.assert_array_equal(stratified_counts(1, 1, 16), [1] * 16)
    np.testing.assert_array_equal(stratified_counts(5, 7, 1), [5])


@pytest.mark.parametrize("length", [1, 2, 7, 16, 33])
def test_a_batch_as_long_as_the_answer_has_every_count_once(length):
    for start in range(1, length + 1):
        counts = stratified_counts(start, length, length)
        np.testing.assert_array_equal(np.sort(counts), np.arange(1, length + 1))


@pytest.mark.parametrize(("length", "batch"), [(5, 3), (7, 5), (12, 4), (40, 20)])
def test_every_count_is_equally_likely_where_nothing_is_halfway(length, batch):
    counts = [stratified_counts(start, length, batch) for start in range(1, length + 1)]
    np.testing.assert_array_equal(np.bincount(np.concatenate(counts))[1:], [batch] * length)


def test_rows_hide_as_many_positions_as_they_say_and_no_two_rounds_are_alike():
    config = LikelihoodConfig(mc_num=64, batch_size=8)
    rounds = list(mask_rounds(30, config))
    assert len(rounds) == 8
    for is_masked, counts in rounds:
        np.testing.assert_array_equal(is_masked.sum(axis=1), counts)
        assert counts.min() >= 1
    rows = [tuple(row) for masks, _ in rounds for row in masks if 3 < row.sum() < 27]
    assert len(set(rows)) == len(rows)


def test_every_set_of_positions_is_equally_likely():
    config = LikelihoodConfig(mc_num=6000, batch_size=4)
    sets = [tuple(np.flatnonzero(row)) for masks, _ in mask_rounds(4, config) for row in masks]
    for size in (1, 2, 3):
        expected = list(itertools.combinations(range(4), size))
        found = np.array([sum(s == e for s in sets) for e in expected])
        # 99.9 % quantile of chi-square with 5 degrees of freedom; the others have fewer.
        assert ((found - found.mean()) ** 2 / found.mean()).sum() < 20.5


def test_answers_share_random_numbers_and_drawings_do_not():
    config = LikelihoodConfig(mc_num=16, batch_size=16, seed=2)
    short, long = (mask_round(length, config, 0) for length in (20, 30))
    # The shorter answer's positions are hidden in the same order, and about as many of them.
    assert (short.is_masked == long.is_masked[:, :20]).mean() > 0.7
    other = mask_round(30, config, 0, drawing=1)
    assert (other.is_masked == long.is_masked).mean() < 0.65


@pytest.mark.parametrize("length", [1, 3, 6])
def test_every_set_is_written_out_once(length):
    rows = [tuple(row) for masks, _ in every_round(length) for row in masks]
    assert len(set(rows)) == len(rows) == 2**length - 1
    assert all(any(row) for row in rows)


def test_masks_are_a_function_of_seed_and_length():
    config = LikelihoodConfig(mc_num=4, batch_size=2, seed=7)

    def masks(**options):
        rounds = mask_rounds(6, config, **options)
        return ["".join(map(str, row.astype(int))) for masks, _ in rounds for row in masks]

    assert masks() == masks(seed=7) != masks(seed=8)
    # Part of the definition: an estimate must repeat after an upgrade.
    assert masks() == ["000010", "110110", "110010", "111111"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mc_num": 0}, "mc_num=0 must be at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be a whole number"),
        ({"mc_num": 1}, "mc_num=1 cannot be drawn in batches of batch_size=16; batch_size=1 div"),
        ({"mc_num": 24}, "batch_size=12 divides it"),
        ({"cfg_scale": -1}, "cfg_scale=-1 must be a finite number"),
        ({"seed": -1}, r"seed=-1 must lie in \[0, 2\*\*64\)"),
        ({"method": "exakt"}, "method='exakt' is unknown.*exact"),
        ({"reuse": "all"}, "reuse='all' is unknown; choose from none, prompt, corrected"),
        ({"rows_per_call": -1}, "rows_per_call=-1 must be 0 or larger"),
        ({"stop_level": 0.3}, r"stop_level=0.3 must be 0 or in \[0.5, 1\)"),
        ({"stop_level": 0.9, "method": "exact"}, "stop_level=0.9 with method=exact"),
        ({"stop_level": 0.9, "mc_num": 32}, "needs 3 rounds: mc_num=32 with batch_size=16 gives 2"),
        ({"stop_level": 0.9, "reuse": "corrected"}, "reuse=corrected with stop_level=0.9"),
        ({"method": "exact", "reuse": "corrected"}, "reuse=corrected with method=exact"),
        ({"method": "confidence", "reuse": "prompt"}, "reuse=prompt with method=confidence"),
        ({"block_length": 4}, "block_length=4 is for attention=block_causal"),
        ({"attention": "block_causal"}, "attention=block_causal with block_length=None"),
    ],
)
def test_options_that_cannot_be_run_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LikelihoodConfig(**options)


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        ([1], [], "answer is empty"),
        ([[1]], [2], r"prompt has shape \(1, 1\)"),
        ([1], [2.0], "answer has shape .* float64; expected one row of integer"),
        ([1, 100], [2], "prompt holds id 100 at position 1, outside the 100 rows"),
        ([1], [-1], "answer holds id -1 at position 0"),
        ([1] * 9, [2] * 4, r"9 \+ 4 = 13 tokens, more than max_sequence_length=12"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(prompt, answer, message):
    with pytest.raises(UserError, match=message):
        checked_tokens(prompt, answer, MODEL)


def test_an_empty_prompt_is_fine():
    prompt, answer = checked_tokens([], [1, 2], MODEL)
    assert (prompt.shape, answer.tolist()) == ((0,), [1, 2])
