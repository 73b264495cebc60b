"""Where the weights of a run come from: a shape to fill, released weights, or an earlier run."""

from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxllada.common.config.compute import ComputeConfig, compute_config
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.run.origin import Origin, find_model, find_tokenizer, fit_preset
from jaxllada.convert import load
from jaxllada.models.causal_lm import make_model
from jaxllada.models.mask_predictor import abstract_model
from jaxllada.sharding import shardings

__all__ = [
    "Origin",
    "compute_config",
    "find_model",
    "find_tokenizer",
    "fit_preset",
    "split_abstract",
    "starting_params",
]

Tree = Any


def split_abstract(model: ModelConfig, compute: ComputeConfig) -> tuple[Any, Tree]:
    """Returns (graphdef, nested dict of shapes): a model without memory, cut for training."""
    graphdef, params = nnx.split(abstract_model(model, compute), nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def starting_params(
    origin: Origin, model: ModelConfig, compute: ComputeConfig, mesh: Mesh, seed: int
) -> Tree:
    """Returns the weights a new run starts with, in `param_dtype`, laid out over the mesh."""
    _, shapes = split_abstract(model, compute)
    places = shardings(mesh, shapes)
    if not origin.is_trained:

        def draw(key: jax.Array) -> Tree:
            drawn = make_model(model, compute=compute, rngs=key)
            return nnx.to_pure_dict(nnx.state(drawn, nnx.Param))

        return jax.jit(draw, out_shardings=places)(jax.random.key(seed))
    assert origin.folder is not None
    model_read = load(origin.folder, compute.param_dtype, mesh=mesh)
    return nnx.to_pure_dict(nnx.state(model_read, nnx.Param))
