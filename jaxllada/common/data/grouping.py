"""An order of rows in which every batch holds rows of similar length, so that less is padding.

Rows are shuffled, cut into stretches of many batches, and sorted by length within each stretch;
then the batches change places at random. Every row is still seen once per epoch, and the order is
a function of the seed and the epoch alone.

Shape letters: N rows.
"""

import numpy as np
from jaxtyping import Int

from jaxllada.common import noise
from jaxllada.common.data.rows import Rows

STRETCH = 50
"""Batches whose rows are sorted together. Of a data set of fewer than 200, a quarter."""
_SHUFFLE = 1 << 41  # orders of batches, apart from the orders of rows


def grouped_order(
    seed: int, epoch: int, lengths: Int[np.ndarray, " N"], batch_size: int
) -> Int[np.ndarray, " N"]:
    """Returns the order of the rows in epoch number `epoch` of a run.

    Batches of `batch_size` rows need not start with an epoch: where the epoch begins within a
    batch, so many rows are left in random order, as are those left over at the end.
    """
    count = len(lengths)
    order = noise.permutation(seed, epoch, count)
    head = min(count, -epoch * count % batch_size)
    batches = (count - head) // batch_size
    if not batches:
        return order
    body = order[head : head + batches * batch_size]
    stretch = max(1, min(batches // 4, STRETCH)) * batch_size
    for first in range(0, len(body), stretch):
        part = body[first : first + stretch]
        part[:] = part[np.argsort(-lengths[part], kind="stable")]
    places = noise.permutation(seed, _SHUFFLE + epoch, batches)
    order[head : head + len(body)] = body.reshape(batches, batch_size)[places].ravel()
    return order


def lengths_of(rows: Rows) -> Int[np.ndarray, " N"]:
    """Returns the tokens of every row (of a dialogue: all of it)."""
    return np.array([rows.length(i) for i in range(len(rows))], np.int64)
