"""The exact log-likelihood of the autoregressive twin: one call, nothing drawn.

log p(answer | prompt) is the sum over answer tokens of log p(token | all before it).

Shape letter: L positions of a padded row.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.autoregressive import padded
from jaxllada.diffusion.chunked import chunked_cross_entropy
from jaxllada.models.causal_lm import CausalLM
from jaxllada.sampling.autoregressive import MULTIPLE


def log_likelihood(model: CausalLM, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Returns log p(answer | prompt) in nats, exactly.

    Nothing is drawn. An empty prompt is the beginning of a text. Rows are padded to a multiple of
    `MULTIPLE` on the right, which they do not see.
    """
    if not len(answer):
        return 0.0
    laid = padded([prompt], model.config)
    tokens = np.concatenate([laid.tokens[0], np.asarray(answer, np.int32)])
    length, start = len(tokens), len(tokens) - len(answer)
    room = -(-length // MULTIPLE) * MULTIPLE
    tokens = np.pad(tokens, (0, room - length), constant_values=model.config.pad_token_id)
    place = np.arange(room)
    counted = (place >= start - 1) & (place < length - 1)
    return float(_summed(model, jnp.asarray(tokens), jnp.asarray(counted)))


@jax.jit
def _summed(
    model: CausalLM, tokens: Int[Array, " L"], counted: Bool[Array, " L"]
) -> Float[Array, ""]:
    """Sums the log-probabilities of the tokens behind the counted positions."""
    losses = chunked_cross_entropy(
        model.hidden(tokens[None])[0],
        model.head_weight,
        jnp.roll(tokens, -1),
        counted.astype(jnp.float32),
        head_bias=model.head_bias,
    )
    return -jnp.sum(jnp.where(counted, losses.nll, 0))
