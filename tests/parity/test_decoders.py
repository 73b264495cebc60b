"""Hierarchical and credit decoding beside caches, canvases and candidates: both samplers alike."""

import numpy as np
import pytest

import jaxllada
import npu_backend
from jaxllada.sampling.generate import sample_progress as jax_progress
from npu_backend.sampling.generate import sample_progress as torch_progress

PROMPTS = np.array([[17, 301, 44, 5, 9], [0, 0, 0, 77, 12], [0, 8, 9, 10, 11]], np.int32)
VISIBLE = np.array([[1] * 5, [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]], np.int32)
PLAN = {"steps": 16, "gen_length": 16, "block_length": 8}
STEPS = {"steps": 8, "block_length": 8}
CREDIT = {"selection": "credit:0.9,alpha=3.0"}
HIERARCHY = {"selection": "hierarchy:0.6,0.3,decay=0.2"}
OPTIONS = {
    "credit, prefix, guidance": CREDIT | PLAN | {"cache": "prefix", "cfg_scale": 0.7},
    "credit, dllm, suppressed": CREDIT
    | PLAN
    | {"cache": "dllm:4,3,0.25", "suppress_tokens": (119, 491)},
    "credit, vicinity, growing": CREDIT
    | STEPS
    | {"gen_length": 24, "canvas": "grow", "cache": "vicinity:2,2,1", "top_k": 2},
    "credit, filters, gaps": CREDIT | STEPS | {"gen_length": 8, "infill": True, "top_p": 0.6},
    "hierarchy, dual, growing": HIERARCHY
    | STEPS
    | {"gen_length": 24, "canvas": "grow", "cache": "dual"},
    "hierarchy, adaptive, no confidence": HIERARCHY
    | STEPS
    | {"gen_length": 24, "canvas": "adaptive:start=8,confidence=0.001"}
    | {"begin_suppress_tokens": (203, 410)},
    "hierarchy, block causal": HIERARCHY
    | PLAN
    | {"cache": "block_causal", "attention": "block_causal"},
}


@pytest.fixture(scope="module")
def models(sharp):
    return jaxllada.load(sharp), npu_backend.load(sharp)


def last(progress, model, config):
    prompts = PROMPTS.copy()
    if config.infill:
        prompts[:, 3] = model.config.mask_token_id
    *_, end = progress(model, prompts, config, VISIBLE, steps_per_piece=5)
    return end


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_both_samplers_commit_the_same_tokens_in_the_same_steps(models, options):
    config = jaxllada.SamplingConfig(**options)
    if not config.is_fixed:
        # The second row ends early, and leaves.
        answer = last(torch_progress, models[1], config).trace.tokens
        others = set(answer[[0, 2], :16].ravel().tolist())
        stop = next(int(token) for token in answer[1] if int(token) not in others)
        config = jaxllada.SamplingConfig(**options, stop_token_ids=(stop,))
    ours, theirs = (
        last(progress, model, config)
        for progress, model in zip((jax_progress, torch_progress), models, strict=True)
    )
    assert (ours.nfe, ours.columns) == (theirs.nfe, theirs.columns)
    np.testing.assert_array_equal(theirs.trace.tokens, ours.trace.tokens)
    np.testing.assert_array_equal(theirs.trace.order, ours.trace.order)
    # Both round logits of size 60 in float32, which enter as exp; 0.01 is a difference of those.
    np.testing.assert_allclose(theirs.trace.confidence, ours.trace.confidence, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_part_of_these_runs_shows(models, options):
    """Otherwise two samplers that leave it out would be alike, too; an exact cache never shows."""
    shapes = {"steps", "gen_length", "block_length", "infill", "canvas", "attention"}
    exact = {"cache"} if options.get("cache") == "block_causal" else set()
    whole = last(torch_progress, models[1], jaxllada.SamplingConfig(**options)).trace
    for name in options.keys() - shapes - exact:
        left = {key: value for key, value in options.items() if key != name}
        found = last(torch_progress, models[1], jaxllada.SamplingConfig(**left)).trace
        assert (found.tokens != whole.tokens).any() or (found.order != whole.order).any(), name
