"""Hierarchical and credit decoding in torch: the tests of both backends, and torch's own."""

import dataclasses

import numpy as np
import pytest

from npu_backend.sampling import predict
from tests.both.decoders import *  # noqa: F403
from tests.both.decoders import CONFIG
from tests.npu import backend as npu_backend
from tests.sampling_cases import PROMPTS, VISIBLE


@pytest.fixture(scope="module")
def backend():
    return npu_backend


def test_the_head_may_walk_the_positions_in_several_parts(model, monkeypatch):
    config = dataclasses.replace(CONFIG, temperature=0.6, top_p=0.9)
    whole = npu_backend.trace(model, PROMPTS, config, VISIBLE)
    monkeypatch.setattr(predict, "ROWS_AT_ONCE", 3)
    parts = npu_backend.trace(model, PROMPTS, config, VISIBLE)
    np.testing.assert_array_equal(parts.order, whole.order)
    np.testing.assert_array_equal(parts.tokens, whole.tokens)
