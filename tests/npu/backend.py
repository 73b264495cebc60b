"""The torch package as the tests of `tests/both` call it: NumPy in, NumPy out."""

import functools

import numpy as np
import torch

from npu_backend import convert
from npu_backend.sampling import credit
from npu_backend.sampling.generate import sample_stepwise
from npu_backend.sampling.gumbel import RowSeed
from npu_backend.sampling.inputs import Inputs
from npu_backend.sampling.select import most_confident as select
from tests.npu.devices import DEVICE, get, put
from tests.npu.table_model import TableModel, logits_of

__all__ = ["few_credits", "load", "logits_of", "most_confident", "room", "table_model", "trace"]

load = functools.partial(convert.load, device=DEVICE)


def table_model(table=None, seed=3, favourite=None):
    """A model of tables; `table` replaces its logits by position."""
    model = TableModel(seed, favourite)
    if table is not None:
        with torch.no_grad():
            model.table.copy_(torch.from_numpy(table))
    return model


def trace(model, prompts, config, visible=None, rows=None, piece=None):
    """The whole record; row i draws what row `rows[i]` of a batch draws."""
    seeds = [RowSeed(5, row) for row in (range(len(prompts)) if rows is None else rows)]
    pieces = sample_stepwise(model, prompts, config, visible, seeds, steps_per_piece=piece)
    return list(pieces)[-1]


def most_confident(score, eligible, count, last=None, *rule):
    arrays = map(put, (score, eligible, count))
    return select(*arrays, None if last is None else put(last), *rule).cpu().numpy()


def few_credits(canvas, config, positions):
    """Adds credit call by call: takes logits [positions, V], returns them raised, and the state."""
    inputs = Inputs.of(canvas, config, [RowSeed(0)], DEVICE)
    # What is in the state before the first call must not matter.
    state = credit.Credits(
        put(np.zeros((positions, 8), int)), put(np.full((positions, 8), 7, np.float32))
    )

    def call(logits, number):
        nonlocal state
        raised, state = credit.credited(put(logits), state, number, inputs, canvas.policy)
        return get(raised), state.tokens.cpu().numpy(), get(state.amounts)

    return call


def room(rows, policy):
    """Shapes of what is kept of earlier calls of a block."""
    state = credit.no_credits(rows, policy, DEVICE)
    return [] if state is None else [tuple(state.tokens.shape), tuple(state.amounts.shape)]
