"""Which layouts fit a device, how large their micro-batches may be, and which to take."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxllada.common.config.compute import Remat
from jaxllada.common.plan.footprint import Footprint
from jaxllada.common.plan.setup import Setup, extra_work

Predict = Callable[[Setup], Footprint]
_MOST_ROWS = 4096
# What a layout costs beside arithmetic: a preference among layouts that all fit, not a measurement.
_SHARDED, _ACROSS_NODES, _SPLIT_ROWS = 0.05, 0.25, 0.15
_LAUNCH_TOKENS = 256
"""Tokens whose arithmetic takes about as long as starting the operators of a step."""


@dataclass(frozen=True)
class Layout:
    """A way to run: its peak at the asked micro-batch, and the largest that fits (0: none)."""

    setup: Setup
    footprint: Footprint
    largest_rows: int
    cost: float
    """Time of a step relative to one without recomputation and communication; lower is better."""


def largest_rows(setup: Setup, predict: Predict, budget: int) -> int:
    """Returns the largest micro-batch whose peak stays within `budget` bytes; 0 where none does."""
    if predict(setup.replace(rows=1)).total > budget:
        return 0
    low, high = 1, 2
    while high <= _MOST_ROWS and predict(setup.replace(rows=high)).total <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = predict(setup.replace(rows=middle)).total <= budget
        low, high = (middle, high) if fits else (low, middle)
    return low


def layouts(
    setup: Setup,
    predict: Predict,
    budget: int,
    *,
    devices: int,
    per_node: int,
    remats: Sequence[Remat],
    allows: Callable[[Setup], bool],
) -> list[Layout]:
    """Returns every way to split the weights over the devices, with every recomputation, that fits.

    The best comes first. `setup.tensor` is kept; `fsdp` takes each divisor of what it leaves that
    stays within a node or fills whole nodes and that `allows` accepts.
    """
    groups = devices // setup.tensor
    found = []
    for fsdp in range(1, groups + 1):
        across = fsdp * setup.tensor > per_node
        if groups % fsdp or (across and fsdp * setup.tensor % per_node):
            continue
        for remat in remats:
            candidate = setup.replace(data=groups // fsdp, fsdp=fsdp, remat=remat)
            rows = largest_rows(candidate, predict, budget) if allows(candidate) else 0
            if rows:
                footprint = predict(candidate.replace(rows=min(setup.rows, rows)))
                cost = _cost(candidate.replace(rows=rows), per_node)
                found.append(Layout(candidate, footprint, rows, cost))
    return sorted(found, key=lambda layout: (round(layout.cost, 3), layout.footprint.total))


def _cost(setup: Setup, per_node: int) -> float:
    across = setup.fsdp * setup.tensor > per_node
    share = _SHARDED * (setup.fsdp > 1) + _ACROSS_NODES * across + _SPLIT_ROWS * (setup.tensor > 1)
    return (1 + extra_work(setup)) * (1 + share) * (1 + _LAUNCH_TOKENS / setup.tokens)


def cut(setup: Setup, layout: Layout, global_rows: int) -> tuple[int, int]:
    """Returns (rows, micro-batches) of a layout that keep the global batch, or come nearest to it.

    The largest micro-batch that fits and divides the rows of a device is taken.
    """
    shards = layout.setup.data * layout.setup.fsdp
    own = max(1, round(global_rows / shards))
    rows = next(n for n in range(min(own, layout.largest_rows), 0, -1) if own % n == 0)
    return rows, own // rows


def suggestion(setup: Setup, found: Sequence[Layout], global_rows: int) -> Setup | None:
    """Returns the best layout with its cut of the global batch; None where nothing fits."""
    if not found:
        return None
    best = found[0]
    rows, pieces = cut(setup, best, global_rows)
    return dataclasses.replace(best.setup, rows=rows, accumulation=pieces)
