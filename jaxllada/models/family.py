"""Making a model of the family that a config belongs to: a mask predictor, or its causal twin."""

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.models.causal_lm import CausalLM
from jaxllada.models.mask_predictor import MaskPredictor


def make_model(
    config: ModelConfig,
    *,
    compute: ComputeConfig | None = None,
    rngs: nnx.Rngs | PRNGKeyArray,
) -> MaskPredictor:
    """Returns a model of the family of `config`, with random weights."""
    kind = CausalLM if config.is_causal else MaskPredictor
    return kind(config, compute=compute, rngs=rngs)


def abstract_model(config: ModelConfig, compute: ComputeConfig | None = None) -> MaskPredictor:
    """Returns a model of `jax.ShapeDtypeStruct` leaves: shapes and types, no memory."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda key: make_model(config, compute=compute, rngs=key), key)
