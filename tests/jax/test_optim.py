"""AdamW: against a plain NumPy loop and against optax's own, with decay where it belongs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.train import TrainConfig
from jaxllada.models.family import abstract_model
from jaxllada.train.optim import (
    average,
    decay_mask,
    descend,
    initial_moments,
    make_optimizer,
    path_names,
)

CONFIG = TrainConfig(
    adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6, weight_decay=0.3, max_grad_norm=2.0
)


def some_params(rng):
    return {
        "wte": rng.normal(size=(5, 3)),
        "blocks": {"attn_norm": {"weight": rng.normal(size=(2, 3))}},
        "ff_out": {"kernel": rng.normal(size=(3, 5)), "bias": rng.normal(size=5)},
    }


def numpy_adamw(params, grads, rates, config):
    """Kingma & Ba's Algorithm 1 with decoupled decay, written out leaf by leaf in float64."""
    decays = {"wte": True, "attn_norm": False, "kernel": True, "bias": False}
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    keys = [next(k for k in decays if k in path_names(path)) for path, _ in leaves]
    values = [leaf.astype(np.float64) for _, leaf in leaves]
    m = [np.zeros_like(v) for v in values]
    s = [np.zeros_like(v) for v in values]
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        grad = jax.tree.leaves(grad)
        norm = np.sqrt(sum(np.sum(g**2) for g in grad))
        for i, g in enumerate(grad):
            g = g * min(1.0, config.max_grad_norm / norm) if config.max_grad_norm else g
            m[i] = config.adam_beta1 * m[i] + (1 - config.adam_beta1) * g
            s[i] = config.adam_beta2 * s[i] + (1 - config.adam_beta2) * g**2
            m_hat, s_hat = m[i] / (1 - config.adam_beta1**t), s[i] / (1 - config.adam_beta2**t)
            step = m_hat / (np.sqrt(s_hat) + config.adam_epsilon)
            if decays[keys[i]]:
                step = step + config.weight_decay * values[i]
            values[i] = values[i] - rate * step
    return jax.tree.unflatten(treedef, values)


def run(params, grads, rates, config):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    optimizer = make_optimizer(config)
    state = initial_moments(optimizer, params)
    for grad, rate in zip(grads, rates, strict=True):
        grad = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), grad)
        direction, state = optimizer.update(grad, state, params)
        params = descend(params, direction, rate)
    return params


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5, 100.0])
def test_updates_equal_adamw_written_out(max_grad_norm):
    rng = np.random.default_rng(0)
    config = TrainConfig(**{**CONFIG.to_dict(), "max_grad_norm": max_grad_norm})
    params, grads = some_params(rng), [some_params(rng) for _ in range(4)]
    rates = [0.0, 0.1, 0.02, 0.3]
    expected = numpy_adamw(params, grads, rates, config)
    got = run(params, grads, rates, config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, expected)


def test_updates_equal_optax_adamw():
    rng = np.random.default_rng(1)
    params, grads = some_params(rng), [some_params(rng) for _ in range(3)]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    oracle = optax.chain(
        optax.clip_by_global_norm(2.0),
        optax.adamw(0.1, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3, mask=decay_mask),
    )
    state, expected = oracle.init(params), params
    for grad in grads:
        grad = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), grad)
        updates, state = oracle.update(grad, state, expected)
        expected = optax.apply_updates(expected, updates)
    got = run(params, grads, [0.1] * 3, CONFIG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), got, expected)


@pytest.mark.parametrize("norm", ["rms", "default"])
def test_only_matrices_and_embeddings_decay(norm):
    config = dataclasses.replace(
        PRESETS["tiny"], include_bias=True, include_qkv_bias=True, attention_layer_norm=True,
        layer_norm_type=norm, bias_for_layer_norm=norm == "default",
    )  # fmt: skip
    params = nnx.to_pure_dict(nnx.state(abstract_model(config), nnx.Param))
    mask = {
        path_names(path): decays
        for path, decays in jax.tree_util.tree_flatten_with_path(decay_mask(params))[0]
    }
    linear = {"q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"}
    decaying = {names[-1] if names == ("wte",) else names[-2] for names in mask if mask[names]}
    assert decaying == linear | {"wte"}
    norms = {"attn_norm", "ff_norm", "q_norm", "k_norm", "ln_f"}
    resting = [names for names in mask if not mask[names]]
    assert norms <= {names[-2] for names in resting}
    assert all(names[-1] == "bias" or names[-2] in norms for names in resting)


def test_bfloat16_weights_have_float32_moments_and_round_once():
    params = {"wte": jnp.full((2, 2), 1.0, jnp.bfloat16)}
    state = initial_moments(make_optimizer(CONFIG), params)
    floats = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert floats == [jnp.float32, jnp.float32]
    moved = descend(params, {"wte": jnp.full((2, 2), 0.5)}, jnp.float32(0.01))
    expected = jnp.full((2, 2), 1.0 - 0.005).astype(jnp.bfloat16)
    np.testing.assert_array_equal(moved["wte"], expected)


def test_the_average_forgets_the_start_and_then_obeys_its_decay():
    ema = {"wte": jnp.zeros(2)}
    params = {"wte": jnp.ones(2, jnp.bfloat16)}
    early = average(ema, params, 0.99, jnp.int32(0))
    late = average(ema, params, 0.99, jnp.int32(100_000))
    np.testing.assert_allclose(early["wte"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(late["wte"], 0.01, rtol=1e-5)
    assert early["wte"].dtype == jnp.float32
