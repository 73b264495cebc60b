"""One model call of the sampler: the predicted token and its confidence for every open position.

The head is most of the work of a small model, so it runs on the open positions only, gathered into
the smallest of a few static sizes.

Shape letters: B rows, S positions of the window, R gathered positions.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.policy import Policy
from jaxllada.native.head import has_kernel
from jaxllada.sampling.credit import Credits, credited
from jaxllada.sampling.end_think import end_think_pull
from jaxllada.sampling.gumbel import ORDER, gumbel
from jaxllada.sampling.inputs import Inputs
from jaxllada.sampling.logits import Head, is_plain, read_at_once, read_logits, vocabulary_logits
from jaxllada.sampling.reader import Body, Call, Reader
from jaxllada.sampling.smoothing import Table, expected_embedding


class Prediction(NamedTuple):
    """Tokens and confidences of the window; positions that are not open hold anything."""

    tokens: Int[Array, "B S"]
    confidence: Float[Array, "B S"]
    """What the trace shows: in [0, 1]."""
    score: Float[Array, "B S"]
    """What puts the positions in order."""
    expected: Float[Array, "B S D"] | tuple[()] = ()
    """The embedding that the model expects, if masks carry it into the next call."""


def predict(
    reader: Reader,
    body: Body,
    head: Head,
    table: Table | None,
    call: Call,
    memory: Any,
    credits: Credits | tuple[()],
    is_open: Bool[Array, "B S"],
    keys: Array | None,
    inputs: Inputs,
    policy: Policy,
) -> tuple[Prediction, Any, Credits | tuple[()]]:
    """Calls the model once and reads the open positions of the window.

    `keys` [B, S] hold the randomness of this step, one key per position; None if nothing is drawn.
    Returns the memory and the credits after the call, too.
    """
    token = pull = jnp.zeros(len(is_open))
    if policy.end_think_ids:
        token, pull = end_think_pull(call.canvas, is_open, call.start, inputs, policy)
    if policy.is_guided:
        without_prompt = jnp.where(inputs.known, policy.mask_id, call.canvas)
        call = call._replace(canvas=jnp.concatenate([call.canvas, without_prompt]))
        if call.soft is not None:
            call = call._replace(soft=jnp.tile(call.soft, (2, 1, 1)))
    states, memory = reader.read(body, memory, call, policy)
    is_at_once = is_plain(inputs, policy) and has_kernel(head.weight)

    def read(
        size: int, states: Array, is_open: Array, keys: Array | None, credits: Any
    ) -> tuple[Prediction, Any]:
        index = jnp.argsort(~is_open, axis=1, stable=True)[:, :size]
        passes = 2 if policy.is_guided else 1
        rows = jnp.take_along_axis(states, jnp.tile(index, (passes, 1))[..., None], axis=1)
        rows = rows.reshape(-1, rows.shape[-1])
        if is_at_once:
            values = read_at_once(head, rows, inputs, policy)
            return Prediction(*(_scatter(x, index, policy) for x in values)), credits
        logits = vocabulary_logits(head, rows)
        if policy.is_guided:
            given, unconditional = jnp.split(logits, 2, axis=1)
            logits = unconditional + (inputs.cfg_scale + 1) * (given - unconditional)
        expected = () if table is None else (expected_embedding(logits, table),)
        if policy.end_think_ids:  # the first open position of a row comes first
            logits = logits.at[token, jnp.arange(len(token)) * size].add(pull)
        if keys is not None:
            keys = jnp.take_along_axis(keys, index, axis=1).reshape(-1)
        if policy.has_credit:
            own = (jnp.take_along_axis(x, index[..., None], axis=1) for x in credits)
            own = Credits(*(x.reshape(-1, x.shape[-1]) for x in own))
            logits, own = credited(logits, own, call.number, inputs, policy)
            # What is not open keeps nothing: it will not be predicted again.
            credits = Credits(*(_scatter(x, index, policy) for x in own))
        values = read_logits(logits, keys, inputs, policy)
        values = (*values, *expected)
        return Prediction(*(_scatter(x, index, policy) for x in values)), credits

    sizes = row_buckets(policy.window, len(is_open))
    branches = [functools.partial(read, size) for size in sizes]
    most_open = jnp.max(jnp.sum(is_open, axis=1))
    smallest = jnp.sum(jnp.array(sizes) < most_open)
    noise_keys = keys if policy.is_noisy else None
    prediction, credits = lax.switch(smallest, branches, states, is_open, noise_keys, credits)
    if policy.rank == "random":
        assert keys is not None
        draw = jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, ORDER))))
        ranking = draw(keys)
        prediction = prediction._replace(confidence=ranking, score=ranking)
    if policy.is_shuffled:
        # The largest of scores with Gumbel noise are draws without putting back.
        draw = jax.vmap(jax.vmap(lambda key: gumbel(jax.random.fold_in(key, ORDER), 1)[0]))
        noisy = prediction.score / inputs.order_temperature + draw(keys)
        prediction = prediction._replace(score=noisy)
    return prediction, memory, credits


def row_buckets(window: int, batch: int) -> tuple[int, ...]:
    """Sizes the open positions are gathered into, ascending; the last holds the whole window.

    About eighths of the window, such that the head multiplies 4, 8 or a multiple of 16 rows
    (`batch` times the size): CPUs need as long for what lies between.
    """
    unit = 16 // math.gcd(16, batch)
    pace = unit * math.ceil(window / 8 / unit)
    small = [size for size in (4, 8) if size < min(pace, window)]
    return (*small, *range(pace, window, pace), window)


def _scatter(values: Array, index: Int[Array, "B R"], policy: Policy) -> Array:
    row = jnp.arange(len(index))[:, None]
    values = values.reshape(*index.shape, *values.shape[1:])
    blank = jnp.zeros((len(index), policy.window, *values.shape[2:]), values.dtype)
    return blank.at[row, index].set(values, unique_indices=True)
