import numpy as np
import pytest

from jaxllada.common import sizing
from jaxllada.common.lengths import change_in_blocks, end_confidence, end_density
from jaxllada.common.sizing import Sizes

IS_END = np.array([[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
CONFIDENCE = np.array([[0.9, 0.8, 0.9, 0.4, 0.2, 0.9]] * 3, np.float32)


def test_confidence_of_the_end_scans_from_behind_and_counts_missing_ends_as_nothing():
    np.testing.assert_allclose(
        end_confidence(IS_END, CONFIDENCE, 2), [(0.2 + 0.4) / 2, 0, (0.9 + 0.2) / 2], rtol=1e-6
    )
    np.testing.assert_allclose(
        end_confidence(IS_END, CONFIDENCE, 4)[:2], [(0.2 + 0.4 + 0.8) / 4, 0], rtol=1e-6
    )


def test_density_is_the_share_of_ends_among_open_positions():
    is_open = np.array([[0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]], bool)
    np.testing.assert_allclose(end_density(IS_END, is_open), [2 / 3, 0, 0])


@pytest.mark.parametrize(
    ("density", "change"),
    [
        (0.4, 0), (0.5, 0), (0.6, 0),
        (0.39, 1), (0.31, 1), (0.25, 2), (0.15, 4), (0.05, 8), (0.0, 8),
        (0.61, -1), (0.75, -2), (0.85, -4), (1.0, -8),
    ],
)  # fmt: skip
def test_change_doubles_with_every_tenth_outside_the_wanted_range(density, change):
    assert change_in_blocks(density, low=0.4, high=0.6) == change


def test_change_has_a_limit():
    assert change_in_blocks(0.0, low=0.9, high=0.95) == 8


def test_growing_canvases_come_in_few_sizes():
    sizes = Sizes(64, few=True)
    lengths = [sizes.length(needed, is_growing=True) for needed in range(1, 4097)]
    assert all(length >= needed for needed, length in enumerate(lengths, 1))
    assert all(length < max(64, 1.5 * needed + 64) for needed, length in enumerate(lengths, 1))
    assert len(set(lengths)) == 12
    assert sizes.length(65 * 64, is_growing=False) == 65 * 64
    assert Sizes().length(77, is_growing=True) == 77


def test_batches_shrink_in_few_sizes_and_never_grow():
    sizes = Sizes(64, few=True)
    many = [sizes.batch(rows, 11, 999) for rows in range(1, 12)]
    assert many == [1, 2, 3, 4, 6, 6, 8, 8, 11, 11, 11]
    assert [Sizes().batch(rows, 7, 1) for rows in (1, 5, 7)] == [1, 5, 7]
    for few in (False, True):
        kept = Sizes(few=few, keeps_rows=True)
        assert [kept.batch(rows, 7, 999) for rows in (1, 5)] == [7, 7]


def test_a_batch_shrinks_where_that_saves_enough_to_be_compiled(monkeypatch):
    sizes = Sizes(64, few=True)
    monkeypatch.setattr(sizing, "LEAST_SAVING", 64)
    assert [sizes.batch(4, 8, calls) for calls in (1, 15, 16, 99)] == [8, 8, 4, 4]
    assert Sizes().batch(4, 8, 1) == 4
