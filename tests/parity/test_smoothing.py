"""Smoothing and aligned blocks of both samplers against one slow loop in NumPy, call by call."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxllada
import npu_backend
from jaxllada.common.answer_rows import lay_out
from jaxllada.models.packed import Packed
from jaxllada.sampling import smoothing as jax_smoothing
from jaxllada.sampling.generate import sample_trace as jax_trace
from jaxllada.sampling.inputs import Inputs
from jaxllada.sampling.loop import initial_state
from npu_backend.sampling import smoothing as torch_smoothing
from npu_backend.sampling.generate import sample_trace as torch_trace
from tests import cache_oracle, smoothing_oracle
from tests.jax.golden import DENSE
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
def models():
    ours = jaxllada.load(DENSE)
    return ours, npu_backend.load(DENSE), smoothing_oracle.SoftModel(DENSE, ours.config)


def slow_frames(models, options, reader=cache_oracle.none):
    """Answers after every call, of each row."""
    config = jaxllada.SamplingConfig(**PLAN | options)
    prompts = [prompt[seen == 1] for prompt, seen in zip(PROMPTS, VISIBLE, strict=True)]
    runs = [smoothing_oracle.decode(models[2], prompt, config, reader) for prompt in prompts]
    return [[x[-16:] for x in run] for run in runs]


def assert_follows(models, options, reader=cache_oracle.none, alone=False):
    """Rows together, or each alone where one makes calls that another does not need."""
    config, expected = (
        jaxllada.SamplingConfig(**PLAN | options),
        slow_frames(models, options, reader),
    )
    for sample, model in ((jax_trace, models[0]), (torch_trace, models[1])):
        if alone:
            prompts = [PROMPTS[row : row + 1, VISIBLE[row] == 1] for row in range(2)]
            frames = [list(sample(model, prompt, config).frames())[1:] for prompt in prompts]
            found = [[frame[0] for frame in run] for run in frames]
        else:
            frames = list(sample(model, PROMPTS, config, VISIBLE).frames())[1:]
            found = [[frame[row] for frame in frames] for row in range(2)]
        for row in range(2):
            np.testing.assert_array_equal(found[row], expected[row])
    return expected[0]


@pytest.mark.parametrize(
    "options",
    [STRONG, AHEAD, STRONG | {"cfg_scale": 0.7, "steps": 8}],
    ids=["block", "canvas", "guided"],
)
def test_masks_enter_with_what_was_predicted_for_them(models, options):
    last = assert_follows(models, options)[-1]
    plain = slow_frames(models, options | {"smoothing": "none"})[0][-1]
    assert (last != plain).any()


CACHES = {
    "prefix": cache_oracle.prefix,
    "dual": cache_oracle.dual,
    "vicinity:3,5,2": cache_oracle.vicinity(3, 5, 2),
    "dllm:4,3,0.25": cache_oracle.dllm(4, 3, 0.25),
    "block_causal": cache_oracle.block_causal,
}


@pytest.mark.parametrize("cache", CACHES)
def test_caches_keep_what_was_computed_from_smoothed_masks(models, cache):
    causal = {"attention": "block_causal"} if cache == "block_causal" else {}
    assert_follows(models, STRONG | {"cache": cache, "steps": 8} | causal, CACHES[cache])


def test_thresholds_come_down_from_call_to_call(models):
    falling, still = ({"selection": f"threshold:0.02{end}"} for end in (",decay=0.3", ""))
    frames = assert_follows(models, STRONG | falling, alone=True)
    assert len(slow_frames(models, STRONG | still)[0]) < len(frames) < 16


@pytest.mark.parametrize("options", [{"cfg_scale": 0.7}, AHEAD], ids=["guided", "smooth"])
def test_blocks_begin_at_multiples_of_their_length(models, options):
    assert_follows(models, ALIGNED | options, alone=True)


@pytest.mark.parametrize("cache", ["dual", "vicinity:3,5,2"])
def test_caches_follow_aligned_blocks(models, cache):
    assert_follows(models, ALIGNED | {"cache": cache}, CACHES[cache], alone=True)


FILLED = {
    "block": STRONG,
    "canvas": AHEAD,
    "guided": STRONG | {"cfg_scale": 0.7},
    "dual": STRONG | {"cache": "dual"},
    "falling": STRONG | {"selection": "threshold:0.02,decay=0.3"},
}


@pytest.mark.parametrize("options", FILLED.values(), ids=FILLED.keys())
def test_gaps_of_prompts_remember_too(models, options):
    """Every call of blocks that begin inside the prompt, and what follows behind it."""
    config = jaxllada.SamplingConfig(**PLAN | INFILL | options)
    reader = cache_oracle.dual if "cache" in options else cache_oracle.none
    for row in range(2):
        prompt = GAPS[row : row + 1, GAPS_SEEN[row] == 1]
        expected = list(smoothing_oracle.decode(models[2], prompt[0], config, reader))
        plain = jaxllada.SamplingConfig(**PLAN | INFILL | options | {"smoothing": "none"})
        *_, forgetful = smoothing_oracle.decode(models[2], prompt[0], plain, reader)
        assert (forgetful != expected[-1]).any()
        for sample, model in ((jax_trace, models[0]), (torch_trace, models[1])):
            trace = sample(model, prompt, config)
            np.testing.assert_array_equal(trace.prompt[0], expected[-1][: trace.prompt.shape[1]])
            found = [frame[0] for frame in list(trace.frames())[1:]]
            np.testing.assert_array_equal(found, [x[trace.prompt.shape[1] :] for x in expected])


TOGETHER = {
    "gaps": STRONG | INFILL,
    "grow": STRONG | {"steps": 4, "canvas": "grow", "start_block_align": True},
    "adaptive": STRONG | ALIGNED | {"canvas": "adaptive:start=8,confidence=0.001"},
    "ahead": AHEAD | {"selection": "threshold:0.08"},
}


@pytest.mark.parametrize("options", TOGETHER.values(), ids=TOGETHER.keys())
def test_rows_that_wait_for_each_other_are_the_same(models, options):
    config = jaxllada.SamplingConfig(**PLAN | options)
    rows = (GAPS, config, GAPS_SEEN) if config.infill else (PROMPTS, config, VISIBLE)
    ours, theirs = (
        sample(model, *rows) for sample, model in ((jax_trace, models[0]), (torch_trace, models[1]))
    )
    np.testing.assert_array_equal(theirs.tokens, ours.tokens)
    np.testing.assert_array_equal(theirs.order, ours.order)


def test_a_row_that_stays_keeps_what_its_masks_carry(models):
    options = AHEAD | ALIGNED
    leaves, stays = (set(frames[-1].tolist()) for frames in slow_frames(models, options))
    config = jaxllada.SamplingConfig(**PLAN | options, stop_token_ids=tuple(leaves - stays))
    expected = slow_frames(models, options)[1][-1]
    for sample, model in ((jax_trace, models[0]), (torch_trace, models[1])):
        trace = sample(model, PROMPTS, config, VISIBLE)
        np.testing.assert_array_equal(trace.tokens[1], expected)
        assert trace.tokens[0, -1] == models[0].config.eos_token_id, "the first row left early"


def test_the_expected_embedding_is_scaled_as_the_embedding_is():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 8, (5, 40)).astype(np.float32)
    table = rng.normal(0, 1, (40, 16)).astype(np.float32)
    config = SimpleNamespace(d_model=16, input_emb_norm=True)
    ours = SimpleNamespace(
        config=config, compute=SimpleNamespace(dtype="float32"), wte=jnp.asarray(table)
    )
    theirs = SimpleNamespace(config=config, dtype=torch.float32, wte=torch.from_numpy(table))
    found = (
        jax_smoothing.expected_embedding(jnp.asarray(logits.T), jax_smoothing.Table.of(ours)),
        torch_smoothing.expected_embedding(
            torch.from_numpy(logits), torch_smoothing.Table.of(theirs)
        ),
    )
    expected = 4 * smoothing_oracle.softmax(logits.astype(np.float64)) @ table
    for values in found:  # sums of 40 products of float32
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)


def test_strategies_without_smoothing_carry_nothing(models):
    """The state and the tables of the compiled loop are empty, so nothing is computed of them."""
    config = jaxllada.SamplingConfig(**PLAN, selection="threshold:0.9")
    canvas = lay_out(models[0].config, PROMPTS, config, VISIBLE).canvas(np.arange(2), 2, 0, 0)
    inputs = Inputs.of(canvas, config, jax.random.split(jax.random.key(0)))
    assert not inputs.weights.size
    assert not inputs.bounds.size
    state = initial_state(
        models[0], Packed(), inputs, jnp.asarray(canvas.tokens), policy=canvas.policy
    )
    assert state.soft == ()
