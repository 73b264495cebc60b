"""Conditional log-likelihood of an answer (LLaDA, arXiv:2502.09992v3, Eq. 6).

Shape letters: B masks of one batch, L padded length, S padded answer, D model width.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.likelihood import Round, checked_tokens, mask_rounds
from jaxllada.diffusion.chunked import chunked_cross_entropy

LENGTH_MULTIPLE, ANSWER_MULTIPLE = 64, 16
"""Lengths are rounded up to these, so that few of them are ever compiled."""


def log_likelihood(
    model: Any,
    prompt: ArrayLike,
    answer: ArrayLike,
    config: LikelihoodConfig | None = None,
    key: Array | None = None,
) -> float:
    """Estimates the bound on log p(answer | prompt), in nats; 0 is certainty.

    `mc_num / batch_size` calls of the model, each on `batch_size` masked copies (twice as many
    with guidance). The head runs on hidden answer positions only.

    Args:
        model: a `MaskPredictor`.
        prompt: token ids [P], which may be empty.
        answer: token ids, at least one.
        config: number of masks, batch size, guidance, seed.
        key: a JAX random key for the masks; without it they follow from `config.seed` and the
            length of the answer, the same on every backend.

    Raises:
        UserError: ids outside the vocabulary, or more tokens than the model has positions.
    """
    config = config or LikelihoodConfig()
    prompt, answer = checked_tokens(prompt, answer, model.config)
    seed = config.seed if key is None else _seed_of(key)
    rounds = mask_rounds(len(answer), config, seed)
    return mean_log_likelihood(model, prompt, answer, rounds, config.cfg_scale)


def mean_log_likelihood(
    model: Any,
    prompt: Int[np.ndarray, " P"],
    answer: Int[np.ndarray, " N"],
    rounds: Iterable[Round],
    cfg_scale: float = 0.0,
) -> float:
    """Averages Eq. 6 over given masks: the log-probability of hidden tokens times N / hidden."""
    start, length = len(prompt), len(answer)
    size = _rounded_up(length, ANSWER_MULTIPLE)
    tokens = np.full(_rounded_up(start + size, LENGTH_MULTIPLE), model.config.pad_token_id)
    tokens[: start + length] = np.concatenate([prompt, answer])
    values = []
    for is_masked, counts in rounds:
        weights = np.zeros((len(counts), size), np.float32)
        weights[:, :length] = is_masked * (length / counts)[:, None]
        nats = weighted_nats(
            model,
            jnp.asarray(tokens, jnp.int32),
            jnp.asarray(weights),
            jnp.int32(start),
            jnp.int32(start + length),
            jnp.float32(cfg_scale),
            is_guided=cfg_scale > 0,
        )
        values.append(np.asarray(nats, np.float64))
    return -float(np.concatenate(values).mean())


@functools.partial(jax.jit, static_argnames="is_guided")
def weighted_nats(
    model: Any,
    tokens: Int[Array, " L"],
    weights: Float[Array, "B S"],
    start: Int[Array, ""],
    end: Int[Array, ""],
    cfg_scale: Float[Array, ""],
    *,
    is_guided: bool,
) -> Float[Array, " B"]:
    """Returns sum(weights * cross-entropy) in nats of every masked copy of one sequence.

    The answer's window begins at `start`; where a weight is not 0, the token is hidden. Positions
    from `end` on are padding.
    """
    batch, size = weights.shape
    canvas = jnp.tile(tokens, (batch, 1))
    window = jax.lax.dynamic_slice_in_dim(canvas, start, size, axis=1)
    hidden_window = jnp.where(weights != 0, model.config.mask_id, window)
    canvas = jax.lax.dynamic_update_slice_in_dim(canvas, hidden_window, start, axis=1)
    place = jnp.arange(len(tokens))
    if is_guided:
        without_prompt = jnp.where(place < start, model.config.mask_id, canvas)
        canvas = jnp.concatenate([canvas, without_prompt])
    visible = jnp.broadcast_to(place < end, canvas.shape)
    states = model.hidden(canvas, visible, window=(start, size))
    if is_guided:
        # Logits are linear in these activations: guiding here is guiding the logits (Eq. 16).
        given, unconditional = jnp.split(states.astype(jnp.float32), 2)
        states = unconditional + (cfg_scale + 1) * (given - unconditional)
    losses = chunked_cross_entropy(
        (states * jnp.asarray(model.logit_scale, states.dtype)).reshape(-1, states.shape[-1]),
        model.head_weight.astype(states.dtype),
        window.reshape(-1),
        weights.reshape(-1),
        head_bias=None if model.head_bias is None else model.head_bias * model.logit_scale,
    )
    return jnp.sum(losses.nll.reshape(weights.shape) * weights, axis=1)


def _seed_of(key: Array) -> int:
    high, low = np.asarray(jax.random.bits(key, (2,), jnp.uint32)).tolist()
    return high << 32 | low


def _rounded_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
