"""Smoothing and aligned blocks of both samplers against one slow loop in NumPy, call by call."""

import numpy as np
import pytest

import jaxllada
import npu_backend
from jaxllada.sampling.generate import sample_trace as jax_trace
from npu_backend.sampling.generate import sample_trace as torch_trace
from tests import cache_oracle, smoothing_oracle
from tests.jax.golden import DENSE

PLAN = {"steps": 16, "gen_length": 16, "block_length": 8}
# Two prompts of different length, padded on the left.
PROMPTS = np.array([[17, 3, 29, 5, 9, 26, 8], [0, 0, 0, 7, 12, 4, 3]], np.int32)
VISIBLE = np.array([[1] * 7, [0, 0, 0, 1, 1, 1, 1]], np.int32)
# Shares that change what this model says; those of the published setting change little here.
STRONG = {"smoothing": "soft:4,1,0.5"}
AHEAD = {"smoothing": "soft:4,1,0.5,reach=canvas"}
ALIGNED = {"steps": 5, "start_block_align": True}


@pytest.fixture(scope="module")
def models():
    ours = jaxllada.load(DENSE)
    return ours, npu_backend.load(DENSE), smoothing_oracle.SoftModel(DENSE, ours.config)


def assert_follows(models, options, reader=cache_oracle.none, alone=False):
    """Rows together, or each alone where one makes calls that another does not need."""
    ours, theirs, plain = models
    config = jaxllada.SamplingConfig(**PLAN | options)
    expected = {
        row: [x[-16:] for x in smoothing_oracle.decode(plain, PROMPTS[row][VISIBLE[row] == 1],
                                                       config, reader)]
        for row in range(2)
    }  # fmt: skip
    for sample, model in ((jax_trace, ours), (torch_trace, theirs)):
        if not alone:
            trace = sample(model, PROMPTS, config, VISIBLE)
            frames = list(trace.frames())[1:]
            for row in range(2):
                np.testing.assert_array_equal([frame[row] for frame in frames], expected[row])
        for row in range(2) if alone else ():
            trace = sample(model, PROMPTS[row : row + 1, VISIBLE[row] == 1], config)
            frames = [frame[0] for frame in list(trace.frames())[1:]]
            np.testing.assert_array_equal(frames, expected[row])
    return expected[0]


@pytest.mark.parametrize(
    "options",
    [{"smoothing": "soft"}, STRONG, AHEAD, STRONG | {"cfg_scale": 0.7, "steps": 8}],
    ids=["published", "strong", "ahead", "guided"],
)
def test_masks_enter_with_what_was_predicted_for_them(models, options):
    assert_follows(models, options)


def test_these_settings_change_tokens(models):
    plain = assert_follows(models, {})
    for options in (STRONG, AHEAD):
        assert (assert_follows(models, options)[-1] != plain[-1]).any()


CACHES = {
    "prefix": cache_oracle.prefix,
    "dual": cache_oracle.dual,
    "vicinity:3,5,2": cache_oracle.vicinity(3, 5, 2),
    "dllm:4,3,0.25": cache_oracle.dllm(4, 3, 0.25),
}


@pytest.mark.parametrize("cache", CACHES)
def test_caches_keep_what_was_computed_from_smoothed_masks(models, cache):
    assert_follows(models, STRONG | {"cache": cache, "steps": 8}, CACHES[cache])


@pytest.mark.parametrize("cache", ["none", "block_causal"])
def test_kept_blocks_stay_exact_where_masks_are_smoothed(models, cache):
    options = STRONG | {"cache": cache, "attention": "block_causal", "steps": 8}
    assert_follows(models, options, cache_oracle.block_causal)


def test_thresholds_come_down_from_call_to_call(models):
    falling, still = "threshold:0.02,decay=0.3", "threshold:0.02"
    frames = assert_follows(models, STRONG | {"selection": falling}, alone=True)
    assert len(assert_follows(models, STRONG | {"selection": still}, alone=True)) < len(frames) < 16


@pytest.mark.parametrize("options", [{"cfg_scale": 0.7}, AHEAD], ids=["guided", "ahead"])
def test_blocks_begin_at_multiples_of_their_length(models, options):
    assert_follows(models, ALIGNED | options, alone=True)


@pytest.mark.parametrize("cache", ["dual", "vicinity:3,5,2"])
def test_caches_follow_aligned_blocks(models, cache):
    assert_follows(models, ALIGNED | {"cache": cache}, CACHES[cache], alone=True)
