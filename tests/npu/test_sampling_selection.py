"""Selections and candidates of the torch sampler: the tests of both backends, and its own."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from npu_backend.sampling.filters import filtered
from npu_backend.sampling.generate import sample_trace
from tests.both.selection import *  # noqa: F403
from tests.npu import backend as npu_backend
from tests.npu.devices import DEVICE
from tests.npu.table_model import TableModel
from tests.plain_loop import softmax
from tests.sampling_cases import CONFIG, PROMPT, sorted_filter


@pytest.fixture(scope="module")
def backend():
    return npu_backend


def test_the_head_runs_on_the_positions_that_are_left():
    """After an adaptive call the host knows how many are open; the head gets no other row."""
    model, sizes = TableModel(seed=3), []
    model.head = lambda hidden: sizes.append(len(hidden)) or hidden.clone()
    trace = sample_trace(model, PROMPT, dataclasses.replace(CONFIG, selection="threshold:0.4"))
    order = trace.order[0].reshape(2, 8)
    expected = [
        int((block >= call).sum())
        for block in order
        for call in range(block.min(), block.max() + 1)
    ]
    assert sizes == expected
    assert len(sizes) < CONFIG.steps


@pytest.mark.parametrize(("top_p", "top_k"), [(0.3, None), (0.9, None), (None, 5), (0.7, 3)])
def test_filters_keep_what_sorting_keeps(top_p, top_k):
    policy = SimpleNamespace(has_top_p=top_p is not None, has_top_k=top_k is not None)
    inputs = SimpleNamespace(top_p=top_p, top_k=top_k)
    logits = np.random.default_rng(0).normal(0, 3, (200, 50)).astype(np.float32)
    logits[:, 7] = -np.inf
    kept = filtered.__wrapped__(torch.from_numpy(logits).to(DEVICE), inputs, policy) > -np.inf
    exact = (softmax(row.astype(np.float64)) for row in logits)
    expected = [sorted_filter(p, top_p or 1, top_k or 50) for p in exact]
    np.testing.assert_array_equal(kept.cpu(), np.array(expected) & (logits > -np.inf))
