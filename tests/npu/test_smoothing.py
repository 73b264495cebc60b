"""Smoothed masks and aligned blocks on the torch backend: their definition, and their rows."""

import dataclasses

import numpy as np
import pytest
import torch

from jaxllada.common.config.sampling import SamplingConfig
from npu_backend import convert
from npu_backend.sampling.generate import sample_stepwise, sample_trace
from tests import smoothing_oracle
from tests.jax.golden import DENSE
from tests.npu.devices import DEVICE
from tests.smoothing_oracle import (
    AHEAD,
    ALIGNED,
    GAPS,
    GAPS_SEEN,
    INFILL,
    PLAN,
    PROMPTS,
    STRONG,
    VISIBLE,
)


@pytest.fixture(scope="module")
def model():
    return convert.load(DENSE).to(DEVICE)


def alone(row):
    return PROMPTS[row : row + 1, VISIBLE[row] == 1]


@pytest.mark.parametrize(
    "options",
    [STRONG, AHEAD, ALIGNED, STRONG | {"selection": "threshold:0.02,decay=0.3"}],
    ids=["block", "canvas", "aligned", "falling"],
)
def test_every_call_follows_the_definition(model, options):
    config = SamplingConfig(**PLAN | options)
    plain = smoothing_oracle.SoftModel(DENSE, model.config)
    for row in range(2):
        trace = sample_trace(model, alone(row), config)
        expected = [x[-16:] for x in smoothing_oracle.decode(plain, alone(row)[0], config)]
        np.testing.assert_array_equal([frame[0] for frame in list(trace.frames())[1:]], expected)


ROWS = {
    "gaps": STRONG | INFILL,
    "ahead": AHEAD | {"selection": "threshold:0.08"},
    "dual": STRONG | {"cache": "dual", "selection": "threshold:0.12", "cfg_scale": 0.5},
    "grow": STRONG | ALIGNED | {"canvas": "grow"},
    "adaptive": AHEAD | ALIGNED | {"canvas": "adaptive:start=8,confidence=0.001"},
    "drawn": ALIGNED | {"selection": "dream:origin", "temperature": 0.7},
}


@pytest.mark.parametrize("options", ROWS.values(), ids=ROWS.keys())
def test_rows_do_not_depend_on_batch_mates(model, options):
    from npu_backend.sampling.gumbel import RowSeed

    config = SamplingConfig(**PLAN | options)
    seeds = [RowSeed(3, row) for row in range(2)]
    prompts, visible = (GAPS, GAPS_SEEN) if config.infill else (PROMPTS, VISIBLE)
    together = sample_trace(model, prompts, config, visible, seeds)
    assert together.num_steps > 2, "a call for each block leaves nothing to be remembered"
    for row in range(2):
        prompt = prompts[row : row + 1, visible[row] == 1]
        own = sample_trace(model, prompt, config, None, seeds[row : row + 1])
        length = own.tokens.shape[1]
        np.testing.assert_array_equal(own.tokens[0], together.tokens[row, -length:])


def test_rows_that_leave_take_what_their_masks_carry_along(model):
    config = SamplingConfig(**PLAN | AHEAD | ALIGNED)
    first = sample_trace(model, PROMPTS, config, VISIBLE)
    inside = set(first.tokens[1].tolist())
    stop = next(int(t) for t in first.tokens[0, :9] if int(t) not in inside)
    config = dataclasses.replace(config, stop_token_ids=(stop,))
    together = sample_trace(model, PROMPTS, config, VISIBLE)
    assert (together.tokens[0] != first.tokens[0]).any(), "the first row left early"
    np.testing.assert_array_equal(together.tokens[1], first.tokens[1])


def test_no_share_is_no_smoothing_and_pieces_change_nothing(model):
    config = SamplingConfig(**PLAN | STRONG | ALIGNED)
    whole = sample_trace(model, PROMPTS, config, VISIBLE)
    *_, last = sample_stepwise(model, PROMPTS, config, VISIBLE, steps_per_piece=3)
    np.testing.assert_array_equal(last.tokens, whole.tokens)
    plain, none = (
        sample_trace(model, PROMPTS, dataclasses.replace(config, smoothing=text), VISIBLE)
        for text in ("none", "soft:0")
    )
    np.testing.assert_array_equal(none.tokens, plain.tokens)
    assert (plain.tokens != whole.tokens).any()


def test_a_prompt_of_whole_blocks_is_aligned_already(model):
    prompt = torch.arange(8)[None] + 5
    found = [
        sample_trace(model, prompt, SamplingConfig(**PLAN | options)).tokens
        for options in ({}, {"start_block_align": True, "steps": 8})
    ]
    np.testing.assert_array_equal(*found)
