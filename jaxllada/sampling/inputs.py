"""The data a sampling run is carried out on.

Shape letters: B rows, L canvas length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.canvas import Canvas
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.smoothing import call_bounds, call_weights
from jaxllada.common.unmasking import transfers, unmasking_plan
from jaxllada.sampling.gumbel import SCHEDULE, slot_keys


class Inputs(NamedTuple):
    """What stays the same during a run."""

    visible: Bool[Array, "B L"]
    """Keys that may be attended to."""
    positions: Int[Array, "B L"]
    """Rotary positions."""
    known: Bool[Array, "B L"]
    """Prompt positions that guidance hides for the unconditional prediction."""
    keys: Array
    """One random key per row."""
    transfers: Int[Array, "B L"]
    """Tokens each call commits: `common.unmasking.transfers`."""
    prompt_length: Int[Array, ""]
    """First position of the first block."""
    end: Int[Array, ""]
    """First position behind the answer."""
    lead: Int[Array, ""]
    """Blocks before the end of the prompt: `common.canvas.Canvas.lead`."""
    calls_per_block: Int[Array, ""]
    temperature: Float[Array, ""]
    cfg_scale: Float[Array, ""]
    bound: Float[Array, ""]
    """What an adaptive selection compares with."""
    bounds: Float[Array, " C"]
    """The same for each call of a block where it changes; else empty."""
    weights: Float[Array, " C"]
    """Shares by which masks carry the predictions of a call; empty without smoothing."""
    low_bound: Float[Array, ""]
    """What the best of a run of masks is compared with."""
    credit: tuple[Float[Array, ""], ...]
    """alpha, beta and gamma of `sampling/credit.py`; empty: there is no credit."""
    order_temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    top_k: Int[Array, ""]
    answer_length: Float[Array, ""]
    """Positions that an answer may have."""
    end_think_boost: Float[Array, ""]
    end_think_power: Float[Array, ""]
    suppressed: Int[Array, " K"]
    """Ids that are never predicted."""
    unsure: Int[Array, " U"]
    """Ids that have no confidence."""

    @classmethod
    def of(cls, canvas: Canvas, config: SamplingConfig, keys: Array) -> "Inputs":
        """Puts a canvas and the numbers of a config on the device; one key per row."""
        policy, rule, candidate = canvas.policy, config.selection_rule, config.candidate
        first, draws = canvas.prompt_length, None
        if rule.is_stochastic:
            draws = _schedule_draws(keys, jnp.arange(canvas.tokens.shape[1] - first))
            draws = jax.device_get(draws)
        counts = transfers(config, canvas.tokens, policy.mask_id, first, draws)
        known = canvas.known & ~np.isin(canvas.tokens, candidate.cfg_keep_tokens)
        return cls(
            visible=jnp.asarray(canvas.visible),
            positions=jnp.asarray(canvas.positions),
            known=jnp.asarray(known),
            keys=keys,
            transfers=jnp.asarray(counts),
            prompt_length=jnp.int32(first),
            end=jnp.int32(first + canvas.gen_length),
            answer_length=jnp.float32(config.gen_length),
            end_think_boost=jnp.float32(config.end_think_logit_boost),
            end_think_power=jnp.float32(config.end_think_boost_power),
            lead=jnp.int32(canvas.lead),
            calls_per_block=jnp.int32(unmasking_plan(config).calls_per_block),
            temperature=jnp.float32(config.temperature),
            cfg_scale=jnp.float32(config.cfg_scale),
            bound=jnp.float32(rule.bound),
            bounds=jnp.asarray(call_bounds(rule, config.block_length)),
            weights=jnp.asarray(call_weights(config.smoothing_rule, config.block_length)),
            low_bound=jnp.float32(rule.low_bound),
            credit=tuple(map(jnp.float32, rule.credit)),
            order_temperature=jnp.float32(rule.order_temperature),
            top_p=jnp.float32(candidate.top_p or 1),
            top_k=jnp.int32(candidate.top_k or 1),
            suppressed=jnp.asarray(candidate.suppress_tokens, jnp.int32),
            unsure=jnp.asarray(candidate.begin_suppress_tokens, jnp.int32),
        )


@jax.jit
def _schedule_draws(keys: Array, slots: Int[Array, " N"]) -> Float[Array, "B N"]:
    """Uniform numbers of a row's key and the place in the answer: when a mask goes."""
    draw = jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, SCHEDULE))))
    return draw(slot_keys(keys, jnp.int32(0), slots))
