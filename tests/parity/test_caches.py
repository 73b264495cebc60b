"""Every cache of both samplers against its own definition, transcribed in NumPy."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxllada
import npu_backend
from jaxllada.sampling.generate import sample_trace as jax_trace
from npu_backend.sampling.generate import sample_trace as torch_trace
from tests import cache_oracle as slow
from tests.jax.golden import DENSE, write_variant

PLAN = {"steps": 12, "gen_length": 24, "block_length": 8}
DENSE_CACHES = {
    "prefix": slow.prefix,
    "dual": slow.dual,
    "vicinity:3,5,2": slow.vicinity(3, 5, 2),
    "dllm:4,3,0.25": slow.dllm(4, 3, 0.25),
}
# On a model with grouped heads and norms of queries and keys.
GROUPED_CACHES = {
    "dual": slow.dual,
    "vicinity:30,2,0": slow.vicinity(30, 2, 0),
    "dllm:3,5,0.5": slow.dllm(3, 5, 0.5),
    "dllm:5,2,0": slow.dllm(5, 2, 0),
    "dllm:5,3,0.03": slow.dllm(5, 3, 0.03),
}
# Two prompts of different length, padded on the left.
PROMPTS = np.array([[17, 3, 29, 5, 9, 26, 8], [0, 0, 0, 7, 12, 4, 3]], np.int32)
VISIBLE = np.array([[1] * 7, [0, 0, 0, 1, 1, 1, 1]], np.int32)


def load(folder):
    ours = jaxllada.load(folder)
    return ours, npu_backend.load(folder), slow.PlainModel(folder, ours.config)


@pytest.fixture(scope="module")
def dense():
    return load(DENSE)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """Its layers add six times as much as recorded: else what they add hardly decides a token."""
    folder = tmp_path_factory.mktemp("variant") / "qknorm"
    write_variant("qknorm", folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    louder = {name: 6 * value for name, value in weights.items() if "attn_out" in name}
    assert louder
    save_file(weights | louder, file)
    return load(folder)


def assert_follows(models, config, reader):
    ours, theirs, plain = models
    traces = (
        jax_trace(ours, PROMPTS, config, VISIBLE),
        torch_trace(theirs, PROMPTS, config, VISIBLE),
    )
    for row, (prompt, visible) in enumerate(zip(PROMPTS, VISIBLE, strict=True)):
        alone = prompt[visible == 1]
        expected = list(slow.decode(plain, alone, config, reader))
        for trace in traces:
            frames = [frame[row] for frame in list(trace.frames())[1:]]
            np.testing.assert_array_equal(frames, [x[len(alone) :] for x in expected])


@pytest.mark.parametrize("cache", DENSE_CACHES)
def test_every_call_follows_the_definition_of_its_cache(dense, cache):
    config = jaxllada.SamplingConfig(**PLAN, cache=cache)
    assert_follows(dense, config, DENSE_CACHES[cache])


@pytest.mark.parametrize("cache", GROUPED_CACHES)
def test_definitions_hold_for_grouped_heads(grouped, cache):
    config = jaxllada.SamplingConfig(**PLAN, cache=cache)
    assert_follows(grouped, config, GROUPED_CACHES[cache])


def test_each_of_these_caches_shows(dense, grouped):
    """Otherwise a sampler without it would follow its definition, too."""
    for (_, model, _), caches in ((dense, DENSE_CACHES), (grouped, GROUPED_CACHES)):
        plain, *others = (
            torch_trace(model, PROMPTS, jaxllada.SamplingConfig(**PLAN, cache=cache), VISIBLE)
            for cache in ("none", *caches)
        )
        for trace in others:
            assert (trace.tokens != plain.tokens).any() or (trace.order != plain.order).any()


@pytest.mark.parametrize("cache", ["none", "block_causal", "dual"])
def test_caches_are_exact_where_no_token_sees_a_later_block(dense, cache):
    config = jaxllada.SamplingConfig(**PLAN, attention="block_causal", cache=cache)
    assert_follows(dense, config, slow.block_causal)
