"""Rows that are sent through the blocks again, beside keys and values that are kept."""

import dataclasses

import numpy as np
import pytest
import torch

from jaxllada.common.config.presets import preset
from npu_backend.models.kept import Region
from npu_backend.models.mask_predictor import MaskPredictor
from tests.npu.devices import DEVICE, KERNELS, get, put

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
def plain_model(request):
    config = dataclasses.replace(preset("tiny"), **request.param)
    return MaskPredictor(config, generator=torch.Generator().manual_seed(1)).to(DEVICE)


@pytest.fixture(params=KERNELS.values(), ids=KERNELS.keys())
def model(request, plain_model):
    plain_model.use(request.param)
    with torch.no_grad():
        yield plain_model


def angles(model, start=0, size=LENGTH):
    positions = np.maximum(np.arange(LENGTH)[None] - [[0], [3]], 0)
    return model.rotation(put(positions[:, start : start + size]))


def fill(model, tokens, window=None):
    memory = model.memory(2, LENGTH)
    rows = model.reread(
        put(tokens), memory, Region(0, LENGTH), put(SEEN)[:, None, None],
        turn=angles(model), window=window,
    )  # fmt: skip
    return rows, memory


def assert_close(a, b):
    np.testing.assert_allclose(get(a), get(b), rtol=0, atol=2e-5)  # sums in another order


def test_reading_everything_again_is_the_plain_forward_pass(model):
    rows, _ = fill(model, TOKENS, window=(4, 5))
    assert_close(rows, model.hidden(put(TOKENS), put(SEEN), turn=angles(model), window=(4, 5)))


def test_a_region_of_an_unchanged_canvas_gives_what_it_gave(model):
    whole, memory = fill(model, TOKENS)
    before = [part.clone() for own in memory for part in own]
    rows = model.reread(
        put(TOKENS[:, 5:9]), memory, Region(5, 4), put(SEEN)[:, None, None],
        turn=angles(model, 5, 4), window=(1, 2),
    )  # fmt: skip
    assert_close(rows, whole[:, 6:8])
    for a, b in zip([part for own in memory for part in own], before, strict=True):
        assert_close(a, b)


def test_only_rows_of_the_region_that_are_to_be_renewed_change(model):
    _, memory = fill(model, TOKENS)
    before = [part.clone() for own in memory for part in own]
    renewed = put(np.array([[False, True, True, False]]))
    model.reread(
        put(TOKENS[:, 5:9] + 1), memory, Region(5, 4, renewed), None, turn=angles(model, 5, 4)
    )
    for a, b in zip([part for own in memory for part in own], before, strict=True):
        changed = (get(a) != get(b)).any(axis=(0, 2, 3))
        np.testing.assert_array_equal(changed, np.isin(np.arange(LENGTH), [6, 7]))
