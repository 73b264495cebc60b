"""The selection primitive against a sort written out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllada.sampling.logits import first_maximum
from jaxllada.sampling.predict import row_buckets
from jaxllada.sampling.select import most_confident


def by_hand(confidence, eligible, count, last):
    chosen = np.zeros(confidence.shape, bool)
    for row in range(len(confidence)):
        candidates = np.flatnonzero(eligible[row])
        ranked = sorted(candidates, key=lambda i: (last[row, i], -confidence[row, i], i))
        chosen[row, ranked[: count[row]]] = True
    return chosen


@pytest.mark.parametrize("levels", [2, 5, 10_000])  # few levels: many ties
@pytest.mark.parametrize("has_last", [False, True])
def test_selection_takes_the_most_confident_with_the_lowest_index_first(levels, has_last):
    rng = np.random.default_rng(levels)
    shape = (64, 13)
    confidence = (rng.integers(0, levels, shape) / levels).astype(np.float32)
    eligible = rng.random(shape) < 0.7
    last = rng.random(shape) < (0.4 if has_last else 0)
    count = rng.integers(0, 15, shape[0]).astype(np.int32)
    chosen = most_confident(
        jnp.asarray(confidence),
        jnp.asarray(eligible),
        jnp.asarray(count),
        jnp.asarray(last) if has_last else None,
    )
    np.testing.assert_array_equal(chosen, by_hand(confidence, eligible, count, last))


def test_end_tokens_come_last_however_small_the_other_confidences_are():
    confidence = jnp.array([[1.0, 1e-30, 0.5, 1e-38]])
    last = jnp.array([[True, False, True, False]])
    for count, expected in enumerate([[], [1], [1, 3], [0, 1, 3], [0, 1, 2, 3]]):
        chosen = most_confident(confidence, jnp.ones((1, 4), bool), jnp.array([count]), last)
        np.testing.assert_array_equal(np.flatnonzero(chosen[0]), expected)


@pytest.mark.parametrize("excluded", [None, 0, 5, -1])
@pytest.mark.parametrize("vocabulary", [7, 96, 512, 1000])
def test_argmax_takes_the_lowest_index_among_equals(vocabulary, excluded):
    scores = np.random.default_rng(vocabulary).integers(0, 4, (vocabulary, 50)).astype(np.float32)
    if excluded is not None:
        excluded %= vocabulary
        scores[excluded, ::2] = 9
    index, value = first_maximum(jnp.asarray(scores), excluded)
    if excluded is not None:
        scores[excluded] = -np.inf
    np.testing.assert_array_equal(index, np.argmax(scores, axis=0))
    np.testing.assert_array_equal(value, np.max(scores, axis=0))


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 32])
@pytest.mark.parametrize("window", [1, 2, 5, 8, 32, 48, 128])
def test_buckets_hold_every_number_of_open_positions(window, batch):
    sizes = row_buckets(window, batch)
    assert sizes[-1] == window
    assert all(any(count <= size for size in sizes) for count in range(window + 1))
    assert list(sizes) == sorted(set(sizes))
    assert sizes[0] >= 1
    assert len(sizes) <= 10
