"""Canvases that change, in both samplers on the same weights: the same tokens in the same order."""

import dataclasses

import numpy as np
import pytest

import jaxllada
import npu_backend
from jaxllada.sampling.generate import sample_progress as jax_progress
from npu_backend.sampling.generate import sample_progress as torch_progress
from tests.jax.golden import DENSE

PROMPTS = np.array([[17, 301, 44, 5, 9], [0, 0, 0, 77, 12], [0, 8, 9, 10, 11]], np.int32)
VISIBLE = np.array([[1] * 5, [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]], np.int32)
BASE = jaxllada.SamplingConfig(steps=2, gen_length=24, block_length=4, canvas="grow")


@pytest.fixture(scope="module")
def models():
    return jaxllada.load(DENSE), npu_backend.load(DENSE)


@pytest.fixture(scope="module")
def stop(models):
    """A token of the second row's answer that the first and third do not hold so early."""
    *_, last = torch_progress(models[1], PROMPTS, BASE, VISIBLE)
    others = set(last.trace.tokens[[0, 2], :12].ravel().tolist())
    return next(int(token) for token in last.trace.tokens[1] if int(token) not in others)


def assert_same_run(models, config, prompts=PROMPTS):
    ours, theirs = (
        list(progress(model, prompts, config, VISIBLE, steps_per_piece=1))
        for progress, model in zip((jax_progress, torch_progress), models, strict=True)
    )
    assert [(p.nfe, p.columns) for p in ours] == [(p.nfe, p.columns) for p in theirs]
    np.testing.assert_array_equal(theirs[-1].trace.tokens, ours[-1].trace.tokens)
    np.testing.assert_array_equal(theirs[-1].trace.order, ours[-1].trace.order)
    # Both round logits of size 20 in float32, which enter as exp.
    np.testing.assert_allclose(
        theirs[-1].trace.confidence, ours[-1].trace.confidence, rtol=1e-4, atol=1e-6
    )
    return ours[-1]


@pytest.mark.parametrize("cache", ["none", "dual", "vicinity:2,2,1"])
def test_growing_rows_that_stop_are_the_same(models, stop, cache):
    config = dataclasses.replace(BASE, cache=cache, stop_token_ids=(stop,))
    assert_same_run(models, config)


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 1.5}], ids=["plain", "guided"])
def test_adaptive_lengths_are_the_same(models, options):
    # This model hardly ever predicts its end, so that answers grow; see the table models for more.
    config = dataclasses.replace(BASE, canvas="adaptive:start=4,confidence=0.001", **options)
    assert assert_same_run(models, config).nfe > 12


def test_gaps_and_pulls_are_the_same(models):
    mask = models[1].config.mask_token_id
    gaps = PROMPTS.copy()
    gaps[:, 3] = mask
    assert_same_run(models, dataclasses.replace(BASE, canvas="fixed", infill=True), gaps)
    pulled = dataclasses.replace(BASE, end_think_token_ids=(40, 41), end_think_logit_boost=30.0)
    trace = assert_same_run(models, pulled).trace
    assert "40, 41" in str(trace.tokens[0].tolist())
