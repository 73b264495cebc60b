"""Properties of the torch sampler's caches; their definitions are checked in tests/parity."""

import dataclasses

import numpy as np
import pytest
import torch

from jaxllada.common.config.sampling import SamplingConfig
from npu_backend import convert
from npu_backend.sampling.generate import sample_stepwise, sample_trace
from tests.jax.golden import DENSE
from tests.npu.devices import DEVICE, KERNELS

PLAN = {"steps": 12, "gen_length": 24, "block_length": 8}
PROMPTS = np.array([[17, 301, 44, 5, 9, 260, 8], [0, 0, 0, 77, 12, 400, 3]], np.int32)
VISIBLE = np.array([[1] * 7, [0, 0, 0, 1, 1, 1, 1]], np.int32)


@pytest.fixture(scope="module", params=KERNELS.values(), ids=KERNELS.keys())
def model(request):
    model = convert.load(DENSE).to(DEVICE)
    model.use(request.param)
    return model


def run(model, **options):
    config = SamplingConfig(**PLAN | options)
    generator = torch.Generator().manual_seed(3)
    return sample_trace(model, PROMPTS, config, VISIBLE, generator=generator)


@pytest.mark.parametrize("cache", ["prefix:1", "dual:1", "vicinity:2,2,0,1", "dllm:1,1,0.5"])
def test_a_refresh_in_every_call_gives_the_tokens_of_no_cache(model, cache):
    options = {"cfg_scale": 0.7, "temperature": 0.5, "selection": "threshold:0.1"}
    cached, plain = run(model, cache=cache, **options), run(model, **options)
    assert plain.num_steps < PLAN["steps"], "the threshold is never reached"
    np.testing.assert_array_equal(cached.tokens, plain.tokens)
    np.testing.assert_array_equal(cached.order, plain.order)


@pytest.mark.parametrize("cache", ["block_causal", "block_causal:1", "dual", "prefix"])
def test_caches_are_exact_where_no_token_sees_a_later_block(model, cache):
    causal = {"attention": "block_causal"}
    cached, plain = run(model, cache=cache, **causal), run(model, **causal)
    np.testing.assert_array_equal(cached.tokens, plain.tokens)


@pytest.mark.parametrize("cache", ["prefix", "dual", "vicinity:2,2,2", "dllm:4,3,0.25"])
def test_guided_rows_keep_a_memory_of_their_own_and_rows_do_not_depend_on_batch_mates(model, cache):
    config = SamplingConfig(**PLAN, cache=cache, cfg_scale=1.5)
    both = sample_trace(model, PROMPTS, config, VISIBLE)
    for row in range(2):
        alone = sample_trace(model, PROMPTS[row : row + 1, VISIBLE[row] == 1], config)
        np.testing.assert_array_equal(alone.tokens[0], both.tokens[row])


def test_pieces_of_a_run_carry_the_memory(model):
    config = SamplingConfig(**PLAN, cache="dual")
    *_, last = sample_stepwise(model, PROMPTS, config, VISIBLE, steps_per_piece=5)
    np.testing.assert_array_equal(last.tokens, run(model, cache="dual").tokens)


@pytest.mark.parametrize("cache", ["dual", "block_causal"])
def test_rows_that_leave_and_blocks_that_come_find_what_was_kept(model, cache):
    attention = "block_causal" if cache == "block_causal" else "full"
    config = SamplingConfig(**PLAN | {"steps": 4}, canvas="grow", cache=cache, attention=attention)
    first = sample_trace(model, PROMPTS, config, VISIBLE)
    # The second row ends with its first block; then its memory goes, and a block comes.
    config = dataclasses.replace(config, stop_token_ids=(int(first.tokens[1, 7]),))
    both = sample_trace(model, PROMPTS, config, VISIBLE)
    for row in range(2):
        alone = sample_trace(model, PROMPTS[row : row + 1, VISIBLE[row] == 1], config)
        length = alone.tokens.shape[1]
        np.testing.assert_array_equal(alone.tokens[0], both.tokens[row, :length])
