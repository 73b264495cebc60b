"""Batches of rows of similar length: every row once per epoch, less padding, exact resuming."""

import numpy as np
import pytest

from jaxllada.common.data.batches import BatchSource, StreamSource
from jaxllada.common.data.grouping import grouped_order
from jaxllada.common.data.rows import RaggedRows, Row

LENGTHS = np.random.default_rng(0).integers(2, 60, 103)


def rows() -> RaggedRows:
    return RaggedRows([Row(np.full(n, 5, np.int32), np.arange(n) > 0) for n in LENGTHS])


def source(**changes):
    settings = dict(seed=3, micro_batch=2, accumulation=2, mask_id=99, pad_id=0, max_length=64)
    return BatchSource(
        rows(), pad_to_multiple=1, **(settings | {"group_by_length": True} | changes)
    )


@pytest.mark.parametrize("epoch", [0, 1, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 60, 200])
def test_every_row_is_seen_once_per_epoch(epoch, batch_size):
    order = grouped_order(3, epoch, LENGTHS, batch_size)
    assert sorted(order) == list(range(len(LENGTHS)))
    assert not np.array_equal(order, grouped_order(3, epoch + 1, LENGTHS, batch_size))
    assert not np.array_equal(order, grouped_order(4, epoch, LENGTHS, batch_size))


def test_whole_batches_of_every_epoch_hold_similar_rows():
    """Also where an epoch begins within a batch: 103 rows in batches of 4."""
    kept = source()
    for epoch in range(3):
        first = -(-epoch * 103 // 4)
        steps = range(first, ((epoch + 1) * 103) // 4)
        spread = []
        for step in steps:
            lengths = [LENGTHS[kept.row_number(4 * step + r)] for r in range(4)]
            spread.append(max(lengths) - min(lengths))
        assert np.mean(spread) < 0.4 * 35  # 35 is what four random rows differ by


def test_it_pads_less_and_batches_do_not_come_sorted():
    def padding(source):
        widths = [source.batch(step).tokens.shape[2] for step in range(25)]
        return sum(4 * width for width in widths), widths

    grouped, widths = padding(source())
    plain, _ = padding(source(group_by_length=False))
    assert grouped < 0.8 * plain
    assert widths not in (sorted(widths), sorted(widths, reverse=True))


def test_a_resumed_run_sees_the_same_batches():
    digests = [source().batch(step).digest() for step in range(20, 60)]
    straight = source()
    for step in range(30):
        straight.batch(step)
    assert [straight.batch(step).digest() for step in range(20, 60)] == digests


def test_a_stream_has_no_lengths_to_group_by():
    with pytest.raises(TypeError):
        StreamSource(iter, group_by_length=True)  # pyright: ignore
