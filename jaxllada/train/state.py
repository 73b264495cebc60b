"""Everything a training run changes from step to step, as one pytree."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxllada.train.optim import initial_moments

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Weights, optimiser and counters; the train step takes one (donated) and returns the next.

    Attributes:
        step: finished steps, skipped ones included.
        params: trained weights as the nested dict of `nnx.to_pure_dict`.
        opt_state: moments of AdamW, float32.
        ema: exponential average of the weights, float32, or None.
        skipped: steps skipped in a row up to now because something was not finite.
        skipped_total: the same over the whole run.
    """

    step: Int[Array, ""]
    params: Tree
    opt_state: optax.OptState
    ema: Tree | None
    skipped: Int[Array, ""]
    skipped_total: Int[Array, ""]


def initial_state(
    params: Tree, optimizer: optax.GradientTransformation, *, with_ema: bool
) -> TrainState:
    """State before the first step. Traceable: under `jit` with shardings it is born sharded."""
    # Every leaf needs a buffer of its own: the state is donated, and no buffer can be twice.
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=initial_moments(optimizer, params),
        ema=jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params) if with_ema else None,
        skipped=jnp.zeros((), jnp.int32),
        skipped_total=jnp.zeros((), jnp.int32),
    )
