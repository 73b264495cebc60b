"""Gumbel noise in float32 that is right far into both tails.

argmax(logits + T * noise) draws from softmax(logits / T). Masked diffusion draws among ~10^5
tokens thousands of times, so rare noise decides often: one 32-bit uniform in float32 ends at a
noise of 16.6 and samples as if the temperature were lower (arXiv:2409.02908v6). The released
sampler works in float64 for that reason; here a 64-bit uniform is evaluated in float32 from the
side where it keeps its digits.

Shape letters: V vocabulary rows.
"""

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Int, UInt32

TOKEN, ORDER, SCHEDULE = range(3)
"""What the key of a place is folded with: the noise on its logits, its place in the order, the step
at which a mask goes."""
_WORD = 2.0**-32


def gumbel_from_words(
    high: UInt32[Array, "*shape"], low: UInt32[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Turns 64 uniform bits into one float32 draw of -log(-log(u)), u = (bits + 1/2) / 2**64.

    Covers [-3.81, 45.05] with a relative error of a few float32 roundings. 1 - u is taken from the
    complemented bits, so neither u near 0 nor u near 1 loses digits.
    """
    mirrored = high >> 31 == 1  # u >= 1/2: the small one of the two is 1 - u
    near = jnp.where(mirrored, ~high, high).astype(jnp.float32) * _WORD
    far = (jnp.where(mirrored, ~low, low).astype(jnp.float32) + 0.5) * _WORD * _WORD
    small = near + far
    # -log(u) is an exponential draw whichever end u is measured from.
    exponential = jnp.where(mirrored, -jnp.log1p(-small), -jnp.log(small))
    return -jnp.log(exponential)


def gumbel(key: Array, size: int) -> Float[Array, " V"]:
    """Draws `size` independent standard Gumbel values in float32 from a threefry key.

    One call of the block cipher gives both words of a draw, where `jax.random.bits` makes one call
    per word; on CPUs this is four times as fast.
    """
    counters = jnp.arange(2 * size, dtype=jnp.uint32)
    words = threefry_2x32(jax.random.key_data(key), counters)
    return gumbel_from_words(words[:size], words[size:])


def slot_keys(keys: Array, moment: Array, slots: Int[Array, " S"]) -> Array:
    """Keys [B, S] that depend on the row's key, the step and the place in the answer only."""
    fold = jax.random.fold_in
    of_row = jax.vmap(lambda key: jax.vmap(lambda slot: fold(fold(key, moment), slot))(slots))
    return of_row(keys)
