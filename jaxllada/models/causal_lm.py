"""The autoregressive twin: the same stack with a causal mask, the control of a mask predictor.

Qwen2 (arXiv:2407.10671v4, section 2.2). Position i predicts the token behind it, so a row is
shifted by one (`common/data/next_token.py`) and its logits are those of its own tokens.

Shape letters: B batch, L positions, R selected positions, D model width, V embedding rows.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxllada.models.mask_predictor import AnyArray, MaskPredictor


class CausalLM(MaskPredictor):
    """A `MaskPredictor` whose positions see only themselves and those before them."""

    def hidden(
        self,
        tokens: Int[AnyArray, "B L"],
        attention_mask: Shaped[AnyArray, "B L"] | None = None,
        *,
        attention_bias: AnyArray | None = None,
        **options: Any,
    ) -> Float[Array, "B R D"]:
        """See `MaskPredictor.hidden`. A boolean `attention_bias` narrows the causal mask."""
        length = tokens.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
        if attention_bias is not None:
            assert attention_bias.dtype == jnp.bool_, "an autoregressive model takes boolean ones"
            causal &= attention_bias
        return super().hidden(tokens, attention_mask, attention_bias=causal, **options)
