"""Low-rank adapters in JAX: the function, what trains, how weights are cut, and their files."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.lora import LoraConfig
from jaxllada.common.config.presets import preset
from jaxllada.common.errors import UserError
from jaxllada.common.weights.peft import read_adapter, write_adapter
from jaxllada.convert import load, save
from jaxllada.models.family import abstract_model
from jaxllada.models.linear import dot, frozen_dot
from jaxllada.models.lora import (
    adapted,
    adapter_of,
    add_adapters,
    assemble,
    divide,
    joined,
    put_adapter,
    with_dropout,
)
from jaxllada.models.mask_predictor import MaskPredictor

TINY = preset("tiny")
SEQUENTIAL = dataclasses.replace(TINY, block_type="sequential", activation_type="swiglu")
CONFIGS = pytest.mark.parametrize("config", [TINY, SEQUENTIAL], ids=["llama", "sequential"])
LORA = functools.partial(LoraConfig, r=3, lora_alpha=6.0)
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 12))


@functools.cache
def make(config=TINY, **types):
    return MaskPredictor(config, rngs=jax.random.key(0), compute=ComputeConfig(**types))


def params_of(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def with_adapters(config=TINY, *, is_trained=True, types=(), **changes):
    """A model whose B is not zero, with q, k and v of a sequential block sharing A."""
    model = add_adapters(make(config, **dict(types)), LORA(**changes), seed=1)
    graphdef, _ = nnx.split(model, nnx.Param)
    trained, frozen = divide(params_of(model), config)
    if is_trained:
        rng = np.random.default_rng(3)
        trained = jax.tree_util.tree_map_with_path(
            lambda path, x: (
                x + 0.05 * rng.normal(size=x.shape).astype("f4") if path[-1].key == "lora_b" else x
            ),
            trained,
        )
    return assemble(graphdef, trained, frozen, None)


@jax.jit
def logits(model):
    return model(TOKENS)


def test_fresh_adapters_change_nothing_and_follow_the_seed():
    np.testing.assert_array_equal(logits(with_adapters(is_trained=False)), logits(make()))
    first, again, other = (add_adapters(make(), LORA(), seed=seed) for seed in (1, 1, 2))
    a, b, c = (next(adapted(m))[1].lora_a[...] for m in (first, again, other))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0.01
    # Uniform in +-1/sqrt(width), as PEFT draws it.
    bound = 1 / np.sqrt(TINY.d_model)
    assert 0.9 * bound < np.abs(a).max() <= bound
    assert abs(np.std(a) - bound / np.sqrt(3)) < 0.1 * bound


@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_adapted_layer_is_the_weight_plus_the_scaled_product(use_rslora):
    scale = 6 / (3**0.5 if use_rslora else 3)
    for _, module in adapted(with_adapters(use_rslora=use_rslora)):
        x = np.random.default_rng(0).normal(size=(4, module.kernel.shape[1])).astype("f4")
        layer = jax.tree.map(lambda leaf: jnp.asarray(leaf)[1], module)
        a, b = np.asarray(module.lora_a[...][1]), np.asarray(module.lora_b[...][1])
        whole = np.asarray(module.kernel[...][1]) + scale * (b @ a).T
        np.testing.assert_allclose(layer(jnp.asarray(x)), x @ whole, atol=2e-5)


@CONFIGS
def test_only_factors_are_trained_and_the_head_is_not_adapted(config):
    model = with_adapters(config)
    trained, frozen = divide(params_of(model), config)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(trained)}
    assert names == {"lora_a", "lora_b"}
    assert set(trained) == {"blocks"}
    plain = params_of(make(config))
    jax.tree.map(np.testing.assert_array_equal, frozen, plain)
    both = joined(trained, frozen)
    jax.tree.map(np.testing.assert_array_equal, both, params_of(model))
    assert divide(plain, config) == (plain, None)
    assert joined(plain, None) is plain


@CONFIGS
def test_gradients_of_factors_are_those_of_the_merged_weight(config):
    """d/dA and d/dB by the chain rule from the gradient of W, the oracle being a plain model."""
    model = with_adapters(config)
    graphdef, _ = nnx.split(model, nnx.Param)
    trained, frozen = divide(params_of(model), config)
    cotangent = np.random.default_rng(1).normal(size=(2, 12, config.rows)).astype("f4")

    def ours(trained):
        return jnp.sum(assemble(graphdef, trained, frozen, None)(TOKENS) * cotangent)

    merged = jax.tree.map(lambda leaf: leaf, make(config))
    for path, module in adapted(model):
        node = functools.reduce(getattr, path, merged)
        product = jnp.einsum("lor,lri->lio", module.lora_b[...], module.lora_a[...])
        node.kernel[...] = module.kernel[...] + 2 * product
    plain, state = nnx.split(merged, nnx.Param)

    def theirs(params):
        return jnp.sum(nnx.merge(plain, params)(TOKENS) * cotangent)

    found = jax.jit(jax.grad(ours))(trained)
    whole = jax.jit(jax.grad(theirs))(nnx.to_pure_dict(state))
    shared = 0
    for path, module in adapted(model):
        node = functools.reduce(lambda tree, name: tree[name], path, found)
        g = functools.reduce(lambda tree, name: tree[name], path, whole)["kernel"]
        expected_b = 2 * jnp.einsum("lio,lri->lor", g, module.lora_a[...])
        expected_a = 2 * jnp.einsum("lio,lor->lri", g, module.lora_b[...])
        np.testing.assert_allclose(node["lora_b"], expected_b, rtol=1e-3, atol=2e-4)
        if config is SEQUENTIAL and path[-1] in ("q_proj", "k_proj", "v_proj"):
            shared = shared + expected_a
        else:
            np.testing.assert_allclose(node["lora_a"], expected_a, rtol=1e-3, atol=2e-4)
    if config is SEQUENTIAL:
        node = found["blocks"]["attention"]["q_proj"]["lora_a"]
        np.testing.assert_allclose(node, shared, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_frozen_product_and_its_gradient_are_those_of_a_trained_one(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(5, 8)), dtype)
    kernel = jnp.asarray(rng.normal(size=(8, 6)), "bfloat16")
    expected = jax.vjp(lambda x: dot(x, kernel.astype(x.dtype)), x)
    found = jax.vjp(lambda x: frozen_dot(x, kernel), x)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(*(back(jnp.ones_like(y))[0] for y, back in (found, expected)))


def test_dropout_acts_on_the_inputs_of_factors_and_only_with_a_key():
    model, plain = with_adapters(lora_dropout=0.5), with_adapters()
    np.testing.assert_array_equal(logits(model), logits(plain))
    one, same, other = (logits(with_dropout(model, jax.random.key(n))) for n in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - logits(plain)).max() > 1e-3
    fresh = with_adapters(is_trained=False, lora_dropout=0.5)
    np.testing.assert_array_equal(logits(with_dropout(fresh, jax.random.key(0))), logits(make()))


@pytest.mark.parametrize("layout", ["llada", "llama"])
def test_adapters_come_back_from_their_files(layout, tmp_path):
    targets = "q_proj,v_proj,ff_out"
    model = with_adapters(target_modules=targets)
    adapter = adapter_of(params_of(model), LORA(target_modules=targets), TINY)
    assert [path[-1] for path in adapter.factors] == ["q_proj", "v_proj", "ff_out"]
    write_adapter(tmp_path / "adapter", adapter, TINY, layout=layout)
    again = put_adapter(make(), read_adapter(tmp_path / "adapter", TINY))
    np.testing.assert_array_equal(logits(again), logits(model))
    save(make(), tmp_path / "base", layout=layout)
    loaded = load(tmp_path / "base", adapter=tmp_path / "adapter")
    np.testing.assert_allclose(logits(loaded), logits(model), atol=2e-5)


def test_fused_products_of_sequential_blocks_share_a_factor_and_can_be_written(tmp_path):
    model = with_adapters(SEQUENTIAL)
    trained, _ = divide(params_of(model), SEQUENTIAL)
    assert "lora_a" not in trained["blocks"]["attention"]["k_proj"]
    write_adapter(tmp_path, adapter_of(trained, LORA(), SEQUENTIAL), SEQUENTIAL)
    again = put_adapter(make(SEQUENTIAL), read_adapter(tmp_path, SEQUENTIAL))
    np.testing.assert_array_equal(logits(again), logits(model))


def test_shapes_take_adapters_without_memory_and_an_unknown_name_is_refused():
    shapes = params_of(add_adapters(abstract_model(TINY), LORA()))
    real = params_of(add_adapters(make(), LORA(), seed=0))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, real)
    with pytest.raises(UserError, match="target_modules=queries: expected all-linear or names of"):
        add_adapters(make(), LORA(target_modules="queries"))
