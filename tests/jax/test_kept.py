"""Rows that are sent through the blocks again, beside keys and values that are kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.presets import preset
from jaxllada.models.kept import Region
from jaxllada.models.mask_predictor import MaskPredictor

LENGTH = 12
TOKENS = np.random.default_rng(0).integers(0, 100, (2, LENGTH)).astype(np.int32)
SEEN = np.ones((2, LENGTH), bool)
SEEN[1, :3] = False
CONFIGS = {
    "plain": {},
    "grouped heads, norms of queries and keys": {
        "n_kv_heads": 2,
        "attention_layer_norm": True,
        "include_qkv_bias": True,
    },
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def model(request):
    config = dataclasses.replace(preset("tiny"), **request.param)
    return MaskPredictor(config, compute=ComputeConfig(), rngs=jax.random.key(1))


@pytest.fixture(params=["stacked", "single blocks"])
def blocks(request, model):
    return None if request.param == "stacked" else model.unstacked()


def angles(model, start=0, size=LENGTH):
    positions = np.maximum(np.arange(LENGTH)[None] - [[0], [3]], 0)
    return model.rotation(positions[:, start : start + size])


def fill(model, blocks, tokens, window=None):
    memory = model.memory(2, LENGTH, blocks)
    visible = jnp.asarray(SEEN)[:, None, None]
    return model.reread(
        tokens, memory, Region(0, LENGTH), visible,
        turn=angles(model), window=window, blocks=blocks,
    )  # fmt: skip


def assert_close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)  # float32 sums in another order


def test_reading_everything_again_is_the_plain_forward_pass(model, blocks):
    rows, _ = fill(model, blocks, TOKENS, window=(4, 5))
    plain = model.hidden(TOKENS, SEEN, turn=angles(model), window=(4, 5), blocks=blocks)
    assert_close(rows, plain)


def test_a_region_of_an_unchanged_canvas_gives_what_it_gave(model, blocks):
    whole, memory = fill(model, blocks, TOKENS)
    visible = jnp.asarray(SEEN)[:, None, None]
    rows, renewed = model.reread(
        TOKENS[:, 5:9], memory, Region(jnp.int32(5), 4), visible,
        turn=angles(model, 5, 4), window=(1, 2), blocks=blocks,
    )  # fmt: skip
    assert_close(rows, whole[:, 6:8])
    for a, b in zip(jax.tree.leaves(renewed), jax.tree.leaves(memory), strict=True):
        assert_close(a, b)


def test_only_rows_of_the_region_that_are_to_be_renewed_change(model, blocks):
    _, memory = fill(model, blocks, TOKENS)
    renewed_rows = jnp.array([[False, True, True, False]])
    _, renewed = model.reread(
        TOKENS[:, 5:9] + 1, memory, Region(5, 4, renewed_rows), None,
        turn=angles(model, 5, 4), blocks=blocks,
    )  # fmt: skip
    for a, b in zip(jax.tree.leaves(renewed), jax.tree.leaves(memory), strict=True):
        changed = np.asarray(a != b).any(axis=(-1,))
        changed = changed.reshape(-1, LENGTH).any(axis=0)
        np.testing.assert_array_equal(changed, np.isin(np.arange(LENGTH), [6, 7]))


def test_what_is_kept_of_other_rows_is_what_the_region_sees(model, blocks):
    """Rows outside the region take part as they were: another text there changes nothing."""
    _, memory = fill(model, blocks, TOKENS)
    other = TOKENS.copy()
    other[:, 10] += 1
    turn = angles(model, 5, 4)
    region = Region(5, 4)
    read = {"turn": turn, "blocks": blocks}
    stale, _ = model.reread(other[:, 5:9], memory, region, None, **read)
    same, _ = model.reread(TOKENS[:, 5:9], memory, region, None, **read)
    np.testing.assert_array_equal(stale, same)
    _, fresh = fill(model, blocks, other)
    moved, _ = model.reread(TOKENS[:, 5:9], fresh, region, None, **read)
    assert np.abs(np.asarray(moved - same)).max() > 1e-3
