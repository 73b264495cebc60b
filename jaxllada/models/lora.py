"""Low-rank adapters on the dense layers of the blocks (LoRA, arXiv:2106.09685v2, section 4.1).

The base weights keep their names and are frozen; the output head never takes part. Files are those
of the PEFT library, see `common/weights/peft.py`.

Shape letters: I input width, O output width, r rank, N layers.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PRNGKeyArray

from jaxllada.common.config.lora import LoraConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.weights.adapter import (
    Adapter,
    Module,
    initial_a,
    target_paths,
)
from jaxllada.models.linear import PRODUCT, Linear, dot, dropout, frozen_dot
from jaxllada.models.mask_predictor import MaskPredictor

Tree = Any
FACTORS = ("lora_a", "lora_b")


class LoraLinear(Linear):
    """A frozen dense layer plus scale * B A x; dropout of x before A, where `key` is set.

    The key is a value of the module, one for each layer of a stack, so that callers of dense
    layers need not know of it; `with_dropout` sets it.
    """

    def __init__(self, base: Linear, lora_a: Any, lora_b: Any, lora: LoraConfig):
        self.kernel, self.bias = base.kernel, base.bias
        # Trained in float32, whatever the frozen weights are stored in.
        self.lora_a, self.lora_b = nnx.Param(lora_a), nnx.Param(lora_b)
        self.scale, self.dropout = lora.scale, lora.lora_dropout
        self.key: nnx.Variable | None = nnx.data(None)

    def __call__(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows O"]:
        y = checkpoint_name(frozen_dot(x, self.kernel[...]), PRODUCT)
        y = y if self.bias is None else y + self.bias[...].astype(y.dtype)
        narrow = dropout(x, self.dropout, None if self.key is None else self.key[...])
        narrow = dot(narrow, self.lora_a[...].astype(x.dtype).T)
        return y + dot(narrow, self.lora_b[...].astype(x.dtype).T) * self.scale


def add_adapters(
    model: MaskPredictor, lora: LoraConfig, *, seed: int | None = None
) -> MaskPredictor:
    """Returns the model with adapters on its dense layers; its arrays are shared, not copied.

    A is drawn as PEFT does, uniform in +-1/sqrt(I), the same in both packages; B is zero, so the
    function does not change. Without a seed, as for models of shapes, both are shapes.

    Raises:
        UserError: a name that no block of the model has.
    """
    factors: dict[Module, tuple[Any, Any]] = {}
    for path in target_paths(model.config, lora.target_modules):
        layers, width, out = _at(model, path).kernel.shape
        shapes = (layers, lora.r, width), (layers, out, lora.r)
        if seed is None:
            a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        else:
            a = initial_a(model.config, path, lora.r, width, seed)
            b = np.zeros(shapes[1], np.float32)
        factors[path] = a, b
    return _with_factors(model, factors, lora)


def put_adapter(model: MaskPredictor, adapter: Adapter) -> MaskPredictor:
    """Returns the model with the adapters of a file (`read_adapter`)."""
    factors = {
        path: tuple(jnp.asarray(factor, jnp.float32) for factor in pair)
        for path, pair in adapter.factors.items()
    }
    return _with_factors(model, factors, adapter.settings)


def _with_factors(model: MaskPredictor, factors: Any, lora: LoraConfig) -> MaskPredictor:
    copy = jax.tree.map(lambda leaf: leaf, model)
    for path, (a, b) in factors.items():
        setattr(_at(copy, path[:-1]), path[-1], LoraLinear(_at(copy, path), a, b, lora))
    return copy


def adapted(model: MaskPredictor) -> Iterator[tuple[Module, LoraLinear]]:
    """Yields (module path of the name table, module) of every adapted stack of layers."""
    for path in target_paths(model.config, "all-linear"):
        if isinstance(module := _at(model, path), LoraLinear):
            yield path, module


def with_dropout(model: MaskPredictor, key: PRNGKeyArray) -> MaskPredictor:
    """Returns the model with a dropout key for every adapter of every layer."""
    copy = jax.tree.map(lambda leaf: leaf, model)
    for number, (_, module) in enumerate(adapted(copy)):
        if module.dropout:
            keys = jax.random.split(jax.random.fold_in(key, number), module.lora_a.shape[0])
            module.key = nnx.Variable(keys)
    return copy


def divide(params: Tree, config: ModelConfig) -> tuple[Tree, Tree | None]:
    """Cuts the nested dict of a model's weights into (trained, frozen), or (all, None).

    Where a file stores q, k and v as one layer, they train one A, that of the first.
    """
    trained = _select(params, lambda name: name in FACTORS)
    if not trained:
        return params, None
    if config.block_type == "sequential":
        for node in _fused(trained["blocks"]["attention"])[1:]:
            del node["lora_a"]
    return trained, _select(params, lambda name: name not in FACTORS)


def joined(trained: Tree, frozen: Tree | None) -> Tree:
    """The nested dict of all weights: the inverse of `divide`. Traceable."""
    if frozen is None:
        return trained
    params = _union(trained, frozen)
    for node in (fused := _fused(params["blocks"]["attention"])):
        node.setdefault("lora_a", fused[0]["lora_a"])
    return params


def assemble(
    graphdef: Any, trained: Tree, frozen: Tree | None, key: PRNGKeyArray | None
) -> MaskPredictor:
    """Makes the model of trained and frozen weights; a key turns dropout before adapters on."""
    model = nnx.merge(graphdef, joined(trained, frozen))
    return model if frozen is None or key is None else with_dropout(model, key)


def adapter_of(params: Tree, lora: LoraConfig, config: ModelConfig) -> Adapter:
    """The factors among trained weights as `write_adapter` takes them, float32, on the host."""
    factors: dict[Module, tuple[np.ndarray, np.ndarray]] = {}
    for path in target_paths(config, lora.target_modules):
        node = params
        for name in path:
            node = node[name]
        shared = node if "lora_a" in node else _fused(params["blocks"]["attention"])[0]
        pair = shared["lora_a"], node["lora_b"]
        factors[path] = np.asarray(pair[0], np.float32), np.asarray(pair[1], np.float32)
    return Adapter.of(factors, lora)


def _fused(attention: Tree) -> list[Tree]:
    """The adapted ones of q, k and v."""
    nodes = (attention.get(name, {}) for name in ("q_proj", "k_proj", "v_proj"))
    return [node for node in nodes if "lora_b" in node]


def _select(tree: Tree, keeps: Callable[[str], bool]) -> Tree:
    """The leaves of a nested dict whose own name is kept; empty dicts are left out."""
    found = {
        name: _select(value, keeps) if isinstance(value, dict) else value
        for name, value in tree.items()
        if isinstance(value, dict) or keeps(name)
    }
    return {name: value for name, value in found.items() if not isinstance(value, dict) or value}


def _union(a: Tree, b: Tree) -> Tree:
    """Nested dicts laid over each other; new dicts all the way down."""
    both = {name: _union(a[name], b[name]) for name in a.keys() & b.keys()}
    alone = {name: value for name, value in (*a.items(), *b.items()) if name not in both}
    return both | {name: _copied(value) for name, value in alone.items()}


def _copied(tree: Tree) -> Tree:
    return _union(tree, {}) if isinstance(tree, dict) else tree


def _at(model: Any, path: Module) -> Any:
    for name in path:
        model = getattr(model, name)
    return model
