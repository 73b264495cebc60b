"""Where the weights of a run come from: a shape to fill, released weights, or an earlier run."""

from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxllada.common.config.compute import ComputeConfig, compute_config
from jaxllada.common.config.lora import LoraConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.run.origin import Origin, find_model, find_tokenizer, fit_preset
from jaxllada.convert import load
from jaxllada.models.family import abstract_model, make_model
from jaxllada.models.lora import add_adapters
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


def split_abstract(
    model: ModelConfig, compute: ComputeConfig, lora: LoraConfig | None = None
) -> tuple[Any, Tree]:
    """Returns (graphdef, nested dict of shapes): a model without memory, cut for training."""
    abstract = abstract_model(model, compute)
    abstract = abstract if lora is None else add_adapters(abstract, lora)
    graphdef, params = nnx.split(abstract, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def starting_params(
    origin: Origin,
    model: ModelConfig,
    compute: ComputeConfig,
    mesh: Mesh,
    seed: int,
    lora: LoraConfig | None = None,
) -> Tree:
    """Returns the weights a new run starts with, in `param_dtype`, laid out over the mesh.

    Adapters are float32; `seed` draws them.
    """
    _, shapes = split_abstract(model, compute)
    places = shardings(mesh, shapes)
    if not origin.is_trained:

        def draw(key: jax.Array) -> Tree:
            drawn = make_model(model, compute=compute, rngs=key)
            return nnx.to_pure_dict(nnx.state(drawn, nnx.Param))

        return jax.jit(draw, out_shardings=places)(jax.random.key(seed))
    assert origin.folder is not None
    model_read = load(origin.folder, compute.param_dtype, mesh=mesh)
    if lora is None:
        return nnx.to_pure_dict(nnx.state(model_read, nnx.Param))
    params = nnx.to_pure_dict(nnx.state(add_adapters(model_read, lora, seed=seed), nnx.Param))

    def placed(leaf: Any, place: Any) -> jax.Array:
        if isinstance(leaf, jax.Array):
            return leaf
        return jax.make_array_from_callback(leaf.shape, place, lambda index: leaf[index])

    return jax.tree.map(placed, params, shardings(mesh, params))
