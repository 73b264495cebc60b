"""The JAX package as the tests of `tests/both` call it: NumPy in, NumPy out."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllada.convert import load
from jaxllada.sampling import credit
from jaxllada.sampling.generate import sample_stepwise
from jaxllada.sampling.inputs import Inputs
from jaxllada.sampling.select import most_confident as select
from tests.jax.sampling_oracle import TableModel

__all__ = ["few_credits", "load", "logits_of", "most_confident", "room", "table_model", "trace"]


def table_model(table=None, seed=3, favourite=None):
    """A model of tables; `table` replaces its logits by position."""
    model = TableModel(seed, favourite)
    if table is not None:
        model.table[...] = table
    return model


def logits_of(model):
    """The model as slow loops call it."""
    forward = jax.jit(lambda canvas, visible: model(canvas, visible))
    return lambda canvas, visible: np.array(forward(canvas, visible))


def trace(model, prompts, config, visible=None, rows=None, piece=None):
    """The whole record; row i draws what row `rows[i]` of a batch draws."""
    key = jax.random.key(5)
    if rows is not None:
        key = jnp.stack([jax.random.fold_in(key, row) for row in rows])
    pieces = sample_stepwise(model, prompts, config, visible, key, steps_per_piece=piece)
    return list(pieces)[-1]


def most_confident(score, eligible, count, last=None, *rule):
    arrays = map(jnp.asarray, (score, eligible, count))
    return np.asarray(select(*arrays, None if last is None else jnp.asarray(last), *rule))


def few_credits(canvas, config, positions):
    """Adds credit call by call: takes logits [positions, V], returns them raised, and the state."""
    inputs = Inputs.of(canvas, config, jax.random.key(0)[None])
    # What is in the state before the first call must not matter.
    state = credit.Credits(jnp.zeros((positions, 8), int), jnp.full((positions, 8), jnp.nan))

    def call(logits, number):
        nonlocal state
        raised, state = credit.credited(
            jnp.asarray(logits.T), state, jnp.int32(number), inputs, canvas.policy
        )
        return np.asarray(raised).T, np.asarray(state.tokens), np.asarray(state.amounts)

    return call


def room(rows, policy):
    """Shapes of what is kept of earlier calls of a block."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: credit.no_credits(rows, policy)))
    return [leaf.shape for leaf in leaves]
